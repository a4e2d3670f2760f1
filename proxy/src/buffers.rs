//! How many bytes of requests and responses are in memory, and how many may be: for a connection, for all of a client's,
//! for all of a thread's. Nobody waits for room: what does not fit is refused or ended, and counted.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes that are held for somebody; those of a connection count for its client too, and those of a client for the thread.
#[derive(Debug)]
pub(crate) struct Account {
    held: Cell<usize>,
    most: Most,
    part_of: Option<Rc<Self>>,
}

/// How many bytes may be held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    /// When a request begins: it leaves room for those under way, so that it is the new ones that are refused.
    pub(crate) for_new: usize,
    /// When more of a request comes.
    pub(crate) in_all: usize,
}

impl Account {
    /// One that holds as much as `most` says, and no more than what it is a part of has room for.
    pub(crate) fn new(most: Most, part_of: Option<Rc<Self>>) -> Rc<Self> {
        Rc::new(Self { held: Cell::new(0), most, part_of })
    }

    /// Room for bytes of a request that is under way.
    pub(crate) fn hold(self: &Rc<Self>, bytes: usize) -> Option<Held> {
        self.hold_below(bytes, |most| most.in_all)
    }

    /// Room for a request that begins.
    pub(crate) fn hold_new(self: &Rc<Self>, bytes: usize) -> Option<Held> {
        self.hold_below(bytes, |most| most.for_new)
    }

    fn hold_below(self: &Rc<Self>, bytes: usize, limit: fn(Most) -> usize) -> Option<Held> {
        // Nobody has more than is left for all the others of the same whole: one that takes all it can leaves half of it, two a
        // quarter.
        let fits = |account: &Self| {
            let held = account.held.get().saturating_add(bytes);
            let left = |whole: &Rc<Self>| limit(whole.most).saturating_sub(whole.held.get());
            held <= limit(account.most) && account.part_of.as_ref().is_none_or(|whole| held <= left(whole))
        };
        if !self.and_above().all(fits) {
            return None;
        }
        self.and_above().for_each(|account| account.held.set(account.held.get() + bytes));
        Some(Held { account: self.clone(), bytes })
    }

    fn and_above(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |account| account.part_of.as_deref())
    }
}

/// Some bytes of an account; given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    account: Rc<Account>,
    bytes: usize,
}

impl Held {
    /// Puts more of the same account to it.
    pub(crate) fn join(&mut self, mut more: Self) {
        self.bytes += std::mem::take(&mut more.bytes);
    }

    /// Takes some of it away.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { account: self.account.clone(), bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.account.and_above().for_each(|account| account.held.set(account.held.get() - self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn most(in_all: usize) -> Most {
        Most { for_new: in_all / 2, in_all }
    }

    #[test]
    fn bytes_count_for_everyone_above_until_they_are_given_back() {
        let thread = Account::new(most(100), None);
        let (one, other) =
            (Account::new(most(80), Some(thread.clone())), Account::new(most(80), Some(thread.clone())));
        let mut held = one.hold(70).unwrap();
        assert!(one.hold(11).is_none() && other.hold(31).is_none());
        let rest = held.split(30);
        drop(held);
        assert_eq!((one.held.get(), thread.held.get()), (30, 30));
        let mut both = other.hold(30).unwrap();
        both.join(other.hold(5).unwrap());
        drop((rest, both));
        assert_eq!((one.held.get(), other.held.get(), thread.held.get()), (0, 0, 0));
    }

    #[test]
    fn who_takes_all_it_can_leaves_as_much() {
        let thread = Account::new(most(100), None);
        let all_it_can = |_| {
            let account = Account::new(most(80), Some(thread.clone()));
            std::iter::from_fn(|| account.hold(1)).collect::<Vec<_>>()
        };
        let held: Vec<_> = (0..3).map(all_it_can).collect();
        assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [50, 25, 13]);
    }

    #[test]
    fn new_requests_leave_room_for_those_under_way() {
        let account = Account::new(most(100), None);
        let _new = account.hold_new(50).unwrap();
        assert!(account.hold_new(1).is_none() && account.hold(50).is_some());
    }
}
