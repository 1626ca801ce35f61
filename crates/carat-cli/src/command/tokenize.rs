//! `carat tokenize`: text to token ids.

use anyhow::Result;
use carat_text::Special;
use clap::Args;
use serde_json::json;

use crate::interrupt::Interrupt;
use crate::model_source::ModelSource;
use crate::settings::Settings;
use crate::{output, text_input};

/// Turn text into a model's token ids, as a JSON array
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat tokenize gemma3:1b \"The capital of France is\"\n  carat tokenize gemma3:1b \
                        < notes.txt\n  carat tokenize gemma3:1b --pieces \"naïve\""
)]
pub(crate) struct Tokenize {
    /// Whose tokenizer
    model: String,
    /// The text; without it, what is piped in
    text: Option<String>,
    /// Put the beginning-of-sequence token first
    #[arg(long)]
    bos: bool,
    /// Read `<start_of_turn>` and its like as tokens, not as text
    #[arg(long)]
    special: bool,
    /// Show each token's piece too
    #[arg(long)]
    pieces: bool,
}

impl Tokenize {
    pub(crate) fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        let text = text_input::argument_or_piped(self.text, "text", interrupt)?;
        let tokenizer = ModelSource::open_here(&self.model, settings)?.tokenizer()?;
        let mut ids: Vec<u32> = tokenizer.bos().into_iter().filter(|_| self.bos).collect();
        let special = if self.special {
            Special::Parse
        } else {
            Special::AsText
        };
        tokenizer.encode_into(&text, special, &mut ids);
        if !self.pieces {
            return output::json_line(&ids);
        }
        let pieces: Vec<_> = ids
            .iter()
            .map(|&id| json!({"id": id, "piece": tokenizer.token_piece(id)}))
            .collect();
        output::json(&pieces)
    }
}
