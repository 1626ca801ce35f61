//! What a provider is asked.

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::translate::{
    Choice, Format, Piece, Question, Role, Source, Thinking, Tool, calls, joined, object, refused, safe_name,
    schemas, set,
};

/// Stands for a signature of thoughts that were made elsewhere, as Google documents it.
pub(crate) const NO_SIGNATURE: &str = "skip_thought_signature_validator";
/// Most characters of a function's name.
const NAME_CHARS: usize = 64;

pub(in crate::translate) fn request(
    question: &Question,
    model: &str,
    dropped: &mut Vec<String>,
) -> Result<Value, Failure> {
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
pub(in crate::translate) fn safe(name: &str) -> String {
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
}
