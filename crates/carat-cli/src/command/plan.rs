//! `carat plan`: what a model would need, before it is fetched or loaded.

mod subject;
mod view;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use carat_model::convert::Mix;
use carat_model::{Config, KvDType, LoadOptions};
use carat_plan::{CONTEXTS, Drafter, Fit, Grid, Kind, Machine, Plan as Costs, Remedy, Setup, Weights, Wish};
use clap::Args;

use self::subject::{Guesser, Subject};
use crate::failure::Hinted;
use crate::settings::Settings;
use crate::{memory, output, planning};

/// The path that stands for the output.
const OUTPUT: &str = "-";

/// Say how much memory a model needs, what fits here or elsewhere, and how fast it can be
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat plan gemma3:12b                           this machine, every quantization by context\n  carat plan \
                        gemma3:12b --gpu \"RTX 4090\"          another memory\n  carat plan gemma3:27b --quant q4_0 --context 32K \
                        --ram 32GB\n  carat plan ./gemma-3-4b-it --kv-type q8_0 --parallel 4\n  carat plan ./config.json --html \
                        plan.html\n  carat plan gemma4:e4b --svg - | rsvg-convert -o plan.png\n\nMODEL may also be the path of a \
                        config.json, or a size: 270M, 1B, 4B, 12B, 27B of Gemma 3, E2B, E4B, gemma4-12B, 26B-A4B, 31B of Gemma 4. \
                        Nothing is downloaded.\nSpeeds are upper bounds: published bandwidth over the bytes that a token reads."
)]
pub(crate) struct Plan {
    /// The model
    model: String,
    /// Tokens of each sequence, such as 8192 or 8K [default: the model's own]
    #[arg(long, value_name = "N", value_parser = parse_context)]
    context: Option<usize>,
    /// The mix of number formats [default: the model's; Q4_K_M for a configuration]
    #[arg(long, value_name = "TYPE", value_parser = parse_mix)]
    quant: Option<Mix>,
    /// Format of the KV cache: f16, bf16, q8_0, q4_0, f32
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = parse_kv)]
    kv_type: KvDType,
    /// Sequences at the same time
    #[arg(long, value_name = "P", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    parallel: u16,
    /// Plan for a computer with this much memory, such as 16GB: as memory is sold, in GiB, whatever the unit is called [default:
    /// what is free here]
    #[arg(long, value_name = "SIZE", conflicts_with = "gpu", value_parser = parse_memory)]
    ram: Option<u64>,
    /// Plan for this graphics card or computer of the list, with the most memory that it has
    #[arg(long, value_name = "NAME")]
    gpu: Option<String>,
    /// Leave out the drafter that guesses ahead for the model
    #[arg(long)]
    no_draft: bool,
    /// Threads to compute with [default: CARAT_THREADS, else the physical cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// List every machine that it fits on, not a few of each kind
    #[arg(long)]
    machines: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write a page with the table as a heat map; `-` is the output, instead of all else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the heat map alone; `-` as above
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn parse_mix(name: &str) -> Result<Mix, String> {
    Mix::from_name(name).map_err(|error| error.to_string())
}

fn parse_kv(name: &str) -> Result<KvDType, String> {
    name.parse()
        .map_err(|error: carat_kernels::Error| error.to_string())
}

fn parse_memory(text: &str) -> Result<u64, String> {
    carat_plan::parse_memory(text).map_err(|error| error.to_string())
}

/// `8192` or `8K`.
fn parse_context(text: &str) -> Result<usize, String> {
    let (digits, factor) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    let tokens = digits.parse().ok().and_then(|n: usize| n.checked_mul(factor));
    tokens
        .filter(|n| (1..=1 << 30).contains(n))
        .ok_or_else(|| format!("`{text}` is no number of tokens; write it as 8192 or 8K"))
}

/// The memory that is planned for.
struct Target {
    /// For people: `this machine, free now`.
    name: String,
    /// Bytes that can be used of it.
    usable: u64,
    /// The machine of the list, if one was named.
    gpu: Option<Machine>,
}

impl Target {
    fn needed(&self, plan: &Costs) -> u64 {
        self.gpu.as_ref().map_or(plan.peak(), |gpu| gpu.needed(plan))
    }
}

/// Everything that is shown.
struct Outcome {
    subject: Subject,
    target: Target,
    setup: Setup,
    /// The name of the number formats planned for.
    quant: String,
    plan: Costs,
    fit: Fit,
    vision: Option<u64>,
    grid: Grid,
    machines: Vec<Machine>,
    /// What would fit, where the plan does not.
    instead: Option<String>,
}

impl Plan {
    pub(crate) fn run(self, settings: &Settings) -> Result<()> {
        let outcome = self.outcome(settings)?;
        let mut is_output_taken = false;
        for (path, text) in [
            (&self.svg, &Outcome::picture as &dyn Fn(&Outcome) -> String),
            (&self.html, &Outcome::page),
        ] {
            let Some(path) = path else { continue };
            if path == Path::new(OUTPUT) {
                output::write(&text(&outcome))?;
                is_output_taken = true;
            } else {
                write(path, &text(&outcome))?;
                let path = output::printable(&path.display().to_string());
                output::note(&format!("`{path}` is written"));
            }
        }
        if is_output_taken {
            Ok(())
        } else if self.json {
            output::json(&outcome.json())
        } else {
            outcome.print(settings.color, self.machines)
        }
    }

    fn outcome(&self, settings: &Settings) -> Result<Outcome> {
        let subject = Subject::find(&self.model, settings)?;
        let target = self.target()?;
        let options = LoadOptions::default();
        let n_threads = self.threads.map(usize::from).or(settings.threads);
        let setup = Setup {
            n_sequences: usize::from(self.parallel),
            kv_dtype: self.kv_type,
            n_threads: n_threads.unwrap_or(options.n_threads),
            ..planning::setup(
                &subject.config,
                &options,
                self.context.unwrap_or(subject.config.context_len),
            )
        };
        let (weights, quant) = subject.weights(self.quant);
        // A mix is of the text model: its towers stay as they are stored.
        let stored = subject.stored.map(|weights| weights.vision);
        let vision = stored
            .filter(|&bytes| bytes > 0)
            .or_else(|| carat_plan::vision_bytes(&subject.config));
        // Of a file without towers beside it, they are only told about.
        let has_towers = stored != Some(0);
        let towers = vision.filter(|_| has_towers).map(|bytes| {
            bytes.saturating_add(carat_plan::tower_buffers(&subject.config, subject.media.as_ref()))
        });
        let drafter = subject.drafter.as_ref().filter(|_| !self.no_draft);
        let setup = Setup {
            tower_bytes: towers.unwrap_or(0),
            drafter: drafter.map(|drafter| match drafter {
                Guesser::Here(local) => planning::drafter(local, &subject.config, &setup),
                Guesser::InCatalogue(bytes) => Drafter::made_for(&subject.config, *bytes, &setup),
            }),
            ..setup
        };
        let plan = Costs::new(&subject.config, &weights, &setup);
        let fit = if plan.is_beyond_context {
            Fit::BeyondContext
        } else {
            Fit::of(target.needed(&plan), target.usable)
        };
        let is_gpu = target.gpu.as_ref().is_some_and(|gpu| gpu.kind == Kind::Gpu);
        let instead = (fit == Fit::DoesNotFit && !is_gpu)
            .then(|| instead(&subject.config, (&weights, &quant), &setup, target.usable))
            .flatten();
        let grid = Grid::new(
            &subject.config,
            &setup,
            Mix::all()
                .filter(|mix| self.quant.is_none_or(|asked| asked == *mix))
                .map(|mix| (mix, subject.weights_in(mix, self.quant.is_none()))),
            &self.contexts(subject.config.context_len),
            target.usable,
            |plan| target.needed(plan),
        );
        Ok(Outcome {
            subject,
            target,
            setup,
            quant,
            plan,
            fit,
            vision,
            grid,
            machines: Machine::all()?,
            instead,
        })
    }

    /// The columns: the usual ones, the model's own and what was asked for.
    fn contexts(&self, own: usize) -> Vec<usize> {
        let mut contexts = CONTEXTS.to_vec();
        contexts.push(own);
        contexts.extend(self.context);
        contexts.sort_unstable();
        contexts.dedup();
        contexts
    }

    fn target(&self) -> Result<Target> {
        if let Some(name) = &self.gpu {
            let machine = Machine::find(name)?;
            let memory = machine.memory_gib.last().copied().unwrap_or(0.0);
            let least = machine.memory_gib.first().copied().unwrap_or(0.0);
            let which = if least < memory { ", the most it has" } else { "" };
            return Ok(Target {
                name: format!("{}, {memory} GiB{which}", machine.name),
                usable: machine.usable(memory),
                gpu: Some(machine),
            });
        }
        if let Some(ram) = self.ram {
            return Ok(Target {
                name: format!("a computer with {}", carat_plan::memory_size(ram)),
                usable: carat_plan::usable_ram(ram),
                gpu: None,
            });
        }
        let usable = memory::usable_bytes().ok_or_else(|| {
            Hinted::new(
                "this system does not say how much memory is free",
                "say what to plan for with --ram or --gpu",
            )
        })?;
        Ok(Target {
            name: "this machine, as it is now".to_owned(),
            usable,
            gpu: None,
        })
    }
}

/// What `carat run` would take of a model that does not fit as planned, or what would fit in its place.
fn instead(
    config: &Config,
    (weights, quant): (&Weights, &str),
    setup: &Setup,
    usable: u64,
) -> Option<String> {
    let with = |setup: &Setup| carat_plan::choose(config, weights, setup, Wish::default(), usable);
    let without_drafter = Setup {
        drafter: None,
        ..*setup
    };
    // A run gives up a drafter that nobody asked for.
    match with(setup).or_else(|_| with(&without_drafter)) {
        Ok(choice) => Some(format!("`carat run` takes what fits: {choice}")),
        Err(refusal) => {
            // Published files may be larger than carat's own of the same mix, which then is no other.
            let is_other = |remedy: &&Remedy| remedy.mix.is_none_or(|mix| !quant.starts_with(mix.name()));
            let remedies = refusal.remedies.iter().filter(is_other);
            let remedies: Vec<String> = remedies.map(ToString::to_string).collect();
            (!remedies.is_empty()).then(|| format!("`carat run` could take {}", remedies.join(", or ")))
        }
    }
}

/// Writes a file whole or not at all: what is left of a full disk would be half a picture.
fn write(path: &Path, text: &str) -> Result<()> {
    let failed = || format!("cannot write `{}`", path.display());
    // What cannot be opened is left as it is.
    let mut file = File::create(path).with_context(failed)?;
    let written = file.write_all(text.as_bytes());
    if written.is_err() && path.is_file() {
        // The error to tell is that of the writing.
        let _unremoved = fs::remove_file(path);
    }
    written.with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_numbers_or_thousands() {
        assert_eq!(parse_context("8192"), Ok(8192));
        assert_eq!(parse_context("128k"), Ok(131_072));
        for text in ["", "K", "0", "-1", "8M", "99999999999999999999", "9999999999K"] {
            assert!(parse_context(text).is_err(), "{text}");
        }
    }
}
