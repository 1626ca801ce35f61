//! A request's body, read no deeper than its top level.
//!
//! Routing needs the model's name, whether the answer streams and how long it may be; the conversation itself, which
//! may be megabytes, is only checked for being JSON and copied. [`Fields::compose`] writes the body anew with the
//! model's name at the provider, and with fields renamed, dropped or added; all others go through as they came, known
//! here or not. A name that occurs twice is refused, since the two ends might read different values.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// The top level of a JSON object.
#[derive(Debug, Default)]
pub(crate) struct Fields<'a> {
    fields: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Fields<'a> {
    /// Reads a body.
    pub(crate) fn read(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// The value of a field as it stands in the body; `null` counts as absent.
    pub(crate) fn raw(&self, name: &str) -> Option<&'a str> {
        let (_, value) = self.fields.iter().find(|(field, _)| field == name)?;
        Some(value.get()).filter(|text| *text != "null")
    }

    /// The value of a field, if it is there and of this type.
    pub(crate) fn get<T: Deserialize<'a>>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.raw(name)?).ok()
    }

    /// A number of tokens or answers; see [`count`].
    pub(crate) fn count(&self, name: &str) -> Option<u64> {
        count(&self.get(name)?)
    }

    /// How many answers are asked for at once: each may have as many tokens as the request says.
    pub(crate) fn n_answers(&self) -> u64 {
        self.n_each().saturating_mul(self.n_prompts())
    }

    /// How many prompts are to be answered. One may be written as the numbers of its tokens.
    fn n_prompts(&self) -> u64 {
        let prompts: Vec<&RawValue> = self.get("prompt").unwrap_or_default();
        let is_prompt = |text: &&&RawValue| text.get().starts_with(['"', '[']);
        prompts.iter().filter(is_prompt).count().max(1) as u64
    }

    /// How many answers each prompt is to have.
    fn n_each(&self) -> u64 {
        let of_gemini = || {
            let settings = ["generationConfig", "generation_config"];
            let settings = settings.iter().filter_map(|name| self.get::<Value>(name));
            let counts = settings.flat_map(|settings| {
                ["candidateCount", "candidate_count"].map(|name| count(&settings[name]))
            });
            counts.flatten().max()
        };
        let stated = self.count("n").max(self.count("best_of"));
        stated.or_else(of_gemini).unwrap_or(1).max(1)
    }

    /// Names and values as they stand.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.fields
            .iter()
            .map(|(name, value)| (name.as_ref(), value.get()))
    }

    /// All of it, read to the ground.
    pub(crate) fn value(&self) -> Result<Value, serde_json::Error> {
        let mut object = serde_json::Map::new();
        for (name, value) in &self.fields {
            object.insert(name.to_string(), serde_json::from_str(value.get())?);
        }
        Ok(Value::Object(object))
    }

    /// Writes the body anew: `decide` says what becomes of each field, `added` (JSON texts) is put first.
    pub(crate) fn compose(
        &self,
        added: &[(&str, String)],
        mut decide: impl FnMut(&str, &str) -> Fate,
    ) -> Vec<u8> {
        let length: usize = self
            .fields
            .iter()
            .map(|(name, value)| name.len() + value.get().len() + 8)
            .sum();
        let mut out = Vec::with_capacity(length + 128);
        out.push(b'{');
        for (name, value) in added {
            push(&mut out, name, value);
        }
        for (name, value) in &self.fields {
            if added.iter().any(|(other, _)| other == name) {
                continue;
            }
            match decide(name, value.get()) {
                Fate::Keep => push(&mut out, name, value.get()),
                Fate::Rename(name) => push(&mut out, &name, value.get()),
                Fate::Replace(value) => push(&mut out, name, &value),
                Fate::Drop => {}
            }
        }
        out.push(b'}');
        out
    }
}

/// What becomes of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    Keep,
    Rename(String),
    /// With this JSON text as its value.
    Replace(String),
    Drop,
}

fn push(out: &mut Vec<u8>, name: &str, value: &str) {
    if out.len() > 1 {
        out.push(b',');
    }
    // Writing a string to memory cannot fail.
    let _written = serde_json::to_writer(&mut *out, name);
    out.push(b':');
    out.extend_from_slice(value.as_bytes());
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Top;
        impl<'de> Visitor<'de> for Top {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::with_capacity(8);
                while let Some(Name(name)) = map.next_key()? {
                    if fields.iter().any(|(other, _)| *other == name) {
                        return Err(A::Error::custom(format!("`{name}` is given twice")));
                    }
                    // Names are compared with each other: a body of nothing but names must not take forever.
                    if fields.len() == MAX_FIELDS {
                        return Err(A::Error::custom(format!("more than {MAX_FIELDS} fields")));
                    }
                    fields.push((name, map.next_value()?));
                }
                Ok(Fields { fields })
            }
        }
        deserializer.deserialize_map(Top)
    }
}

/// Most fields of a body: three times what the largest API has.
const MAX_FIELDS: usize = 256;

/// A name, borrowed unless it is escaped.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_string())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// A whole number in any way in which some provider would read one, such as `4`, `4.0`, `4e0` and `"4"`: what is held for
/// an answer must not depend on how its bound is written.
pub(crate) fn count(value: &Value) -> Option<u64> {
    let number = match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    };
    let rounded = || {
        number
            .filter(|number| *number >= 0.0)
            .map(|number| number.ceil() as u64)
    };
    value.as_u64().or_else(rounded)
}

/// A whole number of either sign, in the same ways.
pub(crate) fn integer(value: &Value) -> Option<i64> {
    let number = match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    };
    // Whatever is smaller is exact as an integer.
    let is_whole = |number: &f64| number.fract() == 0.0 && number.abs() < 2.0_f64.powi(63);
    value
        .as_i64()
        .or_else(|| number.filter(is_whole).map(|number| number as i64))
}

#[cfg(test)]
mod tests {
    #[test]
    fn whole_numbers_are_read_however_they_are_written() {
        let integer = |text: &str| integer(&serde_json::from_str(text).unwrap());
        for text in ["-7", "-7.0", "\"-7\""] {
            assert_eq!(integer(text), Some(-7), "{text}");
        }
        assert_eq!(integer("9223372036854775807"), Some(i64::MAX));
        for text in ["1.5", "1e300", "null", "\"x\"", "\"NaN\"", "\"inf\"", "true"] {
            assert_eq!(integer(text), None, "{text}");
        }
    }

    #[test]
    fn every_prompt_has_its_answers() {
        let n = |body: &str| Fields::read(body.as_bytes()).unwrap().n_answers();
        assert_eq!(n(r#"{"prompt":"x"}"#), 1);
        assert_eq!(n(r#"{"prompt":["x","y","z"],"n":2}"#), 6);
        assert_eq!(n(r#"{"prompt":[[1,2],[3]],"best_of":4,"n":2}"#), 8);
        // These are tokens.
        assert_eq!(n(r#"{"prompt":[1,2,3],"n":2}"#), 2);
        assert_eq!(n(r#"{"prompt":[],"n":2}"#), 2);
        assert_eq!(n(r#"{"prompt":{"id":"pmpt_1"}}"#), 1);
        assert_eq!(n(r#"{"generationConfig":{"candidateCount":3}}"#), 3);
    }

    #[test]
    fn numbers_are_read_however_they_are_written() {
        let count = |text: &str| count(&serde_json::from_str(text).unwrap());
        for text in ["1000", "1000.0", "1e3", "\"1000\"", "999.5"] {
            assert_eq!(count(text), Some(1000), "{text}");
        }
        assert_eq!(count("1e300"), Some(u64::MAX));
        assert_eq!(count("18446744073709551615"), Some(u64::MAX));
        for text in ["-1", "null", "\"many\"", "[4]", "\"NaN\""] {
            assert_eq!(count(text), None, "{text}");
        }
    }

    use super::*;

    #[test]
    fn unknown_fields_go_through_untouched() {
        let body = br#"{ "model" : "a", "x":{"deep":[1, 2.50]},"max_completion_tokens":5, "user":"u","stream":true}"#;
        let fields = Fields::read(body).unwrap();
        assert_eq!(fields.get::<&str>("model"), Some("a"));
        assert_eq!(fields.get::<bool>("stream"), Some(true));
        assert_eq!(fields.get::<bool>("user"), None);
        let added = [("model", "\"b/c\"".to_string())];
        let out = fields.compose(&added, |name, _| match name {
            "max_completion_tokens" => Fate::Rename("max_tokens".into()),
            "user" => Fate::Drop,
            "stream" => Fate::Replace("false".into()),
            _ => Fate::Keep,
        });
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"model":"b/c","x":{"deep":[1, 2.50]},"max_tokens":5,"stream":false}"#
        );
    }

    #[test]
    fn what_two_readers_may_read_differently_is_refused() {
        let error = Fields::read(br#"{"model":"a","mod\u0065l":"b"}"#)
            .unwrap_err()
            .to_string();
        assert!(error.contains("`model` is given twice"), "{error}");
        for bad in ["", "[]", "{\"a\":}", "{\"a\":1} x", "{\"a\":\"\\ud800\u{1}\"}"] {
            assert!(Fields::read(bad.as_bytes()).is_err(), "{bad}");
        }
        let many: Vec<_> = (0..300).map(|i| format!("\"{i}\":1")).collect();
        assert!(Fields::read(format!("{{{}}}", many.join(",")).as_bytes()).is_err());
    }
}
