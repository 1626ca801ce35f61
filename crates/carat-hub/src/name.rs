//! What the user may write for MODEL, and which names are safe to become paths.
//!
//! A path (a `.gguf` file, one part of a split file, a checkpoint folder), a catalogue name
//! (`gemma3:12b`, also any model of a local Ollama store), or `hf:owner/repo[:file]`. Nothing here
//! touches the network; only a bare word is checked against the disk, since `gemma3` could be a folder.
//! What other programs call their models may look like neither: `Hub::resolve` looks for those.

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// The three kinds of MODEL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelName {
    Path(PathBuf),
    Catalogue(String),
    Hf { repo: String, file: Option<String> },
}

impl ModelName {
    /// Reads what the user wrote; `is_known` says whether a bare word is a catalogue name.
    pub(crate) fn parse(text: &str, is_known: impl Fn(&str) -> bool) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() {
            return Err(bad(text, "a model needs a name or a path"));
        }
        // A user's catalogue may have names that look like something else.
        if is_known(text) {
            return Ok(ModelName::Catalogue(text.to_owned()));
        }
        for prefix in ["hf:", "hf.co/", "huggingface.co/", "https://huggingface.co/"] {
            if let Some(rest) = text.strip_prefix(prefix) {
                return parse_hf(text, rest);
            }
        }
        let path = Path::new(text);
        let looks_like_path = text.starts_with(['.', '/', '~', '\\'])
            || text.contains('\\')
            || text.to_ascii_lowercase().ends_with(".gguf")
            || path.is_absolute();
        if looks_like_path || path.exists() {
            return Ok(ModelName::Path(path.to_owned()));
        }
        if let Some((owner, repo)) = text.split_once('/')
            && !repo.contains('/')
            && check_repo(text.split(':').next().unwrap_or(text)).is_ok()
        {
            return Err(Error::UnknownModel {
                name: text.to_owned(),
                hint: format!("write hf:{owner}/{repo} for a repository of the Hugging Face hub"),
            });
        }
        if text.contains('/') {
            return Ok(ModelName::Path(path.to_owned()));
        }
        Ok(ModelName::Catalogue(text.to_owned()))
    }
}

/// Reads `rest` of what the user wrote, which an error names whole.
fn parse_hf(text: &str, rest: &str) -> Result<ModelName> {
    let (repo, file) = match rest.split_once(':') {
        Some((repo, file)) => (repo, Some(file)),
        None => (rest.trim_end_matches('/'), None),
    };
    let checked = check_repo(repo).and_then(|()| file.map_or(Ok(()), check_file_name));
    checked.map_err(|error| match error {
        Error::BadName { reason, .. } => bad(text, &reason),
        error => error,
    })?;
    Ok(ModelName::Hf {
        repo: repo.to_owned(),
        file: file.map(str::to_owned),
    })
}

/// Accepts `owner/name` in the hub's own alphabet.
pub(crate) fn check_repo(repo: &str) -> Result<()> {
    let good = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['.', '-'])
            && !part.contains("..")
            && !part.contains("--")
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    match repo.split_once('/') {
        Some((owner, name)) if good(owner) && good(name) => Ok(()),
        _ => Err(bad(repo, "a repository is written owner/name")),
    }
}

/// Accepts a relative file name that stays where it is put, on every system.
pub(crate) fn check_file_name(file: &str) -> Result<()> {
    let good = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.chars().any(|c| c.is_control() || "\\:*?\"<>|".contains(c))
    };
    let depth_ok = file.len() <= 512 && file.split('/').count() <= 8;
    if depth_ok && file.split('/').all(good) {
        Ok(())
    } else {
        Err(bad(file, "it is not a plain relative file name"))
    }
}

/// As [`check_file_name`] for a path that was read back from the store.
pub(crate) fn is_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

fn bad(name: &str, reason: &str) -> Error {
    Error::BadName {
        name: name.to_owned(),
        reason: reason.to_owned(),
    }
}

/// A file name of a split GGUF taken apart: `(stem, part, n_parts)` of `stem-00001-of-00003.gguf`.
pub(crate) fn split_part(file: &str) -> Option<(&str, u32, u32)> {
    let stem = file.strip_suffix(".gguf")?;
    let (rest, n_parts) = stem.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let number = |text: &str| match text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse::<u32>().ok(),
        false => None,
    };
    let (part, n_parts) = (number(part)?, number(n_parts)?);
    (part >= 1 && part <= n_parts && n_parts <= 999).then_some((stem, part, n_parts))
}

/// All names of a split file in order, or just the name itself.
pub(crate) fn all_parts(file: &str) -> Vec<String> {
    match split_part(file) {
        Some((stem, _, n)) => (1..=n).map(|i| format!("{stem}-{i:05}-of-{n:05}.gguf")).collect(),
        None => vec![file.to_owned()],
    }
}

/// Whether a GGUF file is called after the towers of a model: alone it is none.
pub(crate) fn is_projector(file: &str) -> bool {
    file.to_ascii_lowercase().contains("mmproj")
}

/// Whether a GGUF file is called after what guesses ahead for another model, with its folder or alone (`mtp-m.gguf`,
/// `m-assistant-Q8_0.gguf`, `MTP/m.gguf`). It is a model like others, but not the one that a folder or a repository is
/// named for.
pub(crate) fn is_drafter(file: &str) -> bool {
    file.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| {
        ["mtp", "assistant", "draft", "drafter"]
            .iter()
            .any(|known| word.eq_ignore_ascii_case(known))
    })
}

/// Whether a file name carries this number format as a word of its own (`Q4_K` is not in `-Q4_K_M.gguf`).
pub(crate) fn has_quant(file: &str, quant: &str) -> bool {
    let (file, quant) = (file.to_ascii_lowercase(), quant.to_ascii_lowercase());
    let edge = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_');
    !quant.is_empty()
        && file.match_indices(&quant).any(|(at, found)| {
            edge(file[..at].chars().next_back()) && edge(file[at + found.len()..].chars().next())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelName> {
        ModelName::parse(text, |name| name.starts_with("gemma3"))
    }

    #[test]
    fn the_three_kinds() {
        let hf = |repo: &str, file: Option<&str>| ModelName::Hf {
            repo: repo.into(),
            file: file.map(str::to_owned),
        };
        assert_eq!(
            parse("gemma3:12b").unwrap(),
            ModelName::Catalogue("gemma3:12b".into())
        );
        assert_eq!(
            parse("hf:google/gemma-3-1b-it").unwrap(),
            hf("google/gemma-3-1b-it", None)
        );
        assert_eq!(parse("hf:a/b:x/y.gguf").unwrap(), hf("a/b", Some("x/y.gguf")));
        assert_eq!(parse("hf.co/a/b:Q8_0").unwrap(), hf("a/b", Some("Q8_0")));
        for path in ["./x", "/m/x.gguf", "x.gguf", "~/m", "a/b/c"] {
            assert_eq!(parse(path).unwrap(), ModelName::Path(path.into()), "{path}");
        }
        assert!(
            parse("google/gemma-3-1b-it")
                .unwrap_err()
                .to_string()
                .contains("hf:google/gemma-3-1b-it")
        );
        assert!(parse(" ").is_err());
    }

    #[test]
    fn unsafe_names_are_refused() {
        for name in [
            "hf:a",
            "hf:../b",
            "hf:a/b/c",
            "hf:a/..",
            "hf:a/b:../x.gguf",
            "hf:a/b:/x",
            "hf:a/b:c\\d",
        ] {
            assert!(matches!(parse(name), Err(Error::BadName { .. })), "{name}");
        }
        for name in ["hf:", "hf:a", "hf:a/b:"] {
            let error = parse(name).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}` cannot be used")), "{error}");
        }
        for file in ["", "..", "a/../b", "a//b", "C:x", "a\0b", "/a", "a\nb"] {
            assert!(check_file_name(file).is_err(), "{file:?}");
        }
        assert!(check_file_name("BF16/gemma 3-00001-of-00002.gguf").is_ok());
        assert!(!is_inside(Path::new("../x")) && !is_inside(Path::new("/x")) && is_inside(Path::new("a/b")));
    }

    #[test]
    fn split_names() {
        assert_eq!(split_part("d/m-00002-of-00003.gguf"), Some(("d/m", 2, 3)));
        for not in [
            "m.gguf",
            "m-1-of-3.gguf",
            "m-00004-of-00003.gguf",
            "m-00001-of-00003.bin",
        ] {
            assert_eq!(split_part(not), None, "{not}");
        }
        assert_eq!(
            all_parts("m-00002-of-00002.gguf"),
            ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
        );
    }

    #[test]
    fn a_known_name_may_look_like_anything() {
        for name in ["ada/gemma:mine", "hf:mine", "mine.gguf"] {
            let parsed = ModelName::parse(name, |known| known == name).unwrap();
            assert_eq!(parsed, ModelName::Catalogue(name.into()));
        }
    }

    #[test]
    fn drafters_are_told_by_whole_words() {
        for drafter in [
            "mtp-gemma-4-12b.gguf",
            "gemma-4-12B-it-assistant-Q8_0.gguf",
            "MTP/gemma-4-E2B-it-Q8_0.gguf",
            "gemma_4_Draft.Q4_0.gguf",
            "12b-drafter.gguf",
            "gemma-4-31B-it-Q8_0-MTP.gguf",
        ] {
            assert!(is_drafter(drafter), "{drafter}");
        }
        for model in [
            "gemma-4-12B-it-Q8_0.gguf",
            "overdraft-Q4_0.gguf",
            "smtp.gguf",
            "assistants.gguf",
        ] {
            assert!(!is_drafter(model), "{model}");
        }
        assert!(is_projector("mmproj-F16.gguf") && is_projector("m.MMPROJ-Q8_0.gguf"));
        assert!(!is_projector("m-Q8_0.gguf"));
    }

    #[test]
    fn formats_match_whole_words() {
        assert!(has_quant("gemma-3-1b-it-Q4_K_M.gguf", "q4_k_m"));
        assert!(has_quant("gemma-3-1b-pt.Q4_K_M.gguf", "Q4_K_M"));
        assert!(!has_quant("gemma-3-1b-it-Q4_K_M.gguf", "Q4_K"));
        assert!(!has_quant("gemma-3-1b-it-BF16.gguf", "F16"));
        assert!(has_quant("m-Q4_0-00001-of-00002.gguf", "Q4_0"));
    }
}
