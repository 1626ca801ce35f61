//! Ollama's store: `manifests/<host>/<namespace>/<model>/<tag>` (JSON) and `blobs/sha256-<hex>`.
//!
//! Every host folder is walked, since models pulled from other registries sit under their own. Only
//! the layer that holds the GGUF model counts; templates and parameters are Ollama's own affair.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Identity, LocalModel, ModelFormat, Place, children};
use crate::catalogue::is_sha256;
use crate::fs::{has_gguf_magic, read_limited};

const MAX_MANIFEST_BYTES: u64 = 1 << 20;
const MODEL_LAYER: &str = "application/vnd.ollama.image.model";

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
}

pub(super) fn scan(root: &Path) -> Vec<LocalModel> {
    let mut found = Vec::new();
    for (host, dir) in children(&root.join("manifests")) {
        for (namespace, dir) in children(&dir) {
            for (model, dir) in children(&dir) {
                for (tag, path) in children(&dir) {
                    let Some((path, size_bytes)) = model_blob(root, &path) else {
                        continue;
                    };
                    let modified = path.metadata().and_then(|meta| meta.modified()).ok();
                    let name = match (host.as_str(), namespace.as_str()) {
                        ("registry.ollama.ai", "library") => format!("{model}:{tag}"),
                        ("registry.ollama.ai", _) => format!("{namespace}/{model}:{tag}"),
                        _ => format!("{host}/{namespace}/{model}:{tag}"),
                    };
                    let (host, namespace, model) = (host.clone(), namespace.clone(), model.clone());
                    found.push(LocalModel {
                        name,
                        path,
                        format: ModelFormat::Gguf,
                        place: Place::Ollama,
                        size_bytes,
                        modified,
                        identity: Identity::Ollama {
                            host,
                            namespace,
                            model,
                            tag,
                        },
                    });
                }
            }
        }
    }
    found
}

/// The blob of the model layer, if the manifest is sound and the blob is whole.
fn model_blob(root: &Path, manifest: &Path) -> Option<(PathBuf, u64)> {
    let bytes = read_limited(manifest, MAX_MANIFEST_BYTES).ok()?;
    let manifest: Manifest = serde_json::from_slice(&bytes).ok()?;
    let layer = manifest
        .layers
        .into_iter()
        .find(|layer| layer.media_type == MODEL_LAYER)?;
    // The digest becomes a file name: anything but 64 hex digits could point elsewhere.
    let digest = layer
        .digest
        .strip_prefix("sha256:")
        .filter(|digest| is_sha256(digest))?;
    let blob = root.join("blobs").join(format!("sha256-{digest}"));
    let meta = blob.metadata().ok()?;
    (meta.is_file() && meta.len() == layer.size && has_gguf_magic(&blob)).then_some((blob, layer.size))
}
