//! The pieces of a tokenizer: one arena of bytes, their classes, and the way from bytes to id.
//!
//! SentencePiece writes a blank inside a piece as `▁` (U+2581) and GGUF files write some of them as a plain blank.
//! Here every `▁` is kept as a plain blank: texts then need no copy before they are matched, blanks take one byte
//! instead of three, and decoding a piece is a slice. Everything in a file is untrusted, so that [`Builder`] checks
//! each piece before it is stored.

use std::borrow::Cow;

use crate::border::Borders;
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::piece_index::PieceIndex;

/// SentencePiece's visible blank.
pub(crate) const VISIBLE_BLANK: &str = "\u{2581}";

/// Gemma 3 and 4 have 262,144 to 262,208 pieces; four times that leaves room and bounds memory.
const PIECE_LIMIT: usize = 1 << 20;

/// Gemma's longest piece has 48 bytes. The limit keeps matching linear in the text.
const PIECE_BYTES_LIMIT: usize = 1024;

/// All single bytes, so that byte pieces can be handed out as slices.
static BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut i = 0;
    while i < 256 {
        bytes[i] = i as u8;
        i += 1;
    }
    bytes
};

/// The checked pieces of one tokenizer.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    pieces: Pieces,
    index: PieceIndex,
    byte_ids: Box<[u32; 256]>,
    borders: Borders,
    longest_mergeable: usize,
}

impl Vocabulary {
    /// Number of pieces.
    pub(crate) fn len(&self) -> usize {
        self.pieces.kinds.len()
    }

    /// Class of `id`, if there is such a piece.
    pub(crate) fn kind(&self, id: u32) -> Option<Kind> {
        self.pieces.kinds.get(id as usize).copied()
    }

    /// Piece of `id` with plain blanks; empty when there is no such piece.
    #[inline]
    pub(crate) fn piece(&self, id: u32) -> &str {
        self.pieces.get(id)
    }

    /// What `id` stands for in text, in bytes; empty when there is no such piece.
    #[inline]
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        let piece = self.piece(id);
        match self.kind(id) {
            Some(Kind::Byte) => byte_of(piece).map_or(&[], |byte| &BYTES[byte as usize..=byte as usize]),
            _ => piece.as_bytes(),
        }
    }

    /// Id of a piece given with plain blanks.
    pub(crate) fn find(&self, piece: &[u8]) -> Option<u32> {
        self.index.find(piece, |id| self.pieces.get(id).as_bytes())
    }

    /// [`find`](Self::find) for many pieces: `ids` becomes their ids, in order.
    pub(crate) fn find_all<'p>(
        &self,
        pieces: impl Iterator<Item = &'p [u8]> + Clone,
        ids: &mut Vec<Option<u32>>,
    ) {
        self.index
            .find_all(pieces, |id| self.pieces.get(id).as_bytes(), ids);
    }

    /// Id of a piece that merges may produce.
    #[inline]
    pub(crate) fn find_mergeable(&self, piece: &[u8]) -> Option<u32> {
        if piece.len() > self.longest_mergeable {
            return None;
        }
        self.find(piece)
            .filter(|&id| self.pieces.kinds[id as usize].is_mergeable())
    }

    /// Id of the piece for one raw byte.
    #[inline]
    pub(crate) fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[byte as usize]
    }

    /// Where texts may be cut.
    pub(crate) fn borders(&self) -> &Borders {
        &self.borders
    }
}

/// Arena, ends and classes, in id order.
#[derive(Debug, Default)]
struct Pieces {
    text: String,
    ends: Vec<u32>,
    kinds: Vec<Kind>,
}

impl Pieces {
    #[inline]
    fn get(&self, id: u32) -> &str {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return "" };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.text[start as usize..end as usize]
    }
}

/// Takes the pieces in id order.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    pieces: Pieces,
    /// Ids whose file writes a plain blank: two spellings of one piece are then no defect.
    plain_blanks: Vec<u32>,
}

impl Builder {
    /// A builder with room for `n` pieces; `n` comes from a file, so it is only a hint.
    pub(crate) fn with_capacity(n: usize) -> Self {
        let mut builder = Self::default();
        let n = n.min(PIECE_LIMIT);
        builder.pieces.text.reserve(n.saturating_mul(9));
        builder.pieces.ends.reserve(n);
        builder.pieces.kinds.reserve(n);
        builder
    }

    /// Number of pieces so far.
    pub(crate) fn len(&self) -> usize {
        self.pieces.kinds.len()
    }

    /// Adds the next piece as its file writes it.
    pub(crate) fn push(&mut self, raw: &[u8], kind: Kind) -> Result<()> {
        let id = self.len();
        let raw = check_piece(id, raw)?;
        if raw.contains(' ') {
            self.plain_blanks.push(id as u32);
        }
        push_with_plain_blanks(&mut self.pieces.text, raw);
        // At most PIECE_LIMIT pieces of PIECE_BYTES_LIMIT bytes: 2^30, which fits.
        self.pieces.ends.push(self.pieces.text.len() as u32);
        self.pieces.kinds.push(if raw.is_empty() {
            Kind::Unused
        } else {
            kind.settled(raw)
        });
        Ok(())
    }

    /// Checks the whole and builds the index.
    pub(crate) fn finish(self) -> Result<Vocabulary> {
        let Self {
            mut pieces,
            plain_blanks,
        } = self;
        let n = pieces.kinds.len();
        if n == 0 {
            return Err(Error::PieceCount {
                found: 0,
                limit: PIECE_LIMIT,
            });
        }
        pieces.text.shrink_to_fit();
        pieces.ends.shrink_to_fit();
        pieces.kinds.shrink_to_fit();
        let index = index_of(&pieces, &plain_blanks)?;
        let byte_ids = byte_ids_of(&pieces, &index)?;
        let mut borders = Borders::new();
        let mut longest_mergeable = 0;
        for id in (0..n as u32).filter(|&id| pieces.kinds[id as usize].is_mergeable()) {
            let piece = pieces.get(id);
            borders.add(piece);
            longest_mergeable = longest_mergeable.max(piece.len());
        }
        Ok(Vocabulary {
            pieces,
            index,
            byte_ids,
            borders,
            longest_mergeable,
        })
    }
}

/// The piece of `id` as text, unless ids, lengths or bytes are out of bounds.
pub(crate) fn check_piece(id: usize, raw: &[u8]) -> Result<&str> {
    if id >= PIECE_LIMIT {
        return Err(Error::PieceCount {
            found: id + 1,
            limit: PIECE_LIMIT,
        });
    }
    if raw.len() > PIECE_BYTES_LIMIT {
        return Err(Error::PieceTooLong {
            id,
            bytes: raw.len(),
            limit: PIECE_BYTES_LIMIT,
        });
    }
    std::str::from_utf8(raw).map_err(|_| Error::PieceNotText { id })
}

/// Indexes all pieces but the unused ones.
fn index_of(pieces: &Pieces, plain_blanks: &[u32]) -> Result<PieceIndex> {
    let mut index = PieceIndex::with_capacity(pieces.kinds.len());
    for id in 0..pieces.kinds.len() as u32 {
        if pieces.kinds[id as usize] == Kind::Unused {
            continue;
        }
        let piece = pieces.get(id);
        if let Some(first) = index.insert(piece.as_bytes(), id, |held| pieces.get(held).as_bytes())? {
            let spelled_plainly = |id: u32| plain_blanks.binary_search(&id).is_ok();
            if spelled_plainly(first) == spelled_plainly(id) {
                return Err(Error::DuplicatePiece {
                    first,
                    second: id,
                    piece: piece.to_owned(),
                });
            }
        }
    }
    Ok(index)
}

/// The ids of `<0x00>` to `<0xFF>`, all of which must exist.
///
/// Hugging Face's converter has written Gemma files in which the piece of the tab stands in place of `<0x09>`; a
/// character's own piece therefore does as well.
fn byte_ids_of(pieces: &Pieces, index: &PieceIndex) -> Result<Box<[u32; 256]>> {
    let find = |name: &[u8], is_right: fn(Kind) -> bool| {
        let id = index.find(name, |id| pieces.get(id).as_bytes())?;
        is_right(pieces.kinds[id as usize]).then_some(id)
    };
    let mut ids = Box::new([0; 256]);
    for byte in 0..=255_u8 {
        let own = find(format!("<0x{byte:02X}>").as_bytes(), |kind| kind == Kind::Byte);
        let id = own.or_else(|| {
            if byte.is_ascii() {
                find(&[byte], Kind::is_mergeable)
            } else {
                None
            }
        });
        ids[byte as usize] = id.ok_or(Error::MissingBytePiece { byte })?;
    }
    Ok(ids)
}

/// The byte that a piece such as `<0x0A>` names.
pub(crate) fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2
        || !digits
            .bytes()
            .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_lowercase())
    {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// `text` with each `▁` as a blank; borrowed when it has none.
pub(crate) fn with_plain_blanks(text: &str) -> Cow<'_, str> {
    if may_have_visible_blank(text) && text.contains(VISIBLE_BLANK) {
        Cow::Owned(text.replace(VISIBLE_BLANK, " "))
    } else {
        Cow::Borrowed(text)
    }
}

/// Appends `text` with each `▁` as a blank.
#[inline]
pub(crate) fn push_with_plain_blanks(to: &mut String, text: &str) {
    // Nearly every `▁` of a piece is its first character.
    let (rest, first) = match text.strip_prefix(VISIBLE_BLANK) {
        Some(rest) => (rest, " "),
        None => (text, ""),
    };
    to.push_str(first);
    if may_have_visible_blank(rest) {
        to.push_str(&rest.replace(VISIBLE_BLANK, " "));
    } else {
        to.push_str(rest);
    }
}

/// False only when there is no `▁`: a search for one byte costs little, one for a string more than a piece is long.
#[inline]
fn may_have_visible_blank(text: &str) -> bool {
    text.as_bytes().contains(&VISIBLE_BLANK.as_bytes()[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder_with_bytes() -> Builder {
        let mut builder = Builder::with_capacity(300);
        for byte in 0..=255_u8 {
            builder
                .push(format!("<0x{byte:02X}>").as_bytes(), Kind::Byte)
                .unwrap();
        }
        builder
    }

    #[test]
    fn blanks_are_kept_plain_and_bytes_stand_for_themselves() {
        let mut builder = builder_with_bytes();
        builder.push("\u{2581}the".as_bytes(), Kind::Normal).unwrap();
        let vocabulary = builder.finish().unwrap();
        assert_eq!(vocabulary.find(b" the"), Some(256));
        assert_eq!(vocabulary.bytes(256), b" the");
        assert_eq!(vocabulary.bytes(0xC3), [0xC3]);
        assert_eq!(vocabulary.byte_id(0xC3), 0xC3);
        assert_eq!(vocabulary.find_mergeable(b"<0x41>"), None);
        assert_eq!(vocabulary.piece(9999), "");
    }

    #[test]
    fn defects_are_errors() {
        assert!(matches!(
            Builder::default().finish(),
            Err(Error::PieceCount { found: 0, .. })
        ));
        let mut builder = builder_with_bytes();
        assert!(matches!(
            builder.push(b"\xFF", Kind::Normal),
            Err(Error::PieceNotText { id: 256 })
        ));
        assert!(matches!(
            builder.push(&[b'a'; 2000], Kind::Normal),
            Err(Error::PieceTooLong { .. })
        ));
        builder.push(b"a", Kind::Normal).unwrap();
        builder.push(b"a", Kind::Normal).unwrap();
        assert!(matches!(
            builder.finish(),
            Err(Error::DuplicatePiece {
                first: 256,
                second: 257,
                ..
            })
        ));
        let mut builder = Builder::default();
        builder.push(b"a", Kind::Normal).unwrap();
        assert!(matches!(
            builder.finish(),
            Err(Error::MissingBytePiece { byte: 0 })
        ));
    }

    #[test]
    fn a_tab_may_stand_in_for_its_byte() {
        let mut builder = Builder::default();
        for byte in 0..=255_u8 {
            let (piece, kind) = match byte {
                9 => ("\t".to_owned(), Kind::Normal),
                _ => (format!("<0x{byte:02X}>"), Kind::Byte),
            };
            builder.push(piece.as_bytes(), kind).unwrap();
        }
        let vocabulary = builder.finish().unwrap();
        assert_eq!(vocabulary.byte_id(9), 9);
        assert_eq!(vocabulary.bytes(9), b"\t");
    }

    #[test]
    fn two_spellings_of_a_blank_are_one_piece() {
        let mut builder = builder_with_bytes();
        builder.push("\u{2581}\u{2581}".as_bytes(), Kind::Normal).unwrap();
        builder.push(b"  ", Kind::UserDefined).unwrap();
        assert_eq!(builder.finish().unwrap().find(b"  "), Some(256));
    }
}
