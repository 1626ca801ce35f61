//! Tokens that an answer took, in one form: input with everything cached in it, output with all thoughts in it.
//!
//! Providers count differently. OpenAI and most others give this form; xAI leaves thoughts out of the output on some
//! models; DeepSeek names cache hits otherwise, and Moonshot beside the rest; MiniMax's older models say a sum alone. In
//! streams Groq says it under `x_groq`, and Moonshot within the last choice. Some say what they charge: OpenRouter a
//! number of dollars, with `cost_details` beside it, Perplexity an object with the total in it.

use carat_ledger::Micros;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Tokens of one answer.
pub(crate) type Usage = carat_ledger::Tokens;

/// What came of an answer, for an estimate of the tokens that nobody counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Came {
    /// Bytes of words and calls.
    pub(crate) words: u64,
    /// Bytes of thoughts, or of a summary of them.
    pub(crate) thoughts: u64,
    /// Characters of thoughts that only the provider can read. All thoughts are in them, those that are shown too.
    pub(crate) sealed: u64,
}

impl Came {
    /// Four bytes a token, rounded up.
    pub(crate) fn usage(self) -> Usage {
        // Four characters of base64 are three bytes.
        let reasoning = self.thoughts.max(self.sealed / 4 * 3).div_ceil(4);
        Usage {
            output: self.words.div_ceil(4).saturating_add(reasoning),
            reasoning,
            ..Usage::default()
        }
    }
}

/// Usage as OpenAI's chat, completions, embeddings and responses write it, with what others add.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct OpenAiUsage {
    prompt_tokens: Option<u64>,
    input_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    output_tokens: Option<u64>,
    total_tokens: Option<u64>,
    prompt_tokens_details: Option<InputDetails>,
    input_tokens_details: Option<InputDetails>,
    completion_tokens_details: Option<OutputDetails>,
    output_tokens_details: Option<OutputDetails>,
    prompt_cache_hit_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    cost: Option<Cost>,
    cost_details: Option<CostDetails>,
    is_byok: Option<bool>,
}

/// What an answer cost, as some providers say it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Cost {
    Dollars(f64),
    Parts { total_cost: f64 },
    Other(IgnoredAny),
}

/// What OpenRouter says beside the cost.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CostDetails {
    /// What the owner of a key of another provider pays there, on top of it.
    upstream_inference_cost: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct InputDetails {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OutputDetails {
    reasoning_tokens: Option<u64>,
}

impl OpenAiUsage {
    /// In the one form. `is_apart`: the provider leaves thoughts out of the output.
    pub(crate) fn usage(&self, is_apart: bool) -> Usage {
        let (said, written) = (
            self.prompt_tokens.or(self.input_tokens),
            self.completion_tokens.or(self.output_tokens),
        );
        // A sum alone is at least what the prompt took, and nothing would be less than that.
        let sum = self.total_tokens.filter(|_| written.is_none());
        let input = said.or(sum).unwrap_or(0);
        let mut output = written.unwrap_or(0);
        let inputs = self
            .prompt_tokens_details
            .as_ref()
            .or(self.input_tokens_details.as_ref());
        let outputs = self
            .completion_tokens_details
            .as_ref()
            .or(self.output_tokens_details.as_ref());
        let reasoning = outputs.and_then(|details| details.reasoning_tokens).unwrap_or(0);
        // The total tells which way it is counted, model by model.
        let all = input.saturating_add(output).saturating_add(reasoning);
        if is_apart && self.total_tokens == Some(all) {
            output = output.saturating_add(reasoning);
        }
        let cached = inputs.and_then(|details| details.cached_tokens);
        Usage {
            input,
            cache_read: cached
                .or(self.prompt_cache_hit_tokens)
                .or(self.cached_tokens)
                .unwrap_or(0)
                .min(input),
            cache_write: inputs
                .and_then(|details| details.cache_write_tokens)
                .unwrap_or(0)
                .min(input),
            output,
            reasoning: reasoning.min(output),
            stated: self.stated(),
            ..Usage::default()
        }
    }

    /// What the provider says that it charges, where it is known to mean dollars.
    fn stated(&self) -> Option<Micros> {
        let dollars = match (&self.cost, &self.cost_details) {
            (Some(Cost::Dollars(cost)), Some(details)) => {
                let own_key = details
                    .upstream_inference_cost
                    .filter(|_| self.is_byok == Some(true));
                cost + own_key.unwrap_or(0.0)
            }
            (Some(Cost::Parts { total_cost }), _) => *total_cost,
            _ => return None,
        };
        // Rounded up, but for what only the way of writing it added.
        let micros = (dollars * 1e6 - 1e-3).ceil();
        (0.0..1e15).contains(&micros).then_some(Micros(micros as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, is_apart: bool) -> Usage {
        serde_json::from_str::<OpenAiUsage>(text).unwrap().usage(is_apart)
    }

    #[test]
    fn what_a_provider_says_that_it_charges_is_taken() {
        let stated = |text: &str| read(text, false).stated;
        assert_eq!(
            stated(r#"{"cost":0.000014,"is_byok":false,"cost_details":{"upstream_inference_cost":9.0}}"#),
            Some(Micros(14))
        );
        assert_eq!(
            stated(r#"{"cost":0.0000011,"is_byok":true,"cost_details":{"upstream_inference_cost":0.00002}}"#),
            Some(Micros(22))
        );
        assert_eq!(
            stated(r#"{"cost":{"request_cost":0.005,"total_cost":0.006}}"#),
            Some(Micros(6000))
        );
        assert_eq!(
            stated(r#"{"cost":0,"cost_details":null}"#),
            None,
            "nobody says of what"
        );
        for nothing in [
            r#"{"cost":3.5}"#,
            r#"{"cost":"1"}"#,
            r#"{"cost":{"total_cost":-1}}"#,
            "{}",
        ] {
            assert_eq!(stated(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn every_way_of_counting_ends_in_one_form() {
        let chat = r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":null},"completion_tokens_details":{"reasoning_tokens":3},"cost":0.1}"#;
        let expected = Usage {
            input: 10,
            cache_read: 4,
            output: 5,
            reasoning: 3,
            ..Usage::default()
        };
        assert_eq!(read(chat, false), expected);
        assert_eq!(
            read(chat, true),
            expected,
            "the total says that thoughts are inside"
        );
        let apart = chat.replace("15", "18");
        assert_eq!(read(&apart, true).output, 8);
        let responses = r#"{"input_tokens":10,"output_tokens":5,"input_tokens_details":{"cached_tokens":4},"output_tokens_details":{"reasoning_tokens":3},"total_tokens":15}"#;
        assert_eq!(read(responses, false), expected);
        assert_eq!(
            read(r#"{"prompt_tokens":9,"prompt_cache_hit_tokens":7}"#, false).cache_read,
            7
        );
        assert_eq!(read(r#"{"prompt_tokens":9,"total_tokens":9}"#, true).output, 0);
        let moonshot = read(
            r#"{"prompt_tokens":9,"completion_tokens":2,"cached_tokens":8}"#,
            false,
        );
        assert_eq!((moonshot.input, moonshot.cache_read, moonshot.output), (9, 8, 2));
        assert_eq!(read(r#"{"total_tokens":9}"#, false).input, 9);
    }
}
