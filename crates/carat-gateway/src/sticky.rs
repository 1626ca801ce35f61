//! Which requests belong together, and to which candidate they go.
//!
//! Rendezvous hashing: every candidate draws a number from the key and its own name, and the order of these numbers is
//! the order of the candidates. So a key stays where it is when another candidate comes or goes, without any memory, and
//! all gateways of a house agree.

use http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::fields::Fields;

/// Headers by which a client says what belongs together.
const HEADERS: [&str; 3] = ["x-carat-session", "x-session-id", "x-conversation-id"];
/// Fields that name a conversation.
const CONVERSATIONS: [&str; 3] = ["prompt_cache_key", "conversation", "session_id"];
/// Fields that name a user.
const USERS: [&str; 2] = ["user", "safety_identifier"];

/// A hash that is the same on every machine and in every version.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mixed(fnv)
}

/// Every bit of the input in every bit of the output.
fn mixed(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// What a request belongs to: a conversation, else a user, else its own beginning, which later turns repeat.
pub(crate) fn conversation(headers: &HeaderMap, fields: &Fields<'_>) -> u64 {
    let stated = stated(headers, fields, &CONVERSATIONS).or_else(|| user(headers, fields));
    stated.unwrap_or_else(|| beginning(fields))
}

/// Whom a request is from, if it says so.
pub(crate) fn user(headers: &HeaderMap, fields: &Fields<'_>) -> Option<u64> {
    let metadata = || {
        let text = fields.raw("metadata")?;
        let metadata: Metadata = serde_json::from_str(text).ok()?;
        metadata.user_id.map(|id| hash(id.as_bytes()))
    };
    stated(headers, fields, &USERS).or_else(metadata)
}

/// Anthropic's way to name a user.
#[derive(Deserialize)]
struct Metadata {
    user_id: Option<String>,
}

fn stated(headers: &HeaderMap, fields: &Fields<'_>, names: &[&str]) -> Option<u64> {
    let header = HEADERS.iter().find_map(|name| headers.get(*name));
    if let Some(header) = header {
        return Some(hash(header.as_bytes()));
    }
    names
        .iter()
        .find_map(|name| fields.raw(name))
        .map(|text| hash(text.as_bytes()))
}

/// The system's words and the first of the user's.
fn beginning(fields: &Fields<'_>) -> u64 {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(default, borrow)]
        role: Option<std::borrow::Cow<'a, str>>,
    }
    let system = ["system", "systemInstruction", "instructions"]
        .iter()
        .filter_map(|name| fields.raw(name))
        .fold(0, |key, text| mixed(key ^ hash(text.as_bytes())));
    let said = ["messages", "contents", "input"]
        .iter()
        .find_map(|name| fields.raw(name));
    let Some(said) = said else {
        let prompt = fields.raw("prompt").unwrap_or_default();
        return mixed(system ^ hash(prompt.as_bytes()));
    };
    let Ok(messages) = serde_json::from_str::<Vec<&RawValue>>(said) else {
        return mixed(system ^ hash(said.as_bytes()));
    };
    let mut key = system;
    for message in messages {
        key = mixed(key ^ hash(message.get().as_bytes()));
        let role = serde_json::from_str::<Message<'_>>(message.get()).ok();
        if role.is_none_or(|message| message.role.as_deref() == Some("user")) {
            break;
        }
    }
    key
}

/// The number that a candidate draws for a key; the smallest is first. One of twice the weight is first twice as often.
pub(crate) fn draw(key: u64, candidate: &str, weight: u32) -> f64 {
    let drawn = mixed(key ^ hash(candidate.as_bytes()).rotate_left(17));
    let unit = ((drawn >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -unit.ln() / f64::from(weight.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(body: &str) -> u64 {
        conversation(&HeaderMap::new(), &Fields::read(body.as_bytes()).unwrap())
    }

    #[test]
    fn turns_of_a_conversation_have_one_key() {
        let first = r#"{"messages":[{"role":"system","content":"S"},{"role":"user","content":"A"}]}"#;
        let later = r#"{"messages":[{"role":"system","content":"S"},{"role":"user","content":"A"},{"role":"assistant","content":"B"},{"role":"user","content":"C"}],"temperature":1}"#;
        let other = r#"{"messages":[{"role":"system","content":"S"},{"role":"user","content":"D"}]}"#;
        assert_eq!(key(first), key(later));
        assert_ne!(key(first), key(other));
        let with = |text: &str| format!("{},\"user\":\"{text}\"}}", &first[..first.len() - 1]);
        assert_eq!(
            key(&with("u")),
            key(&with("u").replace("\"A\"", "\"Z\"")),
            "a user that is named counts first"
        );
        let mut headers = HeaderMap::new();
        headers.insert("x-carat-session", "s1".parse().unwrap());
        let fields = Fields::read(first.as_bytes()).unwrap();
        assert_eq!(conversation(&headers, &fields), hash(b"s1"));
        let anthropic = r#"{"metadata":{"user_id":"u"},"messages":[]}"#;
        assert_eq!(key(anthropic), hash(b"u"));
    }

    #[test]
    fn keys_are_spread_by_weight_and_stay_when_others_go() {
        let names = [("a/x", 3), ("a/y", 1), ("a/z", 1)];
        let first = |key: u64, names: &[(&'static str, u32)]| {
            let draws = names
                .iter()
                .map(|(name, weight)| (*name, draw(key, name, *weight)));
            draws.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0
        };
        let keys: Vec<u64> = (0..5000u64).map(|i| hash(&i.to_le_bytes())).collect();
        let share = keys.iter().filter(|key| first(**key, &names) == "a/x").count();
        assert!((2850..3150).contains(&share), "{share} of 5000 at weight 3 of 5");
        for key in keys {
            let before = first(key, &names);
            if before != "a/z" {
                assert_eq!(first(key, &names[..2]), before);
            }
        }
    }
}
