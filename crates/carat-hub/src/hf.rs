//! Models from the Hugging Face hub: which files, fetched, verified.
//!
//! A GGUF file that is named needs no description of its repository; a repository alone, or one with a
//! number format, is asked for its file list first. Every file is checked against the SHA-256 that the
//! hub (and, where it knows one, the catalogue) promises; small files that have none, against size.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use crate::catalogue::{HfSource, is_sha256};
use crate::error::{Error, Result};
use crate::fs::{check_room, has_gguf_magic, sha256_file};
use crate::http::{FileHead, Http};
use crate::local::ModelFormat;
use crate::name::{all_parts, check_file_name, has_quant, is_drafter, is_projector, split_part};
use crate::partial::Partial;
use crate::progress::{Event, Watch};
use crate::store::{NewFile, Origin};
use crate::transfer;

/// A description larger than this (bytes) is not one; large repositories have some 100 KB.
const MAX_DESCRIPTION_BYTES: u64 = 8 << 20;

/// What a checkpoint folder consists of, beside its `.safetensors` files.
const FOLDER_FILES: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
];

/// The hub's description of a repository, as far as it is needed.
#[derive(Debug, Deserialize)]
struct Description {
    #[serde(default)]
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Clone, Deserialize)]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Debug, Clone, Deserialize)]
struct Lfs {
    #[serde(default)]
    sha256: Option<String>,
}

/// The files that make the model.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    /// What it is, whatever it was asked for as.
    pub(crate) origin: Origin,
    format: ModelFormat,
    revision: String,
    files: Vec<Wanted>,
}

#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    name: String,
    sha256: Option<String>,
}

/// A model that lies whole and verified in the partial folder.
pub(crate) struct Fetched {
    pub(crate) origin: Origin,
    pub(crate) format: ModelFormat,
    pub(crate) files: Vec<NewFile>,
}

/// Says which files a source means; asks the hub if that is not clear from the name.
pub(crate) fn choose(http: &Http, source: &HfSource, watch: &mut Watch<'_>) -> Result<Selection> {
    match &source.file {
        Some(file) if file.ends_with(".gguf") => Ok(named(source, file)),
        file => describe(http, &source.repo, file.as_deref(), watch),
    }
}

/// Fetches chosen files into `dir`, going on from what is there.
pub(crate) fn fetch(
    http: &Arc<Http>,
    source: &HfSource,
    selection: Selection,
    dir: &Path,
    watch: &mut Watch<'_>,
) -> Result<Fetched> {
    let n_files = selection.files.len();
    let mut revision = selection.revision.clone();
    let mut files = Vec::with_capacity(n_files);
    for (i, wanted) in selection.files.iter().enumerate() {
        watch.check()?;
        let url = http.file_url(&source.repo, &revision, &wanted.name)?;
        let head = http.head(&url, watch)?;
        if let Some(commit) = &head.commit {
            revision.clone_from(commit);
        }
        let place = FilePlace {
            repo: &source.repo,
            revision: &revision,
            dir,
            index: i + 1,
            n_files,
        };
        files.push(place.fetch(http, wanted, &head, watch)?);
    }
    Ok(Fetched {
        origin: selection.origin,
        format: selection.format,
        files,
    })
}

fn named(source: &HfSource, file: &str) -> Selection {
    let parts = all_parts(file);
    // A digest in the catalogue speaks of one file.
    let sha256 = source.sha256.clone().filter(|_| parts.len() == 1);
    Selection {
        origin: Origin::HfFile {
            repo: source.repo.clone(),
            file: parts.first().cloned().unwrap_or_else(|| file.to_owned()),
        },
        format: ModelFormat::Gguf,
        revision: "main".to_owned(),
        files: parts
            .into_iter()
            .map(|name| Wanted {
                name,
                sha256: sha256.clone(),
            })
            .collect(),
    }
}

/// The towers that a repository has for its models, in the format that Gemma was trained in where there is a choice.
pub(crate) fn towers_in(http: &Http, repo: &str, watch: &mut Watch<'_>) -> Result<Option<String>> {
    let names = description(http, repo, watch)?.siblings.into_iter();
    let names = names.map(|sibling| sibling.rfilename);
    let is_one = |name: &String| {
        name.ends_with(".gguf") && is_projector(name) && !name.contains('/') && check_file_name(name).is_ok()
    };
    let rank = |name: &String| {
        let name = name.to_ascii_lowercase();
        let formats = ["bf16", "f16", "q8_0", "f32"];
        formats
            .iter()
            .position(|format| name.contains(format))
            .unwrap_or(formats.len())
    };
    Ok(names.filter(is_one).min_by_key(|name| (rank(name), name.clone())))
}

fn describe(http: &Http, repo: &str, file: Option<&str>, watch: &mut Watch<'_>) -> Result<Selection> {
    select(repo, file, description(http, repo, watch)?)
}

fn description(http: &Http, repo: &str, watch: &mut Watch<'_>) -> Result<Description> {
    let url = http.api_url(repo, "main")?;
    let bytes = http.get_small(&url, MAX_DESCRIPTION_BYTES, watch)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::BadResponse {
        what: repo.to_owned(),
        reason: format!("its file list is not what a hub sends ({e})"),
    })
}

/// Picks the files; names come from the network and are refused unless they are plain.
fn select(repo: &str, file: Option<&str>, description: Description) -> Result<Selection> {
    for sibling in &description.siblings {
        check_file_name(&sibling.rfilename)?;
    }
    let is_commit = |sha: &String| sha.len() == 40 && sha.bytes().all(|b| b.is_ascii_hexdigit());
    let revision = description
        .sha
        .filter(is_commit)
        .unwrap_or_else(|| "main".to_owned());
    let wanted = |sibling: &Sibling| Wanted {
        name: sibling.rfilename.clone(),
        sha256: sibling
            .lfs
            .as_ref()
            .and_then(|lfs| lfs.sha256.clone())
            .filter(|sha| is_sha256(sha)),
    };
    let has = |name: &str| description.siblings.iter().any(|s| s.rfilename == name);
    let is_weight = |s: &&Sibling| !s.rfilename.contains('/') && s.rfilename.ends_with(".safetensors");
    if file.is_none() && has("config.json") && description.siblings.iter().any(|s| is_weight(&s)) {
        let part_of_it = |s: &&Sibling| is_weight(s) || FOLDER_FILES.contains(&s.rfilename.as_str());
        return Ok(Selection {
            origin: Origin::HfFolder {
                repo: repo.to_owned(),
            },
            format: ModelFormat::Safetensors,
            revision,
            files: description
                .siblings
                .iter()
                .filter(part_of_it)
                .map(wanted)
                .collect(),
        });
    }
    let first = choose_gguf(repo, file, &description.siblings)?;
    let parts = all_parts(&first);
    let missing = parts.iter().find(|part| !has(part));
    if let Some(part) = missing {
        return Err(Error::NotFound(format!("{repo}/{part}")));
    }
    Ok(Selection {
        origin: Origin::HfFile {
            repo: repo.to_owned(),
            file: first,
        },
        format: ModelFormat::Gguf,
        revision,
        files: description
            .siblings
            .iter()
            .filter(|s| parts.contains(&s.rfilename))
            .map(wanted)
            .collect(),
    })
}

/// The GGUF model of a repository: the named one, the one of a number format, the only one, Q4_K_M. Drafters count
/// where there is nothing else, or where one is asked for.
fn choose_gguf(repo: &str, file: Option<&str>, siblings: &[Sibling]) -> Result<String> {
    let mut models: Vec<&str> = siblings
        .iter()
        .map(|s| s.rfilename.as_str())
        .filter(|name| name.ends_with(".gguf") && !is_projector(name))
        .filter(|name| split_part(name).is_none_or(|(_, part, _)| part == 1))
        .collect();
    if !file.is_some_and(is_drafter) && models.iter().any(|name| !is_drafter(name)) {
        models.retain(|name| !is_drafter(name));
    }
    let of_quant = |quant: &str| -> Vec<&str> {
        models
            .iter()
            .copied()
            .filter(|name| has_quant(name, quant))
            .collect()
    };
    let candidates = match file {
        Some(quant) => of_quant(quant),
        None if models.len() > 1 => of_quant("Q4_K_M"),
        None => models.clone(),
    };
    match (candidates.as_slice(), models.is_empty()) {
        ([only], _) => Ok((*only).to_owned()),
        (_, true) => Err(Error::BadResponse {
            what: repo.to_owned(),
            reason: "it holds neither a checkpoint (config.json and safetensors) nor a GGUF model".into(),
        }),
        ([], false) if file.is_some() => Err(Error::NotFound(format!("{repo}/{}", file.unwrap_or_default()))),
        _ => Err(Error::ChooseFile {
            repo: repo.to_owned(),
            files: models.into_iter().map(str::to_owned).collect(),
        }),
    }
}

/// Where a file comes from and goes to, and which of how many it is.
struct FilePlace<'a> {
    repo: &'a str,
    revision: &'a str,
    dir: &'a Path,
    index: usize,
    n_files: usize,
}

impl FilePlace<'_> {
    fn fetch(
        &self,
        http: &Arc<Http>,
        wanted: &Wanted,
        head: &FileHead,
        watch: &mut Watch<'_>,
    ) -> Result<NewFile> {
        let url = http.file_url(self.repo, self.revision, &wanted.name)?;
        let expected = self.expected(wanted, head)?;
        let remote = expected.as_deref().or(head.etag.as_deref());
        let part = self.dir.join(format!("{}.part", wanted.name));
        let mut partial = Partial::open(&part, remote, head.size)?;
        let mut resumed_bytes = partial.done_bytes();
        loop {
            watch.tell(Event::File {
                name: &wanted.name,
                index: self.index,
                n_files: self.n_files,
                resumed_bytes,
                total_bytes: Some(head.size),
            });
            if let Some(sha256) = partial.verified().map(str::to_owned) {
                return Ok(self.done(wanted, &partial, head.size, sha256));
            }
            check_room(self.dir, head.size - partial.done_bytes())?;
            transfer::fetch(http, &url, head.size, &mut partial, watch)?;
            let found = sha256_file(partial.path(), watch)?;
            let is_right = expected.as_ref().is_none_or(|expected| *expected == found);
            if is_right && (!wanted.name.ends_with(".gguf") || has_gguf_magic(partial.path())) {
                partial.set_verified(&found)?;
                return Ok(self.done(wanted, &partial, head.size, found));
            }
            partial.restart()?;
            if resumed_bytes == 0 {
                return Err(match expected {
                    Some(expected) if !is_right => Error::Damaged {
                        file: wanted.name.clone(),
                        expected,
                        found,
                    },
                    _ => Error::BadResponse {
                        what: format!("{}/{}", self.repo, wanted.name),
                        reason: "what it sent is not a GGUF file".into(),
                    },
                });
            }
            // The old bytes may be at fault, not the new ones: once more from the beginning.
            resumed_bytes = 0;
        }
    }

    /// The digest to expect; the hub and the catalogue must not contradict each other.
    fn expected(&self, wanted: &Wanted, head: &FileHead) -> Result<Option<String>> {
        match (
            wanted.sha256.as_ref().map(|sha| sha.to_ascii_lowercase()),
            &head.sha256,
        ) {
            (Some(ours), Some(theirs)) if ours != *theirs => Err(Error::BadResponse {
                what: format!("{}/{}", self.repo, wanted.name),
                reason: format!("it is another file than the expected one (SHA-256 {theirs}, not {ours})"),
            }),
            (ours, theirs) => Ok(ours.or_else(|| theirs.clone())),
        }
    }

    fn done(&self, wanted: &Wanted, partial: &Partial, size_bytes: u64, sha256: String) -> NewFile {
        NewFile {
            from: partial.path().to_owned(),
            name: wanted.name.clone(),
            size_bytes,
            sha256,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(files: &[&str], file: Option<&str>) -> Result<Selection> {
        let siblings = files
            .iter()
            .map(|name| Sibling {
                rfilename: (*name).to_owned(),
                lfs: None,
            })
            .collect();
        select("o/r", file, Description { sha: None, siblings })
    }

    fn names(selection: &Selection) -> Vec<&str> {
        selection.files.iter().map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn a_checkpoint_is_its_files_and_nothing_else() {
        let all = [
            "README.md",
            "config.json",
            "model-1.safetensors",
            "tokenizer.json",
            "original/x.safetensors",
            "a.bin",
        ];
        let selection = pick(&all, None).unwrap();
        assert_eq!(selection.format, ModelFormat::Safetensors);
        assert_eq!(
            names(&selection),
            ["config.json", "model-1.safetensors", "tokenizer.json"]
        );
    }

    #[test]
    fn one_gguf_is_chosen_or_all_are_named() {
        assert_eq!(
            names(&pick(&["m.gguf", "mmproj-m.gguf"], None).unwrap()),
            ["m.gguf"]
        );
        assert_eq!(
            names(&pick(&["m-Q8_0.gguf", "m-Q4_K_M.gguf"], None).unwrap()),
            ["m-Q4_K_M.gguf"]
        );
        assert_eq!(
            names(&pick(&["m-Q8_0.gguf", "m-Q4_0.gguf"], Some("q8_0")).unwrap()),
            ["m-Q8_0.gguf"]
        );
        let split = ["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"];
        assert_eq!(names(&pick(&split, None).unwrap()), split);
        assert!(matches!(pick(&split[..1], None), Err(Error::NotFound(_))));
        let error = pick(&["m-Q8_0.gguf", "m-Q5_K_M.gguf"], None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("m-Q8_0.gguf, m-Q5_K_M.gguf") && error.contains("hf:o/r:FILE"),
            "{error}"
        );
        assert!(matches!(
            pick(&["m-Q8_0.gguf"], Some("Q2_K")),
            Err(Error::NotFound(_))
        ));
        assert!(
            pick(&["README.md"], None)
                .unwrap_err()
                .to_string()
                .contains("neither")
        );
    }

    #[test]
    fn what_lies_beside_the_model_is_not_taken_for_it() {
        let (model, drafter) = ("m-Q8_0.gguf", "MTP/m-Q4_K_M-MTP.gguf");
        let all = [drafter, "m-assistant-Q8_0.gguf", model, "mmproj-Q8_0.gguf"];
        for asked in [None, Some("Q8_0"), Some(model)] {
            assert_eq!(names(&pick(&all, asked).unwrap()), [model], "{asked:?}");
        }
        // The drafter's number format is not the model's.
        assert!(matches!(pick(&all, Some("Q4_K_M")), Err(Error::NotFound(_))));
        assert_eq!(names(&pick(&all, Some("Q4_K_M-MTP")).unwrap()), [drafter]);
        assert_eq!(names(&pick(&[drafter, "README.md"], None).unwrap()), [drafter]);
        let drafters = ["m-assistant-Q8_0.gguf", "m-assistant-Q4_K_M.gguf"];
        assert_eq!(names(&pick(&drafters, Some("Q8_0")).unwrap()), [drafters[0]]);
        let source = HfSource {
            repo: "o/r".into(),
            file: Some(drafter.into()),
            sha256: None,
        };
        assert_eq!(names(&named(&source, drafter)), [drafter]);
    }

    #[test]
    fn names_from_the_network_cannot_leave_the_folder() {
        for name in ["../../x.gguf", "/etc/x.gguf", "a\\..\\x.gguf", "C:x.gguf"] {
            assert!(
                matches!(pick(&[name], None), Err(Error::BadName { .. })),
                "{name}"
            );
        }
    }
}
