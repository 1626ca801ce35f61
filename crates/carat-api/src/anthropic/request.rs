//! The request of `/v1/messages` and of `/v1/messages/count_tokens`.

use serde::Deserialize;
use serde_json::Value;

use crate::generation::take_silent_beginning;
use crate::openai::{Thinking as Effort, arguments, effort, tool};
use crate::read::{TextOr, parse};
use crate::{
    ApiError, Format, GenerationRequest, Media, Part, Role, Sampling, Tool, ToolCall, ToolChoice, Turn,
};

#[derive(Deserialize)]
struct Wire {
    model: Option<String>,
    messages: Vec<Message>,
    max_tokens: Option<u32>,
    system: Option<TextOr<Block>>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    tools: Option<Vec<WireTool>>,
    tool_choice: Option<Choice>,
    thinking: Option<Thinking>,
    output_config: Option<OutputConfig>,
    output_format: Option<Value>,
}

#[derive(Deserialize)]
struct OutputConfig {
    format: Option<Value>,
    effort: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: TextOr<Block>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Block {
    r#type: String,
    text: Option<String>,
    thinking: Option<String>,
    id: Option<String>,
    name: Option<String>,
    input: Option<Value>,
    tool_use_id: Option<String>,
    content: Option<Value>,
    is_error: Option<bool>,
    source: Option<Source>,
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Source {
    r#type: String,
    data: Option<String>,
    url: Option<String>,
}

impl Source {
    fn into_media(self, path: &str) -> Result<Media, ApiError> {
        match (self.r#type.as_str(), self.data, self.url) {
            ("base64", Some(data), _) => Media::of_base64(&format!("{path}.source.data"), &data),
            ("url", _, Some(url)) => Media::of_url(&format!("{path}.source.url"), &url),
            _ => {
                let path = format!("{path}.source");
                let message =
                    format!("`{path}` must be of type base64 with `data`, or of type url with `url`");
                Err(ApiError::field(path, message))
            }
        }
    }
}

#[derive(Deserialize)]
struct WireTool {
    r#type: Option<String>,
    name: Option<String>,
    description: Option<String>,
    input_schema: Option<Value>,
    strict: Option<bool>,
}

#[derive(Deserialize)]
struct Choice {
    r#type: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Deserialize)]
struct Thinking {
    r#type: String,
    budget_tokens: Option<u32>,
}

/// Reads a request for a message.
///
/// # Errors
/// What cannot be done, with the field's name.
pub fn message_request(body: &[u8]) -> Result<GenerationRequest, ApiError> {
    let wire: Wire = parse(body)?;
    let request = convert(wire)?;
    if request.max_tokens.is_none() {
        return Err(ApiError::field(
            "max_tokens",
            "`max_tokens` is missing; say how many tokens the answer may have",
        ));
    }
    Ok(request)
}

/// Reads a request for the number of tokens.
///
/// # Errors
/// What cannot be done, with the field's name.
pub fn count_request(body: &[u8]) -> Result<GenerationRequest, ApiError> {
    convert(parse(body)?)
}

fn convert(wire: Wire) -> Result<GenerationRequest, ApiError> {
    if wire.messages.is_empty() {
        return Err(ApiError::field(
            "messages",
            "`messages` is empty; give at least one",
        ));
    }
    if wire.max_tokens == Some(0) {
        return Err(ApiError::field(
            "max_tokens",
            "`max_tokens` is 0; allow at least one token",
        ));
    }
    let mut turns = Vec::new();
    match wire.system {
        Some(TextOr::Text(text)) if !text.is_empty() => {
            turns.push(Turn::text(Role::System, text).at("system"))
        }
        Some(TextOr::Parts(blocks)) if !blocks.is_empty() => {
            let text = |(i, block): (usize, Block)| {
                let message = format!(
                    "`system[{i}]` is of type `{}`; only text can be there",
                    block.r#type
                );
                block.text.ok_or_else(|| ApiError::field("system", message))
            };
            let texts: Result<Vec<String>, ApiError> = blocks.into_iter().enumerate().map(text).collect();
            turns.push(Turn::text(Role::System, texts?.join("\n\n")).at("system"));
        }
        _ => {}
    }
    for (i, message) in wire.messages.into_iter().enumerate() {
        message.into_turns(i, &mut turns)?;
    }
    let tools = wire.tools.unwrap_or_default().into_iter().enumerate();
    let tools: Vec<Tool> = tools
        .map(|(i, tool)| tool.into_tool(i))
        .collect::<Result<_, _>>()?;
    let is_single = wire
        .tool_choice
        .as_ref()
        .and_then(|choice| choice.disable_parallel_tool_use);
    let level = wire
        .output_config
        .as_ref()
        .and_then(|config| config.effort.as_deref());
    let thinking = thinking(wire.thinking, level, wire.max_tokens)?;
    let config = wire.output_config.as_ref();
    let format_field = match config.and_then(|config| config.format.as_ref()) {
        Some(_) => "output_config.format.schema",
        None => "output_format.schema",
    };
    // Anthropic refuses blanks at its end, where they would keep the model from the words that begin with one.
    let continues = take_silent_beginning(&mut turns).map(|text| text.trim_end().to_string());
    Ok(GenerationRequest {
        continues,
        model: wire.model.unwrap_or_default(),
        turns,
        tool_choice: choice(wire.tool_choice, &tools)?,
        tools,
        parallel_tool_calls: !is_single.unwrap_or(false),
        format: format(
            wire.output_config
                .and_then(|config| config.format)
                .or(wire.output_format),
        )?,
        format_field,
        sampling: Sampling {
            temperature: wire.temperature,
            top_p: wire.top_p,
            top_k: wire.top_k.map(|k| k as usize),
            ..Sampling::default()
        },
        max_tokens: wire.max_tokens.map(|n| n as usize),
        stop: wire.stop_sequences.unwrap_or_default(),
        n: 1,
        thinking: thinking.wanted,
        thinking_budget: thinking.budget,
        stream: wire.stream.unwrap_or(false),
        ..GenerationRequest::default()
    })
}

/// Whether the model thinks; `level` is how much, where no budget says so.
fn thinking(
    thinking: Option<Thinking>,
    level: Option<&str>,
    max_tokens: Option<u32>,
) -> Result<Effort, ApiError> {
    let level = effort(level, "output_config.effort")?;
    let Some(thinking) = thinking else {
        return Ok(Effort::default());
    };
    let wanted = match thinking.r#type.as_str() {
        "enabled" | "adaptive" => true,
        "disabled" => false,
        other => {
            let message = format!("`thinking.type` is `{other}`; give enabled, adaptive or disabled");
            return Err(ApiError::field("thinking.type", message));
        }
    };
    let budget = thinking.budget_tokens.filter(|_| wanted);
    if budget.is_some_and(|n| n == 0 || max_tokens.is_some_and(|most| n >= most)) {
        let message = "`thinking.budget_tokens` must be at least 1 and less than `max_tokens`";
        return Err(ApiError::field("thinking.budget_tokens", message));
    }
    Ok(Effort {
        wanted: Some(wanted),
        budget: budget.map(|n| n as usize).or(level.budget),
    })
}

fn format(format: Option<Value>) -> Result<Format, ApiError> {
    match format {
        None | Some(Value::Null) => Ok(Format::Text),
        Some(format) if format["type"] == "json_schema" && format["schema"].is_object() => {
            Ok(Format::JsonSchema(format["schema"].clone()))
        }
        Some(_) => Err(ApiError::field(
            "output_config.format",
            "`output_config.format` must be of type json_schema and hold a `schema`",
        )),
    }
}

fn choice(choice: Option<Choice>, tools: &[Tool]) -> Result<ToolChoice, ApiError> {
    let field = "tool_choice";
    let Some(choice) = choice else {
        return Ok(ToolChoice::Auto);
    };
    match (choice.r#type.as_str(), choice.name) {
        ("auto", _) => Ok(ToolChoice::Auto),
        ("none", _) => Ok(ToolChoice::None),
        ("any", _) if !tools.is_empty() => Ok(ToolChoice::Required),
        ("tool", Some(name)) if tools.iter().any(|tool| tool.name == name) => Ok(ToolChoice::Named(name)),
        ("any" | "tool", _) => Err(ApiError::field(
            field,
            "`tool_choice` asks for a tool that is not in `tools`",
        )),
        (other, _) => Err(ApiError::field(
            field,
            format!("`tool_choice.type` is `{other}`; give auto, any, tool or none"),
        )),
    }
}

impl WireTool {
    fn into_tool(self, i: usize) -> Result<Tool, ApiError> {
        let path = format!("tools[{i}]");
        match self.r#type.as_deref() {
            None | Some("custom") => tool(
                self.name.unwrap_or_default(),
                self.description,
                self.input_schema,
                self.strict,
                &path,
            ),
            Some(other) => {
                let message = format!("`{path}.type` is `{other}`; only tools of your own are supported");
                Err(ApiError::field(format!("{path}.type"), message))
            }
        }
    }
}

impl Message {
    /// One message may hold results of tools and text: results are turns of their own.
    fn into_turns(self, i: usize, turns: &mut Vec<Turn>) -> Result<(), ApiError> {
        let role = match self.role.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "system" => Role::System,
            other => {
                let message = format!("`{other}` is no role; give user or assistant");
                return Err(ApiError::field(format!("messages[{i}].role"), message));
            }
        };
        let blocks = match self.content {
            TextOr::Text(text) => {
                turns.push(Turn::text(role, text).at(format!("messages[{i}]")));
                return Ok(());
            }
            TextOr::Parts(blocks) => blocks,
        };
        let mut turn = Turn::new(role, Vec::new()).at(format!("messages[{i}]"));
        for (j, block) in blocks.into_iter().enumerate() {
            let path = format!("messages[{i}].content[{j}]");
            block.put(role, &path, &mut turn, turns)?;
        }
        if !turn.parts.is_empty() || !turn.tool_calls.is_empty() {
            turns.push(turn);
        }
        Ok(())
    }
}

impl Block {
    fn put(self, role: Role, path: &str, turn: &mut Turn, turns: &mut Vec<Turn>) -> Result<(), ApiError> {
        let missing =
            |field: &str| ApiError::field(format!("{path}.{field}"), format!("`{path}.{field}` is missing"));
        match self.r#type.as_str() {
            "text" => turn
                .parts
                .push(Part::Text(self.text.ok_or_else(|| missing("text"))?)),
            "image" => {
                let source = self.source.ok_or_else(|| missing("source"))?;
                turn.parts.push(Part::Image(source.into_media(path)?));
            }
            "thinking" => turn.reasoning = self.thinking,
            "redacted_thinking" => {}
            "tool_use" if role == Role::Assistant => turn.tool_calls.push(ToolCall {
                id: self.id.ok_or_else(|| missing("id"))?,
                name: self.name.ok_or_else(|| missing("name"))?,
                arguments: arguments(
                    self.input.ok_or_else(|| missing("input"))?,
                    &format!("{path}.input"),
                )?,
            }),
            "tool_result" if role == Role::User => {
                let text = result_text(self.content.as_ref(), path)?;
                let text = if self.is_error == Some(true) {
                    format!("Error: {text}")
                } else {
                    text
                };
                turns.push(Turn {
                    tool_call_id: Some(self.tool_use_id.ok_or_else(|| missing("tool_use_id"))?),
                    ..Turn::text(Role::Tool, text).at(path)
                });
            }
            other => {
                let message = match other {
                    "video" => {
                        format!("`{path}` is a video; /v1/chat/completions takes videos, as `video_url`")
                    }
                    _ => format!("`{path}` is of type `{other}`, which is not supported here"),
                };
                return Err(ApiError::field(path, message));
            }
        }
        Ok(())
    }
}

fn result_text(content: Option<&Value>, path: &str) -> Result<String, ApiError> {
    match content {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(blocks)) => {
            let texts: Option<Vec<&str>> = blocks.iter().map(|block| block["text"].as_str()).collect();
            texts.map(|texts| texts.join("\n")).ok_or_else(|| {
                ApiError::field(
                    format!("{path}.content"),
                    format!("`{path}.content` may hold text only"),
                )
            })
        }
        Some(_) => Err(ApiError::field(
            format!("{path}.content"),
            format!("`{path}.content` must be a string or an array of blocks"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn blocks_become_turns() {
        let body = json!({
            "model": "m", "max_tokens": 5, "system": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "w", "input": {"a": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}]},
                    {"type": "text", "text": "And now?"}]},
            ],
            "tools": [{"name": "w", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
        });
        let request = message_request(body.to_string().as_bytes()).unwrap();
        let roles: Vec<Role> = request.turns.iter().map(|turn| turn.role).collect();
        assert_eq!(
            roles,
            [Role::System, Role::User, Role::Assistant, Role::Tool, Role::User]
        );
        assert_eq!(request.turns[2].reasoning.as_deref(), Some("hm"));
        assert_eq!(request.tool_choice, ToolChoice::Required);
        assert!(!request.parallel_tool_calls);
    }

    #[test]
    fn a_picture_among_the_instructions_is_not_lost_silently() {
        let source = json!({"type": "base64", "media_type": "image/png", "data": "AAAA"});
        let body = json!({"max_tokens": 5, "messages": [{"role": "user", "content": "x"}],
            "system": [{"type": "text", "text": "S"}, {"type": "image", "source": source}]});
        let error = message_request(body.to_string().as_bytes()).unwrap_err();
        assert!(
            error.to_string().contains("`system[1]` is of type `image`"),
            "{error}"
        );
    }

    #[test]
    fn thinking_has_a_budget() {
        let read = |body: Value| {
            let messages = json!([{"role": "user", "content": "x"}]);
            let mut whole = json!({"max_tokens": 3000, "messages": messages});
            whole
                .as_object_mut()
                .unwrap()
                .extend(body.as_object().unwrap().clone());
            let request = message_request(whole.to_string().as_bytes()).map_err(|error| error.param);
            request.map(|request| (request.thinking, request.thinking_budget))
        };
        let enabled = |n: u32| read(json!({"thinking": {"type": "enabled", "budget_tokens": n}}));
        assert_eq!(enabled(1024), Ok((Some(true), Some(1024))));
        let refused = Err(Some("thinking.budget_tokens".to_string()));
        assert_eq!((enabled(0), enabled(3000)), (refused.clone(), refused));
        let adaptive = json!({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}});
        assert_eq!(read(adaptive), Ok((Some(true), Some(1024))));
        assert_eq!(
            read(json!({"thinking": {"type": "disabled"}})),
            Ok((Some(false), None))
        );
        assert_eq!(read(json!({})), Ok((None, None)));
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let param = |body: Value| message_request(body.to_string().as_bytes()).unwrap_err().param;
        let messages = json!([{"role": "user", "content": "x"}]);
        assert_eq!(
            param(json!({"messages": messages})).as_deref(),
            Some("max_tokens")
        );
        let body =
            json!({"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "document"}]}]});
        assert_eq!(param(body).as_deref(), Some("messages[0].content[0]"));
        let body = json!({"max_tokens": 1, "messages": messages, "tool_choice": {"type": "any"}});
        assert_eq!(param(body).as_deref(), Some("tool_choice"));
        assert!(count_request(json!({"messages": messages}).to_string().as_bytes()).is_ok());
    }
}
