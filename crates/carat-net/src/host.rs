//! Names that a request may be addressed to where no key is asked for.
//!
//! A page on the web can have its own name point to this machine once it is loaded; the browser then takes the machine's
//! answers for the page's own (DNS rebinding). Its requests tell by their `Host`: the page's name.

use std::net::IpAddr;

/// Whether `host`, with or without a port, can be nobody else's name: an address, a name without a dot, or one of those
/// that stand for this machine or its own network (`.localhost`, `.local`, `.internal`).
#[must_use]
pub fn is_own_name(host: &str) -> bool {
    let name = name_of(host);
    let is_address = name
        .trim_matches(|c| matches!(c, '[' | ']'))
        .parse::<IpAddr>()
        .is_ok();
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let is_near = [".localhost", ".local", ".internal"]
        .iter()
        .any(|end| name.ends_with(end));
    is_address || is_near || !name.contains('.')
}

/// A host without its port.
#[must_use]
pub fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        // An address of IPv6 without brackets has no port.
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_and_of_others() {
        for host in [
            "localhost:8080",
            "LOCALHOST.",
            "127.0.0.1:8080",
            "127.0.0.1",
            "[::1]:8080",
            "[::1]",
            "::1",
            "laptop",
            "chat.localhost:80",
            "host.docker.internal:8080",
        ] {
            assert!(is_own_name(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "localhost.evil.example.",
        ] {
            assert!(!is_own_name(host), "{host}");
        }
    }
}
