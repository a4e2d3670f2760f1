/// What an address range holds. The longest prefix counts: a node's address within a range of pods
/// is a node's.
pub mod range_kind {
    /// Pods of this node.
    pub const OWN_PODS: u32 = 1;
    /// Pods of another node.
    pub const PEER_PODS: u32 = 2;
    /// Another node.
    pub const PEER_NODE: u32 = 3;
    /// This node.
    pub const OWN_NODE: u32 = 4;
}

/// Lengths of prefixes in the trie of ranges, whose keys are 128-bit addresses.
pub mod range_bits {
    /// What comes before an IPv4 prefix.
    pub const V4_MAPPED: u32 = 96;
    /// One address; also what a look-up uses.
    pub const EXACT: u32 = 128;
}
