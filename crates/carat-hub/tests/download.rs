//! Pulls from a fake hub that behaves, breaks, lies and refuses.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails must fail its test"
)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use carat_hub::{Error, Event, Hub, HubSettings, LocalModel, ModelFormat, Place, Progress, Secret};
use common::{COMMIT, FakeHub, Log, PIECE, gguf, local, plan, pull, pull_logged, quick, sha};

const MODEL: &str = "hf:o/r:m-Q4_0.gguf";
const FILE: &str = "m-Q4_0.gguf";
const SIZE: usize = 5 * PIECE as usize + 777;

fn one_file() -> (FakeHub, Vec<u8>, tempfile::TempDir) {
    let bytes = gguf(SIZE);
    (
        FakeHub::start(&[(FILE, bytes.clone())]),
        bytes,
        tempfile::tempdir().unwrap(),
    )
}

/// The last error of a pull as the user reads it.
fn refusal(settings: HubSettings, model: &str) -> String {
    match pull(settings, model) {
        Err(error @ Error::NotAvailable { .. }) => error.to_string(),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn a_pull_gives_the_file_and_keeps_the_token_at_home() {
    let (fake, bytes, dir) = one_file();
    let mut settings = fake.settings(dir.path());
    settings.hf_token = Some(Secret::new("hf_private"));
    let mut log = Log::default();
    let model = pull_logged(settings.clone(), MODEL, &mut log).unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), bytes);
    assert_eq!(
        (model.place, model.format, model.size_bytes),
        (Place::Store, ModelFormat::Gguf, SIZE as u64)
    );
    assert_eq!(fake.bytes_asked(), SIZE as u64, "every byte once");
    assert!(log.has("Trying") && log.has("Verifying") && log.has("Ready"));

    let auth = |s: &common::Server| {
        s.requests()
            .iter()
            .filter(|r| r.headers.contains_key("authorization"))
            .count()
    };
    assert_eq!(auth(&fake.storage), 0, "the storage host must not see the token");
    assert_eq!(auth(&fake.hub), fake.hub.requests().len());
    // After the first answer every range is of the same commit.
    assert!(fake.hub.requests()[1..].iter().all(|r| r.path.contains(COMMIT)));

    let hub = Hub::new(settings).unwrap();
    assert_eq!(local(&hub, MODEL).path, model.path);
    assert_eq!(local(&hub, "hf:o/r").path, model.path);
    assert_eq!(hub.list().len(), 1);
    assert!(
        !dir.path()
            .join("store/models/.partial")
            .read_dir()
            .unwrap()
            .any(|_| true),
        "nothing half is left"
    );
    let manifest = fs::read_dir(dir.path().join("store/manifests"))
        .unwrap()
        .flatten()
        .next()
        .unwrap();
    assert!(
        fs::read_to_string(manifest.path())
            .unwrap()
            .contains(&sha(&bytes))
    );
    assert_eq!(hub.remove(MODEL).unwrap(), SIZE as u64);
    assert!(!model.path.exists());
    assert!(matches!(hub.remove(MODEL), Err(Error::NotInStore(_))));
}

#[test]
fn an_interrupted_pull_fetches_only_the_rest() {
    let (fake, bytes, dir) = one_file();
    let mut settings = fake.settings(dir.path());
    settings.limits.connections = 1;
    fake.faults.lock().unwrap().dead_after = Some(2);
    let error = refusal(settings.clone(), MODEL);
    assert!(error.contains("HTTP 503"), "{error}");
    assert!(Hub::new(settings.clone()).unwrap().list().is_empty());

    fake.faults.lock().unwrap().dead_after = None;
    fake.storage.forget();
    let mut log = Log::default();
    let model = pull_logged(settings, MODEL, &mut log).unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), bytes);
    assert_eq!(fake.bytes_asked(), SIZE as u64 - 2 * PIECE);
    assert!(log.has(&format!("resumed_bytes: {}", 2 * PIECE)));
}

/// Not a test of its own: the process that `a_killed_process_loses_only_what_was_under_way` kills.
#[test]
fn child_that_is_killed() {
    let (Ok(endpoint), Ok(dir)) = (
        std::env::var("CARAT_TEST_ENDPOINT"),
        std::env::var("CARAT_TEST_DIR"),
    ) else {
        return;
    };
    let mut settings = quick(Path::new(&dir));
    settings.hf_endpoint = endpoint;
    settings.limits.connections = 1;
    settings.limits.stall_timeout = Duration::from_secs(60);
    pull(settings, MODEL).unwrap();
}

#[test]
fn a_killed_process_loses_only_what_was_under_way() {
    let (fake, bytes, dir) = one_file();
    fake.faults.lock().unwrap().hang_after = Some(2);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed"])
        .env("CARAT_TEST_ENDPOINT", &fake.hub.address)
        .env("CARAT_TEST_DIR", dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let expected = format!("\"done\":[[0,{}]]", 2 * PIECE);
    let state = || {
        let partial = fs::read_dir(dir.path().join("store/models/.partial"))
            .ok()?
            .flatten()
            .next()?
            .path();
        fs::read_to_string(partial.join(format!("{FILE}.part.json"))).ok()
    };
    let begun = Instant::now();
    while !state().is_some_and(|text| text.contains(&expected)) {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "it never came so far: {:?}",
            state()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap(); // SIGKILL: no destructor runs, the lock falls with the process
    child.wait().unwrap();

    fake.faults.lock().unwrap().hang_after = None;
    fake.storage.forget();
    assert_eq!(
        fs::read(pull(fake.settings(dir.path()), MODEL).unwrap().path).unwrap(),
        bytes
    );
    assert_eq!(fake.bytes_asked(), SIZE as u64 - 2 * PIECE);
}

#[test]
fn an_unfinished_pull_can_be_removed() {
    let (fake, _, dir) = one_file();
    let mut settings = fake.settings(dir.path());
    settings.limits.connections = 1;
    fake.faults.lock().unwrap().dead_after = Some(2);
    refusal(settings.clone(), MODEL);
    let hub = Hub::new(settings).unwrap();
    assert!(hub.remove(MODEL).unwrap() >= 2 * PIECE);
    assert!(
        dir.path()
            .join("store/models/.partial")
            .read_dir()
            .unwrap()
            .next()
            .is_none()
    );
    assert!(matches!(hub.remove(MODEL), Err(Error::NotInStore(_))));
}

#[test]
fn broken_and_silent_connections_are_mended() {
    let (fake, bytes, dir) = one_file();
    *fake.faults.lock().unwrap() = common::Faults {
        cut_first: 4,
        hang_first: 1,
        ..Default::default()
    };
    let mut settings = fake.settings(dir.path());
    settings.limits.stall_timeout = Duration::from_millis(80);
    let mut log = Log::default();
    let model = pull_logged(settings, MODEL, &mut log).unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), bytes);
    assert!(
        log.has("Retrying") && log.has("connection broke") && log.has("stopped sending"),
        "{:?}",
        log.0
    );
}

#[test]
fn a_server_without_ranges_still_gives_the_file() {
    let (fake, bytes, dir) = one_file();
    *fake.faults.lock().unwrap() = common::Faults {
        no_ranges: true,
        ..Default::default()
    };
    let model = pull(fake.settings(dir.path()), MODEL).unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), bytes);
}

/// A pull of [`MODEL`] that broke off after two pieces.
fn half_pulled() -> (FakeHub, Vec<u8>, tempfile::TempDir, HubSettings) {
    let (fake, bytes, dir) = one_file();
    let mut settings = fake.settings(dir.path());
    settings.limits.connections = 1;
    fake.faults.lock().unwrap().dead_after = Some(2);
    refusal(settings.clone(), MODEL);
    fake.faults.lock().unwrap().dead_after = None;
    fake.storage.forget();
    (fake, bytes, dir, settings)
}

#[test]
fn a_page_instead_of_the_rest_costs_nothing_that_is_there() {
    // For a while.
    let (fake, bytes, _dir, settings) = half_pulled();
    fake.faults.lock().unwrap().page_first = 2;
    let model = pull(settings, MODEL).unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), bytes);
    assert_eq!(
        fake.bytes_asked(),
        SIZE as u64 - 2 * PIECE + 2 * PIECE,
        "a piece three times"
    );
    // For longer than a pull waits.
    let (fake, bytes, _dir, settings) = half_pulled();
    fake.faults.lock().unwrap().page_first = usize::MAX;
    let error = refusal(settings.clone(), MODEL);
    assert!(error.contains("that is not the file"), "{error}");
    fake.faults.lock().unwrap().page_first = 0;
    fake.storage.forget();
    assert_eq!(fs::read(pull(settings, MODEL).unwrap().path).unwrap(), bytes);
    assert_eq!(fake.bytes_asked(), SIZE as u64 - 2 * PIECE);
}

#[test]
fn a_server_that_forgets_ranges_gives_what_is_missing() {
    let (fake, bytes, _dir, settings) = half_pulled();
    fake.faults.lock().unwrap().no_ranges = true;
    // What is there already stays as it is: only so the digest is right.
    fake.claims.lock().unwrap().0 = Some(sha(&bytes));
    let mut other = bytes.clone();
    other[..2 * PIECE as usize].fill(0);
    fake.files.lock().unwrap().insert(FILE.to_owned(), other);
    let mut log = Log::default();
    let model = pull_logged(settings, MODEL, &mut log).unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), bytes);
    assert!(
        log.has("Retrying") && log.has("instead of the rest"),
        "{:?}",
        log.0
    );
}

#[test]
fn wrong_bytes_are_thrown_away() {
    let (fake, bytes, dir) = one_file();
    fake.claims.lock().unwrap().0 = Some(sha(b"something else"));
    let error = refusal(fake.settings(dir.path()), MODEL);
    assert!(
        error.contains("damaged") && error.contains(&sha(&bytes)),
        "{error}"
    );
    assert!(Hub::new(fake.settings(dir.path())).unwrap().list().is_empty());

    // The next pull starts from nothing and is right.
    fake.claims.lock().unwrap().0 = None;
    fake.storage.forget();
    assert_eq!(
        fs::read(pull(fake.settings(dir.path()), MODEL).unwrap().path).unwrap(),
        bytes
    );
    assert_eq!(fake.bytes_asked(), SIZE as u64);
}

#[test]
fn a_partial_that_rotted_is_fetched_again() {
    let (fake, bytes, dir) = one_file();
    let mut settings = fake.settings(dir.path());
    settings.limits.connections = 1;
    fake.faults.lock().unwrap().dead_after = Some(3);
    refusal(settings.clone(), MODEL);
    let partial = fs::read_dir(dir.path().join("store/models/.partial"))
        .unwrap()
        .flatten()
        .next()
        .unwrap()
        .path();
    let part = partial.join(format!("{FILE}.part"));
    let mut half = fs::read(&part).unwrap();
    half[100] ^= 1;
    fs::write(&part, half).unwrap();

    fake.faults.lock().unwrap().dead_after = None;
    assert_eq!(fs::read(pull(settings, MODEL).unwrap().path).unwrap(), bytes);
}

#[test]
fn a_file_that_changed_meanwhile_begins_anew() {
    let (fake, _, dir) = one_file();
    let mut settings = fake.settings(dir.path());
    settings.limits.connections = 1;
    fake.faults.lock().unwrap().dead_after = Some(2);
    refusal(settings.clone(), MODEL);
    let mut newer = gguf(SIZE);
    newer[5] ^= 255;
    fake.files.lock().unwrap().insert(FILE.to_owned(), newer.clone());
    fake.faults.lock().unwrap().dead_after = None;
    fake.storage.forget();
    assert_eq!(fs::read(pull(settings, MODEL).unwrap().path).unwrap(), newer);
    assert_eq!(fake.bytes_asked(), SIZE as u64);
}

#[cfg(unix)]
#[test]
fn what_does_not_fit_on_the_disk_is_not_begun() {
    let (fake, _, dir) = one_file();
    fake.claims.lock().unwrap().1 = Some(15 << 40);
    let error = pull(fake.settings(dir.path()), MODEL).unwrap_err();
    assert!(
        matches!(error, Error::NoRoom { needed_bytes, .. } if needed_bytes == 15 << 40),
        "{error:?}"
    );
    assert!(error.to_string().contains("needs 16492.6 GB more"), "{error}");
    assert_eq!(fake.bytes_asked(), 0);
}

#[test]
fn lies_about_the_length_are_noticed() {
    for claimed in [SIZE as u64 - 1, SIZE as u64 + 1, 64 << 20] {
        let (fake, _, dir) = one_file();
        fake.claims.lock().unwrap().1 = Some(claimed);
        let error = refusal(fake.settings(dir.path()), MODEL);
        assert!(error.contains("not asked for"), "{claimed}: {error}");
    }
    let (fake, _, dir) = one_file();
    fake.claims.lock().unwrap().1 = Some(u64::MAX);
    assert!(refusal(fake.settings(dir.path()), MODEL).contains("which no model has"));
    let (fake, _, dir) = one_file();
    fake.faults.lock().unwrap().shift = 1;
    assert!(refusal(fake.settings(dir.path()), MODEL).contains("not asked for"));
    let (fake, _, dir) = one_file();
    fake.faults.lock().unwrap().total = Some(7);
    assert!(refusal(fake.settings(dir.path()), MODEL).contains("not asked for"));
    // Shorter than promised, on a server without ranges: ends, and does not hang.
    let (fake, _, dir) = one_file();
    fake.claims.lock().unwrap().1 = Some(SIZE as u64 + 1);
    fake.faults.lock().unwrap().no_ranges = true;
    assert!(refusal(fake.settings(dir.path()), MODEL).contains("that is not the file"));
    fake.faults.lock().unwrap().length = Some(SIZE as u64 + 1);
    assert!(refusal(fake.settings(dir.path()), MODEL).contains("connection broke"));
}

#[test]
fn refusals_say_what_to_do_and_are_not_repeated() {
    let cases = [
        (401, "set HF_TOKEN"),
        (403, "accept its licence"),
        (404, "does not exist"),
        (418, "HF_ENDPOINT"),
    ];
    for (status, words) in cases {
        let (fake, _, dir) = one_file();
        fake.refusals.lock().unwrap().push((status, None));
        let error = refusal(fake.settings(dir.path()), MODEL);
        assert!(error.contains(words), "{status}: {error}");
        assert_eq!(fake.hub.requests().len(), 1, "{status} is final");
    }
    let (fake, _, dir) = one_file();
    fake.refusals.lock().unwrap().push((401, None));
    let mut settings = fake.settings(dir.path());
    settings.hf_token = Some(Secret::new("hf_wrong"));
    let error = refusal(settings, MODEL);
    assert!(
        error.contains("token is not valid") && !error.contains("hf_wrong"),
        "{error}"
    );
}

#[test]
fn passing_refusals_are_waited_out() {
    let (fake, bytes, dir) = one_file();
    fake.refusals
        .lock()
        .unwrap()
        .extend([(429, Some(3600)), (503, Some(0))]);
    let mut log = Log::default();
    let model = pull_logged(fake.settings(dir.path()), MODEL, &mut log).unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), bytes);
    // The hour that the server asked for is cut to the longest wait of the settings.
    assert!(
        log.has("asked too often") && log.has("wait: 5ms") && log.has("wait: 0ns"),
        "{:?}",
        log.0
    );

    fake.refusals.lock().unwrap().extend([(503, None); 3]);
    let second = tempfile::tempdir().unwrap();
    assert!(refusal(fake.settings(second.path()), MODEL).contains("try again later"));
}

#[test]
fn a_page_that_is_no_model_is_refused() {
    // A mirror that gives no digest and a login page instead of the file.
    let fake = FakeHub::start(&[(FILE, b"<html>please log in</html>".repeat(100))]);
    fake.claims.lock().unwrap().0 = Some(String::new());
    let dir = tempfile::tempdir().unwrap();
    let error = refusal(fake.settings(dir.path()), MODEL);
    assert!(error.contains("not a GGUF file"), "{error}");
    fake.files.lock().unwrap().insert(FILE.into(), gguf(5000));
    assert_eq!(
        pull(fake.settings(dir.path()), MODEL).unwrap().size_bytes,
        5000,
        "size and magic are all there is"
    );
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let (fake, bytes, dir) = one_file();
    let fake = Arc::new(fake);
    let pulls: Vec<_> = (0..2)
        .map(|_| {
            let settings = fake.settings(dir.path());
            let hub = Hub::new(settings).unwrap();
            let plan = plan(&hub, MODEL);
            std::thread::spawn(move || hub.pull(&plan, &mut (), &AtomicBool::new(false)).unwrap())
        })
        .collect();
    for pull in pulls {
        assert_eq!(fs::read(pull.join().unwrap().path).unwrap(), bytes);
    }
    assert_eq!(fake.bytes_asked(), SIZE as u64);
}

#[test]
fn two_names_of_one_file_fetch_it_once() {
    let (fake, bytes, dir) = one_file();
    let hubs = [MODEL, "hf:o/r:Q4_0", "hf:o/r"].map(|name| {
        let hub = Hub::new(fake.settings(dir.path())).unwrap();
        let plan = plan(&hub, name);
        (hub, plan)
    });
    let pulls =
        hubs.map(|(hub, plan)| std::thread::spawn(move || hub.pull(&plan, &mut (), &AtomicBool::new(false))));
    for pull in pulls {
        assert_eq!(fs::read(pull.join().unwrap().unwrap().path).unwrap(), bytes);
    }
    assert_eq!(fake.bytes_asked(), SIZE as u64);
}

#[test]
fn a_file_that_is_no_token_is_called_by_its_setting() {
    let (fake, _, dir) = one_file();
    let mut settings = fake.settings(dir.path());
    let file = dir.path().join("token");
    fs::write(&file, "x".repeat(5000)).unwrap();
    settings.hf_token_file = Some(file);
    let error = pull(settings, MODEL).unwrap_err().to_string();
    assert!(
        error.contains("HF_TOKEN_PATH") && error.contains("larger than 4096 bytes"),
        "{error}"
    );
}

#[test]
fn cancelling_is_felt_at_once_and_loses_nothing() {
    struct StopAtRetry<'a>(&'a AtomicBool);
    impl Progress for StopAtRetry<'_> {
        fn event(&mut self, event: Event<'_>) {
            if matches!(event, Event::Retrying { .. }) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
    }
    let (fake, bytes, dir) = one_file();
    let mut settings = fake.settings(dir.path());
    settings.limits.connections = 1;
    settings.limits.backoff = Duration::from_secs(60);
    settings.limits.backoff_max = Duration::from_secs(60);
    fake.faults.lock().unwrap().dead_after = Some(2);
    let hub = Hub::new(settings).unwrap();
    let cancel = AtomicBool::new(false);
    let begun = Instant::now();
    let outcome = hub.pull(&plan(&hub, MODEL), &mut StopAtRetry(&cancel), &cancel);
    assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "it did not sit out the minute"
    );

    fake.faults.lock().unwrap().dead_after = None;
    fake.storage.forget();
    assert_eq!(
        fs::read(pull(fake.settings(dir.path()), MODEL).unwrap().path).unwrap(),
        bytes
    );
    assert_eq!(fake.bytes_asked(), SIZE as u64 - 2 * PIECE);
}

#[test]
fn a_checkpoint_folder_is_pulled_whole_and_resumed_by_file() {
    let weights = gguf(3 * PIECE as usize);
    let files = [
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"a\":1}".to_vec()),
        ("model.safetensors", weights.clone()),
        ("README.md", b"no".to_vec()),
        ("pytorch_model.bin", b"no".to_vec()),
    ];
    let fake = FakeHub::start(&files);
    let dir = tempfile::tempdir().unwrap();
    let mut settings = fake.settings(dir.path());
    settings.limits.connections = 1;
    fake.faults.lock().unwrap().dead_after = Some(1);
    refusal(settings.clone(), "hf:o/r");
    fake.faults.lock().unwrap().dead_after = None;
    fake.storage.forget();
    let model = pull(settings.clone(), "hf:o/r").unwrap();
    assert_eq!(fake.bytes_asked(), 2 * PIECE);
    assert_eq!(model.format, ModelFormat::Safetensors);
    assert_eq!(fs::read(model.path.join("model.safetensors")).unwrap(), weights);
    let mut names: Vec<_> = fs::read_dir(&model.path)
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(local(&Hub::new(settings).unwrap(), "hf:o/r").path, model.path);
}

#[test]
fn a_repository_of_ggufs_is_chosen_from() {
    let (q4, q8) = (gguf(3000), gguf(4000));
    let split = ["big-F16-00001-of-00002.gguf", "big-F16-00002-of-00002.gguf"];
    let fake = FakeHub::start(&[
        ("m-Q4_K_M.gguf", q4.clone()),
        ("m-Q8_0.gguf", q8.clone()),
        (split[0], gguf(2000)),
        (split[1], gguf(2500)),
        ("mmproj-m-Q8_0.gguf", gguf(1500)),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let settings = fake.settings(dir.path());
    let model = pull(settings.clone(), "hf:o/r").unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), q4);
    assert_eq!(
        fs::read(pull(settings.clone(), "hf:o/r:q8_0").unwrap().path).unwrap(),
        q8
    );
    let big = pull(settings.clone(), &format!("hf:o/r:{}", split[1])).unwrap();
    assert!(big.path.ends_with(split[0]) && big.path.with_file_name(split[1]).is_file());
    assert_eq!(big.size_bytes, 4500);
    let error = refusal(settings.clone(), "hf:o/r:Q2_K");
    assert!(
        error.contains("o/r/Q2_K") && error.contains("does not exist"),
        "{error}"
    );

    let other = FakeHub::start(&[("a-Q8_0.gguf", q8.clone()), ("a-Q5_K_M.gguf", q4)]);
    let second = tempfile::tempdir().unwrap();
    let error = refusal(other.settings(second.path()), "hf:o/r");
    assert!(
        error.contains("a-Q8_0.gguf") && error.contains("a-Q5_K_M.gguf"),
        "{error}"
    );
}

#[test]
fn a_repository_s_drafter_is_pulled_when_it_is_named() {
    let (model, drafter) = (gguf(3000), gguf(2000));
    let named = "MTP/m-Q4_K_M-MTP.gguf";
    let fake = FakeHub::start(&[
        (named, drafter.clone()),
        ("m-Q8_0.gguf", model.clone()),
        ("mmproj-m-Q4_K_M.gguf", gguf(1500)),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let settings = fake.settings(dir.path());
    let found = pull(settings.clone(), &format!("hf:o/r:{named}")).unwrap();
    assert_eq!(fs::read(&found.path).unwrap(), drafter);
    // Not the one that is here already.
    let found = pull(settings.clone(), "hf:o/r").unwrap();
    assert_eq!(fs::read(&found.path).unwrap(), model);
    let error = refusal(settings.clone(), "hf:o/r:Q4_K_M");
    assert!(error.contains("does not exist"), "{error}");
    let hub = Hub::new(settings).unwrap();
    assert_eq!(local(&hub, "hf:o/r").path, found.path);
    assert!(local(&hub, &format!("hf:o/r:{named}")).path.ends_with(named));
}

/// Towers lie where they are looked for, beside the models that share them; they are no model, and go with the last.
#[test]
fn a_repository_s_towers_come_and_go_with_its_models() {
    let towers = gguf(1500);
    let fake = FakeHub::start(&[
        ("m-Q8_0.gguf", gguf(3000)),
        ("m-Q4_0.gguf", gguf(2000)),
        ("mmproj-m-F32.gguf", gguf(1700)),
        ("mmproj-m-Q8_0.gguf", gguf(1600)),
        ("mmproj-m-F16.gguf", towers.clone()),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let settings = fake.settings(dir.path());
    let hub = Hub::new(settings.clone()).unwrap();
    let pull_towers = |model: &LocalModel| hub.pull_towers(model, &mut (), &AtomicBool::new(false));
    let [q8, q4] = ["hf:o/r:Q8_0", "hf:o/r:Q4_0"].map(|name| pull(settings.clone(), name).unwrap());
    let found = pull_towers(&q8).unwrap().unwrap();
    assert_eq!(fs::read(&found.path).unwrap(), towers);
    assert_eq!(found.path.parent(), q8.path.parent());
    assert_eq!(pull_towers(&q4).unwrap(), None, "they are here");
    assert_eq!(pull_towers(&found).unwrap(), None, "towers have none");
    // Neither a model nor in the way of one.
    assert_eq!(hub.list().len(), 2);
    assert_eq!(local(&hub, "hf:o/r:Q8_0").path, q8.path);
    assert_eq!(hub.remove("hf:o/r:Q8_0").unwrap(), 3000);
    assert!(found.path.is_file());
    assert_eq!(local(&hub, "hf:o/r").path, q4.path);
    assert_eq!(hub.remove("hf:o/r:Q4_0").unwrap(), 2000 + 1500);
    assert!(!found.path.exists());

    let plain = FakeHub::start(&[("m-Q8_0.gguf", gguf(3000))]);
    let dir = tempfile::tempdir().unwrap();
    let mut settings = plain.settings(dir.path());
    let model = pull(settings.clone(), "hf:o/r").unwrap();
    let pull_towers = |settings: &HubSettings| {
        let hub = Hub::new(settings.clone()).unwrap();
        hub.pull_towers(&model, &mut (), &AtomicBool::new(false))
    };
    assert_eq!(pull_towers(&settings).unwrap(), None, "the repository has none");
    settings.offline = true;
    assert_eq!(pull_towers(&settings).unwrap(), None);
}

#[test]
fn file_names_of_the_network_cannot_escape() {
    for name in ["../../evil.gguf", "/tmp/evil.gguf", "..\\\\evil.gguf"] {
        let fake = FakeHub::start(&[("config.json", b"{}".to_vec())]);
        fake.extra
            .lock()
            .unwrap()
            .extend([name.to_owned(), "x.safetensors".to_owned()]);
        let dir = tempfile::tempdir().unwrap();
        let error = refusal(fake.settings(dir.path()), "hf:o/r");
        assert!(error.contains("not a plain relative file name"), "{error}");
        assert!(!dir.path().join("evil.gguf").exists() && !dir.path().join("store/evil.gguf").exists());
    }
}

#[test]
fn without_a_network_every_source_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = quick(dir.path());
    // A port that was just given back: nobody listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    settings.hf_endpoint = format!("http://127.0.0.1:{port}");
    settings.ollama_dirs = vec![dir.path().join("no-ollama")];
    settings.hf_cache_dirs = vec![dir.path().to_owned()];
    let error = refusal(settings.clone(), "gemma3:1b");
    for words in [
        "gemma3:1b-it-q4_K_M",
        "Ollama: there is no folder",
        "Hugging Face cache: it is not among",
        "ggml-org/gemma-3-1b-it-GGUF",
        "unsloth/gemma-3-1b-it-GGUF",
        "cannot be reached",
        "what to do: connect",
    ] {
        assert!(error.contains(words), "`{words}` is not in: {error}");
    }
    settings.offline = true;
    let error = refusal(settings, "gemma3:1b");
    assert!(
        error.contains("offline setting") && error.contains("CARAT_OFFLINE"),
        "{error}"
    );
}

#[test]
fn the_catalogue_pins_a_digest() {
    let (fake, bytes, dir) = one_file();
    let write = |sha: &str| {
        let text = format!(
            "[[model]]\nname = \"mini:1\"\ndescription = \"d\"\nparams = \"1\"\ntuning = \"base\"\nquant = \"Q4_0\"\n\
             size_gb = 0.1\nlicence = \"x\"\nhf = [{{ repo = \"o/r\", file = \"{FILE}\", sha256 = \"{sha}\" }}]\n"
        );
        fs::write(dir.path().join("catalogue.toml"), text).unwrap();
    };
    let mut settings = fake.settings(dir.path());
    settings.catalogue_file = Some(dir.path().join("catalogue.toml"));
    write(&sha(b"older"));
    assert!(refusal(settings.clone(), "mini:1").contains("another file than the expected one"));
    write(&sha(&bytes).to_uppercase());
    let model = pull(settings.clone(), "mini:1").unwrap();
    assert_eq!(model.name, "mini:1");
    let hub = Hub::new(settings).unwrap();
    assert_eq!(local(&hub, "Mini:1").path, model.path);
    assert_eq!(hub.remove("mini:1").unwrap(), SIZE as u64);
}
