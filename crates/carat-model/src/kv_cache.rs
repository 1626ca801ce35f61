//! The keys and values of one sequence.
//!
//! Each layer has a table of pages of [`PAGE`] positions (see [`carat_kernels::attention`]). A global layer's
//! table grows with the sequence, a page at a time; a local layer's is a ring that holds its window and
//! [`ROLLBACK`] positions more, so that a few tokens can be taken back without losing what the window still
//! needs. A layer that attends to another's keys and values has no pages. Nothing is allocated before it is used: a cache for 131,072 tokens costs nothing until they come.
//!
//! Pages may be shared. [`KvCache::fork`] makes a second cache with the same beginning, which holds the same
//! pages by reference count; whoever writes to a shared page first copies it. All memory of a pass is taken by
//! [`KvCache::reserve`] before anything is computed, so that a pass cannot fail half-way.

use std::sync::Arc;

use carat_kernels::attention::{KvDType, KvPage, KvShape, KvView, PAGE};

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
    /// What the last pass left for a drafter.
    hidden: HiddenRows,
    /// What a drafter with a cache of its own has of this sequence.
    pub(crate) drafter: Option<Box<DrafterCache>>,
}

/// Rows of the last hidden state, after the final norm.
#[derive(Debug, Default)]
struct HiddenRows {
    /// Position of the first.
    first: usize,
    width: usize,
    values: Vec<f32>,
}

/// A drafter's own cache, and the tokens that it holds.
#[derive(Debug)]
pub(crate) struct DrafterCache {
    pub(crate) tokens: Vec<u32>,
    pub(crate) cache: KvCache,
}

#[derive(Clone, Debug)]
struct LayerKv {
    shape: KvShape,
    window: Option<usize>,
    /// Whether the layer has keys and values of its own; otherwise it has no pages.
    is_owner: bool,
    /// Position `p` is in `pages[(p / PAGE) % pages.len()]`: a ring is full before it is gone around.
    pages: Vec<Arc<KvPage>>,
}

impl KvCache {
    /// An empty cache for a sequence of up to `max_tokens` tokens, which takes no memory yet.
    #[must_use]
    pub fn new(config: &Config, dtype: KvDType, max_tokens: usize) -> KvCache {
        let layers = config.layers.iter().map(|layer| LayerKv {
            shape: shape(layer, dtype),
            window: layer.window,
            is_owner: layer.owns_kv(),
            pages: Vec::new(),
        });
        KvCache {
            layers: layers.collect(),
            dtype,
            len: 0,
            high: 0,
            max_tokens,
            hidden: HiddenRows::default(),
            drafter: None,
        }
    }

    /// Bytes of a cache that holds `n_tokens` tokens, if it shares nothing.
    #[must_use]
    pub fn bytes_for(config: &Config, dtype: KvDType, n_tokens: usize) -> usize {
        let one = |layer: &LayerConfig| {
            let n_pages = ring_pages(layer.window).min(n_tokens.div_ceil(PAGE));
            let page = shape(layer, dtype).page_bytes().unwrap_or(usize::MAX);
            page.saturating_mul(n_pages)
        };
        let owners = config.layers.iter().filter(|layer| layer.owns_kv());
        owners.map(one).fold(0, usize::saturating_add)
    }

    /// Bytes of the pages held now; those shared with other caches are counted in each.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let one = |kv: &LayerKv| kv.shape.page_bytes().unwrap_or(0).saturating_mul(kv.pages.len());
        self.layers.iter().map(one).fold(0, usize::saturating_add)
    }

    /// How numbers are stored.
    #[must_use]
    pub fn dtype(&self) -> KvDType {
        self.dtype
    }

    /// A second cache with the first `len` tokens of this one, which shares their memory until either writes
    /// there. `None` when local layers no longer hold what a sequence of `len` tokens would need, as with
    /// [`SequenceCache::truncate`], or when there are fewer than `len`.
    #[must_use]
    pub fn fork(&self, len: usize) -> Option<KvCache> {
        if len > self.len || !self.holds(len) {
            return None;
        }
        let drafter = self.drafter.as_ref().and_then(|drafter| {
            let cache = drafter.cache.fork(drafter.cache.len)?;
            let tokens = drafter.tokens.clone();
            Some(Box::new(DrafterCache { tokens, cache }))
        });
        let mut fork = KvCache {
            layers: self.layers.clone(),
            dtype: self.dtype,
            len: self.len,
            high: self.high,
            max_tokens: self.max_tokens,
            // The pass that anything is guessed after comes first.
            hidden: HiddenRows::default(),
            drafter,
        };
        fork.shorten(len);
        Some(fork)
    }

    /// Keeps `rows` `[n, width]` of the last hidden state, from position `first` on, in the place of those before.
    pub(crate) fn keep_hidden(&mut self, first: usize, width: usize, rows: &[f32]) {
        self.hidden.first = first;
        self.hidden.width = width;
        self.hidden.values.clear();
        self.hidden.values.extend_from_slice(rows);
    }

    /// The last hidden state of the last token, where it was kept.
    pub(crate) fn last_hidden(&self) -> Option<&[f32]> {
        let row = self.len.checked_sub(1)?.checked_sub(self.hidden.first)?;
        self.hidden.values.chunks_exact(self.hidden.width.max(1)).nth(row)
    }

    /// Whether this cache has the shape that `config` gives one.
    pub(crate) fn fits(&self, config: &Config) -> bool {
        self.layers.len() == config.layers.len()
            && self.layers.iter().zip(&config.layers).all(|(kv, layer)| {
                kv.shape == shape(layer, self.dtype)
                    && kv.window == layer.window
                    && kv.is_owner == layer.owns_kv()
            })
    }

    /// Makes sure that the next `n` tokens have pages of their own to be written to.
    ///
    /// # Errors
    /// [`Error::CacheMemory`] when memory cannot be had; what is cached is unchanged.
    pub(crate) fn reserve(&mut self, n: usize) -> Result<(), Error> {
        let (len, end) = (self.len, self.len.saturating_add(n));
        for kv in self.layers.iter_mut().filter(|kv| kv.is_owner) {
            kv.reserve(len, end).ok_or(Error::CacheMemory {
                n_tokens: end,
                bytes: kv.shape.page_bytes().unwrap_or(usize::MAX),
            })?;
        }
        Ok(())
    }

    /// One layer as the kernels read it.
    pub(crate) fn view(&self, layer: usize) -> KvView<'_> {
        let kv = &self.layers[layer];
        KvView {
            pages: &kv.pages,
            shape: kv.shape,
        }
    }

    /// What one layer's pages hold.
    pub(crate) fn shape(&self, layer: usize) -> &KvShape {
        &self.layers[layer].shape
    }

    /// Writes the packed keys and values `[n, K, row]` of the next `n` tokens to one layer. The pages have been
    /// reserved.
    pub(crate) fn store(&mut self, layer: usize, n: usize, k: &[u8], v: &[u8]) {
        let kv = &mut self.layers[layer];
        let (width, n_pages) = (k.len() / n.max(1), kv.pages.len());
        // Rows that later ones of the same call would overwrite are left out.
        for t in n.saturating_sub(n_pages * PAGE)..n {
            let (pos, row) = (self.len + t, t * width..(t + 1) * width);
            // A reserved page has no other owner, and none can come while this cache is borrowed.
            match Arc::get_mut(&mut kv.pages[pos / PAGE % n_pages]) {
                Some(page) => page.write(&kv.shape, pos % PAGE, &k[row.clone()], &v[row]),
                None => unreachable!("a page is written that was not reserved"),
            }
        }
    }

    /// The pages of each layer, and the most tokens there ever were: what a file needs beside the tokens.
    pub(crate) fn saved_state(&self) -> (Vec<&[Arc<KvPage>]>, usize) {
        (
            self.layers.iter().map(|kv| kv.pages.as_slice()).collect(),
            self.high,
        )
    }

    /// Whether a layer can have `n_pages` pages when `len` tokens count and `high` were the most.
    pub(crate) fn may_have_pages(&self, layer: usize, len: usize, high: usize, n_pages: usize) -> bool {
        let kv = &self.layers[layer];
        let ring = ring_pages(kv.window);
        let fewest = if high > ring.saturating_mul(PAGE) {
            ring
        } else {
            len.div_ceil(PAGE)
        };
        let most = len.saturating_add(ROLLBACK).max(high).div_ceil(PAGE).min(ring);
        match kv.is_owner {
            true => (fewest..=most).contains(&n_pages),
            false => n_pages == 0,
        }
    }

    /// Appends a page to a layer of a cache that is being read from a file.
    pub(crate) fn push_page(&mut self, layer: usize, page: Arc<KvPage>) {
        self.layers[layer].pages.push(page);
    }

    /// Counts what was read from a file.
    pub(crate) fn set_state(&mut self, len: usize, high: usize) {
        (self.len, self.high) = (len, high);
    }

    /// Counts `n` tokens whose keys and values have been stored in every layer.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
        self.high = self.high.max(self.len);
    }

    /// Whether every layer still holds what tokens from position `len` on see.
    fn holds(&self, len: usize) -> bool {
        // The next row, at position `len`, sees back to `len + 1 - window`; slots hold positions from
        // `high - slots` on.
        let kept = |kv: &LayerKv| {
            let Some(window) = kv.window else { return true };
            let oldest = self
                .high
                .saturating_sub(ring_pages(kv.window).saturating_mul(PAGE));
            (len + 1).saturating_sub(window) >= oldest
        };
        len == 0 || self.layers.iter().all(kept)
    }

    /// Forgets tokens from `len` on, and gives back pages that the next few would not need.
    fn shorten(&mut self, len: usize) {
        self.len = len;
        if len == 0 {
            self.high = 0;
        }
        for kv in &mut self.layers {
            // A ring that has been gone around must stay whole.
            if self.high <= ring_pages(kv.window).saturating_mul(PAGE) {
                kv.pages.truncate(len.saturating_add(ROLLBACK).div_ceil(PAGE));
            }
        }
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
        if len >= self.len && len > 0 {
            return true;
        }
        let possible = self.holds(len);
        if possible {
            self.shorten(len);
        }
        possible
    }

    fn fork(&self, len: usize) -> Option<KvCache> {
        KvCache::fork(self, len)
    }

    fn visit_memory(&self, visit: &mut dyn FnMut(usize, usize)) {
        for kv in &self.layers {
            let bytes = kv.shape.page_bytes().unwrap_or(0);
            for page in &kv.pages {
                visit(Arc::as_ptr(page).addr(), bytes);
            }
        }
        if let Some(drafter) = &self.drafter {
            drafter.cache.visit_memory(visit);
        }
    }
}

impl LayerKv {
    /// Makes the pages of positions `len..end` exist without another owner. `None` when memory cannot be had.
    fn reserve(&mut self, len: usize, end: usize) -> Option<()> {
        let (ring, last) = (ring_pages(self.window), end.div_ceil(PAGE));
        while self.pages.len() < last.min(ring) {
            self.pages.try_reserve(1).ok()?;
            self.pages.push(Arc::new(KvPage::new(&self.shape)?));
        }
        for page in (len / PAGE).max(last.saturating_sub(ring))..last {
            let page = &mut self.pages[page % ring];
            if Arc::get_mut(page).is_none() {
                *page = Arc::new(page.try_clone()?);
            }
        }
        Some(())
    }
}

/// What the pages of a layer hold.
fn shape(layer: &LayerConfig, dtype: KvDType) -> KvShape {
    KvShape {
        dtype,
        n_kv_heads: layer.n_kv_heads,
        head_dim: layer.head_dim,
    }
}

/// Pages that a layer has at most.
fn ring_pages(window: Option<usize>) -> usize {
    window.map_or(usize::MAX, |window| {
        window.saturating_add(ROLLBACK).div_ceil(PAGE)
    })
}

#[cfg(test)]
mod tests {
    use carat_kernels::Isa;
    use carat_kernels::attention::pack_rows;

    use super::*;
    use crate::config::{Family, KvSource, Rope};

    fn config(window: usize) -> Config {
        let layer = |window| LayerConfig {
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 16,
            window,
            rope: 0,
            d_ff: 32,
            kv: KvSource::Own,
            experts: None,
            sees_spans: true,
        };
        Config {
            family: Family::Gemma3,
            d_model: 32,
            vocab_size: 10,
            context_len: 100_000,
            norm_eps: 1e-6,
            embed_scale: 1.0,
            score_scale: 1.0,
            logit_cap: None,
            per_layer_width: 0,
            ropes: vec![Rope {
                theta: 1e4,
                scaling: 1.0,
                n_turning: None,
            }],
            layers: vec![layer(Some(window)), layer(None)],
        }
    }

    /// Appends `n` tokens whose keys and values are `value`.
    fn fill(cache: &mut KvCache, n: usize, value: f32) {
        cache.reserve(n).unwrap();
        for layer in 0..2 {
            let shape = cache.shape(layer);
            let mut rows = vec![0; shape.packed_len(n * 16)];
            pack_rows(Isa::detect(), shape, &vec![value; n * 16], &mut rows);
            cache.store(layer, n, &rows, &rows);
        }
        cache.advance(n);
    }

    /// How many of the pages of both are the same.
    fn n_shared(a: &KvCache, b: &KvCache) -> usize {
        let pairs = a.layers.iter().zip(&b.layers);
        let shared = |(a, b): (&LayerKv, &LayerKv)| {
            let both = a.pages.iter().zip(&b.pages);
            both.filter(|(a, b)| Arc::ptr_eq(a, b)).count()
        };
        pairs.map(shared).sum()
    }

    #[test]
    fn local_layers_hold_their_window_only() {
        let bytes = |n| KvCache::bytes_for(&config(512), KvDType::F16, n);
        // A page is 64 positions of keys and values, 64 elements after padding, two bytes each.
        let page = 64 * 2 * 64 * 2;
        assert_eq!(bytes(128_000), page * (9 + 2000));
        assert_eq!(bytes(10), page * 2);
        assert_eq!(bytes(0), 0);
    }

    #[test]
    fn memory_grows_with_use() {
        let config = config(512);
        let mut cache = KvCache::new(&config, KvDType::Q8_0, 100_000);
        assert_eq!(cache.bytes(), 0);
        for _ in 0..30 {
            fill(&mut cache, 50, 1.0);
            assert_eq!(
                cache.bytes(),
                KvCache::bytes_for(&config, KvDType::Q8_0, cache.len())
            );
        }
        assert!(cache.truncate(0));
        assert_eq!(
            cache.bytes(),
            KvCache::bytes_for(&config, KvDType::Q8_0, ROLLBACK)
        );
    }

    #[test]
    fn a_few_tokens_can_always_be_taken_back() {
        let mut cache = KvCache::new(&config(100), KvDType::F32, 1000);
        fill(&mut cache, 500, 1.0);
        assert!(cache.truncate(500 - ROLLBACK));
        // Those slots are gone for good: what has been written further on counts.
        assert!(!cache.truncate(500 - ROLLBACK - 40));
        assert_eq!(cache.len(), 500 - ROLLBACK);
        assert!(cache.truncate(0));
        fill(&mut cache, 150, 1.0);
        assert!(cache.truncate(1), "nothing was overwritten yet");
        fill(&mut cache, 600, 1.0);
        assert_eq!(cache.len(), 601);
    }

    #[test]
    fn a_chunk_longer_than_the_ring_leaves_it_whole() {
        for n in [129, 200, 320, 500] {
            let mut cache = KvCache::new(&config(10), KvDType::F32, 1000);
            fill(&mut cache, n, 1.0);
            assert_eq!(cache.layers[0].pages.len(), 2);
        }
    }

    #[test]
    fn a_page_is_copied_when_one_of_its_owners_writes() {
        let mut cache = KvCache::new(&config(100), KvDType::F16, 1000);
        fill(&mut cache, 300, 1.0);
        let mut fork = cache.fork(300).unwrap();
        let n_pages = 3 + 5;
        assert_eq!(n_shared(&cache, &fork), n_pages);
        fill(&mut fork, 1, 2.0);
        assert_eq!(n_shared(&cache, &fork), n_pages - 2, "one page of each layer");
        fill(&mut cache, 1, 3.0);
        assert_eq!(
            n_shared(&cache, &fork),
            n_pages - 2,
            "its page has one owner by now"
        );
        assert!(cache.fork(302).is_none(), "longer than the cache");
        assert!(cache.fork(50).is_none(), "beyond what the local layer holds");
        assert_eq!(cache.fork(0).unwrap().len(), 0);
    }

    #[test]
    fn impossible_memory_is_an_error_and_changes_nothing() {
        let mut config = config(100);
        config.layers[1].n_kv_heads = 1 << 45;
        let mut cache = KvCache::new(&config, KvDType::F32, 1000);
        assert!(matches!(cache.reserve(1), Err(Error::CacheMemory { .. })));
        assert_eq!(cache.len(), 0);
    }
}
