//! bpf(2) for what aya has no call for: updating and describing a link of any kind.
#![expect(unsafe_code, reason = "the bpf system call takes raw pointers")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Numbers of `enum bpf_cmd` in <linux/bpf.h>.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// `BPF_LINK_TYPE_*` of the links that the datapath makes.
pub(crate) const LINK_NETNS: u32 = 5;
pub(crate) const LINK_TCX: u32 = 11;

/// The start of `struct bpf_link_info`, with the first word of its union.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LinkInfo {
    /// `BPF_LINK_TYPE_*`.
    pub(crate) kind: u32,
    /// Number of the link.
    pub(crate) id: u32,
    /// Number of the program behind it.
    pub(crate) program_id: u32,
    padding: u32,
    /// tcx: interface index. netns: inode of the namespace. 0: what it was attached to is gone.
    pub(crate) target: u32,
    attach_type: u32,
    rest: [u64; 8],
}

/// Calls bpf(2) with an attribute of this type, whose unnamed rest the kernel takes as zeros.
fn bpf<T>(command: libc::c_long, attribute: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is a live, exclusively borrowed `repr(C)` struct of integers, and its size is given.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens a pinned link.
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attribute {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attribute =
        Attribute { pathname: path.as_ptr().expose_provenance() as u64, bpf_fd: 0, file_flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &mut attribute)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Replaces the program behind a link, atomically. ENOLINK: what the link was attached to is gone.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attribute {
        link_fd: i32,
        new_prog_fd: i32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attribute =
        Attribute { link_fd: link.as_raw_fd(), new_prog_fd: program.as_raw_fd(), flags: 0, old_prog_fd: 0 };
    bpf(BPF_LINK_UPDATE, &mut attribute).map(drop)
}

/// Takes the program off what the link is attached to, at once.
pub(crate) fn detach_link(link: &impl AsFd) -> io::Result<()> {
    #[repr(C)]
    struct Attribute {
        link_fd: i32,
    }
    bpf(BPF_LINK_DETACH, &mut Attribute { link_fd: link.as_fd().as_raw_fd() }).map(drop)
}

/// Describes a link.
pub(crate) fn link_info(link: &impl AsFd) -> io::Result<LinkInfo> {
    #[repr(C)]
    struct Attribute {
        bpf_fd: i32,
        info_len: u32,
        info: u64,
    }
    let mut info = LinkInfo::default();
    let mut attribute = Attribute {
        bpf_fd: link.as_fd().as_raw_fd(),
        info_len: size_of::<LinkInfo>() as u32,
        info: (&raw mut info).expose_provenance() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attribute)?;
    Ok(info)
}

/// Index of a device of the current network namespace.
pub(crate) fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: a C string that lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 { Err(io::Error::last_os_error()) } else { Ok(index) }
}
