//! Makes a folder of one of the tiny models that see and hear, for tests that need a server of it:
//! `chat_model NAME FOLDER`. Prints what to ask it, as JSON.

#![expect(clippy::print_stdout, reason = "a command for scripts")]
#![expect(clippy::expect_used, reason = "a command for scripts: it may end so")]

use std::path::Path;

use carat_testkit::ChatModel;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (name, folder) = arguments
        .next()
        .zip(arguments.next())
        .expect("chat_model NAME FOLDER");
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let chat = ChatModel::new(&name, Path::new(&folder));
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    let images: Vec<String> = chat.images.iter().map(|path| quoted(path)).collect();
    let audio = chat.audio.as_deref().map_or_else(|| "null".to_string(), quoted);
    println!(
        "{{\"images\": [{}], \"audio\": {audio}, \"text\": {:?}, \"answer\": {:?}}}",
        images.join(", "),
        chat.text,
        chat.answer
    );
}
