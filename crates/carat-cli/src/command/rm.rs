//! `carat rm`: removes models from carat's own store.

use anyhow::Result;
use carat_hub::Hub;
use clap::Args;

use crate::output;
use crate::settings::Settings;

/// Remove models from carat's own store; other programs' models are left alone
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  carat rm gemma3:1b\n  carat rm gemma3:1b gemma3:4b")]
pub(crate) struct Rm {
    /// Names as `carat list` shows them
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
}

impl Rm {
    pub(crate) fn run(self, settings: &Settings) -> Result<()> {
        let hub = Hub::new(settings.hub.clone())?;
        for model in &self.models {
            let freed = hub.remove(model)?;
            output::note(&format!("removed {model}, {} freed", output::size(freed)));
        }
        Ok(())
    }
}
