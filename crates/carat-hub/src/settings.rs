//! Where models are looked for, and how downloads behave.
//!
//! The caller fills [`HubSettings`], usually by [`HubSettings::from_env`], which maps the variables
//! that Ollama, Hugging Face and llama.cpp document. It takes the environment as a function: this
//! crate reads no variable itself, so that tests and embedding programs decide what is seen.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The address used when no other endpoint is set.
pub(crate) const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A text that never shows itself in logs or debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a token; surrounding white space is not part of it.
    pub fn new(text: &str) -> Self {
        Secret(text.trim().to_owned())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Times and counts that bound a download.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time to open a connection. Default 10 s.
    pub connect_timeout: Duration,
    /// Longest silence of a connection that is open. Default 30 s.
    pub stall_timeout: Duration,
    /// How often a part is asked for without getting any bytes. Default 6.
    pub attempts: u32,
    /// How often the first request to a source is sent. Default 3: a machine without network should
    /// say so within seconds.
    pub first_attempts: u32,
    /// First wait between attempts; doubles each time. Default 0.5 s.
    pub backoff: Duration,
    /// Longest wait, also when the server asks for more. Default 60 s.
    pub backoff_max: Duration,
    /// Connections per file, 1 to 16. Default 4.
    pub connections: usize,
    /// Bytes asked for by one request, at least 64 KiB. Default 64 MiB.
    pub piece_bytes: u64,
    /// How many newly arrived bytes may be lost by a crash. Default 32 MiB.
    pub save_every_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            attempts: 6,
            first_attempts: 3,
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(60),
            connections: 4,
            piece_bytes: 64 << 20,
            save_every_bytes: 32 << 20,
        }
    }
}

/// Everything the hub needs to know about its surroundings.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// carat's own store; made when the first model is pulled.
    pub store_dir: PathBuf,
    /// A TOML file that extends the built-in catalogue; need not exist.
    pub catalogue_file: Option<PathBuf>,
    /// Address of the Hugging Face hub or of a mirror of it.
    pub hf_endpoint: String,
    /// Token for gated repositories; sent to the endpoint's host only.
    pub hf_token: Option<Secret>,
    /// File that holds a token, read at the first download when `hf_token` is not set.
    pub hf_token_file: Option<PathBuf>,
    /// `hub` folders of the Hugging Face cache.
    pub hf_cache_dirs: Vec<PathBuf>,
    /// Folders with Ollama's `manifests` and `blobs`.
    pub ollama_dirs: Vec<PathBuf>,
    /// LM Studio's model folders.
    pub lmstudio_dirs: Vec<PathBuf>,
    /// llama.cpp's download folders.
    pub llamacpp_dirs: Vec<PathBuf>,
    /// Program and first arguments of pip. Default `python3 -m pip`.
    pub pip_command: Vec<String>,
    /// No network at all.
    pub offline: bool,
    /// Times and counts.
    pub limits: Limits,
}

impl HubSettings {
    /// Settings with this store and nothing else: no foreign stores, the public hub, no token.
    pub fn new(store_dir: impl Into<PathBuf>) -> Self {
        HubSettings {
            store_dir: store_dir.into(),
            catalogue_file: None,
            hf_endpoint: DEFAULT_ENDPOINT.to_owned(),
            hf_token: None,
            hf_token_file: None,
            hf_cache_dirs: Vec::new(),
            ollama_dirs: Vec::new(),
            lmstudio_dirs: Vec::new(),
            llamacpp_dirs: Vec::new(),
            pip_command: ["python3", "-m", "pip"].map(str::to_owned).to_vec(),
            offline: false,
            limits: Limits::default(),
        }
    }

    /// The settings a person expects from their environment.
    ///
    /// | variable | gives |
    /// |---|---|
    /// | `CARAT_HOME` | the store, and `catalogue.toml` in it; default `~/.carat` |
    /// | `CARAT_OFFLINE`, `HF_HUB_OFFLINE` | no network |
    /// | `HF_ENDPOINT` | another hub |
    /// | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN` | token; else the file `HF_TOKEN_PATH` or `$HF_HOME/token` |
    /// | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME` | Hugging Face cache |
    /// | `OLLAMA_MODELS` | Ollama's store; the service account's is looked at too |
    /// | `LLAMA_CACHE`, `LOCALAPPDATA` | llama.cpp's folder |
    ///
    /// Empty variables count as unset. `home` is the user's home folder.
    pub fn from_env(env: &dyn Fn(&str) -> Option<String>, home: &Path) -> Self {
        let var = |name: &str| env(name).filter(|value| !value.trim().is_empty());
        let dir = |name: &str| var(name).map(|value| expand(&value, home));
        let flag = |name: &str| {
            var(name).is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
        };

        let carat = dir("CARAT_HOME").unwrap_or_else(|| home.join(".carat"));
        let cache = dir("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hf_home = dir("HF_HOME").unwrap_or_else(|| cache.join("huggingface"));
        let hf_cache = dir("HF_HUB_CACHE")
            .or_else(|| dir("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| hf_home.join("hub"));

        let mut ollama_dirs =
            vec![dir("OLLAMA_MODELS").unwrap_or_else(|| home.join(".ollama").join("models"))];
        if cfg!(target_os = "linux") {
            ollama_dirs.push(PathBuf::from("/usr/share/ollama/.ollama/models"));
        }
        let llamacpp_dirs = match dir("LLAMA_CACHE") {
            Some(set) => vec![set],
            None => {
                let mut dirs = vec![cache.join("llama.cpp")];
                if cfg!(target_os = "macos") {
                    dirs.push(home.join("Library").join("Caches").join("llama.cpp"));
                }
                dirs.extend(dir("LOCALAPPDATA").map(|local| local.join("llama.cpp")));
                dirs
            }
        };
        HubSettings {
            catalogue_file: Some(carat.join("catalogue.toml")),
            hf_endpoint: var("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            hf_token: var("HF_TOKEN")
                .or_else(|| var("HUGGING_FACE_HUB_TOKEN"))
                .map(|t| Secret::new(&t)),
            hf_token_file: Some(dir("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"))),
            hf_cache_dirs: vec![hf_cache],
            ollama_dirs,
            lmstudio_dirs: vec![
                home.join(".lmstudio/models"),
                home.join(".cache/lm-studio/models"),
            ],
            llamacpp_dirs,
            offline: flag("CARAT_OFFLINE") || flag("HF_HUB_OFFLINE"),
            ..HubSettings::new(carat)
        }
    }
}

/// A leading `~/` means home here too: the variables are often written in files no shell reads.
fn expand(value: &str, home: &Path) -> PathBuf {
    match value.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None => PathBuf::from(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(vars: &[(&str, &str)]) -> HubSettings {
        let vars: Vec<(String, String)> = vars
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let env = move |name: &str| vars.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
        HubSettings::from_env(&env, Path::new("/home/ada"))
    }

    #[test]
    fn an_empty_environment_gives_the_documented_places() {
        let settings = with(&[("HF_TOKEN", " ")]);
        assert_eq!(settings.store_dir, Path::new("/home/ada/.carat"));
        assert_eq!(
            settings.hf_cache_dirs,
            [Path::new("/home/ada/.cache/huggingface/hub")]
        );
        assert_eq!(settings.ollama_dirs[0], Path::new("/home/ada/.ollama/models"));
        assert_eq!(settings.llamacpp_dirs[0], Path::new("/home/ada/.cache/llama.cpp"));
        assert_eq!(settings.hf_endpoint, "https://huggingface.co");
        assert_eq!(
            settings.hf_token_file.unwrap(),
            Path::new("/home/ada/.cache/huggingface/token")
        );
        assert!(settings.hf_token.is_none() && !settings.offline);
    }

    #[test]
    fn variables_override() {
        let settings = with(&[
            ("CARAT_HOME", "/data/carat"),
            ("HF_HOME", "~/hf"),
            ("OLLAMA_MODELS", "/data/ollama"),
            ("LLAMA_CACHE", "/data/llama"),
            ("HF_ENDPOINT", "https://mirror.example"),
            ("HF_TOKEN", "hf_abc\n"),
            ("HF_HUB_OFFLINE", "1"),
        ]);
        assert_eq!(settings.store_dir, Path::new("/data/carat"));
        assert_eq!(settings.hf_cache_dirs, [Path::new("/home/ada/hf/hub")]);
        assert_eq!(settings.ollama_dirs[0], Path::new("/data/ollama"));
        assert_eq!(settings.llamacpp_dirs, [Path::new("/data/llama")]);
        assert_eq!(settings.hf_endpoint, "https://mirror.example");
        assert_eq!(settings.hf_token.as_ref().unwrap().expose(), "hf_abc");
        assert!(settings.offline);
        assert_eq!(with(&[("HF_HUB_CACHE", "/c")]).hf_cache_dirs, [Path::new("/c")]);
    }

    #[test]
    fn a_token_never_shows() {
        let settings = with(&[("HF_TOKEN", "hf_very_private")]);
        assert!(!format!("{settings:?}").contains("private"));
    }
}
