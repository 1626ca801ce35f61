//! Drafters: those of Gemma 4 against the reference's draft logits and states, a smaller model against itself, and
//! answers that are the same with either.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod support;

use std::ops::ControlFlow;
use std::path::Path;

use carat_format::{Array, GgufBuilder, Safetensors, Value};
use carat_kernels::DType;
use carat_model::convert::{ConvertOptions, ConvertProgress, Mix, convert};
use carat_model::{
    Checkpoint, DraftSegment, DrafterKind, Error, Isa, KvCache, LanguageModel, LoadOptions, LogitRows, Model,
    SequenceCache, gguf_name,
};
use carat_testkit::{Golden, assert_close, fixture};
use support::{greedy, likeliest, run};

/// Drafter, and the model that it drafts for.
const PAIRS: [(&str, &str); 2] = [
    ("gemma4-assistant", "gemma4-edge"),
    ("gemma4-unified-assistant", "gemma4-unified"),
];
/// Absolute, for logits of standard deviation 1.6; the fixtures' own bound.
const TOL_LOGITS: f32 = 2e-3;
/// Of hidden states, whose rms is about one, after the target's layers and the drafter's.
const TOL_HIDDEN: f32 = 2e-3;
/// A drafter's tokens in the order of their clusters, and the number of 32-bit integers, in GGUF.
const ORDER: &str = "masked_embd_ordering";
const I32_ID: u32 = 26;
/// Ids that stand for videos, sounds and images in the small models.
const PLACEHOLDERS: [u32; 3] = [505, 510, 511];

fn load(target: &str, drafter: &str) -> Model {
    load_on(Isa::detect(), target, drafter)
}

fn load_on(isa: Isa, target: &str, drafter: &str) -> Model {
    let options = LoadOptions {
        isa,
        ..LoadOptions::reference()
    };
    let mut model = Model::load(&fixture(target), options).unwrap();
    model.add_drafter(&fixture(drafter)).unwrap();
    model
}

fn guesses(model: &mut Model, cache: &mut KvCache, tokens: &[u32], n: usize) -> Vec<u32> {
    let mut guesses = Vec::new();
    let mut batch = [DraftSegment {
        tokens,
        cache,
        n,
        guesses: &mut guesses,
    }];
    model.draft(&mut batch).unwrap();
    guesses
}

/// What the reference made of a prompt; with its plain causal window where the prompt is longer than that.
fn check_round(isa: Isa, (drafter, target): (&str, &str), prompt: &str, expected: &str) {
    let golden = Golden::open(&fixture(format!("{drafter}/golden.safetensors")));
    let mut model = load_on(isa, target, drafter);
    let mut tokens = golden.ids(&format!("{prompt}.input_ids"));
    let mut cache = model.new_cache(100).unwrap();
    let logits = run(&mut model, &mut cache, &tokens, LogitRows::Last);
    tokens.push(likeliest(&logits));
    assert_eq!(tokens.last(), golden.ids(&format!("{prompt}.first_token")).last());
    let (mut inputs, mut scored, mut states) = (Vec::new(), Vec::new(), Vec::new());
    let mut guesses = Vec::new();
    let mut batch = [DraftSegment {
        tokens: &tokens,
        cache: &mut cache,
        n: 5,
        guesses: &mut guesses,
    }];
    model
        .draft_observed(&mut batch, &mut |step| {
            inputs.extend_from_slice(step.inputs);
            scored.push((step.ids.to_vec(), step.scores.to_vec()));
            states.extend_from_slice(step.hidden);
        })
        .unwrap();
    assert_eq!(guesses, golden.ids(&format!("{expected}.draft_ids")));
    let want = golden.f32s(&format!("{expected}.draft_logits")).data;
    for (want, (ids, scores)) in want.chunks(512).zip(&scored) {
        if ids.is_empty() {
            assert_close("draft logits", scores, want, TOL_LOGITS);
            continue;
        }
        let of_ids: Vec<f32> = ids.iter().map(|id| want[*id as usize]).collect();
        assert_close("draft logits", scores, &of_ids, TOL_LOGITS);
        // All other tokens stand one below the least of those that were scored.
        let least = scores.iter().copied().fold(f32::INFINITY, f32::min);
        let others = (0..512u32).filter(|id| !ids.contains(id));
        others.for_each(|id| assert!((want[id as usize] - (least - 1.0)).abs() < TOL_LOGITS));
    }
    let want = golden.f32s(&format!("{expected}.projected_states")).data;
    assert_close("projected states", &states, &want, TOL_HIDDEN);
    if prompt == expected {
        let want = golden.f32s(&format!("{prompt}.inputs")).data;
        assert_close("inputs", &inputs, &want, TOL_HIDDEN);
    }
    assert_eq!(cache.len() + 1, tokens.len(), "nothing is added to the cache");
}

#[test]
fn drafts_equal_the_reference_on_every_instruction_set() {
    for isa in Isa::available() {
        for pair in PAIRS {
            check_round(isa, pair, "short", "short");
            check_round(isa, pair, "long", "long.window");
        }
    }
}

/// Greedy text in rounds of `n` guesses; also returns how many passes it took.
fn assisted(model: &mut Model, prompt: &[u32], n_tokens: usize, n: usize) -> (Vec<u32>, usize) {
    let mut cache = model.new_cache(200).unwrap();
    let mut tokens = prompt.to_vec();
    let logits = run(model, &mut cache, &tokens, LogitRows::Last);
    tokens.push(likeliest(&logits));
    let mut n_passes = 1;
    while tokens.len() < prompt.len() + n_tokens {
        let mut chain = vec![*tokens.last().unwrap()];
        chain.extend(guesses(model, &mut cache, &tokens, n));
        let logits = run(model, &mut cache, &chain, LogitRows::All);
        n_passes += 1;
        for (i, row) in logits.chunks(model.vocab_size()).enumerate() {
            tokens.push(likeliest(row));
            if chain.get(i + 1) != tokens.last() {
                break;
            }
        }
        assert!(cache.truncate(tokens.len() - 1));
    }
    tokens.truncate(prompt.len() + n_tokens);
    (tokens.split_off(prompt.len()), n_passes)
}

#[test]
fn assisted_text_is_greedy_text() {
    for (drafter, target) in PAIRS {
        let golden = Golden::open(&fixture(format!("{drafter}/golden.safetensors")));
        let prompt = golden.ids("long.input_ids");
        let want = golden.ids("greedy_ids");
        let plain = greedy(&mut load(target, drafter), &prompt, want.len());
        // The reference embeds padding for placeholders of media that it has said itself, and goes on otherwise then.
        let n_text = want.iter().position(|id| PLACEHOLDERS.contains(id));
        let n = n_text.map_or(want.len(), |i| i + 1);
        assert!(n > 10);
        assert_eq!(plain[..n], want[..n], "{drafter}");
        for n in [1, 3, 7] {
            let (got, _) = assisted(&mut load(target, drafter), &prompt, want.len(), n);
            assert_eq!(got, plain, "{drafter} with {n} guesses");
        }
    }
}

#[test]
fn a_model_that_drafts_for_itself_is_always_right() {
    let prompt: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 500).collect();
    let mut model = load("gemma3-text", "gemma3-text");
    let (want, n_plain) = assisted(&mut model, &prompt, 60, 0);
    let (got, n_passes) = assisted(&mut model, &prompt, 60, 5);
    assert_eq!(got, want);
    assert_eq!((n_plain, n_passes), (60, 1 + 59usize.div_ceil(6)));
}

#[test]
fn a_smaller_model_s_cache_follows_forks_and_other_turns() {
    let mut model = load("gemma3-text", "gemma3-text");
    let prompt: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 500).collect();
    let mut cache = model.new_cache(200).unwrap();
    run(&mut model, &mut cache, &prompt[..39], LogitRows::Last);
    let want = guesses(&mut model, &mut cache, &prompt, 4);
    let mut bytes = 0;
    cache.visit_memory(&mut |_, size| bytes += size);
    assert!(bytes > cache.bytes(), "the drafter's pages count too");
    let mut fork = SequenceCache::fork(&cache, 39).unwrap();
    assert!(cache.truncate(20));
    run(&mut model, &mut cache, &prompt[20..30], LogitRows::Last);
    assert_ne!(guesses(&mut model, &mut cache, &prompt[..31], 4), want);
    assert_eq!(guesses(&mut model, &mut fork, &prompt, 4), want);
    // Too long for what the cache may hold: nothing to guess.
    assert!(guesses(&mut model, &mut fork, &prompt, 170).is_empty());
}

/// A call reads so much of what is new that nobody waits long for it; who has little to read is not kept waiting by others.
#[test]
fn a_smaller_model_reads_a_prompt_in_several_calls() {
    let mut model = load("gemma3-text", "gemma3-text");
    let ids = |n: u32, seed: u32| -> Vec<u32> { (0..n).map(|i| (i * 37 + seed) % 500).collect() };
    let prompts = [ids(300, 5), ids(40, 9)];
    let mut caches = [400, 100].map(|n| model.new_cache(n).unwrap());
    let mut wanted = Vec::new();
    for (prompt, cache) in prompts.iter().zip(&mut caches) {
        let (last, before) = prompt.split_last().unwrap();
        before.chunks(50).for_each(|chunk| {
            run(&mut model, cache, chunk, LogitRows::None);
        });
        // What the model itself would say next.
        let mut fork = SequenceCache::fork(cache, before.len()).unwrap();
        let logits = run(&mut model, &mut fork, &[*last], LogitRows::Last);
        wanted.push(likeliest(&logits));
    }
    let mut rounds = Vec::new();
    for _ in 0..4 {
        let mut guesses = [Vec::new(), Vec::new()];
        let parts = prompts.iter().zip(&mut caches).zip(&mut guesses);
        let mut batch: Vec<DraftSegment<'_, KvCache>> = parts
            .map(|((tokens, cache), guesses)| DraftSegment {
                tokens,
                cache,
                n: 3,
                guesses,
            })
            .collect();
        model.draft(&mut batch).unwrap();
        assert_eq!((guesses[1].len(), guesses[1][0]), (3, wanted[1]));
        rounds.push(guesses[0].clone());
    }
    // 88 tokens of the long one beside the short one, then up to 127: its last token is read anew at every call.
    assert!(rounds[..2].iter().all(Vec::is_empty), "{rounds:?}");
    assert_eq!((rounds[2].len(), rounds[2][0]), (3, wanted[0]));
    assert_eq!(rounds[3], rounds[2]);
}

#[test]
fn both_spellings_of_a_drafter_s_config_are_one_drafter() {
    for (drafter, target) in PAIRS {
        let dir = tempfile::tempdir().unwrap();
        let source = fixture(drafter);
        std::fs::copy(source.join("config.hub.json"), dir.path().join("config.json")).unwrap();
        std::fs::copy(
            source.join("model.safetensors"),
            dir.path().join("model.safetensors"),
        )
        .unwrap();
        let target = fixture(target);
        assert_eq!(guessed(&target, dir.path()), guessed(&target, &source));
    }
}

#[test]
fn a_drafter_of_another_model_is_refused_and_not_found() {
    let mut model = Model::load(&fixture("gemma4-dense"), LoadOptions::reference()).unwrap();
    let refused = model.add_drafter(&fixture("gemma4-assistant"));
    assert!(
        matches!(refused, Err(Error::ForeignDrafter { .. })),
        "{refused:?}"
    );
    let found = |name| Checkpoint::open(&fixture(name)).unwrap().drafters_beside();
    assert_eq!(
        found("gemma4-unified").fitting,
        [fixture("gemma4-unified-assistant")]
    );
    // The folder says of itself what it is for, whatever it is called.
    assert_eq!(found("gemma4-edge").fitting, [fixture("gemma4-assistant")]);
    let none = found("gemma3-text");
    assert!(none.fitting.is_empty() && none.unfit.is_empty(), "{none:?}");
    // Of the two only one has the dense model's keys and values.
    assert_eq!(
        found("gemma4-dense").fitting,
        [fixture("gemma4-unified-assistant")]
    );
    assert!(!model.drafts());
}

/// A drafter as llama.cpp's converter writes one.
fn write_gguf(drafter: &str, n_kv_heads: &[i32; 4], to: &Path) {
    let source = Safetensors::open(&fixture(drafter)).unwrap();
    let name_of = |name: &str| match name {
        "pre_projection.weight" | "post_projection.weight" => format!("nextn.{name}"),
        "masked_embedding.centroids.weight" => "masked_embd_centroids.weight".to_owned(),
        _ => gguf_name(name).unwrap(),
    };
    let mut builder = GgufBuilder::new();
    let mut key = |name: &str, value| {
        builder.metadata(&format!("gemma4-assistant.{name}"), value);
    };
    for (name, value) in [
        ("block_count", 4),
        ("embedding_length", 32),
        ("embedding_length_out", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.key_length", 32),
        ("attention.key_length_swa", 16),
        ("attention.sliding_window", 16),
        ("attention.shared_kv_layers", 4),
        ("context_length", 262_144),
    ] {
        key(name, Value::U32(value));
    }
    key(
        "attention.head_count_kv",
        Value::Array(Array::from_i32s(n_kv_heads)),
    );
    let is_local = Array::from_bools(&[true, true, true, false]);
    key("attention.sliding_window_pattern", Value::Array(is_local));
    key("rope.freq_base", Value::F32(1e6));
    key("rope.freq_base_swa", Value::F32(1e4));
    builder.metadata("general.architecture", Value::from("gemma4-assistant"));
    let order = source.raw("masked_embedding.token_ordering");
    let order: Option<Vec<u8>> = order.map(|order| {
        let ids = order.bytes.as_chunks::<8>().0.iter();
        ids.flat_map(|id| (i64::from_le_bytes(*id) as i32).to_le_bytes())
            .collect()
    });
    // As f32, which has the size of the numbers that it holds; the builder knows no integers.
    if let Some(order) = &order {
        builder.tensor(ORDER, DType::F32, &[order.len() / 4]);
    }
    let tensors: Vec<_> = source.tensors().filter_map(Result::ok).collect();
    for tensor in &tensors {
        builder.tensor(&name_of(tensor.name), tensor.dtype, tensor.shape);
    }
    let mut writer = builder.create(to).unwrap();
    if let Some(order) = &order {
        writer.write_tensor(ORDER, order).unwrap();
    }
    for tensor in &tensors {
        writer.write_tensor(&name_of(tensor.name), tensor.bytes).unwrap();
    }
    writer.finish().unwrap();
    if order.is_some() {
        let mut file = std::fs::read(to).unwrap();
        let name = file
            .windows(ORDER.len())
            .position(|part| part == ORDER.as_bytes());
        // Behind the name: the number of axes, the one axis, and the format.
        let format = name.unwrap() + ORDER.len() + 4 + 8;
        file[format..format + 4].copy_from_slice(&I32_ID.to_le_bytes());
        std::fs::write(to, file).unwrap();
    }
}

/// Guesses after a fixed prompt.
fn guessed(target: &Path, drafter: &Path) -> Vec<u32> {
    let prompt: Vec<u32> = (0..30).map(|i| (i * 37 + 5) % 500).collect();
    let mut model = Model::load(target, LoadOptions::reference()).unwrap();
    assert_eq!(model.add_drafter(drafter).unwrap(), DrafterKind::Mtp);
    let mut cache = model.new_cache(100).unwrap();
    run(&mut model, &mut cache, &prompt[..29], LogitRows::Last);
    guesses(&mut model, &mut cache, &prompt, 6)
}

#[test]
fn a_drafter_s_gguf_is_found_beside_the_model_and_drafts_alike() {
    let dir = tempfile::tempdir().unwrap();
    let (model_path, drafter_path) = (dir.path().join("model.gguf"), dir.path().join("mtp-model.gguf"));
    let options = ConvertOptions {
        mix: Mix::F32,
        pure: false,
        n_threads: 2,
    };
    convert(&fixture("gemma4-unified"), &model_path, &options, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    write_gguf("gemma4-unified-assistant", &[2, 2, 2, 1], &drafter_path);
    let found = Checkpoint::open(&model_path).unwrap().drafters_beside();
    assert_eq!(found.fitting, std::slice::from_ref(&drafter_path));
    let want = guessed(&fixture("gemma4-unified"), &fixture("gemma4-unified-assistant"));
    assert_eq!(guessed(&model_path, &drafter_path), want);
}

#[test]
fn a_drafter_is_known_by_what_it_says_of_itself() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for folder in ["BF16", "MTP"] {
        std::fs::create_dir(at(folder)).unwrap();
    }
    let options = ConvertOptions {
        mix: Mix::F32,
        pure: false,
        n_threads: 2,
    };
    let model_path = at("tiny-it-qat-Q8_0.gguf");
    let go_on = &mut |_: ConvertProgress<'_>| ControlFlow::Continue(());
    convert(&fixture("gemma4-unified"), &model_path, &options, go_on).unwrap();
    let found = |model: &Path| Checkpoint::open(model).unwrap().drafters_beside();
    // A model that is called a drafter is none, and a file that cannot be read only matters where it is called one.
    convert(&fixture("gemma3-text"), &at("draft.gguf"), &options, go_on).unwrap();
    std::fs::write(at("notes.gguf"), "GGUF").unwrap();
    let none = found(&model_path);
    assert!(none.fitting.is_empty() && none.unfit.is_empty(), "{none:?}");
    // That of another model, in the folder that publishers have for drafters.
    write_gguf("gemma4-assistant", &[1; 4], &at("MTP/tiny-edge.gguf"));
    std::fs::write(at("MTP/mtp-cut.gguf"), "GGUF").unwrap();
    let unfit = found(&model_path);
    assert!(unfit.fitting.is_empty(), "{unfit:?}");
    let mut told: Vec<String> = unfit.unfit.iter().map(ToString::to_string).collect();
    told.sort();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().any(|told| told.contains("mtp-cut.gguf")), "{told:?}");
    assert!(
        told.iter()
            .any(|told| told.contains("tiny-edge.gguf` drafts for")),
        "{told:?}"
    );
    // Its own under a name that says nothing, and others that are called more or less like the model.
    let own = at("MTP/unnamed.gguf");
    write_gguf("gemma4-unified-assistant", &[2, 2, 2, 1], &own);
    assert_eq!(found(&model_path).fitting, std::slice::from_ref(&own));
    let [plain, qat] = ["mtp-tiny-it.gguf", "mtp-tiny-it-qat.gguf"].map(at);
    for copy in [&plain, &qat] {
        std::fs::copy(&own, copy).unwrap();
    }
    assert_eq!(
        found(&model_path).fitting,
        [qat.clone(), plain.clone(), own.clone()]
    );
    let other = at("tiny-it-Q4_0.gguf");
    std::fs::copy(&model_path, &other).unwrap();
    assert_eq!(found(&other).fitting, [plain, qat, own]);
    // A large format's folder is beside the drafters', which then is enough.
    let large = at("BF16/tiny-it-BF16.gguf");
    std::fs::rename(&other, &large).unwrap();
    let beside = found(&large);
    let names: Vec<_> = beside
        .fitting
        .iter()
        .map(|path| path.file_name().unwrap())
        .collect();
    assert_eq!(names, ["unnamed.gguf"]);
    assert!(beside.unfit.is_empty(), "{beside:?}");
}

/// GGUF does not say how many clusters are scored; 32 are, as in every released drafter.
#[test]
fn a_gguf_s_clusters_are_those_of_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("gemma4-assistant");
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let config = config.replace(
        "\"centroid_intermediate_top_k\": 5",
        "\"centroid_intermediate_top_k\": 32",
    );
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let weights = "model.safetensors";
    std::fs::copy(source.join(weights), dir.path().join(weights)).unwrap();
    let gguf = dir.path().join("mtp-edge.gguf");
    write_gguf("gemma4-assistant", &[1; 4], &gguf);
    let target = fixture("gemma4-edge");
    let want = guessed(&target, dir.path());
    assert_eq!(want.len(), 6);
    assert_eq!(guessed(&target, &gguf), want);
    // A token that stands in two clusters is no order.
    let mut file = std::fs::read(&gguf).unwrap();
    let bytes = Safetensors::open(&source).unwrap();
    let ids = bytes
        .raw("masked_embedding.token_ordering")
        .unwrap()
        .bytes
        .as_chunks::<8>()
        .0;
    let first: Vec<u8> = ids[..8]
        .iter()
        .flat_map(|id| (i64::from_le_bytes(*id) as i32).to_le_bytes())
        .collect();
    let at = file.windows(first.len()).position(|part| part == first).unwrap();
    file.copy_within(at..at + 4, at + 4);
    std::fs::write(&gguf, file).unwrap();
    let refused = Model::load(&target, LoadOptions::reference())
        .unwrap()
        .add_drafter(&gguf);
    assert!(matches!(refused, Err(Error::TokenOrder { .. })), "{refused:?}");
}
