//! What a process used, as the kernel counts it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

/// CPU time of all threads of a process so far, in user space and in the kernel.
///
/// # Errors
/// If there is no such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    let ticks = ticks_of(&stat).with_context(|| format!("/proc/{pid}/stat has no times: {stat}"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the system has no clock ticks")?;
    Ok(Duration::from_secs(ticks) / u32::try_from(per_second)?)
}

/// `utime` + `stime`, fields 14 and 15 of proc_pid_stat(5).
fn ticks_of(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses, and may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(ticks()? + ticks()?)
}

/// Memory of a process, KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Resident pages, also those that others have too.
    pub rss: u64,
    /// Resident pages, each divided by the number of processes that have it.
    pub pss: u64,
    /// Resident pages of no file: heap and stacks.
    pub anonymous: u64,
}

/// Memory of a process now.
///
/// # Errors
/// If there is no such process.
pub fn memory(pid: u32) -> Result<Memory> {
    let file = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
    memory_of(&text).with_context(|| format!("{file} is not as expected: {text}"))
}

fn memory_of(rollup: &str) -> Option<Memory> {
    let kib = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line?.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some(Memory { rss: kib("Rss")?, pss: kib("Pss")?, anonymous: kib("Anonymous")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 9 0 0 0 40 2 0 0 20 0 3 0 17 100 200";
        assert_eq!(ticks_of(stat), Some(42));
        assert_eq!(ticks_of("7 (a"), None);
    }

    #[test]
    fn memory_is_read_by_name() {
        let text =
            "1-2 ---p 0 00:00 0 [rollup]\nRss:   10 kB\nPss:    5 kB\nPss_Anon:  3 kB\nAnonymous:   4 kB\n";
        assert_eq!(memory_of(text), Some(Memory { rss: 10, pss: 5, anonymous: 4 }));
        assert_eq!(memory_of("Rss: 10 kB"), None);
    }

    #[test]
    fn work_costs_cpu_time() {
        let before = cpu_time(std::process::id()).unwrap();
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_millis(200) {
            std::hint::black_box(0);
        }
        assert!(cpu_time(std::process::id()).unwrap() > before);
    }
}
