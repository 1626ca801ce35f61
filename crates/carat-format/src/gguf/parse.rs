//! One GGUF file, from its bytes to its keys and tensors. Everything is checked here, once.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Fault, Place, Result};
use crate::limit::{MAX_DIMS, MAX_KEYS, MAX_NAME_BYTES, MAX_TENSORS};
use crate::mapping::Mapping;

use super::cursor::Cursor;
use super::metadata::Metadata;
use super::tensor_type::TensorType;
use super::value::Value;
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, is_alignment};

/// Bytes of the shortest key: empty name, type, value of one byte.
const MIN_KEY_BYTES: u64 = 8 + 4 + 1;
/// Bytes of the shortest tensor record: empty name, no dimensions, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;

/// What a file holds.
pub(super) struct Part {
    pub(super) version: u32,
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<Record>,
}

/// A tensor: its data lies in the file, and overlaps no other.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) type_id: u32,
    /// Outermost first.
    pub(super) shape: Vec<usize>,
    /// In the file; empty when the type is unknown.
    pub(super) range: Range<usize>,
}

impl Record {
    pub(super) fn tensor_type(&self) -> TensorType {
        TensorType::from_id(self.type_id)
    }
}

/// Reads the head of `file` and checks it against its size.
pub(super) fn parse(file: &Arc<Mapping>) -> Result<Part> {
    let path = file.path();
    let mut cursor = Cursor::new(file);
    let head = read_head(&mut cursor).map_err(|fault| fault.at(path, Place::Header))?;
    let metadata = read_metadata(&mut cursor, head.n_keys, file)?;
    let alignment = alignment(&metadata, path)?;
    let mut records = Vec::new();
    for i in 0..head.n_tensors {
        records.push(RawRecord::read(&mut cursor, i, path)?);
    }
    let data_begin = (cursor.pos() as u64)
        .checked_next_multiple_of(alignment)
        .ok_or_else(|| Fault::SizeOverflow.at(path, Place::Header))?;
    let data = DataSection {
        begin: data_begin,
        alignment,
        file_size: file.len() as u64,
    };
    let mut tensors = Vec::with_capacity(records.len());
    for record in records {
        let range = data
            .locate(&record)
            .map_err(|fault| fault.at(path, Place::Tensor(record.name.clone())))?;
        let RawRecord {
            name, type_id, shape, ..
        } = record;
        tensors.push(Record {
            name,
            type_id,
            shape,
            range,
        });
    }
    check_overlap(&tensors, path)?;
    Ok(Part {
        version: head.version,
        metadata,
        tensors,
    })
}

struct Head {
    version: u32,
    n_tensors: u64,
    n_keys: u64,
}

fn read_head(cursor: &mut Cursor<'_>) -> Result<Head, Fault> {
    if cursor.take(4, "magic")? != MAGIC {
        return Err(Fault::Magic);
    }
    let version = cursor.u32("version")?;
    if !(2..=3).contains(&version) {
        // A small number with its bytes reversed is how a big-endian file looks from here.
        let big_endian = version.swap_bytes() <= 0xffff;
        return Err(if big_endian {
            Fault::BigEndian
        } else {
            Fault::Version { found: version }
        });
    }
    let n_tensors = cursor.count("number of tensors", MAX_TENSORS, MIN_TENSOR_BYTES)?;
    let n_keys = cursor.count("number of keys", MAX_KEYS, MIN_KEY_BYTES)?;
    Ok(Head {
        version,
        n_tensors,
        n_keys,
    })
}

fn read_metadata(cursor: &mut Cursor<'_>, n_keys: u64, file: &Arc<Mapping>) -> Result<Metadata> {
    let mut metadata = Metadata::new(file.path());
    for i in 0..n_keys {
        let key = cursor
            .text("key name", MAX_NAME_BYTES)
            .map_err(|fault| fault.at(file.path(), Place::KeyNumber(i)))?;
        let value = cursor
            .u32("value type")
            .and_then(|type_id| Value::read(type_id, cursor, file))
            .map_err(|fault| fault.at(file.path(), Place::Key(key.to_owned())))?;
        metadata.insert(key, value)?;
    }
    Ok(metadata)
}

fn alignment(metadata: &Metadata, path: &Path) -> Result<u64> {
    let alignment = metadata.u32(ALIGNMENT_KEY)?.map_or(DEFAULT_ALIGNMENT, u64::from);
    if !is_alignment(alignment) {
        let place = Place::Key(ALIGNMENT_KEY.to_owned());
        return Err(Fault::Alignment { found: alignment }.at(path, place));
    }
    Ok(alignment)
}

/// A tensor record whose data has not been looked for yet.
struct RawRecord {
    name: String,
    type_id: u32,
    shape: Vec<usize>,
    offset: u64,
}

impl RawRecord {
    fn read(cursor: &mut Cursor<'_>, i: u64, path: &Path) -> Result<RawRecord> {
        let name = cursor
            .text("tensor name", MAX_NAME_BYTES)
            .map_err(|fault| fault.at(path, Place::TensorNumber(i)))?;
        RawRecord::read_rest(cursor, name).map_err(|fault| fault.at(path, Place::Tensor(name.to_owned())))
    }

    fn read_rest(cursor: &mut Cursor<'_>, name: &str) -> Result<RawRecord, Fault> {
        const N_DIMS: &str = "number of dimensions";
        let n_dims = cursor.u32(N_DIMS)?;
        if n_dims > MAX_DIMS {
            return Err(Fault::TooMany {
                field: N_DIMS,
                found: n_dims.into(),
                limit: MAX_DIMS.into(),
            });
        }
        let mut shape = Vec::with_capacity(n_dims as usize);
        for axis in 0..n_dims as usize {
            match cursor.u64("dimension")? {
                0 => return Err(Fault::ZeroDim { axis }),
                dim => shape.push(usize::try_from(dim).map_err(|_| Fault::SizeOverflow)?),
            }
        }
        shape.reverse();
        let type_id = cursor.u32("tensor type")?;
        let offset = cursor.u64("tensor offset")?;
        Ok(RawRecord {
            name: name.to_owned(),
            type_id,
            shape,
            offset,
        })
    }

    /// Bytes of the data; 0 when the type is unknown.
    fn n_bytes(&self) -> Result<u64, Fault> {
        // A tensor without dimensions is a scalar: one row of one element.
        let row = self.shape.last().copied().unwrap_or(1);
        let n_elements = self
            .shape
            .iter()
            .try_fold(1usize, |n, dim| n.checked_mul(*dim))
            .ok_or(Fault::SizeOverflow)?;
        let Some((block_len, block_bytes)) = TensorType::from_id(self.type_id).block() else {
            return Ok(0);
        };
        if !row.is_multiple_of(block_len) {
            return Err(Fault::PartialBlock {
                row: row as u64,
                block: block_len,
            });
        }
        let n_bytes = (n_elements / block_len)
            .checked_mul(block_bytes)
            .ok_or(Fault::SizeOverflow)?;
        Ok(n_bytes as u64)
    }
}

struct DataSection {
    begin: u64,
    alignment: u64,
    file_size: u64,
}

impl DataSection {
    /// Where in the file the data of a tensor lies.
    fn locate(&self, record: &RawRecord) -> Result<Range<usize>, Fault> {
        let (offset, alignment) = (record.offset, self.alignment);
        let n_bytes = record.n_bytes()?;
        if !offset.is_multiple_of(alignment) {
            return Err(Fault::Misaligned { offset, alignment });
        }
        let size = self.file_size.saturating_sub(self.begin);
        // A sum that overflows is beyond any file too.
        let end = offset.saturating_add(n_bytes);
        if end > size {
            return Err(Fault::OutOfBounds {
                begin: offset,
                end,
                size,
            });
        }
        // Both sums stay below the file's size, which is the length of a slice, unless `n_bytes` is 0.
        let position =
            |at: u64| usize::try_from(self.begin.saturating_add(at)).map_err(|_| Fault::SizeOverflow);
        Ok(position(offset)?..position(end)?)
    }
}

/// Checks that no byte belongs to two tensors.
fn check_overlap(tensors: &[Record], path: &Path) -> Result<()> {
    let mut order: Vec<&Record> = tensors.iter().filter(|tensor| !tensor.range.is_empty()).collect();
    order.sort_by_key(|tensor| tensor.range.start);
    for pair in order.windows(2) {
        if let [a, b] = pair
            && a.range.end > b.range.start
        {
            let fault = Fault::Overlap {
                other: a.name.clone(),
            };
            return Err(fault.at(path, Place::Tensor(b.name.clone())));
        }
    }
    Ok(())
}
