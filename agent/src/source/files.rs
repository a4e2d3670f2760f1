//! The files of one folder: which there are, which of them changed, and for each what it last said that made sense.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use policy::Problem;

use super::FileVersion;

/// Largest file that is read: the size that etcd takes for one object is 1.5 MiB, and a file may have many.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// What tells one version of a file from the next without reading it.
type Stamp = (u64, u64, i64, i64, i64, i64);

/// How editors name what they keep beside a file; nobody means such a file to have an effect.
const BACKUPS: &[&str] = &["~", ".swp", ".swo", ".swx", ".bak", "#"];

/// A file and what it last said.
pub(super) struct Kept<T> {
    stamp: Stamp,
    /// `None`: it never made sense.
    pub(super) content: Option<T>,
    /// Why the newest version is not taken.
    pub(super) error: Option<String>,
    /// Since when it is not there.
    missing_since: Option<Instant>,
}

/// The files of one folder, by name.
pub(super) struct Files<T> {
    pub(super) folder: PathBuf,
    suffixes: &'static [&'static str],
    pub(super) files: BTreeMap<String, Kept<T>>,
    /// Files of the last listing with other suffixes.
    ignored: BTreeSet<String>,
    /// The last reading left files alone that had just changed or vanished.
    pub(super) unsettled: bool,
}

/// What a listing found.
#[derive(Default)]
pub(super) struct Listing {
    /// Files to read.
    pub(super) found: BTreeMap<String, Stamp>,
    /// Others.
    ignored: BTreeSet<String>,
}

impl<T> Files<T> {
    pub(super) fn new(folder: PathBuf, suffixes: &'static [&'static str]) -> Self {
        Self { folder, suffixes, files: BTreeMap::new(), ignored: BTreeSet::new(), unsettled: false }
    }

    /// The name of a file without its suffix.
    pub(super) fn stem<'a>(&self, file: &'a str) -> &'a str {
        self.suffixes.iter().find_map(|suffix| file.strip_suffix(suffix)).unwrap_or(file)
    }

    /// Names and stamps of the files that are there now. Hidden ones are others' work in progress.
    pub(super) fn list(&self) -> Result<Listing, String> {
        let failed = |error: io::Error| error.to_string();
        let mut listing = Listing::default();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let is_text = entry.file_name().to_str().is_some();
            let is_wanted = is_text && self.suffixes.iter().any(|suffix| name.ends_with(suffix));
            match fs::metadata(entry.path()) {
                Ok(data) if !data.is_file() => {}
                Ok(_) if !is_wanted => {
                    listing.ignored.insert(name);
                }
                Ok(data) => {
                    let times = (data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec());
                    let stamp = (data.ino(), data.size(), times.0, times.1, times.2, times.3);
                    listing.found.insert(name, stamp);
                }
                // Deleted since the folder was listed. A link that leads nowhere is not: its file is away for a moment.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && fs::symlink_metadata(entry.path()).is_err() => {}
                Err(_) if !is_wanted => {}
                Err(error) => return Err(format!("{name}: {error}")),
            }
        }
        Ok(listing)
    }

    /// Takes over a listing, and reads what is new in it. A file that vanished less than `absence` ago says what it said.
    pub(super) fn read(
        &mut self,
        Listing { found, ignored }: Listing,
        touched: &HashSet<OsString>,
        (settle, absence): (Duration, Duration),
        parse: impl Fn(&str) -> Result<T, String>,
    ) {
        self.ignored = ignored;
        self.unsettled = false;
        let now = Instant::now();
        self.files.retain(|name, file| {
            if found.contains_key(name) {
                file.missing_since = None;
                return true;
            }
            let stays = now.duration_since(*file.missing_since.get_or_insert(now)) < absence;
            self.unsettled |= stays;
            stays
        });
        for (name, stamp) in found {
            if !touched.contains(&OsString::from(&name)) {
                let known = self.files.get(&name).is_some_and(|file| file.stamp == stamp);
                if known {
                    continue;
                }
                if changed_within(stamp, settle) {
                    self.unsettled = true;
                    continue;
                }
            }
            let read = read_limited(&self.folder.join(&name), stamp.1).and_then(|text| parse(&text));
            let unread = Kept { stamp, content: None, error: None, missing_since: None };
            let file = self.files.entry(name).or_insert(unread);
            file.stamp = stamp;
            match read {
                Ok(content) => (file.content, file.error) = (Some(content), None),
                Err(why) => file.error = Some(why),
            }
        }
    }

    /// The files as they were last read, those with errors too; one that is away for a moment is
    /// still there.
    pub(super) fn versions(&self) -> impl Iterator<Item = (String, FileVersion)> {
        self.files.iter().map(|(name, file)| {
            let (inode, _, seconds, nanoseconds, ..) = file.stamp;
            (name.clone(), FileVersion { inode, modified: (seconds, nanoseconds) })
        })
    }

    pub(super) fn contents(&self) -> impl Iterator<Item = (&String, &T)> {
        self.files.iter().filter_map(|(name, file)| Some((name, file.content.as_ref()?)))
    }

    pub(super) fn errors(&self, problems: &mut Vec<Problem>) {
        for (name, file) in &self.files {
            let Some(why) = &file.error else { continue };
            let kept =
                if file.content.is_some() { "the version before stays in force" } else { "it has no effect" };
            problems.push(Problem { location: name.clone(), message: format!("{why}; {kept}") });
        }
    }

    /// Says of files with other suffixes that they have no effect, but for what editors leave.
    pub(super) fn report_ignored(&self, problems: &mut Vec<Problem>) {
        let meant = self.ignored.iter().filter(|name| !BACKUPS.iter().any(|end| name.ends_with(end)));
        problems.extend(meant.map(|name| Problem {
            location: name.clone(),
            message: format!("ignored: its name ends with none of {}", self.suffixes.join(", ")),
        }));
    }
}

/// By its modification time; one in the future says nothing.
fn changed_within(stamp: Stamp, time: Duration) -> bool {
    let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(stamp.2), u64::try_from(stamp.3)) else {
        return false;
    };
    let changed = Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanoseconds));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.checked_sub(changed).is_some_and(|age| age < time)
}

fn read_limited(path: &Path, size: u64) -> Result<String, String> {
    if size > MAX_FILE_BYTES {
        return Err(format!("{size} bytes; at most {MAX_FILE_BYTES} are read: split the file"));
    }
    fs::read_to_string(path).map_err(|error| error.to_string())
}
