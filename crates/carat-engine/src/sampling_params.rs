//! The settings of the sampler and their ranges.

use crate::error::Error;

/// How the next token is chosen. [`Sampler`](crate::Sampler) says what each stage does, and in which order.
///
/// The default is what Google recommends for every Gemma 3 and 4: temperature 1.0, top-k 64, top-p 0.95.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; `0..=100`. Below 1 sharper, above 1 flatter; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Keep only this many likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens that together reach this probability; `0..=1`, 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the likeliest; `0..=1`, 0 keeps all.
    pub min_p: f32,
    /// Keep the tokens whose surprise is nearest the expected one, up to this probability; `0..=1`, 1 keeps all.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in the window; `0.01..=100`, 1 is off.
    pub repetition_penalty: f32,
    /// Taken off a logit once per occurrence in the window; `-100..=100`, 0 is off.
    pub frequency_penalty: f32,
    /// Taken off the logit of every token that occurs in the window; `-100..=100`, 0 is off.
    pub presence_penalty: f32,
    /// How many of the latest tokens, prompt included, the three penalties look at; `usize::MAX` is all.
    pub penalty_window: usize,
    /// Added to the logits of these token ids before anything else; finite, or `-inf` to forbid the token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Decides the random choices: same seed, same logits, same tokens, in every version of carat.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 64,
            top_p: 0.95,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_window: 64,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Always the likeliest token.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// Checks every setting against its range and the ids against the vocabulary.
    ///
    /// # Errors
    /// [`Error::Setting`] or [`Error::UnknownToken`] for the first that does not fit.
    pub fn validate(&self, vocab_size: usize) -> Result<(), Error> {
        within(
            "temperature",
            self.temperature,
            0.0,
            100.0,
            "a number from 0 to 100",
        )?;
        within("top_p", self.top_p, 0.0, 1.0, "a probability from 0 to 1")?;
        within("min_p", self.min_p, 0.0, 1.0, "a probability from 0 to 1")?;
        within("typical_p", self.typical_p, 0.0, 1.0, "a probability from 0 to 1")?;
        within(
            "repetition_penalty",
            self.repetition_penalty,
            0.01,
            100.0,
            "a number from 0.01 to 100",
        )?;
        within(
            "frequency_penalty",
            self.frequency_penalty,
            -100.0,
            100.0,
            "a number from -100 to 100",
        )?;
        within(
            "presence_penalty",
            self.presence_penalty,
            -100.0,
            100.0,
            "a number from -100 to 100",
        )?;
        for &(id, bias) in &self.logit_bias {
            if id as usize >= vocab_size {
                return Err(Error::UnknownToken {
                    field: "logit_bias",
                    id,
                    vocab_size,
                });
            }
            if bias.is_nan() || bias == f32::INFINITY {
                let expected = "a finite number or minus infinity";
                return Err(Error::Setting {
                    field: "logit_bias",
                    value: bias,
                    expected,
                });
            }
        }
        Ok(())
    }
}

fn within(field: &'static str, value: f32, low: f32, high: f32, expected: &'static str) -> Result<(), Error> {
    if (low..=high).contains(&value) {
        Ok(())
    } else {
        Err(Error::Setting {
            field,
            value,
            expected,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl Fn(&mut SamplingParams), message: &str) {
        let mut params = SamplingParams::default();
        params.validate(10).unwrap();
        change(&mut params);
        assert_eq!(params.validate(10).unwrap_err().to_string(), message);
    }

    #[test]
    fn refusals_name_the_setting_and_its_range() {
        check(
            |p| p.temperature = -1.0,
            "sampling setting `temperature` is -1, which is not a number from 0 to 100",
        );
        check(
            |p| p.top_p = f32::NAN,
            "sampling setting `top_p` is NaN, which is not a probability from 0 to 1",
        );
        check(
            |p| p.min_p = 1.5,
            "sampling setting `min_p` is 1.5, which is not a probability from 0 to 1",
        );
        check(
            |p| p.repetition_penalty = 0.0,
            "sampling setting `repetition_penalty` is 0, which is not a number from 0.01 to 100",
        );
        check(
            |p| p.logit_bias = vec![(10, 1.0)],
            "`logit_bias` names token 10, but the vocabulary has 10 tokens",
        );
        check(
            |p| p.logit_bias = vec![(1, f32::INFINITY)],
            "sampling setting `logit_bias` is inf, which is not a finite number or minus infinity",
        );
    }
}
