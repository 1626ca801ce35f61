//! The file of `--prompt-cache`: what a model has read of a prompt, kept from one run of carat to the next.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use carat_model::{CacheOwner, Checkpoint, KvCache, Model};

use crate::failure::Hinted;

/// Read and written at once.
const BUFFER: usize = 1 << 20;

/// A file that need not be there yet, and the model that it belongs to.
pub(crate) struct PromptFile {
    path: PathBuf,
    owner: CacheOwner,
}

impl PromptFile {
    pub(crate) fn new(path: &Path, checkpoint: &Checkpoint, model: &Model) -> Self {
        Self {
            path: path.to_owned(),
            owner: CacheOwner::new(checkpoint, model),
        }
    }

    /// The tokens and the cache in the file; `None` when there is no file.
    pub(crate) fn read(&self, model: &Model, n_max: usize) -> Result<Option<(Vec<u32>, KvCache)>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("`{}` cannot be opened", self.path.display()));
            }
        };
        let mut from = BufReader::with_capacity(BUFFER, file);
        match model.restore_cache(&self.owner, n_max, &mut from) {
            Ok(found) => Ok(Some(found)),
            Err(error) => {
                let message = format!("`{}`: {error}", self.path.display());
                Err(Hinted::new(message, "give --prompt-cache another file, or delete this one").into())
            }
        }
    }

    /// Replaces the file, or leaves it as it was.
    pub(crate) fn write(&self, tokens: &[u32], cache: &KvCache) -> io::Result<()> {
        let mut name = self.path.clone().into_os_string();
        name.push(".part");
        let part = PathBuf::from(name);
        let written = self.write_part(&part, tokens, cache);
        let result = written.and_then(|()| fs::rename(&part, &self.path));
        if result.is_err() {
            // What is left of a full disk is not to stay full.
            let _gone_or_never_there = fs::remove_file(&part);
        }
        result
    }

    fn write_part(&self, part: &Path, tokens: &[u32], cache: &KvCache) -> io::Result<()> {
        let mut to = BufWriter::with_capacity(BUFFER, File::create(part)?);
        cache.save(&self.owner, tokens, &mut to)?;
        to.flush()?;
        to.get_ref().sync_all()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
