#![forbid(unsafe_code)]
//! A local model behind the HTTP APIs that programs already speak.
//!
//! [`Server`] joins a [`ModelSetup`] (tokenizer, template, settings) and a running [`carat_engine::Engine`];
//! [`Server::router`] gives the routes, [`Server::run`] serves them until told to stop. A request is read by
//! `carat-api`, rendered to token ids, queued at the engine, and answered as its tokens come, whole or as events. When
//! the client leaves, its work is cancelled.
//!
//! Nothing here computes, prints, reads the environment or knows files. Prompts are never logged.

mod access;
mod auth;
mod ids;
mod limits;
mod metrics;
mod model;
mod output;
mod prompt;
mod reply;
mod routes;
mod server;
mod stream;
mod tools;

pub use model::{ModelDetails, ModelSetup};
pub use server::{Error, Server, ServerOptions};
