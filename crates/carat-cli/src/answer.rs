//! A loaded model that answers: tokenizer, template, weights and the cached conversation together.

use std::ops::ControlFlow;

use std::sync::Arc;

use anyhow::{Context, Result};
use carat_engine::{
    Drafting, Event, FinishReason, Finished, Request, SamplingParams, Session, TokenLogprobs,
};
use carat_model::{KvCache, LanguageModel, Model};
use carat_prompt::{Attached, Prompt, PromptOptions, Senses, compose};
use carat_text::{AnswerPiece, AnswerReader, ChatTemplate, Message, RenderOptions, Tokenizer};

use crate::failure::{Hinted, Interrupted, OutputError};
use crate::interrupt::Interrupt;
use crate::model_source::ModelSource;
use crate::output;
use crate::prefill_progress::PrefillProgress;
use crate::prompt_file::PromptFile;
use crate::thoughts::{Show, Thoughts};

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
    /// Whether the model thinks first.
    pub(crate) thinking: bool,
    /// How thoughts are shown.
    pub(crate) show: Show,
    /// Whether tokens are guessed ahead.
    pub(crate) drafting: Drafting,
    /// The model that guesses, if one does.
    pub(crate) drafter: Option<String>,
}

/// An answer that has ended.
pub(crate) struct Answer {
    /// All its text.
    pub(crate) text: String,
    /// What the model thought before.
    pub(crate) thoughts: String,
    pub(crate) finished: Finished,
    /// Each token with its log-probabilities, when asked for.
    pub(crate) logprobs: Vec<(u32, TokenLogprobs)>,
}

/// How reading a prompt went.
pub(crate) struct PromptRead {
    /// Whether it was read to its end.
    pub(crate) is_whole: bool,
    /// Whether anything was read that was not known before.
    pub(crate) is_news: bool,
    /// Whether less is known now than before: another prompt was begun and not read to its end.
    pub(crate) is_loss: bool,
    /// Its figures.
    pub(crate) finished: Finished,
}

/// A model with its conversation.
pub(crate) struct Answerer {
    model: Model,
    pub(crate) tokenizer: Tokenizer,
    /// `None`: the model continues raw text.
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) senses: Senses,
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
        senses: Senses,
    ) -> Result<Self> {
        let vocab_size = model.vocab_size();
        let mut suppressed = source.suppressed(&tokenizer)?;
        suppressed.retain(|&id| (id as usize) < vocab_size);
        Ok(Self {
            model,
            tokenizer,
            template,
            senses,
            suppressed,
            session: None,
        })
    }

    /// The prompt: the rendered conversation, or for base models the last text as it is, with what is attached to it.
    /// Towers run here, if any must.
    pub(crate) fn prompt(
        &self,
        messages: &[Message],
        attached: &[Arc<Attached>],
        options: &AnswerOptions,
        interrupt: &Interrupt,
    ) -> Result<Prompt> {
        let render = RenderOptions {
            thinking: options.thinking,
            ..RenderOptions::default()
        };
        let n_max = self.n_max(options);
        let composed = compose(
            &self.tokenizer,
            self.template.as_ref(),
            messages,
            attached,
            PromptOptions { render, n_max },
        );
        let prompt =
            composed.and_then(|composed| composed.encode(&self.senses, &mut || !interrupt.is_raised()));
        prompt.map_err(unusable)
    }

    /// Whether the model has a channel for thoughts, and its conversations are written so that it can use it.
    pub(crate) fn can_think(&self) -> bool {
        self.template.is_some() && AnswerReader::new(&self.tokenizer).knows_thoughts()
    }

    /// Goes on from what an earlier run has left in `file`, if it is there.
    pub(crate) fn read_from(&mut self, file: &PromptFile, options: &AnswerOptions) -> Result<()> {
        if let Some((tokens, cache)) = file.read(self.n_max(options))? {
            self.session = Some(Session::resume(tokens, cache)?);
        }
        Ok(())
    }

    /// Leaves what was read so far in `file`.
    pub(crate) fn write_to(&self, file: &PromptFile) -> Result<()> {
        let Some(session) = &self.session else {
            return Ok(());
        };
        let (tokens, cache) = session.cached();
        file.write(tokens, cache)
            .with_context(|| format!("`{}` cannot be written", file.path().display()))
    }

    /// Reads a prompt without answering it. Whether all of it was read: Ctrl-C ends this, and what was read stays.
    pub(crate) fn read(
        &mut self,
        prompt: &Prompt,
        options: &AnswerOptions,
        interrupt: &Interrupt,
    ) -> Result<PromptRead> {
        let mut request = self.request(prompt.clone(), options);
        // The first token is chosen and forgotten: nothing of it gets into the cache.
        request.max_tokens = Some(1);
        request.drafting = Drafting::Off;
        request.logprobs = None;
        let n_before = self.session.as_ref().map_or(0, Session::n_cached);
        let mut progress = PrefillProgress::default();
        let finished = self.generate(&request, options, |event| {
            if let Event::Prefill { n_done, n_prompt } = event {
                progress.show(n_done, n_prompt);
            }
            match interrupt.is_raised() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        progress.end();
        let finished = finished?;
        let is_whole = finished.reason != FinishReason::Cancelled;
        let n_cached = self.session.as_ref().map_or(0, Session::n_cached);
        Ok(PromptRead {
            is_whole,
            is_loss: !is_whole && n_cached < n_before,
            is_news: finished.usage.n_reused < finished.usage.n_prompt - 1 || n_before == 0,
            finished,
        })
    }

    /// Answers a prompt; `on_text` gets the text as it comes, without thoughts, which show themselves. Ctrl-C ends the
    /// answer, not the program.
    pub(crate) fn answer(
        &mut self,
        prompt: Prompt,
        options: &AnswerOptions,
        interrupt: &Interrupt,
        on_text: &mut dyn FnMut(&str) -> Result<(), OutputError>,
    ) -> Result<Answer> {
        let request = self.request(prompt, options);
        // A base model's text is shown as it stands.
        let reader = self
            .template
            .is_some()
            .then(|| AnswerReader::new(&self.tokenizer));
        let mut shown = Shown::new(reader, options.show, on_text);
        let mut logprobs = Vec::new();
        let mut progress = PrefillProgress::default();
        let finished = self.generate(&request, options, |event| {
            let is_shown = match &event {
                Event::Prefill { n_done, n_prompt } => {
                    progress.show(*n_done, *n_prompt);
                    Ok(())
                }
                Event::Token {
                    id,
                    text,
                    logprobs: found,
                } => {
                    logprobs.extend(found.map(|found| (*id, found.clone())));
                    shown.token(*id, text)
                }
                Event::Finished(finished) => shown.finish(&finished.text),
            };
            if interrupt.is_raised() || is_shown.is_err() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        progress.end();
        let finished = finished?;
        let (text, thoughts) = shown.into_texts()?;
        Ok(Answer {
            text,
            thoughts,
            finished,
            logprobs,
        })
    }

    fn request(&self, prompt: Prompt, options: &AnswerOptions) -> Request {
        Request {
            sampling: options.sampling.clone(),
            max_tokens: options.max_tokens,
            stop_ids: self.tokenizer.stop_ids().to_vec(),
            stop_strings: options.stop_strings.clone(),
            suppressed: self.suppressed.clone(),
            logprobs: options.logprobs,
            drafting: options.drafting,
            prompt: prompt.ids,
            media: prompt.media,
        }
    }

    /// Generates on the session so far, which stays whatever happens.
    fn generate(
        &mut self,
        request: &Request,
        options: &AnswerOptions,
        on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Finished> {
        let mut session = self.session_for(options)?;
        let result = session.generate(&mut self.model, &self.tokenizer, request, on_event);
        self.session = Some(session);
        result.map_err(with_hint)
    }

    /// Tokens that prompt and answer may have: what the user asked for, else the model's own.
    fn n_max(&self, options: &AnswerOptions) -> usize {
        options.context.unwrap_or_else(|| self.model.context_len())
    }

    /// The session so far, or a new one: its memory grows with use.
    fn session_for(&mut self, options: &AnswerOptions) -> Result<Session<KvCache>> {
        let n_max = self.n_max(options);
        match self.session.take() {
            Some(session) if session.n_max() == n_max => Ok(session),
            _ => Ok(Session::new(&self.model, n_max)?),
        }
    }
}

/// Shows an answer as it comes, and keeps it.
struct Shown<'a> {
    reader: Option<AnswerReader>,
    thoughts: Thoughts,
    text: String,
    on_text: &'a mut dyn FnMut(&str) -> Result<(), OutputError>,
    /// The first failure to show something; nothing is shown after it.
    result: Result<(), OutputError>,
}

impl<'a> Shown<'a> {
    fn new(
        reader: Option<AnswerReader>,
        show: Show,
        on_text: &'a mut dyn FnMut(&str) -> Result<(), OutputError>,
    ) -> Self {
        Self {
            reader,
            thoughts: Thoughts::new(show),
            text: String::new(),
            on_text,
            result: Ok(()),
        }
    }

    fn token(&mut self, id: u32, text: &str) -> Result<(), ()> {
        let mut pieces = Vec::new();
        match &mut self.reader {
            Some(reader) => reader.push(id, text, &mut pieces),
            None => pieces.push(AnswerPiece::Text(text.to_owned())),
        }
        self.pieces(pieces)
    }

    fn finish(&mut self, text: &str) -> Result<(), ()> {
        let mut pieces = Vec::new();
        match &mut self.reader {
            Some(reader) => reader.finish(text, &mut pieces),
            None => pieces.push(AnswerPiece::Text(text.to_owned())),
        }
        let shown = self.pieces(pieces);
        self.keep(|shown| shown.thoughts.close());
        shown
    }

    fn pieces(&mut self, pieces: Vec<AnswerPiece>) -> Result<(), ()> {
        for piece in pieces {
            let text = match piece {
                AnswerPiece::Thought(text) => {
                    self.keep(|shown| shown.thoughts.push(&text));
                    continue;
                }
                AnswerPiece::Text(text) => text,
                // Nobody offered tools; what the model wants to call is still worth reading.
                AnswerPiece::Call { name, arguments } => format!("{name}({arguments})"),
            };
            if !text.is_empty() {
                self.keep(|shown| shown.thoughts.close().and_then(|()| (shown.on_text)(&text)));
                self.text.push_str(&text);
            }
        }
        self.result.as_ref().map(|_| ()).map_err(|_| ())
    }

    fn keep(&mut self, show: impl FnOnce(&mut Self) -> Result<(), OutputError>) {
        if self.result.is_ok() {
            self.result = show(self);
        }
    }

    /// The text and the thoughts.
    fn into_texts(self) -> Result<(String, String), OutputError> {
        self.result?;
        Ok((self.text, self.thoughts.into_text()))
    }
}

/// Where the context is too small.
const LONGER_CONTEXT: &str =
    "give a larger --ctx (at most the model's context, see `carat show`), or /clear a long chat";

/// Why there is no prompt, with what the user can do.
pub(crate) fn unusable(error: carat_prompt::Error) -> anyhow::Error {
    match error {
        carat_prompt::Error::TooLong { .. } => Hinted::new(error.to_string(), LONGER_CONTEXT).into(),
        carat_prompt::Error::Cancelled => Interrupted.into(),
        error => error.into(),
    }
}

/// Adds what the user can do.
fn with_hint(error: carat_engine::Error) -> anyhow::Error {
    let hint = match &error {
        carat_engine::Error::PromptTooLong { .. } => LONGER_CONTEXT,
        carat_engine::Error::Setting { .. } | carat_engine::Error::UnknownToken { .. } => {
            return Hinted::wrong_arguments(error.to_string(), "see `carat run --help`").into();
        }
        _ => return error.into(),
    };
    Hinted::new(error.to_string(), hint).into()
}

/// How long the prompt took, for `--verbose`.
pub(crate) fn print_reading(what: &str, finished: &Finished) {
    let (usage, timings) = (finished.usage, finished.timings);
    output::note(&format!(
        "{what:7} {} ({} reused), {:.2} s, {:.1} tokens/s",
        output::counted(usage.n_prompt, "token"),
        usage.n_reused,
        timings.prefill.as_secs_f64(),
        timings.prefill_tok_per_s()
    ));
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
    print_reading("prompt", finished);
    output::note(&format!(
        "answer  {} ({reason}), {:.2} s, {:.1} tokens/s",
        output::counted(usage.n_generated, "token"),
        timings.decode.as_secs_f64(),
        timings.decode_tok_per_s()
    ));
    let drafts = &finished.drafts;
    if drafts.n_drafted() > 0 {
        let pairs = drafts.accepted.iter().zip(&drafts.drafted);
        let by_position: Vec<String> = pairs
            .map(|(accepted, drafted)| format!("{accepted}/{drafted}"))
            .collect();
        output::note(&format!(
            "drafts  {} of {} guessed tokens right (by position {})",
            drafts.n_accepted(),
            drafts.n_drafted(),
            by_position.join(" ")
        ));
    }
    output::note(&format!(
        "context {} of {} tokens",
        usage.n_prompt + usage.n_generated,
        usage.n_max
    ));
}

#[cfg(test)]
impl Answerer {
    /// The model of a folder, which reads text alone, four tokens at a time.
    pub(crate) fn for_test(folder: &std::path::Path) -> Self {
        let home = folder.join("home");
        let (settings, interrupt) = (
            crate::settings::Settings::of_home(&home),
            Interrupt::for_test(false),
        );
        let source = ModelSource::open(folder.to_str().unwrap(), &settings, &interrupt).unwrap();
        let load = carat_model::LoadOptions {
            n_threads: 1,
            max_batch_tokens: 4,
            ..carat_model::LoadOptions::default()
        };
        let model = Model::from_checkpoint(&source.checkpoint, load).unwrap();
        let tokenizer = source.tokenizer().unwrap();
        let template = source.chat_template(&tokenizer).unwrap();
        Self::new(&source, tokenizer, template, model, Senses::none("test")).unwrap()
    }
}

#[cfg(test)]
impl AnswerOptions {
    /// One likeliest token.
    pub(crate) fn for_test() -> Self {
        Self {
            sampling: SamplingParams::greedy(),
            max_tokens: Some(1),
            stop_strings: Vec::new(),
            logprobs: None,
            context: Some(256),
            thinking: false,
            show: Show::Never,
            drafting: Drafting::Off,
            drafter: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carat_testkit::{ChatModel, sentencepiece};
    use carat_text::Role;

    #[test]
    fn a_prompt_that_was_hardly_begun_is_worth_less_than_a_whole_one() {
        let folder = tempfile::tempdir().unwrap();
        let chat = ChatModel::new("gemma3-vision", folder.path());
        let mut answerer = Answerer::for_test(folder.path());
        let options = AnswerOptions::for_test();
        let (quiet, pressed) = (Interrupt::for_test(false), Interrupt::for_test(true));
        let mut read = |text: String, interrupt: &Interrupt| {
            let messages = [Message::text(Role::User, text)];
            let prompt = answerer.prompt(&messages, &[], &options, &quiet).unwrap();
            answerer.read(&prompt, &options, interrupt).unwrap()
        };
        let begun = read(chat.text.clone(), &pressed);
        assert!(!begun.is_whole && begun.is_news && !begun.is_loss);
        let whole = read(chat.text.repeat(4), &quiet);
        assert!(whole.is_whole && whole.is_news && !whole.is_loss);
        let other: String = chat.text.chars().rev().cycle().take(60).collect();
        let begun = read(other, &pressed);
        assert!(!begun.is_whole && begun.is_news && begun.is_loss);
    }

    /// A vocabulary of letters and a blank with the marks of channels.
    fn tokenizer() -> Tokenizer {
        let mut pieces: Vec<(String, u8)> = ["<pad>", "<eos>", "<bos>"]
            .map(|piece| (piece.to_owned(), 3))
            .to_vec();
        pieces.push(("<unk>".into(), 2));
        pieces.extend((0..=255).map(|byte| (format!("<0x{byte:02X}>"), 6)));
        pieces.extend(
            ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"].map(|piece| (piece.to_owned(), 4)),
        );
        pieces.extend(
            "abcdefghijklmnopqrstuvwxyz\u{2581}"
                .chars()
                .map(|letter| (letter.to_string(), 1)),
        );
        let pieces = pieces.iter().map(|(piece, kind)| (piece.as_str(), 0.0, *kind));
        Tokenizer::from_sentencepiece(&sentencepiece(pieces)).unwrap()
    }

    #[test]
    fn thoughts_are_kept_apart_from_the_answer() {
        let tokenizer = tokenizer();
        let written = "<|channel>thought\nlet me see<channel|>four<|tool_call>call:f{}<tool_call|>";
        let mut seen = String::new();
        let mut on_text = |text: &str| {
            seen.push_str(text);
            Ok(())
        };
        let mut shown = Shown::new(Some(AnswerReader::new(&tokenizer)), Show::Never, &mut on_text);
        let mut decoder = carat_text::StreamDecoder::new(carat_text::ControlText::Hide);
        for id in tokenizer.encode(written, carat_text::Special::Parse) {
            let text = decoder.push(&tokenizer, id).to_owned();
            shown.token(id, &text).unwrap();
        }
        shown.finish("").unwrap();
        let (text, thoughts) = shown.into_texts().unwrap();
        assert_eq!((text.as_str(), thoughts.as_str()), ("fourf({})", "let me see"));
        assert_eq!(seen, text);
    }

    #[test]
    fn a_lost_terminal_is_told_once_and_ends_the_answer() {
        let mut n = 0;
        let mut on_text = |_: &str| {
            n += 1;
            Err(OutputError(std::io::ErrorKind::BrokenPipe.into()))
        };
        let mut shown = Shown::new(None, Show::Never, &mut on_text);
        assert!(shown.token(5, "a").is_err() && shown.token(5, "b").is_err());
        assert!(shown.into_texts().is_err());
        assert_eq!(n, 1);
    }
}
