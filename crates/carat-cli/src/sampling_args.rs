//! The sampling flags, shared by every command that generates.

use std::time::{SystemTime, UNIX_EPOCH};

use carat_engine::SamplingParams;
use clap::Args;

use crate::model_source::SamplingDefaults;

/// How tokens are chosen. What is not given comes from the model file, else from Gemma's recommendation.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// 0 takes the likeliest token always; above 1 is wilder [default: the model's, else 1.0]
    #[arg(long, short = 't', value_name = "T", allow_negative_numbers = true, value_parser = temperature)]
    pub(crate) temperature: Option<f32>,
    /// Keep only the K likeliest tokens; 0 keeps all [default: the model's, else 64]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub(crate) top_k: Option<usize>,
    /// Keep the likeliest tokens that together reach probability P [default: the model's, else 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = probability)]
    pub(crate) top_p: Option<f32>,
    /// Keep tokens at least P times as likely as the likeliest [default: the model's, else 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = probability)]
    pub(crate) min_p: Option<f32>,
    /// Keep tokens of typical surprise up to probability P; 1 keeps all [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = probability)]
    pub(crate) typical_p: Option<f32>,
    /// Divide the logits of recent tokens; 1 is off [default: the model's, else 1]
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Take this off a token's logit for each recent occurrence [default: 0]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f32>,
    /// Take this off the logit of every recent token [default: 0]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f32>,
    /// How many of the latest tokens the penalties look at [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) penalty_window: Option<usize>,
    /// Add BIAS to a token's logit; may be given several times (`--logit-bias 107=-5`)
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Same seed, same text [default, and with -1: a new one each time]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = seed)]
    pub(crate) seed: Option<Seed>,
}

impl SamplingArgs {
    /// The flags over the model's own settings over Gemma's.
    pub(crate) fn params(&self, model: &SamplingDefaults) -> SamplingParams {
        let gemma = SamplingParams::default();
        SamplingParams {
            temperature: self
                .temperature
                .or(model.temperature)
                .unwrap_or(gemma.temperature),
            top_k: self.top_k.or(model.top_k).unwrap_or(gemma.top_k),
            top_p: self.top_p.or(model.top_p).unwrap_or(gemma.top_p),
            min_p: self.min_p.or(model.min_p).unwrap_or(gemma.min_p),
            typical_p: self.typical_p.unwrap_or(gemma.typical_p),
            repetition_penalty: self
                .repetition_penalty
                .or(model.repetition_penalty)
                .unwrap_or(gemma.repetition_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(gemma.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(gemma.presence_penalty),
            penalty_window: self.penalty_window.unwrap_or(gemma.penalty_window),
            logit_bias: self.logit_bias.clone(),
            seed: match self.seed {
                Some(Seed::Given(seed)) => seed,
                Some(Seed::Fresh) | None => fresh_seed(),
            },
        }
    }
}

/// Where chance begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seed {
    Given(u64),
    /// Elsewhere each time.
    Fresh,
}

/// A seed; -1 is none, as in the APIs.
fn seed(text: &str) -> Result<Seed, String> {
    match text {
        "-1" => Ok(Seed::Fresh),
        text => text
            .parse()
            .map(Seed::Given)
            .map_err(|_| "say a whole number from 0, or -1 for a new one each time".into()),
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number| *number >= 0.0);
    number.ok_or_else(|| "say 0 or more".into())
}

fn probability(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "say a number from 0 to 1".into())
}

/// A seed that differs from run to run.
fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().rotate_left(32) ^ u64::from(since.subsec_nanos()) ^ u64::from(std::process::id()) << 40
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let wrong = || format!("`{text}` is not a token id, `=` and a number, such as 107=-5");
    let (id, bias) = text.split_once('=').ok_or_else(wrong)?;
    Ok((
        id.trim().parse().map_err(|_| wrong())?,
        bias.trim().parse().map_err(|_| wrong())?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn params(line: &[&str], model: &SamplingDefaults) -> SamplingParams {
        Line::parse_from([&["carat"], line].concat())
            .sampling
            .params(model)
    }

    #[test]
    fn a_flag_wins_over_the_model_and_the_model_over_gemma() {
        let model = SamplingDefaults {
            temperature: Some(0.7),
            top_k: Some(40),
            ..Default::default()
        };
        let found = params(&["--temperature", "0.2", "--seed", "7"], &model);
        assert_eq!(
            (found.temperature, found.top_k, found.top_p, found.seed),
            (0.2, 40, 0.95, 7)
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_own_name() {
        for (flag, value, said) in [
            ("--temperature", "-1", "0 or more"),
            ("--top-p", "-1", "from 0 to 1"),
            ("--top-k", "-1", "invalid value"),
            ("--seed", "-2", "whole number"),
        ] {
            let error = Line::try_parse_from(["carat", flag, value])
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains(said) && error.contains(flag), "{error}");
        }
        let seed = |text| params(&["--seed", text], &Default::default()).seed;
        assert_eq!(seed("7"), 7);
        assert_ne!(seed("-1"), u64::MAX);
    }

    #[test]
    fn biases_may_be_negative_and_several() {
        let found = params(
            &["--logit-bias", "107=-5", "--logit-bias", "1=-inf"],
            &Default::default(),
        );
        assert_eq!(found.logit_bias, [(107, -5.0), (1, f32::NEG_INFINITY)]);
        assert!(parse_bias("x=1").unwrap_err().contains("not a token id"));
    }
}
