//! Products of activations with weight matrices: `out[t][r] = sum over k of w[r][k] * x[t][k]`.
//!
//! Three arithmetics, chosen by the caller through [`Precision`]:
//!
//! - `Int8`: quantized weights times activations quantized to 8 bits ([`crate::activation`]); float weights
//!   as below. The fast path.
//! - `Int16`: the same with activations in 16 bits, whose error is nothing beside that of the weights.
//! - `F32`: weights turned to f32 row by row, all products and sums in f32. The reference's arithmetic.
//!
//! With AMX, `Int8` and `Int16` multiply many rows in bf16 instead: weights and activations in 8 bits of mantissa for the
//! one, in 16 for the other.
//!
//! Work is split over weight rows, never over the sum, so results do not depend on the number of threads.
//! Few activation rows (decode) read each weight row once from memory and multiply it in registers; many
//! (prefill) unpack a panel of weight rows to the cache first.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use smallvec::SmallVec;

use crate::activation::{Bits, Layout, QuantizedRows};
use crate::aligned::Aligned;
use crate::block::{BlockFormat, CHUNK};
use crate::encoder::PairScratch;
use crate::float_matmul::{FLOAT_PANEL_ROWS, FloatScratch, float_panel, float_rows};
use crate::isa::Level;
#[cfg(target_arch = "x86_64")]
use crate::x86_64::RoundedRows;
use crate::{DType, Error, Isa, Pool, is_area, scalar};

/// With this many activation rows a panel pays for its unpacking.
fn panel_min_x(isa: Isa) -> usize {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => crate::x86_64::MAX_FEW + 1,
        _ => 5,
    }
}

/// Weight bytes of a chunk of work in decode: some 10 µs of one core's memory bandwidth.
const ROWS_CHUNK_BYTES: usize = 256 << 10;

/// A weight matrix `[n_rows, n_cols]` in any format, borrowed from where it is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    dtype: DType,
    n_rows: usize,
    n_cols: usize,
    row_bytes: usize,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// Views `bytes` as a matrix.
    ///
    /// # Errors
    /// [`Error::MatrixSize`] when the length does not fit, or a row is not a whole number of blocks.
    pub fn new(dtype: DType, n_rows: usize, n_cols: usize, bytes: &'a [u8]) -> Result<Matrix<'a>, Error> {
        let row_bytes = dtype.bytes_for(n_cols);
        match row_bytes.and_then(|row| row.checked_mul(n_rows).map(|all| (row, all))) {
            Some((row_bytes, all)) if all == bytes.len() && n_cols > 0 => Ok(Matrix {
                dtype,
                n_rows,
                n_cols,
                row_bytes,
                bytes,
            }),
            _ => Err(Error::MatrixSize {
                n_rows,
                n_cols,
                dtype,
                n_bytes: bytes.len(),
            }),
        }
    }

    /// Number format.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows: outputs.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Columns: inputs.
    #[must_use]
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// The rows `first .. first + n` as a matrix of their own: an expert's of a stack of them.
    ///
    /// # Panics
    /// When there are no such rows.
    #[must_use]
    pub fn rows(&self, first: usize, n: usize) -> Matrix<'a> {
        assert!(
            first <= self.n_rows && n <= self.n_rows - first,
            "rows beyond the end of the matrix"
        );
        Matrix {
            n_rows: n,
            // What follows stays in reach, so that kernels may read whole chunks past the last row.
            bytes: &self.bytes[first * self.row_bytes..],
            ..*self
        }
    }

    /// A matrix of rows that were copied out of this one.
    pub(crate) fn of_copies<'b>(&self, bytes: &'b [u8]) -> Matrix<'b> {
        Matrix {
            dtype: self.dtype,
            n_rows: bytes.len() / self.row_bytes.max(1),
            n_cols: self.n_cols,
            row_bytes: self.row_bytes,
            bytes,
        }
    }

    /// The bytes of `row` and all rows after it.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "for the kernels of x86-64")
    )]
    pub(crate) fn rows_from(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes..]
    }

    /// Bytes from one row to the next.
    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The bytes of one row.
    ///
    /// # Panics
    /// When there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes..(row + 1) * self.row_bytes]
    }
}

/// Which arithmetic quantized weights are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 8-bit activations; the fastest.
    Int8,
    /// 16-bit activations: twice the multiplications of `Int8`, as exact as f32 for every practical purpose.
    Int16,
    /// All f32; the reference.
    F32,
}

/// The input of one or several products: activation rows `[n_rows, n_cols]`, in both arithmetics.
#[derive(Debug)]
pub struct Activations {
    precision: Precision,
    n_rows: usize,
    n_cols: usize,
    /// Empty if no weights need them.
    floats: Vec<f32>,
    is_quantized: bool,
    quantized: Quantized,
}

/// Activations as the kernels for quantized weights take them; one of these is filled.
#[derive(Debug, Default)]
struct Quantized {
    rows: QuantizedRows,
    #[cfg(target_arch = "x86_64")]
    tiles: RoundedRows,
}

impl Activations {
    /// Empty; filled by [`Activations::fill`], whose buffers are reused.
    #[must_use]
    pub fn new(precision: Precision) -> Activations {
        Activations {
            precision,
            n_rows: 0,
            n_cols: 0,
            floats: Vec::new(),
            is_quantized: false,
            quantized: Quantized::default(),
        }
    }

    /// Takes `x` `[n_rows, n_cols]` as the input of products with `weights`, in the arithmetics that those need.
    ///
    /// # Panics
    /// When `x` does not have that many elements.
    pub fn fill(
        &mut self,
        compute: &Compute,
        x: &[f32],
        n_rows: usize,
        n_cols: usize,
        weights: &[Matrix<'_>],
    ) {
        assert!(
            is_area(x.len(), n_rows, n_cols),
            "activations do not fit their shape"
        );
        (self.n_rows, self.n_cols) = (n_rows, n_cols);
        let is_integer =
            |weights: &Matrix<'_>| weights.dtype.is_quantized() && self.precision != Precision::F32;
        self.floats.clear();
        if !weights.iter().all(is_integer) {
            self.floats.extend_from_slice(x);
        }
        self.is_quantized = weights.iter().any(is_integer);
        if self.is_quantized {
            let on = (compute.isa, Some(&compute.pool));
            self.quantized.fill(self.precision, on, x, [n_rows, n_cols]);
        }
    }

    /// Takes the rows of `x` `[_, n_cols]` whose indexes are given, in their order. On the calling thread alone, for
    /// products with weights of any kind, as is [`Activations::fill_gated`].
    ///
    /// # Panics
    /// When `x` has no such row.
    pub fn fill_gathered(
        &mut self,
        isa: Isa,
        x: &[f32],
        n_cols: usize,
        rows: impl ExactSizeIterator<Item = usize>,
    ) {
        (self.n_rows, self.n_cols) = (rows.len(), n_cols);
        self.floats.clear();
        for row in rows {
            self.floats
                .extend_from_slice(&x[row * n_cols..(row + 1) * n_cols]);
        }
        self.quantize(isa);
    }

    /// Takes `gelu(gate) * up` of `n_rows` rows of `n_cols`; rows begin every `stride` elements in both.
    ///
    /// # Panics
    /// When they are shorter than that.
    pub fn fill_gated(
        &mut self,
        isa: Isa,
        gate: &[f32],
        up: &[f32],
        stride: usize,
        [n_rows, n_cols]: [usize; 2],
    ) {
        (self.n_rows, self.n_cols) = (n_rows, n_cols);
        self.floats.resize(n_rows * n_cols, 0.0);
        for (t, out) in self.floats.chunks_exact_mut(n_cols.max(1)).enumerate() {
            out.copy_from_slice(&gate[t * stride..][..n_cols]);
            crate::vector::gelu_mul(isa, out, &up[t * stride..][..n_cols]);
        }
        self.quantize(isa);
    }

    /// How far apart, at most, the products of quantized weights of length 1 are with row `t` and with the only row of
    /// `exact`, which is the same in 16 bits.
    pub(crate) fn distance(&self, isa: Isa, t: usize, exact: &Activations) -> f32 {
        let (mut length, mut apart) = (0.0, 0.0);
        let in_tiles = takes_tiles(isa, self.n_rows);
        for b in 0..self.n_cols.div_ceil(32) {
            let block = exact.quantized.rows.block(0, b);
            length += block.iter().map(|x| x * x).sum::<f32>();
            if !in_tiles {
                let own = self.quantized.rows.block(t, b);
                apart += block
                    .iter()
                    .zip(own)
                    .map(|(x, own)| (x - own) * (x - own))
                    .sum::<f32>();
            }
        }
        // The sums of both are rounded, from block to block; with a min, the parts of a block are larger than the whole.
        let rounding = length.sqrt() * self.n_cols as f32 * f32::EPSILON;
        // Weights and activations have each lost up to 2^-8 of themselves.
        let of_tiles = if in_tiles {
            length.sqrt() * 2.05 / 256.0
        } else {
            0.0
        };
        apart.sqrt() * 1.001 + of_tiles + rounding
    }

    /// The integer form of `floats`, where the precision has one.
    fn quantize(&mut self, isa: Isa) {
        self.is_quantized = self.precision != Precision::F32;
        if self.is_quantized {
            let shape = [self.n_rows, self.n_cols];
            self.quantized
                .fill(self.precision, (isa, None), &self.floats, shape);
        }
    }
}

impl Quantized {
    /// Takes `x` `[n_rows, n_cols]` the way the kernels of the instruction set want it.
    fn fill(&mut self, precision: Precision, on: (Isa, Option<&Pool>), x: &[f32], shape: [usize; 2]) {
        let bits = match precision {
            Precision::Int16 => Bits::Sixteen,
            Precision::Int8 | Precision::F32 => Bits::Eight,
        };
        #[cfg(target_arch = "x86_64")]
        if takes_tiles(on.0, shape[0]) {
            return self.tiles.fill(on, bits == Bits::Sixteen, x, shape);
        }
        let layout = match on.0.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Amx => Layout {
                tile_rows: crate::x86_64::tile_rows(shape[0]),
                has_words: false,
            },
            #[cfg(target_arch = "x86_64")]
            level @ (Level::Avx2 | Level::AvxVnni) if shape[0] >= panel_min_x(on.0) => Layout {
                tile_rows: crate::x86_64::AVX2_TILE_X,
                has_words: bits == Bits::Sixteen || level == Level::Avx2,
            },
            _ => Layout::ROWS,
        };
        self.rows.fill(on, bits, x, shape, layout);
    }
}

/// Whether so many activation rows are multiplied by tiles of bf16.
#[cfg(target_arch = "x86_64")]
fn takes_tiles(isa: Isa, n_x: usize) -> bool {
    isa.has_tiles() && n_x >= panel_min_x(isa)
}

/// The other architectures have no tiles of bf16.
#[cfg(not(target_arch = "x86_64"))]
fn takes_tiles(_: Isa, _: usize) -> bool {
    false
}

/// One product of several that share their input: the weights and the output `[x rows, weight rows]`.
pub struct Product<'a> {
    /// Weights.
    pub weights: Matrix<'a>,
    /// Output, overwritten.
    pub out: &'a mut [f32],
}

/// What the products need beside their operands: instruction set, threads, scratch memory for each thread.
pub struct Compute {
    isa: Isa,
    pool: Pool,
    scratch: Arc<[Mutex<Scratch>]>,
}

/// One thread's memory.
#[derive(Default)]
pub(crate) struct Scratch {
    panel: PanelScratch,
    pub(crate) float: FloatScratch,
    pub(crate) pairs: PairScratch,
}

impl Compute {
    /// `n_threads` threads (at least 1) with the kernels of `isa`.
    ///
    /// # Errors
    /// [`Error::Thread`] when the system gives no thread.
    pub fn new(isa: Isa, n_threads: usize) -> Result<Compute, Error> {
        let pool = Pool::new(n_threads)?;
        let scratch = (0..pool.n_threads())
            .map(|_| Mutex::new(Scratch::default()))
            .collect();
        Ok(Compute { isa, pool, scratch })
    }

    /// The same threads and memory for work that gives way to a model's passes: see [`Pool::beside`].
    #[must_use]
    pub fn beside(&self) -> Compute {
        Compute {
            isa: self.isa,
            pool: self.pool.beside(),
            scratch: Arc::clone(&self.scratch),
        }
    }

    /// The instruction set in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Up to so many activation rows each one's result is, to the bit, what it is alone: they are multiplied by the same
    /// kernel. More may differ in rounding.
    #[must_use]
    pub fn n_few(&self) -> usize {
        panel_min_x(self.isa) - 1
    }

    /// The threads, for other parallel work between products.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The memory of a thread of the pool.
    pub(crate) fn scratch(&self, worker: usize) -> &Mutex<Scratch> {
        &self.scratch[worker]
    }

    /// Several products of one input in one parallel region.
    ///
    /// # Panics
    /// When a shape does not fit: a weight's columns, an output's length. These are the caller's invariants.
    pub fn multiply(&self, x: &Activations, products: &mut [Product<'_>]) {
        let jobs: SmallVec<[Job<'_>; 4]> = products
            .iter_mut()
            .map(|product| self.job(x, product.weights, product.out))
            .collect();
        self.run(&jobs);
    }

    /// Several products, each with an input of its own, in one parallel region.
    ///
    /// # Panics
    /// As [`Compute::multiply`].
    pub fn multiply_each<'a>(&self, products: impl Iterator<Item = (&'a Activations, Product<'a>)>) {
        let jobs: SmallVec<[Job<'_>; 16]> = products
            .map(|(x, product)| self.job(x, product.weights, product.out))
            .collect();
        self.run(&jobs);
    }

    fn job<'a>(&self, x: &'a Activations, weights: Matrix<'a>, out: &'a mut [f32]) -> Job<'a> {
        Job {
            plan: Plan::new(self, x, weights),
            out: SharedOut::new(out, x.n_rows, weights.n_rows),
        }
    }

    fn run(&self, jobs: &[Job<'_>]) {
        let n_chunks = jobs.iter().map(|job| job.plan.n_chunks()).sum();
        self.pool.run(n_chunks, &|worker, mut chunk| {
            for Job { plan, out } in jobs {
                if chunk < plan.n_chunks() {
                    let mut scratch = self.scratch[worker]
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    plan.run(chunk, &mut scratch, out);
                    return;
                }
                chunk -= plan.n_chunks();
            }
        });
    }
}

/// How a product is carried out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Int8Rows,
    Int8Panel,
    #[cfg(target_arch = "x86_64")]
    Tiles,
    FloatRows,
    FloatPanel,
}

/// A product cut into chunks of weight rows.
pub(crate) struct Plan<'a> {
    x: &'a Activations,
    weights: Matrix<'a>,
    method: Method,
    chunk_rows: usize,
    n_threads: usize,
    isa: Isa,
}

/// A product and where its results go.
struct Job<'a> {
    plan: Plan<'a>,
    out: SharedOut<'a>,
}

impl<'a> Plan<'a> {
    /// # Panics
    /// When the activations have another width, or were not filled for such weights.
    pub(crate) fn new(compute: &Compute, x: &'a Activations, weights: Matrix<'a>) -> Plan<'a> {
        let (isa, n_threads) = (compute.isa, compute.pool.n_threads());
        assert_eq!(
            weights.n_cols, x.n_cols,
            "a weight's columns are not the activations' columns"
        );
        let many = x.n_rows >= panel_min_x(isa);
        let method = match (
            weights.dtype.is_quantized() && x.precision != Precision::F32,
            many,
        ) {
            #[cfg(target_arch = "x86_64")]
            (true, true) if takes_tiles(isa, x.n_rows) => Method::Tiles,
            (true, true) if isa.0 != Level::Scalar => Method::Int8Panel,
            (true, _) => Method::Int8Rows,
            (false, true) => Method::FloatPanel,
            (false, false) => Method::FloatRows,
        };
        let is_filled = match method {
            Method::Int8Rows | Method::Int8Panel => x.is_quantized,
            #[cfg(target_arch = "x86_64")]
            Method::Tiles => x.is_quantized,
            Method::FloatRows | Method::FloatPanel => x.floats.len() == x.n_rows * x.n_cols,
        };
        assert!(is_filled, "activations were not filled for weights of this kind");
        let chunk_rows = match method {
            Method::Int8Panel => INT8_PANEL_ROWS,
            #[cfg(target_arch = "x86_64")]
            Method::Tiles => crate::x86_64::amx_panel_rows(weights.n_rows, n_threads),
            Method::FloatPanel => FLOAT_PANEL_ROWS,
            _ => {
                // Up to sixteen rows are multiplied together; eight activation rows take twice as long as one.
                let by_time = ROWS_CHUNK_BYTES / weights.row_bytes.max(1) / (1 + x.n_rows / 8);
                // A small matrix is work for all threads, and for none much longer than for the others.
                let by_threads = weights.n_rows.div_ceil(4 * n_threads);
                by_time.min(by_threads).next_multiple_of(16).clamp(16, 512)
            }
        };
        Plan {
            x,
            weights,
            method,
            chunk_rows,
            n_threads,
            isa,
        }
    }

    /// Chunks, each for one call of [`Plan::run`].
    pub(crate) fn n_chunks(&self) -> usize {
        if self.x.n_rows == 0 {
            0
        } else {
            self.weights.n_rows.div_ceil(self.chunk_rows)
        }
    }

    /// The weight rows of a chunk.
    pub(crate) fn rows(&self, chunk: usize) -> Range<usize> {
        let first = chunk * self.chunk_rows;
        first..(first + self.chunk_rows).min(self.weights.n_rows)
    }

    /// Multiplies a chunk; `out` has its rows.
    pub(crate) fn run(&self, chunk: usize, scratch: &mut Scratch, out: &SharedOut<'_>) {
        let (x, weights, rows) = (self.x, &self.weights, self.rows(chunk));
        // Threads that go at the same pace take turns.
        let next_row = rows.start + self.n_threads * self.chunk_rows;
        match self.method {
            Method::Int8Rows | Method::Int8Panel => {
                let task = RowTask {
                    weights,
                    rows,
                    next_row,
                    x: &x.quantized.rows,
                    out,
                };
                if self.method == Method::Int8Panel {
                    int8_panel(self.isa, &task, &mut scratch.panel);
                } else {
                    int8_rows(self.isa, &task, &mut scratch.panel);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Method::Tiles => {
                let task = crate::x86_64::TileTask {
                    weights,
                    rows,
                    next_row,
                    x: &x.quantized.tiles,
                    out,
                };
                // SAFETY: `takes_tiles` saw an `Isa` that exists only where the processor has the features.
                unsafe { crate::x86_64::multiply_amx(&task, &mut scratch.panel) };
            }
            Method::FloatRows | Method::FloatPanel => {
                let task = FloatTask {
                    weights,
                    rows,
                    x: &x.floats,
                    n_x: x.n_rows,
                    out,
                };
                if self.method == Method::FloatPanel {
                    float_panel(self.isa, &task, &mut scratch.float);
                } else {
                    float_rows(self.isa, &task, &mut scratch.float);
                }
            }
        }
    }
}

/// Some rows of an int8 product. Whoever makes one sees to it that no other live task has the same rows.
pub(crate) struct RowTask<'a> {
    pub(crate) weights: &'a Matrix<'a>,
    pub(crate) rows: Range<usize>,
    /// Where this thread will probably go on, for asking memory ahead of time; may be beyond the end.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "for the kernels of x86-64")
    )]
    pub(crate) next_row: usize,
    pub(crate) x: &'a QuantizedRows,
    pub(crate) out: &'a SharedOut<'a>,
}

/// Some rows of a float product; as [`RowTask`]. `x` is `[n_x, n_cols]`.
pub(crate) struct FloatTask<'a> {
    pub(crate) weights: &'a Matrix<'a>,
    pub(crate) rows: Range<usize>,
    pub(crate) x: &'a [f32],
    pub(crate) n_x: usize,
    pub(crate) out: &'a SharedOut<'a>,
}

/// An output `[n_x, n_rows]` of which several threads write different columns.
///
/// Each element is written by the one task whose rows contain its column, so no two threads touch the same
/// element; `Compute::multiply` cuts the tasks so.
pub(crate) struct SharedOut<'a> {
    to: *mut f32,
    n_x: usize,
    /// The weight row of the first column.
    first_row: usize,
    n_rows: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: see the type's doc: elements are disjoint between threads, and the borrow outlives the region.
unsafe impl Sync for SharedOut<'_> {}
// SAFETY: as above.
unsafe impl Send for SharedOut<'_> {}

impl<'a> SharedOut<'a> {
    pub(crate) fn new(out: &'a mut [f32], n_x: usize, n_rows: usize) -> SharedOut<'a> {
        SharedOut::of_rows(out, n_x, 0..n_rows)
    }

    /// An output of some weight rows alone.
    pub(crate) fn of_rows(out: &'a mut [f32], n_x: usize, rows: Range<usize>) -> SharedOut<'a> {
        assert!(
            is_area(out.len(), n_x, rows.len()),
            "an output does not fit its shape"
        );
        SharedOut {
            to: out.as_mut_ptr(),
            n_x,
            first_row: rows.start,
            n_rows: rows.len(),
            borrow: PhantomData,
        }
    }

    /// Writes the element of activation row `t` and weight row `row`.
    pub(crate) fn set(&self, t: usize, row: usize, value: f32) {
        self.set_run(t, row, &[value]);
    }

    /// Writes the elements of weight rows from `row` on.
    #[inline]
    pub(crate) fn set_run(&self, t: usize, row: usize, values: &[f32]) {
        let to = self.run(t, row, values.len());
        // SAFETY: `run` checked the bounds; this task alone writes these elements.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len()) };
    }

    /// Adds to the elements of weight rows from `row` on.
    pub(crate) fn add_run(&self, t: usize, row: usize, values: &[f32]) {
        let to = self.run(t, row, values.len());
        for (i, value) in values.iter().enumerate() {
            // SAFETY: `run` checked the bounds; this task alone touches these elements.
            unsafe { *to.add(i) += value };
        }
    }

    /// Where the elements of weight rows `row .. row + n` begin; the distance between activation rows is
    /// [`SharedOut::stride`].
    pub(crate) fn run(&self, t: usize, row: usize, n: usize) -> *mut f32 {
        let column = row.wrapping_sub(self.first_row);
        assert!(
            t < self.n_x && column <= self.n_rows && n <= self.n_rows - column,
            "outside the output"
        );
        // SAFETY: within the slice that `of_rows` got.
        unsafe { self.to.add(t * self.n_rows + column) }
    }

    /// Activation rows.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "for the kernels of x86-64")
    )]
    pub(crate) fn n_x(&self) -> usize {
        self.n_x
    }

    pub(crate) fn stride(&self) -> usize {
        self.n_rows
    }
}

/// The chunks of one weight row.
///
/// A row whose length is no multiple of 256 ends within a chunk. Kernels may read whole chunks: what follows the row in
/// the matrix is then read too, and counts for nothing, since the activations are zero there, where it is multiplied at
/// all (if a damaged file has infinite scales, the rows before such a block may become NaN with it). Only where the
/// matrix itself ends is a padded copy made.
pub(crate) struct RowChunks<'a, F: BlockFormat> {
    /// The matrix from this row on.
    bytes: &'a [u8],
    tail: Option<Box<[u8]>>,
    format: PhantomData<F>,
}

impl<'a, F: BlockFormat> RowChunks<'a, F> {
    #[inline]
    pub(crate) fn new(weights: &Matrix<'a>, row: usize) -> RowChunks<'a, F> {
        debug_assert_eq!(weights.dtype, F::DTYPE);
        let bytes = &weights.bytes[row * weights.row_bytes..];
        let n_chunks = weights.n_cols.div_ceil(CHUNK);
        let tail = (bytes.len() < n_chunks * F::CHUNK_BYTES).then(|| Self::padded_tail(bytes, n_chunks));
        RowChunks {
            bytes,
            tail,
            format: PhantomData,
        }
    }

    #[cold]
    fn padded_tail(bytes: &[u8], n_chunks: usize) -> Box<[u8]> {
        let mut tail = vec![0; F::CHUNK_BYTES];
        let rest = &bytes[(n_chunks - 1) * F::CHUNK_BYTES..];
        tail[..rest.len()].copy_from_slice(rest);
        tail.into_boxed_slice()
    }

    /// The [`BlockFormat::CHUNK_BYTES`] bytes of chunk `c`, which is below the row's length over 256, rounded up.
    #[inline(always)]
    pub(crate) fn bytes(&self, c: usize) -> &[u8] {
        match (
            self.bytes.get(c * F::CHUNK_BYTES..(c + 1) * F::CHUNK_BYTES),
            &self.tail,
        ) {
            (Some(bytes), _) => bytes,
            (None, Some(tail)) => tail,
            (None, None) => unreachable_chunk(),
        }
    }
}

/// Kernels take chunks below the row's count only.
#[cold]
#[expect(
    clippy::panic,
    reason = "an invariant of this crate: kernels read without further checks"
)]
fn unreachable_chunk() -> ! {
    panic!("a chunk beyond the end of its row")
}

/// One thread's memory for unpacked weights of the int8 path.
#[derive(Default)]
pub(crate) struct PanelScratch {
    #[cfg(target_arch = "x86_64")]
    pub(crate) packed: Box<[crate::x86_64::Packed; 2]>,
    #[cfg(target_arch = "x86_64")]
    pub(crate) lanes: Box<crate::x86_64::Lanes>,
    /// Sums of several activation rows with sixteen weight rows of Q8_0.
    #[cfg(target_arch = "x86_64")]
    pub(crate) q8_0_sums: crate::x86_64::Q8_0Sums,
    /// What the offsets of codes have too much, for each block of activations.
    #[cfg(target_arch = "x86_64")]
    pub(crate) shares: Aligned<i32>,
    /// The last rows of a matrix, filled up with zeros.
    #[cfg(target_arch = "x86_64")]
    pub(crate) padded: Vec<u8>,
    /// A panel's codes, in the kernel's own order.
    pub(crate) q: Aligned<u8>,
    pub(crate) scale: Aligned<f32>,
    pub(crate) min: Aligned<f32>,
    /// Tiles of bf16.
    #[cfg(target_arch = "x86_64")]
    pub(crate) tiles: Aligned<u16>,
    /// The panel's outputs before they are whole.
    pub(crate) sums: Aligned<f32>,
}

impl PanelScratch {
    /// Room for `n_q` bytes and `n_scales` scales and mins.
    pub(crate) fn reserve(&mut self, n_q: usize, n_scales: usize) {
        self.q.resize(n_q);
        self.scale.resize(n_scales);
        self.min.resize(n_scales);
    }
}

#[cfg(target_arch = "x86_64")]
const INT8_PANEL_ROWS: usize = crate::x86_64::PANEL_ROWS;
#[cfg(not(target_arch = "x86_64"))]
const INT8_PANEL_ROWS: usize = 32;

/// Few activation rows, by the kernel of `isa`.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(unused_variables, reason = "the other kernels for few rows need no memory")
)]
fn int8_rows(isa: Isa, task: &RowTask<'_>, scratch: &mut PanelScratch) {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only where the processor has the features.
        Level::Avx512 | Level::Amx => unsafe { crate::x86_64::multiply_avx512(task, scratch) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only where the processor has the features.
        Level::Avx2 => unsafe { crate::x86_64::dot_rows_avx2(task) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only where the processor has the features.
        Level::AvxVnni => unsafe { crate::x86_64::dot_rows_avx_vnni(task) },
        #[cfg(target_arch = "aarch64")]
        Level::Neon => crate::aarch64::dot_rows(crate::aarch64::Base, task),
        #[cfg(target_arch = "aarch64")]
        Level::Dotprod | Level::I8mm => crate::aarch64::dot_rows(crate::aarch64::Dotprod, task),
        _ => crate::block::by_format!(task.weights.dtype, F => scalar::dot_rows::<F>(task), else {}),
    }
}

/// Many activation rows.
fn int8_panel(isa: Isa, task: &RowTask<'_>, scratch: &mut PanelScratch) {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only where the processor has the features.
        Level::Avx512 | Level::Amx => unsafe { crate::x86_64::multiply_avx512(task, scratch) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only where the processor has the features.
        Level::Avx2 => unsafe { crate::x86_64::multiply_panel_avx2(task, scratch) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only where the processor has the features.
        Level::AvxVnni => unsafe { crate::x86_64::multiply_panel_avx_vnni(task, scratch) },
        #[cfg(target_arch = "aarch64")]
        Level::Neon => crate::aarch64::multiply_panel(crate::aarch64::Base, task, scratch),
        #[cfg(target_arch = "aarch64")]
        Level::Dotprod => crate::aarch64::multiply_panel(crate::aarch64::Dotprod, task, scratch),
        #[cfg(target_arch = "aarch64")]
        Level::I8mm => crate::aarch64::multiply_panel(crate::aarch64::I8mm, task, scratch),
        _ => int8_rows(isa, task, scratch),
    }
}

#[cfg(test)]
pub(crate) mod tests;
