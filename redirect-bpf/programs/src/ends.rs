//! Who the two ends of a packet are.

use aya_ebpf::maps::lpm_trie::Key;
use layout::{
    Addr, Config, Endpoint, FIRST_LOCAL_IDENTITY, Reason, config_flag, identity, range_bits, range_kind,
};

use crate::maps::{CONFIG, ENDPOINTS, IDENTITIES, RANGES};
use crate::packet::Packet;

/// One end of a packet or flow.
#[derive(Clone, Copy)]
pub(crate) struct End {
    pub(crate) identity: u32,
    /// If it is a pod of this node.
    pub(crate) endpoint: Option<&'static Endpoint>,
}

impl End {
    #[inline(always)]
    pub(crate) fn of(address: u32, config: &Config) -> Self {
        let key = Addr::from_v4_wire(address);
        // SAFETY: the map is not preallocated, so a removed value is freed after a grace period and unchanged until
        // then; replaced values are new elements.
        if let Some(endpoint) = unsafe { ENDPOINTS.get(key) } {
            return Self { identity: endpoint.identity, endpoint: Some(endpoint) };
        }
        // SAFETY: as above.
        let identity = match unsafe { IDENTITIES.get(key) } {
            Some(identity) => *identity,
            None if address == config.node_address.v4_wire() => identity::HOST,
            None if in_pod_network(address, config) => identity::UNKNOWN,
            None => identity::WORLD,
        };
        Self { identity, endpoint: None }
    }

    /// [`Endpoint::generation`], or 0 for what is no pod of this node.
    #[inline(always)]
    pub(crate) fn generation(&self) -> u32 {
        match self.endpoint {
            Some(endpoint) => endpoint.generation,
            None => 0,
        }
    }

    /// [`Endpoint::birth`], or 0 for what is no pod of this node.
    #[inline(always)]
    pub(crate) fn birth(&self) -> u32 {
        match self.endpoint {
            Some(endpoint) => endpoint.birth,
            None => 0,
        }
    }

    #[inline(always)]
    pub(crate) fn is_local(&self) -> bool {
        self.endpoint.is_some()
    }

    #[inline(always)]
    pub(crate) fn is_shaped(&self) -> bool {
        self.endpoint.is_some_and(|endpoint| endpoint.flags & layout::endpoint_flag::SHAPED != 0)
    }
}

/// Both ends of a packet.
pub(crate) struct Ends {
    pub(crate) source: End,
    pub(crate) destination: End,
}

impl Ends {
    #[inline(always)]
    pub(crate) fn of(packet: &mut Packet, config: &Config) -> Self {
        let ends =
            Self { source: End::of(packet.source, config), destination: End::of(packet.destination, config) };
        packet.trail.source_identity = ends.source.identity;
        packet.trail.destination_identity = ends.destination.identity;
        ends
    }
}

/// The node's configuration.
#[inline(always)]
pub(crate) fn config() -> Result<&'static Config, Reason> {
    CONFIG.get(0).ok_or(Reason::Internal)
}

#[inline(always)]
pub(crate) fn in_pod_network(address: u32, config: &Config) -> bool {
    address & config.pod_netmask.v4_wire() == config.pod_network.v4_wire()
}

/// Whether the address is one of a pod, here or elsewhere, known or not.
#[inline(always)]
pub(crate) fn claims_pod(end: &End, address: u32, config: &Config) -> bool {
    in_pod_network(address, config) || end.identity >= FIRST_LOCAL_IDENTITY
}

/// Refuses what claims to be from elsewhere in the cluster without having come by the tunnel, which
/// alone proves it: `from_uplink` sees one device of several, and not all that comes in there.
#[inline(always)]
pub(crate) fn prove_origin(
    source: &End,
    address: u32,
    ingress_ifindex: u32,
    config: &Config,
) -> Result<(), Reason> {
    let remote = claims_pod(source, address, config) || source.identity == identity::REMOTE_NODE;
    let unproven = !source.is_local() && remote && ingress_ifindex != config.tunnel_ifindex;
    if is_encrypted(config) && unproven { Err(Reason::Unencrypted) } else { Ok(()) }
}

#[inline(always)]
pub(crate) fn is_encrypted(config: &Config) -> bool {
    config.flags & config_flag::ENCRYPTED != 0
}

/// What the address belongs to, one of [`range_kind`]; 0 for what is neither a pod nor a node.
#[inline(never)]
pub(crate) fn kind_of(address: u32) -> u32 {
    match RANGES.get(Key::new(range_bits::EXACT, Addr::from_v4_wire(address))) {
        Some(kind) => *kind,
        None => 0,
    }
}

/// Whether a packet of a pod to this address leaves the node through the tunnel and by no other
/// way.
#[inline(always)]
pub(crate) fn is_behind_tunnel(kind: u32) -> bool {
    matches!(kind, range_kind::PEER_PODS | range_kind::PEER_NODE)
}
