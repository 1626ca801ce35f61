//! The ledger on SQLite and, where a server is at hand, on PostgreSQL.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "what goes wrong in the rig is a failed test"
)]

mod accounts;
mod common;
mod money;
mod tls;
