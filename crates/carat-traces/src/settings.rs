//! Where spans go: the standard's variables, and what a program's own settings say.
//!
//! | variable | means |
//! |---|---|
//! | `OTEL_EXPORTER_OTLP_ENDPOINT` | the collector; `/v1/traces` is appended |
//! | `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` | the address for traces itself |
//! | `OTEL_EXPORTER_OTLP_HEADERS`, `…_TRACES_HEADERS` | `name=value,name=value`, percent-encoded |
//! | `OTEL_EXPORTER_OTLP_PROTOCOL`, `…_TRACES_PROTOCOL` | refused where it says `grpc` |
//! | `OTEL_SERVICE_NAME` | the program's name in traces |
//! | `OTEL_SDK_DISABLED`, `OTEL_TRACES_EXPORTER` | `true` and `none`: the other variables do not count |

use http::{HeaderName, HeaderValue, Uri};

use crate::Error;

/// A look-up of variables; the crate itself reads no environment.
type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Longest list of headers, in bytes.
const HEADERS_BYTES: usize = 16 << 10;

/// Where spans go and under what name.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(crate) endpoint: Uri,
    /// Marked as sensitive, so that nobody prints them.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) service: String,
}

impl Settings {
    /// What a flag says, else the standard's variables, else a settings file; `None` where nobody says anything.
    /// `service` is the program's name where no variable says another.
    ///
    /// # Errors
    /// [`Error`] says which of them cannot be used.
    pub fn resolve(
        flag: Option<&str>,
        variables: Variables<'_>,
        file: Option<&str>,
        service: &str,
    ) -> Result<Option<Self>, Error> {
        let set = |name: &str| variables(name).filter(|value| !value.trim().is_empty());
        let is_disabled = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || set("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
        let own = set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").filter(|_| !is_disabled);
        let base = set("OTEL_EXPORTER_OTLP_ENDPOINT").filter(|_| !is_disabled);
        let endpoint = match (flag, own, base, file) {
            (Some(base), ..) | (None, None, None, Some(base)) => traces_of(base)?,
            (None, Some(own), ..) => {
                refuse_grpc(&set)?;
                checked(&own)?
            }
            (None, None, Some(base), _) => {
                refuse_grpc(&set)?;
                traces_of(&base)?
            }
            (None, None, None, None) => return Ok(None),
        };
        let names = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
        let listed = names.into_iter().find_map(|name| Some((name, set(name)?)));
        let headers = listed.map_or(Ok(Vec::new()), |(variable, text)| {
            headers(&text).ok_or(Error::Headers { variable })
        })?;
        Ok(Some(Self {
            endpoint,
            headers,
            service: set("OTEL_SERVICE_NAME").unwrap_or_else(|| service.to_string()),
        }))
    }

    /// The address that spans are sent to.
    pub fn endpoint(&self) -> String {
        self.endpoint.to_string()
    }
}

fn refuse_grpc(set: &dyn Fn(&str) -> Option<String>) -> Result<(), Error> {
    for variable in [
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
    ] {
        match set(variable) {
            Some(protocol) if protocol == "grpc" => return Err(Error::Protocol { variable, protocol }),
            Some(_) => return Ok(()),
            None => {}
        }
    }
    Ok(())
}

/// The address for traces at a collector.
fn traces_of(base: &str) -> Result<Uri, Error> {
    let base = base.trim().trim_end_matches('/');
    if base.ends_with("/v1/traces") {
        return checked(base);
    }
    checked(&format!("{base}/v1/traces"))
}

fn checked(address: &str) -> Result<Uri, Error> {
    let wrong = |reason| Error::Endpoint {
        // What stands before an @ may be a password.
        address: address
            .rsplit_once('@')
            .map_or(address, |(_, host)| host)
            .to_string(),
        reason,
    };
    let uri: Uri = address
        .trim()
        .parse()
        .map_err(|_| wrong("write it out, with its scheme"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(wrong("write it with its scheme, http or https"));
    }
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => Err(wrong(
            "leave name and password out, and use OTEL_EXPORTER_OTLP_HEADERS",
        )),
        Some(authority) if !authority.host().is_empty() => Ok(uri),
        _ => Err(wrong("name a host")),
    }
}

/// Pairs as in W3C's baggage.
fn headers(text: &str) -> Option<Vec<(HeaderName, HeaderValue)>> {
    if text.len() > HEADERS_BYTES {
        return None;
    }
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let name: HeaderName = name.trim().parse().ok()?;
            let mut value = HeaderValue::from_bytes(&decoded(value.trim())?).ok()?;
            value.set_sensitive(true);
            Some((name, value))
        })
        .collect()
}

/// Without its percent signs.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            out.push(u8::try_from(high << 4 | low).ok()?);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(
        flag: Option<&str>,
        variables: &[(&str, &str)],
        file: Option<&str>,
    ) -> Result<Option<Settings>, Error> {
        let look = |name: &str| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_string())
        };
        Settings::resolve(flag, &look, file, "carat")
    }

    fn endpoint(flag: Option<&str>, variables: &[(&str, &str)], file: Option<&str>) -> String {
        resolved(flag, variables, file).unwrap().unwrap().endpoint()
    }

    #[test]
    fn flags_win_over_variables_and_these_over_files() {
        let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://env:4318/");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://own/x");
        assert!(resolved(None, &[], None).unwrap().is_none());
        assert_eq!(
            endpoint(Some("http://a"), &[base, own], None),
            "http://a/v1/traces"
        );
        assert_eq!(endpoint(None, &[base, own], Some("http://f")), "https://own/x");
        assert_eq!(
            endpoint(None, &[base], Some("http://f")),
            "http://env:4318/v1/traces"
        );
        assert_eq!(
            endpoint(None, &[], Some("http://f/v1/traces")),
            "http://f/v1/traces"
        );
        assert!(
            resolved(None, &[base, ("OTEL_SDK_DISABLED", "TRUE")], None)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn names_and_headers_come_from_variables() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b%3D, other = c"),
            ("OTEL_SERVICE_NAME", "mine"),
        ];
        let settings = resolved(Some("http://a"), &variables, None).unwrap().unwrap();
        assert_eq!(settings.service, "mine");
        assert_eq!(settings.headers[0].1, "a b=");
        assert_eq!(settings.headers[1].0, "other");
        assert!(!format!("{settings:?}").contains("a b"), "headers are secrets");
    }

    #[test]
    fn what_cannot_be_used_is_refused_without_secrets() {
        let refused = |address: &str| resolved(Some(address), &[], None).unwrap_err().to_string();
        assert!(refused("collector:4318").contains("scheme"));
        assert!(refused("ftp://collector").contains("scheme"));
        let message = refused("http://me:secret@collector");
        assert!(
            message.contains("OTEL_EXPORTER_OTLP_HEADERS") && !message.contains("secret"),
            "{message}"
        );
        let headers = [("OTEL_EXPORTER_OTLP_HEADERS", "secret")];
        let message = resolved(Some("http://a"), &headers, None)
            .unwrap_err()
            .to_string();
        assert!(message.contains("OTEL_EXPORTER_OTLP_HEADERS") && !message.contains("secret"));
        let grpc = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ];
        assert!(matches!(resolved(None, &grpc, None), Err(Error::Protocol { .. })));
        let grpc = [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://a:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ];
        assert!(matches!(resolved(None, &grpc, None), Err(Error::Protocol { .. })));
    }
}
