//! Certificates and their keys, which may be replaced while they serve.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::Hangups;
use crate::limits::{LOOK, PEM_BYTES};

/// Why a certificate or its key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// It cannot be read.
    #[error("cannot read `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is larger than any certificate.
    #[error("`{path}` has more than {limit} bytes, which no certificate or key needs", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most it may have.
        limit: u64,
    },
    /// It holds no certificate.
    #[error("the certificate file holds no PEM certificate; give the chain, the server's own first")]
    Certificate(#[source] Option<rustls::pki_types::pem::Error>),
    /// It holds no key.
    #[error("the key file holds no PEM private key that is not encrypted")]
    Key(#[source] rustls::pki_types::pem::Error),
    /// They do not belong together, or are of a kind that is not known.
    #[error("the certificate and the key cannot be used together")]
    Pair(#[source] rustls::Error),
}

/// The certificate of the moment.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// A certificate with its key, shared by all clones.
#[derive(Clone)]
pub struct Tls {
    pub(crate) config: Arc<ServerConfig>,
    current: Arc<Current>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads a chain of certificates and its key, both as PEM.
    ///
    /// # Errors
    /// When one of them cannot be read, or they do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let current = certified(chain, key, &provider)?;
        let current = Arc::new(Current(RwLock::new(Arc::new(current))));
        let resolver: Arc<Current> = Arc::clone(&current);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Pair)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            current,
        })
    }

    /// Shows another certificate to those who connect from now on.
    ///
    /// # Errors
    /// As [`Tls::from_pem`]; the one before then stays.
    pub fn replace(&self, chain: &[u8], key: &[u8]) -> Result<(), TlsError> {
        let certified = certified(chain, key, self.config.crypto_provider())?;
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
        Ok(())
    }
}

fn certified(chain: &[u8], key: &[u8], provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Certificate(Some(error)))?;
    if chain.is_empty() {
        return Err(TlsError::Certificate(None));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(TlsError::Key)?;
    CertifiedKey::from_der(chain, key, provider).map_err(TlsError::Pair)
}

/// Where a certificate and its key are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, the server's own first (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
}

impl CertificateFiles {
    /// Reads both.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn open(&self) -> Result<Tls, TlsError> {
        Tls::from_pem(&read(&self.cert)?, &read(&self.key)?)
    }

    /// Reads both anew.
    ///
    /// # Errors
    /// [`TlsError`]; what was there before then stays.
    pub fn reload(&self, tls: &Tls) -> Result<(), TlsError> {
        tls.replace(&read(&self.cert)?, &read(&self.key)?)
    }

    fn stamp(&self) -> [Option<(SystemTime, u64)>; 2] {
        [&self.cert, &self.key].map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(PEM_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > PEM_BYTES {
        return Err(TlsError::TooLarge {
            path: path.to_path_buf(),
            limit: PEM_BYTES,
        });
    }
    Ok(bytes)
}

/// Reads certificate and key anew whenever they change, and on SIGHUP, until dropped. Files that do not belong together, as in the
/// moment between the two being written, are refused, and looked at again when they change.
pub async fn follow(tls: Tls, files: CertificateFiles) {
    let mut seen = files.stamp();
    let mut ticks = tokio::time::interval(LOOK);
    let mut hangups = Hangups::listen();
    loop {
        let is_ordered = tokio::select! {
            _ = ticks.tick() => false,
            () = hangups.next() => true,
        };
        let now = files.stamp();
        if !is_ordered && (now == seen || now.contains(&None)) {
            continue;
        }
        seen = now;
        match files.reload(&tls) {
            Ok(()) => tracing::info!(cert = %files.cert.display(), "serving with the changed certificate"),
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, source, "the changed certificate is refused; the one before stays in use");
            }
        }
    }
}
