//! Ollama's own `/api/chat`.

use serde_json::{Value, json};

use super::{
    Addressee, Alike, Answer, Choice, Event, Finish, Format, Piece, Question, Role, Source, Thinking, Tool,
    Writer, calls, joined, media, new_id, numbers, object, openai, refused, set, text, unknown, unknown_in,
    words, written,
};
use crate::clock::rfc3339;
use crate::failure::Failure;
use crate::usage::Usage;

const KNOWN: [&str; 7] = [
    "model", "messages", "tools", "format", "options", "stream", "think",
];
const KNOWN_OPTIONS: [&str; 8] = [
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "num_predict",
    "stop",
];

pub(super) fn question(body: &Value) -> Result<Question, Failure> {
    let messages = body["messages"]
        .as_array()
        .ok_or_else(|| refused("messages", "`messages` must be an array"))?;
    let options = &body["options"];
    let mut question = Question {
        tools: body["tools"].as_array().into_iter().flatten().map(tool).collect(),
        format: match &body["format"] {
            Value::String(format) if format == "json" => Format::Json,
            schema @ Value::Object(_) => Format::Schema {
                name: "answer".into(),
                schema: schema.clone(),
                strict: None,
            },
            _ => Format::Text,
        },
        // Negative numbers mean no limit.
        max_tokens: numbers::count(&options["num_predict"], "options.num_predict")?,
        thinking: match &body["think"] {
            Value::Bool(true) => Some(Thinking::Adaptive),
            Value::Bool(false) => Some(Thinking::Off),
            Value::String(effort) => Some(Thinking::Effort(effort.clone())),
            _ => None,
        },
        // A stream unless it says otherwise.
        stream: body["stream"].as_bool().unwrap_or(true),
        wants_usage: true,
        unknown: unknown(body, &KNOWN),
        ..Question::sampled(options, "options.")?
    };
    question
        .unknown
        .extend(unknown_in(body, "options", &KNOWN_OPTIONS));
    let mut calls = calls::OpenCalls::default();
    for (i, message) in messages.iter().enumerate() {
        read_message(message, i, &mut calls, &mut question)?;
    }
    Ok(question)
}

const KNOWN_OF_PROMPTS: [&str; 8] = [
    "model", "prompt", "system", "images", "format", "options", "stream", "think",
];

/// A request of `/api/generate`: what the user says, and nothing before it.
pub(super) fn prompt(body: &Value) -> Result<Question, Failure> {
    for name in ["suffix", "template"] {
        if body[name].as_str().is_some_and(|text| !text.is_empty()) {
            let message = format!("this provider converses and does not continue texts; leave `{name}` out");
            return Err(refused(name, message));
        }
    }
    if body["raw"] == true {
        return Err(refused(
            "raw",
            "this provider takes no prompt as it stands; leave `raw` out",
        ));
    }
    let mut message = json!({"role": "user", "content": body["prompt"]});
    if !body["images"].is_null() {
        message["images"] = body["images"].clone();
    }
    let mut chat = json!({"messages": [message]});
    for name in ["format", "options", "stream", "think"] {
        chat[name] = body[name].clone();
    }
    let mut made = question(&chat)?;
    made.system.extend(words(&body["system"]).map(Piece::text));
    made.unknown.extend(unknown(body, &KNOWN_OF_PROMPTS));
    made.unknown.retain(|name| name != "raw");
    Ok(made)
}

/// `calls`: those so far; results come in their order.
fn read_message(
    message: &Value,
    i: usize,
    calls: &mut calls::OpenCalls,
    question: &mut Question,
) -> Result<(), Failure> {
    let said = message["content"]
        .as_str()
        .filter(|text| !text.is_empty())
        .map(Piece::text);
    let images = message["images"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(text);
    let images = images.map(|data| Piece::Image {
        source: Source::Data {
            media_type: media_type(&data).to_string(),
            data,
        },
        cache: None,
    });
    match message["role"].as_str() {
        Some("system") => question.system.extend(said),
        Some("user") => question.push(Role::User, said.into_iter().chain(images).collect()),
        Some("assistant") => {
            let thought = words(&message["thinking"]).map(|text| Piece::Thinking {
                text,
                signature: None,
            });
            let mut pieces: Vec<Piece> = thought.into_iter().chain(said).collect();
            for (n, call) in message["tool_calls"].as_array().into_iter().flatten().enumerate() {
                let name = text(&call["function"]["name"]).unwrap_or_default();
                let id = words(&call["id"]).unwrap_or_else(|| format!("call_{i}_{n}"));
                calls.push(&name, &id);
                pieces.push(Piece::Call {
                    id,
                    name,
                    arguments: call["function"]["arguments"].clone(),
                    signature: None,
                });
            }
            question.push(Role::Assistant, pieces);
        }
        Some("tool") => {
            let name = text(&message["tool_name"]).or(text(&message["name"]));
            let stated = words(&message["tool_call_id"]);
            if let Some(id) = &stated {
                calls.answer(id);
            }
            let id = stated.or_else(|| calls.oldest(name.as_deref()));
            let result = Piece::Result {
                id: id.unwrap_or_default(),
                name,
                content: said.into_iter().collect(),
                is_error: false,
                cache: None,
            };
            question.push(Role::User, vec![result]);
        }
        _ => {
            return Err(refused(
                &format!("messages[{i}].role"),
                "the role must be system, user, assistant or tool",
            ));
        }
    }
    Ok(())
}

/// What kind of image base64 begins; Ollama does not say.
fn media_type(data: &str) -> &'static str {
    match data.get(..4) {
        Some("/9j/") => "image/jpeg",
        Some("R0lG") => "image/gif",
        Some("UklG") => "image/webp",
        _ => "image/png",
    }
}

fn tool(tool: &Value) -> Tool {
    let function = &tool["function"];
    Tool {
        name: text(&function["name"]).unwrap_or_default(),
        description: text(&function["description"]),
        schema: function["parameters"].clone(),
        strict: None,
        cache: None,
    }
}

pub(super) fn request(
    question: &Question,
    to: &Addressee<'_>,
    dropped: &mut Vec<String>,
) -> Result<Value, Failure> {
    let mut messages = Vec::new();
    if !question.system.is_empty() {
        messages.push(json!({"role": "system", "content": joined(&question.system)}));
    }
    let mut names = calls::Names::of(&question.turns);
    for (role, pieces) in calls::in_order(&question.turns) {
        write_turn(&names, role, &pieces, &mut messages)?;
        names.pass(&pieces);
    }
    let mut body = json!({"model": to.model, "messages": messages, "stream": question.stream});
    // Else the beginning of a prompt that is too long is left out without a word, which no other API does.
    body["truncate"] = Value::Bool(false);
    if question.choice != Choice::None && !question.tools.is_empty() {
        let write = |tool: &Tool| {
            let description = tool.description.as_deref().unwrap_or_default();
            let function = json!({"name": tool.name, "description": description, "parameters": tool.schema});
            json!({"type": "function", "function": function})
        };
        body["tools"] = question.tools.iter().map(write).collect();
    }
    match &question.format {
        Format::Text => {}
        Format::Json => body["format"] = json!("json"),
        Format::Schema { schema, .. } => body["format"] = schema.clone(),
    }
    let mut options = json!({});
    set(&mut options, "temperature", question.temperature);
    set(&mut options, "top_p", question.top_p);
    set(&mut options, "top_k", question.top_k);
    set(&mut options, "seed", question.seed);
    set(&mut options, "presence_penalty", question.presence);
    set(&mut options, "frequency_penalty", question.frequency);
    set(&mut options, "num_predict", question.max_tokens);
    // The server's own context may be much smaller than the model's. It is not fitted to each prompt, since another size
    // has the model loaded anew.
    set(&mut options, "num_ctx", to.context);
    if !question.stop.is_empty() {
        options["stop"] = json!(question.stop);
    }
    body["options"] = options;
    if let Some(wish) = &question.thinking {
        body["think"] = think(wish, to.model, dropped);
    }
    if matches!(question.choice, Choice::Required | Choice::Named(_)) {
        dropped.push("tool_choice".into());
    }
    question.drop_set(&["parallel_tool_calls", "user"], dropped);
    Ok(body)
}

/// How much a model is to think: most think or do not, but of gpt-oss it is said how much, and it never leaves it.
fn think(wish: &Thinking, model: &str, dropped: &mut Vec<String>) -> Value {
    if !model.to_ascii_lowercase().contains("gpt-oss") {
        return Value::Bool(*wish != Thinking::Off);
    }
    Value::from(match wish {
        Thinking::Off => {
            dropped.push("reasoning_effort".into());
            "low"
        }
        Thinking::Adaptive => "medium",
        Thinking::Budget(budget) => openai::effort_of(*budget),
        Thinking::Effort(effort) => match effort.as_str() {
            "minimal" | "low" => "low",
            "medium" => "medium",
            _ => "high",
        },
    })
}

/// The body of a request, without the wish to think, for a model that says that it cannot: which ones can only Ollama
/// knows.
pub(crate) fn without_thinking(body: &[u8], failure: &Failure) -> Option<Vec<u8>> {
    if !failure.message.contains("does not support thinking") {
        return None;
    }
    let mut body: Value = serde_json::from_slice(body).ok()?;
    body.as_object_mut()?.remove("think")?;
    Some(body.to_string().into_bytes())
}

fn image(piece: &Piece) -> Result<Value, Failure> {
    match piece {
        Piece::Image {
            source: Source::Data { data, .. },
            ..
        } => Ok(json!(data)),
        Piece::Image { .. } => Err(refused(
            "messages",
            "this provider takes images as data only; send a data: URL",
        )),
        _ => Err(refused(
            "messages",
            "this provider takes images only, no other files",
        )),
    }
}

fn write_turn(
    names: &calls::Names<'_>,
    role: Role,
    pieces: &[&Piece],
    messages: &mut Vec<Value>,
) -> Result<(), Failure> {
    let (mut said, mut images, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for piece in pieces {
        match piece {
            Piece::Text { text, .. } => said.push(text.as_str()),
            Piece::Image { .. } | Piece::Document { .. } => images.push(image(piece)?),
            Piece::Call { name, arguments, .. } => {
                calls.push(json!({"function": {"name": name, "arguments": object(arguments)}}));
            }
            Piece::Result {
                id, name, content, ..
            } => {
                let name = name.as_deref().or_else(|| names.name(id));
                let name = name.unwrap_or_default();
                messages.push(json!({"role": "tool", "tool_name": name, "content": joined(content)}));
                // Images in a result come after it, as the user's.
                for piece in media(content) {
                    images.push(image(piece)?);
                }
            }
            Piece::Thinking { .. } | Piece::Redacted(_) => {}
        }
    }
    if said.is_empty() && images.is_empty() && calls.is_empty() {
        return Ok(());
    }
    let role = if role == Role::Assistant {
        "assistant"
    } else {
        "user"
    };
    let mut message = json!({"role": role, "content": said.join("\n")});
    if !images.is_empty() {
        message["images"] = Value::from(images);
    }
    if !calls.is_empty() {
        message["tool_calls"] = Value::from(calls);
    }
    messages.push(message);
    Ok(())
}

fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Length => "length",
        _ => "stop",
    }
}

/// A line of a conversation, or of what follows a prompt, whose words stand at the top.
fn line(is_prompt: bool, model: &str, message: &Value, last: Option<(Finish, &Usage)>) -> Value {
    let mut line = json!({"model": model, "created_at": rfc3339(), "done": last.is_some()});
    if is_prompt {
        line["response"] = message["content"].clone();
        set(&mut line, "thinking", words(&message["thinking"]));
    } else {
        line["message"] = message.clone();
    }
    if let Some((finish, usage)) = last {
        line["done_reason"] = json!(finish_name(finish));
        for name in [
            "total_duration",
            "load_duration",
            "prompt_eval_duration",
            "eval_duration",
        ] {
            line[name] = json!(0);
        }
        line["prompt_eval_count"] = json!(usage.input);
        line["eval_count"] = json!(usage.output);
    }
    line
}

fn call(name: &str, arguments: &Value) -> Value {
    json!({"function": {"name": name, "arguments": object(arguments)}})
}

pub(super) fn answer(answer: &Answer) -> Value {
    let mut message = json!({"role": "assistant", "content": answer.texts()});
    set(
        &mut message,
        "thinking",
        Some(answer.thoughts()).filter(|text| !text.is_empty()),
    );
    let calls = answer.pieces.iter().filter_map(|piece| match piece {
        Piece::Call { name, arguments, .. } => Some(call(name, arguments)),
        _ => None,
    });
    let calls: Vec<Value> = calls.collect();
    if !calls.is_empty() {
        message["tool_calls"] = Value::from(calls);
    }
    line(
        false,
        &answer.model,
        &message,
        Some((answer.finish.unwrap_or(Finish::Stop), &answer.usage)),
    )
}

/// An answer of `/api/generate`.
pub(super) fn prompt_answer(answer: &Answer) -> Value {
    let message = json!({"content": answer.texts(), "thinking": answer.thoughts()});
    let finish = answer.finish.unwrap_or(Finish::Stop);
    line(true, &answer.model, &message, Some((finish, &answer.usage)))
}

/// Writes lines. Calls come whole, so their arguments are held.
#[derive(Default)]
pub(super) struct LineWriter {
    /// Whether the lines are those of `/api/generate`.
    is_prompt: bool,
    model: String,
    call: Option<(String, String)>,
    finish: Option<Finish>,
    usage: Usage,
}

impl LineWriter {
    pub(super) fn of_prompt() -> Self {
        Self {
            is_prompt: true,
            ..Self::default()
        }
    }

    fn write(value: &Value, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{value}\n").as_bytes());
    }

    fn end_call(&mut self, out: &mut Vec<u8>) {
        if let Some((name, arguments)) = self.call.take() {
            let calls = [call(&name, &super::parsed(&arguments))];
            let message = json!({"role": "assistant", "content": "", "tool_calls": calls});
            Self::write(&line(self.is_prompt, &self.model, &message, None), out);
        }
    }
}

impl Writer for LineWriter {
    fn event(&mut self, event: &Event, out: &mut Vec<u8>) {
        if let (Event::Arguments(more), Some((_, arguments))) = (event, &mut self.call) {
            arguments.push_str(more);
            return;
        }
        // Some say words or counts between a call and its arguments: these do not end it.
        if matches!(event, Event::Call { .. } | Event::End(_)) {
            self.end_call(out);
        }
        let said = |content: &str, thinking: &str| {
            let mut message = json!({"role": "assistant", "content": content});
            set(
                &mut message,
                "thinking",
                Some(thinking).filter(|text| !text.is_empty()),
            );
            message
        };
        match event {
            Event::Begin { model, .. } => self.model.clone_from(model),
            Event::Text(text) => Self::write(&line(self.is_prompt, &self.model, &said(text, ""), None), out),
            Event::Thinking(text) => {
                Self::write(&line(self.is_prompt, &self.model, &said("", text), None), out)
            }
            Event::Call { name, .. } => self.call = Some((name.clone(), String::new())),
            Event::Usage(usage) => self.usage = *usage,
            Event::End(finish) => self.finish = Some(*finish),
            Event::Signature(_) | Event::Redacted(_) | Event::Arguments(_) | Event::Broken(_) => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.end_call(out);
        let message = json!({"role": "assistant", "content": ""});
        let finish = self.finish.unwrap_or(Finish::Stop);
        Self::write(
            &line(self.is_prompt, &self.model, &message, Some((finish, &self.usage))),
            out,
        );
    }
}

/// Reads lines and whole answers, which are alike.
#[derive(Default)]
pub(super) struct LineReader {
    has_begun: bool,
    has_calls: bool,
    is_done: bool,
}

impl Alike for LineReader {
    fn read(&mut self, value: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        if !value["error"].is_null() {
            return Err(Failure::of_value(value, None));
        }
        if !self.has_begun {
            self.has_begun = true;
            events.push(Event::Begin {
                id: new_id(""),
                model: text(&value["model"]).unwrap_or_default(),
            });
        }
        // `/api/generate` has the words at the top.
        let message = if value["message"].is_object() {
            &value["message"]
        } else {
            value
        };
        let said = |name: &str| text(&message[name]).filter(|text| !text.is_empty());
        events.extend(said("thinking").map(Event::Thinking));
        events.extend(said("content").or(said("response")).map(Event::Text));
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            self.has_calls = true;
            events.push(Event::Call {
                id: words(&call["id"]).unwrap_or_else(|| new_id("call_")),
                name: text(&call["function"]["name"]).unwrap_or_default(),
                signature: None,
            });
            let arguments = &call["function"]["arguments"];
            if !arguments.is_null() {
                events.push(Event::Arguments(written(arguments)));
            }
        }
        if value["done"] == true {
            self.is_done = true;
            let count = |name: &str| value[name].as_u64().unwrap_or(0);
            events.push(Event::Usage(Usage {
                input: count("prompt_eval_count"),
                output: count("eval_count"),
                ..Usage::default()
            }));
            events.push(Event::End(match value["done_reason"].as_str() {
                Some("length") => Finish::Length,
                _ if self.has_calls => Finish::Calls,
                _ => Finish::Stop,
            }));
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.is_done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{Dialect, Endpoint};

    #[test]
    fn gpt_oss_is_told_how_much_to_think() {
        let told = |model: &str, wish: Thinking| {
            let question = Question {
                thinking: Some(wish),
                ..Question::default()
            };
            let (told, dropped) = question.write(Dialect::Ollama, model).unwrap();
            (told["think"].clone(), dropped.len())
        };
        let effort = |word: &str| Thinking::Effort(word.into());
        for (wish, oss, others) in [
            (Thinking::Off, (json!("low"), 1), false),
            (Thinking::Adaptive, (json!("medium"), 0), true),
            (Thinking::Budget(20_000), (json!("high"), 0), true),
            (effort("minimal"), (json!("low"), 0), true),
            (effort("medium"), (json!("medium"), 0), true),
            (effort("xhigh"), (json!("high"), 0), true),
        ] {
            assert_eq!(told("gpt-oss:20b", wish.clone()), oss, "{wish:?}");
            assert_eq!(told("qwen3:4b", wish.clone()), (json!(others), 0), "{wish:?}");
        }
    }

    #[test]
    fn a_prompt_is_never_cut_in_silence() {
        let body = json!({"messages": [{"role": "user", "content": "x"}]});
        let question = Question::read(Endpoint::Chat, &body).unwrap();
        let told = |context| {
            let (dialect, model) = (Dialect::Ollama, "m");
            let to = Addressee {
                dialect,
                model,
                context,
                reasoning: None,
            };
            question.write_for(&to).unwrap().0
        };
        assert_eq!(told(Some(16_384))["options"]["num_ctx"], 16_384);
        let unknown = told(None);
        assert!(unknown["options"]["num_ctx"].is_null());
        assert_eq!(unknown["truncate"], false);
    }
}
