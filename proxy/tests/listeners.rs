//! In which map the listeners are when the agent has made it again. Needs root and a bpf file system.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proxy::listener;
use socket2::SockRef;

const THREADS: u32 = 2;

/// A folder for pins, with the agent's maps in it.
struct Pins(PathBuf);

impl Pins {
    fn new() -> Option<Self> {
        let root = Path::new("/sys/fs/bpf");
        let pins = Self(root.join(format!("svpx-{}-listeners", std::process::id())));
        if !root.metadata().is_ok_and(|folder| folder.is_dir()) {
            println!("skipped: no bpf file system at {}", root.display());
            assert!(std::env::var_os("MESH_REQUIRE_ALL").is_none());
            return None;
        }
        pins.make();
        Some(pins)
    }

    fn make(&self) {
        drop(datapath::Datapath::open(&self.0).unwrap());
    }

    fn remove(&self) {
        datapath::remove_pins(&self.0).unwrap();
    }

    /// Which slots have a listener: nothing reads a slot, but one that has none takes another.
    fn filled(&self) -> Vec<u32> {
        let mut slots = datapath::Listeners::open(&self.0).unwrap();
        let probe = TcpListener::bind("127.0.0.1:0").unwrap();
        let is_filled = |slot: &u32| {
            let was_empty = slots.fill(*slot, &probe).unwrap();
            if was_empty {
                slots.clear(*slot).unwrap();
            }
            !was_empty
        };
        (0..THREADS + 1).filter(is_filled).collect()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = datapath::remove_pins(&self.0);
    }
}

fn ports(held: &[(String, OwnedFd)]) -> Vec<u16> {
    let port = |socket| SockRef::from(socket).local_addr().unwrap().as_socket().unwrap().port();
    held.iter().map(|(_, socket)| port(socket)).collect()
}

#[test]
fn listeners_that_are_held_come_into_a_map_that_was_made_again() {
    let Some(pins) = Pins::new() else { return };
    let mut held = Vec::new();
    listener::complete(&pins.0, THREADS, &mut held).unwrap();
    let ports_before = ports(&held);
    assert_eq!(pins.filled(), [0, 1]);

    pins.remove();
    listener::complete(&pins.0, THREADS, &mut held).expect("nothing is missing");
    assert!(listener::complete(&pins.0, THREADS, &mut Vec::new()).is_err(), "there is no map");
    pins.make();
    assert_eq!(pins.filled(), [0; 0]);
    for _ in 0..2 {
        listener::complete(&pins.0, THREADS, &mut held).unwrap();
        assert_eq!((pins.filled(), ports(&held)), (vec![0, 1], ports_before.clone()));
    }

    // As after the first time, they leave it when they are closed.
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !pins.filled().is_empty() {
        assert!(Instant::now() < deadline, "still there: {:?}", pins.filled());
        std::thread::sleep(Duration::from_millis(5));
    }
}
