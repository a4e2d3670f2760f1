//! Where pins live, and their end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, sys};

/// Folder of the pins unless configured otherwise.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/selvage";

/// Name of the folder of links below the pin folder.
const LINKS: &str = "links";

pub(crate) fn links_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join(LINKS)
}

/// Makes the folders for maps and links.
pub(crate) fn create(pin_dir: &Path) -> Result<(), Error> {
    let links = links_dir(pin_dir);
    fs::create_dir_all(&links).map_err(|source| Error::Pin { action: "make the folder", path: links, source })
}

/// Removes everything that [`crate::Datapath`] pinned: first the links, which detaches the programs, then the maps,
/// then the folder. What is gone already is fine. Pods are unprotected and cut off afterwards: for a node that leaves.
///
/// # Errors
/// [`Error::Pin`] with the path that could not be removed.
pub fn remove_pins(pin_dir: &Path) -> Result<(), Error> {
    let links = links_dir(pin_dir);
    for pin in list(&links)? {
        detach(&pin)?;
    }
    for pin in list(pin_dir)? {
        remove(&pin)?;
    }
    for folder in [links, pin_dir.to_owned()] {
        match fs::remove_dir(&folder) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Pin { action: "remove the folder", path: folder, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The pins in a folder, without folders; none if there is no such folder.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Pin { action: "list", path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut pins = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if !entry.file_type().map_err(failed)?.is_dir() {
            pins.push(entry.path());
        }
    }
    pins.sort();
    Ok(pins)
}

/// Detaches a pinned link and removes its pin; whether it was there. Without the first step the program would go on for
/// a moment: the kernel lets go of a link some time after its last holder.
pub(crate) fn detach(pin: &Path) -> Result<bool, Error> {
    if let Ok(link) = sys::open_pinned(pin)
        && let Err(source) = sys::detach_link(&link)
        // A link to what is gone already.
        && source.raw_os_error() != Some(libc::ENOLINK)
    {
        return Err(Error::Link { action: "detach", path: pin.to_owned(), source });
    }
    remove(pin)
}

/// Removes one pin; whether it was there.
pub(crate) fn remove(pin: &Path) -> Result<bool, Error> {
    match fs::remove_file(pin) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Pin { action: "remove", path: pin.to_owned(), source }),
    }
}
