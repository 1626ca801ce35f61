//! A name for what the model gets to see or hear.
//!
//! It is made of the processed input (resized pixels or samples, and how they are laid out), not of the file: two
//! files that look alike to the model share their embeddings, and another token budget of the same picture does
//! not.

use std::fmt;

use sha2::{Digest, Sha256};

/// SHA-256 of a processed input. Equal hashes: equal inputs to the model's tower or embedder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

/// Collects what makes an input what it is.
pub(crate) struct Hasher(Sha256);

impl Hasher {
    /// `kind` keeps kinds of processing apart, `sizes` what the bytes alone would not tell.
    pub(crate) fn new(kind: &str, sizes: &[usize]) -> Hasher {
        let mut hash = Sha256::new();
        hash.update((kind.len() as u64).to_le_bytes());
        hash.update(kind.as_bytes());
        for size in sizes {
            hash.update((*size as u64).to_le_bytes());
        }
        Hasher(hash)
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Hasher {
        self.0.update(bytes);
        self
    }

    pub(crate) fn samples(&mut self, samples: &[f32]) -> &mut Hasher {
        let mut bytes = Vec::new();
        for part in samples.chunks(1 << 12) {
            bytes.clear();
            bytes.extend(part.iter().flat_map(|sample| sample.to_le_bytes()));
            self.0.update(&bytes);
        }
        self
    }

    pub(crate) fn finish(self) -> ContentHash {
        ContentHash(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(kind: &str, sizes: &[usize], bytes: &[u8]) -> ContentHash {
        let mut hasher = Hasher::new(kind, sizes);
        hasher.bytes(bytes);
        hasher.finish()
    }

    #[test]
    fn kind_size_and_content_all_count() {
        let one = hash("a", &[2, 3], b"xyz");
        assert_eq!(one, hash("a", &[2, 3], b"xyz"));
        assert_ne!(one, hash("b", &[2, 3], b"xyz"));
        assert_ne!(one, hash("a", &[3, 2], b"xyz"));
        assert_ne!(one, hash("a", &[2, 3], b"xyw"));
        assert_eq!(one.to_string().len(), 64);
    }
}
