//! What a provider is asked.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::assistant_message;
use crate::sticky;
use crate::translate::{
    Addressee, Choice, Format, Piece, Question, Role, Thinking, Tool, Turn, gpt, joined, media, safe_name,
    set, thoughts,
};

/// Most characters of a function's name, and of a user's.
const NAME_CHARS: usize = 64;

pub(in crate::translate) fn request(
    question: &Question,
    to: &Addressee<'_>,
    dropped: &mut Vec<String>,
) -> Value {
    let mut messages = Vec::new();
    if !question.system.is_empty() {
        messages.push(json!({"role": "system", "content": joined(&question.system)}));
    }
    question
        .turns
        .iter()
        .for_each(|turn| write_turn(turn, to.reasoning, &mut messages));
    let mut body = json!({"model": to.model, "messages": messages, "stream": question.stream});
    if question.stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    let tools: Vec<Value> = question.tools.iter().map(write_tool).collect();
    if !tools.is_empty() {
        body["tools"] = Value::from(tools);
        body["tool_choice"] = match &question.choice {
            Choice::Auto => json!("auto"),
            Choice::None => json!("none"),
            Choice::Required => json!("required"),
            Choice::Named(name) => json!({"type": "function", "function": {"name": safe(name)}}),
        };
        set(&mut body, "parallel_tool_calls", question.parallel);
    }
    match &question.format {
        Format::Text => {}
        Format::Json => body["response_format"] = json!({"type": "json_object"}),
        Format::Schema { name, schema, strict } => {
            // Strict schemas are a subset: one that was made for another API may not be in it.
            let strict = strict.unwrap_or(true) && fits_strict(schema);
            let schema = json!({"name": name, "schema": schema, "strict": strict});
            body["response_format"] = json!({"type": "json_schema", "json_schema": schema});
        }
    }
    set(&mut body, "temperature", question.temperature);
    set(&mut body, "top_p", question.top_p);
    set(&mut body, "seed", question.seed);
    set(&mut body, "presence_penalty", question.presence);
    set(&mut body, "frequency_penalty", question.frequency);
    set(&mut body, "max_completion_tokens", question.max_tokens);
    set(&mut body, "user", question.user.as_deref().map(user));
    if !question.stop.is_empty() {
        body["stop"] = json!(question.stop);
    }
    set(&mut body, "reasoning_effort", effort(question, to.model, dropped));
    question.drop_set(&["top_k"], dropped);
    body
}

/// How much a model is to think, in a word that it knows.
fn effort<'a>(question: &'a Question, model: &str, dropped: &mut Vec<String>) -> Option<&'a str> {
    let wish = match &question.thinking {
        Some(Thinking::Off) => Some("none"),
        Some(Thinking::Effort(effort)) => Some(effort.as_str()),
        Some(Thinking::Budget(budget)) => Some(effort_of(*budget)),
        Some(Thinking::Adaptive) | None => None,
    };
    if !question.tools.is_empty() && gpt::calls_unthinking(model) {
        if question.thinking.is_some() && wish != Some("none") {
            dropped.push("reasoning_effort".into());
        }
        return Some("none");
    }
    let told = gpt::effort(model, wish?);
    // Who never thinks is told nothing of it, and more than nothing is no answer to who wants none.
    let is_lost = match told {
        None => wish != Some("none"),
        Some(told) => wish == Some("none") && told != "none",
    };
    if is_lost {
        dropped.push("reasoning_effort".into());
    }
    told
}

/// Names of functions may have letters, digits, `_` and `-`.
pub(in crate::translate) fn safe(name: &str) -> String {
    safe_name(name, NAME_CHARS, "-")
}

/// A user as OpenAI takes one: whose name is too long goes by its hash, which is the same in every request.
fn user(name: &str) -> String {
    if name.chars().count() > NAME_CHARS {
        return format!("user-{:016x}", sticky::hash(name.as_bytes()));
    }
    name.to_string()
}

/// Whether every object of a schema lists all its properties as required and allows no others.
fn fits_strict(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => {
            let is_object = schema["type"] == "object" || fields.contains_key("properties");
            let mut properties = schema["properties"].as_object().into_iter().flatten();
            let required = schema["required"].as_array().into_iter().flatten();
            let required: HashSet<&str> = required.filter_map(Value::as_str).collect();
            let is_closed = schema["additionalProperties"] == false
                && properties.all(|(name, _)| required.contains(name.as_str()));
            (!is_object || is_closed) && fields.values().all(fits_strict)
        }
        Value::Array(items) => items.iter().all(fits_strict),
        _ => true,
    }
}

/// The effort that a budget of tokens comes to.
pub(in crate::translate) fn effort_of(budget: u64) -> &'static str {
    match budget {
        0..=2048 => "low",
        2049..=8192 => "medium",
        _ => "high",
    }
}

fn write_tool(tool: &Tool) -> Value {
    let mut function = json!({"name": safe(&tool.name)});
    set(&mut function, "description", tool.description.clone());
    set(
        &mut function,
        "parameters",
        Some(tool.schema.clone()).filter(|schema| !schema.is_null()),
    );
    set(&mut function, "strict", tool.strict);
    json!({"type": "function", "function": function})
}

/// `reasoning`: the field of thoughts beside calls, where they must come back.
fn write_turn(turn: &Turn, reasoning: Option<&str>, messages: &mut Vec<Value>) {
    if turn.role == Role::Assistant {
        let mut message = assistant_message(&turn.pieces, safe);
        // Who thought nothing says so: without the field the whole conversation is refused.
        if let Some(name) = reasoning.filter(|_| message["tool_calls"].is_array()) {
            message[name] = Value::from(thoughts(&turn.pieces));
        }
        // Of a turn of thoughts alone nothing is left.
        if !message["content"].is_null() || message["tool_calls"].is_array() {
            messages.push(message);
        }
        return;
    }
    let mut parts = Vec::new();
    for piece in &turn.pieces {
        match piece {
            Piece::Result { id, content, .. } => {
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": joined(content)}));
                // Chat completions take no images in results: they come after, as the user's.
                parts.extend(media(content).filter_map(part));
            }
            other => parts.extend(part(other)),
        }
    }
    if let [only] = parts.as_slice()
        && only["type"] == "text"
    {
        messages.push(json!({"role": "user", "content": only["text"]}));
    } else if !parts.is_empty() {
        messages.push(json!({"role": "user", "content": parts}));
    }
}

fn part(piece: &Piece) -> Option<Value> {
    Some(match piece {
        Piece::Text { text, .. } => json!({"type": "text", "text": text}),
        Piece::Image { source, .. } => json!({"type": "image_url", "image_url": {"url": source.url()}}),
        Piece::Document { source, name } => {
            json!({"type": "file", "file": {"file_data": source.url(), "filename": name.as_deref().unwrap_or("document.pdf")}})
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::text;

    #[test]
    fn nobody_is_told_a_least_effort_that_he_refuses() {
        let told = |model: &str| {
            let question = Question {
                thinking: Some(Thinking::Off),
                ..Question::default()
            };
            let (told, dropped) = question.write(crate::endpoint::Dialect::OpenAi, model).unwrap();
            (text(&told["reasoning_effort"]), dropped.len())
        };
        let least = |effort: &str, n_dropped| (Some(effort.to_string()), n_dropped);
        assert_eq!(told("gpt-4o-mini"), (None, 0), "it never thinks");
        assert_eq!(told("o4-mini"), least("low", 1));
        assert_eq!(told("openai/gpt-5-mini"), least("minimal", 1));
        assert_eq!(told("gpt-5.1"), least("none", 0));
        assert_eq!(told("qwen/qwen3-32b"), least("none", 0));
    }

    #[test]
    fn models_that_think_are_told_so_in_their_own_words() {
        use crate::endpoint::{Dialect, Endpoint};
        let tools = json!([{"name": "f", "input_schema": {"type": "object"}}]);
        let asked = |model: &str, more: &[(&str, Value)]| {
            let mut body = json!({"max_tokens": 9, "messages": [{"role": "user", "content": "x"}]});
            for (name, value) in more {
                body[*name] = value.clone();
            }
            let question = Question::read(Endpoint::Messages, &body).unwrap();
            let (told, dropped) = question.write(Dialect::OpenAi, model).unwrap();
            assert_eq!(told["max_completion_tokens"], 9, "{told}");
            (
                text(&told["reasoning_effort"]).unwrap_or_default(),
                dropped.concat(),
            )
        };
        let thinking = |budget: u64| ("thinking", json!({"type": "enabled", "budget_tokens": budget}));
        let effort = |effort: &str| ("output_config", json!({"effort": effort}));
        let told = |effort: &str, dropped: &str| (effort.to_string(), dropped.to_string());
        assert_eq!(asked("gpt-5.1", &[effort("max")]), told("high", ""));
        assert_eq!(asked("gpt-4o", &[effort("high")]), told("", "reasoning_effort"));
        let with_tools = ("tools", tools);
        let all = [thinking(4096), with_tools.clone()];
        assert_eq!(asked("gpt-5.6-sol", &all), told("none", "reasoning_effort"));
        assert_eq!(asked("gpt-5.6-sol", &[with_tools]), told("none", ""));
        assert_eq!(asked("gpt-5.2", &all), told("medium", ""));
        assert_eq!(asked("openai/gpt-5.6-sol", &all), told("medium", ""));
        // An effort says nothing of thoughts that are off, and does not go beyond their budget.
        let off = ("thinking", json!({"type": "disabled"}));
        assert_eq!(asked("gpt-5.2", &[off, effort("high")]), told("none", ""));
        assert_eq!(
            asked("gpt-5.2", &[thinking(1024), effort("high")]),
            told("low", "")
        );
        assert_eq!(
            asked("gpt-5.2", &[thinking(31_999), effort("low")]),
            told("low", "")
        );
        let adaptive = ("thinking", json!({"type": "adaptive"}));
        assert_eq!(asked("gpt-5.2", &[adaptive, effort("high")]), told("high", ""));
    }

    #[test]
    fn thoughts_go_back_beside_their_calls_where_that_is_wanted() {
        use crate::endpoint::{Dialect, Endpoint};
        let claude = json!({"max_tokens": 9, "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "1"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "b", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "b", "content": "2"}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "so", "signature": ""}, {"type": "text", "text": "y"}]},
        ]});
        let codex = json!({"input": [
            {"role": "user", "content": "x"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": null},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "1"},
        ]});
        let ollama = json!({"messages": [{"role": "user", "content": "x"},
            {"role": "assistant", "thinking": "hm", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "tool_name": "f", "content": "1"}]});
        let told = |endpoint, body: &Value, reasoning| {
            let to = Addressee {
                dialect: Dialect::OpenAi,
                model: "m",
                context: None,
                reasoning,
            };
            Question::read(endpoint, body).unwrap().write_for(&to).unwrap().0
        };
        let wanted = Some("reasoning_content");
        for (endpoint, body) in [
            (Endpoint::Messages, &claude),
            (Endpoint::Responses, &codex),
            (Endpoint::OllamaChat, &ollama),
        ] {
            let told = told(endpoint, body, wanted);
            assert_eq!(told["messages"][1]["reasoning_content"], "hm", "{told}");
        }
        let all = told(Endpoint::Messages, &claude, wanted);
        assert_eq!(all["messages"][3]["reasoning_content"], "", "{all}");
        assert!(all["messages"][5]["reasoning_content"].is_null(), "{all}");
        let others = told(Endpoint::Messages, &claude, None);
        assert!(others["messages"][1]["reasoning_content"].is_null(), "{others}");
    }

    #[test]
    fn users_and_functions_have_names_that_openai_takes() {
        let long = format!("user_{}_account__session_{}", "a".repeat(64), "b".repeat(36));
        let mcp = |end: &str| format!("mcp__a.server__{}_{end}", "tool".repeat(20));
        let tool = |name: String| json!({"name": name, "input_schema": {"type": "object"}});
        let call = json!({"type": "tool_use", "id": "t", "name": mcp("one"), "input": {}});
        let body = json!({"max_tokens": 9, "metadata": {"user_id": long}, "tools": [tool(mcp("one")), tool(mcp("two"))],
            "tool_choice": {"type": "tool", "name": mcp("two")},
            "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": [call]}]});
        let question = Question::read(crate::endpoint::Endpoint::Messages, &body).unwrap();
        let (told, _) = question.write(crate::endpoint::Dialect::OpenAi, "m").unwrap();
        let names = [
            "/user",
            "/tools/0/function/name",
            "/tools/1/function/name",
            "/tool_choice/function/name",
            "/messages/1/tool_calls/0/function/name",
        ];
        let names = names.map(|pointer| told.pointer(pointer).unwrap().as_str().unwrap());
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        assert!(
            names
                .iter()
                .all(|name| name.len() <= 64 && name.chars().all(fits)),
            "{names:?}"
        );
        assert!(
            names[1] != names[2] && names[3] == names[2] && names[4] == names[1],
            "{names:?}"
        );
        for dialect in [crate::endpoint::Dialect::OpenAi, crate::endpoint::Dialect::Gemini] {
            let own: Vec<String> = question
                .renamed(dialect)
                .into_iter()
                .map(|(_, own)| own)
                .collect();
            assert_eq!(
                own,
                [mcp("one"), mcp("two")],
                "calls come back under the client's names"
            );
        }
        assert_eq!(user("me"), "me");
        assert_eq!(user(&long), user(&long));
        assert_ne!(user(&long), user(&format!("{long}c")));
    }

    #[test]
    fn only_schemas_that_fit_are_strict() {
        let mut schema =
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]});
        assert!(!fits_strict(&schema));
        schema["additionalProperties"] = json!(false);
        assert!(fits_strict(&schema));
        let within = json!({"type": "array", "items": {"type": "object", "properties": {"b": {}}, "additionalProperties": false}});
        assert!(!fits_strict(&within), "`b` is not required");
    }
}
