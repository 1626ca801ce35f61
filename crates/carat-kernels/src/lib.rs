//! Number formats, SIMD kernels and the thread pool of carat.
//!
//! Knows slices and shapes; knows no model, no file and no tokenizer. The way in:
//!
//! - [`DType`], [`dequantize`], [`quantize`]: the formats weights come in.
//! - [`Isa`]: which instruction set is used, found at run time.
//! - [`Compute`]: instruction set, threads and scratch; [`Compute::multiply`] for products with weights.
//! - [`vector`]: norms, rotary embedding, gated GELU. [`attention`]: scores, softmax, values.
//! - [`encoder`]: what towers for images and audio need.
//!
//! Every operation has a scalar version and versions for AVX2, AVX-512 and NEON, chosen by [`Isa`] at run time, and
//! tests that hold them to the scalar one. `unsafe` stays inside this crate: its public functions are safe and
//! check every length.

pub mod attention;
pub mod encoder;
pub mod vector;

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod activation;
mod aligned;
mod block;
mod dtype;
mod error;
mod float_matmul;
mod gemm_f32;
mod integer_gemm;
mod integer_pairs;
mod integer_round;
mod isa;
mod largest;
mod matmul;
mod pair_gemm;
mod pool;
mod priority;
mod quant;
mod reading;
mod scalar;
mod simd;
mod topology;
mod turns;
#[cfg(target_arch = "x86_64")]
mod x86_64;

/// Whether `len` elements are `rows` rows of `width`; a product that overflows is no length.
fn is_area(len: usize, rows: usize, width: usize) -> bool {
    rows.checked_mul(width) == Some(len)
}

pub use dtype::DType;
pub use error::Error;
pub use isa::{Isa, cpu_features};
pub use largest::{Largest, RowProduct};
pub use matmul::{Activations, Compute, Matrix, Precision, Product};
pub use pool::{Pool, Turn};
pub use priority::lower_priority;
pub use quant::{QuantError, dequantize, quantize};
pub use reading::read_once;
pub use topology::physical_cores;
