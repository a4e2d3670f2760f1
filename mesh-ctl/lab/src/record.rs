//! Small JSON files that say what was made, so that another process can find it and take it away.

use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::LabError;

/// Replaces the record at `file`.
pub(crate) fn write(file: &Path, record: &impl Serialize) -> Result<(), LabError> {
    let text =
        serde_json::to_vec_pretty(record).map_err(io::Error::other).map_err(LabError::io("write", file))?;
    Ok(host::file::write(file, &text, 0o644)?)
}

/// Reads the record at `file`; `None` if there is none.
pub(crate) fn read<T: DeserializeOwned>(file: &Path) -> Result<Option<T>, LabError> {
    match std::fs::read(file) {
        Ok(text) => {
            let record = serde_json::from_slice(&text).map_err(io::Error::other);
            record.map(Some).map_err(LabError::io("understand", file))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LabError::io("read", file)(error)),
    }
}

/// Reads all records in `folder`, in the order of their names. One that was removed meanwhile is left out.
pub(crate) fn read_all<T: DeserializeOwned>(folder: &Path) -> Result<Vec<T>, LabError> {
    let mut names = crate::folder::entries(folder)?;
    names.retain(|name| name.ends_with(".json") && !name.starts_with('.'));
    names.sort();
    names.iter().filter_map(|name| read(&folder.join(name)).transpose()).collect()
}
