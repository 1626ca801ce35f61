//! What becomes of an upstream's stream on its way to the client.
//!
//! A [`Transform`] takes one record after another and writes what the client gets. Where both sides speak the same API
//! it writes the record as it came, and only looks at what billing and honesty need: usage, the first words, the end,
//! errors. A record that is no JSON is left out and counted; a stream that ends without saying that it ended was cut.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::endpoint::{Dialect, Endpoint, Kind};
use crate::failure::Failure;
use crate::records::{Framing, Record};
use crate::reply;
use crate::translate::{self, Event, Passing, Translated, count, embeddings};
use crate::usage::{Came, OpenAiUsage, Usage};

/// What a record was.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing that a client waits for.
    Quiet,
    /// Words, or a tool call.
    Words,
    /// No JSON.
    Malformed,
    /// The upstream says that it failed.
    Failed(Failure),
    /// The last one.
    Done,
}

/// Turns an upstream's records into what a client gets.
pub(crate) trait Transform: Send {
    /// Takes a record.
    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> Step;

    /// The upstream has closed the stream, or said its last word: whether it was whole. Writes what ends it for the
    /// client, once.
    fn end(&mut self, out: &mut Vec<u8>) -> bool;

    /// Tells the client that no more comes.
    fn fail(&mut self, failure: &Failure, out: &mut Vec<u8>);

    /// Tokens so far: what the upstream says, else an estimate from what came.
    fn usage(&self) -> Usage;

    /// Whether the upstream has said what it took.
    fn is_counted(&self) -> bool;

    /// Whether nothing more need come, though it may: the upstream has said why its answer ends and what that took, and its
    /// streams have no last word.
    fn may_be_over(&self) -> bool {
        false
    }

    /// What was said so far, if another upstream may go on with it.
    fn said(&self) -> Option<&str> {
        None
    }

    /// Another upstream goes on with what was said.
    fn hand_over(&mut self, to: Forwarding) {
        drop(to);
    }
}

/// A whole answer in the client's words.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) bytes: Bytes,
    pub(crate) usage: Usage,
    /// Whether the provider has said what it took; else it is an estimate.
    pub(crate) is_counted: bool,
}

/// How an answer gets from a provider to a client.
#[derive(Debug, Clone)]
pub(crate) struct Forwarding {
    pub(crate) endpoint: Endpoint,
    /// What the provider speaks.
    pub(crate) dialect: Dialect,
    /// Whether the client speaks something else.
    pub(crate) is_translated: bool,
    /// Usage was asked for by the gateway alone: the client does not get it.
    pub(crate) hides_usage: bool,
    /// Vectors go to the client as bytes in base64.
    pub(crate) wants_base64: bool,
    pub(crate) reasoning_apart: bool,
    pub(crate) secret: Option<String>,
    /// As the provider calls it.
    pub(crate) model: String,
    /// Tools whose names the provider does not take: as it was told them, and as the client knows them.
    pub(crate) renamed: Vec<(String, String)>,
    /// A refused prompt is told as the provider tells it, if the client speaks its API: nobody else is asked for it.
    pub(crate) keeps_refusals: bool,
}

impl Forwarding {
    /// An event as the client is to be told it: some providers do not say who answers, or had to be told other names.
    pub(crate) fn restore(&self, event: &mut Event) {
        match event {
            Event::Begin { model, .. } if model.is_empty() => model.clone_from(&self.model),
            Event::Call { name, .. } => {
                if let Some((_, own)) = self.renamed.iter().find(|(told, _)| told == name) {
                    name.clone_from(own);
                }
            }
            _ => {}
        }
    }

    pub(crate) fn transform(self) -> Box<dyn Transform> {
        if self.is_translated {
            return Box::new(Translated::new(self));
        }
        match self.endpoint {
            Endpoint::Messages | Endpoint::Generate | Endpoint::OllamaChat | Endpoint::OllamaGenerate => {
                Box::new(Passing::new(self))
            }
            Endpoint::Responses => Box::new(Responses {
                forwarding: self,
                usage: None,
                came: Came::default(),
                is_done: false,
            }),
            _ => Box::new(Chunks {
                forwarding: self,
                usage: None,
                came: Came::default(),
                answers: Answers::default(),
                is_done: false,
            }),
        }
    }

    /// A whole answer as the client gets it, and what it took.
    ///
    /// # Errors
    /// When it is none, or an error in disguise.
    pub(crate) fn whole(&self, body: Bytes) -> Result<Whole, Failure> {
        let kind = self.endpoint.kind();
        if self.is_translated {
            return match kind {
                Kind::Embeddings => embeddings::translated(self, &body),
                Kind::Count => Ok(Whole {
                    bytes: count::translated(self, &body)?,
                    usage: Usage::default(),
                    is_counted: true,
                }),
                Kind::Conversation | Kind::Other => translate::translated_whole(self, &body),
            };
        }
        let counted = match self.endpoint {
            Endpoint::Messages | Endpoint::Generate | Endpoint::OllamaChat | Endpoint::OllamaGenerate => {
                translate::passed_whole(self, &body)?
            }
            _ if kind == Kind::Embeddings && self.dialect != Dialect::OpenAi => {
                let usage = embeddings::usage(&serde_json::from_slice(&body).unwrap_or_default());
                Some(usage).filter(|usage| usage.input > 0)
            }
            _ => whole_usage(&body, self.reasoning_apart, self.secret.as_deref())?,
        };
        // Vectors and scores are no tokens.
        let is_text = kind == Kind::Conversation;
        let guessed = || {
            let words = if is_text { body.len() as u64 } else { 0 };
            Came {
                words,
                ..Came::default()
            }
            .usage()
        };
        Ok(Whole {
            usage: counted.unwrap_or_else(guessed),
            is_counted: counted.is_some() || matches!(kind, Kind::Count | Kind::Other),
            bytes: body,
        })
    }

    /// How the provider's stream is cut.
    pub(crate) fn framing(&self) -> Framing {
        match self.dialect {
            Dialect::Ollama => Framing::Lines,
            Dialect::Bedrock => Framing::Frames,
            _ => Framing::Events,
        }
    }

    /// Whether an answer of this content type is a stream.
    pub(crate) fn is_stream(&self, content_type: &str) -> bool {
        let expected = match self.dialect {
            Dialect::Ollama => "application/x-ndjson",
            Dialect::Bedrock => "application/vnd.amazon.eventstream",
            _ => "text/event-stream",
        };
        content_type.starts_with(expected)
    }
}

/// Which of the answers in a stream have begun, and which have ended: a bit for each index, the last for all that are
/// higher.
#[derive(Debug, Default)]
struct Answers {
    begun: u128,
    ended: u128,
}

impl Answers {
    fn see(&mut self, choice: &Choice<'_>) {
        // Who gives one answer may leave its index out.
        let index = choice.index.and_then(|index| index.get().parse::<u32>().ok());
        let bit = 1 << index.unwrap_or(0).min(127);
        self.begun |= bit;
        if choice.finish_reason.is_some() {
            self.ended |= bit;
        }
    }

    fn any_ended(&self) -> bool {
        self.ended != 0
    }

    fn all_ended(&self) -> bool {
        self.ended != 0 && self.ended == self.begun
    }
}

/// Chat and completions chunks.
struct Chunks {
    forwarding: Forwarding,
    usage: Option<Usage>,
    came: Came,
    answers: Answers,
    /// `[DONE]` has come.
    is_done: bool,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    /// Null where there is an error instead.
    #[serde(default, borrow)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(default, borrow)]
    usage: Option<&'a RawValue>,
    #[serde(default, borrow)]
    x_groq: Option<Groq<'a>>,
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    base_resp: Option<BaseResponse>,
}

#[derive(Deserialize)]
struct Groq<'a> {
    #[serde(default, borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default, borrow)]
    index: Option<&'a RawValue>,
    #[serde(default, borrow)]
    delta: Option<Words<'a>>,
    #[serde(default, borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    finish_reason: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Words<'a> {
    #[serde(default, borrow)]
    content: Option<&'a RawValue>,
    #[serde(default, borrow)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(default, borrow)]
    reasoning: Option<&'a RawValue>,
    /// OpenRouter's: the same once more, or what only the provider can read.
    #[serde(default, borrow)]
    reasoning_details: Option<&'a RawValue>,
    #[serde(default, borrow)]
    refusal: Option<&'a RawValue>,
    #[serde(default, borrow)]
    tool_calls: Option<&'a RawValue>,
}

impl Choice<'_> {
    /// What is said, roughly: whether it is anything that a client waits for.
    fn count(&self, came: &mut Came) -> bool {
        let length = |value: Option<&RawValue>| match value.map_or("", RawValue::get) {
            "" | "null" | "\"\"" | "[]" => 0,
            text => text.len().saturating_sub(2).max(1) as u64,
        };
        let mut words = self.text.as_ref().map_or(0, |text| text.len() as u64);
        let mut thoughts = 0;
        if let Some(delta) = &self.delta {
            words += length(delta.content) + length(delta.refusal) + length(delta.tool_calls);
            thoughts = length(delta.reasoning_content.or(delta.reasoning));
            let sealed = delta.reasoning_details.filter(|details| is_sealed(details));
            came.sealed += length(sealed);
        }
        came.words += words;
        came.thoughts += thoughts;
        words + thoughts > 0
    }
}

fn is_sealed(details: &RawValue) -> bool {
    memchr::memmem::find(details.get().as_bytes(), b"\"reasoning.encrypted\"").is_some()
}

fn read_usage(text: &RawValue, is_apart: bool) -> Option<Usage> {
    let usage: Option<OpenAiUsage> = serde_json::from_str(text.get()).ok()?;
    usage.map(|usage| usage.usage(is_apart))
}

impl Transform for Chunks {
    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> Step {
        let data = record.data.trim_ascii();
        if data.is_empty() {
            // A comment that keeps the connection alive does so on the other side too.
            out.extend_from_slice(record.raw);
            return Step::Quiet;
        }
        if data.starts_with(b"[DONE]") {
            self.is_done = true;
            out.extend_from_slice(record.raw);
            return Step::Done;
        }
        let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(data) else {
            return Step::Malformed;
        };
        if let Some(error) = &chunk.error {
            let failure = Failure::of_value(error, self.forwarding.secret.as_deref());
            return Step::Failed(failure.taking(self.usage));
        }
        if let Some(failure) = chunk.base_resp.as_ref().and_then(BaseResponse::failure) {
            return Step::Failed(failure.without(self.forwarding.secret.as_deref()));
        }
        let mut has_words = false;
        let choices = chunk.choices.unwrap_or_default();
        for choice in &choices {
            has_words |= choice.count(&mut self.came);
            self.answers.see(choice);
        }
        let within = choices.iter().find_map(|choice| choice.usage);
        let usage = chunk
            .usage
            .or(chunk.x_groq.and_then(|groq| groq.usage))
            .or(within);
        let usage = usage.and_then(|usage| read_usage(usage, self.forwarding.reasoning_apart));
        self.usage = usage.or(self.usage);
        // Only the chunk that exists for the usage: a prompt filter's results have no choices either.
        let is_usage_alone = choices.is_empty() && usage.is_some();
        if !(self.forwarding.hides_usage && is_usage_alone) {
            out.extend_from_slice(record.raw);
        }
        if has_words || self.answers.any_ended() {
            Step::Words
        } else {
            Step::Quiet
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) -> bool {
        // Some providers leave it out, and some clients wait for it.
        let is_left_out = !self.is_done && self.answers.all_ended();
        if is_left_out {
            out.extend_from_slice(b"data: [DONE]\n\n");
        }
        self.is_done || is_left_out
    }

    fn fail(&mut self, failure: &Failure, out: &mut Vec<u8>) {
        reply::stream_error(self.forwarding.endpoint, failure, out);
    }

    fn usage(&self) -> Usage {
        self.usage.unwrap_or_else(|| self.came.usage())
    }

    fn is_counted(&self) -> bool {
        self.usage.is_some()
    }
}

/// Events of a response.
struct Responses {
    forwarding: Forwarding,
    usage: Option<Usage>,
    came: Came,
    is_done: bool,
}

#[derive(Deserialize)]
struct ResponseEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(default, borrow)]
    delta: Option<&'a RawValue>,
    #[serde(default, borrow)]
    response: Option<ResponsePart<'a>>,
    #[serde(default, borrow)]
    item: Option<&'a RawValue>,
}

/// Thoughts that are whole.
#[derive(Deserialize)]
struct ReasoningItem<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    /// What only the provider can read.
    #[serde(borrow)]
    encrypted_content: Cow<'a, str>,
}

/// How much of an item are thoughts that only the provider can read, in characters.
fn sealed_in(item: &RawValue) -> u64 {
    match serde_json::from_str::<ReasoningItem<'_>>(item.get()) {
        Ok(item) if item.kind == "reasoning" => item.encrypted_content.len() as u64,
        _ => 0,
    }
}

#[derive(Deserialize)]
struct ResponsePart<'a> {
    #[serde(default, borrow)]
    usage: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<Value>,
}

impl Transform for Responses {
    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> Step {
        let data = record.data.trim_ascii();
        if data.is_empty() || data.starts_with(b"[DONE]") {
            out.extend_from_slice(record.raw);
            return Step::Quiet;
        }
        let Ok(event) = serde_json::from_slice::<ResponseEvent<'_>>(data) else {
            return Step::Malformed;
        };
        let secret = self.forwarding.secret.as_deref();
        if event.kind == "error" {
            let value = serde_json::from_slice::<Value>(data).unwrap_or_default();
            return Step::Failed(Failure::of_value(&value, secret).taking(self.usage));
        }
        if let Some(response) = &event.response {
            let usage = response.usage.and_then(|usage| read_usage(usage, false));
            self.usage = usage.or(self.usage);
            if let (Some(error), "response.failed") = (&response.error, event.kind.as_ref()) {
                return Step::Failed(Failure::of_value(error, secret).taking(self.usage));
            }
        }
        out.extend_from_slice(record.raw);
        if matches!(
            event.kind.as_ref(),
            "response.completed" | "response.incomplete" | "response.cancelled"
        ) {
            self.is_done = true;
            return Step::Done;
        }
        if event.kind == "response.output_item.done" {
            self.came.sealed += event.item.map_or(0, sealed_in);
        }
        let said = event.delta.map_or(0, |delta| delta.get().len().saturating_sub(2)) as u64;
        if event.kind.starts_with("response.reasoning") {
            self.came.thoughts += said;
        } else {
            self.came.words += said;
        }
        if said > 0 { Step::Words } else { Step::Quiet }
    }

    fn end(&mut self, out: &mut Vec<u8>) -> bool {
        let _nothing_to_add = out;
        self.is_done
    }

    fn fail(&mut self, failure: &Failure, out: &mut Vec<u8>) {
        reply::stream_error(self.forwarding.endpoint, failure, out);
    }

    fn usage(&self) -> Usage {
        self.usage.unwrap_or_else(|| self.came.usage())
    }

    fn is_counted(&self) -> bool {
        self.usage.is_some()
    }
}

/// A whole answer of OpenAI's API, as far as it matters here.
#[derive(Deserialize)]
struct WholeAnswer<'a> {
    #[serde(default, borrow)]
    usage: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    base_resp: Option<BaseResponse>,
}

/// How MiniMax says that a 200 is none.
#[derive(Deserialize)]
struct BaseResponse {
    #[serde(default)]
    status_code: i64,
    #[serde(default)]
    status_msg: String,
}

impl BaseResponse {
    fn failure(&self) -> Option<Failure> {
        let code = Some(self.status_code).filter(|code| *code != 0)?;
        Some(Failure::of_base(code, &self.status_msg))
    }
}

/// Reads what a whole answer took, and whether it is an error in disguise.
fn whole_usage(body: &[u8], is_apart: bool, secret: Option<&str>) -> Result<Option<Usage>, Failure> {
    use crate::failure::Class;
    let answer: WholeAnswer<'_> = serde_json::from_slice(body).map_err(|_| {
        Failure::new(
            Class::ServerFault,
            502,
            "the provider answered with something that is not JSON",
        )
    })?;
    let usage = answer.usage.and_then(|usage| read_usage(usage, is_apart));
    if let Some(error) = &answer.error {
        return Err(Failure::of_value(error, secret).taking(usage));
    }
    if let Some(failure) = answer.base_resp.as_ref().and_then(BaseResponse::failure) {
        return Err(failure.without(secret).taking(usage));
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Class;
    use crate::records::Records;

    fn run(endpoint: Endpoint, hides_usage: bool, text: &str) -> (String, Vec<Step>, Usage, bool) {
        let forwarding = Forwarding {
            endpoint,
            dialect: Dialect::OpenAi,
            is_translated: false,
            hides_usage,
            wants_base64: false,
            reasoning_apart: false,
            secret: None,
            model: "m".into(),
            renamed: Vec::new(),
            keeps_refusals: false,
        };
        let mut transform = forwarding.transform();
        let mut records = Records::new(Framing::Events);
        records.feed(text.as_bytes()).unwrap();
        let (mut out, mut steps) = (Vec::new(), Vec::new());
        while let Some(record) = records.next() {
            steps.push(transform.record(&record, &mut out));
        }
        let is_whole = transform.end(&mut out);
        (
            String::from_utf8(out).unwrap(),
            steps,
            transform.usage(),
            is_whole,
        )
    }

    const CHAT: &str = "data: {\"id\":\"1\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n\
        data: {\"id\":\"1\",\"choices\":[{\"delta\":{\"content\":\"Hi \\u00e9\"}}]}\n\n\
        data: {\"id\":\"1\",\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    const USAGE: &str = "data: {\"id\":\"1\",\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}\n\n";

    #[test]
    fn chunks_go_through_as_they_came() {
        let text = format!("{CHAT}{USAGE}data: [DONE]\n\n");
        let (out, steps, usage, is_whole) = run(Endpoint::Chat, false, &text);
        assert_eq!(out, text);
        assert_eq!((usage.input, usage.output, is_whole), (3, 2, true));
        assert!(matches!(steps[..3], [Step::Quiet, Step::Words, Step::Words]));
        assert!(matches!(steps.last(), Some(Step::Done)));
        let (out, ..) = run(Endpoint::Chat, true, &text);
        assert_eq!(
            out,
            format!("{CHAT}data: [DONE]\n\n"),
            "usage that nobody asked for stays here"
        );
    }

    #[test]
    fn a_cut_stream_is_no_whole_one_and_is_estimated() {
        let (_, _, usage, is_whole) = run(Endpoint::Chat, true, &CHAT[..CHAT.rfind("data:").unwrap()]);
        assert!(!is_whole);
        assert_eq!(usage.output, 3, "`Hi \\u00e9` has 9 bytes");
    }

    #[test]
    fn several_answers_are_whole_when_each_has_ended() {
        let chunk = |index: u32, finish: &str| {
            format!(
                "data: {{\"choices\":[{{\"index\":{index},\"delta\":{{\"content\":\"a\"}},\"finish_reason\":{finish}}}]}}\n\n"
            )
        };
        let (going, ended) = ("null", "\"stop\"");
        let cut = [chunk(0, going), chunk(1, going), chunk(0, ended), chunk(1, going)].concat();
        let (out, _, _, is_whole) = run(Endpoint::Chat, false, &cut);
        assert_eq!((out.as_str(), is_whole), (cut.as_str(), false));
        let whole = cut + &chunk(1, ended);
        let (out, _, _, is_whole) = run(Endpoint::Chat, false, &whole);
        assert!(is_whole && out.ends_with("data: [DONE]\n\n"), "{out}");
    }

    #[test]
    fn thoughts_of_a_cut_stream_are_estimated_though_nobody_here_can_read_them() {
        let delta = |delta: &str| format!("data: {{\"choices\":[{{\"delta\":{delta}}}]}}\n\n");
        let (sealed, said) = ("x".repeat(320), delta("{\"content\":\"12345678\"}"));
        let taken = |endpoint, text: &str| {
            let (_, _, usage, is_whole) = run(endpoint, true, text);
            assert!(!is_whole);
            (usage.output, usage.reasoning)
        };
        let shown = delta("{\"reasoning\":\"1234\"}");
        assert_eq!(taken(Endpoint::Chat, &format!("{shown}{said}")), (3, 1));
        let details =
            format!("{{\"reasoning_details\":[{{\"type\":\"reasoning.encrypted\",\"data\":\"{sealed}\"}}]}}");
        // Around the data are 40 characters.
        assert_eq!(
            taken(Endpoint::Chat, &format!("{said}{}", delta(&details))),
            (70, 68)
        );
        let again = delta(
            "{\"reasoning\":\"1234\",\"reasoning_details\":[{\"type\":\"reasoning.text\",\"text\":\"1234\"}]}",
        );
        assert_eq!(taken(Endpoint::Chat, &again), (1, 1), "not twice");

        let event = |kind: &str, more: &str| format!("data: {{\"type\":\"response.{kind}\",{more}}}\n\n");
        let text = event("output_text.delta", "\"delta\":\"12345678\"");
        let summary = event("reasoning_summary_text.delta", "\"delta\":\"1234\"");
        assert_eq!(taken(Endpoint::Responses, &format!("{summary}{text}")), (3, 1));
        for (kind, expected) in [("reasoning", (62, 60)), ("compaction", (3, 1))] {
            let item = format!("\"item\":{{\"type\":\"{kind}\",\"encrypted_content\":\"{sealed}\"}}");
            let all = format!("{summary}{text}{}", event("output_item.done", &item));
            assert_eq!(taken(Endpoint::Responses, &all), expected, "{kind}");
        }
    }

    #[test]
    fn errors_and_nonsense_in_a_stream_are_seen() {
        let (out, steps, ..) = run(
            Endpoint::Chat,
            true,
            "data: {\"error\":{\"message\":\"no\",\"code\":429}}\n\ndata: {\"choices\":\n\n: wait\n\n",
        );
        assert!(matches!(&steps[0], Step::Failed(failure) if failure.class == Class::RateLimited));
        assert!(matches!(steps[1..], [Step::Malformed, Step::Quiet]));
        assert_eq!(out, ": wait\n\n");
    }

    #[test]
    fn events_of_a_response_are_read() {
        let text = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null,\"error\":null}}\n\n\
            event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"Hi\"}\n\n\
            event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":3,\"output_tokens\":1}}}\n\n";
        let (out, steps, usage, is_whole) = run(Endpoint::Responses, false, text);
        assert_eq!(out, text);
        assert!(matches!(steps[..], [Step::Quiet, Step::Words, Step::Done]));
        assert_eq!((usage.input, usage.output, is_whole), (3, 1, true));
    }

    #[test]
    fn what_a_failed_response_took_is_known() {
        let failed = r#"{"error":{"code":"server_error","message":"m"},"usage":{"input_tokens":30,"output_tokens":5}}"#;
        let text = format!("data: {{\"type\":\"response.failed\",\"response\":{failed}}}\n\n");
        let (_, steps, ..) = run(Endpoint::Responses, false, &text);
        let took = |failure: &Failure| failure.took.as_ref().map(|usage| (usage.input, usage.output));
        assert!(
            matches!(&steps[0], Step::Failed(failure) if took(failure) == Some((30, 5))),
            "{steps:?}"
        );
        let whole = whole_usage(failed.as_bytes(), false, None).unwrap_err();
        assert_eq!(took(&whole), Some((30, 5)));
    }

    #[test]
    fn whole_answers_tell_their_usage_and_their_failures() {
        let usage = whole_usage(
            b"{\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":1},\"x\":[1]}",
            false,
            None,
        )
        .unwrap();
        let usage = usage.unwrap();
        assert_eq!((usage.input, usage.output), (2, 1));
        assert_eq!(
            whole_usage(b"<html>", false, None).unwrap_err().class,
            Class::ServerFault
        );
        let error = whole_usage(b"{\"error\":{\"code\":503,\"message\":\"m\"}}", false, None).unwrap_err();
        assert_eq!(error.class, Class::Overloaded);
        let error = whole_usage(
            b"{\"base_resp\":{\"status_code\":1002,\"status_msg\":\"m\"}}",
            false,
            None,
        )
        .unwrap_err();
        assert_eq!(error.class, Class::RateLimited);
        let last = "data: {\"choices\":null,\"base_resp\":{\"status_code\":1004,\"status_msg\":\"m\"}}\n\n";
        let (_, steps, ..) = run(Endpoint::Chat, true, last);
        assert!(
            matches!(&steps[0], Step::Failed(failure) if failure.class == Class::BadKey),
            "{steps:?}"
        );
    }
}
