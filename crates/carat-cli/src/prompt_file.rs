//! The file of `--prompt-cache`: what a model has read of a prompt, kept from one run of carat to the next.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

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
        replace(&self.path, |to| self.files.write(tokens, cache, to))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// How the names of files end that are being written.
pub(crate) const PART: &str = ".part";

/// Puts a file that `write` fills in the place of the one at `path`; if that fails, the old one stays. Until then it has a
/// name of its own, so that two who write at once do not write into each other's, and nobody else may read it: it holds
/// somebody's words.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default();
    // Removed again if it does not get its place: what is left of a full disk is not to stay full.
    let part = tempfile::Builder::new()
        .prefix(name)
        .suffix(PART)
        .tempfile_in(folder)?;
    let mut to = BufWriter::with_capacity(BUFFER, part);
    write(&mut to)?;
    let part = to.into_inner().map_err(io::IntoInnerError::into_error)?;
    part.as_file().sync_all()?;
    part.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

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
