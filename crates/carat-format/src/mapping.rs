//! Files as read-only memory.
//!
//! The one place of this crate with `unsafe`. Mapping a file is sound only while nobody changes it: that
//! cannot be checked, so it is the contract of [`Mapping::open`]. Everything read from a mapping is checked
//! at the time it is used as a length or an offset, so a file that changes its *content* gives wrong numbers
//! or an error, as far as the hardware is concerned; one that gets *shorter* ends the process (SIGBUS).

use std::fmt;
use std::fs::{self, File};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// The bytes of one file (or of a buffer that stands for one), shared by [`Arc`].
pub struct Mapping {
    path: PathBuf,
    data: Data,
}

enum Data {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Mapping {
    /// Maps the whole file, read only.
    ///
    /// The file must not be changed while it is mapped; replacing it by renaming another one over it is
    /// fine. A file that is made shorter meanwhile makes the next access to the missing part undefined (on
    /// Unix the process ends with SIGBUS).
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, [`Error::NotAFile`] for folders, pipes and devices.
    pub fn open(path: &Path) -> Result<Arc<Mapping>> {
        let io = |action| {
            move |source| Error::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        // Before opening: to open a pipe would wait for its other end.
        if !fs::metadata(path).map_err(io("open"))?.is_file() {
            return Err(Error::NotAFile {
                path: path.to_owned(),
            });
        }
        let file = File::open(path).map_err(io("open"))?;
        // SAFETY: the map is private and read only. That nobody writes to the file meanwhile is the
        // documented contract of this function; the operating system offers no way to enforce it.
        let map = unsafe { Mmap::map(&file) }.map_err(io("map"))?;
        Ok(Arc::new(Mapping {
            path: path.to_owned(),
            data: Data::Mapped(map),
        }))
    }

    /// Bytes in memory that stand for the file `path`, which need not exist and is used in messages.
    #[must_use]
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Arc<Mapping> {
        Arc::new(Mapping {
            path: path.into(),
            data: Data::Owned(bytes),
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks the system to read these bytes soon. A hint: nothing happens where it is not known.
    pub fn advise_willneed(&self, range: Range<usize>) {
        self.advise(Hint::WillNeed, range);
    }

    /// Says that these bytes are read in no order (rows of an embedding table). A hint.
    pub fn advise_random(&self, range: Range<usize>) {
        self.advise(Hint::Random, range);
    }

    /// Says that these bytes are read once from front to back. A hint.
    pub fn advise_sequential(&self, range: Range<usize>) {
        self.advise(Hint::Sequential, range);
    }

    #[cfg(unix)]
    fn advise(&self, hint: Hint, range: Range<usize>) {
        let advice = match hint {
            Hint::WillNeed => memmap2::Advice::WillNeed,
            Hint::Random => memmap2::Advice::Random,
            Hint::Sequential => memmap2::Advice::Sequential,
        };
        if let Data::Mapped(map) = &self.data {
            let end = range.end.min(map.len());
            if range.start < end {
                // The result changes nothing: without the hint the same bytes are read, only later.
                let _ = map.advise_range(advice, range.start, end - range.start);
            }
        }
    }

    #[cfg(not(unix))]
    fn advise(&self, _hint: Hint, _range: Range<usize>) {}
}

#[derive(Clone, Copy)]
enum Hint {
    WillNeed,
    Random,
    Sequential,
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.data {
            Data::Mapped(map) => map,
            Data::Owned(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("path", &self.path)
            .field("len", &self.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_a_file_and_takes_hints() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bytes");
        fs::write(&path, [7u8; 10_000]).unwrap();
        let map = Mapping::open(&path).unwrap();
        map.advise_willneed(5000..usize::MAX);
        map.advise_random(1..2);
        map.advise_sequential(Range { start: 9, end: 3 });
        assert_eq!(map[..], [7u8; 10_000]);
        assert_eq!(map.path(), path);
    }

    #[test]
    fn an_empty_file_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        fs::write(&path, []).unwrap();
        assert!(Mapping::open(&path).unwrap().is_empty());
    }

    #[test]
    fn a_folder_is_not_a_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Mapping::open(dir.path()), Err(Error::NotAFile { .. })));
        assert!(matches!(
            Mapping::open(&dir.path().join("none")),
            Err(Error::Io { action: "open", .. })
        ));
    }
}
