//! Converse of AWS Bedrock.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::closed::closed;
use super::{
    Choice, Event, Finish, Format, Piece, Question, Reader, Role, Source, Thinking, Tool, Turn, alternating,
    broken, claude, new_id, object, refused, safe_name, set, text, written,
};
use crate::failure::{Class, Failure};
use crate::frames;
use crate::records::Record;
use crate::usage::Usage;

/// Most characters of a tool's name and of a call's id.
const NAME_CHARS: usize = 64;

/// Most characters of a document's name, with room for a number behind it: 200 are allowed.
const DOCUMENT_CHARS: usize = 190;

/// Where a model takes points up to which its prompt is kept.
#[derive(Debug, Clone, Copy, Default)]
struct Points {
    in_turns: bool,
    in_tools: bool,
    /// It may be kept for an hour, too.
    for_hours: bool,
}

impl Points {
    /// By its name: whoever does not take them refuses the request.
    fn of(model: &str) -> Self {
        if let Some(for_hours) = claude::keeps_prompts(model) {
            return Self {
                in_turns: true,
                in_tools: true,
                for_hours,
            };
        }
        Self {
            in_turns: model.contains("amazon.nova"),
            ..Self::default()
        }
    }

    fn point(self, mark: &Value) -> Value {
        let mut point = json!({"type": "default"});
        let hour = Some("1h").filter(|hour| self.for_hours && mark["ttl"] == *hour);
        set(&mut point, "ttl", hour);
        json!({"cachePoint": point})
    }
}

pub(super) fn request(question: &Question, model: &str, dropped: &mut Vec<String>) -> Result<Value, Failure> {
    let points = Points::of(model);
    let turns = question.turns.iter().map(|turn| write_turn(turn, points));
    let mut messages = alternating(turns.collect::<Result<_, _>>()?);
    number_documents(&mut messages);
    // The first must be the user's.
    if messages.first().is_none_or(|first| first["role"] != "user") {
        messages.insert(0, json!({"role": "user", "content": [{"text": "."}]}));
    }
    let mut body = json!({"messages": messages});
    let system = blocks(&question.system, points)?;
    if !system.is_empty() {
        body["system"] = Value::from(system);
    }
    let is_claude = model.contains("anthropic");
    let claude = is_claude.then(|| claude::Settings::of(question, model, dropped));
    let (temperature, top_p) = match &claude {
        Some(told) => (told.temperature, told.top_p),
        None => (question.temperature.map(|t| t.min(1.0)), question.top_p),
    };
    // Where nobody says, an answer is as long as the model can make it; only a budget of thoughts must have its room.
    let room = claude.as_ref().filter(|told| told.has_budget());
    let room = room.map(|told| told.max_tokens);
    let mut config = json!({});
    set(&mut config, "maxTokens", question.max_tokens.or(room));
    set(&mut config, "temperature", temperature);
    set(&mut config, "topP", top_p);
    let stop = claude.as_ref().map_or(&question.stop, |told| &told.stop);
    if !stop.is_empty() {
        config["stopSequences"] = json!(stop);
    }
    if config.as_object().is_some_and(|config| !config.is_empty()) {
        body["inferenceConfig"] = config;
    }
    write_tools(question, points, &mut body, dropped);
    match &question.format {
        Format::Text => {}
        Format::Json => dropped.push("response_format".into()),
        Format::Schema { name, schema, .. } => {
            let schema = if is_claude { &closed(schema)? } else { schema };
            let schema = json!({"name": safe(name), "schema": schema.to_string()});
            body["outputConfig"]["textFormat"] =
                json!({"type": "json_schema", "structure": {"jsonSchema": schema}});
        }
    }
    let own = match claude {
        Some(told) => own_of_claude(told),
        None => own_of_others(question, model, dropped),
    };
    if own.as_object().is_some_and(|own| !own.is_empty()) {
        body["additionalModelRequestFields"] = own;
    }
    let unknown_here = [
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "user",
        "parallel_tool_calls",
    ];
    question.drop_set(&unknown_here, dropped);
    Ok(body)
}

/// No two documents of a conversation may have the same name: those that come later are numbered, always in the same way,
/// so that what the provider keeps of a prompt can be used again.
fn number_documents(messages: &mut [Value]) {
    let blocks = messages
        .iter_mut()
        .flat_map(|message| elements(&mut message["content"]));
    let documents = blocks.flat_map(|block| {
        if block["toolResult"].is_object() {
            elements(&mut block["toolResult"]["content"])
        } else {
            std::slice::from_mut(block).iter_mut()
        }
    });
    let names = documents.filter_map(|block| block.get_mut("document")?.get_mut("name"));
    let mut seen: HashMap<String, u64> = HashMap::new();
    for name in names {
        let Some(own) = name.as_str().map(ToString::to_string) else {
            continue;
        };
        let mut numbered = own.clone();
        while seen.contains_key(&numbered) {
            let n = seen.entry(own.clone()).or_insert(1);
            *n += 1;
            numbered = format!("{own}-{n}");
        }
        *name = Value::from(numbered.as_str());
        seen.insert(numbered, 1);
    }
}

/// The elements of an array, or nothing.
fn elements(array: &mut Value) -> std::slice::IterMut<'_, Value> {
    array
        .as_array_mut()
        .map_or(&mut [][..], Vec::as_mut_slice)
        .iter_mut()
}

/// What Converse does not know but Claude does.
fn own_of_claude(told: claude::Settings) -> Value {
    let mut own = json!({});
    set(&mut own, "top_k", told.top_k);
    set(&mut own, "thinking", told.thinking);
    if let Some(effort) = told.effort {
        own["output_config"] = json!({"effort": effort});
    }
    own
}

/// What Converse does not know but some other models do.
fn own_of_others(question: &Question, model: &str, dropped: &mut Vec<String>) -> Value {
    let mut own = json!({});
    question.drop_set(&["top_k"], dropped);
    let effort = match &question.thinking {
        None | Some(Thinking::Adaptive) => None,
        Some(Thinking::Off) => Some("none"),
        Some(Thinking::Effort(effort)) => Some(effort.as_str()),
        Some(Thinking::Budget(budget)) => Some(super::openai::effort_of(*budget)),
    };
    match effort {
        None => {}
        Some(effort) if model.contains("gpt-oss") && effort != "none" => {
            own["reasoning_effort"] = json!(effort);
        }
        Some(effort) if model.contains("nova-2") => {
            own["reasoningConfig"] = if effort == "none" {
                json!({"type": "disabled"})
            } else {
                json!({"type": "enabled", "maxReasoningEffort": effort})
            };
        }
        Some("none") => {}
        Some(_) => dropped.push("reasoning_effort".into()),
    }
    own
}

fn write_tools(question: &Question, points: Points, body: &mut Value, dropped: &mut Vec<String>) {
    let tools = question.tools.iter().flat_map(|tool| write_tool(tool, points));
    let mut tools: Vec<Value> = tools.collect();
    // A conversation with calls in it needs the tools, even where none may be called any more.
    let called = question
        .turns
        .iter()
        .flat_map(|turn| &turn.pieces)
        .filter_map(|piece| match piece {
            Piece::Call { name, .. } => Some(name.as_str()),
            _ => None,
        });
    let mut called: Vec<&str> = called.collect();
    called.sort_unstable();
    called.dedup();
    if tools.is_empty() {
        let spec = |name: &&str| json!({"toolSpec": {"name": safe(name), "inputSchema": {"json": {"type": "object"}}}});
        tools = called.iter().map(spec).collect();
    }
    let choice = match &question.choice {
        Choice::Auto => json!({"auto": {}}),
        Choice::Required => json!({"any": {}}),
        Choice::Named(name) => json!({"tool": {"name": safe(name)}}),
        Choice::None if called.is_empty() => return,
        Choice::None => {
            dropped.push("tool_choice".into());
            json!({"auto": {}})
        }
    };
    if !tools.is_empty() {
        body["toolConfig"] = json!({"tools": tools});
        // `auto` is the default, and not every model takes the field.
        if choice["auto"].is_null() {
            body["toolConfig"]["toolChoice"] = choice;
        }
    }
}

fn write_tool(tool: &Tool, points: Points) -> Vec<Value> {
    let schema = if tool.schema.is_object() {
        tool.schema.clone()
    } else {
        json!({"type": "object", "properties": {}})
    };
    let mut spec = json!({"name": safe(&tool.name), "inputSchema": {"json": schema}});
    let description = tool.description.clone().filter(|text| !text.is_empty());
    set(&mut spec, "description", description);
    set(&mut spec, "strict", tool.strict.filter(|strict| *strict));
    let mark = tool.cache.as_ref().filter(|_| points.in_tools);
    let point = mark.map(|mark| points.point(mark));
    [json!({"toolSpec": spec})].into_iter().chain(point).collect()
}

/// Names and ids may have letters, digits, `_` and `-`.
pub(super) fn safe(name: &str) -> String {
    safe_name(name, NAME_CHARS, "-")
}

fn write_turn(turn: &Turn, points: Points) -> Result<Value, Failure> {
    if turn.role == Role::Assistant {
        return Ok(json!({"role": "assistant", "content": blocks(&turn.pieces, points)?}));
    }
    // Results come before everything else in a turn.
    let (results, others): (Vec<Piece>, Vec<Piece>) = turn
        .pieces
        .iter()
        .cloned()
        .partition(|piece| matches!(piece, Piece::Result { .. }));
    let mut content = blocks(&results, points)?;
    content.extend(blocks(&others, points)?);
    // A document may not be alone.
    let has = |name: &str| content.iter().any(|block| !block[name].is_null());
    if has("document") && !has("text") {
        content.push(json!({"text": "."}));
    }
    Ok(json!({"role": "user", "content": content}))
}

/// Pieces as blocks, with points behind those that are marked to be cached.
fn blocks(pieces: &[Piece], points: Points) -> Result<Vec<Value>, Failure> {
    let mut out: Vec<Value> = Vec::new();
    for piece in pieces {
        out.extend(block(piece)?);
        let Some(mark) = mark(piece).filter(|_| points.in_turns) else {
            continue;
        };
        // A point stands behind something, and behind no thoughts.
        let is_place = |last: &Value| last["cachePoint"].is_null() && last["reasoningContent"].is_null();
        if out.last().is_some_and(is_place) {
            out.push(points.point(mark));
        }
    }
    Ok(out)
}

/// Whether what is before a piece, and it itself, may be kept. Within a result there is no place for points.
fn mark(piece: &Piece) -> Option<&Value> {
    match piece {
        Piece::Text { cache, .. } | Piece::Image { cache, .. } => cache.as_ref(),
        Piece::Result { cache, content, .. } => {
            cache.as_ref().or_else(|| content.iter().rev().find_map(mark))
        }
        _ => None,
    }
}

fn block(piece: &Piece) -> Result<Option<Value>, Failure> {
    Ok(Some(match piece {
        Piece::Text { text, .. } if text.trim().is_empty() => return Ok(None),
        Piece::Text { text, .. } => json!({"text": text}),
        Piece::Image { source, .. } => image(source)?,
        Piece::Document { source, name } => document(source, name.as_deref())?,
        // Thoughts that nobody signed are refused.
        Piece::Thinking { signature: None, .. } => return Ok(None),
        Piece::Thinking { text, signature } => {
            json!({"reasoningContent": {"reasoningText": {"text": text, "signature": signature}}})
        }
        Piece::Redacted(data) => json!({"reasoningContent": {"redactedContent": data}}),
        Piece::Call {
            id, name, arguments, ..
        } => json!({"toolUse": {"toolUseId": safe(id), "name": safe(name), "input": object(arguments)}}),
        Piece::Result {
            id,
            content,
            is_error,
            ..
        } => {
            let mut content = blocks(content, Points::default())?;
            if content.is_empty() {
                content.push(json!({"text": "."}));
            }
            let mut result = json!({"toolUseId": safe(id), "content": content});
            set(&mut result, "status", is_error.then_some("error"));
            json!({"toolResult": result})
        }
    }))
}

fn image(source: &Source) -> Result<Value, Failure> {
    let Source::Data { media_type, data } = source else {
        return Err(refused(
            "messages",
            "this provider takes images as data only; send a data: URL",
        ));
    };
    let format = match media_type.as_str() {
        "image/png" => "png",
        "image/jpeg" | "image/jpg" => "jpeg",
        "image/gif" => "gif",
        "image/webp" => "webp",
        _ => {
            return Err(refused(
                "messages",
                "this provider takes PNG, JPEG, GIF and WebP images only",
            ));
        }
    };
    Ok(json!({"image": {"format": format, "source": {"bytes": data}}}))
}

fn document(source: &Source, name: Option<&str>) -> Result<Value, Failure> {
    let Source::Data { media_type, data } = source else {
        let message = "this provider takes documents as data only; send a data: URL";
        return Err(refused("messages", message));
    };
    let format = match media_type.as_str() {
        "application/pdf" => "pdf",
        "text/csv" => "csv",
        "text/html" => "html",
        "text/plain" => "txt",
        "text/markdown" => "md",
        "application/msword" => "doc",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document" => "docx",
        "application/vnd.ms-excel" => "xls",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet" => "xlsx",
        _ => {
            let message = format!("this provider takes no documents of type `{media_type}`");
            return Err(refused("messages", message));
        }
    };
    // Names may have letters, digits, single spaces, hyphens and brackets.
    let fits = |c: char| c.is_ascii_alphanumeric() || "-()[]".contains(c);
    let name = name.unwrap_or("document");
    let name: String = name
        .chars()
        .map(|c| if fits(c) { c } else { '-' })
        .take(DOCUMENT_CHARS)
        .collect();
    Ok(json!({"document": {"format": format, "name": name, "source": {"bytes": data}}}))
}

fn end_of(reason: &str) -> Event {
    Event::End(match reason {
        "tool_use" => Finish::Calls,
        "max_tokens" | "model_context_window_exceeded" => Finish::Length,
        "guardrail_intervened" | "content_filtered" => Finish::Filter,
        "malformed_model_output" | "malformed_tool_use" => return broken::event(reason),
        _ => Finish::Stop,
    })
}

/// Cached tokens stand outside `inputTokens`.
fn read_usage(value: &Value) -> Usage {
    let n = |name: &str| value[name].as_u64().unwrap_or(0);
    let (read, written) = (n("cacheReadInputTokens"), n("cacheWriteInputTokens"));
    let details = value["cacheDetails"].as_array().into_iter().flatten();
    let hours = details.filter(|detail| detail["ttl"] == "1h");
    let hour: u64 = hours
        .filter_map(|detail| detail["inputTokens"].as_u64())
        .fold(0, u64::saturating_add);
    let hour = hour.min(written);
    Usage {
        input: n("inputTokens").saturating_add(read).saturating_add(written),
        cache_read: read,
        cache_write: written - hour,
        cache_write_1h: hour,
        output: n("outputTokens"),
        ..Usage::default()
    }
}

/// Reads answers and their events.
#[derive(Default)]
pub(super) struct ConverseReader {
    has_begun: bool,
    is_done: bool,
    /// What runs at the provider itself is of no interest to clients.
    is_hidden: bool,
}

impl ConverseReader {
    fn begin(&mut self, events: &mut Vec<Event>) {
        if !self.has_begun {
            self.has_begun = true;
            events.push(Event::Begin {
                id: new_id(""),
                model: String::new(),
            });
        }
    }

    fn call(&mut self, call: &Value, events: &mut Vec<Event>) {
        self.is_hidden = !call["type"].is_null();
        if !self.is_hidden {
            events.push(Event::Call {
                id: text(&call["toolUseId"]).unwrap_or_else(|| new_id("call_")),
                name: text(&call["name"]).unwrap_or_default(),
                signature: None,
            });
        }
    }

    fn thoughts(value: &Value, events: &mut Vec<Event>) {
        let said = |name: &str| text(&value[name]).filter(|text| !text.is_empty());
        events.extend(said("text").map(Event::Thinking));
        events.extend(said("signature").map(Event::Signature));
        events.extend(said("redactedContent").map(Event::Redacted));
    }

    fn block(&mut self, block: &Value, events: &mut Vec<Event>) {
        let said = text(&block["text"]).filter(|text| !text.is_empty());
        events.extend(said.map(Event::Text));
        // Text that cites stands elsewhere.
        for part in block["citationsContent"]["content"]
            .as_array()
            .into_iter()
            .flatten()
        {
            events.extend(text(&part["text"]).map(Event::Text));
        }
        let thoughts = &block["reasoningContent"];
        Self::thoughts(&thoughts["reasoningText"], events);
        Self::thoughts(&json!({"redactedContent": thoughts["redactedContent"]}), events);
        let call = &block["toolUse"];
        if call.is_object() {
            self.call(call, events);
            if !self.is_hidden && !call["input"].is_null() {
                events.push(Event::Arguments(written(&call["input"])));
            }
        }
    }

    fn delta(&self, delta: &Value, events: &mut Vec<Event>) {
        let said = |value: &Value| text(value).filter(|text| !text.is_empty());
        events.extend(said(&delta["text"]).map(Event::Text));
        Self::thoughts(&delta["reasoningContent"], events);
        if !self.is_hidden {
            events.extend(said(&delta["toolUse"]["input"]).map(Event::Arguments));
        }
    }
}

/// What an exception in the middle of a stream says.
fn exception(name: &[u8], data: &[u8]) -> Failure {
    let (class, status) = match name {
        b"throttlingException" => (Class::RateLimited, 429),
        b"serviceUnavailableException" => (Class::Overloaded, 503),
        b"validationException" => (Class::BadRequest, 400),
        _ => (Class::ServerFault, 500),
    };
    let told: Value = serde_json::from_slice(data).unwrap_or_default();
    let message = text(&told["message"]).or(text(&told["originalMessage"]));
    Failure {
        kind: std::str::from_utf8(name).ok().map(ToString::to_string),
        ..Failure::new(class, status, message.unwrap_or_default())
    }
}

impl Reader for ConverseReader {
    fn record(&mut self, record: &Record<'_>, events: &mut Vec<Event>) -> Result<bool, Failure> {
        if record.name == frames::BROKEN {
            return Err(Failure::new(
                Class::Network,
                502,
                "the provider's stream is damaged",
            ));
        }
        if record.name == frames::ERROR || record.name.ends_with(b"Exception") {
            return Err(exception(record.name, &record.data));
        }
        let Ok(value) = serde_json::from_slice::<Value>(&record.data) else {
            return Ok(false);
        };
        match record.name {
            b"messageStart" => self.begin(events),
            b"contentBlockStart" if value["start"]["toolUse"].is_object() => {
                self.begin(events);
                self.call(&value["start"]["toolUse"], events);
            }
            b"contentBlockDelta" => {
                self.begin(events);
                self.delta(&value["delta"], events);
            }
            b"contentBlockStop" => self.is_hidden = false,
            b"messageStop" => {
                self.is_done = true;
                events.push(end_of(value["stopReason"].as_str().unwrap_or_default()));
            }
            b"metadata" => events.push(Event::Usage(read_usage(&value["usage"]))),
            _ => {}
        }
        Ok(true)
    }

    fn whole(&mut self, answer: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        let Some(reason) = answer["stopReason"].as_str() else {
            return Ok(());
        };
        self.begin(events);
        let content = answer["output"]["message"]["content"].as_array();
        content
            .into_iter()
            .flatten()
            .for_each(|block| self.block(block, events));
        events.push(Event::Usage(read_usage(&answer["usage"])));
        events.push(end_of(reason));
        Ok(())
    }

    fn end(&mut self, _events: &mut Vec<Event>) -> bool {
        self.is_done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{Dialect, Endpoint};

    #[test]
    fn no_two_documents_have_one_name() {
        let document = |title: Value| {
            let source = json!({"type": "base64", "media_type": "application/pdf", "data": "QQ=="});
            json!({"type": "document", "title": title, "source": source})
        };
        let untitled = || document(Value::Null);
        let result = json!({"type": "tool_result", "tool_use_id": "i", "content": [untitled()]});
        let body = json!({"max_tokens": 9, "messages": [
            {"role": "user", "content": [untitled(), document(json!("a.b")), document(json!("a_b"))]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "i", "name": "f", "input": {}}]},
            {"role": "user", "content": [result, document(json!("document-2")), untitled()]},
        ]});
        let question = Question::read(Endpoint::Messages, &body).unwrap();
        let told = question.write(Dialect::Bedrock, "m").unwrap().0;
        let name = |pointer: &str| told.pointer(pointer).and_then(Value::as_str);
        let names = [
            "/messages/0/content/0/document/name",
            "/messages/0/content/1/document/name",
            "/messages/0/content/2/document/name",
            "/messages/2/content/0/toolResult/content/0/document/name",
            "/messages/2/content/1/document/name",
            "/messages/2/content/2/document/name",
        ];
        let names = names.map(|pointer| name(pointer).unwrap());
        assert_eq!(
            names,
            [
                "document",
                "a-b",
                "a-b-2",
                "document-2",
                "document-2-2",
                "document-3"
            ]
        );
    }

    #[test]
    fn prompts_are_marked_to_be_kept_only_where_the_model_keeps_them() {
        let hour = json!({"type": "ephemeral", "ttl": "1h"});
        let marked = |text: &str| json!({"type": "text", "text": text, "cache_control": hour});
        let tool = json!({"name": "f", "input_schema": {"type": "object"}, "cache_control": hour});
        let thought = json!({"type": "thinking", "thinking": "t", "signature": "s"});
        let call = json!({"type": "tool_use", "id": "i", "name": "f", "input": {}});
        let result = json!({"type": "tool_result", "tool_use_id": "i", "content": [marked("1"), {"type": "text", "text": "2"}]});
        let body = json!({"max_tokens": 9, "system": [marked("s")], "tools": [tool], "messages": [
            {"role": "user", "content": [marked("x")]},
            {"role": "assistant", "content": [thought, marked(" "), call]},
            {"role": "user", "content": [marked(" "), result, marked("y"), marked(" ")]},
        ]});
        let question = Question::read(Endpoint::Messages, &body).unwrap();
        let kinds = |content: &Value| {
            let blocks = content.as_array().unwrap().iter();
            let kinds = blocks.map(|block| block.as_object().unwrap().keys().next().unwrap().clone());
            kinds.collect::<Vec<String>>().join(" ")
        };
        let asked = |model: &str| {
            let told = question.write(Dialect::Bedrock, model).unwrap().0;
            let turns = [0, 1, 2].map(|i: usize| kinds(&told["messages"][i]["content"]));
            let result = &told["messages"][2]["content"][0]["toolResult"];
            assert_eq!(kinds(&result["content"]), "text text", "{told}");
            let all = [kinds(&told["toolConfig"]["tools"]), kinds(&told["system"])].into_iter();
            let lives = &told["system"][1]["cachePoint"]["ttl"];
            (all.chain(turns).collect::<Vec<String>>().join("|"), lives.clone())
        };
        let everywhere = "toolSpec cachePoint|text cachePoint|text cachePoint|reasoningContent toolUse|toolResult cachePoint text cachePoint";
        let in_turns = everywhere.replacen(" cachePoint", "", 1);
        let nowhere = everywhere.replace(" cachePoint", "");
        for (model, expected, lives) in [
            (
                "anthropic.claude-3-5-sonnet-20240620-v1:0",
                nowhere.as_str(),
                Value::Null,
            ),
            (
                "us.anthropic.claude-3-5-haiku-20241022-v1:0",
                everywhere,
                Value::Null,
            ),
            ("anthropic.claude-opus-4-1-20250805-v1:0", everywhere, Value::Null),
            (
                "anthropic.claude-sonnet-4-5-20250929-v1:0",
                everywhere,
                json!("1h"),
            ),
            ("anthropic.claude-mythos-preview", everywhere, json!("1h")),
            (
                "anthropic.claude-3-haiku-20240307-v1:0",
                nowhere.as_str(),
                Value::Null,
            ),
            ("eu.amazon.nova-pro-v1:0", in_turns.as_str(), Value::Null),
            ("meta.llama3-3-70b-instruct-v1:0", nowhere.as_str(), Value::Null),
        ] {
            assert_eq!(asked(model), (expected.to_string(), lives), "{model}");
        }
    }
}
