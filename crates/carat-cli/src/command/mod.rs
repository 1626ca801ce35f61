//! The subcommands, one file each.

mod bench;
mod completions;
mod debug;
mod detokenize;
mod doctor;
mod gateway;
mod list;
mod models;
mod perplexity;
mod plan;
mod pull;
mod quantize;
mod rm;
mod run;
mod serve;
mod show;
mod tokenize;
mod top;

use anyhow::Result;
use clap::Subcommand;

use crate::interrupt::Interrupt;
use crate::settings::Settings;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    // A word that people try first.
    #[command(alias = "chat")]
    Run(run::Run),
    Serve(Box<serve::Serve>),
    Gateway(Box<gateway::Gateway>),
    Top(top::Top),
    Models(models::Models),
    Pull(pull::Pull),
    List(list::List),
    Show(show::Show),
    Plan(plan::Plan),
    Rm(rm::Rm),
    Bench(bench::Bench),
    Perplexity(perplexity::Perplexity),
    Quantize(quantize::Quantize),
    Tokenize(tokenize::Tokenize),
    Detokenize(detokenize::Detokenize),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
    Debug(debug::Debug),
}

impl Command {
    /// Does it.
    pub(crate) fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        match self {
            Self::Run(command) => command.run(settings, interrupt),
            Self::Serve(command) => command.run(settings, interrupt),
            Self::Gateway(command) => command.run(settings, interrupt),
            Self::Top(command) => command.run(),
            Self::Models(command) => command.run(),
            Self::Pull(command) => command.run(settings, interrupt),
            Self::List(command) => command.run(settings),
            Self::Show(command) => command.run(settings),
            Self::Plan(command) => command.run(settings),
            Self::Rm(command) => command.run(settings),
            Self::Tokenize(command) => command.run(settings, interrupt),
            Self::Detokenize(command) => command.run(settings, interrupt),
            Self::Doctor(command) => command.run(settings),
            Self::Bench(command) => command.run(settings, interrupt),
            Self::Perplexity(command) => command.run(settings, interrupt),
            Self::Quantize(command) => command.run(settings, interrupt),
            Self::Debug(command) => command.run(settings, interrupt),
            Self::Completions(command) => command.run(),
        }
    }
}
