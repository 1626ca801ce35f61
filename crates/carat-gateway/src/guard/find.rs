//! Finds what is nobody else's business in a text: addresses, numbers of cards and accounts, keys.
//!
//! Where a number has a checksum (cards, IBANs) it must be right, so that other long numbers stay. Everything that is
//! found is ASCII, so bytes are looked at.

use std::ops::Range;

use serde::Deserialize;

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Email,
    /// With a country's code.
    Phone,
    /// Of credit and debit cards.
    Card,
    Iban,
    /// IPv4 addresses.
    Ip,
    /// Keys of services, tokens, private keys.
    Secret,
}

impl Kind {
    /// What stands in its place.
    pub(crate) fn mark(self) -> &'static str {
        match self {
            Self::Email => "[email]",
            Self::Phone => "[phone]",
            Self::Card => "[card]",
            Self::Iban => "[iban]",
            Self::Ip => "[ip]",
            Self::Secret => "[secret]",
        }
    }
}

/// Something found, and where.
pub(crate) type Found = (Range<usize>, Kind);

/// How keys begin, and how many letters, digits, `-` and `_` follow at least.
const KEYS: [(&str, usize); 19] = [
    ("sk-", 20),
    ("sk_live_", 16),
    ("rk_live_", 16),
    ("pk_live_", 16),
    ("ghp_", 30),
    ("gho_", 30),
    ("ghs_", 30),
    ("ghu_", 30),
    ("github_pat_", 30),
    ("glpat-", 16),
    ("xoxb-", 16),
    ("xoxp-", 16),
    ("xapp-", 16),
    ("AKIA", 16),
    ("ASIA", 16),
    ("AIza", 30),
    ("hf_", 30),
    ("gsk_", 30),
    ("npm_", 30),
];

/// The beginning and the end of a private key's lines.
pub(crate) const KEY_BEGINS: &str = "-----BEGIN ";
pub(crate) const KEY_ENDS: &str = "PRIVATE KEY-----";

/// Everything of these kinds, in order, nothing twice.
pub(crate) fn find(text: &str, kinds: &[Kind]) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for kind in kinds {
        let ranges = match kind {
            Kind::Email => emails(text),
            Kind::Phone => numbers(text, phone),
            Kind::Card => numbers(text, card),
            Kind::Iban => ibans(text),
            Kind::Ip => ips(text),
            Kind::Secret => secrets(text),
        };
        found.extend(ranges.into_iter().map(|range| (range, *kind)));
    }
    // The longer one first where two begin together.
    found.sort_by_key(|(range, _)| (range.start, usize::MAX - range.end));
    let mut end = 0;
    found.retain(|(range, _)| {
        let is_new = range.start >= end;
        if is_new {
            end = range.end;
        }
        is_new
    });
    found
}

/// The text with marks in the place of what was found.
pub(crate) fn marked(text: &str, found: &[Found]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for (range, kind) in found {
        out.push_str(&text[from..range.start]);
        out.push_str(kind.mark());
        from = range.end;
    }
    out.push_str(&text[from..]);
    out
}

/// How far what is `true` goes on from `from`.
fn run(bytes: &[u8], from: usize, is: impl Fn(u8) -> bool) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    from + rest.iter().position(|byte| !is(*byte)).unwrap_or(rest.len())
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

fn is_word_at(bytes: &[u8], at: usize) -> bool {
    bytes.get(at).copied().is_some_and(is_word)
}

fn is_after_word(bytes: &[u8], at: usize) -> bool {
    at.checked_sub(1).is_some_and(|before| is_word_at(bytes, before))
}

fn is_key(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_".contains(&byte)
}

fn emails(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let is_local = |byte: u8| byte.is_ascii_alphanumeric() || b"._%+-".contains(&byte);
    let mut found = Vec::new();
    for at in memchr::memchr_iter(b'@', bytes) {
        let local = bytes[..at]
            .iter()
            .rev()
            .take_while(|byte| is_local(**byte))
            .count();
        let end = run(bytes, at + 1, |byte| {
            byte.is_ascii_alphanumeric() || b".-".contains(&byte)
        });
        let domain = text[at + 1..end].trim_end_matches(['.', '-']);
        let top = domain.rsplit_once('.').map_or("", |(_, top)| top);
        let is_top = top.len() >= 2 && top.bytes().all(|byte| byte.is_ascii_alphabetic());
        if local > 0 && is_top {
            found.push(at - local..at + 1 + domain.len());
        }
    }
    found
}

/// Runs of digits with single spaces, dots, dashes or brackets between them that `is` knows. It is told the digits and
/// whether a `+` stands before them, and gives the number of digits that belong to it.
fn numbers(text: &str, is: fn(&[u8], bool) -> bool) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = bytes
        .get(at..)
        .and_then(|rest| rest.iter().position(u8::is_ascii_digit))
    {
        let start = at + start;
        let has_plus = start > 0 && bytes[start - 1] == b'+';
        // Dots and brackets are for telephones.
        let apart: &[u8] = if has_plus { b" -.()" } else { b" -" };
        let (mut digits, mut end) = (Vec::new(), start);
        let mut i = start;
        while let Some(byte) = bytes.get(i) {
            if byte.is_ascii_digit() {
                digits.push(*byte - b'0');
                end = i + 1;
            } else if !apart.contains(byte) || i - end > 1 || digits.len() > 24 {
                break;
            }
            i += 1;
        }
        at = end.max(start + 1);
        let is_alone = !is_after_word(bytes, start) && !is_word_at(bytes, end);
        if is_alone && is(&digits, has_plus) {
            found.push(start - usize::from(has_plus)..end);
        }
    }
    found
}

fn phone(digits: &[u8], has_plus: bool) -> bool {
    has_plus && (8..=15).contains(&digits.len())
}

/// Luhn's checksum.
fn card(digits: &[u8], _has_plus: bool) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, digit)| {
            let n = u32::from(*digit) << (i % 2);
            if n > 9 { n - 9 } else { n }
        })
        .sum();
    (13..=19).contains(&digits.len()) && sum.is_multiple_of(10) && digits.iter().any(|digit| *digit != 0)
}

fn ibans(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at + 15 <= bytes.len() {
        let begins = bytes[at].is_ascii_uppercase()
            && bytes[at + 1].is_ascii_uppercase()
            && bytes[at + 2].is_ascii_digit()
            && bytes[at + 3].is_ascii_digit()
            && !is_after_word(bytes, at);
        match begins.then(|| iban(bytes, at)).flatten() {
            Some(end) => {
                found.push(at..end);
                at = end;
            }
            None => at += 1,
        }
    }
    found
}

/// The end of the longest IBAN that begins at `from`; groups may be apart by single spaces.
fn iban(bytes: &[u8], from: usize) -> Option<usize> {
    let mut letters: Vec<u8> = Vec::with_capacity(34);
    let mut best = None;
    let mut i = from;
    while letters.len() < 34 {
        match bytes.get(i) {
            Some(byte) if byte.is_ascii_uppercase() || byte.is_ascii_digit() => {
                letters.push(*byte);
                let ends = !bytes.get(i + 1).copied().is_some_and(is_word);
                if ends && letters.len() >= 15 && is_valid_iban(&letters) {
                    best = Some(i + 1);
                }
            }
            Some(b' ') if bytes.get(i + 1).is_some_and(|next| *next != b' ') => {}
            _ => break,
        }
        i += 1;
    }
    best
}

fn is_valid_iban(letters: &[u8]) -> bool {
    let turned = letters[4..].iter().chain(&letters[..4]);
    let rest = turned.fold(0u32, |rest, letter| {
        if letter.is_ascii_digit() {
            (rest * 10 + u32::from(letter - b'0')) % 97
        } else {
            (rest * 100 + u32::from(letter - b'A') + 10) % 97
        }
    });
    rest == 1
}

fn ips(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        let end = run(bytes, at, |byte| byte.is_ascii_digit() || byte == b'.');
        let address = text[at..end].trim_end_matches('.');
        let is_alone = !(at > 0 && (is_word(bytes[at - 1]) || bytes[at - 1] == b'.'))
            && !bytes.get(end).copied().is_some_and(is_word);
        if is_alone && address.parse::<std::net::Ipv4Addr>().is_ok() {
            found.push(at..at + address.len());
        }
        at = end;
    }
    found
}

fn secrets(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    for (start, least) in KEYS {
        for at in memchr::memmem::find_iter(bytes, start.as_bytes()) {
            // Asked first, so that no byte is run over twice.
            if at > 0 && is_key(bytes[at - 1]) {
                continue;
            }
            let end = run(bytes, at + start.len(), is_key);
            if end - at - start.len() >= least {
                found.push(at..end);
            }
        }
    }
    // A JSON Web Token: three parts, of which the first begins an object.
    // Several may begin in one run, which is run over once: its end, and the same without dots.
    let (mut end, mut last) = (0, 0);
    for at in memchr::memmem::find_iter(bytes, b"eyJ") {
        if at > 0 && is_key(bytes[at - 1]) {
            continue;
        }
        if at >= end {
            end = run(bytes, at, |byte| is_key(byte) || byte == b'.');
            last = at + text[at..end].trim_end_matches('.').len();
        }
        // A fourth part is enough to know that it is none.
        if last - at > 40 && text[at..last].split('.').take(4).count() == 3 {
            found.push(at..last);
        }
    }
    found.extend(private_keys(text));
    found
}

fn private_keys(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find(KEY_BEGINS) {
        let start = at + start;
        at = start + KEY_BEGINS.len();
        // Not searched to the end of the text, which may have nothing but heads.
        let near = &text.as_bytes()[at..text.len().min(at + 40 + KEY_ENDS.len())];
        let head = memchr::memmem::find(near, KEY_ENDS.as_bytes()).filter(|head| *head < 40);
        let Some(head) = head else { continue };
        let body = at + head + KEY_ENDS.len();
        let end = text[body..]
            .find(KEY_ENDS)
            .map_or(text.len(), |end| body + end + KEY_ENDS.len());
        found.push(start..end);
        at = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Kind; 6] = [
        Kind::Email,
        Kind::Phone,
        Kind::Card,
        Kind::Iban,
        Kind::Ip,
        Kind::Secret,
    ];

    fn scrubbed(text: &str) -> String {
        marked(text, &find(text, &ALL))
    }

    #[test]
    fn what_is_private_is_found() {
        let cases = [
            ("write to Ann.Lee+x@mail.example.org.", "write to [email]."),
            ("<a@b.co>, c@d.museum", "<[email]>, [email]"),
            ("call +49 (30) 1234-5678 now", "call [phone] now"),
            ("card 4111 1111 1111 1111!", "card [card]!"),
            ("5500-0000-0000-0004", "[card]"),
            ("IBAN DE89 3704 0044 0532 0130 00, please", "IBAN [iban], please"),
            ("GB82WEST12345698765432", "[iban]"),
            ("from 192.168.1.254 to 10.0.0.1.", "from [ip] to [ip]."),
            ("key=sk-proj-abcdefghijklmnopqrstuvwx;", "key=[secret];"),
            ("AKIAIOSFODNN7EXAMPLE", "[secret]"),
            ("ghp_0123456789abcdefghijklmnopqrstuvwxyz", "[secret]"),
            (
                "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
                "Bearer [secret]",
            ),
            (
                "a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nb",
                "a\n[secret]\nb",
            ),
            ("-----BEGIN PRIVATE KEY-----\nMIIE and no end", "[secret]"),
        ];
        for (text, expected) in cases {
            assert_eq!(scrubbed(text), expected);
        }
    }

    #[test]
    fn what_only_looks_like_it_stays() {
        let texts = [
            "@everyone, see a@b or @c.org",
            "1234567890123456 is no card",
            "order 0000000000000000",
            "DE00 3704 0044 0532 0130 00",
            "version 1.2.3.4.5 and 300.1.1.1 and v1.2.3.4x",
            "sk-short and disk-0123456789012345678901234",
            "on 2026-11-21 at 17:00, 12345 people, pi is 3.14159265358979",
            "+1 is not a number; 1+1=2",
            "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----",
            "eyJust a word",
        ];
        for text in texts {
            assert_eq!(scrubbed(text), text);
        }
    }

    /// Where each beginning is looked at to the end of the text this takes minutes.
    #[test]
    fn beginnings_of_secrets_without_end_take_no_forever() {
        let many = |begins: &str| begins.repeat((2 << 20) / begins.len());
        let secrets = |text: &str| find(text, &[Kind::Secret]);
        let keys = many("sk-");
        assert_eq!(secrets(&keys), [(0..keys.len(), Kind::Secret)]);
        let tokens = many(".eyJ");
        assert!(secrets(&tokens).is_empty());
        let token = format!("eyJ{}.b.c", "a".repeat(40));
        let at = tokens.len() + 1;
        let expected = [(at..at + token.len(), Kind::Secret)];
        assert_eq!(secrets(&format!("{tokens}.{token}... and more")), expected);
        assert!(secrets(&many(KEY_BEGINS)).is_empty());
    }

    proptest! {
        #[test]
        fn any_text_can_be_looked_at(text in "(\\PC|[0-9 .+@-]|sk-|eyJ|AKIA|-----BEGIN |PRIVATE KEY-----|DE89){0,60}") {
            let found = find(&text, &ALL);
            prop_assert!(found.windows(2).all(|two| two[0].0.end <= two[1].0.start));
            scrubbed(&text);
        }
    }
}
