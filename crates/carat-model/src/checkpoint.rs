//! A model on disk, in either form: a GGUF file (or its first part) or a Hugging Face folder.
//!
//! Both are opened into one shape, so that everything after this file is the same for both. Names of tensors
//! are those of [`crate::weights`]; here they are only passed on.

use std::path::{Path, PathBuf};

use carat_format::{Gguf, Safetensors, TensorInfo, TensorView, read_limited};

use crate::config::{DrafterClusters, DrafterConfig};
use crate::{Config, Error};

/// `config.json` files are a few kilobytes.
pub(crate) const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// An opened checkpoint: settings read, tensors mapped, nothing computed yet.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: Config,
    container: Container,
}

/// The two forms.
#[derive(Debug)]
pub enum Container {
    /// One GGUF file or all parts of a split one.
    Gguf(Gguf),
    /// A folder with `config.json` and safetensors.
    HuggingFace(Safetensors),
}

impl Checkpoint {
    /// Opens a GGUF file, or a folder with a `config.json` and safetensors.
    ///
    /// # Errors
    /// [`Error::NotACheckpoint`] for anything else, otherwise what is wrong with it.
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        if path.is_dir() {
            return Checkpoint::open_folder(path);
        }
        let gguf = Gguf::open(path)?;
        let config = Config::from_gguf(&gguf, path)?;
        Ok(Checkpoint {
            path: path.to_owned(),
            config,
            container: Container::Gguf(gguf),
        })
    }

    fn open_folder(path: &Path) -> Result<Checkpoint, Error> {
        let config_path = path.join("config.json");
        if !config_path.is_file() {
            return Err(Error::NotACheckpoint {
                path: path.to_owned(),
            });
        }
        let json = read_limited(&config_path, MAX_CONFIG_BYTES)?;
        let config = Config::from_config_json(&json, &config_path)?;
        let tensors = Safetensors::open(path)?;
        Ok(Checkpoint {
            path: path.to_owned(),
            config,
            container: Container::HuggingFace(tensors),
        })
    }

    /// Opens a drafter for `target`: its layers as [`Checkpoint::config`], and its head's clusters.
    pub(crate) fn open_drafter(
        path: &Path,
        target: &Config,
    ) -> Result<(Checkpoint, Option<DrafterClusters>), Error> {
        let (config, container) = if path.is_dir() {
            let config_path = path.join("config.json");
            let json = read_limited(&config_path, MAX_CONFIG_BYTES)?;
            let config = DrafterConfig::from_config_json(&json, &config_path, target)?;
            (config, Container::HuggingFace(Safetensors::open(path)?))
        } else {
            let gguf = Gguf::open(path)?;
            let config = DrafterConfig::from_gguf(&gguf, path, target)?;
            (config, Container::Gguf(gguf))
        };
        let checkpoint = Checkpoint {
            path: path.to_owned(),
            config: config.text,
            container,
        };
        Ok((checkpoint, config.clusters))
    }

    /// The file or folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sizes and constants.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The opened files, for what only one form has (metadata keys of a GGUF file).
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The tensors as the files list them.
    #[must_use]
    pub fn infos(&self) -> Vec<TensorInfo<'_>> {
        match &self.container {
            Container::Gguf(gguf) => gguf.infos().collect(),
            Container::HuggingFace(tensors) => tensors.infos().collect(),
        }
    }

    /// The bytes of all tensors that carat can read, where they are mapped.
    #[must_use]
    pub fn tensor_bytes(&self) -> Vec<&[u8]> {
        match &self.container {
            Container::Gguf(gguf) => gguf.tensors().flatten().map(|tensor| tensor.bytes).collect(),
            Container::HuggingFace(tensors) => {
                tensors.tensors().flatten().map(|tensor| tensor.bytes).collect()
            }
        }
    }

    /// The tensor called `name` in these files.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<TensorView<'_>>, Error> {
        let found = match &self.container {
            Container::Gguf(gguf) => gguf.tensor(name),
            Container::HuggingFace(tensors) => tensors.tensor(name),
        };
        Ok(found.transpose()?)
    }
}
