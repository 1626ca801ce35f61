//! `carat quantize`: another number format for a model.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use carat_model::convert::{ConvertError, ConvertOptions, Mix, convert};
use carat_model::physical_cores;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::failure::{Hinted, Interrupted};
use crate::interrupt::Interrupt;
use crate::model_source::obtain;
use crate::output;
use crate::settings::Settings;

/// Convert a model to a GGUF file with another mix of number formats
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat quantize ./gemma-3-1b-it gemma-3-1b-it-Q4_K_M.gguf --type Q4_K_M\n  carat quantize \
                        gemma3:1b-it-bf16 small.gguf --type Q4_0 --pure\n\nTypes, from most to fewest bits: F32 BF16 F16 Q8_0 \
                        Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 Q3_K_L Q3_K_M Q3_K_S Q2_K.\nStart from the \
                        most exact file there is: every rounding adds to the one before."
)]
pub(crate) struct Quantize {
    /// The model: a GGUF file, a Hugging Face folder, or a name
    input: String,
    /// GGUF file to write
    output: PathBuf,
    /// The mix of number formats
    #[arg(long = "type", short = 't', value_name = "TYPE", value_parser = parse_mix)]
    mix: Mix,
    /// Give every matrix the same format, the embedding too
    #[arg(long)]
    pure: bool,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
    /// Threads that encode [default: CARAT_THREADS, else the physical cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

fn parse_mix(name: &str) -> Result<Mix, String> {
    Mix::from_name(name).map_err(|error| error.to_string())
}

impl Quantize {
    pub(crate) fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        if self.output.exists() && !self.force {
            let message = format!("`{}` is already there", self.output.display());
            return Err(Hinted::new(message, "give another name, or --force to replace it").into());
        }
        let source = obtain(&self.input, settings, interrupt)?;
        let n_threads = self
            .threads
            .map(usize::from)
            .or(settings.threads)
            .unwrap_or_else(physical_cores);
        let options = ConvertOptions {
            mix: self.mix,
            pure: self.pure,
            n_threads,
        };
        let report = self.convert(&source.path, &options, interrupt)?;
        for note in &report.notes {
            output::note(note);
        }
        let formats: Vec<(&str, usize)> = report
            .n_tensors
            .iter()
            .map(|(dtype, n)| (dtype.name(), *n))
            .collect();
        if self.json {
            return output::json(&json!({
                "path": self.output.display().to_string(), "type": self.mix.name(), "bytes": report.total_bytes,
                "tensors": formats.into_iter().collect::<std::collections::BTreeMap<_, _>>(), "notes": report.notes,
            }));
        }
        let formats: Vec<String> = formats.iter().map(|(name, n)| format!("{name} ×{n}")).collect();
        Ok(output::line(&format!(
            "{}: {} of tensors ({})",
            self.output.display(),
            output::size(report.total_bytes),
            formats.join(", ")
        ))?)
    }

    fn convert(
        &self,
        source: &Path,
        options: &ConvertOptions,
        interrupt: &Interrupt,
    ) -> Result<carat_model::convert::ConvertReport> {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("{wide_bar}  {decimal_bytes}/{decimal_total_bytes}  {msg}")
        {
            bar.set_style(style);
        }
        let is_seen = std::io::stderr().is_terminal();
        let result = convert(source, &self.output, options, &mut |progress| {
            if is_seen {
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.done_bytes);
                bar.set_message(format!("{} {}", progress.tensor, progress.dtype.name()));
            }
            if interrupt.is_raised() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        bar.finish_and_clear();
        match result {
            Err(ConvertError::Cancelled) => Err(Interrupted.into()),
            other => Ok(other?),
        }
    }
}
