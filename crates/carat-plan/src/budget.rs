//! Amounts of memory: how people write them, and whether a plan fits into one.

use crate::Error;

/// From this share of the usable memory on, a plan is tight: other programs may need some too.
const TIGHT_PERCENT: u64 = 90;

/// Whether a plan fits into an amount of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// At most 90 % of it.
    Fits,
    /// More than 90 %, but not more than all.
    Tight,
    /// More than there is.
    DoesNotFit,
    /// More tokens than the model was made for, whatever the memory.
    BeyondContext,
}

impl Fit {
    /// How `peak` bytes fit into `usable` bytes.
    #[must_use]
    pub fn of(peak: u64, usable: u64) -> Fit {
        if peak > usable {
            Fit::DoesNotFit
        } else if u128::from(peak) * 100 > u128::from(usable) * u128::from(TIGHT_PERCENT) {
            Fit::Tight
        } else {
            Fit::Fits
        }
    }

    /// In words: `fits`, `tight`, `does not fit`, `beyond context`.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Fit::Fits => "fits",
            Fit::Tight => "tight",
            Fit::DoesNotFit => "does not fit",
            Fit::BeyondContext => "beyond context",
        }
    }

    /// Whether the model can be run so.
    #[must_use]
    pub fn is_possible(self) -> bool {
        matches!(self, Fit::Fits | Fit::Tight)
    }
}

/// Reads an amount such as `16GB`, `7.5 GiB`, `512M` or plain bytes. `K`, `M`, `G`, `T` and those with `B` are
/// powers of ten, those with `iB` powers of two; letter case does not matter.
///
/// # Errors
/// [`Error::Size`] for anything else, for nothing and for more than can be counted.
pub fn parse_bytes(text: &str) -> Result<u64, Error> {
    amount(text, 1000.0)
}

/// Reads an amount of a computer's memory. Modules are sold by powers of two whatever the unit is called, so that `16G`,
/// `16GB` and `16GiB` all are 16 GiB.
///
/// # Errors
/// As [`parse_bytes`].
pub fn parse_memory(text: &str) -> Result<u64, Error> {
    amount(text, 1024.0)
}

/// Reads an amount whose units without an `i` are powers of `thousand`.
fn amount(text: &str, thousand: f64) -> Result<u64, Error> {
    let bad = || Error::Size {
        text: text.to_owned(),
    };
    let trimmed = text.trim();
    let end = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let (base, power) = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => (1.0, 0),
        "k" | "kb" => (thousand, 1),
        "m" | "mb" => (thousand, 2),
        "g" | "gb" => (thousand, 3),
        "t" | "tb" => (thousand, 4),
        "kib" => (1024.0, 1),
        "mib" => (1024.0, 2),
        "gib" => (1024.0, 3),
        "tib" => (1024.0, 4),
        _ => return Err(bad()),
    };
    let bytes = number * f64::powi(base, power);
    if (1.0..1e18).contains(&bytes) {
        // In range, so nothing is lost but the fraction of a byte.
        Ok(bytes as u64)
    } else {
        Err(bad())
    }
}

/// A computer's memory as people say it, in powers of two: `16 GiB`, `7.5 GiB`, `512 MiB`.
#[must_use]
pub fn memory_size(bytes: u64) -> String {
    let (unit, name) = [
        (1u64 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ]
    .into_iter()
    .find(|(unit, _)| bytes >= *unit)
    .unwrap_or((1, "B"));
    let number = format!("{:.1}", bytes as f64 / unit as f64);
    format!("{} {name}", number.trim_end_matches(".0"))
}

/// Bytes as people say them, in powers of ten: `253 MB`, `7.4 GB`, `54 GB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    let n = bytes as f64;
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..999_500 => format!("{:.0} kB", n / 1e3),
        999_500..999_500_000 => format!("{:.0} MB", n / 1e6),
        999_500_000..99_950_000_000 => format!("{:.1} GB", n / 1e9),
        _ => format!("{:.0} GB", n / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_with_their_units() {
        for (text, bytes) in [
            ("16GB", 16_000_000_000),
            (" 8 GiB ", 8 << 30),
            ("512m", 512_000_000),
            ("1.5g", 1_500_000_000),
            ("4096", 4096),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in [
            "",
            "GB",
            "-1GB",
            "16 gigs",
            "1.2.3GB",
            "0",
            "1e30GB",
            "99999999999TB",
        ] {
            assert!(
                parse_bytes(text)
                    .unwrap_err()
                    .to_string()
                    .contains("no amount of memory"),
                "{text}"
            );
        }
    }

    #[test]
    fn memory_is_sold_by_powers_of_two() {
        for text in ["16GB", "16g", "16 GiB", "16384MB", "17179869184"] {
            assert_eq!(parse_memory(text).unwrap(), 16 << 30, "{text}");
        }
        assert!(parse_memory("lots").is_err());
        for (text, said) in [
            ("16GB", "16 GiB"),
            ("7.5GB", "7.5 GiB"),
            ("512MB", "512 MiB"),
            ("1T", "1 TiB"),
            ("9", "9 B"),
        ] {
            assert_eq!(memory_size(parse_memory(text).unwrap()), said);
        }
    }

    #[test]
    fn the_last_tenth_is_tight() {
        assert_eq!(Fit::of(90, 100), Fit::Fits);
        assert_eq!(Fit::of(91, 100), Fit::Tight);
        assert_eq!(Fit::of(100, 100), Fit::Tight);
        assert_eq!(Fit::of(101, 100), Fit::DoesNotFit);
        assert_eq!(Fit::of(u64::MAX, u64::MAX), Fit::Tight);
    }

    #[test]
    fn sizes_are_said_in_powers_of_ten() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(999_600), "1 MB");
        assert_eq!(size(253_113_024), "253 MB");
        assert_eq!(size(7_366_423_360), "7.4 GB");
        assert_eq!(size(141_000_000_000), "141 GB");
    }
}
