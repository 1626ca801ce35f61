//! The file of `--prompt-cache`: what a model has read of a prompt, kept from one run of carat to the next.

use std::fs::{self, File};
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

/// Puts a file that `write` fills in the place of the one at `path`; if that fails, the old one stays.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let written = create_private(&part).and_then(|file| {
        let mut to = BufWriter::with_capacity(BUFFER, file);
        write(&mut to)?;
        to.flush()?;
        to.get_ref().sync_all()
    });
    let result = written.and_then(|()| fs::rename(&part, path));
    if result.is_err() {
        // What is left of a full disk is not to stay full.
        let _gone_or_never_there = fs::remove_file(&part);
    }
    result
}

/// An empty file that nobody else may read: it holds somebody's words.
fn create_private(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}
