//! Tokens that an answer took, in one form: input with everything cached in it, output with all thoughts in it.
//!
//! Providers count differently. OpenAI and most others give this form; xAI leaves thoughts out of the output on some
//! models; DeepSeek names cache hits otherwise; Groq repeats usage under `x_groq`.

use serde::Deserialize;

/// Tokens of one answer.
pub(crate) type Usage = carat_ledger::Tokens;

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
        let input = self.prompt_tokens.or(self.input_tokens).unwrap_or(0);
        let mut output = self.completion_tokens.or(self.output_tokens).unwrap_or(0);
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
            cache_read: cached.or(self.prompt_cache_hit_tokens).unwrap_or(0).min(input),
            cache_write: inputs
                .and_then(|details| details.cache_write_tokens)
                .unwrap_or(0)
                .min(input),
            output,
            reasoning: reasoning.min(output),
            ..Usage::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, is_apart: bool) -> Usage {
        serde_json::from_str::<OpenAiUsage>(text).unwrap().usage(is_apart)
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
    }
}
