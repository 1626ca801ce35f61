//! From files and messages to the reference's ids, rows and greedy answers, alone and among others.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use carat_engine::{Drafting, Engine, Job, Limits, Request, SamplingParams, Update, generate};
use carat_media::{MediaOptions, TokenBudget};
use carat_model::{Checkpoint, EncoderPrecision, LoadOptions, Model};
use carat_prompt::{
    Attached, Attachment, Error, Prompt, PromptOptions, Senses, SensesOptions, Source, compose,
};
use carat_testkit::{ChatModel, Golden, assert_close, fixture};
use carat_text::{ChatTemplate, Message, Part, RenderOptions, Role, Special, Tokenizer};
use tempfile::TempDir;

/// What rows may differ by from the reference's, as for towers alone.
const TOL_ROWS: f32 = 1e-4;

struct Talk {
    folder: TempDir,
    chat: ChatModel,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    model: Model,
    senses: Senses,
}

/// The towers in `precision`, with as few soft tokens of an image as the fixtures have.
fn senses(name: &str, model: &Model, checkpoint: &Checkpoint, precision: EncoderPrecision) -> Senses {
    Senses::of_model(name, model, checkpoint, senses_options(precision)).unwrap()
}

fn senses_options(precision: EncoderPrecision) -> SensesOptions {
    SensesOptions {
        precision,
        media: MediaOptions {
            image_budget: TokenBudget::VIDEO_FRAME,
            ..MediaOptions::default()
        },
        ..SensesOptions::default()
    }
}

impl Talk {
    fn new(name: &str, max_batch_tokens: usize) -> Talk {
        let folder = TempDir::new().unwrap();
        let chat = ChatModel::new(name, folder.path());
        let tokenizer = std::fs::read(folder.path().join("tokenizer.model")).unwrap();
        let template = std::fs::read_to_string(folder.path().join("chat_template.jinja")).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let options = LoadOptions {
            n_threads: 2,
            max_batch_tokens,
            ..LoadOptions::reference()
        };
        let model = Model::from_checkpoint(&checkpoint, options).unwrap();
        Talk {
            senses: senses(name, &model, &checkpoint, EncoderPrecision::F32),
            tokenizer: Tokenizer::from_sentencepiece(&tokenizer).unwrap(),
            template: ChatTemplate::from_jinja(&template, "<bos>", "<eos>").unwrap(),
            folder,
            chat,
            model,
        }
    }

    /// Everything that the fixture's prompt has.
    fn attachments(&self) -> Vec<Attachment> {
        let images = self.chat.images.iter().map(|path| Attachment::Image(file(path)));
        let sounds = self.chat.audio.iter().map(|path| Attachment::Audio(file(path)));
        images.chain(sounds).collect()
    }

    /// One message of the user with all of it.
    fn messages(&self, attached: &[Arc<Attached>]) -> Vec<Message> {
        let mut parts: Vec<Part> = attached.iter().map(|one| one.kind().part()).collect();
        parts.push(Part::Text(self.chat.text.clone()));
        vec![Message::new(Role::User, parts)]
    }

    fn prompt(&self) -> Prompt {
        let attached = self
            .senses
            .attach_all(&self.attachments(), 1024, &mut || true)
            .unwrap();
        let messages = self.messages(&attached);
        let options = options(1024);
        let composed = compose(
            &self.tokenizer,
            Some(&self.template),
            &messages,
            &attached,
            options,
        )
        .unwrap();
        composed.encode(&self.senses, &mut || true).unwrap()
    }
}

fn file(path: &Path) -> Source {
    Source::File(path.to_path_buf())
}

fn options(n_max: usize) -> PromptOptions<'static> {
    PromptOptions {
        render: RenderOptions::default(),
        n_max,
    }
}

fn request(prompt: Prompt) -> Request {
    Request {
        prompt: prompt.ids,
        media: prompt.media,
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        max_tokens: Some(32),
        ..Request::default()
    }
}

const MODELS: [&str; 3] = ["gemma3-vision", "gemma4-unified", "gemma4-edge"];

#[test]
fn files_and_messages_become_the_references_ids_and_rows() {
    for name in MODELS {
        let talk = Talk::new(name, 512);
        let prompt = talk.prompt();
        assert_eq!(prompt.ids, talk.chat.ids, "{name}");
        let golden = Golden::open(&fixture(format!("{name}/multimodal.safetensors")));
        let embedded = golden.f32s("hidden.0");
        let n = if name == "gemma3-vision" { 2 } else { 3 };
        assert_eq!(prompt.media.len(), n, "{name}");
        for media in &prompt.media {
            let expected: Vec<f32> = media
                .tokens
                .clone()
                .flat_map(|i| embedded.row(i).to_vec())
                .collect();
            let what = format!("{name} {:?}", media.tokens);
            // Resized pixels may differ by one level of 255 where the reference rounds otherwise.
            assert_close(&what, &media.rows, &expected, 20.0 * TOL_ROWS);
        }
    }
}

/// Greedy ids after a prompt.
fn answer(talk: &mut Talk, prompt: &Prompt, drafting: Drafting) -> Vec<u32> {
    let request = Request {
        drafting,
        ..request(prompt.clone())
    };
    let mut ids = Vec::new();
    generate(&mut talk.model, &talk.tokenizer, 512, &request, |event| {
        if let carat_engine::Event::Token { id, .. } = event {
            ids.push(id);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    ids
}

#[test]
fn answers_are_the_references_however_the_prompt_is_cut() {
    for name in MODELS {
        for max_batch_tokens in [512, 31, 7] {
            let mut talk = Talk::new(name, max_batch_tokens);
            let prompt = talk.prompt();
            let ids = answer(&mut talk, &prompt, Drafting::Off);
            assert_eq!(
                ids, talk.chat.answer_ids,
                "{name} in chunks of {max_batch_tokens}"
            );
        }
    }
}

/// With images and sounds in the context, by a drafter made for the model, by a model that knows no images, and from
/// the text itself.
#[test]
fn answers_about_images_do_not_depend_on_guesses() {
    for (name, drafter) in [
        ("gemma3-vision", "gemma3-text"),
        ("gemma4-unified", "gemma4-unified-assistant"),
        ("gemma4-edge", "gemma4-assistant"),
        ("gemma4-unified", ""),
    ] {
        let mut talk = Talk::new(name, 64);
        if !drafter.is_empty() {
            talk.model.add_drafter(&fixture(drafter)).unwrap();
        }
        for drafting in [Drafting::Fixed(1), Drafting::Fixed(5), Drafting::Adaptive] {
            let prompt = talk.prompt();
            let ids = answer(&mut talk, &prompt, drafting);
            assert_eq!(ids, talk.chat.answer_ids, "{name} with `{drafter}`, {drafting:?}");
        }
    }
}

/// A video of the two images: the rows of its frames are those that the reference's images have, with the times of
/// the frames before them, and the answer does not depend on how the prompt is cut or what is guessed.
#[test]
fn the_frames_of_a_video_are_seen_as_images_are() {
    for name in MODELS {
        let mut answers = Vec::new();
        for (max_batch_tokens, drafting) in
            [(512, Drafting::Off), (7, Drafting::Off), (31, Drafting::Fixed(4))]
        {
            let mut talk = Talk::new(name, max_batch_tokens);
            let images = talk.prompt();
            let n_runs = talk.senses.n_runs();
            let video = video_of(&talk, [0, 1]);
            assert_eq!(talk.senses.n_runs(), n_runs, "{name}: a frame was not known");
            assert_eq!(video.media.len(), 2);
            for (frame, image) in video.media.iter().zip(&images.media) {
                assert!(Arc::ptr_eq(&frame.rows, &image.rows), "{name}");
                assert_eq!(frame.tokens.len(), image.tokens.len());
            }
            if name != "gemma3-vision" {
                let times = &video.ids[..video.media[0].tokens.start - 1];
                let expected = talk.tokenizer.encode("00:00 ", Special::AsText);
                assert!(times.ends_with(&expected), "{name}: {times:?}");
                let placeholder = video.ids[video.media[1].tokens.start];
                assert_eq!(talk.tokenizer.id_of("<|video|>"), Some(placeholder));
            }
            answers.push(answer(&mut talk, &video, drafting));
            let swapped = video_of(&talk, [1, 0]);
            assert_ne!(answer(&mut talk, &swapped, drafting), answers[0], "{name}");
        }
        assert_eq!(answers[0], answers[1], "{name}");
        assert_eq!(answers[0], answers[2], "{name}");
    }
}

#[test]
fn what_is_too_much_to_wait_decoded_is_decoded_again() {
    let mut talk = Talk::new("gemma4-unified", 512);
    let expected = talk.prompt();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("0.png");
    std::fs::copy(&talk.chat.images[0], &path).unwrap();
    let checkpoint = Checkpoint::open(talk.folder.path()).unwrap();
    let mut options = senses_options(EncoderPrecision::F32);
    options.prepared_bytes = 0;
    talk.senses = Senses::of_model("gemma4-unified", &talk.model, &checkpoint, options).unwrap();
    assert_eq!(talk.prompt(), expected);

    let image = Attachment::Image(file(&path));
    let attached = talk.senses.attach_all(&[image], 1024, &mut || true).unwrap();
    let messages = talk.messages(&attached);
    let template = Some(&talk.template);
    let compose = || {
        compose(
            &talk.tokenizer,
            template,
            &messages,
            &attached,
            self::options(1024),
        )
    };
    let stopped = compose().unwrap().encode(&talk.senses, &mut || false);
    assert!(matches!(stopped, Err(Error::Cancelled)));
    // One of another shape comes in its place.
    std::fs::copy(&talk.chat.images[1], &path).unwrap();
    let error = compose().unwrap().encode(&talk.senses, &mut || true).unwrap_err();
    assert!(matches!(error, Error::Changed(_)), "{error}");
}

/// A prompt with a folder of the fixture's images as a video.
fn video_of(talk: &Talk, order: [usize; 2]) -> Prompt {
    let folder = TempDir::new().unwrap();
    for (i, image) in order.into_iter().enumerate() {
        std::fs::copy(&talk.chat.images[image], folder.path().join(format!("{i}.png"))).unwrap();
    }
    let video = Attachment::Video(Source::File(folder.path().to_path_buf()));
    let attached = talk.senses.attach_all(&[video], 1024, &mut || true).unwrap();
    assert_eq!(attached[0].n_parts(), 2);
    let messages = talk.messages(&attached);
    let template = Some(&talk.template);
    let composed = compose(&talk.tokenizer, template, &messages, &attached, options(1024)).unwrap();
    composed.encode(&talk.senses, &mut || true).unwrap()
}

#[test]
fn jobs_of_a_scheduler_see_and_hear() {
    let talk = Talk::new("gemma4-unified", 48);
    let (prompt, text) = (talk.prompt(), talk.chat.answer.clone());
    let limits = Limits {
        n_max: 512,
        n_running: 3,
        n_waiting: 8,
        cache_bytes: 64 << 20,
    };
    let other = talk.tokenizer.encode(&talk.chat.text, Special::AsText);
    let engine = Engine::start(talk.model, Arc::new(talk.tokenizer), limits).unwrap();
    let (sender, receiver) = mpsc::channel();
    let submit = |request: Request, which: usize| {
        let sender = sender.clone();
        let mut text = String::new();
        let sink = Box::new(move |update| {
            match update {
                Update::Token { text: more, .. } => text.push_str(&more),
                Update::Finished(finished) => {
                    text.push_str(&finished.text);
                    sender
                        .send((which, text.clone(), finished.usage.n_reused))
                        .unwrap();
                }
                Update::Embedded(_) => unreachable!("nobody asked for one"),
                Update::Failed(error) => sender.send((which, error.to_string(), 0)).unwrap(),
            }
            ControlFlow::Continue(())
        });
        engine.submit(Job::new(request, sink)).unwrap();
    };
    submit(request(prompt.clone()), 0);
    submit(
        request(Prompt {
            ids: other,
            media: Vec::new(),
        }),
        1,
    );
    submit(request(prompt.clone()), 2);
    let wait = || receiver.recv_timeout(Duration::from_secs(120)).unwrap();
    let mut answers = [wait(), wait(), wait()];
    answers.sort();
    assert_eq!(answers[0].1, text);
    assert_eq!(answers[2].1, text);
    // The same images again: the cached beginning is found, images and all.
    submit(request(prompt.clone()), 3);
    let (_, again, n_reused) = wait();
    assert_eq!(again, text);
    assert!(n_reused > 100, "{n_reused} tokens reused");
    // Another image in the first place: nothing of it is.
    let mut swapped = prompt;
    let rows = Arc::clone(&swapped.media[0].rows);
    swapped.media[0].rows = rows.iter().map(|x| x * 0.5).collect();
    swapped.media[0].content ^= 1;
    submit(request(swapped), 4);
    let (_, other, n_reused) = wait();
    assert!(n_reused <= 8, "{n_reused} tokens reused of another image");
    assert_ne!(other, text);
}

#[test]
fn a_second_question_runs_no_tower() {
    let talk = Talk::new("gemma4-unified", 512);
    let attached = talk
        .senses
        .attach_all(&talk.attachments(), 1024, &mut || true)
        .unwrap();
    let mut messages = talk.messages(&attached);
    let ask = |messages: &[Message], attached: &[Arc<Attached>]| {
        let composed = compose(
            &talk.tokenizer,
            Some(&talk.template),
            messages,
            attached,
            options(1024),
        )
        .unwrap();
        composed.encode(&talk.senses, &mut || true).unwrap()
    };
    let first = ask(&messages, &attached);
    assert_eq!(talk.senses.n_runs(), 3);
    // The same conversation goes on.
    messages.push(Message::text(Role::Assistant, "a"));
    messages.push(Message::text(Role::User, "b"));
    let second = ask(&messages, &attached);
    assert!(Arc::ptr_eq(&first.media[0].rows, &second.media[0].rows));
    // Another conversation brings the same image, from memory and under another name.
    let bytes = std::fs::read(&talk.chat.images[0]).unwrap();
    let again = Attachment::Image(Source::Bytes {
        name: "upload".into(),
        bytes: bytes.into(),
    });
    let again = talk.senses.attach_all(&[again], 1024, &mut || true).unwrap();
    let third = ask(&talk.messages(&again), &again);
    assert!(Arc::ptr_eq(&first.media[0].rows, &third.media[0].rows));
    assert_eq!(first.media[0].content, third.media[0].content);
    assert_eq!(talk.senses.n_runs(), 3);
}

/// What other towers made of an image must not be found in a cache that outlived them.
#[test]
fn what_media_are_known_by_depends_on_the_towers() {
    let mut talk = Talk::new("gemma3-vision", 512);
    let checkpoint = Checkpoint::open(&talk.chat.folder).unwrap();
    let mut contents = |precision| {
        talk.senses = senses("gemma3-vision", &talk.model, &checkpoint, precision);
        let media = talk.prompt().media;
        media.into_iter().map(|one| one.content).collect::<Vec<u64>>()
    };
    let first = contents(EncoderPrecision::F32);
    assert_eq!(contents(EncoderPrecision::F32), first);
    let others = contents(EncoderPrecision::Half);
    assert!(first.iter().zip(&others).all(|(a, b)| a != b));
}

#[test]
fn what_a_model_cannot_take_is_refused_by_name() {
    let talk = Talk::new("gemma3-vision", 512);
    let wav = fixture("gemma4-unified/audio.wav");
    let error = talk.senses.attach(&Attachment::Audio(file(&wav))).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("audio.wav` is a sound, but `gemma3-vision` takes text and images"),
        "{said}"
    );
    let said = Senses::none("gemma3:1b")
        .attach(&Attachment::Image(Source::File("cat.png".into())))
        .unwrap_err()
        .to_string();
    assert_eq!(
        said,
        "`cat.png` is an image, but `gemma3:1b` takes text only; choose a model that takes it, or leave it out"
    );
}

#[test]
fn too_much_is_refused_before_a_tower_runs() {
    let talk = Talk::new("gemma4-unified", 512);
    let attachments = talk.attachments();
    let error = talk
        .senses
        .attach_all(&attachments, 100, &mut || true)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooLong {
                n_media: 116,
                n_max: 100,
                ..
            }
        ),
        "{error}"
    );
    let attached = talk.senses.attach_all(&attachments, 163, &mut || true).unwrap();
    let messages = talk.messages(&attached);
    let write = |attached, n_max| {
        compose(
            &talk.tokenizer,
            Some(&talk.template),
            &messages,
            attached,
            options(n_max),
        )
        .map(drop)
    };
    let error = write(&attached, 163).unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooLong {
                n_prompt: 163,
                n_media: 130,
                n_max: 163
            }
        ),
        "{error}"
    );
    let error = write(&attached[..2], 1024).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Places {
                expected: 3,
                found: 2
            }
        ),
        "{error}"
    );
    let error = talk
        .senses
        .attach_all(&vec![attachments[0].clone(); 257], 1 << 20, &mut || true)
        .unwrap_err();
    assert!(matches!(error, Error::TooMany { found: 257 }));
    let composed = compose(
        &talk.tokenizer,
        Some(&talk.template),
        &messages,
        &attached,
        options(164),
    )
    .unwrap();
    assert!(matches!(
        composed.encode(&talk.senses, &mut || false),
        Err(Error::Cancelled)
    ));
    assert_eq!(talk.senses.n_runs(), 0);
}

#[test]
fn a_template_that_drops_images_is_noticed() {
    let talk = Talk::new("gemma4-unified", 512);
    let attached = talk
        .senses
        .attach_all(&talk.attachments()[..1], 1024, &mut || true)
        .unwrap();
    let messages = talk.messages(&attached);
    let template =
        ChatTemplate::from_jinja("{{ bos_token }}{{ messages | length }}", "<bos>", "<eos>").unwrap();
    let error = compose(
        &talk.tokenizer,
        Some(&template),
        &messages,
        &attached,
        options(1024),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("wrote 0 places for images where the messages have 1"),
        "{error}"
    );
}

/// Placeholders in what people write stay text.
#[test]
fn messages_cannot_forge_places() {
    let talk = Talk::new("gemma4-unified", 512);
    let attached = talk
        .senses
        .attach_all(&talk.attachments()[..1], 1024, &mut || true)
        .unwrap();
    let mut messages = talk.messages(&attached);
    messages[0]
        .content
        .push(Part::Text("<|image|><|audio|><|image>".into()));
    let composed = compose(
        &talk.tokenizer,
        Some(&talk.template),
        &messages,
        &attached,
        options(1024),
    )
    .unwrap();
    assert_eq!(composed.n_soft_tokens(), 60);
    assert_eq!(composed.ids().iter().filter(|id| **id == 511).count(), 60);
}

#[test]
fn without_a_template_inputs_come_before_the_text() {
    let talk = Talk::new("gemma3-vision", 512);
    let attached = talk
        .senses
        .attach_all(&talk.attachments()[..1], 1024, &mut || true)
        .unwrap();
    let composed = compose(
        &talk.tokenizer,
        None,
        &talk.messages(&attached),
        &attached,
        options(1024),
    )
    .unwrap();
    let text = talk.tokenizer.encode(&talk.chat.text, Special::AsText);
    let newlines = talk.tokenizer.id_of("\n\n").unwrap();
    let mut expected = vec![2, newlines, 509];
    expected.extend([511; 16]);
    expected.extend([510, newlines]);
    expected.extend(text);
    assert_eq!(composed.ids(), expected);
}
