//! A position in the bytes of a file, moved on by checked reads.

use crate::error::Fault;

/// Reads forward through `bytes`; every read says which field it is for.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, pos: 0 }
    }

    /// Bytes read so far.
    pub(super) fn pos(&self) -> usize {
        self.pos
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> u64 {
        (self.bytes.len() - self.pos) as u64
    }

    /// The next `n` bytes.
    pub(super) fn take(&mut self, n: u64, field: &'static str) -> Result<&'a [u8], Fault> {
        let truncated = Fault::Truncated {
            field,
            needed: n,
            left: self.left(),
        };
        let n = usize::try_from(n).map_err(|_| truncated.clone())?;
        let end = self.pos.checked_add(n).ok_or_else(|| truncated.clone())?;
        let taken = self.bytes.get(self.pos..end).ok_or(truncated)?;
        self.pos = end;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, field)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, Fault> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, Fault> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A count of things of at least `min_bytes` bytes each: at most `limit`, and no more than can be left.
    pub(super) fn count(&mut self, field: &'static str, limit: u64, min_bytes: u64) -> Result<u64, Fault> {
        let count = self.u64(field)?;
        if count > limit {
            return Err(Fault::TooMany {
                field,
                found: count,
                limit,
            });
        }
        self.room(count, min_bytes, field)?;
        Ok(count)
    }

    /// Checks that `count` things of `bytes` bytes each can still follow; returns their size.
    pub(super) fn room(&self, count: u64, bytes: u64, field: &'static str) -> Result<u64, Fault> {
        let left = self.left();
        match count.checked_mul(bytes) {
            Some(needed) if needed <= left => Ok(needed),
            needed => Err(Fault::Truncated {
                field,
                needed: needed.unwrap_or(u64::MAX),
                left,
            }),
        }
    }

    /// A string of at most `limit` bytes.
    pub(super) fn string(&mut self, field: &'static str, limit: u64) -> Result<&'a [u8], Fault> {
        let len = self.u64(field)?;
        if len > limit && len <= self.left() {
            return Err(Fault::TooLong {
                field,
                found: len,
                limit,
            });
        }
        self.take(len, field)
    }

    /// A string that must be UTF-8.
    pub(super) fn text(&mut self, field: &'static str, limit: u64) -> Result<&'a str, Fault> {
        std::str::from_utf8(self.string(field, limit)?).map_err(|_| Fault::NotUtf8 { field })
    }
}
