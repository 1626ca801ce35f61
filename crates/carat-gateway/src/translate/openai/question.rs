//! What a client asks.

use std::collections::HashSet;

use serde_json::Value;

use crate::failure::Failure;
use crate::translate::{
    Choice, Format, Piece, Question, Role, Source, Thinking, Tool, numbers, parsed, refused, text, unknown,
    words,
};

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
/// Known, but of no use elsewhere: they are named as dropped.
const OWN: [&str; 3] = ["store", "metadata", "prompt_cache_key"];

pub(in crate::translate) fn question(body: &Value) -> Result<Question, Failure> {
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
pub(in crate::translate) fn allowed(tools: Vec<Tool>, names: &Value) -> Vec<Tool> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
