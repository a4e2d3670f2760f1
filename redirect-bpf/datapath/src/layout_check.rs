//! What each pinned map must be. aya takes over a pinned map whatever its shape; a map of another shape would be read
//! as garbage, so every one is compared before it is used and after the programs were loaded.

use std::io;
use std::path::Path;

use aya::maps::{MapData, MapError, MapInfo, MapType};
use layout::{
    Addr, Config, ConnectionEntry, ConnectionKey, Endpoint, FragmentKey, FragmentNote, InsertQuota, Reason,
    RuleKey, RuleValue, limits, maps,
};

use crate::{Error, pins};

/// The shape of one map.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    kind: MapType,
    key_size: usize,
    value_size: usize,
    pub(crate) max_entries: u32,
}

/// Bytes of the prefix length that stands before the key of an LPM trie.
const PREFIX_LENGTH: usize = size_of::<u32>();

const fn shape<K, V>(name: &'static str, kind: MapType, max_entries: u32) -> Shape {
    Shape { name, kind, key_size: size_of::<K>(), value_size: size_of::<V>(), max_entries }
}

/// All maps of the layout.
pub(crate) const ALL: [Shape; 11] = [
    CONFIG,
    ENDPOINTS,
    IDENTITIES,
    RANGES,
    RULES,
    CONNECTIONS,
    FRAGMENTS,
    QUOTAS,
    LISTENERS,
    EVENTS,
    COUNTERS,
];

pub(crate) const CONFIG: Shape = shape::<u32, Config>(maps::CONFIG, MapType::Array, 1);
pub(crate) const ENDPOINTS: Shape =
    shape::<Addr, Endpoint>(maps::ENDPOINTS, MapType::Hash, limits::ENDPOINTS);
pub(crate) const IDENTITIES: Shape = shape::<Addr, u32>(maps::IDENTITIES, MapType::Hash, limits::IDENTITIES);
pub(crate) const RANGES: Shape =
    shape::<[u8; PREFIX_LENGTH + size_of::<Addr>()], u32>(maps::RANGES, MapType::LpmTrie, limits::RANGES);
pub(crate) const RULES: Shape = shape::<[u8; PREFIX_LENGTH + size_of::<RuleKey>()], RuleValue>(
    maps::RULES,
    MapType::LpmTrie,
    limits::RULES,
);
pub(crate) const CONNECTIONS: Shape =
    shape::<ConnectionKey, ConnectionEntry>(maps::CONNECTIONS, MapType::LruHash, limits::CONNECTIONS);
pub(crate) const FRAGMENTS: Shape =
    shape::<FragmentKey, FragmentNote>(maps::FRAGMENTS, MapType::LruHash, limits::FRAGMENTS);
pub(crate) const QUOTAS: Shape = shape::<u32, InsertQuota>(maps::QUOTAS, MapType::LruHash, limits::ENDPOINTS);
pub(crate) const LISTENERS: Shape = shape::<u32, u32>(maps::LISTENERS, MapType::SockMap, limits::LISTENERS);
pub(crate) const EVENTS: Shape = shape::<(), ()>(maps::EVENTS, MapType::RingBuf, limits::EVENT_BYTES);
pub(crate) const COUNTERS: Shape = shape::<u32, u64>(maps::COUNTERS, MapType::PerCpuArray, Reason::COUNT);

impl Shape {
    /// Compares a pinned map with the shape.
    pub(crate) fn check(&self, pin_dir: &Path) -> Result<(), Error> {
        let path = pin_dir.join(self.name);
        let failed = |source| Error::map(self.name, "look at the pinned map", source);
        let info = MapInfo::from_pin(&path).map_err(failed)?;
        let kind = info.map_type().map_err(failed)?;
        let pairs = [
            ("type", kind as u32, self.kind as u32),
            ("key size", info.key_size(), self.key_size as u32),
            ("value size", info.value_size(), self.value_size as u32),
            ("max_entries", info.max_entries(), self.max_entries),
        ];
        for (field, found, expected) in pairs {
            if found != expected {
                return Err(Error::LayoutMismatch { path, field, found, expected });
            }
        }
        Ok(())
    }

    /// The same, unless nothing is pinned yet.
    pub(crate) fn check_if_pinned(&self, pin_dir: &Path) -> Result<(), Error> {
        let path = pin_dir.join(self.name);
        match path.try_exists() {
            Ok(true) => self.check(pin_dir),
            Ok(false) => Ok(()),
            Err(source) => Err(Error::Pin { action: "look for", path, source }),
        }
    }

    /// Opens the pinned map after comparing it.
    pub(crate) fn open(&self, pin_dir: &Path) -> Result<MapData, Error> {
        self.check(pin_dir)?;
        MapData::from_pin(pin_dir.join(self.name)).map_err(|source| self.error("open the pinned map", source))
    }

    /// Pins this map where nothing, or another map, is pinned; whether it had to be.
    pub(crate) fn ensure_pin(&self, pin_dir: &Path, map: &MapData) -> Result<bool, Error> {
        let path = pin_dir.join(self.name);
        let own = map.info().map_err(|source| self.error("look at", source))?.id();
        if MapInfo::from_pin(&path).is_ok_and(|pinned| pinned.id() == own) {
            return Ok(false);
        }
        pins::remove(&path)?;
        map.pin(&path).map_err(|error| Error::Pin {
            action: "pin the map",
            path,
            source: io::Error::other(error),
        })?;
        Ok(true)
    }

    pub(crate) fn error(&self, action: &'static str, source: MapError) -> Error {
        Error::map(self.name, action, source)
    }
}
