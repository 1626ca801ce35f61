//! Secrets of providers in a file, encrypted.
//!
//! Each is sealed by itself with ChaCha20-Poly1305, a nonce of its own, and its name as associated data, so that none can
//! be read, changed, or put in another's place without the key. The key is 32 bytes, made from a text of at least 32
//! characters: a variable, or a file that only its owner can read. Whoever has both files has the secrets: keep the key
//! where backups of the other do not go.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Shortest text of a key, in characters.
const MIN_KEY: usize = 32;
/// Largest file, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Longest secret, in bytes.
const MAX_SECRET: usize = 16 << 10;

/// A store of secrets.
pub struct Secrets {
    path: PathBuf,
    key: LessSafeKey,
}

/// As it stands in the file: a nonce and what was sealed, in hexadecimal digits.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    version: u32,
    secrets: BTreeMap<String, String>,
}

impl Secrets {
    /// A store in a file, which need not be there yet.
    ///
    /// # Errors
    /// [`Error::Secrets`] when the key is too short.
    pub fn open(path: &Path, key: &str) -> Result<Self, Error> {
        let wrong = |message: String| Error::Secrets {
            path: path.to_path_buf(),
            message,
        };
        let key = key.trim();
        if key.chars().count() < MIN_KEY {
            return Err(wrong(format!("its key needs at least {MIN_KEY} characters")));
        }
        let mut text = digest::Context::new(&digest::SHA256);
        text.update(b"carat secrets 1\0");
        text.update(key.as_bytes());
        let key = UnboundKey::new(&CHACHA20_POLY1305, text.finish().as_ref())
            .map_err(|_| wrong("its key cannot be used".into()))?;
        Ok(Self {
            path: path.to_path_buf(),
            key: LessSafeKey::new(key),
        })
    }

    /// Reads a key's text from a file, making one there if there is none.
    ///
    /// # Errors
    /// The file's.
    pub fn key_of_file(path: &Path) -> Result<String, Error> {
        match crate::config::read(path) {
            Err(Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Secrets {
            path: path.to_path_buf(),
            message: "the system gives no random numbers".into(),
        })?;
        let text = hex(&bytes);
        write_private(path, format!("{text}\n").as_bytes())?;
        Ok(text)
    }

    fn wrong(&self, message: impl Into<String>) -> Error {
        Error::Secrets {
            path: self.path.clone(),
            message: message.into(),
        }
    }

    fn read(&self) -> Result<Sealed, Error> {
        let failed = |source| Error::Read {
            path: self.path.clone(),
            source,
        };
        let file = match fs::File::open(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Sealed::default()),
            file => file.map_err(failed)?,
        };
        let mut text = String::new();
        file.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
        serde_json::from_str(&text).map_err(|_| self.wrong("it is no store of secrets"))
    }

    /// A secret, if there is one of this name.
    ///
    /// # Errors
    /// [`Error::Secrets`] if it was sealed with another key, or changed.
    pub fn get(&self, name: &str) -> Result<Option<String>, Error> {
        let sealed = self.read()?;
        let Some(text) = sealed.secrets.get(name) else {
            return Ok(None);
        };
        let wrong = || self.wrong(format!("`{name}` was sealed with another key, or changed"));
        let mut bytes = unhex(text)
            .filter(|bytes| bytes.len() > NONCE_LEN)
            .ok_or_else(wrong)?;
        let mut rest = bytes.split_off(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(&bytes).map_err(|_| wrong())?;
        let opened = self
            .key
            .open_in_place(nonce, Aad::from(name.as_bytes()), &mut rest);
        let opened = opened.map_err(|_| wrong())?;
        String::from_utf8(opened.to_vec()).map(Some).map_err(|_| wrong())
    }

    /// Seals a secret, in place of one of the same name.
    ///
    /// # Errors
    /// [`Error::Secrets`] if it makes no sense; the file's.
    pub fn set(&self, name: &str, secret: &str) -> Result<(), Error> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > 200 || !name.bytes().all(is_name) {
            return Err(self.wrong("a name has letters, digits, `-`, `_` and `.`, as a variable's"));
        }
        if secret.is_empty() || secret.len() > MAX_SECRET || secret.chars().any(char::is_control) {
            return Err(self.wrong(format!("a secret is one line of 1 to {MAX_SECRET} bytes")));
        }
        let mut sealed = self.read()?;
        let mut nonce = [0; NONCE_LEN];
        let filled = SystemRandom::new().fill(&mut nonce);
        filled.map_err(|_| self.wrong("the system gives no random numbers"))?;
        let mut bytes = secret.as_bytes().to_vec();
        let aad = Aad::from(name.as_bytes());
        let done = self
            .key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut bytes);
        done.map_err(|_| self.wrong("the secret cannot be sealed"))?;
        sealed.version = 1;
        sealed
            .secrets
            .insert(name.to_string(), format!("{}{}", hex(&nonce), hex(&bytes)));
        self.write(&sealed)
    }

    /// Removes a secret; gives whether it was there.
    ///
    /// # Errors
    /// The file's.
    pub fn remove(&self, name: &str) -> Result<bool, Error> {
        let mut sealed = self.read()?;
        let was_there = sealed.secrets.remove(name).is_some();
        if was_there {
            self.write(&sealed)?;
        }
        Ok(was_there)
    }

    /// The names of all secrets.
    ///
    /// # Errors
    /// The file's.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        Ok(self.read()?.secrets.into_keys().collect())
    }

    fn write(&self, sealed: &Sealed) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(sealed).map_err(|_| self.wrong("it cannot be written"))?;
        write_private(&self.path, text.as_bytes())
    }
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::Write {
        path: path.to_path_buf(),
        source,
    };
    let mut beside = path.as_os_str().to_os_string();
    beside.push(".new");
    // One that was left by somebody who was stopped may have other rights.
    let _not_there = fs::remove_file(&beside);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&beside).map_err(failed)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    let digits = digits?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty()
        .then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn what_is_sealed_comes_back_with_the_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets.json");
        let secrets = Secrets::open(&path, KEY).unwrap();
        assert_eq!(secrets.get("A").unwrap(), None);
        secrets.set("A", "sk-very-secret").unwrap();
        secrets.set("B", "other").unwrap();
        assert_eq!(secrets.get("A").unwrap().as_deref(), Some("sk-very-secret"));
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("very-secret") && !text.contains(&hex(b"very-secret")));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let other = Secrets::open(&path, &KEY.replace('0', "f")).unwrap();
        let error = other.get("A").unwrap_err().to_string();
        assert!(
            error.contains("another key") && !error.contains("very-secret"),
            "{error}"
        );
        // Each is bound to its name, and none can be changed.
        let mut sealed = secrets.read().unwrap();
        let b = sealed.secrets["B"].clone();
        sealed.secrets.insert("A".into(), b.clone());
        let last = if b.ends_with('0') { "1" } else { "0" };
        sealed
            .secrets
            .insert("B".into(), format!("{}{last}", &b[..b.len() - 1]));
        secrets.write(&sealed).unwrap();
        assert!(secrets.get("A").is_err() && secrets.get("B").is_err());
        assert!(secrets.remove("A").unwrap() && !secrets.remove("A").unwrap());
        assert_eq!(secrets.names().unwrap(), ["B"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets.json");
        assert!(Secrets::open(&path, "short").is_err());
        let secrets = Secrets::open(&path, KEY).unwrap();
        for (name, secret) in [("", "x"), ("a b", "x"), ("A", ""), ("A", "two\nlines")] {
            assert!(secrets.set(name, secret).is_err(), "{name:?} {secret:?}");
        }
        fs::write(
            &path,
            "{\"version\":1,\"secrets\":{\"A\":\"zz\",\"B\":\"00\",\"C\":\"\u{fc}\"}}",
        )
        .unwrap();
        assert!(["A", "B", "C"].iter().all(|name| secrets.get(name).is_err()));
        fs::write(&path, "nonsense").unwrap();
        assert!(secrets.get("A").is_err());
        let key = folder.path().join("key");
        let made = Secrets::key_of_file(&key).unwrap();
        assert_eq!(
            (made.len(), Secrets::key_of_file(&key).unwrap().trim()),
            (64, made.as_str())
        );
    }
}
