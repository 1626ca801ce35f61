//! The keys and values of one sequence.
//!
//! Each layer keeps `[K heads][capacity][row]` of keys and of values, position `p` in slot `p % capacity`
//! (see [`carat_kernels::attention`]). Global layers have a slot for every token of the sequence; local layers
//! only for their window and [`ROLLBACK`] more, so that a few tokens can be taken back without losing what
//! the window still needs. Memory is reserved at once and touched as the sequence grows.

use carat_kernels::attention::{KvDType, KvData, KvView, row_len};
use carat_kernels::vector::to_f16;

use crate::config::{Config, LayerConfig};
use crate::{Error, SequenceCache};

/// Tokens that can always be taken back with [`SequenceCache::truncate`], counted from the longest that the sequence
/// has been.
pub const ROLLBACK: usize = 64;

/// One sequence's cache. See the module's head.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerKv>,
    dtype: KvDType,
    len: usize,
    /// The most tokens that were ever held since the cache was empty: what slots may have been overwritten by.
    high: usize,
    max_tokens: usize,
}

#[derive(Debug)]
struct LayerKv {
    k: Numbers,
    v: Numbers,
    n_kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    window: Option<usize>,
}

#[derive(Debug)]
enum Numbers {
    F16(Vec<u16>),
    F32(Vec<f32>),
}

impl KvCache {
    /// An empty cache for a sequence of up to `max_tokens` tokens.
    ///
    /// # Errors
    /// [`Error::CacheMemory`] when memory cannot be had.
    pub fn new(config: &Config, dtype: KvDType, max_tokens: usize) -> Result<KvCache, Error> {
        let no_memory = || Error::CacheMemory {
            max_tokens,
            bytes: KvCache::bytes_for(config, dtype, max_tokens),
        };
        let mut layers = Vec::with_capacity(config.layers.len());
        for layer in &config.layers {
            layers.push(LayerKv::new(layer, dtype, max_tokens).ok_or_else(no_memory)?);
        }
        Ok(KvCache {
            layers,
            dtype,
            len: 0,
            high: 0,
            max_tokens,
        })
    }

    /// Bytes of a cache for `max_tokens` tokens.
    #[must_use]
    pub fn bytes_for(config: &Config, dtype: KvDType, max_tokens: usize) -> usize {
        let one = |layer: &LayerConfig| {
            (2 * layer.n_kv_heads)
                .saturating_mul(dtype.bytes_for_row(layer.head_dim))
                .saturating_mul(capacity(layer, max_tokens))
        };
        config.layers.iter().map(one).fold(0, usize::saturating_add)
    }

    /// How numbers are stored.
    #[must_use]
    pub fn dtype(&self) -> KvDType {
        self.dtype
    }

    /// Whether this cache has the shape that `config` gives one.
    pub(crate) fn fits(&self, config: &Config) -> bool {
        self.layers.len() == config.layers.len()
            && self.layers.iter().zip(&config.layers).all(|(kv, layer)| {
                (kv.n_kv_heads, kv.head_dim, kv.window) == (layer.n_kv_heads, layer.head_dim, layer.window)
            })
    }

    /// One layer as the kernels read it.
    pub(crate) fn view(&self, layer: usize) -> KvView<'_> {
        let kv = &self.layers[layer];
        KvView {
            k: kv.k.data(),
            v: kv.v.data(),
            n_kv_heads: kv.n_kv_heads,
            head_dim: kv.head_dim,
            capacity: kv.capacity,
        }
    }

    /// Writes keys and values `[T, K, E]` of positions `pos ..` to one layer.
    pub(crate) fn store(&mut self, layer: usize, pos: usize, k: &[f32], v: &[f32]) {
        let kv = &mut self.layers[layer];
        let (width, row) = (kv.n_kv_heads * kv.head_dim, row_len(kv.head_dim));
        let n = k.len() / width;
        // Rows that later ones of the same call would overwrite are left out.
        for t in n.saturating_sub(kv.capacity)..n {
            for head in 0..kv.n_kv_heads {
                let from = t * width + head * kv.head_dim..t * width + (head + 1) * kv.head_dim;
                let to = (head * kv.capacity + (pos + t) % kv.capacity) * row;
                kv.k.write(to, &k[from.clone()]);
                kv.v.write(to, &v[from]);
            }
        }
    }

    /// Counts `n` tokens whose keys and values have been stored in every layer.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
        self.high = self.high.max(self.len);
    }
}

impl SequenceCache for KvCache {
    fn len(&self) -> usize {
        self.len
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn truncate(&mut self, len: usize) -> bool {
        if len == 0 {
            (self.len, self.high) = (0, 0);
        }
        if len >= self.len {
            return true;
        }
        // The next row, at position `len`, sees back to `len + 1 - window`; slots hold positions from
        // `high - capacity` on.
        let kept = |kv: &LayerKv| {
            let oldest = self.high.saturating_sub(kv.capacity);
            kv.window
                .is_none_or(|window| (len + 1).saturating_sub(window) >= oldest)
        };
        let possible = self.layers.iter().all(kept);
        if possible {
            self.len = len;
        }
        possible
    }
}

impl LayerKv {
    fn new(layer: &LayerConfig, dtype: KvDType, max_tokens: usize) -> Option<LayerKv> {
        let capacity = capacity(layer, max_tokens);
        let n = layer
            .n_kv_heads
            .checked_mul(capacity)?
            .checked_mul(row_len(layer.head_dim))?;
        Some(LayerKv {
            k: Numbers::zeros(dtype, n)?,
            v: Numbers::zeros(dtype, n)?,
            n_kv_heads: layer.n_kv_heads,
            head_dim: layer.head_dim,
            capacity,
            window: layer.window,
        })
    }
}

/// Slots of a layer's head.
fn capacity(layer: &LayerConfig, max_tokens: usize) -> usize {
    let wanted = layer.window.map_or(max_tokens, |window| {
        max_tokens.min(window.saturating_add(ROLLBACK))
    });
    wanted.max(1)
}

impl Numbers {
    /// `None` when memory cannot be had. Zeroed memory comes from the system untouched.
    fn zeros(dtype: KvDType, n: usize) -> Option<Numbers> {
        // `vec![0; n]` aborts when memory cannot be had, so it is asked for first.
        match dtype {
            KvDType::F16 => {
                Vec::<u16>::new().try_reserve_exact(n).ok()?;
                Some(Numbers::F16(vec![0; n]))
            }
            KvDType::F32 => {
                Vec::<f32>::new().try_reserve_exact(n).ok()?;
                Some(Numbers::F32(vec![0.0; n]))
            }
            // Sized by the planner, not yet computed with.
            KvDType::Bf16 | KvDType::Q8_0 | KvDType::Q4_0 => None,
        }
    }

    fn data(&self) -> KvData<'_> {
        match self {
            Numbers::F16(numbers) => KvData::F16(numbers),
            Numbers::F32(numbers) => KvData::F32(numbers),
        }
    }

    fn write(&mut self, at: usize, from: &[f32]) {
        match self {
            Numbers::F16(numbers) => to_f16(from, &mut numbers[at..at + from.len()]),
            Numbers::F32(numbers) => numbers[at..at + from.len()].copy_from_slice(from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Family, Rope};

    fn config(window: usize) -> Config {
        let layer = |window| LayerConfig {
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 16,
            window,
            rope: 0,
            d_ff: 32,
        };
        Config {
            family: Family::Gemma3,
            d_model: 32,
            vocab_size: 10,
            context_len: 100_000,
            norm_eps: 1e-6,
            embed_scale: 1.0,
            score_scale: 1.0,
            ropes: vec![Rope {
                theta: 1e4,
                scaling: 1.0,
            }],
            layers: vec![layer(Some(window)), layer(None)],
        }
    }

    fn fill(cache: &mut KvCache, n: usize) {
        for layer in 0..2 {
            let rows = vec![1.0; n * 16];
            cache.store(layer, cache.len, &rows, &rows);
        }
        cache.advance(n);
    }

    #[test]
    fn local_layers_hold_their_window_only() {
        let bytes = |n| KvCache::bytes_for(&config(512), KvDType::F16, n);
        assert_eq!(bytes(100_000), 2 * 32 * 2 * (512 + ROLLBACK + 100_000));
        assert_eq!(bytes(10), 2 * 32 * 2 * 20);
    }

    #[test]
    fn a_few_tokens_can_always_be_taken_back() {
        let mut cache = KvCache::new(&config(100), KvDType::F32, 1000).unwrap();
        fill(&mut cache, 500);
        assert!(cache.truncate(500 - ROLLBACK));
        // Those slots are gone for good: what has been written further on counts.
        assert!(!cache.truncate(500 - ROLLBACK - 2));
        assert_eq!(cache.len(), 500 - ROLLBACK);
        assert!(cache.truncate(0));
        fill(&mut cache, 150);
        assert!(cache.truncate(1), "nothing was overwritten yet");
    }

    #[test]
    fn impossible_memory_is_an_error() {
        let result = KvCache::new(&config(100), KvDType::F32, usize::MAX / 1024);
        assert!(matches!(result, Err(Error::CacheMemory { .. })));
    }
}
