//! Gemma 4's prompt format, for instruction models whose file carries no template.
//!
//! Turns are `<|turn>ROLE`, newline, content, `<turn|>`, newline, of the roles `system`, `user` and `model`. Thinking and
//! tools are announced in the system turn. A model's turn with calls holds, in this order, its thoughts, the calls,
//! their results and its text; as long as it only has results it stays open, and what is generated next belongs to it.
//! Thoughts of turns before the last user's are left out. This follows the official template of May 2026; as that of
//! July does, a turn of the model that another of its turns follows is not closed between them.

use std::fmt::Write;

use serde_json::Value;

use crate::chat::{Message, Part, RenderOptions, Role, Tool};
use crate::error::Result;
use crate::gemma3::python_strip;

/// Renders `messages`; `bos` is put in front. With `closes_thought` an empty thought follows the generation prompt when
/// thinking is off, as the larger models expect.
pub(crate) fn render(
    messages: &[Message],
    options: RenderOptions<'_>,
    bos: &str,
    closes_thought: bool,
) -> Result<String> {
    let mut prompt = String::from(bos);
    let (system, turns) = match messages {
        [first, turns @ ..] if first.role == Role::System => (Some(first), turns),
        turns => (None, turns),
    };
    push_system(&mut prompt, system, options);
    let last_user = turns.iter().rposition(|turn| turn.role == Role::User);
    let mut is_open = false;
    for (i, turn) in turns.iter().enumerate() {
        if turn.role == Role::Tool {
            continue;
        }
        let before = turns[..i].iter().rev().find(|other| other.role != Role::Tool);
        let is_continued =
            turn.role == Role::Assistant && before.is_some_and(|other| other.role == turn.role);
        if !is_continued {
            let role = if turn.role == Role::Assistant {
                "model"
            } else {
                turn.role.name()
            };
            let _infallible = writeln!(prompt, "<|turn>{role}");
        }
        is_open = push_turn(&mut prompt, turns, i, last_user.is_none_or(|at| i > at));
    }
    if options.add_generation_prompt && !is_open {
        prompt.push_str("<|turn>model\n");
        if closes_thought && !options.thinking {
            prompt.push_str("<|channel>thought\n<channel|>");
        }
    }
    Ok(prompt)
}

/// The system's turn: what it says, that the model shall think, and the tools.
fn push_system(prompt: &mut String, system: Option<&Message>, options: RenderOptions<'_>) {
    if system.is_none() && !options.thinking && options.tools.is_empty() {
        return;
    }
    prompt.push_str("<|turn>system\n");
    if options.thinking {
        prompt.push_str("<|think|>\n");
    }
    match system.map(|system| system.content.as_slice()) {
        Some([Part::Text(text)]) => prompt.push_str(python_strip(text)),
        Some(parts) => {
            for part in parts {
                push_part(prompt, part);
                prompt.push(' ');
            }
        }
        None => {}
    }
    options
        .tools
        .iter()
        .for_each(|tool| push_declaration(prompt, tool));
    prompt.push_str("<turn|>\n");
}

/// What turn `i` says, and its end; whether it is still open.
fn push_turn(prompt: &mut String, turns: &[Message], i: usize, is_recent: bool) -> bool {
    let turn = &turns[i];
    let has_calls = !turn.tool_calls.is_empty();
    if let Some(reasoning) = turn.reasoning.as_ref().filter(|_| has_calls && is_recent) {
        let _infallible = write!(prompt, "<|channel>thought\n{reasoning}\n<channel|>");
    }
    for call in &turn.tool_calls {
        let _infallible = write!(prompt, "<|tool_call>call:{}{{", call.name);
        match &call.arguments {
            Value::Object(fields) => push_fields(prompt, fields, Keys::Bare),
            Value::String(text) => prompt.push_str(text),
            _ => {}
        }
        prompt.push_str("}<tool_call|>");
    }
    let n_results = push_results(prompt, turns, i);
    let before = prompt.len();
    for part in &turn.content {
        match part {
            Part::Text(text) if turn.role == Role::Assistant => {
                prompt.push_str(python_strip(&without_thoughts(text)));
            }
            part => push_part(prompt, part),
        }
    }
    let says_something = prompt.len() > before;
    if has_calls && n_results == 0 {
        prompt.push_str("<|tool_response>");
        return true;
    }
    let mut later = turns[i + 1..].iter().filter(|other| other.role != Role::Tool);
    match later.next() {
        Some(next) if turn.role == Role::Assistant && next.role == turn.role => return true,
        None if n_results > 0 && !says_something => return true,
        _ => prompt.push_str("<turn|>\n"),
    }
    false
}

/// The results of turn `i`'s calls: its own, or those of the tools' messages behind it. Returns how many.
fn push_results(prompt: &mut String, turns: &[Message], i: usize) -> usize {
    let turn = &turns[i];
    for one in &turn.tool_responses {
        let _infallible = write!(prompt, "<|tool_response>response:{}{{", one.name);
        match &one.response {
            Value::Object(fields) => push_fields(prompt, fields, Keys::Bare),
            value => {
                prompt.push_str("value:");
                push_value(prompt, value, Keys::Bare);
            }
        }
        prompt.push_str("}<tool_response|>");
    }
    if turn.tool_calls.is_empty() || !turn.tool_responses.is_empty() {
        return turn.tool_responses.len();
    }
    let results = turns[i + 1..].iter().take_while(|other| other.role == Role::Tool);
    let mut n = 0;
    for result in results {
        let id = result.tool_call_id.as_deref();
        let call = turn.tool_calls.iter().find(|call| Some(call.id.as_str()) == id);
        let name = call.map(|call| call.name.as_str()).or(result.name.as_deref());
        let text: String = result.content.iter().filter_map(text_of).collect();
        let name = name.unwrap_or("unknown");
        let _infallible = write!(prompt, "<|tool_response>response:{name}{{value:");
        push_string(prompt, &text);
        prompt.push_str("}<tool_response|>");
        result
            .content
            .iter()
            .filter(|part| text_of(part).is_none())
            .for_each(|part| push_part(prompt, part));
        n += 1;
    }
    n
}

fn text_of(part: &Part) -> Option<&str> {
    match part {
        Part::Text(text) => Some(text),
        Part::Image | Part::Audio | Part::Video => None,
    }
}

fn push_part(prompt: &mut String, part: &Part) {
    prompt.push_str(match part {
        Part::Text(text) => python_strip(text),
        Part::Image => "<|image|>",
        Part::Audio => "<|audio|>",
        Part::Video => "<|video|>",
    });
}

/// An earlier answer without what stands between the marks of a channel.
fn without_thoughts(text: &str) -> String {
    let parts = text.split("<channel|>");
    parts
        .map(|part| part.split("<|channel>").next().unwrap_or_default())
        .collect()
}

fn push_declaration(prompt: &mut String, tool: &Tool) {
    let _infallible = write!(prompt, "<|tool>declaration:{}{{description:", tool.name);
    push_string(prompt, tool.description.as_deref().unwrap_or_default());
    if let Value::Object(schema) = &tool.parameters {
        prompt.push_str(",parameters:{");
        let mut fields = Fields::new(prompt);
        fields.object_of(schema);
        // The brace is the type's: an object without one is one all the same.
        fields.quoted("type", &type_of(schema).0.unwrap_or_else(|| "OBJECT".into()));
        prompt.push('}');
    }
    prompt.push_str("}<tool|>");
}

type Schema = serde_json::Map<String, Value>;

/// Writes fields with commas between them.
struct Fields<'a> {
    prompt: &'a mut String,
    has_one: bool,
}

impl<'a> Fields<'a> {
    fn new(prompt: &'a mut String) -> Self {
        Self {
            prompt,
            has_one: false,
        }
    }

    fn key(&mut self, key: &str) -> &mut String {
        if std::mem::replace(&mut self.has_one, true) {
            self.prompt.push(',');
        }
        self.prompt.push_str(key);
        self.prompt.push(':');
        self.prompt
    }

    fn quoted(&mut self, key: &str, text: &str) {
        push_string(self.key(key), text);
    }

    /// `properties` and `required` of an object, where it has some.
    fn object_of(&mut self, schema: &Schema) {
        if let Some(Value::Object(properties)) = schema.get("properties").filter(|_| has_properties(schema)) {
            let prompt = self.key("properties");
            prompt.push('{');
            let mut fields = Fields::new(prompt);
            for (name, property) in sorted(properties) {
                let prompt = fields.key(name);
                prompt.push('{');
                push_property(prompt, property);
                prompt.push('}');
            }
            prompt.push('}');
        }
        if let Some(required @ Value::Array(_)) = schema.get("required").filter(|value| !is_empty(value)) {
            push_value(self.key("required"), required, Keys::Bare);
        }
    }
}

fn has_properties(schema: &Schema) -> bool {
    schema.get("properties").is_some_and(|value| !is_empty(value))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Null => true,
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// The fields of one property; the type comes last. What the format does not know is left out.
fn push_property(prompt: &mut String, property: &Value) {
    let Value::Object(schema) = property else { return };
    let (kind, is_nullable) = type_of(schema);
    let mut fields = Fields::new(prompt);
    if let Some(Value::String(description)) = schema.get("description") {
        fields.quoted("description", description);
    }
    match kind.as_deref() {
        Some("STRING") => {
            if let Some(choices) = schema.get("enum").filter(|value| !is_empty(value)) {
                push_value(fields.key("enum"), choices, Keys::Bare);
            }
        }
        Some("ARRAY") => {
            if let Some(Value::Object(items)) = schema.get("items").filter(|value| !is_empty(value)) {
                let prompt = fields.key("items");
                prompt.push('{');
                push_items(prompt, items);
                prompt.push('}');
            }
        }
        _ => {}
    }
    if is_nullable {
        fields.key("nullable").push_str("true");
    }
    if kind.as_deref() == Some("OBJECT") {
        fields.object_of(schema);
    }
    if let Some(kind) = kind {
        fields.quoted("type", &kind);
    }
}

/// The schema of an array's elements: all its keys, in order.
fn push_items(prompt: &mut String, items: &Schema) {
    let mut fields = Fields::new(prompt);
    for (key, value) in sorted(items) {
        match (key.as_str(), value) {
            ("properties", Value::Object(_)) => {
                let only: Schema = [(key.clone(), value.clone())].into_iter().collect();
                fields.object_of(&only);
            }
            ("type", _) => {
                if let Some(kind) = type_of(items).0 {
                    fields.quoted("type", &kind);
                }
            }
            _ => push_value(fields.key(key), value, Keys::Quoted),
        }
    }
}

/// A schema's type in capitals, and whether nothing will do too. A list of types is its first that is one.
fn type_of(schema: &Schema) -> (Option<String>, bool) {
    let is_null = |value: &&Value| value.as_str() == Some("null");
    let (kind, has_null) = match schema.get("type") {
        Some(Value::Array(kinds)) => (
            kinds.iter().find(|kind| !is_null(kind)),
            kinds.iter().any(|kind| is_null(&kind)),
        ),
        kind => (kind, false),
    };
    let is_nullable = has_null || schema.get("nullable") == Some(&Value::Bool(true));
    (kind.and_then(Value::as_str).map(str::to_uppercase), is_nullable)
}

/// Whether keys of objects stand in quotes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    Bare,
    Quoted,
}

fn push_value(prompt: &mut String, value: &Value, keys: Keys) {
    match value {
        Value::Null => prompt.push_str("null"),
        Value::Bool(value) => prompt.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(value) => push_float(prompt, value),
            None => {
                let _infallible = write!(prompt, "{number}");
            }
        },
        Value::String(text) => push_string(prompt, text),
        Value::Array(items) => {
            prompt.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    prompt.push(',');
                }
                push_value(prompt, item, keys);
            }
            prompt.push(']');
        }
        Value::Object(fields) => {
            prompt.push('{');
            push_fields(prompt, fields, keys);
            prompt.push('}');
        }
    }
}

fn push_fields(prompt: &mut String, fields: &Schema, keys: Keys) {
    for (i, (key, value)) in sorted(fields).into_iter().enumerate() {
        if i > 0 {
            prompt.push(',');
        }
        match keys {
            Keys::Bare => prompt.push_str(key),
            Keys::Quoted => push_string(prompt, key),
        }
        prompt.push(':');
        push_value(prompt, value, keys);
    }
}

/// Strings stand between marks of their own and are not escaped.
fn push_string(prompt: &mut String, text: &str) {
    let _infallible = write!(prompt, "<|\"|>{text}<|\"|>");
}

/// As Python prints it: with an exponent of two digits below 1e-4 and from 1e16 on.
fn push_float(prompt: &mut String, value: f64) {
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let _infallible = if (-4..16).contains(&exponent) || value == 0.0 {
        write!(prompt, "{value:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(prompt, "{digits}e{sign}{:02}", exponent.abs())
    };
}

/// Fields in the order of their names, capitals like small letters.
fn sorted(fields: &Schema) -> Vec<(&String, &Value)> {
    let mut fields: Vec<_> = fields.iter().collect();
    fields.sort_by_cached_key(|(key, _)| key.to_lowercase());
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(value: &Value) -> String {
        let mut text = String::new();
        push_value(&mut text, value, Keys::Bare);
        text
    }

    #[test]
    fn numbers_are_written_as_python_does() {
        assert_eq!(
            value(&json!([1.5e-5, 3.0, 1e16, 0.0001, 123_456_789.0, -7, 1e300, 0.0])),
            "[1.5e-05,3.0,1e+16,0.0001,123456789.0,-7,1e+300,0.0]"
        );
    }

    #[test]
    fn a_list_of_types_is_one_that_may_be_missing() {
        let tool = Tool {
            name: "f".into(),
            description: None,
            parameters: json!({"properties": {
                "B": {"type": ["string", "null"]},
                "a": {"type": "array", "items": {"type": "object", "additionalProperties": {"x": 1}}},
            }}),
        };
        let mut text = String::new();
        push_declaration(&mut text, &tool);
        assert_eq!(
            text,
            "<|tool>declaration:f{description:<|\"|><|\"|>,parameters:{properties:{a:{items:{additionalProperties:\
             {<|\"|>x<|\"|>:1},type:<|\"|>OBJECT<|\"|>},type:<|\"|>ARRAY<|\"|>},B:{nullable:true,type:<|\"|>STRING<|\"|>}},\
             type:<|\"|>OBJECT<|\"|>}}<tool|>"
        );
    }

    #[test]
    fn turns_of_the_model_that_follow_each_other_are_one() {
        let say = Message::text;
        let messages = [
            say(Role::User, "a"),
            say(Role::Assistant, "b"),
            say(Role::Assistant, "c"),
            say(Role::User, "d"),
        ];
        let text = render(&messages, RenderOptions::default(), "", false).unwrap();
        assert_eq!(
            text,
            "<|turn>user\na<turn|>\n<|turn>model\nbc<turn|>\n<|turn>user\nd<turn|>\n<|turn>model\n"
        );
    }
}
