//! TLS towards a PostgreSQL server, as the address's `sslmode` and `sslrootcert` ask for it.
//!
//! | `sslmode` | encrypted | the server's certificate |
//! |---|---|---|
//! | `disable` | no | |
//! | none, `allow`, `prefer` | if the server can | not checked |
//! | `require` | yes | not checked, unless `sslrootcert` is given: then as `verify-ca` |
//! | `verify-ca` | yes | must come from `sslrootcert` |
//! | `verify-full` | yes | must come from `sslrootcert`, else from an authority that this machine trusts, and name the host |
//!
//! That is what libpq's words mean. Only the last keeps out somebody in the middle. Both settings are taken out of the
//! address before the client reads it, which does not know all of them.

use std::convert::Infallible;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_platform_verifier::Verifier;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Socket;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Error;

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Largest file of certificates, in bytes.
const ROOTS_BYTES: u64 = 4 << 20;

/// How to connect, and under which TLS.
pub(crate) fn read(address: &str) -> Result<(tokio_postgres::Config, Connector), Error> {
    let (rest, wishes) = Wishes::of(address)?;
    let mut config: tokio_postgres::Config = rest.parse().map_err(Error::Address)?;
    let (mode, check) = wishes.meaning()?;
    config.ssl_mode(mode);
    Ok((config, Connector::new(check)?))
}

/// What an address says about TLS.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wishes {
    mode: Option<String>,
    roots: Option<PathBuf>,
}

impl Wishes {
    /// Takes them out of an address: either form of it.
    fn of(address: &str) -> Result<(String, Self), Error> {
        let mut wishes = Self::default();
        if !["postgres://", "postgresql://"]
            .iter()
            .any(|scheme| address.starts_with(scheme))
        {
            let mut rest = String::new();
            for pair in pairs(address)? {
                if !wishes.take(pair.name, pair.value) {
                    rest.push_str(pair.text);
                    rest.push(' ');
                }
            }
            return Ok((rest, wishes));
        }
        let Some((base, query)) = address.split_once('?') else {
            return Ok((address.to_string(), wishes));
        };
        let mut kept = Vec::new();
        for parameter in query.split('&') {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if !wishes.take(name, decoded(value)?) {
                kept.push(parameter);
            }
        }
        Ok((format!("{base}?{}", kept.join("&")), wishes))
    }

    /// Whether a setting is about TLS.
    fn take(&mut self, name: &str, value: String) -> bool {
        match name {
            "sslmode" => self.mode = Some(value),
            "sslrootcert" => self.roots = Some(value.into()),
            _ => return false,
        }
        true
    }

    fn meaning(self) -> Result<(SslMode, Check), Error> {
        let roots = self.roots.filter(|roots| roots != Path::new("system"));
        Ok(match (self.mode.as_deref(), roots) {
            (Some("disable"), _) => (SslMode::Disable, Check::Nothing),
            (None | Some("allow" | "prefer"), _) => (SslMode::Prefer, Check::Nothing),
            (Some("require"), None) => (SslMode::Require, Check::Nothing),
            (Some("require" | "verify-ca"), Some(roots)) => (SslMode::Require, Check::Origin(roots)),
            (Some("verify-ca"), None) => {
                let message = "`sslmode=verify-ca` needs `sslrootcert` with the file of the certificates that are trusted";
                return Err(Error::Encryption(message.into()));
            }
            (Some("verify-full"), roots) => (SslMode::Require, Check::Full(roots)),
            (Some(_), _) => {
                let message = "`sslmode` must be disable, prefer, require, verify-ca or verify-full";
                return Err(Error::Encryption(message.into()));
            }
        })
    }
}

/// `name=value` of an address.
struct Pair<'a> {
    name: &'a str,
    /// Without its quotes.
    value: String,
    /// As it stands.
    text: &'a str,
}

/// Cuts an address of the form `host=… user='…'`.
fn pairs(address: &str) -> Result<Vec<Pair<'_>>, Error> {
    let wrong = || Error::Encryption("the address is not of the form name=value name='value'".into());
    let mut pairs = Vec::new();
    let mut rest = address.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or_else(wrong)?;
        let value_text = after.trim_start();
        let (is_quoted, body) = match value_text.strip_prefix('\'') {
            Some(body) => (true, body),
            None => (false, value_text),
        };
        let (mut value, mut end, mut is_escaped) = (String::new(), None, false);
        for (at, letter) in body.char_indices() {
            match letter {
                _ if is_escaped => {
                    value.push(letter);
                    is_escaped = false;
                }
                '\\' => is_escaped = true,
                '\'' if is_quoted => {
                    end = Some(at + 1);
                    break;
                }
                letter if !is_quoted && letter.is_whitespace() => {
                    end = Some(at);
                    break;
                }
                letter => value.push(letter),
            }
        }
        if is_quoted && end.is_none() {
            return Err(wrong());
        }
        let after = &body[end.unwrap_or(body.len())..];
        let text = &rest[..rest.len() - after.len()];
        pairs.push(Pair {
            name: name.trim(),
            value,
            text,
        });
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// A part of a URL without its percent signs.
fn decoded(text: &str) -> Result<String, Error> {
    let wrong =
        || Error::Encryption("a setting of the address is not percent-encoded as it should be".into());
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or_else(wrong)?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

/// What is checked of a server's certificate.
#[derive(Debug, PartialEq, Eq)]
enum Check {
    Nothing,
    /// That it comes from one of these.
    Origin(PathBuf),
    /// And that it is the host's; from authorities of this machine where no file is named.
    Full(Option<PathBuf>),
}

/// Makes connections encrypted.
#[derive(Clone)]
pub(crate) struct Connector(TlsConnector);

impl Connector {
    fn new(check: Check) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let unusable = |error: rustls::Error| Error::Encryption(error.to_string());
        let nameless = |origin| Nameless {
            origin,
            known: provider.signature_verification_algorithms,
        };
        let verifier: Arc<dyn ServerCertVerifier> = match check {
            Check::Nothing => Arc::new(nameless(None)),
            Check::Origin(path) => Arc::new(nameless(Some(webpki(&path, &provider)?))),
            Check::Full(Some(path)) => webpki(&path, &provider)?,
            Check::Full(None) => Arc::new(Verifier::new(Arc::clone(&provider)).map_err(unusable)?),
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }
}

/// Checks against the certificates of a file.
fn webpki(path: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    let failed = |source| Error::File {
        path: path.to_path_buf(),
        source,
    };
    let unusable = |why: String| Error::Encryption(format!("`{}` cannot be used: {why}", path.display()));
    let mut pem = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(ROOTS_BYTES).read_to_end(&mut pem).map_err(failed)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("it holds no PEM certificate".into()));
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| unusable(error.to_string()))
}

/// Takes a certificate of the right origin, or any, whatever name it has; whoever has it must still have its key.
#[derive(Debug)]
struct Nameless {
    origin: Option<Arc<WebPkiServerVerifier>>,
    known: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Nameless {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(origin) = &self.origin else {
            return Ok(ServerCertVerified::assertion());
        };
        match origin.verify_server_cert(certificate, chain, name, ocsp, now) {
            // The name is looked at last, when all else is right.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.known.supported_schemes()
    }
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Encrypted;
    type TlsConnect = Handshake;
    type Error = Infallible;

    fn make_tls_connect(&mut self, host: &str) -> Result<Handshake, Infallible> {
        Ok(Handshake {
            connector: self.0.clone(),
            host: host.to_string(),
        })
    }
}

/// With one host.
pub(crate) struct Handshake {
    connector: TlsConnector,
    /// Empty for a socket, which is never encrypted.
    host: String,
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let name = ServerName::try_from(self.host).map_err(io::Error::other)?;
            let handshake = self.connector.connect(name, socket);
            let stream = tokio::time::timeout(HANDSHAKE, handshake).await;
            Ok(Encrypted(stream.map_err(|_| io::ErrorKind::TimedOut)??))
        })
    }
}

/// A connection under TLS.
pub(crate) struct Encrypted(TlsStream<Socket>);

impl tokio_postgres::tls::TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, out)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(address: &str) -> (String, Wishes) {
        Wishes::of(address).unwrap()
    }

    #[test]
    fn wishes_are_taken_out_of_both_forms() {
        let expected = Wishes {
            mode: Some("verify-full".into()),
            roots: Some("/a b.pem".into()),
        };
        let url = "postgres://u:p%40@h/d?sslmode=verify-full&connect_timeout=3&sslrootcert=/a%20b.pem";
        let (rest, found) = wishes(url);
        assert_eq!(
            (rest.as_str(), &found),
            ("postgres://u:p%40@h/d?connect_timeout=3", &expected)
        );
        let text =
            "host=h password='x sslmode=disable \\' y' sslmode = verify-full user=u sslrootcert='/a b.pem'";
        let (rest, found) = wishes(text);
        assert_eq!(found, expected);
        let config: tokio_postgres::Config = rest.parse().unwrap();
        assert_eq!(config.get_password(), Some(&b"x sslmode=disable ' y"[..]));
        assert_eq!(config.get_user(), Some("u"));
        assert_eq!(wishes("postgres://h").1, Wishes::default());
        assert!(Wishes::of("host='h").is_err() && Wishes::of("postgres://h?sslmode=%z").is_err());
    }

    #[test]
    fn words_mean_what_libpq_means() {
        let meaning = |mode: Option<&str>, roots: Option<&str>| {
            let wishes = Wishes {
                mode: mode.map(Into::into),
                roots: roots.map(Into::into),
            };
            wishes.meaning()
        };
        assert_eq!(meaning(None, None).unwrap(), (SslMode::Prefer, Check::Nothing));
        assert_eq!(meaning(Some("disable"), None).unwrap().0, SslMode::Disable);
        assert_eq!(
            meaning(Some("require"), None).unwrap(),
            (SslMode::Require, Check::Nothing)
        );
        let origin = (SslMode::Require, Check::Origin("r".into()));
        assert_eq!(meaning(Some("require"), Some("r")).unwrap(), origin);
        let full = (SslMode::Require, Check::Full(None));
        assert_eq!(meaning(Some("verify-full"), Some("system")).unwrap(), full);
        assert!(meaning(Some("verify-ca"), None).is_err() && meaning(Some("yes"), None).is_err());
    }

    #[test]
    fn files_without_certificates_are_refused() {
        let refused = |path: &Path| {
            let address = format!("postgres://h?sslmode=verify-full&sslrootcert={}", path.display());
            read(&address).map(|_| ()).unwrap_err().to_string()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roots.pem");
        assert!(refused(&path).contains("roots.pem"));
        std::fs::write(&path, "nothing").unwrap();
        assert!(refused(&path).contains("no PEM certificate"));
    }
}
