//! Whether a WebP file has all that its chunk headers claim.
//!
//! The decoder takes memory for what the header of a chunk claims before it looks for the bytes. So the headers are
//! walked before, those within frames of an animation too, since the first frame's chunks count as the file's.

/// `RIFF`, a size and `WEBP`.
const FILE_HEAD_BYTES: usize = 12;
/// Name and size of a chunk.
const CHUNK_HEAD_BYTES: usize = 8;
/// What stands before the chunks of a frame.
const FRAME_HEAD_BYTES: usize = 16;

struct Chunk<'a> {
    name: [u8; 4],
    /// Where its header begins.
    at: usize,
    /// What it holds; none if it ends behind the bytes.
    content: Option<&'a [u8]>,
}

/// Whether no chunk of the file ends behind `bytes`.
pub(super) fn are_whole(bytes: &[u8]) -> bool {
    let size = bytes.get(4..).and_then(<[u8]>::first_chunk::<4>);
    let end = size.map_or(0, |size| {
        CHUNK_HEAD_BYTES.saturating_add(u32::from_le_bytes(*size) as usize)
    });
    chunks(bytes, FILE_HEAD_BYTES).all(|chunk| match (&chunk.name, chunk.content) {
        (b"ANMF", Some(frame)) => chunks(frame, FRAME_HEAD_BYTES).all(|inner| inner.content.is_some()),
        (_, Some(_)) => true,
        // What somebody put behind the image is none of it, but the decoder looks a little beyond its end.
        (name, None) => chunk.at >= end && !matches!(name, b"ANMF" | b"EXIF"),
    })
}

/// The chunks from `begin` on, up to the first that is not whole.
fn chunks(bytes: &[u8], begin: usize) -> impl Iterator<Item = Chunk<'_>> {
    let mut next = Some(begin);
    std::iter::from_fn(move || {
        let at = next?;
        let head = bytes.get(at..)?.first_chunk::<CHUNK_HEAD_BYTES>()?;
        let [a, b, c, d, size @ ..] = *head;
        let size = u32::from_le_bytes(size) as usize;
        let content = bytes[at + CHUNK_HEAD_BYTES..].get(..size);
        // An odd length is padded; behind the last chunk the byte may be missing.
        next = content.map(|content| at + CHUNK_HEAD_BYTES + content.len().next_multiple_of(2));
        Some(Chunk {
            name: [a, b, c, d],
            at,
            content,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(name: &[u8; 4], size: u32, content: &[u8]) -> Vec<u8> {
        [&name[..], &size.to_le_bytes(), content].concat()
    }

    fn file(chunks: &[u8]) -> Vec<u8> {
        let size = chunks.len() as u32 + 4;
        [&b"RIFF"[..], &size.to_le_bytes(), b"WEBP", chunks].concat()
    }

    #[test]
    fn chunks_end_within_the_file() {
        let odd = chunk(b"VP8L", 3, b"abc");
        assert!(are_whole(&file(&odd)), "the last padding may be missing");
        let padded = [&odd[..], b"\0"].concat();
        let with = |more: &[u8]| file(&[&padded[..], more].concat());
        assert!(are_whole(&with(&[])));
        assert!(are_whole(&with(&chunk(b"EXIF", 2, b"ab"))));
        assert!(!are_whole(&with(&chunk(b"EXIF", 3, b"ab"))));
        assert!(!are_whole(&with(&chunk(b"EXIF", u32::MAX, b"ab"))));
        assert!(!are_whole(&with(&chunk(b"ABCD", 3, b"ab"))));
        assert!(are_whole(&[]) && are_whole(b"RIFF\0\0"));
    }

    #[test]
    fn chunks_of_frames_end_within_them() {
        let frame = |size| {
            let content = [&[0; FRAME_HEAD_BYTES][..], &chunk(b"EXIF", size, b"ab")].concat();
            file(&chunk(b"ANMF", content.len() as u32, &content))
        };
        assert!(are_whole(&frame(2)));
        assert!(!are_whole(&frame(u32::MAX)));
    }

    #[test]
    fn what_follows_the_file_may_be_anything_that_is_not_looked_at() {
        let after = |more: &[u8]| are_whole(&[&file(&chunk(b"VP8L", 4, b"abcd"))[..], more].concat());
        assert!(after(b"some more text"));
        assert!(!after(&chunk(b"EXIF", u32::MAX, b"ab")));
        assert!(!after(&chunk(b"ANMF", u32::MAX, b"ab")));
    }
}
