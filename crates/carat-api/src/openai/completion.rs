//! `/v1/completions`: raw text continued, request and answer.

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use super::chat::{StreamOptions, WireSampling, choices, max_tokens};
use super::chat_answer::finite;
use super::format::{WireFormat, WireGrammar};
use super::{event, usage};
use crate::read::{OneOrMany, parse};
use crate::{ApiError, Delta, Finish, FinishKind, GenerationRequest, TokenLogprob, Usage};

/// OpenAI's default for answers here.
const DEFAULT_MAX_TOKENS: u32 = 16;
/// Most alternatives that may be asked for.
const MAX_LOGPROBS: u32 = 20;
/// Most prompts in one request.
const MAX_PROMPTS: usize = 256;

/// What to continue.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// A request with what only this API has.
#[derive(Debug)]
pub struct CompletionRequest {
    /// Each is continued `n` times.
    pub prompts: Vec<Prompt>,
    /// Whether the answer begins with the prompt.
    pub echo: bool,
    /// The rest; no turns.
    pub generation: GenerationRequest,
}

#[derive(Debug, Deserialize)]
struct Wire {
    model: Option<String>,
    prompt: Prompts,
    suffix: Option<String>,
    max_tokens: Option<u32>,
    n: Option<u32>,
    best_of: Option<u32>,
    stop: Option<OneOrMany>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<u32>,
    echo: Option<bool>,
    /// vLLM's; OpenAI has it for conversations alone.
    response_format: Option<WireFormat>,
}

/// A string, an array of strings, of ids, or of arrays of ids.
#[derive(Debug)]
pub(super) struct Prompts(pub(super) Vec<Prompt>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Id(u32),
    Text(String),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Several;
        impl<'de> Visitor<'de> for Several {
            type Value = Prompts;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string, an array of strings, of token ids, or of arrays of token ids")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts(vec![Prompt::Text(text.to_string())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                let (mut prompts, mut ids) = (Vec::new(), Vec::new());
                while let Some(item) = seq.next_element()? {
                    match item {
                        Item::Id(id) => ids.push(id),
                        Item::Text(text) => prompts.push(Prompt::Text(text)),
                        Item::Ids(ids) => prompts.push(Prompt::Tokens(ids)),
                    }
                }
                match (ids.is_empty(), prompts.is_empty()) {
                    (false, true) => Ok(Prompts(vec![Prompt::Tokens(ids)])),
                    (true, false) => Ok(Prompts(prompts)),
                    _ => Err(A::Error::custom("an array of one kind, not empty, is expected")),
                }
            }
        }
        deserializer.deserialize_any(Several)
    }
}

/// Reads the body.
///
/// # Errors
/// What cannot be done, with the field's name.
pub fn completion_request(body: &[u8]) -> Result<CompletionRequest, ApiError> {
    let (wire, sampling, grammar): (Wire, WireSampling, WireGrammar) =
        (parse(body)?, parse(body)?, parse(body)?);
    let n = choices(wire.n)?;
    let echo = wire.echo.unwrap_or(false);
    if wire.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        let message = "`suffix` is not supported: Gemma does not fill in; leave it out";
        return Err(ApiError::field("suffix", message));
    }
    if wire.best_of.is_some_and(|best_of| best_of as usize != n) {
        return Err(ApiError::field(
            "best_of",
            "`best_of` is not supported unless it equals `n`; leave it out",
        ));
    }
    if wire.logprobs.is_some_and(|n| n > MAX_LOGPROBS) {
        return Err(ApiError::field(
            "logprobs",
            format!("`logprobs` may be at most {MAX_LOGPROBS}"),
        ));
    }
    if echo && wire.logprobs.is_some() {
        let message = "`echo` with `logprobs` is not supported; leave one of them out";
        return Err(ApiError::field("echo", message));
    }
    if wire.prompt.0.len() > MAX_PROMPTS {
        return Err(ApiError::field(
            "prompt",
            format!("`prompt` may hold at most {MAX_PROMPTS} prompts"),
        ));
    }
    let format = wire.response_format.map(WireFormat::into_format).transpose()?;
    let (format, format_field) = grammar.over(format)?;
    Ok(CompletionRequest {
        prompts: wire.prompt.0,
        echo,
        generation: GenerationRequest {
            continues: None,
            model: wire.model.unwrap_or_default(),
            format,
            format_field,
            sampling: sampling.into_sampling()?,
            max_tokens: max_tokens(Some(wire.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)), "max_tokens")?,
            stop: wire.stop.unwrap_or_default().0,
            n,
            logprobs: wire.logprobs.map(|n| n as usize),
            stream: wire.stream.unwrap_or(false),
            include_usage: wire.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
            ..GenerationRequest::default()
        },
    })
}

/// The whole answer; `heads` is what each choice begins with.
pub fn completion(
    id: &str,
    created: u64,
    model: &str,
    heads: &[String],
    choices: &[(Vec<Delta>, Finish)],
    total: &Usage,
) -> Value {
    let one = |(index, (deltas, finish)): (usize, &(Vec<Delta>, Finish))| {
        let mut text = heads.get(index).cloned().unwrap_or_default();
        let mut logprobs = Vec::new();
        for delta in deltas {
            match delta {
                // There is no other place for thoughts here.
                Delta::Text(more) | Delta::Reasoning(more) => text.push_str(more),
                Delta::Logprob(token) => logprobs.push(token),
                _ => {}
            }
        }
        let logprobs = (!logprobs.is_empty()).then(|| old_logprobs(&logprobs, 0));
        json!({"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason(&finish.kind)})
    };
    let choices: Vec<Value> = choices.iter().enumerate().map(one).collect();
    json!({
        "id": id, "object": "text_completion", "created": created, "model": model, "choices": choices,
        "usage": usage(total), "system_fingerprint": null,
    })
}

fn reason(kind: &FinishKind) -> &'static str {
    match kind {
        FinishKind::Length | FinishKind::ContextFull => "length",
        _ => "stop",
    }
}

/// Log-probabilities in the form of this API; `offset` is where the first token begins, in characters.
fn old_logprobs(tokens: &[&TokenLogprob], mut offset: usize) -> Value {
    let (mut texts, mut values, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for token in tokens {
        let text = String::from_utf8_lossy(&token.token).into_owned();
        offsets.push(offset);
        offset += text.chars().count();
        values.push(finite(token.logprob));
        let top = token.top.iter();
        let top = top.map(|(bytes, p)| (String::from_utf8_lossy(bytes).into_owned(), finite(*p).into()));
        tops.push(Value::Object(top.collect::<Map<_, _>>()));
        texts.push(text);
    }
    json!({"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets})
}

/// Writes a completion's events.
pub struct CompletionEvents {
    id: String,
    created: u64,
    model: String,
    include_usage: bool,
    /// What each choice still has to begin with.
    heads: Vec<String>,
    offsets: Vec<usize>,
}

impl CompletionEvents {
    /// Events of an answer whose choices begin with `heads`.
    pub fn new(id: String, created: u64, model: String, heads: Vec<String>, include_usage: bool) -> Self {
        let offsets = vec![0; heads.len()];
        Self {
            id,
            created,
            model,
            include_usage,
            heads,
            offsets,
        }
    }

    /// A piece of a choice.
    pub fn delta(&mut self, choice: usize, delta: &Delta, out: &mut Vec<u8>) {
        match delta {
            Delta::Text(text) | Delta::Reasoning(text) => {
                let head = self.heads.get_mut(choice).map(std::mem::take).unwrap_or_default();
                self.chunk(choice, &(head + text), None, None, out);
            }
            Delta::Logprob(token) => {
                let offset = self.offsets.get(choice).copied().unwrap_or_default();
                let logprobs = old_logprobs(&[token], offset);
                if let Some(offset) = self.offsets.get_mut(choice) {
                    *offset += String::from_utf8_lossy(&token.token).chars().count();
                }
                self.chunk(choice, "", Some(logprobs), None, out);
            }
            _ => {}
        }
    }

    /// The end of a choice.
    pub fn finish(&mut self, choice: usize, finish: &Finish, out: &mut Vec<u8>) {
        let head = self.heads.get_mut(choice).map(std::mem::take).unwrap_or_default();
        self.chunk(choice, &head, None, Some(reason(&finish.kind)), out);
    }

    /// The end of the stream, with the usage of all choices.
    pub fn end(&mut self, total: &Usage, out: &mut Vec<u8>) {
        if self.include_usage {
            let last = json!({
                "id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
                "choices": [], "usage": usage(total),
            });
            event(out, &last);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// A failure in mid-stream.
    pub fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event(out, &error.openai());
    }

    fn chunk(
        &self,
        index: usize,
        text: &str,
        logprobs: Option<Value>,
        finish: Option<&'static str>,
        out: &mut Vec<u8>,
    ) {
        let choice = json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish});
        let mut chunk = json!({
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
            "choices": [choice],
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        event(out, &chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;

    fn read(body: Value) -> Result<CompletionRequest, ApiError> {
        completion_request(body.to_string().as_bytes())
    }

    #[test]
    fn the_answer_can_be_bound() {
        let body = json!({"prompt": "Hi", "response_format": {"type": "json_object"}});
        assert_eq!(read(body).unwrap().generation.format, Format::JsonObject);
        assert_eq!(
            read(json!({"prompt": "Hi"})).unwrap().generation.format,
            Format::Text
        );
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let prompts = |prompt: Value| read(json!({"prompt": prompt})).map(|request| request.prompts);
        assert_eq!(prompts(json!("a")).unwrap(), [Prompt::Text("a".into())]);
        assert_eq!(prompts(json!(["a", "b"])).unwrap().len(), 2);
        assert_eq!(prompts(json!([1, 2])).unwrap(), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(prompts(json!([[1], [2]])).unwrap().len(), 2);
        assert_eq!(
            prompts(json!([1, "a"])).unwrap_err().param.as_deref(),
            Some("prompt")
        );
        assert!(prompts(json!([])).is_err());
    }

    #[test]
    fn what_gemma_cannot_do_is_refused() {
        let param = |body: Value| read(body).unwrap_err().param;
        assert_eq!(
            param(json!({"prompt": "a", "suffix": "b"})).as_deref(),
            Some("suffix")
        );
        assert_eq!(
            param(json!({"prompt": "a", "best_of": 3})).as_deref(),
            Some("best_of")
        );
        assert_eq!(
            param(json!({"prompt": "a", "echo": true, "logprobs": 1})).as_deref(),
            Some("echo")
        );
    }
}
