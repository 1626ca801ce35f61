//! The silence that an AAC encoder puts in front, as MP4 files tell it.
//!
//! The decoding library does not look at edit lists, and a clip would begin one or two of the encoder's frames
//! (20 to 50 ms) late. The way to the list is `moov / trak / edts / elst`, in the track whose handler is `soun`;
//! its unit is in `mdia / mdhd`. Whatever is not as expected counts as no lead.

use std::io::{Read, Seek, SeekFrom};

/// Largest description of a file's tracks that is looked at, in bytes.
const MAX_MOOV_BYTES: u64 = 16 << 20;
/// Boxes that are looked at before the description is found.
const MAX_BOXES: usize = 1000;
/// Longest lead that is believed, in seconds.
const MAX_LEAD_SECONDS: f64 = 1.0;

/// Seconds of lead of the first track of sound; 0 for other files. The position of `source` is left anywhere.
pub(super) fn lead_seconds(source: &mut (impl Read + Seek)) -> f64 {
    let lead = moov(source).and_then(|moov| {
        let mut tracks = children(&moov).filter(|(kind, _)| *kind == b"trak");
        tracks.find_map(|(_, track)| sound_lead(track))
    });
    lead.filter(|lead| (0.0..=MAX_LEAD_SECONDS).contains(lead))
        .unwrap_or(0.0)
}

/// The content of the top-level box `moov`, if the file begins with `ftyp`.
fn moov(source: &mut (impl Read + Seek)) -> Option<Vec<u8>> {
    let mut begin = 0u64;
    for i in 0..MAX_BOXES {
        source.seek(SeekFrom::Start(begin)).ok()?;
        let mut head = [0u8; 16];
        source.read_exact(&mut head[..8]).ok()?;
        let short = u64::from(u32::from_be_bytes(*head.first_chunk()?));
        let (head_bytes, size) = match short {
            1 => {
                source.read_exact(&mut head[8..]).ok()?;
                (16, u64::from_be_bytes(*head.last_chunk()?))
            }
            size => (8, size),
        };
        let content = size.checked_sub(head_bytes)?;
        match &head[4..8] {
            b"ftyp" => {}
            _ if i == 0 => return None,
            b"moov" if content <= MAX_MOOV_BYTES => {
                let mut bytes = Vec::new();
                source.take(content).read_to_end(&mut bytes).ok()?;
                return Some(bytes);
            }
            _ => {}
        }
        begin = begin.checked_add(size)?;
    }
    None
}

/// The boxes inside a box: kind and content. Ends at the first that does not fit.
fn children(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let size = u32::from_be_bytes(*rest.first_chunk()?) as usize;
        let kind = rest.get(4..)?.first_chunk()?;
        let content = rest.get(8..size)?;
        rest = &rest[size..];
        Some((kind, content))
    })
}

fn child<'a>(bytes: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    children(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, content)| content)
}

fn sound_lead(track: &[u8]) -> Option<f64> {
    let media = child(track, b"mdia")?;
    if child(media, b"hdlr")?.get(8..12)? != b"soun" {
        return None;
    }
    let header = child(media, b"mdhd")?;
    // Version 1 has wide times before the scale.
    let scale_at = if *header.first()? == 1 { 20 } else { 12 };
    let scale = u32::from_be_bytes(*header.get(scale_at..)?.first_chunk()?);
    let Some(list) = child(track, b"edts").and_then(|edits| child(edits, b"elst")) else {
        return Some(0.0);
    };
    let wide = *list.first()? == 1;
    let (entry_bytes, time_at) = if wide { (20, 8) } else { (12, 4) };
    let mut times = list.get(8..)?.chunks_exact(entry_bytes).filter_map(|entry| {
        let time = entry.get(time_at..)?;
        let time = if wide {
            i64::from_be_bytes(*time.first_chunk()?)
        } else {
            i64::from(i32::from_be_bytes(*time.first_chunk()?))
        };
        // -1 is an edit without media.
        u32::try_from(time).ok()
    });
    Some(f64::from(times.next()?) / f64::from(scale.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn boxed(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let size = (content.len() as u32 + 8).to_be_bytes();
        [&size[..], kind, content].concat()
    }

    fn track(handler: &[u8; 4], scale: u32, media_time: i32) -> Vec<u8> {
        let header = [&[0; 12], &scale.to_be_bytes()[..], &[0; 8]].concat();
        let handler = [&[0; 8], &handler[..], &[0; 12]].concat();
        let media = [boxed(b"mdhd", &header), boxed(b"hdlr", &handler)].concat();
        let empty_edit = [[0; 4], (-1i32).to_be_bytes(), [0; 4]].concat();
        let edit = [[0; 4], media_time.to_be_bytes(), [0; 4]].concat();
        let list = [&[0; 4], &2u32.to_be_bytes()[..], &empty_edit, &edit].concat();
        let edits = boxed(b"edts", &boxed(b"elst", &list));
        boxed(b"trak", &[edits, boxed(b"mdia", &media)].concat())
    }

    fn lead(bytes: &[u8]) -> f64 {
        lead_seconds(&mut Cursor::new(bytes))
    }

    #[test]
    fn the_sound_tracks_edit_counts() {
        let tracks = [track(b"vide", 90_000, 7), track(b"soun", 44_100, 2112)].concat();
        let file = [
            boxed(b"ftyp", b"M4A "),
            boxed(b"mdat", &[9; 100]),
            boxed(b"moov", &tracks),
        ]
        .concat();
        assert!((lead(&file) - 2112.0 / 44_100.0).abs() < 1e-12);
        for cut in 0..file.len() {
            let lead = lead(&file[..cut]);
            assert!(lead == 0.0 || cut > 200);
        }
    }

    #[test]
    fn senseless_files_have_no_lead() {
        let file = |time| {
            [
                boxed(b"ftyp", b"M4A "),
                boxed(b"moov", &track(b"soun", 1000, time)),
            ]
            .concat()
        };
        assert_eq!(lead(&file(500)), 0.5);
        assert_eq!(lead(&file(1001)), 0.0, "longer than any encoder's lead");
        assert_eq!(lead(&file(-5)), 0.0);
        assert_eq!(lead(b""), 0.0);
        assert_eq!(lead(&[0xff; 64]), 0.0);
        assert_eq!(lead(&boxed(b"moov", &track(b"soun", 1000, 500))), 0.0, "no ftyp");
        let endless = [&0u32.to_be_bytes()[..], b"ftyp", &[0; 100]].concat();
        assert_eq!(lead(&endless), 0.0);
    }
}
