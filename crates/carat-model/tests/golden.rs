//! The forward pass against the reference's logits, hidden states and greedy text for a small random model
//! with the real features switched on, on prompts three times as long as its window of 16.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod support;

use carat_model::{
    Checkpoint, Isa, LanguageModel, LoadOptions, LogitRows, Model, Observed, Segment, SequenceCache,
};
use carat_testkit::{Golden, assert_close, fixture, relative_l2};
use support::greedy;

/// Relative L2 of logits in f32: the issue of this model's accuracy.
const TOL_LOGITS: f64 = 1e-4;
/// Absolute, for logits of standard deviation 2.4; the fixtures' own bound.
const TOL_LOGITS_ABS: f32 = 2e-3;
/// Of the rms of a hidden state; the fixtures' own bounds, and for the last one.
const TOL_HIDDEN: f32 = 1e-4;
const TOL_HIDDEN_LAST: f32 = 1e-3;
/// The same numbers in another order of sums: some hundred additions in f32 over eight layers.
const TOL_REORDERED: f64 = 1e-5;
/// The same with a cache in f16: a number on the border between two f16 may fall to either side, which is one
/// part in 2,048 of it.
const TOL_REORDERED_F16: f64 = 1.0 / 1024.0;

fn golden() -> Golden {
    Golden::open(&fixture("gemma3-text/golden.safetensors"))
}

fn load(options: LoadOptions) -> Model {
    Model::load(&fixture("gemma3-text"), options).unwrap()
}

/// Logits of every token, the prompt cut into chunks of `chunk`.
fn logits(model: &mut Model, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut cache = model.new_cache(tokens.len()).unwrap();
    let (mut all, mut part) = (Vec::new(), Vec::new());
    for tokens in tokens.chunks(chunk) {
        let mut batch = [Segment {
            tokens,
            media: &[],
            cache: &mut cache,
            logits: LogitRows::All,
        }];
        model.forward(&mut batch, &mut part).unwrap();
        all.extend_from_slice(&part);
    }
    assert_eq!(cache.len(), tokens.len());
    all
}

#[test]
fn logits_equal_the_reference_on_every_instruction_set() {
    let golden = golden();
    let (tokens, want) = (golden.ids("input_ids"), golden.f32s("logits"));
    for isa in Isa::available() {
        let got = logits(
            &mut load(LoadOptions {
                isa,
                ..LoadOptions::reference()
            }),
            &tokens,
            512,
        );
        let error = relative_l2(&got, &want.data);
        assert!(error < TOL_LOGITS, "{isa}: {error}");
        assert_close("logits", &got, &want.data, TOL_LOGITS_ABS);
    }
}

/// The text of a multimodal checkpoint: settings under `text_config`, tensors under another prefix, a vision tower
/// beside them.
#[test]
fn a_multimodal_checkpoint_s_text_equals_the_reference() {
    let golden = Golden::open(&fixture("gemma3-vision/golden.safetensors"));
    let (tokens, want) = (golden.ids("input_ids"), golden.f32s("logits"));
    for isa in Isa::available() {
        let options = LoadOptions {
            isa,
            ..LoadOptions::reference()
        };
        let mut model = Model::load(&fixture("gemma3-vision"), options).unwrap();
        let error = relative_l2(&logits(&mut model, &tokens, 512), &want.data);
        assert!(error < TOL_LOGITS, "{isa}: {error}");
    }
}

#[test]
fn hidden_states_equal_the_reference() {
    let golden = golden();
    let tokens = golden.ids("input_ids");
    let mut model = load(LoadOptions::reference());
    let mut cache = model.new_cache(tokens.len()).unwrap();
    let mut batch = [Segment {
        tokens: &tokens,
        media: &[],
        cache: &mut cache,
        logits: LogitRows::All,
    }];
    let mut seen = 0;
    let n_layers = model.config().layers.len();
    model
        .forward_observed(&mut batch, &mut Vec::new(), &mut |what, got| {
            let Observed::Hidden(i) = what else { return };
            let want = golden.f32s(&format!("hidden.{i}"));
            let rms = (want.data.iter().map(|v| v * v).sum::<f32>() / want.data.len() as f32).sqrt();
            let tolerance = if i == n_layers {
                TOL_HIDDEN_LAST
            } else {
                TOL_HIDDEN
            };
            assert_close(&format!("hidden.{i}"), got, &want.data, tolerance * rms);
            seen += 1;
        })
        .unwrap();
    assert_eq!(seen, n_layers + 1);
}

/// Hidden states instead of logits, in a batch with another sequence that wants logits: each gets what it gets alone.
#[test]
fn last_hidden_states_are_given_without_logits() {
    let golden = golden();
    let tokens = golden.ids("input_ids");
    let mut model = load(LoadOptions::reference());
    let want = golden.f32s(&format!("hidden.{}", model.config().layers.len()));
    let alone = logits(&mut model, &tokens[..20], 512);
    let vocab = model.vocab_size();
    let [mut shown, mut spoken] = [tokens.len(), 20].map(|n| model.new_cache(n).unwrap());
    let mut batch = [
        Segment {
            tokens: &tokens,
            media: &[],
            cache: &mut shown,
            logits: LogitRows::Hidden,
        },
        Segment {
            tokens: &tokens[..20],
            media: &[],
            cache: &mut spoken,
            logits: LogitRows::Last,
        },
    ];
    let mut logits = Vec::new();
    model.forward(&mut batch, &mut logits).unwrap();
    assert_eq!(logits.len(), vocab);
    assert!(relative_l2(&logits, &alone[19 * vocab..]) < TOL_REORDERED);
    let rms = (want.data.iter().map(|v| v * v).sum::<f32>() / want.data.len() as f32).sqrt();
    assert_close("hidden", model.hidden(), &want.data, TOL_HIDDEN_LAST * rms);
    let mut batch = [Segment {
        tokens: &[2],
        media: &[],
        cache: &mut model.new_cache(1).unwrap(),
        logits: LogitRows::Hidden,
    }];
    model.forward(&mut batch, &mut logits).unwrap();
    assert!(logits.is_empty() && model.hidden().len() * tokens.len() == want.data.len());
}

#[test]
fn incremental_decode_equals_the_reference_and_prefill() {
    let golden = golden();
    let tokens = golden.ids("input_ids");
    let want = golden.f32s("incremental_logits");
    let vocab = want.shape[1];
    let split = tokens.len() + 1 - want.shape[0];
    let mut model = load(LoadOptions::reference());
    let mut cache = model.new_cache(tokens.len()).unwrap();
    let (mut got, mut row) = (Vec::new(), Vec::new());
    for tokens in std::iter::once(&tokens[..split]).chain(tokens[split..].chunks(1)) {
        let mut batch = [Segment {
            tokens,
            media: &[],
            cache: &mut cache,
            logits: LogitRows::Last,
        }];
        model.forward(&mut batch, &mut row).unwrap();
        assert_eq!(row.len(), vocab);
        got.extend_from_slice(&row);
    }
    assert!(relative_l2(&got, &want.data) < TOL_LOGITS);
    let prefill = logits(&mut model, &tokens, 512);
    assert!(relative_l2(&got, &prefill[(split - 1) * vocab..]) < TOL_REORDERED);
}

#[test]
fn greedy_text_is_the_reference_s() {
    let golden = golden();
    let (tokens, want) = (golden.ids("input_ids"), golden.ids("greedy_ids"));
    for isa in Isa::available() {
        let mut model = load(LoadOptions {
            isa,
            ..LoadOptions::reference()
        });
        assert_eq!(greedy(&mut model, &tokens, want.len()), want, "{isa}");
    }
}

#[test]
fn chunks_and_threads_change_only_rounding() {
    let golden = golden();
    let tokens = golden.ids("input_ids");
    for (options, tolerance) in [
        (LoadOptions::reference(), TOL_REORDERED),
        (LoadOptions::default(), TOL_REORDERED_F16),
    ] {
        let whole = logits(&mut load(options), &tokens, 512);
        for chunk in [1, 2, 7, 15, 16, 17, 33] {
            let error = relative_l2(&logits(&mut load(options), &tokens, chunk), &whole);
            assert!(error < tolerance, "chunks of {chunk}: {error}");
        }
        let threads = logits(
            &mut load(LoadOptions {
                n_threads: 3,
                ..options
            }),
            &tokens,
            512,
        );
        assert_eq!(threads, whole, "threads must not change a bit");
    }
}

#[test]
fn a_batch_changes_only_rounding() {
    let golden = golden();
    let tokens = golden.ids("input_ids");
    let vocab = golden.f32s("logits").shape[2];
    let mut model = load(LoadOptions::reference());
    // Three sequences at different points: a prompt, a prompt's second chunk, a decode step.
    let lengths = [40, 30, 20];
    let before = [0, 25, 19];
    let mut caches: Vec<_> = lengths.iter().map(|n| model.new_cache(*n).unwrap()).collect();
    let mut out = Vec::new();
    for (cache, n) in caches.iter_mut().zip(before) {
        if n > 0 {
            let mut batch = [Segment {
                tokens: &tokens[..n],
                media: &[],
                cache,
                logits: LogitRows::None,
            }];
            model.forward(&mut batch, &mut out).unwrap();
            assert!(out.is_empty());
        }
    }
    let mut batch: Vec<_> = caches
        .iter_mut()
        .zip(lengths.iter().zip(before))
        .map(|(cache, (n, first))| Segment {
            tokens: &tokens[first..*n],
            media: &[],
            cache,
            logits: LogitRows::Last,
        })
        .collect();
    model.forward(&mut batch, &mut out).unwrap();
    assert_eq!(out.len(), 3 * vocab);
    for (got, n) in out.chunks_exact(vocab).zip(lengths) {
        let alone = logits(&mut model, &tokens[..n], 512);
        let error = relative_l2(got, &alone[(n - 1) * vocab..]);
        assert!(error < TOL_REORDERED, "the sequence of {n}: {error}");
    }
}

#[test]
fn tokens_can_be_taken_back() {
    let golden = golden();
    let tokens = golden.ids("input_ids");
    let mut model = load(LoadOptions::reference());
    let whole = logits(&mut model, &tokens, 512);
    let mut cache = model.new_cache(100).unwrap();
    let mut out = Vec::new();
    let wrong: Vec<u32> = tokens[..30].iter().copied().chain([5, 6, 7, 8, 9]).collect();
    model
        .forward(
            &mut [Segment {
                tokens: &wrong,
                media: &[],
                cache: &mut cache,
                logits: LogitRows::None,
            }],
            &mut out,
        )
        .unwrap();
    assert!(cache.truncate(30));
    let mut batch = [Segment {
        tokens: &tokens[30..],
        media: &[],
        cache: &mut cache,
        logits: LogitRows::Last,
    }];
    model.forward(&mut batch, &mut out).unwrap();
    assert!(relative_l2(&out, &whole[whole.len() - out.len()..]) < TOL_REORDERED);
}

#[test]
fn both_spellings_of_a_config_are_one_model() {
    let read = |name: &str| {
        let path = fixture(format!("gemma3-text/{name}"));
        carat_model::Config::from_config_json(&std::fs::read(&path).unwrap(), &path).unwrap()
    };
    assert_eq!(read("config.json"), read("config.hub.json"));
}

#[test]
fn a_refused_batch_leaves_the_caches_as_they_were() {
    let mut model = load(LoadOptions::default());
    let mut cache = model.new_cache(4).unwrap();
    let mut out = Vec::new();
    for tokens in [&[1, 512][..], &[], &[1, 2, 3, 4, 5]] {
        let mut batch = [Segment {
            tokens,
            media: &[],
            cache: &mut cache,
            logits: LogitRows::Last,
        }];
        assert!(model.forward(&mut batch, &mut out).is_err());
        assert_eq!(cache.len(), 0);
    }
    assert!(model.new_cache(1 << 20).is_err());
}

#[test]
fn a_folder_with_a_tensor_too_few_or_too_many_is_refused_by_name() {
    let source = fixture("gemma3-text/config.json");
    let folder = tempfile::tempdir().unwrap();
    let json = std::fs::read_to_string(&source).unwrap();
    std::fs::copy(
        fixture("gemma3-text/model.safetensors"),
        folder.path().join("model.safetensors"),
    )
    .unwrap();
    for (layers, wanted) in [(9, "layers.8."), (7, "layers.7.")] {
        let changed = json
            .replace(
                "\"num_hidden_layers\": 8",
                &format!("\"num_hidden_layers\": {layers}"),
            )
            .replace("\"layer_types\"", "\"other_types\"");
        std::fs::write(folder.path().join("config.json"), changed).unwrap();
        let error = Model::load(folder.path(), LoadOptions::default())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let wider = json.replace("\"intermediate_size\": 160", "\"intermediate_size\": 192");
    std::fs::write(folder.path().join("config.json"), wider).unwrap();
    let error = Model::load(folder.path(), LoadOptions::default())
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("[192, 64]") && error.contains("[160, 64]"),
        "{error}"
    );
    assert!(Checkpoint::open(std::path::Path::new("/nowhere")).is_err());
}
