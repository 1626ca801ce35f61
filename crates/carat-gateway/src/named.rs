//! What a request only names: files and pictures by their address, and what a provider keeps by its id.
//!
//! Not everybody can be told such names. Arguments of calls and results may look like them and are none, so that where the
//! text has a word that speaks of them the request is read and looked through in its API's own order.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::endpoint::Endpoint;
use crate::fields::Fields;

/// What is named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// Something that whoever knows its address may fetch.
    pub(crate) by_address: bool,
    /// Something that its provider alone has.
    pub(crate) by_id: bool,
}

/// Where a turn has what is said in it, in one API or another.
#[derive(Deserialize)]
struct Turn<'a> {
    #[serde(default, borrow)]
    content: Option<&'a RawValue>,
    #[serde(default, borrow)]
    output: Option<&'a RawValue>,
    #[serde(default, borrow)]
    parts: Option<&'a RawValue>,
}

impl Named {
    /// Reads a request. Only what has such a word in it is read to the ground: a picture that is there is not copied.
    pub(crate) fn read(endpoint: Endpoint, fields: &Fields<'_>) -> Self {
        let mut named = Self::default();
        let (list, words): (&str, &[&str]) = match endpoint {
            Endpoint::Chat => ("messages", &["\"http", "\"file_id\""]),
            Endpoint::Responses => ("input", &["\"http", "\"file_id\""]),
            Endpoint::Messages => ("messages", &["\"url\"", "\"file\""]),
            Endpoint::Generate => ("contents", &["\"fileData\"", "\"file_data\""]),
            _ => return named,
        };
        let says = |text: &str| {
            let mut words = words.iter();
            words.any(|word| memchr::memmem::find(text.as_bytes(), word.as_bytes()).is_some())
        };
        let Some(text) = fields.raw(list).filter(|text| says(text)) else {
            return named;
        };
        // What cannot be read is for others to refuse.
        for turn in items(text).into_iter().filter(|turn| says(turn)) {
            let Ok(turn) = serde_json::from_str::<Turn<'_>>(turn) else {
                continue;
            };
            let lists = [turn.content, turn.output, turn.parts].into_iter().flatten();
            let parts = lists.flat_map(|list| items(list.get())).filter(|part| says(part));
            for part in parts.filter_map(|part| serde_json::from_str::<Value>(part).ok()) {
                named.see(endpoint, &part);
            }
        }
        named
    }

    fn see(&mut self, endpoint: Endpoint, part: &Value) {
        match endpoint {
            Endpoint::Chat => self.see_chat(part),
            Endpoint::Responses => self.see_response(part),
            Endpoint::Messages => self.see_block(part),
            _ => self.by_id |= part["fileData"].is_object() || part["file_data"].is_object(),
        }
    }

    fn see_chat(&mut self, part: &Value) {
        let image = &part["image_url"];
        self.by_address |= is_address(image) || is_address(&image["url"]);
        self.by_id |= part["file"]["file_id"].is_string();
    }

    fn see_response(&mut self, part: &Value) {
        self.by_address |= is_address(&part["image_url"]) || is_address(&part["file_url"]);
        self.by_id |= part["file_id"].is_string();
    }

    fn see_block(&mut self, block: &Value) {
        match block["source"]["type"].as_str() {
            Some("url") => self.by_address = true,
            Some("file") => self.by_id = true,
            _ => {}
        }
        if block["type"] == "tool_result" {
            let within = block["content"].as_array().into_iter().flatten();
            within.for_each(|block| self.see_block(block));
        }
    }
}

/// The items of a list, as they are written.
fn items(list: &str) -> Vec<&str> {
    let items: Vec<&RawValue> = serde_json::from_str(list).unwrap_or_default();
    items.into_iter().map(RawValue::get).collect()
}

/// Whether something is to be fetched, and not data.
fn is_address(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.starts_with("http"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_told_from_what_is_there_and_from_what_looks_like_it() {
        let cases = [
            (
                Endpoint::Chat,
                r#"{"messages":[{"content":[{"type":"image_url","image_url":{"detail":"low","url":"https://a/b.png"}}]}]}"#,
                (true, false),
            ),
            (
                Endpoint::Chat,
                r#"{"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}]}]}"#,
                (false, false),
            ),
            (
                Endpoint::Chat,
                r#"{"messages":[{"content":[{"type":"file","file":{"file_id":"file-1"}}]}]}"#,
                (false, true),
            ),
            (
                Endpoint::Chat,
                r#"{"messages":[{"content":[{"type":"file","file":{"file_data":"data:application/pdf;base64,AA"}}]}]}"#,
                (false, false),
            ),
            // What was cited is no part of what is asked.
            (
                Endpoint::Chat,
                r#"{"messages":[{"content":"x","annotations":[{"image_url":"https://a"}]}]}"#,
                (false, false),
            ),
            (
                Endpoint::Responses,
                r#"{"input":[{"content":[{"type":"input_image","image_url":"https://a"}]}]}"#,
                (true, false),
            ),
            (
                Endpoint::Responses,
                r#"{"input":[{"type":"function_call_output","output":[{"type":"input_file","file_id":"file-1"}]}]}"#,
                (false, true),
            ),
            (Endpoint::Responses, r#"{"input":"\"file_id\""}"#, (false, false)),
            (
                Endpoint::Messages,
                r#"{"messages":[{"content":[{"type":"image","source":{"type":"url","url":"https://a"}}]}]}"#,
                (true, false),
            ),
            (
                Endpoint::Messages,
                r#"{"messages":[{"content":[{"type":"tool_result","content":[{"type":"document","source":{"type":"file","file_id":"f"}}]}]}]}"#,
                (false, true),
            ),
            // Arguments of a call.
            (
                Endpoint::Messages,
                r#"{"messages":[{"content":[{"type":"tool_use","input":{"source":{"type":"url"},"type":"file"}}]}]}"#,
                (false, false),
            ),
            (
                Endpoint::Generate,
                r#"{"contents":[{"parts":[{"file_data":{"file_uri":"https://a"}}]}]}"#,
                (false, true),
            ),
            (
                Endpoint::Generate,
                r#"{"contents":[{"parts":[{"functionCall":{"args":{"fileData":{}}}}]}]}"#,
                (false, false),
            ),
        ];
        for (endpoint, body, expected) in cases {
            let named = Named::read(endpoint, &Fields::read(body.as_bytes()).unwrap());
            assert_eq!((named.by_address, named.by_id), expected, "{body}");
        }
    }
}
