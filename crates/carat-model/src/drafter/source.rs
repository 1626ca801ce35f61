//! Where a model's drafter is: beside it.
//!
//! As users of GGUF files expect, a file that is called after what it does (`mtp-...`, `...-assistant`, `...draft...`) in
//! the model's folder is found by itself, if it was made for this model; a Hugging Face folder's drafter is the folder of
//! the same name with `-assistant` behind it, as the published repositories are called.

use std::path::{Path, PathBuf};

use crate::Checkpoint;

/// Most files of a folder that are looked into.
const MAX_CANDIDATES: usize = 64;
/// One of these is in a drafter's name.
const NAMES: [&str; 3] = ["mtp", "assistant", "draft"];

impl Checkpoint {
    /// The drafter that was made for this model, if one lies beside it.
    #[must_use]
    pub fn find_drafter(&self) -> Option<PathBuf> {
        let fits = |path: &PathBuf| Checkpoint::open_drafter(path, self.config()).is_ok();
        if self.path().is_dir() {
            return assistant_of(self.path()).filter(fits);
        }
        candidates(self.path())
            .into_iter()
            .take(MAX_CANDIDATES)
            .find(fits)
    }
}

/// The folder whose name says that it is this one's drafter.
fn assistant_of(folder: &Path) -> Option<PathBuf> {
    let name = folder.file_name()?.to_str()?;
    Some(folder.with_file_name(format!("{name}-assistant"))).filter(|path| path.is_dir())
}

/// Files beside `model` that are called like drafters, in the order of their names.
fn candidates(model: &Path) -> Vec<PathBuf> {
    let folder = match model.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let is_candidate = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase());
        path != model
            && name
                .is_some_and(|name| name.ends_with(".gguf") && NAMES.iter().any(|part| name.contains(part)))
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(is_candidate)
        .collect();
    found.sort();
    found
}
