//! Stretches of ports as prefixes.

use std::collections::BTreeSet;

use policy::{Ports, Protocol, Rule};

/// The first ports of the stretches on which no rule begins or ends to speak of this protocol; 0 is always one.
pub(super) fn stretches<'a>(protocol: Protocol, rules: impl Iterator<Item = &'a Rule>) -> BTreeSet<u16> {
    let mut starts = BTreeSet::from([0]);
    for rule in rules {
        let Ports::Ranges(ranges) = &rule.ports else { continue };
        for range in ranges.iter().filter(|range| range.speaks_of(protocol)) {
            starts.insert(range.first);
            starts.extend(range.last.checked_add(1));
        }
    }
    starts
}

/// The fewest prefixes that cover `first..=last` and nothing else: (port, bits), 0 to 16 bits.
pub(super) fn prefixes(first: u16, last: u16) -> Vec<(u16, u32)> {
    let mut found = Vec::new();
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    while at < end {
        // The largest block that begins here, is aligned, and does not go past the end.
        let aligned = if at == 0 { 16 } else { at.trailing_zeros() };
        let fitting = (end - at).ilog2();
        let size = aligned.min(fitting);
        // `at` is below `end`, which is at most 65536.
        found.push((at as u16, 16 - size));
        at += 1 << size;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_cover_exactly() {
        for (first, last) in
            [(0, 65535), (80, 80), (1, 65535), (0, 65534), (1000, 2000), (65535, 65535), (7, 8)]
        {
            let prefixes = prefixes(first, last);
            for port in 0..=u16::MAX {
                let covering = prefixes.iter().filter(|(start, bits)| {
                    let mask = u16::MAX.checked_shl(16 - bits).unwrap_or(0);
                    port & mask == *start
                });
                assert_eq!(
                    covering.count(),
                    usize::from((first..=last).contains(&port)),
                    "{first}-{last}: {port}"
                );
            }
        }
        assert_eq!(prefixes(0, 65535), [(0, 0)]);
        assert_eq!(prefixes(8080, 8081), [(8080, 15)]);
    }
}
