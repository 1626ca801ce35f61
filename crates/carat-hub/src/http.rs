//! Requests to the hub: redirects by hand, the token for one host only, errors in the user's words.
//!
//! Redirects are followed here and not by the HTTP library, for two reasons: the hub tells size and
//! SHA-256 of a file in the headers of its *redirect*, and the token must go to the configured
//! endpoint alone, never to the storage host that the redirect names.

use std::io::Read;
use std::time::Duration;

use reqwest::blocking::{Client, Response};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};

use crate::catalogue::is_sha256;
use crate::error::{Error, Fault, Result};
use crate::fs::read_limited;
use crate::progress::{Event, Watch};
use crate::settings::{HubSettings, Limits, Secret};

const MAX_REDIRECTS: usize = 8;
/// 16 TiB: a claim above it is a fault of the server.
const MAX_FILE_BYTES: u64 = 16 << 40;
/// A token file larger than this (bytes) holds no token.
const MAX_TOKEN_BYTES: u64 = 4096;

/// A client of one hub.
#[derive(Debug)]
pub(crate) struct Http {
    client: Client,
    endpoint: Url,
    token: Option<Secret>,
    pub(crate) limits: Limits,
}

/// What the hub says about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileHead {
    pub(crate) size: u64,
    /// Given for large files only.
    pub(crate) sha256: Option<String>,
    pub(crate) etag: Option<String>,
    /// The commit that `main` stood for, so that all ranges come from the same one.
    pub(crate) commit: Option<String>,
}

/// A response after all redirects, with the headers of the endpoint's own answers.
struct Answer {
    response: Response,
    hub_headers: Vec<HeaderMap>,
}

impl Http {
    pub(crate) fn new(settings: &HubSettings) -> Result<Self> {
        let endpoint = parse_endpoint(&settings.hf_endpoint)?;
        let token = match (&settings.hf_token, &settings.hf_token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(file)) if file.is_file() => {
                let bytes = read_limited(file, MAX_TOKEN_BYTES).map_err(|e| Error::Setting {
                    setting: "HF_TOKEN_PATH",
                    reason: format!("the token file `{}` cannot be read: {e}", file.display()),
                })?;
                Some(Secret::new(&String::from_utf8_lossy(&bytes))).filter(|token| !token.expose().is_empty())
            }
            _ => None,
        };
        // A second call finds the provider installed already: that is the same provider, so all is well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let limits = settings.limits.clone();
        let mut builder = Client::builder()
            .user_agent(concat!("carat/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(limits.connect_timeout)
            // In the blocking client this bounds each read, not the whole transfer.
            .timeout(limits.stall_timeout);
        if is_loopback(&endpoint) {
            // The system's proxy leads out; a hub on this machine is not there.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|e| Error::Setting {
            setting: "network",
            reason: chain(&e),
        })?;
        Ok(Http {
            client,
            endpoint,
            token,
            limits,
        })
    }

    /// Host and port of the hub, for messages.
    pub(crate) fn host(&self) -> String {
        host_of(&self.endpoint)
    }

    /// Address of a file of a repository at a commit or branch.
    pub(crate) fn file_url(&self, repo: &str, revision: &str, file: &str) -> Result<Url> {
        self.url(
            repo.split('/')
                .chain(["resolve", revision])
                .chain(file.split('/')),
        )
    }

    /// Address of the description of a repository.
    pub(crate) fn api_url(&self, repo: &str, revision: &str) -> Result<Url> {
        let mut url = self.url(
            ["api", "models"]
                .into_iter()
                .chain(repo.split('/'))
                .chain(["revision", revision]),
        )?;
        url.set_query(Some("blobs=true"));
        Ok(url)
    }

    fn url<'a>(&self, segments: impl Iterator<Item = &'a str>) -> Result<Url> {
        let mut url = self.endpoint.clone();
        match url.path_segments_mut() {
            // Segments are percent-encoded one by one, so a name can never become a path.
            Ok(mut path) => drop(path.pop_if_empty().extend(segments)),
            Err(()) => return Err(bad_endpoint(self.endpoint.as_str())),
        }
        Ok(url)
    }

    /// Asks for size and digest of a file, again on passing faults.
    pub(crate) fn head(&self, url: &Url, watch: &mut Watch<'_>) -> Result<FileHead> {
        let answer = self.patiently(watch, || self.send(Method::HEAD, url, None))?;
        let header = |name: &str| {
            let hub = answer.hub_headers.iter().find_map(|headers| text(headers, name));
            hub.or_else(|| text(answer.response.headers(), name))
        };
        let length = text(answer.response.headers(), "content-length");
        let size = header("x-linked-size")
            .or(length)
            .and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| unusable(url, "it does not tell the size of the file"))?;
        if size > MAX_FILE_BYTES {
            return Err(unusable(
                url,
                &format!("it tells a size of {size} bytes, which no model has"),
            ));
        }
        let linked = header("x-linked-etag").map(|tag| bare_etag(&tag));
        let etag = linked
            .clone()
            .or_else(|| text(answer.response.headers(), "etag").map(|tag| bare_etag(&tag)));
        let sha256 = linked
            .filter(|tag| is_sha256(tag))
            .map(|tag| tag.to_ascii_lowercase());
        let is_commit = |text: &String| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
        Ok(FileHead {
            size,
            sha256,
            etag,
            commit: header("x-repo-commit").filter(is_commit),
        })
    }

    /// Fetches a small text, again on passing faults.
    pub(crate) fn get_small(&self, url: &Url, limit: u64, watch: &mut Watch<'_>) -> Result<Vec<u8>> {
        self.patiently(watch, || {
            let answer = self.send(Method::GET, url, None)?;
            let mut bytes = Vec::new();
            let read = answer
                .response
                .take(limit.saturating_add(1))
                .read_to_end(&mut bytes);
            read.map_err(|e| Fault::Again {
                error: broken(url, &e),
                after: None,
            })?;
            if bytes.len() as u64 > limit {
                return Err(Fault::Fatal(unusable(
                    url,
                    "it is far larger than such an answer can be",
                )));
            }
            Ok(bytes)
        })
    }

    /// Asks for bytes `start..end`, or for all if `range` is `None`. Status is 200 or 206.
    pub(crate) fn get_range(
        &self,
        url: &Url,
        range: Option<(u64, u64)>,
    ) -> std::result::Result<Response, Fault> {
        self.send(Method::GET, url, range).map(|answer| answer.response)
    }

    /// Repeats the first request to a source a few times only, so that a dead network is told soon.
    fn patiently<T>(
        &self,
        watch: &mut Watch<'_>,
        mut ask: impl FnMut() -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        let mut attempt = 1;
        loop {
            watch.check()?;
            match ask() {
                Ok(value) => return Ok(value),
                Err(Fault::Again { error, after }) if attempt < self.limits.first_attempts => {
                    let wait = backoff(&self.limits, attempt, after);
                    watch.tell(Event::Retrying {
                        reason: &error.reason(),
                        wait,
                    });
                    watch.pause(wait)?;
                    attempt += 1;
                }
                Err(fault) => return Err(fault.into_error()),
            }
        }
    }

    fn send(
        &self,
        method: Method,
        url: &Url,
        range: Option<(u64, u64)>,
    ) -> std::result::Result<Answer, Fault> {
        let mut url = url.clone();
        let mut hub_headers = Vec::new();
        for _ in 0..=MAX_REDIRECTS {
            let ours = same_origin(&url, &self.endpoint);
            let mut request = self.client.request(method.clone(), url.clone());
            if let (true, Some(token)) = (ours, &self.token) {
                request = request.header(AUTHORIZATION, bearer(token).map_err(Fault::Fatal)?);
            }
            if let Some((start, end)) = range {
                request = request.header(RANGE, format!("bytes={start}-{}", end.saturating_sub(1)));
            }
            let response = request.send().map_err(|e| Fault::Again {
                error: unreachable(&url, &e),
                after: None,
            })?;
            let told = ["x-linked-etag", "x-linked-size"];
            let linked = told.iter().all(|name| response.headers().contains_key(*name));
            if ours {
                hub_headers.push(response.headers().clone());
            }
            let next = redirect_target(&url, &response).map_err(Fault::Fatal)?;
            match next {
                // A HEAD is answered by the hub itself: the storage host need not be asked.
                Some(_) if method == Method::HEAD && linked => {
                    return Ok(Answer {
                        response,
                        hub_headers,
                    });
                }
                Some(next) => url = next,
                None => {
                    return match check_status(&url, &response, self.token.is_some(), ours) {
                        Ok(()) => Ok(Answer {
                            response,
                            hub_headers,
                        }),
                        Err(fault) => Err(fault),
                    };
                }
            }
        }
        Err(Fault::Fatal(unusable(&url, "it redirects in a circle")))
    }
}

/// How long to wait after the n-th failure (from 1): what the server asked for, else doubling.
pub(crate) fn backoff(limits: &Limits, attempt: u32, after: Option<Duration>) -> Duration {
    let doubled = limits
        .backoff
        .saturating_mul(1 << attempt.saturating_sub(1).min(16));
    // Up to a quarter more, different per process, so that many clients do not return together.
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos());
    let jitter = doubled / 4 * (nanos % 97) / 97;
    after.unwrap_or(doubled + jitter).min(limits.backoff_max)
}

fn parse_endpoint(text: &str) -> Result<Url> {
    let url = Url::parse(text.trim()).map_err(|_| bad_endpoint(text))?;
    let web = matches!(url.scheme(), "http" | "https") && url.host_str().is_some();
    if web { Ok(url) } else { Err(bad_endpoint(text)) }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn bad_endpoint(text: &str) -> Error {
    Error::Setting {
        setting: "HF_ENDPOINT",
        reason: format!("`{text}` is not a web address"),
    }
}

fn bearer(token: &Secret) -> Result<HeaderValue> {
    let bad = |_| Error::Setting {
        setting: "HF_TOKEN",
        reason: "it holds characters no token has".into(),
    };
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(bad)?;
    value.set_sensitive(true);
    Ok(value)
}

fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

fn redirect_target(url: &Url, response: &Response) -> Result<Option<Url>> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = text(response.headers(), LOCATION.as_str());
    let next = location.and_then(|location| url.join(&location).ok());
    match next {
        Some(next) if next.scheme() == "https" || next.scheme() == url.scheme() => Ok(Some(next)),
        _ => Err(unusable(url, "it redirects to nowhere safe")),
    }
}

fn check_status(
    url: &Url,
    response: &Response,
    has_token: bool,
    ours: bool,
) -> std::result::Result<(), Fault> {
    let status = response.status();
    let what = shown(url);
    let code = status.as_u16();
    let after = text(response.headers(), RETRY_AFTER.as_str()).and_then(|s| s.trim().parse().ok());
    let after = after.map(Duration::from_secs);
    match status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(()),
        // The storage host refuses when a signed address has run out: the hub makes a new one.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !ours => {
            let hint = "the storage host refused the signed address";
            Err(Fault::Again {
                error: Error::Status {
                    what,
                    status: code,
                    hint,
                },
                after,
            })
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let hint = match (has_token, code) {
                (false, _) => {
                    "it is gated, private or does not exist: accept its licence on its page and set HF_TOKEN"
                }
                (true, 401) => "the token is not valid: make a new one on the hub and set HF_TOKEN",
                (true, _) => "the token has no access: accept the licence on the model's page",
            };
            Err(Fault::Fatal(Error::Access {
                what,
                status: code,
                hint: hint.to_owned(),
            }))
        }
        StatusCode::NOT_FOUND => Err(Fault::Fatal(Error::NotFound(what))),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            let hint = "it is asked too often: wait a little, or set HF_TOKEN for a higher limit";
            Err(Fault::Again {
                error: Error::Status {
                    what,
                    status: code,
                    hint,
                },
                after,
            })
        }
        status if status.is_server_error() => {
            let hint = "the server has a fault: try again later";
            Err(Fault::Again {
                error: Error::Status {
                    what,
                    status: code,
                    hint,
                },
                after,
            })
        }
        _ => {
            let hint = "this is not the answer of a Hugging Face hub: check HF_ENDPOINT";
            Err(Fault::Fatal(Error::Status {
                what,
                status: code,
                hint,
            }))
        }
    }
}

pub(crate) fn unusable(url: &Url, reason: &str) -> Error {
    Error::BadResponse {
        what: shown(url),
        reason: reason.to_owned(),
    }
}

/// A connection that broke while bytes were read.
pub(crate) fn broken(url: &Url, error: &std::io::Error) -> Error {
    let silent = error.kind() == std::io::ErrorKind::TimedOut
        || error
            .get_ref()
            .and_then(|e| e.downcast_ref::<reqwest::Error>())
            .is_some_and(reqwest::Error::is_timeout);
    let reason = if silent {
        "it stopped sending".to_owned()
    } else {
        format!("the connection broke ({error})")
    };
    Error::Unreachable {
        host: host_of(url),
        reason,
    }
}

fn unreachable(url: &Url, error: &reqwest::Error) -> Error {
    let reason = match (error.is_timeout(), error.is_connect()) {
        (true, true) => "no connection within the time allowed".to_owned(),
        (true, false) => "it does not answer".to_owned(),
        _ => chain(error),
    };
    Error::Unreachable {
        host: host_of(url),
        reason,
    }
}

/// The innermost causes of a network error; its own text repeats the address, which may be signed.
fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    if text.is_empty() {
        "the connection failed".to_owned()
    } else {
        text
    }
}

/// An address without its query, which may hold a signature.
fn shown(url: &Url) -> String {
    format!("{}{}", host_of(url), url.path())
}

fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(crate) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

pub(crate) fn bare_etag(tag: &str) -> String {
    tag.trim().trim_start_matches("W/").trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(endpoint: &str) -> Result<Http> {
        let mut settings = HubSettings::new("/nowhere");
        settings.hf_endpoint = endpoint.to_owned();
        settings.hf_token = Some(Secret::new("hf_very_private"));
        Http::new(&settings)
    }

    #[test]
    fn addresses() {
        let http = http("https://mirror.example/hf/").unwrap();
        let url = http.file_url("o/r", "main", "a b/c?d.gguf").unwrap();
        assert_eq!(
            url.as_str(),
            "https://mirror.example/hf/o/r/resolve/main/a%20b/c%3Fd.gguf"
        );
        let url = http.api_url("o/r", "main").unwrap();
        assert_eq!(
            url.as_str(),
            "https://mirror.example/hf/api/models/o/r/revision/main?blobs=true"
        );
        assert!(!format!("{http:?}").contains("private"));
    }

    #[test]
    fn a_bad_endpoint_is_named() {
        for endpoint in ["", "mirror", "ftp://x", "file:///etc"] {
            let error = http(endpoint).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains("HF_ENDPOINT"), "{endpoint}: {error}");
        }
    }

    #[test]
    fn loopback_is_recognized() {
        let is = |url: &str| is_loopback(&Url::parse(url).unwrap());
        assert!(is("http://127.0.0.1:1/x") && is("http://localhost/") && is("http://[::1]:8/"));
        assert!(!is("https://huggingface.co/") && !is("http://10.0.0.1/"));
    }

    #[test]
    fn origins_are_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&Url::parse(a).unwrap(), &Url::parse(b).unwrap());
        assert!(same("https://h/x", "https://h:443/y"));
        assert!(!same("https://h/", "http://h/") && !same("https://h/", "https://h.evil/"));
        assert!(!same("http://h:1/", "http://h:2/"));
    }

    #[test]
    fn waits_double_and_are_bounded() {
        let limits = Limits::default();
        assert!(backoff(&limits, 1, None) >= limits.backoff);
        assert!(backoff(&limits, 2, None) >= 2 * limits.backoff);
        assert_eq!(backoff(&limits, 99, None), limits.backoff_max);
        assert_eq!(
            backoff(&limits, 1, Some(Duration::from_secs(7))),
            Duration::from_secs(7)
        );
        assert_eq!(
            backoff(&limits, 1, Some(Duration::from_secs(9999))),
            limits.backoff_max
        );
    }
}
