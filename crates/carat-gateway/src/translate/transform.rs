//! Streams and whole answers that are read in one dialect, and passed on as they are or written in another.

use bytes::Bytes;
use serde_json::Value;

use super::gemini::{Client, ContentReader};
use super::{Answer, Event, Reader, Writer, broken, reader, whole, writer};
use crate::endpoint::Dialect;
use crate::failure::{Class, Failure};
use crate::records::Record;
use crate::stream::{Forwarding, Step, Transform, Whole};
use crate::usage::{Came, Usage};

/// What is counted of events.
#[derive(Default)]
pub(crate) struct Counted {
    /// What the provider has said last.
    usage: Option<Usage>,
    came: Came,
    has_ended: bool,
}

impl Counted {
    /// Whether a client waits for it.
    pub(crate) fn count(&mut self, event: &Event) -> bool {
        match event {
            Event::Text(text) | Event::Arguments(text) => self.came.words += text.len() as u64,
            Event::Thinking(text) => self.came.thoughts += text.len() as u64,
            Event::Signature(sealed) | Event::Redacted(sealed) => {
                self.came.sealed += sealed.len() as u64;
                return false;
            }
            Event::Usage(usage) => {
                self.usage = Some(*usage);
                return false;
            }
            Event::Begin { .. } => return false,
            Event::Call { signature, .. } => {
                self.came.sealed += signature.as_ref().map_or(0, |sealed| sealed.len() as u64);
            }
            Event::End(_) | Event::Broken(_) => self.has_ended = true,
        }
        true
    }

    /// Whether a record that was counted is the last of its stream. Gemini's have none such: see [`Transform::may_be_over`].
    pub(crate) fn is_last(&self, dialect: Dialect, record: &Record<'_>) -> bool {
        match dialect {
            Dialect::OpenAi => record.data.trim_ascii().starts_with(b"[DONE]"),
            Dialect::Anthropic => record.name == b"message_stop",
            // What it took comes after why it ended.
            Dialect::Bedrock => self.has_ended && record.name == b"metadata",
            Dialect::Ollama | Dialect::Cohere | Dialect::Replicate => self.has_ended,
            Dialect::Gemini => false,
        }
    }

    /// What the provider says that it took; of an answer that was cut at least what came of it.
    pub(crate) fn usage(&self) -> Usage {
        let came = self.came.usage();
        match self.usage {
            Some(usage) if self.has_ended => usage,
            Some(usage) => Usage {
                output: usage.output.max(came.output),
                reasoning: usage.reasoning.max(came.reasoning),
                ..usage
            },
            None => came,
        }
    }

    /// What the provider says went wrong, after these events: with what it took, and without its key.
    pub(crate) fn failed(&mut self, failure: Failure, events: &[Event], forwarding: &Forwarding) -> Failure {
        for event in events {
            self.count(event);
        }
        failure.without(forwarding.secret.as_deref()).taking(self.usage)
    }

    /// Whether the provider has said what the whole answer took.
    pub(crate) fn is_counted(&self) -> bool {
        self.usage.is_some() && self.has_ended
    }
}

/// A stream that is passed on as it came.
pub(crate) struct Passing {
    forwarding: Forwarding,
    reader: Box<dyn Reader>,
    events: Vec<Event>,
    counted: Counted,
}

impl Passing {
    pub(crate) fn new(forwarding: Forwarding) -> Self {
        Self {
            reader: reader_for(&forwarding),
            forwarding,
            events: Vec::new(),
            counted: Counted::default(),
        }
    }
}

/// How an answer is read that goes this way.
fn reader_for(forwarding: &Forwarding) -> Box<dyn Reader> {
    match (forwarding.dialect, forwarding.is_translated) {
        (Dialect::Gemini, false) if forwarding.keeps_refusals => {
            Box::new(ContentReader::of(Client::OwnRefused))
        }
        (Dialect::Gemini, false) => Box::new(ContentReader::of(Client::Own)),
        (dialect, _) => reader(dialect, forwarding.reasoning_apart),
    }
}

impl Transform for Passing {
    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> Step {
        self.events.clear();
        match self.reader.record(record, &mut self.events) {
            Err(failure) => {
                return Step::Failed(self.counted.failed(failure, &self.events, &self.forwarding));
            }
            Ok(false) => return Step::Malformed,
            Ok(true) => out.extend_from_slice(record.raw),
        }
        let mut has_words = false;
        for event in &self.events {
            has_words |= self.counted.count(event);
        }
        if self.counted.is_last(self.forwarding.dialect, record) {
            return Step::Done;
        }
        if has_words { Step::Words } else { Step::Quiet }
    }

    fn end(&mut self, _out: &mut Vec<u8>) -> bool {
        self.reader.end(&mut self.events)
    }

    fn fail(&mut self, failure: &Failure, out: &mut Vec<u8>) {
        crate::reply::stream_error(self.forwarding.endpoint, failure, out);
    }

    fn usage(&self) -> Usage {
        self.counted.usage()
    }

    fn is_counted(&self) -> bool {
        self.counted.is_counted()
    }

    fn may_be_over(&self) -> bool {
        self.is_counted() && self.reader.may_be_over()
    }
}

/// A stream that is written anew.
pub(crate) struct Translated {
    forwarding: Forwarding,
    reader: Box<dyn Reader>,
    writer: Box<dyn Writer>,
    events: Vec<Event>,
    counted: Counted,
    /// What ends it has been written.
    is_over: bool,
}

impl Translated {
    pub(crate) fn new(forwarding: Forwarding) -> Self {
        Self {
            reader: reader(forwarding.dialect, forwarding.reasoning_apart),
            writer: writer(forwarding.endpoint, !forwarding.hides_usage),
            forwarding,
            events: Vec::new(),
            counted: Counted::default(),
            is_over: false,
        }
    }

    fn write(&mut self, out: &mut Vec<u8>) -> bool {
        let mut has_words = false;
        for event in &mut self.events {
            self.forwarding.restore(event);
            has_words |= self.counted.count(event);
            self.writer.event(event, out);
        }
        has_words
    }
}

impl Transform for Translated {
    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> Step {
        // After the last word nothing goes out.
        if self.is_over {
            return Step::Quiet;
        }
        self.events.clear();
        match self.reader.record(record, &mut self.events) {
            Err(failure) => {
                return Step::Failed(self.counted.failed(failure, &self.events, &self.forwarding));
            }
            Ok(false) => return Step::Malformed,
            Ok(true) => {}
        }
        let has_words = self.write(out);
        if self.counted.is_last(self.forwarding.dialect, record) && self.end(out) {
            return Step::Done;
        }
        if has_words { Step::Words } else { Step::Quiet }
    }

    fn end(&mut self, out: &mut Vec<u8>) -> bool {
        if self.is_over {
            return true;
        }
        self.events.clear();
        let is_whole = self.reader.end(&mut self.events);
        self.write(out);
        if is_whole {
            self.writer.end(out);
        }
        self.is_over = is_whole;
        is_whole
    }

    fn fail(&mut self, failure: &Failure, out: &mut Vec<u8>) {
        crate::reply::stream_error(self.forwarding.endpoint, failure, out);
    }

    fn usage(&self) -> Usage {
        self.counted.usage()
    }

    fn is_counted(&self) -> bool {
        self.counted.is_counted()
    }

    fn may_be_over(&self) -> bool {
        self.is_counted() && self.reader.may_be_over()
    }
}

/// The events of a whole answer, counted.
fn read_whole(forwarding: &Forwarding, body: &[u8]) -> Result<(Vec<Event>, Counted), Failure> {
    let value: Value = serde_json::from_slice(body).map_err(|_| {
        Failure::new(
            Class::ServerFault,
            502,
            "the provider answered with something that is not JSON",
        )
    })?;
    let (mut events, mut counted) = (Vec::new(), Counted::default());
    let mut reader = reader_for(forwarding);
    if let Err(failure) = reader.whole(&value, &mut events) {
        return Err(counted.failed(failure, &events, forwarding));
    }
    for event in &mut events {
        forwarding.restore(event);
        counted.count(event);
    }
    if !counted.has_ended {
        let failure = Failure::new(Class::ServerFault, 502, "the provider's answer has no end");
        return Err(failure.taking(counted.usage));
    }
    Ok((events, counted))
}

/// What a whole answer took that is passed on as it came.
///
/// # Errors
/// What the provider says went wrong.
pub(crate) fn passed_whole(forwarding: &Forwarding, body: &[u8]) -> Result<Option<Usage>, Failure> {
    let (_, counted) = read_whole(forwarding, body)?;
    Ok(counted.usage)
}

/// A whole answer in the client's words, and what it took.
///
/// # Errors
/// What the provider says went wrong.
pub(crate) fn translated_whole(forwarding: &Forwarding, body: &[u8]) -> Result<Whole, Failure> {
    let (events, counted) = read_whole(forwarding, body)?;
    let why = events.iter().find_map(|event| match event {
        Event::Broken(why) => Some(why),
        _ => None,
    });
    if let Some(why) = why {
        return Err(broken::failure(why).taking(counted.usage));
    }
    let answer = whole(forwarding.endpoint, &Answer::of(events));
    Ok(Whole {
        bytes: Bytes::from(answer.to_string()),
        usage: counted.usage(),
        is_counted: counted.is_counted(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::endpoint::Endpoint;
    use crate::records::{Framing, Records};
    use crate::translate::Question;

    /// Gemini's answer to a client that speaks this API.
    fn of_gemini(endpoint: Endpoint) -> Forwarding {
        Forwarding {
            endpoint,
            dialect: Dialect::Gemini,
            is_translated: endpoint.dialect() != Dialect::Gemini,
            hides_usage: false,
            wants_base64: false,
            reasoning_apart: false,
            secret: None,
            model: "m".into(),
            renamed: Vec::new(),
            keeps_refusals: false,
        }
    }

    #[test]
    fn a_refused_prompt_is_told_as_it_came_where_nobody_else_is_asked() {
        let answer =
            json!({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 3}});
        let body = answer.to_string();
        let whole = |endpoint, keeps_refusals| {
            let forwarding = Forwarding {
                keeps_refusals,
                ..of_gemini(endpoint)
            };
            forwarding.whole(Bytes::from(body.clone()))
        };
        let kept = whole(Endpoint::Generate, true).unwrap();
        assert_eq!(
            (&kept.bytes[..], kept.usage.input, kept.is_counted),
            (body.as_bytes(), 3, true)
        );
        for (endpoint, keeps) in [(Endpoint::Generate, false), (Endpoint::Chat, true)] {
            assert_eq!(whole(endpoint, keeps).unwrap_err().class, Class::ContentPolicy);
        }
        let forwarding = Forwarding {
            keeps_refusals: true,
            ..of_gemini(Endpoint::Generate)
        };
        let (mut stream, mut out) = (forwarding.transform(), Vec::new());
        let sent = format!("data: {body}\n\n");
        let mut records = Records::new(Framing::Events);
        records.feed(sent.as_bytes()).unwrap();
        let step = stream.record(&records.next().unwrap(), &mut out);
        assert!(matches!(step, Step::Words), "{step:?}");
        assert!(stream.end(&mut out) && out == sent.as_bytes());
    }

    #[test]
    fn a_picture_is_told_of_where_it_cannot_be_told() {
        let picture = json!({"inlineData": {"mimeType": "image/png", "data": "QQ=="}});
        let answer = json!({"candidates": [{"content": {"parts": [picture]}, "finishReason": "STOP"}]});
        let body = Bytes::from(answer.to_string());
        assert_eq!(
            of_gemini(Endpoint::Generate).whole(body.clone()).unwrap().bytes,
            body
        );
        let failure = of_gemini(Endpoint::Chat).whole(body).unwrap_err();
        assert!(
            failure.status == 502 && failure.message.contains("picture"),
            "{failure:?}"
        );
    }

    #[test]
    fn an_answer_that_cannot_be_finished_is_no_illness_and_is_counted() {
        for reason in ["MALFORMED_FUNCTION_CALL", "OTHER", "NO_IMAGE", "BRAND_NEW"] {
            let answer = json!({"candidates": [{"content": {"parts": [{"text": "so far"}]}, "finishReason": reason}],
                "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2}});
            let body = answer.to_string();
            let native = of_gemini(Endpoint::Generate)
                .whole(Bytes::from(body.clone()))
                .unwrap();
            assert_eq!(
                (&native.bytes[..], native.usage.output),
                (body.as_bytes(), 2),
                "{reason}"
            );
            let failure = of_gemini(Endpoint::Chat)
                .whole(Bytes::from(body.clone()))
                .unwrap_err();
            let class = failure.class;
            assert!(
                !class.may_retry() && !class.is_illness() && class.rest(None).is_none(),
                "{reason}"
            );
            assert!(
                failure.message.contains(reason) && failure.status == 502,
                "{}",
                failure.message
            );

            let sent = format!("data: {body}\n\n");
            for endpoint in [
                Endpoint::Generate,
                Endpoint::Chat,
                Endpoint::Messages,
                Endpoint::Responses,
                Endpoint::OllamaChat,
            ] {
                let (mut stream, mut out) = (of_gemini(endpoint).transform(), Vec::new());
                let mut records = Records::new(Framing::Events);
                records.feed(sent.as_bytes()).unwrap();
                let step = stream.record(&records.next().unwrap(), &mut out);
                assert!(matches!(step, Step::Words), "{reason} {endpoint:?}: {step:?}");
                assert!(stream.end(&mut out), "{reason} {endpoint:?}");
                assert!(
                    stream.is_counted() && stream.usage().output == 2,
                    "{reason} {endpoint:?}"
                );
                let out = String::from_utf8(out).unwrap();
                assert!(out.contains("so far"), "{reason} {endpoint:?}: {out}");
                if endpoint == Endpoint::Generate {
                    assert_eq!(out, sent, "{reason}");
                } else {
                    let last = out.trim_end().lines().next_back().unwrap();
                    assert!(
                        last.contains("could not finish") && last.contains(reason),
                        "{out}"
                    );
                    assert!(!out.contains("[DONE]") && !out.contains("message_stop"), "{out}");
                }
            }
        }
        let filtered = json!({"candidates": [{"finishReason": "IMAGE_RECITATION"}]}).to_string();
        let whole = of_gemini(Endpoint::Chat).whole(Bytes::from(filtered)).unwrap();
        assert!(String::from_utf8_lossy(&whole.bytes).contains("content_filter"));
    }

    #[test]
    fn thoughts_are_estimated_by_what_is_shown_or_by_what_is_sealed() {
        let usage = |events: &[Event]| {
            let mut counted = Counted::default();
            for event in events {
                counted.count(event);
            }
            let usage = counted.usage();
            (usage.output, usage.reasoning)
        };
        let (shown, said) = (Event::Thinking("1234".into()), Event::Text("12345678".into()));
        assert_eq!(usage(&[shown.clone(), said.clone()]), (3, 1));
        // A signature of Claude's is all that it thought, of which a summary is shown.
        let sealed = Event::Signature("x".repeat(320));
        assert_eq!(usage(&[shown.clone(), sealed, said.clone()]), (62, 60));
        assert_eq!(usage(&[shown.clone(), Event::Signature("xxxx".into())]), (1, 1));
        assert_eq!(usage(&[said, Event::Redacted("x".repeat(320))]), (62, 60));
        let told = Event::Usage(Usage {
            input: 7,
            output: 1,
            ..Usage::default()
        });
        assert_eq!(usage(&[told, Event::Redacted("x".repeat(320))]), (60, 60));
    }

    #[test]
    fn calls_come_back_under_the_names_that_the_client_gave() {
        let asked = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [
            {"type": "function", "function": {"name": "a.b", "parameters": {"type": "object"}}},
            {"type": "function", "function": {"name": "c", "parameters": {"type": "object"}}}]});
        let question = Question::read(Endpoint::Chat, &asked).unwrap();
        for dialect in [Dialect::Anthropic, Dialect::Bedrock] {
            assert_eq!(
                question.renamed(dialect),
                [("a_b".to_string(), "a.b".to_string())]
            );
        }
        assert!(question.renamed(Dialect::Gemini).is_empty());
        let history = json!({"model": "m", "messages": [{"role": "user", "content": "x"},
            {"role": "assistant", "tool_calls": [{"id": "t", "type": "function", "function": {"name": "d.e", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "t", "content": "1"}],
            "tools": [{"type": "function", "function": {"name": "a.b"}}, {"type": "function", "function": {"name": "a_b"}}]});
        let other = Question::read(Endpoint::Chat, &history).unwrap();
        assert_eq!(
            other.renamed(Dialect::Bedrock),
            [("d_e".to_string(), "d.e".to_string())]
        );
        let forwarding = || Forwarding {
            endpoint: Endpoint::Chat,
            dialect: Dialect::Anthropic,
            is_translated: true,
            hides_usage: false,
            wants_base64: false,
            reasoning_apart: false,
            secret: None,
            model: "m".into(),
            renamed: question.renamed(Dialect::Anthropic),
            keeps_refusals: false,
        };
        let answer = json!({"id": "x", "model": "m", "stop_reason": "tool_use", "usage": {"input_tokens": 1, "output_tokens": 1},
            "content": [{"type": "tool_use", "id": "t", "name": "a_b", "input": {}}, {"type": "tool_use", "id": "u", "name": "c", "input": {}}]});
        let whole = translated_whole(&forwarding(), answer.to_string().as_bytes()).unwrap();
        let value: Value = serde_json::from_slice(&whole.bytes).unwrap();
        let calls = &value["choices"][0]["message"]["tool_calls"];
        assert_eq!(calls[0]["function"]["name"], "a.b");
        assert_eq!(calls[1]["function"]["name"], "c");

        let event = json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "a_b", "input": {}}});
        let mut records = Records::new(Framing::Events);
        records
            .feed(format!("event: content_block_start\ndata: {event}\n\n").as_bytes())
            .unwrap();
        let (mut stream, mut out) = (Translated::new(forwarding()), Vec::new());
        stream.record(&records.next().unwrap(), &mut out);
        assert!(String::from_utf8(out).unwrap().contains("\"name\":\"a.b\""));
    }
}
