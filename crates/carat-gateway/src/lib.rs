#![forbid(unsafe_code)]
//! One endpoint over many providers.
//!
//! A request names a route or a `provider/model`; the route's policy orders its candidates, and they are asked until
//! one answers. Bodies are read no deeper than routing needs (`fields`), streams are passed on event by event
//! (`relay`), and what is learned about a provider decides who is asked next (`health`). Nothing here runs a model:
//! a local one is a provider like any other.

mod access;
mod account;
mod admin;
mod attempt;
mod budget;
mod cache;
mod clock;
mod config;
mod credentials;
mod effects;
mod endpoint;
mod engine;
mod error;
mod explain;
mod failure;
mod fields;
mod files;
mod frames;
mod gateway;
mod guard;
mod health;
mod heir;
mod history;
mod home;
mod http1;
mod limits;
mod line;
mod link;
mod metrics;
mod named;
mod needs;
mod paths;
mod plain;
mod policy;
mod pool;
mod predictions;
mod prepare;
mod prices;
mod provider;
mod queue;
mod quota;
mod records;
mod relay;
mod reply;
mod request;
mod route;
mod rules;
mod secrets;
mod server;
mod sticky;
mod stream;
mod timed;
mod trace;
mod translate;
mod upstream;
mod usage;
mod variants;
mod waiting;

pub use admin::administer;
pub use carat_net::Hands;
pub use config::{Config, Env};
pub use engine::Engine;
pub use error::Error;
pub use gateway::Gateway;
pub use secrets::Secrets;
pub use server::{Source, follow, listen, run};
