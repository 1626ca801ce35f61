//! The forward pass of every Gemma 4 against the reference's logits, inner numbers and greedy text, for small
//! random models with the real features switched on, on prompts three times as long as their window of 16:
//! - `unified` (12B), `dense` (31B): values that are keys and wider heads in global layers, layer scalars, soft cap;
//! - `edge` (E2B, E4B): per-layer inputs, ten of fifteen layers on the keys and values of two others;
//! - `moe` (26B-A4B): three of eight experts beside an MLP.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod support;

use carat_model::{
    Checkpoint, Config, Isa, KvDType, LanguageModel, LoadOptions, LogitRows, Model, Observed, Precision,
    Segment, SequenceCache,
};
use carat_testkit::{Golden, assert_close, fixture, relative_l2};
use support::greedy;

const MODELS: [&str; 4] = ["gemma4-unified", "gemma4-dense", "gemma4-edge", "gemma4-moe"];

/// Relative L2 of logits in f32.
const TOL_LOGITS: f64 = 1e-4;
/// Absolute, for logits of standard deviation 2 to 3; the fixtures' own bound.
const TOL_LOGITS_ABS: f32 = 2e-3;
/// Of the rms of a hidden state; the fixtures' own bounds, and for the last ones.
const TOL_HIDDEN: f32 = 1e-4;
const TOL_HIDDEN_LAST: f32 = 1e-3;
/// Absolute, of probabilities.
const TOL_PROBABILITY: f32 = 1e-4;
/// The same numbers in another order of sums, over up to fifteen layers of sharp attention.
const TOL_REORDERED: f64 = 5e-5;
/// The same with a cache in f16: a number on the border between two f16 may fall to either side.
const TOL_REORDERED_F16: f64 = 1.0 / 256.0;

fn golden(model: &str) -> Golden {
    Golden::open(&fixture(format!("{model}/golden.safetensors")))
}

fn load(model: &str, options: LoadOptions) -> Model {
    Model::load(&fixture(model), options).unwrap()
}

/// The reference's arithmetic with the kernels of an instruction set.
fn on(isa: Isa) -> LoadOptions {
    LoadOptions {
        isa,
        ..LoadOptions::reference()
    }
}

fn segment<'a, C>(tokens: &'a [u32], cache: &'a mut C, logits: LogitRows) -> Segment<'a, C> {
    Segment {
        tokens,
        media: &[],
        cache,
        logits,
    }
}

/// Logits of every token, the prompt cut into chunks of `chunk`.
fn logits(model: &mut Model, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut cache = model.new_cache(tokens.len()).unwrap();
    let (mut all, mut part) = (Vec::new(), Vec::new());
    for tokens in tokens.chunks(chunk) {
        let mut batch = [segment(tokens, &mut cache, LogitRows::All)];
        model.forward(&mut batch, &mut part).unwrap();
        all.extend_from_slice(&part);
    }
    all
}

#[test]
fn logits_equal_the_reference_on_every_instruction_set() {
    for name in MODELS {
        let golden = golden(name);
        let (tokens, want) = (golden.ids("input_ids"), golden.f32s("logits"));
        for isa in Isa::available() {
            let mut model = load(name, on(isa));
            let got = logits(&mut model, &tokens, 512);
            let error = relative_l2(&got, &want.data);
            assert!(error < TOL_LOGITS, "{name} {isa}: {error}");
            assert_close("logits", &got, &want.data, TOL_LOGITS_ABS);
        }
    }
}

#[test]
fn inner_numbers_equal_the_reference() {
    for name in MODELS {
        let golden = golden(name);
        let tokens = golden.ids("input_ids");
        let mut model = load(name, LoadOptions::reference());
        let n_layers = model.config().layers.len();
        let mut cache = model.new_cache(tokens.len()).unwrap();
        let mut batch = [segment(&tokens, &mut cache, LogitRows::All)];
        let mut n_seen = [0; 3];
        let mut observe = |what: Observed, got: &[f32]| match what {
            Observed::Hidden(i) => {
                n_seen[0] += 1;
                let want = golden.f32s(&format!("hidden.{i}"));
                let rms = (want.data.iter().map(|v| v * v).sum::<f32>() / want.data.len() as f32).sqrt();
                let tolerance = if i + 2 < n_layers {
                    TOL_HIDDEN
                } else {
                    TOL_HIDDEN_LAST
                };
                assert_close(&format!("{name} hidden.{i}"), got, &want.data, tolerance * rms);
            }
            Observed::PerLayerInputs => {
                n_seen[1] += 1;
                let want = golden.f32s("per_layer.combined");
                assert_close("per_layer.combined", got, &want.data, TOL_HIDDEN);
            }
            Observed::RouterProbabilities(i) => {
                n_seen[2] += 1;
                let want = golden.f32s("router_probabilities");
                let of_layer = &want.data[i * got.len()..(i + 1) * got.len()];
                assert_close(&format!("router {i}"), got, of_layer, TOL_PROBABILITY);
            }
        };
        model
            .forward_observed(&mut batch, &mut Vec::new(), &mut observe)
            .unwrap();
        let n_inputs = usize::from(name == "gemma4-edge");
        let n_routers = if name == "gemma4-moe" { n_layers } else { 0 };
        assert_eq!(n_seen, [n_layers + 1, n_inputs, n_routers], "{name}");
    }
}

#[test]
fn incremental_decode_equals_the_reference_and_prefill() {
    for name in MODELS {
        let golden = golden(name);
        let tokens = golden.ids("input_ids");
        let want = golden.f32s("incremental_logits");
        let vocab = want.shape[1];
        let split = tokens.len() + 1 - want.shape[0];
        for isa in Isa::available() {
            let mut model = load(name, on(isa));
            let mut cache = model.new_cache(tokens.len()).unwrap();
            let (mut got, mut row) = (Vec::new(), Vec::new());
            for tokens in std::iter::once(&tokens[..split]).chain(tokens[split..].chunks(1)) {
                let mut batch = [segment(tokens, &mut cache, LogitRows::Last)];
                model.forward(&mut batch, &mut row).unwrap();
                got.extend_from_slice(&row);
            }
            let error = relative_l2(&got, &want.data);
            assert!(error < TOL_LOGITS, "{name} {isa}: {error}");
            let prefill = logits(&mut model, &tokens, 512);
            let error = relative_l2(&got, &prefill[(split - 1) * vocab..]);
            assert!(error < TOL_REORDERED, "{name} {isa}: {error}");
        }
    }
}

#[test]
fn greedy_text_is_the_reference_s() {
    for name in MODELS {
        let golden = golden(name);
        let (tokens, want) = (golden.ids("input_ids"), golden.ids("greedy_ids"));
        for isa in Isa::available() {
            let mut model = load(name, on(isa));
            assert_eq!(greedy(&mut model, &tokens, want.len()), want, "{name} {isa}");
        }
    }
}

#[test]
fn chunks_and_threads_change_only_rounding() {
    for name in MODELS {
        let tokens = golden(name).ids("input_ids");
        let f16 = LoadOptions {
            kv_dtype: KvDType::F16,
            ..LoadOptions::reference()
        };
        for (options, tolerance) in [
            (LoadOptions::reference(), TOL_REORDERED),
            (f16, TOL_REORDERED_F16),
        ] {
            let whole = logits(&mut load(name, options), &tokens, 512);
            for chunk in [1, 2, 7, 16, 17, 33] {
                let error = relative_l2(&logits(&mut load(name, options), &tokens, chunk), &whole);
                assert!(error < tolerance, "{name}, chunks of {chunk}: {error}");
            }
            let options = LoadOptions {
                n_threads: 3,
                ..options
            };
            let threads = logits(&mut load(name, options), &tokens, 512);
            assert_eq!(threads, whole, "{name}: threads must not change a bit");
        }
    }
}

/// What is not computed for rows that nobody asked for must not change the others; and prompts, decode steps and
/// rows of every kind share a batch.
#[test]
fn a_batch_of_all_kinds_changes_only_rounding() {
    for name in MODELS {
        let tokens = golden(name).ids("input_ids");
        let mut model = load(name, LoadOptions::reference());
        let vocab = model.vocab_size();
        let whole = logits(&mut model, &tokens, 512);
        let kinds = [
            (0, 40, LogitRows::Last),
            (25, 50, LogitRows::Last),
            (19, 20, LogitRows::Last),
            (10, 30, LogitRows::None),
        ];
        for others in [LogitRows::None, LogitRows::All] {
            let mut caches: Vec<_> = (0..5).map(|_| model.new_cache(64).unwrap()).collect();
            let mut out = Vec::new();
            for (cache, (first, ..)) in caches.iter_mut().zip(kinds) {
                if first > 0 {
                    let mut batch = [segment(&tokens[..first], cache, LogitRows::None)];
                    model.forward(&mut batch, &mut out).unwrap();
                    assert!(out.is_empty());
                }
            }
            let all = kinds.into_iter().chain([(0, 12, others)]);
            let mut batch: Vec<_> = caches
                .iter_mut()
                .zip(all)
                .map(|(cache, (first, end, rows))| segment(&tokens[first..end], cache, rows))
                .collect();
            model.forward(&mut batch, &mut out).unwrap();
            let last = [40, 50, 20].map(|end: usize| end - 1..end);
            let wanted = last.into_iter().chain(std::iter::once(0..others.count(12)));
            let want: Vec<f32> = wanted
                .flat_map(|rows| whole[rows.start * vocab..rows.end * vocab].to_vec())
                .collect();
            let error = relative_l2(&out, &want);
            assert!(error < TOL_REORDERED, "{name} {others:?}: {error}");
            // The caches go on from there, those of rows without logits too.
            for (cache, end) in caches
                .iter_mut()
                .zip([40, 50, 20, 30])
                .filter(|(_, end)| *end < 50)
            {
                assert_eq!(cache.len(), end);
                let mut batch = [segment(&tokens[end..=end], cache, LogitRows::Last)];
                model.forward(&mut batch, &mut out).unwrap();
                let error = relative_l2(&out, &whole[end * vocab..(end + 1) * vocab]);
                assert!(error < TOL_REORDERED, "{name} after {end}: {error}");
            }
        }
    }
}

/// Logits of every token and hidden states of every token, the prompt cut into chunks of `chunk`.
fn all_rows(model: &mut Model, tokens: &[u32], chunk: usize) -> [Vec<f32>; 2] {
    let mut cache = model.new_cache(tokens.len()).unwrap();
    let mut hidden = Vec::new();
    for tokens in tokens.chunks(chunk) {
        let mut batch = [segment(tokens, &mut cache, LogitRows::Hidden)];
        model.forward(&mut batch, &mut Vec::new()).unwrap();
        hidden.extend_from_slice(model.hidden());
    }
    [logits(model, tokens, chunk), hidden]
}

/// Chunks so long that they go around a local layer's ring: its places of what the first rows see are those of the
/// last ones. Layers that attend to another's keys and values come when the chunk has them all.
#[test]
fn shared_kv_of_a_chunk_longer_than_the_ring_changes_only_rounding() {
    let tokens: Vec<u32> = (0..300).map(|i| (i * 131 + 17) % 500).collect();
    for name in MODELS {
        let mut model = load(name, LoadOptions::reference());
        let whole = all_rows(&mut model, &tokens, 512);
        for chunk in [16, 60, 150] {
            let cut = all_rows(&mut model, &tokens, chunk);
            for (what, cut, whole) in [
                ("logits", &cut[0], &whole[0]),
                ("hidden states", &cut[1], &whole[1]),
            ] {
                let error = relative_l2(cut, whole);
                assert!(
                    error < TOL_REORDERED,
                    "{name}, {what} in chunks of {chunk}: {error}"
                );
            }
        }
    }
}

#[test]
fn both_spellings_of_a_config_are_one_model() {
    for name in MODELS {
        let read = |file: &str| {
            let path = fixture(format!("{name}/{file}"));
            Config::from_config_json(&std::fs::read(&path).unwrap(), &path).unwrap()
        };
        assert_eq!(read("config.json"), read("config.hub.json"), "{name}");
    }
}

#[test]
fn layers_on_others_keys_and_values_take_no_cache() {
    let config = load("gemma4-edge", LoadOptions::reference()).config().clone();
    let bytes = |config: &Config| carat_model::KvCache::bytes_for(config, KvDType::F16, 50);
    let mut owning = config.clone();
    owning.layers.truncate(5);
    assert_eq!(bytes(&config), bytes(&owning));
}

/// The integer arithmetic of weights in f32 is f32's: what differs is only the cache, and all runs.
#[test]
fn every_precision_runs() {
    for name in MODELS {
        let tokens = golden(name).ids("input_ids");
        let whole = logits(&mut load(name, LoadOptions::reference()), &tokens, 512);
        for precision in [Precision::Int8, Precision::Int16] {
            let options = LoadOptions {
                precision: Some(precision),
                ..LoadOptions::default()
            };
            let error = relative_l2(&logits(&mut load(name, options), &tokens, 512), &whole);
            assert!(error < 0.05, "{name} {precision:?}: {error}");
        }
    }
}

/// How many pairs of a global head turn does not depend on what is listed of local layers before it.
#[test]
fn a_listed_local_layer_leaves_the_global_rope_alone() {
    let path = fixture("gemma4-edge/config.json");
    let json = std::fs::read_to_string(&path).unwrap();
    let (from, to) = (
        "\"per_layer_config\": {",
        "\"per_layer_config\": {\"00\": {\"head_dim\": 16},",
    );
    assert!(json.contains(from));
    let read = |json: &str| Config::from_config_json(json.as_bytes(), &path).unwrap();
    let config = read(&json);
    assert_eq!(config.ropes[1].n_turning, Some(4));
    assert_eq!(read(&json.replace(from, to)), config);
}

/// Looking up each of so many layers among so many entries would take minutes.
#[test]
fn a_config_of_too_many_layers_is_refused_at_once() {
    let path = fixture("gemma4-edge/config.json");
    let json = std::fs::read_to_string(&path).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let n = 100_000;
    let text = &mut json["text_config"];
    text["num_hidden_layers"] = n.into();
    text["layer_types"] = vec!["full_attention"; n].into();
    let listed = (0..150_000).map(|i| (i.to_string(), serde_json::json!({})));
    text["per_layer_config"] = serde_json::Value::Object(listed.collect());
    let error = Config::from_config_json(json.to_string().as_bytes(), &path).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("num_hidden_layers = 100000, but it must be between 1 and 1024"),
        "{error}"
    );
}

#[test]
fn a_config_that_cannot_be_is_refused_by_name() {
    let path = fixture("gemma4-edge/config.json");
    let json = std::fs::read_to_string(&path).unwrap();
    for (from, to, wanted) in [
        (
            "\"num_kv_shared_layers\": 10",
            "\"num_kv_shared_layers\": 15",
            "shared keys",
        ),
        (
            "\"num_kv_shared_layers\": 10",
            "\"num_kv_shared_layers\": 12",
            "of its kind",
        ),
        (
            "\"hidden_size_per_layer_input\": 16",
            "\"hidden_size_per_layer_input\": 99999999",
            "per-layer",
        ),
        (
            "\"enable_moe_block\": false",
            "\"enable_moe_block\": true",
            "num_experts",
        ),
        (
            "\"partial_rotary_factor\": 0.25",
            "\"partial_rotary_factor\": 4.5",
            "partial_rotary_factor",
        ),
        (
            "\"num_attention_heads\": 4",
            "\"num_attention_heads\": 0",
            "number of heads",
        ),
        (
            "\"per_layer_config\": {",
            "\"per_layer_config\": {\"03\": {\"head_dim\": 24},",
            "head size = 24, but it must be the same in all local and in all global layers",
        ),
        (
            "\"per_layer_config\": {",
            "\"per_layer_config\": {\"layer 3\": {\"head_dim\": 16},",
            "per_layer_config = layer 3",
        ),
        (
            "\"per_layer_config\": {",
            "\"per_layer_config\": {\"4\": {\"head_dim\": 32},",
            "per_layer_config = 4",
        ),
        (
            "\"per_layer_config\": {",
            "\"per_layer_config\": {\"99\": {\"head_dim\": 16},",
            "per_layer_config = 99",
        ),
    ] {
        assert!(json.contains(from), "{from}");
        let error = Config::from_config_json(json.replace(from, to).as_bytes(), &path);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    assert!(
        Checkpoint::open(&path).is_err(),
        "a config.json alone is no checkpoint"
    );
}
