//! What can be wrong with a call of this crate.

/// The errors of the kernels crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such instruction set.
    #[error(
        "instruction set `{name}` is unknown; choose one of scalar, avx2, avxvnni, avx512, amx, neon, dotprod, i8mm"
    )]
    UnknownIsa {
        /// As the user wrote it.
        name: String,
    },
    /// A known instruction set that cannot be used here.
    #[error("instruction set `{name}` is not available here; the best available one is `{best}`")]
    MissingIsa {
        /// As the user wrote it.
        name: String,
        /// The best one that can be used.
        best: &'static str,
    },
    /// No such format of keys and values.
    #[error("KV cache format `{name}` is unknown; choose one of f16, bf16, q8_0, q4_0, f32")]
    UnknownKvDType {
        /// As the user wrote it.
        name: String,
    },
    /// A tensor's bytes do not fit its shape.
    #[error("{n_bytes} bytes are not a {n_rows} x {n_cols} matrix of {dtype}")]
    MatrixSize {
        /// Rows.
        n_rows: usize,
        /// Columns.
        n_cols: usize,
        /// Number format.
        dtype: crate::DType,
        /// Bytes given.
        n_bytes: usize,
    },
    /// The operating system gave no thread.
    #[error("cannot start worker thread {index}: {source}")]
    Thread {
        /// Which worker, from 1.
        index: usize,
        /// The system's reason.
        source: std::io::Error,
    },
}
