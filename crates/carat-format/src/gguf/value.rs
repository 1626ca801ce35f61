//! The values of keys: numbers, bools, strings, and the types of all.

use std::sync::Arc;

use crate::error::Fault;
use crate::limit::MAX_TEXT_BYTES;
use crate::mapping::Mapping;

use super::array::Array;
use super::cursor::Cursor;

/// The types of values, by their ids in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "the variants are the names of the types")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// The type with this id.
    pub(super) fn from_id(id: u32) -> Option<ValueType> {
        use ValueType::*;
        [
            U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64,
        ]
        .into_iter()
        .find(|t| *t as u32 == id)
    }

    /// The name in lower case, such as `u32`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }

    /// Bytes of one value; for a string and an array the smallest number.
    pub(super) fn min_bytes(self) -> usize {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 | ValueType::String => 8,
            ValueType::Array => 12,
        }
    }
}

/// The value of a key.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are the names of the types")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    /// Text, normally UTF-8; [`Metadata::str`](super::Metadata::str) checks it.
    String(Vec<u8>),
    Array(Array),
}

impl Value {
    /// The type.
    #[must_use]
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F32(_) => ValueType::F32,
            Value::F64(_) => ValueType::F64,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
        }
    }

    /// The type in words, with the value where it is a number: `u32 7`, `string`, `array of 3 f32`.
    pub(super) fn describe(&self) -> String {
        match (self, self.as_i128()) {
            (_, Some(number)) => format!("{} {number}", self.value_type().name()),
            (Value::Array(array), _) => array.describe(),
            _ => self.value_type().name().to_owned(),
        }
    }

    /// The value of any integer type.
    pub(super) fn as_i128(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// The value of f32 and f64.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "all uses are settings that f32 holds well enough"
    )]
    pub(super) fn as_f32(&self) -> Option<f32> {
        match *self {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// Reads a value of the type with this id.
    pub(super) fn read(type_id: u32, cursor: &mut Cursor<'_>, file: &Arc<Mapping>) -> Result<Value, Fault> {
        const FIELD: &str = "value";
        let value_type = ValueType::from_id(type_id).ok_or(Fault::ValueType { found: type_id })?;
        Ok(match value_type {
            ValueType::String => Value::String(cursor.string(FIELD, MAX_TEXT_BYTES)?.to_vec()),
            ValueType::Array => Value::Array(Array::read(cursor, file)?),
            scalar => {
                let bytes = cursor.take(scalar.min_bytes() as u64, FIELD)?;
                Value::scalar(scalar, bytes)?
            }
        })
    }

    /// Decodes one number or bool from exactly the bytes it takes in a file.
    pub(super) fn scalar(value_type: ValueType, bytes: &[u8]) -> Result<Value, Fault> {
        fn le<const N: usize>(bytes: &[u8]) -> [u8; N] {
            // Callers cut `bytes` to the size of the type.
            let mut out = [0; N];
            out.copy_from_slice(bytes);
            out
        }
        Ok(match value_type {
            ValueType::U8 => Value::U8(u8::from_le_bytes(le(bytes))),
            ValueType::I8 => Value::I8(i8::from_le_bytes(le(bytes))),
            ValueType::U16 => Value::U16(u16::from_le_bytes(le(bytes))),
            ValueType::I16 => Value::I16(i16::from_le_bytes(le(bytes))),
            ValueType::U32 => Value::U32(u32::from_le_bytes(le(bytes))),
            ValueType::I32 => Value::I32(i32::from_le_bytes(le(bytes))),
            ValueType::U64 => Value::U64(u64::from_le_bytes(le(bytes))),
            ValueType::I64 => Value::I64(i64::from_le_bytes(le(bytes))),
            ValueType::F32 => Value::F32(f32::from_le_bytes(le(bytes))),
            ValueType::F64 => Value::F64(f64::from_le_bytes(le(bytes))),
            ValueType::Bool => match u8::from_le_bytes(le(bytes)) {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                found => return Err(Fault::BoolByte { found }),
            },
            ValueType::String | ValueType::Array => {
                return Err(Fault::ValueType {
                    found: value_type as u32,
                });
            }
        })
    }

    /// Appends the encoded value (without its type) to `out`.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(v) => out.extend(v.to_le_bytes()),
            Value::I8(v) => out.extend(v.to_le_bytes()),
            Value::U16(v) => out.extend(v.to_le_bytes()),
            Value::I16(v) => out.extend(v.to_le_bytes()),
            Value::U32(v) => out.extend(v.to_le_bytes()),
            Value::I32(v) => out.extend(v.to_le_bytes()),
            Value::U64(v) => out.extend(v.to_le_bytes()),
            Value::I64(v) => out.extend(v.to_le_bytes()),
            Value::F32(v) => out.extend(v.to_le_bytes()),
            Value::F64(v) => out.extend(v.to_le_bytes()),
            Value::Bool(v) => out.push(u8::from(*v)),
            Value::String(bytes) => write_string(bytes, out),
            Value::Array(array) => array.write(out),
        }
    }
}

/// Appends a string with its length.
pub(super) fn write_string(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::String(text.as_bytes().to_vec())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::String(text.into_bytes())
    }
}
