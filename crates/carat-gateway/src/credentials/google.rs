//! Access tokens for Google Cloud: given as they are, or fetched for a service account and kept until shortly before
//! they expire.
//!
//! A service account's key signs a statement (a JWT with RS256) that the token's address exchanges for a token of an
//! hour. `gcloud auth application-default login` leaves a refresh token instead, which is exchanged at the same place.
//! Many requests at once lead to one exchange, whose failure is that of all who wait for it; while the old token holds, an
//! exchange that fails, or takes long, harms nobody.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Request, Uri};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock;
use crate::failure::{Class, Failure};
use crate::limits::ERROR_BYTES;
use crate::upstream::{self, Upstream};

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";
/// How long a statement holds; Google takes no more.
const STATEMENT_S: u64 = 3600;
/// How long before its end a token is replaced.
const AHEAD: Duration = Duration::from_secs(300);
/// How long an exchange may take, and how long while the old token holds.
const EXCHANGE: Duration = Duration::from_secs(10);
const BRIEFLY: Duration = Duration::from_secs(3);
/// How long the old token is used after an exchange failed, before another is tried.
const AGAIN: Duration = Duration::from_secs(10);
/// Longest time that a token is believed to hold.
const MOST: Duration = Duration::from_secs(12 * 3600);

/// A file of credentials, as Google writes it.
#[derive(Deserialize)]
struct File {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    project_id: Option<String>,
    #[serde(default)]
    client_email: String,
    #[serde(default)]
    private_key_id: String,
    #[serde(default)]
    private_key: String,
    #[serde(default)]
    token_uri: Option<String>,
    #[serde(default)]
    client_id: String,
    #[serde(default)]
    client_secret: String,
    #[serde(default)]
    refresh_token: String,
}

/// Where tokens come from.
pub(crate) struct Google {
    token_uri: Uri,
    proof: Proof,
    /// The project that a service account belongs to.
    pub(crate) project: Option<String>,
    kept: Mutex<Option<Kept>>,
    /// The latest exchange that gave no token, while there was no other.
    failed: Mutex<Option<(Instant, Failure)>>,
    /// Held by whoever fetches.
    fetching: tokio::sync::Mutex<()>,
}

/// What a token is given for.
enum Proof {
    Statement {
        email: String,
        key_id: String,
        key: Box<RsaKeyPair>,
    },
    /// A form that is ready to be sent.
    Refresh(String),
}

/// A token, and when it ends.
#[derive(Clone)]
struct Kept {
    header: HeaderValue,
    /// From here on a new one is wanted.
    renew: Instant,
    until: Instant,
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl std::fmt::Debug for Google {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Google").finish_non_exhaustive()
    }
}

impl Google {
    /// Reads a file of credentials; the error says what is wrong with it.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let file: File =
            serde_json::from_str(text).map_err(|_| "this is no file of Google's credentials".to_string())?;
        let uri = file.token_uri.as_deref().unwrap_or(TOKEN_URI);
        let token_uri: Uri = uri
            .parse()
            .map_err(|_| format!("`token_uri` is `{uri}`, which is no address"))?;
        let host = token_uri.host().unwrap_or_default();
        let is_here = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        if token_uri.scheme_str() != Some("https") && !is_here {
            return Err("`token_uri` must begin with https".into());
        }
        let proof = match file.kind.as_str() {
            "service_account" if file.client_email.is_empty() => {
                return Err("`client_email` is missing".into());
            }
            "service_account" => {
                let unusable = |_| "`private_key` is no RSA key in PKCS #8".to_string();
                let key = PrivatePkcs8KeyDer::from_pem_slice(file.private_key.as_bytes())
                    .map_err(|_| "`private_key` is no PEM text".to_string())?;
                Proof::Statement {
                    email: file.client_email,
                    key_id: file.private_key_id,
                    key: Box::new(RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).map_err(unusable)?),
                }
            }
            "authorized_user" => Proof::Refresh(format!(
                "grant_type=refresh_token&client_id={}&client_secret={}&refresh_token={}",
                crate::endpoint::encoded(&file.client_id),
                crate::endpoint::encoded(&file.client_secret),
                crate::endpoint::encoded(&file.refresh_token)
            )),
            other => return Err(format!("credentials of type `{other}` are not known here")),
        };
        Ok(Self {
            token_uri,
            proof,
            project: file.project_id,
            kept: Mutex::new(None),
            failed: Mutex::new(None),
            fetching: tokio::sync::Mutex::new(()),
        })
    }

    /// The header that carries a token in force.
    ///
    /// # Errors
    /// When there is none, and none is given.
    pub(crate) async fn header(&self, upstream: &Upstream) -> Result<HeaderValue, Failure> {
        let now = clock::now();
        let fresh = || {
            self.kept()
                .filter(|kept| kept.renew > now)
                .map(|kept| kept.header)
        };
        if let Some(header) = fresh() {
            return Ok(header);
        }
        let old = self.kept().filter(|kept| kept.until > now);
        let _alone = match (self.fetching.try_lock(), &old) {
            (Ok(alone), _) => alone,
            // Somebody fetches, and the old one still holds.
            (Err(_), Some(old)) => return Ok(old.header.clone()),
            (Err(_), None) => self.fetching.lock().await,
        };
        if let Some(header) = fresh() {
            return Ok(header);
        }
        // What came of it for somebody else in the meantime is what would come of it now.
        let failed = locked(&self.failed).clone();
        if let Some((_, failure)) = failed.filter(|(at, _)| *at > now) {
            return Err(failure);
        }
        let patience = if old.is_some() { BRIEFLY } else { EXCHANGE };
        let fetched = tokio::time::timeout(patience, self.fetch(upstream)).await;
        let failure = match fetched {
            Ok(Ok(fetched)) => {
                let header = fetched.header.clone();
                *locked(&self.kept) = Some(fetched);
                return Ok(header);
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::new(
                Class::ServerFault,
                502,
                "Google takes too long to give an access token",
            ),
        };
        let now = clock::now();
        let Some(old) = old.filter(|old| old.until > now) else {
            *locked(&self.failed) = Some((now, failure.clone()));
            return Err(failure);
        };
        let header = old.header.clone();
        let renew = old.until.min(now + AGAIN);
        *locked(&self.kept) = Some(Kept { renew, ..old });
        Ok(header)
    }

    fn kept(&self) -> Option<Kept> {
        locked(&self.kept).clone()
    }

    async fn fetch(&self, upstream: &Upstream) -> Result<Kept, Failure> {
        let form = match &self.proof {
            Proof::Refresh(form) => form.clone(),
            Proof::Statement { email, key_id, key } => {
                let statement = statement(email, key_id, key, self.token_uri.to_string(), clock::now_s())
                    .ok_or_else(|| refused("the service account's key cannot sign"))?;
                format!(
                    "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={statement}"
                )
            }
        };
        let mut request = Request::post(self.token_uri.clone())
            .body(Bytes::from(form))
            .map_err(|_| refused("the token's address makes no sense"))?;
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(CONTENT_TYPE, kind);
        let asked = clock::now();
        let response = upstream.plain(request).await?;
        let status = response.status();
        let body = upstream::collect(response.into_body(), ERROR_BYTES).await?;
        let granted: Granted = match serde_json::from_slice(&body) {
            Ok(granted) if status.is_success() => granted,
            _ => {
                let told: Value = serde_json::from_slice(&body).unwrap_or_default();
                tracing::warn!(%status, error = ?told["error"], "Google gives no access token");
                let failure = refused("Google gives this gateway no access token");
                let is_theirs = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
                return Err(if is_theirs {
                    Failure::new(Class::ServerFault, 502, failure.message)
                } else {
                    failure
                });
            }
        };
        let mut header = HeaderValue::try_from(format!("Bearer {}", granted.access_token))
            .map_err(|_| refused("Google's access token cannot be sent"))?;
        header.set_sensitive(true);
        let holds = Duration::from_secs(granted.expires_in.unwrap_or(STATEMENT_S)).min(MOST);
        Ok(Kept {
            header,
            renew: asked + holds - AHEAD.min(holds / 2),
            until: asked + holds,
        })
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(message: &str) -> Failure {
    Failure::new(Class::BadKey, 401, message)
}

/// Puts a token into a request.
pub(crate) fn insert(request: &mut Request<Bytes>, header: HeaderValue) {
    request.headers_mut().insert(AUTHORIZATION, header);
}

/// A signed JWT: who asks for what until when.
fn statement(email: &str, key_id: &str, key: &RsaKeyPair, audience: String, now_s: u64) -> Option<String> {
    let mut head = json!({"alg": "RS256", "typ": "JWT"});
    if !key_id.is_empty() {
        head["kid"] = json!(key_id);
    }
    let claims =
        json!({"iss": email, "scope": SCOPE, "aud": audience, "iat": now_s, "exp": now_s + STATEMENT_S});
    let text = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(head.to_string()),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    let signature = signature(&text, key)?;
    Some(format!("{text}.{signature}"))
}

fn signature(text: &str, key: &RsaKeyPair) -> Option<String> {
    let mut signature = vec![0; key.public().modulus_len()];
    let random = SystemRandom::new();
    key.sign(&RSA_PKCS1_SHA256, &random, text.as_bytes(), &mut signature)
        .ok()?;
    Some(URL_SAFE_NO_PAD.encode(&signature))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use ring::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn key_file() -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/gateway");
        std::fs::read_to_string(format!("{folder}/service-account.json")).unwrap()
    }

    #[test]
    fn a_statement_is_signed_and_says_what_google_wants() {
        let google = Google::read(&key_file()).unwrap();
        assert_eq!(google.project.as_deref(), Some("test-project"));
        let Proof::Statement { email, key_id, key } = &google.proof else {
            panic!()
        };
        let made = statement(email, key_id, key, TOKEN_URI.into(), 1_700_000_000).unwrap();
        let (text, signature) = made.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public_key().as_ref())
            .verify(text.as_bytes(), &signature)
            .unwrap();
        let (head, claims) = text.split_once('.').unwrap();
        let read =
            |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
        assert_eq!(
            (&read(head)["alg"], &read(head)["kid"]),
            (&json!("RS256"), &json!("test-key"))
        );
        assert_eq!(read(claims)["exp"], 1_700_003_600);
        assert_eq!(read(claims)["iss"], "carat@test-project.iam.gserviceaccount.com");
    }

    /// `signatures.json` has what Google's own library states with the same key at the same moment.
    #[test]
    fn a_statement_is_that_of_googles_own_library() {
        let golden = include_str!("../../../../tests/fixtures/gateway/signatures.json");
        let golden = &serde_json::from_str::<Value>(golden).unwrap()["google"];
        let google = Google::read(&key_file()).unwrap();
        let Proof::Statement { email, key_id, key } = &google.proof else {
            panic!()
        };
        let now = golden["at"].as_u64().unwrap();
        let made = statement(email, key_id, key, google.token_uri.to_string(), now).unwrap();
        let read = |part: &str| {
            let bytes = URL_SAFE_NO_PAD.decode(part).unwrap();
            serde_json::from_slice::<Value>(&bytes).unwrap()
        };
        let parts: Vec<&str> = made.split('.').collect();
        assert_eq!(
            (&read(parts[0]), &read(parts[1])),
            (&golden["head"], &golden["claims"])
        );
        let (text, signed) = golden["statement"].as_str().unwrap().rsplit_once('.').unwrap();
        assert_eq!(
            signature(text, key).as_deref(),
            Some(signed.trim_end_matches('='))
        );
        let nameless = statement(email, "", key, String::new(), now).unwrap();
        assert_eq!(read(nameless.split('.').next().unwrap()).get("kid"), None);
    }

    /// Exchanges tokens: `answers` gives the status and the token for each, or nothing for one that is never answered.
    async fn exchange(
        answers: impl Fn(usize) -> Option<(u16, String)> + Send + 'static,
    ) -> (Google, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/token", listener.local_addr().unwrap());
        let n_asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&n_asked);
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !String::from_utf8_lossy(&request).contains("assertion=") {
                    assert!(stream.read_buf(&mut request).await.unwrap() > 0);
                }
                let Some((status, token)) = answers(counted.fetch_add(1, Ordering::SeqCst)) else {
                    held.push(stream);
                    continue;
                };
                let body = json!({"access_token": token, "expires_in": 3600}).to_string();
                let head = format!(
                    "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all((head + &body).as_bytes()).await.unwrap();
            }
        });
        let file = key_file().replace("https://oauth2.googleapis.com/token", &uri);
        (Google::read(&file).unwrap(), n_asked)
    }

    fn upstream() -> Upstream {
        Upstream::new(Duration::from_secs(5), None).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_token_holds_an_exchange_that_hangs_holds_up_nobody_for_long() {
        let (google, n_asked) = exchange(|i| (i != 1).then(|| (200, format!("t{i}")))).await;
        let upstream = upstream();
        let header = async || {
            let began = tokio::time::Instant::now();
            let header = google.header(&upstream).await.unwrap();
            let asked = n_asked.load(Ordering::SeqCst);
            (
                header.to_str().unwrap().to_string(),
                asked,
                began.elapsed() >= BRIEFLY,
            )
        };
        assert_eq!(header().await, ("Bearer t0".into(), 1, false));
        tokio::time::advance(Duration::from_secs(3200)).await;
        assert_eq!(header().await, ("Bearer t0".into(), 1, false), "it holds");
        tokio::time::advance(Duration::from_secs(200)).await;
        assert_eq!(
            header().await,
            ("Bearer t0".into(), 2, true),
            "tried, and given up"
        );
        assert_eq!(
            header().await,
            ("Bearer t0".into(), 2, false),
            "not tried again at once"
        );
        tokio::time::advance(AGAIN).await;
        assert_eq!(header().await, ("Bearer t2".into(), 3, false));
    }

    #[tokio::test]
    async fn who_waits_for_an_exchange_shares_its_failure() {
        let (google, n_asked) = exchange(|_| Some((500, String::new()))).await;
        let (google, upstream) = (Arc::new(google), upstream());
        let ask = || {
            let (google, upstream) = (Arc::clone(&google), upstream.clone());
            async move { google.header(&upstream).await }
        };
        let waiting: Vec<_> = (0..20).map(|_| tokio::spawn(ask())).collect();
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap().unwrap_err().class, Class::ServerFault);
        }
        assert_eq!(n_asked.load(Ordering::SeqCst), 1);
        assert!(ask().await.is_err());
        assert_eq!(n_asked.load(Ordering::SeqCst), 2, "who comes later asks anew");
    }

    #[test]
    fn files_that_make_no_sense_are_refused_with_the_reason() {
        let error = |text: &str| Google::read(text).unwrap_err();
        assert!(error("{}").contains("no file"));
        assert!(error("{\"type\":\"external_account\"}").contains("external_account"));
        assert!(error("{\"type\":\"service_account\",\"private_key\":\"x\"}").contains("client_email"));
        let keyless = "{\"type\":\"service_account\",\"client_email\":\"a@b\",\"private_key\":\"x\"}";
        assert!(error(keyless).contains("private_key"));
        let far = key_file().replace("https://oauth2.googleapis.com/token", "http://tokens.example/");
        assert!(error(&far).contains("https"));
        let refresh = "{\"type\":\"authorized_user\",\"client_id\":\"a b\",\"client_secret\":\"s\",\"refresh_token\":\"r\"}";
        let Proof::Refresh(form) = Google::read(refresh).unwrap().proof else {
            panic!()
        };
        assert!(form.contains("client_id=a%20b&"), "{form}");
    }
}
