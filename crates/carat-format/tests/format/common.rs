//! Files made byte by byte, so that they can be wrong in one place.

use carat_format::{Array, Value};

/// The bytes of a GGUF file in the making.
#[derive(Clone, Default)]
pub(crate) struct GgufBytes(pub(crate) Vec<u8>);

pub(crate) const U32: u32 = 4;
pub(crate) const BOOL: u32 = 7;
pub(crate) const STRING: u32 = 8;
pub(crate) const ARRAY: u32 = 9;

impl GgufBytes {
    /// Magic, version 3, counts.
    pub(crate) fn head(n_tensors: u64, n_keys: u64) -> GgufBytes {
        GgufBytes(b"GGUF".to_vec()).u32(3).u64(n_tensors).u64(n_keys)
    }

    pub(crate) fn u8(self, v: u8) -> GgufBytes {
        self.bytes(&[v])
    }

    pub(crate) fn u32(self, v: u32) -> GgufBytes {
        self.bytes(&v.to_le_bytes())
    }

    pub(crate) fn u64(self, v: u64) -> GgufBytes {
        self.bytes(&v.to_le_bytes())
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> GgufBytes {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn string(self, text: &[u8]) -> GgufBytes {
        self.u64(text.len() as u64).bytes(text)
    }

    /// A key of type u32.
    pub(crate) fn key_u32(self, key: &str, v: u32) -> GgufBytes {
        self.string(key.as_bytes()).u32(U32).u32(v)
    }

    /// The record of a tensor; `dims` as in the file, fastest-varying first.
    pub(crate) fn tensor(self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> GgufBytes {
        let head = self.string(name.as_bytes()).u32(dims.len() as u32);
        dims.iter()
            .fold(head, |bytes, dim| bytes.u64(*dim))
            .u32(type_id)
            .u64(offset)
    }

    /// Pads to 32 and appends `n` bytes of data.
    pub(crate) fn data(mut self, n: usize) -> GgufBytes {
        self.0.resize(self.0.len().next_multiple_of(32), 0);
        self.bytes(&vec![1; n])
    }
}

/// A safetensors file: length, header, `n` bytes of data.
pub(crate) fn safetensors_bytes(header: &str, n: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![1; n]);
    bytes
}

/// One value of each kind.
pub(crate) fn values() -> Vec<(&'static str, Value)> {
    let strings = Array::from_strings(["<bos>", "", "▁日本"]).expect("far below 4 GiB");
    vec![
        ("v.u8", Value::U8(u8::MAX)),
        ("v.i8", Value::I8(i8::MIN)),
        ("v.u16", Value::U16(u16::MAX)),
        ("v.i16", Value::I16(i16::MIN)),
        ("v.u32", Value::U32(u32::MAX)),
        ("v.i32", Value::I32(i32::MIN)),
        ("v.u64", Value::U64(u64::MAX)),
        ("v.i64", Value::I64(i64::MIN)),
        ("v.f32", Value::F32(1e-6)),
        ("v.f64", Value::F64(0.1)),
        ("v.bool", Value::Bool(true)),
        ("v.string", Value::from("höhe")),
        ("v.bytes", Value::String(vec![0xff, 0x00])),
        ("v.strings", Value::Array(strings)),
        ("v.f32s", Value::Array(Array::from_f32s(&[0.5, -1000.0]))),
        ("v.i32s", Value::Array(Array::from_i32s(&[-1, 3]))),
        ("v.u32s", Value::Array(Array::from_u32s(&[6144, 12288]))),
        ("v.bools", Value::Array(Array::from_bools(&[true, false]))),
        ("v.empty", Value::Array(Array::from_f32s(&[]))),
    ]
}
