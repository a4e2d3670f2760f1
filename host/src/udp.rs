//! UDP socket options that the standard library lacks.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// Clears "don't fragment" on what `socket` sends over IPv4, and ignores path MTUs learned before (`IP_MTU_DISCOVER`, ip(7)): a
/// tunnel whose datagrams do not fit some hop is slow instead of silent.
///
/// # Errors
/// The kernel's answer, if it is no IPv4 socket.
pub fn allow_fragments(socket: &impl AsFd) -> io::Result<()> {
    let value: libc::c_int = libc::IP_PMTUDISC_DONT;
    let length = size_of_val(&value) as libc::socklen_t;
    #[expect(unsafe_code, reason = "neither nix nor socket2 has this option")]
    // SAFETY: the descriptor is open, and the kernel reads `length` bytes of `value`, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const value).cast(),
            length,
        )
    };
    Errno::result(result).map(drop).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_socket_takes_it_and_a_file_does_not() {
        allow_fragments(&UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        assert!(allow_fragments(&tempfile::tempfile().unwrap()).is_err());
    }
}
