use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Direction of a verdict, seen from the endpoint that it protects.
pub mod direction {
    /// Into the endpoint.
    pub const INGRESS: u8 = 1;
    /// Out of the endpoint.
    pub const EGRESS: u8 = 2;
}

/// What a lowered rule says.
pub mod verdict {
    /// No. The default where nothing matches and the direction is enforced.
    pub const DENY: u8 = 0;
    /// Yes, straight through.
    pub const ALLOW: u8 = 1;
    /// Yes, but each request is judged by the proxy.
    pub const REDIRECT: u8 = 2;
}

/// Key of the rule trie, without the prefix length that an LPM trie puts before it.
///
/// Looked up twice for a new flow: with the peer's identity, and, only if that finds nothing, with
/// [`crate::identity::ANY`]. The lowering therefore restates under an identity what holds for any peer wherever
/// another rule of that identity would hide it: the first answer is the whole answer.
///
/// Prefix lengths in use: [`RuleKey::BITS_ANY_PROTOCOL`], [`RuleKey::BITS_ANY_PORT`], and that plus 1 to 16 bits of port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable)]
pub struct RuleKey {
    /// Number of the ruleset, big-endian bytes.
    pub ruleset: [u8; 4],
    /// Identity of the peer, big-endian bytes.
    pub identity: [u8; 4],
    /// One of [`direction`].
    pub direction: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, big-endian bytes. 0 for protocols without ports.
    pub port: [u8; 2],
}

impl RuleKey {
    /// Every protocol and port of this peer.
    pub const BITS_ANY_PROTOCOL: u32 = 72;
    /// Every port of the protocol.
    pub const BITS_ANY_PORT: u32 = 80;
    /// Exactly one port; also what a look-up uses.
    pub const BITS_EXACT: u32 = 96;
}

/// Value of the rule trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct RuleValue {
    /// One of [`verdict`].
    pub verdict: u8,
    /// Always zero.
    pub reserved: [u8; 3],
    /// Number of the origin (policy and rule) in the agent's table; 0 is the implicit default.
    pub origin: u32,
}
