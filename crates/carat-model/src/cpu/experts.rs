//! Experts on the CPU: each token goes to a few of many small MLPs.
//!
//! ```text
//! probabilities [T, experts] → the chosen of each token, sorted by expert → groups (an expert and its tokens)
//! x rows of a group → gate and up → gelu(gate) * up → down → rows, summed by weight for each token
//! ```
//!
//! Only chosen experts are touched: decode reads `n_used` of the stacked matrices, where they are mapped, and
//! prefill reads each expert that any token chose once, with all of its tokens together. Each step is one parallel
//! region over all groups.

use std::sync::{Mutex, PoisonError};

use carat_kernels::{Activations, Compute, Matrix, Precision, Product};
use smallvec::SmallVec;

use super::Cpu;
use crate::backend::ExpertMatrices;

/// Which experts the tokens of a batch go to.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    n_used: usize,
    /// `[T, n_used]`: expert and weight, the likeliest first.
    chosen: Vec<(usize, f32)>,
    /// The experts that were chosen, ascending.
    groups: Vec<Group>,
    /// The place of each group among all by the number of rows, the largest first.
    places: Vec<usize>,
    /// Groups in the order of their places.
    by_size: Vec<usize>,
    /// The token of each row, rows being in the order of groups, and within them of tokens.
    tokens: Vec<usize>,
    /// `[T, n_used]`: the row of each choice.
    rows: Vec<usize>,
    /// Per expert: its first row, then its next.
    next: Vec<usize>,
}

/// An expert and its rows.
#[derive(Clone, Debug)]
struct Group {
    expert: usize,
    first: usize,
    end: usize,
}

impl Group {
    fn n_rows(&self) -> usize {
        self.end - self.first
    }
}

impl Routes {
    /// Place for the choices `[n_tokens, n_used]`, which [`choose`] makes: expert and weight.
    pub(super) fn of_tokens(&mut self, n_tokens: usize, n_used: usize) -> &mut [(usize, f32)] {
        self.n_used = n_used;
        self.chosen.resize(n_tokens * n_used, (0, 0.0));
        &mut self.chosen
    }

    /// Sorts the choices by expert.
    pub(super) fn group(&mut self, n_experts: usize) {
        self.next.clear();
        self.next.resize(n_experts, 0);
        for (expert, _) in &self.chosen {
            self.next[*expert] += 1;
        }
        self.groups.clear();
        let mut first = 0;
        for (expert, next) in self.next.iter_mut().enumerate() {
            let end = first + *next;
            if end > first {
                self.groups.push(Group { expert, first, end });
            }
            *next = first;
            first = end;
        }
        let Routes {
            groups,
            places,
            by_size,
            ..
        } = self;
        by_size.clear();
        by_size.extend(0..groups.len());
        by_size.sort_unstable_by_key(|&group| (std::cmp::Reverse(groups[group].n_rows()), group));
        places.resize(groups.len(), 0);
        for (place, &group) in by_size.iter().enumerate() {
            places[group] = place;
        }
        self.tokens.resize(self.chosen.len(), 0);
        self.rows.resize(self.chosen.len(), 0);
        for (i, (expert, _)) in self.chosen.iter().enumerate() {
            let row = &mut self.next[*expert];
            (self.tokens[*row], self.rows[i]) = (i / self.n_used, *row);
            *row += 1;
        }
    }
}

/// Turns a token's `scores` `[n_experts]` into probabilities and fills `chosen`, which is no longer. See
/// [`Backend::route`](crate::backend::Backend::route).
pub(super) fn choose(scores: &mut [f32], scale: &[f32], chosen: &mut [(usize, f32)]) {
    softmax(scores);
    let mut n = 0;
    for (expert, score) in scores.iter().enumerate() {
        // Of equals the first is taken.
        let stands_before = |(_, other): &(usize, f32)| other.total_cmp(score).is_ge();
        let at = chosen[..n]
            .iter()
            .rposition(stands_before)
            .map_or(0, |last| last + 1);
        if at < chosen.len() {
            n = (n + 1).min(chosen.len());
            chosen[at..n].rotate_right(1);
            chosen[at] = (expert, *score);
        }
    }
    let total: f32 = chosen.iter().map(|(_, weight)| weight).sum();
    for (expert, weight) in chosen {
        *weight = *weight / total * scale[*expert];
    }
}

/// In f32, as the reference's.
fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores
        .iter_mut()
        .for_each(|score| *score = (*score - largest).exp());
    let total: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= total);
}

/// Memory that is reused from call to call.
pub(super) struct ExpertScratch {
    precision: Precision,
    /// The input of gate and up, and that of down, of each group by its place: the largest group of every layer gets the same
    /// memory, and the next, so that it is not kept as often as there are experts.
    inputs: Vec<[Mutex<Activations>; 2]>,
    /// Per group its rows of gate and up: `[n, 2 * d_ff]`, or where the matrices are apart `[2, n, d_ff]`.
    gate_up: Vec<f32>,
    /// `[rows, d_model]`
    down: Vec<f32>,
}

impl Default for ExpertScratch {
    /// What stands in its place while it is in use.
    fn default() -> ExpertScratch {
        ExpertScratch::new(Precision::F32)
    }
}

impl ExpertScratch {
    pub(super) fn new(precision: Precision) -> ExpertScratch {
        ExpertScratch {
            precision,
            inputs: Vec::new(),
            gate_up: Vec::new(),
            down: Vec::new(),
        }
    }

    /// What the experts make of their tokens' rows of `x` `[T, d_model]`.
    pub(super) fn run(
        &mut self,
        compute: &Compute,
        x: &[f32],
        routes: &Routes,
        experts: &ExpertMatrices<Cpu>,
    ) {
        let (isa, d_ff, groups, places) = (compute.isa(), experts.d_ff, &routes.groups, &routes.places);
        // Sizes were checked when the matrices were made, so the views cannot fail.
        let (Ok(gate), Ok(down)) = (experts.gate.view(), experts.down.view()) else {
            return;
        };
        let up = experts.up.as_ref().and_then(|up| up.view().ok());
        let (d_model, n_rows) = (gate.n_cols(), routes.tokens.len());
        let precision = self.precision;
        let new = || [0, 1].map(|_| Mutex::new(Activations::new(precision)));
        self.inputs.resize_with(self.inputs.len().max(groups.len()), new);
        self.gate_up.resize(n_rows * 2 * d_ff, 0.0);
        self.down.resize(n_rows * d_model, 0.0);

        let inputs = &self.inputs;
        compute.pool().run(groups.len(), &|_, i| {
            let tokens = &routes.tokens[groups[i].first..groups[i].end];
            lock(&inputs[places[i]][0]).fill_gathered(isa, x, d_model, tokens.iter().copied());
        });
        multiply_gate_up(
            compute,
            groups,
            (&gate, up.as_ref()),
            d_ff,
            &of_groups(&mut self.inputs, places, 0),
            &mut self.gate_up,
        );
        let (inputs, gate_up) = (&self.inputs, &self.gate_up);
        compute.pool().run(groups.len(), &|_, i| {
            let (first, n) = (groups[i].first, groups[i].n_rows());
            let rows = &gate_up[first * 2 * d_ff..(first + n) * 2 * d_ff];
            let (up, stride) = if up.is_some() {
                (&rows[n * d_ff..], d_ff)
            } else {
                (&rows[d_ff..], 2 * d_ff)
            };
            lock(&inputs[places[i]][1]).fill_gated(isa, rows, up, stride, [n, d_ff]);
        });
        let mut rest = self.down.as_mut_slice();
        let inputs = of_groups(&mut self.inputs, places, 1);
        let products = groups.iter().zip(inputs).map(|(group, input)| {
            let (out, others) = std::mem::take(&mut rest).split_at_mut(group.n_rows() * d_model);
            rest = others;
            let weights = down.rows(group.expert * d_model, d_model);
            (input, Product { weights, out })
        });
        compute.multiply_each(products);
    }

    /// The weighted sum for token `t`.
    pub(super) fn mix(&self, routes: &Routes, t: usize, out: &mut [f32]) {
        out.fill(0.0);
        let of_token = t * routes.n_used..(t + 1) * routes.n_used;
        for ((_, weight), row) in routes.chosen[of_token.clone()].iter().zip(&routes.rows[of_token]) {
            let d_model = out.len();
            for (out, value) in out.iter_mut().zip(&self.down[row * d_model..]) {
                *out += weight * value;
            }
        }
    }
}

/// Gate and up of all groups in one region.
fn multiply_gate_up(
    compute: &Compute,
    groups: &[Group],
    (gate, up): (&Matrix<'_>, Option<&Matrix<'_>>),
    d_ff: usize,
    inputs: &[&Activations],
    out: &mut [f32],
) {
    let mut rest = out;
    let mut products: SmallVec<[_; 16]> = SmallVec::new();
    for (group, &input) in groups.iter().zip(inputs) {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(group.n_rows() * 2 * d_ff);
        rest = others;
        if let Some(up) = up {
            let (first, second) = own.split_at_mut(group.n_rows() * d_ff);
            for (matrix, out) in [(gate, first), (up, second)] {
                let weights = matrix.rows(group.expert * d_ff, d_ff);
                products.push((input, Product { weights, out }));
            }
        } else {
            let weights = gate.rows(group.expert * 2 * d_ff, 2 * d_ff);
            products.push((input, Product { weights, out: own }));
        }
    }
    compute.multiply_each(products.into_iter());
}

/// A group's input, which one chunk of a region fills.
fn lock(input: &Mutex<Activations>) -> std::sync::MutexGuard<'_, Activations> {
    input.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of both inputs of each group.
fn of_groups<'a>(
    inputs: &'a mut [[Mutex<Activations>; 2]],
    places: &[usize],
    which: usize,
) -> SmallVec<[&'a Activations; 16]> {
    let by_place: SmallVec<[&Activations; 16]> = inputs
        .iter_mut()
        .take(places.len())
        .map(|inputs| &*inputs[which].get_mut().unwrap_or_else(PoisonError::into_inner))
        .collect();
    places.iter().map(|&place| by_place[place]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(routes: &mut Routes, scores: &mut [f32], n_experts: usize, n_used: usize, scale: &[f32]) {
        let chosen = routes.of_tokens(scores.len() / n_experts, n_used);
        let tokens = scores.chunks_mut(n_experts).zip(chosen.chunks_mut(n_used));
        tokens.for_each(|(scores, chosen)| choose(scores, scale, chosen));
        routes.group(n_experts);
    }

    #[test]
    fn the_likeliest_are_chosen_and_sorted_by_expert() {
        let mut routes = Routes::default();
        // Two tokens, four experts, two of them for each.
        let mut scores = [0.0, 2.0, 1.0, -1.0, 3.0, 0.0, 5.0, 0.0];
        route(&mut routes, &mut scores, 4, 2, &[1.0, 1.0, 2.0, 1.0]);
        assert!((scores[..4].iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let experts: Vec<usize> = routes.chosen.iter().map(|(expert, _)| *expert).collect();
        assert_eq!(experts, [1, 2, 2, 0]);
        let e = std::f32::consts::E;
        // e^2 and e^1 over their sum, the second times its expert's scale.
        assert!((routes.chosen[0].1 - e / (e + 1.0)).abs() < 1e-6);
        assert!((routes.chosen[1].1 - 2.0 / (e + 1.0)).abs() < 1e-6);
        assert_eq!(routes.tokens, [1, 0, 0, 1], "rows of experts 0, 1, 2, 2");
        assert_eq!(routes.rows, [1, 2, 3, 0]);
        assert_eq!(routes.groups.len(), 3);
        assert_eq!(routes.places, [1, 2, 0], "expert 2 has two rows");
    }

    #[test]
    fn of_equals_the_first_are_chosen() {
        // Whole numbers below 9, most of them several times.
        let mut scores: Vec<f32> = (0..100).map(|i| (i * i * 7 % 9) as f32).collect();
        let mut order: Vec<usize> = (0..100).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let mut chosen = [(0, 0.0); 8];
        choose(&mut scores, &[1.0; 100], &mut chosen);
        assert_eq!(chosen.map(|(expert, _)| expert), order[..8]);
    }

    #[test]
    fn broken_scores_still_choose_as_many() {
        let mut routes = Routes::default();
        route(&mut routes, &mut [f32::NAN; 6], 3, 2, &[1.0; 3]);
        assert_eq!(routes.chosen.len(), 4);
        assert!(routes.chosen[0].0 != routes.chosen[1].0);
    }
}
