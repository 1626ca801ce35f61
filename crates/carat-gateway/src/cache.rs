//! Answers that are given again to who asks exactly the same.
//!
//! A request is the same if everything in it is that may change the answer: the route, the API, all fields but those that
//! only say who asks and whether the answer streams, the headers that providers see, and whose key it brings unless the
//! route shares its answers. Only whole and good answers are kept: those that ended by themselves. What was streamed is
//! played back as it was; to others it is written in the way in which they asked for it, if nothing of it is lost by that
//! ([`crate::plain`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use ring::digest;
use serde::Deserialize;
use serde_json::Value;

use crate::access;
use crate::attempt::Call;
use crate::config::Config;
use crate::effects;
use crate::endpoint::{Dialect, Endpoint};
use crate::heir;
use crate::plain;
use crate::records::{Framing, Record, Records};
use crate::translate::{self, Answer, Event, Finish, openai};
use crate::usage::Usage;

/// Fields that do not change what is answered.
const IGNORED: [&str; 8] = [
    "stream",
    "stream_options",
    "user",
    "metadata",
    "store",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
];
/// No answer takes more than this part of the memory.
const LARGEST_PART: usize = 8;
/// What an answer takes beyond its bytes.
const OVERHEAD_BYTES: usize = 512;

/// How a route keeps answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Keeping {
    /// For how long.
    ttl_s: u64,
    /// Whether all keys of the gateway share them.
    #[serde(default)]
    shared: bool,
}

/// What a request is known by.
type Key = [u8; 32];

/// An answer that was given.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) body: Bytes,
    pub(crate) is_stream: bool,
    /// Its client asked to be told the usage in the stream.
    pub(crate) wanted_usage: bool,
    /// Who gave it.
    pub(crate) target: String,
    pub(crate) usage: Usage,
}

#[derive(Debug)]
struct Held {
    kept: Arc<Kept>,
    since: Instant,
    until: Instant,
    /// When it was last used, among all uses.
    used: u64,
}

#[derive(Debug, Default)]
struct Answers {
    held: HashMap<Key, Held>,
    by_use: BTreeMap<u64, Key>,
    n_uses: u64,
    n_bytes: usize,
    /// The configuration by which all of them were let out.
    generation: u64,
}

impl Answers {
    fn remove(&mut self, key: &Key) {
        if let Some(held) = self.held.remove(key) {
            self.by_use.remove(&held.used);
            self.n_bytes -= size(&held.kept);
        }
    }
}

fn size(kept: &Kept) -> usize {
    kept.body.len() + kept.target.len() + OVERHEAD_BYTES
}

/// All answers that are kept.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    answers: Mutex<Answers>,
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
}

impl Cache {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything: from now on only what a request by this configuration was answered is kept and given.
    pub(crate) fn begin(&self, generation: u64) {
        *self.answers() = Answers {
            generation,
            ..Answers::default()
        };
    }

    /// Bytes that are used.
    pub(crate) fn n_bytes(&self) -> usize {
        self.answers().n_bytes
    }

    /// An answer and its age, for a request by this configuration.
    fn get(&self, key: &Key, generation: u64, now: Instant) -> Option<(Arc<Kept>, Duration)> {
        let mut answers = self.answers();
        let answers = &mut *answers;
        if answers.generation != generation {
            return None;
        }
        let held = answers.held.get_mut(key)?;
        if held.until <= now {
            answers.remove(key);
            return None;
        }
        answers.n_uses += 1;
        answers.by_use.remove(&held.used);
        held.used = answers.n_uses;
        answers.by_use.insert(held.used, *key);
        Some((Arc::clone(&held.kept), now.saturating_duration_since(held.since)))
    }

    /// Keeps an answer, in the place of those that nobody asked for the longest.
    fn put(&self, of: (Key, u64), kept: Kept, ttl: Duration, most_bytes: usize, now: Instant) {
        let (key, generation) = of;
        let n_bytes = size(&kept);
        let Some(until) = now
            .checked_add(ttl)
            .filter(|_| n_bytes <= most_bytes / LARGEST_PART)
        else {
            return;
        };
        let mut answers = self.answers();
        // Its guard may have let out what the one in force now does not.
        if answers.generation != generation {
            return;
        }
        answers.remove(&key);
        while answers.n_bytes + n_bytes > most_bytes {
            let Some((_, oldest)) = answers.by_use.first_key_value() else {
                break;
            };
            let oldest = *oldest;
            answers.remove(&oldest);
        }
        answers.n_uses += 1;
        let used = answers.n_uses;
        answers.by_use.insert(used, key);
        answers.n_bytes += n_bytes;
        let kept = Arc::new(kept);
        answers.held.insert(
            key,
            Held {
                kept,
                since: now,
                until,
                used,
            },
        );
    }
}

/// What a client wants of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Any,
    /// A new answer, which is kept.
    New,
    Nothing,
}

impl Wanted {
    fn of(headers: &HeaderMap) -> Self {
        let text = headers
            .get(http::header::CACHE_CONTROL)
            .and_then(|text| text.to_str().ok());
        let has = |word: &str| {
            text.is_some_and(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
        };
        match (has("no-store"), has("no-cache")) {
            (true, _) => Self::Nothing,
            (_, true) => Self::New,
            _ => Self::Any,
        }
    }
}

/// One request's dealings with the cache.
pub(crate) struct Lookup {
    cache: Arc<Cache>,
    key: Key,
    /// The configuration by which the request is served.
    generation: u64,
    wanted: Wanted,
    endpoint: Endpoint,
    is_stream: bool,
    wants_usage: bool,
    /// Whether it may be written in another way than it came.
    may_change: bool,
    ttl: Duration,
    most_bytes: usize,
}

impl Lookup {
    /// For a request that may be answered from the cache: `None` if it may not. `routes`: who answers, and what was asked
    /// for, whose guard looks at the answer where another answers in its place.
    pub(crate) fn new(
        cache: &Arc<Cache>,
        keeping: &Keeping,
        by: &Config,
        routes: [&str; 2],
        headers: &HeaderMap,
        call: &Call<'_>,
    ) -> Option<Self> {
        let wanted = Wanted::of(headers);
        // What is streamed can be read and checked where it is a conversation.
        let is_readable = call.endpoint.is_conversation() || !call.is_stream;
        let is_new = effects::is_never_the_same(call.endpoint, call.fields);
        if wanted == Wanted::Nothing || !is_readable || is_new {
            return None;
        }
        let options: Option<Value> = call.fields.get("stream_options");
        let wants_usage = options.is_some_and(|options| options["include_usage"] == true);
        let may_change = heir::is_one_text(call.endpoint, call.fields);
        // Answers that cannot be exchanged are kept beside each other.
        let shape = (!may_change).then_some([call.is_stream, wants_usage]);
        Some(Self {
            cache: Arc::clone(cache),
            key: key(keeping, routes, headers, call, shape),
            generation: by.generation,
            wanted,
            endpoint: call.endpoint,
            is_stream: call.is_stream,
            wants_usage,
            may_change,
            ttl: Duration::from_secs(keeping.ttl_s),
            most_bytes: by.cache_bytes,
        })
    }

    /// The answer, as this client wants it, with who gave it and how old it is.
    pub(crate) fn find(&self) -> Option<(Bytes, String, Duration)> {
        let found = match self.wanted {
            Wanted::Any => self.cache.get(&self.key, self.generation, Instant::now()),
            _ => None,
        };
        let answer = found.and_then(|(kept, age)| {
            let body = self.as_wanted(&kept)?;
            Some((body, kept.target.clone(), age))
        });
        let count = if answer.is_some() {
            &self.cache.hits
        } else {
            &self.cache.misses
        };
        count.fetch_add(1, Ordering::Relaxed);
        answer
    }

    /// Keeps an answer if it is whole and good.
    pub(crate) fn keep(&self, kept: Kept) {
        if is_good(self.endpoint, &kept) {
            let of = (self.key, self.generation);
            self.cache
                .put(of, kept, self.ttl, self.most_bytes, Instant::now());
        }
    }

    /// Most bytes of an answer that are worth being kept.
    pub(crate) fn largest(&self) -> usize {
        self.most_bytes / LARGEST_PART
    }

    fn as_wanted(&self, kept: &Kept) -> Option<Bytes> {
        // What OpenAI's streams say at their end depends on whether it was asked for.
        let is_same = kept.is_stream == self.is_stream
            && (!self.is_stream
                || self.endpoint.dialect() != Dialect::OpenAi
                || kept.wanted_usage == self.wants_usage);
        if is_same {
            return Some(kept.body.clone());
        }
        if !self.may_change || !is_plain(self.endpoint, kept) {
            return None;
        }
        let mut events = events(self.endpoint, kept)?;
        if !events.iter().any(|event| matches!(event, Event::Usage(_))) {
            let end = events.iter().position(|event| matches!(event, Event::End(_)))?;
            events.insert(end, Event::Usage(kept.usage));
        }
        if !self.is_stream {
            let answer = translate::whole(self.endpoint, &Answer::of(events));
            return Some(Bytes::from(answer.to_string()));
        }
        let mut out = Vec::new();
        let mut writer = translate::writer(self.endpoint, self.wants_usage);
        for event in &events {
            writer.event(event, &mut out);
        }
        writer.end(&mut out);
        Some(Bytes::from(out))
    }
}

/// `shape`: whether it streams, and with its usage, where that makes another request of it.
fn key(
    keeping: &Keeping,
    routes: [&str; 2],
    headers: &HeaderMap,
    call: &Call<'_>,
    shape: Option<[bool; 2]>,
) -> Key {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut add = |part: &[u8]| {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(format!("{:?}", call.endpoint).as_bytes());
    routes.iter().for_each(|route| add(route.as_bytes()));
    add(format!("{shape:?}").as_bytes());
    let tenant = access::key_of(headers).filter(|_| !keeping.shared);
    add(tenant.unwrap_or_default().as_bytes());
    for (name, value) in &call.forwarded {
        // These are about the call, not about the answer.
        if !["traceparent", "tracestate", "idempotency-key"].contains(&name.as_str()) {
            add(name.as_str().as_bytes());
            add(value.as_bytes());
        }
    }
    let mut fields: Vec<(&str, &str)> = call.fields.iter().collect();
    fields.retain(|(name, _)| !IGNORED.contains(name));
    fields.sort_unstable();
    for (name, value) in fields {
        add(name.as_bytes());
        add(value.as_bytes());
    }
    let mut key = [0; 32];
    key.copy_from_slice(hash.finish().as_ref());
    key
}

/// What an answer says, in the neutral form.
fn events(endpoint: Endpoint, kept: &Kept) -> Option<Vec<Event>> {
    let dialect = endpoint.dialect();
    let mut reader = translate::reader(dialect, false);
    let mut events = Vec::new();
    if !kept.is_stream {
        let value: Value = serde_json::from_slice(&kept.body).ok()?;
        reader.whole(&value, &mut events).ok()?;
        return Some(events);
    }
    each_record(dialect, &kept.body, |record| {
        reader.record(record, &mut events).ok()?.then_some(())
    })?;
    reader.end(&mut events).then_some(events)
}

/// Looks at every record of a stream, as long as that makes sense.
fn each_record(dialect: Dialect, body: &[u8], mut look: impl FnMut(&Record<'_>) -> Option<()>) -> Option<()> {
    let framing = match dialect {
        Dialect::Ollama => Framing::Lines,
        _ => Framing::Events,
    };
    let mut records = Records::new(framing);
    // In pieces, since a whole answer may be longer than an event may be.
    for piece in body.chunks(64 << 10) {
        records.feed(piece).ok()?;
        while let Some(record) = records.next() {
            look(&record)?;
        }
    }
    Some(())
}

/// Whether nothing of an answer is lost when it is written in another way.
fn is_plain(endpoint: Endpoint, kept: &Kept) -> bool {
    let dialect = endpoint.dialect();
    let is_plain = |data: &[u8]| {
        let value = serde_json::from_slice(data).ok()?;
        plain::is_plain(dialect, &value).then_some(())
    };
    if !kept.is_stream {
        return is_plain(&kept.body).is_some();
    }
    let plain = each_record(dialect, &kept.body, |record| match record.data.trim_ascii() {
        b"" | b"[DONE]" => Some(()),
        data => is_plain(data),
    });
    plain.is_some()
}

/// Whether an answer ended by itself.
fn is_good(endpoint: Endpoint, kept: &Kept) -> bool {
    if endpoint.is_conversation() {
        let events = events(endpoint, kept).unwrap_or_default();
        let mut ends = events.iter().filter_map(|event| match event {
            Event::End(finish) => Some(*finish),
            _ => None,
        });
        return ends
            .next_back()
            .is_some_and(|finish| matches!(finish, Finish::Stop | Finish::Calls))
            && all_good(endpoint.dialect(), kept);
    }
    let Ok(value) = serde_json::from_slice::<Value>(&kept.body) else {
        return false;
    };
    match endpoint {
        Endpoint::Responses => value["status"] == "completed",
        Endpoint::Completions => {
            let choices = value["choices"].as_array();
            choices.is_some_and(|choices| choices.iter().all(|choice| choice["finish_reason"] == "stop"))
        }
        _ => true,
    }
}

/// Whether each of several answers ended by itself. Where there can be one alone nothing is said against it.
fn all_good(dialect: Dialect, kept: &Kept) -> bool {
    let (list, reason) = match dialect {
        Dialect::OpenAi => ("choices", "finish_reason"),
        Dialect::Gemini => ("candidates", "finishReason"),
        _ => return true,
    };
    let is_good = |reason: &str| match dialect {
        Dialect::OpenAi => matches!(openai::finish_of(reason), Finish::Stop | Finish::Calls),
        _ => reason == "STOP",
    };
    let mut ended: BTreeMap<u64, bool> = BTreeMap::new();
    let mut look = |data: &[u8]| {
        let value: Value = serde_json::from_slice(data).ok()?;
        for (i, answer) in value[list].as_array().into_iter().flatten().enumerate() {
            let ended = ended
                .entry(answer["index"].as_u64().unwrap_or(i as u64))
                .or_default();
            *ended |= answer[reason].as_str().is_some_and(is_good);
        }
        Some(())
    };
    let read = if kept.is_stream {
        each_record(dialect, &kept.body, |record| match record.data.trim_ascii() {
            b"" | b"[DONE]" => Some(()),
            data => look(data),
        })
    } else {
        look(&kept.body)
    };
    read.is_some() && ended.values().all(|is_good| *is_good)
}

/// A stream that is written down while it goes out.
pub(crate) struct Tape {
    lookup: Lookup,
    target: String,
    bytes: Vec<u8>,
}

impl Tape {
    pub(crate) fn new(lookup: Lookup, target: &str) -> Self {
        Self {
            lookup,
            target: target.to_string(),
            bytes: Vec::new(),
        }
    }

    /// Writes down what goes out: whether there was room.
    pub(crate) fn record(&mut self, bytes: &[u8]) -> bool {
        let fits = self.bytes.len() + bytes.len() <= self.lookup.largest();
        if fits {
            self.bytes.extend_from_slice(bytes);
        }
        fits
    }

    /// The stream has ended well.
    pub(crate) fn keep(self, usage: Usage) {
        self.lookup.keep(Kept {
            body: Bytes::from(self.bytes),
            is_stream: true,
            wanted_usage: self.lookup.wants_usage,
            target: self.target,
            usage,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &str) -> Kept {
        Kept {
            body: Bytes::copy_from_slice(text.as_bytes()),
            is_stream: false,
            wanted_usage: false,
            target: "a/x".into(),
            usage: Usage::default(),
        }
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let cache = Cache::default();
        let now = Instant::now();
        let ttl = Duration::from_secs(60);
        let most = 40 * (OVERHEAD_BYTES + 3 + 100);
        let put = |i: u8| cache.put(([i; 32], 0), kept(&"x".repeat(100)), ttl, most, now);
        (0..40).for_each(put);
        assert!(cache.get(&[0; 32], 0, now).is_some(), "which makes it the newest");
        (40..50).for_each(put);
        assert_eq!(cache.n_bytes(), most);
        assert!(cache.get(&[0; 32], 0, now).is_some());
        assert!(cache.get(&[1; 32], 0, now).is_none() && cache.get(&[10; 32], 0, now).is_none());
        assert!(cache.get(&[11; 32], 0, now).is_some());
        cache.put(
            ([99; 32], 0),
            kept(&"x".repeat(most / LARGEST_PART)),
            ttl,
            most,
            now,
        );
        assert!(cache.get(&[99; 32], 0, now).is_none(), "too large to be kept");
        assert!(cache.get(&[0; 32], 0, now + ttl).is_none(), "too old");
        put(12);
        assert_eq!(cache.n_bytes(), most - size(&kept(&"x".repeat(100))));
    }

    #[test]
    fn usage_in_a_stream_is_for_who_asked_for_it() {
        let lookup = |wants_usage: bool| Lookup {
            cache: Arc::default(),
            key: [0; 32],
            generation: 0,
            wanted: Wanted::Any,
            endpoint: Endpoint::Chat,
            is_stream: true,
            wants_usage,
            may_change: true,
            ttl: Duration::from_secs(60),
            most_bytes: 1 << 20,
        };
        // With spaces, as Python's JSON has them.
        let choice = "{\"index\": 0, \"delta\": {\"content\": \"a\"}, \"finish_reason\": \"stop\"}";
        let usage = "{\"prompt_tokens\": 1, \"completion_tokens\": 1, \"total_tokens\": 2}";
        let events = format!(
            "data: {{\"id\": \"1\", \"choices\": [{choice}]}}\n\ndata: {{\"id\": \"1\", \"choices\": [], \"usage\": {usage}}}\n\ndata: [DONE]\n\n"
        );
        let stream = Kept {
            is_stream: true,
            wanted_usage: true,
            ..kept(&events)
        };
        assert_eq!(lookup(true).as_wanted(&stream).unwrap(), events);
        let other = lookup(false).as_wanted(&stream).unwrap();
        let other = std::str::from_utf8(&other).unwrap();
        assert!(
            other.ends_with("[DONE]\n\n") && !other.contains("\"usage\":{"),
            "{other}"
        );
        assert!(
            !other.contains("\"choices\":[]") && !other.contains("\"usage\": {"),
            "{other}"
        );
    }

    #[test]
    fn only_good_answers_are_kept() {
        let answer = |finish: &str| {
            format!("{{\"choices\":[{{\"message\":{{\"content\":\"a\"}},\"finish_reason\":\"{finish}\"}}]}}")
        };
        assert!(is_good(Endpoint::Chat, &kept(&answer("stop"))));
        assert!(is_good(Endpoint::Chat, &kept(&answer("tool_calls"))));
        assert!(!is_good(Endpoint::Chat, &kept(&answer("length"))));
        assert!(!is_good(Endpoint::Chat, &kept(&answer("content_filter"))));
        assert!(!is_good(Endpoint::Chat, &kept("{")));
        assert!(!is_good(
            Endpoint::Responses,
            &kept("{\"status\":\"incomplete\"}")
        ));
        assert!(is_good(Endpoint::Embeddings, &kept("{\"data\":[]}")));
        // Each of several, whole or streamed.
        let two = |second: &str| {
            let choice = |i: u32, finish: &str| {
                format!("{{\"index\":{i},\"delta\":{{}},\"message\":{{}},\"finish_reason\":{finish}}}")
            };
            let (first, second) = (choice(0, "\"stop\""), choice(1, second));
            let whole = kept(&format!("{{\"choices\":[{first},{second}]}}"));
            let events = format!(
                "data: {{\"choices\":[{second}]}}\n\ndata: {{\"choices\":[{first}]}}\n\ndata: [DONE]\n\n"
            );
            let stream = Kept {
                is_stream: true,
                ..kept(&events)
            };
            [whole, stream].map(|kept| is_good(Endpoint::Chat, &kept))
        };
        assert_eq!(two("\"stop\""), [true, true]);
        assert_eq!(two("\"length\""), [false, false]);
        assert_eq!(two("null"), [false, false]);
    }
}
