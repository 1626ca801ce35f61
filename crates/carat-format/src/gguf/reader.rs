//! A GGUF model: one file, or all the parts of a split one, as one set of keys and tensors.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Fault, Place, Result};
use crate::mapping::Mapping;
use crate::tensor::{TensorInfo, TensorView};

use super::metadata::Metadata;
use super::parse::{Part, Record, parse};
use super::split::part_paths;
use super::tensor_type::TensorType;

/// An open GGUF model. Its tensors stay in the mapped files.
#[derive(Debug)]
pub struct Gguf {
    version: u32,
    files: Vec<Arc<Mapping>>,
    metadata: Metadata,
    /// With the index of the file that has the data.
    tensors: Vec<(usize, Record)>,
    index: HashMap<String, usize>,
}

impl Gguf {
    /// Opens a file; if it is one part of a split file (`NAME-00001-of-00003.gguf`), all the parts.
    ///
    /// The files must not be changed while they are open: see [`Mapping::open`].
    ///
    /// # Errors
    /// [`Error::Malformed`] for anything that is not as the format says, in any of the parts;
    /// [`Error::Io`] and [`Error::NotAFile`], also for a part that is missing.
    pub fn open(path: &Path) -> Result<Gguf> {
        let file = Mapping::open(path)?;
        let part = parse(&file)?;
        let count = part.metadata.u32("split.count")?.unwrap_or(0);
        if count <= 1 {
            return Gguf::join(vec![(file, part)]);
        }
        let mut parts = Vec::new();
        for path in part_paths(path, count.into())? {
            let file = Mapping::open(&path)?;
            let part = parse(&file)?;
            parts.push((file, part));
        }
        check_split(&parts)?;
        Gguf::join(parts)
    }

    /// Reads a file that is in memory. `path` is used in messages only; a part of a split file is read
    /// alone.
    ///
    /// # Errors
    /// [`Error::Malformed`] for anything that is not as the format says.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Gguf> {
        let file = Mapping::from_bytes(path, bytes);
        let part = parse(&file)?;
        Gguf::join(vec![(file, part)])
    }

    /// The keys. In a split file those of the first part, which has them all.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The version of the format, 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The mapped files: one, or the parts in order.
    #[must_use]
    pub fn files(&self) -> &[Arc<Mapping>] {
        &self.files
    }

    /// All tensors in the order of the files, those of unsupported types too.
    pub fn infos(&self) -> impl ExactSizeIterator<Item = TensorInfo<'_>> {
        self.tensors.iter().map(|(_, record)| TensorInfo {
            name: &record.name,
            type_name: record.tensor_type().name(),
            shape: &record.shape,
            n_bytes: record.range.len(),
        })
    }

    /// All tensors in the order of the files; an error takes the place of one of an unsupported type.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Result<TensorView<'_>>> {
        self.tensors.iter().map(|(file, record)| self.view(*file, record))
    }

    /// The tensor of this name, `None` if there is none.
    ///
    /// # Errors
    /// [`Error::UnsupportedType`] when it is stored in a format that carat does not read.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<Result<TensorView<'_>>> {
        let (file, record) = self.tensors.get(*self.index.get(name)?)?;
        Some(self.view(*file, record))
    }

    /// The values of a tensor of ids, which is stored as I32 or I64. `None` when there is no such tensor, or one of the
    /// values is no id.
    #[must_use]
    pub fn ids(&self, name: &str) -> Option<Vec<u32>> {
        let (file, record) = self.tensors.get(*self.index.get(name)?)?;
        let bytes = &self.files[*file][record.range.clone()];
        match record.tensor_type().name() {
            "I32" => bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|id| u32::try_from(i32::from_le_bytes(*id)).ok())
                .collect(),
            "I64" => bytes
                .as_chunks::<8>()
                .0
                .iter()
                .map(|id| u32::try_from(i64::from_le_bytes(*id)).ok())
                .collect(),
            _ => None,
        }
    }

    fn view<'a>(&'a self, file: usize, record: &'a Record) -> Result<TensorView<'a>> {
        let mapping = &self.files[file];
        let unsupported = |type_name: String| Error::UnsupportedType {
            path: mapping.path().to_owned(),
            tensor: record.name.clone(),
            type_name,
        };
        match record.tensor_type() {
            TensorType::Known(dtype) => Ok(TensorView {
                name: &record.name,
                dtype,
                shape: &record.shape,
                // Checked by `parse` against the length of this mapping, which never changes.
                bytes: &mapping[record.range.clone()],
                mapping,
                start: record.range.start,
            }),
            TensorType::Foreign(_) => Err(unsupported(record.tensor_type().name().to_owned())),
            TensorType::Unknown => Err(unsupported(format!("number {}", record.type_id))),
        }
    }

    /// Puts the parts together.
    fn join(parts: Vec<(Arc<Mapping>, Part)>) -> Result<Gguf> {
        let mut gguf = Gguf {
            version: 0,
            files: Vec::new(),
            metadata: Metadata::new(Path::new("")),
            tensors: Vec::new(),
            index: HashMap::new(),
        };
        for (file, part) in parts {
            gguf.add(file, part)?;
        }
        Ok(gguf)
    }

    fn add(&mut self, file: Arc<Mapping>, part: Part) -> Result<()> {
        if self.files.is_empty() {
            self.version = part.version;
            self.metadata = part.metadata;
        }
        for record in part.tensors {
            if self
                .index
                .insert(record.name.clone(), self.tensors.len())
                .is_some()
            {
                return Err(Fault::Duplicate.at(file.path(), Place::Tensor(record.name)));
            }
            self.tensors.push((self.files.len(), record));
        }
        self.files.push(file);
        Ok(())
    }
}

/// Checks that the parts say the same about each other as their names do.
fn check_split(parts: &[(Arc<Mapping>, Part)]) -> Result<()> {
    let mut n_tensors = 0;
    for (no, (file, part)) in parts.iter().enumerate() {
        check_number(file, part, "split.no", no as u64)?;
        check_number(file, part, "split.count", parts.len() as u64)?;
        n_tensors += part.tensors.len() as u64;
    }
    match parts.first() {
        Some((file, part)) => check_number(file, part, "split.tensors.count", n_tensors),
        None => Ok(()),
    }
}

/// Checks that the key `field` of a part is there and has this value.
fn check_number(file: &Mapping, part: &Part, field: &'static str, expected: u64) -> Result<()> {
    match part.metadata.u32(field)?.map(u64::from) {
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(Fault::Mismatch {
            field,
            found,
            expected,
        }
        .at(file.path(), Place::Split)),
        None => Err(Fault::MissingKey { field }.at(file.path(), Place::Split)),
    }
}
