#![forbid(unsafe_code)]
//! Images, sounds and documents that requests name by address.
//!
//! Whoever may ask a server may else make it ask others in its place, so only public addresses are asked unless the
//! settings allow all: literal addresses are checked, names are checked after they were resolved, and the connection
//! goes to the very addresses that were checked, so that a name cannot mean something else a moment later. Redirects
//! pass the same checks. Size and time are limited; no proxy and no cookie plays a part.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, Url};
use serde::Deserialize;

/// Most files that one request should be allowed to name.
pub const FETCHES: usize = 16;
/// Largest file, in bytes.
const FETCHED_BYTES: usize = 20 << 20;
/// Time for all of a file.
const FETCH_TIME: Duration = Duration::from_secs(20);
/// Time to connect.
const FETCH_CONNECT: Duration = Duration::from_secs(5);
/// Most redirects.
const FETCH_REDIRECTS: usize = 3;

/// Which addresses are asked for files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MediaUrls {
    /// None: files come as data.
    #[serde(alias = "none")]
    Refused,
    /// Those that everybody can reach.
    #[default]
    Public,
    /// All, also of this machine and of its network.
    Any,
}

/// Why something is not fetched. What lies behind a name in somebody's network is not told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The settings allow none.
    #[error("this server fetches none; send it as a data URL")]
    Off,
    /// It is no URL.
    #[error("the address is malformed")]
    Malformed,
    /// The address, or one that it leads to, belongs to a network of somebody's own.
    #[error("the address is not a public one")]
    NotPublic,
    /// The other side has none.
    #[error("the answer is {0}")]
    Status(u16),
    /// It is too large.
    #[error("it has more than {limit} MB", limit = FETCHED_BYTES >> 20)]
    TooLarge,
    /// It takes too long.
    #[error("it took too long")]
    Slow,
    /// Too many redirects, or one away from http.
    #[error("it is redirected too often, or away from http")]
    Redirect,
    /// Nobody answers.
    #[error("no connection")]
    Connection,
    /// The transfer was cut.
    #[error("the transfer failed")]
    Transfer,
}

/// A file.
#[derive(Debug)]
pub struct Fetched {
    /// All of it.
    pub bytes: Vec<u8>,
    /// What the other side says that it is, without parameters.
    pub kind: Option<String>,
}

/// Fetches what requests name.
#[derive(Debug)]
pub struct Fetcher {
    urls: MediaUrls,
    client: Option<Client>,
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a public address")]
struct NotPublic(String);

impl Fetcher {
    /// A fetcher for these addresses. Without a client, as when the system has no certificates, it refuses all.
    pub fn new(urls: MediaUrls) -> Self {
        // An error means that some provider is installed already, which does as well.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let check = move |attempt: Attempt<'_>| {
            if attempt.previous().len() > FETCH_REDIRECTS {
                return attempt.error("too many redirects");
            }
            match literal(attempt.url()) {
                Some(ip) if urls != MediaUrls::Any && !is_public(ip) => {
                    attempt.error(NotPublic(ip.to_string()))
                }
                _ if !matches!(attempt.url().scheme(), "http" | "https") => {
                    attempt.error("a redirect leads away from http")
                }
                _ => attempt.follow(),
            }
        };
        let client = Client::builder()
            .no_proxy()
            .redirect(Policy::custom(check))
            .dns_resolver(Arc::new(Checked(urls)))
            .connect_timeout(FETCH_CONNECT)
            .timeout(FETCH_TIME)
            .user_agent(concat!("carat/", env!("CARGO_PKG_VERSION")))
            .build();
        if let Err(error) = &client {
            tracing::warn!(%error, "images and sounds cannot be fetched by address");
        }
        Self {
            urls,
            client: client.ok(),
        }
    }

    /// The file at an address.
    ///
    /// # Errors
    /// [`Refusal`] says why there is none.
    pub async fn fetch(&self, url: &str) -> Result<Fetched, Refusal> {
        let (MediaUrls::Public | MediaUrls::Any, Some(client)) = (self.urls, &self.client) else {
            return Err(Refusal::Off);
        };
        let url = Url::parse(url).map_err(|_| Refusal::Malformed)?;
        if self.urls != MediaUrls::Any
            && let Some(ip) = literal(&url)
            && !is_public(ip)
        {
            return Err(Refusal::NotPublic);
        }
        let told = |error: reqwest::Error| reason(&error);
        let mut response = client.get(url).send().await.map_err(told)?;
        if !response.status().is_success() {
            return Err(Refusal::Status(response.status().as_u16()));
        }
        if response
            .content_length()
            .is_some_and(|n| n > FETCHED_BYTES as u64)
        {
            return Err(Refusal::TooLarge);
        }
        let kind = response.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()?.split(';').next());
        let kind = kind.map(|kind| kind.trim().to_ascii_lowercase());
        let mut bytes = Vec::new();
        while let Some(more) = response.chunk().await.map_err(told)? {
            if bytes.len() + more.len() > FETCHED_BYTES {
                return Err(Refusal::TooLarge);
            }
            bytes.extend_from_slice(&more);
        }
        Ok(Fetched { bytes, kind })
    }
}

fn reason(error: &reqwest::Error) -> Refusal {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(one) = cause {
        if one.is::<NotPublic>() {
            return Refusal::NotPublic;
        }
        cause = one.source();
    }
    match error {
        error if error.is_timeout() => Refusal::Slow,
        error if error.is_redirect() => Refusal::Redirect,
        error if error.is_connect() => Refusal::Connection,
        _ => Refusal::Transfer,
    }
}

/// The address in a URL whose host is written as one.
fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Resolves names, and keeps the addresses that may be asked.
struct Checked(MediaUrls);

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let urls = self.0;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found
                .filter(|address| urls == MediaUrls::Any || is_public(address.ip()))
                .collect();
            if allowed.is_empty() {
                return Err(NotPublic(name.as_str().to_string()).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Whether an address belongs to the network that everybody shares.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let is_special = ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        // This network, carriers' shared addresses, protocol assignments, 6to4 relays, benchmarks, the future.
        || a == 0
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && b & 0xfe == 18)
        || a >= 240;
    !is_special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    // Addresses that stand for one of version 4 reach it.
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let v4 = |high: u16, low: u16| {
        let ([x, y], [z, w]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(x, y, z, w))
    };
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0 | 0xffff] | [0, 0, 0, 0, 0xffff, 0] | [0x64, 0xff9b, 0, 0, 0, 0] => v4(g, h),
        [0x2002, ..] => v4(b, c),
        // Only 2000::/3 is in public use; of it Teredo and other protocols' addresses and documentation are not.
        _ => a & 0xe000 == 0x2000 && !(a == 0x2001 && (b < 0x200 || b == 0xdb8)) && a != 0x3fff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_everybody_are_public() {
        let public = |text: &str| is_public(text.parse().unwrap());
        for ip in [
            "8.8.8.8",
            "1.1.1.1",
            "172.32.0.1",
            "2606:4700::1111",
            "64:ff9b::8.8.8.8",
            "::ffff:8.8.8.8",
        ] {
            assert!(public(ip), "{ip}");
        }
        for ip in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "198.18.0.1",
            "192.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::1",
            "fec0::1",
            "64:ff9b:1::1",
        ] {
            assert!(!public(ip), "{ip}");
        }
    }

    #[tokio::test]
    async fn addresses_of_this_network_are_refused_however_they_are_written() {
        let fetcher = Fetcher::new(MediaUrls::Public);
        for url in [
            "http://127.0.0.1:1/x",
            "http://localhost:1/x",
            "http://[::1]:1/x",
            "http://2130706433/x",
            "http://0x7f.1/x",
            "http://[::ffff:169.254.169.254]/x",
        ] {
            assert_eq!(fetcher.fetch(url).await.unwrap_err(), Refusal::NotPublic, "{url}");
        }
        let none = Fetcher::new(MediaUrls::Refused);
        assert_eq!(none.fetch("http://8.8.8.8/").await.unwrap_err(), Refusal::Off);
        assert_eq!(fetcher.fetch("nonsense").await.unwrap_err(), Refusal::Malformed);
    }
}
