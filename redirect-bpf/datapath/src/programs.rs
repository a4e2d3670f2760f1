use std::path::{Path, PathBuf};

use aya::maps::MapData;
use aya::programs::{ProgramError, SchedClassifier, SkLookup, TcAttachType};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};

use crate::links::{self, Attachment, Loaded, Program};
use crate::maps::Maps;
use crate::{Error, Events, layout_check, pins};

/// The object that build.rs made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SELVAGE_EBPF_OBJECT"));

/// How often the verifier may be interrupted: it takes milliseconds, so a signal each time is no accident.
const LOAD_ATTEMPTS: u32 = 20;

/// The loaded programs, their attachments and their maps.
///
/// Dropping it, or the death of its process, changes nothing for packets: programs stay attached through pinned links
/// and work on pinned maps. After a restart: [`Datapath::open`], then [`Datapath::adopt`].
pub struct Datapath {
    ebpf: Ebpf,
    pin_dir: PathBuf,
    /// Every map that the programs work on, in the order of `layout_check::ALL`: to be pinned again
    /// should the pins be removed.
    held: Vec<MapData>,
    /// The maps, to read and to fill.
    pub maps: Maps,
}

impl Datapath {
    /// Loads the programs; makes the maps and pins them in `pin_dir`, or takes over the ones pinned there. Attaches
    /// nothing.
    ///
    /// # Errors
    /// [`Error::LayoutMismatch`] if a pinned map is another version's (nothing is changed then), [`Error::Pin`] if
    /// the folder cannot be made, [`Error::Load`] and [`Error::Program`] if the kernel does not take the programs.
    pub fn open(pin_dir: &Path) -> Result<Self, Error> {
        for shape in &layout_check::ALL {
            shape.check_if_pinned(pin_dir)?;
        }
        pins::create(pin_dir)?;
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(pin_dir)
            .verifier_log_level(VerifierLogLevel::STATS)
            .load(OBJECT)
            .map_err(|source| Error::Load(Box::new(source)))?;
        // What the object itself declares must be the layout too.
        for shape in &layout_check::ALL {
            shape.check(pin_dir)?;
        }
        for program in Program::ALL {
            load(&mut ebpf, program)?;
        }
        let held: Result<Vec<MapData>, Error> =
            layout_check::ALL.iter().map(|shape| shape.open(pin_dir)).collect();
        Ok(Self { ebpf, pin_dir: pin_dir.to_owned(), held: held?, maps: Maps::open(pin_dir)? })
    }

    /// Pins the maps again whose pins were removed or stand for other maps: a proxy that starts
    /// finds its listeners' map by the pin, and the programs work on the maps that are held here,
    /// whatever is pinned. Returns their names.
    ///
    /// # Errors
    /// [`Error::Pin`] with the pin that cannot be made; those before it are.
    pub fn ensure_pins(&self) -> Result<Vec<&'static str>, Error> {
        pins::create(&self.pin_dir)?;
        let mut made = Vec::new();
        for (shape, map) in layout_check::ALL.iter().zip(&self.held) {
            if shape.ensure_pin(&self.pin_dir, map)? {
                made.push(shape.name);
            }
        }
        Ok(made)
    }

    /// Puts this version's programs behind every pinned link, each atomically, and removes the pins of links that are
    /// dead. For the start after a restart; packets are judged throughout.
    ///
    /// Returns what is attached now.
    ///
    /// # Errors
    /// [`Error::Link`] with the pin in question; the links before it are updated.
    pub fn adopt(&mut self) -> Result<Vec<Attachment>, Error> {
        let mut adopted = Vec::new();
        for attachment in links::pinned(&self.pin_dir)? {
            if loaded(&mut self.ebpf, attachment.program)?.update(&attachment, &self.pin_dir)? {
                adopted.push(attachment);
            }
        }
        Ok(adopted)
    }

    /// Attaches `from_pod` and `to_pod` to the host side of a pod's veth. What is attached already is updated.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such device in this network namespace, [`Error::Program`] or [`Error::Link`]
    /// if the kernel refuses. One of the two may be attached then: the pod gets less through, never more.
    pub fn attach_pod(&mut self, device: &str) -> Result<(), Error> {
        self.attach(device, Program::ToPod)?;
        self.attach(device, Program::FromPod)
    }

    /// Attaches `from_tunnel` to the TUN of the tunnel.
    ///
    /// # Errors
    /// As [`Self::attach_pod`].
    pub fn attach_tunnel(&mut self, device: &str) -> Result<(), Error> {
        self.attach(device, Program::FromTunnel)
    }

    /// Attaches `to_uplink` and `from_uplink` to the device of the underlay.
    ///
    /// # Errors
    /// As [`Self::attach_pod`].
    pub fn attach_uplink(&mut self, device: &str) -> Result<(), Error> {
        self.attach(device, Program::ToUplink)?;
        self.attach(device, Program::FromUplink)
    }

    /// Attaches `pick_listener` to the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Program`] or [`Error::Link`] if the kernel refuses.
    pub fn attach_listener_picker(&mut self) -> Result<(), Error> {
        self.attach(Attachment::NETWORK_NAMESPACE, Program::PickListener)
    }

    fn attach(&mut self, device: &str, program: Program) -> Result<(), Error> {
        let attachment = Attachment { device: device.to_owned(), program };
        let mut loaded = loaded(&mut self.ebpf, program)?;
        if loaded.update(&attachment, &self.pin_dir)? {
            return Ok(());
        }
        loaded.attach(&attachment, &self.pin_dir)
    }

    /// Detaches every program from a device and removes the pins; whether there were any. Also for a device that is
    /// gone.
    ///
    /// # Errors
    /// [`Error::Link`] or [`Error::Pin`] if a link cannot be detached or its pin not be removed.
    pub fn detach(&mut self, device: &str) -> Result<bool, Error> {
        let mut found = false;
        for attachment in links::pinned(&self.pin_dir)? {
            if attachment.device == device {
                found |= pins::detach(&attachment.pin(&self.pin_dir))?;
            }
        }
        Ok(found)
    }

    /// What is pinned as attached, dead links included.
    ///
    /// # Errors
    /// [`Error::Pin`] if the folder cannot be read.
    pub fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        links::pinned(&self.pin_dir)
    }

    /// Whether a program is attached where it should be: it is pinned, and nothing took it off
    /// since.
    ///
    /// # Errors
    /// [`Error::Link`] if the kernel does not say.
    pub fn is_attached(&self, attachment: &Attachment) -> Result<bool, Error> {
        attachment.is_live(&self.pin_dir)
    }

    /// Opens the event ring; one reader at a time.
    ///
    /// # Errors
    /// As [`Events::open`].
    pub fn events(&self) -> Result<Events, Error> {
        Events::open(&self.pin_dir)
    }

    /// A loaded tcx program, for running it on crafted packets (`aya::programs::TestRun`); none for
    /// [`Program::PickListener`].
    pub fn classifier(&self, program: Program) -> Option<&SchedClassifier> {
        self.ebpf.program(program.name())?.try_into().ok()
    }
}

/// Hands a program to the verifier, again if a signal interrupted it (a child of the process that ended is enough).
fn load(ebpf: &mut Ebpf, program: Program) -> Result<(), Error> {
    let mut attempt = 1;
    loop {
        let result = match loaded(ebpf, program)? {
            Loaded::Tcx(program, _) => program.load(),
            Loaded::SkLookup(program) => program.load(),
        };
        match result {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) && attempt < LOAD_ATTEMPTS =>
            {
                attempt += 1;
            }
            other => return other.map_err(|source| Error::program(program.name(), None, source)),
        }
    }
}

/// A program of the object, with the hook that it is for.
fn loaded(ebpf: &mut Ebpf, program: Program) -> Result<Loaded<'_>, Error> {
    let found = ebpf.program_mut(program.name()).ok_or(Error::Missing(program.name()))?;
    let wrong_kind = |source| Error::program(program.name(), None, source);
    let hook = match program {
        Program::PickListener => {
            let found: &mut SkLookup = found.try_into().map_err(wrong_kind)?;
            return Ok(Loaded::SkLookup(found));
        }
        Program::ToPod | Program::ToUplink => TcAttachType::Egress,
        Program::FromPod | Program::FromTunnel | Program::FromUplink => TcAttachType::Ingress,
    };
    let found: &mut SchedClassifier = found.try_into().map_err(wrong_kind)?;
    Ok(Loaded::Tcx(found, hook))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handles_may_be_moved_to_a_task() {
        fn is_send<T: Send>() {}
        is_send::<Datapath>();
        is_send::<Maps>();
        is_send::<Events>();
        is_send::<crate::Listeners>();
    }
}
