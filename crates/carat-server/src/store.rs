//! Where models come from: the seam between the server and whoever knows files and memory.
//!
//! A [`ModelStore`] lists models, tells about them and loads them. The server decides when: see `pool`.

use std::time::Duration;

use carat_engine::Engine;

use crate::model::{ModelDetails, ModelSetup};

/// A model that could be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedModel {
    /// The name that clients use.
    pub id: String,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// When its files were last written, since 1970.
    pub modified: Option<Duration>,
}

/// A model that is ready to answer.
pub struct LoadedModel {
    /// What its files say.
    pub setup: ModelSetup,
    /// What computes.
    pub engine: Engine,
    /// Bytes of memory that it may come to hold: weights, caches, buffers.
    pub claim_bytes: u64,
}

/// Why a model was not loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Memory has no room for it beside the others, but may have without them.
    #[error("{0}")]
    NoRoom(String),
    /// It would not fit alone; with the figures.
    #[error("{0}")]
    TooLarge(String),
    /// Something else.
    #[error("{0}")]
    Failed(String),
}

/// Models on this machine. All calls may take long and are made on threads that may wait.
pub trait ModelStore: Send + Sync + 'static {
    /// All that could be served now.
    ///
    /// # Errors
    /// [`LoadError::Failed`] when that cannot be told.
    fn list(&self) -> Result<Vec<ListedModel>, LoadError>;

    /// What is told about one of them.
    ///
    /// # Errors
    /// [`LoadError::Failed`] when its files cannot be read.
    fn details(&self, id: &str) -> Result<ModelDetails, LoadError>;

    /// Whether one of them could be loaded if no other were: sooner told than loading it.
    ///
    /// # Errors
    /// [`LoadError::TooLarge`], [`LoadError::Failed`].
    fn check(&self, id: &str) -> Result<(), LoadError>;

    /// Loads one of them, where the others that are loaded may come to hold `claimed_bytes`.
    ///
    /// # Errors
    /// [`LoadError::NoRoom`] when it does not fit beside them, [`LoadError::TooLarge`] when it would not fit alone,
    /// [`LoadError::Failed`].
    fn load(&self, id: &str, claimed_bytes: u64) -> Result<LoadedModel, LoadError>;
}
