//! What the programs log unless they are told otherwise.

/// Our own crates at `info`. What libraries log is mostly about what a peer sent (`h2` warns of
/// each stray PING), so a peer could fill a disk with it: only errors, and none of boringtun, which
/// calls each peer that is down an error, every few seconds.
pub const DEFAULT: &str = "error,boringtun=off,agent=info,api=info,cni=info,datapath=info,host=info,lab=info,\
     mesh_agent=info,mesh_ctl=info,mesh_proxy=info,mesh_wireguard=info,policy=info,proxy=info,wireguard=info";
