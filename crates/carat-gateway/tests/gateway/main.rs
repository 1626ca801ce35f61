//! The gateway over real sockets, in front of providers that behave well and badly.

#![expect(clippy::unwrap_used, reason = "what goes wrong in the rig is a failed test")]

mod admin;
mod apis;
mod continuing;
mod dialects;
mod failing;
mod forwarding;
mod https;
mod keeping;
mod logging;
mod money;
mod patience;
mod routing;
mod support;
mod traces;
