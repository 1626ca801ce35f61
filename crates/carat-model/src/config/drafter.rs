//! What a drafter of Gemma 4 is, and which layers of its target it reads.
//!
//! Its layers are Gemma 4's with queries alone: keys and values are those of the target's last layer of the same kind
//! that has its own. Files say nothing of that, so a drafter is understood only together with its target.

use std::path::Path;

use carat_format::Gguf;

use super::{Config, KvSource, MAX_WIDTH, gguf, hugging_face};
use crate::Error;

/// Of a head that scores clusters of tokens before it scores tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DrafterClusters {
    /// Clusters, all of one size.
    pub(crate) n: usize,
    /// Clusters whose tokens are scored.
    pub(crate) n_active: usize,
}

/// A drafter's sizes.
#[derive(Clone, Debug)]
pub(crate) struct DrafterConfig {
    /// Its layers; all attend to layers of the target.
    pub(crate) text: Config,
    pub(crate) clusters: Option<DrafterClusters>,
}

impl DrafterConfig {
    /// Of a GGUF file, for `target`. The clusters are in its tensors.
    ///
    /// # Errors
    /// [`Error::NoDrafter`], [`Error::ForeignDrafter`], and what is wrong with the sizes.
    pub(crate) fn from_gguf(gguf: &Gguf, path: &Path, target: &Config) -> Result<DrafterConfig, Error> {
        let (text, d_target) = gguf::read_drafter(gguf, path)?;
        let centroids = gguf
            .infos()
            .find(|info| info.name.starts_with("masked_embd_centroids"));
        let n = centroids.and_then(|info| info.shape.first().copied());
        DrafterConfig::new(
            text,
            d_target,
            n.map(|n| DrafterClusters {
                n,
                // Files do not say; as in every released one.
                n_active: n.min(32),
            }),
            (path, target),
        )
    }

    /// Of a folder's `config.json`, for `target`.
    ///
    /// # Errors
    /// As [`DrafterConfig::from_gguf`].
    pub(crate) fn from_config_json(
        json: &[u8],
        path: &Path,
        target: &Config,
    ) -> Result<DrafterConfig, Error> {
        let (text, d_target, clusters) = hugging_face::read_drafter(json, path)?;
        DrafterConfig::new(text, d_target, clusters, (path, target))
    }

    fn new(
        mut text: Config,
        d_target: usize,
        clusters: Option<DrafterClusters>,
        (path, target): (&Path, &Config),
    ) -> Result<DrafterConfig, Error> {
        let foreign = |reason: String| Error::ForeignDrafter {
            path: path.to_owned(),
            reason,
        };
        if d_target != target.d_model || d_target > MAX_WIDTH {
            let expected = target.d_model;
            return Err(foreign(format!(
                "a model {d_target} wide, but this one is {expected} wide"
            )));
        }
        if text.vocab_size != target.vocab_size {
            let (n, expected) = (text.vocab_size, target.vocab_size);
            return Err(foreign(format!(
                "a vocabulary of {n} tokens, but this model has {expected}"
            )));
        }
        if let Some(DrafterClusters { n, n_active }) = clusters
            && (n == 0 || n_active == 0 || n_active > n || !text.vocab_size.is_multiple_of(n))
        {
            return Err(Error::BadField {
                path: path.to_owned(),
                field: "number of clusters",
                value: format!("{n}, {n_active} of them active"),
                expected: "a divisor of the vocabulary size, with at least one and at most all active",
            });
        }
        text.per_layer_width = 0;
        for layer in &mut text.layers {
            let own = &target.layers[..target.n_owning_layers()];
            let owner = own
                .iter()
                .rposition(|other| other.window.is_some() == layer.window.is_some())
                .filter(|i| (own[*i].n_kv_heads, own[*i].head_dim) == (layer.n_kv_heads, layer.head_dim));
            let Some(owner) = owner else {
                return Err(foreign(
                    "layers with other keys and values than this one's".to_owned(),
                ));
            };
            layer.kv = KvSource::Layer(owner);
            // A row sees as far back as its target's rows do. Its own position, of which there is no key yet, counts.
            layer.window = own[owner].window.map(|window| window.saturating_sub(1).max(1));
        }
        Ok(DrafterConfig { text, clusters })
    }
}
