//! `carat detokenize`: token ids to text.

use anyhow::Result;
use carat_text::ControlText;
use clap::Args;

use crate::failure::Hinted;
use crate::interrupt::Interrupt;
use crate::model_source::ModelSource;
use crate::settings::Settings;
use crate::{output, text_input};

/// Turn a model's token ids (a JSON array) into text
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat detokenize gemma3:1b \"[818, 5279, 529, 7001]\"\n  carat tokenize gemma3:1b Hi \
                        | carat detokenize gemma3:1b"
)]
pub(crate) struct Detokenize {
    /// Whose tokenizer
    model: String,
    /// The ids; without them, what is piped in
    ids: Option<String>,
    /// Leave control tokens such as `<bos>` out
    #[arg(long)]
    hide_special: bool,
}

impl Detokenize {
    pub(crate) fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        let text = text_input::argument_or_piped(self.ids, "list of ids", interrupt)?;
        let ids = text_input::parse_ids(&text, "the list of ids")?;
        let tokenizer = ModelSource::open(&self.model, settings, interrupt)?.tokenizer()?;
        let n_tokens = tokenizer.len();
        if let Some(id) = ids
            .iter()
            .find(|id| usize::try_from(**id).is_ok_and(|id| id >= n_tokens))
        {
            let hint = format!("its ids are 0 to {}", n_tokens.saturating_sub(1));
            return Err(Hinted::new(format!("the model has no token {id}"), hint).into());
        }
        let control = if self.hide_special {
            ControlText::Hide
        } else {
            ControlText::Show
        };
        Ok(output::line(&tokenizer.decode(&ids, control))?)
    }
}
