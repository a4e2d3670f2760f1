//! Network namespaces of the benchmark's own, for what it compares with. They have no name: nothing is left of them when
//! this process ends, however it does.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use host::netlink::{LinkChange, Netlink, Route, VethPair};
use host::netns::NetNs;
use ipnet::{IpNet, Ipv4Net};

/// A namespace, and what runs in it.
#[derive(Debug)]
pub struct Namespace(NetNs);

/// One end of a link.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it is.
    pub namespace: &'a Namespace,
    /// Name of the device.
    pub device: &'a str,
    /// Address in the network that both ends have; a /24.
    pub address: Ipv4Addr,
}

/// Length of the prefix of every link's network.
const LINK_PREFIX: u8 = 24;

impl Namespace {
    /// A new one with its loopback device up.
    ///
    /// # Errors
    /// If this is not root.
    pub fn new() -> Result<Self> {
        let namespace = Self(NetNs::create_unnamed()?);
        on_netlink(async { Ok(Netlink::connect_in(&namespace.0)?.set_loopback_up().await?) })?;
        Ok(namespace)
    }

    /// The namespace itself.
    pub fn netns(&self) -> &NetNs {
        &self.0
    }

    /// The namespace itself, for good.
    pub fn into_netns(self) -> NetNs {
        self.0
    }

    /// A path to it, as long as this process lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_fd().as_raw_fd()))
    }

    /// `program` inside. It is asked to end when the calling thread does.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "nsenter"]).arg(format!("--net={}", self.path().display()));
        command.arg("--").arg(program);
        command
    }

    /// Sends what is for `destination` over `gateway`.
    ///
    /// # Errors
    /// If the kernel refuses, or there is no such device.
    pub fn route(&self, destination: Ipv4Net, gateway: Ipv4Addr, device: &str) -> Result<()> {
        on_netlink(async {
            let netlink = Netlink::connect_in(&self.0)?;
            let index = index_of(&netlink, device).await?;
            Ok(netlink.ensure_route(&Route::via(IpNet::V4(destination), gateway.into(), index)).await?)
        })
    }

    /// Sets the MTU of a device.
    ///
    /// # Errors
    /// If the kernel refuses, or there is no such device.
    pub fn set_mtu(&self, device: &str, mtu: u32) -> Result<()> {
        on_netlink(async {
            let netlink = Netlink::connect_in(&self.0)?;
            let index = index_of(&netlink, device).await?;
            Ok(netlink.change_link(index, &LinkChange { mtu: Some(mtu), ..LinkChange::default() }).await?)
        })
    }

    /// Gives a device an address and sets it up.
    ///
    /// # Errors
    /// If the kernel refuses, or there is no such device.
    pub fn configure(&self, device: &str, address: Ipv4Net) -> Result<()> {
        on_netlink(async {
            let netlink = Netlink::connect_in(&self.0)?;
            let index = index_of(&netlink, device).await?;
            netlink.ensure_address(index, IpNet::V4(address)).await?;
            Ok(netlink.set_up(index).await?)
        })
    }
}

/// A veth pair between two namespaces.
///
/// # Errors
/// If the kernel refuses.
pub fn link(a: End<'_>, b: End<'_>, mtu: u32) -> Result<()> {
    on_netlink(async {
        let pair = VethPair {
            name: a.device,
            mac: None,
            peer_name: b.device,
            peer_mac: None,
            peer_namespace: Some(&b.namespace.0),
            mtu,
        };
        Ok(Netlink::connect_in(&a.namespace.0)?.create_veth(&pair).await?)
    })?;
    for end in [a, b] {
        end.namespace.configure(end.device, Ipv4Net::new(end.address, LINK_PREFIX)?)?;
    }
    Ok(())
}

/// The MTU of a device.
///
/// # Errors
/// If there is no such device.
pub fn mtu_of(namespace: &NetNs, device: &str) -> Result<u32> {
    on_netlink(async {
        let link = Netlink::connect_in(namespace)?.link(device).await?;
        Ok(link.with_context(|| format!("no device {device}"))?.mtu)
    })
}

async fn index_of(netlink: &Netlink, device: &str) -> Result<u32> {
    Ok(netlink.link(device).await?.with_context(|| format!("no device {device}"))?.index)
}

fn on_netlink<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
