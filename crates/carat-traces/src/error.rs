//! What can be wrong with the settings of traces.

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address of the collector is none.
    #[error("the traces' address `{address}` is not of the form http://HOST:4318 or https://HOST; {reason}")]
    Endpoint {
        /// As it was given.
        address: String,
        /// What to do.
        reason: &'static str,
    },
    /// The headers for the collector are not `name=value,name=value`.
    #[error(
        "`{variable}` holds no headers of the form name=value,name=value; write each value percent-encoded"
    )]
    Headers {
        /// Where they stand. What they are is a secret.
        variable: &'static str,
    },
    /// A protocol that is not spoken here.
    #[error(
        "`{variable}` asks for `{protocol}`, but traces are sent over HTTP alone; set it to http/json and give the \
         collector's port for HTTP (4318)"
    )]
    Protocol {
        /// Where it stands.
        variable: &'static str,
        /// What it says.
        protocol: String,
    },
    /// Certificates of this machine cannot be used.
    #[error(
        "cannot set up TLS towards the traces' collector; use an http address, or mend the system's certificates"
    )]
    Tls(#[source] rustls::Error),
}
