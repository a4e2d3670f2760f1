//! Attachments: which program is pinned where, made once, updated in place.
//!
//! A pin is `<pin_dir>/links/<device>_<program>`; a dot in a device's name, which the BPF file system does not allow,
//! is stored as a colon, which device names do not allow.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, SkLookup, TcAttachType};

use crate::Error;
use crate::pins::{self, links_dir};
use crate::sys::{self, LINK_NETNS, LINK_TCX};

/// The eBPF programs, by their hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// tcx ingress on the host side of a pod's veth.
    FromPod,
    /// tcx egress on it.
    ToPod,
    /// tcx ingress on the TUN of the tunnel.
    FromTunnel,
    /// tcx ingress on the uplink.
    FromUplink,
    /// tcx egress on it.
    ToUplink,
    /// sk_lookup on the node's network namespace.
    PickListener,
}

impl Program {
    /// Every program.
    pub const ALL: [Self; 6] =
        [Self::FromPod, Self::ToPod, Self::FromTunnel, Self::FromUplink, Self::ToUplink, Self::PickListener];

    /// Its name in the object, in pins and in bpftool.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromTunnel => "from_tunnel",
            Self::FromUplink => "from_uplink",
            Self::ToUplink => "to_uplink",
            Self::PickListener => "pick_listener",
        }
    }
}

/// A pinned link: a program that stays attached whoever runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The device, or [`Attachment::NETWORK_NAMESPACE`] for [`Program::PickListener`].
    pub device: String,
    /// The program.
    pub program: Program,
}

impl Attachment {
    /// Stands for the node's network namespace in place of a device.
    pub const NETWORK_NAMESPACE: &str = "netns";

    pub(crate) fn pin(&self, pin_dir: &Path) -> PathBuf {
        links_dir(pin_dir).join(format!("{}_{}", self.device.replace('.', ":"), self.program.name()))
    }

    /// Whether its pinned link is attached to the device that has the name now.
    ///
    /// # Errors
    /// [`Error::Link`] if the kernel does not say.
    pub(crate) fn is_live(&self, pin_dir: &Path) -> Result<bool, Error> {
        let path = self.pin(pin_dir);
        let failed = |action| {
            let path = path.clone();
            move |source| Error::Link { action, path, source }
        };
        let link = match sys::open_pinned(&path) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed("open")(error)),
        };
        let info = sys::link_info(&link).map_err(failed("describe"))?;
        Ok(Some((info.kind, info.target)) == self.target())
    }

    /// Kind and target that its link must have; none if the device does not exist.
    fn target(&self) -> Option<(u32, u32)> {
        match self.program {
            // Numbers of namespaces are 32 bits wide.
            Program::PickListener => Some((LINK_NETNS, current_netns().ok()?.metadata().ok()?.ino() as u32)),
            _ => Some((LINK_TCX, sys::interface_index(&self.device).ok()?)),
        }
    }

    /// The attachment that a pin stands for; none for a file that is none of ours.
    fn from_pin(pin: &Path) -> Option<Self> {
        let name = pin.file_name()?.to_str()?;
        Program::ALL.into_iter().find_map(|program| {
            let device = name.strip_suffix(program.name())?.strip_suffix('_')?;
            Some(Self { device: device.replace(':', "."), program })
        })
    }
}

/// The attachments pinned in a folder, attached or not.
pub(crate) fn pinned(pin_dir: &Path) -> Result<Vec<Attachment>, Error> {
    Ok(pins::list(&links_dir(pin_dir))?.iter().filter_map(|pin| Attachment::from_pin(pin)).collect())
}

/// A program that was loaded, of either of the two kinds.
pub(crate) enum Loaded<'a> {
    Tcx(&'a mut SchedClassifier, TcAttachType),
    SkLookup(&'a mut SkLookup),
}

impl Loaded<'_> {
    /// Puts the program behind the pinned link of the attachment. False if there is none, or a dead one or one to
    /// something else of the same name, which is then removed.
    pub(crate) fn update(&self, attachment: &Attachment, pin_dir: &Path) -> Result<bool, Error> {
        let path = attachment.pin(pin_dir);
        let failed = |action| {
            let path = path.clone();
            move |source| Error::Link { action, path, source }
        };
        let link = match sys::open_pinned(&path) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed("open")(error)),
        };
        let info = sys::link_info(&link).map_err(failed("describe"))?;
        let target = attachment.target();
        // It lives, but its device is not in this network namespace: this process is in a wrong one.
        if target.is_none() && info.target != 0 {
            return Ok(false);
        }
        if Some((info.kind, info.target)) != target {
            pins::detach(&path)?;
            return Ok(false);
        }
        let program = match self {
            Self::Tcx(program, _) => program.fd(),
            Self::SkLookup(program) => program.fd(),
        };
        let program = program.map_err(|source| Error::program(attachment.program.name(), None, source))?;
        match sys::update_link(link.as_fd(), program.as_fd()) {
            Ok(()) => Ok(true),
            // Gone between the two calls.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                pins::detach(&path)?;
                Ok(false)
            }
            Err(error) => Err(failed("update")(error)),
        }
    }

    /// Attaches the program anew and pins the link.
    pub(crate) fn attach(&mut self, attachment: &Attachment, pin_dir: &Path) -> Result<(), Error> {
        let device = &attachment.device;
        let failed = |source| Error::program(attachment.program.name(), Some(device), source);
        let link: FdLink = match self {
            Self::Tcx(program, hook) => {
                sys::interface_index(device)
                    .map_err(|source| Error::Device { device: device.clone(), source })?;
                let order = TcAttachOptions::TcxOrder(LinkOrder::first());
                let id = program.attach_with_options(device, *hook, order).map_err(failed)?;
                let link = program.take_link(id).map_err(failed)?;
                link.try_into().map_err(|error: aya::programs::links::LinkError| {
                    failed(match error {
                        aya::programs::links::LinkError::SyscallError(error) => error.into(),
                        _ => ProgramError::NotAttached,
                    })
                })?
            }
            Self::SkLookup(program) => {
                let netns =
                    current_netns().map_err(|source| Error::Device { device: device.clone(), source })?;
                let id = program.attach(netns).map_err(failed)?;
                program.take_link(id).map_err(failed)?.into()
            }
        };
        let path = attachment.pin(pin_dir);
        // The pinned link's descriptor is closed here: only the pin keeps it, so that removing the pin detaches.
        link.pin(&path).map(drop).map_err(|error| Error::Link {
            action: "pin",
            path,
            source: io::Error::other(error),
        })
    }
}

/// The network namespace of the calling thread.
fn current_netns() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}
