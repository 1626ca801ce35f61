//! Lines that survive the process: what happened since the database last heard of it.
//!
//! A line is in the system's hands when [`Journal::append`] returns, so that killing the process at any moment loses
//! none. (A power cut may lose what the system had not written; the database is synced with every group.) Lines are in
//! segments; a segment is removed when the database has taken it, and read again at the next start if that did not
//! happen. The last line of a segment may be torn: its request was then still under way, or not yet begun. A segment with
//! any other line that cannot be read, such as a newer version's, is never removed: it is kept under another name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Error;
use crate::row::Entry;

/// Longest line that is read back, in bytes; names in it have limits of their own.
const MAX_LINE: u64 = 1 << 20;

/// How the names of segments end.
const LINES: &str = "jsonl";
/// How the names of those end that are kept for lines that nobody here could read.
const UNREAD: &str = "unread";

/// Most lines that wait for the database in memory before requests are refused.
const MAX_WAITING: usize = 100_000;

/// The journal of a ledger, in a folder of its own.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    segment: u64,
    file: File,
    entries: Vec<Entry>,
    line: Vec<u8>,
    /// The last line may be there in part.
    is_torn: bool,
    /// Held as long as the journal is: nobody else writes to this ledger.
    _lock: File,
}

/// Lines that the database is to take.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) entries: Vec<Entry>,
    path: PathBuf,
    /// Lines that could not be read.
    n_unread: u64,
}

impl Segment {
    /// The database has what could be read of it. What could not may be money that nobody was billed for.
    pub(crate) fn retire(&self) -> Result<(), Error> {
        let kept = self.path.with_extension(UNREAD);
        let retired = match self.n_unread {
            0 => fs::remove_file(&self.path),
            _ => fs::rename(&self.path, &kept).inspect(|()| tell_unread(&kept)),
        };
        match retired {
            // Somebody was faster. Those that come after it must not wait for it.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tracing::error!(
                    path = %self.path.display(),
                    "this file of the ledger's journal was removed while the gateway ran; the database has what could be \
                     read of it: leave the journal's folder to the gateway"
                );
                Ok(())
            }
            retired => retired.map_err(|source| failed(&self.path, source)),
        }
    }
}

fn tell_unread(kept: &Path) {
    tracing::error!(
        path = %kept.display(),
        "this file has lines of the ledger's journal that this carat cannot read, so that their requests may not be \
         billed; it is kept: if a newer carat wrote it, have its name end in `.{LINES}` and start that one"
    );
}

impl Journal {
    /// Opens the journal, and gives what an earlier process left.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Vec<Segment>), Error> {
        fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
        let lock = locked(folder)?;
        let numbers = segments(folder, LINES)?;
        let left: Vec<Segment> = numbers
            .iter()
            .map(|n| read(&path_of(folder, *n, LINES)))
            .collect::<Result<_, _>>()?;
        let unread = segments(folder, UNREAD)?;
        unread
            .iter()
            .for_each(|n| tell_unread(&path_of(folder, *n, UNREAD)));
        // Above those that are kept too: nothing may take their place.
        let last = numbers.last().max(unread.last());
        let segment = last.map_or(1, |last| last.saturating_add(1));
        let state = State {
            segment,
            file: create(&path_of(folder, segment, LINES))?,
            entries: Vec::new(),
            line: Vec::new(),
            is_torn: false,
            _lock: lock,
        };
        let journal = Self {
            folder: folder.to_path_buf(),
            state: Mutex::new(state),
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
        // What waits in memory is written down again by nobody, so that it must get to the database all the same.
        if !self.folder.exists() {
            tracing::error!(
                folder = %self.folder.display(),
                "the folder of the ledger's journal was removed while the gateway ran; it is made anew, and what it held \
                 goes to the database: leave it to the gateway"
            );
            fs::create_dir_all(&self.folder).map_err(|source| failed(&self.folder, source))?;
            state._lock = locked(&self.folder)?;
        }
        let file = create(&path_of(&self.folder, next, LINES))?;
        let path = path_of(&self.folder, state.segment, LINES);
        state.segment = next;
        state.file = file;
        state.is_torn = false;
        let entries = std::mem::take(&mut state.entries);
        Ok(Some(Segment {
            entries,
            path,
            n_unread: 0,
        }))
    }
}

/// The file that says that a journal is in use.
fn locked(folder: &Path) -> Result<File, Error> {
    let path = folder.join("lock");
    let lock = OpenOptions::new().create(true).append(true).open(&path);
    let lock = lock.map_err(|source| failed(&path, source))?;
    lock.try_lock().map_err(|error| not_locked(path, error))?;
    Ok(lock)
}

fn failed(path: &Path, source: std::io::Error) -> Error {
    Error::File {
        path: path.to_path_buf(),
        source,
    }
}

fn not_locked(path: PathBuf, error: TryLockError) -> Error {
    match error {
        TryLockError::WouldBlock => Error::InUse { path },
        TryLockError::Error(source) => Error::File { path, source },
    }
}

fn path_of(folder: &Path, n: u64, ending: &str) -> PathBuf {
    folder.join(format!("{n:012}.{ending}"))
}

fn create(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new().create_new(true).append(true).open(path);
    file.map_err(|source| failed(path, source))
}

/// Numbers of the files whose names end so, ascending.
fn segments(folder: &Path, ending: &str) -> Result<Vec<u64>, Error> {
    let entries = fs::read_dir(folder).map_err(|source| failed(folder, source))?;
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(|source| failed(folder, source))?.file_name();
        numbers.extend(
            name.to_str()
                .and_then(|name| name.strip_suffix(ending)?.strip_suffix('.')?.parse::<u64>().ok()),
        );
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn read(path: &Path) -> Result<Segment, Error> {
    let file = File::open(path).map_err(|source| failed(path, source))?;
    let mut reader = BufReader::new(file);
    let (mut entries, mut line, mut n_unread) = (Vec::new(), Vec::new(), 0);
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
            // Nobody was told that this one is written down.
            Err(error) if !line.ends_with(b"\n") && (n as u64) < MAX_LINE => {
                tracing::warn!(path = %path.display(), %error, "a torn line of the journal is left out");
            }
            Err(error) => {
                if n_unread == 0 {
                    tracing::warn!(path = %path.display(), %error, "a line of the journal cannot be read");
                }
                n_unread += 1;
            }
        }
    }
    Ok(Segment {
        entries,
        path: path.to_path_buf(),
        n_unread,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Micros;
    use crate::row::{Open, Row};

    fn entry(id: u8) -> Entry {
        let open = Open {
            id: [id; 16],
            key: 1,
            team: None,
            user: None,
            project: None,
            route: "chat".into(),
            held: Micros(1),
            tokens: 1,
            started_ms: 1,
        };
        Entry::Settle(open, Row::nothing(0))
    }

    /// A journal whose process was killed, with something more at the end of its segment; gives the segment's path.
    fn left_behind(folder: &Path, more: &str) -> PathBuf {
        let (journal, _) = Journal::open(folder).unwrap();
        journal.append(entry(1)).unwrap();
        let path = path_of(folder, journal.state().segment, LINES);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(more.as_bytes()).unwrap();
        path
    }

    #[test]
    fn a_line_that_cannot_be_read_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        // A newer version's line, one of this version, and one whose writing was cut off.
        let known = serde_json::to_string(&entry(2)).unwrap();
        let path = left_behind(
            folder.path(),
            &format!("{{\"Refund\":[7]}}\n{known}\n{{\"Settle\":[{{"),
        );
        let text = fs::read(&path).unwrap();
        let (journal, left) = Journal::open(folder.path()).unwrap();
        assert_eq!((left.len(), left[0].entries.len()), (1, 2));
        left[0].retire().unwrap();
        assert!(!path.exists());
        let kept = path.with_extension(UNREAD);
        assert_eq!(fs::read(&kept).unwrap(), text);
        // Nothing takes its place, even where it is all there is.
        let number = journal.state().segment;
        fs::remove_file(path_of(folder.path(), number, LINES)).unwrap();
        drop(journal);
        let (journal, left) = Journal::open(folder.path()).unwrap();
        assert!(left.is_empty() && kept.exists());
        assert!(journal.state().segment > 1);
        drop(journal);
        // Whoever can read it gives it its name back.
        fs::rename(&kept, &path).unwrap();
        let (_journal, left) = Journal::open(folder.path()).unwrap();
        assert_eq!(left[0].entries.len(), 2);
    }

    /// Windows lets nobody remove a file that is open.
    #[test]
    #[cfg(unix)]
    fn a_journal_that_is_removed_while_it_is_written_loses_nothing_that_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (journal, _) = Journal::open(&path).unwrap();
        // One file, which the database has not taken yet.
        journal.append(entry(1)).unwrap();
        fs::remove_file(path_of(&path, journal.state().segment, LINES)).unwrap();
        let segment = journal.rotate().unwrap().unwrap();
        assert_eq!(segment.entries.len(), 1);
        segment.retire().unwrap();
        // All of it.
        journal.append(entry(2)).unwrap();
        fs::remove_dir_all(&path).unwrap();
        let segment = journal.rotate().unwrap().unwrap();
        assert_eq!(segment.entries.len(), 1);
        segment.retire().unwrap();
        journal.append(entry(3)).unwrap();
        assert!(matches!(Journal::open(&path), Err(Error::InUse { .. })));
        drop(journal);
        let (_journal, left) = Journal::open(&path).unwrap();
        let n_left: usize = left.iter().map(|segment| segment.entries.len()).sum();
        assert_eq!(n_left, 1, "what came after it is there");
    }

    #[test]
    fn a_torn_line_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = left_behind(folder.path(), "{\"Settle\":[{");
        let (_journal, left) = Journal::open(folder.path()).unwrap();
        assert_eq!((left.len(), left[0].entries.len()), (1, 1));
        left[0].retire().unwrap();
        assert!(!path.exists() && segments(folder.path(), UNREAD).unwrap().is_empty());
    }

    #[test]
    fn a_lock_that_fails_is_not_another_gateway() {
        let folder = tempfile::tempdir().unwrap();
        let _first = Journal::open(folder.path()).unwrap();
        assert!(matches!(Journal::open(folder.path()), Err(Error::InUse { .. })));
        let unsupported = TryLockError::Error(std::io::ErrorKind::Unsupported.into());
        let error = not_locked("j/lock".into(), unsupported);
        assert!(matches!(error, Error::File { .. }), "{error:?}");
    }
}
