//! What guessing ahead takes beside the model that is guessed for.
//!
//! A drafter that was made for its target reads the target's cache and computes a row of each sequence: its weights and
//! a row of scores are all. A smaller model has a cache of its own, and reads every prompt in chunks as its target does.

use carat_model::{Config, KvDType, LayerConfig, ROLLBACK};

use crate::plan::{Buffers, Setup};

/// Elements of a cache row by which its bytes are told; heads are multiples of it or little different.
const ROW: u64 = 256;
/// Positions of a page of the cache.
const PAGE: u64 = 64;

/// The bytes of a drafter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafter {
    /// Of its files, mapped.
    pub weights: u64,
    /// Of what it computes in.
    pub buffers: u64,
    /// Elements of its own cache in layers with a window, for each sequence.
    local_elements: u64,
    /// Elements of its own cache in the other layers, for each token.
    global_elements: u64,
}

impl Drafter {
    /// One that was made for `target` and takes `weights` bytes.
    #[must_use]
    pub fn made_for(target: &Config, weights: u64, setup: &Setup) -> Drafter {
        // A row of scores, the embedding beside the hidden state, and its own few rows, which are narrower.
        let row = 4 * (target.vocab_size as u64 + 8 * target.d_model as u64);
        Drafter {
            weights,
            buffers: row.saturating_mul(setup.n_sequences as u64),
            ..Drafter::default()
        }
    }

    /// A smaller model, of `config` and `weights` bytes.
    #[must_use]
    pub fn smaller_model(config: &Config, weights: u64, setup: &Setup) -> Drafter {
        let elements = |layer: &LayerConfig| 2 * layer.kv_width() as u64;
        let owners = || config.layers.iter().filter(|layer| layer.owns_kv());
        let windows = owners().filter_map(|layer| {
            let window = layer.window? as u64;
            let positions = window.saturating_add(ROLLBACK as u64).next_multiple_of(PAGE);
            Some(positions.saturating_mul(elements(layer)))
        });
        Drafter {
            weights,
            buffers: Buffers::of(config, false, setup).total(),
            local_elements: windows.fold(0, u64::saturating_add),
            global_elements: owners()
                .filter(|layer| layer.window.is_none())
                .map(elements)
                .sum(),
        }
    }

    /// Its caches of `n_sequences` sequences of `context` tokens.
    #[must_use]
    pub fn kv(&self, dtype: KvDType, context: usize, n_sequences: usize) -> u64 {
        let global = self.global_elements.saturating_mul(context as u64);
        let elements = self.local_elements.saturating_add(global);
        let rows = elements.saturating_mul(n_sequences as u64) / ROW;
        rows.saturating_mul(dtype.bytes_for_row(ROW as usize) as u64)
    }

    /// All of it.
    #[must_use]
    pub fn total(&self, setup: &Setup) -> u64 {
        let kv = self.kv(setup.kv_dtype, setup.context, setup.n_sequences);
        self.weights.saturating_add(self.buffers).saturating_add(kv)
    }
}

#[cfg(test)]
mod tests {
    use carat_model::Precision;

    use super::*;
    use crate::{Kv, Plan, Weights};

    fn setup() -> Setup {
        Setup {
            context: 32_768,
            n_sequences: 2,
            kv_dtype: KvDType::F16,
            n_threads: 2,
            has_tiles: false,
            max_batch_tokens: 512,
            precision: Precision::Int8,
            tower_bytes: 0,
            drafter: None,
        }
    }

    #[test]
    fn a_smaller_model_takes_the_cache_that_it_has_alone() {
        let (config, setup) = (Config::published("270M").unwrap(), setup());
        let drafter = Drafter::smaller_model(&config, 250_000_000, &setup);
        for dtype in [KvDType::F16, KvDType::Q8_0] {
            let alone = Kv::of(&config, dtype, setup.context, 2).total();
            assert_eq!(drafter.kv(dtype, setup.context, 2), alone);
        }
        assert!(drafter.buffers > 20_000_000);
    }

    #[test]
    fn a_plan_counts_the_drafter() {
        let target = Config::published("gemma4-12B").unwrap();
        let weights = Weights::of_mix(&target, carat_model::convert::Mix::Q4_0);
        let drafter = Drafter::made_for(&target, 465_109_248, &setup());
        assert_eq!(drafter.kv(KvDType::F16, 131_072, 4), 0);
        let with = Setup {
            drafter: Some(drafter),
            ..setup()
        };
        let beside =
            Plan::new(&target, &weights, &with).peak() - Plan::new(&target, &weights, &setup()).peak();
        assert_eq!(beside, drafter.weights + drafter.buffers);
        assert!((465_109_248..470_000_000).contains(&beside), "{beside}");
    }
}
