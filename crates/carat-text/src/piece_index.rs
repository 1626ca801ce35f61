//! An open-addressing index from the bytes of a piece to its id.
//!
//! A slot is one `u64`: 32 bits of the hash as a tag, 32 bits of `id + 1` (0 = empty). A piece that is not in the
//! vocabulary, the usual case while merging, is refused by the tag without touching the pieces' bytes. The table
//! is at most two thirds full, so that runs stay short. The hash is keyed at random per index: a file cannot be
//! prepared to collide, and the choice of key never shows in a result. The pieces themselves live with the caller.

use std::hash::{BuildHasher, RandomState};

use crate::error::{Error, Result};

/// Slots looked at for one insertion before the file is refused; honest tables need under 64.
const PROBE_LIMIT: usize = 4096;

/// Ids by the bytes of their pieces.
#[derive(Debug)]
pub(crate) struct PieceIndex {
    slots: Box<[u64]>,
    mask: usize,
    key: u64,
}

impl PieceIndex {
    /// An empty index for at most `n` pieces.
    pub(crate) fn with_capacity(n: usize) -> Self {
        let len = (n.max(8).saturating_mul(3) / 2).next_power_of_two();
        Self {
            slots: vec![0; len].into_boxed_slice(),
            mask: len - 1,
            key: RandomState::new().hash_one(0_u8) | 1,
        }
    }

    /// The id whose piece is `bytes`; `piece_of` gives the bytes of an id.
    #[inline]
    pub(crate) fn find<'a>(&self, bytes: &[u8], piece_of: impl Fn(u32) -> &'a [u8]) -> Option<u32> {
        self.find_hashed(self.hash(bytes), bytes, piece_of)
    }

    #[inline]
    fn find_hashed<'a>(&self, hash: u64, bytes: &[u8], piece_of: impl Fn(u32) -> &'a [u8]) -> Option<u32> {
        let mut at = hash as usize & self.mask;
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return None;
            }
            let id = (slot as u32) - 1;
            if slot >> 32 == hash >> 32 && piece_of(id) == bytes {
                return Some(id);
            }
            at = (at + 1) & self.mask;
        }
    }

    /// [`find`](Self::find) for many pieces: `ids` becomes their ids, in order.
    pub(crate) fn find_all<'a, 'p>(
        &self,
        pieces: impl Iterator<Item = &'p [u8]> + Clone,
        piece_of: impl Fn(u32) -> &'a [u8],
        ids: &mut Vec<Option<u32>>,
    ) {
        let mut hashes = [0; 128];
        ids.clear();
        let mut rest = pieces;
        loop {
            let part = rest.clone().take(hashes.len());
            let hashed = hashes.iter_mut().zip(part.clone());
            let n = hashed.map(|(hash, piece)| *hash = self.hash(piece)).count();
            if n == 0 {
                return;
            }
            let slot = |hash: u64| self.slots[hash as usize & self.mask];
            overlap_reads(&hashes[..n], |&hash| slot(hash));
            // An empty slot wraps to an id that no piece has.
            let candidate = |hash: u64| piece_of((slot(hash) as u32).wrapping_sub(1));
            overlap_reads(&hashes[..n], |&hash| candidate(hash).len() as u64);
            overlap_reads(&hashes[..n], |&hash| {
                candidate(hash).first().copied().unwrap_or(0).into()
            });
            let found = part.zip(&hashes);
            ids.extend(found.map(|(piece, &hash)| self.find_hashed(hash, piece, &piece_of)));
            rest.by_ref().take(n).for_each(drop);
        }
    }

    /// Adds `id` under `bytes` unless they are there already; then returns the id that has them.
    pub(crate) fn insert<'a>(
        &mut self,
        bytes: &[u8],
        id: u32,
        piece_of: impl Fn(u32) -> &'a [u8],
    ) -> Result<Option<u32>> {
        let hash = self.hash(bytes);
        let mut at = hash as usize & self.mask;
        for _ in 0..PROBE_LIMIT.min(self.mask) {
            let slot = self.slots[at];
            if slot == 0 {
                self.slots[at] = (hash >> 32 << 32) | (u64::from(id) + 1);
                return Ok(None);
            }
            let held = (slot as u32) - 1;
            if slot >> 32 == hash >> 32 && piece_of(held) == bytes {
                return Ok(Some(held));
            }
            at = (at + 1) & self.mask;
        }
        Err(Error::IndexOverfull)
    }

    /// Eight bytes at a time through a folded 64 × 64 → 128 bit product.
    #[inline]
    fn hash(&self, bytes: &[u8]) -> u64 {
        let mut state = self.key ^ (bytes.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let (chunks, tail) = bytes.as_chunks::<8>();
        for chunk in chunks {
            state = fold(state ^ u64::from_le_bytes(*chunk), self.key);
        }
        let mut last = 0_u64;
        for &byte in tail {
            last = last << 8 | u64::from(byte);
        }
        fold(fold(state ^ last, self.key), 0xA076_1D64_78BD_642F)
    }
}

/// Reads what `read` reads for each item, without a decision in between: the processor then waits for all of memory's
/// answers at once, and who reads the same places next finds them in its cache.
#[inline]
pub(crate) fn overlap_reads<T>(items: &[T], read: impl Fn(&T) -> u64) {
    std::hint::black_box(items.iter().fold(0, |all, item| all ^ read(item)));
}

/// High and low halves of the product, combined.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0xE703_7ED1_A0B4_28DB) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::PieceIndex;

    #[test]
    fn finds_what_was_inserted_and_nothing_else() {
        let pieces: Vec<Vec<u8>> = (0..5000_u32)
            .map(|i| format!("{}x{i}", i % 7).into_bytes())
            .collect();
        let of = |id: u32| pieces[id as usize].as_slice();
        let mut index = PieceIndex::with_capacity(pieces.len());
        for (id, piece) in pieces.iter().enumerate() {
            assert_eq!(index.insert(piece, id as u32, of).unwrap(), None);
        }
        for (id, piece) in pieces.iter().enumerate() {
            assert_eq!(index.find(piece, of), Some(id as u32));
            assert_eq!(index.insert(piece, 1, of).unwrap(), Some(id as u32));
        }
        assert_eq!(index.find(b"7x7", of), None);
        assert_eq!(index.find(b"", of), None);
    }
}
