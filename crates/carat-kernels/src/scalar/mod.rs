//! The plain versions of the integer kernels: slow on purpose, never optimized, the specification that the
//! SIMD versions are tested against. Float kernels have theirs as [`crate::simd::Scalar`].

mod dot;
mod unpack;

pub(crate) use dot::dot_rows;
pub(crate) use unpack::Unpack;
