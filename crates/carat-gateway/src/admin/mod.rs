//! The admin API: keys, accounts, spending, requests, targets and the configuration, on a listener of its own.
//!
//! It is off unless `[admin]` is configured, listens on this machine unless that is told to be otherwise, and every path
//! needs the admin key, or a key whose user is an admin (or a viewer, who may only read). There are no cookies, so that a
//! page in somebody's browser can do nothing here. Whatever changes something is written to the audit log.

mod acts;
mod desk;
mod view;

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use carat_ledger::Role;
use carat_net::Paced;
use carat_net::{Door, Hands};
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::acts::Acts;
use self::desk::Desk;
use crate::config::{Config, Env};
use crate::server::Source;
use crate::{Error, Gateway};

/// Shortest admin key, in bytes.
const MIN_KEY: usize = 16;
/// Largest body, in bytes.
const BODY_BYTES: usize = 64 << 10;
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Most connections at the same time.
const CONNECTIONS: usize = 64;
/// How long who has no key waits for the answer.
const PENALTY: Duration = Duration::from_millis(300);

/// `[admin]`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct AdminText {
    listen: SocketAddr,
    key_env: Option<String>,
    key_file: Option<PathBuf>,
    allow_remote: bool,
}

impl Default for AdminText {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8091),
            key_env: None,
            key_file: None,
            allow_remote: false,
        }
    }
}

/// Where the admin API listens, and who may use it.
#[derive(Debug)]
pub(crate) struct AdminSettings {
    pub(crate) listen: SocketAddr,
    key: [u8; 32],
}

impl AdminText {
    /// # Errors
    /// Without a key or a ledger, or beyond this machine without being told so.
    pub(crate) fn checked(self, has_ledger: bool, env: &Env) -> Result<AdminSettings, Error> {
        if !has_ledger {
            return Err(Error::config(
                "admin",
                "the admin API needs keys; add [ledger] with a path",
            ));
        }
        if !self.listen.ip().is_loopback() && !self.allow_remote {
            let message = "beyond this machine it needs `allow-remote = true`, and `tls` or something that encrypts in front of it";
            return Err(Error::config("admin.listen", message));
        }
        let key = match &self.key_file {
            Some(path) => crate::config::read(path)?,
            None => {
                let name = self.key_env.as_deref().unwrap_or("CARAT_ADMIN_KEY");
                env(name).ok_or_else(|| {
                    Error::config("admin.key-env", format!("the variable {name} is not set"))
                })?
            }
        };
        let key = key.trim();
        if key.len() < MIN_KEY {
            let message = format!("the admin key needs at least {MIN_KEY} characters");
            return Err(Error::config("admin", message));
        }
        Ok(AdminSettings {
            listen: self.listen,
            key: digest(key),
        })
    }
}

fn digest(key: &str) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// Compares to the end, whatever is found on the way.
fn is_same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

/// What is said instead of an answer.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    message: String,
}

impl Refused {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }
}

/// The admin API of a gateway.
struct Api {
    gateway: Arc<Gateway>,
    acts: Acts,
}

/// Serves the admin API until dropped. `source` is where the configuration is read anew from.
///
/// # Errors
/// [`Error::Ledger`] when the ledger cannot be opened a second time.
pub async fn administer(gateway: Arc<Gateway>, listener: TcpListener, source: Source) -> Result<(), Error> {
    let Some(place) = gateway.config().ledger.clone() else {
        return Err(Error::config(
            "admin",
            "the admin API needs keys; add [ledger] with a path",
        ));
    };
    let api = Arc::new(Api {
        gateway: Arc::clone(&gateway),
        acts: Acts {
            desk: Desk::open(place)?,
            gateway,
            source,
        },
    });
    let is_here = listener
        .local_addr()
        .is_ok_and(|address| address.ip().is_loopback());
    let door = Door {
        // Within this machine a certificate's name would fit nobody's address.
        tls: api.gateway.tls.clone().filter(|_| !is_here),
        connections: CONNECTIONS,
        hands: Hands::default(),
    };
    let make = |_peer| {
        let api = Arc::clone(&api);
        service_fn(move |request| Arc::clone(&api).handle(request))
    };
    let open = carat_net::open(listener, door, make, std::future::pending()).await;
    open.drain(Duration::ZERO).await;
    Ok(())
}

impl Api {
    async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        Ok(match self.answer(request).await {
            Ok(response) => response,
            Err(refused) => {
                let value = json!({"error": {"message": refused.message}});
                let mut response = whole(refused.status, "application/json", value.to_string());
                if refused.status == StatusCode::UNAUTHORIZED {
                    let headers = response.headers_mut();
                    headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                }
                response
            }
        })
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Refused> {
        let (head, body) = request.into_parts();
        let is_read = head.method == Method::GET || head.method == Method::HEAD;
        // The place of the dashboard: it will ask for the key itself.
        if is_read && head.uri.path() == "/" {
            let text = "carat's admin API; docs/gateway.md says what it can do\n";
            return Ok(whole(StatusCode::OK, "text/plain; charset=utf-8", text.into()));
        }
        let Some((actor, role)) = self.actor(&head.headers) else {
            // Whoever tries many keys should need long.
            tokio::time::sleep(PENALTY).await;
            let message = "send the admin key, or the key of an admin, as `Authorization: Bearer KEY`";
            return Err(Refused::new(StatusCode::UNAUTHORIZED, message));
        };
        if role == Role::Member || (role == Role::Viewer && !is_read) {
            return Err(Refused::new(
                StatusCode::FORBIDDEN,
                "the user of this key may not do that",
            ));
        }
        if is_read && head.uri.path() == "/metrics" {
            let text = crate::metrics::text(&self.gateway);
            return Ok(whole(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                text,
            ));
        }
        let collected =
            tokio::time::timeout(BODY_TIME, Limited::new(Paced::new(body), BODY_BYTES).collect()).await;
        let body = collected.map_err(|_| {
            let message = format!("the body must come within {} s", BODY_TIME.as_secs());
            Refused::new(StatusCode::REQUEST_TIMEOUT, message)
        })?;
        let body = body.map_err(|error| {
            if error.is::<LengthLimitError>() {
                let message = format!("a body may have at most {BODY_BYTES} bytes");
                Refused::new(StatusCode::PAYLOAD_TOO_LARGE, message)
            } else {
                Refused::new(
                    StatusCode::BAD_REQUEST,
                    "the body did not come whole; send it again",
                )
            }
        })?;
        let query = head.uri.query().unwrap_or_default();
        let call = acts::Call::new(&head.method, head.uri.path(), query, &body.to_bytes(), actor)?;
        let value: Value = self.acts.answer(call).await?;
        Ok(whole(StatusCode::OK, "application/json", value.to_string()))
    }

    /// Who asks, and what that may do.
    fn actor(&self, headers: &HeaderMap) -> Option<(String, Role)> {
        let (scheme, key) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let key = key.trim();
        let config = self.gateway.config();
        if config
            .admin
            .as_ref()
            .is_some_and(|admin| is_same(&admin.key, &digest(key)))
        {
            return Some(("admin key".into(), Role::Admin));
        }
        let bearer = self.gateway.ledger()?.bearer(key)?;
        let user = bearer.user?;
        Some((format!("user {user}"), bearer.role))
    }
}

fn whole(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

impl Config {
    /// Where the admin API listens, if it does.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|admin| admin.listen)
    }
}
