//! How much memory a JSON schema can take once the compiler has brought its parts together.
//!
//! The compiler writes what must hold at once (`allOf`, alternatives or a reference beside other keywords) as one schema:
//! each alternative of one side beside a copy of the other. A kilobyte of references within each other can so ask for
//! any amount, which none of the compiler's own limits counts. So it is estimated before, from far above.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Most bytes of all copies together.
const MAX_BYTES: f64 = (512 << 20) as f64;
/// What a keyword or value takes in the compiler, its text aside.
const NODE_BYTES: f64 = 200.0;
/// Kinds of values, which a schema that names none stands for.
const N_KINDS: f64 = 6.0;
/// Keywords that say nothing about the form of a value.
const SILENT: [&str; 15] = [
    "$anchor",
    "$defs",
    "definitions",
    "$schema",
    "$id",
    "id",
    "$comment",
    "title",
    "description",
    "default",
    "readOnly",
    "writeOnly",
    "examples",
    "contentMediaType",
    "contentEncoding",
];

/// Whether the compiler can be given this schema. Calls itself for every reference on the way to another, as the compiler
/// does.
pub(crate) fn is_affordable(schema: &Value) -> bool {
    let root = literal(schema).bytes;
    let within_itself = Size {
        bytes: root,
        others: root,
        ..Size::ANY
    };
    let mut estimate = Estimate {
        root: schema,
        within_itself,
        named: HashMap::new(),
        total: 0.0,
    };
    // Definitions that no reference leads to are not compiled.
    estimate.schema(schema);
    estimate.total <= MAX_BYTES
}

/// What a compiled schema is like.
#[derive(Clone, Copy)]
struct Size {
    bytes: f64,
    /// Copies that are made of what is brought together with it.
    alternatives: f64,
    /// Values with a schema of their own, anywhere within.
    n_fields: f64,
    /// The largest schema for values that have none of their own.
    others: f64,
}

impl Size {
    const ANY: Size = Size {
        bytes: NODE_BYTES,
        alternatives: 1.0,
        n_fields: 0.0,
        others: 0.0,
    };

    /// Both must hold. Alternatives of one side meet those of the other, and values that only one side knows the other's
    /// schema for those it does not.
    fn and(self, other: Size) -> Size {
        let (a, b) = (self, other);
        Size {
            bytes: a.alternatives * (b.bytes + a.n_fields * b.others)
                + b.alternatives * (a.bytes + b.n_fields * a.others),
            alternatives: a.alternatives * b.alternatives,
            n_fields: a.alternatives * b.n_fields + b.alternatives * a.n_fields,
            others: a.alternatives * b.others + b.alternatives * a.others,
        }
    }

    /// One of them must hold.
    fn or(self, other: Size) -> Size {
        Size {
            bytes: self.bytes + other.bytes,
            alternatives: self.alternatives + other.alternatives,
            n_fields: self.n_fields + other.n_fields,
            others: self.others.max(other.others),
        }
    }

    /// With a value of its own schema.
    fn with(self, field: Size) -> Size {
        Size {
            bytes: self.bytes + field.bytes,
            alternatives: self.alternatives.max(field.alternatives),
            n_fields: self.n_fields + field.n_fields + 1.0,
            others: self.others.max(field.others),
        }
    }
}

struct Estimate<'a> {
    root: &'a Value,
    /// What a reference to something around it may come to, wherever the other side has a value.
    within_itself: Size,
    /// What references lead to; none for those that are being looked at.
    named: HashMap<&'a str, Option<Size>>,
    /// Bytes of all that was brought together.
    total: f64,
}

impl<'a> Estimate<'a> {
    fn schema(&mut self, schema: &'a Value) -> Size {
        let Some(fields) = schema.as_object() else {
            return Size::ANY;
        };
        if self.total > MAX_BYTES {
            return Size::ANY;
        }
        let mut size: Option<Size> = None;
        for (key, value) in fields {
            let applied = match (key.as_str(), value) {
                ("const", value) => literal(value),
                ("enum", Value::Array(all)) => any_of(all.iter().map(literal).collect()),
                ("anyOf" | "oneOf", Value::Array(all)) => {
                    any_of(all.iter().map(|one| self.schema(one)).collect())
                }
                ("allOf", Value::Array(all)) => {
                    let all: Vec<Size> = all.iter().map(|one| self.schema(one)).collect();
                    all.into_iter()
                        .reduce(|both, one| self.both(both, one))
                        .unwrap_or(Size::ANY)
                }
                ("$ref", Value::String(name)) => self.named(name),
                _ => continue,
            };
            size = Some(match size {
                Some(before) => self.both(before, applied),
                None => applied,
            });
        }
        let own = self.own(fields);
        match (size, own) {
            (Some(size), Some(own)) => self.both(size, own),
            (size, own) => size.or(own).unwrap_or(Size::ANY),
        }
    }

    /// What the other keywords say, if there are any.
    fn own(&mut self, fields: &'a Map<String, Value>) -> Option<Size> {
        const APPLIED: [&str; 6] = ["const", "enum", "anyOf", "oneOf", "allOf", "$ref"];
        let speaks = |key: &str| !SILENT.contains(&key) && !APPLIED.contains(&key);
        let mut size = Size {
            alternatives: 0.0,
            ..Size::ANY
        };
        for (key, value) in fields.iter().filter(|(key, _)| speaks(key)) {
            size.bytes += NODE_BYTES + key.len() as f64;
            match (key.as_str(), value) {
                ("properties" | "patternProperties", Value::Object(all)) => {
                    for (name, value) in all {
                        size = size.with(self.schema(value));
                        size.bytes += NODE_BYTES + name.len() as f64;
                    }
                }
                ("prefixItems" | "items", Value::Array(all)) => {
                    for value in all {
                        size = size.with(self.schema(value));
                    }
                }
                ("items" | "additionalItems" | "additionalProperties", value) => {
                    let of_others = self.schema(value);
                    size = size.with(of_others);
                    size.others = size.others.max(of_others.bytes);
                }
                (_, Value::String(text)) => size.bytes += text.len() as f64,
                (_, Value::Array(all)) => size.bytes += all.len() as f64 * NODE_BYTES,
                _ => {}
            }
            size.alternatives = size.alternatives.max(1.0);
        }
        size.alternatives *= n_kinds(fields);
        (size.alternatives > 0.0).then_some(size)
    }

    /// What a reference leads to.
    fn named(&mut self, name: &'a str) -> Size {
        if let Some(known) = self.named.get(name) {
            return known.unwrap_or(self.within_itself);
        }
        self.named.insert(name, None);
        let root: &'a Value = self.root;
        let target = name
            .strip_prefix('#')
            .and_then(|pointer| root.pointer(&decoded(pointer)));
        // By another name than its place it may be anything of the schema.
        let size = self.schema(target.unwrap_or(root));
        self.named.insert(name, Some(size));
        size
    }

    fn both(&mut self, a: Size, b: Size) -> Size {
        let both = a.and(b);
        self.total += both.bytes;
        both
    }
}

fn any_of(all: Vec<Size>) -> Size {
    all.into_iter().reduce(Size::or).unwrap_or(Size::ANY)
}

/// A value that is given as it is: its parts are brought together as fields are.
fn literal(value: &Value) -> Size {
    match value {
        Value::String(text) => Size {
            bytes: NODE_BYTES + text.len() as f64,
            ..Size::ANY
        },
        Value::Array(all) => all.iter().map(literal).fold(Size::ANY, Size::with),
        Value::Object(all) => all.iter().fold(Size::ANY, |size, (name, value)| {
            let mut size = size.with(literal(value));
            size.bytes += NODE_BYTES + name.len() as f64;
            size
        }),
        _ => Size::ANY,
    }
}

/// The kinds that a schema is for.
fn n_kinds(fields: &Map<String, Value>) -> f64 {
    match fields.get("type") {
        Some(Value::String(_)) => 1.0,
        Some(Value::Array(all)) => all.len() as f64,
        _ => N_KINDS,
    }
}

/// A pointer as it is behind `#`, with what `%` stands for.
fn decoded(pointer: &str) -> String {
    let mut bytes = Vec::with_capacity(pointer.len());
    let mut rest = pointer.as_bytes();
    while let [first, more @ ..] = rest {
        let hex = more.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_of_programs_are_affordable() {
        let names: Vec<String> = (0..500).map(|i| format!("a name {i}")).collect();
        let field = |i: usize| {
            (
                names[i].clone(),
                json!({"anyOf": [{"type": "string"}, {"type": "null"}], "default": null}),
            )
        };
        let fields: Map<String, Value> = (0..200).map(field).collect();
        let record = json!({"type": "object", "properties": fields, "additionalProperties": false});
        let kinds: Vec<Value> = (0..40)
            .map(|i| json!({"allOf": [{"$ref": "#/$defs/Base"}, {"type": "object", "properties": {"kind": {"const": names[i]}}}]}))
            .collect();
        for schema in [
            json!(true),
            json!({}),
            json!({"type": "string", "enum": names}),
            record.clone(),
            json!({"allOf": [record, {"type": "object", "required": ["a name 1"]}]}),
            json!({"type": "array", "items": {"anyOf": kinds}, "$defs": {"Base": record}}),
            // A tree, and lists of it beside a description.
            json!({"$ref": "#/$defs/Node", "$defs": {"Node": {"type": "object", "properties": {
                "value": {"type": "number"}, "left": {"$ref": "#/$defs/Node"}, "right": {"$ref": "#/$defs/Node"},
                "more": {"type": "array", "items": {"allOf": [{"$ref": "#/$defs/Node"}], "description": "more"}}}}}}),
        ] {
            assert!(is_affordable(&schema), "{schema}");
        }
    }

    #[test]
    fn what_multiplies_is_not() {
        // Sixteen levels of two copies each would do; there are forty.
        let level = |i: usize| {
            let copy = json!({"$ref": format!("#/$defs/{}", i + 1), "type": "object"});
            (
                i.to_string(),
                json!({"type": "object", "properties": {"a": copy, "b": copy}}),
            )
        };
        let mut copies: Map<String, Value> = (0..40).map(level).collect();
        copies.insert("40".into(), json!({"type": "object"}));
        let text = "x".repeat(100_000);
        let many = vec![json!({}); 20_000];
        let choice = |name: &str| {
            let one = |value: usize| json!({"type": "object", "properties": {name: {"const": value}}});
            json!({"anyOf": [one(1), one(2), one(3), one(4)]})
        };
        let choices: Vec<Value> = (0..20).map(|i| choice(&i.to_string())).collect();
        let fields: Map<String, Value> = (0..9000).map(|i| (i.to_string(), json!({}))).collect();
        // A tree of nodes that each meet a whole copy of the schema.
        let tree = (0..11).fold(
            json!({}),
            |inner, _| json!({"type": "object", "properties": {"a": inner, "b": inner}}),
        );
        for schema in [
            json!({"$ref": "#/$defs/0", "$defs": copies}),
            json!({"const": text, "anyOf": many}),
            json!({"allOf": choices}),
            json!({"allOf": [{"type": "object", "properties": fields}, {"additionalProperties": {"const": text}}]}),
            json!({"allOf": [{"$ref": "#/$defs/N%6Fde"}, tree], "$defs": {"Node": {"type": "object", "properties": {
                "text": {"const": text.repeat(4)}, "a": {"$ref": "#/$defs/Node"}, "b": {"$ref": "#/$defs/Node"}}}}}),
        ] {
            assert!(!is_affordable(&schema), "{}", &schema.to_string()[..100]);
        }
    }
}
