//! What a provider answers, whole or as a stream.

use serde_json::Value;

use crate::failure::{Class, Failure};
use crate::translate::{Alike, Event, Finish, broken, new_id, text, words};
use crate::usage::Usage;

/// For whom answers are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::translate) enum Client {
    /// Gets them in other words.
    #[default]
    Other,
    /// Speaks this API too, and gets them as they came.
    Own,
    /// The same, also where a prompt was refused: nobody else is asked then.
    OwnRefused,
}

/// Reads answers, whole or as records of a stream, which are alike.
#[derive(Default)]
pub(in crate::translate) struct ContentReader {
    client: Client,
    has_begun: bool,
    has_calls: bool,
    is_done: bool,
    /// Candidates that have begun and not ended, as bits: who speaks this API itself may ask for several.
    open: u64,
}

impl Alike for ContentReader {
    fn read(&mut self, value: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        if !value["error"].is_null() {
            return Err(Failure::of_value(value, None));
        }
        if let Some(reason) = value["promptFeedback"]["blockReason"].as_str() {
            events.extend(usage_event(value));
            if self.client == Client::OwnRefused {
                self.is_done = true;
                events.push(Event::End(Finish::Filter));
                return Ok(());
            }
            let message = format!("the provider refused the prompt ({reason})");
            return Err(Failure::new(Class::ContentPolicy, 400, message));
        }
        if !self.has_begun {
            self.has_begun = true;
            events.push(Event::Begin {
                id: text(&value["responseId"]).unwrap_or_else(|| new_id("")),
                model: text(&value["modelVersion"]).unwrap_or_default(),
            });
        }
        let candidates = &value["candidates"];
        for candidate in candidates.as_array().into_iter().flatten() {
            let bit = 1 << candidate["index"].as_u64().unwrap_or(0).min(63);
            self.open &= !bit;
            if candidate["finishReason"].is_null() {
                self.open |= bit;
            }
        }
        let candidate = &candidates[0];
        for part in candidate["content"]["parts"].as_array().into_iter().flatten() {
            self.read_part(part, events);
        }
        events.extend(usage_event(value));
        if let Some(reason) = candidate["finishReason"].as_str() {
            self.is_done = true;
            events.push(self.end_of(reason));
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.is_done
    }

    fn may_be_over(&self) -> bool {
        self.is_done && self.open == 0
    }
}

fn usage_event(value: &Value) -> Option<Event> {
    let usage = &value["usageMetadata"];
    usage.is_object().then(|| Event::Usage(read_usage(usage)))
}

impl ContentReader {
    pub(in crate::translate) fn of(client: Client) -> Self {
        Self {
            client,
            ..Self::default()
        }
    }

    fn read_part(&mut self, part: &Value, events: &mut Vec<Event>) {
        if let Some(said) = text(&part["text"]).filter(|text| !text.is_empty()) {
            events.push(if part["thought"] == true {
                Event::Thinking(said)
            } else {
                Event::Text(said)
            });
        }
        if part["inlineData"].is_object() && self.client == Client::Other {
            let why =
                "the provider answered with a picture or a sound, for which the client's API has no place";
            events.push(Event::Broken(why.into()));
        }
        let call = &part["functionCall"];
        if call.is_object() {
            self.has_calls = true;
            events.push(Event::Call {
                id: words(&call["id"]).unwrap_or_else(|| new_id("call_")),
                name: text(&call["name"]).unwrap_or_default(),
                signature: text(&part["thoughtSignature"]),
            });
            if !call["args"].is_null() {
                events.push(Event::Arguments(call["args"].to_string()));
            }
        }
    }

    fn end_of(&self, reason: &str) -> Event {
        Event::End(match reason {
            "STOP" | "FINISH_REASON_UNSPECIFIED" if self.has_calls => Finish::Calls,
            "STOP" | "FINISH_REASON_UNSPECIFIED" => Finish::Stop,
            "MAX_TOKENS" => Finish::Length,
            "SAFETY"
            | "RECITATION"
            | "LANGUAGE"
            | "BLOCKLIST"
            | "PROHIBITED_CONTENT"
            | "SPII"
            | "IMAGE_SAFETY"
            | "IMAGE_PROHIBITED_CONTENT"
            | "IMAGE_RECITATION" => Finish::Filter,
            // A call that it could not write, no image where there should be one, and whatever is new.
            other => return broken::event(other),
        })
    }
}

fn read_usage(value: &Value) -> Usage {
    let n = |name: &str| value[name].as_u64().unwrap_or(0);
    let thoughts = n("thoughtsTokenCount");
    let input = n("promptTokenCount").saturating_add(n("toolUsePromptTokenCount"));
    Usage {
        input,
        cache_read: n("cachedContentTokenCount").min(input),
        output: n("candidatesTokenCount").saturating_add(thoughts),
        reasoning: thoughts,
        ..Usage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_call_without_a_name_of_its_own_gets_one() {
        let (mut reader, mut events) = (ContentReader::default(), Vec::new());
        let call = |id: Value| json!({"functionCall": {"id": id, "name": "f", "args": {}}});
        let parts = json!([call(json!("")), call(json!("mine")), call(Value::Null)]);
        let answer = json!({"candidates": [{"content": {"parts": parts}}]});
        reader.read(&answer, &mut events).unwrap();
        let ids: Vec<&str> = events
            .iter()
            .filter_map(|event| match event {
                Event::Call { id, .. } => Some(id.as_str()),
                _ => None,
            })
            .collect();
        assert!(
            ids[0].len() > 5 && ids[1] == "mine" && ids[2].len() > 5,
            "{ids:?}"
        );
        assert_ne!(ids[0], ids[2]);
    }

    #[test]
    fn a_stream_may_be_over_when_all_candidates_have_ended() {
        let mut reader = ContentReader::default();
        let mut over = |candidates: Value| {
            reader
                .read(&json!({"candidates": candidates}), &mut Vec::new())
                .unwrap();
            Alike::may_be_over(&reader)
        };
        let said = |index: u64| json!({"index": index, "content": {"parts": [{"text": "x"}]}});
        let ended = |index: u64| json!({"index": index, "finishReason": "STOP"});
        assert!(!over(json!([said(0), said(1)])));
        assert!(!over(json!([ended(0)])));
        assert!(!over(json!([said(1)])));
        assert!(over(json!([ended(1)])));
        assert!(over(json!([])), "what comes after changes nothing");
    }
}
