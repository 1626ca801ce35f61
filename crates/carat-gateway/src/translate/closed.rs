//! Schemas for models that want every object closed: Claude answers by a schema only where each object in it says
//! `additionalProperties: false`. Clients of other APIs mostly say nothing of it and mean the same. Where an object is
//! open on purpose, or has no properties of its own, closing it would be another schema: somebody else may be asked.

use serde_json::{Map, Value};

use super::refused;
use crate::failure::Failure;

/// The same schema with every object in it closed.
pub(super) fn closed(schema: &Value) -> Result<Value, Failure> {
    let mut schema = schema.clone();
    close(&mut schema)?;
    Ok(schema)
}

fn close(schema: &mut Value) -> Result<(), Failure> {
    let Some(fields) = schema.as_object_mut() else {
        return Ok(());
    };
    for (name, value) in fields.iter_mut() {
        match name.as_str() {
            "properties" | "$defs" | "definitions" => {
                let mut named = value.as_object_mut().into_iter().flat_map(Map::values_mut);
                named.try_for_each(close)?;
            }
            "anyOf" | "allOf" | "oneOf" | "prefixItems" => {
                let mut listed = value.as_array_mut().into_iter().flatten();
                listed.try_for_each(close)?;
            }
            "items" => close(value)?,
            _ => {}
        }
    }
    if !is_object(fields) {
        return Ok(());
    }
    match fields.get("additionalProperties") {
        Some(Value::Bool(false)) => Ok(()),
        None if fields.contains_key("properties") => {
            fields.insert("additionalProperties".into(), Value::Bool(false));
            Ok(())
        }
        _ => Err(refused(
            "response_format",
            "this provider takes schemas only of which every object names all its properties \
             (`additionalProperties: false`)",
        )),
    }
}

fn is_object(fields: &Map<String, Value>) -> bool {
    match fields.get("type") {
        Some(Value::String(kind)) => kind == "object",
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "object"),
        _ => fields.contains_key("properties"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_closed_wherever_they_stand() {
        let object = |more: Value| {
            let mut object = json!({"type": "object", "properties": {"a": {"type": "string"}}});
            object
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            object
        };
        let (open, shut) = (json!({}), json!({"additionalProperties": false}));
        let around = |inner: &Value| {
            json!({"type": ["object", "null"], "additionalProperties": false, "$defs": {"d": inner},
                "properties": {"properties": inner, "items": {"type": "array", "items": inner}},
                "anyOf": [inner, {"type": "string", "enum": ["properties"], "default": {"type": "object"}}]})
        };
        let (before, after) = (around(&object(open)), around(&object(shut)));
        assert_eq!(closed(&before).unwrap(), after);
        assert_eq!(closed(&after).unwrap(), after);
        for additional in [json!(true), json!({"type": "string"})] {
            let meant = object(json!({"additionalProperties": additional}));
            assert!(closed(&around(&meant)).is_err());
        }
        assert!(closed(&json!({"type": "object"})).is_err(), "anything at all");
    }
}
