//! What a server knows of its model.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use carat_api::{ApiError, ErrorKind};
use carat_engine::{Constraint, Drafting, Engine, Grammar, GrammarCompiler, SamplingParams};
use carat_prompt::Senses;
use carat_text::{ChatTemplate, Tokenizer};

use crate::store::ListedModel;

/// A model to serve, as its files describe it.
pub struct ModelSetup {
    /// The name that clients see.
    pub id: String,
    /// Its tokenizer, shared with the engine.
    pub tokenizer: Arc<Tokenizer>,
    /// How it wants conversations written.
    pub template: ChatTemplate,
    /// How it sees and hears.
    pub senses: Senses,
    /// What requests that say nothing get.
    pub sampling: SamplingParams,
    /// Tokens that are never generated.
    pub suppressed: Vec<u32>,
    /// Whether tokens are guessed ahead.
    pub drafting: Drafting,
    /// For lists and pages about the model.
    pub details: ModelDetails,
}

/// What is told about a model.
#[derive(Debug, Clone, Default)]
pub struct ModelDetails {
    /// Such as `gemma3`.
    pub family: String,
    /// Such as `268M`.
    pub parameters: String,
    /// Such as `Q8_0`.
    pub quantization: String,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// Tokens that it was trained for.
    pub context_len: usize,
    /// Its chat template as text, if its files have one.
    pub template: String,
    /// When its files were last written, since 1970.
    pub modified: Option<Duration>,
    /// Whether it takes images.
    pub sees: bool,
    /// Whether it takes sounds.
    pub hears: bool,
}

/// A model with its engine.
pub(crate) struct ServedModel {
    pub(crate) setup: ModelSetup,
    pub(crate) engine: Engine,
    /// Built when the first grammar comes.
    compiler: OnceLock<Result<GrammarCompiler, String>>,
}

impl ServedModel {
    pub(crate) fn new(setup: ModelSetup, engine: Engine) -> Self {
        Self {
            setup,
            engine,
            compiler: OnceLock::new(),
        }
    }

    /// As one of a list.
    pub(crate) fn listed(&self) -> ListedModel {
        ListedModel {
            id: self.setup.id.clone(),
            size_bytes: self.setup.details.size_bytes,
            modified: self.setup.details.modified,
        }
    }

    /// Tokens that prompt and answer may have together.
    pub(crate) fn context(&self) -> usize {
        self.engine.limits().n_max
    }

    /// The grammar's state at the beginning of an answer. Takes time: not for the runtime's threads.
    pub(crate) fn compile(&self, grammar: &Grammar, field: &str) -> Result<Constraint, ApiError> {
        let compiler = self
            .compiler
            .get_or_init(|| GrammarCompiler::new(&self.setup.tokenizer).map_err(|error| error.to_string()));
        match compiler {
            Ok(compiler) => compiler
                .compile(grammar)
                .map_err(|error| ApiError::field(field, error.to_string())),
            Err(reason) => Err(ApiError::new(ErrorKind::InvalidRequest, reason)),
        }
    }
}
