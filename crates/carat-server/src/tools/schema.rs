//! JSON schemas as grammars of Gemma 4's way of writing values.
//!
//! `{city:<|"|>Rome<|"|>,days:3}`: keys stand bare and in the order of their names, strings between two tokens of their
//! own and without escapes, no blanks. Objects, arrays, strings, numbers, enumerations, alternatives and references
//! are written so. What a schema says beyond that (patterns, formats, ranges, conditions) is left to the compiler of
//! JSON schemas: such a value is bound to JSON, which readers of calls take as well. A reference to what needs JSON
//! makes the whole of the arguments JSON, since only then its target is in reach.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use carat_api::ApiError;
use serde_json::{Map, Number, Value, json};

/// Nested values of a schema, and of arguments that may be anything.
const MAX_DEPTH: usize = 32;
/// Bytes of rules beyond which the arguments are left to the compiler of JSON schemas: references and alternatives within
/// each other can ask for any number.
const MAX_BYTES: usize = 1 << 20;
/// Nested values where anything may stand.
const ANY_DEPTH: usize = 4;
/// What says nothing about a value's form.
const ANNOTATIONS: [&str; 15] = [
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "nullable",
    "strict",
];

/// A value that this notation cannot bind.
struct NeedsJson;

/// Rules of a grammar in Lark's notation, as they are written.
pub(super) struct Rules {
    text: String,
    /// The token around strings.
    quote: u32,
    n: usize,
    has_any: bool,
    /// Whether what cannot be bound is refused.
    is_strict: bool,
    /// Why it is.
    refusal: Option<ApiError>,
}

/// The arguments of one tool.
struct Arguments<'a> {
    rules: &'a mut Rules,
    root: &'a Value,
    /// Rules of what references name.
    references: HashMap<String, String>,
    /// Bytes of rules there may be at its end.
    most: usize,
}

impl Rules {
    /// Rules for a vocabulary where `quote` stands around strings.
    pub(super) fn new(quote: u32) -> Self {
        let mut text = String::from("CHARS: /(.|\\n)+/\n");
        text.push_str("INTEGER: /0|-?[1-9][0-9]{0,17}/\n");
        // Short enough to be read as a number.
        text.push_str("NUMBER: /-?(0|[1-9][0-9]{0,17})(\\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?/\n");
        let _infallible = writeln!(text, "string: <[{quote}]> CHARS? <[{quote}]>");
        Self {
            text,
            quote,
            n: 0,
            has_any: false,
            is_strict: false,
            refusal: None,
        }
    }

    /// The rule of an object that is valid for a tool's schema.
    ///
    /// # Errors
    /// What a strict schema says and nothing can bind.
    pub(super) fn arguments(&mut self, schema: &Value, is_strict: bool) -> Result<String, ApiError> {
        self.is_strict = is_strict;
        let (n_bytes, n, has_any) = (self.text.len(), self.n, self.has_any);
        let mut arguments = Arguments {
            rules: self,
            root: schema,
            references: HashMap::new(),
            most: n_bytes + MAX_BYTES,
        };
        let rule = match arguments.value(schema, 0) {
            Ok(rule) => rule,
            Err(NeedsJson) => {
                self.text.truncate(n_bytes);
                (self.n, self.has_any) = (n, has_any);
                self.json(schema)
            }
        };
        self.refusal.take().map_or(Ok(rule), Err)
    }

    /// All rules.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    fn name(&mut self) -> String {
        self.n += 1;
        format!("v{}", self.n)
    }

    /// Writes a rule and gives its name.
    fn rule(&mut self, body: &str) -> String {
        let name = self.name();
        let _infallible = writeln!(self.text, "{name}: {body}");
        name
    }

    fn json(&mut self, schema: &Value) -> String {
        if self.is_strict {
            self.refusal = self.refusal.take().or(check(schema, "tools").err());
        }
        self.rule(&format!("%json {}", compact(schema, self.is_strict)))
    }

    /// The rule of any value, nested so deep.
    fn any(&mut self, depth: usize) -> String {
        if !std::mem::replace(&mut self.has_any, true) {
            self.text.push_str("KEY: /[A-Za-z_][A-Za-z0-9_\\-]{0,63}/\n");
            self.text
                .push_str("any_0: string | NUMBER | \"true\" | \"false\" | \"null\"\n");
            for i in 1..=ANY_DEPTH {
                let inner = format!("any_{}", i - 1);
                let _infallible = writeln!(
                    self.text,
                    "any_{i}: any_0 | \"[\" ({inner} (\",\" {inner})*)? \"]\" | {}",
                    map_of(&inner)
                );
            }
        }
        format!("any_{}", depth.min(ANY_DEPTH))
    }
}

impl Arguments<'_> {
    fn value(&mut self, schema: &Value, depth: usize) -> Result<String, NeedsJson> {
        if depth > MAX_DEPTH || self.rules.text.len() > self.most {
            return Err(NeedsJson);
        }
        let fields = match schema {
            Value::Object(fields) => fields,
            Value::Bool(true) => return Ok(self.rules.any(ANY_DEPTH)),
            _ => return Err(NeedsJson),
        };
        match self.native(fields, depth) {
            Err(NeedsJson) if depth > 0 && !refers(schema) && self.rules.text.len() <= self.most => {
                Ok(self.rules.json(schema))
            }
            result => result,
        }
    }

    fn native(&mut self, fields: &Map<String, Value>, depth: usize) -> Result<String, NeedsJson> {
        let says: Vec<&str> = fields
            .keys()
            .map(String::as_str)
            .filter(|key| !ANNOTATIONS.contains(key) && !key.starts_with("x-"))
            .collect();
        if let Some(Value::String(target)) = fields.get("$ref") {
            only(&says, &["$ref"])?;
            return self.reference(target, depth);
        }
        if let Some(value) = fields.get("const") {
            only(&says, &["const", "type"])?;
            let values = self.of_kind(std::slice::from_ref(value), fields);
            return self.literals(&values);
        }
        if let Some(Value::Array(values)) = fields.get("enum") {
            only(&says, &["enum", "type"])?;
            let values = self.of_kind(values, fields);
            return self.literals(&values);
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            if let Some(Value::Array(all)) = fields.get(key) {
                only(&says, &[key])?;
                let is_plain = match key {
                    "anyOf" => true,
                    "oneOf" => are_of_different_types(all),
                    _ => all.len() == 1,
                };
                if !is_plain {
                    return Err(NeedsJson);
                }
                let all: Result<Vec<String>, _> = all.iter().map(|one| self.value(one, depth + 1)).collect();
                return self.one_of(all?);
            }
        }
        let kinds: Vec<&str> = match fields.get("type") {
            Some(Value::String(kind)) => vec![kind],
            Some(Value::Array(all)) => {
                let mut kinds: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
                kinds.sort_unstable();
                // Each once: one named twice would be written twice, with all that is in it.
                kinds.dedup();
                kinds
            }
            _ if fields.contains_key("properties") => vec!["object"],
            _ if fields.contains_key("items") => vec!["array"],
            _ if says.is_empty() => return Ok(self.rules.any(ANY_DEPTH)),
            _ => return Err(NeedsJson),
        };
        let all: Result<Vec<String>, _> = kinds
            .iter()
            .map(|kind| self.of_type(kind, fields, &says, depth))
            .collect();
        self.one_of(all?)
    }

    /// Of given values those that the schema's type allows. A type that allows none of them is taken for a mistake, unless
    /// the schema is strict.
    fn of_kind<'v>(&self, values: &'v [Value], fields: &Map<String, Value>) -> Vec<&'v Value> {
        let is_allowed = |value: &Value| match fields.get("type") {
            None => true,
            Some(Value::Array(kinds)) => kinds.iter().any(|kind| is_of(value, kind)),
            Some(kind) => is_of(value, kind),
        };
        let may_be_null = fields.get("nullable") == Some(&Value::Bool(true));
        let is_allowed = |value: &&Value| is_allowed(value) || (may_be_null && value.is_null());
        let allowed: Vec<&Value> = values.iter().filter(is_allowed).collect();
        if allowed.is_empty() && !self.rules.is_strict {
            return values.iter().collect();
        }
        allowed
    }

    /// One of given values.
    fn literals(&mut self, values: &[&Value]) -> Result<String, NeedsJson> {
        let all: Result<Vec<String>, _> = values.iter().map(|value| self.literal(value)).collect();
        match all?.as_slice() {
            [] => Err(NeedsJson),
            all => Ok(self.rules.rule(&all.join(" | "))),
        }
    }

    fn of_type(
        &mut self,
        kind: &str,
        fields: &Map<String, Value>,
        says: &[&str],
        depth: usize,
    ) -> Result<String, NeedsJson> {
        match kind {
            "string" => {
                only(says, &["type", "minLength", "maxLength"])?;
                self.string(fields)
            }
            "integer" | "number" => {
                only(says, &["type"])?;
                Ok(if kind == "integer" { "INTEGER" } else { "NUMBER" }.to_string())
            }
            "boolean" => Ok("(\"true\" | \"false\")".to_string()),
            "null" => Ok("\"null\"".to_string()),
            "array" => {
                only(says, &["type", "items", "minItems", "maxItems"])?;
                self.array(fields, depth)
            }
            "object" => {
                only(says, &["type", "properties", "required", "additionalProperties"])?;
                self.object(fields, depth)
            }
            _ => Err(NeedsJson),
        }
    }

    fn one_of(&mut self, mut all: Vec<String>) -> Result<String, NeedsJson> {
        match all.len() {
            0 => Err(NeedsJson),
            1 => Ok(all.remove(0)),
            _ => Ok(self.rules.rule(&all.join(" | "))),
        }
    }

    fn reference(&mut self, target: &str, depth: usize) -> Result<String, NeedsJson> {
        if let Some(rule) = self.references.get(target) {
            return Ok(rule.clone());
        }
        let schema = target.strip_prefix('#').and_then(|at| self.root.pointer(at));
        let schema = schema.cloned().ok_or(NeedsJson)?;
        // Named before it is written: it may refer to itself.
        let name = self.rules.name();
        self.references.insert(target.to_string(), name.clone());
        let body = self.value(&schema, depth + 1)?;
        if body == name {
            return Err(NeedsJson);
        }
        let _infallible = writeln!(self.rules.text, "{name}: {body}");
        Ok(name)
    }

    fn string(&mut self, fields: &Map<String, Value>) -> Result<String, NeedsJson> {
        let Some((least, most)) = bounds(fields, "minLength", "maxLength")? else {
            return Ok("string".to_string());
        };
        let quote = self.rules.quote;
        let chars = match (least, most) {
            (_, Some(0)) => String::new(),
            (0, Some(most)) => format!("(/(.|\\n){{1,{most}}}/)?"),
            (least, Some(most)) => format!("/(.|\\n){{{least},{most}}}/"),
            (least, None) => format!("/(.|\\n){{{least},}}/"),
        };
        Ok(self.rules.rule(&format!("<[{quote}]> {chars} <[{quote}]>")))
    }

    fn array(&mut self, fields: &Map<String, Value>, depth: usize) -> Result<String, NeedsJson> {
        let item = match fields.get("items") {
            Some(items) => self.value(items, depth + 1)?,
            None => self.rules.any(ANY_DEPTH - 1),
        };
        let (least, most) = bounds(fields, "minItems", "maxItems")?.unwrap_or((0, None));
        let more = least.saturating_sub(1);
        let items = match most {
            Some(0) => String::new(),
            // None may follow, and the compiler takes no range that ends at 0.
            Some(1) => item,
            Some(most) => format!("{item} (\",\" {item}){{{more},{}}}", most - 1),
            None if more == 0 => format!("{item} (\",\" {item})*"),
            None => format!("{item} (\",\" {item}){{{more},}}"),
        };
        let items = match (least, items.is_empty()) {
            (0, false) => format!("({items})?"),
            _ => items,
        };
        Ok(self.rules.rule(&format!("\"[\" {items} \"]\"")))
    }

    fn object(&mut self, fields: &Map<String, Value>, depth: usize) -> Result<String, NeedsJson> {
        let none = Map::new();
        let properties = match fields.get("properties") {
            Some(Value::Object(properties)) => properties,
            None => &none,
            Some(_) => return Err(NeedsJson),
        };
        let required: Vec<&str> = match fields.get("required") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let others = fields
            .get("additionalProperties")
            .filter(|value| **value != Value::Bool(false));
        if !properties.keys().all(|key| is_bare(key))
            || required.iter().any(|key| !properties.contains_key(*key))
        {
            return Err(NeedsJson);
        }
        match (properties.is_empty(), others) {
            (false, Some(_)) => return Err(NeedsJson),
            (false, None) => {}
            (true, _) if fields.get("additionalProperties") == Some(&Value::Bool(false)) => {
                return Ok("\"{}\"".to_string());
            }
            (true, others) => {
                let value = match others {
                    Some(schema) => self.value(schema, depth + 1)?,
                    None => self.rules.any(ANY_DEPTH - 1),
                };
                // Its key is a terminal of theirs.
                let _any = self.rules.any(0);
                return Ok(self.rules.rule(&map_of(&value)));
            }
        }
        let mut sorted: Vec<(&String, &Value)> = properties.iter().collect();
        sorted.sort_by_cached_key(|(key, _)| key.to_lowercase());
        // From the last to the first: what may follow where no field has come yet, and where one has.
        let (mut first, mut next) = (String::new(), String::new());
        for (key, schema) in sorted.into_iter().rev() {
            let value = self.value(schema, depth + 1)?;
            let field = format!("{} {value} {next}", quoted(&format!("{key}:")));
            let is_optional = !required.contains(&key.as_str());
            let or = |rest: &str| match (is_optional, rest) {
                (false, _) => String::new(),
                (true, "") => " | \"\"".to_string(),
                (true, rest) => format!(" | {rest}"),
            };
            first = self.rules.rule(&format!("{field}{}", or(&first)));
            next = self.rules.rule(&format!("\",\" {field}{}", or(&next)));
        }
        Ok(self.rules.rule(&format!("\"{{\" {first} \"}}\"")))
    }

    /// A given value, as it is written.
    fn literal(&self, value: &Value) -> Result<String, NeedsJson> {
        let quote = self.rules.quote;
        Ok(match value {
            Value::String(text) => format!("<[{quote}]> {} <[{quote}]>", quoted(text)),
            Value::Array(items) => {
                let items: Result<Vec<String>, _> = items.iter().map(|item| self.literal(item)).collect();
                format!("\"[\" {} \"]\"", items?.join(" \",\" "))
            }
            Value::Object(fields) => {
                let field = |(key, value): (&String, &Value)| {
                    let key = Some(key).filter(|key| is_bare(key)).ok_or(NeedsJson)?;
                    Ok(format!("{} {}", quoted(&format!("{key}:")), self.literal(value)?))
                };
                let fields: Result<Vec<String>, _> = fields.iter().map(field).collect();
                format!("\"{{\" {} \"}}\"", fields?.join(" \",\" "))
            }
            scalar => quoted(&scalar.to_string()),
        })
    }
}

/// An object of values of one rule.
fn map_of(value: &str) -> String {
    format!("\"{{\" (KEY \":\" {value} (\",\" KEY \":\" {value})*)? \"}}\"")
}

/// Whether a schema says nothing but this.
fn only(says: &[&str], known: &[&str]) -> Result<(), NeedsJson> {
    if says.iter().all(|key| known.contains(key)) {
        Ok(())
    } else {
        Err(NeedsJson)
    }
}

/// A least and a most number; `None` where neither is given.
fn bounds(
    fields: &Map<String, Value>,
    least: &str,
    most: &str,
) -> Result<Option<(u64, Option<u64>)>, NeedsJson> {
    let number = |key: &str| {
        fields
            .get(key)
            .map(|value| value.as_u64().ok_or(NeedsJson))
            .transpose()
    };
    let (least, most) = (number(least)?, number(most)?);
    // More than a grammar should count; and what cannot be is for the compiler of schemas to refuse.
    if least.max(most).is_some_and(|n| n > 10_000) || most.is_some_and(|most| least.unwrap_or(0) > most) {
        return Err(NeedsJson);
    }
    Ok((least.is_some() || most.is_some()).then_some((least.unwrap_or(0), most)))
}

/// Whether a key can stand without quotes.
fn is_bare(key: &str) -> bool {
    let is_plain = |c: char| !matches!(c, ':' | '=' | ',' | '{' | '}' | '"') && !c.is_control();
    // The reader takes a parenthesis there for the end of the fields.
    !key.is_empty() && !key.starts_with(')') && key.trim() == key && key.chars().all(is_plain)
}

fn are_of_different_types(schemas: &[Value]) -> bool {
    let kinds: Vec<Option<&str>> = schemas.iter().map(|schema| schema["type"].as_str()).collect();
    // An integer is a number too.
    let name =
        |kind: &Option<&str>| kind.map(|kind| if kind == "integer" { "number" } else { kind }.to_owned());
    kinds
        .iter()
        .enumerate()
        .all(|(i, kind)| kind.is_some() && kinds[..i].iter().all(|other| name(other) != name(kind)))
}

/// Whether a value is of a type.
fn is_of(value: &Value, kind: &Value) -> bool {
    match kind.as_str() {
        Some("string") => value.is_string(),
        Some("integer") => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => false,
    }
}

/// Whether it names something outside of itself, at any depth.
fn refers(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => fields.contains_key("$ref") || fields.values().any(refers),
        Value::Array(items) => items.iter().any(refers),
        _ => false,
    }
}

/// A text as Lark writes it.
fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// Refuses what the compiler of JSON schemas takes and would bind an answer to something else for, or to nothing.
///
/// # Errors
/// What it is, said of `field`.
pub(crate) fn check(schema: &Value, field: &'static str) -> Result<(), ApiError> {
    if let Some(circle) = circle(schema) {
        return Err(ApiError::field(
            field,
            format!("`{field}` cannot be used: {circle}"),
        ));
    }
    check_numbers(schema, field)
}

/// The compiler knows given numbers up to 2^53.
fn check_numbers(schema: &Value, field: &'static str) -> Result<(), ApiError> {
    let mut inner: Box<dyn Iterator<Item = &Value>> = match schema {
        Value::Object(fields) => {
            let mut given = GIVEN.iter().filter_map(|key| fields.get(*key));
            if let Some(number) = given.find_map(beyond) {
                let message = format!(
                    "`{field}` allows the number {number}, which cannot be bound exactly; give it as a string"
                );
                return Err(ApiError::field(field, message));
            }
            Box::new(fields.values())
        }
        Value::Array(items) => Box::new(items.iter()),
        _ => return Ok(()),
    };
    inner.try_for_each(|one| check_numbers(one, field))
}

/// What gives values themselves.
const GIVEN: [&str; 2] = ["const", "enum"];

/// A whole number beyond 2^53 in given values.
fn beyond(given: &Value) -> Option<&Number> {
    match given {
        Value::Number(number) => {
            let size = number.as_i64().map(i64::unsigned_abs).or(number.as_u64());
            Some(number).filter(|_| size.is_some_and(|size| size > 1 << 53))
        }
        Value::Array(items) => items.iter().find_map(beyond),
        _ => None,
    }
}

/// Leaves out given values that [`check`] would refuse.
fn forget_beyond(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            for key in GIVEN {
                let Some(given) = fields.get(key).filter(|given| beyond(given).is_some()) else {
                    continue;
                };
                let are_whole = match given {
                    Value::Array(items) => items.iter().all(|item| is_of(item, &"integer".into())),
                    _ => true,
                };
                fields.remove(key);
                if are_whole {
                    fields.entry("type").or_insert_with(|| "integer".into());
                }
            }
            fields.values_mut().for_each(forget_beyond);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_beyond),
        _ => {}
    }
}

/// What is wrong with a schema in which a reference, by way of others, names itself and nothing else.
pub(super) fn circle(schema: &Value) -> Option<String> {
    let mut sound = HashSet::new();
    let mut left = vec![schema];
    while let Some(next) = left.pop() {
        match next {
            Value::Object(fields) => {
                if let Some(Value::String(target)) = fields.get("$ref")
                    && let Some(target) = circle_from(target, schema, &mut sound)
                {
                    return Some(format!(
                        "the reference `{target}` goes in a circle: what it names is the reference itself; say there what \
                         the value is"
                    ));
                }
                left.extend(fields.values());
            }
            Value::Array(items) => left.extend(items),
            _ => {}
        }
    }
    None
}

/// The first reference that comes twice on the way from `target`; `sound` are those that lead to an end.
fn circle_from<'a>(mut target: &'a str, root: &'a Value, sound: &mut HashSet<&'a str>) -> Option<&'a str> {
    let mut way = HashSet::new();
    while !sound.contains(target) {
        if !way.insert(target) {
            return Some(target);
        }
        let named = target.strip_prefix('#').and_then(|at| root.pointer(at));
        let Some(Value::String(next)) = named.and_then(|named| named.get("$ref")) else {
            break;
        };
        target = next;
    }
    sound.extend(way);
    None
}

/// A schema with the one way of writing blanks. Unless it is strict, what the compiler does not know is left out.
pub(super) fn compact(schema: &Value, is_strict: bool) -> Value {
    let mut schema = schema.clone();
    if !is_strict {
        forget_beyond(&mut schema);
    }
    if let Some(fields) = schema.as_object_mut() {
        fields.insert(
            "x-guidance".into(),
            json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",
                "lenient": !is_strict}),
        );
    }
    schema
}
