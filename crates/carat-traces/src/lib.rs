#![forbid(unsafe_code)]
//! Spans of requests, sent to an OpenTelemetry collector beside the work.
//!
//! A [`Tracer`] makes spans; one that ends is put into a bounded queue and sent by a task of its own, in batches, as
//! OTLP over HTTP in JSON. Nobody who answers a request ever waits for the collector: where it is slow or dead, spans are
//! dropped and counted. Whoever traces nothing has no tracer, and pays for a look at an `Option`.
//!
//! [`Trace`] is the span of a request that several hands add to: it ends when the last of them lets go. [`Context`] is
//! what W3C's `traceparent` says. [`genai`] has the names of OpenTelemetry's conventions for generative models; what
//! is said and answered is never among the attributes.

mod context;
mod error;
mod exporter;
pub mod genai;
mod settings;
mod span;
mod wire;

pub use context::Context;
pub use error::Error;
pub use exporter::Tracer;
pub use settings::Settings;
pub use span::{Kind, Span, Trace, Value};
