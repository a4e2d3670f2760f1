//! Named file descriptors over a unix stream socket (`SCM_RIGHTS`, unix(7)).
//!
//! One message is: the length of the names (u32, native order, with all descriptors attached to its bytes), then the names,
//! separated by zero bytes. Nothing behind a message is consumed, so that other bytes may follow on the same socket.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most descriptors in one message. A node has a handful (listeners: one for each core); the kernel's own limit is 253.
pub const MAX_DESCRIPTORS: usize = 200;

/// Longest name of a descriptor in bytes: long enough for "listener-127", short enough that all names fit a socket buffer.
pub const MAX_NAME: usize = 64;

/// `SCM_MAX_FD` of the kernel: room for every descriptor that a peer can attach, so that none is cut off unseen.
const KERNEL_MAX_DESCRIPTORS: usize = 253;

/// Bytes of the length that starts a message.
const HEADER: usize = size_of::<u32>();

/// Why descriptors could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorsError {
    /// More than [`MAX_DESCRIPTORS`].
    #[error("{0} descriptors in one message, at most {MAX_DESCRIPTORS} are possible")]
    TooMany(usize),
    /// Empty, longer than [`MAX_NAME`], or with a zero byte.
    #[error("descriptor name {0:?} must have 1 to {MAX_NAME} bytes and no zero byte")]
    Name(String),
    /// The peer closed the socket before the message was complete.
    #[error("the peer closed the socket before it sent descriptors")]
    Closed,
    /// What arrived is not a message of this module.
    #[error("malformed message of descriptors: {0}")]
    Malformed(&'static str),
    /// The socket failed, or its time limit passed.
    #[error("passing descriptors: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for DescriptorsError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Sends all `descriptors` in one message. The socket must be blocking; its write time-out is respected.
///
/// # Errors
/// A name or a number out of range, or the socket's own error.
pub fn send(socket: &UnixStream, descriptors: &[(&str, BorrowedFd<'_>)]) -> Result<(), DescriptorsError> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(DescriptorsError::TooMany(descriptors.len()));
    }
    for (name, _) in descriptors {
        if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
            return Err(DescriptorsError::Name((*name).to_owned()));
        }
    }
    let names = descriptors.iter().map(|(name, _)| *name).collect::<Vec<_>>().join("\0");
    let mut message = u32::try_from(names.len()).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
    message.extend_from_slice(names.as_bytes());

    let raw: Vec<_> = descriptors.iter().map(|(_, descriptor)| descriptor.as_raw_fd()).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &control[..0] } else { &control[..] };
    let sent = loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&message)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(Errno::EINTR) => {}
            result => break result?,
        }
    };
    let mut socket = socket;
    socket.write_all(message.get(sent..).unwrap_or_default())?;
    Ok(())
}

/// Receives one message of [`send`]. Every descriptor is close-on-exec. The socket must be blocking; its read time-out is
/// respected.
///
/// # Errors
/// The peer closed the socket, sent something else, or the socket's own error. Descriptors that came along are closed.
pub fn receive(socket: &UnixStream) -> Result<Vec<(String, OwnedFd)>, DescriptorsError> {
    let mut header = [0u8; HEADER];
    let (read, descriptors) = receive_first(socket, &mut header)?;
    let mut reader = socket;
    reader.read_exact(header.get_mut(read..).unwrap_or_default()).map_err(closed)?;
    let length = u32::from_ne_bytes(header) as usize;
    if length > MAX_DESCRIPTORS * (MAX_NAME + 1) {
        return Err(DescriptorsError::Malformed("the names are too long"));
    }
    let mut names = vec![0u8; length];
    reader.read_exact(&mut names).map_err(closed)?;
    let names = String::from_utf8(names).map_err(|_| DescriptorsError::Malformed("a name is not UTF-8"))?;
    let names: Vec<&str> = if names.is_empty() { Vec::new() } else { names.split('\0').collect() };
    if names.len() != descriptors.len() {
        return Err(DescriptorsError::Malformed("there are not as many names as descriptors"));
    }
    Ok(names.into_iter().map(str::to_owned).zip(descriptors).collect())
}

fn closed(error: io::Error) -> DescriptorsError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        DescriptorsError::Closed
    } else {
        DescriptorsError::Io(error)
    }
}

/// Reads the first bytes of a message, which carry its descriptors.
fn receive_first(
    socket: &UnixStream,
    header: &mut [u8; HEADER],
) -> Result<(usize, Vec<OwnedFd>), DescriptorsError> {
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; KERNEL_MAX_DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(header)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(message) => break message,
        }
    };
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            descriptors.extend(raw.into_iter().map(|raw| {
                #[expect(unsafe_code, reason = "the kernel hands descriptors over as numbers")]
                // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows their numbers.
                unsafe {
                    OwnedFd::from_raw_fd(raw)
                }
            }));
        }
    }
    if message.bytes == 0 { Err(DescriptorsError::Closed) } else { Ok((message.bytes, descriptors)) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    #[test]
    fn names_and_descriptors_arrive_in_order_and_leave_what_follows() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut first = tempfile::tempfile().unwrap();
        first.write_all(b"first").unwrap();
        let mut second = tempfile::tempfile().unwrap();
        second.write_all(b"second").unwrap();
        send(&ours, &[("one", first.as_fd()), ("two", second.as_fd())]).unwrap();
        (&ours).write_all(b"rest").unwrap();

        let received = receive(&theirs).unwrap();
        assert_eq!(received.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
        for ((_, descriptor), expected) in received.into_iter().zip(["first", "second"]) {
            let flags = nix::fcntl::fcntl(&descriptor, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
            let mut file = File::from(descriptor);
            file.rewind().unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, expected);
        }
        let mut rest = [0; 4];
        (&theirs).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"rest");
    }

    #[test]
    fn no_descriptors_is_a_message_too() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, &[]).unwrap();
        assert!(receive(&theirs).unwrap().is_empty());
    }

    #[test]
    fn limits_and_bad_input_are_errors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let many = vec![("x", file.as_fd()); MAX_DESCRIPTORS + 1];
        assert!(matches!(send(&ours, &many), Err(DescriptorsError::TooMany(_))));
        let long = "x".repeat(MAX_NAME + 1);
        for name in ["", "a\0b", &long] {
            assert!(matches!(send(&ours, &[(name, file.as_fd())]), Err(DescriptorsError::Name(_))));
        }
        send(&ours, &vec![("x", file.as_fd()); MAX_DESCRIPTORS]).unwrap();
        assert_eq!(receive(&theirs).unwrap().len(), MAX_DESCRIPTORS);

        (&ours).write_all(&3u32.to_ne_bytes()).unwrap();
        (&ours).write_all(b"abc").unwrap();
        assert!(matches!(receive(&theirs), Err(DescriptorsError::Malformed(_))), "a name without descriptor");
        (&ours).write_all(&u32::MAX.to_ne_bytes()).unwrap();
        assert!(matches!(receive(&theirs), Err(DescriptorsError::Malformed(_))), "names beyond the limit");
        theirs.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        assert!(matches!(receive(&theirs), Err(DescriptorsError::Io(_))), "silence");
        drop(ours);
        assert!(matches!(receive(&theirs), Err(DescriptorsError::Closed)));
    }
}
