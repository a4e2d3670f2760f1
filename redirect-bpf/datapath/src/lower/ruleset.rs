use std::collections::{BTreeMap, BTreeSet, HashMap};

use layout::{RuleKey, direction, identity, verdict};
use policy::{Direction, DirectionRules, IdentityId, Peers, Protocol, Ruleset, Verdict};

use super::origins::Origins;
use super::ports::{prefixes, stretches};
use crate::Rule;

/// The ruleset that has no rules: with both directions enforced it denies everything.
pub const CLOSED_RULESET: u32 = 0;

/// A protocol that no rule can name: whatever holds for it holds for every protocol without ports.
const NO_PORTS: Protocol = Protocol::Other(255);

/// The rules of a ruleset as the trie holds them, under the number it is to have. Whatever a look-up for an identity
/// finds is the whole answer for it; see [`RuleKey`].
pub fn lower(number: u32, ruleset: &Ruleset, origins: &mut Origins) -> Vec<Rule> {
    let mut rules = Vec::new();
    for side in Direction::ALL {
        let of_side = ruleset.direction(side);
        if of_side.enforced {
            lower_direction(number, side, of_side, origins, &mut rules);
        }
    }
    rules
}

/// What is written for one peer: verdict and origin for stretches of ports.
#[derive(Clone)]
struct Table {
    /// For every protocol, where nothing else is said.
    base: Answer,
    /// Protocol, first and last port.
    ports: Vec<(Protocol, u16, u16, Answer)>,
}

impl Table {
    /// Whether it has this answer for all of these ports.
    fn says(&self, protocol: Protocol, first: u16, last: u16, answer: Answer) -> bool {
        let mut rows = self.ports.iter();
        rows.any(|row| row.0 == protocol && row.1 <= first && last <= row.2 && row.3 == answer)
    }
}

/// A verdict of [`verdict`] and the number of its origin.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Answer {
    verdict: u8,
    origin: u32,
}

/// What a look-up that finds nothing means.
const NOTHING: Answer = Answer { verdict: verdict::DENY, origin: 0 };

fn lower_direction(
    number: u32,
    side: Direction,
    rules: &DirectionRules,
    origins: &mut Origins,
    lowered: &mut Vec<Rule>,
) {
    let mut key = RuleKey { ruleset: number.to_be_bytes(), ..RuleKey::default() };
    key.direction = match side {
        Direction::Ingress => direction::INGRESS,
        Direction::Egress => direction::EGRESS,
    };
    // Peers about whom the same rules speak get the same table.
    let mut tables: HashMap<Vec<usize>, Table> = HashMap::new();
    // The first of the peers, so that the others can lean on it.
    let mut any: Option<Table> = None;
    for (peer, about) in rules_by_peer(side, rules) {
        let table = tables.entry(about);
        let table = table.or_insert_with_key(|about| tabulate(side, rules, peer, about, origins));
        key.identity = peer.to_be_bytes();
        let for_any = if peer == identity::ANY { None } else { any.as_ref() };
        write(key, table, for_any, lowered);
        if peer == identity::ANY {
            any = Some(table.clone());
        }
    }
}

/// For any peer, and each that a rule names: the indices of the rules that speak about it.
fn rules_by_peer(side: Direction, rules: &DirectionRules) -> BTreeMap<IdentityId, Vec<usize>> {
    let named = rules.rules.iter().filter_map(|rule| match &rule.peers {
        Peers::Any => None,
        Peers::Identities(identities) => Some(identities),
    });
    let mut peers: BTreeSet<IdentityId> = named.flatten().copied().collect();
    if side == Direction::Ingress {
        // Always let in, before any rule is looked at.
        peers.remove(&identity::HOST);
    }
    peers.insert(identity::ANY);
    let about =
        |peer| (0..rules.rules.len()).filter(|&index| rules.rules[index].peers.contains(peer)).collect();
    peers.into_iter().map(|peer| (peer, about(peer))).collect()
}

fn tabulate(
    side: Direction,
    rules: &DirectionRules,
    peer: IdentityId,
    about: &[usize],
    origins: &mut Origins,
) -> Table {
    let mut ask = |protocol, port| {
        let decision = rules.decide(side, peer, protocol, port);
        let verdict = match decision.verdict {
            Verdict::Allowed => verdict::ALLOW,
            Verdict::Denied => verdict::DENY,
            Verdict::Redirected => verdict::REDIRECT,
        };
        Answer { verdict, origin: origins.number(&decision.origin) }
    };
    let mut table = Table { base: ask(NO_PORTS, 0), ports: Vec::new() };
    for protocol in Protocol::WITH_PORTS {
        let starts = stretches(protocol, about.iter().map(|&index| &rules.rules[index]));
        let mut merged: Vec<(u16, Answer)> = Vec::with_capacity(starts.len());
        for start in starts {
            let answer = ask(protocol, start);
            if merged.last().is_none_or(|(_, last)| *last != answer) {
                merged.push((start, answer));
            }
        }
        for (index, &(first, answer)) in merged.iter().enumerate() {
            let last = merged.get(index + 1).map_or(u16::MAX, |(next, _)| next - 1);
            if answer != table.base {
                table.ports.push((protocol, first, last, answer));
            }
        }
    }
    table
}

fn write(mut key: RuleKey, table: &Table, any: Option<&Table>, lowered: &mut Vec<Rule>) {
    let mut push = |prefix_len, key, answer: Answer| {
        lowered.push(Rule { prefix_len, key, verdict: answer.verdict, origin: answer.origin });
    };
    // Where nothing is found for a named peer, "any peer" answers: its rules are this peer's, too.
    let silent = table.base == NOTHING;
    if !silent {
        push(RuleKey::BITS_ANY_PROTOCOL, key, table.base);
    }
    let any = any.filter(|_| silent);
    for &(protocol, first, last, answer) in &table.ports {
        if any.is_some_and(|any| any.says(protocol, first, last, answer)) {
            continue;
        }
        key.protocol = protocol.number();
        for (port, bits) in prefixes(first, last) {
            key.port = port.to_be_bytes();
            push(RuleKey::BITS_ANY_PORT + bits, key, answer);
        }
    }
}
