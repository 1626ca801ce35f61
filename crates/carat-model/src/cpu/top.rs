//! The largest logits of each row, as if whole rows had been computed, capped and sorted.

use carat_kernels::{Compute, Largest, Matrix, Precision, RowProduct, vector};
use smallvec::SmallVec;

use crate::TokenLogit;

/// How many more than wanted are looked for where there is a cap.
const MORE: usize = 8;
/// Share of the cap by which capped logits may be out of order: they are rounded, to a few of its units in the last place.
const CAP_ERROR: f32 = 1e-6;

/// Memory that is reused from call to call.
pub(super) struct Top {
    largest: Largest,
    found: Vec<Vec<RowProduct>>,
    /// Logits on their way through the cap.
    capped: Vec<f32>,
}

impl Top {
    pub(super) fn new(precision: Precision) -> Top {
        Top {
            largest: Largest::new(precision),
            found: Vec::new(),
            capped: Vec::new(),
        }
    }

    /// See [`Backend::largest`](crate::backend::Backend::largest); `longest_row` gives [`Compute::longest_row`] of the weights.
    ///
    /// A cap makes different products equal, or nearly so and the smaller the larger by a rounding. So some more are
    /// looked for than are wanted, and if even the last of these is as large as one that is wanted, twice as many.
    pub(super) fn run(
        &mut self,
        compute: &Compute,
        x: &[f32],
        (weights, longest_row): (Matrix<'_>, impl Fn() -> f32),
        cap: Option<f32>,
        k: &[usize],
        out: &mut Vec<Vec<TokenLogit>>,
    ) {
        let Some(cap) = cap else {
            compute.largest(&mut self.largest, x, weights, longest_row, k, &mut self.found);
            return self.give(out, |_| {});
        };
        let more = |k: &usize| if *k == 0 { 0 } else { k + MORE };
        let mut wanted: SmallVec<[usize; 32]> = k.iter().map(more).collect();
        loop {
            compute.largest(
                &mut self.largest,
                x,
                weights,
                &longest_row,
                &wanted,
                &mut self.found,
            );
            self.give(out, |logits| vector::soft_cap(compute.isa(), logits, cap));
            let mut is_enough = true;
            for ((own, k), wanted) in out.iter_mut().zip(k).zip(&mut wanted) {
                own.sort_unstable_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
                let (least, last) = (own.get(k.wrapping_sub(1)), own.last());
                if let (Some(least), Some(last)) = (least, last) {
                    let are_there_others = own.len() == *wanted && own.len() < weights.n_rows();
                    if are_there_others && last.logit >= least.logit - CAP_ERROR * cap {
                        *wanted *= 2;
                        is_enough = false;
                    }
                }
                own.truncate(*k);
            }
            if is_enough {
                return;
            }
        }
    }

    /// What was found, each row's logits changed by `change`.
    fn give(&mut self, out: &mut Vec<Vec<TokenLogit>>, change: impl Fn(&mut [f32])) {
        out.resize_with(self.found.len(), Vec::new);
        for (out, found) in out.iter_mut().zip(&self.found) {
            self.capped.clear();
            self.capped.extend(found.iter().map(|found| found.product));
            change(&mut self.capped);
            out.clear();
            out.extend(found.iter().zip(&self.capped).map(|(found, logit)| TokenLogit {
                id: found.row,
                logit: *logit,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use carat_kernels::{Activations, DType, Product};

    use super::*;

    /// The `k` largest of whole rows of capped logits, and what `Top` says they are. Logit `i` of row `t` is
    /// `products[i] * (t + 1)`.
    fn both(products: &[f32], n_x: usize, k: usize) -> [Vec<Vec<TokenLogit>>; 2] {
        let compute = Compute::new(carat_kernels::Isa::detect(), 2).unwrap();
        let bytes: Vec<u8> = products
            .iter()
            .flat_map(|product| product.to_le_bytes())
            .collect();
        let weights = Matrix::new(DType::F32, products.len(), 1, &bytes).unwrap();
        let x: Vec<f32> = (1..=n_x).map(|t| t as f32).collect();
        let mut activations = Activations::new(Precision::F32);
        activations.fill(&compute, &x, n_x, 1, &[weights]);
        let mut whole = vec![0.0; n_x * products.len()];
        let product = Product {
            weights,
            out: &mut whole,
        };
        compute.multiply(&activations, &mut [product]);
        vector::soft_cap(compute.isa(), &mut whole, 30.0);
        let sorted = whole.chunks_exact(products.len()).map(|row| {
            let mut all: Vec<TokenLogit> = (0..)
                .zip(row)
                .map(|(id, logit)| TokenLogit { id, logit: *logit })
                .collect();
            all.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
            all.truncate(k);
            all
        });
        let mut found = Vec::new();
        let longest_row = || compute.longest_row(weights);
        Top::new(Precision::F32).run(
            &compute,
            &x,
            (weights, longest_row),
            Some(30.0),
            &vec![k; n_x],
            &mut found,
        );
        [sorted.collect(), found]
    }

    #[test]
    fn of_logits_that_the_cap_makes_equal_the_first_is_the_largest() {
        // The second is larger, and both are the same once they are capped.
        let [whole, top] = both(&[1.0, 90.0, 2.0, 90.00009, 3.0], 1, 1);
        assert_eq!(whole[0][0].id, 1);
        assert_eq!(top, whole);
    }

    #[test]
    fn a_cap_that_makes_hundreds_equal_hides_none_of_them() {
        // Capped they are 30 to the last bit; the earliest have the smallest products.
        let products: Vec<f32> = (0..700).map(|i| 400.0 + i as f32).collect();
        for k in [0, 1, 5, 64, 699, 700, 900] {
            let [whole, top] = both(&products, 3, k);
            assert_eq!(top, whole, "{k}");
        }
    }

    #[test]
    fn the_cap_may_put_neighbours_out_of_order() {
        for seed in 0..200u32 {
            let mut state = seed.wrapping_mul(2_654_435_761) | 1;
            let products: Vec<f32> = (0..300)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // A few units in the last place apart, many of them, around a place that the seed says.
                    f32::from_bits((0.02 + 0.5 * seed as f32).to_bits() + (state >> 26))
                })
                .collect();
            let [whole, top] = both(&products, 2, 7);
            assert_eq!(top, whole, "{seed}");
        }
    }
}
