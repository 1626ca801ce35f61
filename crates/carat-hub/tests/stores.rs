//! Models in the stores of other programs: found, used in place, told apart, never touched.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails must fail its test"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use carat_hub::{Error, Hub, HubSettings, ModelFormat, Place, Resolution};
use common::{gguf, local, plan, quick, sha};

fn put(path: PathBuf, bytes: &[u8]) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

/// Puts a model into an Ollama store; returns its blob.
fn put_ollama(root: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let digest = sha(bytes);
    let manifest = format!(
        "{{\"schemaVersion\":2,\"config\":{{\"digest\":\"sha256:{digest}\",\"size\":1}},\"layers\":[\
         {{\"mediaType\":\"application/vnd.ollama.image.license\",\"digest\":\"sha256:{digest}\",\"size\":3}},\
         {{\"mediaType\":\"application/vnd.ollama.image.model\",\"digest\":\"sha256:{digest}\",\"size\":{}}}]}}",
        bytes.len()
    );
    put(root.join("manifests").join(name), manifest.as_bytes());
    put(root.join("blobs").join(format!("sha256-{digest}")), bytes)
}

fn with(dir: &Path, change: impl FnOnce(&mut HubSettings)) -> Hub {
    let mut settings = quick(dir);
    change(&mut settings);
    Hub::new(settings).unwrap()
}

fn is_absent(hub: &Hub, model: &str) -> bool {
    matches!(hub.resolve(model).unwrap(), Resolution::NeedsDownload(_))
}

#[test]
fn ollamas_models_are_used_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("ollama");
    let q4 = put_ollama(&root, "registry.ollama.ai/library/gemma3/12b", &gguf(300));
    let q8 = put_ollama(&root, "registry.ollama.ai/library/gemma3/12b-it-q8_0", &gguf(400));
    let mine = put_ollama(&root, "registry.ollama.ai/library/mygemma/latest", &gguf(500));
    let hub_pull = put_ollama(&root, "hf.co/unsloth/gemma-3-4b-it-GGUF/Q8_0", &gguf(600));
    put_ollama(&root, "registry.ollama.ai/library/llama3/8b", &gguf(700));
    let hub = with(dir.path(), |s| s.ollama_dirs = vec![root.clone()]);

    for name in ["gemma3:12b", "gemma3:12b-it-q4_K_M", "GEMMA3:12B"] {
        let found = local(&hub, name);
        assert_eq!(
            (found.path, found.place, found.size_bytes),
            (q4.clone(), Place::Ollama, 300),
            "{name}"
        );
    }
    assert_eq!(local(&hub, "gemma3:12b-it-q8_0").path, q8);
    assert_eq!(local(&hub, "mygemma").path, mine);
    assert_eq!(local(&hub, "gemma3:4b-it-q8_0").path, hub_pull);
    assert_eq!(local(&hub, "hf:unsloth/gemma-3-4b-it-GGUF:Q8_0").path, hub_pull);
    assert!(
        is_absent(&hub, "gemma3:4b"),
        "the other number format is not taken"
    );
    assert!(is_absent(&hub, "gemma3:12b-it-qat"));

    let names: Vec<String> = hub.list().into_iter().map(|m| m.name).collect();
    let expected = [
        "gemma3:4b-it-q8_0",
        "gemma3:12b-it-q4_K_M",
        "gemma3:12b-it-q8_0",
        "mygemma:latest",
    ];
    assert_eq!(names, expected, "other families are not listed");
    let error = hub.remove("gemma3:12b").unwrap_err();
    assert!(
        matches!(error, Error::NotOwned { owner: "Ollama", .. }),
        "{error}"
    );
    assert!(q4.exists());
}

#[test]
fn ollamas_damaged_entries_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("ollama");
    let tag = "registry.ollama.ai/library/gemma3/1b";
    let hub = with(dir.path(), |s| s.ollama_dirs = vec![root.clone()]);

    // Still growing, then not a GGUF file, then gone.
    let blob = put_ollama(&root, tag, &gguf(300));
    assert!(!is_absent(&hub, "gemma3:1b"));
    fs::write(&blob, gguf(299)).unwrap();
    assert!(is_absent(&hub, "gemma3:1b"));
    fs::write(&blob, [0; 300]).unwrap();
    assert!(is_absent(&hub, "gemma3:1b"));
    fs::remove_file(&blob).unwrap();
    assert!(is_absent(&hub, "gemma3:1b"));

    // A digest that is a path, a manifest that is none.
    let outside = put(dir.path().join("secret.gguf"), &gguf(300));
    for digest in [
        "../../secret.gguf",
        &format!("sha256:../../{}", outside.display()),
        "sha256:abc",
    ] {
        let text = format!(
            "{{\"layers\":[{{\"mediaType\":\"application/vnd.ollama.image.model\",\"digest\":\"{digest}\",\"size\":300}}]}}"
        );
        put(root.join("manifests").join(tag), text.as_bytes());
        assert!(is_absent(&hub, "gemma3:1b"), "{digest}");
    }
    for text in ["", "[]", "{\"layers\":3}", "{\"layers\":[{\"size\":-1}]}"] {
        put(root.join("manifests").join(tag), text.as_bytes());
        assert!(is_absent(&hub, "gemma3:1b"), "{text}");
    }
}

#[cfg(unix)]
#[test]
fn the_hugging_face_cache_is_read_through_its_links() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("hub");
    let link = |repo: &str, commit: &str, file: &str, bytes: &[u8]| {
        let repo = root.join(repo);
        let blob = put(repo.join("blobs").join(sha(bytes)), bytes);
        let path = repo.join("snapshots").join(commit).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(blob, &path).unwrap();
        path
    };
    let name = "models--ggml-org--gemma-3-4b-it-GGUF";
    let old = link(name, "aaaa", "gemma-3-4b-it-Q4_K_M.gguf", &gguf(300));
    let only_old = link(name, "aaaa", "gemma-3-4b-it-Q8_0.gguf", &gguf(320));
    let new = link(name, "bbbb", "gemma-3-4b-it-Q4_K_M.gguf", &gguf(310));
    link(name, "bbbb", "mmproj-model-f16.gguf", &gguf(50));
    put(root.join(name).join("refs/main"), b"bbbb\n");
    let hub = with(dir.path(), |s| s.hf_cache_dirs = vec![root.clone()]);
    assert_eq!(local(&hub, "gemma3").path, new);
    assert_ne!(local(&hub, "gemma3").path, old);
    assert_eq!(local(&hub, "gemma3:4b-it-q8_0").path, only_old);
    assert_eq!(
        local(&hub, "hf:ggml-org/gemma-3-4b-it-GGUF").path,
        new,
        "Q4_K_M of two"
    );
    assert_eq!(hub.list().len(), 2);

    // A fine-tune under another owner carries the same file name.
    link(
        "models--someone--gemma-3-12b-it-GGUF",
        "cccc",
        "gemma-3-12b-it-Q4_K_M.gguf",
        &gguf(330),
    );
    assert!(is_absent(&hub, "gemma3:12b"));

    // A checkpoint counts when all its shards are there; a link to an unfinished blob does not.
    let folder = "models--google--gemma-3-1b-it";
    for (file, text) in [("config.json", "{}"), ("tokenizer.json", "{}")] {
        link(folder, "dddd", file, text.as_bytes());
    }
    let index = "{\"weight_map\":{\"a\":\"x-1.safetensors\",\"b\":\"x-2.safetensors\"}}";
    link(folder, "dddd", "model.safetensors.index.json", index.as_bytes());
    link(folder, "dddd", "x-1.safetensors", b"one");
    assert!(is_absent(&hub, "hf:google/gemma-3-1b-it"));
    std::os::unix::fs::symlink(
        "../../blobs/none",
        root.join(folder).join("snapshots/dddd/x-2.safetensors"),
    )
    .unwrap();
    assert!(is_absent(&hub, "gemma3:1b-it-bf16"));
    put(root.join(folder).join("blobs/none"), b"two");
    let found = local(&hub, "gemma3:1b-it-bf16");
    assert_eq!(
        (found.format, found.place),
        (ModelFormat::Safetensors, Place::HuggingFace)
    );
    assert_eq!(found.path, root.join(folder).join("snapshots/dddd"));
}

#[test]
fn lm_studio_and_llama_cpp_are_matched_by_repository_and_file() {
    let dir = tempfile::tempdir().unwrap();
    let (studio, llama) = (dir.path().join("studio"), dir.path().join("llama"));
    let file = "gemma-3-12b-it-Q4_K_M.gguf";
    let one = put(
        studio.join("lmstudio-community/gemma-3-12b-it-GGUF").join(file),
        &gguf(300),
    );
    put(
        studio.join("lmstudio-community/gemma-3-12b-it-GGUF/mmproj-model-f16.gguf"),
        &gguf(30),
    );
    put(
        studio.join("lmstudio-community/gemma-3-27b-it-GGUF/downloading_gemma-3-27b-it-Q4_K_M.gguf"),
        &gguf(30),
    );
    put(
        studio.join("lmstudio-community/gemma-3-27b-it-GGUF/gemma-3-27b-it-Q4_K_M.gguf.part"),
        &gguf(30),
    );
    let flat = put(
        llama.join("bartowski_google_gemma-3-1b-it-GGUF_google_gemma-3-1b-it-Q8_0.gguf"),
        &gguf(300),
    );
    put(
        llama.join("bartowski_google_gemma-3-4b-it-GGUF_google_gemma-3-4b-it-Q8_0.gguf.downloadInProgress"),
        &gguf(30),
    );
    put(llama.join("x_gemma-3-27b-it-F16-00001-of-00002.gguf"), &gguf(30));
    let hub = with(dir.path(), |s| {
        s.lmstudio_dirs = vec![studio.clone()];
        s.llamacpp_dirs = vec![llama.clone()];
    });
    assert_eq!(local(&hub, "gemma3:12b").path, one);
    assert_eq!(local(&hub, "gemma3:1b-it-q8_0").path, flat);
    assert_eq!(
        local(
            &hub,
            "hf:bartowski/google_gemma-3-1b-it-GGUF:google_gemma-3-1b-it-Q8_0.gguf"
        )
        .place,
        Place::LlamaCpp
    );
    for absent in [
        "gemma3:27b",
        "gemma3:4b-it-q8_0",
        "gemma3:27b-it-fp16",
        "gemma3:12b-it-q8_0",
    ] {
        assert!(is_absent(&hub, absent), "{absent}");
    }
    let listed: Vec<_> = hub.list().into_iter().map(|m| (m.name, m.place)).collect();
    let named = |name: &str, place| (name.to_owned(), place);
    let expected = [
        named("gemma3:12b-it-q4_K_M", Place::LmStudio),
        named("gemma3:1b-it-q8_0", Place::LlamaCpp),
    ];
    assert_eq!(listed, expected);
}

#[test]
fn paths() {
    let dir = tempfile::tempdir().unwrap();
    let hub = with(dir.path(), |_| {});
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let one = put(dir.path().join("one/m.gguf"), &gguf(300));
    assert_eq!(local(&hub, &text(&one)).path, one);
    assert_eq!(
        local(&hub, &text(one.parent().unwrap())).path,
        one,
        "the only model of a folder"
    );
    put(dir.path().join("one/n.gguf"), &gguf(300));
    let error = hub.resolve(&text(one.parent().unwrap())).unwrap_err().to_string();
    assert!(error.contains("m.gguf, n.gguf"), "{error}");

    let second = put(dir.path().join("split/m-00002-of-00002.gguf"), &gguf(200));
    let error = hub.resolve(&text(&second)).unwrap_err().to_string();
    assert!(
        error.contains("m-00001-of-00002.gguf") && error.contains("missing"),
        "{error}"
    );
    let first = put(dir.path().join("split/m-00001-of-00002.gguf"), &gguf(100));
    let found = local(&hub, &text(&second));
    assert_eq!((found.path, found.size_bytes), (first, 300));

    let folder = dir.path().join("ckpt");
    put(folder.join("config.json"), b"{}");
    let error = hub.resolve(&text(&folder)).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
    // A folder that is named need not have a tokenizer: `carat debug logits` wants none.
    put(folder.join("model.safetensors"), b"x");
    assert_eq!(local(&hub, &text(&folder)).format, ModelFormat::Safetensors);

    let not = put(dir.path().join("not.gguf"), b"zip!");
    assert!(matches!(hub.resolve(&text(&not)), Err(Error::NotAModel { .. })));
    let empty = put(dir.path().join("empty.gguf"), b"");
    assert!(
        hub.resolve(&text(&empty))
            .unwrap_err()
            .to_string()
            .contains("is empty")
    );
    assert!(matches!(
        hub.resolve("./no/such.gguf"),
        Err(Error::PathMissing(_))
    ));
    assert!(matches!(hub.remove(&text(&one)), Err(Error::YourOwn(_))));
}

#[test]
fn a_folder_s_projector_and_drafter_are_not_its_model() {
    let dir = tempfile::tempdir().unwrap();
    let hub = with(dir.path(), |_| {});
    let folder = dir.path().join("g4");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let drafters = ["m-assistant-Q8_0.gguf", "mtp-m.gguf"].map(|name| put(folder.join(name), &gguf(100)));
    put(folder.join("mmproj-F16.gguf"), &gguf(50));
    let error = hub.resolve(&text(&folder)).unwrap_err().to_string();
    assert!(error.contains("m-assistant-Q8_0.gguf, mtp-m.gguf"), "{error}");
    let model = put(folder.join("m-Q4_0.gguf"), &gguf(300));
    assert_eq!(local(&hub, &text(&folder)).path, model);
    for drafter in &drafters {
        assert_eq!(&local(&hub, &text(drafter)).path, drafter);
    }
    put(folder.join("m-Q8_0.gguf"), &gguf(400));
    let error = hub.resolve(&text(&folder)).unwrap_err().to_string();
    assert!(error.ends_with("m-Q4_0.gguf, m-Q8_0.gguf"), "{error}");
    let alone = put(dir.path().join("alone/mtp-m.gguf"), &gguf(100));
    assert_eq!(local(&hub, &text(&dir.path().join("alone"))).path, alone);
}

#[test]
fn a_repository_s_drafter_is_not_its_model() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("hub");
    let of = |repo: &str, file: &str| {
        let snapshot = cache.join(format!("models--o--{repo}/snapshots/abc"));
        put(snapshot.join(file), &gguf(300))
    };
    let hub = with(dir.path(), |s| s.hf_cache_dirs = vec![cache.clone()]);
    let drafter = of("r-GGUF", "MTP/gemma-Q8_0-MTP.gguf");
    of("r-GGUF", "mmproj-Q8_0.gguf");
    let asked = ["hf:o/r-GGUF", "hf:o/r-GGUF:Q8_0"];
    for name in asked {
        assert!(is_absent(&hub, name), "{name}: only the drafter is here");
        assert!(matches!(hub.remove(name), Err(Error::NotInStore(_))), "{name}");
    }
    let model = of("r-GGUF", "gemma-Q8_0.gguf");
    for name in asked {
        assert_eq!(local(&hub, name).path, model, "{name}");
    }
    for name in ["hf:o/r-GGUF:MTP/gemma-Q8_0-MTP.gguf", "hf:o/r-GGUF:Q8_0-MTP"] {
        assert_eq!(local(&hub, name).path, drafter, "{name}");
    }

    // A repository that is called after it holds it as its model, unless there is one.
    let own = of("r-assistant", "r-assistant-Q8_0.gguf");
    for name in ["hf:o/r-assistant", "hf:o/r-assistant:Q8_0"] {
        assert_eq!(local(&hub, name).path, own, "{name}");
    }
    let model = of("r-assistant", "r-Q8_0.gguf");
    for name in ["hf:o/r-assistant", "hf:o/r-assistant:Q8_0"] {
        assert_eq!(local(&hub, name).path, model, "{name}");
    }
}

#[test]
fn every_name_that_is_shown_resolves() {
    let dir = tempfile::tempdir().unwrap();
    let (ollama, studio) = (dir.path().join("ollama"), dir.path().join("studio"));
    let places = [
        "registry.ollama.ai/library/gemma3/12b",
        "registry.ollama.ai/library/mygemma/latest",
        "registry.ollama.ai/ada/gemma/latest",
        "registry.ollama.ai/ada/gemma/1b.gguf",
        "localhost:5000/ada/gemma/1b",
        "hf.co/unsloth/gemma-3-4b-it-GGUF/latest",
        "hf.co/a--b/gemma/Q8_0",
    ];
    // Windows has no colons in names.
    let may_be = |name: &&str| !cfg!(windows) || !name.contains(':');
    let places: Vec<&str> = places.into_iter().filter(may_be).collect();
    for (place, n_bytes) in places.iter().zip(300..) {
        put_ollama(&ollama, place, &gguf(n_bytes));
    }
    let files = ["My Models/gemma (old)/a.gguf", "ada/gemma-GGUF/a: b.gguf"];
    let files: Vec<&str> = files.into_iter().filter(may_be).collect();
    for file in &files {
        put(studio.join(file), &gguf(200));
    }
    let hub = with(dir.path(), |s| {
        s.ollama_dirs = vec![ollama.clone()];
        s.lmstudio_dirs = vec![studio.clone()];
    });
    let listed = hub.list();
    assert_eq!(listed.len(), places.len() + files.len());
    for model in &listed {
        assert_eq!(local(&hub, &model.name).path, model.path, "{}", model.name);
        let error = hub.remove(&model.name).unwrap_err();
        assert!(matches!(error, Error::NotOwned { .. }), "{}: {error}", model.name);
    }
    let names: Vec<&str> = listed.iter().map(|model| model.name.as_str()).collect();
    assert!(names.contains(&"ada/gemma:latest"), "{names:?}");
    for name in ["localhost:5000/ada/gemma:1b", "hf:ada/gemma-GGUF:a: b.gguf"] {
        assert!(cfg!(windows) || names.contains(&name), "{names:?}");
    }
    assert_eq!(local(&hub, "ada/gemma").name, "ada/gemma:latest");
    let error = hub.resolve("ada/gemma:2b").unwrap_err().to_string();
    assert!(error.contains("write hf:ada/gemma:2b"), "{error}");
    assert!(matches!(hub.resolve("./ada/gemma"), Err(Error::PathMissing(_))));
}

#[test]
fn unknown_names_are_answered_with_near_ones() {
    let dir = tempfile::tempdir().unwrap();
    let hub = with(dir.path(), |_| {});
    let hint = |name: &str| hub.resolve(name).unwrap_err().to_string();
    assert!(hint("gemma3:12b-q5").contains("gemma3:12b-it-q4_K_M"));
    assert!(hint("qwen").contains("hf:owner/repo"));
    let plan = plan(&hub, "gemma3:270m-pt");
    assert_eq!(plan.name(), "gemma3:270m-pt-q4_K_M");
    let sources = plan.sources();
    assert!(
        sources[0].starts_with("Hugging Face") && sources[1].starts_with("PyPI gemma3-270m"),
        "{sources:?}"
    );
    assert_eq!(plan.searched().len(), 1);
}

#[test]
fn a_model_is_paired_with_the_catalogue_s_drafter() {
    let dir = tempfile::tempdir().unwrap();
    let studio = dir.path().join("studio");
    for file in [
        "ggml-org/gemma-4-12B-it-GGUF/gemma-4-12B-it-Q4_K_M.gguf",
        "ggml-org/gemma-3-1b-it-GGUF/gemma-3-1b-it-Q4_K_M.gguf",
    ] {
        put(studio.join(file), &gguf(300));
    }
    let hub = with(dir.path(), |s| s.lmstudio_dirs = vec![studio.clone()]);
    assert!(hub.drafter_of(&local(&hub, "gemma3:1b")).unwrap().is_none());
    let target = local(&hub, "gemma4:12b");
    match hub.drafter_of(&target).unwrap() {
        Some(Resolution::NeedsDownload(plan)) => assert_eq!(plan.name(), "gemma4:12b-it-assistant"),
        other => panic!("{other:?}"),
    }
    let file = "sjakek/gemma4-12b-mtp-assistant/gemma-4-12B-it-assistant-Q8_0.gguf";
    assert!(hub.drafters().is_empty());
    let drafter = put(studio.join(file), &gguf(200));
    let paths: Vec<_> = hub.drafters().into_iter().map(|found| found.path).collect();
    assert_eq!(paths, std::slice::from_ref(&drafter));
    match hub.drafter_of(&target).unwrap() {
        Some(Resolution::Local(found)) => assert_eq!(found.path, drafter),
        other => panic!("{other:?}"),
    }
}
