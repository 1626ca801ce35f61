//! The request of `/v1/responses`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::{WireSampling, arguments, effort, max_tokens, tool, tool_choice};
use crate::read::parse;
use crate::{ApiError, Format, GenerationRequest, Media, Part, Role, Tool, ToolCall, Turn};

/// A request with what only this API has.
#[derive(Debug)]
pub struct ResponsesRequest {
    /// The conversation of this request, without what came before and without instructions.
    pub generation: GenerationRequest,
    /// The response that this one continues.
    pub previous_response_id: Option<String>,
    /// Instructions for this response only.
    pub instructions: Option<String>,
    /// Whether the response is kept.
    pub store: bool,
    /// What the answer repeats of the request.
    pub echo: Value,
}

#[derive(Deserialize)]
struct Wire {
    model: Option<String>,
    input: Value,
    instructions: Option<String>,
    previous_response_id: Option<String>,
    conversation: Option<Value>,
    store: Option<bool>,
    stream: Option<bool>,
    background: Option<bool>,
    max_output_tokens: Option<u32>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    text: Option<Text>,
    reasoning: Option<Reasoning>,
    top_logprobs: Option<u32>,
    metadata: Option<Value>,
}

#[derive(Deserialize)]
struct Text {
    format: Option<Value>,
}

#[derive(Deserialize)]
struct Reasoning {
    effort: Option<String>,
}

/// Reads the body.
///
/// # Errors
/// What cannot be done, with the field's name.
pub fn responses_request(body: &[u8]) -> Result<ResponsesRequest, ApiError> {
    let (wire, sampling): (Wire, WireSampling) = (parse(body)?, parse(body)?);
    let refused = [
        (
            "conversation",
            wire.conversation.is_some_and(|value| !value.is_null()),
        ),
        ("background", wire.background == Some(true)),
        ("top_logprobs", wire.top_logprobs.is_some_and(|n| n > 0)),
    ];
    if let Some((field, _)) = refused.iter().find(|(_, given)| *given) {
        return Err(ApiError::field(
            *field,
            format!("`{field}` is not supported; leave it out"),
        ));
    }
    let given = wire.tools.unwrap_or_default();
    let tools: Vec<Tool> = given
        .iter()
        .enumerate()
        .map(|(i, value)| flat_tool(value, i))
        .collect::<Result<_, _>>()?;
    let Echo { temperature, top_p } = serde_json::from_slice(body).unwrap_or_default();
    let text_format = wire
        .text
        .and_then(|text| text.format)
        .filter(|value| !value.is_null());
    let echo = json!({
        "instructions": wire.instructions, "metadata": wire.metadata.unwrap_or_else(|| json!({})),
        "parallel_tool_calls": wire.parallel_tool_calls.unwrap_or(true),
        "previous_response_id": wire.previous_response_id,
        "temperature": temperature, "top_p": top_p,
        "text": {"format": text_format.clone().unwrap_or_else(|| json!({"type": "text"}))},
        "tool_choice": wire.tool_choice.clone().unwrap_or_else(|| "auto".into()), "tools": given,
        "max_output_tokens": wire.max_output_tokens, "store": wire.store.unwrap_or(true),
    });
    let wish = wire.reasoning.and_then(|reasoning| reasoning.effort);
    let thinking = effort(wish.as_deref(), "reasoning.effort")?;
    let generation = GenerationRequest {
        continues: None,
        model: wire.model.unwrap_or_default(),
        turns: turns(&wire.input)?,
        tool_choice: tool_choice(wire.tool_choice, &tools)?,
        tools,
        parallel_tool_calls: wire.parallel_tool_calls.unwrap_or(true),
        format: format(text_format)?,
        format_field: "text.format.schema",
        sampling: sampling.into_sampling()?,
        max_tokens: max_tokens(wire.max_output_tokens, "max_output_tokens")?,
        n: 1,
        thinking: thinking.wanted,
        thinking_budget: thinking.budget,
        stream: wire.stream.unwrap_or(false),
        ..GenerationRequest::default()
    };
    Ok(ResponsesRequest {
        generation,
        previous_response_id: wire.previous_response_id,
        instructions: wire.instructions,
        store: wire.store.unwrap_or(true),
        echo,
    })
}

/// Temperature and top-p as they were sent, for the answer to repeat.
#[derive(Default, Deserialize)]
struct Echo {
    temperature: Option<f64>,
    top_p: Option<f64>,
}

fn format(format: Option<Value>) -> Result<Format, ApiError> {
    let Some(format) = format else {
        return Ok(Format::Text);
    };
    match format["type"].as_str() {
        Some("text") | None => Ok(Format::Text),
        Some("json_object") => Ok(Format::JsonObject),
        Some("json_schema") if format["schema"].is_object() => {
            Ok(Format::JsonSchema(format["schema"].clone()))
        }
        Some("json_schema") => Err(ApiError::field(
            "text.format.schema",
            "`text.format.schema` is missing",
        )),
        Some(other) => {
            let message = format!("`text.format.type` is `{other}`; give text, json_object or json_schema");
            Err(ApiError::field("text.format.type", message))
        }
    }
}

/// Tools of this API are flat.
fn flat_tool(value: &Value, i: usize) -> Result<Tool, ApiError> {
    let path = format!("tools[{i}]");
    match value["type"].as_str() {
        Some("function") => tool(
            value["name"].as_str().unwrap_or_default().to_string(),
            value["description"].as_str().map(ToString::to_string),
            value.get("parameters").cloned(),
            value["strict"].as_bool(),
            &path,
        ),
        other => {
            let other = other.unwrap_or("nothing");
            let message = format!("`{path}.type` is `{other}`; only `function` is supported");
            Err(ApiError::field(format!("{path}.type"), message))
        }
    }
}

/// Turns from the input: a text, or items.
fn turns(input: &Value) -> Result<Vec<Turn>, ApiError> {
    let items = match input {
        Value::String(text) => return Ok(vec![Turn::text(Role::User, text).at("input")]),
        Value::Array(items) if !items.is_empty() => items,
        _ => {
            return Err(ApiError::field(
                "input",
                "`input` must be a string or an array of items, not empty",
            ));
        }
    };
    let mut turns: Vec<Turn> = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let path = format!("input[{i}]");
        match item["type"].as_str().unwrap_or("message") {
            "message" => turns.push(message(item, &path)?),
            "function_call" => {
                let call = ToolCall {
                    id: text_of(item, "call_id"),
                    name: text_of(item, "name"),
                    arguments: arguments(item["arguments"].clone(), &format!("{path}.arguments"))?,
                };
                // Calls that follow each other are one turn of the model.
                match turns.last_mut() {
                    Some(turn) if turn.role == Role::Assistant => turn.tool_calls.push(call),
                    _ => turns.push(Turn {
                        tool_calls: vec![call],
                        ..Turn::new(Role::Assistant, Vec::new()).at(path)
                    }),
                }
            }
            "function_call_output" => {
                let parts = match &item["output"] {
                    Value::String(text) => vec![Part::Text(text.clone())],
                    Value::Array(all) => parts(all, &format!("{path}.output"))?,
                    other => vec![Part::Text(other.to_string())],
                };
                turns.push(Turn {
                    tool_call_id: Some(text_of(item, "call_id")),
                    ..Turn::new(Role::Tool, parts).at(path)
                });
            }
            // What the model thought before an earlier answer is not shown to it again.
            "reasoning" => {}
            other => {
                let message = format!("`{path}` is of type `{other}`, which is not supported");
                return Err(ApiError::field(format!("{path}.type"), message));
            }
        }
    }
    Ok(turns)
}

fn text_of(item: &Value, field: &str) -> String {
    item[field].as_str().unwrap_or_default().to_string()
}

fn message(item: &Value, path: &str) -> Result<Turn, ApiError> {
    let role = match item["role"].as_str() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        _ => {
            let message = format!("`{path}.role` must be system, developer, user or assistant");
            return Err(ApiError::field(format!("{path}.role"), message));
        }
    };
    match &item["content"] {
        Value::String(text) => Ok(Turn::text(role, text).at(path)),
        Value::Array(all) => Ok(Turn::new(role, parts(all, &format!("{path}.content"))?).at(path)),
        _ => {
            let message = format!("`{path}.content` must be a string or an array of parts");
            Err(ApiError::field(format!("{path}.content"), message))
        }
    }
}

/// Parts of a message or of a call's result, which stand at `path`.
fn parts(all: &[Value], path: &str) -> Result<Vec<Part>, ApiError> {
    let part = |(j, part): (usize, &Value)| {
        let path = format!("{path}[{j}]");
        match (
            part["type"].as_str().unwrap_or_default(),
            part["text"].as_str().or(part["refusal"].as_str()),
        ) {
            ("input_text" | "output_text" | "text" | "refusal", Some(text)) => {
                Ok(Part::Text(text.to_string()))
            }
            ("input_image", _) => {
                let url = part["image_url"].as_str().or(part["image_url"]["url"].as_str());
                let path = format!("{path}.image_url");
                Ok(Part::Image(Media::of_url(&path, url.unwrap_or_default())?))
            }
            ("input_audio", _) => {
                let data = part["input_audio"]["data"].as_str().or(part["data"].as_str());
                let path = format!("{path}.input_audio.data");
                Ok(Part::Audio(Media::of_base64(&path, data.unwrap_or_default())?))
            }
            (other, _) => {
                let message = format!(
                    "`{path}` is of type `{other}`, which is not supported; send input_text, input_image or \
                     input_audio (videos are taken by /v1/chat/completions)"
                );
                Err(ApiError::field(path, message))
            }
        }
    };
    all.iter().enumerate().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_become_turns() {
        let body = json!({
            "model": "m", "instructions": "Be brief.", "store": false,
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
                {"type": "reasoning", "summary": []},
                {"type": "function_call", "call_id": "a", "name": "w", "arguments": "{\"x\": 1}"},
                {"type": "function_call", "call_id": "b", "name": "w", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "a", "output": "sun"},
                {"type": "function_call_output", "call_id": "b", "output": [
                    {"type": "input_text", "text": "See"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]},
            ],
            "tools": [{"type": "function", "name": "w", "parameters": {"type": "object"}}],
            "text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}},
        });
        let request = responses_request(body.to_string().as_bytes()).unwrap();
        let turns = &request.generation.turns;
        assert_eq!(turns.len(), 4);
        assert!(matches!(turns[3].parts[..], [Part::Text(_), Part::Image(_)]));
        assert_eq!(turns[1].tool_calls.len(), 2);
        assert_eq!(turns[2].tool_call_id.as_deref(), Some("a"));
        assert!(!request.store && matches!(request.generation.format, Format::JsonSchema(_)));
    }

    #[test]
    fn what_needs_a_cloud_is_refused() {
        let param = |change: Value| {
            let mut body = json!({"input": "x"});
            body.as_object_mut()
                .unwrap()
                .extend(change.as_object().unwrap().clone());
            responses_request(body.to_string().as_bytes())
                .unwrap_err()
                .param
                .unwrap()
        };
        assert_eq!(param(json!({"background": true})), "background");
        assert_eq!(param(json!({"tools": [{"type": "web_search"}]})), "tools[0].type");
        assert_eq!(
            param(json!({"input": [{"type": "item_reference", "id": "x"}]})),
            "input[0].type"
        );
        assert_eq!(param(json!({"input": 5})), "input");
        assert_eq!(param(json!({"max_output_tokens": 0})), "max_output_tokens");
    }
}
