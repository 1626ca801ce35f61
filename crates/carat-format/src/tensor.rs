//! A tensor in a file: its name, number format, shape and bytes.
//!
//! Shapes are outermost first everywhere in carat: a weight is `[out, in]`, its rows of `in` elements lie
//! one after another.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use carat_kernels::DType;

use crate::mapping::Mapping;

/// A tensor that can be computed with, borrowed from its reader.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// How the numbers are stored.
    pub dtype: DType,
    /// Elements per axis, outermost first; empty for a scalar.
    pub shape: &'a [usize],
    /// The data: exactly as many bytes as `dtype` and `shape` need. In a mapped GGUF file it begins at a
    /// multiple of its alignment, 32 bytes as a rule and 8 at least; for safetensors nothing is promised.
    pub bytes: &'a [u8],
    pub(crate) mapping: &'a Arc<Mapping>,
    pub(crate) start: usize,
}

impl TensorView<'_> {
    /// The same bytes, kept mapped for as long as the result lives.
    #[must_use]
    pub fn hold(&self) -> TensorBytes {
        TensorBytes {
            mapping: Arc::clone(self.mapping),
            range: self.start..self.start + self.bytes.len(),
        }
    }

    /// Number of elements.
    #[must_use]
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// What a file says about a tensor, readable by carat or not: for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// The name of the number format, such as `Q4_K`, `IQ2_XXS`, `I64`; `unknown` for an unknown one.
    pub type_name: &'a str,
    /// Elements per axis, outermost first; empty for a scalar.
    pub shape: &'a [usize],
    /// Size of the data in bytes, 0 when the format is unknown.
    pub n_bytes: usize,
}

/// Bytes of a tensor that stay where they are, in the mapped file, and keep it mapped.
///
/// Cloning is cheap: the bytes are shared.
#[derive(Clone)]
pub struct TensorBytes {
    mapping: Arc<Mapping>,
    range: Range<usize>,
}

impl TensorBytes {
    /// `range` of `mapping`, if it lies inside.
    pub(crate) fn new(mapping: &Arc<Mapping>, range: Range<usize>) -> Option<TensorBytes> {
        mapping.get(range.clone())?;
        Some(TensorBytes {
            mapping: Arc::clone(mapping),
            range,
        })
    }

    /// Asks the system to read these bytes soon. A hint.
    pub fn advise_willneed(&self) {
        self.mapping.advise_willneed(self.range.clone());
    }

    /// Says that these bytes are read in no order. A hint.
    pub fn advise_random(&self) {
        self.mapping.advise_random(self.range.clone());
    }
}

impl From<Vec<u8>> for TensorBytes {
    /// Bytes that were computed and are not in a file.
    fn from(bytes: Vec<u8>) -> TensorBytes {
        let range = 0..bytes.len();
        TensorBytes {
            mapping: Mapping::from_bytes("memory", bytes),
            range,
        }
    }
}

impl Deref for TensorBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // The range was inside when this was built, and a mapping never changes its length.
        &self.mapping[self.range.clone()]
    }
}

impl fmt::Debug for TensorBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorBytes")
            .field("mapping", &self.mapping)
            .field("range", &self.range)
            .finish()
    }
}
