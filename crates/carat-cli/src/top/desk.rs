//! Asking the admin API: a connection for each question, over plain HTTP, as it is spoken on one machine.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use super::board::{Sample, SpendList, Status, TargetList};
use crate::failure::Hinted;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Largest answer, in bytes.
const MAX_ANSWER: u64 = 8 << 20;

/// The way to a gateway's admin API.
pub(crate) struct Desk {
    host: String,
    key: String,
}

impl Desk {
    /// # Errors
    /// When the address is none of plain HTTP.
    pub(crate) fn new(url: &str, key: String) -> Result<Self> {
        let Some(host) = url.strip_prefix("http://") else {
            return Err(Hinted::new(
                format!("`{url}` is no address that begins with http://"),
                "run `carat top` on the gateway's machine, or through a tunnel to it",
            )
            .into());
        };
        let host = host.trim_end_matches('/').to_string();
        if key.chars().any(char::is_control) {
            bail!("the key holds a control character");
        }
        Ok(Self { host, key })
    }

    /// All that is shown.
    pub(crate) fn look(&self) -> Result<Sample> {
        let status: Status = self.get("status")?;
        let targets: TargetList = self.get("targets")?;
        let today = status.day();
        let spend: SpendList = self.get(&format!("spend?by=model&from={today}&to={today}"))?;
        Ok(Sample {
            at: Instant::now(),
            status,
            targets: targets.targets,
            spend: spend.spend,
        })
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let away = || format!("no gateway answers at http://{}", self.host);
        let addresses = self.host.to_socket_addrs().with_context(away)?;
        let mut stream = connect(addresses).with_context(away)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let Self { host, key } = self;
        let head = format!(
            "GET /admin/v1/{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
        read(&answer)
    }
}

/// A connection to the first address that takes one: `localhost` is often ::1 too, where a gateway need not listen.
fn connect(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// An answer of a known length, which the admin API always gives.
fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T> {
    let text = std::str::from_utf8(answer).context("the answer is no text")?;
    let (head, body) = text.split_once("\r\n\r\n").context("the answer was cut off")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        let said: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        let message = said["error"]["message"].as_str().unwrap_or("no reason is given");
        bail!("the admin API answers {status}: {message}");
    }
    serde_json::from_str(body).context("the answer is not what this carat understands")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_refusals_told() {
        let good: Status = read(
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{\"version\":\"1\",\"uptime_s\":5,\"now_ms\":0,\"answers_under_way\":2,\"responses\":{\"2xx\":7}}",
        )
        .unwrap();
        assert_eq!((good.uptime_s, good.responses["2xx"]), (5, 7));
        let wrong = read::<Status>(b"HTTP/1.1 401 X\r\n\r\n{\"error\":{\"message\":\"no\"}}").unwrap_err();
        assert_eq!(wrong.to_string(), "the admin API answers 401: no");
        assert!(read::<Status>(b"HTTP/1.1 200 OK\r\n").is_err());
        assert!(Desk::new("https://x", "k".into()).is_err());
    }

    #[test]
    fn every_address_of_a_name_is_tried() {
        let bound = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (closed, open) = (bound(), bound());
        let addresses = [closed.local_addr().unwrap(), open.local_addr().unwrap()];
        drop(closed);
        let stream = connect(addresses.into_iter()).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addresses[1]);
        let refused = connect(addresses[..1].iter().copied()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(connect(std::iter::empty()).is_err());
    }
}
