//! Which trace and which span a request belongs to, as W3C's `traceparent` says it.

use std::fmt;

/// A place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    trace_id: u128,
    span_id: u64,
    is_sampled: bool,
}

impl Context {
    /// Reads a `traceparent` header. One that is not right is none: the trace then begins here.
    pub fn parse(header: &str) -> Option<Self> {
        let bytes = header.trim_matches([' ', '\t']).as_bytes();
        let (known, rest) = bytes.split_at_checked(55)?;
        let [version, trace_id, span_id, flags] =
            [0..2, 3..35, 36..52, 53..55].map(|range| hex(&known[range]));
        let version = version?;
        // Later versions may say more, after another dash.
        let is_fine = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.first().is_none_or(|byte| *byte == b'-'),
        };
        if !is_fine || [2, 35, 52].iter().any(|i| known[*i] != b'-') {
            return None;
        }
        let (trace_id, span_id) = (trace_id?, u64::try_from(span_id?).ok()?);
        (trace_id != 0 && span_id != 0).then_some(Self {
            trace_id,
            span_id,
            is_sampled: flags? & 1 == 1,
        })
    }

    /// A new trace, or a new span under `parent`, which decides whether it is sent.
    pub(crate) fn under(parent: Option<Self>) -> Self {
        Self {
            trace_id: parent.map_or_else(|| fastrand::u128(1..), |parent| parent.trace_id),
            span_id: fastrand::u64(1..),
            is_sampled: parent.is_none_or(|parent| parent.is_sampled),
        }
    }

    pub(crate) fn is_sampled(self) -> bool {
        self.is_sampled
    }

    pub(crate) fn trace_id(self) -> u128 {
        self.trace_id
    }

    pub(crate) fn span_id(self) -> u64 {
        self.span_id
    }
}

/// As a `traceparent` header.
impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.is_sampled);
        write!(f, "00-{:032x}-{:016x}-{flags:02x}", self.trace_id, self.span_id)
    }
}

/// Small letters only, as the standard wants.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0_u128, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_header_is_read_and_written() {
        let context = Context::parse(GOOD).unwrap();
        assert_eq!(context.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(context.to_string(), GOOD);
        let child = Context::under(Some(context));
        assert_eq!(child.trace_id, context.trace_id);
        assert_ne!(child.span_id, context.span_id);
        assert_eq!(Context::parse(&child.to_string()), Some(child));
        let unwanted = Context::parse(&GOOD.replace("-01", "-00")).unwrap();
        assert!(!Context::under(Some(unwanted)).is_sampled);
        assert!(Context::parse(&format!("cc{}-more", &GOOD[2..])).is_some());
    }

    #[test]
    fn what_is_not_right_is_none() {
        let wrong = [
            "",
            "00-1-2-01",
            &GOOD.to_uppercase(),
            &GOOD.replace("00f067aa0ba902b7", "0000000000000000"),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &format!("ff{}", &GOOD[2..]),
            &format!("{GOOD}-more"),
            &format!("cc{}more", &GOOD[2..]),
            &GOOD.replace('-', "_"),
            &GOOD.replace("01", "0g"),
            &"é".repeat(40),
        ];
        for header in wrong {
            assert_eq!(Context::parse(header), None, "{header}");
        }
    }
}
