//! A file that is still arriving: the bytes so far and a small state that says which ranges are there.
//!
//! The state is written after the bytes it speaks of were flushed, so that after `kill -9` or a power
//! cut it never promises bytes that are not on disk. It also names the remote file (digest or ETag,
//! and size): if that changed meanwhile, the pull begins anew.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fs::{make_parent, read_limited, remove_if_there, write_atomic};

/// A state file larger than this (bytes) is damaged: 1 TB in pieces of 64 MiB needs 0.5 MB.
const MAX_STATE_BYTES: u64 = 4 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// Digest or ETag of the remote file.
    remote: String,
    size: u64,
    /// Half-open ranges that are on disk, ascending, apart from each other.
    done: Vec<(u64, u64)>,
    /// SHA-256 of the whole file, once it was computed and found right.
    verified: Option<String>,
}

/// An unfinished file with its state.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
    state: State,
    unsaved: u64,
}

impl Partial {
    /// Opens what an earlier pull left if it belongs to the same remote file, else begins anew.
    ///
    /// Without a `remote` identity nothing can be resumed safely, so it begins anew too.
    pub(crate) fn open(path: &Path, remote: Option<&str>, size: u64) -> Result<Self> {
        make_parent(path)?;
        let remote = remote.unwrap_or_default().to_owned();
        let state =
            read_state(path).filter(|old| !remote.is_empty() && old.remote == remote && old.size == size);
        let fresh = state.is_none();
        if fresh {
            // The old state must be gone before the bytes it speaks of.
            remove_if_there(&state_path(path))?;
        }
        let failed = |e| Error::io("write", path, e);
        let file = File::options()
            .create(true)
            .write(true)
            .truncate(fresh)
            .open(path)
            .map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut state = state.unwrap_or(State {
            remote,
            size,
            done: Vec::new(),
            verified: None,
        });
        let sound = state
            .done
            .iter()
            .all(|&(start, end)| start < end && end <= size.min(length))
            && state.done.windows(2).all(|pair| pair[0].1 < pair[1].0);
        if !sound {
            state.done.clear();
            state.verified = None;
        }
        Ok(Partial {
            path: path.to_owned(),
            file,
            state,
            unsaved: 0,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are there.
    pub(crate) fn done_bytes(&self) -> u64 {
        self.state.done.iter().map(|(start, end)| end - start).sum()
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.done_bytes() == self.state.size
    }

    /// The digest, if the whole file was verified by an earlier pull.
    pub(crate) fn verified(&self) -> Option<&str> {
        self.state.verified.as_deref().filter(|_| self.is_complete())
    }

    /// What is missing, ascending.
    pub(crate) fn missing(&self) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = 0;
        for &(start, end) in self
            .state
            .done
            .iter()
            .chain([&(self.state.size, self.state.size)])
        {
            if at < start {
                gaps.push(at..start);
            }
            at = end;
        }
        gaps
    }

    /// Writes bytes at their place, as far as they are missing; they count after the next [`Partial::save`].
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        debug_assert!(
            end <= self.state.size,
            "a worker never sends more than it was asked for"
        );
        for gap in self.missing() {
            let (from, to) = (gap.start.max(offset), gap.end.min(end));
            if from < to {
                self.put(from, &bytes[(from - offset) as usize..(to - offset) as usize])?;
            }
        }
        self.merge();
        Ok(())
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let put = self
            .file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.write_all(bytes));
        put.map_err(|e| Error::io("write", &self.path, e))?;
        let n = bytes.len() as u64;
        self.state.done.push((offset, offset + n));
        self.unsaved += n;
        Ok(())
    }

    /// Bytes that a crash would lose.
    pub(crate) fn unsaved_bytes(&self) -> u64 {
        self.unsaved
    }

    /// Flushes the bytes, then the state.
    pub(crate) fn save(&mut self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|e| Error::io("flush", &self.path, e))?;
        self.unsaved = 0;
        self.save_state()
    }

    /// Remembers that the whole file was read and found right.
    pub(crate) fn set_verified(&mut self, sha256: &str) -> Result<()> {
        self.state.verified = Some(sha256.to_owned());
        self.save_state()
    }

    /// Forgets everything: the bytes are wrong.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.state.done.clear();
        self.state.verified = None;
        self.unsaved = 0;
        remove_if_there(&state_path(&self.path))?;
        self.file
            .set_len(0)
            .map_err(|e| Error::io("empty", &self.path, e))
    }

    fn save_state(&self) -> Result<()> {
        let path = state_path(&self.path);
        let text = serde_json::to_vec(&self.state).map_err(|e| Error::io("write", &path, e.into()))?;
        write_atomic(&path, &text)
    }

    fn merge(&mut self) {
        self.state.done.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.state.done.len());
        for &(start, end) in &self.state.done {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        self.state.done = merged;
    }
}

fn read_state(part: &Path) -> Option<State> {
    let bytes = read_limited(&state_path(part), MAX_STATE_BYTES).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn state_path(part: &Path) -> PathBuf {
    let mut name = part.as_os_str().to_owned();
    name.push(".json");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_survive_and_merge() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/x.part");
        let mut partial = Partial::open(&path, Some("abc"), 100).unwrap();
        assert_eq!(partial.missing().len(), 1);
        partial.write(40, &[1; 20]).unwrap();
        partial.write(0, &[2; 10]).unwrap();
        partial.write(10, &[2; 10]).unwrap();
        partial.save().unwrap();
        partial.write(90, &[3; 10]).unwrap(); // never saved: as if killed here
        drop(partial);

        let partial = Partial::open(&path, Some("abc"), 100).unwrap();
        assert_eq!(partial.done_bytes(), 40);
        assert_eq!(partial.missing(), [20..40, 60..100]);
        assert!(!partial.is_complete());
    }

    #[test]
    fn what_is_there_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.part");
        let mut partial = Partial::open(&path, Some("abc"), 10).unwrap();
        partial.write(2, &[1; 2]).unwrap();
        partial.write(6, &[1; 2]).unwrap();
        partial.write(0, &[2; 9]).unwrap();
        assert_eq!(partial.done_bytes(), 9);
        assert_eq!(partial.missing().first(), Some(&(9..10)));
        partial.write(1, &[3; 9]).unwrap();
        assert!(partial.is_complete());
        assert_eq!(std::fs::read(&path).unwrap(), [2, 2, 1, 1, 2, 2, 1, 1, 2, 3]);
    }

    #[test]
    fn another_remote_file_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.part");
        let begin = |remote, size| {
            let mut partial = Partial::open(&path, Some("abc"), 4).unwrap();
            partial.write(0, &[1; 4]).unwrap();
            partial.save().unwrap();
            Partial::open(&path, remote, size).unwrap().done_bytes()
        };
        assert_eq!(begin(Some("abc"), 4), 4);
        assert_eq!(begin(Some("other"), 4), 0);
        assert_eq!(begin(Some("abc"), 5), 0);
        assert_eq!(begin(None, 4), 0);
    }

    #[test]
    fn a_state_that_lies_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.part");
        let cases = [
            "{\"remote\":\"abc\",\"size\":100,\"done\":[[0,50]],\"verified\":null}", // the file is shorter
            "{\"remote\":\"abc\",\"size\":100,\"done\":[[9,3]],\"verified\":null}",
            "{\"remote\":\"abc\",\"size\":100,\"done\":[[0,4],[2,6]],\"verified\":null}",
            "{\"remote\":\"abc\",\"size\":100,\"done\":[[0,18446744073709551615]],\"verified\":\"x\"}",
            "{\"remote\":",
        ];
        for text in cases {
            std::fs::write(&path, [0; 10]).unwrap();
            std::fs::write(state_path(&path), text).unwrap();
            let partial = Partial::open(&path, Some("abc"), 100).unwrap();
            assert_eq!((partial.done_bytes(), partial.verified()), (0, None), "{text}");
        }
    }
}
