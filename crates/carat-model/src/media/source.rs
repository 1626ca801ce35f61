//! Where a model's towers are: in its own folder, or in an `mmproj` GGUF file beside the text model.
//!
//! As users of GGUF files expect, a file with `mmproj` in its name in the model's folder is found by itself. A
//! folder may hold several, for several models or in several formats: the first that fits the text model is taken,
//! those of 16 bits before others, and names with most in common with the model's first.

use std::path::{Path, PathBuf};

use carat_format::{Gguf, Safetensors, read_limited};

use super::tensors::{Files, Tensors};
use crate::checkpoint::{Container, MAX_CONFIG_BYTES};
use crate::config::{AudioConfig, MediaConfig, VisionConfig};
use crate::{Checkpoint, Config, Error};

/// Most `mmproj` files of a folder that are looked into.
const MAX_CANDIDATES: usize = 64;

/// The towers of a checkpoint, found and understood, not yet loaded.
#[derive(Debug)]
pub struct MediaSource<'a> {
    config: MediaConfig,
    d_model: usize,
    path: PathBuf,
    files: OwnedFiles<'a>,
}

#[derive(Debug)]
enum OwnedFiles<'a> {
    Folder(&'a Safetensors),
    Mmproj(Gguf),
}

impl<'a> MediaSource<'a> {
    /// The towers that belong to `checkpoint`; `None` for a model of text alone, and for a GGUF file without an
    /// `mmproj` file for it in its folder.
    ///
    /// # Errors
    /// Settings of a folder's towers that cannot be. `mmproj` files that cannot be read, or are for another model,
    /// are passed over: nobody has asked for them.
    pub fn find(checkpoint: &'a Checkpoint) -> Result<Option<MediaSource<'a>>, Error> {
        match checkpoint.container() {
            Container::HuggingFace(tensors) => {
                MediaSource::of_folder(checkpoint.path(), tensors, checkpoint.config())
            }
            Container::Gguf(_) => {
                let mut candidates = candidates(checkpoint.path());
                candidates.truncate(MAX_CANDIDATES);
                Ok(candidates
                    .iter()
                    .find_map(|path| MediaSource::open(checkpoint, path).ok()))
            }
        }
    }

    /// The towers in the `mmproj` file at `path`, for the text model `checkpoint`.
    ///
    /// # Errors
    /// What is wrong with the file; [`Error::ForeignTowers`] and [`Error::ForeignMmproj`] when it is for another model.
    pub fn open(checkpoint: &'a Checkpoint, path: &Path) -> Result<MediaSource<'a>, Error> {
        let gguf = Gguf::open(path)?;
        let config = MediaConfig::from_mmproj(&gguf, path)?;
        check_family(&config, checkpoint.config(), path)?;
        let expected = checkpoint.config().d_model;
        if let Some(found) = output_width(&gguf, &config)
            && found != expected
        {
            return Err(Error::ForeignMmproj {
                path: path.to_owned(),
                found,
                expected,
            });
        }
        Ok(MediaSource {
            config,
            d_model: expected,
            path: path.to_owned(),
            files: OwnedFiles::Mmproj(gguf),
        })
    }

    pub(super) fn of_folder(
        folder: &Path,
        tensors: &'a Safetensors,
        text: &Config,
    ) -> Result<Option<MediaSource<'a>>, Error> {
        let path = folder.join("config.json");
        let config = MediaConfig::from_config_json(&read_limited(&path, MAX_CONFIG_BYTES)?, &path)?;
        if config == MediaConfig::default() {
            return Ok(None);
        }
        check_family(&config, text, folder)?;
        Ok(Some(MediaSource {
            config,
            d_model: text.d_model,
            path: folder.to_owned(),
            files: OwnedFiles::Folder(tensors),
        }))
    }

    /// Which inputs there are, and their settings.
    #[must_use]
    pub fn config(&self) -> &MediaConfig {
        &self.config
    }

    /// The folder, or the `mmproj` file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn d_model(&self) -> usize {
        self.d_model
    }

    pub(super) fn tensors(&self) -> Tensors<'_> {
        let files = match &self.files {
            OwnedFiles::Folder(files) => Files::Folder(files),
            OwnedFiles::Mmproj(file) => Files::Mmproj(file),
        };
        Tensors::new(&self.path, files)
    }
}

/// Models of both generations are 2560, 3840 and 5376 wide: rows that fit are not enough.
fn check_family(config: &MediaConfig, text: &Config, path: &Path) -> Result<(), Error> {
    let expected = text.family;
    match config.families().find(|found| *found != expected) {
        None => Ok(()),
        Some(found) => Err(Error::ForeignTowers {
            path: path.to_owned(),
            found,
            expected,
        }),
    }
}

/// Width of the rows that an `mmproj` file's projections give; `None` where it has none, which loading will say.
fn output_width(gguf: &Gguf, config: &MediaConfig) -> Option<usize> {
    let (name, axis) = match (&config.vision, &config.audio) {
        // Stored as it is multiplied from the right.
        (Some(VisionConfig::Siglip(_)), _) => ("mm.input_projection.weight", 1),
        (Some(_), _) => ("mm.input_projection.weight", 0),
        (None, Some(AudioConfig::Conformer(_) | AudioConfig::Unified(_))) => {
            ("mm.a.input_projection.weight", 0)
        }
        (None, None) => return None,
    };
    gguf.infos()
        .find(|info| info.name == name)?
        .shape
        .get(axis)
        .copied()
}

/// The files beside `model` with `mmproj` in their names, best first.
fn candidates(model: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (model.parent(), model.file_name()) else {
        return Vec::new();
    };
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let model = name.to_string_lossy().to_lowercase();
    let mut found: Vec<(usize, usize, String, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().to_lowercase();
            let fits = name.contains("mmproj") && name.ends_with(".gguf") && name != model;
            let formats = ["bf16", "f16", "f32"];
            let rank = formats
                .iter()
                .position(|format| name.contains(format))
                .unwrap_or(formats.len());
            fits.then(|| (usize::MAX - common(&model, &name), rank, name, entry.path()))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(.., path)| path).collect()
}

/// Length of the longest beginning of the model's name that is somewhere in the other's.
fn common(model: &str, name: &str) -> usize {
    let ends = model.char_indices().map(|(at, c)| at + c.len_utf8());
    ends.take_while(|end| name.contains(&model[..*end]))
        .last()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_is_named_like_the_model_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "gemma-3-4b-it-Q4_K_M.gguf",
            "mmproj-F32.gguf",
            "mmproj-BF16.gguf",
            "gemma-3-4b-it.mmproj-Q8_0.gguf",
            "mmproj-qwen.gguf.part",
            "other.gguf",
        ] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found = candidates(&folder.path().join("gemma-3-4b-it-Q4_K_M.gguf"));
        let names: Vec<_> = found
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "gemma-3-4b-it.mmproj-Q8_0.gguf",
                "mmproj-BF16.gguf",
                "mmproj-F32.gguf"
            ]
        );
        assert!(candidates(&folder.path().join("no/such.gguf")).is_empty());
    }
}
