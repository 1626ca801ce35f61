//! Who goes on with a stream that broke.
//!
//! Where a route says `continue = true`, what a client has of an answer is given to another candidate as the beginning of
//! its own, and the stream goes on with what that one adds. Only words are continued: a call of a tool that was half said
//! is not, nor is what must keep to a format. Candidates that cannot be told to go on are left out ([`Prefill`]); if
//! nobody is left, the stream ends with an error event as it does everywhere else.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::access::{Bill, Entry};
use crate::account::Account;
use crate::attempt::{self, Call, Wish};
use crate::config::Config;
use crate::endpoint::Endpoint;
use crate::failure::{Class, Failure};
use crate::fields::{self, Fate, Fields};
use crate::files::Files;
use crate::gateway::Gateway;
use crate::policy::ranked;
use crate::provider::Prefill;
use crate::queue::Queue;
use crate::records::Framing;
use crate::route::Route;
use crate::stream::Forwarding;
use crate::upstream::AnswerBody;

/// Bytes of a text that make a token, roughly.
const BYTES_PER_TOKEN: usize = 4;

/// All that is needed to ask again for the rest of an answer.
pub(crate) struct Heir {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) config: Arc<Config>,
    pub(crate) route: Arc<Route>,
    pub(crate) endpoint: Endpoint,
    /// The request, as its route's guard let it in.
    pub(crate) body: Bytes,
    pub(crate) body_bytes: usize,
    pub(crate) forwarded: Vec<(HeaderName, HeaderValue)>,
    pub(crate) deadline: Instant,
    pub(crate) wish: Wish,
    /// Candidates in whose hands it broke.
    pub(crate) broken: Vec<usize>,
}

/// A stream that goes on.
pub(crate) struct Inheritance {
    pub(crate) body: AnswerBody,
    pub(crate) framing: Framing,
    pub(crate) forwarding: Forwarding,
    pub(crate) account: Account,
}

/// Nobody goes on.
pub(crate) struct Nobody {
    /// Why the answer broke.
    pub(crate) failure: Failure,
    /// To be settled for what came before.
    pub(crate) entry: Option<Entry>,
}

/// Whether an answer to this request is one text, and loses nothing when it is written anew.
pub(crate) fn is_one_text(endpoint: Endpoint, fields: &Fields<'_>) -> bool {
    let has_logprobs = fields.get::<bool>("logprobs").unwrap_or(false);
    let is_one = |value: Option<u64>| value.is_none_or(|n| n <= 1);
    let is_plain = |config: &Value| {
        let n = |name: &str| fields::count(&config[name]);
        let has = |name: &str| config[name] == true;
        is_one(n("candidateCount").max(n("candidate_count")))
            && !has("responseLogprobs")
            && !has("response_logprobs")
    };
    endpoint.is_conversation()
        && is_one(fields.count("n"))
        && !has_logprobs
        && ["generationConfig", "generation_config"]
            .iter()
            .filter_map(|name| fields.get::<Value>(name))
            .all(|config| is_plain(&config))
}

/// Whether an answer to this request could be continued: one text that keeps to no format.
pub(crate) fn may_be_continued(endpoint: Endpoint, fields: &Fields<'_>) -> bool {
    let is_format = |value: &Value| !value.is_null() && value["type"] != "text";
    let has_format = ["response_format", "format", "output_config"]
        .iter()
        .filter_map(|name| fields.get::<Value>(name))
        .any(|value| is_format(&value) && (value["effort"].is_null() || !value["format"].is_null()));
    let configs = ["generationConfig", "generation_config"];
    let mut configs = configs.iter().filter_map(|name| fields.get::<Value>(name));
    let has_kind = configs.any(|config| {
        let kinds = ["responseMimeType", "response_mime_type"].into_iter();
        let mut kinds = kinds.filter_map(|name| config[name].as_str());
        kinds.any(|kind| kind != "text/plain")
    });
    is_one_text(endpoint, fields) && !has_format && !has_kind
}

/// Whether a failure is of a kind that another provider need not have.
pub(crate) fn is_worth_it(failure: &Failure) -> bool {
    failure.class.is_illness() || failure.class == Class::RateLimited
}

impl Heir {
    /// Asks for the rest of an answer of which this was said before it broke.
    pub(crate) async fn go_on(
        &mut self,
        said: &str,
        broke: Failure,
        mut entry: Option<Entry>,
    ) -> Result<Inheritance, Box<Nobody>> {
        let found = self.found(said, &mut entry).await;
        let Some((i, body, forwarding, mut account)) = found else {
            let failure = broke;
            return Err(Box::new(Nobody { failure, entry }));
        };
        self.broken.push(i);
        let candidate = &self.route.candidates[i];
        tracing::info!(
            target = candidate.name,
            "another goes on with an answer that broke"
        );
        account.owe(entry.map(|entry| Bill::new(entry, &self.config.prices, candidate)));
        Ok(Inheritance {
            framing: forwarding.framing(),
            body,
            forwarding,
            account,
        })
    }

    /// Who goes on, and with what.
    async fn found(
        &self,
        said: &str,
        entry: &mut Option<Entry>,
    ) -> Option<(usize, AnswerBody, Forwarding, Account)> {
        let body = continued(self.endpoint, &self.body, said)?;
        let fields = Fields::read(&body).ok()?;
        let call = Call {
            endpoint: self.endpoint,
            fields: &fields,
            body_bytes: self.body_bytes.saturating_add(said.len()),
            is_stream: true,
            max_tokens: None,
            forwarded: another(&self.forwarded),
            deadline: self.deadline,
            ends: self.deadline,
            wish: self.wish,
            continues: true,
            is_continued: true,
            files: Files::default(),
            trace: None,
        };
        let means = self.gateway.means(&self.config);
        let mut ranked = ranked(&self.route, &call.asked(), &means.known());
        ranked.retain(|one| {
            let can = self.route.candidates[one.i].provider.prefill != Prefill::None;
            can && !self.broken.contains(&one.i)
        });
        let mut queue = Queue::new(&means, &self.route, &call, ranked);
        let mut last: Option<Failure> = None;
        for _ in 0..self.config.attempts {
            let place = attempt::place(&means, &self.route, &call, &mut queue, &mut last)
                .await
                .ok()?;
            let i = place.0;
            let candidate = &self.route.candidates[i];
            if let Some(entry) = entry {
                entry.asks_too(candidate, &self.config.prices, call.body_bytes);
            }
            match attempt::opened(&means, &self.route, place, &call).await {
                Ok((body, forwarding, account)) => return Some((i, body, forwarding, account)),
                Err(failure) => {
                    tracing::debug!(
                        target = candidate.name,
                        class = failure.class.name(),
                        "a target does not go on"
                    );
                    if let Some(entry) = entry {
                        if attempt::may_be_at_work(&failure) {
                            entry.abandoned(candidate, &self.config.prices, call.body_bytes);
                        }
                        entry.failed();
                    }
                    // Somebody else may take what one calls a bad request.
                    if !queue.failed(i, &failure) && failure.class != Class::BadRequest {
                        return None;
                    }
                    last = Some(failure);
                }
            }
        }
        None
    }
}

/// Headers for another request than the client's: a provider that has seen the key of that one would answer as it did
/// then, or find that the two are not the same.
fn another(forwarded: &[(HeaderName, HeaderValue)]) -> Vec<(HeaderName, HeaderValue)> {
    let others = forwarded.iter().filter(|(name, _)| *name != "idempotency-key");
    others.cloned().collect()
}

/// The request for the rest of an answer, in the client's own words.
fn continued(endpoint: Endpoint, body: &[u8], said: &str) -> Option<Vec<u8>> {
    let fields = Fields::read(body).ok()?;
    let beginning = said.trim_end();
    let (turns, turn, without) = match endpoint {
        Endpoint::Chat => (
            "messages",
            json!({"role": "assistant", "content": beginning}),
            "reasoning_effort",
        ),
        Endpoint::Messages => (
            "messages",
            json!({"role": "assistant", "content": beginning}),
            "thinking",
        ),
        Endpoint::OllamaChat => (
            "messages",
            json!({"role": "assistant", "content": beginning}),
            "think",
        ),
        Endpoint::Generate => (
            "contents",
            json!({"role": "model", "parts": [{"text": beginning}]}),
            "",
        ),
        _ => return None,
    };
    let list = fields.raw(turns)?.trim_end().strip_suffix(']')?.trim_end();
    let comma = if list.ends_with('[') { "" } else { "," };
    let list = format!("{list}{comma}{turn}]");
    let spent = (beginning.len() / BYTES_PER_TOKEN) as u64;
    let left = |most: &Value| fields::count(most).map(|most| most.saturating_sub(spent).max(1));
    let body = fields.compose(&[], |name, value| match name {
        // Thoughts cannot come after the beginning.
        name if name == without => Fate::Drop,
        name if name == turns => Fate::Replace(list.clone()),
        "max_tokens" | "max_completion_tokens" => {
            let most = serde_json::from_str(value).ok().and_then(|most| left(&most));
            most.map_or(Fate::Keep, |most| Fate::Replace(most.to_string()))
        }
        "generationConfig" | "generation_config" | "options" => {
            lowered(value, left).map_or(Fate::Keep, Fate::Replace)
        }
        _ => Fate::Keep,
    });
    Some(body)
}

/// The same settings, with so much less room for the answer.
fn lowered(settings: &str, left: impl Fn(&Value) -> Option<u64>) -> Option<String> {
    let mut settings: Value = serde_json::from_str(settings).ok()?;
    let object = settings.as_object_mut()?;
    for name in ["maxOutputTokens", "max_output_tokens", "num_predict"] {
        if let Some(most) = object.get_mut(name)
            && let Some(less) = left(most)
        {
            *most = Value::from(less);
        }
    }
    for name in ["thinkingConfig", "thinking_config"] {
        object.remove(name);
    }
    Some(settings.to_string())
}

/// A body whose last turn is the beginning of the answer, with what tells this to the provider.
pub(crate) fn marked(prefill: Prefill, body: Vec<u8>) -> Vec<u8> {
    let Ok(fields) = Fields::read(&body) else {
        return body;
    };
    match prefill {
        Prefill::None | Prefill::Last => {}
        Prefill::Final => {
            let yes = |name, value: bool| (name, value.to_string());
            let added = [
                yes("continue_final_message", true),
                yes("add_generation_prompt", false),
            ];
            return fields.compose(&added, |_, _| Fate::Keep);
        }
        Prefill::Prefix => {
            let mut turns: Value = fields.get("messages").unwrap_or_default();
            if let Some(last) = turns.as_array_mut().and_then(|turns| turns.last_mut()) {
                last["prefix"] = Value::Bool(true);
            }
            return fields.compose(&[("messages", turns.to_string())], |_, _| Fate::Keep);
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn continued_text(endpoint: Endpoint, body: &str) -> String {
        String::from_utf8(continued(endpoint, body.as_bytes(), "Once upon ").unwrap()).unwrap()
    }

    #[test]
    fn what_was_said_becomes_the_last_turn_and_takes_its_room() {
        let same = |text: String, expected: &str| {
            let [text, expected] = [&text, expected].map(|text| serde_json::from_str::<Value>(text).unwrap());
            assert_eq!(text, expected);
        };
        same(
            continued_text(
                Endpoint::Chat,
                r#"{"model":"r","x":[1],"messages":[{"role":"user","content":"]"} ] ,"max_tokens":10,"reasoning_effort":"high"}"#,
            ),
            r#"{"model":"r","x":[1],"messages":[{"role":"user","content":"]"},{"content":"Once upon","role":"assistant"}],"max_tokens":8}"#,
        );
        same(
            continued_text(
                Endpoint::Generate,
                r#"{"contents":[],"generationConfig":{"maxOutputTokens":2,"thinkingConfig":{},"topK":1}}"#,
            ),
            r#"{"contents":[{"parts":[{"text":"Once upon"}],"role":"model"}],"generationConfig":{"maxOutputTokens":1,"topK":1}}"#,
        );
        same(
            continued_text(
                Endpoint::Generate,
                r#"{"contents":[],"generation_config":{"max_output_tokens":9,"thinking_config":{}}}"#,
            ),
            r#"{"contents":[{"parts":[{"text":"Once upon"}],"role":"model"}],"generation_config":{"max_output_tokens":7}}"#,
        );
        assert!(continued(Endpoint::Chat, br#"{"messages":"x"}"#, "a").is_none());
        assert!(continued(Endpoint::Responses, br#"{"input":[]}"#, "a").is_none());
    }

    #[test]
    fn providers_are_told_in_their_own_way() {
        let body = || br#"{"messages":[{"role":"assistant","content":"a"}]}"#.to_vec();
        let told = |prefill| serde_json::from_slice::<Value>(&marked(prefill, body())).unwrap();
        let turn = |more: Value| {
            let mut turn = json!({"role": "assistant", "content": "a"});
            if more == true {
                turn["prefix"] = more;
            }
            json!([turn])
        };
        assert_eq!(told(Prefill::Last), json!({"messages": turn(Value::Null)}));
        assert_eq!(
            told(Prefill::Final),
            json!({"continue_final_message": true, "add_generation_prompt": false, "messages": turn(Value::Null)})
        );
        assert_eq!(told(Prefill::Prefix), json!({"messages": turn(json!(true))}));
    }

    #[test]
    fn what_is_more_than_one_text_is_not_continued() {
        let may = |body: &str| may_be_continued(Endpoint::Chat, &Fields::read(body.as_bytes()).unwrap());
        assert!(may(
            r#"{"messages":[],"n":1,"tools":[{}],"response_format":{"type":"text"}}"#
        ));
        for body in [
            r#"{"n":2}"#,
            r#"{"logprobs":true}"#,
            r#"{"response_format":{"type":"json_object"}}"#,
            r#"{"generationConfig":{"candidateCount":2}}"#,
            r#"{"generationConfig":{"responseMimeType":"application/json"}}"#,
            r#"{"generation_config":{"response_mime_type":"application/json"}}"#,
            r#"{"generation_config":{"candidate_count":2}}"#,
            r#"{"n":2.0}"#,
            r#"{"generationConfig":{"responseMimeType":"application/json"}}"#,
            r#"{"format":"json"}"#,
            r#"{"output_config":{"format":{"type":"json_schema"}}}"#,
        ] {
            assert!(!may(body), "{body}");
        }
        assert!(may(r#"{"output_config":{"effort":"low"}}"#));
        assert!(!may_be_continued(Endpoint::Responses, &Fields::default()));
    }
}
