//! Writing a file of tensors, so that it is there whole or not at all.
//!
//! The bytes go to a new file beside the target; [`TensorWriter::finish`] renames it into place. When the
//! writer is dropped before that, the new file is removed and a file that was there before is untouched.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Fault, Place, Result};

/// Bytes gathered before a write.
const BUFFER_BYTES: usize = 1 << 20;

/// Takes the data of the declared tensors, one after another in the declared order.
///
/// Made by [`GgufBuilder::create`](crate::GgufBuilder::create) and
/// [`SafetensorsBuilder::create`](crate::SafetensorsBuilder::create).
#[derive(Debug)]
pub struct TensorWriter {
    file: PendingFile,
    /// Those not begun yet.
    waiting: VecDeque<Slot>,
    current: Option<Slot>,
}

/// The place of one tensor in the file.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    /// Bytes of data that are still to come.
    pub(crate) n_bytes: u64,
    /// Zeros that follow the data.
    pub(crate) padding: u64,
}

impl TensorWriter {
    /// Creates the pending file and writes `head` into it.
    pub(crate) fn create(path: &Path, head: &[u8], slots: Vec<Slot>) -> Result<TensorWriter> {
        let mut file = PendingFile::create(path)?;
        file.write(head)?;
        Ok(TensorWriter {
            file,
            waiting: slots.into(),
            current: None,
        })
    }

    /// Begins the data of the tensor `name`, which must be the next one.
    ///
    /// # Errors
    /// [`Error::Unwritable`] when it is not the next or the one before is not complete; [`Error::Io`],
    /// [`Error::DiskFull`].
    pub fn begin(&mut self, name: &str) -> Result<()> {
        self.end()?;
        match self.waiting.pop_front_if(|slot| slot.name == name) {
            Some(slot) => self.current = Some(slot),
            None => {
                let next = self.waiting.front().map_or("", |slot| &slot.name).to_owned();
                return Err(self.unwritable(Fault::Order { next }, name));
            }
        }
        Ok(())
    }

    /// Adds the next bytes of the tensor that was begun last.
    ///
    /// # Errors
    /// [`Error::Unwritable`] when they are more than its type and shape need; [`Error::Io`],
    /// [`Error::DiskFull`].
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let expected = self.current.as_ref().map_or(0, |slot| slot.n_bytes);
        match (&mut self.current, expected.checked_sub(bytes.len() as u64)) {
            (Some(slot), Some(left)) => slot.n_bytes = left,
            (slot, _) => {
                let name = slot.as_ref().map_or("", |slot| &slot.name).to_owned();
                return Err(self.unwritable(
                    Fault::ByteCount {
                        found: bytes.len() as u64,
                        expected,
                    },
                    &name,
                ));
            }
        }
        self.file.write(bytes)
    }

    /// Writes the whole data of the tensor `name`, which must be the next one.
    ///
    /// # Errors
    /// Those of [`begin`](Self::begin) and [`append`](Self::append).
    pub fn write_tensor(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.begin(name)?;
        self.append(bytes)
    }

    /// Completes the file and puts it in its place, where it replaces one that is there.
    ///
    /// # Errors
    /// [`Error::Unwritable`] when data is missing; [`Error::Io`], [`Error::DiskFull`].
    pub fn finish(mut self) -> Result<()> {
        self.end()?;
        if let Some(slot) = self.waiting.front() {
            let fault = Fault::ByteCount {
                found: 0,
                expected: slot.n_bytes,
            };
            return Err(self.unwritable(fault, &slot.name));
        }
        self.file.finish()
    }

    /// Ends the current tensor, if any.
    fn end(&mut self) -> Result<()> {
        let Some(slot) = self.current.take() else {
            return Ok(());
        };
        if slot.n_bytes > 0 {
            let fault = Fault::Missing { left: slot.n_bytes };
            return Err(self.unwritable(fault, &slot.name));
        }
        self.file.write_zeros(slot.padding)
    }

    fn unwritable(&self, fault: Fault, tensor: &str) -> Error {
        fault.unwritable(&self.file.target, Place::Tensor(tensor.to_owned()))
    }
}

/// A file that appears under its name when it is finished.
#[derive(Debug)]
struct PendingFile {
    target: PathBuf,
    temporary: PathBuf,
    /// `None` once finished.
    file: Option<BufWriter<File>>,
}

impl PendingFile {
    fn create(target: &Path) -> Result<PendingFile> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let mut name = target.file_name().unwrap_or_default().to_owned();
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        name.push(format!(".{}-{count}.partial", std::process::id()));
        let temporary = target.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|source| failed("create", target, source))?;
        let file = Some(BufWriter::with_capacity(BUFFER_BYTES, file));
        Ok(PendingFile {
            target: target.to_owned(),
            temporary,
            file,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.file {
            Some(file) => file
                .write_all(bytes)
                .map_err(|source| failed("write", &self.target, source)),
            None => Ok(()),
        }
    }

    fn write_zeros(&mut self, n: u64) -> Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut left = n;
        while left > 0 {
            let piece = left.min(ZEROS.len() as u64);
            self.write(&ZEROS[..piece as usize])?;
            left -= piece;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        let placed = file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.target));
        placed.map_err(|source| {
            self.remove();
            failed("write", &self.target, source)
        })
    }

    fn remove(&self) {
        // Nothing more can be done about a file that cannot be removed.
        let _ = fs::remove_file(&self.temporary);
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // Not flushed: what is in the buffer belongs to a file that is removed.
            drop(file.into_parts());
            self.remove();
        }
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> Error {
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::DiskFull {
            path: path.to_owned(),
        },
        _ => Error::Io {
            action,
            path: path.to_owned(),
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str, n_bytes: u64) -> Slot {
        Slot {
            name: name.to_owned(),
            n_bytes,
            padding: 2,
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn the_file_appears_when_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        fs::write(&path, "old").unwrap();
        let mut writer = TensorWriter::create(&path, b"head", vec![slot("a", 3), slot("b", 0)]).unwrap();
        writer.begin("a").unwrap();
        writer.append(b"x").unwrap();
        writer.append(b"yz").unwrap();
        writer.write_tensor("b", b"").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        writer.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"headxyz\0\0\0\0");
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn nothing_is_left_of_an_unfinished_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let mut writer = TensorWriter::create(&path, b"head", vec![slot("a", 3)]).unwrap();
        writer.write_tensor("a", b"xyz").unwrap();
        assert_eq!(names(dir.path()).len(), 1);
        drop(writer);
        assert!(names(dir.path()).is_empty());
        let writer = TensorWriter::create(&path, b"head", vec![slot("a", 3)]).unwrap();
        let error = writer.finish().unwrap_err().to_string();
        assert!(
            error.contains("tensor `a`: the data has 0 bytes, shape and type need 3"),
            "{error}"
        );
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn order_and_lengths_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let open = || TensorWriter::create(&path, b"", vec![slot("a", 3), slot("b", 1)]).unwrap();
        let error = open().begin("b").unwrap_err().to_string();
        assert!(
            error.contains("tensor `b`: the data is out of order, next is that of tensor `a`"),
            "{error}"
        );
        let error = open().append(b"x").unwrap_err().to_string();
        assert!(
            error.contains("tensor ``: the data has 1 bytes, shape and type need 0"),
            "{error}"
        );
        let error = open().write_tensor("a", b"wxyz").unwrap_err().to_string();
        assert!(
            error.contains("tensor `a`: the data has 4 bytes, shape and type need 3"),
            "{error}"
        );
        let mut writer = open();
        writer.write_tensor("a", b"xy").unwrap();
        let error = writer.begin("b").unwrap_err().to_string();
        assert!(
            error.contains("tensor `a`: 1 bytes of data are missing"),
            "{error}"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_apart() {
        let error = failed("write", Path::new("out"), io::Error::from_raw_os_error(28));
        assert!(error.to_string().starts_with("the disk of `out` is full"));
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let error = TensorWriter::create(Path::new("no/such/folder/out"), b"", Vec::new()).unwrap_err();
        assert!(matches!(error, Error::Io { action: "create", .. }));
    }
}
