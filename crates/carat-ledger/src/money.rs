//! Money as whole millionths of a dollar.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Millionths of a dollar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(pub u64);

impl Micros {
    /// The sum, at most the largest amount there is.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, at least nothing.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

impl FromStr for Micros {
    type Err = String;

    /// Dollars with up to six decimals, such as `12.50`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no amount of dollars with up to six decimals, such as 12.50");
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let is_number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || decimals.len() > 6 || !is_number(whole) || !is_number(decimals) {
            return Err(wrong());
        }
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let decimals: u64 = format!("{decimals:0<6}").parse().map_err(|_| wrong())?;
        let micros = whole
            .checked_mul(1_000_000)
            .and_then(|micros| micros.checked_add(decimals));
        // The database keeps signed numbers.
        micros
            .filter(|micros| *micros <= i64::MAX as u64)
            .map(Self)
            .ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_exactly() {
        assert_eq!("12.5".parse(), Ok(Micros(12_500_000)));
        assert_eq!("0.000001".parse(), Ok(Micros(1)));
        assert_eq!(Micros(12_500_001).to_string(), "$12.500001");
        for wrong in ["", "-1", "1e3", "0.0000001", "99999999999999999", ".5", "1.x"] {
            assert!(wrong.parse::<Micros>().is_err(), "{wrong}");
        }
    }
}
