//! Context and cache format for the memory that there is.
//!
//! What the user asks for is kept or refused, never changed. What is left open is chosen: the model's own context
//! with an f16 cache if that fits, else the longest f16 context that does; where that would be short, a q8_0 cache,
//! which holds nearly twice as much. When not even [`SMALLEST`] tokens fit, the answer is a [`Refusal`] that
//! knows what would.

use std::fmt;

use carat_model::convert::Mix;
use carat_model::{Config, KvDType};

use crate::grid::context_name;
use crate::{Plan, Setup, Weights, size};

/// Below this context, in tokens, running a model is hardly of use.
const SMALLEST: usize = 1024;
/// An f16 cache of at least this many tokens is preferred to a longer one of fewer bits.
const COMFORTABLE: usize = 8192;
/// Chosen contexts are multiples of this.
const STEP: usize = 256;
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

/// What the user asks for; `None` leaves it open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// Tokens of each sequence.
    pub context: Option<usize>,
    /// Format of the KV cache.
    pub kv_dtype: Option<KvDType>,
}

/// What a model is to be run with.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// Tokens of each sequence.
    pub context: usize,
    /// Format of the KV cache.
    pub kv_dtype: KvDType,
    /// What it costs.
    pub plan: Plan,
}

/// Something that would fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// Another mix than the model's own, if it takes one.
    pub mix: Option<Mix>,
    /// Tokens of each sequence.
    pub context: usize,
    /// Format of the KV cache.
    pub kv_dtype: KvDType,
    /// Its peak, in bytes.
    pub peak: u64,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        let plan = &self.tried.plan;
        write!(
            f,
            "the model needs {} for a context of {} tokens (weights {}, {} cache {}, buffers and program {}), but {} can be used",
            size(plan.peak()),
            self.tried.context,
            size(plan.weights.total()),
            self.tried.kv_dtype,
            size(plan.kv.total()),
            size(plan.peak() - plan.weights.total() - plan.kv.total()),
            size(self.usable)
        )
    }
}

/// Chooses for a model with `weights` and `usable` bytes of memory. Of `setup`, context and cache format are
/// replaced.
///
/// # Errors
/// A [`Refusal`] when the wish, or without one the least that is of use, does not fit. (Boxed: it is large.)
pub fn choose(
    config: &Config,
    weights: &Weights,
    setup: &Setup,
    wish: Wish,
    usable: u64,
) -> Result<Choice, Box<Refusal>> {
    let search = Search {
        config,
        setup,
        usable,
    };
    let own = config.context_len;
    let formats = match wish.kv_dtype {
        Some(dtype) => vec![dtype],
        None => vec![KvDType::F16, KvDType::Q8_0],
    };
    if let Some(context) = wish.context {
        let choices = formats
            .iter()
            .map(|&dtype| search.choice(weights, context, dtype));
        let mut fitting = choices.filter(|choice| choice.plan.peak() <= usable);
        return fitting
            .next()
            .ok_or_else(|| search.refuse(weights, context, formats[0], wish));
    }
    let mut best: Option<Choice> = None;
    for dtype in &formats {
        let Some(found) = search.longest(weights, *dtype) else {
            continue;
        };
        if best.is_none_or(|best| found.context > best.context) {
            best = Some(found);
        }
        if found.context >= own.min(COMFORTABLE) {
            break;
        }
    }
    best.ok_or_else(|| search.refuse(weights, own.min(SMALLEST), formats[0], wish))
}

struct Search<'a> {
    config: &'a Config,
    setup: &'a Setup,
    usable: u64,
}

impl Search<'_> {
    fn choice(&self, weights: &Weights, context: usize, kv_dtype: KvDType) -> Choice {
        let setup = Setup {
            context,
            kv_dtype,
            ..*self.setup
        };
        Choice {
            context,
            kv_dtype,
            plan: Plan::new(self.config, weights, &setup),
        }
    }

    fn fits(&self, weights: &Weights, context: usize, dtype: KvDType) -> bool {
        self.choice(weights, context, dtype).plan.peak() <= self.usable
    }

    /// The longest context that fits, up to the model's own; `None` when less than the least of use does.
    fn longest(&self, weights: &Weights, dtype: KvDType) -> Option<Choice> {
        let own = self.config.context_len;
        let least = own.min(SMALLEST);
        if self.fits(weights, own, dtype) {
            return Some(self.choice(weights, own, dtype));
        }
        if !self.fits(weights, least, dtype) {
            return None;
        }
        // `fitting` fits and `too_long` does not: costs grow with the context.
        let (mut fitting, mut too_long) = (least / STEP, own.div_ceil(STEP));
        while too_long - fitting > 1 {
            let middle = fitting.midpoint(too_long);
            if self.fits(weights, middle * STEP, dtype) {
                fitting = middle;
            } else {
                too_long = middle;
            }
        }
        Some(self.choice(weights, (fitting * STEP).max(least), dtype))
    }

    fn refuse(&self, weights: &Weights, context: usize, dtype: KvDType, wish: Wish) -> Box<Refusal> {
        let mut remedies: Vec<Remedy> = Vec::new();
        let mut propose = |mix: Option<Mix>, choice: Choice| {
            remedies.push(Remedy {
                mix,
                context: choice.context,
                kv_dtype: choice.kv_dtype,
                peak: choice.plan.peak(),
            });
        };
        // The wished context in fewer bits, then the longest that fits in each format.
        for fewer in [KvDType::Q8_0, KvDType::Q4_0] {
            if wish.context.is_some() && fewer != dtype && self.fits(weights, context, fewer) {
                propose(None, self.choice(weights, context, fewer));
                break;
            }
        }
        for format in [KvDType::F16, KvDType::Q8_0] {
            if let Some(choice) = self.longest(weights, format).filter(|c| c.context < context) {
                propose(None, choice);
            }
        }
        let smaller = PROPOSED.into_iter().filter_map(|mix| {
            let other = Weights::of_mix(self.config, mix);
            let is_smaller = other.total() < weights.total();
            let wanted = context.max(self.config.context_len.min(COMFORTABLE));
            (is_smaller && self.fits(&other, wanted, dtype))
                .then(|| (mix, self.choice(&other, wanted, dtype)))
        });
        for (mix, choice) in smaller.take(2) {
            propose(Some(mix), choice);
        }
        Box::new(Refusal {
            tried: self.choice(weights, context, dtype),
            usable: self.usable,
            remedies,
        })
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "context of {} tokens, {} cache, at most {} of memory",
            context_name(self.context),
            self.kv_dtype,
            size(self.plan.peak())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carat_model::Precision;

    const GB: u64 = 1_000_000_000;

    fn choose_for(size: &str, mix: Mix, wish: Wish, usable: u64) -> Result<Choice, Box<Refusal>> {
        let config = Config::published(size).unwrap();
        let setup = Setup {
            context: 0,
            n_sequences: 1,
            kv_dtype: KvDType::F32,
            n_threads: 4,
            has_tiles: false,
            max_batch_tokens: 512,
            precision: Precision::Int8,
            tower_bytes: 0,
            drafter: None,
        };
        let weights = Weights::of_mix(&config, mix);
        let found = choose(&config, &weights, &setup, wish, usable);
        if let Ok(choice) = &found {
            assert!(choice.plan.peak() <= usable);
        }
        found
    }

    #[test]
    fn the_models_own_context_is_taken_where_it_fits() {
        let choice = choose_for("270M", Mix::Q8_0, Wish::default(), 2 * GB).unwrap();
        assert_eq!((choice.context, choice.kv_dtype), (32_768, KvDType::F16));
        let choice = choose_for("12B", Mix::Q4_0, Wish::default(), 20 * GB).unwrap();
        assert_eq!((choice.context, choice.kv_dtype), (131_072, KvDType::F16));
    }

    #[test]
    fn else_the_longest_that_fits_and_no_longer() {
        let choice = choose_for("12B", Mix::Q4_0, Wish::default(), 10 * GB).unwrap();
        assert_eq!(choice.kv_dtype, KvDType::F16);
        assert!((30_000..50_000).contains(&choice.context), "{choice}");
        let longer = Wish {
            context: Some(choice.context + STEP),
            kv_dtype: Some(KvDType::F16),
        };
        assert!(choose_for("12B", Mix::Q4_0, longer, 10 * GB).is_err());
    }

    #[test]
    fn fewer_bits_where_f16_would_be_short() {
        let choice = choose_for("12B", Mix::Q4_0, Wish::default(), 7_700_000_000).unwrap();
        assert_eq!(choice.kv_dtype, KvDType::Q8_0);
        assert!(choice.context > 4096, "{choice}");
        let asked = Wish {
            context: None,
            kv_dtype: Some(KvDType::F16),
        };
        let choice = choose_for("12B", Mix::Q4_0, asked, 7_700_000_000).unwrap();
        assert_eq!(choice.kv_dtype, KvDType::F16);
        assert!(choice.context < 4096, "{choice}");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let refusal = choose_for("12B", Mix::Q8_0, Wish::default(), 10 * GB).unwrap_err();
        let text = refusal.to_string();
        assert!(
            text.contains("weights 12.")
                && text.contains("1024 tokens")
                && text.contains("10.0 GB can be used"),
            "{text}"
        );
        assert_eq!(refusal.remedies[0].mix, Some(Mix::Q5_K_M), "{refusal:?}");
        assert!(refusal.remedies.iter().all(|remedy| remedy.peak <= 10 * GB));

        let wish = Wish {
            context: Some(131_072),
            kv_dtype: None,
        };
        let refusal = choose_for("12B", Mix::Q4_0, wish, 10 * GB).unwrap_err();
        let first = refusal.remedies[0];
        assert_eq!((first.context, first.kv_dtype), (131_072, KvDType::Q4_0));
        assert!(refusal.remedies[1].context < 131_072);
        assert!(
            refusal.remedies[0]
                .to_string()
                .starts_with("--ctx 131072 --kv-type q4_0")
        );

        let refusal = choose_for("27B", Mix::BF16, Wish::default(), GB).unwrap_err();
        assert!(refusal.remedies.is_empty());
    }
}
