//! Providers as data: what is written about them in `providers.toml` and in the configuration, joined.

use std::collections::BTreeMap;

use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use serde::Deserialize;

use crate::Error;
use crate::endpoint::Dialect;

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

/// What is written about a provider; in the configuration everything is optional.
#[derive(Debug, Clone, Default, Deserialize)]
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
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) drop: Option<Vec<String>>,
    pub(crate) rename: Option<BTreeMap<String, String>>,
    pub(crate) unsupported: Option<Unsupported>,
    pub(crate) stream_usage: Option<StreamUsage>,
    pub(crate) max_temperature: Option<f64>,
    pub(crate) reasoning_apart: Option<bool>,
    pub(crate) responses: Option<bool>,
    pub(crate) prices: Option<String>,
    /// Whether requests to it stay on this machine or in this house.
    pub(crate) local: Option<bool>,
    /// Most requests at the same time.
    pub(crate) max_in_flight: Option<usize>,
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
            headers: self.headers,
            drop: self.drop.or(other.drop),
            rename: self.rename.or(other.rename),
            unsupported: self.unsupported,
            stream_usage: self.stream_usage.or(other.stream_usage),
            max_temperature: self.max_temperature.or(other.max_temperature),
            reasoning_apart: self.reasoning_apart.or(other.reasoning_apart),
            responses: self.responses.or(other.responses),
            prices: self.prices.or(other.prices),
            local: self.local.or(other.local),
            max_in_flight: self.max_in_flight,
        }
    }
}

/// A provider that can be called.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) name: String,
    pub(crate) dialect: Dialect,
    pub(crate) base: Base,
    /// With the key among them, marked as sensitive.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// The key itself, so that it can be taken out of messages.
    pub(crate) secret: Option<String>,
    pub(crate) drop: Vec<String>,
    pub(crate) rename: BTreeMap<String, String>,
    pub(crate) unsupported: Unsupported,
    pub(crate) stream_usage: StreamUsage,
    pub(crate) max_temperature: Option<f64>,
    pub(crate) reasoning_apart: bool,
    pub(crate) has_responses: bool,
    pub(crate) prices: String,
    pub(crate) is_local: bool,
    pub(crate) max_in_flight: usize,
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

    fn is_loopback(&self) -> bool {
        let host = self.authority.host().trim_matches(['[', ']']);
        let address: Option<std::net::IpAddr> = host.parse().ok();
        host == "localhost" || address.is_some_and(|address| address.is_loopback())
    }
}

/// The providers of `providers.toml`.
pub(crate) fn known() -> Result<BTreeMap<String, ProviderText>, Error> {
    Ok(toml::from_str(KNOWN)?)
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
            format!("no provider `{like}` is known; see `carat models --providers`"),
        ));
    }
    let has_own_key_env = text.key_env.is_some();
    let text = text.or(model.unwrap_or_default());
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
    let secret = secret(&text, has_own_key_env, env, &field)?;
    let is_local = text.local.unwrap_or_else(|| base.is_loopback());
    Ok(Provider {
        name: name.to_string(),
        dialect: text.dialect.unwrap_or(Dialect::OpenAi),
        headers: headers(&text, secret.as_deref(), &field)?,
        secret,
        drop: text.drop.unwrap_or_default(),
        rename: text.rename.unwrap_or_default(),
        unsupported: text.unsupported.unwrap_or(Unsupported::Drop),
        stream_usage: text.stream_usage.unwrap_or(StreamUsage::Ask),
        max_temperature: text.max_temperature,
        reasoning_apart: text.reasoning_apart.unwrap_or(false),
        has_responses: text.responses.unwrap_or(false),
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
    if text.dialect == Some(Dialect::Anthropic) && !text.headers.contains_key("anthropic-version") {
        headers.push((
            HeaderName::from_static("anthropic-version"),
            HeaderValue::from_static("2023-06-01"),
        ));
    }
    let Some(secret) = secret else { return Ok(headers) };
    let unusable = || Error::config(field("key"), "the key has characters that no header can carry");
    let (name, value) = match text.auth.as_deref().unwrap_or("bearer") {
        "none" => return Ok(headers),
        "bearer" => (AUTHORIZATION, HeaderValue::try_from(format!("Bearer {secret}"))),
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
        let vars = "vars = { account = \"a\", host = \"h\", resource = \"r\" }";
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
