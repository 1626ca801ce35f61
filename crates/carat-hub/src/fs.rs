//! File operations that survive a crash, and digests.
//!
//! A small file is replaced by writing a sibling, flushing it, renaming it over the old one and
//! flushing the folder, so that after a power cut either the old or the new content is there.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::progress::{Event, Watch};

/// Bytes between two looks at the cancel flag while hashing.
const HASH_STEP: usize = 4 << 20;

pub(crate) fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io("make the folder", path, e))
}

/// Makes the folder that a file will lie in.
pub(crate) fn make_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), make_dir)
}

/// Refuses what will not fit on the disk of a folder, before anything is fetched. What is unknown may fit.
pub(crate) fn check_room(dir: &Path, needed_bytes: u64) -> Result<()> {
    match free_bytes(dir) {
        Some(free_bytes) if free_bytes < needed_bytes => Err(Error::NoRoom {
            dir: dir.to_owned(),
            needed_bytes,
            free_bytes,
        }),
        _ => Ok(()),
    }
}

/// Whether the disk of a folder has no room for so much as a message.
pub(crate) fn is_full(dir: &Path) -> bool {
    free_bytes(dir).is_some_and(|free_bytes| free_bytes < 1 << 16)
}

/// Bytes that are free for us on the disk of a folder, where the system tells.
#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_dir: &Path) -> Option<u64> {
    None
}

/// Flushes the entries of a folder; systems without that notion have nothing to flush.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(path)
            .and_then(|dir| dir.sync_all())
            .map_err(|e| Error::io("flush", path, e))?;
    }
    Ok(())
}

/// Replaces a small file atomically.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = sibling(path);
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let written = write().map_err(|e| Error::io("write", &temporary, e));
    let renamed = written.and_then(|()| rename(&temporary, path));
    if renamed.is_err() {
        // Nobody else will: the name is used once. The first fault is the one to tell.
        let _ = remove_if_there(&temporary);
    }
    renamed
}

/// A name beside a file that nobody else uses, in this process or another.
fn sibling(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.as_os_str().to_owned();
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}-{n}.new", std::process::id()));
    name.into()
}

/// Renames and flushes the target's folder.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("rename a finished file to", to, e))?;
    to.parent().map_or(Ok(()), sync_dir)
}

/// Removes a file that may be absent.
pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// Reads a file that has no business being larger than `limit` bytes. What it is for, only the caller can say.
pub(crate) fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let reason = format!("it is larger than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

/// Whether the file starts as a GGUF file does.
pub(crate) fn has_gguf_magic(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok()
        && &magic == b"GGUF"
}

/// SHA-256 of a whole file in lower-case hex, with progress.
pub(crate) fn sha256_file(path: &Path, watch: &mut Watch<'_>) -> Result<String> {
    let failed = |e| Error::io("read", path, e);
    let mut file = File::open(path).map_err(failed)?;
    let total = file.metadata().map_err(failed)?.len();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; HASH_STEP];
    let mut done = 0;
    loop {
        watch.check()?;
        watch.tell(Event::Verifying { done, total });
        let n = file.read(&mut buffer).map_err(failed)?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
        done += n as u64;
    }
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_digest_is_that_of_the_standard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        fs::write(&path, "abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let cancel = AtomicBool::new(false);
        let mut watch = Watch {
            progress: &mut (),
            cancel: &cancel,
        };
        assert_eq!(sha256_file(&path, &mut watch).unwrap(), expected);
        assert_eq!(sha256_hex(b"abc"), expected);
        cancel.store(true, std::sync::atomic::Ordering::Relaxed);
        let mut watch = Watch {
            progress: &mut (),
            cancel: &cancel,
        };
        assert!(matches!(sha256_file(&path, &mut watch), Err(Error::Cancelled)));
    }

    #[test]
    fn replacing_and_limits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(read_limited(&path, 3).unwrap(), b"two");
        assert!(read_limited(&path, 2).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        remove_if_there(&path).unwrap();
        remove_if_there(&path).unwrap();
        assert!(!has_gguf_magic(&path));
    }
}
