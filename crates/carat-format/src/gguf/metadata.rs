//! The keys of a GGUF file, read by the type that is wanted.
//!
//! Converters disagree about integer widths, so every integer getter takes any of them and checks that the
//! value fits. An absent key is `None`; a key of another type is an error, since a file that says something
//! about a setting must not be treated as if it said nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Fault, Place, Result};
use crate::limit::MAX_LAYERS;

use super::array::{Array, StringArray};
use super::value::Value;

/// The keys and values of a file, in its order.
#[derive(Debug)]
pub struct Metadata {
    path: PathBuf,
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// Keys that are to be written, as a reader of the file at `path` (named in errors) would find them.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a key that is there twice.
    pub fn from_entries(path: &Path, entries: impl IntoIterator<Item = (String, Value)>) -> Result<Metadata> {
        let mut metadata = Metadata::new(path);
        for (key, value) in entries {
            metadata.insert(&key, value)?;
        }
        Ok(metadata)
    }

    pub(super) fn new(path: &Path) -> Metadata {
        Metadata {
            path: path.to_owned(),
            entries: Vec::new(),
            index: HashMap::new(),
        }
    }

    /// Adds a key, which must be new.
    pub(super) fn insert(&mut self, key: &str, value: Value) -> Result<()> {
        if self.index.insert(key.to_owned(), self.entries.len()).is_some() {
            return Err(Fault::Duplicate.at(&self.path, Place::Key(key.to_owned())));
        }
        self.entries.push((key.to_owned(), value));
        Ok(())
    }

    /// All keys with their values, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`, whatever its type.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index
            .get(key)
            .and_then(|i| self.entries.get(*i))
            .map(|(_, value)| value)
    }

    /// An integer of any width, from 0 to `u32::MAX`.
    ///
    /// # Errors
    /// [`Error::WrongType`] when it is no integer or out of range.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.read(key, "an integer from 0 to 4294967295", as_u32)
    }

    /// A floating-point number; f64 is rounded.
    ///
    /// # Errors
    /// [`Error::WrongType`] for any other type.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.read(key, "f32", Value::as_f32)
    }

    /// A bool.
    ///
    /// # Errors
    /// [`Error::WrongType`] for any other type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "bool", as_bool)
    }

    /// Text.
    ///
    /// # Errors
    /// [`Error::WrongType`] for any other type, [`Fault::NotUtf8`] for other bytes.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(Fault::NotUtf8 { field: "value" }.at(&self.path, Place::Key(key.to_owned()))),
            },
            Some(other) => Err(self.wrong_type(key, other, "string".to_owned())),
        }
    }

    /// One integer for each of `n` layers: an array of `n` integers, or one integer that is meant for all.
    ///
    /// # Errors
    /// [`Error::WrongType`] for any other type, another length, or a value outside `u32`;
    /// [`Fault::TooMany`] when `n` is above 65,536.
    pub fn u32_or_array(&self, key: &str, n: usize) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        if n > MAX_LAYERS {
            let fault = Fault::TooMany {
                field: "number of layers",
                found: n as u64,
                limit: MAX_LAYERS as u64,
            };
            return Err(fault.at(&self.path, Place::Key(key.to_owned())));
        }
        let values = match value {
            Value::Array(array) if array.len() == n => array.convert(as_u32),
            Value::Array(_) => None,
            scalar => as_u32(scalar).map(|v| vec![v; n]),
        };
        match values {
            Some(values) => Ok(Some(values)),
            None => Err(self.wrong_type(key, value, format!("one integer of u32 or an array of {n}"))),
        }
    }

    /// An array of strings.
    ///
    /// # Errors
    /// [`Error::WrongType`] for any other type.
    pub fn strings(&self, key: &str) -> Result<Option<StringArray<'_>>> {
        self.read_array(key, "array of string", Array::strings)
    }

    /// An array of floating-point numbers.
    ///
    /// # Errors
    /// [`Error::WrongType`] for any other type.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.read_array(key, "array of f32", |array| array.convert(Value::as_f32))
    }

    /// An array of integers of any width.
    ///
    /// # Errors
    /// [`Error::WrongType`] for any other type and when a value does not fit into i32.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>> {
        let as_i32 = |value: &Value| value.as_i128().and_then(|v| i32::try_from(v).ok());
        self.read_array(key, "array of i32", |array| array.convert(as_i32))
    }

    /// An array of bools.
    ///
    /// # Errors
    /// [`Error::WrongType`] for any other type.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>> {
        self.read_array(key, "array of bool", |array| array.convert(as_bool))
    }

    fn read<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(self.wrong_type(key, value, expected.to_owned())),
        }
    }

    fn read_array<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Array) -> Option<T>,
    ) -> Result<Option<T>> {
        self.read(key, expected, |value| match value {
            Value::Array(array) => convert(array),
            _ => None,
        })
    }

    fn wrong_type(&self, key: &str, found: &Value, expected: String) -> Error {
        Error::WrongType {
            path: self.path.clone(),
            key: key.to_owned(),
            found: found.describe(),
            expected,
        }
    }
}

fn as_u32(value: &Value) -> Option<u32> {
    value.as_i128().and_then(|v| u32::try_from(v).ok())
}

fn as_bool(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(v) => Some(*v),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(value: Value) -> Metadata {
        let mut metadata = Metadata::new(Path::new("m.gguf"));
        metadata.insert("k", value).unwrap();
        metadata
    }

    #[test]
    fn integers_convert_between_widths() {
        for value in [
            Value::U8(7),
            Value::I8(7),
            Value::U16(7),
            Value::I32(7),
            Value::U64(7),
            Value::I64(7),
        ] {
            assert_eq!(metadata(value).u32("k").unwrap(), Some(7));
        }
        let error = metadata(Value::I8(-1)).u32("k").unwrap_err().to_string();
        assert!(
            error.contains("`m.gguf`, key `k`: found i8 -1, expected an integer from 0"),
            "{error}"
        );
        assert!(metadata(Value::U64(1 << 32)).u32("k").is_err());
        assert!(metadata(Value::Bool(true)).u32("k").is_err());
        assert!(metadata(Value::F32(1.0)).u32("k").is_err());
        assert_eq!(metadata(Value::U8(7)).u32("other").unwrap(), None);
    }

    #[test]
    fn a_setting_is_for_all_layers_or_for_each() {
        assert_eq!(
            metadata(Value::I32(8)).u32_or_array("k", 3).unwrap(),
            Some(vec![8, 8, 8])
        );
        let array = || Value::Array(Array::from_i32s(&[8, 8, 1]));
        assert_eq!(
            metadata(array()).u32_or_array("k", 3).unwrap(),
            Some(vec![8, 8, 1])
        );
        let error = metadata(array()).u32_or_array("k", 4).unwrap_err().to_string();
        assert!(
            error.contains("found array of 3 i32, expected one integer of u32 or an array of 4"),
            "{error}"
        );
        assert!(metadata(Value::I32(8)).u32_or_array("k", usize::MAX).is_err());
        assert!(
            metadata(Value::Array(Array::from_i32s(&[-1])))
                .u32_or_array("k", 1)
                .is_err()
        );
    }

    #[test]
    fn arrays_and_text_check_their_types() {
        let strings = metadata(Value::Array(Array::from_strings(["x"]).unwrap()));
        assert_eq!(strings.strings("k").unwrap().unwrap().get(0), Some(&b"x"[..]));
        assert!(strings.f32s("k").is_err() && strings.i32s("k").is_err() && strings.bools("k").is_err());
        assert!(strings.str("k").is_err());
        assert_eq!(
            metadata(Value::Array(Array::from_f32s(&[0.5])))
                .f32s("k")
                .unwrap(),
            Some(vec![0.5])
        );
        assert_eq!(
            metadata(Value::Array(Array::from_bools(&[true])))
                .bools("k")
                .unwrap(),
            Some(vec![true])
        );
        assert_eq!(
            metadata(Value::Array(Array::from_u32s(&[9]))).i32s("k").unwrap(),
            Some(vec![9])
        );
        assert_eq!(metadata(Value::F64(0.5)).f32("k").unwrap(), Some(0.5));
        let error = metadata(Value::String(vec![0xff]))
            .str("k")
            .unwrap_err()
            .to_string();
        assert!(error.contains("value is not UTF-8"), "{error}");
    }
}
