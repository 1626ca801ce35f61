//! Keys for AWS: from the configuration, from variables, or from the file that AWS's own tools write.
//!
//! The file is read again once a minute, since keys that hold for a while are replaced there by others.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::Request;
use serde::Deserialize;

use super::sigv4::{self, Credentials};
use crate::failure::{Class, Failure};

/// How long what was read from a file is used.
const READ_EVERY: Duration = Duration::from_secs(60);

/// What the configuration says about keys for AWS.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct AwsText {
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    session_token: Option<String>,
    /// Which part of the file.
    profile: Option<String>,
    credentials_file: Option<PathBuf>,
}

/// Signs requests for a region.
#[derive(Debug)]
pub(crate) struct Aws {
    region: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Fixed(Credentials),
    File {
        path: PathBuf,
        profile: String,
        read: Mutex<Option<(Instant, Credentials)>>,
    },
}

impl Aws {
    /// Keys of the configuration, else of the variables, else of a file.
    pub(crate) fn new(region: String, text: AwsText, env: &dyn Fn(&str) -> Option<String>) -> Self {
        let env = |name: &str| env(name).filter(|value| !value.trim().is_empty());
        let fixed = |id: Option<String>, secret: Option<String>, token: Option<String>| {
            Some(Source::Fixed(Credentials {
                access_key_id: id?.trim().to_string(),
                secret_access_key: secret?.trim().to_string(),
                session_token: token
                    .map(|token| token.trim().to_string())
                    .filter(|token| !token.is_empty()),
            }))
        };
        let is_file_named = text.profile.is_some() || text.credentials_file.is_some();
        let from_env = || {
            fixed(
                env("AWS_ACCESS_KEY_ID"),
                env("AWS_SECRET_ACCESS_KEY"),
                env("AWS_SESSION_TOKEN"),
            )
        };
        let source = fixed(text.access_key_id, text.secret_access_key, text.session_token)
            .or_else(|| from_env().filter(|_| !is_file_named));
        let source = source.unwrap_or_else(|| {
            let named = text
                .credentials_file
                .or_else(|| env("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from));
            let home = || {
                let home = env("HOME").or_else(|| env("USERPROFILE")).unwrap_or_default();
                Path::new(&home).join(".aws").join("credentials")
            };
            let profile = text.profile.or_else(|| env("AWS_PROFILE"));
            Source::File {
                path: named.unwrap_or_else(home),
                profile: profile.unwrap_or_else(|| "default".into()),
                read: Mutex::new(None),
            }
        });
        Self { region, source }
    }

    /// Signs a request for Bedrock.
    ///
    /// # Errors
    /// When there are no keys.
    pub(crate) fn sign(&self, request: &mut Request<Bytes>) -> Result<(), Failure> {
        let missing = || {
            tracing::warn!(
                "no keys for AWS: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or `aws` of the provider"
            );
            Failure::new(Class::BadKey, 401, "the gateway has no key for AWS")
        };
        let credentials = self.source.credentials().ok_or_else(missing)?;
        sigv4::sign(request, &credentials, &self.region, "bedrock", SystemTime::now())
            .map_err(|_| Failure::new(Class::BadKey, 401, "the gateway's key for AWS cannot be sent"))
    }
}

impl Source {
    fn credentials(&self) -> Option<Credentials> {
        let (path, profile, read) = match self {
            Self::Fixed(credentials) => return Some(credentials.clone()),
            Self::File { path, profile, read } => (path, profile, read),
        };
        let mut read = read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, credentials)) = read.as_ref().filter(|(at, _)| at.elapsed() < READ_EVERY) {
            return Some(credentials.clone());
        }
        let found = crate::config::read(path)
            .ok()
            .and_then(|text| of_profile(&text, profile));
        if let Some(credentials) = found {
            *read = Some((Instant::now(), credentials));
        }
        // While the file is being written anew, what was there before still holds; the next request looks again.
        read.as_ref().map(|(_, credentials)| credentials.clone())
    }
}

/// The keys of a profile in a credentials file.
fn of_profile(text: &str, profile: &str) -> Option<Credentials> {
    let mut fields: HashMap<String, &str> = HashMap::new();
    let mut is_wanted = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            is_wanted = name.trim() == profile;
        } else if let Some((name, value)) = line
            .split_once('=')
            .filter(|_| is_wanted && !line.starts_with('#'))
        {
            fields.insert(name.trim().to_ascii_lowercase(), value.trim());
        }
    }
    // Some tools write every name, and nothing behind those that they have no value for.
    let field = |name: &str| fields.get(name).filter(|value| !value.is_empty());
    Some(Credentials {
        access_key_id: field("aws_access_key_id")?.to_string(),
        secret_access_key: field("aws_secret_access_key")?.to_string(),
        session_token: field("aws_session_token").map(ToString::to_string),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "[default]\naws_access_key_id=A\naws_secret_access_key = B\n# aws_session_token = no\n\n\
                        [work]\naws_access_key_id = C\naws_secret_access_key = D==\naws_session_token = T=\n";

    #[test]
    fn keys_come_from_the_configuration_then_variables_then_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        std::fs::write(&path, FILE).unwrap();
        let env = |with_keys: bool| {
            let path = path.to_string_lossy().into_owned();
            move |name: &str| match name {
                "AWS_SHARED_CREDENTIALS_FILE" => Some(path.clone()),
                "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" if with_keys => Some(format!("{name}\n")),
                _ => None,
            }
        };
        let found = |text: &str, with_keys: bool| {
            let aws = Aws::new("r".into(), toml::from_str(text).unwrap(), &env(with_keys));
            aws.source
                .credentials()
                .map(|found| (found.access_key_id, found.session_token))
        };
        let own = "access-key-id = \"X\"\nsecret-access-key = \"Y\"\nsession-token = \"Z\"";
        assert_eq!(found(own, true), Some(("X".into(), Some("Z".into()))));
        assert_eq!(found("", true), Some(("AWS_ACCESS_KEY_ID".into(), None)));
        assert_eq!(found("", false), Some(("A".into(), None)));
        assert_eq!(
            found("profile = \"work\"", true),
            Some(("C".into(), Some("T=".into())))
        );
        assert_eq!(found("profile = \"nobody\"", true), None);
    }

    #[test]
    fn an_empty_token_is_none_and_a_file_half_written_harms_nobody() {
        let text = "[default]\nAWS_ACCESS_KEY_ID = A\naws_secret_access_key = B\naws_session_token =\n";
        let found = of_profile(text, "default").unwrap();
        assert_eq!((found.access_key_id.as_str(), found.session_token), ("A", None));
        let own = "access-key-id = \"X\"\nsecret-access-key = \"Y\"\nsession-token = \" \"";
        let aws = Aws::new("r".into(), toml::from_str(own).unwrap(), &|_| None);
        assert_eq!(aws.source.credentials().unwrap().session_token, None);

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        std::fs::write(&path, FILE).unwrap();
        let source = Source::File {
            path: path.clone(),
            profile: "default".into(),
            read: Mutex::new(None),
        };
        let id = || source.credentials().map(|found| found.access_key_id);
        assert_eq!(id().as_deref(), Some("A"));
        let Source::File { read, .. } = &source else {
            panic!()
        };
        let long_ago = Instant::now().checked_sub(READ_EVERY).unwrap();
        read.lock().unwrap().as_mut().unwrap().0 = long_ago;
        std::fs::write(&path, "[default]\naws_access").unwrap();
        assert_eq!(id().as_deref(), Some("A"), "the keys from before");
        std::fs::write(&path, FILE.replace("=A", "=A2")).unwrap();
        assert_eq!(id().as_deref(), Some("A2"));
    }

    #[test]
    fn without_keys_the_request_is_not_sent() {
        let aws = Aws::new("eu-west-1".into(), AwsText::default(), &|_| None);
        let mut request = Request::post("https://a.example/x").body(Bytes::new()).unwrap();
        let failure = aws.sign(&mut request).unwrap_err();
        assert!(
            failure.class == Class::BadKey && !failure.message.contains('/'),
            "{failure:?}"
        );
    }
}
