//! Where beginnings go that memory has no room for, and from where they come back.
//!
//! The engine knows no files: whoever has some implements [`PrefixStore`]. Calls are made between two steps, so they must
//! be short beside the prompts that they save; writing belongs on a thread of the store's own.

/// Keeps caches of beginnings longer than memory does.
pub trait PrefixStore<C>: Send {
    /// Tokens that the longest stored beginning has in common with `tokens`, counting those only that its cache can be
    /// expected to go back to. 0 when there is none.
    fn n_common(&mut self, tokens: &[u32]) -> usize;

    /// The cache of that beginning, holding exactly the first tokens of `tokens`; `None` when it cannot be had after all.
    fn load(&mut self, tokens: &[u32]) -> Option<C>;

    /// Keeps a cache of `tokens`, or not: nothing depends on it. `is_end`: nobody waits for the engine any more, so that
    /// this may take its time.
    fn keep(&mut self, tokens: Vec<u32>, cache: C, is_end: bool);
}
