//! `carat plan` as it is used: by name, by size, by configuration, on files; its words and its pictures.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::fs;
use std::process::{Command, Output};

use carat_testkit::fixture;
use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_carat"))
        .env_clear()
        .env("HOME", home.path())
        .env("CARAT_OFFLINE", "1")
        .arg("plan")
        .args(arguments)
        .output()
        .unwrap()
}

fn text(arguments: &[&str]) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&text(&arguments)).unwrap()
}

#[test]
fn a_name_of_the_catalogue_and_a_size_give_the_same_without_a_network() {
    let by_name = json(&["gemma3:12b", "--ram", "16GB"]);
    let by_size = json(&["12b", "--ram", "16GB", "--quant", "q4_k_m"]);
    assert_eq!(
        (&by_name["model"], &by_name["quant"]),
        (&"gemma3:12b-it-q4_K_M".into(), &"Q4_K_M".into())
    );
    for key in [
        "peak_bytes",
        "kv_bytes",
        "weights_bytes",
        "vision_bytes",
        "usable_bytes",
    ] {
        assert_eq!(by_name[key], by_size[key], "{key}");
    }
    assert_eq!(by_name["context"], 131_072);
    assert_eq!(by_name["fit"], "does not fit");
    assert_eq!(by_name["grid"].as_array().unwrap().len(), 17);
    assert_eq!(by_size["grid"].as_array().unwrap().len(), 1);
    let parts =
        ["weights_bytes", "kv_bytes", "buffers_bytes"].map(|key| by_name[key]["total"].as_u64().unwrap());
    let process = &by_name["process_bytes"];
    let process = process["program"].as_u64().unwrap() + process["tokenizer"].as_u64().unwrap();
    let towers = by_name["towers_bytes"].as_u64().unwrap();
    assert!(towers > 800_000_000, "{towers}");
    assert_eq!(
        by_name["peak_bytes"],
        parts.iter().sum::<u64>() + towers + process
    );
}

#[test]
fn a_folder_and_its_configuration_alone_have_the_same_shape() {
    let whole = fixture("gemma3-text");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(whole.join("config.json"), folder.path().join("config.json")).unwrap();
    let of_files = json(&[whole.to_str().unwrap(), "--ram", "16GB"]);
    let of_config = json(&[folder.path().to_str().unwrap(), "--ram", "16GB"]);
    assert_eq!(of_files["kv_bytes"], of_config["kv_bytes"]);
    assert_eq!(of_files["grid"], of_config["grid"]);
    assert_eq!(of_files["quant"], "as stored");
    assert_eq!(of_config["quant"], "Q4_K_M");
}

#[test]
fn words_say_what_fits_and_where() {
    let shown = text(&["12B", "--gpu", "rtx 4090", "--context", "32K", "--machines"]);
    assert!(
        shown.contains("RTX 4090, 24 GiB") && shown.contains("towers"),
        "{shown}"
    );
    let row = |name: &str| {
        let found = shown.lines().find(|line| line.starts_with(name));
        found.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(row("Q4_0 ").contains("fits"), "{shown}");
    assert!(row("BF16 ").ends_with("no"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "no colours in a pipe");
    assert!(shown.contains("1008 GB/s allow at most"), "{shown}");
    assert!(row("RX 7900 XTX").contains("960 GB/s"), "{shown}");
    let beyond = text(&["270M", "--context", "64K", "--ram", "16GB"]);
    assert!(
        beyond.contains("beyond the model's context of 32768 tokens"),
        "{beyond}"
    );
}

#[test]
fn pictures_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (svg, html) = (path("a.svg"), path("a.html"));
    text(&["1B", "--ram", "8GB", "--svg", &svg, "--html", &html]);
    let picture = fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("Q4_K_M, 8192 tokens"));
    assert!(fs::read_to_string(&html).unwrap().contains("<svg"));
    assert_eq!(
        run(&["1B", "--svg", &path("no/such/folder.svg")]).status.code(),
        Some(1)
    );
}

#[test]
fn what_is_not_known_is_said() {
    let fail = |arguments: &[&str], code: i32| {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(fail(&["12B", "--gpu", "toaster"], 1).contains("no machine is called `toaster`"));
    assert!(fail(&["hf:someone/something", "--ram", "8GB"], 1).contains("its shape is not known"));
    assert!(fail(&["12B", "--ram", "lots"], 2).contains("no amount of memory"));
    assert!(fail(&["12B", "--context", "many"], 2).contains("no number of tokens"));
    assert!(fail(&["12B", "--quant", "q9"], 2).contains("Q4_K_M"));
}

#[test]
fn towers_stay_as_they_are_stored_whatever_the_mix() {
    let folder = fixture("gemma3-vision");
    let folder = folder.to_str().unwrap();
    let stored = json(&[folder, "--ram", "16GB"]);
    let mixed = json(&[folder, "--ram", "16GB", "--quant", "q8_0"]);
    assert!(stored["towers_bytes"].as_u64().unwrap() > 0);
    for key in ["towers_bytes", "vision_bytes"] {
        assert_eq!(stored[key], mixed[key], "{key}");
    }
}

/// The drafter of a name of the catalogue, and of a folder's model that has one beside it.
#[test]
fn drafters_and_what_towers_compute_in_are_counted() {
    let with = json(&["gemma4:12b", "--ram", "16GB"]);
    let without = json(&["gemma4:12b", "--ram", "16GB", "--no-draft"]);
    let drafter = with["drafter_bytes"].as_u64().unwrap();
    assert!((470_000_000..480_000_000).contains(&drafter), "{drafter}");
    assert_eq!(without["drafter_bytes"], 0);
    let peak = |plan: &Value| plan["peak_bytes"].as_u64().unwrap();
    assert_eq!(peak(&with), peak(&without) + drafter);
    let shown = text(&["gemma4:12b", "--ram", "16GB"]);
    assert!(
        shown.contains("drafter") && shown.contains("--no-draft"),
        "{shown}"
    );
    assert!(with["towers_bytes"].as_u64() > with["vision_bytes"].as_u64());

    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/gemma4-unified");
    let small = json(&[folder, "--ram", "16GB"]);
    let size = std::fs::metadata(format!("{folder}-assistant/model.safetensors"))
        .unwrap()
        .len();
    assert!(small["drafter_bytes"].as_u64().unwrap() > size);
    assert!(small["towers_bytes"].as_u64() > small["vision_bytes"].as_u64());
}
