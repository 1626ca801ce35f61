//! Rows of images in the place of tokens, and tokens that see each other in both directions, against the
//! reference's logits for prompts with images, however the prompt is cut.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::ops::Range;

use carat_model::{
    Error, Isa, LanguageModel, LoadOptions, LogitRows, MAX_SPAN_ROWS, MediaSpan, Model, Segment,
    SequenceCache, SpanAttention,
};
use carat_testkit::{Golden, assert_close, fixture, relative_l2};

/// Relative L2 of logits in f32, as for text.
const TOL_LOGITS: f64 = 1e-4;
/// The fixtures' own bound.
const TOL_LOGITS_ABS: f32 = 2e-3;
/// The same numbers in another order of sums.
const TOL_REORDERED: f64 = 5e-5;

/// A prompt with media as the reference saw it.
struct Prompt {
    tokens: Vec<u32>,
    spans: Vec<(Range<usize>, Vec<f32>, SpanAttention)>,
    logits: Vec<f32>,
}

fn load(model: &str, options: LoadOptions) -> Model {
    Model::load(&fixture(model), options).unwrap()
}

/// `kinds` names the tensor that says what each token is: 0 text, 1 image, 3 sound. `hidden.0` is what enters the
/// first layer, soft tokens in their places.
fn prompt(model: &str, kinds: &str) -> Prompt {
    let golden = Golden::open(&fixture(format!("{model}/multimodal.safetensors")));
    let (kinds, embedded) = (golden.ids(kinds), golden.f32s("hidden.0"));
    let (mut spans, mut start) = (Vec::new(), 0);
    for run in kinds.chunk_by(|a, b| a == b) {
        let rows = start..start + run.len();
        start = rows.end;
        let attention = match run[0] {
            0 => continue,
            1 => SpanAttention::Bidirectional,
            _ => SpanAttention::Causal,
        };
        spans.push((
            rows.clone(),
            rows.flat_map(|row| embedded.row(row).to_vec()).collect(),
            attention,
        ));
    }
    assert!(!spans.is_empty());
    Prompt {
        tokens: golden.ids("input_ids"),
        spans,
        logits: golden.f32s("logits").data,
    }
}

/// Logits of every token, in chunks of about `chunk` that cut no bidirectional span.
fn logits(model: &mut Model, prompt: &Prompt, chunk: usize) -> Vec<f32> {
    let mut cache = model.new_cache(prompt.tokens.len()).unwrap();
    let (mut all, mut part) = (Vec::new(), Vec::new());
    while cache.len() < prompt.tokens.len() {
        let start = cache.len();
        let mut end = (start + chunk).min(prompt.tokens.len());
        for (rows, _, attention) in &prompt.spans {
            if *attention == SpanAttention::Bidirectional && rows.contains(&(end - 1)) {
                end = rows.end;
            }
        }
        let media: Vec<MediaSpan<'_>> = prompt
            .spans
            .iter()
            .filter_map(|span| within(span, start..end))
            .collect();
        let mut batch = [Segment {
            tokens: &prompt.tokens[start..end],
            media: &media,
            cache: &mut cache,
            logits: LogitRows::All,
        }];
        model.forward(&mut batch, &mut part).unwrap();
        all.extend_from_slice(&part);
    }
    all
}

/// The part of a span in a chunk.
fn within(span: &(Range<usize>, Vec<f32>, SpanAttention), chunk: Range<usize>) -> Option<MediaSpan<'_>> {
    let (rows, values, attention) = span;
    let width = values.len() / rows.len();
    let both = rows.start.max(chunk.start)..rows.end.min(chunk.end);
    (!both.is_empty()).then(|| MediaSpan {
        start: both.start - chunk.start,
        rows: &values[(both.start - rows.start) * width..(both.end - rows.start) * width],
        attention: *attention,
    })
}

fn check(name: &str, kinds: &str) {
    let prompt = prompt(name, kinds);
    for isa in Isa::available() {
        let mut model = load(
            name,
            LoadOptions {
                isa,
                ..LoadOptions::reference()
            },
        );
        let whole = logits(&mut model, &prompt, 512);
        let error = relative_l2(&whole, &prompt.logits);
        assert!(error < TOL_LOGITS, "{isa}: {error}");
        assert_close("logits", &whole, &prompt.logits, TOL_LOGITS_ABS);
        for chunk in [1, 7, 16, 30] {
            let error = relative_l2(&logits(&mut model, &prompt, chunk), &whole);
            assert!(error < TOL_REORDERED, "{isa}, chunks of {chunk}: {error}");
        }
    }
}

#[test]
fn images_in_gemma3_are_seen_in_both_directions_in_all_layers() {
    check("gemma3-vision", "token_type_ids");
}

/// In local layers alone, and nothing but the window limits how far back an image's row sees: the fixtures' two
/// other readings of the mask differ by far more than the tolerance.
#[test]
fn images_in_gemma4_are_seen_in_both_directions_in_local_layers() {
    for name in ["gemma4-unified", "gemma4-dense", "gemma4-moe"] {
        check(name, "mm_token_type_ids");
    }
}

#[test]
fn images_in_the_small_gemma4_are_seen_as_text_is() {
    check("gemma4-edge", "mm_token_type_ids");
}

/// The rows that the reference's embedder gives are not scaled.
#[test]
fn soft_tokens_enter_as_they_are() {
    let golden = Golden::open(&fixture("gemma4-unified/multimodal.safetensors"));
    let prompt = prompt("gemma4-unified", "mm_token_type_ids");
    let of = |wanted: SpanAttention| -> Vec<f32> {
        let spans = prompt.spans.iter().filter(|span| span.2 == wanted);
        spans.flat_map(|span| span.1.clone()).collect()
    };
    assert_eq!(
        of(SpanAttention::Bidirectional),
        golden.f32s("image_features").data
    );
    assert_eq!(of(SpanAttention::Causal), golden.f32s("audio_features").data);
}

#[test]
fn media_that_do_not_fit_are_refused() {
    let mut model = load("gemma3-vision", LoadOptions::reference());
    let width = model.config().d_model;
    let rows = vec![0.0; (MAX_SPAN_ROWS + 1) * width];
    let tokens = vec![u32::MAX; MAX_SPAN_ROWS + 2];
    let span = |start, n: usize| MediaSpan {
        start,
        rows: &rows[..n],
        attention: SpanAttention::Bidirectional,
    };
    let mut cache = model.new_cache(tokens.len()).unwrap();
    let mut run = |media: &[MediaSpan<'_>], n_tokens: usize| {
        let mut batch = [Segment {
            tokens: &tokens[..n_tokens],
            media,
            cache: &mut cache,
            logits: LogitRows::None,
        }];
        let result = model.forward(&mut batch, &mut Vec::new());
        assert!(result.is_ok() || cache.is_empty());
        result
    };
    for media in [
        vec![span(0, 0)],
        vec![span(0, width + 1)],
        vec![span(2, 2 * width)],
        vec![span(usize::MAX, width)],
        vec![span(0, 2 * width), span(1, width)],
        vec![span(1, width), span(0, width)],
    ] {
        assert!(matches!(run(&media, 3), Err(Error::MediaRows { .. })));
    }
    let long = [span(0, (MAX_SPAN_ROWS + 1) * width)];
    assert!(matches!(
        run(&long, MAX_SPAN_ROWS + 1),
        Err(Error::SpanTooLong { .. })
    ));
    assert!(
        matches!(run(&[span(0, width)], 2), Err(Error::TokenId { .. })),
        "the second is text"
    );
    // Longer than a pass of text may be.
    assert!(run(&[span(0, 600 * width)], 600).is_ok());
}
