//! The configurations of the published sizes, for plans that are made before any file is there.

mod gemma4;

use std::path::Path;

use super::{Config, Gemma3Sizes, Rope, every_nth_global};

/// Pieces of Gemma's vocabulary. Checkpoints of 4B and more have 64 padding rows, which conversion leaves out.
const VOCABULARY: usize = 262_144;

/// What differs between the sizes.
struct Size {
    name: &'static str,
    n_layers: usize,
    d_model: usize,
    d_ff: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    window: usize,
    context_len: usize,
    /// Scores are scaled by this to the power of -1/2.
    scale_of: f32,
    /// Linear scaling of the global rope.
    scaling: f32,
}

const SIZES: [Size; 5] = [
    Size {
        name: "270M",
        n_layers: 18,
        d_model: 640,
        d_ff: 2048,
        n_heads: 4,
        n_kv_heads: 1,
        head_dim: 256,
        window: 512,
        context_len: 32_768,
        scale_of: 256.0,
        scaling: 1.0,
    },
    Size {
        name: "1B",
        n_layers: 26,
        d_model: 1152,
        d_ff: 6912,
        n_heads: 4,
        n_kv_heads: 1,
        head_dim: 256,
        window: 512,
        context_len: 32_768,
        scale_of: 256.0,
        scaling: 1.0,
    },
    Size {
        name: "4B",
        n_layers: 34,
        d_model: 2560,
        d_ff: 10_240,
        n_heads: 8,
        n_kv_heads: 4,
        head_dim: 256,
        window: 1024,
        context_len: 131_072,
        scale_of: 256.0,
        scaling: 8.0,
    },
    Size {
        name: "12B",
        n_layers: 48,
        d_model: 3840,
        d_ff: 15_360,
        n_heads: 16,
        n_kv_heads: 8,
        head_dim: 256,
        window: 1024,
        context_len: 131_072,
        scale_of: 256.0,
        scaling: 8.0,
    },
    Size {
        name: "27B",
        n_layers: 62,
        d_model: 5376,
        d_ff: 21_504,
        n_heads: 32,
        n_kv_heads: 16,
        head_dim: 128,
        window: 1024,
        context_len: 131_072,
        scale_of: 168.0,
        scaling: 8.0,
    },
];

impl Config {
    /// The configuration of a published model, as its GGUF files have it; `None` for other names.
    ///
    /// Names are those of [`Config::published_sizes`], in any letter case. A size that both generations have is
    /// Gemma 3's, unless the generation stands before it: `12B` and `gemma3-12B`, but `gemma4-12B`.
    #[must_use]
    pub fn published(name: &str) -> Option<Config> {
        let lower = name.to_ascii_lowercase();
        if let Some(size) = lower.strip_prefix("gemma4-") {
            return gemma4::published(size);
        }
        match lower.strip_prefix("gemma3-") {
            Some(size) => published_gemma3(size),
            None => published_gemma3(&lower).or_else(|| gemma4::published(&lower)),
        }
    }

    /// Names of the published sizes, smallest first in each generation.
    pub fn published_sizes() -> impl Iterator<Item = String> {
        let gemma3 = SIZES.iter().map(|size| size.name.to_owned());
        gemma3.chain(gemma4::names().map(|name| format!("gemma4-{name}")))
    }
}

fn published_gemma3(name: &str) -> Option<Config> {
    let size = SIZES.iter().find(|s| s.name.eq_ignore_ascii_case(name))?;
    let sizes = Gemma3Sizes {
        n_layers: size.n_layers,
        d_model: size.d_model,
        d_ff: size.d_ff,
        n_heads: size.n_heads,
        n_kv_heads: size.n_kv_heads,
        head_dim: size.head_dim,
        vocab_size: VOCABULARY,
        context_len: size.context_len,
        window: size.window,
        norm_eps: 1e-6,
        score_scale: 1.0 / size.scale_of.sqrt(),
        local_rope: Rope {
            theta: 1e4,
            scaling: 1.0,
            n_turning: None,
        },
        global_rope: Rope {
            theta: 1e6,
            scaling: size.scaling,
            n_turning: None,
        },
        is_global: every_nth_global(size.n_layers, 6),
    };
    // The table above passes the checks, which a test holds it to.
    sizes.into_config(Path::new(size.name)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts of the model cards: embedding and the rest of the text model, in millions.
    #[test]
    fn parameters_are_those_of_the_model_cards() {
        let expected = [
            ("270M", 168, 100),
            ("1B", 302, 698),
            ("4B", 671, 3209),
            ("12B", 1007, 10_759),
            ("27B", 1409, 25_600),
        ];
        assert!(Config::published_sizes().take(5).eq(expected.map(|row| row.0)));
        for (name, embedding, rest) in expected {
            let config = Config::published(&name.to_lowercase()).unwrap();
            let table = config.vocab_size * config.d_model;
            let millions = |n: usize| (n as f64 / 1e6).round() as i32;
            let found = (millions(table), millions(config.n_parameters() - table));
            assert_eq!(found, (embedding, rest), "{name}");
        }
        assert_eq!(Config::published("7B"), None);
        assert_eq!(Config::published("gemma3-12b"), Config::published("12B"));
        assert_ne!(Config::published("gemma4-12b"), Config::published("12B"));
        assert!(Config::published_sizes().all(|name| Config::published(&name).is_some()));
    }
}
