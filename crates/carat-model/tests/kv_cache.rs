//! The cache's formats and shared beginnings, on the small model of random weights.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use carat_model::{
    CacheFiles, Checkpoint, Error, KvCache, KvDType, LanguageModel, LoadOptions, LogitRows, Model, ROLLBACK,
    Segment, SequenceCache,
};
use carat_testkit::{fixture, relative_l2};

/// What each format may change of the logits after 200 tokens, against f32: what was measured, doubled. The sharp
/// attention of this model's random weights makes thirty times as much of an error as a trained model's would; of q4_0
/// only that it is nearer to the truth than nothing at all.
const TOLERANCES: [(KvDType, f64); 4] = [
    (KvDType::F16, 1.5e-2),
    (KvDType::Bf16, 5e-2),
    (KvDType::Q8_0, 0.3),
    (KvDType::Q4_0, 0.95),
];

fn load(kv_dtype: KvDType) -> Model {
    let path = fixture("gemma3-text/config.json");
    let options = LoadOptions {
        kv_dtype,
        ..LoadOptions::reference()
    };
    Model::load(path.parent().unwrap(), options).unwrap()
}

/// Tokens all over the vocabulary, enough for several pages and for the local layers' ring to go around.
fn tokens(n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 131 + seed * 17) % 500) as u32).collect()
}

/// The last row's logits after `tokens`, `chunk` at a time.
fn feed(model: &mut Model, cache: &mut KvCache, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for tokens in tokens.chunks(chunk) {
        let mut batch = [Segment {
            tokens,
            media: &[],
            cache: &mut *cache,
            logits: LogitRows::Last,
        }];
        model.forward(&mut batch, &mut out).unwrap();
    }
    out
}

#[test]
fn formats_change_logits_by_what_they_round() {
    let ids = tokens(200, 1);
    let mut model = load(KvDType::F32);
    let mut cache = model.new_cache(200).unwrap();
    let exact = feed(&mut model, &mut cache, &ids, 64);
    for (dtype, tolerance) in TOLERANCES {
        let mut model = load(dtype);
        for chunk in [512, 64, 7, 1] {
            let mut cache = model.new_cache(200).unwrap();
            let error = relative_l2(&feed(&mut model, &mut cache, &ids, chunk), &exact);
            assert!(error < tolerance, "{dtype} in chunks of {chunk}: {error}");
            assert!(error > 0.0, "{dtype} cannot be exact");
        }
    }
}

#[test]
fn threads_change_nothing_in_any_format() {
    let ids = tokens(150, 2);
    for dtype in KvDType::ALL {
        let path = fixture("gemma3-text/config.json");
        let run = |n_threads| {
            let options = LoadOptions {
                kv_dtype: dtype,
                n_threads,
                ..LoadOptions::default()
            };
            let mut model = Model::load(path.parent().unwrap(), options).unwrap();
            let mut cache = model.new_cache(150).unwrap();
            let first = feed(&mut model, &mut cache, &ids[..100], 512);
            [first, feed(&mut model, &mut cache, &ids[100..], 1)].concat()
        };
        assert_eq!(run(1), run(3), "{dtype}");
    }
}

#[test]
fn forks_continue_on_their_own_as_if_they_had_begun_alone() {
    let (common, one, two) = (tokens(150, 3), tokens(90, 4), tokens(90, 5));
    for dtype in KvDType::ALL {
        let mut model = load(dtype);
        let mut alone = |rest: &[u32]| {
            let mut cache = model.new_cache(300).unwrap();
            feed(&mut model, &mut cache, &common, 512);
            feed(&mut model, &mut cache, rest, 7)
        };
        let (expected_one, expected_two) = (alone(&one), alone(&two));
        let mut first = model.new_cache(300).unwrap();
        feed(&mut model, &mut first, &common, 512);
        let before = first.bytes();
        let mut second = first.fork(150).unwrap();
        assert_eq!((second.len(), second.bytes()), (150, before));
        // Taking turns, so that each would see what the other writes.
        let (mut got_one, mut got_two) = (Vec::new(), Vec::new());
        for (one, two) in one.chunks(7).zip(two.chunks(7)) {
            got_one = feed(&mut model, &mut first, one, 7);
            got_two = feed(&mut model, &mut second, two, 7);
        }
        assert!(
            got_one == expected_one && got_two == expected_two,
            "{dtype}: not bit for bit"
        );
    }
}

#[test]
fn a_fork_of_a_shorter_beginning_continues_from_there() {
    let mut model = load(KvDType::F16);
    let (common, rest) = (tokens(100, 6), tokens(40, 7));
    let mut cache = model.new_cache(300).unwrap();
    feed(&mut model, &mut cache, &common, 100);
    feed(&mut model, &mut cache, &tokens(20, 8), 20);
    let mut fork = cache.fork(100).unwrap();
    let got = feed(&mut model, &mut fork, &rest, 40);
    let mut alone = model.new_cache(300).unwrap();
    feed(&mut model, &mut alone, &common, 100);
    assert_eq!(got, feed(&mut model, &mut alone, &rest, 40));
}

#[test]
fn a_long_context_costs_nothing_until_it_is_used() {
    let mut model = load(KvDType::F16);
    let mut cache = model.new_cache(model.context_len()).unwrap();
    assert_eq!(cache.bytes(), 0);
    feed(&mut model, &mut cache, &tokens(10, 9), 10);
    assert_eq!(
        cache.bytes(),
        KvCache::bytes_for(model.config(), KvDType::F16, 10)
    );
}

#[test]
fn a_saved_cache_goes_on_as_if_nothing_had_happened() {
    for kv_dtype in KvDType::ALL {
        let (ids, n) = (tokens(300, 5), 170);
        let path = fixture("gemma3-text/config.json");
        let checkpoint = Checkpoint::open(path.parent().unwrap()).unwrap();
        let mut model = load(kv_dtype);
        let files = CacheFiles::new(&checkpoint, &model);
        let mut cache = model.new_cache(400).unwrap();
        feed(&mut model, &mut cache, &ids[..n], 64);
        let mut file = Vec::new();
        files.write(&ids[..n], &cache, &mut file).unwrap();
        assert_eq!(files.read_tokens(500, &mut file.as_slice()).unwrap(), ids[..n]);
        let expected = feed(&mut model, &mut cache, &ids[n..], 64);

        let mut restarted = load(kv_dtype);
        let (read, mut cache) = files.read(500, &mut file.as_slice()).unwrap();
        assert_eq!(read, ids[..n]);
        assert_eq!((cache.len(), cache.max_tokens()), (n, 500));
        assert_eq!(
            feed(&mut restarted, &mut cache, &ids[n..], 64),
            expected,
            "{kv_dtype}"
        );
        // Tokens can be taken back as before.
        assert!(cache.truncate(ids.len() - ROLLBACK));
    }
}

#[test]
fn a_saved_cache_that_is_not_this_models_is_refused() {
    let path = fixture("gemma3-text/config.json");
    let checkpoint = Checkpoint::open(path.parent().unwrap()).unwrap();
    let mut model = load(KvDType::F16);
    let files = CacheFiles::new(&checkpoint, &model);
    let mut cache = model.new_cache(400).unwrap();
    let ids = tokens(100, 6);
    feed(&mut model, &mut cache, &ids, 64);
    let mut file = Vec::new();
    files.write(&ids, &cache, &mut file).unwrap();
    let refused = |files: &CacheFiles, max_tokens, bytes: &[u8]| {
        let result = files.read(max_tokens, &mut &bytes[..]);
        assert!(matches!(result, Err(Error::SavedCache { .. })), "{result:?}");
    };
    let other = CacheFiles::new(&checkpoint, &load(KvDType::Q8_0));
    refused(&other, 400, &file);
    // The same tensors, used otherwise: what is cached would be other numbers.
    let json = std::fs::read_to_string(&path).unwrap();
    for (from, to) in [
        ("\"rope_theta\": 1000000", "\"rope_theta\": 500000"),
        ("\"sliding_window\": 16", "\"sliding_window\": 15"),
        ("\"query_pre_attn_scalar\": 20", "\"query_pre_attn_scalar\": 24"),
    ] {
        assert!(json.contains(from), "{from}");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), json.replace(from, to)).unwrap();
        let weights = "model.safetensors";
        std::fs::copy(path.with_file_name(weights), dir.path().join(weights)).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let options = LoadOptions {
            kv_dtype: KvDType::F16,
            ..LoadOptions::reference()
        };
        let model = Model::from_checkpoint(&checkpoint, options).unwrap();
        refused(&CacheFiles::new(&checkpoint, &model), 400, &file);
    }
    refused(&files, 100, &file);
    for end in [0, 7, 39, 60, 200, file.len() / 2, file.len() - 1] {
        refused(&files, 400, &file[..end]);
    }
    for at in [0, 41, 47, 55, 64, 80, 150, file.len() / 2, file.len() - 1] {
        let mut damaged = file.clone();
        damaged[at] ^= 0x41;
        refused(&files, 400, &damaged);
    }
}
