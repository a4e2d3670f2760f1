use std::collections::{BTreeMap, HashMap, HashSet};

use policy::Origin;

/// Origins that no installed rule names are kept up to this many, for events that are still on their way.
const MAX_RETIRED: usize = 16_384;

/// Numbers for origins, as rules and events carry them. 0 is the implicit default.
#[derive(Debug, Default)]
pub struct Origins {
    last: u32,
    numbers: HashMap<Origin, u32>,
    origins: BTreeMap<u32, Origin>,
}

impl Origins {
    /// Numbers that begin after `last`: the largest one in rules that an earlier process left, so that its events are
    /// never read as another rule's.
    pub fn after(last: u32) -> Self {
        Self { last, ..Self::default() }
    }

    /// The number of an origin, a new one if it has none yet.
    pub fn number(&mut self, origin: &Origin) -> u32 {
        if origin.is_default() {
            return 0;
        }
        if let Some(&number) = self.numbers.get(origin) {
            return number;
        }
        // Used up after four billion rules: then events name no rule, verdicts stay right.
        let Some(number) = self.last.checked_add(1).filter(|&number| number != u32::MAX) else { return 0 };
        self.last = number;
        self.numbers.insert(origin.clone(), number);
        self.origins.insert(number, origin.clone());
        number
    }

    /// The origin with this number. None for one of an earlier process or one long gone.
    pub fn get(&self, number: u32) -> Option<Origin> {
        if number == 0 {
            return Some(Origin::default());
        }
        self.origins.get(&number).cloned()
    }

    /// Forgets the oldest of those that are not in use, if there are too many.
    pub(super) fn forget(&mut self, in_use: &HashSet<u32>) {
        let retired = self.origins.keys().filter(|number| !in_use.contains(number));
        let retired: Vec<u32> = retired.copied().collect();
        for number in retired.iter().take(retired.len().saturating_sub(MAX_RETIRED)) {
            if let Some(origin) = self.origins.remove(number) {
                self.numbers.remove(&origin);
            }
        }
    }
}
