//! Dialects of JSON Schema: what is called `nullable` in OpenAPI's, and so in Google's, is a type beside another in JSON
//! Schema's own, which is what everybody is told, Google too: elsewhere the word means nothing, and who may say nothing
//! would have to say something.

use serde_json::{Map, Value};

/// Bounds that Google's clients write as text, since they have 64 bits.
const BOUNDS: [&str; 6] = [
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minProperties",
    "maxProperties",
];

/// A schema of Google's own: types in capitals, and numbers as text.
pub(super) fn of_google(schema: &Value) -> Value {
    let mut schema = schema.clone();
    each(&mut schema, &|fields| {
        if let Some(Value::String(kind)) = fields.get_mut("type") {
            *kind = kind.to_lowercase();
        }
        if fields.get("type").is_some_and(|kind| kind == "type_unspecified") {
            fields.remove("type");
        }
        for name in BOUNDS {
            let bound = fields.get(name).and_then(Value::as_str);
            if let Some(bound) = bound.and_then(|text| text.parse::<u64>().ok()) {
                fields.insert(name.to_string(), Value::from(bound));
            }
        }
        let is_nullable = null(fields);
        let values = fields.get_mut("enum").and_then(Value::as_array_mut);
        // Elsewhere only what is listed may be said.
        if let Some(values) = values.filter(|values| is_nullable && !values.contains(&Value::Null)) {
            values.push(Value::Null);
        }
    });
    schema
}

/// The same schema with what may be null said in JSON Schema's way.
pub(super) fn with_null(schema: &Value) -> Value {
    let mut schema = schema.clone();
    each(&mut schema, &|fields| {
        null(fields);
    });
    schema
}

/// Says in JSON Schema's way whether a value may be null, if it was said in the other one: whether it may.
fn null(fields: &mut Map<String, Value>) -> bool {
    let Some(is_nullable) = fields.get("nullable").and_then(Value::as_bool) else {
        return false;
    };
    fields.remove("nullable");
    if !is_nullable {
        return false;
    }
    let nothing = || Value::from("null");
    match fields.get_mut("type") {
        Some(Value::Array(kinds)) if !kinds.contains(&nothing()) => kinds.push(nothing()),
        Some(kind @ Value::String(_)) if *kind != nothing() => {
            *kind = Value::Array(vec![kind.take(), nothing()]);
        }
        _ => {}
    }
    if let Some(Value::Array(choices)) = fields.get_mut("anyOf") {
        choices.push(serde_json::json!({"type": "null"}));
    }
    true
}

/// Every schema in a schema, and it itself. Values that are only shown, such as defaults, are none.
fn each(schema: &mut Value, change: &impl Fn(&mut Map<String, Value>)) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    for (name, value) in fields.iter_mut() {
        match name.as_str() {
            "properties" | "$defs" | "definitions" => {
                let named = value.as_object_mut().into_iter().flat_map(Map::values_mut);
                named.for_each(|schema| each(schema, change));
            }
            "anyOf" | "allOf" | "oneOf" | "prefixItems" => {
                let listed = value.as_array_mut().into_iter().flatten();
                listed.for_each(|schema| each(schema, change));
            }
            "items" | "additionalProperties" | "not" => each(value, change),
            _ => {}
        }
    }
    change(fields);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::endpoint::{Dialect, Endpoint};
    use crate::translate::Question;

    #[test]
    fn what_may_be_null_is_said_so_that_everybody_understands_it() {
        let google = json!({"type": "OBJECT", "required": ["type"], "properties": {
            "type": {"type": "STRING", "nullable": true, "enum": ["A", "B"]},
            "nullable": {"type": "ARRAY", "nullable": false, "minItems": "2", "items": {"type": "INTEGER", "nullable": true}},
            "any": {"nullable": true, "anyOf": [{"type": "STRING"}, {"type": "NUMBER"}]},
            "free": {"type": "TYPE_UNSPECIFIED", "default": {"type": "STRING", "nullable": true}},
        }});
        let plain = json!({"type": "object", "required": ["type"], "properties": {
            "type": {"type": ["string", "null"], "enum": ["A", "B", null]},
            "nullable": {"type": "array", "minItems": 2, "items": {"type": ["integer", "null"]}},
            "any": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]},
            "free": {"default": {"type": "STRING", "nullable": true}},
        }});
        let body = json!({"contents": [{"parts": [{"text": "x"}]}],
            "tools": [{"functionDeclarations": [{"name": "f", "parameters": google}]}],
            "generationConfig": {"responseMimeType": "application/json", "responseSchema": google}});
        let question = Question::read(Endpoint::Generate, &body).unwrap();
        let told = |dialect| question.write(dialect, "m").unwrap().0;
        let openai = told(Dialect::OpenAi);
        assert_eq!(openai["tools"][0]["function"]["parameters"], plain);
        assert_eq!(openai["response_format"]["json_schema"]["schema"], plain);
        let back = told(Dialect::Gemini);
        let function = &back["tools"][0]["functionDeclarations"][0];
        assert_eq!(function["parametersJsonSchema"], plain);
        assert_eq!(back["generationConfig"]["responseJsonSchema"], plain);
        assert_eq!(with_null(&plain), plain, "nothing is said twice");
    }

    #[test]
    fn schemas_in_openapis_words_reach_google_in_json_schemas() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "string", "nullable": true}}});
        let body = json!({"messages": [{"role": "user", "content": "x"}], "tools": [
            {"type": "function", "function": {"name": "f", "parameters": schema}},
            {"type": "function", "function": {"name": "g"}}]});
        let question = Question::read(Endpoint::Chat, &body).unwrap();
        let functions = &question.write(Dialect::Gemini, "m").unwrap().0["tools"][0]["functionDeclarations"];
        let parameters = &functions[0]["parametersJsonSchema"];
        assert_eq!(parameters["properties"]["a"], json!({"type": ["string", "null"]}));
        assert!(functions[1]["parametersJsonSchema"].is_null());
    }
}
