//! How the model is told of tools, what binds its calls, and how they are read back.
//!
//! Models with tokens for tools (Gemma 4) use their own format ([`native`]); all others are told in the prompt and call
//! in JSON ([`prompted`]).

pub(crate) mod native;
pub(crate) mod prompted;
mod schema;

pub(crate) use schema::check as check_schema;

use carat_api::{ApiError, GenerationRequest, Tool, ToolChoice, Turn};
use serde_json::Value;

/// Calls in one answer.
const MAX_CALLS: usize = 16;
/// Calls of a conversation among which a result's own is looked for.
const MAX_WAITING: usize = 1024;

/// Whether the model may call tools in this request.
pub(crate) fn are_offered(request: &GenerationRequest) -> bool {
    !request.tools.is_empty() && request.tool_choice != ToolChoice::None
}

/// The tools that the answer may call.
fn callable(request: &GenerationRequest) -> Vec<&Tool> {
    let is_wanted = |tool: &&Tool| match &request.tool_choice {
        ToolChoice::Named(name) => tool.name == *name,
        _ => true,
    };
    request.tools.iter().filter(is_wanted).collect()
}

/// Refuses tools whose schemas go in a circle: the compiler takes them, and there is no answer.
pub(crate) fn refuse_circles(request: &GenerationRequest) -> Result<(), ApiError> {
    for tool in callable(request) {
        if let Some(circle) = schema::circle(&tool.parameters) {
            let message = format!("the parameters of `{}` cannot be used: {circle}", tool.name);
            return Err(ApiError::field("tools", message));
        }
    }
    Ok(())
}

/// A tool's schema as that of an object with known fields: what the function does not know helps nobody, and small models
/// make up much. Where references or alternatives say which fields there are, closing the outermost object would close it
/// against theirs.
fn arguments_schema(tool: &Tool) -> Value {
    let mut schema = tool.parameters.clone();
    if !tool.is_strict {
        forget_unknown_patterns(&mut schema);
    }
    if let Some(fields) = schema.as_object_mut() {
        if ["$ref", "anyOf", "oneOf", "allOf"]
            .iter()
            .any(|key| fields.contains_key(*key))
        {
            return schema;
        }
        fields.entry("type").or_insert_with(|| "object".into());
        fields.entry("additionalProperties").or_insert(Value::Bool(false));
    }
    schema
}

/// Leaves out the patterns that look around, which the compiler of grammars does not know.
fn forget_unknown_patterns(schema: &mut Value) {
    const AROUND: [&str; 4] = ["(?=", "(?!", "(?<=", "(?<!"];
    match schema {
        Value::Array(all) => all.iter_mut().for_each(forget_unknown_patterns),
        Value::Object(fields) => {
            let pattern = fields.get("pattern").and_then(Value::as_str).unwrap_or_default();
            if AROUND.iter().any(|around| pattern.contains(around)) {
                fields.remove("pattern");
            }
            fields.values_mut().for_each(forget_unknown_patterns);
        }
        _ => {}
    }
}

/// Where a turn stands in the request.
fn path_of(turn: &Turn) -> &str {
    Some(turn.path.as_str())
        .filter(|path| !path.is_empty())
        .unwrap_or("messages")
}

/// The refusal of a result that answers no call.
fn no_call(turn: &Turn) -> ApiError {
    let path = path_of(turn);
    let message = format!("`{path}` is a tool's result, but no call before it has its id");
    ApiError::field(path, message)
}
