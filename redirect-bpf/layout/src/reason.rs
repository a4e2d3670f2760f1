/// Defines [`Reason`] with its number, its name for metrics and its words for people from one list.
macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// What happened to a packet: index of its counter, and the reason that an event names.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])* $variant = $number,)*
        }

        impl Reason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Label for metrics and JSON, `snake_case`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The reason with this number, if there is one.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    /// `from_pod`: passed on directly.
    FromPodDirect = 1, "from_pod_direct";
    /// `from_pod`: marked for the proxy.
    FromPodProxied = 2, "from_pod_proxied";
    /// `from_tunnel`: passed on directly.
    FromTunnelDirect = 3, "from_tunnel_direct";
    /// `from_tunnel`: marked for the proxy.
    FromTunnelProxied = 4, "from_tunnel_proxied";
    /// `to_pod`: already judged or sent by the proxy.
    ToPodJudged = 5, "to_pod_judged";
    /// `to_pod`: sent by a process of this node.
    ToPodHost = 6, "to_pod_host";
    /// `to_pod`: forwarded, found allowed here.
    ToPodForwarded = 7, "to_pod_forwarded";
    /// `to_pod`: forwarded, sent to the proxy through the loopback device.
    ToPodProxied = 8, "to_pod_proxied";
    /// `from_uplink`: a packet of a proxied connection, marked.
    FromUplinkProxied = 9, "from_uplink_proxied";
    /// `pick_listener`: a listener was chosen.
    ListenerPicked = 10, "listener_picked";
    /// A live direct flow was judged again and stays.
    JudgedAgain = 11, "judged_again";
    /// A reply whose entry was lost made it anew.
    EntryRestored = 12, "entry_restored";
    /// A new flow, allowed straight through.
    NewDirect = 13, "new_direct";
    /// A new flow, to the proxy.
    NewProxied = 14, "new_proxied";
    /// An ICMP error went to the socket of the proxy that it concerns.
    IcmpToProxy = 15, "icmp_to_proxy";
    /// One ingress verdict was taken (for the invariant "exactly one").
    IngressVerdict = 16, "ingress_verdict";
    /// One egress verdict was taken.
    EgressVerdict = 17, "egress_verdict";
    /// An event did not fit into the ring.
    EventLost = 18, "event_lost";
    /// `from_pod`: sent straight into the tunnel.
    FromPodTunnel = 28, "from_pod_tunnel";

    /// The first fragment of a datagram was allowed, and its ports are noted for the later ones.
    FragmentNoted = 24, "fragment_noted";

    /// Dropped: policy of the receiver does not allow it.
    DeniedIngress = 32, "denied_ingress";
    /// Dropped: policy of the sender does not allow it.
    DeniedEgress = 33, "denied_egress";
    /// A live direct flow that policy forbids now: reset.
    DeniedLive = 34, "denied_live";
    /// Dropped: the source is not the pod's own address.
    SpoofedSource = 35, "spoofed_source";
    /// Dropped: a fragment of what goes to the proxy, or of an ICMP error.
    Fragment = 36, "fragment";
    /// Dropped: IP options, an impossible length or header.
    Malformed = 37, "malformed";
    /// Dropped: neither IPv4 nor ARP.
    UnsupportedProtocol = 38, "unsupported_protocol";
    /// Dropped: claims a pod's address and came in clear.
    Unencrypted = 39, "unencrypted";
    /// Dropped: a segment of no known flow that no policy makes a reply.
    NoEntry = 40, "no_entry";
    /// Dropped: the proxy has no listener in that slot.
    NoListener = 41, "no_listener";
    /// Dropped: the endpoint made too many new flows.
    QuotaExceeded = 42, "quota_exceeded";
    /// Dropped: the connection table refused the entry.
    TableFull = 43, "table_full";
    /// Dropped: an ICMP error about no known flow.
    IcmpUnrelated = 44, "icmp_unrelated";
    /// Dropped: no pod of this node has the destination address.
    NoEndpoint = 45, "no_endpoint";
    /// Dropped: forwarded to a pod whose policy judges requests, by a way that cannot be steered.
    CannotSteer = 46, "cannot_steer";
    /// Dropped: a helper of the kernel failed.
    Internal = 47, "internal";
    /// Dropped: a SYN to the opener's end of a proxied connection.
    ReverseSyn = 48, "reverse_syn";
    /// Dropped: a live flow was denied by a mixture of two policies, while one took the other's place.
    Swapping = 49, "swapping";
    /// Dropped: a frame with a VLAN tag, which hides or changes what it is taken for.
    TaggedFrame = 56, "tagged_frame";
    /// Dropped: a later fragment whose first one was not seen here, or was refused.
    FragmentWithoutFirst = 57, "fragment_without_first";
    /// Dropped: a first fragment too short for its transport header, or a later one that reaches
    /// into that.
    FragmentHidesHeader = 58, "fragment_hides_header";
    /// Dropped: on its way out of the uplink in clear, though it is between pods, or between a pod
    /// and a node.
    LeavesInClear = 60, "leaves_in_clear";
}

impl Reason {
    /// Size of the counter array.
    pub const COUNT: u32 = 64;

    /// Whether the packet was dropped or its flow reset.
    pub const fn is_refusal(self) -> bool {
        self as u8 >= Self::DeniedIngress as u8
    }
}
