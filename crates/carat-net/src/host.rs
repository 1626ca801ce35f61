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

/// Whether a request is one of a page that is neither of `host`, which it is to, nor of this machine. Browsers tell whose
/// page asks by `origin`, and keep the answer from a foreign one, but send some requests without asking first. Origins of
/// schemes other than HTTP's are those of programs and extensions.
#[must_use]
pub fn is_of_a_foreign_page(origin: &str, host: Option<&str>) -> bool {
    let name = match origin.split_once("://") {
        Some(("http" | "https", page)) => name_of(page),
        Some(_) => return false,
        // Pages of nowhere are `null`.
        None => return true,
    };
    let is_hosts = host.is_some_and(|host| name_of(host).eq_ignore_ascii_case(name));
    !is_hosts && !is_loopback(name)
}

/// Whether a name without its port is this machine's alone.
#[must_use]
pub fn is_loopback(name: &str) -> bool {
    matches!(name, "localhost" | "127.0.0.1" | "[::1]")
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

    #[test]
    fn pages_of_this_machine_and_of_others() {
        let is_foreign = |origin: &str| is_of_a_foreign_page(origin, Some("box.local:8080"));
        for origin in [
            "https://evil.example",
            "http://203.0.113.9",
            "https://box.local.evil.example",
            "http://localhost.evil.example:8080",
            "null",
            "",
        ] {
            assert!(is_foreign(origin), "{origin}");
        }
        for origin in [
            "http://box.local:3000",
            "http://localhost:5173",
            "https://127.0.0.1",
            "http://[::1]:80",
            "app://notes",
            "chrome-extension://abc",
        ] {
            assert!(!is_foreign(origin), "{origin}");
        }
        assert!(is_of_a_foreign_page("http://box.local", None));
    }
}
