//! Models that are already on this machine, in carat's store or in another program's.
//!
//! Foreign stores are only read: nothing is copied, linked, hashed or changed there. A file counts when
//! it is finished, has the size its store promises (where it promises one) and starts as a GGUF file.
//! A catalogue name matches a found file by repository and file name, or by Ollama's own tag; a file
//! name alone is not enough, since a fine-tune of another person may carry the same one.

mod flat;
mod folder;
mod hf_cache;
mod ollama;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::catalogue::Entry;
use crate::fs::has_gguf_magic;
use crate::name::{all_parts, has_quant, is_drafter, is_projector, split_part};
use crate::settings::HubSettings;

pub(crate) use folder::{open_path, whole_model_problem};

/// How the weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelFormat {
    /// One GGUF file, or the first of a split one; its siblings lie beside it.
    Gguf,
    /// A folder with `config.json` and `.safetensors` files.
    Safetensors,
}

/// The program or place a model lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A path that the user gave.
    Path,
    /// carat's own store.
    Store,
    /// The Hugging Face cache.
    HuggingFace,
    /// Ollama's store.
    Ollama,
    /// LM Studio's folder.
    LmStudio,
    /// llama.cpp's folder.
    LlamaCpp,
}

impl Place {
    /// As a person calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Place::Path => "path",
            Place::Store => "carat",
            Place::HuggingFace => "Hugging Face cache",
            Place::Ollama => "Ollama",
            Place::LmStudio => "LM Studio",
            Place::LlamaCpp => "llama.cpp",
        }
    }
}

/// A model on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalModel {
    /// A name that resolves to it: catalogue name, `hf:` name, Ollama name, or its path.
    pub name: String,
    /// The GGUF file (first part of a split one) or the folder.
    pub path: PathBuf,
    /// File or folder.
    pub format: ModelFormat,
    /// Whose it is.
    pub place: Place,
    /// Size of all its files in bytes.
    pub size_bytes: u64,
    /// When it was pulled or last written, if the system tells.
    pub modified: Option<SystemTime>,
    pub(crate) identity: Identity,
}

/// What a found model is, as far as its place tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A file, or without one the checkpoint folder, of a hub repository.
    Hf { repo: String, file: Option<String> },
    /// `host/namespace/model:tag` of an Ollama store.
    Ollama {
        host: String,
        namespace: String,
        model: String,
        tag: String,
    },
    /// llama.cpp's flat name, which cannot be split without doubt into owner, repository and file.
    Flat(String),
    /// Known by its own name only.
    Other(String),
}

impl LocalModel {
    /// Whether this is the model of a catalogue entry, in the same number format.
    pub(crate) fn is_entry(&self, entry: &Entry) -> bool {
        match &self.identity {
            Identity::Hf { repo, file } => entry
                .places()
                .any(|p| p.repo.eq_ignore_ascii_case(repo) && &p.file == file),
            Identity::Ollama {
                host,
                namespace,
                model,
                tag,
            } if host == "registry.ollama.ai" => {
                namespace == "library" && entry.is_named(&format!("{model}:{tag}"))
            }
            Identity::Ollama {
                namespace,
                model,
                tag,
                ..
            } => {
                let repo = format!("{namespace}/{model}");
                tag.eq_ignore_ascii_case(&entry.quant)
                    && entry
                        .places()
                        .any(|p| p.file.is_some() && p.repo.eq_ignore_ascii_case(&repo))
            }
            Identity::Flat(name) => entry.places().any(|p| {
                let flat = |file: &String| format!("{}_{file}", p.repo).replace('/', "_");
                p.file
                    .as_ref()
                    .is_some_and(|file| flat(file).eq_ignore_ascii_case(name))
            }),
            Identity::Other(file) => entry.pypi.as_ref().is_some_and(|p| &p.file == file),
        }
    }

    /// Whether this is what `hf:repo[:file]` asks for; `file` may also be a number format. A drafter that lies beside
    /// the repository's model is meant only where it is named.
    pub(crate) fn is_hf(&self, wanted_repo: &str, wanted_file: Option<&str>) -> bool {
        match (&self.identity, wanted_file) {
            (Identity::Hf { repo, file }, Some(wanted)) => {
                repo.eq_ignore_ascii_case(wanted_repo)
                    && file.as_ref().is_some_and(|file| {
                        file == wanted
                            || all_parts(wanted).first() == Some(file)
                            || (!wanted.ends_with(".gguf")
                                && !self.is_towers()
                                && has_quant(file, wanted)
                                && (is_drafter(wanted) || !self.is_drafter_beside()))
                    })
            }
            (Identity::Hf { repo, .. }, None) => {
                repo.eq_ignore_ascii_case(wanted_repo) && !self.is_drafter_beside() && !self.is_towers()
            }
            (Identity::Flat(name), Some(wanted)) => format!("{wanted_repo}_{wanted}")
                .replace('/', "_")
                .eq_ignore_ascii_case(name),
            (
                Identity::Ollama {
                    host,
                    namespace,
                    model,
                    tag,
                },
                Some(wanted),
            ) => {
                (host == "hf.co" || host == "huggingface.co")
                    && format!("{namespace}/{model}").eq_ignore_ascii_case(wanted_repo)
                    && tag.eq_ignore_ascii_case(wanted)
            }
            _ => false,
        }
    }

    /// Whether it is called a drafter in a repository that is not: the repository's model need not be here.
    fn is_drafter_beside(&self) -> bool {
        match &self.identity {
            Identity::Hf {
                repo,
                file: Some(file),
            } => is_drafter(file) && !is_drafter(repo),
            _ => false,
        }
    }

    /// Whether it is called a drafter; its name has the repository's and the file's in it.
    pub(crate) fn is_called_drafter(&self) -> bool {
        is_drafter(&self.name)
    }

    /// Whether this is its own name, as Ollama reads names: `latest` need not be said.
    pub(crate) fn is_shown_as(&self, name: &str) -> bool {
        self.name == name || self.name.strip_suffix(":latest") == Some(name)
    }

    /// Whether it may be listed: foreign stores hold many models that are none of ours.
    fn is_gemma(&self) -> bool {
        self.name.to_ascii_lowercase().contains("gemma")
    }
}

/// A foreign store: whose it is and where.
pub(crate) struct ForeignStore {
    pub(crate) place: Place,
    pub(crate) dir: PathBuf,
}

/// The foreign stores of these settings, in the order they are looked through.
pub(crate) fn foreign_stores(settings: &HubSettings) -> Vec<ForeignStore> {
    let of = |place, dirs: &[PathBuf]| -> Vec<ForeignStore> {
        dirs.iter()
            .map(|dir| ForeignStore {
                place,
                dir: dir.clone(),
            })
            .collect()
    };
    let mut stores = of(Place::HuggingFace, &settings.hf_cache_dirs);
    stores.extend(of(Place::Ollama, &settings.ollama_dirs));
    stores.extend(of(Place::LmStudio, &settings.lmstudio_dirs));
    stores.extend(of(Place::LlamaCpp, &settings.llamacpp_dirs));
    stores
}

impl ForeignStore {
    /// Every finished model in it, whatever family it is of.
    pub(crate) fn scan(&self) -> Vec<LocalModel> {
        match self.place {
            Place::HuggingFace => hf_cache::scan(&self.dir),
            Place::Ollama => ollama::scan(&self.dir),
            Place::LmStudio => flat::scan_lmstudio(&self.dir),
            Place::LlamaCpp => flat::scan_llamacpp(&self.dir),
            Place::Path | Place::Store => Vec::new(),
        }
    }

    /// The models that `list` shows.
    pub(crate) fn list(&self) -> Vec<LocalModel> {
        let mut models = self.scan();
        models.retain(LocalModel::is_gemma);
        models
    }
}

/// Sizes and dates of a GGUF file with all its parts; `None` if it is not one, or not finished.
fn gguf_file(path: &Path) -> Option<(u64, Option<SystemTime>)> {
    let name = path.file_name()?.to_str()?;
    let lower = name.to_ascii_lowercase();
    // A projector alone is no text model; later parts are reached through the first.
    if !lower.ends_with(".gguf") || is_projector(name) || lower.starts_with("downloading") {
        return None;
    }
    if split_part(name).is_some_and(|(_, part, _)| part != 1) {
        return None;
    }
    let mut size = 0u64;
    let mut modified = None;
    for part in all_parts(name) {
        let part = path.with_file_name(part);
        let meta = std::fs::metadata(&part).ok().filter(std::fs::Metadata::is_file)?;
        if !has_gguf_magic(&part) {
            return None;
        }
        size = size.checked_add(meta.len())?;
        modified = modified.max(meta.modified().ok());
    }
    Some((size, modified))
}

/// Names in a folder in a fixed order, without hidden ones; empty if it cannot be read.
fn children(dir: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut children: Vec<(String, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .filter(|(name, _)| !name.starts_with('.'))
        .collect();
    children.sort();
    children
}
