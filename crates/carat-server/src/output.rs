//! From the engine's updates to the pieces of an answer: thoughts, text, tool calls.
//!
//! Gemma 4 writes its thoughts between `<|channel>thought` and `<channel|>`. These are tokens, so their ids are looked
//! for, not their text: what an answer quotes is never taken for one.

use carat_api::{Delta, Finish, FinishKind, TokenLogprob, Usage};
use carat_engine::{FinishReason, Finished, TokenLogprobs};
use carat_text::Tokenizer;

use crate::tools::CallReader;

/// The name of the channel of thoughts, with the line that ends it.
const THOUGHT: &str = "thought\n";

/// Reads one answer as it comes.
pub(crate) struct OutputReader {
    stop: Vec<String>,
    calls: Option<CallReader>,
    /// Ids of the two channel tokens, where the vocabulary has them.
    channel: Option<(u32, u32)>,
    /// Inside a channel: what of its name has not come yet.
    unnamed: Option<&'static str>,
    n_thoughts: usize,
}

impl OutputReader {
    /// A reader for an answer that ends before one of `stop` and may call tools if `calls` reads them.
    pub(crate) fn new(tokenizer: &Tokenizer, stop: &[String], calls: Option<CallReader>) -> Self {
        let channel = tokenizer.id_of("<|channel>").zip(tokenizer.id_of("<channel|>"));
        Self {
            stop: stop.to_vec(),
            calls,
            channel: channel
                .filter(|&(open, close)| tokenizer.is_special(open) && tokenizer.is_special(close)),
            unnamed: None,
            n_thoughts: 0,
        }
    }

    /// Takes a token.
    pub(crate) fn token(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
        text: String,
        logprobs: Option<&TokenLogprobs>,
        out: &mut Vec<Delta>,
    ) {
        match self.channel {
            Some((open, _)) if id == open => self.unnamed = Some(THOUGHT),
            Some((_, close)) if id == close => {
                self.n_thoughts += usize::from(self.unnamed.is_some());
                self.unnamed = None;
            }
            _ => self.text(text, out),
        }
        if let Some(logprobs) = logprobs {
            let bytes = |id: u32| tokenizer.token_bytes(id).unwrap_or_default().to_vec();
            out.push(Delta::Logprob(TokenLogprob {
                token: bytes(id),
                logprob: logprobs.logprob,
                top: logprobs
                    .top
                    .iter()
                    .map(|&(id, logprob)| (bytes(id), logprob))
                    .collect(),
            }));
        }
    }

    fn text(&mut self, mut text: String, out: &mut Vec<Delta>) {
        let Some(unnamed) = &mut self.unnamed else {
            match &mut self.calls {
                Some(calls) => calls.push(&text, out),
                None if text.is_empty() => {}
                None => out.push(Delta::Text(text)),
            }
            return;
        };
        self.n_thoughts += 1;
        // The channel's name comes first, over one token or several.
        let n_shared = unnamed
            .bytes()
            .zip(text.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        text.drain(..n_shared);
        *unnamed = if text.is_empty() { &unnamed[n_shared..] } else { "" };
        if !text.is_empty() {
            out.push(Delta::Reasoning(text));
        }
    }

    /// Takes the end.
    pub(crate) fn finish(&mut self, finished: &Finished, out: &mut Vec<Delta>) -> Finish {
        if !finished.text.is_empty() {
            self.text(finished.text.clone(), out);
        }
        let has_calls = self.calls.as_ref().is_some_and(|calls| calls.n_calls() > 0);
        let kind = match finished.reason {
            FinishReason::Length | FinishReason::ContextFull => FinishKind::Length,
            _ if has_calls => FinishKind::ToolCalls,
            FinishReason::StopString => {
                FinishKind::StopString(finished.stop_string.and_then(|i| self.stop.get(i).cloned()))
            }
            _ => FinishKind::Stop,
        };
        let usage = finished.usage;
        Finish {
            kind,
            usage: Usage {
                prompt: usage.n_prompt,
                cached: usage.n_reused,
                completion: usage.n_generated,
                reasoning: self.n_thoughts,
                drafted: finished.drafts.n_drafted(),
                accepted: finished.drafts.n_accepted(),
            },
        }
    }
}
