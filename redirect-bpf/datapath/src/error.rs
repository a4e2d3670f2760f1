use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

/// What can go wrong between user space and the datapath in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder or file of the pins could not be made, read or removed.
    #[error("{}: {action}: {source} (pins need a BPF file system: mount -t bpf bpf /sys/fs/bpf)", path.display())]
    Pin {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A pinned map is not what this version expects.
    #[error(
        "{}: a map of another layout is pinned here: its {field} is {found}, expected {expected}; \
         remove the pin, or give the map another name in layout::maps",
        path.display()
    )]
    LayoutMismatch {
        /// The pin.
        path: PathBuf,
        /// The property that differs.
        field: &'static str,
        /// Its value in the kernel.
        found: u32,
        /// Its value in this version's layout.
        expected: u32,
    },
    /// The programs do not hold a map or program that they should: a defect of the build.
    #[error("the built-in eBPF object has no {0}")]
    Missing(&'static str),
    /// The kernel did not take the object.
    #[error(
        "the eBPF programs could not be loaded (Linux 6.6 or newer with BTF and CAP_BPF, CAP_NET_ADMIN needed)"
    )]
    Load(#[source] Box<EbpfError>),
    /// The verifier refused a program, or it could not be attached.
    #[error("eBPF program {program}{}", device.as_deref().map(|d| format!(" on {d}")).unwrap_or_default())]
    Program {
        /// Which.
        program: &'static str,
        /// The device, for an attachment.
        device: Option<String>,
        /// aya's or the kernel's answer, with the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// A call on a link failed.
    #[error("link {}: {action}: {source}", path.display())]
    Link {
        /// What was tried.
        action: &'static str,
        /// The pin of the link.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A call on a map failed.
    #[error("map {map}: {action}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What was tried.
        action: &'static str,
        /// aya's or the kernel's answer.
        #[source]
        source: Box<MapError>,
    },
    /// A map holds as many elements as it can: nothing was written.
    #[error("map {map} is full ({limit} elements): {action} refused")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// What was tried.
        action: &'static str,
        /// Its limit, see `layout::limits`.
        limit: u32,
    },
    /// A value that no map may hold.
    #[error("{field}: {problem}")]
    Invalid {
        /// What is wrong.
        field: &'static str,
        /// Why, and what would be right.
        problem: String,
    },
    /// The device does not exist in this network namespace, or has no usable name.
    #[error("device {device}: {source}")]
    Device {
        /// Its name.
        device: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Events could not be waited for.
    #[error("waiting for events: {0}")]
    Events(#[source] io::Error),
}

impl Error {
    pub(crate) fn map(map: &'static str, action: &'static str, source: MapError) -> Self {
        Self::Map { map, action, source: Box::new(source) }
    }

    pub(crate) fn program(program: &'static str, device: Option<&str>, source: ProgramError) -> Self {
        Self::Program { program, device: device.map(str::to_owned), source: Box::new(source) }
    }
}
