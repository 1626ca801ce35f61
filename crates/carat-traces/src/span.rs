//! Spans while they are made.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::context::Context;
use crate::exporter::Tracer;

/// Longest text of an attribute or a name, in bytes; clients choose some of them.
const TEXT_BYTES: usize = 512;
/// Most attributes of a span.
const ATTRIBUTES: usize = 64;

/// Which side of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It answers.
    Server,
    /// It asks somebody else.
    Client,
}

/// What an attribute says.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A text.
    Text(Cow<'static, str>),
    /// A whole number.
    Int(i64),
    /// Any number.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// Several texts.
    Texts(Vec<Cow<'static, str>>),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Float(number)
    }
}

impl From<bool> for Value {
    fn from(is_so: bool) -> Self {
        Self::Bool(is_so)
    }
}

impl From<Duration> for Value {
    /// Seconds.
    fn from(time: Duration) -> Self {
        Self::Float(time.as_secs_f64())
    }
}

impl Value {
    fn short(self) -> Self {
        match self {
            Self::Text(text) => Self::Text(short(text)),
            Self::Texts(texts) => Self::Texts(texts.into_iter().take(ATTRIBUTES).map(short).collect()),
            other => other,
        }
    }
}

fn short(text: Cow<'static, str>) -> Cow<'static, str> {
    if text.len() <= TEXT_BYTES {
        return text;
    }
    let end = text.floor_char_boundary(TEXT_BYTES);
    Cow::Owned(text[..end].to_string())
}

/// What a span has become when it ends.
#[derive(Debug)]
pub(crate) struct SpanData {
    pub(crate) name: Cow<'static, str>,
    pub(crate) kind: Kind,
    pub(crate) context: Context,
    /// The span above it.
    pub(crate) parent: Option<u64>,
    pub(crate) started: SystemTime,
    pub(crate) took: Duration,
    pub(crate) attributes: Vec<(&'static str, Value)>,
    pub(crate) is_error: bool,
}

/// Something that takes time. It ends when it is dropped.
pub struct Span {
    context: Context,
    began: Instant,
    tracer: Tracer,
    /// Nothing, if nobody wants to have it.
    data: Option<Box<SpanData>>,
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Span({})", self.context)
    }
}

impl Span {
    pub(crate) fn begin(
        tracer: &Tracer,
        kind: Kind,
        name: Cow<'static, str>,
        parent: Option<Context>,
    ) -> Self {
        let context = Context::under(parent);
        let data = context.is_sampled().then(|| {
            Box::new(SpanData {
                name: short(name),
                kind,
                context,
                parent: parent.map(Context::span_id),
                started: SystemTime::now(),
                took: Duration::ZERO,
                attributes: Vec::with_capacity(16),
                is_error: false,
            })
        });
        Self {
            context,
            began: Instant::now(),
            tracer: tracer.clone(),
            data,
        }
    }

    /// Which one it is, for whoever is asked in the course of it.
    pub fn context(&self) -> Context {
        self.context
    }

    /// Says something of it; what was said before under this name no longer counts.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        let Some(data) = &mut self.data else { return };
        let value = value.into().short();
        if let Some((_, old)) = data.attributes.iter_mut().find(|(other, _)| *other == name) {
            *old = value;
        } else if data.attributes.len() < ATTRIBUTES {
            data.attributes.push((name, value));
        }
    }

    /// A text that was said of it.
    pub fn text(&self, name: &str) -> Option<&str> {
        let attributes = &self.data.as_ref()?.attributes;
        match attributes.iter().find(|(other, _)| *other == name)? {
            (_, Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Says why it failed: a word that many failures have in common.
    pub fn fail(&mut self, kind: impl Into<Value>) {
        self.set(crate::genai::ERROR_TYPE, kind);
        if let Some(data) = &mut self.data {
            data.is_error = true;
        }
    }

    /// Another name.
    pub fn rename(&mut self, name: String) {
        if let Some(data) = &mut self.data {
            data.name = short(name.into());
        }
    }

    /// How long it has taken so far.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(mut data) = self.data.take() {
            data.took = self.began.elapsed();
            self.tracer.take(data);
        }
    }
}

/// A request's span, which ends when the last one who holds it lets go.
#[derive(Debug, Clone)]
pub struct Trace {
    span: Arc<Mutex<Span>>,
    context: Context,
    tracer: Tracer,
}

impl Trace {
    /// Begins it, under what the client's `traceparent` says.
    pub fn begin(tracer: &Tracer, name: &'static str, traceparent: Option<&str>) -> Self {
        let parent = traceparent.and_then(Context::parse);
        let span = Span::begin(tracer, Kind::Server, name.into(), parent);
        Self {
            context: span.context(),
            span: Arc::new(Mutex::new(span)),
            tracer: tracer.clone(),
        }
    }

    /// Adds to it.
    pub fn span(&self) -> MutexGuard<'_, Span> {
        self.span.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call to somebody else in the course of it.
    pub fn child(&self, name: String) -> Span {
        Span::begin(&self.tracer, Kind::Client, name.into(), Some(self.context))
    }
}
