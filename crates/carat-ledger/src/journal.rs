//! Lines that survive the process: what happened since the database last heard of it.
//!
//! A line is in the system's hands when [`Journal::append`] returns, so that killing the process at any moment loses
//! none. (A power cut may lose what the system had not written; the database is synced with every group.) Lines are in
//! segments; a segment is removed when the database has taken it, and read again at the next start if that did not
//! happen. The last line of a segment may be torn: its request was then still under way, or not yet begun.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Error;
use crate::row::Entry;

/// Longest line that is read back, in bytes; names in it have limits of their own.
const MAX_LINE: u64 = 1 << 20;

/// Most lines that wait for the database in memory before requests are refused.
const MAX_WAITING: usize = 100_000;

/// The journal of a ledger, in a folder of its own.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
    state: Mutex<State>,
    /// Held as long as the journal is: nobody else writes to this ledger.
    _lock: File,
}

#[derive(Debug)]
struct State {
    segment: u64,
    file: File,
    entries: Vec<Entry>,
    line: Vec<u8>,
    /// The last line may be there in part.
    is_torn: bool,
}

/// Lines that the database is to take.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) entries: Vec<Entry>,
    path: PathBuf,
}

impl Segment {
    /// The database has it.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        fs::remove_file(&self.path).map_err(|source| failed(&self.path, source))
    }
}

impl Journal {
    /// Opens the journal, and gives what an earlier process left.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Vec<Segment>), Error> {
        fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
        let lock_path = folder.join("lock");
        let lock = OpenOptions::new().create(true).append(true).open(&lock_path);
        let lock = lock.map_err(|source| failed(&lock_path, source))?;
        lock.try_lock().map_err(|_| Error::InUse { path: lock_path })?;
        let mut numbers = segments(folder)?;
        numbers.sort_unstable();
        let left: Vec<Segment> = numbers
            .iter()
            .map(|n| read(&path_of(folder, *n)))
            .collect::<Result<_, _>>()?;
        let segment = numbers.last().map_or(1, |last| last + 1);
        let state = State {
            segment,
            file: create(&path_of(folder, segment))?,
            entries: Vec::new(),
            line: Vec::new(),
            is_torn: false,
        };
        let journal = Self {
            folder: folder.to_path_buf(),
            state: Mutex::new(state),
            _lock: lock,
        };
        Ok((journal, left))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line.
    pub(crate) fn append(&self, entry: Entry) -> std::io::Result<()> {
        let mut guard = self.state();
        let State {
            file,
            entries,
            line,
            is_torn,
            ..
        } = &mut *guard;
        line.clear();
        // Else this one would be lost with the one that it follows.
        if *is_torn {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut *line, &entry)?;
        line.push(b'\n');
        // One call, so that a line is there or not.
        let written = file.write_all(line);
        *is_torn = written.is_err();
        // What cannot be written is kept in memory all the same: the database may still take it.
        entries.push(entry);
        written
    }

    /// Whether so much waits for the database that no more may begin.
    pub(crate) fn is_full(&self) -> bool {
        self.state().entries.len() >= MAX_WAITING
    }

    /// Begins a new segment, and gives the one before, if there is anything in it.
    pub(crate) fn rotate(&self) -> Result<Option<Segment>, Error> {
        let mut state = self.state();
        if state.entries.is_empty() {
            return Ok(None);
        }
        let next = state.segment + 1;
        let file = create(&path_of(&self.folder, next))?;
        let path = path_of(&self.folder, state.segment);
        state.segment = next;
        state.file = file;
        state.is_torn = false;
        let entries = std::mem::take(&mut state.entries);
        Ok(Some(Segment { entries, path }))
    }
}

fn failed(path: &Path, source: std::io::Error) -> Error {
    Error::File {
        path: path.to_path_buf(),
        source,
    }
}

fn path_of(folder: &Path, n: u64) -> PathBuf {
    folder.join(format!("{n:012}.jsonl"))
}

fn create(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new().create_new(true).append(true).open(path);
    file.map_err(|source| failed(path, source))
}

fn segments(folder: &Path) -> Result<Vec<u64>, Error> {
    let entries = fs::read_dir(folder).map_err(|source| failed(folder, source))?;
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(|source| failed(folder, source))?.file_name();
        numbers.extend(
            name.to_str()
                .and_then(|name| name.strip_suffix(".jsonl")?.parse::<u64>().ok()),
        );
    }
    Ok(numbers)
}

fn read(path: &Path) -> Result<Segment, Error> {
    let file = File::open(path).map_err(|source| failed(path, source))?;
    let mut reader = BufReader::new(file);
    let (mut entries, mut line) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        let mut limited = std::io::Read::take(&mut reader, MAX_LINE);
        let n = limited
            .read_until(b'\n', &mut line)
            .map_err(|source| failed(path, source))?;
        if n == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice(&line) {
            Ok(entry) => entries.push(entry),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a torn line of the journal is left out")
            }
        }
    }
    Ok(Segment {
        entries,
        path: path.to_path_buf(),
    })
}
