//! The node's private key: a file that only root reads, and a sealed memory file that carries it to the worker. It is never an
//! argument or in the environment, which other processes can read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use boringtun::x25519::StaticSecret;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Bytes of a private key.
const KEY: usize = 32;
/// Longest key file that is read: a key is 44 characters and a line end.
const MAX_FILE: u64 = 1024;
/// Mode of the key file: its owner's alone.
const MODE: u32 = 0o600;
/// Permissions of group and others.
const OTHERS: u32 = 0o077;
/// Blocks until the kernel's generator is seeded, which matters on the first boot.
const RANDOM: &str = "/dev/random";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file could not be read.
    #[error("cannot read the private key {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is a link, a folder, a pipe.
    #[error("the private key {} is not a regular file: replace it", .0.display())]
    NotAFile(PathBuf),
    /// Somebody else may have read or written it.
    #[error(
        "the private key {} has mode {mode:04o}, owner {owner}: only its owner, this program's user, may have access; if nobody \
         else can have seen it: chown {user} and chmod 600, or else remove it and a new one is made",
        path.display()
    )]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        owner: u32,
        /// This program's user.
        user: u32,
    },
    /// It is not what `wg genkey` prints.
    #[error(
        "the private key {} is not 32 bytes in base64, as `wg genkey` prints them: repair it, or remove it and a new one is made",
        .0.display()
    )]
    Content(PathBuf),
    /// A new one could not be made.
    #[error("cannot make a private key: {0}")]
    Random(#[source] io::Error),
    /// A new one could not be stored.
    #[error("cannot store the private key: {0}")]
    Store(#[from] host::file::FileError),
    /// The memory file failed.
    #[error("cannot pass the private key on: {0}")]
    Memory(#[source] io::Error),
}

/// Reads the private key in `path`; makes one, as `wg genkey` would, if there is no file. The folder must exist.
///
/// # Errors
/// See [`KeyError`]. A file that is there is never replaced.
pub fn load_or_create(path: &Path) -> Result<StaticSecret, KeyError> {
    let failed = |source| KeyError::Read { path: path.to_owned(), source };
    let opened = OpenOptions::new().read(true).custom_flags(open_flags()).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return create(path),
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ELOOP as i32) => {
            return Err(KeyError::NotAFile(path.to_owned()));
        }
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(KeyError::NotAFile(path.to_owned()));
    }
    let user = nix::unistd::geteuid().as_raw();
    let mode = metadata.mode() & 0o7777;
    if mode & OTHERS != 0 || metadata.uid() != user {
        return Err(KeyError::Permissions { path: path.to_owned(), mode, owner: metadata.uid(), user });
    }
    let mut text = String::new();
    let content = || KeyError::Content(path.to_owned());
    file.take(MAX_FILE).read_to_string(&mut text).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => content(),
        _ => failed(error),
    })?;
    let bytes: [u8; KEY] =
        STANDARD.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(content)?;
    Ok(bytes.into())
}

/// No symbolic links, and a pipe does not block.
fn open_flags() -> i32 {
    (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits()
}

fn create(path: &Path) -> Result<StaticSecret, KeyError> {
    let mut bytes = [0; KEY];
    File::open(RANDOM).and_then(|mut random| random.read_exact(&mut bytes)).map_err(KeyError::Random)?;
    // Clamped (RFC 7748, section 5) as `wg genkey` does; the curve's arithmetic would do it again at each use.
    bytes[0] &= 0b1111_1000;
    bytes[KEY - 1] = bytes[KEY - 1] & 0b0111_1111 | 0b0100_0000;
    host::file::write(path, format!("{}\n", STANDARD.encode(bytes)).as_bytes(), MODE)?;
    tracing::info!(path = %path.display(), "made a private key");
    Ok(bytes.into())
}

/// Puts the key into a memory file that nobody can change any more.
///
/// # Errors
/// The kernel refused.
pub fn seal(secret: &StaticSecret) -> Result<OwnedFd, KeyError> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memory = memfd_create("private-key", flags).map_err(|errno| KeyError::Memory(errno.into()))?;
    let mut file = File::from(memory);
    file.write_all(secret.as_bytes()).map_err(KeyError::Memory)?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(|errno| KeyError::Memory(errno.into()))?;
    Ok(file.into())
}

/// Reads the key from a memory file of [`seal`]. Any number of workers can read it.
///
/// # Errors
/// It could not be read, or is too short.
pub fn unseal(memory: &File) -> Result<StaticSecret, KeyError> {
    let mut bytes = [0; KEY];
    // At an offset, since all processes that hold the descriptor share its position.
    memory.read_exact_at(&mut bytes, 0).map_err(KeyError::Memory)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("private.key");
        host::file::write(&path, content, mode).unwrap();
        (folder, path)
    }

    /// `wg genkey`, RFC 7748 section 6.1's first private key.
    const GOOD: &[u8] = b"dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=\n";

    #[test]
    fn a_key_is_made_once_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("private.key");
        let made = load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(made.as_bytes(), load_or_create(&path).unwrap().as_bytes());
        let other = load_or_create(&folder.path().join("other.key")).unwrap();
        assert_ne!(made.as_bytes(), other.as_bytes());
        assert_eq!((made.as_bytes()[0] & 7, made.as_bytes()[31] >> 6), (0, 1), "clamped");
    }

    #[test]
    fn the_public_key_is_that_of_the_standard() {
        let (_folder, path) = file(GOOD, 0o600);
        let public = boringtun::x25519::PublicKey::from(&load_or_create(&path).unwrap());
        assert_eq!(STANDARD.encode(public.as_bytes()), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn a_key_that_others_can_reach_or_that_is_none_is_refused_and_stays() {
        for mode in [0o640, 0o604, 0o620, 0o677] {
            let (_folder, path) = file(GOOD, mode);
            let error = load_or_create(&path).err().unwrap().to_string();
            assert!(error.contains(&format!("{mode:04o}")) && error.contains("chmod 600"), "{error}");
        }
        for content in [&b""[..], b"short\n", b"\xff\xfe", &[b'A'; 5000], &GOOD[..43]] {
            let (_folder, path) = file(content, 0o600);
            let error = load_or_create(&path).err().unwrap();
            assert!(matches!(error, KeyError::Content(_)), "{error}");
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        let (folder, path) = file(GOOD, 0o600);
        let link = folder.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(load_or_create(&link), Err(KeyError::NotAFile(_))));
        assert!(matches!(load_or_create(folder.path()), Err(KeyError::NotAFile(_))));
    }

    #[test]
    fn a_sealed_key_is_read_again_and_again_and_never_written() {
        let secret = StaticSecret::from([7; 32]);
        let file = File::from(seal(&secret).unwrap());
        for _ in 0..2 {
            assert_eq!(unseal(&file.try_clone().unwrap()).unwrap().as_bytes(), &[7; 32]);
        }
        assert!(file.write_at(b"x", 0).is_err());
        assert!(file.set_len(1).is_err());
        assert!(unseal(&tempfile::tempfile().unwrap()).is_err(), "too short");
    }
}
