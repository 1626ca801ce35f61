//! OpenAI's chat completions.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{
    Addressee, Answer, Choice, Event, Finish, Format, Piece, Question, Reader, Role, Source, Thinking, Tool,
    Turn, Writer, gpt, joined, media, new_id, numbers, parsed, refused, safe_name, set, text, unknown, words,
    written,
};
use crate::clock::now_s;
use crate::failure::Failure;
use crate::records::Record;
use crate::sticky;
use crate::usage::{OpenAiUsage, Usage};

const KNOWN: [&str; 24] = [
    "model",
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "reasoning_effort",
    "user",
    "safety_identifier",
    "stream",
    "stream_options",
    "n",
    "store",
    "metadata",
    "prompt_cache_key",
];
/// Most characters of a function's name, and of a user's.
const NAME_CHARS: usize = 64;
/// Known, but of no use elsewhere: they are named as dropped.
const OWN: [&str; 3] = ["store", "metadata", "prompt_cache_key"];

pub(super) fn question(body: &Value) -> Result<Question, Failure> {
    if numbers::count(&body["n"], "n")?.is_some_and(|n| n > 1) {
        return Err(refused(
            "n",
            "this provider gives one answer at a time; leave `n` out",
        ));
    }
    let messages = body["messages"]
        .as_array()
        .ok_or_else(|| refused("messages", "`messages` must be an array"))?;
    for old in ["functions", "function_call"] {
        if !body[old].is_null() {
            return Err(refused(
                old,
                "this provider has no such field; send `tools` and `tool_choice`",
            ));
        }
    }
    let bound = |name: &str| numbers::count(&body[name], name);
    let tools = body["tools"].as_array().into_iter().flatten().map(tool);
    let mut question = Question {
        tools: allowed(
            tools.collect::<Result<_, _>>()?,
            &body["tool_choice"]["allowed_tools"]["tools"],
        ),
        choice: choice(&body["tool_choice"]),
        parallel: body["parallel_tool_calls"].as_bool(),
        format: Format::of_kind(
            &body["response_format"]["type"],
            &body["response_format"]["json_schema"],
        ),
        max_tokens: bound("max_completion_tokens")?.or(bound("max_tokens")?),
        thinking: Thinking::of_effort(&body["reasoning_effort"]),
        user: text(&body["user"]).or(text(&body["safety_identifier"])),
        stream: body["stream"].as_bool().unwrap_or(false),
        wants_usage: body["stream_options"]["include_usage"] == true,
        unknown: unknown(body, &KNOWN),
        ..Question::sampled(body, "")?
    };
    let own = OWN.iter().filter(|name| !body[**name].is_null());
    question.unknown.extend(own.map(ToString::to_string));
    for (i, message) in messages.iter().enumerate() {
        read_message(message, &format!("messages[{i}]"), &mut question)?;
    }
    Ok(question)
}

fn read_message(message: &Value, path: &str, question: &mut Question) -> Result<(), Failure> {
    let content = pieces(&message["content"], path)?;
    match message["role"].as_str() {
        Some("system" | "developer") => question.system.extend(content),
        Some("user") => question.push(Role::User, content),
        Some("tool" | "function") => {
            let result = Piece::Result {
                id: text(&message["tool_call_id"]).unwrap_or_default(),
                name: text(&message["name"]),
                content,
                is_error: false,
                cache: None,
            };
            question.push(Role::User, vec![result]);
        }
        Some("assistant") => {
            if message["function_call"].is_object() {
                let message = "this provider has no such field; send `tool_calls`";
                return Err(refused(&format!("{path}.function_call"), message));
            }
            let mut all = thoughts(message);
            all.extend(content);
            for call in message["tool_calls"].as_array().into_iter().flatten() {
                all.push(Piece::Call {
                    id: text(&call["id"]).unwrap_or_default(),
                    name: text(&call["function"]["name"]).unwrap_or_default(),
                    arguments: parsed(call["function"]["arguments"].as_str().unwrap_or_default()),
                    signature: text(&call["extra_content"]["google"]["thought_signature"]),
                });
            }
            question.push(Role::Assistant, all);
        }
        _ => {
            return Err(refused(
                &format!("{path}.role"),
                "the role must be system, developer, user, assistant or tool",
            ));
        }
    }
    Ok(())
}

/// Thoughts that came with an earlier answer.
fn thoughts(message: &Value) -> Vec<Piece> {
    let blocks = message["thinking_blocks"].as_array().into_iter().flatten();
    let piece = |block: &Value| match block["type"].as_str() {
        Some("redacted_thinking") => text(&block["data"]).map(Piece::Redacted),
        _ => Some(Piece::Thinking {
            text: text(&block["thinking"])?,
            signature: words(&block["signature"]),
        }),
    };
    blocks.filter_map(piece).collect()
}

fn pieces(content: &Value, path: &str) -> Result<Vec<Piece>, Failure> {
    let parts = match content {
        Value::Null => return Ok(Vec::new()),
        Value::String(text) if text.is_empty() => return Ok(Vec::new()),
        Value::String(text) => return Ok(vec![Piece::text(text)]),
        Value::Array(parts) => parts,
        _ => {
            return Err(refused(
                &format!("{path}.content"),
                "the content must be a text or an array of parts",
            ));
        }
    };
    let part = |(i, part): (usize, &Value)| {
        let cache = Some(part["cache_control"].clone()).filter(|cache| !cache.is_null());
        Ok(match part["type"].as_str() {
            Some("text") => Piece::Text {
                text: text(&part["text"]).unwrap_or_default(),
                cache,
            },
            Some("refusal") => Piece::text(part["refusal"].as_str().unwrap_or_default()),
            Some("image_url") => {
                let url = part["image_url"]["url"].as_str().or(part["image_url"].as_str());
                Piece::Image {
                    source: Source::of_url(url.unwrap_or_default()),
                    cache,
                }
            }
            Some("file") if part["file"]["file_data"].is_string() => Piece::Document {
                source: Source::of_url(part["file"]["file_data"].as_str().unwrap_or_default()),
                name: text(&part["file"]["filename"]),
            },
            _ => {
                let message =
                    "only texts, images and files with their data can be passed on to this provider";
                return Err(refused(&format!("{path}.content[{i}].type"), message));
            }
        })
    };
    parts.iter().enumerate().map(part).collect()
}

fn tool(tool: &Value) -> Result<Tool, Failure> {
    let function = &tool["function"];
    Ok(Tool {
        cache: Some(tool["cache_control"].clone()).filter(|cache| !cache.is_null()),
        ..Tool::of_function(text(&function["name"]), function)?
    })
}

/// Where only some tools may be called, the others are as good as absent.
pub(super) fn allowed(tools: Vec<Tool>, names: &Value) -> Vec<Tool> {
    let Some(names) = names.as_array() else {
        return tools;
    };
    let both = names
        .iter()
        .flat_map(|name| [&name["function"]["name"], &name["name"]]);
    let allowed: HashSet<&str> = both.filter_map(Value::as_str).collect();
    tools
        .into_iter()
        .filter(|tool| allowed.contains(tool.name.as_str()))
        .collect()
}

fn choice(choice: &Value) -> Choice {
    let mode = &choice["allowed_tools"]["mode"];
    match choice.as_str().or(mode.as_str()) {
        Some("none") => Choice::None,
        Some("required" | "any") => Choice::Required,
        Some(_) => Choice::Auto,
        None => text(&choice["function"]["name"]).map_or(Choice::Auto, Choice::Named),
    }
}

pub(super) fn request(question: &Question, to: &Addressee<'_>, dropped: &mut Vec<String>) -> Value {
    let mut messages = Vec::new();
    if !question.system.is_empty() {
        messages.push(json!({"role": "system", "content": joined(&question.system)}));
    }
    question
        .turns
        .iter()
        .for_each(|turn| write_turn(turn, to.reasoning, &mut messages));
    let mut body = json!({"model": to.model, "messages": messages, "stream": question.stream});
    if question.stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    let tools: Vec<Value> = question.tools.iter().map(write_tool).collect();
    if !tools.is_empty() {
        body["tools"] = Value::from(tools);
        body["tool_choice"] = match &question.choice {
            Choice::Auto => json!("auto"),
            Choice::None => json!("none"),
            Choice::Required => json!("required"),
            Choice::Named(name) => json!({"type": "function", "function": {"name": safe(name)}}),
        };
        set(&mut body, "parallel_tool_calls", question.parallel);
    }
    match &question.format {
        Format::Text => {}
        Format::Json => body["response_format"] = json!({"type": "json_object"}),
        Format::Schema { name, schema, strict } => {
            // Strict schemas are a subset: one that was made for another API may not be in it.
            let strict = strict.unwrap_or(true) && fits_strict(schema);
            let schema = json!({"name": name, "schema": schema, "strict": strict});
            body["response_format"] = json!({"type": "json_schema", "json_schema": schema});
        }
    }
    set(&mut body, "temperature", question.temperature);
    set(&mut body, "top_p", question.top_p);
    set(&mut body, "seed", question.seed);
    set(&mut body, "presence_penalty", question.presence);
    set(&mut body, "frequency_penalty", question.frequency);
    set(&mut body, "max_completion_tokens", question.max_tokens);
    set(&mut body, "user", question.user.as_deref().map(user));
    if !question.stop.is_empty() {
        body["stop"] = json!(question.stop);
    }
    set(&mut body, "reasoning_effort", effort(question, to.model, dropped));
    question.drop_set(&["top_k"], dropped);
    body
}

/// How much a model is to think, in a word that it knows.
fn effort<'a>(question: &'a Question, model: &str, dropped: &mut Vec<String>) -> Option<&'a str> {
    let wish = match &question.thinking {
        Some(Thinking::Off) => Some("none"),
        Some(Thinking::Effort(effort)) => Some(effort.as_str()),
        Some(Thinking::Budget(budget)) => Some(effort_of(*budget)),
        Some(Thinking::Adaptive) | None => None,
    };
    if !question.tools.is_empty() && gpt::calls_unthinking(model) {
        if question.thinking.is_some() && wish != Some("none") {
            dropped.push("reasoning_effort".into());
        }
        return Some("none");
    }
    let told = gpt::effort(model, wish?);
    // Who never thinks is told nothing of it, and more than nothing is no answer to who wants none.
    let is_lost = match told {
        None => wish != Some("none"),
        Some(told) => wish == Some("none") && told != "none",
    };
    if is_lost {
        dropped.push("reasoning_effort".into());
    }
    told
}

/// Names of functions may have letters, digits, `_` and `-`.
pub(super) fn safe(name: &str) -> String {
    safe_name(name, NAME_CHARS, "-")
}

/// A user as OpenAI takes one: whose name is too long goes by its hash, which is the same in every request.
fn user(name: &str) -> String {
    if name.chars().count() > NAME_CHARS {
        return format!("user-{:016x}", sticky::hash(name.as_bytes()));
    }
    name.to_string()
}

/// Whether every object of a schema lists all its properties as required and allows no others.
fn fits_strict(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => {
            let is_object = schema["type"] == "object" || fields.contains_key("properties");
            let mut properties = schema["properties"].as_object().into_iter().flatten();
            let required = schema["required"].as_array().into_iter().flatten();
            let required: HashSet<&str> = required.filter_map(Value::as_str).collect();
            let is_closed = schema["additionalProperties"] == false
                && properties.all(|(name, _)| required.contains(name.as_str()));
            (!is_object || is_closed) && fields.values().all(fits_strict)
        }
        Value::Array(items) => items.iter().all(fits_strict),
        _ => true,
    }
}

/// The effort that a budget of tokens comes to.
pub(super) fn effort_of(budget: u64) -> &'static str {
    match budget {
        0..=2048 => "low",
        2049..=8192 => "medium",
        _ => "high",
    }
}

fn write_tool(tool: &Tool) -> Value {
    let mut function = json!({"name": safe(&tool.name)});
    set(&mut function, "description", tool.description.clone());
    set(
        &mut function,
        "parameters",
        Some(tool.schema.clone()).filter(|schema| !schema.is_null()),
    );
    set(&mut function, "strict", tool.strict);
    json!({"type": "function", "function": function})
}

/// `reasoning`: the field of thoughts beside calls, where they must come back.
fn write_turn(turn: &Turn, reasoning: Option<&str>, messages: &mut Vec<Value>) {
    if turn.role == Role::Assistant {
        let mut message = assistant_message(&turn.pieces, safe);
        // Who thought nothing says so: without the field the whole conversation is refused.
        if let Some(name) = reasoning.filter(|_| message["tool_calls"].is_array()) {
            message[name] = Value::from(super::thoughts(&turn.pieces));
        }
        // Of a turn of thoughts alone nothing is left.
        if !message["content"].is_null() || message["tool_calls"].is_array() {
            messages.push(message);
        }
        return;
    }
    let mut parts = Vec::new();
    for piece in &turn.pieces {
        match piece {
            Piece::Result { id, content, .. } => {
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": joined(content)}));
                // Chat completions take no images in results: they come after, as the user's.
                parts.extend(media(content).filter_map(part));
            }
            other => parts.extend(part(other)),
        }
    }
    if let [only] = parts.as_slice()
        && only["type"] == "text"
    {
        messages.push(json!({"role": "user", "content": only["text"]}));
    } else if !parts.is_empty() {
        messages.push(json!({"role": "user", "content": parts}));
    }
}

fn part(piece: &Piece) -> Option<Value> {
    Some(match piece {
        Piece::Text { text, .. } => json!({"type": "text", "text": text}),
        Piece::Image { source, .. } => json!({"type": "image_url", "image_url": {"url": source.url()}}),
        Piece::Document { source, name } => {
            json!({"type": "file", "file": {"file_data": source.url(), "filename": name.as_deref().unwrap_or("document.pdf")}})
        }
        _ => return None,
    })
}

/// A message of the assistant, as it is asked with and answered with. `named`: what its functions are called there.
fn assistant_message(pieces: &[Piece], named: impl Fn(&str) -> String) -> Value {
    let texts: String = pieces.iter().filter_map(super::text_of).collect();
    let content = if texts.is_empty() {
        Value::Null
    } else {
        Value::from(texts)
    };
    let mut message = json!({"role": "assistant", "content": content});
    let calls: Vec<Value> = pieces.iter().filter_map(|piece| call(piece, &named)).collect();
    if !calls.is_empty() {
        message["tool_calls"] = Value::from(calls);
    }
    message
}

fn call(piece: &Piece, named: impl Fn(&str) -> String) -> Option<Value> {
    let Piece::Call {
        id,
        name,
        arguments,
        signature,
    } = piece
    else {
        return None;
    };
    let function = json!({"name": named(name), "arguments": written(arguments)});
    let mut call = json!({"id": id, "type": "function", "function": function});
    if let Some(signature) = signature {
        call["extra_content"] = json!({"google": {"thought_signature": signature}});
    }
    Some(call)
}

pub(super) fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Calls => "tool_calls",
        Finish::Filter => "content_filter",
    }
}

pub(crate) fn finish_of(name: &str) -> Finish {
    match name {
        "length" => Finish::Length,
        "tool_calls" | "function_call" => Finish::Calls,
        "content_filter" => Finish::Filter,
        _ => Finish::Stop,
    }
}

pub(super) fn usage_value(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input.saturating_add(usage.output),
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write.saturating_add(usage.cache_write_1h),
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    })
}

pub(super) fn answer(answer: &Answer) -> Value {
    let mut message = assistant_message(&answer.pieces, str::to_string);
    message["refusal"] = Value::Null;
    let thoughts = answer.thoughts();
    if !thoughts.is_empty() {
        message["reasoning_content"] = Value::from(thoughts);
    }
    let blocks: Vec<Value> = answer.pieces.iter().filter_map(thinking_block).collect();
    if !blocks.is_empty() {
        message["thinking_blocks"] = Value::from(blocks);
    }
    let finish = finish_name(answer.finish.unwrap_or(Finish::Stop));
    json!({
        "id": format!("chatcmpl-{}", answer.id),
        "object": "chat.completion",
        "created": now_s(),
        "model": answer.model,
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish}],
        "usage": usage_value(&answer.usage),
    })
}

/// Thoughts that must come back as they are.
fn thinking_block(piece: &Piece) -> Option<Value> {
    match piece {
        Piece::Thinking {
            text,
            signature: Some(signature),
        } => Some(json!({"type": "thinking", "thinking": text, "signature": signature})),
        Piece::Redacted(data) => Some(json!({"type": "redacted_thinking", "data": data})),
        _ => None,
    }
}

/// Writes chunks.
pub(super) struct ChunkWriter {
    wants_usage: bool,
    id: String,
    model: String,
    created: u64,
    n_calls: u64,
    /// The latest call has had no arguments yet.
    is_bare: bool,
    usage: Usage,
    /// Thoughts so far, for the block that carries their signature.
    thoughts: String,
}

impl ChunkWriter {
    pub(super) fn new(wants_usage: bool) -> Self {
        Self {
            wants_usage,
            id: String::new(),
            model: String::new(),
            created: now_s(),
            n_calls: 0,
            is_bare: false,
            usage: Usage::default(),
            thoughts: String::new(),
        }
    }

    fn chunk(&self, choices: &Value, out: &mut Vec<u8>, usage: Option<Value>) {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if self.wants_usage {
            chunk["usage"] = usage.unwrap_or_default();
        }
        out.extend_from_slice(format!("data: {chunk}\n\n").as_bytes());
    }

    fn delta(&self, delta: &Value, finish: Option<Finish>, out: &mut Vec<u8>) {
        let finish = finish.map(finish_name);
        self.chunk(
            &json!([{"index": 0, "delta": delta, "finish_reason": finish}]),
            out,
            None,
        );
    }

    fn arguments(&mut self, text: &str, out: &mut Vec<u8>) {
        self.is_bare = false;
        let index = self.n_calls.saturating_sub(1);
        let call = json!({"index": index, "function": {"arguments": text}});
        self.delta(&json!({"tool_calls": [call]}), None, out);
    }

    /// Clients read the arguments as JSON, which nothing at all is not.
    fn end_call(&mut self, out: &mut Vec<u8>) {
        if self.is_bare {
            self.arguments("{}", out);
        }
    }
}

impl Writer for ChunkWriter {
    fn event(&mut self, event: &Event, out: &mut Vec<u8>) {
        // Some say words or counts between a call and its arguments: these do not end it.
        if matches!(event, Event::Call { .. } | Event::End(_)) {
            self.end_call(out);
        }
        match event {
            Event::Begin { id, model } => {
                self.id = format!("chatcmpl-{id}");
                self.model.clone_from(model);
                self.delta(&json!({"role": "assistant", "content": ""}), None, out);
            }
            Event::Text(text) => self.delta(&json!({"content": text}), None, out),
            Event::Thinking(text) => {
                self.thoughts.push_str(text);
                self.delta(&json!({"reasoning_content": text}), None, out);
            }
            Event::Signature(signature) => {
                let thoughts = std::mem::take(&mut self.thoughts);
                let block = json!({"type": "thinking", "thinking": thoughts, "signature": signature});
                self.delta(&json!({"thinking_blocks": [block]}), None, out);
            }
            Event::Redacted(data) => {
                let block = json!({"type": "redacted_thinking", "data": data});
                self.delta(&json!({"thinking_blocks": [block]}), None, out);
            }
            Event::Call { id, name, signature } => {
                let function = json!({"name": name, "arguments": ""});
                let mut call =
                    json!({"index": self.n_calls, "id": id, "type": "function", "function": function});
                if let Some(signature) = signature {
                    call["extra_content"] = json!({"google": {"thought_signature": signature}});
                }
                self.n_calls += 1;
                self.is_bare = true;
                self.delta(&json!({"tool_calls": [call]}), None, out);
            }
            Event::Arguments(text) if text.is_empty() => {}
            Event::Arguments(text) => self.arguments(text, out),
            Event::Usage(usage) => self.usage = *usage,
            Event::End(finish) => self.delta(&json!({}), Some(*finish), out),
            Event::Broken(_) => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.end_call(out);
        if self.wants_usage {
            self.chunk(&json!([]), out, Some(usage_value(&self.usage)));
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }
}

/// Reads chunks and completions.
pub(super) struct ChatReader {
    is_apart: bool,
    has_begun: bool,
    /// Calls so far, of which the first `n_told` have begun for whoever reads the events.
    calls: Vec<Said>,
    n_told: usize,
    is_done: bool,
}

/// A call, as far as it was said. Some providers say several at once, a piece of each in turns; events have one after
/// the other, so that those after the first wait for its arguments to be whole.
struct Said {
    index: u64,
    /// As the provider says it.
    id: Option<String>,
    begins: Event,
    arguments: String,
}

impl Said {
    fn is_whole(&self) -> bool {
        serde_json::from_str::<serde::de::IgnoredAny>(&self.arguments).is_ok()
    }
}

impl ChatReader {
    pub(super) fn new(is_apart: bool) -> Self {
        Self {
            is_apart,
            has_begun: false,
            calls: Vec::new(),
            n_told: 0,
            is_done: false,
        }
    }

    fn read(&mut self, value: &Value, said: &str, events: &mut Vec<Event>) {
        if !self.has_begun {
            self.has_begun = true;
            let id = text(&value["id"]).unwrap_or_else(|| new_id(""));
            events.push(Event::Begin {
                id: id.trim_start_matches("chatcmpl-").to_string(),
                model: text(&value["model"]).unwrap_or_default(),
            });
        }
        let choice = &value["choices"][0];
        let message = &choice[said];
        let thoughts = words(&message["reasoning_content"]).or(words(&message["reasoning"]));
        events.extend(thoughts.map(Event::Thinking));
        events.extend(words(&message["content"]).map(Event::Text));
        // Mistral's models that think say it in parts.
        for part in message["content"].as_array().into_iter().flatten() {
            events.extend(words(&part["text"]).map(Event::Text));
            for part in part["thinking"].as_array().into_iter().flatten() {
                events.extend(words(&part["text"]).map(Event::Thinking));
            }
        }
        events.extend(words(&message["refusal"]).map(Event::Text));
        for (i, call) in message["tool_calls"].as_array().into_iter().flatten().enumerate() {
            self.read_call(call, i as u64, events);
        }
        let is_last = choice["finish_reason"].is_string() || said == "message";
        self.tell_calls(is_last, events);
        // Groq says it beside what is usual, and Moonshot within a choice.
        let within = value["choices"].as_array().into_iter().flatten();
        let usage = [&value["usage"], &value["x_groq"]["usage"]]
            .into_iter()
            .chain(within.map(|choice| &choice["usage"]))
            .find(|usage| usage.is_object());
        if let Some(usage) = usage
            && let Ok(usage) = serde_json::from_value::<OpenAiUsage>(usage.clone())
        {
            events.push(Event::Usage(usage.usage(self.is_apart)));
        }
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.is_done = true;
            let finish = finish_of(finish);
            // Some say `stop` although they call.
            let finish = if finish == Finish::Stop && !self.calls.is_empty() {
                Finish::Calls
            } else {
                finish
            };
            events.push(Event::End(finish));
        }
    }

    fn read_call(&mut self, call: &Value, i: u64, events: &mut Vec<Event>) {
        let index = call["index"].as_u64().unwrap_or(i);
        let function = &call["function"];
        let id = words(&call["id"]);
        // Some number every call 0, and only the id tells that another begins.
        let is_it = |said: &Said| {
            let is_other = said.id.is_some() && id.is_some() && said.id != id;
            said.index == index && !is_other
        };
        let at = self.calls.iter().rposition(is_it).unwrap_or(self.calls.len());
        if at == self.calls.len() {
            let begins = Event::Call {
                id: id.clone().unwrap_or_else(|| new_id("call_")),
                name: text(&function["name"]).unwrap_or_default(),
                signature: text(&call["extra_content"]["google"]["thought_signature"]),
            };
            let arguments = String::new();
            self.calls.push(Said {
                index,
                id,
                begins,
                arguments,
            });
            self.tell_calls(false, events);
        }
        if let Some(more) = words(&function["arguments"]) {
            self.calls[at].arguments.push_str(&more);
            if at + 1 == self.n_told {
                events.push(Event::Arguments(more));
            }
        }
    }

    /// Begins calls whose turn it is; all of them at the end.
    fn tell_calls(&mut self, is_end: bool, events: &mut Vec<Event>) {
        while let Some(next) = self.calls.get(self.n_told) {
            let before = self
                .n_told
                .checked_sub(1)
                .and_then(|before| self.calls.get(before));
            if !is_end && before.is_some_and(|before| !before.is_whole()) {
                return;
            }
            events.push(next.begins.clone());
            if !next.arguments.is_empty() {
                events.push(Event::Arguments(next.arguments.clone()));
            }
            self.n_told += 1;
        }
    }
}

/// MiniMax's way to say, within an answer, that it is none.
fn refuse_disguised(value: &Value) -> Result<(), Failure> {
    let base = &value["base_resp"];
    match base["status_code"].as_i64() {
        None | Some(0) => Ok(()),
        Some(code) => Err(Failure::of_base(
            code,
            base["status_msg"].as_str().unwrap_or_default(),
        )),
    }
}

impl Reader for ChatReader {
    fn record(&mut self, record: &Record<'_>, events: &mut Vec<Event>) -> Result<bool, Failure> {
        let data = record.data.trim_ascii();
        if data.is_empty() {
            return Ok(true);
        }
        if data.starts_with(b"[DONE]") {
            self.is_done = true;
            return Ok(true);
        }
        let Ok(value) = serde_json::from_slice::<Value>(data) else {
            return Ok(false);
        };
        if !value["error"].is_null() {
            return Err(Failure::of_value(&value, None));
        }
        refuse_disguised(&value)?;
        self.read(&value, "delta", events);
        Ok(true)
    }

    fn whole(&mut self, answer: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        if !answer["error"].is_null() {
            return Err(Failure::of_value(answer, None));
        }
        refuse_disguised(answer)?;
        self.read(answer, "message", events);
        Ok(())
    }

    fn end(&mut self, events: &mut Vec<Event>) -> bool {
        if self.is_done {
            self.tell_calls(true, events);
        }
        self.is_done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunks: &[Value]) -> Vec<Event> {
        let (mut reader, mut events) = (ChatReader::new(false), Vec::new());
        chunks
            .iter()
            .for_each(|chunk| reader.read(chunk, "delta", &mut events));
        events.remove(0);
        events
    }

    #[test]
    fn nobody_is_told_a_least_effort_that_he_refuses() {
        let told = |model: &str| {
            let question = Question {
                thinking: Some(Thinking::Off),
                ..Question::default()
            };
            let (told, dropped) = question.write(crate::endpoint::Dialect::OpenAi, model).unwrap();
            (text(&told["reasoning_effort"]), dropped.len())
        };
        let least = |effort: &str, n_dropped| (Some(effort.to_string()), n_dropped);
        assert_eq!(told("gpt-4o-mini"), (None, 0), "it never thinks");
        assert_eq!(told("o4-mini"), least("low", 1));
        assert_eq!(told("openai/gpt-5-mini"), least("minimal", 1));
        assert_eq!(told("gpt-5.1"), least("none", 0));
        assert_eq!(told("qwen/qwen3-32b"), least("none", 0));
    }

    #[test]
    fn models_that_think_are_told_so_in_their_own_words() {
        use crate::endpoint::{Dialect, Endpoint};
        let tools = json!([{"name": "f", "input_schema": {"type": "object"}}]);
        let asked = |model: &str, more: &[(&str, Value)]| {
            let mut body = json!({"max_tokens": 9, "messages": [{"role": "user", "content": "x"}]});
            for (name, value) in more {
                body[*name] = value.clone();
            }
            let question = Question::read(Endpoint::Messages, &body).unwrap();
            let (told, dropped) = question.write(Dialect::OpenAi, model).unwrap();
            assert_eq!(told["max_completion_tokens"], 9, "{told}");
            (
                text(&told["reasoning_effort"]).unwrap_or_default(),
                dropped.concat(),
            )
        };
        let thinking = |budget: u64| ("thinking", json!({"type": "enabled", "budget_tokens": budget}));
        let effort = |effort: &str| ("output_config", json!({"effort": effort}));
        let told = |effort: &str, dropped: &str| (effort.to_string(), dropped.to_string());
        assert_eq!(asked("gpt-5.1", &[effort("max")]), told("high", ""));
        assert_eq!(asked("gpt-4o", &[effort("high")]), told("", "reasoning_effort"));
        let with_tools = ("tools", tools);
        let all = [thinking(4096), with_tools.clone()];
        assert_eq!(asked("gpt-5.6-sol", &all), told("none", "reasoning_effort"));
        assert_eq!(asked("gpt-5.6-sol", &[with_tools]), told("none", ""));
        assert_eq!(asked("gpt-5.2", &all), told("medium", ""));
        assert_eq!(asked("openai/gpt-5.6-sol", &all), told("medium", ""));
        // An effort says nothing of thoughts that are off, and does not go beyond their budget.
        let off = ("thinking", json!({"type": "disabled"}));
        assert_eq!(asked("gpt-5.2", &[off, effort("high")]), told("none", ""));
        assert_eq!(
            asked("gpt-5.2", &[thinking(1024), effort("high")]),
            told("low", "")
        );
        assert_eq!(
            asked("gpt-5.2", &[thinking(31_999), effort("low")]),
            told("low", "")
        );
        let adaptive = ("thinking", json!({"type": "adaptive"}));
        assert_eq!(asked("gpt-5.2", &[adaptive, effort("high")]), told("high", ""));
    }

    #[test]
    fn usage_is_read_wherever_it_stands() {
        let tokens =
            json!({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "cached_tokens": 8});
        let last = |more: Value| {
            let mut chunk =
                json!({"id": "1", "choices": [{"delta": {}, "finish_reason": "stop"}], "usage": null});
            for (name, value) in more.as_object().unwrap() {
                chunk[name] = value.clone();
            }
            chunk
        };
        let expected = Event::Usage(Usage {
            input: 9,
            cache_read: 8,
            output: 2,
            ..Usage::default()
        });
        for chunk in [
            last(json!({"usage": tokens})),
            last(json!({"x_groq": {"id": "r", "usage": tokens}})),
            last(json!({"choices": [{"delta": {}, "finish_reason": "stop", "usage": tokens}]})),
        ] {
            assert_eq!(read(std::slice::from_ref(&chunk))[0], expected, "{chunk}");
        }
        let none = json!({"choices": null, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}});
        let failure = ChatReader::new(false).whole(&none, &mut Vec::new()).unwrap_err();
        assert_eq!(
            (failure.class, failure.message.as_str()),
            (crate::failure::Class::OutOfQuota, "insufficient balance")
        );
        let fine = json!({"choices": [], "base_resp": {"status_code": 0, "status_msg": ""}});
        assert!(ChatReader::new(false).whole(&fine, &mut Vec::new()).is_ok());
    }

    #[test]
    fn words_in_parts_and_calls_without_numbers_are_read() {
        let parts = json!([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Hi"}]);
        let delta = |delta: Value| json!({"id": "1", "choices": [{"delta": delta}]});
        assert_eq!(
            read(&[
                delta(json!({"content": parts})),
                delta(json!({"content": "", "refusal": "No"}))
            ]),
            [
                Event::Thinking("hm".into()),
                Event::Text("Hi".into()),
                Event::Text("No".into())
            ]
        );
        let call = |id: &str| {
            let function = json!({"name": "f", "arguments": "{}"});
            delta(json!({"tool_calls": [{"index": 0, "id": id, "function": function}]}))
        };
        let calls = read(&[call("a"), call("b")]);
        let calls = calls.iter().filter(|event| matches!(event, Event::Call { .. }));
        assert_eq!(calls.count(), 2, "two ids are two calls, whatever their index");
    }

    #[test]
    fn calls_that_are_said_in_turns_do_not_mix() {
        let delta = |calls: Value| json!({"id": "1", "choices": [{"delta": {"tool_calls": calls}}]});
        let begins = |i: u64, name: &str| {
            let function = json!({"name": name, "arguments": ""});
            json!({"index": i, "id": format!("c{i}"), "function": function})
        };
        let more = |i: u64, text: &str| json!({"index": i, "function": {"arguments": text}});
        let end = json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]});
        let told = |chunks: &[Value]| {
            let mut calls: Vec<(String, String, String)> = Vec::new();
            for event in read(chunks) {
                match event {
                    Event::Call { id, name, .. } => calls.push((id, name, String::new())),
                    Event::Arguments(more) => calls.last_mut().unwrap().2.push_str(&more),
                    _ => {}
                }
            }
            calls
        };
        let expected = [
            ("c0".to_string(), "f".to_string(), r#"{"a":1}"#.to_string()),
            ("c1".to_string(), "g".to_string(), r#"{"b":2}"#.to_string()),
        ];
        let in_turns = [
            delta(json!([begins(0, "f"), begins(1, "g")])),
            delta(json!([more(0, "{\"a\""), more(1, "{\"b\"")])),
            delta(json!([more(1, ":2}")])),
            delta(json!([more(0, ":1}")])),
            end.clone(),
        ];
        assert_eq!(told(&in_turns), expected);
        let in_order = [
            delta(json!([begins(0, "f")])),
            delta(json!([more(0, r#"{"a":1}"#)])),
            delta(json!([begins(1, "g")])),
            delta(json!([more(1, r#"{"b":2}"#)])),
        ];
        assert_eq!(told(&in_order), expected, "nobody waits for the end");
        let without = [
            delta(json!([begins(0, "f")])),
            delta(json!([begins(1, "g")])),
            end,
        ];
        assert_eq!(told(&without).len(), 2);
    }

    #[test]
    fn streamed_calls_without_arguments_have_an_empty_object() {
        let call = |id: &str| Event::Call {
            id: id.into(),
            name: "f".into(),
            signature: None,
        };
        let said = |events: &[Event]| {
            let (mut writer, mut out) = (ChunkWriter::new(false), Vec::new());
            events.iter().for_each(|event| writer.event(event, &mut out));
            writer.end(&mut out);
            let text = String::from_utf8(out).unwrap();
            let mut arguments = vec![String::new(); 3];
            for data in text.lines().filter_map(|line| line.strip_prefix("data: {")) {
                let chunk: Value = serde_json::from_str(&format!("{{{data}")).unwrap();
                let call = &chunk["choices"][0]["delta"]["tool_calls"][0];
                if let Some(more) = call["function"]["arguments"].as_str() {
                    let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
                    arguments[index].push_str(more);
                }
            }
            arguments
        };
        let given = || Event::Arguments(r#"{"a":1}"#.into());
        let usage = || Event::Usage(Usage::default());
        let end = || Event::End(Finish::Calls);
        let all = [call("a"), call("b"), usage(), given(), call("c"), end()];
        assert_eq!(said(&all), ["{}", r#"{"a":1}"#, "{}"]);
        let without_end = [call("a"), Event::Arguments(String::new())];
        assert_eq!(said(&without_end), ["{}", "", ""]);
    }

    #[test]
    fn thoughts_go_back_beside_their_calls_where_that_is_wanted() {
        use crate::endpoint::{Dialect, Endpoint};
        let claude = json!({"max_tokens": 9, "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "1"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "b", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "b", "content": "2"}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "so", "signature": ""}, {"type": "text", "text": "y"}]},
        ]});
        let codex = json!({"input": [
            {"role": "user", "content": "x"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": null},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "1"},
        ]});
        let ollama = json!({"messages": [{"role": "user", "content": "x"},
            {"role": "assistant", "thinking": "hm", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "tool_name": "f", "content": "1"}]});
        let told = |endpoint, body: &Value, reasoning| {
            let to = Addressee {
                dialect: Dialect::OpenAi,
                model: "m",
                context: None,
                reasoning,
            };
            Question::read(endpoint, body).unwrap().write_for(&to).unwrap().0
        };
        let wanted = Some("reasoning_content");
        for (endpoint, body) in [
            (Endpoint::Messages, &claude),
            (Endpoint::Responses, &codex),
            (Endpoint::OllamaChat, &ollama),
        ] {
            let told = told(endpoint, body, wanted);
            assert_eq!(told["messages"][1]["reasoning_content"], "hm", "{told}");
        }
        let all = told(Endpoint::Messages, &claude, wanted);
        assert_eq!(all["messages"][3]["reasoning_content"], "", "{all}");
        assert!(all["messages"][5]["reasoning_content"].is_null(), "{all}");
        let others = told(Endpoint::Messages, &claude, None);
        assert!(others["messages"][1]["reasoning_content"].is_null(), "{others}");
    }

    #[test]
    fn users_and_functions_have_names_that_openai_takes() {
        let long = format!("user_{}_account__session_{}", "a".repeat(64), "b".repeat(36));
        let mcp = |end: &str| format!("mcp__a.server__{}_{end}", "tool".repeat(20));
        let tool = |name: String| json!({"name": name, "input_schema": {"type": "object"}});
        let call = json!({"type": "tool_use", "id": "t", "name": mcp("one"), "input": {}});
        let body = json!({"max_tokens": 9, "metadata": {"user_id": long}, "tools": [tool(mcp("one")), tool(mcp("two"))],
            "tool_choice": {"type": "tool", "name": mcp("two")},
            "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": [call]}]});
        let question = Question::read(crate::endpoint::Endpoint::Messages, &body).unwrap();
        let (told, _) = question.write(crate::endpoint::Dialect::OpenAi, "m").unwrap();
        let names = [
            "/user",
            "/tools/0/function/name",
            "/tools/1/function/name",
            "/tool_choice/function/name",
            "/messages/1/tool_calls/0/function/name",
        ];
        let names = names.map(|pointer| told.pointer(pointer).unwrap().as_str().unwrap());
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        assert!(
            names
                .iter()
                .all(|name| name.len() <= 64 && name.chars().all(fits)),
            "{names:?}"
        );
        assert!(
            names[1] != names[2] && names[3] == names[2] && names[4] == names[1],
            "{names:?}"
        );
        for dialect in [crate::endpoint::Dialect::OpenAi, crate::endpoint::Dialect::Gemini] {
            let own: Vec<String> = question
                .renamed(dialect)
                .into_iter()
                .map(|(_, own)| own)
                .collect();
            assert_eq!(
                own,
                [mcp("one"), mcp("two")],
                "calls come back under the client's names"
            );
        }
        assert_eq!(user("me"), "me");
        assert_eq!(user(&long), user(&long));
        assert_ne!(user(&long), user(&format!("{long}c")));
    }

    #[test]
    fn only_schemas_that_fit_are_strict() {
        let mut schema =
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]});
        assert!(!fits_strict(&schema));
        schema["additionalProperties"] = json!(false);
        assert!(fits_strict(&schema));
        let within = json!({"type": "array", "items": {"type": "object", "properties": {"b": {}}, "additionalProperties": false}});
        assert!(!fits_strict(&within), "`b` is not required");
    }

    #[test]
    fn tools_that_are_not_allowed_are_not_offered() {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        let body = json!({"messages": [], "tools": [tool("a"), tool("b")],
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [tool("b")]}}});
        let question = question(&body).unwrap();
        assert_eq!((question.tools.len(), &question.choice), (1, &Choice::Required));
        let (told, dropped) = question.write(crate::endpoint::Dialect::Anthropic, "m").unwrap();
        assert_eq!((told["tools"][0]["name"].as_str(), dropped.len()), (Some("b"), 0));
        for (field, value) in [
            ("functions", json!([])),
            ("function_call", json!("auto")),
            ("n", json!(2)),
        ] {
            let mut old = json!({"messages": []});
            old[field] = value;
            let failure = super::question(&old).unwrap_err();
            assert_eq!(
                (failure.status, failure.class.is_final()),
                (400, false),
                "{field}"
            );
        }
    }

    #[test]
    fn thoughts_are_not_asked_for_together_with_a_forced_call() {
        let body = json!({"messages": [{"role": "user", "content": "x"}], "reasoning_effort": "high", "tool_choice": "required",
            "tools": [{"type": "function", "function": {"name": "a"}}]});
        let (told, dropped) = question(&body)
            .unwrap()
            .write(crate::endpoint::Dialect::Anthropic, "claude-opus-5")
            .unwrap();
        assert!(told["thinking"].is_null());
        assert_eq!(dropped, ["reasoning_effort"]);
    }
}
