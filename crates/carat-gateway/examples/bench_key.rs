//! Makes a key with every limit set high, for `bench/gateway`.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for the bench")]

use std::path::Path;

use carat_ledger::{Admin, Budget, Limits, Micros, NewKey, Period};

fn main() {
    let path = std::env::args().nth(1).unwrap();
    let budget = Some(Budget {
        limit: Micros(1_000_000_000_000),
        period: Period::Month,
    });
    let mut admin = Admin::open(Path::new(&path)).unwrap();
    admin.set_team("bench", budget).unwrap();
    let key = NewKey {
        name: "bench".into(),
        team: Some("bench".into()),
        limits: Limits {
            models: vec!["m/*".into()],
            requests_per_minute: Some(1_000_000_000),
            tokens_per_minute: Some(1_000_000_000_000),
            concurrency: Some(100_000),
            budget,
            ..Limits::default()
        },
        expires_ms: Some(u64::from(u32::MAX) * 2000),
        ..NewKey::default()
    };
    println!("{}", admin.add_key(&key, 1).unwrap().text());
}
