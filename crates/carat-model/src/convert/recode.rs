//! One tensor from one number format to another, in pieces, on several threads.
//!
//! Rows are cut into pieces of about a megabyte of f32. A round gives every thread one piece; then the
//! results are handed on in order. So memory is a few megabytes per thread however large the tensor is, and
//! the bytes do not depend on the number of threads.

use std::thread;

use carat_kernels::{DType, QuantError, dequantize, quantize};

use super::ConvertError;
use super::source::SourceTensor;

/// Values per piece.
const PIECE_LEN: usize = 1 << 18;

/// Passes the tensor's bytes in format `to` to `sink`, in order.
///
/// # Errors
/// [`ConvertError::Value`] for the first number that cannot be written, and what `sink` returns.
pub(super) fn recode(
    tensor: &SourceTensor,
    to: DType,
    n_threads: usize,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    if tensor.dtype == to && tensor.offset == 0.0 {
        return tensor.bytes().chunks(4 * PIECE_LEN).try_for_each(sink);
    }
    let n_cols = tensor.n_cols();
    let piece_len = (PIECE_LEN / n_cols.max(1)).max(1).saturating_mul(n_cols);
    let piece_bytes = size(tensor, tensor.dtype, piece_len)?;
    let pieces: Vec<&[u8]> = tensor.bytes().chunks(piece_bytes.max(1)).collect();
    let mut workers: Vec<Worker> = (0..n_threads.clamp(1, pieces.len().max(1)))
        .map(|_| Worker::default())
        .collect();
    let mut start = 0;
    for round in pieces.chunks(workers.len()) {
        let results = run_round(&mut workers, round, tensor, to);
        for (worker, result) in workers.iter().zip(results) {
            result.map_err(|source| explain(tensor, to, start, source))?;
            start += worker.values.len();
            sink(&worker.bytes)?;
        }
    }
    Ok(())
}

/// Buffers of one thread.
#[derive(Default)]
struct Worker {
    values: Vec<f32>,
    bytes: Vec<u8>,
}

impl Worker {
    fn run(&mut self, piece: &[u8], tensor: &SourceTensor, to: DType) -> Result<(), QuantError> {
        let n_values = piece.len() / tensor.dtype.block_bytes() * tensor.dtype.block_len();
        self.values.resize(n_values, 0.0);
        dequantize(tensor.dtype, piece, &mut self.values)?;
        if tensor.offset != 0.0 {
            self.values.iter_mut().for_each(|v| *v += tensor.offset);
        }
        self.bytes.resize(to.bytes_for(n_values).unwrap_or(0), 0);
        quantize(to, &self.values, &mut self.bytes)
    }
}

/// One piece for each worker; as many results as pieces.
fn run_round(
    workers: &mut [Worker],
    pieces: &[&[u8]],
    tensor: &SourceTensor,
    to: DType,
) -> Vec<Result<(), QuantError>> {
    let pairs = workers.iter_mut().zip(pieces);
    if pieces.len() == 1 {
        return pairs
            .map(|(worker, piece)| worker.run(piece, tensor, to))
            .collect();
    }
    thread::scope(|scope| {
        let handles: Vec<_> = pairs
            .map(|(worker, piece)| scope.spawn(move || worker.run(piece, tensor, to)))
            .collect();
        let join = |handle: thread::ScopedJoinHandle<'_, _>| {
            handle
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        handles.into_iter().map(join).collect()
    })
}

fn size(tensor: &SourceTensor, dtype: DType, n_values: usize) -> Result<usize, ConvertError> {
    dtype.bytes_for(n_values).ok_or_else(|| ConvertError::Tensor {
        tensor: tensor.name.clone(),
        source: QuantError::Length {
            dtype,
            n_values,
            n_bytes: tensor.bytes().len(),
        },
    })
}

/// Says where in the tensor the value is that stopped the piece beginning at value `start`.
fn explain(tensor: &SourceTensor, dtype: DType, start: usize, error: QuantError) -> ConvertError {
    match error {
        QuantError::NotFinite { index, value } | QuantError::TooLarge { index, value, .. } => {
            let (at, n_cols) = (start + index, tensor.n_cols().max(1));
            ConvertError::Value {
                tensor: tensor.name.clone(),
                row: at / n_cols,
                column: at % n_cols,
                value,
                dtype,
            }
        }
        source => ConvertError::Tensor {
            tensor: tensor.name.clone(),
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], n_cols: usize) -> SourceTensor {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        SourceTensor {
            name: "blk.0.ffn_up.weight".to_owned(),
            shape: vec![values.len() / n_cols, n_cols],
            dtype: DType::F32,
            stored: bytes.into(),
            offset: 0.0,
        }
    }

    fn collected(tensor: &SourceTensor, to: DType, n_threads: usize) -> Result<Vec<u8>, ConvertError> {
        let mut all = Vec::new();
        recode(tensor, to, n_threads, &mut |bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn threads_and_pieces_do_not_change_the_bytes() {
        // Two and a half pieces.
        let values: Vec<f32> = (0..5 * PIECE_LEN / 2).map(|i| (i as f32 * 0.37).sin()).collect();
        let tensor = tensor(&values, 256);
        let mut whole = vec![0; DType::Q4_0.bytes_for(values.len()).unwrap()];
        quantize(DType::Q4_0, &values, &mut whole).unwrap();
        for n_threads in [1, 2, 3, 8] {
            assert_eq!(collected(&tensor, DType::Q4_0, n_threads).unwrap(), whole);
        }
    }

    #[test]
    fn equal_formats_are_copied_and_offsets_added() {
        let mut tensor = tensor(&[1.0, f32::NAN, 3.0, 4.0], 4);
        assert_eq!(collected(&tensor, DType::F32, 2).unwrap(), tensor.bytes());
        tensor = self::tensor(&[0.5, -1.0], 2);
        tensor.offset = 1.0;
        assert_eq!(
            collected(&tensor, DType::F32, 2).unwrap(),
            [1.5_f32.to_le_bytes(), 0.0_f32.to_le_bytes()].concat()
        );
    }

    #[test]
    fn a_bad_value_is_located() {
        let mut values = vec![0.25; 3 * PIECE_LEN];
        values[2 * PIECE_LEN + 32 * 7 + 5] = f32::INFINITY;
        let text = collected(&tensor(&values, 32), DType::Q8_0, 2)
            .unwrap_err()
            .to_string();
        let row = (2 * PIECE_LEN + 32 * 7) / 32;
        assert!(
            text.contains(&format!("tensor `blk.0.ffn_up.weight`, row {row}, column 5: inf")),
            "{text}"
        );
    }
}
