//! `carat quantize`: another number format for a model.

use std::fs;
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

/// Refuses a place where the file cannot be, or where something is that is not to be replaced: before any work is done,
/// since the file gets its name last of all.
fn check_output(path: &Path, is_forced: bool) -> Result<(), Hinted> {
    let is_folder = path.is_dir() || path.to_string_lossy().ends_with(std::path::is_separator);
    // Renaming would put the file in the place of a device or a pipe, not into it.
    let is_special = fs::metadata(path).is_ok_and(|found| !found.is_file());
    let (what, hint) = match (is_folder, is_special) {
        (true, _) => ("is a folder", "give the name of a file in it"),
        (_, true) => ("is no plain file", "give the name of a file to write"),
        _ if path.exists() && !is_forced => {
            ("is already there", "give another name, or --force to replace it")
        }
        _ => return Ok(()),
    };
    Err(Hinted::new(format!("`{}` {what}", path.display()), hint))
}

impl Quantize {
    pub(crate) fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        check_output(&self.output, self.force)?;
        interrupt.take_endings();
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
            output::printable(&self.output.display().to_string()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_file_is_replaced_and_only_if_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("old.gguf"), "old").unwrap();
        let refusal = |path: &Path, is_forced| check_output(path, is_forced).unwrap_err().to_string();
        assert!(check_output(&path("new.gguf"), false).is_ok());
        assert!(check_output(&path("old.gguf"), true).is_ok());
        assert!(refusal(&path("old.gguf"), false).contains("already there"));
        for is_forced in [false, true] {
            assert!(refusal(folder.path(), is_forced).contains("is a folder"));
            assert!(refusal(&path("new.gguf/"), is_forced).contains("is a folder"));
            #[cfg(unix)]
            assert!(refusal(Path::new("/dev/null"), is_forced).contains("no plain file"));
        }
    }
}
