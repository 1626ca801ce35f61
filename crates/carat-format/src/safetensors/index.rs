//! `model.safetensors.index.json`: which tensor is in which file of a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::Deserialize;

use crate::error::{Error, Fault, Place, Result};
use crate::limit::MAX_PARTS;

/// The names of the files by tensor.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    pub(super) weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Parses and checks an index; `path` is for messages.
    pub(super) fn parse(path: &Path, json: &[u8]) -> Result<Index> {
        let index: Index = serde_json::from_slice(json).map_err(|source| Error::Json {
            path: path.to_owned(),
            place: Place::Index,
            source,
        })?;
        let fail = |fault: Fault| Err(fault.at(path, Place::Index));
        let shards = index.shards();
        if shards.len() as u64 > MAX_PARTS {
            let found = shards.len() as u64;
            return fail(Fault::TooMany {
                field: "number of files",
                found,
                limit: MAX_PARTS,
            });
        }
        if let Some(name) = shards.into_iter().find(|name| !is_plain_name(name)) {
            return fail(Fault::ShardName {
                name: name.to_owned(),
            });
        }
        Ok(index)
    }

    /// The files, sorted.
    pub(super) fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

/// True for a name that cannot lead out of the folder, on any system.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let is_one = matches!(components.next(), Some(Component::Normal(_))) && components.next().is_none();
    is_one && !name.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_the_folder() {
        assert!(is_plain_name("model-00001-of-00002.safetensors"));
        assert!(is_plain_name("..model"));
        for name in [
            "",
            ".",
            "..",
            "../x",
            "/etc/passwd",
            "a/b",
            "a/",
            r"..\x",
            r"C:x",
            "x\0",
        ] {
            assert!(!is_plain_name(name), "{name:?}");
            let json = serde_json::json!({ "weight_map": { "w": name } }).to_string();
            assert!(Index::parse(Path::new("i.json"), json.as_bytes()).is_err());
        }
    }

    #[test]
    fn too_many_files_are_refused() {
        let map: BTreeMap<String, String> = (0..5000).map(|i| (i.to_string(), i.to_string())).collect();
        let json = serde_json::json!({ "weight_map": map }).to_string();
        let error = Index::parse(Path::new("i.json"), json.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("index: number of files is 5000, more than the limit of 4096"),
            "{error}"
        );
    }
}
