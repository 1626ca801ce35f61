//! Plans of every mix by context: the table that shows at a glance what fits.

use carat_model::Config;
use carat_model::convert::Mix;

use crate::{Fit, Plan, Setup, Weights};

/// The contexts of a grid, in tokens: 1K to 256K.
pub const CONTEXTS: [usize; 9] = [
    1 << 10,
    1 << 11,
    1 << 12,
    1 << 13,
    1 << 14,
    1 << 15,
    1 << 16,
    1 << 17,
    1 << 18,
];

/// One mix with one context.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// Number formats.
    pub mix: Mix,
    /// Tokens of each sequence.
    pub context: usize,
    /// Its costs.
    pub plan: Plan,
    /// What counts of them, in bytes: the peak, or what a GPU would hold.
    pub needed: u64,
    /// Whether that fits.
    pub fit: Fit,
}

/// All mixes by all contexts.
#[derive(Clone, Debug)]
pub struct Grid {
    /// The columns, in tokens.
    pub contexts: Vec<usize>,
    /// The rows, each with a cell per column.
    pub rows: Vec<(Mix, Vec<Cell>)>,
    /// Bytes that can be used.
    pub usable: u64,
}

impl Grid {
    /// Plans every mix of `mixes`, with its weights, with every context of `contexts`, the rest as in `setup`. `needed` says which part of a
    /// plan has to fit into `usable` bytes: [`Plan::peak`] or [`Plan::on_device`].
    pub fn new(
        config: &Config,
        setup: &Setup,
        mixes: impl IntoIterator<Item = (Mix, Weights)>,
        contexts: &[usize],
        usable: u64,
        needed: impl Fn(&Plan) -> u64,
    ) -> Grid {
        let row = |(mix, weights)| {
            let cell = |&context: &usize| {
                let plan = Plan::new(config, &weights, &Setup { context, ..*setup });
                let needed = needed(&plan);
                let fit = if plan.is_beyond_context {
                    Fit::BeyondContext
                } else {
                    Fit::of(needed, usable)
                };
                Cell {
                    mix,
                    context,
                    plan,
                    needed,
                    fit,
                }
            };
            (mix, contexts.iter().map(cell).collect())
        };
        Grid {
            contexts: contexts.to_vec(),
            rows: mixes.into_iter().map(row).collect(),
            usable,
        }
    }
}

/// A context as a heading: `4K`, or in tokens when it is no multiple of 1,024.
pub(crate) fn context_name(context: usize) -> String {
    if context.is_multiple_of(1024) && context > 0 {
        format!("{}K", context / 1024)
    } else {
        context.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carat_model::{KvDType, Precision};

    #[test]
    fn more_bits_and_longer_contexts_need_more() {
        let config = Config::published("12B").unwrap();
        let setup = Setup {
            context: 0,
            n_sequences: 1,
            kv_dtype: KvDType::F16,
            n_threads: 8,
            has_tiles: false,
            max_batch_tokens: 512,
            precision: Precision::Int8,
            tower_bytes: 0,
            drafter: None,
        };
        let mixes = Mix::all().map(|mix| (mix, Weights::of_mix(&config, mix)));
        let grid = Grid::new(&config, &setup, mixes, &CONTEXTS, 16_000_000_000, Plan::peak);
        assert_eq!(grid.rows.len(), 17);
        for (mix, cells) in &grid.rows {
            assert!(
                cells.windows(2).all(|pair| pair[0].needed < pair[1].needed),
                "{mix}"
            );
            assert_eq!(cells[8].fit, Fit::BeyondContext, "{mix}");
        }
        let fit = |mix, i: usize| grid.rows.iter().find(|row| row.0 == mix).unwrap().1[i].fit;
        assert_eq!(fit(Mix::Q4_0, 3), Fit::Fits);
        assert_eq!(fit(Mix::Q8_0, 0), Fit::Fits);
        assert_eq!(fit(Mix::Q8_0, 5), Fit::Tight);
        assert_eq!(fit(Mix::BF16, 0), Fit::DoesNotFit);
        assert_eq!(fit(Mix::Q4_0, 7), Fit::DoesNotFit);
    }

    #[test]
    fn contexts_have_short_names() {
        assert_eq!(context_name(131_072), "128K");
        assert_eq!(context_name(5000), "5000");
    }
}
