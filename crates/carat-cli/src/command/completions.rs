//! `carat completions`: scripts that make a shell complete carat's arguments.

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::output;

/// Print a script that completes carat's arguments in a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat completions bash > ~/.local/share/bash-completion/completions/carat\n  \
                        carat completions zsh > ~/.zfunc/_carat\n  carat completions fish > \
                        ~/.config/fish/completions/carat.fish"
)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::Cli::command(), "carat", &mut script);
        Ok(output::write_bytes(&script)?)
    }
}
