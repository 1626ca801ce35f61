//! Reading bodies: JSON to types, with the path of what does not fit.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, IgnoredAny, SeqAccess, Unexpected, Visitor};
use serde_json::Value;

use crate::ApiError;

/// Reads a body.
///
/// # Errors
/// When it is no JSON, or a field has a wrong type; the error names the field.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        // The place in the text says nothing that the path does not.
        let message = message.split(" at line ").next().unwrap_or_default().to_string();
        if path == "." {
            ApiError::new(
                crate::ErrorKind::InvalidRequest,
                format!("the body is not the JSON expected: {message}"),
            )
        } else {
            ApiError::field(path.clone(), format!("`{path}` cannot be used: {message}"))
        }
    })?;
    json.end().map_err(|_| {
        ApiError::new(
            crate::ErrorKind::InvalidRequest,
            "the body goes on after its JSON ends; send one JSON object",
        )
    })?;
    Ok(value)
}

/// Reads JSON that a model wrote. Numbers that no machine number holds (whole ones beyond 64 bits, `1e999`) become texts of
/// their digits: whoever calculates with one notices, while another number would be taken for what was meant.
///
/// # Errors
/// When it is no JSON.
pub(crate) fn exact(text: &str) -> serde_json::Result<Value> {
    let (mut told, mut done) = (String::new(), 0);
    let (mut in_string, mut escaped) = (false, false);
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'-' | b'0'..=b'9' if !in_string => {
                let rest = &text[at..];
                let is_part = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
                let number = &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())];
                if is_beyond(number) {
                    told.push_str(&text[done..at]);
                    told.extend(["\"", number, "\""]);
                    done = at + number.len();
                }
                if number.len() > 1 {
                    bytes.nth(number.len() - 2);
                }
            }
            _ => {}
        }
    }
    if done == 0 {
        return serde_json::from_str(text);
    }
    told.push_str(&text[done..]);
    serde_json::from_str(&told)
}

/// Whether it is a number of JSON's that would be read as another, or not at all.
fn is_beyond(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    let is_lost = if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        number.parse::<i64>().is_err() && number.parse::<u64>().is_err()
    } else {
        number.parse().is_ok_and(f64::is_infinite)
    };
    is_lost && serde_json::from_str::<IgnoredAny>(number).is_ok()
}

/// A whole number, which Ollama's clients may write as `128.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Whole(pub(crate) i64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// All floats below are whole 64-bit numbers, if they are whole.
        const END: f64 = 9.2e18;
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Whole;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Whole, E> {
                Ok(Whole(number))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Whole, E> {
                let whole = i64::try_from(number).map(Whole);
                whole.map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Whole, E> {
                if number.fract() == 0.0 && number.abs() < END {
                    Ok(Whole(number as i64))
                } else {
                    Err(E::invalid_value(Unexpected::Float(number), &self))
                }
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// One string or several.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct OneOrMany(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_string()]))
            }

            fn visit_unit<E: Error>(self) -> Result<OneOrMany, E> {
                Ok(OneOrMany::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut strings = Vec::new();
                while let Some(string) = seq.next_element()? {
                    strings.push(string);
                }
                Ok(OneOrMany(strings))
            }
        }
        deserializer.deserialize_any(Strings)
    }
}

/// A text, or a list of parts of type `P`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TextOr<P> {
    Text(String),
    Parts(Vec<P>),
}

impl<P> Default for TextOr<P> {
    fn default() -> Self {
        Self::Parts(Vec::new())
    }
}

impl<'de, P: Deserialize<'de>> Deserialize<'de> for TextOr<P> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Content<P>(std::marker::PhantomData<P>);
        impl<'de, P: Deserialize<'de>> Visitor<'de> for Content<P> {
            type Value = TextOr<P>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string or an array of parts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<TextOr<P>, E> {
                Ok(TextOr::Text(text.to_string()))
            }

            fn visit_unit<E: Error>(self) -> Result<TextOr<P>, E> {
                Ok(TextOr::Parts(Vec::new()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TextOr<P>, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = seq.next_element()? {
                    parts.push(part);
                }
                Ok(TextOr::Parts(parts))
            }
        }
        deserializer.deserialize_any(Content(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Body {
        #[expect(dead_code, reason = "only its type matters")]
        messages: Vec<Message>,
    }

    #[derive(Debug, Deserialize)]
    struct Message {
        #[expect(dead_code, reason = "only its type matters")]
        content: TextOr<u8>,
    }

    #[test]
    fn numbers_that_no_machine_holds_stay_what_was_written() {
        let read = |text: &str| exact(text).map(|value| value.to_string()).unwrap();
        for same in [
            r#"{"a":[9007199254740993,-9223372036854775808,18446744073709551615,1.5]}"#,
            r#"["123456789012345678901234567890, 1e999",-1,0]"#,
            r#"{"\"":"\\","b":2}"#,
        ] {
            assert_eq!(read(same), same);
        }
        assert_eq!(
            read(r#"{"a": 18446744073709551616, "b": [-1e999,7], "c": "\\"}"#),
            r#"{"a":"18446744073709551616","b":["-1e999",7],"c":"\\"}"#
        );
        assert_eq!(read("-123456789012345678901"), "\"-123456789012345678901\"");
        for wrong in [
            "012345678901234567890123",
            "{\"a\": 1e9999",
            "1e999.",
            "--1",
            "é1e",
            "-",
        ] {
            assert!(exact(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn whole_numbers_may_have_a_point() {
        let read = |text: &str| serde_json::from_str(text).map(|Whole(number)| number).ok();
        assert_eq!(read("128.0"), Some(128));
        assert_eq!(read("-1"), Some(-1));
        assert_eq!(read("9223372036854775807"), Some(i64::MAX));
        for wrong in ["0.5", "1e19", "9223372036854775808", "\"1\"", "true"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_wrong_type_is_refused_with_its_path() {
        let error = parse::<Body>(br#"{"messages": [{"content": "x"}, {"content": 3}]}"#).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages[1].content"));
        assert_eq!(
            error.message,
            "`messages[1].content` cannot be used: invalid type: integer `3`, expected a string or an array of parts"
        );
        let error = parse::<Body>(b"{}").unwrap_err();
        assert!(error.message.contains("missing field `messages`"), "{error}");
        assert!(parse::<Body>(b"{\"messages\": []} x").is_err());
        assert!(
            parse::<Body>(b"nonsense")
                .unwrap_err()
                .message
                .contains("not the JSON")
        );
    }
}
