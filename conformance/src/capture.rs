//! Captures on a link, made by `tcpdump` and read here: an oracle that shares no code with what it watches.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::command::{self, Background};

/// Time for the last frames to reach the capture before it is stopped.
const SETTLE: Duration = Duration::from_millis(300);
/// The port that encrypted traffic uses.
const WIREGUARD_PORT: u16 = 51820;

/// A running `tcpdump`.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Background,
    file: PathBuf,
}

/// The frames of a capture.
#[derive(Debug, Default)]
pub struct Frames {
    frames: Vec<Vec<u8>>,
}

impl Capture {
    /// Starts to capture on `interface`. `in_namespace` makes the command run in the right network namespace, given
    /// the program and its arguments.
    ///
    /// # Errors
    /// If `tcpdump` does not begin to listen.
    pub fn start(in_namespace: impl FnOnce(&str) -> Command, interface: &str, file: &Path) -> Result<Self> {
        let mut command = in_namespace("tcpdump");
        command.args([
            "-i",
            interface,
            "-U",
            "-n",
            "-s",
            "0",
            "-B",
            "16384",
            "--immediate-mode",
            "-Z",
            "root",
            "-w",
        ]);
        let child: Child =
            command.arg(file).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("start tcpdump")?;
        let mut tcpdump = Background(child);
        let stderr = tcpdump.0.stderr.take().context("tcpdump has no stderr")?;
        let mut lines = BufReader::new(stderr).lines();
        let listening = lines.by_ref().map_while(Result::ok).any(|line| line.contains("listening on"));
        ensure!(listening, "tcpdump does not listen on {interface}");
        // Keep reading, so that tcpdump never blocks or dies on its closing words.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { tcpdump, file: file.to_owned() })
    }

    /// Stops and reads what was caught.
    ///
    /// # Errors
    /// If the file is not a capture.
    pub fn finish(mut self) -> Result<Frames> {
        std::thread::sleep(SETTLE);
        command::stop(&mut self.tcpdump.0, Signal::SIGINT)?;
        Frames::read(&self.file)
    }
}

impl Frames {
    /// Reads a file in pcap format (microseconds or nanoseconds, this machine's byte order).
    ///
    /// # Errors
    /// If it is none.
    pub fn read(file: &Path) -> Result<Self> {
        let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
        let word =
            |at: usize| -> Option<u32> { Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
        ensure!(matches!(word(0), Some(0xa1b2_c3d4 | 0xa1b2_3c4d)), "{} is no capture", file.display());
        let (mut frames, mut at) = (Vec::new(), 24);
        while let Some(length) = word(at + 8) {
            let frame =
                bytes.get(at + 16..at + 16 + length as usize).context("capture ends within a frame")?;
            frames.push(frame.to_vec());
            at += 16 + length as usize;
        }
        Ok(Self { frames })
    }

    /// Number of frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether nothing was caught.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether these bytes stand in any frame.
    pub fn contain(&self, marker: &[u8]) -> bool {
        self.frames.iter().any(|frame| frame.windows(marker.len()).any(|window| window == marker))
    }

    /// Frames by protocol: "WireGuard (UDP 51820)", "ARP", "IPv6 neighbours", "TCP", ...
    pub fn by_protocol(&self) -> BTreeMap<&'static str, usize> {
        let mut count = BTreeMap::new();
        for frame in &self.frames {
            *count.entry(protocol(frame)).or_default() += 1;
        }
        count
    }

    /// Frames that are neither WireGuard, nor an error about it, nor what two neighbours say to find each other.
    pub fn in_clear(&self) -> usize {
        let harmless = [WIREGUARD, ABOUT_WIREGUARD, ARP, NEIGHBOURS];
        self.frames.iter().filter(|frame| !harmless.contains(&protocol(frame))).count()
    }
}

const WIREGUARD: &str = "WireGuard (UDP 51820)";
const ABOUT_WIREGUARD: &str = "ICMP about WireGuard";
const ARP: &str = "ARP";
const NEIGHBOURS: &str = "IPv6 neighbours";

fn protocol(frame: &[u8]) -> &'static str {
    let at = |index: usize| frame.get(index).copied().unwrap_or(0);
    match (at(12), at(13)) {
        (8, 6) => ARP,
        (8, 0) => {
            let transport = 14 + usize::from(at(14) & 15) * 4;
            let quoted_port = u16::from_be_bytes([at(transport + 8 + 22), at(transport + 8 + 23)]);
            match at(23) {
                // A node whose tunnel is just being replaced says so about the datagram that found nobody.
                1 if at(transport) == 3 && at(transport + 8 + 9) == 17 && quoted_port == WIREGUARD_PORT => {
                    ABOUT_WIREGUARD
                }
                1 => "ICMP",
                6 => "TCP",
                17 => {
                    let port =
                        |offset| u16::from_be_bytes([at(transport + offset), at(transport + offset + 1)]);
                    if port(0) == WIREGUARD_PORT || port(2) == WIREGUARD_PORT { WIREGUARD } else { "UDP" }
                }
                _ => "other IPv4",
            }
        }
        // ICMPv6 at once, or behind the hop-by-hop header of a multicast listener report.
        (0x86, 0xdd) if at(20) == 58 || (at(20) == 0 && at(54) == 58) => NEIGHBOURS,
        (0x86, 0xdd) => "other IPv6",
        _ => "other",
    }
}
