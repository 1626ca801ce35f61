//! Rows of images and sounds that were encoded before, so that a second question costs no tower.
//!
//! The key is a hash of the decoded input (and of whatever settings change it), made by the caller: this cache
//! trusts it. It holds no more than the given bytes; what was used longest ago goes first. It is the caller's, one
//! for each model, since rows of one model mean nothing to another.

use std::collections::HashMap;
use std::sync::Arc;

/// A content hash.
type Key = [u8; 32];

/// See the module's head.
#[derive(Debug)]
pub struct MediaCache {
    limit_bytes: usize,
    used_bytes: usize,
    /// Counts uses.
    clock: u64,
    entries: HashMap<Key, Entry>,
}

#[derive(Debug)]
struct Entry {
    rows: Arc<[f32]>,
    used: u64,
}

impl MediaCache {
    /// An empty cache that keeps at most `limit_bytes` of rows.
    #[must_use]
    pub fn new(limit_bytes: usize) -> MediaCache {
        MediaCache {
            limit_bytes,
            used_bytes: 0,
            clock: 0,
            entries: HashMap::new(),
        }
    }

    /// The rows kept for `key`.
    pub fn get(&mut self, key: &[u8; 32]) -> Option<Arc<[f32]>> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        Some(Arc::clone(&entry.rows))
    }

    /// Keeps `rows` for `key` and lets go of what was used longest ago until they fit. Rows that are larger than
    /// the whole cache are not kept.
    pub fn insert(&mut self, key: [u8; 32], rows: Arc<[f32]>) {
        let bytes = size_of_val(&*rows);
        self.remove(&key);
        if bytes > self.limit_bytes {
            return;
        }
        while self.used_bytes > self.limit_bytes - bytes {
            let oldest = self
                .entries
                .iter()
                .min_by_key(|(_, entry)| entry.used)
                .map(|(key, _)| *key);
            match oldest {
                Some(oldest) => self.remove(&oldest),
                None => break,
            }
        }
        self.clock += 1;
        self.used_bytes += bytes;
        let used = self.clock;
        self.entries.insert(key, Entry { rows, used });
    }

    /// Bytes of all rows kept.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.used_bytes -= size_of_val(&*entry.rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(n: usize, value: f32) -> Arc<[f32]> {
        vec![value; n].into()
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let mut cache = MediaCache::new(4 * 25);
        let key = |i: u8| [i; 32];
        cache.insert(key(1), rows(10, 1.0));
        cache.insert(key(2), rows(10, 2.0));
        assert!(cache.get(&key(1)).is_some());
        cache.insert(key(3), rows(10, 3.0));
        assert!(cache.get(&key(2)).is_none());
        assert_eq!(cache.get(&key(1)).unwrap()[0], 1.0);
        assert_eq!(cache.used_bytes(), 80);
    }

    #[test]
    fn the_limit_holds_whatever_comes() {
        let mut cache = MediaCache::new(100);
        for i in 0..50u8 {
            cache.insert([i % 7; 32], rows(usize::from(i) % 30, f32::from(i)));
            assert!(cache.used_bytes() <= 100);
            let kept: usize = (0..7)
                .filter_map(|i| cache.get(&[i; 32]))
                .map(|rows| 4 * rows.len())
                .sum();
            assert_eq!(kept, cache.used_bytes());
        }
        cache.insert([9; 32], rows(26, 0.0));
        assert!(cache.get(&[9; 32]).is_none());
    }
}
