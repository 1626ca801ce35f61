//! `carat models`: what providers offer and what it costs.

use anyhow::Result;
use carat_ledger::{Micros, PriceList};
use clap::Args;
use serde_json::json;

use crate::output::{self, dollars};

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
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Models {
    pub(crate) fn run(self) -> Result<()> {
        let list = PriceList::builtin()?;
        let mut rows = Vec::new();
        let mut values = Vec::new();
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
            if !fits {
                continue;
            }
            if self.json {
                values.push(json!({
                    "model": name, "context": model.context, "deprecated": model.is_deprecated,
                    "micros_per_million": {"input": input, "cached": cached, "output": out},
                }));
            } else {
                let context = model
                    .context
                    .map_or(String::from("?"), |context| context.to_string());
                let [input, cached, out] = [input, cached, out].map(dollars);
                rows.push(vec![name, context, input, cached, out]);
            }
        }
        if self.json {
            return output::json(&values);
        }
        if rows.is_empty() {
            output::note(
                "no model is like that; its price can be set in [prices] of the gateway's configuration",
            );
            return Ok(());
        }
        Ok(output::table(
            &["MODEL", "CONTEXT", "INPUT", "CACHED", "OUTPUT"],
            &rows,
        )?)
    }
}
