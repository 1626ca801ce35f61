//! Number formats, SIMD kernels and the thread pool. Knows slices and shapes; knows no model and no file.

mod dtype;

pub use dtype::DType;
