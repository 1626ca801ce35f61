//! The Hugging Face cache: `models--<owner>--<repo>/snapshots/<commit>/<file>`, links into `blobs`.
//!
//! A snapshot link appears only when its blob is finished, so unfinished downloads (`*.incomplete`
//! blobs) are never seen. The commit of `refs/main` is preferred; without it the newest snapshot is.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Identity, LocalModel, ModelFormat, Place, children, gguf_file, whole_model_problem};
use crate::fs::read_limited;

pub(super) fn scan(root: &Path) -> Vec<LocalModel> {
    let mut found = Vec::new();
    for (name, dir) in children(root) {
        let Some((owner, repo)) = name
            .strip_prefix("models--")
            .and_then(|rest| rest.split_once("--"))
        else {
            continue;
        };
        let repo = format!("{owner}/{repo}");
        let mut of_repo: Vec<LocalModel> = Vec::new();
        for snapshot in snapshots(&dir) {
            let mut of_snapshot = Vec::new();
            scan_snapshot(&repo, &snapshot, &mut of_snapshot);
            // Of a file that several commits hold, the preferred commit's is taken.
            of_snapshot.retain(|new| of_repo.iter().all(|old| old.identity != new.identity));
            of_repo.extend(of_snapshot);
        }
        found.extend(of_repo);
    }
    found
}

fn scan_snapshot(repo: &str, snapshot: &Path, found: &mut Vec<LocalModel>) {
    if whole_model_problem(snapshot).is_none() {
        let files: Vec<fs::Metadata> = children(snapshot)
            .iter()
            .filter_map(|(_, path)| fs::metadata(path).ok())
            .collect();
        found.push(LocalModel {
            name: format!("hf:{repo}"),
            path: snapshot.to_owned(),
            format: ModelFormat::Safetensors,
            place: Place::HuggingFace,
            size_bytes: files
                .iter()
                .filter(|f| f.is_file())
                .fold(0, |sum, f| sum.saturating_add(f.len())),
            modified: files.iter().filter_map(|f| f.modified().ok()).max(),
            identity: Identity::Hf {
                repo: repo.to_owned(),
                file: None,
            },
        });
    }
    let mut add = |file: String, path: PathBuf| {
        if let Some((size_bytes, modified)) = gguf_file(&path) {
            found.push(LocalModel {
                name: format!("hf:{repo}:{file}"),
                path,
                format: ModelFormat::Gguf,
                place: Place::HuggingFace,
                size_bytes,
                modified,
                identity: Identity::Hf {
                    repo: repo.to_owned(),
                    file: Some(file),
                },
            });
        }
    };
    for (name, path) in children(snapshot) {
        if path.is_dir() {
            // Large formats lie one folder deeper (`BF16/…-00001-of-00002.gguf`).
            for (inner, path) in children(&path) {
                add(format!("{name}/{inner}"), path);
            }
        } else {
            add(name, path);
        }
    }
}

/// Snapshot folders, best first.
fn snapshots(dir: &Path) -> Vec<PathBuf> {
    let main = read_limited(&dir.join("refs").join("main"), 256).ok();
    let main = main
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .map(|text| text.trim().to_owned());
    let mut all = children(&dir.join("snapshots"));
    let age = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    all.sort_by_key(|(name, path)| (Some(name) == main.as_ref(), age(path)));
    all.into_iter().rev().map(|(_, path)| path).collect()
}
