//! What a vocabulary piece is for, and how the three file formats' opinions on it are made one.
//!
//! The same Gemma token is "control" in one file, "user defined" in another and an added token with a flag in a
//! third. Ids must not depend on the file, and untrusted text must never become a turn marker, so the names of
//! Gemma's own markers decide where the files differ.

/// The class of one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Reached by merges only.
    Normal,
    /// `<0x00>` to `<0xFF>`: one raw byte.
    Byte,
    /// Part of the prompt format (`<bos>`, `<start_of_turn>`); hidden from readers.
    Control,
    /// Part of the prompt format that parsers of the answer must see (`<|tool_call>`).
    Marker,
    /// Matched in any text before merging (runs of newlines, HTML tags).
    UserDefined,
    /// `<unk>`.
    Unknown,
    /// Padding rows of the embedding; never produced.
    Unused,
}

impl Kind {
    /// From the numbers that SentencePiece and GGUF share: 1 normal, 2 unknown, 3 control, 4 user defined,
    /// 5 unused, 6 byte.
    pub(crate) fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// The number by which [`from_number`](Self::from_number) and [`settled`](Self::settled) find it again.
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::Marker | Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }

    /// Whether merges may produce it.
    pub(crate) fn is_mergeable(self) -> bool {
        matches!(self, Self::Normal | Self::UserDefined)
    }

    /// Whether it is recognised in text only when special tokens are parsed.
    pub(crate) fn is_parsed_only(self) -> bool {
        matches!(self, Self::Control | Self::Marker | Self::Unknown)
    }

    /// Whether readers of decoded text do not want to see it.
    pub(crate) fn is_hidden(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }

    /// The class by which carat treats a piece that its file calls `self`.
    pub(crate) fn settled(self, piece: &str) -> Self {
        match self {
            Self::UserDefined | Self::Control if piece == "<unk>" => Self::Unknown,
            Self::UserDefined if is_control_name(piece) => Self::Control,
            Self::UserDefined if is_marker_name(piece) => Self::Marker,
            other => other,
        }
    }
}

/// Markers that some files call user defined although no reader should see them.
fn is_control_name(piece: &str) -> bool {
    let unused = piece
        .strip_prefix("<unused")
        .and_then(|rest| rest.strip_suffix('>'));
    if unused.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())) {
        return true;
    }
    matches!(
        piece,
        "<pad>"
            | "<eos>"
            | "<bos>"
            | "<mask>"
            | "<start_of_turn>"
            | "<end_of_turn>"
            | "<start_of_image>"
            | "<end_of_image>"
            | "<image_soft_token>"
    )
}

/// Markers of tool calls and channels: plain in messages, visible in answers.
fn is_marker_name(piece: &str) -> bool {
    piece.starts_with("<|")
        || piece.ends_with("|>")
        || piece.starts_with("<start_")
        || piece.starts_with("<end_")
        || matches!(piece, "<escape>" | "[multimodal]")
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn names_decide_where_files_differ() {
        let settle = |piece| Kind::UserDefined.settled(piece);
        assert_eq!(settle("<start_of_image>"), Kind::Control);
        assert_eq!(settle("<unused12>"), Kind::Control);
        assert_eq!(settle("<unused>"), Kind::UserDefined);
        assert_eq!(settle("<unusedX>"), Kind::UserDefined);
        assert_eq!(settle("<|\"|>"), Kind::Marker);
        assert_eq!(settle("<tool_call|>"), Kind::Marker);
        assert_eq!(settle("<start_function_call>"), Kind::Marker);
        assert_eq!(settle("<h1>"), Kind::UserDefined);
        assert_eq!(settle("\n\n"), Kind::UserDefined);
        assert_eq!(Kind::Control.settled("<unk>"), Kind::Unknown);
        assert_eq!(Kind::Normal.settled("<start_of_turn>"), Kind::Normal);
    }

    #[test]
    fn a_settled_kind_survives_as_its_number() {
        for piece in ["<unk>", "<bos>", "<|tool>", "<h1>", "\n\n", "a"] {
            for number in 1..=6 {
                let settled = Kind::from_number(number).unwrap().settled(piece);
                let again = Kind::from_number(settled.number().into()).unwrap().settled(piece);
                assert_eq!(again, settled, "{piece} {number}");
            }
        }
    }
}
