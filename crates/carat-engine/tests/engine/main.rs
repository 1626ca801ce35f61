//! The engine from outside: the sampler against a twin, generations and scoring on a fake model.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod draft;
mod fake;
mod generation;
mod grammar;
mod jobs;
mod sampler;
mod scheduler;
mod score;
mod store;
