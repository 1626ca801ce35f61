//! The folder of `--cache-dir`: beginnings of prompts that outlive memory and the server.
//!
//! A file is one beginning with its cache, named after the model's [`CacheFiles::owner_id`] and a hash of the tokens. The
//! tokens of all files of this model are in memory, so that looking for a beginning reads nothing. Files are written by a
//! thread of their own; those used longest ago go when the folder is full. Files of other models count, and are left
//! alone otherwise; what a killed server had not finished is removed after an hour. Whatever is wrong with a file, it is as if it were not there.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::{BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use anyhow::{Context, Result};
use carat_engine::PrefixStore;
use carat_model::{CacheFiles, KvCache, ROLLBACK, SequenceCache};

use crate::prompt_file;

/// Beginnings that wait to be written; more are forgotten, so that memory does not fill with them.
const QUEUE: usize = 2;
/// Files that are known at most, those used latest.
const MAX_FILES: usize = 1024;
const EXTENSION: &str = "kv";

/// Beginnings of one model in a folder. See the module's head.
pub(super) struct PrefixFolder {
    known: Arc<Known>,
    /// `None` only while being dropped.
    to_writer: Option<SyncSender<(Vec<u32>, KvCache)>>,
    writer: Option<JoinHandle<()>>,
}

/// What both threads know.
struct Known {
    folder: PathBuf,
    files: CacheFiles,
    /// Tokens that a cache has room for.
    n_max: usize,
    /// Bytes of the folder at most.
    max_bytes: u64,
    entries: Mutex<Vec<Entry>>,
}

struct Entry {
    tokens: Vec<u32>,
    path: PathBuf,
    /// Its cache has been found unable to go back to fewer tokens.
    n_least: usize,
}

impl Entry {
    fn new(tokens: Vec<u32>, path: PathBuf) -> Self {
        Self {
            tokens,
            path,
            n_least: 1,
        }
    }
}

impl PrefixFolder {
    /// Opens `folder`, which is made if it is not there.
    pub(super) fn open(folder: &Path, files: CacheFiles, n_max: usize, max_bytes: u64) -> Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("the folder `{}` for caches cannot be made", folder.display()))?;
        let known = Arc::new(Known {
            folder: folder.to_owned(),
            files,
            n_max,
            max_bytes,
            entries: Mutex::default(),
        });
        prompt_file::remove_leftovers(folder, is_name);
        known.find_files();
        let (to_writer, beginnings) = sync_channel(QUEUE);
        let shared = Arc::clone(&known);
        let writer = std::thread::Builder::new()
            .name("carat-cache".to_owned())
            .spawn(move || write_all(&shared, &beginnings))
            .context("there is no thread that could write caches")?;
        Ok(Self {
            known,
            to_writer: Some(to_writer),
            writer: Some(writer),
        })
    }
}

impl PrefixStore<KvCache> for PrefixFolder {
    fn n_common(&mut self, tokens: &[u32]) -> usize {
        best(&self.known.entries(), tokens).map_or(0, |(_, n)| n)
    }

    fn load(&mut self, tokens: &[u32]) -> Option<KvCache> {
        let (path, n) = {
            let entries = self.known.entries();
            let (i, n) = best(&entries, tokens)?;
            (entries[i].path.clone(), n)
        };
        let mut cache = match self.known.read(&path) {
            Ok((read, cache)) if read.get(..n) == tokens.get(..n) => cache,
            Err(Unread::ForNow(error)) => {
                tracing::warn!(%error, path = %path.display(), "a cache could not be read");
                return None;
            }
            Ok(_) | Err(Unread::ForEver) => {
                self.known.forget(&path);
                return None;
            }
        };
        if cache.truncate(n) {
            return Some(cache);
        }
        // It had held more tokens once, and its local layers cannot go back so far. Reading it again would not change that.
        let mut entries = self.known.entries();
        for entry in entries.iter_mut().filter(|entry| entry.path == path) {
            entry.n_least = n + 1;
        }
        None
    }

    fn keep(&mut self, tokens: Vec<u32>, cache: KvCache, is_end: bool) {
        let is_known = self.known.entries().iter().any(|entry| entry.tokens == tokens);
        let Some(to_writer) = self.to_writer.as_ref().filter(|_| !is_known) else {
            return;
        };
        // A writer that has gone, or has too much to do, loses nothing but time.
        if is_end {
            let _sent = to_writer.send((tokens, cache));
        } else {
            let _sent = to_writer.try_send((tokens, cache));
        }
    }
}

impl Drop for PrefixFolder {
    fn drop(&mut self) {
        self.to_writer = None;
        if let Some(writer) = self.writer.take() {
            let _ended = writer.join();
        }
    }
}

/// The entry whose cache can serve the longest beginning of `tokens`, and how long that is.
fn best(entries: &[Entry], tokens: &[u32]) -> Option<(usize, usize)> {
    let common = |entry: &Entry| {
        entry
            .tokens
            .iter()
            .zip(tokens)
            .take_while(|(a, b)| a == b)
            .count()
    };
    let usable = entries.iter().enumerate().filter_map(|(i, entry)| {
        let n = common(entry);
        // Local layers can go back so far only.
        (n >= entry.n_least && entry.tokens.len() - n <= ROLLBACK).then_some((i, n))
    });
    usable.max_by_key(|(_, n)| *n)
}

/// Why a file gave no cache.
enum Unread {
    /// For want of memory, of open files, of a disk that answers.
    ForNow(anyhow::Error),
    /// It is damaged, or gone.
    ForEver,
}

/// Whether a file is called as [`Known::path_of`] calls them, those of other models too.
fn is_name(name: &str) -> bool {
    let is_number = |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let numbers = name
        .strip_suffix(EXTENSION)
        .and_then(|name| name.strip_suffix('.'));
    let both = numbers.and_then(|numbers| numbers.split_once('-'));
    both.is_some_and(|(owner, tokens)| is_number(owner) && is_number(tokens))
}

/// The writer's thread: until nobody can send any more.
fn write_all(known: &Known, beginnings: &Receiver<(Vec<u32>, KvCache)>) {
    for (tokens, cache) in beginnings {
        if let Err(error) = known.write(tokens, &cache) {
            let folder = known.folder.display();
            tracing::warn!(%error, %folder, "a cache could not be kept");
        }
    }
}

impl Known {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns what files of this model there are.
    fn find_files(&self) {
        let mut paths: Vec<_> = self
            .all_files()
            .into_iter()
            .filter(|(_, _, path)| self.is_own(path))
            .collect();
        paths.sort();
        for (_, _, path) in paths.into_iter().rev().take(MAX_FILES) {
            let tokens = File::open(&path).ok().and_then(|file| {
                let mut from = BufReader::new(file);
                self.files.read_tokens(self.n_max, &mut from).ok()
            });
            if let Some(tokens) = tokens {
                self.entries().push(Entry::new(tokens, path));
            }
        }
    }

    /// When each file of a cache in the folder was used last, its size and its path.
    fn all_files(&self) -> Vec<(SystemTime, u64, PathBuf)> {
        let Ok(folder) = fs::read_dir(&self.folder) else {
            return Vec::new();
        };
        let paths = folder.flatten().map(|entry| entry.path());
        let caches = paths.filter(|path| path.extension() == Some(OsStr::new(EXTENSION)));
        caches
            .filter_map(|path| {
                let about = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
                Some((
                    about.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                    about.len(),
                    path,
                ))
            })
            .collect()
    }

    fn is_own(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with(&format!("{:016x}-", self.files.owner_id()))
    }

    fn path_of(&self, tokens: &[u32]) -> PathBuf {
        let mut hash = DefaultHasher::new();
        tokens.hash(&mut hash);
        let name = format!(
            "{:016x}-{:016x}.{EXTENSION}",
            self.files.owner_id(),
            hash.finish()
        );
        self.folder.join(name)
    }

    fn read(&self, path: &Path) -> Result<(Vec<u32>, KvCache), Unread> {
        let file = File::open(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Unread::ForEver,
            _ => Unread::ForNow(error.into()),
        })?;
        // Whether it can be marked as used or not, it can be read.
        let _marked = file.set_modified(SystemTime::now());
        let mut from = BufReader::with_capacity(prompt_file::BUFFER, file);
        self.files
            .read(self.n_max, &mut from)
            .map_err(|error| match error {
                carat_model::Error::SavedCache { .. } => Unread::ForEver,
                other => Unread::ForNow(other.into()),
            })
    }

    fn write(&self, tokens: Vec<u32>, cache: &KvCache) -> std::io::Result<()> {
        let path = self.path_of(&tokens);
        prompt_file::replace(&path, |to| self.files.write(&tokens, cache, to))?;
        self.entries().push(Entry::new(tokens, path.clone()));
        self.make_room(&path);
        Ok(())
    }

    /// Removes those used longest ago, but for `newest`, until the folder is as small as it has to be.
    fn make_room(&self, newest: &Path) {
        let mut files = self.all_files();
        files.sort();
        let mut bytes: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in files {
            let is_one_too_many = self.is_own(&path) && self.entries().len() > MAX_FILES;
            if path != newest && (bytes > self.max_bytes || is_one_too_many) {
                self.forget(&path);
                bytes = bytes.saturating_sub(size);
            }
        }
        if bytes > self.max_bytes {
            self.forget(newest);
        }
    }

    fn forget(&self, path: &Path) {
        let _gone = fs::remove_file(path);
        self.entries().retain(|entry| entry.path != path);
    }
}

#[cfg(test)]
mod tests {
    use carat_model::{Checkpoint, LanguageModel, LoadOptions, LogitRows, Model, Segment};
    use carat_testkit::fixture;

    use super::*;

    struct Caches {
        model: Model,
        files: CacheFiles,
    }

    impl Caches {
        fn new() -> Self {
            let folder = fixture("gemma3-text");
            let checkpoint = Checkpoint::open(&folder).unwrap();
            let model = Model::from_checkpoint(&checkpoint, LoadOptions::default()).unwrap();
            let files = CacheFiles::new(&checkpoint, &model);
            Self { model, files }
        }

        fn of(&mut self, tokens: &[u32]) -> KvCache {
            let mut cache = self.model.new_cache(400).unwrap();
            let mut segment = [Segment {
                tokens,
                media: &[],
                cache: &mut cache,
                logits: LogitRows::None,
            }];
            self.model.forward(&mut segment, &mut Vec::new()).unwrap();
            cache
        }
    }

    fn tokens(n: usize, seed: usize) -> Vec<u32> {
        (0..n).map(|i| ((i * 131 + seed * 17) % 500) as u32).collect()
    }

    fn n_files(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_beginning_is_found_again_after_a_restart() {
        let home = tempfile::tempdir().unwrap();
        let mut caches = Caches::new();
        let open =
            |caches: &Caches| PrefixFolder::open(home.path(), caches.files.clone(), 400, 1 << 30).unwrap();
        let (first, second) = (tokens(200, 1), tokens(150, 2));
        let mut folder = open(&caches);
        assert_eq!(folder.n_common(&first), 0);
        for tokens in [&first, &second, &first] {
            let cache = caches.of(tokens);
            folder.keep(tokens.clone(), cache, true);
        }
        drop(folder);
        assert_eq!(n_files(home.path()), 2);
        #[cfg(unix)]
        for file in fs::read_dir(home.path()).unwrap() {
            let permissions = file.unwrap().metadata().unwrap().permissions();
            let mode = std::os::unix::fs::PermissionsExt::mode(&permissions);
            assert_eq!(mode & 0o077, 0, "prompts are nobody else's");
        }

        let mut folder = open(&caches);
        let mut longer = first.clone();
        longer.extend([7, 8, 9]);
        assert_eq!(folder.n_common(&longer), 200);
        assert_eq!(folder.load(&longer).map(|cache| cache.len()), Some(200));
        let mut other_end = second[..120].to_vec();
        other_end.push(499);
        assert_eq!(folder.n_common(&other_end), 120, "30 tokens can be taken back");
        assert_eq!(folder.load(&other_end).map(|cache| cache.len()), Some(120));
        assert_eq!(folder.n_common(&first[..50]), 0, "150 cannot");
    }

    #[test]
    fn damaged_files_are_as_if_they_were_not_there() {
        let home = tempfile::tempdir().unwrap();
        let mut caches = Caches::new();
        let all = tokens(100, 1);
        let cache = caches.of(&all);
        let mut folder = PrefixFolder::open(home.path(), caches.files.clone(), 400, 1 << 30).unwrap();
        folder.keep(all.clone(), cache, true);
        drop(folder);
        fs::write(home.path().join("note.kv"), "no cache").unwrap();
        let path = Known {
            folder: home.path().to_owned(),
            files: caches.files.clone(),
            n_max: 0,
            max_bytes: 0,
            entries: Mutex::default(),
        }
        .path_of(&all);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        let mut folder = PrefixFolder::open(home.path(), caches.files.clone(), 400, 1 << 30).unwrap();
        assert_eq!(folder.n_common(&all), 100);
        assert!(folder.load(&all).is_none());
        assert_eq!(folder.n_common(&all), 0);
        assert!(!path.exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_cannot_be_read_for_now_stays() {
        let home = tempfile::tempdir().unwrap();
        let mut caches = Caches::new();
        let all = tokens(100, 1);
        let cache = caches.of(&all);
        let open = || PrefixFolder::open(home.path(), caches.files.clone(), 400, 1 << 30).unwrap();
        let mut folder = open();
        folder.keep(all.clone(), cache, true);
        drop(folder);
        let mut folder = open();
        let path = folder.known.entries()[0].path.clone();
        // A link to itself is an error that is none of the file's.
        let aside = home.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        assert!(folder.load(&all).is_none());
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        assert_eq!(folder.load(&all).map(|cache| cache.len()), Some(100));
    }

    #[test]
    fn a_cache_that_cannot_go_back_is_not_read_twice() {
        let home = tempfile::tempdir().unwrap();
        let mut caches = Caches::new();
        let all = tokens(300, 1);
        let mut cache = caches.of(&all);
        // It has held 300, and its rings with it.
        let kept = 300 - ROLLBACK;
        assert!(cache.truncate(kept));
        let mut folder = PrefixFolder::open(home.path(), caches.files.clone(), 400, 1 << 30).unwrap();
        folder.keep(all[..kept].to_vec(), cache, true);
        drop(folder);
        let mut folder = PrefixFolder::open(home.path(), caches.files.clone(), 400, 1 << 30).unwrap();
        let mut other = all[..kept - ROLLBACK].to_vec();
        other.push(499);
        assert_eq!(folder.n_common(&other), kept - ROLLBACK);
        assert!(folder.load(&other).is_none());
        assert_eq!(folder.n_common(&other), 0);
        assert_eq!(
            folder.load(&all).map(|cache| cache.len()),
            Some(kept),
            "all of it still serves"
        );
    }

    #[test]
    fn names_of_caches_are_known_from_others() {
        let all = tokens(3, 1);
        let known = |folder: &Path, files: CacheFiles| Known {
            folder: folder.to_owned(),
            files,
            n_max: 0,
            max_bytes: 0,
            entries: Mutex::default(),
        };
        let path = known(Path::new(""), Caches::new().files).path_of(&all);
        assert!(is_name(path.to_str().unwrap()));
        for name in [
            "",
            "film.mp4",
            "0123456789abcdef-0123456789abcdef.kvx",
            "0123456789abcdeg-0123456789abcdef.kv",
        ] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn the_folder_stays_as_small_as_it_has_to_be() {
        let home = tempfile::tempdir().unwrap();
        let mut caches = Caches::new();
        let size = {
            let mut file = Vec::new();
            let (tokens, cache) = (tokens(100, 0), caches.of(&tokens(100, 0)));
            caches.files.write(&tokens, &cache, &mut file).unwrap();
            file.len() as u64
        };
        let mut folder =
            PrefixFolder::open(home.path(), caches.files.clone(), 400, 2 * size + size / 2).unwrap();
        for seed in 1..=5 {
            let tokens = tokens(100, seed);
            let cache = caches.of(&tokens);
            folder.keep(tokens, cache, true);
        }
        drop(folder);
        assert_eq!(n_files(home.path()), 2);
        let mut folder = PrefixFolder::open(home.path(), caches.files.clone(), 400, 1 << 30).unwrap();
        assert_eq!(folder.n_common(&tokens(100, 5)), 100, "the newest is there");
    }
}
