//! What the fuzzer and the replay of its corpus do with a GGUF file: open it and look at everything.

use std::hint::black_box;
use std::path::Path;

use carat_format::{Gguf, Metadata, Value};

/// Reads `bytes` as a file; panics when the reader promises what it does not keep.
pub(crate) fn exercise(bytes: &[u8]) {
    let gguf = match Gguf::from_bytes(Path::new("fuzz.gguf"), bytes.to_vec()) {
        Ok(gguf) => gguf,
        Err(error) => {
            black_box(error.to_string());
            return;
        }
    };
    for (key, value) in gguf.metadata().iter() {
        read_as_everything(gguf.metadata(), key);
        if let Value::Array(array) = value {
            for i in (0..array.len()).take(1000) {
                assert!(array.get(i).is_some());
            }
            assert!(array.get(array.len()).is_none());
            if let Some(strings) = array.strings() {
                assert_eq!(strings.iter().count(), array.len());
                black_box(strings.iter().map(<[u8]>::len).sum::<usize>());
            }
        }
    }
    for (info, tensor) in gguf.infos().zip(gguf.tensors()) {
        assert!(gguf.tensor(info.name).is_some());
        match tensor {
            Ok(tensor) => {
                assert_eq!(
                    tensor.dtype.bytes_for(tensor.n_elements()),
                    Some(tensor.bytes.len())
                );
                assert_eq!(tensor.hold()[..], *tensor.bytes);
                black_box(tensor.bytes.iter().map(|b| u64::from(*b)).sum::<u64>());
            }
            Err(error) => {
                black_box(error.to_string());
            }
        }
    }
}

fn read_as_everything(metadata: &Metadata, key: &str) {
    assert!(metadata.get(key).is_some());
    let _ = black_box(metadata.u32(key));
    let _ = black_box(metadata.f32(key));
    let _ = black_box(metadata.bool(key));
    let _ = black_box(metadata.str(key));
    let _ = black_box(metadata.u32_or_array(key, 3));
    let _ = black_box(metadata.strings(key));
    let _ = black_box(metadata.f32s(key));
    let _ = black_box(metadata.i32s(key));
    let _ = black_box(metadata.bools(key));
}
