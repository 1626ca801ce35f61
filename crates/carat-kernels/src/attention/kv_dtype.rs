//! The formats that keys and values are kept in, and how many bytes they take.
//!
//! A row is one position's key or value of one head: head_dim elements, padded with zeros to [`row_len`] so that
//! kernels read whole registers. It has its numbers first, then its scales. The two quantized formats have blocks
//! of 32 elements along the head, each with its own f16 scale:
//!
//! ```text
//! q8_0   value = scale * q          byte e is element e, q in -127..=127
//! q4_0   value = scale * (q - 8)    byte e of 32 has element e in its low half and element e + 32 in its high half
//! ```
//!
//! so that 32 bytes of q4_0 come apart into 64 elements in their order.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// Elements of a block of the quantized formats.
pub(super) const BLOCK: usize = 32;

/// Elements of a cache row: head_dim padded to pairs of blocks.
pub(super) fn row_len(head_dim: usize) -> usize {
    head_dim.div_ceil(2 * BLOCK).saturating_mul(2 * BLOCK)
}

/// How cached keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDType {
    /// 16 bits: 11 of precision, to 65,504.
    F16,
    /// 16 bits: 8 of precision, the range of f32.
    Bf16,
    /// 8 bits, and a 16-bit scale for 32 numbers.
    Q8_0,
    /// 4 bits, and a 16-bit scale for 32 numbers.
    Q4_0,
    /// 32 bits: the reference.
    F32,
}

impl KvDType {
    /// Every format.
    pub const ALL: [KvDType; 5] = [
        KvDType::F16,
        KvDType::Bf16,
        KvDType::Q8_0,
        KvDType::Q4_0,
        KvDType::F32,
    ];

    /// The name that users write: `f16`, `bf16`, `q8_0`, `q4_0` or `f32`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            KvDType::F16 => "f16",
            KvDType::Bf16 => "bf16",
            KvDType::Q8_0 => "q8_0",
            KvDType::Q4_0 => "q4_0",
            KvDType::F32 => "f32",
        }
    }

    /// Bytes of one key or one value of one head: head_dim elements and their padding. Beyond what a number can
    /// hold it is the largest number.
    #[must_use]
    pub fn bytes_for_row(self, head_dim: usize) -> usize {
        self.value_bytes(head_dim)
            .saturating_add(self.scale_bytes(head_dim))
    }

    /// Bytes of a row's numbers, without scales.
    pub(super) fn value_bytes(self, head_dim: usize) -> usize {
        let n = row_len(head_dim);
        match self {
            KvDType::F16 | KvDType::Bf16 => n.saturating_mul(2),
            KvDType::Q8_0 => n,
            KvDType::Q4_0 => n / 2,
            KvDType::F32 => n.saturating_mul(4),
        }
    }

    /// Bytes of a row's scales.
    pub(super) fn scale_bytes(self, head_dim: usize) -> usize {
        match self {
            KvDType::F16 | KvDType::Bf16 | KvDType::F32 => 0,
            KvDType::Q8_0 | KvDType::Q4_0 => row_len(head_dim) / (BLOCK / 2),
        }
    }
}

impl fmt::Display for KvDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvDType {
    type Err = Error;

    fn from_str(name: &str) -> Result<KvDType, Error> {
        let named = |dtype: &KvDType| dtype.name() == name;
        KvDType::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| Error::UnknownKvDType {
                name: name.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for dtype in KvDType::ALL {
            assert_eq!(dtype.to_string().parse::<KvDType>().unwrap(), dtype);
        }
        assert!("q8".parse::<KvDType>().is_err());
    }

    #[test]
    fn rows_have_the_bytes_of_their_bits_and_scales() {
        let bytes = KvDType::ALL.map(|dtype| dtype.bytes_for_row(256));
        assert_eq!(bytes, [512, 512, 272, 144, 1024]);
        assert_eq!(KvDType::Q8_0.bytes_for_row(8), 68, "padded to two blocks");
        assert_eq!(KvDType::F32.bytes_for_row(usize::MAX), usize::MAX);
    }
}
