//! From the engine's updates to the pieces of an answer: thoughts, text, tool calls.
//!
//! Gemma 4 writes its thoughts and its calls between tokens of its own, whose ids are looked for, not their text: what
//! an answer quotes is never taken for one. Calls of other models are JSON in the text.

use carat_api::{Delta, Finish, FinishKind, TokenLogprob, Usage};
use carat_engine::{FinishReason, Finished, TokenLogprobs};
use carat_text::{AnswerPiece, AnswerReader, Tokenizer};

use crate::model::ServedModel;
use crate::tools::prompted::CallReader;

/// How calls are written, if they may come.
pub(crate) enum Calls {
    /// None are asked for: what looks like one is text.
    None,
    /// As JSON in the text.
    Prompted(CallReader),
    /// Between tokens of their own.
    Native {
        /// Calls are named after it.
        id: String,
        /// Calls so far.
        n: usize,
    },
}

/// Reads one answer as it comes.
pub(crate) struct OutputReader {
    stop: Vec<String>,
    calls: Calls,
    reader: AnswerReader,
    /// Ids of the two channel tokens, where the vocabulary has them.
    channel: Option<(u32, u32)>,
    n_thoughts: usize,
    pieces: Vec<AnswerPiece>,
}

impl OutputReader {
    /// A reader for an answer that ends before one of `stop` and may call tools as `calls` says.
    pub(crate) fn new(model: &ServedModel, stop: &[String], calls: Calls) -> Self {
        Self {
            stop: stop.to_vec(),
            calls,
            reader: AnswerReader::new(&model.setup.tokenizer),
            channel: model.channel,
            n_thoughts: 0,
            pieces: Vec::new(),
        }
    }

    /// The same for an answer to a prompt that ends within thoughts.
    pub(crate) fn start_thinking(&mut self) {
        if let Some((open, _)) = self.channel {
            self.reader.push(open, "", &mut self.pieces);
            // The name has come with the prompt.
            self.reader.push(u32::MAX, "thought\n", &mut self.pieces);
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
        let (was_thinking, was_text) = (self.reader.is_thinking(), self.reader.is_text());
        let is_channel = self
            .channel
            .is_some_and(|(open, close)| id == open || id == close);
        match self.calls {
            Calls::Native { .. } => self.reader.push(id, &text, &mut self.pieces),
            _ if is_channel => self.reader.push(id, &text, &mut self.pieces),
            // No other mark means anything here.
            _ if was_thinking => self.reader.push(u32::MAX, &text, &mut self.pieces),
            _ => self.pieces.push(AnswerPiece::Text(text)),
        }
        self.n_thoughts += usize::from(was_thinking);
        self.put(out);
        let is_calling = matches!(&self.calls, Calls::Prompted(calls) if calls.is_calling());
        // A token that begins or ends something else is of neither.
        let is_content = was_text && self.reader.is_text() && !is_calling;
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
                is_content,
            }));
        }
    }

    /// Gives what was read.
    fn put(&mut self, out: &mut Vec<Delta>) {
        for piece in self.pieces.drain(..) {
            match (piece, &mut self.calls) {
                (AnswerPiece::Text(text), Calls::Prompted(calls)) => calls.push(&text, out),
                (AnswerPiece::Text(text), _) if text.is_empty() => {}
                (AnswerPiece::Text(text), _) => out.push(Delta::Text(text)),
                (AnswerPiece::Thought(text), _) => out.push(Delta::Reasoning(text)),
                (AnswerPiece::Call { name, arguments }, Calls::Native { id, n }) => {
                    let index = *n;
                    *n += 1;
                    let id = format!("call_{id}{index}");
                    out.push(Delta::ToolCall { index, id, name });
                    let text = arguments.to_string();
                    out.push(Delta::Arguments { index, text });
                }
                (AnswerPiece::Call { .. }, _) => {}
            }
        }
    }

    /// Takes the end.
    pub(crate) fn finish(&mut self, finished: &Finished, out: &mut Vec<Delta>) -> Finish {
        let is_cut = matches!(
            finished.reason,
            FinishReason::Length | FinishReason::ContextFull | FinishReason::StopString
        );
        match self.calls {
            Calls::Native { .. } if is_cut => self.reader.cut(&finished.text, &mut self.pieces),
            Calls::Native { .. } => self.reader.finish(&finished.text, &mut self.pieces),
            _ if self.reader.is_thinking() => self.reader.push(u32::MAX, &finished.text, &mut self.pieces),
            _ => self.pieces.push(AnswerPiece::Text(finished.text.clone())),
        }
        self.put(out);
        // Arguments that a stop text cut are not what the tool wants: writers leave such a call out where they still can.
        let is_open = matches!(&self.calls, Calls::Prompted(calls) if calls.is_open());
        let has_calls = match &self.calls {
            Calls::None => false,
            Calls::Prompted(calls) => calls.n_calls() > 0,
            Calls::Native { n, .. } => *n > 0,
        };
        let kind = match finished.reason {
            FinishReason::Length => FinishKind::Length,
            FinishReason::ContextFull => FinishKind::ContextFull,
            _ if has_calls && !is_open => FinishKind::ToolCalls,
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
