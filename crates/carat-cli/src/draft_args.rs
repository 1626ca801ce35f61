//! The flags that say who guesses ahead, shared by `carat run` and `carat serve`.
//!
//! Answers are the same with and without; only their speed differs. Without a drafter guesses come from the text itself.

use anyhow::{Context, Result};
use carat_engine::Drafting;
use carat_model::{Checkpoint, DrafterKind, Model};
use carat_text::Tokenizer;
use clap::Args;

use crate::failure::Hinted;
use crate::interrupt::Interrupt;
use crate::model_source::{ModelSource, obtain};
use crate::output;
use crate::settings::Settings;

/// Who guesses ahead.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DraftArgs {
    /// Model that guesses tokens ahead, which this one then checks together: a drafter that was made for it, or a smaller
    /// model with the same tokenizer [default: a drafter beside the model, and the text itself]
    #[arg(long, value_name = "MODEL", conflicts_with = "no_draft")]
    pub(crate) draft: Option<String>,
    /// Guess nothing ahead
    #[arg(long)]
    pub(crate) no_draft: bool,
}

impl DraftArgs {
    /// Gives `model` its drafter, if there is one.
    pub(crate) fn prepare(
        &self,
        model: &mut Model,
        source: &ModelSource,
        tokenizer: &Tokenizer,
        settings: &Settings,
        interrupt: &Interrupt,
    ) -> Result<Drafting> {
        if self.no_draft {
            return Ok(Drafting::Off);
        }
        let Some(name) = &self.draft else {
            // One that nobody asked for is no reason to fail.
            if let Some(path) = source.checkpoint.find_drafter()
                && let Err(error) = model.add_drafter(&path)
            {
                output::note(&format!(
                    "the drafter `{}` cannot be used: {error}",
                    path.display()
                ));
            }
            return Ok(Drafting::Adaptive);
        };
        let local = obtain(name, settings, interrupt)?;
        let kind = model
            .add_drafter(&local.path)
            .with_context(|| format!("--draft `{name}` cannot be used"))?;
        if kind == DrafterKind::Model {
            let checkpoint = Checkpoint::open(&local.path)?;
            let other = ModelSource { local, checkpoint }.tokenizer()?;
            if !are_alike(tokenizer, &other) {
                return Err(Hinted::wrong_arguments(
                    format!("--draft `{name}` has another tokenizer than the model"),
                    "take a smaller model of the same generation: Gemma 3 for Gemma 3, Gemma 4 for Gemma 4",
                )
                .into());
            }
        }
        Ok(Drafting::Adaptive)
    }
}

/// Whether two vocabularies agree on every token that both have: files may lack placeholders of media.
fn are_alike(a: &Tokenizer, b: &Tokenizer) -> bool {
    let n = a.len().min(b.len());
    let ids = 0..u32::try_from(n).unwrap_or(u32::MAX);
    n > 0 && ids.into_iter().all(|id| a.token_piece(id) == b.token_piece(id))
}
