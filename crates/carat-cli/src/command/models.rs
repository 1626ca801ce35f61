//! `carat models`: what providers offer and what it costs.

use std::fmt::Write;

use anyhow::Result;
use carat_ledger::{Micros, PriceList};
use clap::Args;

use crate::output;

/// List models of providers with their prices
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat models gpt-5             whose id or provider holds `gpt-5`\n  carat models anthropic/        \
                  all of one provider\n  carat models --max-output 1    at most a dollar for a million tokens of output\n\n\
                  Prices are dollars for a million tokens, of short prompts, from the list of `genai-prices` that comes with carat."
)]
pub(crate) struct Models {
    /// Part of `provider/model`
    filter: Option<String>,
    /// Smallest context that will do, in tokens
    #[arg(long, value_name = "N")]
    min_context: Option<u64>,
    /// Highest price of a million tokens of output, in dollars
    #[arg(long, value_name = "DOLLARS")]
    max_output: Option<Micros>,
    /// Those too that their providers will give up
    #[arg(long)]
    deprecated: bool,
}

impl Models {
    pub(crate) fn run(self) -> Result<()> {
        let list = PriceList::builtin()?;
        let mut text = format!(
            "{:<60} {:>9} {:>9} {:>9} {:>9}\n",
            "MODEL", "CONTEXT", "INPUT", "CACHED", "OUTPUT"
        );
        for (provider, model) in list.all() {
            let name = format!("{provider}/{}", model.id);
            let [input, cached, out] = model.price.per_million();
            let fits = self
                .filter
                .as_ref()
                .is_none_or(|filter| name.contains(filter.as_str()))
                && self
                    .min_context
                    .is_none_or(|least| model.context.is_some_and(|context| context >= least))
                && self.max_output.is_none_or(|most| out <= most)
                && (self.deprecated || !model.is_deprecated);
            if fits {
                let context = model
                    .context
                    .map_or(String::from("?"), |context| context.to_string());
                let [input, cached, out] = [input, cached, out].map(dollars);
                // Writing to a string cannot fail.
                let _written = writeln!(text, "{name:<60} {context:>9} {input:>9} {cached:>9} {out:>9}");
            }
        }
        output::write(&text)?;
        Ok(())
    }
}

/// Without zeros that say nothing.
fn dollars(amount: Micros) -> String {
    let text = amount.to_string();
    let text = text.trim_end_matches('0');
    text.trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_short() {
        assert_eq!(dollars(Micros(150_000)), "$0.15");
        assert_eq!(dollars(Micros(20_000_000)), "$20");
        assert_eq!(dollars(Micros(0)), "$0");
    }
}
