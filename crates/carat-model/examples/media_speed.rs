//! How long a full-size tower of random weights takes for one image or sound.
//!
//! `cargo run --release -p carat-model --example media_speed -- DIR [siglip|gemma4|edge|unified|conformer]
//! [half|f32|error] [avx2|avxvnni|avx512|scalar]`
//!
//! The model is written to `DIR/KIND` first, unless it is there: 0.1 to 0.9 GB. `siglip` is Gemma 3's tower on 896 x
//! 896 pixels, `gemma4` and `edge` the larger and the smaller tower of Gemma 4 on 768 x 768 pixels (256 soft tokens),
//! `unified` the 12B's embedder on a megapixel, `conformer` the audio tower of E2B and E4B on 30 seconds. `error`
//! tells how far the rows in 16 bits are from those in f32.

#![expect(clippy::print_stdout, reason = "what an example is for")]

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use carat_format::{SafeDType, SafetensorsBuilder};
use carat_model::{Checkpoint, EncoderPrecision, ImageInput, Isa, LoadOptions, MediaEncoder, MediaSource};
use serde_json::{Value, json};

const REPEATS: usize = 3;

/// A tower to be measured: its `config.json`, its tensors, and what goes in.
struct Tower {
    config: Value,
    tensors: Vec<(String, Vec<usize>)>,
    input: Input,
    /// Operations of one input: two for each product and sum.
    operations: f64,
}

enum Input {
    Image {
        pixel_values: Vec<f32>,
        positions: Vec<[i32; 2]>,
    },
    Sound(Vec<f32>),
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("give a folder for the models")?;
    let kind = arguments.next().unwrap_or_else(|| "siglip".to_owned());
    let what = arguments.next().unwrap_or_else(|| "half".to_owned());
    let tower = tower(&kind).ok_or("siglip, gemma4, edge, unified or conformer")?;
    let folder = Path::new(&folder).join(&kind);
    if !folder.join("model.safetensors").exists() {
        write(&folder, &tower)?;
    }
    let checkpoint = Checkpoint::open(&folder)?;
    let source = MediaSource::find(&checkpoint)?.ok_or("the model has no tower")?;
    let mut options = LoadOptions::default();
    if let Some(name) = arguments.next() {
        options.isa = Isa::named(&name)?;
    }
    let load = |precision| MediaEncoder::load(&source, &options, precision);
    let mut rows = Vec::new();
    if what == "error" {
        let mut exact = Vec::new();
        encode(&mut load(EncoderPrecision::F32)?, &tower.input, &mut exact)?;
        encode(&mut load(EncoderPrecision::Half)?, &tower.input, &mut rows)?;
        let squares =
            |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
        let distance = squares(&mut rows.iter().zip(&exact).map(|(a, b)| a - b));
        let size = squares(&mut exact.iter().copied());
        println!("{kind}: relative L2 {:.1e}", (distance / size).sqrt());
        return Ok(());
    }
    let precision = if what == "f32" {
        EncoderPrecision::F32
    } else {
        EncoderPrecision::Half
    };
    let mut encoder = load(precision)?;
    let mut times = Vec::new();
    for _ in 0..=REPEATS {
        let started = Instant::now();
        encode(&mut encoder, &tower.input, &mut rows)?;
        times.push(started.elapsed().as_secs_f64());
    }
    // The first one reads the weights from disk.
    let mut times = times.split_off(1);
    times.sort_by(f64::total_cmp);
    let middle = times[REPEATS / 2];
    println!(
        "{kind} {precision:?} {} {} threads: {} soft tokens, {:.0} ms ({:.0} to {:.0}), {:.0} Gop, {:.0} Gop/s",
        options.isa,
        options.n_threads,
        rows.len() / encoder.d_model(),
        middle * 1e3,
        times[0] * 1e3,
        times[REPEATS - 1] * 1e3,
        tower.operations / 1e9,
        tower.operations / middle / 1e9
    );
    Ok(())
}

fn encode(encoder: &mut MediaEncoder, input: &Input, rows: &mut Vec<f32>) -> Result<(), carat_model::Error> {
    match input {
        Input::Image {
            pixel_values,
            positions,
        } => encoder.encode_image(
            &ImageInput {
                pixel_values,
                positions,
            },
            rows,
        ),
        Input::Sound(features) => encoder.encode_audio(features, rows),
    }
}

/// Writes the configuration and random weights in BF16.
fn write(folder: &Path, tower: &Tower) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(
        folder.join("config.json"),
        serde_json::to_vec_pretty(&tower.config)?,
    )?;
    let mut builder = SafetensorsBuilder::new();
    for (name, shape) in &tower.tensors {
        builder.tensor(name, SafeDType::BF16, shape);
    }
    let mut writer = builder.create(&folder.join("model.safetensors"))?;
    let mut state = 1u64;
    for (name, shape) in &tower.tensors {
        let n: usize = shape.iter().product();
        let fan_in: usize = shape.iter().skip(1).product();
        let is_matrix = shape.len() > 1;
        let scale = if is_matrix {
            (3.0 / fan_in as f32).sqrt()
        } else {
            0.02
        };
        let shift = if is_matrix || name.ends_with("bias") {
            0.0
        } else {
            1.0
        };
        let bytes: Vec<u8> = (0..n)
            .flat_map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let x = (state >> 40) as f32 / 8_388_608.0 - 1.0;
                // The upper half of an f32 is a bf16.
                let [_, _, low, high] = (x * scale + shift).to_le_bytes();
                [low, high]
            })
            .collect();
        writer.write_tensor(name, &bytes)?;
    }
    Ok(writer.finish()?)
}

fn tower(kind: &str) -> Option<Tower> {
    match kind {
        "siglip" => Some(siglip()),
        "gemma4" => Some(gemma4([27, 1152, 16, 72, 4304], 5376)),
        "edge" => Some(gemma4([16, 768, 12, 64, 3072], 2560)),
        "unified" => Some(unified()),
        "conformer" => Some(conformer()),
        _ => None,
    }
}

/// Operations on `n` rows: products with `parameters` weights, attention of `width` to all rows.
fn operations(n: usize, parameters: usize, width: usize) -> f64 {
    2.0 * n as f64 * parameters as f64 + 4.0 * (n as f64).powi(2) * width as f64
}

fn pixels(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.37).sin() * 0.5 + 0.5).collect()
}

/// Names and shapes of tensors.
#[derive(Default)]
struct Tensors(Vec<(String, Vec<usize>)>);

impl Tensors {
    fn add(&mut self, name: String, shape: &[usize]) {
        self.0.push((name, shape.to_vec()));
    }

    fn weight(&mut self, base: String, shape: &[usize]) {
        self.add(format!("{base}.weight"), shape);
    }

    fn with_bias(&mut self, base: String, shape: &[usize]) {
        self.add(format!("{base}.bias"), &shape[..1]);
        self.weight(base, shape);
    }
}

fn siglip() -> Tower {
    let (d, f, text, n) = (1152, 4304, 2560, 4096);
    let mut tensors = Tensors::default();
    let tower = "vision_tower.vision_model";
    tensors.with_bias(format!("{tower}.embeddings.patch_embedding"), &[d, 3, 14, 14]);
    tensors.weight(format!("{tower}.embeddings.position_embedding"), &[n, d]);
    for i in 0..27 {
        let layer = format!("{tower}.encoder.layers.{i}");
        for norm in ["layer_norm1", "layer_norm2"] {
            tensors.with_bias(format!("{layer}.{norm}"), &[d]);
        }
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            tensors.with_bias(format!("{layer}.self_attn.{name}"), &[d, d]);
        }
        tensors.with_bias(format!("{layer}.mlp.fc1"), &[f, d]);
        tensors.with_bias(format!("{layer}.mlp.fc2"), &[d, f]);
    }
    tensors.with_bias(format!("{tower}.post_layernorm"), &[d]);
    tensors.weight("multi_modal_projector.mm_soft_emb_norm".to_owned(), &[d]);
    tensors.add(
        "multi_modal_projector.mm_input_projection_weight".to_owned(),
        &[d, text],
    );
    let signed = pixels(3 * 896 * 896).iter().map(|p| 2.0 * p - 1.0).collect();
    Tower {
        config: json!({
            "model_type": "gemma3", "mm_tokens_per_image": 256, "text_config": {"hidden_size": text},
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": d, "intermediate_size": f,
                "image_size": 896, "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
            },
        }),
        tensors: tensors.0,
        input: Input::Image {
            pixel_values: signed,
            positions: Vec::new(),
        },
        operations: 27.0 * operations(n, 4 * d * d + 2 * d * f, d),
    }
}

fn gemma4([n_layers, d, n_heads, head_dim, f]: [usize; 5], text: usize) -> Tower {
    let h = n_heads * head_dim;
    let mut tensors = Tensors::default();
    let start = "model.vision_tower.patch_embedder";
    tensors.weight(format!("{start}.input_proj"), &[d, 768]);
    tensors.add(format!("{start}.position_embedding_table"), &[2, 10_240, d]);
    for i in 0..n_layers {
        let layer = format!("model.vision_tower.encoder.layers.{i}");
        for side in ["input", "post_attention", "pre_feedforward", "post_feedforward"] {
            tensors.weight(format!("{layer}.{side}_layernorm"), &[d]);
        }
        for name in ["q_norm", "k_norm"] {
            tensors.weight(format!("{layer}.self_attn.{name}"), &[head_dim]);
        }
        for name in ["q_proj", "k_proj", "v_proj"] {
            tensors.weight(format!("{layer}.self_attn.{name}.linear"), &[h, d]);
        }
        tensors.weight(format!("{layer}.self_attn.o_proj.linear"), &[d, h]);
        for name in ["gate_proj", "up_proj"] {
            tensors.weight(format!("{layer}.mlp.{name}.linear"), &[f, d]);
        }
        tensors.weight(format!("{layer}.mlp.down_proj.linear"), &[d, f]);
    }
    tensors.weight("model.embed_vision.embedding_projection".to_owned(), &[text, d]);
    let n = 48 * 48;
    Tower {
        config: json!({
            "model_type": "gemma4", "text_config": {"hidden_size": text},
            "vision_config": {
                "model_type": "gemma4_vision", "hidden_size": d, "intermediate_size": f, "head_dim": head_dim,
                "num_attention_heads": n_heads, "num_key_value_heads": n_heads,
                "num_hidden_layers": n_layers,
            },
        }),
        tensors: tensors.0,
        input: Input::Image {
            pixel_values: pixels(n * 768),
            positions: (0..48).flat_map(|y| (0..48).map(move |x| [x, y])).collect(),
        },
        operations: n_layers as f64 * operations(n, 4 * d * h + 3 * d * f, h),
    }
}

fn unified() -> Tower {
    let (d, cell) = (3840, 6912);
    let mut tensors = Tensors::default();
    for (name, n) in [("patch_ln1", cell), ("patch_ln2", d), ("pos_norm", d)] {
        tensors.with_bias(format!("model.vision_embedder.{name}"), &[n]);
    }
    tensors.with_bias("model.vision_embedder.patch_dense".to_owned(), &[d, cell]);
    tensors.add("model.vision_embedder.pos_embedding".to_owned(), &[1120, 2, d]);
    tensors.weight("model.embed_vision.embedding_projection".to_owned(), &[d, d]);
    // 1,008 x 1,008 pixels.
    let side = 21;
    let n = side * side;
    Tower {
        config: json!({
            "model_type": "gemma4_unified", "text_config": {"hidden_size": d},
            "vision_config": {"model_type": "gemma4_unified_vision"},
        }),
        tensors: tensors.0,
        input: Input::Image {
            pixel_values: pixels(n * cell),
            positions: (0..21).flat_map(|y| (0..21).map(move |x| [x, y])).collect(),
        },
        operations: operations(n, d * cell + d * d, 0),
    }
}

fn conformer() -> Tower {
    let (d, out, text, n) = (1024, 1536, 2560, 750);
    let mut tensors = Tensors::default();
    let start = "model.audio_tower.subsample_conv_projection";
    for (i, [n_in, n_out]) in [[1, 128], [128, 32]].into_iter().enumerate() {
        tensors.weight(format!("{start}.layer{i}.conv"), &[n_out, n_in, 3, 3]);
        tensors.weight(format!("{start}.layer{i}.norm"), &[n_out]);
    }
    tensors.weight(format!("{start}.input_proj_linear"), &[d, 1024]);
    for i in 0..12 {
        let layer = format!("model.audio_tower.layers.{i}");
        for half in ["feed_forward1", "feed_forward2"] {
            tensors.weight(format!("{layer}.{half}.ffw_layer_1.linear"), &[4 * d, d]);
            tensors.weight(format!("{layer}.{half}.ffw_layer_2.linear"), &[d, 4 * d]);
            tensors.weight(format!("{layer}.{half}.pre_layer_norm"), &[d]);
            tensors.weight(format!("{layer}.{half}.post_layer_norm"), &[d]);
        }
        for name in ["q_proj", "k_proj", "v_proj", "post"] {
            tensors.weight(format!("{layer}.self_attn.{name}.linear"), &[d, d]);
        }
        tensors.weight(format!("{layer}.self_attn.relative_k_proj"), &[d, d]);
        tensors.add(format!("{layer}.self_attn.per_dim_scale"), &[128]);
        tensors.weight(format!("{layer}.lconv1d.linear_start.linear"), &[2 * d, d]);
        tensors.weight(format!("{layer}.lconv1d.linear_end.linear"), &[d, d]);
        tensors.weight(format!("{layer}.lconv1d.depthwise_conv1d"), &[d, 1, 5]);
        for name in ["lconv1d.pre_layer_norm", "lconv1d.conv_norm"] {
            tensors.weight(format!("{layer}.{name}"), &[d]);
        }
        for name in ["norm_pre_attn", "norm_post_attn", "norm_out"] {
            tensors.weight(format!("{layer}.{name}"), &[d]);
        }
    }
    tensors.with_bias("model.audio_tower.output_proj".to_owned(), &[out, d]);
    tensors.weight("model.embed_audio.embedding_projection".to_owned(), &[text, out]);
    // The second convolution has 32 bins of 32 channels, each of 9 x 128 products, in a row.
    let once = operations(n, 32 * 32 * 9 * 128 + d * d + d * out + out * text, 0);
    Tower {
        config: json!({
            "model_type": "gemma4", "text_config": {"hidden_size": text},
            "audio_config": {"model_type": "gemma4_audio"},
        }),
        tensors: tensors.0,
        input: Input::Sound(pixels(4 * n * 128)),
        operations: once + 12.0 * operations(n, 16 * d * d + 7 * d * d, 0),
    }
}
