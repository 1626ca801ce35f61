//! The gateway alone, for `bench/gateway`: what `carat gateway` runs, without the rest of carat.
//!
//!     cargo run --release -p carat-gateway --example bench_gateway -- gateway.toml

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for the bench")]

use std::sync::Arc;

use carat_gateway::{Config, Env, Gateway, Hands};

fn main() {
    let n_threads = std::thread::available_parallelism().unwrap().get();
    let hands = Hands::start(n_threads).unwrap();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().build().unwrap().block_on(serve(hands));
}

async fn serve(hands: Hands) {
    let path = std::env::args().nth(1).unwrap();
    let env: Env = Arc::new(|name| std::env::var(name).ok());
    let config = Config::open(path.as_ref(), &env).unwrap();
    let listener = carat_gateway::listen(config.listen).await.unwrap();
    println!("http://{}/v1", listener.local_addr().unwrap());
    let gateway = Arc::new(Gateway::new(config).unwrap());
    carat_gateway::run(gateway, listener, hands, std::future::pending()).await;
}
