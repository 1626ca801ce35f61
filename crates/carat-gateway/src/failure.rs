//! What went wrong at a provider, and what that allows to be done.
//!
//! | class | same target again | another target | counts against the target |
//! |---|---|---|---|
//! | rate limited | after the stated wait | at once | rests for the wait |
//! | out of quota | no | yes | rests for an hour, or the wait |
//! | overloaded, server fault, network | with backoff | yes | yes |
//! | slow | with backoff | yes | yes |
//! | bad key, model gone, moved | no | yes | rests for a minute, unless it answers others |
//! | refused | no | yes | no |
//! | context too long, content policy, bad request | no | no | no |

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::limits::{MESSAGE_CHARS, WAIT};
use crate::usage::Usage;

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    RateLimited,
    OutOfQuota,
    Overloaded,
    ServerFault,
    Network,
    Slow,
    BadKey,
    ModelGone,
    /// Its address leads elsewhere.
    Moved,
    /// It names something that is not there or not allowed, and that is neither the model nor the key; or it is more than
    /// this target ever takes at once, or one that its model made nothing of. Others may answer it.
    Refused,
    ContextTooLong,
    ContentPolicy,
    BadRequest,
}

impl Class {
    /// Every class, in order.
    pub(crate) const ALL: [Self; 13] = [
        Self::RateLimited,
        Self::OutOfQuota,
        Self::Overloaded,
        Self::ServerFault,
        Self::Network,
        Self::Slow,
        Self::BadKey,
        Self::ModelGone,
        Self::Moved,
        Self::Refused,
        Self::ContextTooLong,
        Self::ContentPolicy,
        Self::BadRequest,
    ];

    /// As it is called in logs and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::OutOfQuota => "out_of_quota",
            Self::Overloaded => "overloaded",
            Self::ServerFault => "server_fault",
            Self::Network => "network",
            Self::Slow => "slow",
            Self::BadKey => "bad_key",
            Self::ModelGone => "model_gone",
            Self::Moved => "moved",
            Self::Refused => "refused",
            Self::ContextTooLong => "context_too_long",
            Self::ContentPolicy => "content_policy",
            Self::BadRequest => "bad_request",
        }
    }

    /// Whether the request itself is at fault, so that nobody else would answer it.
    pub(crate) fn is_final(self) -> bool {
        matches!(
            self,
            Self::ContextTooLong | Self::ContentPolicy | Self::BadRequest
        )
    }

    /// Whether the same target may be asked again.
    pub(crate) fn may_retry(self) -> bool {
        matches!(
            self,
            Self::RateLimited | Self::Overloaded | Self::ServerFault | Self::Network | Self::Slow
        )
    }

    /// Whether it says that the target is ill.
    pub(crate) fn is_illness(self) -> bool {
        matches!(
            self,
            Self::Overloaded | Self::ServerFault | Self::Network | Self::Slow
        )
    }

    /// How long the target rests at once.
    pub(crate) fn rest(self, stated: Option<Duration>) -> Option<Duration> {
        match self {
            Self::RateLimited => Some(stated.unwrap_or(Duration::from_secs(5))),
            Self::OutOfQuota => Some(stated.unwrap_or(Duration::from_secs(3600))),
            Self::BadKey | Self::ModelGone | Self::Moved => Some(Duration::from_secs(60)),
            _ => None,
        }
    }
}

/// One failure.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) class: Class,
    /// The provider's status, or the one that says the same.
    pub(crate) status: u16,
    /// What the provider says, without its secrets.
    pub(crate) message: String,
    pub(crate) kind: Option<String>,
    pub(crate) code: Option<String>,
    pub(crate) param: Option<Box<str>>,
    /// How long the provider wants to be left alone.
    pub(crate) wait: Option<Duration>,
    /// Nothing has been done of what was asked: no provider heard of it, or it was turned away at once.
    pub(crate) is_undone: bool,
    /// What the provider says that it took all the same.
    pub(crate) took: Option<Box<Usage>>,
}

impl Failure {
    /// A failure that no provider described.
    pub(crate) fn new(class: Class, status: u16, message: impl Into<String>) -> Self {
        Self {
            class,
            status,
            message: message.into(),
            kind: None,
            code: None,
            param: None,
            wait: None,
            is_undone: false,
            took: None,
        }
    }

    /// The same of an answer that has taken so much.
    pub(crate) fn taking(self, usage: Option<Usage>) -> Self {
        Self {
            took: usage.map(Box::new),
            ..self
        }
    }

    /// The same, of something that no provider has begun to do.
    pub(crate) fn undone(self) -> Self {
        Self {
            is_undone: true,
            ..self
        }
    }

    /// What an answer other than 200 says.
    pub(crate) fn of_answer(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        secret: Option<&str>,
    ) -> Self {
        let mut told = Told::read(body);
        // AWS names the error there, with an address behind it.
        if let Some(kind) = headers
            .get("x-amzn-errortype")
            .and_then(|kind| kind.to_str().ok())
        {
            told.kind = kind.split(':').next().map(ToString::to_string);
        }
        let wait = stated_wait(headers, SystemTime::now()).or(told.delay);
        let failure = Self::judged(status.as_u16(), told, wait, secret);
        Self {
            // Who fails may have failed after half of the work.
            is_undone: failure.class != Class::ServerFault,
            ..failure
        }
    }

    /// A redirect: to follow it would give the key, and what is said, to somebody whom the operator did not name.
    pub(crate) fn of_redirect(status: StatusCode, name: &str) -> Self {
        let message = format!(
            "`{name}` answers with a redirect ({}), which is not followed; `base-url` of [providers.{name}] must be where \
             its API is itself",
            status.as_u16()
        );
        Self::new(Class::Moved, 502, message).undone()
    }

    /// What an error inside an answer of status 200 says.
    pub(crate) fn of_value(error: &Value, secret: Option<&str>) -> Self {
        let told = Told::of_value(error);
        // Some put the status into the code, most into neither.
        let status = told.status.unwrap_or(match told.kind.as_deref() {
            Some("overloaded_error") => 529,
            Some("rate_limit_error" | "rate_limit_exceeded") => 429,
            Some("invalid_request_error") => 400,
            Some("authentication_error") => 401,
            _ => 500,
        });
        let wait = told.delay;
        Self::judged(status, told, wait, secret)
    }

    /// What MiniMax says in an answer of status 200, by its own numbers.
    pub(crate) fn of_base(code: i64, message: &str) -> Self {
        let (class, status) = match code {
            1002 | 1039 => (Class::RateLimited, 429),
            1004 | 2049 => (Class::BadKey, 401),
            1008 => (Class::OutOfQuota, 402),
            1026 | 1027 => (Class::ContentPolicy, 400),
            2013 => (Class::BadRequest, 400),
            _ => (Class::ServerFault, 502),
        };
        Self::new(class, status, scrubbed(message, None))
    }

    /// The same of a request that this gateway wrote in another API than its client's: what a provider finds wrong with it
    /// need not be what the client said, and another may take it.
    pub(crate) fn of_translation(self) -> Self {
        let class = match self.class {
            Class::BadRequest => Class::Refused,
            class => class,
        };
        Self { class, ..self }
    }

    /// The same without a provider's key in its message.
    pub(crate) fn without(mut self, secret: Option<&str>) -> Self {
        self.message = scrubbed(&self.message, secret);
        self
    }

    fn judged(status: u16, told: Told, wait: Option<Duration>, secret: Option<&str>) -> Self {
        let class = told.class(status);
        Self {
            class,
            // What is no fault of the request is not told as one.
            status: match class {
                Class::OutOfQuota if status == 400 => 402,
                Class::Overloaded if matches!(status, 421 | 425) => 503,
                Class::ServerFault if status < 300 => 502,
                _ => status,
            },
            message: scrubbed(&told.message, secret),
            kind: told.kind,
            code: told.code,
            param: told.param.map(Into::into),
            wait: wait.map(|wait| wait.min(WAIT)),
            is_undone: false,
            took: None,
        }
    }
}

/// What is spoken of where a key is not let in.
const OF_KEYS: [&str; 15] = [
    "key",
    "token",
    "credential",
    "authoriz",
    "authentic",
    "accessdenied",
    "signature",
    "account",
    "organization",
    "project",
    "billing",
    "subscription",
    "region",
    "country",
    "model",
];
/// What is spoken of where a model is not there.
const OF_MODELS: [&str; 2] = ["model", "deployment"];
/// What requests name beside a model, and what may not be there either.
const NAMED: [&str; 12] = [
    "file",
    "item",
    "response",
    "conversation",
    "container",
    "vector store",
    "cachedcontent",
    "cached content",
    "prompt",
    "skill",
    "document",
    "image",
];

/// What llama.cpp's server and Ollama say of a prompt that does not fit, with 400, in older versions with 500, and in
/// Ollama's streams without a status.
const OF_LOCAL_CONTEXTS: [&str; 2] = [
    "exceeds the available context size",
    "input length exceeds the context length",
];

/// What a provider says about a failure, in whichever shape.
#[derive(Debug, Default)]
struct Told {
    message: String,
    kind: Option<String>,
    code: Option<String>,
    param: Option<String>,
    status: Option<u16>,
    delay: Option<Duration>,
}

impl Told {
    fn read(body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            // Gemini's streams wrap the error in an array.
            Ok(Value::Array(items)) => items.first().map(Self::of_value).unwrap_or_default(),
            Ok(value) => Self::of_value(&value),
            // A proxy's page in HTML says nothing to a client of an API.
            Err(_) if body.trim_ascii_start().starts_with(b"<") => Self::default(),
            Err(_) => Self {
                message: String::from_utf8_lossy(body).trim().to_string(),
                ..Self::default()
            },
        }
    }

    fn of_value(value: &Value) -> Self {
        let error = value
            .get("error")
            .filter(|error| !error.is_null())
            .unwrap_or(value);
        let text = |name: &str| error.get(name).and_then(Value::as_str).map(ToString::to_string);
        let message = match error {
            Value::String(message) => Some(message.clone()),
            _ => text("message")
                .or_else(|| text("detail"))
                .or_else(|| text("Message")),
        };
        let code = &error["code"];
        // Where the error is a text, as Ollama's in a stream, the status stands beside it.
        let status = if error.is_string() { &value["status"] } else { code };
        let details = error["details"].as_array().map_or(&[][..], Vec::as_slice);
        let delay = details
            .iter()
            .find_map(|detail| duration(detail["retryDelay"].as_str()?));
        let reason = details.iter().find_map(|detail| detail["reason"].as_str());
        Self {
            message: message.unwrap_or_else(|| {
                if error["detail"].is_null() {
                    String::new()
                } else {
                    error["detail"].to_string()
                }
            }),
            kind: text("type").or_else(|| text("status")),
            code: reason.or(code.as_str()).map(ToString::to_string),
            param: text("param"),
            status: status
                .as_u64()
                .and_then(|code| u16::try_from(code).ok())
                .filter(|code| (400..600).contains(code)),
            delay,
        }
    }

    fn class(&self, status: u16) -> Class {
        let message = self.message.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
        let code = self.code.as_deref().unwrap_or_default();
        let kind = self.kind.as_deref().unwrap_or_default();
        let too_long = [
            "prompt is too long",
            "maximum context length",
            "maximum prompt length",
            "exceed context limit",
            "context length exceeded",
            "exceeds the maximum number of tokens",
            "input is too long",
            "context window",
        ];
        // More than may be asked in a minute is never answered, however long one waits.
        let is_too_large = match status {
            413 => code == "rate_limit_exceeded",
            429 => says(&["request too large"]),
            _ => false,
        };
        match status {
            _ if is_too_large => Class::Refused,
            // Anthropic's way of saying that nobody has paid. What only repeats a client's words begins otherwise.
            400 if kind == "invalid_request_error"
                && message.starts_with("your credit balance is too low") =>
            {
                Class::OutOfQuota
            }
            429 | 402 | 403 if code == "insufficient_quota" || kind == "billing_error" || status == 402 => {
                Class::OutOfQuota
            }
            _ if kind == "ServiceQuotaExceededException" => Class::OutOfQuota,
            _ if kind == "ModelNotReadyException" => Class::Overloaded,
            429 if says(&["quota"]) && says(&["per day", "perday"]) => Class::OutOfQuota,
            429 => Class::RateLimited,
            // Of the last two nothing was done: it came over a connection, or at a moment, that was not for it.
            503 | 529 | 498 | 421 | 425 => Class::Overloaded,
            400 if code == "API_KEY_INVALID" => Class::BadKey,
            // Where this gateway is no key is good for anything.
            400 if says(&["location is not supported"]) => Class::BadKey,
            400 if code == "tool_use_failed" => Class::Refused,
            401 => Class::BadKey,
            // Not the key is at fault where the message speaks of something else, such as a file of another account.
            403 if says(&OF_KEYS) || OF_KEYS.iter().any(|word| kind.to_lowercase().contains(word)) => {
                Class::BadKey
            }
            403 => Class::Refused,
            404 if says(&NAMED) && !says(&OF_MODELS) => Class::Refused,
            404 => Class::ModelGone,
            400 if code == "model_decommissioned" || code == "model_not_found" => Class::ModelGone,
            400 | 413 if code == "context_length_exceeded" || says(&too_long) => Class::ContextTooLong,
            400 | 500 if kind == "exceed_context_size_error" || says(&OF_LOCAL_CONTEXTS) => {
                Class::ContextTooLong
            }
            400 if code == "content_filter" || code == "content_policy_violation" => Class::ContentPolicy,
            // Whatever 201 and 204 mean, they are no answer.
            408 | 424 | 500..=599 | 0..=299 => Class::ServerFault,
            _ => Class::BadRequest,
        }
    }
}

/// How long to wait, by the headers.
fn stated_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
    };
    if let Some(ms) = text("retry-after-ms").and_then(|ms| ms.parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(ms / 1000.0).ok();
    }
    let wait = text("retry-after")?;
    match wait.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => http_date(wait)?
            .checked_sub(now.duration_since(UNIX_EPOCH).ok()?)
            .or(Some(Duration::ZERO)),
    }
}

/// `6m0s`, `2m59.56s`, `120ms`, `34s`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (mut seconds, mut rest) = (0.0, text.trim());
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_ascii_alphabetic())?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..]
            .find(|c: char| !c.is_ascii_alphabetic())
            .map_or(rest.len(), |i| end + i);
        seconds += number
            * match &rest[end..unit_end] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as time since 1970.
fn http_date(text: &str) -> Option<Duration> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = text.split_once(", ")?.1.split_ascii_whitespace();
    let day: u64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let clock = (clock.next()??, clock.next()??, clock.next()??);
    seconds_of((year, month, day), clock).map(Duration::from_secs)
}

/// Seconds since 1970 of a date (year, month, day) and a time of day, both in UTC.
pub(crate) fn seconds_of(date: (u64, u64, u64), clock: (u64, u64, u64)) -> Option<u64> {
    let (year, month, day) = date;
    let (hour, minute, second) = clock;
    let is_date = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !is_date || hour > 24 || minute > 60 || second > 60 {
        return None;
    }
    // Days since 1970 of the proleptic calendar, years beginning in March.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(days * 86400 + hour * 3600 + minute * 60 + second)
}

/// A provider's message without what is nobody's business: its keys, and names of the organisation that pays.
fn scrubbed(message: &str, secret: Option<&str>) -> String {
    let message: String = message.chars().take(MESSAGE_CHARS).collect();
    let message = match secret.filter(|secret| !secret.is_empty()) {
        Some(secret) => message.replace(secret, "…"),
        None => message,
    };
    let mut out = String::with_capacity(message.len());
    for word in message.split_inclusive(|c: char| c.is_whitespace() || "\"'`(),;".contains(c)) {
        let is_secret = [
            "sk-", "org-", "org_", "proj_", "team_", "acct_", "gsk_", "xai-", "AIza", "r8_", "AKIA", "ASIA",
            "ya29.", "Bearer",
        ];
        if is_secret
            .iter()
            .any(|prefix| word.starts_with(prefix) && word.len() > prefix.len() + 1)
        {
            out.push('…');
            out.extend(word.chars().last().filter(|c| !c.is_alphanumeric()));
        } else {
            out.push_str(word);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(status: u16, body: &str) -> Class {
        Failure::of_answer(
            StatusCode::from_u16(status).unwrap(),
            &HeaderMap::new(),
            body.as_bytes(),
            None,
        )
        .class
    }

    #[test]
    fn every_class_is_told_from_the_others() {
        let cases = [
            (
                429,
                r#"{"error":{"message":"slow down","type":"requests"}}"#,
                Class::RateLimited,
            ),
            (
                429,
                r#"{"error":{"message":"x","code":"insufficient_quota"}}"#,
                Class::OutOfQuota,
            ),
            (402, "{}", Class::OutOfQuota),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."}}"#,
                Class::OutOfQuota,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"messages.0: `your credit balance is too low` is no JSON"}}"#,
                Class::BadRequest,
            ),
            (
                400,
                r#"{"error":{"message":"Your credit balance is too low is what the prompt says"}}"#,
                Class::BadRequest,
            ),
            (
                413,
                r#"{"error":{"message":"Request too large for model `x` on tokens per minute (TPM): Limit 6000, Requested 9000","type":"tokens","code":"rate_limit_exceeded"}}"#,
                Class::Refused,
            ),
            (
                429,
                r#"{"error":{"message":"Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 342389.","type":"tokens","code":"rate_limit_exceeded"}}"#,
                Class::Refused,
            ),
            (
                400,
                r#"{"error":{"message":"Failed to call a function.","type":"invalid_request_error","code":"tool_use_failed"}}"#,
                Class::Refused,
            ),
            (
                400,
                r#"{"error":{"code":400,"message":"User location is not supported for the API use.","status":"FAILED_PRECONDITION"}}"#,
                Class::BadKey,
            ),
            (
                413,
                r#"{"error":{"message":"Request Entity Too Large"}}"#,
                Class::BadRequest,
            ),
            (
                529,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
                Class::Overloaded,
            ),
            (503, "<html>", Class::Overloaded),
            (520, "", Class::ServerFault),
            (401, "{}", Class::BadKey),
            (
                400,
                r#"{"error":{"code":400,"message":"API key not valid","status":"INVALID_ARGUMENT","details":[{"reason":"API_KEY_INVALID"}]}}"#,
                Class::BadKey,
            ),
            (404, r#"{"error":"model 'x' not found"}"#, Class::ModelGone),
            (
                400,
                r#"{"error":{"code":"context_length_exceeded","message":"m"}}"#,
                Class::ContextTooLong,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 5 > 4"}}"#,
                Class::ContextTooLong,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"input length and `max_tokens` exceed context limit: 3 + 2 > 4"}}"#,
                Class::ContextTooLong,
            ),
            (
                400,
                r#"{"error":"This model's maximum prompt length is 4 but the request contains 5 tokens."}"#,
                Class::ContextTooLong,
            ),
            (
                400,
                r#"{"error":{"code":"content_filter","message":"m"}}"#,
                Class::ContentPolicy,
            ),
            (
                404,
                r#"{"type":"error","error":{"type":"not_found_error","message":"File not found: nope"}}"#,
                Class::Refused,
            ),
            (
                404,
                r#"{"type":"error","error":{"type":"not_found_error","message":"model: claude-0"}}"#,
                Class::ModelGone,
            ),
            (
                404,
                r#"{"error":{"message":"Item with id 'rs_1' not found."}}"#,
                Class::Refused,
            ),
            (
                403,
                r#"{"error":{"code":403,"message":"You do not have permission to access the File x or it may not exist.","status":"PERMISSION_DENIED"}}"#,
                Class::Refused,
            ),
            (
                403,
                r#"{"type":"error","error":{"type":"permission_error","message":"Your API key does not have permission to use the specified resource."}}"#,
                Class::BadKey,
            ),
            (
                403,
                r#"{"message":"User: arn:aws:iam::1:user/x is not authorized to perform: bedrock:InvokeModel"}"#,
                Class::BadKey,
            ),
            (422, r#"{"detail":[{"loc":["body","x"]}]}"#, Class::BadRequest),
        ];
        for (status, body, expected) in cases {
            assert_eq!(class(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn local_servers_say_that_a_prompt_is_too_long() {
        let message =
            "request (2622 tokens) exceeds the available context size (512 tokens), try increasing it";
        let told = serde_json::json!({"error": {"code": 400, "message": message, "type": "exceed_context_size_error",
            "n_prompt_tokens": 2622, "n_ctx": 512}});
        // As llama.cpp says it, and as Ollama passes that on.
        let passed_on = serde_json::json!({"error": told.to_string()});
        let own = serde_json::json!({"error": "the input length exceeds the context length"});
        for body in [&told, &passed_on, &own] {
            for status in [400, 500] {
                assert_eq!(
                    class(status, &body.to_string()),
                    Class::ContextTooLong,
                    "{status} {body}"
                );
            }
            assert_eq!(
                Failure::of_value(body, None).class,
                Class::ContextTooLong,
                "{body}"
            );
        }
        let larger = r#"{"error":{"message":"input (9 tokens) is larger than the max context size (8 tokens). skipping","type":"exceed_context_size_error"}}"#;
        assert_eq!(class(400, larger), Class::ContextTooLong);
        assert_eq!(
            class(500, r#"{"error":"model runner has unexpectedly stopped"}"#),
            Class::ServerFault
        );
    }

    #[test]
    fn waits_are_read_from_headers_and_bodies() {
        let wait = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            stated_wait(&headers, UNIX_EPOCH + Duration::from_secs(784_111_770))
        };
        assert_eq!(wait("retry-after", "1.5"), Some(Duration::from_millis(1500)));
        assert_eq!(wait("retry-after-ms", "20"), Some(Duration::from_millis(20)));
        assert_eq!(
            wait("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(Duration::from_secs(7))
        );
        assert_eq!(
            wait("retry-after", "Sun, 06 Nov 1993 08:49:37 GMT"),
            Some(Duration::ZERO)
        );
        assert_eq!(wait("retry-after", "soon"), None);
        assert_eq!(wait("retry-after", "-1"), None);
        let body = br#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"m","details":[{"@type":"x","retryDelay":"34s"}]}}"#;
        let failure = Failure::of_answer(StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new(), body, None);
        assert_eq!(failure.wait, Some(Duration::from_secs(34)));
        assert_eq!(duration("2m59.56s"), Some(Duration::from_millis(179_560)));
        assert_eq!(duration("120ms"), Some(Duration::from_millis(120)));
        assert_eq!(duration("5x"), None);
    }

    #[test]
    fn a_status_stands_beside_an_error_that_is_a_text() {
        let failure = |status: u16| {
            let line = serde_json::json!({"error": "the mock says so", "status": status});
            Failure::of_value(&line, None)
        };
        assert_eq!(
            (failure(400).class, failure(400).status),
            (Class::BadRequest, 400)
        );
        assert_eq!(failure(503).class, Class::Overloaded);
        assert_eq!(failure(200).class, Class::ServerFault);
    }

    #[test]
    fn secrets_do_not_leave() {
        for name in ["org-abc", "org_01abc", "team_abc", "acct_1abc"] {
            let message = format!("limit reached in organization `{name}` on tokens");
            assert_eq!(
                scrubbed(&message, None),
                "limit reached in organization `…` on tokens"
            );
        }
        let body = br#"{"error":{"message":"Incorrect API key provided: sk-proj-1234, my-own in organization org-abc. See `docs`"}}"#;
        let failure = Failure::of_answer(StatusCode::UNAUTHORIZED, &HeaderMap::new(), body, Some("my-own"));
        assert_eq!(
            failure.message,
            "Incorrect API key provided: …, … in organization … See `docs`"
        );
    }
}
