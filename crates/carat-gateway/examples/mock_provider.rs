//! A provider that answers at once or misbehaves on command, for trying the gateway by hand and for `bench/gateway`.
//!
//!     cargo run --release -p carat-gateway --example mock_provider -- 9100

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for the bench")]

#[path = "../tests/gateway/support/mock.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod mock;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let port = std::env::args().nth(1).map_or(0, |port| port.parse().unwrap());
    let (address, _seen) = mock::start(port, false).await;
    println!("http://{address}/v1");
    std::future::pending::<()>().await;
}
