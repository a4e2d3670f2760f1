//! Where pins live, and their end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Error;

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
    for folder in [links_dir(pin_dir), pin_dir.to_owned()] {
        for pin in list(&folder)? {
            remove(&pin)?;
        }
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

/// Removes one pin; whether it was there.
pub(crate) fn remove(pin: &Path) -> Result<bool, Error> {
    match fs::remove_file(pin) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Pin { action: "remove", path: pin.to_owned(), source }),
    }
}
