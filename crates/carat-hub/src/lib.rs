//! Where models come from: MODEL names to files on this machine, and downloads.
//!
//! [`Hub::resolve`] takes what the user wrote (a path, `gemma3:12b`, `hf:owner/repo:file`) and looks at
//! the disk only: carat's own store, the Hugging Face cache, Ollama, LM Studio and llama.cpp. What is
//! found there is used in place. If nothing is, it gives a [`Plan`], and [`Hub::pull`] carries it out:
//! it tries each source in order, resumes what an earlier pull left, checks the SHA-256, and moves the
//! file into the store by a rename, so that a damaged or half file is never seen.
//!
//! The crate prints nothing, reads no environment variable (see [`HubSettings::from_env`]) and knows
//! nothing of what is inside a model file beyond its first four bytes.
//!
//! ```
//! use carat_hub::{Hub, HubSettings, Resolution};
//!
//! # fn main() -> carat_hub::Result<()> {
//! # let store = std::env::temp_dir().join("carat-hub-doc");
//! let hub = Hub::new(HubSettings::new(store))?;
//! match hub.resolve("gemma3:12b")? {
//!     Resolution::Local(model) => assert!(model.path.exists()),
//!     Resolution::NeedsDownload(plan) => assert_eq!(plan.name(), "gemma3:12b-it-q4_K_M"),
//! }
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod catalogue;
mod error;
mod fs;
mod hf;
mod http;
mod hub;
mod local;
mod name;
mod partial;
mod pip;
mod plan;
mod progress;
mod pull;
mod settings;
mod store;
mod towers;
mod transfer;

pub use catalogue::{Entry, Tuning};
pub use error::{Attempt, Error, Result};
pub use hub::{Hub, Resolution};
pub use local::{LocalModel, ModelFormat, Place};
pub use plan::Plan;
pub use progress::{Event, Progress};
pub use settings::{HubSettings, Limits, Secret};
