//! Towers in `mmproj` GGUF files, written here as llama.cpp's converters do, give what the same weights in
//! safetensors give.

use std::ops::ControlFlow;
use std::path::Path;

use carat_format::{GgufBuilder, Value};
use carat_kernels::DType;
use carat_model::convert::{ConvertOptions, Mix, convert};
use carat_model::{
    Checkpoint, EncoderPrecision, Error, Family, ImageInput, LoadOptions, MediaEncoder, MediaSource,
};
use carat_testkit::{Golden, relative_l2};
use tempfile::TempDir;

use crate::common::{checkpoint, folder, media};

/// The same numbers in another order here and there.
const TOL: f64 = 1e-6;

/// A tensor of an `mmproj` file.
struct Written {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Names of a tower's parts: in safetensors, and in GGUF.
type Names = &'static [(&'static str, &'static str)];

const SIGLIP: Names = &[
    (
        "vision_tower.vision_model.embeddings.patch_embedding.",
        "v.patch_embd.",
    ),
    (
        "vision_tower.vision_model.embeddings.position_embedding.",
        "v.position_embd.",
    ),
    ("vision_tower.vision_model.post_layernorm.", "v.post_ln."),
    ("vision_tower.vision_model.encoder.layers.", "v.blk."),
    (".layer_norm1.", ".ln1."),
    (".layer_norm2.", ".ln2."),
    (".self_attn.q_proj.", ".attn_q."),
    (".self_attn.k_proj.", ".attn_k."),
    (".self_attn.v_proj.", ".attn_v."),
    (".self_attn.out_proj.", ".attn_out."),
    (".mlp.fc1.", ".ffn_up."),
    (".mlp.fc2.", ".ffn_down."),
    ("multi_modal_projector.mm_soft_emb_norm.", "mm.soft_emb_norm."),
    (
        "multi_modal_projector.mm_input_projection_weight",
        "mm.input_projection.weight",
    ),
];

const GEMMA4: Names = &[
    ("model.vision_tower.patch_embedder.input_proj.", "v.patch_embd."),
    (
        "model.vision_tower.patch_embedder.position_embedding_table",
        "v.position_embd.weight",
    ),
    ("model.vision_tower.std_", "v.std_"),
    ("model.vision_tower.encoder.layers.", "v.blk."),
    ("model.audio_tower.layers.", "a.blk."),
    (".linear.weight", ".weight"),
    (".input_layernorm.", ".ln1."),
    (".post_attention_layernorm.", ".attn_post_norm."),
    (".pre_feedforward_layernorm.", ".ln2."),
    (".post_feedforward_layernorm.", ".ffn_post_norm."),
    (".self_attn.q_proj.", ".attn_q."),
    (".self_attn.k_proj.", ".attn_k."),
    (".self_attn.v_proj.", ".attn_v."),
    (".self_attn.o_proj.", ".attn_out."),
    (".self_attn.q_norm.", ".attn_q_norm."),
    (".self_attn.k_norm.", ".attn_k_norm."),
    (".mlp.gate_proj.", ".ffn_gate."),
    (".mlp.up_proj.", ".ffn_up."),
    (".mlp.down_proj.", ".ffn_down."),
    (
        "model.audio_tower.subsample_conv_projection.layer0.conv.",
        "a.conv1d.0.",
    ),
    (
        "model.audio_tower.subsample_conv_projection.layer1.conv.",
        "a.conv1d.1.",
    ),
    (
        "model.audio_tower.subsample_conv_projection.layer0.norm.",
        "a.conv1d.0.norm.",
    ),
    (
        "model.audio_tower.subsample_conv_projection.layer1.norm.",
        "a.conv1d.1.norm.",
    ),
    (
        "model.audio_tower.subsample_conv_projection.input_proj_linear.",
        "a.input_projection.",
    ),
    ("model.audio_tower.output_proj.", "a.pre_encode.out."),
    (".feed_forward1.pre_layer_norm.", ".ffn_norm."),
    (".feed_forward1.ffw_layer_1.", ".ffn_up."),
    (".feed_forward1.ffw_layer_2.", ".ffn_down."),
    (".feed_forward1.post_layer_norm.", ".ffn_post_norm."),
    (".feed_forward2.pre_layer_norm.", ".ffn_norm_1."),
    (".feed_forward2.ffw_layer_1.", ".ffn_up_1."),
    (".feed_forward2.ffw_layer_2.", ".ffn_down_1."),
    (".feed_forward2.post_layer_norm.", ".ffn_post_norm_1."),
    (".self_attn.post.", ".attn_out."),
    (".self_attn.relative_k_proj.", ".attn_k_rel."),
    (".self_attn.per_dim_scale", ".per_dim_scale.weight"),
    (".norm_pre_attn.", ".attn_pre_norm."),
    (".norm_post_attn.", ".attn_post_norm."),
    (".norm_out.", ".ln2."),
    (".lconv1d.pre_layer_norm.", ".norm_conv."),
    (".lconv1d.linear_start.", ".conv_pw1."),
    (".lconv1d.depthwise_conv1d.", ".conv_dw."),
    (".lconv1d.conv_norm.", ".conv_norm."),
    (".lconv1d.linear_end.", ".conv_pw2."),
    ("model.vision_embedder.patch_ln1.", "v.patch_norm.1."),
    ("model.vision_embedder.patch_ln2.", "v.patch_norm.2."),
    ("model.vision_embedder.pos_norm.", "v.patch_norm.3."),
    ("model.vision_embedder.patch_dense.", "v.patch_embd."),
    ("model.vision_embedder.pos_embedding", "v.position_embd.weight"),
    ("model.embed_vision.embedding_projection.", "mm.input_projection."),
    (
        "model.embed_audio.embedding_projection.",
        "mm.a.input_projection.",
    ),
];

/// Pixel after pixel to channel after channel, in every row.
fn channels_first(values: &[f32], row: usize) -> Vec<f32> {
    let area = row / 3;
    values
        .chunks_exact(row)
        .flat_map(|row| (0..3 * area).map(|i| row[i % area * 3 + i / area]))
        .collect()
}

/// The towers of a fixture under GGUF's names, with what the converters change.
fn towers(model: &str, names: Names) -> Vec<Written> {
    let golden = Golden::open(&folder(model).join("model.safetensors"));
    let is_tower = |name: &&str| !name.contains("language_model.");
    let mut written = Vec::new();
    for name in golden.names().filter(is_tower) {
        let tensor = golden.f32s(name);
        let renamed = names
            .iter()
            .fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
        assert_ne!(renamed, name);
        let (mut shape, mut values) = (tensor.shape, tensor.data);
        if shape.is_empty() {
            shape = vec![1];
        }
        match renamed.as_str() {
            "mm.soft_emb_norm.weight" => values.iter_mut().for_each(|w| *w += 1.0),
            "v.patch_embd.weight" if model == "gemma4-unified" => values = channels_first(&values, shape[1]),
            "v.patch_embd.weight" if model != "gemma3-vision" => {
                values = channels_first(&values, shape[1]);
                let side = (shape[1] / 3).isqrt();
                shape = vec![shape[0], 3, side, side];
            }
            "v.patch_norm.1.weight" | "v.patch_norm.1.bias" => values = channels_first(&values, shape[0]),
            "v.position_embd.weight" if model == "gemma4-unified" => {
                let (n, d) = (shape[0], shape[2]);
                values = (0..2 * n * d)
                    .map(|i| values[((i / d) % n * 2 + i / d / n) * d + i % d])
                    .collect();
                shape = vec![2, n, d];
            }
            name if name.ends_with("per_dim_scale.weight") => {
                values.iter_mut().for_each(|x| *x = x.exp().ln_1p());
            }
            name if name.ends_with("conv_dw.weight") => shape = vec![shape[0], shape[2]],
            _ => {}
        }
        written.push(Written {
            name: renamed,
            shape,
            values,
        });
    }
    written
}

fn write(path: &Path, keys: &[(&str, Value)], tensors: &[Written]) {
    let mut builder = GgufBuilder::new();
    builder.metadata("general.architecture", Value::from("clip"));
    for (key, value) in keys {
        builder.metadata(key, value.clone());
    }
    for tensor in tensors {
        builder.tensor(&tensor.name, DType::F32, &tensor.shape);
    }
    let mut writer = builder.create(path).unwrap();
    for tensor in tensors {
        let bytes: Vec<u8> = tensor
            .values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        writer.write_tensor(&tensor.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// What the towers in `path` make of the fixture's images and sounds is what its own make of them.
fn check(model: &str, path: &Path) {
    let checkpoint = checkpoint(model);
    let media = media(model);
    let load = |source: &MediaSource<'_>| {
        MediaEncoder::load(source, &LoadOptions::default(), EncoderPrecision::F32).unwrap()
    };
    let mut own = load(&MediaSource::find(&checkpoint).unwrap().unwrap());
    let mut from_gguf = load(&MediaSource::open(&checkpoint, path).unwrap());
    let (mut want, mut got) = (Vec::new(), Vec::new());
    for (pixel_values, positions) in &media.images {
        let image = ImageInput {
            pixel_values,
            positions,
        };
        own.encode_image(&image, &mut want).unwrap();
        from_gguf.encode_image(&image, &mut got).unwrap();
        assert!(
            relative_l2(&got, &want) < TOL,
            "{model}: {}",
            relative_l2(&got, &want)
        );
    }
    for features in &media.sounds {
        own.encode_audio(features, &mut want).unwrap();
        from_gguf.encode_audio(features, &mut got).unwrap();
        assert!(
            relative_l2(&got, &want) < TOL,
            "{model}: {}",
            relative_l2(&got, &want)
        );
    }
}

fn number(n: u32) -> Value {
    Value::U32(n)
}

fn siglip_keys() -> Vec<(&'static str, Value)> {
    vec![
        ("clip.has_vision_encoder", Value::Bool(true)),
        ("clip.projector_type", Value::from("gemma3")),
        ("clip.vision.image_size", number(64)),
        ("clip.vision.patch_size", number(8)),
        ("clip.vision.projector.scale_factor", number(2)),
        ("clip.vision.block_count", number(3)),
        ("clip.vision.embedding_length", number(32)),
        ("clip.vision.feed_forward_length", number(72)),
        ("clip.vision.attention.head_count", number(2)),
        ("clip.vision.attention.layer_norm_epsilon", Value::F32(1e-6)),
    ]
}

fn gemma4_keys(n_layers: u32) -> Vec<(&'static str, Value)> {
    vec![
        ("clip.vision.projector_type", Value::from("gemma4v")),
        ("clip.vision.patch_size", number(4)),
        ("clip.vision.block_count", number(n_layers)),
        ("clip.vision.embedding_length", number(32)),
        ("clip.vision.feed_forward_length", number(72)),
        ("clip.vision.attention.head_count", number(2)),
        ("clip.audio.projector_type", Value::from("gemma4a")),
        ("clip.audio.block_count", number(3)),
        ("clip.audio.embedding_length", number(32)),
        ("clip.audio.attention.head_count", number(2)),
    ]
}

#[test]
fn siglip_in_a_gguf_file_sees_the_same() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("mmproj.gguf");
    let mut tensors = towers("gemma3-vision", SIGLIP);
    write(&path, &siglip_keys(), &tensors);
    check("gemma3-vision", &path);
    // Early files have the two matrices of the MLP the wrong way round, with their biases.
    for tensor in &mut tensors {
        let swapped = tensor
            .name
            .replace("ffn_up", "ffn_x")
            .replace("ffn_down", "ffn_up");
        tensor.name = swapped.replace("ffn_x", "ffn_down");
    }
    write(&path, &siglip_keys(), &tensors);
    check("gemma3-vision", &path);
}

#[test]
fn gemma4_towers_in_a_gguf_file_see_and_hear_the_same() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("mmproj.gguf");
    write(&path, &gemma4_keys(3), &towers("gemma4-edge", GEMMA4));
    check("gemma4-edge", &path);
    write(&path, &gemma4_keys(3)[..6], &towers("gemma4-dense", GEMMA4));
    check("gemma4-dense", &path);
    write(&path, &gemma4_keys(2)[..6], &towers("gemma4-moe", GEMMA4));
    check("gemma4-moe", &path);
}

#[test]
fn unified_embedders_in_a_gguf_file_see_and_hear_the_same() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("mmproj.gguf");
    let keys = [
        ("clip.vision.projector_type", Value::from("gemma4uv")),
        ("clip.audio.projector_type", Value::from("gemma4ua")),
    ];
    write(&path, &keys, &towers("gemma4-unified", GEMMA4));
    check("gemma4-unified", &path);
}

/// Text models of both generations have one width here, as the 12B of both do.
#[test]
fn towers_of_the_other_generation_are_refused() {
    let dir = TempDir::new().unwrap();
    let (siglip, gemma4) = (dir.path().join("mmproj-a.gguf"), dir.path().join("mmproj-b.gguf"));
    write(&siglip, &siglip_keys(), &towers("gemma3-vision", SIGLIP));
    write(&gemma4, &gemma4_keys(3)[..6], &towers("gemma4-dense", GEMMA4));
    let (of_3, of_4) = (checkpoint("gemma3-vision"), checkpoint("gemma4-dense"));
    assert_eq!(of_3.config().d_model, of_4.config().d_model);
    for (text, path, found) in [(&of_3, &gemma4, Family::Gemma4), (&of_4, &siglip, Family::Gemma3)] {
        let expected = text.config().family;
        let error = MediaSource::open(text, path).unwrap_err();
        assert!(
            matches!(error, Error::ForeignTowers { found: f, expected: e, .. } if (f, e) == (found, expected)),
            "{error}"
        );
        let said = error.to_string();
        assert!(
            said.contains(&format!("for {found}, but the model is a {expected}")),
            "{said}"
        );
    }
    // Beside a file of text the right one is found, whatever comes first in the folder.
    let text = dir.path().join("text.gguf");
    let options = ConvertOptions {
        mix: Mix::F32,
        pure: false,
        n_threads: 2,
    };
    convert(&folder("gemma4-dense"), &text, &options, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let checkpoint = Checkpoint::open(&text).unwrap();
    let found = MediaSource::find(&checkpoint).unwrap().unwrap();
    assert_eq!(found.path(), gemma4);
    drop(found);
    std::fs::remove_file(&gemma4).unwrap();
    assert!(MediaSource::find(&checkpoint).unwrap().is_none());
}

/// What is remembered of an image is found again with the same towers alone.
#[test]
fn towers_are_told_apart() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("mmproj.gguf");
    let checkpoint = checkpoint("gemma3-vision");
    let id = |tensors: &[Written], precision| {
        write(&path, &siglip_keys(), tensors);
        let source = MediaSource::open(&checkpoint, &path).unwrap();
        let encoder = MediaEncoder::load(&source, &LoadOptions::default(), precision).unwrap();
        encoder.id()
    };
    let mut tensors = towers("gemma3-vision", SIGLIP);
    let first = id(&tensors, EncoderPrecision::F32);
    assert_eq!(id(&tensors, EncoderPrecision::F32), first);
    assert_ne!(id(&tensors, EncoderPrecision::Half), first);
    tensors[0].values[0] += 1.0;
    assert_ne!(id(&tensors, EncoderPrecision::F32), first);
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("mmproj.gguf");
    let checkpoint = checkpoint("gemma3-vision");
    assert_eq!(checkpoint.config().family, Family::Gemma3);
    let load = |path: &Path| {
        let source = MediaSource::open(&checkpoint, path)?;
        MediaEncoder::load(&source, &LoadOptions::default(), EncoderPrecision::F32).map(drop)
    };
    let mut tensors = towers("gemma3-vision", SIGLIP);
    tensors.push(Written {
        name: "v.blk.0.attn_q_norm.weight".to_owned(),
        shape: vec![16],
        values: vec![1.0; 16],
    });
    write(&path, &siglip_keys(), &tensors);
    assert!(
        matches!(load(&path), Err(Error::UnknownTensors { names, .. }) if names == ["v.blk.0.attn_q_norm.weight"])
    );
    tensors.pop();
    let missing = tensors.pop().unwrap();
    write(&path, &siglip_keys(), &tensors);
    assert!(load(&path).is_err(), "without {}", missing.name);
    tensors.push(missing);
    let projection = tensors
        .iter_mut()
        .find(|tensor| tensor.name == "mm.input_projection.weight")
        .unwrap();
    projection.shape = vec![64, 32];
    write(&path, &siglip_keys(), &tensors);
    assert!(matches!(
        load(&path),
        Err(Error::ForeignMmproj {
            found: 32,
            expected: 64,
            ..
        })
    ));
    let text = Checkpoint::open(&path);
    assert!(
        matches!(text, Err(Error::Architecture { .. })),
        "an mmproj file is no model"
    );
    write(
        &path,
        &[("clip.projector_type", Value::from("qwen2vl_merger"))],
        &tensors,
    );
    assert!(matches!(load(&path), Err(Error::BadField { .. })));
}
