//! Vectors that begin at a cache line, so that no register's load or store straddles two.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

/// A vector of numbers, aligned to 64 bytes, that is resized as a whole.
#[derive(Debug)]
pub(crate) struct Aligned<T> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

/// A cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

impl Line {
    /// Zeros.
    pub(crate) const ZERO: Line = Line([0; 64]);
}

// SAFETY: 64 plain bytes without padding.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above; any bytes are a value.
unsafe impl Pod for Line {}

impl<T> Default for Aligned<T> {
    fn default() -> Aligned<T> {
        Aligned {
            lines: Vec::new(),
            len: 0,
            of: PhantomData,
        }
    }
}

impl<T: Pod> Aligned<T> {
    /// Makes it `len` long. Old values stay where they are, new ones are zero or of an earlier, longer time.
    pub(crate) fn resize(&mut self, len: usize) {
        self.lines.resize((len * size_of::<T>()).div_ceil(64), Line::ZERO);
        self.len = len;
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::Aligned;

    #[test]
    fn begins_at_a_cache_line_and_keeps_its_length() {
        let mut numbers = Aligned::<f32>::default();
        assert!(numbers.is_empty());
        for len in [1, 16, 17, 1000, 3] {
            numbers.resize(len);
            assert_eq!(numbers.len(), len);
            assert_eq!(numbers.as_ptr() as usize % 64, 0);
            numbers.fill(2.0);
        }
        numbers.resize(0);
        assert!(numbers.is_empty());
    }
}
