//! How the model is told of tools, what binds its calls, and how they are read back.
//!
//! Models with tokens for tools (Gemma 4) use their own format ([`native`]); all others are told in the prompt and call
//! in JSON ([`prompted`]).

pub(crate) mod native;
pub(crate) mod prompted;
mod schema;

use carat_api::{ApiError, GenerationRequest, Tool, ToolChoice};
use serde_json::Value;

/// Calls in one answer.
const MAX_CALLS: usize = 16;

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

/// A tool's schema as that of an object with known fields: what the function does not know helps nobody, and small models
/// make up much. Where references or alternatives say which fields there are, closing the outermost object would close it
/// against theirs.
fn arguments_schema(parameters: &Value) -> Value {
    let mut schema = parameters.clone();
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

/// The refusal of a result that answers no call.
fn no_call(i: usize) -> ApiError {
    let path = format!("messages[{i}]");
    let message = format!("`{path}` is a tool's result, but no call before it has its id");
    ApiError::field(path, message)
}
