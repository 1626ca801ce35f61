//! `carat gateway set-secret` and the like: providers' keys, kept encrypted.

use anyhow::Result;
use clap::Subcommand;

use crate::output;
use crate::vault::{Vault, read_secret};

#[derive(Debug, Subcommand)]
pub(super) enum SecretTask {
    /// Keep a provider's key, encrypted, under the name of its variable; it is read from stdin
    #[command(
        after_help = "Examples:\n  carat gateway set-secret OPENAI_API_KEY\n  carat gateway set-secret OPENAI_API_KEY < key.txt"
    )]
    SetSecret {
        /// Such as OPENAI_API_KEY
        name: String,
    },
    /// Forget a secret
    #[command(after_help = "Examples:\n  carat gateway remove-secret OPENAI_API_KEY")]
    RemoveSecret {
        /// Its name
        name: String,
    },
    /// List the names of secrets
    #[command(after_help = "Examples:\n  carat gateway secrets")]
    Secrets,
}

impl SecretTask {
    pub(super) fn run(self, vault: &Vault) -> Result<()> {
        match self {
            Self::SetSecret { name } => {
                let secret = read_secret(&name)?;
                vault.open_or_make()?.set(&name, &secret)?;
                output::note(&format!(
                    "`{name}` is kept; a running gateway takes it up when its configuration is read anew"
                ));
            }
            Self::RemoveSecret { name } => {
                anyhow::ensure!(
                    vault.open_or_make()?.remove(&name)?,
                    "there is no secret `{name}`"
                );
            }
            Self::Secrets => {
                for name in vault.open_or_make()?.names()? {
                    output::line(&name)?;
                }
            }
        }
        Ok(())
    }
}
