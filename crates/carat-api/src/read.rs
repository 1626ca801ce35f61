//! Reading bodies: JSON to types, with the path of what does not fit.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, SeqAccess, Visitor};

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
