#![forbid(unsafe_code)]
//! Local models behind the HTTP APIs that programs already speak.
//!
//! [`Server`] loads models from a [`ModelStore`] as requests ask for them, each a [`ModelSetup`] (tokenizer, template,
//! settings) with a running [`carat_engine::Engine`]; [`Server::router`] gives the routes, [`Server::run`] serves them
//! until told to stop. A request is read by
//! `carat-api`, rendered to token ids, queued at the engine, and answered as its tokens come, whole or as events. When
//! the client leaves, its work is cancelled.
//!
//! Nothing here computes, prints, reads the environment or knows files. Prompts are never logged.

mod access;
mod auth;
mod fetch;
mod ids;
mod limits;
mod line;
mod lockout;
mod metrics;
mod model;
mod output;
mod pool;
mod prompt;
mod reply;
mod routes;
mod server;
mod store;
mod stream;
mod tools;
mod trace;

pub use carat_fetch::MediaUrls;
pub use carat_net::{CertificateFiles, Tls, TlsError, follow as follow_certificate};
pub use model::{ModelDetails, ModelSetup};
pub use server::{Error, Server, ServerOptions, parse_keep_alive};
pub use store::{ListedModel, LoadError, LoadedModel, ModelStore};
