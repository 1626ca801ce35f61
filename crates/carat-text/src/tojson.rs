//! JSON text as Python's `json.dumps` writes it, which is what templates were trained with.
//!
//! Differs from the usual compact form by a blank after each comma and colon; with `indent`, commas end their lines.
//! Characters outside ASCII are kept, and nothing is escaped for HTML.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Indents wider than this are refused: they would only waste memory.
const INDENT_LIMIT: usize = 16;

/// `value` as one line, or indented by `indent` blanks per level.
pub(crate) fn to_json(value: &impl Serialize, indent: Option<usize>) -> Result<String, String> {
    let mut bytes = Vec::new();
    let outcome = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced)),
        Some(width) if width > INDENT_LIMIT => {
            return Err(format!(
                "tojson accepts an indent up to {INDENT_LIMIT}, found {width}"
            ));
        }
        Some(width) => {
            let blanks = [b' '; INDENT_LIMIT];
            let formatter = PrettyFormatter::with_indent(&blanks[..width]);
            value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        }
    };
    outcome.map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

/// One line with `", "` and `": "`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::to_json;

    #[test]
    fn writes_what_python_writes() {
        let value = serde_json::json!({"a": [1, 2.5, null, true], "b": {"c": "<\u{e9}\">"}, "d": []});
        let line = r#"{"a": [1, 2.5, null, true], "b": {"c": "<é\">"}, "d": []}"#;
        assert_eq!(to_json(&value, None).unwrap(), line);
        let value = serde_json::json!({"a": [1], "b": {}});
        assert_eq!(
            to_json(&value, Some(2)).unwrap(),
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}"
        );
        assert!(to_json(&value, Some(99)).is_err());
    }
}
