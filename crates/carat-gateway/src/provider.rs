//! Providers as data: what is written about them in `providers.toml` and in the configuration, joined.

use std::collections::BTreeMap;
use std::fmt;

use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use serde::Deserialize;

use crate::Error;
use crate::credentials::{Aws, AwsText, Google, Proof};
use crate::endpoint::{Dialect, Endpoint, is_unreserved};

/// The providers that carat knows.
const KNOWN: &str = include_str!("providers.toml");

/// When a stream's usage comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StreamUsage {
    /// Only if `stream_options.include_usage` asks for it.
    Ask,
    /// Always.
    Always,
}

/// How a provider is told to go on with an answer that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Prefill {
    /// It cannot be told.
    None,
    /// A last turn of the assistant is such a beginning.
    Last,
    /// Fields of the request say so, as vLLM has them.
    Final,
    /// A field of the turn says so, as Mistral has it.
    Prefix,
}

/// What becomes of a field that a provider refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unsupported {
    /// It is left out, and the answer says so.
    Drop,
    /// The provider is passed over.
    Refuse,
    /// It is sent all the same.
    Forward,
}

/// Where a provider's paths and bodies differ from what is usual for its dialect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Surface {
    #[default]
    Usual,
    /// Azure's older one: deployments in the path, and this `api-version`.
    Deployments(String),
    /// Google's Vertex, with its own or Anthropic's models.
    Vertex,
}

/// The name of a [`Surface`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SurfaceName {
    Deployments,
    Vertex,
}

/// What is written about a provider; in the configuration everything is optional.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ProviderText {
    /// The known provider that this one is like; its own name without it.
    pub(crate) like: Option<String>,
    pub(crate) dialect: Option<Dialect>,
    pub(crate) base_url: Option<String>,
    pub(crate) vars: BTreeMap<String, String>,
    pub(crate) key: Option<String>,
    pub(crate) key_env: Option<String>,
    pub(crate) key_file: Option<std::path::PathBuf>,
    pub(crate) auth: Option<String>,
    pub(crate) aws: Option<AwsText>,
    pub(crate) surface: Option<SurfaceName>,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) drop: Option<Vec<String>>,
    pub(crate) drop_in_turns: Option<Vec<String>>,
    pub(crate) short_call_ids: Option<bool>,
    pub(crate) rename: Option<BTreeMap<String, String>>,
    pub(crate) unsupported: Option<Unsupported>,
    pub(crate) stream_usage: Option<StreamUsage>,
    pub(crate) max_temperature: Option<f64>,
    pub(crate) reasoning_apart: Option<bool>,
    pub(crate) reasoning: Option<String>,
    pub(crate) responses: Option<bool>,
    pub(crate) completions: Option<bool>,
    pub(crate) files: Option<bool>,
    pub(crate) prefill: Option<Prefill>,
    pub(crate) prices: Option<String>,
    /// Whether requests to it stay on this machine or in this house.
    pub(crate) local: Option<bool>,
    /// Most requests at the same time.
    pub(crate) max_in_flight: Option<usize>,
}

/// Keys may be among it.
impl fmt::Debug for ProviderText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderText").finish_non_exhaustive()
    }
}

impl ProviderText {
    /// This text, and `other` where it says nothing.
    fn or(self, other: Self) -> Self {
        Self {
            like: self.like,
            dialect: self.dialect.or(other.dialect),
            base_url: self.base_url.or(other.base_url),
            vars: if self.vars.is_empty() {
                other.vars
            } else {
                self.vars
            },
            key: self.key,
            key_env: self.key_env.or(other.key_env),
            key_file: self.key_file,
            auth: self.auth.or(other.auth),
            aws: self.aws,
            surface: self.surface.or(other.surface),
            headers: self.headers,
            drop: self.drop.or(other.drop),
            drop_in_turns: self.drop_in_turns.or(other.drop_in_turns),
            short_call_ids: self.short_call_ids.or(other.short_call_ids),
            rename: self.rename.or(other.rename),
            unsupported: self.unsupported,
            stream_usage: self.stream_usage.or(other.stream_usage),
            max_temperature: self.max_temperature.or(other.max_temperature),
            reasoning_apart: self.reasoning_apart.or(other.reasoning_apart),
            reasoning: self.reasoning.or(other.reasoning),
            responses: self.responses.or(other.responses),
            completions: self.completions.or(other.completions),
            files: self.files.or(other.files),
            prefill: self.prefill.or(other.prefill),
            prices: self.prices.or(other.prices),
            local: self.local.or(other.local),
            max_in_flight: self.max_in_flight,
        }
    }
}

/// A provider that can be called.
pub(crate) struct Provider {
    pub(crate) name: String,
    /// The known provider that it is like; else its own name.
    pub(crate) like: String,
    pub(crate) dialect: Dialect,
    pub(crate) base: Base,
    /// With the key among them, marked as sensitive.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// The key itself, so that it can be taken out of messages.
    pub(crate) secret: Option<String>,
    /// The variable of the key that it wants and has not.
    pub(crate) lacks_key: Option<String>,
    /// What each request needs beside the headers.
    pub(crate) proof: Proof,
    pub(crate) surface: Surface,
    pub(crate) drop: Vec<String>,
    /// Fields that it refuses in earlier turns of the assistant, and in their calls.
    pub(crate) drop_in_turns: Vec<String>,
    /// It takes ids of calls of nine letters and digits alone.
    pub(crate) short_call_ids: bool,
    pub(crate) rename: BTreeMap<String, String>,
    pub(crate) unsupported: Unsupported,
    pub(crate) stream_usage: StreamUsage,
    pub(crate) max_temperature: Option<f64>,
    pub(crate) reasoning_apart: bool,
    /// The field in which it wants thoughts back beside the calls that came of them.
    pub(crate) reasoning: Option<String>,
    pub(crate) has_responses: bool,
    pub(crate) has_completions: bool,
    /// Files can be brought to it, and named by their ids.
    pub(crate) keeps_files: bool,
    pub(crate) prefill: Prefill,
    pub(crate) prices: String,
    pub(crate) is_local: bool,
    pub(crate) max_in_flight: usize,
}

/// Its key is no affair of who prints it.
impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Provider({})", self.name)
    }
}

impl Provider {
    /// Whether a key goes to it that others can read on the way. What is in this house is trusted not to.
    pub(crate) fn shows_its_key(&self) -> bool {
        let has_key = self.headers.iter().any(|(_, value)| value.is_sensitive());
        let has_key = has_key || !matches!(self.proof, Proof::Headers);
        has_key && !self.is_local && self.base.is_plain()
    }

    /// Whether it has what a client asks for in the client's own words.
    pub(crate) fn has(&self, endpoint: Endpoint) -> bool {
        let is_usual = self.surface == Surface::Usual;
        match endpoint {
            Endpoint::Responses => self.dialect == Dialect::OpenAi && self.has_responses,
            Endpoint::Completions => self.dialect == Dialect::OpenAi && self.has_completions,
            // The one thing of Cohere's that everybody asks for in its own words.
            Endpoint::Rerank => matches!(self.dialect, Dialect::OpenAi | Dialect::Cohere),
            Endpoint::CountTokens => self.dialect == Dialect::Anthropic && is_usual,
            Endpoint::EmbedContent | Endpoint::BatchEmbedContents => {
                self.dialect == Dialect::Gemini && is_usual
            }
            other => self.dialect == other.dialect(),
        }
    }
}

/// Where a provider's paths begin.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    scheme: Scheme,
    pub(crate) authority: Authority,
    path: String,
}

impl Base {
    fn read(text: &str) -> Option<Self> {
        let uri: Uri = text.trim_end_matches('/').parse().ok()?;
        let parts = uri.into_parts();
        let scheme = parts
            .scheme
            .filter(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS)?;
        let authority = parts
            .authority
            .filter(|authority| !authority.as_str().contains('@'))?;
        let path = parts
            .path_and_query
            .map_or(String::new(), |path| path.as_str().to_string());
        Some(Self {
            scheme,
            authority,
            path: path.trim_end_matches('/').to_string(),
        })
    }

    /// The URL of a path under the base.
    pub(crate) fn join(&self, path: &str) -> Option<Uri> {
        let path = PathAndQuery::try_from(format!("{}{path}", self.path)).ok()?;
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
            .ok()
    }

    /// Whether everybody on the way can read what is sent there.
    pub(crate) fn is_plain(&self) -> bool {
        self.scheme == Scheme::HTTP
    }

    fn is_loopback(&self) -> bool {
        let host = self.authority.host().trim_matches(['[', ']']);
        let address: Option<std::net::IpAddr> = host.parse().ok();
        host == "localhost" || address.is_some_and(|address| address.is_loopback())
    }
}

/// The providers of `providers.toml`.
pub(crate) fn known() -> Result<BTreeMap<String, ProviderText>, Error> {
    toml::from_str(KNOWN).map_err(|error| Error::toml(KNOWN, &error))
}

/// Joins what the configuration says about `name` with what is known, and finds the key.
///
/// # Errors
/// When no base URL is known, a name or URL makes no sense, or a key that is named is not there.
pub(crate) fn provider(
    name: &str,
    text: ProviderText,
    known: &BTreeMap<String, ProviderText>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Provider, Error> {
    let field = |what: &str| format!("providers.{name}.{what}");
    let like = text.like.clone().unwrap_or_else(|| name.to_string());
    let model = known.get(&like).cloned();
    if model.is_none() && text.like.is_some() {
        return Err(Error::config(
            field("like"),
            format!("no provider `{like}` is known; docs/gateway.md lists those that are"),
        ));
    }
    let has_own_key_env = text.key_env.is_some();
    let mut text = text.or(model.unwrap_or_default());
    let secret = secret(&text, has_own_key_env, env, &field)?;
    let google = google(&text, secret.as_deref(), env, &field)?;
    derived_vars(&mut text, google.as_ref(), env);
    let url = text.base_url.as_deref().ok_or_else(|| {
        Error::config(
            field("base-url"),
            format!("`{name}` is no provider that carat knows; say where it is"),
        )
    })?;
    let url = filled(url, &text.vars).map_err(|missing| {
        Error::config(
            field("vars"),
            format!("`{missing}` is part of the address; give it: vars = {{ {missing} = \"…\" }}"),
        )
    })?;
    let base = Base::read(&url).ok_or_else(|| {
        Error::config(
            field("base-url"),
            format!("`{url}` is no http or https address without a user"),
        )
    })?;
    // Credentials of Google's are no key that goes into a header.
    let key = secret.as_deref().filter(|_| google.is_none());
    let is_local = text.local.unwrap_or_else(|| base.is_loopback());
    // Who proves himself otherwise wants no key, and what is on this machine rarely does.
    let wants_key = !is_local && !matches!(text.auth.as_deref(), Some("aws" | "google" | "none"));
    let lacks_key = text.key_env.clone().filter(|_| wants_key && secret.is_none());
    Ok(Provider {
        name: name.to_string(),
        like: like.clone(),
        dialect: text.dialect.unwrap_or(Dialect::OpenAi),
        headers: headers(&text, key, &field)?,
        surface: match text.surface {
            None => Surface::Usual,
            Some(SurfaceName::Vertex) => Surface::Vertex,
            Some(SurfaceName::Deployments) => Surface::Deployments(api_version(&text.vars, &field)?),
        },
        proof: match (google, text.auth.as_deref()) {
            (Some(google), _) => Proof::Google(Box::new(google)),
            (None, Some("aws")) if key.is_none() => {
                let region = text.vars.get("region").cloned().unwrap_or_default();
                Proof::Aws(Aws::new(region, text.aws.unwrap_or_default(), env))
            }
            _ => Proof::Headers,
        },
        secret,
        lacks_key,
        drop: text.drop.unwrap_or_default(),
        drop_in_turns: text.drop_in_turns.unwrap_or_default(),
        short_call_ids: text.short_call_ids.unwrap_or(false),
        rename: text.rename.unwrap_or_default(),
        unsupported: text.unsupported.unwrap_or(Unsupported::Drop),
        stream_usage: text.stream_usage.unwrap_or(StreamUsage::Ask),
        max_temperature: text.max_temperature,
        reasoning_apart: text.reasoning_apart.unwrap_or(false),
        reasoning: text.reasoning,
        has_responses: text.responses.unwrap_or(false),
        has_completions: text.completions.unwrap_or(true),
        keeps_files: text.files.unwrap_or(true),
        prefill: text.prefill.unwrap_or(match text.dialect {
            Some(Dialect::Anthropic | Dialect::Bedrock) => Prefill::Last,
            _ => Prefill::None,
        }),
        prices: text.prices.unwrap_or(like),
        is_local,
        max_in_flight: text.max_in_flight.unwrap_or(usize::MAX),
        base,
    })
}

/// The key, from the file, the variable or the configuration itself.
fn secret(
    text: &ProviderText,
    is_env_named: bool,
    env: &dyn Fn(&str) -> Option<String>,
    field: &dyn Fn(&str) -> String,
) -> Result<Option<String>, Error> {
    if let Some(key) = &text.key {
        return Ok(Some(key.clone()));
    }
    if let Some(path) = &text.key_file {
        let key = crate::config::read(path)?;
        return Ok(Some(key.trim().to_string()));
    }
    let Some(name) = &text.key_env else {
        return Ok(None);
    };
    let key = env(name)
        .map(|key| key.trim().to_string())
        .filter(|key| !key.is_empty());
    if key.is_none() && is_env_named {
        return Err(Error::config(
            field("key-env"),
            format!("the variable `{name}` is not set"),
        ));
    }
    Ok(key)
}

/// Credentials that access tokens are fetched with, where the provider wants such tokens. A key that is no such
/// file is a token itself.
fn google(
    text: &ProviderText,
    secret: Option<&str>,
    env: &dyn Fn(&str) -> Option<String>,
    field: &dyn Fn(&str) -> String,
) -> Result<Option<Google>, Error> {
    if text.auth.as_deref() != Some("google") {
        return Ok(None);
    }
    let file = match secret {
        Some(secret) => secret.to_string(),
        None => match env("GOOGLE_APPLICATION_CREDENTIALS").filter(|path| !path.is_empty()) {
            Some(path) => crate::config::read(std::path::Path::new(&path))?,
            None => return Ok(None),
        },
    };
    if !file.trim_start().starts_with('{') {
        return Ok(None);
    }
    let made = Google::read(&file).map_err(|why| Error::config(field("key-file"), why))?;
    Ok(Some(made))
}

/// Parts of addresses that follow from something else.
fn derived_vars(text: &mut ProviderText, google: Option<&Google>, env: &dyn Fn(&str) -> Option<String>) {
    let env = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| env(name).filter(|value| !value.is_empty()))
    };
    let derived = match text.auth.as_deref() {
        Some("aws") => vec![("region", env(&["AWS_REGION", "AWS_DEFAULT_REGION"]))],
        Some("google") => {
            let project = google.and_then(|google| google.project.clone());
            let location = text.vars.get("location").cloned();
            let location = location.or_else(|| env(&["GOOGLE_CLOUD_LOCATION"]));
            let location = location.unwrap_or_else(|| "global".into());
            let host = match location.as_str() {
                "global" => "aiplatform.googleapis.com".into(),
                "us" | "eu" => format!("aiplatform.{location}.rep.googleapis.com"),
                region => format!("{region}-aiplatform.googleapis.com"),
            };
            vec![
                ("project", env(&["GOOGLE_CLOUD_PROJECT"]).or(project)),
                ("location", Some(location)),
                ("host", Some(host)),
            ]
        }
        _ => Vec::new(),
    };
    for (name, value) in derived {
        if let Some(value) = value {
            text.vars.entry(name.to_string()).or_insert(value);
        }
    }
}

/// Azure's `api-version`, which becomes part of an address.
fn api_version(vars: &BTreeMap<String, String>, field: &dyn Fn(&str) -> String) -> Result<String, Error> {
    let version = vars.get("api-version").map_or("2024-10-21", String::as_str);
    if version.bytes().all(is_unreserved) {
        return Ok(version.to_string());
    }
    Err(Error::config(
        field("vars"),
        format!("`{version}` is no version such as 2024-10-21"),
    ))
}

fn headers(
    text: &ProviderText,
    secret: Option<&str>,
    field: &dyn Fn(&str) -> String,
) -> Result<Vec<(HeaderName, HeaderValue)>, Error> {
    let mut headers = Vec::new();
    for (name, value) in &text.headers {
        let header = name
            .parse::<HeaderName>()
            .ok()
            .zip(value.parse::<HeaderValue>().ok());
        headers.push(header.ok_or_else(|| {
            Error::config(field("headers"), format!("`{name}` cannot be sent as a header"))
        })?);
    }
    let is_usual = text.surface.is_none();
    if text.dialect == Some(Dialect::Anthropic) && is_usual && !text.headers.contains_key("anthropic-version")
    {
        headers.push((
            HeaderName::from_static("anthropic-version"),
            HeaderValue::from_static("2023-06-01"),
        ));
    }
    let Some(secret) = secret else { return Ok(headers) };
    let unusable = || Error::config(field("key"), "the key has characters that no header can carry");
    let (name, value) = match text.auth.as_deref().unwrap_or("bearer") {
        "none" => return Ok(headers),
        "bearer" | "aws" | "google" => (AUTHORIZATION, HeaderValue::try_from(format!("Bearer {secret}"))),
        name => {
            let name = name
                .parse()
                .map_err(|_| Error::config(field("auth"), format!("`{name}` is no header's name")))?;
            (name, HeaderValue::try_from(secret))
        }
    };
    let mut value = value.map_err(|_| unusable())?;
    value.set_sensitive(true);
    headers.push((name, value));
    Ok(headers)
}

/// Puts variables into an address; the name of one that is missing is the error.
fn filled(url: &str, vars: &BTreeMap<String, String>) -> Result<String, String> {
    let (mut out, mut rest) = (String::new(), url);
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or_else(|| after.to_string())?;
        out.push_str(before);
        out.push_str(vars.get(name).ok_or_else(|| name.to_string())?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str, text: &str, env: &[(&str, &str)]) -> Result<Provider, Error> {
        let env = |name: &str| {
            env.iter()
                .find(|(other, _)| *other == name)
                .map(|(_, key)| (*key).to_string())
        };
        provider(name, toml::from_str(text).unwrap(), &known().unwrap(), &env)
    }

    #[test]
    fn every_known_provider_can_be_used() {
        let known = known().unwrap();
        assert!(known.len() >= 40, "{}", known.len());
        let vars =
            "vars = { account = \"a\", host = \"h\", resource = \"r\", region = \"e\", project = \"p\" }";
        for (name, text) in &known {
            let provider = made(name, vars, &[(text.key_env.as_deref().unwrap_or("-"), "secret")]).unwrap();
            assert_eq!(provider.secret.is_some(), text.key_env.is_some(), "{name}");
            assert!(provider.base.join("/x").is_some(), "{name}");
        }
    }

    #[test]
    fn a_configuration_changes_what_is_known() {
        let provider = made(
            "mistral",
            "max-temperature = 0.7\ndrop = []",
            &[("MISTRAL_API_KEY", "k\n")],
        )
        .unwrap();
        assert_eq!(provider.headers[0].1, "Bearer k");
        assert!(provider.headers[0].1.is_sensitive() && provider.drop.is_empty() && !provider.is_local);
        assert_eq!(provider.rename["seed"], "random_seed");
        let provider = made("second", "like = \"groq\"\nkey = \"k2\"", &[]).unwrap();
        assert_eq!(
            provider.base.join("/models").unwrap(),
            "https://api.groq.com/openai/v1/models"
        );
        let provider = made("mine", "base-url = \"http://[::1]:9/v1/\"", &[]).unwrap();
        assert!(provider.is_local && provider.headers.is_empty());
        assert_eq!(provider.base.join("/a").unwrap(), "http://[::1]:9/v1/a");
    }

    #[test]
    fn clouds_are_found_by_region_and_proved_by_keys_or_tokens() {
        let url = |provider: &Provider| provider.base.join("/x").unwrap().to_string();
        let aws = made("bedrock", "", &[("AWS_REGION", "eu-west-1")]).unwrap();
        assert_eq!(url(&aws), "https://bedrock-runtime.eu-west-1.amazonaws.com/x");
        assert!(matches!(aws.proof, Proof::Aws(_)) && aws.headers.is_empty());
        let bearer = made(
            "bedrock",
            "vars = { region = \"r\" }",
            &[("AWS_BEARER_TOKEN_BEDROCK", "k")],
        )
        .unwrap();
        assert!(matches!(bearer.proof, Proof::Headers) && bearer.headers[0].1 == "Bearer k");
        assert!(
            made("bedrock", "", &[])
                .unwrap_err()
                .to_string()
                .contains("region")
        );

        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/gateway/service-account.json"
        );
        let vertex = made("vertex", &format!("key-file = {file:?}"), &[]).unwrap();
        let global =
            "https://aiplatform.googleapis.com/v1/projects/test-project/locations/global/publishers/google/x";
        assert_eq!(url(&vertex), global);
        assert!(matches!(vertex.proof, Proof::Google(_)) && vertex.headers.is_empty());
        let token = "key = \"ya29.token\"\nvars = { project = \"p\", location = \"europe-west4\" }";
        let vertex = made("vertex", token, &[("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")]).unwrap();
        assert!(url(&vertex).starts_with(
            "https://europe-west4-aiplatform.googleapis.com/v1/projects/p/locations/europe-west4/"
        ));
        assert!(matches!(vertex.proof, Proof::Headers) && vertex.headers[0].1 == "Bearer ya29.token");
        assert!(
            made("vertex", "key = \"{}\"", &[])
                .unwrap_err()
                .to_string()
                .contains("providers.vertex.key-file")
        );
        let version = "vars = { resource = \"r\", api-version = \"1&x=2\" }";
        assert!(made("azure-deployments", version, &[]).is_err());
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |name: &str, text: &str| made(name, text, &[]).unwrap_err().to_string();
        assert!(error("mine", "").contains("providers.mine.base-url"));
        assert!(error("azure", "").contains("vars = { resource"));
        assert!(error("x", "like = \"nobody\"").contains("`nobody`"));
        assert!(error("openai", "key-env = \"MY\"").contains("the variable `MY` is not set"));
        assert!(error("x", "base-url = \"ftp://a\"").contains("http"));
        assert!(error("x", "base-url = \"http://user:pass@a\"").contains("without a user"));
    }
}
