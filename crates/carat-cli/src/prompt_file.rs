//! The file of `--prompt-cache`: what a model has read of a prompt, kept from one run of carat to the next.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use carat_model::{CacheFiles, Checkpoint, KvCache, Model};

use crate::failure::Hinted;

/// Read and written at once.
pub(crate) const BUFFER: usize = 1 << 20;

/// A file that need not be there yet, and the model that it belongs to.
pub(crate) struct PromptFile {
    path: PathBuf,
    files: CacheFiles,
}

impl PromptFile {
    pub(crate) fn new(path: &Path, checkpoint: &Checkpoint, model: &Model) -> Self {
        Self {
            path: path.to_owned(),
            files: CacheFiles::new(checkpoint, model),
        }
    }

    /// The tokens and the cache in the file; `None` when there is no file.
    pub(crate) fn read(&self, n_max: usize) -> Result<Option<(Vec<u32>, KvCache)>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("`{}` cannot be opened", self.path.display()));
            }
        };
        let mut from = BufReader::with_capacity(BUFFER, file);
        match self.files.read(n_max, &mut from) {
            Ok(found) => Ok(Some(found)),
            Err(error) => {
                let message = format!("`{}`: {error}", self.path.display());
                Err(Hinted::new(message, "give --prompt-cache another file, or delete this one").into())
            }
        }
    }

    /// Replaces the file, or leaves it as it was.
    pub(crate) fn write(&self, tokens: &[u32], cache: &KvCache) -> io::Result<()> {
        if let Some(own) = self.path.file_name() {
            remove_leftovers(folder_of(&self.path), |name| name == own);
        }
        replace(&self.path, |to| self.files.write(tokens, cache, to))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// How the names of files end that are being written.
const PART: &str = ".part";

/// A file that is being written and has not grown for so long was left by a run that was killed.
const LEFT_OVER: Duration = Duration::from_secs(3600);
/// Random letters and digits in such a name.
const N_RANDOM: usize = 6;

/// Removes what killed runs have left of files in `folder` that [`replace`] was to put in place, those whose names `is_own`.
/// Others may use such names as well, so nothing else is touched.
pub(crate) fn remove_leftovers(folder: &Path, is_own: impl Fn(&str) -> bool) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_left = name.to_str().is_some_and(|name| is_part_of(name, &is_own));
        let modified = entry.metadata().and_then(|about| about.modified());
        let age = modified.ok().and_then(|modified| modified.elapsed().ok());
        if is_left && age.is_some_and(|age| age > LEFT_OVER) {
            let _gone = fs::remove_file(entry.path());
        }
    }
}

/// Whether a file is called as one on its way to a name that `is_own`. Names of earlier versions had nothing random.
fn is_part_of(name: &str, is_own: impl Fn(&str) -> bool) -> bool {
    let Some(name) = name.strip_suffix(PART) else {
        return false;
    };
    let cut = name.split_at_checked(name.len().saturating_sub(N_RANDOM));
    let is_random = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_own(name) || cut.is_some_and(|(target, random)| is_random(random) && is_own(target))
}

/// The folder of a path.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Puts a file that `write` fills in the place of the one at `path`; if that fails, the old one stays. Until then it has a
/// name of its own, so that two who write at once do not write into each other's, and nobody else may read it: it holds
/// somebody's words.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    write_and_rename(path, write).map_err(without_path)
}

/// What the system said of the unfinished file, without its name, which nobody knows.
fn without_path(error: io::Error) -> io::Error {
    let told = error.to_string();
    match told.split_once(" at path \"") {
        Some((said, _)) => io::Error::new(error.kind(), said),
        None => error,
    }
}

fn write_and_rename(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default();
    // Removed again if it does not get its place: what is left of a full disk is not to stay full.
    let part = tempfile::Builder::new()
        .prefix(name)
        .suffix(PART)
        .rand_bytes(N_RANDOM)
        .tempfile_in(folder_of(path))?;
    let mut to = BufWriter::with_capacity(BUFFER, part);
    write(&mut to)?;
    let part = to.into_inner().map_err(io::IntoInnerError::into_error)?;
    part.as_file().sync_all()?;
    part.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_does_not_name_the_unfinished_file() {
        let home = tempfile::tempdir().unwrap();
        let error = replace(&home.path().join("no/such/folder.kv"), |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!error.to_string().contains(PART), "{error}");
    }

    #[test]
    fn what_killed_runs_left_is_removed_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * LEFT_OVER;
        let left = ["novel.kvX1y2Z3.part", "novel.kv.part"];
        let others = [
            "novel.kv",
            "film.mp4.part",
            "novel.kvX1y2Z.part",
            "novel.kvX-y2Z3.part",
            "other.kvX1y2Z3.part",
            ".part",
        ];
        for name in left.iter().chain(&others) {
            let file = File::create(home.path().join(name)).unwrap();
            file.set_modified(long_ago).unwrap();
        }
        let new = home.path().join("novel.kvAbCdEf.part");
        fs::write(&new, "somebody may be writing it").unwrap();
        remove_leftovers(home.path(), |name| name == "novel.kv");
        let is_there = |name: &&str| home.path().join(name).exists();
        assert!(new.exists() && others.iter().all(is_there) && !left.iter().any(is_there));
    }

    #[test]
    fn two_who_write_at_once_leave_a_whole_file_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("novel.kv");
        replace(&path, |outer| {
            outer.write_all(&[1; 10])?;
            replace(&path, |inner| inner.write_all(&[2; 30]))?;
            assert_eq!(fs::read(&path)?, [2; 30]);
            outer.write_all(&[1; 10])
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), [1; 20]);
        let failed = replace(&path, |to| {
            to.write_all(&[3; 5])?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), [1; 20]);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }
}
