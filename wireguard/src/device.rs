//! The loop between the TUN, the UDP socket and the protocol: one thread, one packet at a time, nothing allocated for each.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use api::agent::{Counter, PeerState, TunnelReport};
use host::tun::Queue;
use tokio::net::UdpSocket;
use tokio::time::MissedTickBehavior;

use crate::control::Control;
use crate::peers::PeerSet;
use crate::tunnel::{MAX_PACKET, Sink, TICK, Tunnel};

/// Packets read from one side before the other has its turn: enough to spare system calls, little enough (0.3 ms) for a quick answer.
const BURST: usize = 64;
/// Datagrams kept while the socket's buffer is full: the most that one call can produce (a flush of 256) and some. Reading the TUN
/// stops meanwhile, and the host's own queue fills.
const MAX_HELD: usize = 512;
/// Failures in a row after which a descriptor is taken for dead.
const MAX_FAILURES: u32 = 100;

/// Why the loop ended.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The TUN device is gone.
    #[error("the TUN device cannot be read any more (was it deleted? the master opens another): {0}")]
    Tun(#[source] io::Error),
    /// The socket is gone.
    #[error("the UDP socket cannot be read any more: {0}")]
    Udp(#[source] io::Error),
    /// The descriptors do not fit.
    #[error("cannot use the master's descriptors: {0}")]
    Descriptors(#[source] io::Error),
}

/// The two sides of the tunnel.
#[derive(Debug)]
pub struct Device {
    tun: Queue,
    udp: UdpSocket,
    port: u16,
}

/// What the kernel did not take.
#[derive(Debug, Clone, Copy, Default)]
struct IoCounters {
    send_failed: u64,
    held: u64,
    held_overflow: u64,
    host_write_failed: u64,
    receive_failed: u64,
}

struct Loop<'d> {
    device: &'d Device,
    tunnel: Tunnel,
    wires: Wires<'d>,
    buffer: Box<[u8]>,
    tun_failures: u32,
    udp_failures: u32,
}

/// Where the tunnel's output goes.
struct Wires<'d> {
    device: &'d Device,
    held: VecDeque<(Box<[u8]>, SocketAddr)>,
    counters: IoCounters,
}

impl Device {
    /// Takes the descriptors of a TUN device (no packet information) and of a bound UDP socket.
    ///
    /// # Errors
    /// They are something else.
    pub fn new(tun: OwnedFd, udp: OwnedFd) -> io::Result<Self> {
        let udp = StdUdpSocket::from(udp);
        udp.set_nonblocking(true)?;
        let port = udp.local_addr()?.port();
        let udp = UdpSocket::from_std(udp)?;
        Ok(Self { tun: Queue::new(tun)?, udp, port })
    }

    /// The port of the UDP socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Carries packets until `stop` is ready.
    ///
    /// # Errors
    /// A descriptor does not work any more.
    pub async fn run(
        &self,
        tunnel: Tunnel,
        mut control: Control,
        stop: impl Future<Output = ()>,
    ) -> Result<(), DeviceError> {
        let wires = Wires { device: self, held: VecDeque::new(), counters: IoCounters::default() };
        let buffer = vec![0; MAX_PACKET].into_boxed_slice();
        let mut this = Loop { device: self, tunnel, wires, buffer, tun_failures: 0, udp_failures: 0 };
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reported = Instant::now();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return Ok(()),
                Some(set) = control.sets.recv() => this.update(set, &control),
                ready = self.udp.writable(), if !this.wires.held.is_empty() => {
                    ready.map_err(DeviceError::Udp)?;
                    this.wires.send_held();
                }
                ready = self.tun.readable(), if this.wires.held.is_empty() => {
                    ready.and_then(|()| this.read_tun()).map_err(DeviceError::Tun)?;
                }
                ready = self.udp.readable() => {
                    ready.and_then(|()| this.read_udp()).map_err(DeviceError::Udp)?;
                }
                _ = ticks.tick() => {
                    let now = Instant::now();
                    this.tunnel.tick(now, &mut this.wires);
                    if this.tunnel.take_changed() || now.duration_since(reported) >= api::REPEAT {
                        reported = now;
                        control.report.send_replace(this.report());
                    }
                }
            }
        }
    }
}

impl Loop<'_> {
    fn read_tun(&mut self) -> io::Result<()> {
        for _ in 0..BURST {
            match self.device.tun.try_read(&mut self.buffer) {
                Ok(length) => {
                    self.tun_failures = 0;
                    let packet = self.buffer.get(..length).unwrap_or_default();
                    self.tunnel.encapsulate(packet, &mut self.wires);
                    if !self.wires.held.is_empty() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if host::tun::is_gone(&error) => return Err(error),
                Err(error) => return tolerate(&mut self.tun_failures, error),
            }
        }
        Ok(())
    }

    fn read_udp(&mut self) -> io::Result<()> {
        for _ in 0..BURST {
            match self.device.udp.try_recv_from(&mut self.buffer) {
                Ok((length, from)) => {
                    self.udp_failures = 0;
                    let datagram = self.buffer.get(..length).unwrap_or_default();
                    self.tunnel.receive(datagram, from, &mut self.wires);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    self.wires.counters.receive_failed += 1;
                    return tolerate(&mut self.udp_failures, error);
                }
            }
        }
        Ok(())
    }

    fn update(&mut self, set: api::agent::PeerSet, control: &Control) {
        let number = self.tunnel.number();
        self.tunnel.update_peers(PeerSet::from(set), Instant::now(), &mut self.wires);
        tracing::debug!(from = number, to = self.tunnel.number(), "peers");
        control.in_force.send_replace(self.tunnel.in_force());
        control.report.send_replace(self.report());
    }

    fn report(&self) -> TunnelReport {
        TunnelReport { counters: self.counters(), ..report(&self.tunnel, self.device.port) }
    }

    fn counters(&self) -> Vec<Counter> {
        let (protocol, io) = (self.tunnel.counters(), self.wires.counters);
        [
            ("tunnel_no_peer", protocol.no_peer),
            ("tunnel_not_ip", protocol.not_ip),
            ("tunnel_refused_source", protocol.refused_source),
            ("tunnel_refused_packet", protocol.refused_packet),
            ("tunnel_invalid", protocol.invalid),
            ("tunnel_replayed", protocol.replayed),
            ("tunnel_unknown_peer", protocol.unknown_peer),
            ("tunnel_strangers_limited", protocol.strangers_limited),
            ("tunnel_cookies", protocol.cookies),
            ("tunnel_waiting_overflow", protocol.waiting_overflow),
            ("tunnel_send_failed", io.send_failed),
            ("tunnel_held", io.held),
            ("tunnel_held_overflow", io.held_overflow),
            ("tunnel_host_write_failed", io.host_write_failed),
            ("tunnel_receive_failed", io.receive_failed),
        ]
        .into_iter()
        .filter(|(_, value)| *value > 0)
        .map(|(name, value)| Counter { name: name.to_owned(), value })
        .collect()
    }
}

/// What the agent is told of `tunnel`, without counters.
pub(crate) fn report(tunnel: &Tunnel, port: u16) -> TunnelReport {
    let counters = tunnel.counters();
    let milliseconds = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    TunnelReport {
        public_key: tunnel.public_key().as_bytes().to_vec(),
        listen_port: port.into(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        peers: tunnel
            .peers()
            .map(|peer| PeerState {
                public_key: peer.public_key.as_bytes().to_vec(),
                node: peer.node,
                last_handshake_ms: peer.last_handshake.map(milliseconds),
                received_bytes: peer.received_bytes,
                sent_bytes: peer.sent_bytes,
                silent_ms: peer.silence.map(milliseconds),
            })
            .collect(),
        number: tunnel.number(),
        refused_source_packets: counters.refused_source,
        no_peer_packets: counters.no_peer,
        problems: tunnel.problems().iter().cloned().map(Into::into).collect(),
        counters: Vec::new(),
        repeats: true,
    }
}

/// A descriptor may fail now and then (a device that is down, an ICMP error), but not for ever.
fn tolerate(failures: &mut u32, error: io::Error) -> io::Result<()> {
    *failures += 1;
    if *failures > MAX_FAILURES { Err(error) } else { Ok(()) }
}

impl Wires<'_> {
    fn send_held(&mut self) {
        while let Some((datagram, to)) = self.held.front() {
            match self.device.udp.try_send_to(datagram, *to) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.counters.send_failed += 1,
                Ok(_) => {}
            }
            self.held.pop_front();
        }
    }
}

impl Sink for Wires<'_> {
    fn to_network(&mut self, datagram: &[u8], to: SocketAddr) {
        if self.held.is_empty() {
            match self.device.udp.try_send_to(datagram, to) {
                Ok(_) => return,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.counters.send_failed += 1;
                    return;
                }
            }
        }
        if self.held.len() < MAX_HELD {
            self.counters.held += 1;
            self.held.push_back((datagram.into(), to));
        } else {
            self.counters.held_overflow += 1;
        }
    }

    fn to_host(&mut self, packet: &[u8]) {
        if self.device.tun.write(packet).is_err() {
            self.counters.host_write_failed += 1;
        }
    }
}
