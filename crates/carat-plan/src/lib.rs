#![forbid(unsafe_code)]
//! How much memory a model needs, where it fits and how fast it can be there: arithmetic, without any model.
//!
//! - [`Weights`]: bytes by what they are for, of a file or of a mix that could be written.
//! - [`Setup`] and [`Plan`]: a context, a cache format, threads; and what they cost beside the weights.
//! - [`Drafter`]: what guessing ahead takes beside that.
//! - [`Grid`]: plans of every mix by context, with a picture ([`heat_map`]) and a page ([`page`]) of them.
//! - [`choose`]: the context and cache format for the memory that there is, or why there is none.
//! - [`Machine`]: memory sizes and bandwidths of machines people own or rent.
//!
//! Figures are bytes and powers of ten where people read them. Nothing here opens a file, asks the system or
//! prints; whoever runs models does.

mod budget;
mod choice;
mod drafter;
mod error;
mod grid;
mod heat_map;
mod machine;
mod page;
mod plan;
mod refusal;
mod vision;
mod weights;

pub use budget::{Fit, memory_size, parse_bytes, parse_memory, size};
pub use choice::{Choice, Wish, choose};
pub use drafter::Drafter;
pub use error::Error;
pub use grid::{CONTEXTS, Cell, Grid};
pub use heat_map::heat_map;
pub use machine::{Kind, Machine, Place, usable_ram};
pub use page::{Page, page};
pub use plan::{Buffers, Kv, Plan, Process, Setup, decode_bytes};
pub use refusal::{Refusal, Remedy};
pub use vision::{hears, tower_buffers, vision_bytes};
pub use weights::Weights;
