#![expect(unsafe_code, reason = "aya::Pod is an unsafe trait: the only way to use a type as key or value")]

use crate::{
    Addr, Config, ConnectionEntry, ConnectionKey, Endpoint, Event, FragmentKey, FragmentNote, InsertQuota,
    RuleKey, RuleValue,
};

macro_rules! pod {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: zerocopy proved at compile time that the type has no padding and that every bit pattern is a
            // valid value, which is all that `aya::Pod` asks for.
            unsafe impl aya::Pod for $type {}
        )*
    };
}

pod!(
    Addr,
    Config,
    ConnectionEntry,
    ConnectionKey,
    Endpoint,
    Event,
    FragmentKey,
    FragmentNote,
    InsertQuota,
    RuleKey,
    RuleValue,
);
