//! A safetensors model: one file, or a folder of shards with their index.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Fault, Place, Result};
use crate::input::read_limited;
use crate::limit::MAX_INDEX_BYTES;
use crate::mapping::Mapping;
use crate::tensor::{TensorInfo, TensorView};

use super::dtype::SafeDType;
use super::header::{Header, Record, parse};
use super::index::Index;

/// The file of an unsharded model in a folder.
const SINGLE_NAME: &str = "model.safetensors";
/// The index of a sharded model in a folder.
const INDEX_NAME: &str = "model.safetensors.index.json";

/// An open safetensors model. Its tensors stay in the mapped files.
#[derive(Debug)]
pub struct Safetensors {
    files: Vec<Arc<Mapping>>,
    metadata: BTreeMap<String, String>,
    /// With the index of the file that has the data.
    tensors: Vec<(usize, Record)>,
    index: HashMap<String, usize>,
}

/// A tensor of any number format, borrowed from its reader.
#[derive(Clone, Copy, Debug)]
pub struct RawTensor<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// How the numbers are stored.
    pub dtype: SafeDType,
    /// Elements per axis, outermost first; empty for a scalar. An axis may have 0 elements.
    pub shape: &'a [usize],
    /// The data, little endian: exactly as many bytes as `dtype` and `shape` need, aligned to nothing.
    pub bytes: &'a [u8],
}

impl Safetensors {
    /// Opens a file, or a folder with `model.safetensors` or `model.safetensors.index.json` and its shards.
    ///
    /// The files must not be changed while they are open: see [`Mapping::open`].
    ///
    /// # Errors
    /// [`Error::Malformed`] and [`Error::Json`] for anything that is not as the format says;
    /// [`Error::NoWeights`] for a folder without either file; [`Error::Io`], [`Error::NotAFile`].
    pub fn open(path: &Path) -> Result<Safetensors> {
        if !path.is_dir() {
            return Safetensors::join(vec![Mapping::open(path)?]);
        }
        let (single, index) = (path.join(SINGLE_NAME), path.join(INDEX_NAME));
        if single.exists() {
            return Safetensors::join(vec![Mapping::open(&single)?]);
        }
        if !index.exists() {
            return Err(Error::NoWeights {
                path: path.to_owned(),
            });
        }
        Safetensors::open_sharded(path, &index)
    }

    /// Reads a file that is in memory. `path` is used in messages only.
    ///
    /// # Errors
    /// [`Error::Malformed`] and [`Error::Json`] for anything that is not as the format says.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Safetensors> {
        Safetensors::join(vec![Mapping::from_bytes(path, bytes)])
    }

    /// The free text of the header (`__metadata__`), of the first file.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The mapped files: one, or the shards in the order of their names.
    #[must_use]
    pub fn files(&self) -> &[Arc<Mapping>] {
        &self.files
    }

    /// All tensors in the order of their data.
    pub fn infos(&self) -> impl ExactSizeIterator<Item = TensorInfo<'_>> {
        self.tensors.iter().map(|(_, record)| TensorInfo {
            name: &record.name,
            type_name: record.dtype.name(),
            shape: &record.shape,
            n_bytes: record.range.len(),
        })
    }

    /// All tensors in the order of their data; an error takes the place of one of an unsupported type.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Result<TensorView<'_>>> {
        self.tensors.iter().map(|(file, record)| self.view(*file, record))
    }

    /// The tensor of this name, `None` if there is none.
    ///
    /// # Errors
    /// [`Error::UnsupportedType`] when it is none of F32, F16 and BF16.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<Result<TensorView<'_>>> {
        let (file, record) = self.find(name)?;
        Some(self.view(file, record))
    }

    /// The tensor of this name in whatever number format, `None` if there is none.
    #[must_use]
    pub fn raw(&self, name: &str) -> Option<RawTensor<'_>> {
        let (file, record) = self.find(name)?;
        let bytes = self.bytes(file, record);
        Some(RawTensor {
            name: &record.name,
            dtype: record.dtype,
            shape: &record.shape,
            bytes,
        })
    }

    fn find(&self, name: &str) -> Option<(usize, &Record)> {
        self.tensors
            .get(*self.index.get(name)?)
            .map(|(file, record)| (*file, record))
    }

    fn bytes(&self, file: usize, record: &Record) -> &[u8] {
        // Checked by `parse` against the length of this mapping, which never changes.
        &self.files[file][record.range.clone()]
    }

    fn view<'a>(&'a self, file: usize, record: &'a Record) -> Result<TensorView<'a>> {
        let mapping = &self.files[file];
        let Some(dtype) = record.dtype.to_dtype() else {
            return Err(Error::UnsupportedType {
                path: mapping.path().to_owned(),
                tensor: record.name.clone(),
                type_name: record.dtype.name().to_owned(),
            });
        };
        Ok(TensorView {
            name: &record.name,
            dtype,
            shape: &record.shape,
            bytes: self.bytes(file, record),
            mapping,
            start: record.range.start,
        })
    }

    fn open_sharded(folder: &Path, index_path: &Path) -> Result<Safetensors> {
        let index = Index::parse(index_path, &read_limited(index_path, MAX_INDEX_BYTES)?)?;
        let shards: Vec<&str> = index.shards().into_iter().collect();
        let files = shards
            .iter()
            .map(|name| Mapping::open(&folder.join(name)))
            .collect::<Result<_>>()?;
        let model = Safetensors::join(files)?;
        for (tensor, shard) in &index.weight_map {
            if model
                .find(tensor)
                .is_none_or(|(file, _)| shards.get(file) != Some(&shard.as_str()))
            {
                let fault = Fault::NotInShard { shard: shard.clone() };
                return Err(fault.at(index_path, Place::Tensor(tensor.clone())));
            }
        }
        Ok(model)
    }

    /// Reads the headers of `files` and puts them together.
    fn join(files: Vec<Arc<Mapping>>) -> Result<Safetensors> {
        let (mut tensors, mut index, mut first) = (Vec::new(), HashMap::new(), None);
        for (i_file, file) in files.iter().enumerate() {
            let Header {
                metadata,
                tensors: records,
            } = parse(file)?;
            first.get_or_insert(metadata);
            for record in records {
                if index.insert(record.name.clone(), tensors.len()).is_some() {
                    return Err(Fault::Duplicate.at(file.path(), Place::Tensor(record.name)));
                }
                tensors.push((i_file, record));
            }
        }
        Ok(Safetensors {
            files,
            metadata: first.unwrap_or_default(),
            tensors,
            index,
        })
    }
}
