//! What the fuzzer and the replay of its corpus do with a safetensors file: open it and look at everything.

use std::hint::black_box;
use std::path::Path;

use carat_format::Safetensors;

/// Reads `bytes` as a file; panics when the reader promises what it does not keep.
pub(crate) fn exercise(bytes: &[u8]) {
    let file = match Safetensors::from_bytes(Path::new("fuzz.safetensors"), bytes.to_vec()) {
        Ok(file) => file,
        Err(error) => {
            black_box(error.to_string());
            return;
        }
    };
    let mut covered = 0;
    for (info, tensor) in file.infos().zip(file.tensors()) {
        let raw = file.raw(info.name).expect("every listed tensor is there");
        assert_eq!(
            raw.bytes.len(),
            raw.shape.iter().product::<usize>() * raw.dtype.n_bytes()
        );
        covered += raw.bytes.len();
        match tensor {
            Ok(tensor) => {
                assert_eq!(
                    tensor.dtype.bytes_for(tensor.n_elements()),
                    Some(tensor.bytes.len())
                );
                assert_eq!(tensor.hold()[..], *raw.bytes);
            }
            Err(error) => {
                black_box(error.to_string());
            }
        }
    }
    assert!(covered <= bytes.len());
    black_box(file.metadata().len());
}
