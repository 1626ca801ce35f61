//! Where a model's drafter is: beside it.
//!
//! Publishers of GGUF files put a drafter into the model's folder (`mtp-...gguf`, `...-assistant-Q8_0.gguf`) or into a folder
//! of that kind in it (`MTP/`), whose neighbours are the folders of large formats (`BF16/`); checkpoints of Hugging Face have
//! theirs in a folder of its own (`...-assistant`). Names only lead to candidates and put them in order: whether a file
//! is a drafter, and of which model, is what it says of itself, its architecture and the sizes of its target.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::{Checkpoint, Error, Family};

/// Most files that are looked into.
const MAX_CANDIDATES: usize = 64;
/// A folder for drafters has one of these words in its name.
const WORDS: [&str; 6] = ["mtp", "assistant", "assistants", "draft", "drafter", "drafters"];

/// What was found where drafters of a model may be.
#[derive(Debug, Default)]
pub struct Drafters {
    /// Those that were made for the model: the one that is called most like it first, and of those the smallest.
    pub fitting: Vec<PathBuf>,
    /// Why others in its own folder cannot be used: made for another model, or damaged.
    pub unfit: Vec<Error>,
}

impl Checkpoint {
    /// The drafters that lie beside this model. Gemma 3 has none.
    #[must_use]
    pub fn drafters_beside(&self) -> Drafters {
        if self.config().family != Family::Gemma4 {
            return Drafters::default();
        }
        let near = own_places(self.path());
        let mut found = self.drafters_among(candidates(&near));
        if found.fitting.is_empty() {
            // What is further away may well be another model's: of what does not fit there is nothing to tell.
            let further = neighbours(self.path());
            found.fitting = self.drafters_among(candidates(&further)).fitting;
        }
        found
    }

    /// What of `paths`, GGUF files and folders, are drafters, and which of those are for this model.
    #[must_use]
    pub fn drafters_among(&self, paths: impl IntoIterator<Item = PathBuf>) -> Drafters {
        let mut found = Drafters::default();
        for path in paths.into_iter().filter(|path| path != self.path()) {
            match Checkpoint::open_drafter(&path, self.config()) {
                Ok(_) => found.fitting.push(path),
                Err(error) if is_of_drafter(&error, &path) => found.unfit.push(error),
                Err(_) => {}
            }
        }
        let model = words(self.path());
        found.fitting.sort_by_cached_key(|path| {
            let own = words(path);
            let n_common = own.intersection(&model).count();
            (Reverse(n_common), own.len() - n_common, size(path), path.clone())
        });
        found
    }
}

/// Whether what is wrong with a file is wrong with a drafter: what is called so and is another model by itself is none.
fn is_of_drafter(error: &Error, path: &Path) -> bool {
    match error {
        Error::ForeignDrafter { .. } => true,
        Error::NoDrafter { architecture, .. } => has_word(architecture),
        _ => path
            .file_name()
            .is_some_and(|name| has_word(&name.to_string_lossy())),
    }
}

/// The folders that are the model's own: the one that it is or is in, and those for drafters in that.
fn own_places(model: &Path) -> Vec<PathBuf> {
    let folder = if model.is_dir() {
        model.to_owned()
    } else {
        parent(model)
    };
    let inner = drafter_folders(&folder);
    [folder].into_iter().chain(inner).collect()
}

/// The folders for drafters beside the one that the model is or is in.
fn neighbours(model: &Path) -> Vec<PathBuf> {
    let folder = if model.is_dir() {
        model.to_owned()
    } else {
        parent(model)
    };
    // `.` has no name to find others beside.
    let named = if folder.file_name().is_some() {
        Some(folder)
    } else {
        folder.canonicalize().ok()
    };
    let Some(folder) = named.filter(|folder| folder.file_name().is_some()) else {
        return Vec::new();
    };
    let mut found = drafter_folders(&parent(&folder));
    found.retain(|other| other.file_name() != folder.file_name());
    found
}

/// Folders in `folder` that are called after drafters, in the order of their names.
fn drafter_folders(folder: &Path) -> Vec<PathBuf> {
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        has_word(&name) && path.is_dir()
    };
    children(folder).into_iter().filter(is_one).collect()
}

/// What may be drafters in `places`: those folders as checkpoints, and their GGUF files, such that are called drafters first.
fn candidates(places: &[PathBuf]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for place in places {
        if place.join("config.json").is_file() {
            found.push(place.clone());
        }
        let mut files = children(place);
        files.retain(|path| {
            let extension = path.extension().unwrap_or_default();
            extension.eq_ignore_ascii_case("gguf") && path.is_file()
        });
        files.sort_by_key(|path| !has_word(&path.file_name().unwrap_or_default().to_string_lossy()));
        found.extend(files);
    }
    found.truncate(MAX_CANDIDATES);
    found
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The folder of a file; of one without a path, the folder that the program is in.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Whether a name says that this is for guessing ahead.
fn has_word(name: &str) -> bool {
    let mut words = name.split(|c: char| !c.is_ascii_alphanumeric());
    words.any(|word| WORDS.iter().any(|known| word.eq_ignore_ascii_case(known)))
}

/// The words of a name, by which a drafter is told to belong to a model rather than to one of the same shape.
fn words(path: &Path) -> BTreeSet<String> {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Bytes of a file, or of a folder's files.
fn size(path: &Path) -> u64 {
    let of_file = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
    if path.is_dir() {
        let files = children(path);
        return files
            .iter()
            .map(|path| of_file(path))
            .fold(0, u64::saturating_add);
    }
    of_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafters_are_called_so_by_whole_words() {
        for name in ["MTP", "mtp-gemma.gguf", "gemma-4-E2B-it-assistant", "12b_draft"] {
            assert!(has_word(name), "{name}");
        }
        for name in ["attempts", "draughts", "gemma-4-E2B-it", "smtp"] {
            assert!(!has_word(name), "{name}");
        }
    }

    #[test]
    fn places_are_the_model_s_own_before_those_beside_it() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        for folder in ["repo/BF16", "repo/MTP", "repo/imatrix", "repo-assistant"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let repo = root.join("repo");
        assert_eq!(own_places(&repo.join("m.gguf")), [repo.clone(), repo.join("MTP")]);
        assert_eq!(neighbours(&repo.join("m.gguf")), [root.join("repo-assistant")]);
        assert_eq!(own_places(&repo), own_places(&repo.join("m.gguf")));
        let large = repo.join("BF16").join("m-00001-of-00002.gguf");
        assert_eq!(own_places(&large), [repo.join("BF16")]);
        assert_eq!(neighbours(&large), [repo.join("MTP")]);
        assert_eq!(own_places(Path::new("m.gguf"))[0], Path::new("."));
    }
}
