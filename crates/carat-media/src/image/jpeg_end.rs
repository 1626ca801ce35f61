//! Whether a JPEG file has its end.
//!
//! The decoder fills what is missing with grey and says nothing; the reference refuses such a file. So the markers
//! are walked before: header segments by their lengths, entropy-coded data byte by byte, until the end marker.

const MARKER: u8 = 0xff;
const START: u8 = 0xd8;
const END: u8 = 0xd9;

/// Whether an end-of-image marker follows the last scan of `bytes`.
pub(super) fn has_end(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(code) = next_marker(&mut rest) {
        match code {
            END => return true,
            // Stuffed bytes, fill bytes, restarts and the start itself carry no length.
            0x00 | 0x01 | 0xd0..=0xd7 | START | MARKER => {}
            _ => {
                let Some(length) = rest.first_chunk::<2>() else {
                    return false;
                };
                let length = usize::from(u16::from_be_bytes(*length)).max(2);
                // A segment that reaches beyond the file: nothing follows it.
                let Some(after) = rest.get(length..) else {
                    return false;
                };
                rest = after;
            }
        }
    }
    false
}

/// Moves behind the next 0xff and the byte after it, which is given back.
fn next_marker(rest: &mut &[u8]) -> Option<u8> {
    let at = rest.iter().position(|byte| *byte == MARKER)?;
    let code = *rest.get(at + 1)?;
    // Of a run of 0xff the last one begins the marker.
    *rest = if code == MARKER {
        &rest[at + 1..]
    } else {
        &rest[at + 2..]
    };
    Some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_behind_segments_and_data() {
        let head = [0xff, 0xd8, 0xff, 0xe1, 0, 4, 0xff, 0xd9, 0xff, 0xda, 0, 2];
        let whole = |data: &[u8]| has_end(&[&head[..], data].concat());
        assert!(whole(&[1, 2, 0xff, 0, 0xff, 0xd0, 3, 0xff, 0xff, 0xd9]));
        assert!(
            !whole(&[1, 2, 0xff, 0, 0xff]),
            "the thumbnail's end in the segment does not count"
        );
        assert!(!whole(&[]));
        assert!(!has_end(&[0xff, 0xe1, 0xff]));
        assert!(!has_end(&[0xff, 0xe1, 0xff, 0xff, 0xff, 0xd9]));
    }
}
