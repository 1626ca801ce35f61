//! A writer of SentencePiece files, which nothing but tests writes.

/// A `tokenizer.model` with Gemma's settings: byte-pair encoding with byte pieces, texts taken as they are.
///
/// Each of `pieces` has its text (blanks as U+2581), score and type (1 normal, 2 unknown, 3 control, 4 user
/// defined, 5 unused, 6 byte). The first four are taken for `<pad>`, `<eos>`, `<bos>` and `<unk>`.
#[must_use]
pub fn sentencepiece<'a>(pieces: impl IntoIterator<Item = (&'a str, f32, u8)>) -> Vec<u8> {
    let mut file = Vec::new();
    for (piece, score, kind) in pieces {
        let mut message = Vec::new();
        put_bytes(&mut message, 1, piece.as_bytes());
        put_varint(&mut message, 2 << 3 | 5);
        message.extend(score.to_le_bytes());
        put_numbers(&mut message, &[(3, kind.into())]);
        put_bytes(&mut file, 1, &message);
    }
    // trainer_spec: model_type, byte_fallback, ids of <unk>, <bos>, <eos>, <pad>.
    let mut trainer = Vec::new();
    put_numbers(
        &mut trainer,
        &[(3, 2), (35, 1), (40, 3), (41, 2), (42, 1), (43, 0)],
    );
    put_bytes(&mut file, 2, &trainer);
    // normalizer_spec: add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces.
    let mut normalizer = Vec::new();
    put_numbers(&mut normalizer, &[(3, 0), (4, 0), (5, 1)]);
    put_bytes(&mut file, 3, &normalizer);
    file
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_numbers(out: &mut Vec<u8>, fields: &[(u64, u64)]) {
    for (field, value) in fields {
        put_varint(out, field << 3);
        put_varint(out, *value);
    }
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::sentencepiece;

    #[test]
    fn fields_are_written_one_after_another() {
        let file = sentencepiece([("ab", -1.0, 4)]);
        assert_eq!(file[..13], *b"\x0a\x0b\x0a\x02ab\x15\x00\x00\x80\xbf\x18\x04");
        // Field 35 takes a key of two bytes.
        assert!(
            file[13..].starts_with(b"\x12\x11\x18\x02\x98\x02\x01"),
            "{file:x?}"
        );
    }
}
