//! The flags that say how to compute, shared by every command that loads a model.

use anyhow::{Context, Result};
use carat_model::{Checkpoint, Isa, KvDType, LoadOptions, Model, Precision, lower_priority};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};

use crate::settings::Settings;

/// How to compute.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Computing")]
pub(crate) struct ComputeArgs {
    /// Threads to compute with [default: CARAT_THREADS, else the physical cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Instruction set: scalar, avx2, avxvnni, avx512, amx, neon, dotprod, i8mm [default: CARAT_ISA, else the best there is]
    #[arg(long, value_name = "SET")]
    pub(crate) isa: Option<String>,
    /// Arithmetic: `f32` is the reference's; `auto` takes int16 for models under a billion parameters, else int8
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub(crate) dtype: Arithmetic,
    /// How keys and values are kept: q8_0 takes half the memory of f16, q4_0 a quarter [default: f16, or f32 with
    /// `--dtype f32`]
    #[arg(long, value_name = "TYPE", value_parser = kv_types())]
    pub(crate) kv_type: Option<KvDType>,
    /// Whom the processor serves first: with `low` every other program, so that the machine stays quick in other hands
    #[arg(long, value_name = "WHO", default_value = "normal")]
    pub(crate) priority: Priority,
}

/// Standing among the machine's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Priority {
    /// As any program
    Normal,
    /// Only what others leave
    Low,
}

fn kv_types() -> impl TypedValueParser<Value = KvDType> {
    PossibleValuesParser::new(KvDType::ALL.map(KvDType::name)).try_map(|name| name.parse::<KvDType>())
}

/// Which arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arithmetic {
    /// The fast one that suits the model's size
    Auto,
    /// 8-bit activations against quantized weights
    Int8,
    /// 16-bit activations against quantized weights
    Int16,
    /// 32-bit floats throughout, in the cache too unless `--kv-type` says otherwise
    F32,
}

impl ComputeArgs {
    /// Options for loading: the flags over the environment over the defaults.
    ///
    /// With `--priority low` it lowers that of this thread, and so of all that it will make.
    pub(crate) fn options(&self, settings: &Settings) -> Result<LoadOptions> {
        if self.priority == Priority::Low {
            lower_priority().context("cannot lower the priority; leave out `--priority low`")?;
        }
        let base = match self.dtype {
            Arithmetic::Auto => LoadOptions::default(),
            Arithmetic::Int8 => LoadOptions {
                precision: Some(Precision::Int8),
                ..LoadOptions::default()
            },
            Arithmetic::Int16 => LoadOptions {
                precision: Some(Precision::Int16),
                ..LoadOptions::default()
            },
            Arithmetic::F32 => LoadOptions::reference(),
        };
        let isa = match self.isa.as_deref().or(settings.isa.as_deref()) {
            Some(name) => Isa::named(name)?,
            None => base.isa,
        };
        let n_threads = self
            .threads
            .map(usize::from)
            .or(settings.threads)
            .unwrap_or(base.n_threads);
        Ok(LoadOptions {
            isa,
            n_threads,
            kv_dtype: self.kv_type.unwrap_or(base.kv_dtype),
            ..base
        })
    }

    /// Loads a model's weights.
    pub(crate) fn load(&self, checkpoint: &Checkpoint, settings: &Settings) -> Result<Model> {
        Ok(Model::from_checkpoint(checkpoint, self.options(settings)?)?)
    }
}
