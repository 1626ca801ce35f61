//! Tools in Gemma 4's own format: declared by the template, called between two tokens, answered in the same turn.
//!
//! The grammar makes sure that a call is one of a declared tool with arguments valid for its schema. Which results
//! belong to which calls is settled here; the template writes them.

use std::fmt::Write;

use carat_api::{ApiError, Format, GenerationRequest, Role, ToolChoice, Turn};
use carat_engine::Grammar;
use carat_text::Tool;
use serde_json::{Map, Value, json};

use super::schema::{Rules, check, compact};
use super::{MAX_CALLS, MAX_WAITING, arguments_schema, callable, path_of};
use crate::model::CallMarks;

/// Nested values of a declaration: references could name each other for ever.
const MAX_DEPTH: usize = 24;
/// What all declarations of a request may come to, in bytes of their texts and [`VALUE_BYTES`] a value.
const MAX_BYTES: usize = 8 << 20;
/// What a value takes besides its text.
const VALUE_BYTES: usize = 64;

/// The tools as the template declares them.
pub(crate) fn declarations(request: &GenerationRequest) -> Vec<Tool> {
    let mut left = MAX_BYTES;
    let declared = |tool: &carat_api::Tool| Tool {
        name: tool.name.clone(),
        description: tool.description.clone(),
        parameters: plain(&tool.parameters, &tool.parameters, 0, &mut left),
    };
    request.tools.iter().map(declared).collect()
}

/// A schema as the format can tell of it: references are what they name, and a value that may be null besides being of
/// one type is of that type.
fn plain(schema: &Value, root: &Value, depth: usize, left: &mut usize) -> Value {
    let text = schema.as_str().map_or(0, str::len);
    *left = left.saturating_sub(VALUE_BYTES + text);
    if depth > MAX_DEPTH || *left == 0 {
        return json!({});
    }
    let fields = match schema {
        Value::Object(fields) => fields,
        Value::Array(items) => {
            let items = items.iter().map(|item| plain(item, root, depth + 1, left));
            return Value::Array(items.collect());
        }
        other => return other.clone(),
    };
    let target = fields.get("$ref").and_then(Value::as_str);
    let target = target.and_then(|target| root.pointer(target.strip_prefix('#')?));
    let is_null = |schema: &&Value| schema["type"] == "null";
    let alternatives = ["anyOf", "oneOf", "allOf"]
        .iter()
        .find_map(|key| fields.get(*key)?.as_array());
    let single = alternatives.and_then(|all| {
        let mut others = all.iter().filter(|schema| !is_null(schema));
        others.next().filter(|_| others.next().is_none())
    });
    let mut told: Map<String, Value> = match target.or(single) {
        Some(schema) => match plain(schema, root, depth + 1, left) {
            Value::Object(fields) => fields,
            _ => Map::new(),
        },
        None => Map::new(),
    };
    for (key, value) in fields {
        if !matches!(
            key.as_str(),
            "$ref" | "$defs" | "definitions" | "anyOf" | "oneOf" | "allOf"
        ) {
            *left = left.saturating_sub(key.len());
            told.insert(key.clone(), plain(value, root, depth + 1, left));
        }
    }
    if single.is_some() && alternatives.is_some_and(|all| all.iter().any(|schema| is_null(&schema))) {
        told.insert("nullable".into(), Value::Bool(true));
    }
    if let Some(Value::Array(kinds)) = told.get("type") {
        let has_null = kinds.iter().any(|kind| kind == "null");
        if let Some(kind) = kinds.iter().find(|kind| *kind != "null").cloned() {
            told.insert("type".into(), kind);
        }
        if has_null {
            told.insert("nullable".into(), Value::Bool(true));
        }
    }
    Value::Object(told)
}

/// What binds an answer that may call tools.
pub(crate) fn grammar(request: &GenerationRequest, marks: CallMarks) -> Result<Grammar, ApiError> {
    let mut rules = Rules::new(marks.quote);
    let mut calls = Vec::new();
    for tool in callable(request) {
        let arguments = rules.arguments(&arguments_schema(tool), tool.is_strict)?;
        let head = Value::from(format!("call:{}", tool.name));
        calls.push(format!("{head} {arguments}"));
    }
    let mut lark = String::new();
    let many = if request.parallel_tool_calls { MAX_CALLS } else { 1 };
    match request.tool_choice {
        ToolChoice::Auto => {
            let answer = answer(request)?;
            let _infallible = writeln!(lark, "start: answer | text call{{1,{many}}}\nanswer: {answer}");
            // Who asked for JSON gets no text beside it.
            let is_free = request.format == Format::Text;
            lark.push_str(if is_free {
                "text: TEXT?\nTEXT: /(.|\\n)+/\n"
            } else {
                "text: \"\"\n"
            });
        }
        ToolChoice::Required if many > 1 => {
            let _infallible = writeln!(lark, "start: call{{1,{many}}}");
        }
        _ => lark.push_str("start: call\n"),
    }
    let _infallible = writeln!(
        lark,
        "call: <[{}]> one_call <[{}]>\none_call: {}",
        marks.open,
        marks.close,
        calls.join(" | ")
    );
    lark.push_str(&rules.into_text());
    Ok(Grammar::Lark(lark))
}

/// What an answer without calls must look like.
fn answer(request: &GenerationRequest) -> Result<String, ApiError> {
    Ok(match &request.format {
        Format::Text => "| TEXT".to_string(),
        Format::JsonObject => format!("%json {}", compact(&json!({"type": "object"}), true)),
        Format::JsonSchema(schema) => {
            check(schema, request.format_field)?;
            format!("%json {}", compact(schema, true))
        }
        Format::Regex(_) | Format::Lark(_) | Format::Gbnf(_) => {
            let message = "`tools` can be used together with a JSON schema, but not with other grammars";
            return Err(ApiError::field("tools", message));
        }
    })
}

/// Settles which call each result answers. Calls must have results, directly behind them.
pub(crate) fn settled(turns: &[Turn]) -> Result<Vec<Turn>, ApiError> {
    let mut settled: Vec<Turn> = Vec::with_capacity(turns.len());
    let mut waiting: Vec<Waiting<'_>> = Vec::new();
    for made in turns {
        let mut turn = made.clone();
        match turn.role {
            Role::Tool => {
                let call = call_of(made, &mut waiting).ok_or_else(|| super::no_call(made))?;
                (turn.tool_call_id, turn.name) = (Some(call.0).filter(|id| !id.is_empty()), Some(call.1));
            }
            Role::Assistant => {
                if waiting.iter().any(|(.., is_answered)| *is_answered) {
                    waiting.clear();
                }
                let calls = turn.tool_calls.iter();
                if calls.len() + waiting.len() > MAX_WAITING {
                    let path = path_of(made);
                    let message =
                        format!("`{path}` makes more than {MAX_WAITING} calls without results between them");
                    return Err(ApiError::field(path, message));
                }
                waiting.extend(calls.map(|call| (made, call.id.clone(), call.name.clone(), false)));
            }
            Role::User | Role::System => {
                refuse_unanswered(&waiting)?;
                waiting.clear();
            }
        }
        settled.push(turn);
    }
    refuse_unanswered(&waiting)?;
    Ok(settled)
}

/// A call that waits for its result: the turn that made it, its id, its name, whether it has one.
type Waiting<'a> = (&'a Turn, String, String, bool);

/// Id and name of the call that a result answers.
fn call_of(turn: &Turn, waiting: &mut [Waiting<'_>]) -> Option<(String, String)> {
    let id = turn.tool_call_id.as_deref().unwrap_or_default();
    let by_id = waiting.iter().position(|(_, of, ..)| !id.is_empty() && of == id);
    // Ollama's clients send results in order, with or without the function's name.
    let by_name = || {
        let name = turn.name.as_deref()?;
        waiting
            .iter()
            .position(|(_, _, of, is_answered)| of == name && !is_answered)
    };
    let in_order = || {
        let is_free = id.is_empty() && turn.name.is_none();
        waiting
            .iter()
            .position(|(.., is_answered)| is_free && !is_answered)
    };
    let (_, id, name, is_answered) = waiting.get_mut(by_id.or_else(by_name).or_else(in_order)?)?;
    *is_answered = true;
    Some((id.clone(), name.clone()))
}

fn refuse_unanswered(waiting: &[Waiting<'_>]) -> Result<(), ApiError> {
    match waiting.first() {
        Some((turn, ..)) if waiting.iter().all(|(.., is_answered)| !is_answered) => {
            let path = path_of(turn);
            let message = format!("`{path}` calls tools, but no results follow; send one for each call");
            Err(ApiError::field(path, message))
        }
        _ => Ok(()),
    }
}
