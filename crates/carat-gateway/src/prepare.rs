//! A client's request as a certain provider wants it.

use bytes::Bytes;
use http::{HeaderValue, Request};
use serde_json::Value;

use crate::attempt::Call;
use crate::endpoint::{Dialect, Endpoint, Kind};
use crate::failure::{Class, Failure};
use crate::fields::{Fate, Fields};
use crate::heir;
use crate::history;
use crate::paths;
use crate::provider::{Provider, StreamUsage, Surface, Unsupported};
use crate::route::Candidate;
use crate::stream::Forwarding;
use crate::translate::embeddings::Texts;
use crate::translate::{Addressee, Question, count, gpt};
use crate::upstream;

/// A request that can be sent.
pub(crate) struct Ask {
    pub(crate) request: Request<Bytes>,
    /// Fields that the provider does not get.
    pub(crate) dropped: Vec<String>,
    /// How its answer is read.
    pub(crate) forwarding: Forwarding,
}

/// What is to be done for a request.
pub(crate) enum Prepared {
    /// The provider is asked.
    Ask(Box<Ask>),
    /// The answer is known here.
    Answer { bytes: Bytes, dropped: Vec<String> },
}

/// What a client is told instead of a count that nobody made.
const ESTIMATE: &str = "exact count (this is an estimate)";

/// Writes the request for a candidate.
///
/// # Errors
/// When the provider cannot be asked this: it has no such endpoint, or refuses a field and may not have it dropped.
pub(crate) fn prepare(candidate: &Candidate, call: &Call<'_>) -> Result<Prepared, Failure> {
    let provider = candidate.provider.as_ref();
    let refused = |message: String| Failure::new(Class::ModelGone, 404, message);
    let is_translated = !provider.has(call.endpoint);
    let kind = call.endpoint.kind();
    if is_translated && kind == Kind::Other {
        return Err(refused(format!(
            "`{}` cannot be asked by this API",
            provider.name
        )));
    }
    let asked = if is_translated {
        common(kind)
    } else {
        call.endpoint
    };
    let path = paths::path(provider, asked, &candidate.model, call.is_stream);
    let uri = provider
        .base
        .join(&path)
        .ok_or_else(|| refused("the address makes no sense".into()))?;
    let written = match (is_translated, kind) {
        (false, _) => copied(candidate, call),
        (true, Kind::Embeddings) => embedded(candidate, call)?,
        (true, Kind::Count) => match counted(candidate, call)? {
            Ok(written) => written,
            Err(bytes) => {
                let dropped = vec![ESTIMATE.to_string()];
                return Ok(Prepared::Answer { bytes, dropped });
            }
        },
        (true, _) => told(candidate, call.files.question(call, candidate)?, call.is_stream)?,
    };
    let Written {
        body,
        dropped,
        hides_usage,
        wants_base64,
        renamed,
    } = written;
    if let (Unsupported::Refuse, Some(first)) = (provider.unsupported, dropped.first()) {
        let message = format!("`{}` does not take the field `{first}`", provider.name);
        return Err(Failure::new(Class::ModelGone, 400, message));
    }
    let body = if call.is_continued {
        heir::marked(provider.prefill, body)
    } else {
        body
    };
    let mut forwarded = call.forwarded.clone();
    forwarded.retain(|(name, _)| {
        let is_anthropic = provider.dialect == Dialect::Anthropic;
        !name.as_str().starts_with("anthropic-")
            || is_anthropic && (provider.surface == Surface::Usual || name != "anthropic-version")
    });
    let mut request = upstream::request(provider, uri, body, &forwarded);
    if provider.dialect == Dialect::Replicate && !call.is_stream {
        request
            .headers_mut()
            .insert("prefer", HeaderValue::from_static("wait=60"));
    }
    Ok(Prepared::Ask(Box::new(Ask {
        request,
        dropped,
        forwarding: Forwarding {
            endpoint: call.endpoint,
            dialect: provider.dialect,
            is_translated,
            hides_usage,
            wants_base64,
            reasoning_apart: provider.reasoning_apart,
            secret: provider.secret.clone(),
            model: candidate.model.clone(),
            renamed,
            keeps_refusals: false,
        },
    })))
}

/// What a provider is asked in the place of something that only the client's API has.
fn common(kind: Kind) -> Endpoint {
    match kind {
        Kind::Embeddings => Endpoint::Embeddings,
        Kind::Count => Endpoint::CountTokens,
        Kind::Conversation | Kind::Other => Endpoint::Chat,
    }
}

/// What Vertex wants to read in a body for Anthropic's models, as JSON.
const VERTEX_VERSION: &str = "\"vertex-2023-10-16\"";

/// A body for a provider.
struct Written {
    body: Vec<u8>,
    /// Fields that it does not get.
    dropped: Vec<String>,
    /// The client did not ask for the usage that will come.
    hides_usage: bool,
    /// It asked for vectors as bytes.
    wants_base64: bool,
    /// Tools under other names than the client's.
    renamed: Vec<(String, String)>,
}

/// A body in the client's own words.
fn copied(candidate: &Candidate, call: &Call<'_>) -> Written {
    let provider = candidate.provider.as_ref();
    let mut dropped = Vec::new();
    let stream_options = stream_options(provider, call);
    let mut added = Vec::new();
    let is_vertex = is_anthropic_at_vertex(provider);
    if is_vertex {
        added.push(("anthropic_version", VERTEX_VERSION.to_string()));
    } else if provider.dialect != Dialect::Gemini {
        added.push(("model", Value::from(candidate.model.as_str()).to_string()));
    }
    if let StreamOptions::Set(text) = &stream_options.what {
        added.push(("stream_options", text.clone()));
    }
    let mended = history::mended(candidate, call.endpoint, call.fields);
    let body = call.fields.compose(&added, |name, value| {
        // The path names it.
        if is_vertex && name == "model" {
            return Fate::Drop;
        }
        if let Some(mended) = &mended {
            if name == mended.field {
                return Fate::Replace(mended.turns.clone());
            }
            if name == "thinking" && mended.forbids_thinking {
                dropped.push(name.to_string());
                return Fate::Drop;
            }
        }
        if name == "stream_options" && matches!(stream_options.what, StreamOptions::Remove) {
            return Fate::Drop;
        }
        let fate = fate(candidate, call.endpoint, call.fields, name, value);
        if fate == Fate::Drop && value != "null" {
            dropped.push(name.to_string());
        }
        fate
    });
    Written {
        body,
        dropped,
        hides_usage: stream_options.hides_usage,
        wants_base64: false,
        renamed: Vec::new(),
    }
}

fn is_anthropic_at_vertex(provider: &Provider) -> bool {
    provider.dialect == Dialect::Anthropic && provider.surface == Surface::Vertex
}

/// The whole body, read to the ground.
pub(crate) fn value(call: &Call<'_>) -> Result<Value, Failure> {
    call.fields.value().map_err(unreadable)
}

fn unreadable(error: serde_json::Error) -> Failure {
    Failure::new(
        Class::BadRequest,
        400,
        format!("the body cannot be read: {error}"),
    )
}

/// Texts for vectors, in the provider's words.
fn embedded(candidate: &Candidate, call: &Call<'_>) -> Result<Written, Failure> {
    let texts = Texts::read(call.endpoint, &value(call)?)?;
    let (value, dropped) = texts.write(&candidate.provider, &candidate.model)?;
    Ok(Written {
        body: value.to_string().into_bytes(),
        dropped,
        hides_usage: false,
        wants_base64: texts.wants_base64,
        renamed: Vec::new(),
    })
}

/// A prompt to be counted in the provider's words, or an estimate where it does not count.
fn counted(candidate: &Candidate, call: &Call<'_>) -> Result<Result<Written, Bytes>, Failure> {
    let question = count::question(call.endpoint, &value(call)?)?;
    match count::request(&candidate.provider, &question, &candidate.model)? {
        None => count::estimated(call.endpoint, &question).map(Err),
        Some(value) => Ok(Ok(Written {
            body: value.to_string().into_bytes(),
            dropped: Vec::new(),
            hides_usage: false,
            wants_base64: false,
            renamed: Vec::new(),
        })),
    }
}

/// A body in the provider's words.
fn told(candidate: &Candidate, mut question: Question, is_stream: bool) -> Result<Written, Failure> {
    let provider = candidate.provider.as_ref();
    question.stream = is_stream;
    let (value, mut dropped) = question.write_for(&Addressee::of(candidate))?;
    let text = value.to_string();
    let fields = Fields::read(text.as_bytes()).map_err(unreadable)?;
    let is_vertex = is_anthropic_at_vertex(provider);
    let version = [("anthropic_version", VERTEX_VERSION.to_string())];
    let added = if is_vertex { &version[..] } else { &[] };
    let mended = history::mended(candidate, common(Kind::Conversation), &fields);
    let body = fields.compose(added, |name, value| {
        if is_vertex && name == "model" {
            return Fate::Drop;
        }
        if let Some(mended) = mended.as_ref().filter(|mended| name == mended.field) {
            return Fate::Replace(mended.turns.clone());
        }
        if name == "stream_options" && provider.stream_usage == StreamUsage::Always {
            return Fate::Drop;
        }
        let fate = fate(candidate, common(Kind::Conversation), &fields, name, value);
        if fate == Fate::Drop {
            dropped.push(name.to_string());
        }
        fate
    });
    Ok(Written {
        body,
        dropped,
        hides_usage: !question.wants_usage,
        wants_base64: false,
        renamed: question.renamed(provider.dialect),
    })
}

/// What becomes of one field of a request for this API.
fn fate(candidate: &Candidate, asked: Endpoint, fields: &Fields<'_>, name: &str, value: &str) -> Fate {
    let provider = candidate.provider.as_ref();
    if let Some(other) = provider.rename.get(name) {
        let is_taken = fields.raw(other).is_some();
        return if is_taken {
            Fate::Drop
        } else {
            Fate::Rename(other.clone())
        };
    }
    if provider.unsupported != Unsupported::Forward && provider.drop.iter().any(|other| other == name) {
        return Fate::Drop;
    }
    if provider.dialect == Dialect::OpenAi && provider.unsupported != Unsupported::Forward {
        // Who calls the one like the other has both.
        let is_renamed = name == "max_tokens" && provider.rename.contains_key("max_completion_tokens");
        let fate = match asked {
            Endpoint::Chat if !is_renamed => gpt::fate(&candidate.model, fields, name, value),
            Endpoint::Responses => gpt::response_fate(&candidate.model, fields, name, value),
            _ => None,
        };
        if let Some(fate) = fate {
            return fate;
        }
    }
    if let ("temperature", Some(max)) = (name, provider.max_temperature)
        && value.parse::<f64>().is_ok_and(|temperature| temperature > max)
    {
        return Fate::Replace(max.to_string());
    }
    Fate::Keep
}

/// What is done with `stream_options`.
struct Options {
    what: StreamOptions,
    /// The client did not ask for the usage that will come.
    hides_usage: bool,
}

enum StreamOptions {
    Leave,
    Set(String),
    Remove,
}

/// A stream must tell its usage, or nobody could say what it cost.
fn stream_options(provider: &Provider, call: &Call<'_>) -> Options {
    let leave = Options {
        what: StreamOptions::Leave,
        hides_usage: false,
    };
    if !call.is_stream || !call.endpoint.has_stream_options() {
        return leave;
    }
    let own: Option<Value> = call.fields.get("stream_options");
    let is_asked = own.as_ref().is_some_and(|own| own["include_usage"] == true);
    match (provider.stream_usage, is_asked) {
        (StreamUsage::Ask, true) => leave,
        (StreamUsage::Ask, false) => {
            let mut own = own
                .filter(Value::is_object)
                .unwrap_or_else(|| Value::Object(serde_json::Map::new()));
            own["include_usage"] = Value::Bool(true);
            Options {
                what: StreamOptions::Set(own.to_string()),
                hides_usage: true,
            }
        }
        (StreamUsage::Always, _) => Options {
            what: StreamOptions::Remove,
            hides_usage: !is_asked,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{Config, Env};

    fn prepared(
        config: &str,
        endpoint: Endpoint,
        body: &str,
    ) -> Result<(String, Vec<String>, bool), Failure> {
        prepared_for("p/m", config, endpoint, body)
    }

    fn prepared_for(
        target: &str,
        config: &str,
        endpoint: Endpoint,
        body: &str,
    ) -> Result<(String, Vec<String>, bool), Failure> {
        let env: Env = Arc::new(|_| None);
        let config = Config::parse(
            &format!("[providers.p]\nbase-url = \"http://p/v1\"\n{config}"),
            &env,
        )
        .unwrap();
        let fields = Fields::read(body.as_bytes()).unwrap();
        let call = Call {
            endpoint,
            fields: &fields,
            body_bytes: body.len(),
            is_stream: fields.get("stream").unwrap_or(false),
            max_tokens: None,
            forwarded: Vec::new(),
            deadline: tokio::time::Instant::now(),
            ends: tokio::time::Instant::now(),
            trace: None,
            wish: crate::attempt::Wish::default(),
            continues: false,
            is_continued: false,
            files: crate::files::Files::default(),
        };
        let candidate = config.target(target).unwrap();
        let Prepared::Ask(prepared) = prepare(&candidate, &call)? else {
            panic!()
        };
        assert_eq!(prepared.request.uri().path(), "/v1/chat/completions");
        let text = String::from_utf8(prepared.request.into_body().to_vec()).unwrap();
        Ok((text, prepared.dropped, prepared.forwarding.hides_usage))
    }

    #[test]
    fn a_plain_provider_gets_what_came() {
        let body = r#"{"model":"r","messages":[{"role":"user","content":"é"}],"new_field":{"a":1}}"#;
        let (text, dropped, _) = prepared("", Endpoint::Chat, body).unwrap();
        assert_eq!(text, body.replace("\"r\"", "\"m\""));
        assert!(dropped.is_empty());
    }

    #[test]
    fn quirks_are_obeyed_and_told() {
        let config = "drop = [\"user\", \"store\"]\nrename = { max_completion_tokens = \"max_tokens\" }\nmax-temperature = 1.0";
        let body = r#"{"model":"r","user":"u","store":null,"max_completion_tokens":5,"temperature":1.5}"#;
        let (text, dropped, _) = prepared(config, Endpoint::Chat, body).unwrap();
        assert_eq!(text, r#"{"model":"m","max_tokens":5,"temperature":1}"#);
        assert_eq!(dropped, ["user"]);
        let refusing = format!("{config}\nunsupported = \"refuse\"");
        let failure = prepared(&refusing, Endpoint::Chat, body).unwrap_err();
        assert!(failure.message.contains("`user`") && !failure.class.is_final());
        let forwarding = format!("{config}\nunsupported = \"forward\"");
        assert!(
            prepared(&forwarding, Endpoint::Chat, body)
                .unwrap()
                .0
                .contains("\"user\"")
        );
    }

    #[test]
    fn turns_and_models_are_obeyed_whoever_wrote_them() {
        let config = "like = \"mistral\"";
        let id = |text: &str| {
            let sent: Value = serde_json::from_str(text).unwrap();
            let call = sent["messages"][1]["tool_calls"][0]["id"].clone();
            assert_eq!(sent["messages"][2]["tool_call_id"], call, "{text}");
            call.as_str().unwrap().to_string()
        };
        let chat = r#"{"model":"r","messages":[{"role":"user","content":"x"},
            {"role":"assistant","reasoning_content":"t","tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{}"}}]},
            {"role":"tool","tool_call_id":"call_1","content":"1"}]}"#;
        let claude = r#"{"model":"r","max_tokens":9,"messages":[{"role":"user","content":"x"},
            {"role":"assistant","content":[{"type":"tool_use","id":"call_1","name":"f","input":{}}]},
            {"role":"user","content":[{"type":"tool_result","tool_use_id":"call_1","content":"1"}]}]}"#;
        let (native, dropped, _) = prepared(config, Endpoint::Chat, chat).unwrap();
        assert!(
            !native.contains("reasoning_content") && dropped.is_empty(),
            "{native}"
        );
        let (translated, ..) = prepared(config, Endpoint::Messages, claude).unwrap();
        assert_eq!((id(&native).len(), id(&native)), (9, id(&translated)));

        let body = r#"{"model":"r","max_tokens":5,"temperature":0.5,"top_p":1}"#;
        let asked = |config: &str| prepared_for("p/o3", config, Endpoint::Chat, body);
        let (text, dropped, _) = asked("").unwrap();
        assert_eq!(text, r#"{"model":"o3","max_completion_tokens":5,"top_p":1}"#);
        assert_eq!(dropped, ["temperature"]);
        let (text, ..) = asked("rename = { max_completion_tokens = \"max_tokens\" }").unwrap();
        assert_eq!(text, r#"{"model":"o3","max_tokens":5,"top_p":1}"#);
        let (text, ..) = asked("unsupported = \"forward\"").unwrap();
        assert_eq!(text, body.replace("\"r\"", "\"o3\""));
    }

    #[test]
    fn usage_of_streams_is_asked_for() {
        let body = r#"{"model":"r","stream":true}"#;
        let (text, _, hides) = prepared("", Endpoint::Chat, body).unwrap();
        assert_eq!(
            text,
            r#"{"model":"m","stream_options":{"include_usage":true},"stream":true}"#
        );
        assert!(hides);
        let asking = r#"{"model":"r","stream":true,"stream_options":{"include_usage":true}}"#;
        let (text, _, hides) = prepared("", Endpoint::Chat, asking).unwrap();
        assert!(!hides && text.contains("include_usage"));
        let (text, dropped, hides) = prepared("stream-usage = \"always\"", Endpoint::Chat, asking).unwrap();
        assert!(!hides && !text.contains("include_usage") && dropped.is_empty());
    }

    #[test]
    fn what_a_provider_does_not_speak_is_said() {
        let config = "dialect = \"anthropic\"";
        let failure = prepared(config, Endpoint::Moderations, r#"{"model":"r"}"#).unwrap_err();
        assert!(failure.message.contains("`p` cannot be asked") && !failure.class.is_final());
        let (text, ..) = prepared("", Endpoint::Responses, r#"{"model":"r","input":"Hi"}"#).unwrap();
        let sent: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            sent["messages"],
            serde_json::json!([{"role": "user", "content": "Hi"}])
        );
    }
}
