//! What binds an answer: `response_format`, and the names that llama.cpp and vLLM have for the same.

use serde::Deserialize;
use serde_json::Value;

use crate::{ApiError, Format};

#[derive(Debug, Deserialize)]
pub(super) struct WireFormat {
    r#type: String,
    json_schema: Option<NamedSchema>,
    /// llama.cpp's, and that of many hosted models.
    schema: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct NamedSchema {
    schema: Option<Value>,
}

impl WireFormat {
    /// What it asks for, and the field that says so.
    pub(super) fn into_format(self) -> Result<(Format, &'static str), ApiError> {
        let named = self.json_schema.and_then(|named| named.schema);
        let named = named.map(|schema| (schema, "response_format.json_schema.schema"));
        let plain = self.schema.map(|schema| (schema, "response_format.schema"));
        match (self.r#type.as_str(), named.or(plain)) {
            ("text", _) => Ok((Format::Text, FIELD)),
            ("json_object" | "json_schema", Some((schema, field))) => Ok((Format::JsonSchema(schema), field)),
            ("json_object", None) => Ok((Format::JsonObject, FIELD)),
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

/// The API's own field.
const FIELD: &str = "response_format";

/// Grammars by the names of vLLM (`structured_outputs`, `guided_*` before) and llama.cpp (`grammar`, `json_schema`).
#[derive(Debug, Default, Deserialize)]
pub(super) struct WireGrammar {
    structured_outputs: Option<StructuredOutputs>,
    guided_json: Option<Value>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
    grammar: Option<String>,
    json_schema: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
struct StructuredOutputs {
    json: Option<Value>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    structural_tag: Option<Value>,
}

impl WireGrammar {
    /// The grammar asked for, if any, and the field that says so; `format` is what the API's own field says.
    pub(super) fn over(
        self,
        format: Option<(Format, &'static str)>,
    ) -> Result<(Format, &'static str), ApiError> {
        let (format, field) = format.unwrap_or((Format::Text, FIELD));
        let outputs = self.structured_outputs.unwrap_or_default();
        if outputs.structural_tag.is_some() {
            let message =
                "`structured_outputs.structural_tag` is not supported; give json, regex, choice or grammar";
            return Err(ApiError::field("structured_outputs.structural_tag", message));
        }
        let is_json = outputs.json_object == Some(true);
        let json = "structured_outputs.json";
        let given: Vec<(Format, &'static str)> = [
            (field, (format != Format::Text).then_some(format)),
            (json, outputs.json.map(|value| schema(value, json)).transpose()?),
            (
                "structured_outputs.json_object",
                is_json.then_some(Format::JsonObject),
            ),
            ("structured_outputs.regex", outputs.regex.map(Format::Regex)),
            ("structured_outputs.choice", outputs.choice.as_deref().map(choice)),
            ("structured_outputs.grammar", outputs.grammar.map(lark_or_gbnf)),
            (
                "guided_json",
                self.guided_json
                    .map(|value| schema(value, "guided_json"))
                    .transpose()?,
            ),
            ("json_schema", self.json_schema.map(Format::JsonSchema)),
            ("guided_regex", self.guided_regex.map(Format::Regex)),
            ("guided_choice", self.guided_choice.as_deref().map(choice)),
            ("guided_grammar", self.guided_grammar.map(lark_or_gbnf)),
            (
                "grammar",
                self.grammar.filter(|text| !text.is_empty()).map(Format::Gbnf),
            ),
        ]
        .into_iter()
        .filter_map(|(name, format)| Some((format?, name)))
        .collect();
        match <[_; 1]>::try_from(given) {
            Ok([format]) => Ok(format),
            Err(none) if none.is_empty() => Ok((Format::Text, FIELD)),
            Err(several) => {
                let (first, second) = (several[0].1, several[1].1);
                let message = format!("`{first}` and `{second}` both bind the answer; give one of them");
                Err(ApiError::field(second, message))
            }
        }
    }
}

/// The schema in `field`, which vLLM's clients also send as text.
fn schema(value: Value, field: &str) -> Result<Format, ApiError> {
    let schema = match value {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| ApiError::field(field, format!("`{field}` is no JSON: {error}")))?,
        other => other,
    };
    Ok(Format::JsonSchema(schema))
}

/// One of these texts.
fn choice(choices: &[String]) -> Format {
    let alternatives: Vec<String> = choices.iter().map(|choice| escape_regex(choice)).collect();
    Format::Regex(format!("({})", alternatives.join("|")))
}

/// A grammar in either notation, as vLLM takes them; only GBNF has this sign.
fn lark_or_gbnf(text: String) -> Format {
    if text.contains("::=") {
        Format::Gbnf(text)
    } else {
        Format::Lark(text)
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What the fields of a body bind an answer to, or the field at fault.
    fn format(body: Value) -> Result<Format, Option<String>> {
        let format = WireFormat::deserialize(&body["response_format"]).map(WireFormat::into_format);
        let grammar = WireGrammar::deserialize(&body).unwrap();
        let format = grammar.over(format.ok().map(Result::unwrap));
        let (format, field) = format.map_err(|error| error.param)?;
        let path = format!("/{}", field.replace('.', "/"));
        assert!(
            format == Format::Text || body.pointer(&path).is_some(),
            "{field} of {body}"
        );
        Ok(format)
    }

    #[test]
    fn every_programs_name_of_a_schema_is_known() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        let of = |kind: &str| json!({"response_format": {"type": kind, "schema": schema}});
        for body in [
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
            of("json_object"),
            of("json_schema"),
            json!({"json_schema": schema}),
            json!({"guided_json": schema.to_string()}),
            json!({"structured_outputs": {"json": schema, "regex": null, "disable_fallback": false}}),
            json!({"structured_outputs": {"json": schema.to_string()}}),
        ] {
            assert_eq!(
                format(body.clone()),
                Ok(Format::JsonSchema(schema.clone())),
                "{body}"
            );
        }
        let object = json!({"response_format": {"type": "json_object", "schema": null}});
        assert_eq!(format(object), Ok(Format::JsonObject));
    }

    #[test]
    fn structured_outputs_are_those_of_guided_decoding() {
        for (name, value) in [
            ("regex", json!("a+")),
            ("choice", json!(["a", "b."])),
            ("grammar", json!("start: \"a\"")),
            ("grammar", json!("root ::= \"a\"")),
        ] {
            let now = format(json!({"structured_outputs": {name: value}})).unwrap();
            let before = format(json!({format!("guided_{name}"): value})).unwrap();
            assert!(now == before && now != Format::Text, "{name}: {now:?}");
        }
        let gbnf = "root ::= \"a\"";
        let given = format(json!({"structured_outputs": {"grammar": gbnf}}));
        assert_eq!(given, Ok(Format::Gbnf(gbnf.to_string())));
        let object = json!({"structured_outputs": {"json_object": true}});
        assert_eq!(format(object), Ok(Format::JsonObject));
        let refused = |body: Value| format(body).unwrap_err().unwrap();
        let tag = json!({"structured_outputs": {"structural_tag": "x"}});
        assert_eq!(refused(tag), "structured_outputs.structural_tag");
        let two = json!({"structured_outputs": {"regex": "a", "choice": ["b"]}});
        assert_eq!(refused(two), "structured_outputs.choice");
    }
}
