//! `carat run` with images and sounds: the reference's greedy answers through the command line, and what is refused.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use carat_testkit::{ChatModel, fixture};
use serde_json::Value;
use tempfile::TempDir;

fn carat(arguments: &[&str]) -> Output {
    let home = TempDir::new().unwrap();
    Command::new(env!("CARGO_BIN_EXE_carat"))
        .env_clear()
        .env("HOME", home.path())
        .env("CARAT_OFFLINE", "1")
        .stdin(Stdio::null())
        .args(arguments)
        .output()
        .unwrap()
}

/// The arguments that ask a fixture's question as the reference was asked.
fn question(chat: &ChatModel) -> Vec<String> {
    let mut line: Vec<String> = ["run", text(&chat.folder), &chat.text]
        .map(str::to_owned)
        .to_vec();
    for image in &chat.images {
        line.extend(["--image".to_owned(), text(image).to_owned()]);
    }
    if let Some(audio) = &chat.audio {
        line.extend(["--audio".to_owned(), text(audio).to_owned()]);
    }
    line.extend(
        [
            "--image-tokens",
            "70",
            "--dtype",
            "f32",
            "-t",
            "0",
            "-n",
            "32",
            "--threads",
            "2",
        ]
        .map(str::to_owned),
    );
    line
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn answers_about_images_and_sounds_are_the_references() {
    for name in ["gemma4-unified", "gemma3-vision", "gemma4-edge"] {
        let folder = TempDir::new().unwrap();
        let chat = ChatModel::new(name, folder.path());
        let line = question(&chat);
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let output = carat(&line);
        assert!(output.status.success(), "{name}: {}", said(&output));
        let found = String::from_utf8(output.stdout).unwrap();
        assert_eq!(found.trim_end(), chat.answer, "{name}");

        let output = carat(&[&line[..], &["--json"]].concat());
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["usage"]["prompt_tokens"], chat.ids.len(), "{name}");
        assert_eq!(json["text"], chat.answer, "{name}");
    }
}

#[test]
fn the_order_of_the_line_is_the_order_of_the_prompt() {
    let folder = TempDir::new().unwrap();
    let mut chat = ChatModel::new("gemma4-unified", folder.path());
    chat.images.reverse();
    let line = question(&chat);
    let output = carat(&line.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(output.status.success(), "{}", said(&output));
    assert_ne!(String::from_utf8(output.stdout).unwrap().trim_end(), chat.answer);
}

/// A model of text alone, with a vocabulary.
fn text_model(folder: &Path) -> PathBuf {
    let _chat = ChatModel::new("gemma3-vision", folder);
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture(format!("gemma3-text/{file}")), folder.join(file)).unwrap();
    }
    folder.to_path_buf()
}

/// A WAV file: its header with these sizes, then the samples.
fn wav(format: u16, bits: u16, data: &[u8]) -> Vec<u8> {
    let mut file = b"RIFF".to_vec();
    file.extend((36 + data.len() as u32).to_le_bytes());
    file.extend(b"WAVEfmt ");
    file.extend(16u32.to_le_bytes());
    file.extend(format.to_le_bytes());
    file.extend(1u16.to_le_bytes());
    file.extend(16_000u32.to_le_bytes());
    file.extend((16_000 * u32::from(bits) / 8).to_le_bytes());
    file.extend((bits / 8).to_le_bytes());
    file.extend(bits.to_le_bytes());
    file.extend(b"data");
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(data);
    file
}

#[test]
fn what_cannot_be_used_is_refused_in_a_sentence() {
    let folder = TempDir::new().unwrap();
    let chat = ChatModel::new("gemma4-unified", folder.path());
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let jpeg = fs::read(fixture("media/orientation1.jpg")).unwrap();
    let mut bomb = fs::read(fixture("media/rgb.png")).unwrap();
    bomb[16..20].copy_from_slice(&30_000u32.to_be_bytes());
    bomb[20..24].copy_from_slice(&30_000u32.to_be_bytes());
    // The checksum of such a header.
    bomb[29..33].copy_from_slice(&0xe945_6fed_u32.to_be_bytes());
    let nan: Vec<u8> = [0.0, f32::NAN, 0.1]
        .repeat(4000)
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    // Ten hours at 16 kHz, of which the first minute is there.
    let mut long = wav(1, 16, &vec![1; 2 * 16_000 * 60]);
    let n_bytes = 2u32 * 16_000 * 36_000;
    long[4..8].copy_from_slice(&(36 + n_bytes).to_le_bytes());
    long[40..44].copy_from_slice(&n_bytes.to_le_bytes());
    let cases = [
        (
            "--image",
            write("text.png", b"this is no picture"),
            "is not an image that can be read",
        ),
        (
            "--image",
            write("cut.jpg", &jpeg[..jpeg.len() / 2]),
            "is damaged or cut short",
        ),
        ("--image", write("bomb.png", &bomb), "30000 x 30000"),
        ("--audio", write("empty.wav", &wav(1, 16, &[])), "0 seconds long"),
        (
            "--audio",
            write("nan.wav", &wav(3, 32, &nan)),
            "is not a finite number",
        ),
        ("--audio", write("long.wav", &long), "at most 30 seconds"),
        (
            "--audio",
            write("text.wav", b"no sound at all"),
            "is not audio that can be read",
        ),
        ("--video", write("text.mp4", b"no video"), "ffmpeg"),
        ("--image", folder.path().join("missing.png"), "does not exist"),
    ];
    for (flag, path, reason) in cases {
        let began = Instant::now();
        let output = carat(&["run", text(&chat.folder), "x", flag, text(&path)]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(reason) && said.contains(text(&path)), "{said}");
        assert_eq!(
            said.lines().filter(|line| line.starts_with("error: ")).count(),
            1,
            "{said}"
        );
        assert!(output.stdout.is_empty(), "{said}");
        assert!(began.elapsed() < Duration::from_secs(20), "{said}");
    }
}

#[test]
fn a_model_without_the_sense_is_named() {
    let folder = TempDir::new().unwrap();
    let model = text_model(folder.path());
    let image = fixture("media/rgb.png");
    let output = carat(&["run", text(&model), "x", "--image", text(&image)]);
    let message = said(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("rgb.png` is an image, but `"), "{message}");
    assert!(message.contains("takes text only"), "{message}");

    let folder = TempDir::new().unwrap();
    let chat = ChatModel::new("gemma3-vision", folder.path());
    let sound = fixture("media/tone.wav");
    let output = carat(&["run", text(&chat.folder), "x", "--audio", text(&sound)]);
    assert!(said(&output).contains("is a sound, but"), "{}", said(&output));
    let output = carat(&["run", text(&chat.folder), "x", "--think"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("no channel for thoughts"),
        "{}",
        said(&output)
    );
    let output = carat(&["run", text(&chat.folder), "x", "--image-tokens", "71"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("70, 140, 280, 560 and 1120"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_prompt_with_more_media_than_context_is_refused_with_both_numbers() {
    let folder = TempDir::new().unwrap();
    let chat = ChatModel::new("gemma4-unified", folder.path());
    let mut line = question(&chat);
    line.extend(["--ctx".to_owned(), "128".to_owned()]);
    let output = carat(&line.iter().map(String::as_str).collect::<Vec<_>>());
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("130 of them for images") && said.contains("the context holds 128"),
        "{said}"
    );
}

#[test]
fn show_tells_what_a_model_takes() {
    let folder = TempDir::new().unwrap();
    let chat = ChatModel::new("gemma4-unified", folder.path());
    let output = carat(&["show", text(&chat.folder), "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["modalities"]["images"]["soft_tokens"], 280);
    assert_eq!(json["modalities"]["audio"]["max_seconds"], 30);
    assert_eq!(json["modalities"]["video"]["soft_tokens"], 32 * 70);
}

/// Two questions about the same text: the second finds the text read.
#[test]
fn a_kept_text_is_read_once_for_several_questions() {
    let folder = TempDir::new().unwrap();
    let model = text_model(folder.path());
    let kept = folder.path().join("text.kv");
    let letter = |i: u32| char::from_u32(0x4e00 + 20 + i).unwrap();
    let piped: String = (0..100).map(letter).collect();
    let ask = |question: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_carat"))
            .env_clear()
            .env("HOME", folder.path())
            .env("CARAT_OFFLINE", "1")
            .args([
                "run",
                text(&model),
                question,
                "--raw",
                "--prompt-cache",
                text(&kept),
            ])
            .args(["-n", "1", "--threads", "1", "--verbose"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(piped.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let said = said(&output);
        let line = said.lines().find(|line| line.starts_with("file ")).unwrap();
        let (_, rest) = line.split_once('(').unwrap();
        rest.split_once(' ').unwrap().0.parse::<usize>().unwrap()
    };
    assert_eq!(ask(&letter(7).to_string()), 0);
    assert!(ask(&letter(9).to_string()) >= 100);
}
