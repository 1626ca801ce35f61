//! Google's generateContent.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{
    Alike, Answer, Choice, Event, Finish, Format, Piece, Question, Role, Source, Thinking, Tool, Writer,
    broken, calls, joined, new_id, numbers, object, refused, safe_name, schemas, set, strings, text, unknown,
    words, written,
};
use crate::failure::{Class, Failure};
use crate::sticky;
use crate::usage::Usage;

/// Stands for a signature of thoughts that were made elsewhere, as Google documents it.
pub(crate) const NO_SIGNATURE: &str = "skip_thought_signature_validator";
/// Most characters of a function's name.
const NAME_CHARS: usize = 64;

/// Fields may be written like this or like `system_instruction`.
const KNOWN: [&str; 5] = [
    "contents",
    "systemInstruction",
    "tools",
    "toolConfig",
    "generationConfig",
];

const KNOWN_CONFIG: [&str; 14] = [
    "candidateCount",
    "temperature",
    "topP",
    "topK",
    "seed",
    "presencePenalty",
    "frequencyPenalty",
    "maxOutputTokens",
    "stopSequences",
    "thinkingConfig",
    "responseMimeType",
    "responseSchema",
    "responseJsonSchema",
    "responseModalities",
];

pub(super) fn question(body: &Value) -> Result<Question, Failure> {
    let contents = body["contents"]
        .as_array()
        .ok_or_else(|| refused("contents", "`contents` must be an array"))?;
    let config = field(body, "generationConfig");
    let count = |name: &str| numbers::count(field(config, name), &format!("generationConfig.{name}"));
    let decimal = |name: &str| numbers::decimal(field(config, name), &format!("generationConfig.{name}"));
    if count("candidateCount")?.is_some_and(|n| n > 1) {
        return Err(refused(
            "generationConfig.candidateCount",
            "this provider gives one answer at a time",
        ));
    }
    let modalities = strings(field(config, "responseModalities"));
    if modalities.iter().any(|kind| !kind.eq_ignore_ascii_case("text")) {
        return Err(refused(
            "generationConfig.responseModalities",
            "this provider answers in text only",
        ));
    }
    let mut question = Question {
        choice: choice(field(field(body, "toolConfig"), "functionCallingConfig")),
        format: format(config),
        temperature: decimal("temperature")?,
        top_p: decimal("topP")?,
        top_k: count("topK")?,
        seed: numbers::integer(&config["seed"], "generationConfig.seed")?,
        presence: decimal("presencePenalty")?,
        frequency: decimal("frequencyPenalty")?,
        max_tokens: count("maxOutputTokens")?,
        stop: strings(field(config, "stopSequences")),
        thinking: thinking(field(config, "thinkingConfig"))?,
        wants_usage: true,
        unknown: unknown_of(body, &KNOWN).collect(),
        ..Question::default()
    };
    let within = unknown_of(config, &KNOWN_CONFIG).map(|name| format!("generationConfig.{name}"));
    question.unknown.extend(within);
    let mut ids = Ids::default();
    let system = field(body, "systemInstruction");
    for part in system["parts"].as_array().into_iter().flatten() {
        question.system.extend(piece(part, &mut ids)?);
    }
    for tool in body["tools"].as_array().into_iter().flatten() {
        let functions = field(tool, "functionDeclarations").as_array();
        let functions =
            functions.ok_or_else(|| refused("tools", "only functions can be passed on to this provider"))?;
        question.tools.extend(functions.iter().map(read_tool));
    }
    let names = allowed(field(field(body, "toolConfig"), "functionCallingConfig"));
    if !names.is_empty() {
        question.tools.retain(|tool| names.contains(&tool.name.as_str()));
    }
    for content in contents {
        let role = if content["role"] == "model" {
            Role::Assistant
        } else {
            Role::User
        };
        let mut pieces = Vec::new();
        for part in content["parts"].as_array().into_iter().flatten() {
            pieces.extend(piece(part, &mut ids)?);
        }
        question.push(role, pieces);
    }
    Ok(question)
}

/// A field of this name, in either way of writing it.
fn field<'a>(object: &'a Value, name: &str) -> &'a Value {
    match &object[name] {
        Value::Null => &object[snake(name)],
        value => value,
    }
}

/// `topK` as `top_k`.
fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// Fields that are set and not among those known, however they are written.
fn unknown_of(object: &Value, known: &[&str]) -> impl Iterator<Item = String> {
    let other: Vec<String> = known.iter().map(|name| snake(name)).collect();
    let names = unknown(object, known).into_iter();
    names.filter(move |name| !other.contains(name))
}

/// Ids of calls and results, of which clients state some, all or none: what a result without one answers is known from
/// its name and its place.
#[derive(Default)]
struct Ids {
    open: calls::OpenCalls,
    /// How many were made for a name.
    made: HashMap<String, usize>,
}

impl Ids {
    fn call(&mut self, name: &str, stated: Option<String>) -> String {
        let id = stated.unwrap_or_else(|| self.make(name));
        self.open.push(name, &id);
        id
    }

    fn result(&mut self, name: &str, stated: Option<String>) -> String {
        if let Some(id) = stated {
            self.open.answer(&id);
            return id;
        }
        self.open.oldest(Some(name)).unwrap_or_else(|| self.make(name))
    }

    fn make(&mut self, name: &str) -> String {
        let made = self.made.entry(name.to_string()).or_default();
        let n = *made;
        *made += 1;
        // OpenAI takes no id of more than 40 characters.
        if name.len() > 24 {
            return format!("call_{:016x}_{n}", sticky::hash(name.as_bytes()));
        }
        format!("call_{name}_{n}")
    }
}

fn piece(part: &Value, ids: &mut Ids) -> Result<Option<Piece>, Failure> {
    let signature = text(field(part, "thoughtSignature"));
    if let Some(said) = part["text"].as_str() {
        let said = said.to_string();
        return Ok(Some(if part["thought"] == true {
            Piece::Thinking {
                text: said,
                signature,
            }
        } else {
            Piece::text(said)
        }));
    }
    let data = field(part, "inlineData");
    if data.is_object() {
        let media_type = text(field(data, "mimeType")).unwrap_or_default();
        let source = Source::Data {
            data: text(&data["data"]).unwrap_or_default(),
            media_type: media_type.clone(),
        };
        return Ok(Some(if media_type.starts_with("image/") {
            Piece::Image { source, cache: None }
        } else {
            Piece::Document { source, name: None }
        }));
    }
    let call = field(part, "functionCall");
    if call.is_object() {
        let name = text(&call["name"]).unwrap_or_default();
        return Ok(Some(Piece::Call {
            id: ids.call(&name, words(&call["id"])),
            name,
            arguments: call["args"].clone(),
            signature,
        }));
    }
    let response = field(part, "functionResponse");
    if response.is_object() {
        let name = text(&response["name"]).unwrap_or_default();
        return Ok(Some(Piece::Result {
            id: ids.result(&name, words(&response["id"])),
            name: Some(name),
            content: vec![Piece::text(written(&response["response"]))],
            is_error: false,
            cache: None,
        }));
    }
    // An empty part carries nothing but perhaps a signature.
    if part.as_object().is_some_and(|part| {
        part.keys()
            .all(|key| key == "thoughtSignature" || key == "thought_signature")
    }) {
        return Ok(None);
    }
    Err(refused(
        "contents",
        "only texts, inline data and function calls can be passed on to this provider",
    ))
}

fn choice(config: &Value) -> Choice {
    match (config["mode"].as_str(), allowed(config).as_slice()) {
        (Some("NONE"), _) => Choice::None,
        (Some("ANY"), [name]) => Choice::Named((*name).to_string()),
        (Some("ANY"), _) => Choice::Required,
        _ => Choice::Auto,
    }
}

/// The functions that alone may be called, where not all of them may.
fn allowed(config: &Value) -> Vec<&str> {
    let is_bound = matches!(config["mode"].as_str(), Some("ANY" | "VALIDATED"));
    let names = field(config, "allowedFunctionNames").as_array();
    let names = names.filter(|_| is_bound).into_iter().flatten();
    names.filter_map(Value::as_str).collect()
}

fn format(config: &Value) -> Format {
    let schema = match field(config, "responseJsonSchema") {
        Value::Null => field(config, "responseSchema"),
        schema => schema,
    };
    match field(config, "responseMimeType").as_str() {
        Some("application/json") if schema.is_object() => Format::Schema {
            name: "answer".into(),
            schema: schemas::of_google(schema),
            strict: None,
        },
        Some("application/json") => Format::Json,
        _ => Format::Text,
    }
}

fn thinking(config: &Value) -> Result<Option<Thinking>, Failure> {
    if let Some(level) = field(config, "thinkingLevel").as_str() {
        return Ok(Some(Thinking::Effort(level.to_lowercase())));
    }
    let name = "generationConfig.thinkingConfig.thinkingBudget";
    let budget = numbers::integer(field(config, "thinkingBudget"), name)?;
    Ok(budget.map(|budget| match budget {
        0 => Thinking::Off,
        budget => u64::try_from(budget).map_or(Thinking::Adaptive, Thinking::Budget),
    }))
}

fn read_tool(function: &Value) -> Tool {
    let schema = field(function, "parametersJsonSchema");
    Tool {
        name: text(&function["name"]).unwrap_or_default(),
        description: text(&function["description"]),
        schema: if schema.is_null() {
            schemas::of_google(&function["parameters"])
        } else {
            schema.clone()
        },
        strict: None,
        cache: None,
    }
}

pub(super) fn request(question: &Question, model: &str, dropped: &mut Vec<String>) -> Result<Value, Failure> {
    let mut names = calls::Names::of(&question.turns);
    let mut contents = Vec::with_capacity(question.turns.len());
    for (role, pieces) in calls::in_order(&question.turns) {
        contents.push(write_turn(&names, role, &pieces)?);
        names.pass(&pieces);
    }
    // Of a turn of thoughts alone nothing is left.
    contents.retain(|content| content["parts"] != json!([]));
    if contents.is_empty() {
        contents.push(json!({"role": "user", "parts": [{"text": ""}]}));
    }
    let mut body = json!({"contents": contents});
    if !question.system.is_empty() {
        body["systemInstruction"] = json!({"parts": [{"text": joined(&question.system)}]});
    }
    if !question.tools.is_empty() {
        let functions: Vec<Value> = question.tools.iter().map(write_tool).collect();
        body["tools"] = json!([{"functionDeclarations": functions}]);
        let config = match &question.choice {
            Choice::Auto => json!({"mode": "AUTO"}),
            Choice::None => json!({"mode": "NONE"}),
            Choice::Required => json!({"mode": "ANY"}),
            Choice::Named(name) => json!({"mode": "ANY", "allowedFunctionNames": [safe(name)]}),
        };
        body["toolConfig"] = json!({"functionCallingConfig": config});
    }
    let mut config = json!({});
    set(&mut config, "temperature", question.temperature);
    set(&mut config, "topP", question.top_p);
    set(&mut config, "topK", question.top_k);
    set(&mut config, "seed", question.seed);
    set(&mut config, "presencePenalty", question.presence);
    set(&mut config, "frequencyPenalty", question.frequency);
    set(&mut config, "maxOutputTokens", question.max_tokens);
    if !question.stop.is_empty() {
        config["stopSequences"] = json!(question.stop);
    }
    match &question.format {
        Format::Text => {}
        Format::Json => config["responseMimeType"] = json!("application/json"),
        Format::Schema { schema, .. } => {
            config["responseMimeType"] = json!("application/json");
            config["responseJsonSchema"] = schemas::with_null(schema);
        }
    }
    set(
        &mut config,
        "thinkingConfig",
        thinking_config(question, model, dropped),
    );
    if config.as_object().is_some_and(|config| !config.is_empty()) {
        body["generationConfig"] = config;
    }
    question.drop_set(&["parallel_tool_calls", "user"], dropped);
    Ok(body)
}

/// How much a model of this name is to think: models up to 2.5 take a budget of thoughts, later ones a level, and each
/// family has its bounds. Pro always thinks, and so do all later ones.
fn thinking_config(question: &Question, model: &str, dropped: &mut Vec<String>) -> Option<Value> {
    let is_old = ["gemini-1", "gemini-2"].iter().any(|old| model.contains(old));
    let is_pro = model.contains("pro");
    let most: u64 = if is_pro { 32_768 } else { 24_576 };
    let least = if is_pro {
        128
    } else if model.contains("flash-lite") {
        512
    } else {
        1
    };
    Some(match question.thinking.as_ref()? {
        Thinking::Off if is_old && !is_pro => json!({"thinkingBudget": 0}),
        Thinking::Off => {
            dropped.push("reasoning_effort".into());
            if is_old {
                json!({"thinkingBudget": least})
            } else {
                json!({"thinkingLevel": if is_pro { "LOW" } else { "MINIMAL" }})
            }
        }
        Thinking::Adaptive => json!({"thinkingBudget": -1, "includeThoughts": true}),
        Thinking::Budget(budget) => {
            json!({"thinkingBudget": (*budget).clamp(least, most), "includeThoughts": true})
        }
        Thinking::Effort(effort) if is_old => {
            let budget = match effort.as_str() {
                "minimal" | "low" => 1024,
                "medium" => 8192,
                _ => 24_576,
            };
            json!({"thinkingBudget": budget, "includeThoughts": true})
        }
        Thinking::Effort(effort) => {
            let level = match effort.as_str() {
                "minimal" if !is_pro => "MINIMAL",
                "minimal" | "low" => "LOW",
                "medium" => "MEDIUM",
                _ => "HIGH",
            };
            json!({"thinkingLevel": level, "includeThoughts": true})
        }
    })
}

fn write_tool(tool: &Tool) -> Value {
    let mut function = json!({"name": safe(&tool.name)});
    set(&mut function, "description", tool.description.clone());
    set(
        &mut function,
        "parametersJsonSchema",
        Some(schemas::with_null(&tool.schema)).filter(|schema| !schema.is_null()),
    );
    function
}

/// Names may have letters, digits, `_`, `-` and `.`, and begin with a letter or `_`.
pub(super) fn safe(name: &str) -> String {
    if name.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '.') {
        return safe_name(&format!("_{name}"), NAME_CHARS, "-.");
    }
    safe_name(name, NAME_CHARS, "-.")
}

fn write_turn(names: &calls::Names<'_>, role: Role, pieces: &[&Piece]) -> Result<Value, Failure> {
    let role = if role == Role::Assistant { "model" } else { "user" };
    let pieces = pieces.iter().copied();
    // Results are objects: images in them come after, as the user's.
    let within = pieces.clone().flat_map(|piece| match piece {
        Piece::Result { content, .. } => content.as_slice(),
        _ => &[],
    });
    let within = within.filter(|piece| matches!(piece, Piece::Image { .. } | Piece::Document { .. }));
    let parts = pieces.chain(within).map(|piece| part(names, piece));
    let parts: Vec<Value> = parts
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect();
    Ok(json!({"role": role, "parts": parts}))
}

fn part(names: &calls::Names<'_>, piece: &Piece) -> Result<Option<Value>, Failure> {
    Ok(Some(match piece {
        Piece::Text { text, .. } => json!({"text": text}),
        Piece::Image {
            source: Source::Data { media_type, data },
            ..
        }
        | Piece::Document {
            source: Source::Data { media_type, data },
            ..
        } => json!({"inlineData": {"mimeType": media_type, "data": data}}),
        Piece::Image { .. } | Piece::Document { .. } => {
            let message = "this provider takes images and files as data only; send a data: URL";
            return Err(refused("messages", message));
        }
        // Thoughts of others are of no use here, and its own need not come back.
        Piece::Thinking { .. } | Piece::Redacted(_) => return Ok(None),
        Piece::Call {
            name,
            arguments,
            signature,
            ..
        } => {
            let signature = signature.as_deref().unwrap_or(NO_SIGNATURE);
            json!({"functionCall": {"name": safe(name), "args": object(arguments)}, "thoughtSignature": signature})
        }
        Piece::Result {
            id,
            name,
            content,
            is_error,
            ..
        } => {
            let name = name.as_deref().or_else(|| names.name(id)).ok_or_else(|| {
                refused(
                    "messages",
                    format!("the result of the call `{id}` answers no call of this conversation"),
                )
            })?;
            let said = joined(content);
            let key = if *is_error { "error" } else { "result" };
            // An object goes through as it is; anything else is wrapped in one.
            let response = serde_json::from_str::<Value>(&said).ok().filter(Value::is_object);
            let response = response.unwrap_or_else(|| json!({key: said}));
            json!({"functionResponse": {"name": safe(name), "response": response}})
        }
    }))
}

fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::Calls => "STOP",
        Finish::Length => "MAX_TOKENS",
        Finish::Filter => "SAFETY",
    }
}

fn usage_value(usage: &Usage) -> Value {
    json!({
        "promptTokenCount": usage.input,
        "cachedContentTokenCount": usage.cache_read,
        "candidatesTokenCount": usage.output.saturating_sub(usage.reasoning),
        "thoughtsTokenCount": usage.reasoning,
        "totalTokenCount": usage.input.saturating_add(usage.output),
    })
}

fn read_usage(value: &Value) -> Usage {
    let n = |name: &str| value[name].as_u64().unwrap_or(0);
    let thoughts = n("thoughtsTokenCount");
    let input = n("promptTokenCount").saturating_add(n("toolUsePromptTokenCount"));
    Usage {
        input,
        cache_read: n("cachedContentTokenCount").min(input),
        output: n("candidatesTokenCount").saturating_add(thoughts),
        reasoning: thoughts,
        ..Usage::default()
    }
}

/// A piece of an answer as a part.
fn answer_part(piece: &Piece) -> Option<Value> {
    Some(match piece {
        Piece::Text { text, .. } => json!({"text": text}),
        Piece::Thinking { text, .. } => json!({"text": text, "thought": true}),
        Piece::Call {
            id,
            name,
            arguments,
            signature,
        } => {
            let mut part = json!({"functionCall": {"id": id, "name": name, "args": object(arguments)}});
            set(&mut part, "thoughtSignature", signature.clone());
            part
        }
        _ => return None,
    })
}

pub(super) fn answer(answer: &Answer) -> Value {
    let parts: Vec<Value> = answer.pieces.iter().filter_map(answer_part).collect();
    let finish = finish_name(answer.finish.unwrap_or(Finish::Stop));
    json!({
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": finish, "index": 0}],
        "usageMetadata": usage_value(&answer.usage),
        "modelVersion": answer.model,
        "responseId": answer.id,
    })
}

/// Writes events: each a whole answer with a piece of it. Calls come whole, so their arguments are held.
#[derive(Default)]
pub(super) struct ContentWriter {
    id: String,
    model: String,
    call: Option<(Event, String)>,
    usage: Usage,
    finish: Option<Finish>,
}

impl ContentWriter {
    fn write(&self, parts: &Value, finish: Option<Finish>, out: &mut Vec<u8>) {
        let mut candidate = json!({"content": {"role": "model", "parts": parts}, "index": 0});
        set(&mut candidate, "finishReason", finish.map(finish_name));
        let mut value = json!({"candidates": [candidate], "modelVersion": self.model, "responseId": self.id});
        if finish.is_some() {
            value["usageMetadata"] = usage_value(&self.usage);
        }
        out.extend_from_slice(format!("data: {value}\n\n").as_bytes());
    }

    fn end_call(&mut self, out: &mut Vec<u8>) {
        if let Some((Event::Call { id, name, signature }, arguments)) = self.call.take() {
            let piece = Piece::Call {
                id,
                name,
                signature,
                arguments: super::parsed(&arguments),
            };
            if let Some(part) = answer_part(&piece) {
                self.write(&json!([part]), None, out);
            }
        }
    }
}

impl Writer for ContentWriter {
    fn event(&mut self, event: &Event, out: &mut Vec<u8>) {
        if let (Event::Arguments(more), Some((_, arguments))) = (event, &mut self.call) {
            arguments.push_str(more);
            return;
        }
        self.end_call(out);
        match event {
            Event::Begin { id, model } => (self.id, self.model) = (id.clone(), model.clone()),
            Event::Text(text) => self.write(&json!([{"text": text}]), None, out),
            Event::Thinking(text) => self.write(&json!([{"text": text, "thought": true}]), None, out),
            Event::Call { .. } => self.call = Some((event.clone(), String::new())),
            Event::Usage(usage) => self.usage = *usage,
            Event::End(finish) => self.finish = Some(*finish),
            Event::Signature(_) | Event::Redacted(_) | Event::Arguments(_) | Event::Broken(_) => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.end_call(out);
        let finish = self.finish.unwrap_or(Finish::Stop);
        self.write(&json!([]), Some(finish), out);
    }
}

/// For whom answers are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Client {
    /// Gets them in other words.
    #[default]
    Other,
    /// Speaks this API too, and gets them as they came.
    Own,
    /// The same, also where a prompt was refused: nobody else is asked then.
    OwnRefused,
}

/// Reads answers, whole or as records of a stream, which are alike.
#[derive(Default)]
pub(super) struct ContentReader {
    client: Client,
    has_begun: bool,
    has_calls: bool,
    is_done: bool,
    /// Candidates that have begun and not ended, as bits: who speaks this API itself may ask for several.
    open: u64,
}

impl Alike for ContentReader {
    fn read(&mut self, value: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        if !value["error"].is_null() {
            return Err(Failure::of_value(value, None));
        }
        if let Some(reason) = value["promptFeedback"]["blockReason"].as_str() {
            events.extend(usage_event(value));
            if self.client == Client::OwnRefused {
                self.is_done = true;
                events.push(Event::End(Finish::Filter));
                return Ok(());
            }
            let message = format!("the provider refused the prompt ({reason})");
            return Err(Failure::new(Class::ContentPolicy, 400, message));
        }
        if !self.has_begun {
            self.has_begun = true;
            events.push(Event::Begin {
                id: text(&value["responseId"]).unwrap_or_else(|| new_id("")),
                model: text(&value["modelVersion"]).unwrap_or_default(),
            });
        }
        let candidates = &value["candidates"];
        for candidate in candidates.as_array().into_iter().flatten() {
            let bit = 1 << candidate["index"].as_u64().unwrap_or(0).min(63);
            self.open &= !bit;
            if candidate["finishReason"].is_null() {
                self.open |= bit;
            }
        }
        let candidate = &candidates[0];
        for part in candidate["content"]["parts"].as_array().into_iter().flatten() {
            self.read_part(part, events);
        }
        events.extend(usage_event(value));
        if let Some(reason) = candidate["finishReason"].as_str() {
            self.is_done = true;
            events.push(self.end_of(reason));
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.is_done
    }

    fn may_be_over(&self) -> bool {
        self.is_done && self.open == 0
    }
}

fn usage_event(value: &Value) -> Option<Event> {
    let usage = &value["usageMetadata"];
    usage.is_object().then(|| Event::Usage(read_usage(usage)))
}

impl ContentReader {
    pub(super) fn of(client: Client) -> Self {
        Self {
            client,
            ..Self::default()
        }
    }

    fn read_part(&mut self, part: &Value, events: &mut Vec<Event>) {
        if let Some(said) = text(&part["text"]).filter(|text| !text.is_empty()) {
            events.push(if part["thought"] == true {
                Event::Thinking(said)
            } else {
                Event::Text(said)
            });
        }
        if part["inlineData"].is_object() && self.client == Client::Other {
            let why =
                "the provider answered with a picture or a sound, for which the client's API has no place";
            events.push(Event::Broken(why.into()));
        }
        let call = &part["functionCall"];
        if call.is_object() {
            self.has_calls = true;
            events.push(Event::Call {
                id: text(&call["id"]).unwrap_or_else(|| new_id("call_")),
                name: text(&call["name"]).unwrap_or_default(),
                signature: text(&part["thoughtSignature"]),
            });
            if !call["args"].is_null() {
                events.push(Event::Arguments(call["args"].to_string()));
            }
        }
    }

    fn end_of(&self, reason: &str) -> Event {
        Event::End(match reason {
            "STOP" | "FINISH_REASON_UNSPECIFIED" if self.has_calls => Finish::Calls,
            "STOP" | "FINISH_REASON_UNSPECIFIED" => Finish::Stop,
            "MAX_TOKENS" => Finish::Length,
            "SAFETY"
            | "RECITATION"
            | "LANGUAGE"
            | "BLOCKLIST"
            | "PROHIBITED_CONTENT"
            | "SPII"
            | "IMAGE_SAFETY"
            | "IMAGE_PROHIBITED_CONTENT"
            | "IMAGE_RECITATION" => Finish::Filter,
            // A call that it could not write, no image where there should be one, and whatever is new.
            other => return broken::event(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_are_told_within_the_bounds_of_a_family() {
        let told = |thinking: Thinking, model: &str| {
            let question = Question {
                thinking: Some(thinking),
                ..Question::default()
            };
            let (told, dropped) = question.write(crate::endpoint::Dialect::Gemini, model).unwrap();
            let config = &told["generationConfig"]["thinkingConfig"];
            let how = match &config["thinkingLevel"] {
                Value::Null => config["thinkingBudget"].to_string(),
                level => level.to_string(),
            };
            (how, dropped.len())
        };
        let budget = |model: &str, budget: u64| told(Thinking::Budget(budget), model).0;
        assert_eq!(budget("gemini-2.5-flash", 31_999), "24576");
        assert_eq!(budget("gemini-2.5-flash", 2000), "2000");
        assert_eq!(budget("gemini-2.5-flash-lite", 100), "512");
        assert_eq!(budget("gemini-2.5-pro", 100_000), "32768");
        assert_eq!(budget("gemini-2.5-pro", 1), "128");
        let off = |model: &str| told(Thinking::Off, model);
        assert_eq!(off("gemini-2.5-flash-lite"), ("0".into(), 0));
        assert_eq!(off("gemini-2.5-pro"), ("128".into(), 1));
        assert_eq!(off("gemini-3-pro-preview"), ("\"LOW\"".into(), 1));
        assert_eq!(off("gemini-3-flash"), ("\"MINIMAL\"".into(), 1));
    }

    #[test]
    fn only_those_functions_are_called_that_may_be() {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        let chosen = |choice: Value| {
            let body = json!({"messages": [{"role": "user", "content": "x"}], "tools": [tool("a"), tool("b.c:d")],
                "tool_choice": choice});
            let question = Question::read(crate::endpoint::Endpoint::Chat, &body).unwrap();
            let (told, _) = question.write(crate::endpoint::Dialect::Gemini, "m").unwrap();
            told["toolConfig"]["functionCallingConfig"].clone()
        };
        let named = json!({"type": "function", "function": {"name": "b.c:d"}});
        assert_eq!(
            chosen(named),
            json!({"mode": "ANY", "allowedFunctionNames": ["b.c_d"]})
        );
        assert_eq!(chosen(json!("required")), json!({"mode": "ANY"}));
        assert_eq!(chosen(json!("none")), json!({"mode": "NONE"}));
        assert_eq!(chosen(json!("auto")), json!({"mode": "AUTO"}));

        let asked = |mode: &str, names: &[&str]| {
            let functions = ["a", "b", "c"].map(|name| json!({"name": name}));
            let config = json!({"mode": mode, "allowedFunctionNames": names});
            let body = json!({"contents": [{"parts": [{"text": "x"}]}], "tools": [{"functionDeclarations": functions}],
                "toolConfig": {"functionCallingConfig": config}});
            let (told, _) = question(&body)
                .unwrap()
                .write(crate::endpoint::Dialect::OpenAi, "m")
                .unwrap();
            let names = told["tools"].as_array().unwrap().iter();
            let names: String = names
                .map(|tool| tool["function"]["name"].as_str().unwrap())
                .collect();
            (names, told["tool_choice"].clone())
        };
        let named = json!({"type": "function", "function": {"name": "b"}});
        assert_eq!(asked("ANY", &["b"]), ("b".into(), named));
        assert_eq!(asked("ANY", &["a", "c"]), ("ac".into(), json!("required")));
        assert_eq!(asked("ANY", &[]), ("abc".into(), json!("required")));
        assert_eq!(asked("VALIDATED", &["a"]), ("a".into(), json!("auto")));
        assert_eq!(asked("AUTO", &["a"]), ("abc".into(), json!("auto")));
    }

    #[test]
    fn a_stream_may_be_over_when_all_candidates_have_ended() {
        let mut reader = ContentReader::default();
        let mut over = |candidates: Value| {
            reader
                .read(&json!({"candidates": candidates}), &mut Vec::new())
                .unwrap();
            Alike::may_be_over(&reader)
        };
        let said = |index: u64| json!({"index": index, "content": {"parts": [{"text": "x"}]}});
        let ended = |index: u64| json!({"index": index, "finishReason": "STOP"});
        assert!(!over(json!([said(0), said(1)])));
        assert!(!over(json!([ended(0)])));
        assert!(!over(json!([said(1)])));
        assert!(over(json!([ended(1)])));
        assert!(over(json!([])), "what comes after changes nothing");
    }

    #[test]
    fn a_result_without_an_id_answers_the_call_that_has_one() {
        let call = |id: &str| json!({"functionCall": {"id": id, "name": "f", "args": {}}});
        let result = |more: Value| {
            let mut response = json!({"name": "f", "response": {}});
            if more.is_string() {
                response["id"] = more;
            }
            json!({"functionResponse": response})
        };
        let body = json!({"contents": [
            {"role": "user", "parts": [{"text": "x"}]},
            {"role": "model", "parts": [call("call_abc"), call("call_def"), call("call_ghi")]},
            {"role": "user", "parts": [result(json!("call_def")), result(json!(null)), result(json!(null))]},
        ]});
        let question = question(&body).unwrap();
        for (dialect, pointers) in [
            (
                crate::endpoint::Dialect::OpenAi,
                [
                    "/messages/2/tool_call_id",
                    "/messages/3/tool_call_id",
                    "/messages/4/tool_call_id",
                ],
            ),
            (
                crate::endpoint::Dialect::Anthropic,
                [
                    "/messages/2/content/0/tool_use_id",
                    "/messages/2/content/1/tool_use_id",
                    "/messages/2/content/2/tool_use_id",
                ],
            ),
        ] {
            let (told, _) = question.write(dialect, "m").unwrap();
            let ids = pointers.map(|pointer| told.pointer(pointer).unwrap().as_str().unwrap());
            assert_eq!(ids, ["call_def", "call_abc", "call_ghi"], "{told}");
        }
    }

    #[test]
    fn functions_have_names_that_google_takes() {
        for (name, expected) in [
            ("a.b-c_d", "a.b-c_d"),
            ("ns:tool/x", "ns_tool_x"),
            ("3d", "_3d"),
            ("", "_"),
        ] {
            assert_eq!(safe(name), expected);
        }
        assert_eq!(safe(&"x".repeat(65)).len(), NAME_CHARS);
    }

    #[test]
    fn ids_are_short_and_results_find_their_calls() {
        let long = "a_function_with_a_name_of_sixty_characters_as_google_allows_it";
        let call = |name: &str| json!({"functionCall": {"name": name, "args": {}}});
        let result = |name: &str| json!({"functionResponse": {"name": name, "response": {}}});
        let body = json!({"contents": [
            {"role": "user", "parts": [{"text": "x"}]},
            {"role": "model", "parts": [call(long), call(long), call("f")]},
            {"role": "user", "parts": [result(long), result("f"), result(long)]},
        ]});
        let (told, _) = question(&body)
            .unwrap()
            .write(crate::endpoint::Dialect::OpenAi, "m")
            .unwrap();
        let messages = told["messages"].as_array().unwrap();
        let ids: Vec<&str> = messages[1]["tool_calls"]
            .as_array()
            .unwrap()
            .iter()
            .map(|call| call["id"].as_str().unwrap())
            .collect();
        assert!(ids.iter().all(|id| id.len() <= 40) && ids[0] != ids[1], "{ids:?}");
        let answered: Vec<&str> = messages[2..]
            .iter()
            .map(|message| message["tool_call_id"].as_str().unwrap())
            .collect();
        assert_eq!(answered, [ids[0], ids[2], ids[1]]);
    }
}
