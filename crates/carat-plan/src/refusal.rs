//! Why a wish does not fit, and what would.

use std::fmt;

use carat_model::KvDType;
use carat_model::convert::Mix;

use crate::choice::{SMALLEST, Search};
use crate::{Choice, Setup, Weights, Wish, size};

/// Mixes that are proposed instead of one that does not fit, best first.
const PROPOSED: [Mix; 7] = [
    Mix::Q8_0,
    Mix::Q6_K,
    Mix::Q5_K_M,
    Mix::Q4_K_M,
    Mix::Q4_0,
    Mix::Q3_K_M,
    Mix::Q2_K,
];

/// Something that would fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// Whether the drafter that was asked for is left out.
    pub without_drafter: bool,
    /// Another mix than the model's own, if it takes one.
    pub mix: Option<Mix>,
    /// Tokens of each sequence.
    pub context: usize,
    /// Format of the KV cache.
    pub kv_dtype: KvDType,
    /// Its peak, in bytes.
    pub peak: u64,
}

impl Remedy {
    fn of(mix: Option<Mix>, choice: &Choice) -> Remedy {
        Remedy {
            without_drafter: false,
            mix,
            context: choice.context,
            kv_dtype: choice.kv_dtype,
            peak: choice.plan.peak(),
        }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.without_drafter {
            write!(f, "without --draft, ")?;
        }
        if let Some(mix) = self.mix {
            write!(f, "the model in {mix} with ")?;
        }
        let (context, kv) = (self.context, self.kv_dtype);
        write!(f, "--ctx {context} --kv-type {kv} ({})", size(self.peak))
    }
}

/// A wish that does not fit.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What was tried: the wish, or the least that is of use.
    pub tried: Choice,
    /// Bytes that can be used.
    pub usable: u64,
    /// What would fit, best first; empty when nothing would.
    pub remedies: Vec<Remedy>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (plan, kv_dtype) = (&self.tried.plan, self.tried.kv_dtype);
        let cache = format!("{kv_dtype} cache");
        let parts = [
            ("weights", plan.weights.total()),
            (&cache, plan.kv.total()),
            ("towers", plan.towers),
            ("drafter", plan.drafter),
        ];
        let process = plan.process.program.saturating_add(plan.process.tokenizer);
        write!(
            f,
            "the model needs {} for a context of {} tokens (",
            size(plan.peak()),
            self.tried.context
        )?;
        for (name, bytes) in parts.into_iter().filter(|(_, bytes)| *bytes > 0) {
            write!(f, "{name} {}, ", size(bytes))?;
        }
        write!(
            f,
            "buffers and program {}), but {} can be used",
            size(plan.buffers.total().saturating_add(process)),
            size(self.usable)
        )
    }
}

impl Search<'_> {
    pub(crate) fn refuse(&self, weights: &Weights, wish: Wish) -> Box<Refusal> {
        let least = self.config.context_len.min(SMALLEST);
        let (context, dtype) = (wish.context.unwrap_or(least), usual_or(wish));
        Box::new(Refusal {
            tried: self.choice(weights, context, dtype),
            usable: self.usable,
            remedies: self.remedies(weights, wish),
        })
    }

    /// What would fit instead of a wish: all of it without the drafter; else as much of it as there is room for, and
    /// only where that is nothing the same without the drafter.
    fn remedies(&self, weights: &Weights, wish: Wish) -> Vec<Remedy> {
        if self.setup.drafter.is_none() {
            return self.compromises(weights, wish);
        }
        let setup = Setup {
            drafter: None,
            ..*self.setup
        };
        let alone = Search {
            setup: &setup,
            ..*self
        };
        let without_drafter = |remedy| Remedy {
            without_drafter: true,
            ..remedy
        };
        let whole = alone.choose(weights, wish);
        let whole = whole.map(|choice| without_drafter(Remedy::of(None, &choice)));
        let mut remedies: Vec<Remedy> = whole.into_iter().collect();
        remedies.extend(self.compromises(weights, wish));
        if remedies.is_empty() {
            let compromises = alone.compromises(weights, wish);
            remedies.extend(compromises.into_iter().map(without_drafter));
        }
        remedies
    }

    /// Other cache formats and contexts of the same weights, then smaller weights.
    fn compromises(&self, weights: &Weights, wish: Wish) -> Vec<Remedy> {
        let caches = self.other_caches(weights, wish);
        let mixes = self.smaller_mixes(weights, wish);
        let caches = caches.iter().map(|choice| Remedy::of(None, choice));
        caches
            .chain(mixes.iter().map(|(mix, choice)| Remedy::of(Some(*mix), choice)))
            .collect()
    }

    /// The longest context that fits in each format, longest first; of several formats that reach the same, the one of
    /// most bits.
    fn other_caches(&self, weights: &Weights, wish: Wish) -> Vec<Choice> {
        let most = wish.context.unwrap_or(usize::MAX);
        let formats = formats_for(wish);
        let reached = formats
            .into_iter()
            .filter_map(|dtype| self.reach(weights, most, dtype));
        let mut choices: Vec<Choice> = Vec::new();
        for choice in reached {
            if choices.iter().all(|better| better.context < choice.context) {
                choices.push(choice);
            }
        }
        choices.reverse();
        choices
    }

    /// Up to two smaller mixes, best first: those with room for the whole wish or a context long enough before those that
    /// have room for little.
    fn smaller_mixes(&self, weights: &Weights, wish: Wish) -> Vec<(Mix, Choice)> {
        let enough = self.comfortable();
        let wanted = wish.context.unwrap_or(0).max(enough).min(self.config.context_len);
        let mut found: Vec<(Mix, Choice)> = Vec::new();
        for mix in PROPOSED {
            let other = Weights::of_mix(self.config, mix);
            if other.total() < weights.total() {
                let formats = formats_for(wish).into_iter();
                let reached: Vec<Choice> = formats
                    .filter_map(|dtype| self.reach(&other, wanted, dtype))
                    .collect();
                // The first format with room for all that was wished, else the first with room for anything.
                let is_enough = |choice: &&Choice| wish.context.is_none() || choice.context >= wanted;
                let choice = reached.iter().find(is_enough).or(reached.first());
                found.extend(choice.map(|choice| (mix, *choice)));
            }
        }
        found.sort_by_key(|(_, choice)| (choice.context < wanted, choice.context < enough));
        found.truncate(2);
        found
    }

    /// The longest context up to `most` that fits; `None` when less than that and than the least of use does.
    fn reach(&self, weights: &Weights, most: usize, dtype: KvDType) -> Option<Choice> {
        let most = most.min(self.config.context_len);
        if self.fits(weights, most, dtype) {
            return Some(self.choice(weights, most, dtype));
        }
        self.longest(weights, dtype)
    }
}

/// The wished format, else the usual one.
fn usual_or(wish: Wish) -> KvDType {
    wish.kv_dtype.unwrap_or(KvDType::F16)
}

/// The formats to look for a remedy in: the wished or usual one, then those of fewer bits.
fn formats_for(wish: Wish) -> Vec<KvDType> {
    let first = usual_or(wish);
    let others = [KvDType::F16, KvDType::Q8_0, KvDType::Q4_0];
    let others = others.into_iter().filter(|other| *other != first);
    [first].into_iter().chain(others).collect()
}
