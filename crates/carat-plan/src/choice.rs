//! Context and cache format for the memory that there is.
//!
//! What the user asks for is kept or refused, never changed. What is left open is chosen: the model's own context
//! with an f16 cache if that fits, else the longest f16 context that does; where that would be short, a q8_0 cache,
//! which holds nearly twice as much. When not even [`SMALLEST`] tokens fit, the answer is a [`Refusal`] that
//! knows what would.

use std::fmt;

use carat_model::{Config, KvDType};

use crate::grid::context_name;
use crate::refusal::Refusal;
use crate::{Plan, Setup, Weights, size};

/// Below this context, in tokens, running a model is hardly of use.
pub(crate) const SMALLEST: usize = 1024;
/// An f16 cache of at least this many tokens is preferred to a longer one of fewer bits.
const COMFORTABLE: usize = 8192;
/// Chosen contexts are multiples of this.
const STEP: usize = 256;

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
    search
        .choose(weights, wish)
        .ok_or_else(|| search.refuse(weights, wish))
}

/// What is chosen for.
pub(crate) struct Search<'a> {
    pub(crate) config: &'a Config,
    pub(crate) setup: &'a Setup,
    pub(crate) usable: u64,
}

impl Search<'_> {
    /// The best that fits and is as wished.
    pub(crate) fn choose(&self, weights: &Weights, wish: Wish) -> Option<Choice> {
        let formats = wish
            .kv_dtype
            .map_or(vec![KvDType::F16, KvDType::Q8_0], |dtype| vec![dtype]);
        if let Some(context) = wish.context {
            let fitting = formats
                .into_iter()
                .find(|&dtype| self.fits(weights, context, dtype));
            return fitting.map(|dtype| self.choice(weights, context, dtype));
        }
        let mut best: Option<Choice> = None;
        for dtype in formats {
            let Some(found) = self.longest(weights, dtype) else {
                continue;
            };
            if best.is_none_or(|best| found.context > best.context) {
                best = Some(found);
            }
            if found.context >= self.comfortable() {
                break;
            }
        }
        best
    }

    /// The context from which on a choice is long enough.
    pub(crate) fn comfortable(&self) -> usize {
        self.config.context_len.min(COMFORTABLE)
    }

    pub(crate) fn choice(&self, weights: &Weights, context: usize, kv_dtype: KvDType) -> Choice {
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

    pub(crate) fn fits(&self, weights: &Weights, context: usize, dtype: KvDType) -> bool {
        self.choice(weights, context, dtype).plan.peak() <= self.usable
    }

    /// The longest context that fits, up to the model's own; `None` when less than the least of use does.
    pub(crate) fn longest(&self, weights: &Weights, dtype: KvDType) -> Option<Choice> {
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
    use crate::{Drafter, Fit, Remedy};
    use carat_model::Precision;
    use carat_model::convert::Mix;

    const GB: u64 = 1_000_000_000;

    fn choose_for(size: &str, mix: Mix, wish: Wish, usable: u64) -> Result<Choice, Box<Refusal>> {
        choose_beside(None, 0, size, mix, wish, usable)
    }

    /// The same beside a drafter of these weights and towers of so many bytes.
    fn choose_beside(
        drafter_weights: Option<u64>,
        tower_bytes: u64,
        size: &str,
        mix: Mix,
        wish: Wish,
        usable: u64,
    ) -> Result<Choice, Box<Refusal>> {
        let config = Config::published(size).unwrap();
        let plain = Setup {
            context: 0,
            n_sequences: 1,
            kv_dtype: KvDType::F32,
            n_threads: 4,
            has_tiles: false,
            max_batch_tokens: 512,
            precision: Precision::Int8,
            tower_bytes,
            drafter: None,
        };
        let setup = Setup {
            drafter: drafter_weights.map(|bytes| Drafter::made_for(&config, bytes, &plain)),
            ..plain
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

    /// The peak of a plan in this mix, as a table shows it.
    fn peak(size: &str, mix: Mix, context: usize, kv_dtype: KvDType) -> u64 {
        let wish = Wish {
            context: Some(context),
            kv_dtype: Some(kv_dtype),
        };
        choose_for(size, mix, wish, u64::MAX).unwrap().plan.peak()
    }

    fn wish(context: Option<usize>) -> Wish {
        Wish {
            context,
            kv_dtype: None,
        }
    }

    fn remedies(size: &str, mix: Mix, wish: Wish, usable: u64) -> Vec<Remedy> {
        let refusal = choose_for(size, mix, wish, usable).unwrap_err();
        let fits = |remedy: &Remedy| Fit::of(remedy.peak, usable).is_possible();
        assert!(refusal.remedies.iter().all(fits), "{refusal:?}");
        refusal.remedies
    }

    #[test]
    fn a_mix_with_room_for_little_is_proposed_where_none_has_room_for_more() {
        let usable = peak("12B", Mix::Q2_K, 4096, KvDType::F16);
        assert!(peak("12B", Mix::Q2_K, 8192, KvDType::F16) > usable);
        let [only] = remedies("12B", Mix::Q4_K_M, wish(None), usable)[..] else {
            panic!("one mix fits");
        };
        assert_eq!((only.mix, only.context), (Some(Mix::Q2_K), 4096));
        // Not even the shortest context with an f16 cache, but one with fewer bits.
        let usable = peak("12B", Mix::Q2_K, 1024, KvDType::Q4_0);
        assert!(usable < peak("12B", Mix::Q2_K, 1024, KvDType::F16));
        assert!(!remedies("12B", Mix::Q4_K_M, wish(None), usable).is_empty());
    }

    #[test]
    fn a_wish_too_long_for_every_mix_is_answered_with_shorter_ones() {
        // Room for 6,656 tokens of Q3_K_M, which is not enough, and for more of Q2_K.
        let found = remedies("12B", Mix::Q4_K_M, wish(Some(131_072)), 7 * GB);
        let mixes: Vec<Option<Mix>> = found.iter().map(|remedy| remedy.mix).collect();
        assert_eq!(mixes, [Some(Mix::Q2_K), Some(Mix::Q3_K_M)]);
        assert!(found[0].context > COMFORTABLE, "{found:?}");
        assert!((SMALLEST..COMFORTABLE).contains(&found[1].context), "{found:?}");
    }

    #[test]
    fn a_mix_holds_all_of_a_wish_in_fewer_bits_where_it_can() {
        let usable = peak("12B", Mix::Q3_K_M, 32_768, KvDType::Q8_0);
        assert!(peak("12B", Mix::Q3_K_M, 32_768, KvDType::F16) > usable);
        assert!(peak("12B", Mix::Q4_0, 32_768, KvDType::Q4_0) > usable);
        let found = remedies("12B", Mix::Q4_K_M, wish(Some(32_768)), usable);
        let of_mix = |mix| found.iter().find(|remedy| remedy.mix == Some(mix));
        let remedy = of_mix(Mix::Q3_K_M).unwrap();
        assert_eq!(
            (remedy.context, remedy.kv_dtype),
            (32_768, KvDType::Q8_0),
            "{found:?}"
        );
    }

    #[test]
    fn a_cache_of_four_bits_is_proposed_where_eight_are_too_many() {
        let usable = peak("12B", Mix::Q4_0, 1024, KvDType::Q4_0);
        assert!(peak("12B", Mix::Q4_0, 1024, KvDType::Q8_0) > usable);
        let first = remedies("12B", Mix::Q4_0, wish(None), usable)[0];
        assert_eq!(
            (first.mix, first.context, first.kv_dtype),
            (None, 1024, KvDType::Q4_0)
        );
    }

    #[test]
    fn a_drafter_without_room_can_be_left_out_and_is_told_with_the_towers() {
        let usable = peak("12B", Mix::Q4_0, 16_384, KvDType::F16);
        let refusal =
            choose_beside(Some(4 * GB), 0, "12B", Mix::Q4_0, wish(Some(16_384)), usable).unwrap_err();
        let first = refusal.remedies[0];
        assert_eq!(
            (first.without_drafter, first.mix, first.context),
            (true, None, 16_384)
        );
        assert!(
            first
                .to_string()
                .starts_with("without --draft, --ctx 16384 --kv-type f16"),
            "{first}"
        );
        assert!(
            refusal
                .to_string()
                .contains("drafter 4.0 GB, buffers and program"),
            "{refusal}"
        );

        // The wish is too much for the model alone too.
        let refusal = choose_beside(
            Some(9 * GB),
            3 * GB,
            "12B",
            Mix::Q4_0,
            wish(Some(131_072)),
            usable + 3 * GB,
        );
        let refusal = refusal.unwrap_err();
        assert!(
            refusal
                .to_string()
                .contains("towers 3.0 GB, drafter 9.0 GB, buffers"),
            "{refusal}"
        );
        assert!(!refusal.remedies.is_empty());
        assert!(
            refusal.remedies.iter().all(|remedy| remedy.without_drafter),
            "{refusal:?}"
        );
        let other = choose_for("12B", Mix::Q4_0, wish(Some(131_072)), usable)
            .unwrap_err()
            .to_string();
        assert!(!other.contains("drafter") && !other.contains("towers"), "{other}");
    }
}
