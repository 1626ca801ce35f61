//! Names of the parts of a split file: `NAME-00001-of-00003.gguf`, counted from 1.

use std::path::{Path, PathBuf};

use crate::error::{Fault, Place, Result};
use crate::limit::MAX_PARTS;

/// Bytes of `-00001-of-00003.gguf`.
const SUFFIX_LEN: usize = 20;

/// The paths of all the parts of the split file of which `path` is one.
///
/// # Errors
/// [`Fault::SplitName`] when the name does not have the form above with this count.
pub(super) fn part_paths(path: &Path, count: u64) -> Result<Vec<PathBuf>> {
    let fault = |fault: Fault| fault.at(path, Place::Split);
    if count > MAX_PARTS {
        return Err(fault(Fault::TooMany {
            field: "split.count",
            found: count,
            limit: MAX_PARTS,
        }));
    }
    let base = base_name(path, count).ok_or_else(|| fault(Fault::SplitName { count }))?;
    Ok((1..=count)
        .map(|no| path.with_file_name(format!("{base}-{no:05}-of-{count:05}.gguf")))
        .collect())
}

/// The name without its suffix.
fn base_name(path: &Path, count: u64) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    let cut = name.len().checked_sub(SUFFIX_LEN)?;
    let (base, suffix) = (name.get(..cut)?, name.get(cut..)?);
    let no = suffix
        .strip_prefix('-')?
        .strip_suffix(&format!("-of-{count:05}.gguf"))?;
    let no_is_valid = no.bytes().all(|b| b.is_ascii_digit()) && (1..=count).contains(&no.parse().ok()?);
    no_is_valid.then_some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_names_all() {
        let paths = part_paths(Path::new("dir/m-00002-of-00003.gguf"), 3).unwrap();
        let names = [
            "dir/m-00001-of-00003.gguf",
            "dir/m-00002-of-00003.gguf",
            "dir/m-00003-of-00003.gguf",
        ];
        assert_eq!(paths, names.map(PathBuf::from));
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "m.gguf",
            "m-00002-of-00004.gguf",
            "m-0000x-of-00003.gguf",
            "m-00004-of-00003.gguf",
            "",
        ] {
            assert!(part_paths(Path::new(name), 3).is_err(), "{name}");
        }
        assert!(part_paths(Path::new("m-00001-of-99999.gguf"), 99_999).is_err());
        assert!(part_paths(Path::new("é-00001-of-00003.gguf"), 3).is_ok());
        assert!(part_paths(Path::new("ééééééééééé"), 3).is_err());
    }
}
