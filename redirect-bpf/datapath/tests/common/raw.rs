//! Frames out of any device and a TUN, for which there is no safe interface; and the checksums that real stacks want.
#![expect(unsafe_code, reason = "packet sockets and TUN devices are made with raw system calls")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// Sends a frame as it is out of a device of the current namespace. `ENOBUFS` if a program drops it on its way out.
pub(crate) fn send_frame(device: &str, frame: &[u8]) -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, None).unwrap();
    // SAFETY: a C struct of integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = nix::net::if_::if_nametoindex(device).unwrap().cast_signed();
    // SAFETY: frame and address live through the call, and their lengths are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

nix::ioctl_write_ptr_bad!(tun_set_iff, 0x4004_54ca, libc::ifreq);

/// Makes a TUN without packet information; it goes with the descriptor.
pub(crate) fn open_tun(name: &str) -> File {
    let tun = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: a C struct of integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: the descriptor is open and the request lives through the call.
    unsafe { tun_set_iff(tun.as_raw_fd(), &raw const request) }.unwrap();
    tun
}

/// RFC 1071 over 16-bit words.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Fills in the checksums of an IPv4 header and of a TCP segment in it.
pub(crate) fn set_checksums(packet: &mut [u8]) {
    let (ip, transport) = packet.split_at_mut(20);
    let sum = checksum(&[ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    if ip[9] == super::TCP {
        let length = u16::try_from(transport.len()).unwrap().to_be_bytes();
        let sum = checksum(&[&ip[12..20], &[0, super::TCP], &length, transport]);
        transport[16..18].copy_from_slice(&sum.to_be_bytes());
    }
}
