//! What the worker may do: set between fork and exec, with system calls only.
//!
//! Between the two calls a child of a process with threads may use nothing that takes a lock or allocates; everything is therefore
//! computed before, and glibc's wrappers that talk to other threads (`setuid`) are avoided.

use std::io;
use std::os::fd::RawFd;

use super::MasterConfig;

/// A capability that a worker keeps (capabilities(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Capability {
    /// Ports below 1024.
    NetBindService = 10,
    /// Devices, routes, socket options such as a larger receive buffer.
    NetAdmin = 12,
    /// Transparent sockets, marks, raw sockets.
    NetRaw = 13,
}

/// Version 3 of the capability structures: 64 bits in two words.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Bits of one word of a capability structure.
const WORD: u32 = u32::BITS;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityWord {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Everything that happens between fork and exec.
pub(super) struct ChildSetup {
    socket: RawFd,
    master: i32,
    user: Option<u32>,
    capabilities: Vec<u32>,
    words: [CapabilityWord; 2],
}

impl ChildSetup {
    /// `socket` is the descriptor that the worker inherits.
    pub(super) fn new(config: &MasterConfig, socket: RawFd) -> Self {
        let capabilities: Vec<u32> = config.worker_capabilities.iter().map(|&c| c as u32).collect();
        let mut words = [CapabilityWord::default(); 2];
        for &capability in &capabilities {
            if let Some(word) = words.get_mut((capability / WORD) as usize) {
                let bit = 1 << (capability % WORD);
                word.effective |= bit;
                word.permitted |= bit;
                word.inheritable |= bit;
            }
        }
        let master = nix::unistd::getpid().as_raw();
        Self { socket, master, user: config.worker_user, capabilities, words }
    }

    /// To be called in the child, between fork and exec.
    #[expect(
        unsafe_code,
        reason = "system calls that neither the standard library nor nix offers in this state"
    )]
    pub(super) fn apply(&self) -> io::Result<()> {
        // SAFETY: numbers only; the descriptor is open in the child because the parent keeps it open until after exec.
        check(unsafe { libc::fcntl(self.socket, libc::F_SETFD, 0) }.into())?;
        // A supervisor that signals the whole group means the master, which then has the worker drain.
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            // SAFETY: SIG_IGN is no handler; nothing runs.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        if let Some(user) = self.user {
            self.become_user(user)?;
        }
        // SAFETY: numbers only. Both survive exec; the death signal would not survive a change of user, so it comes last.
        unsafe {
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
        }
        // SAFETY: no arguments.
        if unsafe { libc::getppid() } == self.master { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }

    /// Raw system calls: each changes this (only) thread.
    #[expect(
        unsafe_code,
        reason = "system calls that neither the standard library nor nix offers in this state"
    )]
    fn become_user(&self, user: u32) -> io::Result<()> {
        let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
        let no_groups = std::ptr::null::<libc::gid_t>();
        // SAFETY: numbers, a null pointer with length 0, and pointers to structures of version 3 that live through the call.
        unsafe {
            check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
            check(libc::syscall(libc::SYS_setgroups, 0, no_groups))?;
            check(libc::syscall(libc::SYS_setresgid, user, user, user))?;
            check(libc::syscall(libc::SYS_setresuid, user, user, user))?;
            check(libc::syscall(libc::SYS_capset, &raw const header, self.words.as_ptr()))?;
            for &capability in &self.capabilities {
                check(
                    libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0).into(),
                )?;
            }
        }
        Ok(())
    }
}

/// `last_os_error` reads errno and does not allocate.
fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
