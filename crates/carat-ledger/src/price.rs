//! What tokens cost: a list of prices, and the rules of an invoice.
//!
//! Prices are whole millionths of a dollar for a million tokens, that is 10⁻¹² dollars a token; a request's sum is made
//! of these and rounded up to a millionth of a dollar once. Cached tokens are inside the input and charged at their own
//! price; thoughts are inside the output. Beyond a tier's start the whole request has the tier's price.
//!
//! The list is the one of `genai-prices`, in `data/`. A model that is not in it has no price, which is not the same as
//! costing nothing.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{Error, Micros};

/// The price list.
const LIST: &str = include_str!("../data/prices.json");

/// Tokens of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of the prompt, cached ones included.
    pub input: u64,
    /// Of these, read from a cache.
    pub cache_read: u64,
    /// Of these, written to one for minutes.
    pub cache_write: u64,
    /// Of these, written to one for an hour.
    pub cache_write_1h: u64,
    /// Of the answer, thoughts included.
    pub output: u64,
    /// Of these, thoughts.
    pub reasoning: u64,
    /// What the provider itself says that all of it cost.
    pub stated: Option<Micros>,
}

impl Tokens {
    /// What two parts of an answer took together.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            cache_read: self.cache_read.saturating_add(other.cache_read),
            cache_write: self.cache_write.saturating_add(other.cache_write),
            cache_write_1h: self.cache_write_1h.saturating_add(other.cache_write_1h),
            output: self.output.saturating_add(other.output),
            reasoning: self.reasoning.saturating_add(other.reasoning),
            // Each part has been paid for apart.
            stated: None,
        }
    }
}

/// Prices at one size of prompt, in millionths of a dollar for a million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Rates {
    input: u64,
    cache_read: u64,
    cache_write: u64,
    cache_write_1h: u64,
    output: u64,
    reasoning: u64,
}

/// What a model costs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Price {
    base: Rates,
    /// Prices of prompts of more tokens than this, smallest first.
    tiers: Vec<(u64, Rates)>,
    /// In 10⁻¹² dollars.
    per_request: u64,
    /// Whoever keeps the ledger set it, so that no word of a provider goes before it.
    is_own: bool,
}

impl Price {
    /// The ledger's own price, in dollars for a million tokens of input and output.
    ///
    /// # Errors
    /// When one is no price.
    pub fn of(input: f64, output: f64) -> Result<Self, Error> {
        let text = PriceText {
            input: Some(Amount::Flat(input)),
            output: Some(Amount::Flat(output)),
            ..PriceText::default()
        };
        Ok(Self {
            is_own: true,
            ..text.price("-")?
        })
    }

    /// What these tokens cost: as their provider says, if it does, since a list cannot know tiers, tools and discounts.
    pub fn cost(&self, tokens: &Tokens) -> Micros {
        if let Some(stated) = tokens.stated.filter(|_| !self.is_own) {
            return stated;
        }
        let rates = self.tiers.iter().rev().find(|(start, _)| tokens.input > *start);
        let rates = rates.map_or(&self.base, |(_, rates)| rates);
        let cached = [tokens.cache_read, tokens.cache_write, tokens.cache_write_1h];
        let plain_input = cached
            .iter()
            .fold(tokens.input, |left, part| left.saturating_sub(*part));
        let parts = [
            (plain_input, rates.input),
            (tokens.cache_read, rates.cache_read),
            (tokens.cache_write, rates.cache_write),
            (tokens.cache_write_1h, rates.cache_write_1h),
            (tokens.output.saturating_sub(tokens.reasoning), rates.output),
            (tokens.reasoning, rates.reasoning),
            (1, self.per_request),
        ];
        let sum: u128 = parts
            .iter()
            .map(|(n, rate)| u128::from(*n) * u128::from(*rate))
            .sum();
        Micros(u64::try_from(sum.div_ceil(1_000_000)).unwrap_or(u64::MAX))
    }

    /// The most that so many tokens may cost, whatever is cached or thought.
    pub fn most(&self, input: u64, output: u64) -> Micros {
        let dearest = |pick: &dyn Fn(&Rates) -> u64| {
            self.tiers
                .iter()
                .map(|(_, rates)| pick(rates))
                .chain([pick(&self.base)])
                .max()
                .unwrap_or(0)
        };
        let price = Self {
            base: Rates {
                input: dearest(&|rates| rates.input.max(rates.cache_write).max(rates.cache_write_1h)),
                output: dearest(&|rates| rates.output.max(rates.reasoning)),
                ..Rates::default()
            },
            tiers: Vec::new(),
            per_request: self.per_request,
            is_own: self.is_own,
        };
        price.cost(&Tokens {
            input,
            output,
            ..Tokens::default()
        })
    }

    /// Prices of plain input, cached input and output, for a million tokens of a short prompt.
    pub fn per_million(&self) -> [Micros; 3] {
        [self.base.input, self.base.cache_read, self.base.output].map(Micros)
    }
}

/// A price as it is written, in dollars a million.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct PriceText {
    input: Option<Amount>,
    cache_read: Option<Amount>,
    cache_write: Option<Amount>,
    #[serde(rename = "cache-write-1h")]
    cache_write_1h: Option<Amount>,
    output: Option<Amount>,
    reasoning: Option<Amount>,
    thousand_requests: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Amount {
    Flat(f64),
    Tiered { base: f64, tiers: Vec<Tier> },
}

#[derive(Debug, Clone, Deserialize)]
struct Tier {
    start: u64,
    price: f64,
}

impl Amount {
    /// The price of a prompt of more than `start` tokens.
    fn at(&self, start: u64) -> f64 {
        match self {
            Self::Flat(price) => *price,
            Self::Tiered { base, tiers } => {
                let tier = tiers
                    .iter()
                    .filter(|tier| tier.start <= start)
                    .max_by_key(|tier| tier.start);
                tier.map_or(*base, |tier| tier.price)
            }
        }
    }

    fn starts(&self) -> Vec<u64> {
        match self {
            Self::Flat(_) => Vec::new(),
            Self::Tiered { tiers, .. } => tiers.iter().map(|tier| tier.start).collect(),
        }
    }
}

impl PriceText {
    fn price(&self, model: &str) -> Result<Price, Error> {
        let amounts = [
            &self.input,
            &self.cache_read,
            &self.cache_write,
            &self.output,
            &self.reasoning,
        ];
        let mut starts: Vec<u64> = amounts.into_iter().flatten().flat_map(Amount::starts).collect();
        starts.sort_unstable();
        starts.dedup();
        let whole = |dollars: f64| {
            let micros = (dollars * 1e6).round();
            // A thousand dollars a token is a mistake.
            if (0.0..1e15).contains(&micros) {
                return Ok(micros as u64);
            }
            Err(Error::Price {
                model: model.to_string(),
                message: format!("{dollars} is no price in dollars for a million tokens"),
            })
        };
        let rates = |start: u64| -> Result<Rates, Error> {
            let at = |amount: &Option<Amount>, or: u64| {
                amount.as_ref().map_or(Ok(or), |amount| whole(amount.at(start)))
            };
            let input = at(&self.input, 0)?;
            let output = at(&self.output, 0)?;
            let cache_write = at(&self.cache_write, input)?;
            Ok(Rates {
                input,
                output,
                cache_read: at(&self.cache_read, input)?,
                cache_write,
                cache_write_1h: at(&self.cache_write_1h, cache_write)?,
                reasoning: at(&self.reasoning, output)?,
            })
        };
        let tiers = starts.into_iter().map(|start| Ok((start, rates(start)?)));
        Ok(Price {
            base: rates(0)?,
            tiers: tiers.collect::<Result<_, Error>>()?,
            per_request: whole(self.thousand_requests.unwrap_or(0.0))?.saturating_mul(1_000),
            is_own: false,
        })
    }
}

/// A model of the list.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its id at the provider.
    pub id: String,
    /// Tokens of prompt and answer that it takes, if that is known.
    pub context: Option<u64>,
    /// Whether its provider will give it up.
    pub is_deprecated: bool,
    /// What it costs.
    pub price: Price,
    names: Vec<(Kind, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Equals,
    StartsWith,
    EndsWith,
    Contains,
}

#[derive(Debug, Deserialize)]
struct ListedText {
    id: String,
    names: Vec<(Kind, String)>,
    prices: PriceText,
    context: Option<u64>,
    #[serde(default)]
    deprecated: bool,
}

/// Models and prices by provider.
#[derive(Debug)]
pub struct PriceList {
    providers: BTreeMap<String, Vec<Listed>>,
}

impl PriceList {
    /// The list that comes with carat.
    ///
    /// # Errors
    /// When it was damaged.
    pub fn builtin() -> Result<Self, Error> {
        let text: BTreeMap<String, Vec<ListedText>> =
            serde_json::from_str(LIST).map_err(|error| Error::Price {
                model: "data/prices.json".into(),
                message: error.to_string(),
            })?;
        let mut providers = BTreeMap::new();
        for (provider, models) in text {
            let listed = models.into_iter().map(|model| {
                Ok(Listed {
                    price: model.prices.price(&model.id)?,
                    id: model.id,
                    context: model.context,
                    is_deprecated: model.deprecated,
                    names: model.names,
                })
            });
            providers.insert(provider, listed.collect::<Result<Vec<_>, Error>>()?);
        }
        Ok(Self { providers })
    }

    /// All models.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Listed)> {
        self.providers
            .iter()
            .flat_map(|(name, models)| models.iter().map(move |model| (name.as_str(), model)))
    }

    /// The model that a provider's name means: the one of that very name, else one whose pattern fits, both without a
    /// date at the end if nothing fits with it.
    pub fn find(&self, provider: &str, model: &str) -> Option<&Listed> {
        let models = self.providers.get(provider)?;
        let exact = |name: &str| {
            models
                .iter()
                .find(|listed| listed.id == name || listed.names.contains(&(Kind::Equals, name.to_string())))
        };
        let fitting = |name: &str| {
            models.iter().find(|listed| {
                listed.names.iter().any(|(kind, text)| match kind {
                    Kind::Equals => false,
                    Kind::StartsWith => name.starts_with(text),
                    Kind::EndsWith => name.ends_with(text),
                    Kind::Contains => name.contains(text.as_str()),
                })
            })
        };
        let undated = undated(model);
        exact(model)
            .or_else(|| exact(undated))
            .or_else(|| fitting(model))
            .or_else(|| fitting(undated))
    }
}

/// A name without `-20261014`, `@20261014` or `-2026-10-14`.
fn undated(name: &str) -> &str {
    let digits = |text: &str, n: usize| text.len() == n && text.bytes().all(|b| b.is_ascii_digit());
    if let Some((rest, date)) = name.rsplit_once(['-', '@'])
        && digits(date, 8)
    {
        return rest;
    }
    let mut parts = name.rsplitn(4, '-');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(day), Some(month), Some(year), Some(rest))
            if digits(day, 2) && digits(month, 2) && digits(year, 4) =>
        {
            rest
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invoice_is_exact_and_rounded_up_once() {
        let price = Price::of(0.15, 0.6).unwrap();
        let tokens = Tokens {
            input: 1,
            output: 1,
            ..Tokens::default()
        };
        assert_eq!(price.cost(&tokens), Micros(1), "0.75 millionths");
        let tokens = Tokens {
            input: 2_000_000,
            output: 1_000_000,
            ..Tokens::default()
        };
        assert_eq!(price.cost(&tokens), Micros(900_000));
        assert_eq!(Price::default().cost(&tokens), Micros(0));
        assert!(Price::of(-1.0, 0.0).is_err() && Price::of(f64::NAN, 0.0).is_err());
    }

    #[test]
    fn what_a_provider_states_goes_before_the_list_and_behind_a_price_of_ones_own() {
        let tokens = Tokens {
            input: 1_000_000,
            stated: Some(Micros(7)),
            ..Tokens::default()
        };
        let own = Price::of(3.0, 1.0).unwrap();
        assert_eq!(own.cost(&tokens), Micros(3_000_000));
        let listed = serde_json::from_str::<PriceText>(r#"{"input":3}"#).unwrap();
        assert_eq!(listed.price("x").unwrap().cost(&tokens), Micros(7));
    }

    #[test]
    fn cached_tokens_and_long_prompts_have_their_own_prices() {
        let text = r#"{"input":{"base":3,"tiers":[{"start":200000,"price":6}]},"cache-read":{"base":0.3,"tiers":[{"start":200000,"price":0.6}]},"cache-write":3.75,"cache-write-1h":6,"output":15}"#;
        let price = serde_json::from_str::<PriceText>(text)
            .unwrap()
            .price("x")
            .unwrap();
        let tokens = Tokens {
            input: 100_000,
            cache_read: 50_000,
            cache_write: 10_000,
            cache_write_1h: 10_000,
            output: 1_000,
            reasoning: 400,
            stated: None,
        };
        // 30,000 × 3 + 50,000 × 0.3 + 10,000 × 3.75 + 10,000 × 6 + 1,000 × 15 millionths
        assert_eq!(
            price.cost(&tokens),
            Micros(90_000 + 15_000 + 37_500 + 60_000 + 15_000)
        );
        let long = Tokens {
            input: 200_001,
            ..Tokens::default()
        };
        assert_eq!(price.cost(&long), Micros(1_200_006));
        assert!(price.most(100_000, 1_000) >= price.cost(&tokens));
        assert_eq!(price.most(1_000_000, 0), Micros(6_000_000));
    }

    #[test]
    fn models_are_found_by_any_of_their_names() {
        let list = PriceList::builtin().unwrap();
        assert!(list.all().count() > 1500);
        let id = |provider: &str, name: &str| list.find(provider, name).map(|listed| listed.id.clone());
        assert_eq!(id("openai", "gpt-4o-mini").as_deref(), Some("gpt-4o-mini"));
        assert_eq!(
            id("openai", "gpt-4o-mini-2024-07-18").as_deref(),
            Some("gpt-4o-mini")
        );
        assert_eq!(
            id("anthropic", "claude-opus-5-20261014").as_deref(),
            Some("claude-opus-5")
        );
        assert_eq!(id("openai", "no-such-model"), None);
        assert_eq!(id("nobody", "gpt-4o-mini"), None);
        let price = &list.find("openai", "gpt-4o-mini").unwrap().price;
        assert_eq!(
            price.per_million(),
            [Micros(150_000), Micros(75_000), Micros(600_000)]
        );
    }
}
