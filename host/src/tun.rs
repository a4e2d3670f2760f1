//! A TUN device: IP packets to and from a file descriptor (Documentation/networking/tuntap.rst of the kernel).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Where the kernel offers TUN devices.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// Why there is no TUN device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// A device name has 1 to 15 bytes, no `/`, `:`, `%` or white space, and is not `.` or `..`.
    #[error("{0:?} is not a possible name of a network device")]
    Name(String),
    /// Another process holds the only queue of the device.
    #[error("TUN device {0} is in use by another process")]
    Busy(String),
    /// A device of that name is not a TUN device, or has other flags.
    #[error(
        "{0} exists and is not a single-queue TUN device with these flags: delete it or choose another name"
    )]
    Incompatible(String),
    /// The clone device could not be opened.
    #[error("cannot open {CLONE_DEVICE}: {0}")]
    Open(io::Error),
    /// A request was refused.
    #[error("TUN device {name}: {request}: {source}")]
    Request {
        /// The device.
        name: String,
        /// The request.
        request: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A deleted device is an error and nothing to read (`tun_chr_poll` of the kernel), which waiting for packets alone would not see.
const WAIT_FOR: Interest = Interest::READABLE.add(Interest::ERROR);

mod requests {
    nix::ioctl_write_ptr_bad!(tun_set_interface, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_int_bad!(tun_set_persist, libc::TUNSETPERSIST);
    nix::ioctl_read_bad!(tun_get_interface, libc::TUNGETIFF, libc::ifreq);
}

/// Opens the TUN device `name` of the calling thread's network namespace, or makes it: no packet information, one queue, without
/// an address, persistent (device and routes outlive the process). The descriptor does not block and is close-on-exec.
///
/// With `vnet_header` each packet is preceded by a `virtio_net_hdr` of 10 bytes.
///
/// # Errors
/// See [`TunError`]; a device that another process holds is [`TunError::Busy`].
pub fn open_or_create(name: &str, vnet_header: bool) -> Result<OwnedFd, TunError> {
    let mut request = interface_request(name)?;
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI;
    if vnet_header {
        flags |= libc::IFF_VNET_HDR;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;

    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(CLONE_DEVICE)
        .map_err(TunError::Open)?;
    #[expect(unsafe_code, reason = "ioctl")]
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives through the call.
    let attached = unsafe { requests::tun_set_interface(file.as_raw_fd(), &raw const request) };
    attached.map_err(|errno| match errno {
        Errno::EBUSY => TunError::Busy(name.to_owned()),
        Errno::EINVAL => TunError::Incompatible(name.to_owned()),
        _ => TunError::Request {
            name: name.to_owned(),
            request: "attach (root is needed)",
            source: errno.into(),
        },
    })?;
    #[expect(unsafe_code, reason = "ioctl")]
    // SAFETY: TUNSETPERSIST takes a number and no pointer.
    let persistent = unsafe { requests::tun_set_persist(file.as_raw_fd(), 1) };
    persistent.map_err(|errno| TunError::Request {
        name: name.to_owned(),
        request: "make it persistent",
        source: errno.into(),
    })?;
    Ok(file.into())
}

/// Whether `tun`, a descriptor of [`open_or_create`], still has its device. One whose device was deleted never gets it back, also
/// if another of that name is made.
pub fn has_device(tun: &impl AsFd) -> bool {
    let mut answer = empty_request();
    #[expect(unsafe_code, reason = "ioctl")]
    // SAFETY: TUNGETIFF writes one `ifreq`, which lives through the call.
    let asked = unsafe { requests::tun_get_interface(tun.as_fd().as_raw_fd(), &raw mut answer) };
    asked.is_ok()
}

/// Whether an error of reading or writing says that the device was deleted.
pub fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EBADFD as i32)
}

/// A queue of a TUN device in a tokio runtime; the same verbs as a `tokio::net::UdpSocket`.
#[derive(Debug)]
pub struct Queue(AsyncFd<File>);

impl Queue {
    /// Takes a descriptor of [`open_or_create`]. Needs a tokio runtime.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn new(tun: OwnedFd) -> io::Result<Self> {
        let file = File::from(tun);
        #[expect(unsafe_code, reason = "tokio wants a promise about the descriptor")]
        // SAFETY: `File` returns the same open descriptor from `as_raw_fd` until it is dropped, and nobody else can get at it here.
        let registered = unsafe { AsyncFd::register_with_interest(file, WAIT_FOR) };
        Ok(Self(registered.map_err(|error| error.into_parts().1)?))
    }

    /// Waits until [`Queue::try_read`] may have something: a packet, or the news that the device is gone. May be dropped and
    /// called again.
    ///
    /// # Errors
    /// The runtime is going down.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.ready(WAIT_FOR).await?.retain_ready();
        Ok(())
    }

    /// Reads one packet; its length. What does not fit `buffer` is cut off.
    ///
    /// # Errors
    /// `WouldBlock` if there is none, or the device's own error: [`is_gone`] if there is no device any more.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // One after the other, since tokio asks for one kind of readiness at a time; the second makes no call as long as there is none.
        match self.0.try_io(Interest::READABLE, |mut file| file.read(buffer)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.0.try_io(Interest::ERROR, |mut file| file.read(buffer))
            }
            result => result,
        }
    }

    /// Writes one packet. The kernel takes it at once, whole or not at all.
    ///
    /// # Errors
    /// No packet, or the device is down.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        self.0.get_ref().write(packet).map(drop)
    }
}

fn interface_request(name: &str) -> Result<libc::ifreq, TunError> {
    let bad = |byte: u8| matches!(byte, b'/' | b':' | b'%') || byte.is_ascii_whitespace() || byte == 0;
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name == "." || name == ".." || name.bytes().any(bad)
    {
        return Err(TunError::Name(name.to_owned()));
    }
    let mut request = empty_request();
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn empty_request() -> libc::ifreq {
    libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_newname: [0; libc::IFNAMSIZ] },
    }
}
