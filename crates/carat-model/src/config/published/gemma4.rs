//! The published sizes of Gemma 4, text decoder.

use std::path::Path;

use super::super::gemma4::{Gemma4Layer, Gemma4Sizes};
use super::super::{Config, Experts, Rope};
use super::VOCABULARY;

/// What differs between the sizes.
struct Size {
    name: &'static str,
    n_layers: usize,
    d_model: usize,
    d_ff: usize,
    /// Of layers that share keys and values.
    shared_d_ff: usize,
    /// Every so many layers one is global.
    pattern: usize,
    n_heads: usize,
    /// Of local and of global layers.
    n_kv_heads: [usize; 2],
    window: usize,
    context_len: usize,
    per_layer_width: usize,
    n_shared: usize,
    experts: Option<Experts>,
}

/// Pairs of a global head of 512 that turn.
const TURNING: usize = 64;

const SIZES: [Size; 5] = [
    Size {
        name: "E2B",
        n_layers: 35,
        d_model: 1536,
        d_ff: 6144,
        shared_d_ff: 12_288,
        pattern: 5,
        n_heads: 8,
        n_kv_heads: [1, 1],
        window: 512,
        context_len: 131_072,
        per_layer_width: 256,
        n_shared: 20,
        experts: None,
    },
    Size {
        name: "E4B",
        n_layers: 42,
        d_model: 2560,
        d_ff: 10_240,
        shared_d_ff: 10_240,
        pattern: 6,
        n_heads: 8,
        n_kv_heads: [2, 2],
        window: 512,
        context_len: 131_072,
        per_layer_width: 256,
        n_shared: 18,
        experts: None,
    },
    Size {
        name: "12B",
        n_layers: 48,
        d_model: 3840,
        d_ff: 15_360,
        shared_d_ff: 15_360,
        pattern: 6,
        n_heads: 16,
        n_kv_heads: [8, 1],
        window: 1024,
        context_len: 262_144,
        per_layer_width: 0,
        n_shared: 0,
        experts: None,
    },
    Size {
        name: "26B-A4B",
        n_layers: 30,
        d_model: 2816,
        d_ff: 2112,
        shared_d_ff: 2112,
        pattern: 6,
        n_heads: 16,
        n_kv_heads: [8, 2],
        window: 1024,
        context_len: 262_144,
        per_layer_width: 0,
        n_shared: 0,
        experts: Some(Experts {
            n: 128,
            n_used: 8,
            d_ff: 704,
        }),
    },
    Size {
        name: "31B",
        n_layers: 60,
        d_model: 5376,
        d_ff: 21_504,
        shared_d_ff: 21_504,
        pattern: 6,
        n_heads: 32,
        n_kv_heads: [16, 4],
        window: 1024,
        context_len: 262_144,
        per_layer_width: 0,
        n_shared: 0,
        experts: None,
    },
];

/// The configuration of a size, by its name in any letter case.
pub(super) fn published(name: &str) -> Option<Config> {
    let size = SIZES.iter().find(|size| size.name.eq_ignore_ascii_case(name))?;
    let first_shared = size.n_layers - size.n_shared;
    // Sizes without per-layer inputs take the keys of global layers as values.
    let is_small = size.per_layer_width > 0;
    let layer = |i: usize| {
        let is_global = (i + 1).is_multiple_of(size.pattern);
        Gemma4Layer {
            is_global,
            n_heads: size.n_heads,
            n_kv_heads: size.n_kv_heads[usize::from(is_global)],
            head_dim: if is_global { 512 } else { 256 },
            d_ff: if i < first_shared {
                size.d_ff
            } else {
                size.shared_d_ff
            },
            keys_are_values: is_global && !is_small,
        }
    };
    let sizes = Gemma4Sizes {
        d_model: size.d_model,
        vocab_size: VOCABULARY,
        context_len: size.context_len,
        window: size.window,
        norm_eps: 1e-6,
        logit_cap: Some(30.0),
        per_layer_width: size.per_layer_width,
        local_rope: Rope {
            theta: 1e4,
            scaling: 1.0,
            n_turning: None,
        },
        global_rope: Rope {
            theta: 1e6,
            scaling: 1.0,
            n_turning: Some(TURNING),
        },
        sees_spans: !is_small,
        experts: size.experts,
        n_shared: size.n_shared,
        layers: (0..size.n_layers).map(layer).collect(),
    };
    // The table above passes the checks, which a test holds it to.
    sizes.into_config(Path::new(size.name)).ok()
}

/// Names of the sizes, smallest first.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SIZES.iter().map(|size| size.name)
}

#[cfg(test)]
mod tests {
    use super::super::super::KvSource;
    use super::*;

    /// Counted by hand from the shapes: the text model without and with its per-layer embeddings.
    #[test]
    fn parameters_are_those_of_the_shapes() {
        let expected = [
            ("E2B", 2_279_759_139, 2_348_810_240),
            ("E4B", 4_644_441_130, 2_818_572_288),
            ("12B", 11_907_350_320, 0),
            ("26B-A4B", 25_233_141_790, 0),
            ("31B", 30_697_345_340, 0),
        ];
        assert!(names().eq(expected.map(|row| row.0)));
        for (name, rest, tables) in expected {
            let config = published(&name.to_lowercase()).unwrap();
            assert_eq!(config.n_parameters(), rest + tables, "{name}");
        }
    }

    /// What the names say: effective, or active.
    #[test]
    fn active_parameters_are_those_of_the_names() {
        for (name, billions) in [
            ("E2B", 2.3),
            ("E4B", 4.6),
            ("12B", 11.9),
            ("26B-A4B", 3.8),
            ("31B", 30.7),
        ] {
            let active = published(name).unwrap().n_active_parameters() as f64 / 1e9;
            assert!((active - billions).abs() < 0.06, "{name}: {active}");
        }
    }

    #[test]
    fn the_last_layers_of_the_small_sizes_share() {
        for (name, first_shared, local, global) in [("E2B", 15, 13, 14), ("E4B", 24, 22, 23)] {
            let config = published(name).unwrap();
            assert_eq!(config.n_owning_layers(), first_shared, "{name}");
            for layer in &config.layers[first_shared..] {
                let owner = if layer.window.is_some() { local } else { global };
                assert_eq!(layer.kv, KvSource::Layer(owner), "{name}");
            }
        }
    }
}
