//! Writing safetensors.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Fault, Place, Result};
use crate::limit::MAX_SAFETENSORS_HEADER_BYTES;
use crate::output::{Slot, TensorWriter};

use super::METADATA_KEY;
use super::dtype::SafeDType;

/// The header is padded so that the data begins at a multiple of this.
const HEADER_ALIGNMENT: usize = 8;

/// Declares what a safetensors file will hold. The data follows in the order of declaration.
///
/// Declare the tensors with the widest elements first: the format has no padding, and readers that use the
/// data in place want it aligned.
#[derive(Debug, Default)]
pub struct SafetensorsBuilder {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, SafeDType, Vec<usize>)>,
}

impl SafetensorsBuilder {
    /// Without tensors.
    #[must_use]
    pub fn new() -> SafetensorsBuilder {
        SafetensorsBuilder::default()
    }

    /// Adds free text for the header; a key that is there already gets the new text.
    pub fn metadata(&mut self, key: &str, text: &str) -> &mut SafetensorsBuilder {
        self.metadata.insert(key.to_owned(), text.to_owned());
        self
    }

    /// Adds a tensor; `shape` is outermost first.
    pub fn tensor(&mut self, name: &str, dtype: SafeDType, shape: &[usize]) -> &mut SafetensorsBuilder {
        self.tensors.push((name.to_owned(), dtype, shape.to_vec()));
        self
    }

    /// Begins the file: checks what was declared and writes the header.
    ///
    /// # Errors
    /// [`Error::Unwritable`](crate::Error::Unwritable) for a name that is used twice or reserved, for sizes
    /// that overflow, and a header above 100 MB; [`Error::Io`](crate::Error::Io),
    /// [`Error::DiskFull`](crate::Error::DiskFull).
    pub fn create(&self, path: &Path) -> Result<TensorWriter> {
        let (header, slots) = self.header(path)?;
        let mut json = Value::Object(header).to_string().into_bytes();
        json.resize(json.len().next_multiple_of(HEADER_ALIGNMENT), b' ');
        if json.len() as u64 > MAX_SAFETENSORS_HEADER_BYTES {
            let (found, limit) = (json.len() as u64, MAX_SAFETENSORS_HEADER_BYTES);
            return Err(Fault::TooMany {
                field: "header length",
                found,
                limit,
            }
            .unwritable(path, Place::Header));
        }
        let mut head = (json.len() as u64).to_le_bytes().to_vec();
        head.append(&mut json);
        TensorWriter::create(path, &head, slots)
    }

    fn header(&self, path: &Path) -> Result<(Map<String, Value>, Vec<Slot>)> {
        let mut header = Map::new();
        if !self.metadata.is_empty() {
            header.insert(METADATA_KEY.to_owned(), json!(self.metadata));
        }
        let mut slots = Vec::with_capacity(self.tensors.len());
        let mut seen = HashSet::from([METADATA_KEY]);
        let mut begin = 0u64;
        for (name, dtype, shape) in &self.tensors {
            let fail = |fault: Fault| fault.unwritable(path, Place::Tensor(name.clone()));
            if !seen.insert(name) {
                return Err(fail(Fault::Duplicate));
            }
            let n_bytes = shape
                .iter()
                .try_fold(dtype.n_bytes() as u64, |n, dim| n.checked_mul(*dim as u64));
            let end = n_bytes.and_then(|n| begin.checked_add(n));
            let (Some(n_bytes), Some(end)) = (n_bytes, end) else {
                return Err(fail(Fault::SizeOverflow));
            };
            let entry = json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [begin, end] });
            header.insert(name.clone(), entry);
            slots.push(Slot {
                name: name.clone(),
                n_bytes,
                padding: 0,
            });
            begin = end;
        }
        Ok((header, slots))
    }
}
