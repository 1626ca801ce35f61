//! Tensors that the reference implementation wrote.

use std::path::Path;

use carat_format::{RawTensor, SafeDType, Safetensors};

/// The tensors of a safetensors file.
#[derive(Debug)]
pub struct Golden {
    file: Safetensors,
}

/// Numbers with their shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<T> {
    /// Elements per axis, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// The numbers, the last axis fastest.
    pub data: Vec<T>,
}

impl<T> Tensor<T> {
    /// Row `i`: the elements of the last axis.
    ///
    /// # Panics
    /// When there is no such row.
    #[must_use]
    pub fn row(&self, i: usize) -> &[T] {
        let width = self.shape.last().copied().unwrap_or(1);
        &self.data[i * width..(i + 1) * width]
    }
}

impl Golden {
    /// Opens a file.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn open(path: &Path) -> Golden {
        match Safetensors::open(path) {
            Ok(file) => Golden { file },
            Err(error) => panic!("{error}"),
        }
    }

    /// The names of the tensors, in the order of their data.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.file.infos().map(|info| info.name)
    }

    /// A tensor of F32, F16 or BF16.
    ///
    /// # Panics
    /// When there is none of this name, or it has another type.
    #[must_use]
    pub fn f32s(&self, name: &str) -> Tensor<f32> {
        let raw = self.raw(name);
        let decode: fn(&[u8]) -> f32 = match raw.dtype {
            SafeDType::F32 => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            SafeDType::BF16 => |b| f32::from_bits(u32::from_le_bytes([0, 0, b[0], b[1]])),
            SafeDType::F16 => |b| f16_to_f32(u16::from_le_bytes([b[0], b[1]])),
            other => panic!(
                "golden tensor `{name}` is {}, not a floating-point type",
                other.name()
            ),
        };
        elements(&raw, decode)
    }

    /// A tensor of I64, I32, U8 or BOOL.
    ///
    /// # Panics
    /// When there is none of this name, or it has another type.
    #[must_use]
    pub fn i64s(&self, name: &str) -> Tensor<i64> {
        let raw = self.raw(name);
        let decode: fn(&[u8]) -> i64 = match raw.dtype {
            SafeDType::I64 => |b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            SafeDType::I32 => |b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(),
            SafeDType::U8 | SafeDType::Bool => |b| b[0].into(),
            other => panic!(
                "golden tensor `{name}` is {}, not an integer type read here",
                other.name()
            ),
        };
        elements(&raw, decode)
    }

    /// Token ids.
    ///
    /// # Panics
    /// As [`Golden::i64s`], and for numbers that are no ids.
    #[must_use]
    pub fn ids(&self, name: &str) -> Vec<u32> {
        let ids = self.i64s(name).data.into_iter();
        ids.map(|id| u32::try_from(id).unwrap_or_else(|_| panic!("`{name}` holds {id}, which is no token")))
            .collect()
    }

    fn raw(&self, name: &str) -> RawTensor<'_> {
        self.file.raw(name).unwrap_or_else(|| {
            panic!(
                "no golden tensor `{name}`, only {:?}",
                self.names().collect::<Vec<_>>()
            )
        })
    }
}

fn elements<T>(raw: &RawTensor<'_>, decode: fn(&[u8]) -> T) -> Tensor<T> {
    let data = raw.bytes.chunks_exact(raw.dtype.n_bytes()).map(decode).collect();
    Tensor {
        shape: raw.shape.to_vec(),
        data,
    }
}

/// The value of IEEE half precision: sign, 5 bits of exponent (bias 15), 10 bits of fraction.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let fraction = f32::from(bits & 0x3ff);
    let magnitude = match i32::from((bits >> 10) & 0x1f) {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        exponent => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    };
    sign * magnitude
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn reads_ids_and_logits() {
        let golden = Golden::open(&fixture("gemma3-text/golden.safetensors"));
        let ids = golden.i64s("input_ids");
        let logits = golden.f32s("logits");
        assert_eq!(ids.shape[..], logits.shape[..2]);
        assert_eq!(ids.data.len(), ids.shape.iter().product::<usize>());
        assert_eq!(logits.row(1).len(), logits.shape[2]);
        assert!(logits.data.iter().all(|x| x.is_finite()));
        assert!(golden.names().any(|name| name == "greedy_ids"));
    }

    #[test]
    fn half_precision_is_exact() {
        let cases = [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x3555, 0.333_251_95),
        ];
        for (bits, value) in cases {
            assert_eq!(f16_to_f32(bits), value);
        }
        assert_eq!(f16_to_f32(0xfc00), f32::NEG_INFINITY);
        assert!(f16_to_f32(0x7e00).is_nan());
    }
}
