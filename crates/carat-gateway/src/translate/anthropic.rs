//! Anthropic's Messages.

use serde_json::{Value, json};

use super::closed::closed;
use super::{
    Answer, Choice, Event, Finish, Format, Piece, Question, Reader, Role, Source, Thinking, Tool, Turn,
    Writer, alternating, claude, new_id, numbers, object, refused, safe_name, set, strings, text, told,
    unknown, words, written,
};
use crate::failure::Failure;
use crate::records::Record;
use crate::usage::Usage;

const KNOWN: [&str; 15] = [
    "model",
    "messages",
    "system",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "stop_sequences",
    "stream",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "metadata",
    // In bodies that were meant for a cloud.
    "anthropic_version",
];

pub(super) fn question(body: &Value) -> Result<Question, Failure> {
    let messages = body["messages"]
        .as_array()
        .ok_or_else(|| refused("messages", "`messages` must be an array"))?;
    let mut question = Question {
        system: pieces(&body["system"], "system")?,
        tools: body["tools"]
            .as_array()
            .into_iter()
            .flatten()
            .map(tool)
            .collect::<Result<_, _>>()?,
        choice: choice(&body["tool_choice"]),
        parallel: body["tool_choice"]["disable_parallel_tool_use"]
            .as_bool()
            .map(|is_off| !is_off),
        format: format(&body["output_config"]["format"]),
        max_tokens: numbers::count(&body["max_tokens"], "max_tokens")?,
        stop: strings(&body["stop_sequences"]),
        thinking: thinking(body)?,
        user: text(&body["metadata"]["user_id"]),
        stream: body["stream"].as_bool().unwrap_or(false),
        wants_usage: true,
        unknown: unknown(body, &KNOWN),
        temperature: numbers::decimal(&body["temperature"], "temperature")?,
        top_p: numbers::decimal(&body["top_p"], "top_p")?,
        top_k: numbers::count(&body["top_k"], "top_k")?,
        ..Question::default()
    };
    for (i, message) in messages.iter().enumerate() {
        let path = format!("messages[{i}]");
        let content = pieces(&message["content"], &path)?;
        match message["role"].as_str() {
            Some("user") => question.push(Role::User, content),
            Some("assistant") => question.push(Role::Assistant, content),
            Some("system") => question.system.extend(content),
            _ => {
                return Err(refused(
                    &format!("{path}.role"),
                    "the role must be user or assistant",
                ));
            }
        }
    }
    Ok(question)
}

fn thinking(body: &Value) -> Result<Option<Thinking>, Failure> {
    let budget = &body["thinking"]["budget_tokens"];
    let stated = match body["thinking"]["type"].as_str() {
        None => None,
        Some("disabled") => Some(Thinking::Off),
        Some("enabled") => numbers::count(budget, "thinking.budget_tokens")?.map(Thinking::Budget),
        Some(_) => Some(Thinking::Adaptive),
    };
    let effort = text(&body["output_config"]["effort"]).map(Thinking::Effort);
    // An effort is of the words too: it turns no thoughts on where they are off, and lifts no bound of theirs.
    Ok(match (stated, effort) {
        (Some(Thinking::Off), _) => Some(Thinking::Off),
        (Some(Thinking::Budget(budget)), Some(effort)) if budget < claude::tokens(&effort) => {
            Some(Thinking::Budget(budget))
        }
        (stated, effort) => effort.or(stated),
    })
}

fn choice(choice: &Value) -> Choice {
    match choice["type"].as_str() {
        Some("any") => Choice::Required,
        Some("none") => Choice::None,
        Some("tool") => text(&choice["name"]).map_or(Choice::Required, Choice::Named),
        _ => Choice::Auto,
    }
}

fn format(format: &Value) -> Format {
    match format["type"].as_str() {
        Some("json_schema") => Format::Schema {
            name: "answer".into(),
            schema: format["schema"].clone(),
            strict: Some(true),
        },
        _ => Format::Text,
    }
}

fn tool(tool: &Value) -> Result<Tool, Failure> {
    if tool["input_schema"].is_null() {
        let message = "tools that Anthropic runs itself cannot be passed on to this provider";
        return Err(refused("tools", message));
    }
    Ok(Tool {
        name: text(&tool["name"]).ok_or_else(|| refused("tools", "every tool needs a name"))?,
        description: text(&tool["description"]),
        schema: tool["input_schema"].clone(),
        strict: tool["strict"].as_bool(),
        cache: mark(tool),
    })
}

fn mark(block: &Value) -> Option<Value> {
    Some(block["cache_control"].clone()).filter(|cache| !cache.is_null())
}

fn pieces(content: &Value, path: &str) -> Result<Vec<Piece>, Failure> {
    match content {
        Value::Null => Ok(Vec::new()),
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        Value::String(text) => Ok(vec![Piece::text(text)]),
        Value::Array(blocks) => blocks.iter().map(|block| piece(block, path)).collect(),
        _ => Err(refused(
            &format!("{path}.content"),
            "the content must be a text or an array of blocks",
        )),
    }
}

fn piece(block: &Value, path: &str) -> Result<Piece, Failure> {
    let cache = mark(block);
    Ok(match block["type"].as_str() {
        Some("text") => Piece::Text {
            text: text(&block["text"]).unwrap_or_default(),
            cache,
        },
        Some("image") => Piece::Image {
            source: source(&block["source"], path)?,
            cache,
        },
        Some("document") => Piece::Document {
            source: source(&block["source"], path)?,
            name: text(&block["title"]),
        },
        Some("thinking") => Piece::Thinking {
            text: text(&block["thinking"]).unwrap_or_default(),
            signature: words(&block["signature"]),
        },
        Some("redacted_thinking") => Piece::Redacted(text(&block["data"]).unwrap_or_default()),
        Some("tool_use") => Piece::Call {
            id: text(&block["id"]).unwrap_or_default(),
            name: text(&block["name"]).unwrap_or_default(),
            arguments: block["input"].clone(),
            signature: None,
        },
        Some("tool_result") => Piece::Result {
            id: text(&block["tool_use_id"]).unwrap_or_default(),
            name: None,
            content: pieces(&block["content"], path)?,
            is_error: block["is_error"].as_bool().unwrap_or(false),
            cache,
        },
        _ => {
            let message =
                "only text, image, document, thinking and tool blocks can be passed on to this provider";
            return Err(refused(&format!("{path}.content"), message));
        }
    })
}

fn source(source: &Value, path: &str) -> Result<Source, Failure> {
    match source["type"].as_str() {
        Some("base64") => Ok(Source::Data {
            media_type: text(&source["media_type"]).unwrap_or_default(),
            data: text(&source["data"]).unwrap_or_default(),
        }),
        Some("url") => Ok(Source::Url(text(&source["url"]).unwrap_or_default())),
        _ => Err(refused(
            &format!("{path}.content"),
            "sources must be base64 or url to be passed on to this provider",
        )),
    }
}

pub(super) fn request(question: &Question, model: &str, dropped: &mut Vec<String>) -> Result<Value, Failure> {
    let mut messages = alternating(question.turns.iter().map(write_turn).collect());
    // The first must be the user's.
    if messages.first().is_none_or(|first| first["role"] != "user") {
        messages.insert(0, json!({"role": "user", "content": "."}));
    }
    let told = claude::Settings::of(question, model, dropped);
    let mut body = json!({"model": model, "max_tokens": told.max_tokens, "messages": messages});
    let system: Vec<Value> = question.system.iter().filter_map(block).collect();
    if !system.is_empty() {
        body["system"] = Value::from(system);
    }
    if question.stream {
        body["stream"] = Value::Bool(true);
    }
    let tools: Vec<Value> = question.tools.iter().map(write_tool).collect();
    if !tools.is_empty() {
        body["tools"] = Value::from(tools);
        let mut choice = match &question.choice {
            Choice::Auto => json!({"type": "auto"}),
            Choice::None => json!({"type": "none"}),
            Choice::Required => json!({"type": "any"}),
            Choice::Named(name) => json!({"type": "tool", "name": safe(name)}),
        };
        if question.parallel == Some(false) && question.choice != Choice::None {
            choice["disable_parallel_tool_use"] = Value::Bool(true);
        }
        body["tool_choice"] = choice;
    }
    set(&mut body, "thinking", told.thinking);
    if let Some(effort) = told.effort {
        body["output_config"]["effort"] = json!(effort);
    }
    set(&mut body, "temperature", told.temperature);
    set(&mut body, "top_p", told.top_p);
    set(&mut body, "top_k", told.top_k);
    if !told.stop.is_empty() {
        body["stop_sequences"] = json!(told.stop);
    }
    if let Some(user) = &question.user {
        body["metadata"] = json!({"user_id": user});
    }
    match &question.format {
        Format::Text => {}
        Format::Json => dropped.push("response_format".into()),
        Format::Schema { schema, .. } => {
            body["output_config"]["format"] = json!({"type": "json_schema", "schema": closed(schema)?});
        }
    }
    question.drop_set(&["seed", "presence_penalty", "frequency_penalty"], dropped);
    Ok(body)
}

fn write_tool(tool: &Tool) -> Value {
    let schema = if tool.schema.is_null() {
        json!({"type": "object", "properties": {}})
    } else {
        tool.schema.clone()
    };
    let mut value = json!({"name": safe(&tool.name), "input_schema": schema});
    set(&mut value, "description", tool.description.clone());
    set(&mut value, "strict", tool.strict.filter(|strict| *strict));
    set(&mut value, "cache_control", tool.cache.clone());
    value
}

/// Names and ids may have letters, digits, `_` and `-`, in calls and results alike.
pub(super) fn safe(name: &str) -> String {
    safe_name(name, 128, "-")
}

fn write_turn(turn: &Turn) -> Value {
    if turn.role == Role::Assistant {
        let mut blocks: Vec<Value> = turn.pieces.iter().filter_map(block).collect();
        // White space at the end of a last turn is refused.
        if let Some(Value::String(text)) = blocks.last_mut().and_then(|last| last.get_mut("text")) {
            text.truncate(text.trim_end().len());
        }
        return json!({"role": "assistant", "content": blocks});
    }
    // Results come before everything else in a turn.
    let is_result = |piece: &&Piece| matches!(piece, Piece::Result { .. });
    let results = turn.pieces.iter().filter(is_result);
    let others = turn.pieces.iter().filter(|piece| !is_result(piece));
    let blocks: Vec<Value> = results.chain(others).filter_map(block).collect();
    json!({"role": "user", "content": blocks})
}

fn block(piece: &Piece) -> Option<Value> {
    let (mut value, cache) = match piece {
        // A turn of nothing but white space is refused, and elsewhere it says nothing.
        Piece::Text { text, .. } if text.trim().is_empty() => return None,
        Piece::Text { text, cache } => (json!({"type": "text", "text": text}), cache.clone()),
        Piece::Image { source, cache } => (
            json!({"type": "image", "source": write_source(source)}),
            cache.clone(),
        ),
        Piece::Document { source, name } => {
            let mut value = json!({"type": "document", "source": write_source(source)});
            set(&mut value, "title", name.clone());
            (value, None)
        }
        // Thoughts that nobody signed are refused.
        Piece::Thinking { signature: None, .. } => return None,
        Piece::Thinking {
            text,
            signature: Some(signature),
        } => (
            json!({"type": "thinking", "thinking": text, "signature": signature}),
            None,
        ),
        Piece::Redacted(data) => (json!({"type": "redacted_thinking", "data": data}), None),
        Piece::Call {
            id, name, arguments, ..
        } => (
            json!({"type": "tool_use", "id": safe(id), "name": safe(name), "input": object(arguments)}),
            None,
        ),
        Piece::Result {
            id,
            content,
            is_error,
            cache,
            ..
        } => {
            let content: Vec<Value> = content.iter().filter_map(block).collect();
            let mut value = json!({"type": "tool_result", "tool_use_id": safe(id)});
            set(
                &mut value,
                "content",
                Some(content).filter(|content| !content.is_empty()),
            );
            set(&mut value, "is_error", is_error.then_some(true));
            (value, cache.clone())
        }
    };
    set(&mut value, "cache_control", cache);
    Some(value)
}

fn write_source(source: &Source) -> Value {
    match source {
        Source::Data { media_type, data } => {
            json!({"type": "base64", "media_type": media_type, "data": data})
        }
        Source::Url(url) => json!({"type": "url", "url": url}),
    }
}

fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "end_turn",
        Finish::Length => "max_tokens",
        Finish::Calls => "tool_use",
        Finish::Filter => "refusal",
    }
}

fn finish_of(name: &str) -> Finish {
    match name {
        "max_tokens" | "model_context_window_exceeded" => Finish::Length,
        "tool_use" => Finish::Calls,
        "refusal" => Finish::Filter,
        _ => Finish::Stop,
    }
}

/// Cached tokens stand outside `input_tokens`.
fn usage_value(usage: &Usage) -> Value {
    let written = usage.cache_write.saturating_add(usage.cache_write_1h);
    json!({
        "input_tokens": usage.input.saturating_sub(usage.cache_read).saturating_sub(written),
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation_input_tokens": written,
        "output_tokens": usage.output,
    })
}

/// What a usage says over what was said before: it is cumulative, and may leave out what did not change.
fn read_usage(value: &Value, raw: &mut RawUsage) {
    let update = |name: &str, old: &mut u64| *old = value[name].as_u64().unwrap_or(*old);
    update("input_tokens", &mut raw.input);
    update("output_tokens", &mut raw.output);
    update("cache_read_input_tokens", &mut raw.cache_read);
    update("cache_creation_input_tokens", &mut raw.cache_write);
    let hour = &value["cache_creation"]["ephemeral_1h_input_tokens"];
    raw.cache_write_1h = hour.as_u64().unwrap_or(raw.cache_write_1h);
    let thoughts = &value["output_tokens_details"]["thinking_tokens"];
    raw.reasoning = thoughts.as_u64().unwrap_or(raw.reasoning);
}

/// Usage as this API counts.
#[derive(Debug, Default)]
struct RawUsage {
    input: u64,
    cache_read: u64,
    cache_write: u64,
    cache_write_1h: u64,
    output: u64,
    reasoning: u64,
}

impl RawUsage {
    fn usage(&self) -> Usage {
        let hour = self.cache_write_1h.min(self.cache_write);
        Usage {
            input: self
                .input
                .saturating_add(self.cache_read)
                .saturating_add(self.cache_write),
            cache_read: self.cache_read,
            cache_write: self.cache_write - hour,
            cache_write_1h: hour,
            output: self.output,
            reasoning: self.reasoning.min(self.output),
            stated: None,
        }
    }
}

pub(super) fn answer(answer: &Answer) -> Value {
    let content: Vec<Value> = answer.pieces.iter().filter_map(answer_block).collect();
    json!({
        "id": format!("msg_{}", answer.id),
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
        "stop_reason": finish_name(answer.finish.unwrap_or(Finish::Stop)),
        "stop_sequence": null,
        "usage": usage_value(&answer.usage),
    })
}

/// As in a request, but thoughts need no signature to be shown, and white space is shown as it is.
fn answer_block(piece: &Piece) -> Option<Value> {
    match piece {
        Piece::Text { text, .. } if !text.is_empty() => Some(json!({"type": "text", "text": text})),
        Piece::Thinking { text, signature } => {
            let signature = signature.as_deref().unwrap_or_default();
            Some(json!({"type": "thinking", "thinking": text, "signature": signature}))
        }
        other => block(other),
    }
}

/// Which block of a stream is open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Open {
    #[default]
    Nothing,
    Text,
    Thinking,
    Call,
}

/// Writes events.
#[derive(Default)]
pub(super) struct EventWriter {
    open: Open,
    n_blocks: u64,
    finish: Option<Finish>,
    usage: Usage,
}

impl EventWriter {
    fn write(name: &str, value: &Value, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("event: {name}\ndata: {value}\n\n").as_bytes());
    }

    fn open(&mut self, open: Open, block: &Value, out: &mut Vec<u8>) {
        if self.open == open && open != Open::Call {
            return;
        }
        self.close(out);
        self.open = open;
        let index = self.n_blocks;
        let value = json!({"type": "content_block_start", "index": index, "content_block": block});
        Self::write("content_block_start", &value, out);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.open != Open::Nothing {
            let value = json!({"type": "content_block_stop", "index": self.n_blocks});
            Self::write("content_block_stop", &value, out);
            self.n_blocks += 1;
            self.open = Open::Nothing;
        }
    }

    fn delta(&self, delta: &Value, out: &mut Vec<u8>) {
        let value = json!({"type": "content_block_delta", "index": self.n_blocks, "delta": delta});
        Self::write("content_block_delta", &value, out);
    }
}

impl Writer for EventWriter {
    fn event(&mut self, event: &Event, out: &mut Vec<u8>) {
        match event {
            Event::Begin { id, model } => {
                let message = json!({
                    "id": format!("msg_{id}"), "type": "message", "role": "assistant", "model": model, "content": [],
                    "stop_reason": null, "stop_sequence": null, "usage": usage_value(&self.usage),
                });
                Self::write(
                    "message_start",
                    &json!({"type": "message_start", "message": message}),
                    out,
                );
            }
            Event::Text(text) => {
                self.open(Open::Text, &json!({"type": "text", "text": ""}), out);
                self.delta(&json!({"type": "text_delta", "text": text}), out);
            }
            Event::Thinking(text) => {
                self.open(
                    Open::Thinking,
                    &json!({"type": "thinking", "thinking": "", "signature": ""}),
                    out,
                );
                self.delta(&json!({"type": "thinking_delta", "thinking": text}), out);
            }
            Event::Signature(signature) => {
                self.open(
                    Open::Thinking,
                    &json!({"type": "thinking", "thinking": "", "signature": ""}),
                    out,
                );
                self.delta(&json!({"type": "signature_delta", "signature": signature}), out);
                // What is thought after it has a signature of its own.
                self.close(out);
            }
            Event::Redacted(data) => {
                self.open(
                    Open::Call,
                    &json!({"type": "redacted_thinking", "data": data}),
                    out,
                );
                self.close(out);
            }
            Event::Call { id, name, .. } => {
                let block = json!({"type": "tool_use", "id": safe(id), "name": name, "input": {}});
                self.open(Open::Call, &block, out);
            }
            Event::Arguments(text) => {
                self.delta(&json!({"type": "input_json_delta", "partial_json": text}), out)
            }
            Event::Usage(usage) => self.usage = *usage,
            Event::End(finish) => self.finish = Some(*finish),
            Event::Broken(_) => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.close(out);
        let reason = finish_name(self.finish.unwrap_or(Finish::Stop));
        let delta = json!({"stop_reason": reason, "stop_sequence": null});
        let value = json!({"type": "message_delta", "delta": delta, "usage": usage_value(&self.usage)});
        Self::write("message_delta", &value, out);
        Self::write("message_stop", &json!({"type": "message_stop"}), out);
    }
}

/// Reads messages and their events.
#[derive(Default)]
pub(super) struct MessageReader {
    usage: RawUsage,
    /// The block that is being written is a call of the client's.
    is_call: bool,
    is_done: bool,
}

impl MessageReader {
    fn begin(&mut self, message: &Value, events: &mut Vec<Event>) {
        let id = text(&message["id"]).unwrap_or_else(|| new_id(""));
        events.push(Event::Begin {
            id: id.trim_start_matches("msg_").to_string(),
            model: text(&message["model"]).unwrap_or_default(),
        });
        read_usage(&message["usage"], &mut self.usage);
    }

    fn block(&mut self, block: &Value, events: &mut Vec<Event>) {
        let said = |name: &str| text(&block[name]).filter(|text| !text.is_empty());
        self.is_call = block["type"] == "tool_use";
        match block["type"].as_str() {
            Some("text") => events.extend(said("text").map(Event::Text)),
            Some("thinking") => {
                events.extend(said("thinking").map(Event::Thinking));
                events.extend(said("signature").map(Event::Signature));
            }
            Some("redacted_thinking") => events.extend(said("data").map(Event::Redacted)),
            Some("tool_use") => {
                events.push(Event::Call {
                    id: text(&block["id"]).unwrap_or_default(),
                    name: text(&block["name"]).unwrap_or_default(),
                    signature: None,
                });
                if block["input"].as_object().is_some_and(|input| !input.is_empty()) {
                    events.push(Event::Arguments(written(&block["input"])));
                }
            }
            _ => {}
        }
    }

    fn delta(&self, delta: &Value, events: &mut Vec<Event>) {
        let said = |name: &str| text(&delta[name]).filter(|text| !text.is_empty());
        match delta["type"].as_str() {
            Some("text_delta") => events.extend(said("text").map(Event::Text)),
            Some("thinking_delta") => events.extend(said("thinking").map(Event::Thinking)),
            Some("signature_delta") => events.extend(said("signature").map(Event::Signature)),
            // Calls of the provider's own tools are nobody else's.
            Some("input_json_delta") if self.is_call => {
                events.extend(said("partial_json").map(Event::Arguments));
            }
            _ => {}
        }
    }
}

impl Reader for MessageReader {
    fn record(&mut self, record: &Record<'_>, events: &mut Vec<Event>) -> Result<bool, Failure> {
        let Some(value) = told(record) else {
            return Ok(false);
        };
        match value["type"].as_str() {
            Some("error") => return Err(Failure::of_value(&value, None)),
            Some("message_start") => {
                // The prompt's tokens, for who must pay for an answer that is cut.
                read_usage(&value["message"]["usage"], &mut self.usage);
                events.push(Event::Usage(self.usage.usage()));
                self.begin(&value["message"], events);
            }
            Some("content_block_start") => self.block(&value["content_block"], events),
            Some("content_block_delta") => self.delta(&value["delta"], events),
            Some("message_delta") => {
                read_usage(&value["usage"], &mut self.usage);
                events.push(Event::Usage(self.usage.usage()));
                if let Some(reason) = value["delta"]["stop_reason"].as_str() {
                    events.push(Event::End(finish_of(reason)));
                }
            }
            Some("message_stop") => self.is_done = true,
            _ => {}
        }
        Ok(true)
    }

    fn whole(&mut self, answer: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        if answer["type"] == "error" {
            return Err(Failure::of_value(answer, None));
        }
        self.begin(answer, events);
        answer["content"]
            .as_array()
            .into_iter()
            .flatten()
            .for_each(|block| self.block(block, events));
        events.push(Event::Usage(self.usage.usage()));
        events.push(Event::End(finish_of(
            answer["stop_reason"].as_str().unwrap_or_default(),
        )));
        Ok(())
    }

    fn end(&mut self, _events: &mut Vec<Event>) -> bool {
        self.is_done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Dialect;

    #[test]
    fn each_signature_ends_its_thoughts() {
        let (mut writer, mut out) = (EventWriter::default(), Vec::new());
        for event in [
            Event::Thinking("a".into()),
            Event::Signature("1".into()),
            Event::Thinking("b".into()),
            Event::Signature("2".into()),
        ] {
            writer.event(&event, &mut out);
        }
        let text = String::from_utf8(out).unwrap();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let deltas: Vec<Value> = data.map(|data| serde_json::from_str(data).unwrap()).collect();
        let of = |i: u64| {
            let own = deltas.iter().filter(|event| event["index"] == i);
            let texts = own.filter_map(|event| {
                let delta = &event["delta"];
                delta["thinking"].as_str().or(delta["signature"].as_str())
            });
            texts.collect::<String>()
        };
        assert_eq!((of(0).as_str(), of(1).as_str()), ("a1", "b2"), "{text}");
    }

    #[test]
    fn what_the_providers_own_tools_are_given_goes_into_no_call() {
        let (mut reader, mut events) = (MessageReader::default(), Vec::new());
        let start = |kind: &str| json!({"type": "content_block_start", "content_block": {"type": kind, "id": "i", "name": "n", "input": {}}});
        let delta = |text: &str| json!({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": text}});
        for value in [
            start("tool_use"),
            delta("{\"a\":1}"),
            start("server_tool_use"),
            delta("{\"query\":\"x\"}"),
        ] {
            let data = value.to_string().into_bytes();
            let record = Record {
                name: b"",
                data: data.as_slice().into(),
                raw: &data,
            };
            assert!(reader.record(&record, &mut events).unwrap());
        }
        assert_eq!(events.len(), 2);
        assert_eq!(events[1], Event::Arguments("{\"a\":1}".into()));
    }

    #[test]
    fn older_models_think_about_results_only_with_their_own_thoughts() {
        let asked = |thoughts: Value, model: &str| {
            let call = json!({"id": "c", "function": {"name": "f", "arguments": "not whole {"}});
            let body = json!({"reasoning_effort": "low", "max_tokens": 4000, "tools": [{"function": {"name": "f"}}], "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "thinking_blocks": thoughts, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": "1"},
            ]});
            let question = Question::read(crate::endpoint::Endpoint::Chat, &body).unwrap();
            let (told, dropped) = question.write(Dialect::Anthropic, model).unwrap();
            (
                told["thinking"]["type"].as_str().map(ToString::to_string),
                dropped,
            )
        };
        let signed = json!([{"type": "thinking", "thinking": "t", "signature": "s"}]);
        let old = "claude-sonnet-4-5";
        assert_eq!(asked(signed, old), (Some("enabled".into()), vec![]));
        assert_eq!(
            asked(json!([]), old),
            (None, vec!["reasoning_effort".to_string()])
        );
        assert_eq!(asked(json!([]), "claude-opus-5").0.as_deref(), Some("adaptive"));
    }

    #[test]
    fn white_space_alone_is_told_to_nobody() {
        let blank = || json!({"type": "text", "text": " \n"});
        let result = json!({"type": "tool_result", "tool_use_id": "i", "content": [blank()]});
        let body = json!({"max_tokens": 9, "system": [blank(), {"type": "text", "text": " s "}], "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "\t"},
            {"role": "user", "content": [blank(), {"type": "text", "text": "\ny"}, blank()]},
            {"role": "assistant", "content": [blank(), {"type": "tool_use", "id": "i", "name": "f", "input": {}}]},
            {"role": "user", "content": [result, blank()]},
        ]});
        let question = Question::read(crate::endpoint::Endpoint::Messages, &body).unwrap();
        let (told, _) = question.write(Dialect::Anthropic, "m").unwrap();
        let text = |text: &str| json!({"type": "text", "text": text});
        assert_eq!(told["system"], json!([text(" s ")]));
        let expected = json!([
            {"role": "user", "content": [text("x"), text("\ny")]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "i", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "i"}]},
        ]);
        assert_eq!(told["messages"], expected);
        let blank = json!({"max_tokens": 9, "system": " ", "messages": [{"role": "user", "content": " "}]});
        let question = Question::read(crate::endpoint::Endpoint::Messages, &blank).unwrap();
        let (told, _) = question.write(Dialect::Anthropic, "m").unwrap();
        assert_eq!(told["messages"], json!([{"role": "user", "content": "."}]));
        assert!(told["system"].is_null());
        // What a model says goes to the client as it is.
        let said = super::super::Answer::of(vec![Event::Text("\n".into())]);
        assert_eq!(answer(&said)["content"], json!([text("\n")]));
    }

    #[test]
    fn stop_words_and_schemas_are_told_as_claude_takes_them() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}});
        let body = json!({"messages": [{"role": "user", "content": "x"}], "stop": ["\n\n", "END", " "],
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}});
        let question = Question::read(crate::endpoint::Endpoint::Chat, &body).unwrap();
        let (told, dropped) = question.write(Dialect::Anthropic, "claude-opus-5").unwrap();
        assert_eq!(told["stop_sequences"], json!(["END"]));
        assert_eq!(dropped, ["stop"]);
        let schema = &told["output_config"]["format"]["schema"];
        assert_eq!(schema["additionalProperties"], false, "{told}");
        let (told, dropped) = question
            .write(Dialect::Bedrock, "anthropic.claude-opus-5")
            .unwrap();
        assert_eq!(told["inferenceConfig"]["stopSequences"], json!(["END"]));
        assert_eq!(dropped, ["stop"]);
        let (told, dropped) = question.write(Dialect::Bedrock, "amazon.nova-pro").unwrap();
        assert_eq!(
            told["inferenceConfig"]["stopSequences"],
            json!(["\n\n", "END", " "])
        );
        assert!(dropped.is_empty());
    }

    #[test]
    fn turns_of_which_nothing_is_left_and_arguments_that_are_no_object_are_refused_nowhere() {
        let body = json!({"max_tokens": 9, "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": ""}]},
            {"role": "user", "content": "y"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "i", "name": "f", "input": "cut {"}]},
        ]});
        let question = Question::read(crate::endpoint::Endpoint::Messages, &body).unwrap();
        let asked = |dialect| question.write(dialect, "m").unwrap().0;
        // Where roles must alternate the user's two turns become one.
        let lists = [
            (Dialect::Anthropic, "messages", 2, "/content/0/input"),
            (Dialect::Bedrock, "messages", 2, "/content/0/toolUse/input"),
            (Dialect::Gemini, "contents", 3, "/parts/0/functionCall/args"),
            (Dialect::Ollama, "messages", 3, "/tool_calls/0/function/arguments"),
        ];
        for (dialect, name, n_turns, pointer) in lists {
            let told = asked(dialect);
            let turns = told[name].as_array().unwrap();
            assert_eq!(turns.len(), n_turns, "{dialect:?}: {told}");
            let call = &turns[n_turns - 1];
            assert_eq!(call.pointer(pointer), Some(&json!({})), "{dialect:?}: {told}");
        }
        let told = asked(Dialect::Bedrock);
        assert_eq!(
            told["messages"][0]["content"],
            json!([{"text": "x"}, {"text": "y"}])
        );
        assert_eq!(asked(Dialect::OpenAi)["messages"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn clients_that_take_objects_get_objects() {
        use crate::endpoint::Endpoint;
        use crate::translate::{whole, writer};
        for arguments in ["cut {", "[1]", "null", "\"x\""] {
            let events = || {
                let call = Event::Call {
                    id: "i".into(),
                    name: "f".into(),
                    signature: None,
                };
                vec![
                    call,
                    Event::Arguments(arguments.into()),
                    Event::End(Finish::Calls),
                ]
            };
            for (endpoint, pointer) in [
                (
                    Endpoint::Generate,
                    "/candidates/0/content/parts/0/functionCall/args",
                ),
                (Endpoint::OllamaChat, "/message/tool_calls/0/function/arguments"),
                (Endpoint::Messages, "/content/0/input"),
            ] {
                let told = whole(endpoint, &Answer::of(events()));
                assert_eq!(told.pointer(pointer), Some(&json!({})), "{arguments}: {told}");
                if endpoint == Endpoint::Messages {
                    continue;
                }
                let (mut writer, mut out) = (writer(endpoint, true), Vec::new());
                events().iter().for_each(|event| writer.event(event, &mut out));
                writer.end(&mut out);
                let text = String::from_utf8(out).unwrap();
                let line = text.lines().next().unwrap();
                let told: Value = serde_json::from_str(line.strip_prefix("data: ").unwrap_or(line)).unwrap();
                assert_eq!(told.pointer(pointer), Some(&json!({})), "{arguments}: {told}");
            }
        }
        // Who leaves the arguments out means none.
        let body = json!({"contents": [{"role": "model", "parts": [{"functionCall": {"name": "f"}}]}]});
        let question = Question::read(Endpoint::Generate, &body).unwrap();
        let (told, _) = question.write(Dialect::OpenAi, "m").unwrap();
        let call = &told["messages"][0]["tool_calls"][0];
        assert_eq!(call["function"]["arguments"], "{}");
    }
}
