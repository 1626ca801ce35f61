//! The environment, read in one place.
//!
//! | variable | means | default |
//! |---|---|---|
//! | `CARAT_HOME` | folder of carat's models, history and catalogue | `~/.carat` |
//! | `CARAT_OFFLINE` | `1`: never use the network | off |
//! | `CARAT_THREADS` | threads to compute with | physical cores |
//! | `CARAT_ISA` | instruction set: `scalar`, `avx2`, `avxvnni`, `avx512`, `amx`, `neon`, `dotprod`, `i8mm` | the best there is |
//! | `CARAT_MODELS`, `CARAT_HOST`, `CARAT_PORT`, `CARAT_API_KEY`, `CARAT_CTX`, `CARAT_PARALLEL`, `CARAT_LOG` | see `carat serve` | |
//! | `NO_COLOR` | anything: no colours | colours in a terminal |
//!
//! `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `OLLAMA_MODELS` and their like mean what they mean to their own programs.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::Context;
use carat_hub::HubSettings;

use crate::failure::Hinted;
use crate::serve_settings::ServeSettings;

/// What the environment says.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Where models are looked for.
    pub(crate) hub: HubSettings,
    /// carat's own folder.
    pub(crate) carat_dir: PathBuf,
    /// `CARAT_THREADS`.
    pub(crate) threads: Option<usize>,
    /// `CARAT_ISA`.
    pub(crate) isa: Option<String>,
    /// `PATH`, where a decoder for videos is looked for.
    pub(crate) search_path: Option<String>,
    /// What `carat serve` was told. What it cannot use is no reason for another command to fail.
    pub(crate) serve: Result<ServeSettings, Hinted>,
    /// Whether stdout takes colours: a terminal, and no `NO_COLOR`.
    pub(crate) color: bool,
}

/// A variable that a configuration names.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Settings {
    /// From the process's environment.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let home = std::env::home_dir().context("cannot tell the home folder; set HOME")?;
        Self::from_env(&env, &home)
    }

    fn from_env(env: &dyn Fn(&str) -> Option<String>, home: &Path) -> anyhow::Result<Self> {
        let hub = HubSettings::from_env(env, home);
        let carat_dir = hub.store_dir.clone();
        let threads = env("CARAT_THREADS")
            .map(|text| parse_threads(&text))
            .transpose()?;
        Ok(Self {
            hub,
            carat_dir,
            threads,
            isa: env("CARAT_ISA"),
            serve: ServeSettings::of_env(env),
            search_path: env("PATH"),
            color: env("NO_COLOR").is_none() && std::io::stdout().is_terminal(),
        })
    }
}

fn parse_threads(text: &str) -> anyhow::Result<usize> {
    text.trim()
        .parse()
        .ok()
        .filter(|n| (1..=1024).contains(n))
        .ok_or_else(|| {
            Hinted::new(
                format!("CARAT_THREADS is `{text}`, which is not a number from 1 to 1024"),
                "unset it, or set it to the number of threads to compute with",
            )
            .into()
        })
}

#[cfg(test)]
impl Settings {
    /// Those of an empty environment with this home folder, without network.
    pub(crate) fn of_home(home: &Path) -> Self {
        let env = |name: &str| (name == "CARAT_OFFLINE").then(|| "1".to_string());
        Self::from_env(&env, home).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> anyhow::Result<Settings> {
        let env = |name: &str| {
            vars.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_string())
        };
        Settings::from_env(&env, Path::new("/home/ada"))
    }

    #[test]
    fn carats_folder_is_in_the_home_folder_unless_set() {
        assert_eq!(read(&[]).unwrap().carat_dir, Path::new("/home/ada/.carat"));
        assert_eq!(
            read(&[("CARAT_HOME", "/data/carat")]).unwrap().carat_dir,
            Path::new("/data/carat")
        );
    }

    #[test]
    fn what_a_server_cannot_use_is_told_by_the_server_alone() {
        let settings = read(&[("CARAT_PORT", "many"), ("CARAT_THREADS", "4")]).unwrap();
        assert_eq!(settings.threads, Some(4));
        assert!(settings.serve.unwrap_err().to_string().contains("CARAT_PORT"));
    }

    #[test]
    fn threads_must_be_a_number() {
        assert_eq!(read(&[("CARAT_THREADS", "4")]).unwrap().threads, Some(4));
        let error = read(&[("CARAT_THREADS", "many")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "CARAT_THREADS is `many`, which is not a number from 1 to 1024"
        );
    }
}
