#![forbid(unsafe_code)]
//! Who may ask, how much they may spend, and what every request cost.
//!
//! [`Ledger::admit`] decides in one step and holds what a request may cost; [`Hold::settle`] replaces the hold by what it
//! did cost. A gateway that is alone decides in memory and writes both to a journal (`journal.rs`) that survives the
//! process; a thread of its own moves its lines into SQLite in groups. Several gateways share a PostgreSQL database, and
//! decide there. Money is whole millionths of a dollar, rounded up once
//! for each request. Keys are kept as hashes: the text of one is shown when it is made and never again.

mod account;
mod admin;
mod budget;
mod db;
mod directory;
mod error;
mod hold;
mod journal;
mod key;
mod ledger;
mod local;
mod meter;
mod money;
mod place;
mod price;
mod rate;
mod report;
mod row;
mod schema;
mod server;
mod shared;
mod store;
mod tls;

pub use account::{Account, Credit, Kind, Limits, Role};
pub use admin::{Admin, Audit};
pub use budget::{Budget, Period};
pub use error::Error;
pub use hold::{Asked, Hold, Refusal, Warning};
pub use key::{KeyInfo, NewKey, Secret};
pub use ledger::{Bearer, Ledger};
pub use money::Micros;
pub use place::Place;
pub use price::{Listed, Price, PriceList, Tokens};
pub use report::{By, Filter, RequestRow, Spend, day};
pub use row::{Outcome, Row};
pub use store::Total;
