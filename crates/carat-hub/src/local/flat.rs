//! LM Studio's and llama.cpp's folders: plain GGUF files under telling names.

use std::path::Path;

use super::{Identity, LocalModel, ModelFormat, Place, children, gguf_file};

/// `<publisher>/<repo>/<file>.gguf`, the layout of the hub itself.
pub(super) fn scan_lmstudio(root: &Path) -> Vec<LocalModel> {
    let mut found = Vec::new();
    for (publisher, dir) in children(root) {
        for (repo, dir) in children(&dir) {
            for (file, path) in children(&dir) {
                if let Some((size_bytes, modified)) = gguf_file(&path) {
                    let repo = format!("{publisher}/{repo}");
                    found.push(LocalModel {
                        name: format!("hf:{repo}:{file}"),
                        path,
                        format: ModelFormat::Gguf,
                        place: Place::LmStudio,
                        size_bytes,
                        modified,
                        identity: Identity::Hf {
                            repo,
                            file: Some(file),
                        },
                    });
                }
            }
        }
    }
    found
}

/// `<owner>_<repo>_<file>.gguf`, all in one folder.
pub(super) fn scan_llamacpp(root: &Path) -> Vec<LocalModel> {
    let mut found = Vec::new();
    for (file, path) in children(root) {
        if let Some((size_bytes, modified)) = gguf_file(&path) {
            found.push(LocalModel {
                name: path.display().to_string(),
                path,
                format: ModelFormat::Gguf,
                place: Place::LlamaCpp,
                size_bytes,
                modified,
                identity: Identity::Flat(file),
            });
        }
    }
    found
}
