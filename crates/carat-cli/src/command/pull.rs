//! `carat pull`: gets a model onto this machine.

use anyhow::Result;
use carat_hub::{Hub, Resolution};
use clap::Args;

use crate::draft_args::pull_drafter;
use crate::interrupt::Interrupt;
use crate::media_args::pull_towers;
use crate::output;
use crate::pull_progress::PullProgress;
use crate::settings::Settings;

/// Fetch a model, or find it where another program has it
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat pull gemma3:1b\n  carat pull gemma3:12b-it-q8_0\n  carat pull \
                        hf:ggml-org/gemma-3-4b-it-GGUF:Q4_K_M\n\nAn interrupted pull goes on where it stopped when the \
                        same command is given again. A model that sees or hears \
                        comes with its encoders, one of Gemma 4 with its drafter. The path of the model is printed."
)]
pub(crate) struct Pull {
    /// Catalogue name or hf:OWNER/REPO[:FILE]
    model: String,
    /// Leave out the drafter that guesses ahead for the model
    #[arg(long)]
    no_draft: bool,
    /// Leave out the encoders for images and sounds
    #[arg(long)]
    text_only: bool,
}

impl Pull {
    pub(crate) fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        let hub = Hub::new(settings.hub.clone())?;
        let local = match hub.resolve(&self.model)? {
            Resolution::Local(local) => {
                output::note(&format!("already on this machine ({})", local.place.as_str()));
                local
            }
            Resolution::NeedsDownload(plan) => {
                if let Some(entry) = plan.entry() {
                    output::note(&format!(
                        "{}: {}, {} GB, licence {}",
                        plan.name(),
                        entry.description,
                        entry.size_gb,
                        entry.licence
                    ));
                }
                hub.pull(&plan, &mut PullProgress::new(), interrupt.flag())?
            }
        };
        if !self.text_only {
            pull_towers(&hub, &local, interrupt)?;
        }
        if !self.no_draft {
            pull_drafter(&hub, &local, interrupt)?;
        }
        Ok(output::line(&local.path.display().to_string())?)
    }
}
