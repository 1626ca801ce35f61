//! What binds an answer: `response_format`, and the names that llama.cpp and vLLM have for the same.

use serde::Deserialize;
use serde_json::Value;

use crate::{ApiError, Format};

#[derive(Debug, Deserialize)]
pub(super) struct WireFormat {
    r#type: String,
    json_schema: Option<NamedSchema>,
}

#[derive(Debug, Deserialize)]
struct NamedSchema {
    schema: Option<Value>,
}

impl WireFormat {
    pub(super) fn into_format(self) -> Result<Format, ApiError> {
        match (self.r#type.as_str(), self.json_schema) {
            ("text", _) => Ok(Format::Text),
            ("json_object", _) => Ok(Format::JsonObject),
            ("json_schema", Some(NamedSchema { schema: Some(schema) })) => Ok(Format::JsonSchema(schema)),
            ("json_schema", _) => Err(ApiError::field(
                "response_format.json_schema",
                "`response_format.json_schema.schema` is missing",
            )),
            (other, _) => {
                let message =
                    format!("`response_format.type` is `{other}`; give text, json_object or json_schema");
                Err(ApiError::field("response_format.type", message))
            }
        }
    }
}

/// Grammars by the names of vLLM (`guided_*`) and llama.cpp (`grammar`, `json_schema`).
#[derive(Debug, Default, Deserialize)]
pub(super) struct WireGrammar {
    guided_json: Option<Value>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
    grammar: Option<String>,
    json_schema: Option<Value>,
}

impl WireGrammar {
    /// The grammar asked for, if any; `format` is what the API's own field says.
    pub(super) fn over(self, format: Format) -> Result<Format, ApiError> {
        let choice = |choices: Vec<String>| {
            let alternatives: Vec<String> = choices.iter().map(|choice| escape_regex(choice)).collect();
            Format::Regex(format!("({})", alternatives.join("|")))
        };
        let given: Vec<(&str, Format)> = [
            ("response_format", (format != Format::Text).then_some(format)),
            (
                "guided_json",
                self.guided_json
                    .map(schema_value)
                    .transpose()?
                    .map(Format::JsonSchema),
            ),
            ("json_schema", self.json_schema.map(Format::JsonSchema)),
            ("guided_regex", self.guided_regex.map(Format::Regex)),
            ("guided_choice", self.guided_choice.map(choice)),
            ("guided_grammar", self.guided_grammar.map(Format::Lark)),
            (
                "grammar",
                self.grammar.filter(|text| !text.is_empty()).map(Format::Gbnf),
            ),
        ]
        .into_iter()
        .filter_map(|(name, format)| Some((name, format?)))
        .collect();
        match <[_; 1]>::try_from(given) {
            Ok([(_, format)]) => Ok(format),
            Err(none) if none.is_empty() => Ok(Format::Text),
            Err(several) => {
                let (first, second) = (several[0].0, several[1].0);
                let message = format!("`{first}` and `{second}` both bind the answer; give one of them");
                Err(ApiError::field(second, message))
            }
        }
    }
}

/// vLLM's clients also send the schema as text.
fn schema_value(value: Value) -> Result<Value, ApiError> {
    match value {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| ApiError::field("guided_json", format!("`guided_json` is no JSON: {error}"))),
        other => Ok(other),
    }
}

/// The text as a regular expression that matches it alone.
fn escape_regex(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        // With a backslash these two are the borders of a word.
        if c.is_ascii_punctuation() && !matches!(c, '<' | '>') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
