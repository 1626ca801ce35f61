//! The largest few products of activation rows with a matrix: all that a sampler wants of a row of logits.
//!
//! The others are never written to memory: each chunk of weight rows is looked through while its products are in the
//! first cache.
//!
//! With 16-bit activations, and so many rows that arithmetic takes the time and not memory, the products are computed
//! with 8-bit activations first, at half the cost, and those that may be among the largest then again in 16 bits. No other
//! can be: with `x8` and `x16` for what an activation row is in 8 and in 16 bits, the two products of a weight row `w` are,
//! by Cauchy and Schwarz, no further apart than
//!
//! ```text
//! b = |x8 - x16| max |w|
//! ```
//!
//! so that the k-th largest of all `w x16` is at least the k-th largest `w x8` less `b`, and one whose `w x8` is more than `2 b` below
//! that is smaller. What is found is therefore the same, to the bit, as without the first look. Once the `k` largest
//! `w x8` are known in 16 bits, the least of these is a better bound, and what is more than `b` below it is out as well.
//! In the 270M `b` is about 1 % of `|x| max |w|`, logits of 0.8 to 2.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use smallvec::SmallVec;

use crate::aligned::Aligned;
use crate::matmul::{Plan, SharedOut};
use crate::{Activations, Compute, Isa, Matrix, Precision, dequantize, is_area};

/// Activation rows from which on a look in 8 bits pays; fewer wait for memory in either arithmetic.
const SCREEN_MIN_X: usize = 3;
/// Candidates of a row are thinned out when there are so many, or twice as many as are wanted.
const THIN_OUT_AT: usize = 256;
/// Products that are compared at a time.
const BLOCK: usize = 64;
/// Weight rows whose products are computed again at a time.
const AGAIN_ROWS: usize = 32;
/// Weight rows of a chunk of [`Compute::longest_row`].
const NORM_ROWS: usize = 256;

/// A weight row and its product with an activation row: a token and its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowProduct {
    /// Index of the weight row.
    pub row: u32,
    /// The product.
    pub product: f32,
}

/// The larger product first; of equal ones that of the earlier row.
fn by_product(a: &RowProduct, b: &RowProduct) -> std::cmp::Ordering {
    b.product.total_cmp(&a.product).then(a.row.cmp(&b.row))
}

/// What [`Compute::largest`] needs memory for, kept from call to call.
#[derive(Debug)]
pub struct Largest {
    precision: Precision,
    /// All rows in the arithmetic of the first look, where that is another than the precision's.
    screen: Activations,
    /// All rows in the precision's.
    exact: Activations,
    of_workers: Vec<Mutex<Seen>>,
    of_rows: Vec<Mutex<Finalists>>,
}

/// What one thread has seen.
#[derive(Debug, Default)]
struct Seen {
    /// Products of a chunk, `[activation rows, weight rows]`.
    products: Aligned<f32>,
    /// One of each activation row.
    lists: Vec<Shortlist>,
}

/// What is left of one activation row.
#[derive(Debug)]
struct Finalists {
    list: Shortlist,
    x: Activations,
    /// The weight rows whose products are computed again, one behind the other.
    weights: Vec<u8>,
    products: Aligned<f32>,
}

/// The products of one activation row that may be among the `k` largest.
#[derive(Debug, Default)]
struct Shortlist {
    k: usize,
    /// How far below the k-th largest one may be.
    margin: f32,
    /// What is not above this is out.
    bar: f32,
    /// When to thin out next.
    full: usize,
    found: Vec<RowProduct>,
}

impl Shortlist {
    fn start(&mut self, k: usize, margin: f32) {
        // What is no number has no largest.
        self.k = if margin.is_finite() { k } else { 0 };
        self.margin = margin;
        self.bar = f32::NEG_INFINITY;
        self.full = THIN_OUT_AT.max(2 * k);
        self.found.clear();
        self.found.reserve(self.full + BLOCK);
    }

    fn thin_out(&mut self) {
        if self.k == 0 || self.found.len() <= self.k {
            return;
        }
        let (_, last, _) = self.found.select_nth_unstable_by(self.k - 1, by_product);
        self.bar = last.product - self.margin;
        if self.margin > 0.0 {
            self.found.retain(|found| found.product >= self.bar);
        } else {
            // Of equals the earlier rows are in, and later ones are not above the bar.
            self.found.truncate(self.k);
        }
    }
}

/// Looks at the products of the weight rows from `first_row` on; those of later calls are of later rows.
fn look(isa: Isa, list: &mut Shortlist, first_row: usize, products: &[f32]) {
    if list.k == 0 {
        return;
    }
    for (b, block) in products.chunks(BLOCK).enumerate() {
        // Nearly all blocks have none.
        let mut above = above(isa, block, list.bar);
        while above != 0 {
            let i = above.trailing_zeros() as usize;
            above &= above - 1;
            if block[i].is_finite() {
                list.found.push(RowProduct {
                    row: (first_row + BLOCK * b + i) as u32,
                    product: block[i],
                });
            }
        }
        if list.found.len() >= list.full {
            list.thin_out();
            list.full = list.full.max(2 * list.found.len());
        }
    }
}

/// Which of at most [`BLOCK`] products are above the bar, the first in the lowest bit.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(unused_variables, reason = "one way for all other sets")
)]
fn above(isa: Isa, block: &[f32], bar: f32) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if let (crate::isa::Level::Avx512 | crate::isa::Level::Amx, Some(block)) = (isa.0, block.first_chunk()) {
        // SAFETY: an `Isa` of this level exists only where the processor has the features.
        return unsafe { crate::x86_64::above_avx512(block, bar) };
    }
    let n_above: u32 = block.iter().map(|product| u32::from(*product > bar)).sum();
    if n_above == 0 {
        return 0;
    }
    let bits = block.iter().enumerate();
    bits.fold(0, |bits, (i, product)| bits | u64::from(*product > bar) << i)
}

impl Largest {
    /// For products in this arithmetic.
    #[must_use]
    pub fn new(precision: Precision) -> Largest {
        Largest {
            precision,
            screen: Activations::new(Precision::Int8),
            exact: Activations::new(precision),
            of_workers: Vec::new(),
            of_rows: Vec::new(),
        }
    }
}

impl Compute {
    /// At least the length of the longest row of `weights`, but for rows that hold what is no finite number: their products
    /// are none either.
    #[must_use]
    pub fn longest_row(&self, weights: Matrix<'_>) -> f32 {
        // Bits of a number that is not negative are ordered as the numbers are.
        let longest = AtomicU32::new(0);
        let n_chunks = weights.n_rows().div_ceil(NORM_ROWS);
        self.pool().run(n_chunks, &|_, chunk| {
            let mut values = vec![0.0; weights.n_cols()];
            let first = chunk * NORM_ROWS;
            for row in first..(first + NORM_ROWS).min(weights.n_rows()) {
                let square = match dequantize(weights.dtype(), weights.row(row), &mut values) {
                    Ok(()) => squares(&values),
                    Err(_) => f32::INFINITY,
                };
                if square.is_finite() || values.iter().all(|value| value.is_finite()) {
                    longest.fetch_max(square.to_bits(), Ordering::Relaxed);
                }
            }
        });
        // The sum of squares may have been rounded down.
        f32::from_bits(longest.into_inner()).sqrt() * 1.001
    }

    /// For each of the rows of `x` `[k.len(), n_cols]` the `k` largest of its products with the rows of `weights`, the larger
    /// first; fewer where not so many are finite. They are those of [`Compute::multiply`], to the bit; of more than
    /// [`Compute::n_few`] rows, those that it computes for each alone or for all together.
    ///
    /// `longest_row` gives [`Compute::longest_row`] of the weights if it is needed.
    ///
    /// # Panics
    /// When `x` has another shape.
    pub fn largest(
        &self,
        memory: &mut Largest,
        x: &[f32],
        weights: Matrix<'_>,
        longest_row: impl FnOnce() -> f32,
        k: &[usize],
        found: &mut Vec<Vec<RowProduct>>,
    ) {
        let (n_x, n_cols) = (k.len(), weights.n_cols());
        assert!(
            is_area(x.len(), n_x, n_cols),
            "activations do not fit their shape"
        );
        let may_screen =
            memory.precision == Precision::Int16 && weights.dtype().is_quantized() && n_x >= SCREEN_MIN_X;
        let longest_row = if may_screen { longest_row() } else { f32::INFINITY };
        let is_screened = longest_row.is_finite();
        let Largest {
            precision,
            screen,
            exact,
            of_workers,
            of_rows,
        } = memory;
        of_workers.resize_with(self.pool().n_threads(), Mutex::default);
        if of_rows.len() < n_x {
            of_rows.resize_with(n_x, || Mutex::new(Finalists::new(*precision)));
        }
        let first_look = if is_screened { screen } else { exact };
        first_look.fill(self, x, n_x, n_cols, &[weights]);
        for (t, finalists) in of_rows.iter_mut().enumerate().take(n_x) {
            let finalists = finalists.get_mut().unwrap_or_else(PoisonError::into_inner);
            let mut margin = 0.0;
            if is_screened {
                finalists
                    .x
                    .fill_gathered(self.isa(), x, n_cols, std::iter::once(t));
                margin = 2.0 * longest_row * first_look.distance(self.isa(), t, &finalists.x);
            }
            finalists.list.start(k[t], margin);
            for worker in of_workers.iter_mut() {
                let lists = &mut worker.get_mut().unwrap_or_else(PoisonError::into_inner).lists;
                lists.resize_with(lists.len().max(n_x), Shortlist::default);
                lists[t].start(k[t], margin);
            }
        }
        self.look_through(&Plan::new(self, first_look, weights), n_x, of_workers);
        // Each is one thread's; the lock only says so to the compiler.
        found.resize_with(n_x, Vec::new);
        let found: SmallVec<[Mutex<&mut Vec<RowProduct>>; 16]> = found.iter_mut().map(Mutex::new).collect();
        let of_rows = &*of_rows;
        let of_workers = &*of_workers;
        self.pool().run(n_x, &|worker, t| {
            let mut finalists = of_rows[t].lock().unwrap_or_else(PoisonError::into_inner);
            for seen in of_workers {
                let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                finalists.list.found.extend_from_slice(&seen.lists[t].found);
            }
            finalists.list.thin_out();
            if is_screened {
                finalists.decide(self, worker, weights);
            }
            let k = finalists.list.k;
            let all = &mut finalists.list.found;
            if all.len() > k {
                all.select_nth_unstable_by(k, by_product);
                all.truncate(k);
            }
            all.sort_unstable_by(by_product);
            let mut found = found[t].lock().unwrap_or_else(PoisonError::into_inner);
            found.clear();
            found.extend_from_slice(all);
        });
    }

    /// Computes all products and keeps the largest in each thread's lists.
    fn look_through(&self, plan: &Plan<'_>, n_x: usize, of_workers: &[Mutex<Seen>]) {
        self.pool().run(plan.n_chunks(), &|worker, chunk| {
            let mut seen = of_workers[worker].lock().unwrap_or_else(PoisonError::into_inner);
            let Seen { products, lists } = &mut *seen;
            let rows = plan.rows(chunk);
            products.resize(n_x * rows.len());
            {
                let mut scratch = self
                    .scratch(worker)
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                plan.run(
                    chunk,
                    &mut scratch,
                    &SharedOut::of_rows(products, n_x, rows.clone()),
                );
            }
            for (list, products) in lists.iter_mut().zip(products.chunks_exact(rows.len())) {
                look(self.isa(), list, rows.start, products);
            }
        });
    }
}

impl Finalists {
    fn new(precision: Precision) -> Finalists {
        Finalists {
            list: Shortlist::default(),
            x: Activations::new(precision),
            weights: Vec::new(),
            products: Aligned::default(),
        }
    }

    /// Leaves the largest in the arithmetic of `x`, and some more. On the calling thread, which is `worker`.
    fn decide(&mut self, compute: &Compute, worker: usize, weights: Matrix<'_>) {
        let mut found = std::mem::take(&mut self.list.found);
        let k = self.list.k.min(found.len());
        if k > 0 {
            found.select_nth_unstable_by(k - 1, by_product);
            self.compute_again(compute, worker, weights, &mut found[..k]);
            let least = found[..k].iter().map(|found| found.product);
            let bar = least.fold(f32::INFINITY, f32::min) - self.list.margin / 2.0;
            let mut n = 0;
            found.retain(|found| {
                n += 1;
                n <= k || found.product >= bar
            });
            self.compute_again(compute, worker, weights, &mut found[k..]);
        }
        self.list.found = found;
    }

    /// Replaces products by those in the arithmetic of `x`.
    fn compute_again(
        &mut self,
        compute: &Compute,
        worker: usize,
        weights: Matrix<'_>,
        found: &mut [RowProduct],
    ) {
        self.weights.clear();
        self.weights.reserve(AGAIN_ROWS * weights.row_bytes());
        self.products.resize(AGAIN_ROWS);
        // In the order of memory.
        found.sort_unstable_by_key(|found| found.row);
        let mut scratch = compute
            .scratch(worker)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for group in found.chunks_mut(AGAIN_ROWS) {
            self.weights.clear();
            for found in group.iter() {
                self.weights.extend_from_slice(weights.row(found.row as usize));
            }
            let plan = Plan::new(compute, &self.x, weights.of_copies(&self.weights));
            let products = &mut self.products[..group.len()];
            let out = SharedOut::new(products, 1, group.len());
            for chunk in 0..plan.n_chunks() {
                plan.run(chunk, &mut scratch, &out);
            }
            for (found, product) in group.iter_mut().zip(self.products.iter()) {
                found.product = *product;
            }
        }
    }
}

/// The sum of the squares.
fn squares(values: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (lanes, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for lane in lanes {
        for (sum, value) in sums.iter_mut().zip(lane) {
            *sum += value * value;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|value| value * value).sum::<f32>()
}

#[cfg(test)]
mod tests;
