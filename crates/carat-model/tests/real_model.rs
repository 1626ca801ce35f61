//! The published Gemma 3 270M (Q4_K_M) against float32 over the same dequantized weights, as transformers
//! computes it, and against llama.cpp.
//!
//! The file is not part of the repository: `CARAT_TEST_MODEL` is its path. Without it every test here says on
//! stderr that it was skipped, and fails where `CARAT_REQUIRE_MODEL` is set. `--nocapture` shows the figures
//! that stand in docs/benchmarks.md.
//!
//! What is compared is one prompt a call, its continuation given ("teacher forced"), so that one different
//! choice does not make all that follow it different.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on must fail"
)]

use std::io::Write as _;
use std::path::PathBuf;

use carat_model::{LanguageModel, LoadOptions, LogitRows, Model, Segment, SequenceCache};
use carat_testkit::{assert_close, fixture, max_abs_diff, relative_l2};
use serde::Deserialize;

/// Bytes of `gemma-3-270m-q4_k_m.gguf`: another file would fail the comparisons in ways hard to read.
const MODEL_BYTES: u64 = 253_113_024;
/// A row of logits is 1 MiB.
const ROWS_AT_ONCE: usize = 64;
/// Absolute, for logits of standard deviation 5: the fixtures' bound for f32 (tests/fixtures/README.md).
const TOL_LOGITS: f32 = 2e-3;
/// A difference of two logits may be off by twice as much; the reference is written with four or five decimals.
const TOL_LOGPROB: f64 = 2.0 * TOL_LOGITS as f64 + 1e-4;
/// And so two tokens that are nearer than this may change places.
const NEAR_TIE: f64 = TOL_LOGPROB;
/// Relative, of the mean of 1,199 tokens, whose errors have either sign.
const TOL_MEAN_NLL: f64 = 1e-4;
/// Relative, of the fast path: its rounding is to cost next to nothing beside what the weights' cost.
const TOL_FAST_PERPLEXITY: f64 = 3e-3;
/// Relative L2 of logits when sums are taken in another order: f32 over 18 layers.
const TOL_REORDERED: f64 = 1e-5;
/// The same with rounding to 16 bits or fewer on the way, in the cache and before products: a number on the border
/// between two may fall to either side.
const TOL_REORDERED_FAST: f64 = 1.0 / 1024.0;

#[derive(Deserialize)]
struct Greedy {
    cases: Vec<GreedyCase>,
}

/// llama.cpp's own continuation.
#[derive(Deserialize)]
struct GreedyCase {
    prompt: String,
    prompt_tokens: Vec<u32>,
    tokens: Vec<u32>,
}

#[derive(Deserialize)]
struct Float32 {
    cases: Vec<Float32Case>,
    likelihood: Likelihood,
}

/// `agree`, `gap_top1_top2` and `top5_logprobs` are after llama.cpp's tokens, `tokens` is float32's own
/// continuation.
#[derive(Deserialize)]
struct Float32Case {
    agree: Vec<u8>,
    gap_top1_top2: Vec<f64>,
    top5_logprobs: Vec<Vec<(u32, f64)>>,
    tokens: Vec<u32>,
    first_step_logits: Option<FirstStep>,
}

#[derive(Deserialize)]
struct FirstStep {
    top256: Vec<(u32, f32)>,
    grid_step: usize,
    grid: Vec<f32>,
    logsumexp: f64,
}

#[derive(Deserialize)]
struct Likelihood {
    mean_nll: f64,
    nll: Vec<f64>,
}

#[derive(Deserialize)]
struct Text {
    tokens: Vec<u32>,
    perplexity: f64,
}

fn read<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    let bytes = std::fs::read(fixture(format!("gemma3-270m/{name}.json"))).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// The model's path; `None`, said aloud, when the tests are to be skipped.
fn model_path(test: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let Some(path) = set("CARAT_TEST_MODEL").map(PathBuf::from) else {
        assert!(
            set("CARAT_REQUIRE_MODEL").is_none(),
            "CARAT_REQUIRE_MODEL is set but CARAT_TEST_MODEL, the path of gemma-3-270m-q4_k_m.gguf, is not"
        );
        // Not `eprintln!`, which the test harness keeps to itself when a test passes.
        let line = format!("skipped: {test}: set CARAT_TEST_MODEL to the path of gemma-3-270m-q4_k_m.gguf\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return None;
    };
    let size = std::fs::metadata(&path)
        .unwrap_or_else(|error| panic!("CARAT_TEST_MODEL `{}`: {error}", path.display()))
        .len();
    assert_eq!(
        size, MODEL_BYTES,
        "CARAT_TEST_MODEL is not the Q4_K_M file of Gemma 3 270M that the fixtures were made with"
    );
    Some(path)
}

/// Runs `tokens` in one sequence and shows `row` the index and the logits of each from `first` on.
fn each_row(model: &mut Model, tokens: &[u32], first: usize, mut row: impl FnMut(usize, &[f32])) {
    let vocab = model.vocab_size();
    let mut cache = model.new_cache(tokens.len()).unwrap();
    let mut logits = Vec::new();
    for tokens in tokens[..first].chunks(512) {
        forward(model, tokens, &mut cache, LogitRows::None, &mut logits);
    }
    for tokens in tokens[first..].chunks(ROWS_AT_ONCE) {
        let start = cache.len();
        forward(model, tokens, &mut cache, LogitRows::All, &mut logits);
        for (i, logits) in logits.chunks_exact(vocab).enumerate() {
            row(start + i, logits);
        }
    }
}

fn forward(
    model: &mut Model,
    tokens: &[u32],
    cache: &mut <Model as LanguageModel>::Cache,
    rows: LogitRows,
    logits: &mut Vec<f32>,
) {
    let mut batch = [Segment {
        tokens,
        media: &[],
        cache,
        logits: rows,
    }];
    model.forward(&mut batch, logits).unwrap();
}

/// The logits of the last token, the sequence cut into chunks of `chunk`.
fn last_row(model: &mut Model, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut cache = model.new_cache(tokens.len()).unwrap();
    let mut logits = Vec::new();
    let last = (tokens.len() - 1) / chunk;
    for (i, tokens) in tokens.chunks(chunk).enumerate() {
        let rows = if i == last {
            LogitRows::Last
        } else {
            LogitRows::None
        };
        forward(model, tokens, &mut cache, rows, &mut logits);
    }
    logits
}

fn argmax(row: &[f32]) -> u32 {
    let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
    u32::try_from(best).unwrap()
}

fn logsumexp(row: &[f32]) -> f64 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + row.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln()
}

/// `-log p` of each token of the likelihood text after the first.
fn nll(model: &mut Model, tokens: &[u32]) -> Vec<f64> {
    let mut nll = Vec::new();
    each_row(model, &tokens[..tokens.len() - 1], 0, |i, row| {
        nll.push(logsumexp(row) - f64::from(row[tokens[i + 1] as usize]));
    });
    nll
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// What a model says after a prompt and each of `tokens` but the last: the step and the row of logits.
fn each_step(model: &mut Model, prompt: &[u32], tokens: &[u32], mut step: impl FnMut(usize, &[f32])) {
    let given = [prompt, &tokens[..tokens.len() - 1]].concat();
    let first = prompt.len() - 1;
    each_row(model, &given, first, |i, row| step(i - first, row));
}

#[test]
fn f32_logits_equal_the_reference() {
    let Some(path) = model_path("f32_logits_equal_the_reference") else {
        return;
    };
    let mut model = Model::load(&path, LoadOptions::reference()).unwrap();
    let (greedy, float32): (Greedy, Float32) = (read("greedy"), read("float32"));
    let mut n_compared = 0;
    for (case, want) in greedy.cases.iter().zip(&float32.cases) {
        let Some(want) = &want.first_step_logits else {
            continue;
        };
        let got = last_row(&mut model, &case.prompt_tokens, 512);
        let top: (Vec<f32>, Vec<f32>) = want.top256.iter().map(|(id, x)| (got[*id as usize], *x)).unzip();
        let grid: Vec<f32> = got.iter().copied().step_by(want.grid_step).collect();
        assert_close(&format!("{:?} top 256", case.prompt), &top.0, &top.1, TOL_LOGITS);
        assert_close(&format!("{:?} grid", case.prompt), &grid, &want.grid, TOL_LOGITS);
        let off = (logsumexp(&got) - want.logsumexp).abs();
        assert!(off < f64::from(TOL_LOGITS), "{:?} logsumexp: {off}", case.prompt);
        eprintln!(
            "f32 first step {:?}: logits off by at most {:.1e}",
            case.prompt,
            max_abs_diff(&top.0, &top.1).max(max_abs_diff(&grid, &want.grid))
        );
        n_compared += 1;
    }
    assert_eq!(n_compared, 3, "cases with logits");
}

#[test]
fn f32_chooses_what_the_reference_chooses() {
    let Some(path) = model_path("f32_chooses_what_the_reference_chooses") else {
        return;
    };
    let mut model = Model::load(&path, LoadOptions::reference()).unwrap();
    let (greedy, float32): (Greedy, Float32) = (read("greedy"), read("float32"));
    let (mut n_steps, mut n_near) = (0, 0);
    for (case, want) in greedy.cases.iter().zip(&float32.cases) {
        let prompt = &case.prompt;
        each_step(&mut model, &case.prompt_tokens, &case.tokens, |s, row| {
            let agrees = argmax(row) == case.tokens[s];
            let near = want.gap_top1_top2[s] < NEAR_TIE;
            assert!(
                near || agrees == (want.agree[s] == 1),
                "{prompt:?} step {s} after llama.cpp's tokens"
            );
            n_steps += 1;
            n_near += usize::from(near);
            for (id, logprob) in want.top5_logprobs.get(s).into_iter().flatten() {
                let got = f64::from(row[*id as usize]) - logsumexp(row);
                assert!(
                    (got - logprob).abs() < TOL_LOGPROB,
                    "{prompt:?} step {s} log p({id}): {got} instead of {logprob}"
                );
            }
        });
        // Here the reference's gaps are not known: its choice must be ours, or as good as ours.
        each_step(&mut model, &case.prompt_tokens, &want.tokens, |s, row| {
            let best = argmax(row);
            let gap = f64::from(row[best as usize]) - f64::from(row[want.tokens[s] as usize]);
            assert!(
                best == want.tokens[s] || gap < NEAR_TIE,
                "{prompt:?} step {s} after float32's tokens: {best} by {gap}"
            );
            n_steps += 1;
            n_near += usize::from(best != want.tokens[s]);
        });
    }
    eprintln!("f32 choices: {n_steps} steps, {n_near} of them near-ties, all others equal");
}

#[test]
fn f32_likelihood_equals_the_reference() {
    let Some(path) = model_path("f32_likelihood_equals_the_reference") else {
        return;
    };
    let mut model = Model::load(&path, LoadOptions::reference()).unwrap();
    let (text, float32): (Text, Float32) = (read("likelihood"), read("float32"));
    let (got, want) = (nll(&mut model, &text.tokens), &float32.likelihood);
    assert_eq!(got.len(), want.nll.len());
    let off = |i: usize| (got[i] - want.nll[i]).abs();
    let worst = (0..got.len()).max_by(|a, b| off(*a).total_cmp(&off(*b))).unwrap();
    let relative = (mean(&got) / want.mean_nll - 1.0).abs();
    eprintln!(
        "f32 likelihood: perplexity {:.4}, float32's {:.4}; mean off by {relative:.1e}; worst token {worst} off by {:.1e}",
        mean(&got).exp(),
        want.mean_nll.exp(),
        off(worst)
    );
    assert!(
        off(worst) < TOL_LOGPROB,
        "token {worst}: {} instead of {}",
        got[worst],
        want.nll[worst]
    );
    assert!(relative < TOL_MEAN_NLL, "{relative}");
}

#[test]
fn the_fast_path_is_as_near_as_llama_cpp() {
    let Some(path) = model_path("the_fast_path_is_as_near_as_llama_cpp") else {
        return;
    };
    let mut model = Model::load(&path, LoadOptions::default()).unwrap();
    let (greedy, float32): (Greedy, Float32) = (read("greedy"), read("float32"));
    // Both counts are of steps at which a runtime's best token is float32's: llama.cpp's after its own tokens,
    // ours after float32's tokens, since only there float32's best is known at every step.
    let (mut n_ours, mut n_llama_cpp, mut n_steps) = (0, 0, 0);
    for (case, want) in greedy.cases.iter().zip(&float32.cases) {
        each_step(&mut model, &case.prompt_tokens, &want.tokens, |s, row| {
            n_ours += usize::from(argmax(row) == want.tokens[s]);
            n_steps += 1;
        });
        n_llama_cpp += want.agree.iter().map(|agree| usize::from(*agree)).sum::<usize>();
    }
    let text: Text = read("likelihood");
    let perplexity = mean(&nll(&mut model, &text.tokens)).exp();
    let reference = float32.likelihood.mean_nll.exp();
    let percent = |perplexity: f64| 100.0 * (perplexity / reference - 1.0);
    eprintln!(
        "fast path: float32's choice at {n_ours} of {n_steps} steps, llama.cpp's at {n_llama_cpp}; perplexity \
         {perplexity:.4} ({:+.2} %), llama.cpp's {:.4} ({:+.2} %)",
        percent(perplexity),
        text.perplexity,
        percent(text.perplexity)
    );
    assert!(
        n_ours >= n_llama_cpp,
        "{n_ours} of {n_steps}, llama.cpp {n_llama_cpp}"
    );
    assert!(
        percent(perplexity).abs() < 100.0 * TOL_FAST_PERPLEXITY,
        "{perplexity}"
    );
}

/// Longer than the window of 512, so that local layers have forgotten the first tokens.
const LONG_PROMPT: usize = 560;
const N_DECODED: usize = 16;

fn long_prompt() -> Vec<u32> {
    let text: Text = read("likelihood");
    text.tokens[..LONG_PROMPT].to_vec()
}

#[test]
fn chunks_change_only_rounding_and_threads_nothing() {
    let Some(path) = model_path("chunks_change_only_rounding_and_threads_nothing") else {
        return;
    };
    let tokens = long_prompt();
    for (name, options, tolerance, chunks) in [
        ("f32", LoadOptions::reference(), TOL_REORDERED, &[64][..]),
        (
            "fast path",
            LoadOptions::default(),
            TOL_REORDERED_FAST,
            &[1, 7, 64],
        ),
    ] {
        let mut model = Model::load(
            &path,
            LoadOptions {
                n_threads: 2,
                ..options
            },
        )
        .unwrap();
        let whole = last_row(&mut model, &tokens, 512);
        for chunk in chunks {
            let error = relative_l2(&last_row(&mut model, &tokens, *chunk), &whole);
            eprintln!("{name}, chunks of {chunk}: logits off by {error:.1e} (relative L2)");
            assert!(error < tolerance, "{name}, chunks of {chunk}: {error}");
        }
        let mut alone = Model::load(
            &path,
            LoadOptions {
                n_threads: 1,
                ..options
            },
        )
        .unwrap();
        assert!(
            last_row(&mut alone, &tokens, 512) == whole,
            "{name}: one thread and two differ"
        );
    }
}

#[test]
fn decode_equals_prefill() {
    let Some(path) = model_path("decode_equals_prefill") else {
        return;
    };
    let tokens = long_prompt();
    for (name, options, tolerance) in [
        ("f32", LoadOptions::reference(), TOL_REORDERED),
        ("fast path", LoadOptions::default(), TOL_REORDERED_FAST),
    ] {
        let mut model = Model::load(&path, options).unwrap();
        let first = LONG_PROMPT - N_DECODED;
        let mut prefilled = Vec::new();
        each_row(&mut model, &tokens, first, |_, row| {
            prefilled.extend_from_slice(row)
        });
        let mut cache = model.new_cache(LONG_PROMPT).unwrap();
        let (mut decoded, mut row) = (Vec::new(), Vec::new());
        for tokens in tokens[..first].chunks(512) {
            forward(&mut model, tokens, &mut cache, LogitRows::None, &mut row);
        }
        for token in tokens[first..].chunks(1) {
            forward(&mut model, token, &mut cache, LogitRows::Last, &mut row);
            decoded.extend_from_slice(&row);
        }
        let error = relative_l2(&decoded, &prefilled);
        eprintln!("{name}, decode after prefill: logits off by {error:.1e} (relative L2)");
        assert!(error < tolerance, "{name}: {error}");
    }
}

/// Sixteen sequences together, as a server decodes them: what is screened in 8 bits is what 16 bits find, to the bit.
#[test]
fn the_largest_logits_of_a_batch_are_those_of_whole_rows() {
    const N_SEQUENCES: usize = 16;
    const N_TOP: usize = 64;
    let Some(path) = model_path("the_largest_logits_of_a_batch_are_those_of_whole_rows") else {
        return;
    };
    let mut model = Model::load(&path, LoadOptions::default()).unwrap();
    let (vocab_size, is_exact) = (model.vocab_size(), model.n_alike_rows() >= N_SEQUENCES);
    let text = long_prompt();
    let mut caches: Vec<_> = (0..N_SEQUENCES).map(|_| model.new_cache(100).unwrap()).collect();
    for (i, cache) in caches.iter_mut().enumerate() {
        forward(
            &mut model,
            &text[31 * i..][..20 + i],
            cache,
            LogitRows::None,
            &mut Vec::new(),
        );
    }
    let mut tokens: Vec<u32> = (0..N_SEQUENCES).map(|i| text[32 * i + 20]).collect();
    for _ in 0..6 {
        let mut step = |rows: LogitRows, logits: &mut Vec<f32>| {
            let segments = caches.iter_mut().zip(tokens.chunks(1));
            let mut batch: Vec<_> = segments
                .map(|(cache, tokens)| Segment {
                    tokens,
                    media: &[],
                    cache,
                    logits: rows,
                })
                .collect();
            model.forward(&mut batch, logits).unwrap();
            let top = model.top().to_vec();
            (batch.iter_mut()).for_each(|one| assert!(one.cache.truncate(one.cache.len() - 1)));
            top
        };
        let mut whole = Vec::new();
        step(LogitRows::Last, &mut whole);
        let top = step(LogitRows::Top(N_TOP), &mut Vec::new());
        assert_eq!(top.len(), N_SEQUENCES);
        for (i, (top, row)) in top.iter().zip(whole.chunks_exact(vocab_size)).enumerate() {
            let mut ids: Vec<usize> = (0..vocab_size).collect();
            ids.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
            assert_eq!(top.len(), N_TOP);
            for (got, id) in top.iter().zip(ids) {
                if is_exact {
                    assert_eq!((got.id as usize, got.logit), (id, row[id]), "sequence {i}");
                }
                assert!((got.logit - row[id]).abs() < 1e-3, "sequence {i}");
            }
        }
        // The tokens that both steps computed and took back.
        for (cache, tokens) in caches.iter_mut().zip(tokens.chunks(1)) {
            forward(&mut model, tokens, cache, LogitRows::None, &mut Vec::new());
        }
        tokens = top.iter().map(|top| top[0].id).collect();
    }
}
