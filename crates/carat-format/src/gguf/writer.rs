//! Writing GGUF, version 3.
//!
//! Keys and tensors are declared first, so that the head of the file is known; then the data is streamed.
//! Everything that llama.cpp asks of a file is checked: names of at most 63 bytes, at most 4 dimensions,
//! whole blocks in every row, offsets in the order of the tensors.

use std::collections::HashSet;
use std::path::Path;

use carat_kernels::DType;

use crate::error::{Fault, Place, Result};
use crate::limit::{MAX_DIMS, MAX_NAME_BYTES, MAX_WRITTEN_TENSOR_NAME_BYTES};
use crate::output::{Slot, TensorWriter};

use super::value::{Value, write_string};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, is_alignment};

const VERSION: u32 = 3;

/// Declares what a GGUF file will hold.
///
/// ```no_run
/// use carat_format::{GgufBuilder, Value};
/// use carat_kernels::DType;
///
/// let mut builder = GgufBuilder::new();
/// builder.metadata("general.architecture", Value::from("gemma3"));
/// builder.tensor("output_norm.weight", DType::F32, &[640]);
/// let mut writer = builder.create("small.gguf".as_ref())?;
/// writer.write_tensor("output_norm.weight", &[0; 4 * 640])?;
/// writer.finish()?;
/// # Ok::<(), carat_format::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct GgufBuilder {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Declared>,
}

#[derive(Debug)]
struct Declared {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
}

impl GgufBuilder {
    /// Without keys and tensors.
    #[must_use]
    pub fn new() -> GgufBuilder {
        GgufBuilder::default()
    }

    /// Adds a key. `general.alignment` (u32, bytes) sets the alignment of the data, 32 otherwise. When keys
    /// are copied from a split file, those that begin with `split.` must be left out.
    pub fn metadata(&mut self, key: &str, value: Value) -> &mut GgufBuilder {
        self.metadata.push((key.to_owned(), value));
        self
    }

    /// Adds a tensor; `shape` is outermost first.
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: &[usize]) -> &mut GgufBuilder {
        self.tensors.push(Declared {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        });
        self
    }

    /// Begins the file: checks what was declared and writes the head of it.
    ///
    /// # Errors
    /// [`Error::Unwritable`](crate::Error::Unwritable) for a name that is used twice or too long, a bad
    /// alignment, and shapes that the format cannot hold; [`Error::Io`](crate::Error::Io),
    /// [`Error::DiskFull`](crate::Error::DiskFull).
    pub fn create(&self, path: &Path) -> Result<TensorWriter> {
        let alignment = self.alignment().map_err(|fault| {
            let place = Place::Key(ALIGNMENT_KEY.to_owned());
            fault.unwritable(path, place)
        })?;
        let mut head = Vec::new();
        head.extend(MAGIC);
        head.extend(VERSION.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend((self.metadata.len() as u64).to_le_bytes());
        self.write_metadata(&mut head, path)?;
        let slots = self.write_tensors(&mut head, alignment, path)?;
        head.resize(head.len().next_multiple_of(alignment), 0);
        TensorWriter::create(path, &head, slots)
    }

    fn alignment(&self) -> Result<usize, Fault> {
        let alignment = match self.metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) {
            None => DEFAULT_ALIGNMENT,
            Some((_, Value::U32(bytes))) => u64::from(*bytes),
            Some((_, other)) => {
                return Err(Fault::ValueType {
                    found: other.value_type() as u32,
                });
            }
        };
        // Above a page nothing is gained; the limit keeps the padding small.
        if !is_alignment(alignment) || alignment > 1 << 16 {
            return Err(Fault::Alignment { found: alignment });
        }
        usize::try_from(alignment).map_err(|_| Fault::SizeOverflow)
    }

    fn write_metadata(&self, head: &mut Vec<u8>, path: &Path) -> Result<()> {
        let mut seen = HashSet::new();
        for (key, value) in &self.metadata {
            let fail = |fault: Fault| Err(fault.unwritable(path, Place::Key(key.clone())));
            if key.len() as u64 > MAX_NAME_BYTES {
                let found = key.len() as u64;
                return fail(Fault::TooLong {
                    field: "the name",
                    found,
                    limit: MAX_NAME_BYTES,
                });
            }
            if !seen.insert(key) {
                return fail(Fault::Duplicate);
            }
            write_string(key.as_bytes(), head);
            head.extend((value.value_type() as u32).to_le_bytes());
            value.write(head);
        }
        Ok(())
    }

    fn write_tensors(&self, head: &mut Vec<u8>, alignment: usize, path: &Path) -> Result<Vec<Slot>> {
        let mut seen = HashSet::new();
        let mut offset = 0u64;
        let mut slots = Vec::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            let fail = |fault: Fault| fault.unwritable(path, Place::Tensor(tensor.name.clone()));
            if !seen.insert(&tensor.name) {
                return Err(fail(Fault::Duplicate));
            }
            let n_bytes = tensor.n_bytes().map_err(fail)?;
            let padded = n_bytes.checked_next_multiple_of(alignment as u64);
            let end = padded.and_then(|padded| offset.checked_add(padded));
            let (Some(padded), Some(end)) = (padded, end) else {
                return Err(fail(Fault::SizeOverflow));
            };
            tensor.write(offset, head);
            slots.push(Slot {
                name: tensor.name.clone(),
                n_bytes,
                padding: padded - n_bytes,
            });
            offset = end;
        }
        Ok(slots)
    }
}

impl Declared {
    /// Size of the data, if name and shape are such as the format can hold.
    fn n_bytes(&self) -> Result<u64, Fault> {
        if self.name.len() > MAX_WRITTEN_TENSOR_NAME_BYTES {
            let (found, limit) = (self.name.len() as u64, MAX_WRITTEN_TENSOR_NAME_BYTES as u64);
            return Err(Fault::TooLong {
                field: "the name",
                found,
                limit,
            });
        }
        if self.shape.len() > MAX_DIMS as usize {
            let (found, limit) = (self.shape.len() as u64, MAX_DIMS.into());
            return Err(Fault::TooMany {
                field: "number of dimensions",
                found,
                limit,
            });
        }
        if let Some(axis) = self.shape.iter().position(|dim| *dim == 0) {
            return Err(Fault::ZeroDim { axis });
        }
        let (row, block) = (self.shape.last().copied().unwrap_or(1), self.dtype.block_len());
        if !row.is_multiple_of(block) {
            return Err(Fault::PartialBlock {
                row: row as u64,
                block,
            });
        }
        let n_elements = self.shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim));
        let n_bytes = n_elements
            .and_then(|n| self.dtype.bytes_for(n))
            .ok_or(Fault::SizeOverflow)?;
        Ok(n_bytes as u64)
    }

    /// Appends the record of the tensor.
    fn write(&self, offset: u64, head: &mut Vec<u8>) {
        write_string(self.name.as_bytes(), head);
        // A scalar is written as one dimension of 1, which every reader knows.
        let shape = if self.shape.is_empty() {
            &[1][..]
        } else {
            &self.shape
        };
        head.extend((shape.len() as u32).to_le_bytes());
        for dim in shape.iter().rev() {
            head.extend((*dim as u64).to_le_bytes());
        }
        head.extend(self.dtype.gguf_id().to_le_bytes());
        head.extend(offset.to_le_bytes());
    }
}
