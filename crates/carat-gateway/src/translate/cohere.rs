//! Cohere's chat, version 2. Citations have no place in the other APIs and are left out.

use serde_json::{Value, json};

use super::{
    Choice, Event, Finish, Format, Piece, Question, Reader, Role, Thinking, Turn, joined, media, new_id,
    refused, set, text, words, written,
};
use crate::failure::{Class, Failure};
use crate::records::Record;
use crate::usage::Usage;

pub(super) fn request(question: &Question, model: &str, dropped: &mut Vec<String>) -> Result<Value, Failure> {
    let mut messages = Vec::new();
    if !question.system.is_empty() {
        messages.push(json!({"role": "system", "content": joined(&question.system)}));
    }
    for turn in &question.turns {
        write_turn(turn, &mut messages)?;
    }
    let mut body = json!({"model": model, "messages": messages, "stream": question.stream});
    write_tools(question, &mut body);
    match &question.format {
        Format::Text => {}
        Format::Json => body["response_format"] = json!({"type": "json_object"}),
        Format::Schema { schema, .. } => {
            body["response_format"] = json!({"type": "json_object", "json_schema": schema});
        }
    }
    set(&mut body, "temperature", question.temperature);
    // From 0.01 to 0.99 there; 1 means the same as almost 1.
    set(&mut body, "p", question.top_p.map(|p| p.clamp(0.01, 0.99)));
    set(&mut body, "k", question.top_k);
    set(&mut body, "seed", question.seed.filter(|seed| *seed >= 0));
    let penalties = [
        ("presence_penalty", question.presence),
        ("frequency_penalty", question.frequency),
    ];
    for (name, penalty) in penalties {
        match penalty {
            Some(penalty) if (0.0..=1.0).contains(&penalty) => body[name] = json!(penalty),
            Some(_) => dropped.push(name.into()),
            None => {}
        }
    }
    set(&mut body, "max_tokens", question.max_tokens);
    if !question.stop.is_empty() {
        body["stop_sequences"] = json!(question.stop);
    }
    let budget = |tokens: u64| json!({"type": "enabled", "token_budget": tokens});
    match &question.thinking {
        None => {}
        Some(Thinking::Off) => body["thinking"] = json!({"type": "disabled"}),
        Some(Thinking::Adaptive) => body["thinking"] = json!({"type": "enabled"}),
        Some(Thinking::Budget(tokens)) => body["thinking"] = budget(*tokens),
        Some(Thinking::Effort(effort)) => {
            body["thinking"] = match effort.as_str() {
                "minimal" | "low" => budget(1024),
                "medium" => budget(4096),
                _ => json!({"type": "enabled"}),
            };
        }
    }
    question.drop_set(&["parallel_tool_calls", "user"], dropped);
    Ok(body)
}

fn write_tools(question: &Question, body: &mut Value) {
    // A certain tool is asked for by offering no other.
    let tools = question.tools.iter().filter(|tool| match &question.choice {
        Choice::Named(name) => tool.name == *name,
        _ => true,
    });
    let tools: Vec<Value> = tools
        .map(|tool| {
            let schema = if tool.schema.is_object() {
                tool.schema.clone()
            } else {
                json!({"type": "object", "properties": {}})
            };
            let description = tool.description.as_deref().unwrap_or_default();
            let function = json!({"name": tool.name, "description": description, "parameters": schema});
            json!({"type": "function", "function": function})
        })
        .collect();
    if tools.is_empty() {
        return;
    }
    body["tools"] = Value::from(tools);
    match &question.choice {
        Choice::Auto => {}
        Choice::None => body["tool_choice"] = json!("NONE"),
        Choice::Required | Choice::Named(_) => body["tool_choice"] = json!("REQUIRED"),
    }
}

fn write_turn(turn: &Turn, messages: &mut Vec<Value>) -> Result<(), Failure> {
    if turn.role == Role::Assistant {
        let said: String = turn.pieces.iter().filter_map(super::text_of).collect();
        let calls = turn.pieces.iter().filter_map(|piece| match piece {
            Piece::Call {
                id, name, arguments, ..
            } => Some(json!({"id": id, "type": "function", "function": {"name": name, "arguments": written(arguments)}})),
            _ => None,
        });
        let calls: Vec<Value> = calls.collect();
        let mut message = json!({"role": "assistant"});
        set(
            &mut message,
            "content",
            Some(said).filter(|said| !said.is_empty()),
        );
        if !calls.is_empty() {
            message["tool_calls"] = Value::from(calls);
        }
        if message["content"].is_string() || message["tool_calls"].is_array() {
            messages.push(message);
        }
        return Ok(());
    }
    let mut parts = Vec::new();
    for piece in &turn.pieces {
        if let Piece::Result { id, content, .. } = piece {
            messages.push(json!({"role": "tool", "tool_call_id": id, "content": joined(content)}));
            // Images in a result come after it, as the user's.
            for piece in media(content) {
                parts.extend(part(piece)?);
            }
        } else {
            parts.extend(part(piece)?);
        }
    }
    if !parts.is_empty() {
        messages.push(json!({"role": "user", "content": parts}));
    }
    Ok(())
}

fn part(piece: &Piece) -> Result<Option<Value>, Failure> {
    match piece {
        Piece::Text { text, .. } => Ok(Some(json!({"type": "text", "text": text}))),
        Piece::Image { source, .. } => Ok(Some(
            json!({"type": "image_url", "image_url": {"url": source.url()}}),
        )),
        Piece::Document { .. } => Err(refused("messages", "this provider takes texts and images only")),
        _ => Ok(None),
    }
}

/// Tokens that are billed, which it writes as decimals; what was cached is among them.
fn read_usage(value: &Value) -> Usage {
    let n = |of: &str, name: &str| value[of][name].as_f64().map(|n| n.max(0.0) as u64);
    let count = |name: &str| n("billed_units", name).or(n("tokens", name)).unwrap_or(0);
    let input = count("input_tokens");
    let cached = value["cached_tokens"].as_f64().map_or(0, |n| n.max(0.0) as u64);
    Usage {
        input,
        cache_read: cached.min(input),
        output: count("output_tokens"),
        ..Usage::default()
    }
}

fn finish_of(reason: &str) -> Result<Finish, Failure> {
    Ok(match reason {
        "TOOL_CALL" => Finish::Calls,
        "MAX_TOKENS" => Finish::Length,
        "ERROR_TOXIC" => Finish::Filter,
        "COMPLETE" | "STOP_SEQUENCE" => Finish::Stop,
        other => {
            let message = format!("the provider could not finish its answer ({other})");
            return Err(Failure::new(Class::ServerFault, 502, message));
        }
    })
}

/// Reads answers and their events.
#[derive(Default)]
pub(super) struct ChatReader {
    has_begun: bool,
    is_done: bool,
}

impl ChatReader {
    fn begin(&mut self, value: &Value, events: &mut Vec<Event>) {
        if !self.has_begun {
            self.has_begun = true;
            events.push(Event::Begin {
                id: text(&value["id"]).unwrap_or_else(|| new_id("")),
                model: String::new(),
            });
        }
    }

    fn content(part: &Value, events: &mut Vec<Event>) {
        events.extend(words(&part["thinking"]).map(Event::Thinking));
        events.extend(words(&part["text"]).map(Event::Text));
    }

    fn call(call: &Value, events: &mut Vec<Event>) {
        events.push(Event::Call {
            id: words(&call["id"]).unwrap_or_else(|| new_id("call_")),
            name: text(&call["function"]["name"]).unwrap_or_default(),
            signature: None,
        });
        Self::arguments(call, events);
    }

    fn arguments(call: &Value, events: &mut Vec<Event>) {
        events.extend(words(&call["function"]["arguments"]).map(Event::Arguments));
    }

    fn finish(&mut self, value: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        if value["usage"].is_object() {
            events.push(Event::Usage(read_usage(&value["usage"])));
        }
        if let Some(reason) = value["finish_reason"].as_str() {
            self.is_done = true;
            events.push(Event::End(finish_of(reason)?));
        }
        Ok(())
    }
}

impl Reader for ChatReader {
    fn record(&mut self, record: &Record<'_>, events: &mut Vec<Event>) -> Result<bool, Failure> {
        let data = record.data.trim_ascii();
        if data.is_empty() || data.starts_with(b"[DONE]") {
            return Ok(true);
        }
        let Ok(value) = serde_json::from_slice::<Value>(data) else {
            return Ok(false);
        };
        self.begin(&value, events);
        let message = &value["delta"]["message"];
        match value["type"].as_str() {
            Some("content-start" | "content-delta") => Self::content(&message["content"], events),
            // What it intends to call and why is a thought.
            Some("tool-plan-delta") => events.extend(words(&message["tool_plan"]).map(Event::Thinking)),
            Some("tool-call-start") => Self::call(&message["tool_calls"], events),
            Some("tool-call-delta") => Self::arguments(&message["tool_calls"], events),
            Some("message-end") => self.finish(&value["delta"], events)?,
            None => return Err(Failure::of_value(&value, None)),
            Some(_) => {}
        }
        Ok(true)
    }

    fn whole(&mut self, answer: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        self.begin(answer, events);
        let message = &answer["message"];
        events.extend(words(&message["tool_plan"]).map(Event::Thinking));
        for part in message["content"].as_array().into_iter().flatten() {
            Self::content(part, events);
        }
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            Self::call(call, events);
        }
        self.finish(answer, events)
    }

    fn end(&mut self, _events: &mut Vec<Event>) -> bool {
        self.is_done
    }
}
