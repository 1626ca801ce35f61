//! What was entered in chats, in a file that all of them share.
//!
//! Each entry is written when it is made: a terminal that is closed takes nothing with it, and of two chats at once
//! neither writes over the other's.

use std::fs;
use std::path::{Path, PathBuf};

use rustyline::DefaultEditor;

use crate::output;

/// The file.
pub(super) struct History {
    path: PathBuf,
    /// Whether it was said that nothing can be kept.
    is_told: bool,
}

impl History {
    /// The history of `carat_dir`, which the editor offers from now on.
    pub(super) fn open(carat_dir: &Path, editor: &mut DefaultEditor) -> Self {
        let path = carat_dir.join("history");
        // The first chat has no history yet, and without one a chat is still a chat.
        let _no_folder = fs::create_dir_all(carat_dir);
        let _none_yet = editor.load_history(&path);
        Self { path, is_told: false }
    }

    /// Remembers what was entered. One that cannot be written must not keep anybody from chatting.
    pub(super) fn add(&mut self, text: &str, editor: &mut DefaultEditor) {
        let kept = editor.add_history_entry(text);
        let Err(error) = kept.and_then(|_| editor.append_history(&self.path)) else {
            return;
        };
        if !self.is_told {
            self.is_told = true;
            let path = self.path.display();
            output::note(&format!("the history cannot be kept in {path}: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chats_at_the_same_time_keep_each_others_lines_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("not there yet");
        let chat = || {
            let mut editor = DefaultEditor::new().unwrap();
            (History::open(&home, &mut editor), editor)
        };
        let (mut one, mut of_one) = chat();
        let (mut other, mut of_other) = chat();
        one.add("first", &mut of_one);
        other.add("second\nwith two lines", &mut of_other);
        one.add("third", &mut of_one);
        // Nobody has left.
        let (_, later) = chat();
        let lines: Vec<&str> = later.history().iter().map(String::as_str).collect();
        assert_eq!(lines, ["first", "second\nwith two lines", "third"]);
    }
}
