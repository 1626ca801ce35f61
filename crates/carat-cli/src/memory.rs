//! What the system says about memory. Linux only; elsewhere nothing is known.

use std::fs;

/// Most memory that this process has held, in bytes.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Memory of the machine and what of it is available, in bytes.
pub(crate) fn machine_bytes() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some((field(&text, "MemTotal:")?, field(&text, "MemAvailable:")?))
}

/// A `Name:   123 kB` line in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let text = "MemTotal:       16318480 kB\nMemFree: x kB\n";
        assert_eq!(field(text, "MemTotal:"), Some(16_318_480 * 1024));
        assert_eq!(field(text, "MemFree:"), None);
        assert_eq!(field(text, "VmHWM:"), None);
    }
}
