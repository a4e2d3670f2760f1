//! The maps, pinned by name but for one. The names are those of `layout::maps` (a macro wants them as literals); the loader
//! compares names and sizes with the layout and refuses to start on a difference.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap};
use layout::{
    Addr, Config, ConnectionEntry, ConnectionKey, Endpoint, FragmentKey, FragmentNote, InsertQuota, Reason,
    RuleKey, RuleValue, limits,
};

#[map(name = "CONFIG_2")]
pub(crate) static CONFIG: Array<Config> = Array::pinned(1, 0);

// Not preallocated: an element that is removed then stays readable until the packet at hand is done with it.
#[map(name = "ENDPOINTS_3")]
pub(crate) static ENDPOINTS: HashMap<Addr, Endpoint> = HashMap::pinned(limits::ENDPOINTS, BPF_F_NO_PREALLOC);

#[map(name = "IDENTITIES_1")]
pub(crate) static IDENTITIES: HashMap<Addr, u32> = HashMap::pinned(limits::IDENTITIES, BPF_F_NO_PREALLOC);

#[map(name = "RANGES_1")]
pub(crate) static RANGES: LpmTrie<Addr, u32> = LpmTrie::pinned(limits::RANGES, 0);

#[map(name = "RULES_1")]
pub(crate) static RULES: LpmTrie<RuleKey, RuleValue> = LpmTrie::pinned(limits::RULES, 0);

#[map(name = "CONNECTIONS_1")]
pub(crate) static CONNECTIONS: LruHashMap<ConnectionKey, ConnectionEntry> =
    LruHashMap::pinned(limits::CONNECTIONS, 0);

#[map(name = "FRAGMENTS_1")]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentNote> = LruHashMap::pinned(limits::FRAGMENTS, 0);

#[map(name = "QUOTAS_1")]
pub(crate) static QUOTAS: LruHashMap<u32, InsertQuota> = LruHashMap::pinned(limits::ENDPOINTS, 0);

#[map(name = "LISTENERS_1")]
pub(crate) static LISTENERS: SockMap = SockMap::pinned(limits::LISTENERS, 0);

#[map(name = "EVENTS_1")]
pub(crate) static EVENTS: RingBuf = RingBuf::pinned(limits::EVENT_BYTES, 0);

#[map(name = "COUNTERS_1")]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Reason::COUNT, 0);

/// 1 while a tcx program on this processor asks for a socket. Not pinned: nobody else has a use for it.
#[map]
pub(crate) static LOOKING: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
