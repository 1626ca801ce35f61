//! Images and documents by address, for providers that take them as data only.
//!
//! They are fetched by the gateway where the configuration allows it (`media-urls`), under [`carat_fetch`]'s guards;
//! else the provider is passed over.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carat_fetch::{FETCHES, Fetched, Fetcher};

use super::{Piece, Question, Source, refused};
use crate::endpoint::Dialect;
use crate::failure::Failure;
use crate::limits::FETCHED_BYTES;

/// Whether a provider takes images as data only.
pub(crate) fn wants_data(dialect: Dialect) -> bool {
    matches!(dialect, Dialect::Gemini | Dialect::Ollama | Dialect::Bedrock)
}

/// Puts data in the place of addresses.
///
/// # Errors
/// When there are too many, or one cannot be fetched.
pub(crate) async fn fill(question: &mut Question, fetcher: &Fetcher) -> Result<(), Failure> {
    let pieces = question.turns.iter_mut().flat_map(|turn| &mut turn.pieces);
    let mut total = 0;
    for (i, source) in sources(pieces).into_iter().enumerate() {
        let Source::Url(url) = source else { continue };
        let cannot = |why: &str| refused("messages", format!("an image cannot be fetched: {why}"));
        if i == FETCHES {
            return Err(cannot(&format!("at most {FETCHES} are fetched for one request")));
        }
        let fetched = fetcher.fetch(url).await;
        let fetched = fetched.map_err(|refusal| cannot(&refusal.to_string()))?;
        total += fetched.bytes.len();
        if total > FETCHED_BYTES {
            return Err(cannot(&format!(
                "together they have more than {} MB",
                FETCHED_BYTES >> 20
            )));
        }
        let media_type = kind(&fetched).ok_or_else(|| cannot("it is neither an image nor a PDF"))?;
        *source = Source::Data {
            media_type,
            data: STANDARD.encode(&fetched.bytes),
        };
    }
    Ok(())
}

/// Sources that are addresses, those in results of calls too.
fn sources<'a>(pieces: impl Iterator<Item = &'a mut Piece>) -> Vec<&'a mut Source> {
    let mut found = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Image { source, .. } | Piece::Document { source, .. } => {
                if matches!(source, Source::Url(url) if url.starts_with("http")) {
                    found.push(source);
                }
            }
            Piece::Result { content, .. } => found.extend(sources(content.iter_mut())),
            _ => {}
        }
    }
    found
}

/// What a file is: told from its first bytes, else by who sent it.
fn kind(fetched: &Fetched) -> Option<String> {
    let bytes = fetched.bytes.as_slice();
    let known = match bytes {
        [0x89, b'P', b'N', b'G', ..] => "image/png",
        [0xff, 0xd8, 0xff, ..] => "image/jpeg",
        [b'G', b'I', b'F', b'8', ..] => "image/gif",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        [b'%', b'P', b'D', b'F', b'-', ..] => "application/pdf",
        _ => {
            let stated = fetched.kind.clone()?;
            return stated.starts_with("image/").then_some(stated);
        }
    };
    Some(known.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_first_bytes() {
        let of = |bytes: &[u8], stated: Option<&str>| {
            kind(&Fetched {
                bytes: bytes.to_vec(),
                kind: stated.map(ToString::to_string),
            })
        };
        assert_eq!(
            of(b"\x89PNG\r\n", Some("text/html")).as_deref(),
            Some("image/png")
        );
        assert_eq!(of(b"%PDF-1.7", None).as_deref(), Some("application/pdf"));
        assert_eq!(of(b"....", Some("image/avif")).as_deref(), Some("image/avif"));
        assert_eq!(of(b"<html>", Some("text/html")), None);
        assert_eq!(of(b"", None), None);
    }
}
