//! `carat plan` as it is used: by name, by size, by configuration, on files; its words and its pictures.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::fs;
use std::path::Path;
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

fn write_gguf(path: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_carat"))
        .arg("quantize")
        .args([fixture("gemma3-text").as_path(), path])
        .args(["--type", "Q8_0"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
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

/// Google's own 4-bit files have an embedding of 16 bits.
#[test]
fn a_published_file_is_planned_in_its_own_size() {
    let published = json(&["gemma3:12b-it-qat", "--ram", "16GB"]);
    assert_eq!(published["weights_bytes"]["total"], 8_100_000_000u64);
    assert_eq!(published["quant"], "Q4_0 as published");
    let rows = published["grid"].as_array().unwrap();
    let row = rows.iter().find(|row| row["quant"] == "Q4_0").unwrap();
    assert_eq!(row["cells"][0]["weights_bytes"], 8_100_000_000u64);
    let of_mix = json(&["gemma3:12b-it-qat", "--ram", "16GB", "--quant", "q4_0"]);
    assert!(of_mix["weights_bytes"]["total"].as_u64().unwrap() < 7_000_000_000);
    assert_eq!(of_mix["quant"], "Q4_0");
    // A folder's size has the towers in it, which are counted by themselves.
    let folder = json(&["gemma3:4b-it-bf16", "--ram", "16GB"]);
    assert_eq!(folder["quant"], "BF16");
}

/// What is sold as 16 GB has 16 GiB.
#[test]
fn memory_and_machines_are_counted_alike() {
    let plan = json(&["12B", "--context", "80K", "--ram", "16GB"]);
    assert_eq!(plan["usable_bytes"], 14u64 << 30);
    assert_eq!(plan["target"], "a computer with 16 GiB");
    let machines = plan["machines"].as_array().unwrap();
    assert!(
        machines
            .iter()
            .any(|machine| machine["kind"] == "laptop" && machine["memory_gib"] == 16.0)
    );
    assert_ne!(plan["fit"], "does not fit");
}

#[test]
fn the_parts_add_up_on_every_kind_of_machine() {
    for (machine, has_program) in [("MacBook Pro M4 Pro", true), ("RTX 4090", false)] {
        let shown = text(&["1B", "--gpu", machine, "--context", "8K"]);
        let has_row = shown.lines().any(|line| line.starts_with("program "));
        assert_eq!(has_row, has_program, "{shown}");
    }
}

#[test]
fn a_short_context_of_the_models_own_is_a_column() {
    let folder = tempfile::tempdir().unwrap();
    let config = fs::read_to_string(fixture("gemma3-text").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = 7.into();
    let path = folder.path().join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    let plan = json(&[path.to_str().unwrap(), "--ram", "8GB"]);
    assert_eq!(plan["grid"][0]["cells"][0]["context"], 7);
}

/// Elsewhere no file may have such a name.
#[test]
#[cfg(unix)]
fn a_name_gives_a_terminal_no_orders() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a\u{1b}]0;b\u{7}.json");
    fs::copy(fixture("gemma3-text").join("config.json"), &path).unwrap();
    let shown = text(&[path.to_str().unwrap(), "--ram", "8GB"]);
    assert!(
        !shown.contains(['\u{1b}', '\u{7}']) && shown.contains("\\u{1b}"),
        "{shown}"
    );
}

#[test]
fn a_model_beside_a_configuration_is_what_is_planned() {
    let folder = tempfile::tempdir().unwrap();
    let config = fixture("gemma3-text").join("config.json");
    fs::copy(config, folder.path().join("config.json")).unwrap();
    let path = folder.path().to_str().unwrap();
    assert_eq!(json(&[path, "--ram", "8GB"])["origin"], "a configuration");
    write_gguf(&folder.path().join("model.gguf"));
    assert_eq!(json(&[path, "--ram", "8GB"])["origin"], "on this machine");
}

/// As every other command takes it.
#[test]
fn a_folder_is_taken_before_a_size_of_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let named = folder.path().join("12B");
    fs::create_dir(&named).unwrap();
    write_gguf(&named.join("model.gguf"));
    let output = Command::new(env!("CARGO_BIN_EXE_carat"))
        .env_clear()
        .env("HOME", folder.path())
        .env("CARAT_OFFLINE", "1")
        .current_dir(folder.path())
        .args(["plan", "12B", "--ram", "8GB", "--json"])
        .output()
        .unwrap();
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["origin"], "on this machine");
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
fn a_picture_may_be_the_output() {
    let svg = text(&["1B", "--ram", "8GB", "--svg", "-"]);
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"), "{svg}");
    let html = text(&["1B", "--ram", "8GB", "--html", "-", "--json"]);
    assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"));
}

/// The model's own context does not fit, but a run takes a shorter one.
#[test]
fn what_a_run_would_take_instead_is_said() {
    let shown = text(&["12B", "--ram", "16GB"]);
    assert!(
        shown.contains("`carat run` takes what fits: context of ") && shown.contains("f16 cache"),
        "{shown}"
    );
    let shown = text(&["12B", "--quant", "bf16", "--ram", "16GB"]);
    assert!(shown.contains("`carat run` could take the model in Q"), "{shown}");
    // The published file is too large, whose mix is not told as another.
    let shown = text(&["gemma4:e4b", "--ram", "8GB"]);
    assert!(
        shown.contains("`carat run` could take the model in Q4_0") && !shown.contains("in Q4_K_M"),
        "{shown}"
    );
    for fitting in [["12B", "--ram", "64GB"], ["27B", "--gpu", "RTX 4060"]] {
        assert!(!text(&fitting).contains("`carat run`"), "{fitting:?}");
    }
}

/// Of E2B's layers 15 have keys and values; it hears, which a 4B does not.
#[test]
fn parts_are_told_as_they_are() {
    let shown = text(&["E2B", "--ram", "16GB"]);
    assert!(
        shown.contains("in 12 of 28 layers, window 512") && shown.contains("in 3 of 7 layers, 131072 tokens"),
        "{shown}"
    );
    assert!(shown.contains("for images and sounds,"), "{shown}");
    let shown = text(&["4B", "--ram", "16GB"]);
    assert!(
        shown.contains("in 29 layers, window 1024") && shown.contains("for images,"),
        "{shown}"
    );
    let shown = text(&["4B", "--gpu", "MacBook Air M2"]);
    assert!(
        shown.contains("MacBook Air M2, 24 GiB, the most it has"),
        "{shown}"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    write_gguf(&path);
    assert_eq!(
        json(&[path.to_str().unwrap(), "--ram", "8GB"])["quant"],
        "Q8_0 as stored"
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
    let error = fail(&["gemma4:31b-it-assistant", "--ram", "64GB"], 1);
    assert!(
        error.contains("is a drafter") && error.contains("`gemma4:31b-it-q4_K_M`"),
        "{error}"
    );
    let error = fail(&["26B", "--ram", "8GB"], 1);
    assert!(
        error.contains("no model is named `26B`") && error.contains("gemma4-26B-A4B"),
        "{error}"
    );
    assert!(fail(&["hf:", "--ram", "8GB"], 1).contains("`hf:` cannot be used"));
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
