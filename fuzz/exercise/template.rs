//! What the fuzzer and the replay of its corpus do with a chat template: run it on a conversation.
//!
//! The input is split at zero bytes: first the template, then the messages, one after another from user and assistant.
//! A message that begins with byte 1 starts with an image, one that begins with byte 2 is the system's.

use std::hint::black_box;
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use carat_text::{ChatTemplate, ControlText, GgufVocabulary, Message, Part, RenderOptions, Role, Tokenizer};

/// Renders and tokenizes; panics when a promise is not kept.
pub(crate) fn exercise(bytes: &[u8]) {
    let mut parts = bytes.split(|&byte| byte == 0).map(String::from_utf8_lossy);
    let source = parts.next().unwrap_or_default();
    let messages: Vec<Message> = parts
        .take(20)
        .enumerate()
        .map(|(i, text)| message(i, &text))
        .collect();
    for template in [
        Ok(ChatTemplate::gemma3()),
        ChatTemplate::from_jinja(&source, "<bos>", "<eos>"),
    ] {
        match template {
            Ok(template) => check(&template, &messages),
            Err(error) => {
                black_box(error.to_string());
            }
        }
    }
}

fn message(i: usize, text: &str) -> Message {
    let mut role = if i.is_multiple_of(2) {
        Role::User
    } else {
        Role::Assistant
    };
    let mut content = Vec::new();
    let text = match text.as_bytes().first() {
        Some(1) => {
            content.push(Part::Image);
            &text[1..]
        }
        Some(2) => {
            role = Role::System;
            &text[1..]
        }
        _ => text,
    };
    content.push(Part::Text(text.to_owned()));
    Message::new(role, content)
}

fn check(template: &ChatTemplate, messages: &[Message]) {
    let options = RenderOptions {
        thinking: false,
        add_generation_prompt: true,
        now: Some(UNIX_EPOCH),
        ..RenderOptions::default()
    };
    let tokenizer = tokenizer();
    let (rendered, ids) = match (
        template.render(messages, options),
        template.encode(tokenizer, messages, options),
    ) {
        (Ok(rendered), Ok(ids)) => (rendered, ids),
        (rendered, ids) => {
            assert!(ids.is_err(), "what cannot be rendered cannot be tokenized");
            black_box(rendered.is_ok());
            return;
        }
    };
    let plain = rendered.replace('\u{2581}', " ");
    assert_eq!(tokenizer.decode(&ids, ControlText::Show), plain);
}

/// Bytes, a blank and Gemma's markers.
fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let bytes: Vec<String> = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        let mut pieces: Vec<&[u8]> = bytes.iter().map(String::as_bytes).collect();
        let mut types = vec![6; pieces.len()];
        let markers = [
            "<bos>",
            "<eos>",
            "<start_of_turn>",
            "<end_of_turn>",
            "<start_of_image>",
            "[multimodal]",
        ];
        for marker in markers {
            pieces.push(marker.as_bytes());
            types.push(3);
        }
        pieces.push("\u{2581}".as_bytes());
        types.push(1);
        let scores = vec![0.0; pieces.len()];
        let source = GgufVocabulary {
            tokens: Box::new(pieces.into_iter()),
            scores: &scores,
            token_types: &types,
            merges: None,
            bos: None,
            eos: None,
            unk: None,
            pad: None,
            eot: None,
            add_bos: true,
            add_space_prefix: false,
        };
        match Tokenizer::from_gguf(source) {
            Ok(tokenizer) => tokenizer,
            Err(error) => panic!("{error}"),
        }
    })
}
