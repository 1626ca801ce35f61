//! What a client asks.

use std::collections::HashMap;

use serde_json::Value;

use crate::failure::Failure;
use crate::sticky;
use crate::translate::{
    Choice, Format, Piece, Question, Role, Source, Thinking, Tool, calls, numbers, refused, schemas, strings,
    text, unknown, words, written,
};

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

pub(in crate::translate) fn question(body: &Value) -> Result<Question, Failure> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn functions_that_may_not_be_called_are_not_offered() {
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
