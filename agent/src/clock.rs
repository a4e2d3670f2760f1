//! Time that nobody can set: since the machine started, with the name of that start.

use std::io;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The kernel's name of this start of the machine, a random UUID.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment {
    /// In which start of the machine.
    pub boot: String,
    /// Milliseconds since it, sleep included.
    pub boot_ms: u64,
}

/// Tells moments of this start of the machine.
#[derive(Clone, Debug)]
pub struct Clock {
    boot: String,
}

impl Clock {
    /// The machine's clock.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn open() -> io::Result<Self> {
        clock_gettime(ClockId::CLOCK_BOOTTIME)?;
        Ok(Self { boot: std::fs::read_to_string(BOOT_ID)?.trim_end().to_owned() })
    }

    /// Milliseconds since the start of the machine, sleep included.
    pub fn now_ms(&self) -> u64 {
        // It only fails for a clock that the kernel does not have, and then did when this one was opened.
        let Ok(since) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return 0 };
        let parts = (u64::try_from(since.tv_sec()), u64::try_from(since.tv_nsec()));
        let (Ok(seconds), Ok(nanoseconds)) = parts else { return 0 };
        seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000)
    }

    /// This moment.
    pub fn now(&self) -> Moment {
        Moment { boot: self.boot.clone(), boot_ms: self.now_ms() }
    }

    /// When that was, in milliseconds of this start of the machine; none: in an earlier one.
    pub fn in_this_boot(&self, moment: &Moment) -> Option<u64> {
        (moment.boot == self.boot).then_some(moment.boot_ms)
    }

    /// A clock of another start.
    #[cfg(test)]
    pub(crate) fn of_boot(boot: &str) -> Self {
        Self { boot: boot.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_and_knows_its_start() {
        let clock = Clock::open().unwrap();
        let before = clock.now();
        std::thread::sleep(std::time::Duration::from_millis(5));
        let after = Clock::open().unwrap().now();
        assert!(before.boot_ms > 0 && after.boot_ms >= before.boot_ms + 5, "{before:?} {after:?}");
        assert_eq!(clock.in_this_boot(&after), Some(after.boot_ms));
        assert_eq!(Clock::of_boot("another").in_this_boot(&after), None);
    }
}
