//! Arrays of numbers, bools or strings.
//!
//! An array is kept as it is encoded in the file. Arrays of strings (a vocabulary has 262,144 of them) add
//! one 32-bit offset per string; no string is copied. An array made for writing is encoded at once, so both
//! kinds are one type and copying an array from file to file is copying its bytes.

use std::sync::Arc;

use crate::error::Fault;
use crate::limit::MAX_STRING_ARRAY_BYTES;
use crate::mapping::Mapping;
use crate::tensor::TensorBytes;

use super::cursor::Cursor;
use super::value::{Value, ValueType, write_string};

/// Strings for which room is made before they are seen; a vocabulary of Gemma has 262,144.
const MAX_RESERVED: usize = 1 << 20;

/// Bytes of the length before a string.
const STRING_HEAD: usize = 8;

/// An array of numbers, bools or strings. Cloning shares the elements but for the offsets of strings.
#[derive(Clone, Debug)]
pub struct Array {
    element: ValueType,
    len: usize,
    data: TensorBytes,
    /// Strings only: where each text begins in `data`, and last `data.len() + STRING_HEAD`. Text `i` ends
    /// `STRING_HEAD` bytes before the begin of text `i + 1`.
    starts: Vec<u32>,
}

impl Array {
    /// An array of strings for writing. `None` when they take 4 GiB or more.
    pub fn from_strings<S: AsRef<[u8]>>(strings: impl IntoIterator<Item = S>) -> Option<Array> {
        let mut data = Vec::new();
        let mut starts = Vec::new();
        for string in strings {
            starts.push(u32::try_from(data.len() + STRING_HEAD).ok()?);
            write_string(string.as_ref(), &mut data);
        }
        let len = starts.len();
        starts.push(u32::try_from(data.len() + STRING_HEAD).ok()?);
        Some(Array {
            element: ValueType::String,
            len,
            data: data.into(),
            starts,
        })
    }

    /// An array of f32 for writing.
    #[must_use]
    pub fn from_f32s(values: &[f32]) -> Array {
        Array::encode(
            ValueType::F32,
            values.len(),
            values.iter().flat_map(|v| v.to_le_bytes()),
        )
    }

    /// An array of i32 for writing.
    #[must_use]
    pub fn from_i32s(values: &[i32]) -> Array {
        Array::encode(
            ValueType::I32,
            values.len(),
            values.iter().flat_map(|v| v.to_le_bytes()),
        )
    }

    /// An array of u32 for writing.
    #[must_use]
    pub fn from_u32s(values: &[u32]) -> Array {
        Array::encode(
            ValueType::U32,
            values.len(),
            values.iter().flat_map(|v| v.to_le_bytes()),
        )
    }

    /// An array of bools for writing.
    #[must_use]
    pub fn from_bools(values: &[bool]) -> Array {
        Array::encode(ValueType::Bool, values.len(), values.iter().map(|v| u8::from(*v)))
    }

    fn encode(element: ValueType, len: usize, bytes: impl Iterator<Item = u8>) -> Array {
        Array {
            element,
            len,
            data: bytes.collect::<Vec<u8>>().into(),
            starts: Vec::new(),
        }
    }

    /// The type of the elements.
    #[must_use]
    pub fn element(&self) -> ValueType {
        self.element
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Element `i`, copied.
    #[must_use]
    pub fn get(&self, i: usize) -> Option<Value> {
        if let Some(strings) = self.strings() {
            return strings.get(i).map(|bytes| Value::String(bytes.to_vec()));
        }
        if i >= self.len {
            return None;
        }
        let size = self.element.min_bytes();
        Value::scalar(self.element, self.data.get(i * size..(i + 1) * size)?).ok()
    }

    /// The elements, if they are strings.
    #[must_use]
    pub fn strings(&self) -> Option<StringArray<'_>> {
        (self.element == ValueType::String).then_some(StringArray { array: self })
    }

    /// The elements, if all of them convert.
    pub(super) fn convert<T>(&self, convert: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
        if self.element == ValueType::String {
            return None;
        }
        self.data
            .chunks_exact(self.element.min_bytes())
            .map(|bytes| convert(&Value::scalar(self.element, bytes).ok()?))
            .collect()
    }

    /// Type and length in words: `array of 3 f32`.
    pub(super) fn describe(&self) -> String {
        format!("array of {} {}", self.len, self.element.name())
    }

    /// Reads element type, count and elements, which lie in `file`.
    pub(super) fn read(cursor: &mut Cursor<'_>, file: &Arc<Mapping>) -> Result<Array, Fault> {
        let id = cursor.u32("element type")?;
        let element = ValueType::from_id(id).ok_or(Fault::ValueType { found: id })?;
        if element == ValueType::Array {
            return Err(Fault::NestedArray);
        }
        let count = cursor.u64("array")?;
        let n_bytes = cursor.room(count, element.min_bytes() as u64, "array")?;
        // It fits: every element takes a byte or more of the file.
        let len = usize::try_from(count).map_err(|_| Fault::SizeOverflow)?;
        let begin = cursor.pos();
        let mut starts = Vec::new();
        match element {
            ValueType::String => starts = read_strings(cursor, len)?,
            ValueType::Bool => check_bools(cursor.take(n_bytes, "array")?)?,
            _ => {
                cursor.take(n_bytes, "array")?;
            }
        }
        let data = TensorBytes::new(file, begin..cursor.pos()).ok_or(Fault::SizeOverflow)?;
        Ok(Array {
            element,
            len,
            data,
            starts,
        })
    }

    /// Appends element type, count and elements to `out`.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend((self.element as u32).to_le_bytes());
        out.extend((self.len as u64).to_le_bytes());
        out.extend(&self.data[..]);
    }
}

impl PartialEq for Array {
    fn eq(&self, other: &Array) -> bool {
        self.element == other.element && self.len == other.len && self.data[..] == other.data[..]
    }
}

/// Walks over `len` strings; returns where their texts begin, counted from the first length.
fn read_strings(cursor: &mut Cursor<'_>, len: usize) -> Result<Vec<u32>, Fault> {
    let begin = cursor.pos();
    let relative = |pos: usize| {
        let found = (pos - begin) as u64;
        let too_long = Fault::TooLong {
            field: "array",
            found,
            limit: MAX_STRING_ARRAY_BYTES,
        };
        if found > MAX_STRING_ARRAY_BYTES {
            Err(too_long)
        } else {
            Ok(found as u32)
        }
    };
    // A count that lies must not reserve what a huge file could hold.
    let mut starts = Vec::with_capacity(len.saturating_add(1).min(MAX_RESERVED));
    for _ in 0..len {
        let n = cursor.u64("string")?;
        starts.push(relative(cursor.pos())?);
        cursor.take(n, "string")?;
    }
    starts.push(relative(cursor.pos())? + STRING_HEAD as u32);
    Ok(starts)
}

fn check_bools(bytes: &[u8]) -> Result<(), Fault> {
    match bytes.iter().find(|b| **b > 1) {
        Some(&found) => Err(Fault::BoolByte { found }),
        None => Ok(()),
    }
}

/// The elements of an array of strings, as the bytes that lie in the file.
#[derive(Clone, Copy, Debug)]
pub struct StringArray<'a> {
    array: &'a Array,
}

impl<'a> StringArray<'a> {
    /// Number of strings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.array.len
    }

    /// True without strings.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.array.len == 0
    }

    /// String `i`; not checked to be UTF-8.
    #[must_use]
    pub fn get(&self, i: usize) -> Option<&'a [u8]> {
        let begin = *self.array.starts.get(i)? as usize;
        let end = *self.array.starts.get(i.checked_add(1)?)? as usize - STRING_HEAD;
        self.array.data.get(begin..end)
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let this = *self;
        // `get` gives every index below `len`.
        (0..self.len()).map(move |i| this.get(i).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_cut_at_their_lengths() {
        let array = Array::from_strings(["a", "", "bcd"]).unwrap();
        let strings = array.strings().unwrap();
        assert_eq!(strings.iter().collect::<Vec<_>>(), [&b"a"[..], b"", b"bcd"]);
        assert_eq!(strings.get(3), None);
        assert_eq!(strings.get(usize::MAX), None);
        assert_eq!(array.get(2), Some(Value::from("bcd")));
    }

    #[test]
    fn numbers_come_back() {
        let array = Array::from_i32s(&[1, -2, i32::MAX]);
        assert_eq!(array.get(1), Some(Value::I32(-2)));
        assert_eq!(array.get(3), None);
        assert_eq!(array.get(usize::MAX), None);
        assert_eq!(
            array.convert(Value::as_i128),
            Some(vec![1, -2, i128::from(i32::MAX)])
        );
        assert!(array.strings().is_none());
        assert_eq!(Array::from_strings(["7"]).unwrap().convert(Value::as_i128), None);
    }
}
