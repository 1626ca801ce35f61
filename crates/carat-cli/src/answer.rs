//! A loaded model that answers: tokenizer, template, weights and the cached conversation together.

use std::ops::ControlFlow;

use anyhow::{Context, Result};
use carat_engine::{Event, FinishReason, Finished, Request, SamplingParams, Session, TokenLogprobs};
use carat_model::{KvCache, LanguageModel, Model};
use carat_text::{ChatTemplate, Message, RenderOptions, Special, Tokenizer};

use crate::failure::{Hinted, OutputError};
use crate::interrupt::Interrupt;
use crate::model_source::ModelSource;
use crate::output;

/// What the flags of `carat run` say about every answer.
#[derive(Debug, Clone)]
pub(crate) struct AnswerOptions {
    pub(crate) sampling: SamplingParams,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stop_strings: Vec<String>,
    /// Alternatives to report for each token.
    pub(crate) logprobs: Option<usize>,
    /// Context in tokens, if the user said so.
    pub(crate) context: Option<usize>,
}

/// An answer that has ended.
pub(crate) struct Answer {
    /// All its text.
    pub(crate) text: String,
    pub(crate) finished: Finished,
    /// Each token with its log-probabilities, when asked for.
    pub(crate) logprobs: Vec<(u32, TokenLogprobs)>,
}

/// A model with its conversation.
pub(crate) struct Answerer {
    model: Model,
    pub(crate) tokenizer: Tokenizer,
    /// `None`: the model continues raw text.
    pub(crate) template: Option<ChatTemplate>,
    suppressed: Vec<u32>,
    session: Option<Session<KvCache>>,
}

impl Answerer {
    /// Puts a loaded model to work.
    pub(crate) fn new(
        source: &ModelSource,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        model: Model,
    ) -> Result<Self> {
        let vocab_size = model.vocab_size();
        let mut suppressed = source.suppressed(&tokenizer)?;
        suppressed.retain(|&id| (id as usize) < vocab_size);
        Ok(Self {
            model,
            tokenizer,
            template,
            suppressed,
            session: None,
        })
    }

    /// The prompt's ids: the rendered conversation, or for base models the last text as it is.
    pub(crate) fn prompt(&self, messages: &[Message], raw: &str) -> Result<Vec<u32>> {
        match &self.template {
            Some(template) => template
                .encode(&self.tokenizer, messages, RenderOptions::default())
                .context("the model's chat template cannot write this conversation"),
            None => {
                let mut ids: Vec<u32> = self
                    .tokenizer
                    .bos()
                    .into_iter()
                    .filter(|_| self.tokenizer.adds_bos())
                    .collect();
                self.tokenizer.encode_into(raw, Special::AsText, &mut ids);
                Ok(ids)
            }
        }
    }

    /// Answers a prompt; `on_text` gets the text as it comes. Ctrl-C ends the answer, not the program.
    pub(crate) fn answer(
        &mut self,
        prompt: Vec<u32>,
        options: &AnswerOptions,
        interrupt: &Interrupt,
        on_text: &mut dyn FnMut(&str) -> Result<(), OutputError>,
    ) -> Result<Answer> {
        let request = Request {
            sampling: options.sampling.clone(),
            max_tokens: options.max_tokens,
            stop_ids: self.tokenizer.stop_ids().to_vec(),
            stop_strings: options.stop_strings.clone(),
            suppressed: self.suppressed.clone(),
            logprobs: options.logprobs,
            prompt,
            ..Request::default()
        };
        let mut session = self.session_for(options)?;
        let mut text = String::new();
        let mut logprobs = Vec::new();
        let mut shown = Ok(());
        let result = session.generate(&mut self.model, &self.tokenizer, &request, |event| {
            let new = match &event {
                Event::Prefill { .. } => "",
                Event::Token {
                    id,
                    text,
                    logprobs: found,
                } => {
                    logprobs.extend(found.map(|found| (*id, found.clone())));
                    text
                }
                Event::Finished(finished) => finished.text.as_str(),
            };
            if !new.is_empty() && shown.is_ok() {
                text.push_str(new);
                shown = on_text(new);
            }
            if interrupt.is_raised() || shown.is_err() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        self.session = Some(session);
        let finished = result.map_err(with_hint)?;
        shown?;
        Ok(Answer {
            text,
            finished,
            logprobs,
        })
    }

    /// The session so far, or a new one with the context that the user asked for, else the model's own: its memory
    /// grows with use.
    fn session_for(&mut self, options: &AnswerOptions) -> Result<Session<KvCache>> {
        let n_max = options.context.unwrap_or_else(|| self.model.context_len());
        match self.session.take() {
            Some(session) if session.n_max() == n_max => Ok(session),
            _ => Ok(Session::new(&self.model, n_max)?),
        }
    }
}

/// Adds what the user can do.
fn with_hint(error: carat_engine::Error) -> anyhow::Error {
    let hint = match &error {
        carat_engine::Error::PromptTooLong { .. } => {
            "give a larger --ctx (at most the model's context, see `carat show`), or /clear a long chat"
        }
        carat_engine::Error::Setting { .. } | carat_engine::Error::UnknownToken { .. } => {
            return Hinted::wrong_arguments(error.to_string(), "see `carat run --help`").into();
        }
        _ => return error.into(),
    };
    Hinted::new(error.to_string(), hint).into()
}

/// Speed and context use of an answer, for `--verbose`.
pub(crate) fn print_statistics(finished: &Finished) {
    let (usage, timings) = (finished.usage, finished.timings);
    let reason = match finished.reason {
        FinishReason::Stop => "the model ended it",
        FinishReason::StopString => "stop string",
        FinishReason::Length => "token limit",
        FinishReason::ContextFull => "context full",
        FinishReason::Cancelled => "interrupted",
        FinishReason::Deadline => "out of time",
    };
    output::note(&format!(
        "prompt  {} tokens ({} reused), {:.2} s, {:.1} tokens/s",
        usage.n_prompt,
        usage.n_reused,
        timings.prefill.as_secs_f64(),
        timings.prefill_tok_per_s()
    ));
    output::note(&format!(
        "answer  {} tokens ({reason}), {:.2} s, {:.1} tokens/s",
        usage.n_generated,
        timings.decode.as_secs_f64(),
        timings.decode_tok_per_s()
    ));
    output::note(&format!(
        "context {} of {} tokens",
        usage.n_prompt + usage.n_generated,
        usage.n_max
    ));
}
