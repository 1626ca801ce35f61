//! A path that the user gave, and what makes a folder a checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Identity, LocalModel, ModelFormat, Place, children, gguf_file};
use crate::error::{Error, Result};
use crate::fs::{has_gguf_magic, read_limited};
use crate::name::{all_parts, check_file_name, is_drafter, split_part};

/// An index of shards larger than this (bytes) is damaged; that of the 27B model has 0.1 MB.
const MAX_INDEX_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Takes a path as the user gave it: a GGUF file, any part of a split one, or a folder.
///
/// # Errors
/// [`Error::PathMissing`] and [`Error::NotAModel`], naming what is missing; [`Error::Io`] where nobody may look.
pub(crate) fn open_path(path: &Path) -> Result<LocalModel> {
    let meta = fs::metadata(path).map_err(|error| match error.kind() {
        // Something may be there all the same.
        ErrorKind::PermissionDenied => Error::io("read", path, error),
        _ => Error::PathMissing(path.to_owned()),
    })?;
    if meta.is_dir() {
        return open_folder(path);
    }
    let not_a_model = |reason: String| Error::NotAModel {
        path: path.to_owned(),
        reason,
    };
    if meta.len() == 0 {
        return Err(not_a_model("it is empty".into()));
    }
    fs::File::open(path).map_err(|error| Error::io("read", path, error))?;
    if !has_gguf_magic(path) {
        return Err(not_a_model("it does not begin as a GGUF file does".into()));
    }
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let mut first = path.to_owned();
    let mut size_bytes = meta.len();
    if split_part(name).is_some() {
        let parts: Vec<PathBuf> = all_parts(name)
            .iter()
            .map(|part| path.with_file_name(part))
            .collect();
        size_bytes = 0;
        for part in &parts {
            let missing = || not_a_model(format!("its part `{}` is missing", part.display()));
            let len = fs::metadata(part).map_err(|_| missing())?.len();
            size_bytes = size_bytes.saturating_add(len);
        }
        first = parts.into_iter().next().unwrap_or(first);
    }
    let modified = meta.modified().ok();
    Ok(by_path(first, ModelFormat::Gguf, size_bytes, modified))
}

fn open_folder(dir: &Path) -> Result<LocalModel> {
    let Some(reason) = checkpoint_problem(dir) else {
        let files: Vec<fs::Metadata> = children(dir)
            .iter()
            .filter_map(|(_, path)| fs::metadata(path).ok())
            .collect();
        let size = files
            .iter()
            .filter(|f| f.is_file())
            .fold(0u64, |sum, f| sum.saturating_add(f.len()));
        let modified = files.iter().filter_map(|f| f.modified().ok()).max();
        return Ok(by_path(dir.to_owned(), ModelFormat::Safetensors, size, modified));
    };
    // A folder that holds just one GGUF model means that model.
    let mut ggufs = children(dir);
    ggufs.retain(|(_, path)| gguf_file(path).is_some());
    // What guesses ahead for it lies beside it; in a folder of its own it is what was asked for.
    if ggufs.iter().any(|(name, _)| !is_drafter(name)) {
        ggufs.retain(|(name, _)| !is_drafter(name));
    }
    // Of a folder that may not be looked into nothing is known, neither what it has nor what it lacks.
    let looked = fs::read_dir(dir).and_then(|_| fs::metadata(dir.join(".")));
    if let Err(error) = looked {
        return Err(Error::io("read", dir, error));
    }
    match ggufs.as_slice() {
        [(_, only)] => open_path(only),
        [] => Err(Error::NotAModel {
            path: dir.to_owned(),
            reason: if dir.join("config.json").is_file() {
                reason
            } else {
                "it holds neither a .gguf file nor a config.json".to_owned()
            },
        }),
        several => {
            let names: Vec<_> = several.iter().map(|(name, _)| name.as_str()).collect();
            let reason = format!("it holds several models, give one of them: {}", names.join(", "));
            Err(Error::NotAModel {
                path: dir.to_owned(),
                reason,
            })
        }
    }
}

fn by_path(
    path: PathBuf,
    format: ModelFormat,
    size_bytes: u64,
    modified: Option<std::time::SystemTime>,
) -> LocalModel {
    let name = path.display().to_string();
    let identity = Identity::Other(String::new());
    LocalModel {
        name,
        path,
        format,
        place: Place::Path,
        size_bytes,
        modified,
        identity,
    }
}

/// What a folder lacks to be taken for a model that was not named by its path; `None` if it is whole. Who names a
/// folder may mean one without a tokenizer: weights can be looked at without one.
pub(crate) fn whole_model_problem(dir: &Path) -> Option<String> {
    let has = |name: &str| dir.join(name).is_file();
    if !has("tokenizer.json") && !has("tokenizer.model") {
        return Some("it has neither tokenizer.json nor tokenizer.model".into());
    }
    checkpoint_problem(dir)
}

/// What a folder lacks to be a checkpoint; `None` if it has its settings and all its weights.
fn checkpoint_problem(dir: &Path) -> Option<String> {
    let has = |name: &str| dir.join(name).is_file();
    if !has("config.json") {
        return Some("it has no config.json".into());
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.is_file() {
        return (!has("model.safetensors")).then(|| "it has no model.safetensors".into());
    }
    let read = read_limited(&index, MAX_INDEX_BYTES).ok();
    let Some(index) = read.and_then(|bytes| serde_json::from_slice::<Index>(&bytes).ok()) else {
        return Some("its model.safetensors.index.json cannot be read".into());
    };
    let missing = index
        .weight_map
        .values()
        .find(|shard| check_file_name(shard).is_err() || !has(shard));
    missing.map(|shard| format!("its weight file `{shard}` is missing"))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_that_may_not_be_looked_into_is_called_so() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        let allow = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        allow(0);
        let is_superuser = fs::read_dir(folder.path()).is_ok();
        for mode in [0o000, 0o100, 0o400] {
            allow(mode);
            let error = open_path(folder.path()).unwrap_err();
            assert!(
                is_superuser || matches!(error, Error::Io { .. }),
                "{mode:o}: {error}"
            );
        }
        allow(0o700);
    }
}
