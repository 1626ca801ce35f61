//! Which drafter `carat run` takes, and what it says of others.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use carat_testkit::{ChatModel, fixture};
use serde_json::Value;
use tempfile::TempDir;

/// A home with a model in it, alone in its folder.
struct Home {
    folder: TempDir,
    model: PathBuf,
}

impl Home {
    fn new() -> Home {
        let folder = TempDir::new().unwrap();
        let place = folder.path().join("models/unified");
        fs::create_dir_all(&place).unwrap();
        let model = ChatModel::new("gemma4-unified", &place).folder;
        Home { folder, model }
    }

    /// Puts a drafter of the fixtures there.
    fn put(&self, drafter: &str, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(fixture(drafter).join(file), to.join(file)).unwrap();
        }
    }

    /// What a run says beside its answer, and the drafter that it took.
    fn run(&self) -> (String, Option<String>) {
        let output = Command::new(env!("CARGO_BIN_EXE_carat"))
            .env_clear()
            .env("HOME", self.folder.path())
            // Where the home folder is called otherwise.
            .env("HF_HOME", self.folder.path().join(".cache/huggingface"))
            .env("CARAT_OFFLINE", "1")
            .stdin(Stdio::null())
            .arg("run")
            .arg(&self.model)
            .args(["hello", "-n", "8", "-t", "0", "--json", "--threads", "2"])
            .output()
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{told}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let drafter = &answer["drafts"]["drafter"];
        assert!(drafter.is_null() || drafter.is_string(), "{drafter}");
        (told, drafter.as_str().map(str::to_owned))
    }
}

#[test]
fn what_becomes_of_drafters_beside_a_model_is_said_where_it_is_not_plain() {
    let home = Home::new();
    assert_eq!(
        home.run(),
        (String::new(), None),
        "nobody has asked for a drafter"
    );
    home.put("gemma4-assistant", &home.model.join("MTP"));
    let (told, drafter) = home.run();
    assert_eq!(drafter, None);
    assert!(
        told.starts_with("no drafter beside")
            && told.contains("` drafts for layers")
            && told.lines().count() == 1,
        "{told}"
    );
    home.put("gemma4-unified-assistant", &home.model.join("draft-a"));
    let first = home.model.join("draft-a").display().to_string();
    assert_eq!(home.run(), (String::new(), Some(first.clone())));
    home.put("gemma4-unified-assistant", &home.model.join("draft-b"));
    let (told, drafter) = home.run();
    assert_eq!(drafter, Some(first));
    assert_eq!(
        told,
        "several drafters fit this model, and `draft-a` is taken; to take another, name it: `draft-b`\n"
    );
}

/// Where a pull or another program has put it, whatever the model at hand is called.
#[test]
fn a_drafter_that_lies_elsewhere_is_found_by_what_it_is_for() {
    let home = Home::new();
    let snapshot = |repo: &str| {
        let cache = home.folder.path().join(".cache/huggingface/hub");
        cache.join(format!("models--someone--{repo}/snapshots/{}", "a".repeat(40)))
    };
    for (drafter, repo) in [
        ("gemma4-assistant", "edge-it-assistant"),
        ("gemma4-unified-assistant", "unified-it-assistant"),
    ] {
        home.put(drafter, &snapshot(repo));
        // A folder in that cache is a model once it has a tokenizer.
        fs::copy(
            home.model.join("tokenizer.model"),
            snapshot(repo).join("tokenizer.model"),
        )
        .unwrap();
        let fits = drafter == "gemma4-unified-assistant";
        let taken = fits.then(|| format!("hf:someone/{repo}"));
        assert_eq!(home.run(), (String::new(), taken), "{drafter}");
    }
}
