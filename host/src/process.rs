//! The calling process.

use nix::sys::signal::{Signal, raise};

/// Ends the process as `kill -9` does: nothing is cleaned up. For tests of what survives that.
pub fn kill_self() -> ! {
    let _ = raise(Signal::SIGKILL);
    // Only a process that may not signal itself gets here.
    std::process::abort()
}
