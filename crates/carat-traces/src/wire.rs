//! OTLP's JSON: field names in camel case, ids in hex, 64-bit numbers as texts.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use serde::ser::{SerializeMap, SerializeSeq, SerializeStruct};
use serde::{Serialize, Serializer};

use crate::span::{Kind, SpanData, Value};

/// A request of `ExportTraceServiceRequest`.
pub(crate) fn body(service: &str, spans: &[Box<SpanData>]) -> Vec<u8> {
    let version = env!("CARGO_PKG_VERSION");
    let resource = [
        ("service.name", Value::from(service.to_string())),
        ("service.version", Value::from(version)),
    ];
    let request = Request {
        resource_spans: [ResourceSpans {
            resource: Resource {
                attributes: Attributes(&resource),
            },
            scope_spans: [ScopeSpans {
                scope: Scope {
                    name: "carat",
                    version,
                },
                spans,
            }],
        }],
    };
    // Maps with keys of text alone cannot fail.
    serde_json::to_vec(&request).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    resource_spans: [ResourceSpans<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    resource: Resource<'a>,
    scope_spans: [ScopeSpans<'a>; 1],
}

#[derive(Serialize)]
struct Resource<'a> {
    attributes: Attributes<'a>,
}

#[derive(Serialize)]
struct ScopeSpans<'a> {
    scope: Scope,
    spans: &'a [Box<SpanData>],
}

#[derive(Serialize)]
struct Scope {
    name: &'static str,
    version: &'static str,
}

impl Serialize for SpanData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut span = serializer.serialize_struct("Span", 9)?;
        span.serialize_field("traceId", &Text(format_args!("{:032x}", self.context.trace_id())))?;
        span.serialize_field("spanId", &Text(format_args!("{:016x}", self.context.span_id())))?;
        if let Some(parent) = self.parent {
            span.serialize_field("parentSpanId", &Text(format_args!("{parent:016x}")))?;
        }
        span.serialize_field("name", &self.name)?;
        let kind = match self.kind {
            Kind::Server => 2,
            Kind::Client => 3,
        };
        span.serialize_field("kind", &kind)?;
        span.serialize_field("startTimeUnixNano", &nanoseconds(started))?;
        span.serialize_field("endTimeUnixNano", &nanoseconds(started.saturating_add(self.took)))?;
        span.serialize_field("attributes", &Attributes(&self.attributes))?;
        if self.is_error {
            span.serialize_field("status", &Status { code: 2 })?;
        }
        span.end()
    }
}

#[derive(Serialize)]
struct Status {
    code: u8,
}

struct Text<'a>(fmt::Arguments<'a>);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

fn nanoseconds(time: Duration) -> String {
    time.as_nanos().to_string()
}

struct Attributes<'a>(&'a [(&'static str, Value)]);

impl Serialize for Attributes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for (key, value) in self.0 {
            list.serialize_element(&Attribute { key, value })?;
        }
        list.end()
    }
}

#[derive(Serialize)]
struct Attribute<'a> {
    key: &'static str,
    value: &'a Value,
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Self::Text(text) => map.serialize_entry("stringValue", text)?,
            Self::Int(number) => map.serialize_entry("intValue", &Text(format_args!("{number}")))?,
            Self::Float(number) if number.is_finite() => map.serialize_entry("doubleValue", number)?,
            Self::Float(_) => map.serialize_entry("doubleValue", "NaN")?,
            Self::Bool(is_so) => map.serialize_entry("boolValue", is_so)?,
            Self::Texts(texts) => {
                let values: Vec<Value> = texts.iter().cloned().map(Value::Text).collect();
                map.serialize_entry("arrayValue", &Values { values })?;
            }
        }
        map.end()
    }
}

#[derive(Serialize)]
struct Values {
    values: Vec<Value>,
}

/// Spans that the collector says it did not take, of those that it was sent.
pub(crate) fn rejected(answer: &[u8]) -> u64 {
    let answer: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
    let n = &answer["partialSuccess"]["rejectedSpans"];
    n.as_u64()
        .or_else(|| n.as_str()?.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;

    #[test]
    fn a_span_is_written_as_the_protocol_wants() {
        let context = Context::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let span = SpanData {
            name: "chat m".into(),
            kind: Kind::Client,
            context,
            parent: Some(1),
            started: UNIX_EPOCH + Duration::from_nanos(1_700_000_000_000_000_100),
            took: Duration::from_nanos(500),
            attributes: vec![
                ("a", "x".into()),
                ("b", u64::MAX.into()),
                ("c", 0.5.into()),
                ("d", true.into()),
                ("e", Value::Texts(vec!["stop".into()])),
                ("f", f64::INFINITY.into()),
            ],
            is_error: true,
        };
        let body: serde_json::Value = serde_json::from_slice(&body("mine", &[Box::new(span)])).unwrap();
        let spans = &body["resourceSpans"][0];
        assert_eq!(spans["resource"]["attributes"][0]["value"]["stringValue"], "mine");
        let span = &spans["scopeSpans"][0]["spans"][0];
        let expected = serde_json::json!({
            "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
            "spanId": "00f067aa0ba902b7",
            "parentSpanId": "0000000000000001",
            "name": "chat m",
            "kind": 3,
            "startTimeUnixNano": "1700000000000000100",
            "endTimeUnixNano": "1700000000000000600",
            "attributes": [
                {"key": "a", "value": {"stringValue": "x"}},
                {"key": "b", "value": {"intValue": "9223372036854775807"}},
                {"key": "c", "value": {"doubleValue": 0.5}},
                {"key": "d", "value": {"boolValue": true}},
                {"key": "e", "value": {"arrayValue": {"values": [{"stringValue": "stop"}]}}},
                {"key": "f", "value": {"doubleValue": "NaN"}},
            ],
            "status": {"code": 2},
        });
        assert_eq!(*span, expected);
    }

    #[test]
    fn a_collector_may_take_a_part() {
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":"3"}}"#), 3);
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":2}}"#), 2);
        assert_eq!(rejected(b"{}"), 0);
        assert_eq!(rejected(b"no JSON"), 0);
    }
}
