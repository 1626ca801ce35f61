//! The header of one file: parsed, and held against the size of the file.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Fault, Place, Result};
use crate::limit::{MAX_SAFETENSORS_DIMS, MAX_SAFETENSORS_HEADER_BYTES, MAX_TENSORS};
use crate::mapping::Mapping;

use super::METADATA_KEY;
use super::dtype::SafeDType;

/// Bytes of the header's length.
const LENGTH_BYTES: usize = 8;

/// What a file holds.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, String>,
    /// In the order of their data.
    pub(super) tensors: Vec<Record>,
}

/// A tensor: its data lies in the file, and overlaps no other.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) dtype: SafeDType,
    pub(super) shape: Vec<usize>,
    /// In the file.
    pub(super) range: Range<usize>,
}

/// Reads the header of `file` and checks it against its size.
pub(super) fn parse(file: &Mapping) -> Result<Header> {
    let path = file.path();
    let (json, data_begin) = split(file).map_err(|fault| fault.at(path, Place::Header))?;
    let raw: RawHeader = serde_json::from_slice(json).map_err(|source| Error::Json {
        path: path.to_owned(),
        place: Place::Header,
        source,
    })?;
    let data_size = file.len() - data_begin;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    let mut names = HashSet::with_capacity(raw.tensors.len());
    for (name, tensor) in raw.tensors {
        let record = check(&tensor, data_begin, data_size);
        let checked = if names.insert(name.clone()) {
            record
        } else {
            Err(Fault::Duplicate)
        };
        let (dtype, shape, range) = checked.map_err(|fault| fault.at(path, Place::Tensor(name.clone())))?;
        tensors.push(Record {
            name,
            dtype,
            shape,
            range,
        });
    }
    tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    check_cover(&tensors, data_begin, file.len(), path)?;
    Ok(Header {
        metadata: raw.metadata,
        tensors,
    })
}

/// The JSON, and where the data begins.
fn split(file: &[u8]) -> Result<(&[u8], usize), Fault> {
    const FIELD: &str = "header";
    let left = file.len() as u64;
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(Fault::Truncated {
            field: "header length",
            needed: LENGTH_BYTES as u64,
            left,
        });
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_SAFETENSORS_HEADER_BYTES {
        let limit = MAX_SAFETENSORS_HEADER_BYTES;
        return Err(Fault::TooMany {
            field: "header length",
            found: length,
            limit,
        });
    }
    let truncated = Fault::Truncated {
        field: FIELD,
        needed: length,
        left: rest.len() as u64,
    };
    let n = usize::try_from(length).map_err(|_| truncated.clone())?;
    let json = rest.get(..n).ok_or(truncated)?;
    Ok((json, LENGTH_BYTES + n))
}

/// Type, shape and range in the file of a tensor.
fn check(
    raw: &RawTensor<'_>,
    data_begin: usize,
    data_size: usize,
) -> Result<(SafeDType, Vec<usize>, Range<usize>), Fault> {
    let dtype = SafeDType::from_name(&raw.dtype).ok_or_else(|| Fault::Dtype {
        found: raw.dtype.to_string(),
    })?;
    let [begin, end] = raw.data_offsets;
    let out = Fault::OutOfBounds {
        begin,
        end,
        size: data_size as u64,
    };
    if begin > end || end > data_size as u64 {
        return Err(out);
    }
    let shape: Vec<usize> = raw
        .shape
        .0
        .iter()
        .map(|dim| usize::try_from(*dim).map_err(|_| Fault::SizeOverflow))
        .collect::<Result<_, _>>()?;
    let expected = shape
        .iter()
        .try_fold(dtype.n_bytes(), |n, dim| n.checked_mul(*dim))
        .ok_or(Fault::SizeOverflow)? as u64;
    if end - begin != expected {
        return Err(Fault::ByteCount {
            found: end - begin,
            expected,
        });
    }
    // Neither sum is above the length of the file.
    let position = |at: u64| {
        usize::try_from(at)
            .map(|at| data_begin + at)
            .map_err(|_| out.clone())
    };
    Ok((dtype, shape, position(begin)?..position(end)?))
}

/// Checks that the tensors, sorted, cover the data without overlap and without holes.
fn check_cover(tensors: &[Record], data_begin: usize, file_size: usize, path: &Path) -> Result<()> {
    let relative = |at: usize| (at - data_begin) as u64;
    let mut covered = data_begin;
    let mut previous = "";
    for tensor in tensors {
        let fault = match tensor.range.start {
            start if start < covered => Fault::Overlap {
                other: previous.to_owned(),
            },
            start if start > covered => Fault::Hole {
                begin: relative(start),
                previous_end: relative(covered),
            },
            _ => {
                covered = tensor.range.end;
                previous = &tensor.name;
                continue;
            }
        };
        return Err(fault.at(path, Place::Tensor(tensor.name.clone())));
    }
    if covered < file_size {
        return Err(Fault::LeftOver {
            left: (file_size - covered) as u64,
        }
        .at(path, Place::Header));
    }
    Ok(())
}

/// The header as it is written: keys in their order, duplicates kept so that they can be refused.
struct RawHeader<'a> {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawTensor<'a>)>,
}

#[derive(Deserialize)]
struct RawTensor<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Dims,
    data_offsets: [u64; 2],
}

/// The dimensions of a tensor, not more than there may be.
struct Dims(Vec<u64>);

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(DimsVisitor)
    }
}

struct DimsVisitor;

impl<'de> Visitor<'de> for DimsVisitor {
    type Value = Dims;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dims, A::Error> {
        let mut dims = Vec::new();
        while let Some(dim) = seq.next_element()? {
            if dims.len() >= MAX_SAFETENSORS_DIMS {
                return Err(A::Error::custom(format_args!(
                    "more than {MAX_SAFETENSORS_DIMS} dimensions"
                )));
            }
            dims.push(dim);
        }
        Ok(Dims(dims))
    }
}

impl<'de> Deserialize<'de> for RawHeader<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader<'de>, A::Error> {
        let mut metadata = None;
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name != METADATA_KEY {
                if tensors.len() as u64 >= MAX_TENSORS {
                    return Err(A::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
                }
                tensors.push((name, map.next_value()?));
            } else if metadata.replace(map.next_value()?).is_some() {
                return Err(A::Error::custom("`__metadata__` is there twice"));
            }
        }
        Ok(RawHeader {
            metadata: metadata.unwrap_or_default(),
            tensors,
        })
    }
}
