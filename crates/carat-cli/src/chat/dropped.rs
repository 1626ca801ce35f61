//! Paths of files that were dragged into the prompt.
//!
//! Terminals write the path of a file that is dropped on them: in quotes, with backslashes before blanks, or as a
//! `file://` address. A word counts as one only if it is such a file and its name ends as images, sounds or videos
//! do: whoever writes about a file is asked, and nobody else is bothered.

use std::ops::Range;
use std::path::{Path, PathBuf};

use carat_prompt::Kind;

const IMAGES: [&str; 8] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];
const SOUNDS: [&str; 7] = ["wav", "mp3", "flac", "ogg", "oga", "m4a", "aac"];
const VIDEOS: [&str; 6] = ["mp4", "mkv", "webm", "mov", "avi", "m4v"];

/// A file in a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dropped {
    /// Its bytes in the line, quotes included.
    pub(super) place: Range<usize>,
    pub(super) kind: Kind,
    pub(super) path: PathBuf,
}

/// The files in a line that exist, in order.
pub(super) fn dropped(line: &str, is_file: &dyn Fn(&Path) -> bool) -> Vec<Dropped> {
    let words = words(line).into_iter();
    let file = |(place, word): (Range<usize>, String)| {
        let path = PathBuf::from(without_scheme(word));
        let kind = kind_of(&path)?;
        is_file(&path).then_some(Dropped { place, kind, path })
    };
    words.filter_map(file).collect()
}

/// The path that a whole text is: one word as a shell or a terminal writes it, or else the text as it stands.
pub(super) fn path(text: &str, home: Option<&Path>) -> PathBuf {
    let mut words = words(text);
    let text = match words.pop() {
        Some((_, word)) if words.is_empty() => without_scheme(word),
        _ => text.to_owned(),
    };
    match (text.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(text),
    }
}

/// A `file://` address as a path.
fn without_scheme(word: String) -> String {
    match word.strip_prefix("file://") {
        // The host, if any, is this machine.
        Some(rest) => unescaped(rest.strip_prefix("localhost").unwrap_or(rest)),
        None => word,
    }
}

/// The line without the files, as the user's text.
pub(super) fn without(line: &str, files: &[Dropped]) -> String {
    let mut text = String::new();
    let mut at = 0;
    for file in files {
        text.push_str(line[at..file.place.start].trim_end());
        at = file.place.end;
        if !text.is_empty() && !line[at..].trim_start().is_empty() {
            text.push(' ');
        }
        at += line[at..].len() - line[at..].trim_start().len();
    }
    text.push_str(&line[at..]);
    text.trim().to_owned()
}

fn kind_of(path: &Path) -> Option<Kind> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    let is_one = |of: &[&str]| of.contains(&extension.as_str());
    if is_one(&IMAGES) {
        Some(Kind::Image)
    } else if is_one(&SOUNDS) {
        Some(Kind::Audio)
    } else {
        is_one(&VIDEOS).then_some(Kind::Video)
    }
}

/// Words as a shell reads them, with their places. A quote within a word, as in `don't`, is a letter.
fn words(line: &str) -> Vec<(Range<usize>, String)> {
    let mut words = Vec::new();
    let mut chars = line.char_indices().peekable();
    while let Some(&(start, first)) = chars.peek() {
        if first.is_whitespace() {
            chars.next();
            continue;
        }
        let mut word = String::new();
        let quote = Some(first).filter(|c| matches!(c, '\'' | '"'));
        if quote.is_some() {
            chars.next();
        }
        let mut end = line.len();
        while let Some((at, c)) = chars.next() {
            match (c, quote) {
                (c, Some(quote)) if c == quote => {
                    end = at + c.len_utf8();
                    break;
                }
                (c, None) if c.is_whitespace() => {
                    end = at;
                    break;
                }
                ('\\', None) if cfg!(unix) => word.extend(chars.next().map(|(_, escaped)| escaped)),
                (c, _) => word.push(c),
            }
        }
        words.push((start..end, word));
    }
    words
}

/// `%20` and its like as what they stand for.
fn unescaped(address: &str) -> String {
    let mut bytes = Vec::with_capacity(address.len());
    let mut rest = address.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'%').then(|| after.get(..2)).flatten();
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> (Vec<String>, String) {
        let is_file = |path: &Path| path.starts_with("/home/ada") || path == Path::new("cat.png");
        let files = dropped(line, &is_file);
        let names = files.iter().map(|file| file.path.display().to_string()).collect();
        (names, without(line, &files))
    }

    fn check(line: &str, paths: &[&str], text: &str) {
        let expected = paths.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found(line), (expected, text.to_owned()), "{line}");
    }

    #[test]
    fn every_way_in_which_terminals_write_a_path_is_known() {
        check("/home/ada/cat.png", &["/home/ada/cat.png"], "");
        check(
            "what is '/home/ada/my cat.jpeg' ?",
            &["/home/ada/my cat.jpeg"],
            "what is ?",
        );
        check(
            "\"/home/ada/my cat.jpg\" describe",
            &["/home/ada/my cat.jpg"],
            "describe",
        );
        // Elsewhere a backslash is what stands between folders.
        #[cfg(unix)]
        check("/home/ada/my\\ cat\\(1\\).JPG", &["/home/ada/my cat(1).JPG"], "");
        check(
            "file:///home/ada/my%20caf%C3%A9.wav hear this",
            &["/home/ada/my café.wav"],
            "hear this",
        );
        check("file://localhost/home/ada/a.mp4", &["/home/ada/a.mp4"], "");
        check(
            "cat.png and /home/ada/b.mp3",
            &["cat.png", "/home/ada/b.mp3"],
            "and",
        );
    }

    #[test]
    fn text_stays_text() {
        for line in [
            "don't look at dog.png",
            "/home/ada/notes.txt",
            "/help",
            "what's \"in",
            "a % b %2",
            "trailing \\",
            "",
        ] {
            check(line, &[], line.trim());
        }
    }

    #[test]
    fn a_path_alone_may_be_written_as_in_a_shell_or_as_it_is() {
        for (text, expected) in [
            ("a.json", "a.json"),
            ("my conversation.json", "my conversation.json"),
            ("'my conversation.json'", "my conversation.json"),
            ("~/a.json", "/home/ada/a.json"),
            ("~/my conversation.json", "/home/ada/my conversation.json"),
            ("file:///tmp/a%20b", "/tmp/a b"),
        ] {
            assert_eq!(
                path(text, Some(Path::new("/home/ada"))),
                Path::new(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn kinds_follow_names() {
        let kinds = dropped("/home/ada/a.GIF /home/ada/b.m4a /home/ada/c.mov", &|_| true);
        let kinds: Vec<Kind> = kinds.iter().map(|file| file.kind).collect();
        assert_eq!(kinds, [Kind::Image, Kind::Audio, Kind::Video]);
    }
}
