//! AWS Signature Version 4: who asks, proved without sending the key.
//!
//! The method, the path, the query, some headers and a hash of the body are written down in one canonical way; its
//! hash, the date, the region and the service are signed with a key made from the secret for that day alone. Paths are
//! percent-encoded once more than they are sent, as every service but S3 wants it.

use std::fmt::Write as _;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, InvalidHeaderValue};
use http::{Request, Uri};
use ring::{digest, hmac};

use crate::clock;
use crate::endpoint::is_unreserved;

const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// Whose key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
    /// With keys that hold for a while only.
    pub(crate) session_token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// Signs a request for a service in a region: adds `host`, the date, the session's token and the signature.
///
/// # Errors
/// When a credential has characters that no header can carry.
pub(crate) fn sign(
    request: &mut Request<Bytes>,
    credentials: &Credentials,
    region: &str,
    service: &str,
    now: SystemTime,
) -> Result<(), InvalidHeaderValue> {
    let at = clock::civil(clock::since_epoch(now).as_secs());
    let day = format!("{:04}{:02}{:02}", at.year, at.month, at.day);
    let date = format!("{day}T{:02}{:02}{:02}Z", at.hour, at.minute, at.second);
    let host = HeaderValue::from_str(&host(request.uri()))?;
    request.headers_mut().insert(HOST, host);
    request.headers_mut().insert(DATE, HeaderValue::from_str(&date)?);
    if let Some(token) = &credentials.session_token {
        let mut token = HeaderValue::from_str(token)?;
        token.set_sensitive(true);
        request.headers_mut().insert(TOKEN, token);
    }
    let (canonical, signed) = canonical(request);
    let scope = format!("{day}/{region}/{service}/aws4_request");
    let text = format!(
        "AWS4-HMAC-SHA256\n{date}\n{scope}\n{}",
        sha256(canonical.as_bytes())
    );
    let mut key = format!("AWS4{}", credentials.secret_access_key).into_bytes();
    for part in [day.as_str(), region, service, "aws4_request"] {
        key = hmac_sha256(&key, part.as_bytes());
    }
    let signature = hex(&hmac_sha256(&key, text.as_bytes()));
    let id = &credentials.access_key_id;
    let value =
        format!("AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={signed}, Signature={signature}");
    let mut value = HeaderValue::from_str(&value)?;
    value.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, value);
    Ok(())
}

/// The host as the connection will name it: a scheme's own port is left out.
fn host(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    let is_usual = match uri.scheme_str() {
        Some("https") => uri.port_u16() == Some(443),
        _ => uri.port_u16() == Some(80),
    };
    match uri.port_u16().filter(|_| !is_usual) {
        Some(port) => format!("{host}:{port}"),
        None => host,
    }
}

/// A request in the canonical form, and the names of the headers in it.
fn canonical(request: &Request<Bytes>) -> (String, String) {
    let mut headers = String::new();
    let mut names = Vec::new();
    for name in [CONTENT_TYPE, HOST, DATE, TOKEN] {
        if let Some(value) = request.headers().get(&name).and_then(|value| value.to_str().ok()) {
            // Several spaces count as one.
            let words: Vec<&str> = value.split_ascii_whitespace().collect();
            let _written = writeln!(headers, "{name}:{}", words.join(" "));
            names.push(name.as_str().to_string());
        }
    }
    let names = names.join(";");
    let text = format!(
        "{}\n{}\n{}\n{headers}\n{names}\n{}",
        request.method(),
        canonical_path(request.uri().path()),
        canonical_query(request.uri().query().unwrap_or_default()),
        sha256(request.body())
    );
    (text, names)
}

/// A path without empty parts, `.` and `..`, encoded once more.
fn canonical_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut out = String::with_capacity(path.len() + 16);
    for part in &parts {
        out.push('/');
        encode(part, is_unreserved, &mut out);
    }
    if parts.is_empty() || path.ends_with('/') {
        out.push('/');
    }
    out
}

/// A query's parameters in the order of their names, then of their values, each with a `=`. What is encoded stays so.
fn canonical_query(query: &str) -> String {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let mut pairs: Vec<(String, String)> = pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let [name, value] = [name, value].map(|text| {
                let mut out = String::with_capacity(text.len());
                encode(text, |byte| is_unreserved(byte) || byte == b'%', &mut out);
                out
            });
            (name, value)
        })
        .collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

/// Writes a text with percent signs for all that `stays` does not know.
fn encode(text: &str, stays: impl Fn(u8) -> bool, out: &mut String) {
    for byte in text.bytes() {
        if stays(byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _written = write!(out, "%{byte:02X}");
        }
    }
}

fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, message).as_ref().to_vec()
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _written = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    /// The user, the moment and the service of AWS's own test suite.
    fn signature(request: http::request::Builder, body: &'static str, token: Option<&str>) -> String {
        signature_for("service", request, body, token)
    }

    fn signature_for(
        service: &str,
        request: http::request::Builder,
        body: &'static str,
        token: Option<&str>,
    ) -> String {
        let credentials = Credentials {
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            session_token: token.map(ToString::to_string),
        };
        let mut request = request.body(Bytes::from_static(body.as_bytes())).unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        sign(&mut request, &credentials, "us-east-1", service, now).unwrap();
        assert_eq!(request.headers()["x-amz-date"], "20150830T123600Z");
        let value = &request.headers()["authorization"];
        assert!(value.is_sensitive());
        let value = value.to_str().unwrap();
        let scope = format!("Credential=AKIDEXAMPLE/20150830/us-east-1/{service}/aws4_request, ");
        assert!(value.contains(&scope), "{value}");
        value.rsplit_once("Signature=").unwrap().1.to_string()
    }

    #[test]
    fn signatures_are_those_of_the_published_test_suite() {
        let get = |path: &str| Request::get(format!("https://example.amazonaws.com{path}"));
        let post = || Request::post("https://example.amazonaws.com/");
        assert_eq!(
            signature(get("/"), "", None),
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
        assert_eq!(
            signature(get("/?Param2=value2&Param1=value1"), "", None),
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"
        );
        assert_eq!(
            signature(post(), "", None),
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        );
        let form = post().header("content-type", "application/x-www-form-urlencoded");
        assert_eq!(
            signature(form, "Param1=value1", None),
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"
        );
        assert_eq!(
            signature(post(), "", Some(TOKEN)),
            "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"
        );
    }

    /// A model named by an ARN is encoded in the path, and its `%` once more in the signature; botocore signs it so.
    #[test]
    fn encoded_paths_are_encoded_once_more() {
        let url = "https://bedrock-runtime.us-east-1.amazonaws.com/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fa.b-v1%3A0/converse-stream";
        let request = Request::post(url).header("content-type", "application/json");
        assert_eq!(
            signature_for("bedrock", request, "{\"a\":1}", Some(TOKEN)),
            "4028e6fb4abcf43eb6deb622d314045ef664699ac291c8f3e52cd3da0c7c744f"
        );
    }

    /// Requests in `signatures.json`, and what botocore says of them.
    #[derive(serde::Deserialize)]
    struct Signed {
        method: String,
        url: String,
        content_type: Option<String>,
        body: String,
        token: Option<String>,
        region: String,
        service: String,
        at: u64,
        date: String,
        authorization: String,
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        key_id: String,
        secret: String,
        requests: Vec<Signed>,
    }

    #[test]
    fn botocore_signs_the_same() {
        let golden = include_str!("../../../../tests/fixtures/gateway/signatures.json");
        let golden: Golden = serde_json::from_str(golden).unwrap();
        assert!(golden.requests.len() >= 60);
        for signed in golden.requests {
            let credentials = Credentials {
                access_key_id: golden.key_id.clone(),
                secret_access_key: golden.secret.clone(),
                session_token: signed.token,
            };
            let mut request = Request::builder()
                .method(signed.method.as_str())
                .uri(&signed.url)
                .body(Bytes::from(signed.body))
                .unwrap();
            if let Some(kind) = signed.content_type {
                let kind = HeaderValue::from_str(&kind).unwrap();
                request.headers_mut().insert(CONTENT_TYPE, kind);
            }
            let at = UNIX_EPOCH + Duration::from_secs(signed.at);
            sign(&mut request, &credentials, &signed.region, &signed.service, at).unwrap();
            let url = &signed.url;
            assert_eq!(request.headers()["x-amz-date"], signed.date, "{url}");
            assert_eq!(request.headers()["authorization"], signed.authorization, "{url}");
        }
    }

    /// Of the suite's `post-sts-header-before`.
    const TOKEN: &str = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==";
}
