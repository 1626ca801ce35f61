//! The `carat` command: arguments, environment and terminal. Everything it does is done by the libraries.
//!
//! Results go to stdout, all else to stderr. Exit codes are in [`failure`].

#![forbid(unsafe_code)]

mod answer;
mod chat;
mod command;
mod compute_args;
mod draft_args;
mod failure;
mod interrupt;
mod media_args;
mod media_tensors;
mod memory;
mod model_source;
mod output;
mod planning;
mod prefill_progress;
mod prompt_file;
mod pull_progress;
mod sampling_args;
mod serve_settings;
mod settings;
mod text_input;
mod thoughts;
mod top;
mod vault;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;

use crate::interrupt::Interrupt;
use crate::settings::Settings;

// A server's requests come and go on many threads and live for very different times. glibc's allocator keeps what they free
// in pieces too small to use again: under 32 clients its memory grew without end. See docs/benchmarks.md, "Soak". Huge pages
// (`no_thp`) would make every connection's buffers resident whole, though little of them is ever written.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs Google's Gemma models on this machine
#[derive(Debug, Parser)]
#[command(
    name = "carat",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Examples:\n  carat run gemma3:1b                      chat\n  carat run gemma3:1b \"Why is the sky blue?\"  one \
                  answer\n  carat pull gemma3:12b                    fetch a model\n  carat list                               models on this \
                  machine\n  carat serve gemma3:1b                    OpenAI's, Anthropic's and Ollama's APIs on port 8080\n\nMODEL is a name of the catalogue (gemma3:12b, gemma3:270m-pt), hf:OWNER/REPO[:FILE], \
                  or the path of a .gguf file or a Hugging Face folder.\n\nEnvironment:\n  CARAT_HOME      folder of models and \
                  history [~/.carat]\n  CARAT_OFFLINE   1: never use the network\n  CARAT_THREADS   threads to compute with\n  \
                  CARAT_ISA       instruction set: scalar, avx2, avxvnni, avx512, amx, neon, dotprod, i8mm"
)]
struct Cli {
    #[command(subcommand)]
    command: command::Command,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        output::note(&format!(
            "error: carat made a mistake at {place}; please report it with the command you ran"
        ));
    }));
    let interrupt = Interrupt::install();
    let run = || -> anyhow::Result<()> { cli.command.run(&Settings::read()?, &interrupt) };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => failure::report(&error),
        Err(_) => ExitCode::from(failure::OUR_MISTAKE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_says_what_it_does_and_has_examples() {
        fn check(parent: &clap::Command) {
            for command in parent.get_subcommands() {
                let name = command.get_name();
                assert!(command.get_about().is_some(), "{name} has no description");
                let help = command.get_after_help().map(ToString::to_string);
                let has_examples = help.is_some_and(|help| help.starts_with("Examples:"));
                assert!(
                    has_examples || command.has_subcommands(),
                    "{name} has no examples"
                );
                check(command);
            }
        }
        check(&Cli::command());
    }
}
