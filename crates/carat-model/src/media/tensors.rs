//! Tensors of towers by name, with their shapes checked.
//!
//! Convolutions and norms come in shapes that differ by trailing or leading ones, so vectors are checked by their
//! number of elements, and matrices by rows and by what is in a row. Every name that was asked for is noted: in
//! the end each tensor of the towers must have found its place, since a tower with a forgotten tensor runs and
//! sees nothing.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;

use carat_format::{Gguf, Safetensors, TensorBytes, TensorInfo, TensorView};
use carat_kernels::{DType, dequantize};

use super::linear::{Clip, Linear};
use crate::Error;
use crate::fingerprint::{fingerprint, short};

/// The files that have the tensors.
#[derive(Clone, Copy)]
pub(super) enum Files<'a> {
    Folder(&'a Safetensors),
    Mmproj(&'a Gguf),
}

/// Where towers' tensors begin in safetensors; in `mmproj` files all are theirs.
const TOWERS: [&str; 8] = [
    "model.vision_tower.",
    "vision_tower.",
    "model.multi_modal_projector.",
    "multi_modal_projector.",
    "model.vision_embedder.",
    "model.embed_vision.",
    "model.embed_audio.",
    "model.audio_tower.",
];

/// Where the columns of a weight over pixels are in a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PixelOrder {
    /// Channel after channel, as convolutions have it.
    ChannelsFirst,
    /// Pixel after pixel.
    ChannelsLast,
}

/// See the module's head.
pub(super) struct Tensors<'a> {
    path: &'a Path,
    files: Files<'a>,
    names: HashSet<&'a str>,
    used: RefCell<HashSet<String>>,
}

impl<'a> Tensors<'a> {
    pub(super) fn new(path: &'a Path, files: Files<'a>) -> Tensors<'a> {
        Tensors {
            path,
            files,
            names: infos(files).into_iter().map(|info| info.name).collect(),
            used: RefCell::new(HashSet::new()),
        }
    }

    /// Whether names are those of `mmproj` files.
    pub(super) fn is_mmproj(&self) -> bool {
        matches!(self.files, Files::Mmproj(_))
    }

    /// The first of `prefixes` with which `name` is there; the first where it is with none.
    pub(super) fn prefix(&self, prefixes: &[&'static str], name: &str) -> &'static str {
        let is_there = |prefix: &&&'static str| self.has(&format!("{prefix}{name}"));
        prefixes
            .iter()
            .find(is_there)
            .or(prefixes.first())
            .copied()
            .unwrap_or("")
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Rows of a matrix.
    pub(super) fn rows(&self, name: &str) -> Option<usize> {
        infos(self.files)
            .iter()
            .find(|info| info.name == name)?
            .shape
            .first()
            .copied()
    }

    /// A vector or a table, as f32.
    pub(super) fn floats(&self, name: &str, n: usize) -> Result<Vec<f32>, Error> {
        let tensor = self.tensor(name)?;
        if tensor.n_elements() != n {
            return Err(self.shape(name, &[n], tensor.shape));
        }
        let mut values = vec![0.0; n];
        dequantize(tensor.dtype, tensor.bytes, &mut values).map_err(|source| Error::Tensor {
            name: name.to_owned(),
            source,
        })?;
        Ok(values)
    }

    /// The layer called `base`: its weight `[n_out, n_in]`, its bias and its limits where it has them.
    pub(super) fn linear(&self, base: &str, n_out: usize, n_in: usize) -> Result<Linear, Error> {
        let tensor = self.weight(base, n_out, n_in)?;
        let bias = self.bias(base, n_out)?;
        Linear::new(tensor.dtype, (n_out, n_in), tensor.hold(), bias, self.clip(base)?)
    }

    /// As [`Tensors::linear`], for a weight over the `side * side * 3` pixels of a patch, whose columns are brought
    /// from `order` to pixel after pixel.
    pub(super) fn pixel_linear(
        &self,
        base: &str,
        n_out: usize,
        side: usize,
        order: PixelOrder,
    ) -> Result<Linear, Error> {
        let n_in = side * side * 3;
        if order == PixelOrder::ChannelsLast {
            return self.linear(base, n_out, n_in);
        }
        self.reordered(base, (n_out, n_in), &|row, to| {
            to.copy_from_slice(&channels_last(row, side));
        })
    }

    /// As [`Tensors::linear`], with each row rearranged by `arrange(row in the file, row to be)`. In f32.
    pub(super) fn reordered(
        &self,
        base: &str,
        (n_out, n_in): (usize, usize),
        arrange: &dyn Fn(&[f32], &mut [f32]),
    ) -> Result<Linear, Error> {
        self.weight(base, n_out, n_in)?;
        let values = self.floats(&self.weight_name(base), n_out * n_in)?;
        let mut rows = vec![0.0; n_out * n_in];
        for (row, to) in values.chunks_exact(n_in).zip(rows.chunks_exact_mut(n_in)) {
            arrange(row, to);
        }
        Linear::new(
            DType::F32,
            (n_out, n_in),
            bytes_of(&rows),
            self.bias(base, n_out)?,
            self.clip(base)?,
        )
    }

    /// A matrix that is stored `[n_in, n_out]`, turned round.
    pub(super) fn transposed(&self, name: &str, n_out: usize, n_in: usize) -> Result<Linear, Error> {
        let values = self.floats(name, n_out * n_in)?;
        let rows: Vec<f32> = (0..n_out * n_in)
            .map(|i| values[i % n_in * n_out + i / n_in])
            .collect();
        Linear::new(DType::F32, (n_out, n_in), bytes_of(&rows), None, None)
    }

    /// Tells these files, used with these settings, from others.
    pub(super) fn id(&self, settings: &str) -> u64 {
        short(&match self.files {
            Files::Folder(files) => fingerprint(settings, files.infos(), files.tensors()),
            Files::Mmproj(file) => fingerprint(settings, file.infos(), file.tensors()),
        })
    }

    /// Fails when a tensor of the towers has not been asked for.
    pub(super) fn all_used(&self) -> Result<(), Error> {
        let used = self.used.borrow();
        let is_tower = |name: &str| self.is_mmproj() || TOWERS.iter().any(|prefix| name.starts_with(prefix));
        // Some converters store the indexes 0, 1, 2, ... of position embeddings.
        let is_left =
            |name: &&str| is_tower(name) && !used.contains(*name) && !name.ends_with("position_ids");
        let names: Vec<String> = infos(self.files)
            .iter()
            .map(|info| info.name)
            .filter(is_left)
            .map(str::to_owned)
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        Err(Error::UnknownTensors {
            path: self.path.to_owned(),
            names,
        })
    }

    /// Clipped layers of safetensors have their weight one level down.
    fn weight_name(&self, base: &str) -> String {
        let inner = format!("{base}.linear.weight");
        if self.has(&inner) {
            inner
        } else {
            format!("{base}.weight")
        }
    }

    fn weight(&self, base: &str, n_out: usize, n_in: usize) -> Result<TensorView<'_>, Error> {
        let name = self.weight_name(base);
        let tensor = self.tensor(&name)?;
        let columns = tensor
            .shape
            .iter()
            .skip(1)
            .try_fold(1usize, |n, m| n.checked_mul(*m));
        if tensor.shape.first() != Some(&n_out) || columns != Some(n_in) {
            return Err(self.shape(&name, &[n_out, n_in], tensor.shape));
        }
        Ok(tensor)
    }

    fn bias(&self, base: &str, n: usize) -> Result<Option<Vec<f32>>, Error> {
        let name = format!("{base}.bias");
        self.has(&name).then(|| self.floats(&name, n)).transpose()
    }

    fn clip(&self, base: &str) -> Result<Option<Clip>, Error> {
        if !self.has(&format!("{base}.input_min")) {
            return Ok(None);
        }
        let number = |what: &str| Ok::<f32, Error>(self.floats(&format!("{base}.{what}"), 1)?[0]);
        Ok(Some(Clip {
            input: (number("input_min")?, number("input_max")?),
            output: (number("output_min")?, number("output_max")?),
        }))
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>, Error> {
        self.used.borrow_mut().insert(name.to_owned());
        let found = match self.files {
            Files::Folder(files) => files.tensor(name),
            Files::Mmproj(file) => file.tensor(name),
        };
        found.transpose()?.ok_or_else(|| Error::MissingTensors {
            path: self.path.to_owned(),
            names: vec![name.to_owned()],
        })
    }

    fn shape(&self, name: &str, expected: &[usize], found: &[usize]) -> Error {
        Error::TensorShape {
            path: self.path.to_owned(),
            name: name.to_owned(),
            expected: expected.to_vec(),
            found: found.to_vec(),
        }
    }
}

fn infos<'a>(files: Files<'a>) -> Vec<TensorInfo<'a>> {
    match files {
        Files::Folder(files) => files.infos().collect(),
        Files::Mmproj(file) => file.infos().collect(),
    }
}

fn bytes_of(values: &[f32]) -> TensorBytes {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect::<Vec<u8>>()
        .into()
}

/// Numbers of a patch, channel after channel, as pixel after pixel.
fn channels_last(x: &[f32], side: usize) -> Vec<f32> {
    let area = side * side;
    (0..3 * area).map(|i| x[i % 3 * area + i / 3]).collect()
}

/// Numbers of a patch, pixel after pixel, as channel after channel.
pub(super) fn channels_first(x: &[f32]) -> Vec<f32> {
    (0..3)
        .flat_map(|c| x.iter().skip(c).step_by(3))
        .copied()
        .collect()
}
