//! What one way of running a model costs.
//!
//! Everything that a run allocates grows with known sizes, so its peak can be told before it starts:
//!
//! ```text
//! peak = weights (mapped; every page is touched)
//!      + KV cache of all sequences (local layers: their window; global layers: the context)
//!      + buffers of one pass (activations of a chunk, scratch of each thread, logits)
//!      + the towers that see and hear, where they are used (mapped), with their buffers
//!      + the drafter that guesses ahead (mapped), with its cache and buffers
//!      + the process (program, tokenizer)
//! ```
//!
//! The formulas follow the allocations in `carat-model` (`gemma.rs`, `cpu/`) and `carat-kernels` (`activation.rs`,
//! `matmul.rs`, `attention/`); a test of the command compares their sum with what the system counts.

use carat_model::{Config, KvCache, KvDType, LayerConfig, Precision};

use crate::{Drafter, Weights};

/// How a model is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Tokens that each sequence may have.
    pub context: usize,
    /// Sequences at the same time.
    pub n_sequences: usize,
    /// Format of the KV cache.
    pub kv_dtype: KvDType,
    /// Threads that compute.
    pub n_threads: usize,
    /// Whether they multiply by tiles ([`carat_kernels::Isa::has_tiles`]).
    pub has_tiles: bool,
    /// Most tokens of one pass.
    pub max_batch_tokens: usize,
    /// Arithmetic of quantized weights.
    pub precision: Precision,
    /// Bytes of the towers that see and hear for it, and of what they compute in; 0 for a run of text alone.
    pub tower_bytes: u64,
    /// What guesses ahead for it.
    pub drafter: Option<Drafter>,
}

/// Bytes of the KV caches of all sequences, filled to their context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kv {
    /// Of layers with a window: no more than the window needs.
    pub local: u64,
    /// Of layers that see everything: grows with every token.
    pub global: u64,
}

impl Kv {
    /// Of one sequence of `n_tokens` tokens, times `n_sequences`.
    #[must_use]
    pub fn of(config: &Config, dtype: KvDType, n_tokens: usize, n_sequences: usize) -> Kv {
        let of_layers = |is_wanted: &dyn Fn(&LayerConfig) -> bool| {
            let mut part = config.clone();
            part.layers.retain(|layer| is_wanted(layer));
            let bytes = KvCache::bytes_for(&part, dtype, n_tokens);
            (bytes as u64).saturating_mul(n_sequences as u64)
        };
        Kv {
            local: of_layers(&|layer| layer.window.is_some()),
            global: of_layers(&|layer| layer.window.is_none()),
        }
    }

    /// Both.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.local.saturating_add(self.global)
    }
}

/// Bytes of what a pass computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// Rows of a chunk between the operations of a layer.
    pub activations: u64,
    /// The input of a product in its integer form, and each thread's panel of unpacked weights.
    pub products: u64,
    /// Each thread's tiles, and the partial results of decoding at full depth.
    pub attention: u64,
    /// A row of logits for each sequence, twice: the model's and the sampler's. Taken by requests that need whole rows.
    pub logits: u64,
}

impl Buffers {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        [self.activations, self.products, self.attention, self.logits]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    pub(crate) fn of(config: &Config, has_floats: bool, setup: &Setup) -> Buffers {
        let widest = Widths::of(config);
        let batch = setup.max_batch_tokens.min(setup.context.max(1)) as u64;
        let threads = setup.n_threads.max(1) as u64;
        let mul = |a: u64, b: u64| a.saturating_mul(b);
        let rows = |bytes: u64| mul(batch, bytes);
        // x, normed and projected; q and attended; k, v and their rounding; gate and up; two ropes' angles.
        let row = 4 * (3 * widest.model + 2 * widest.q + 2 * widest.kv + 2 * widest.mlp + 2 * widest.head)
            + 2 * widest.kv;
        let row = row
            + 4 * 2 * (config.layers.len() as u64) * config.per_layer_width as u64
            + expert_bytes(config, setup);
        let per_thread = panel_bytes(widest.input(), has_floats || setup.precision == Precision::F32)
            + if setup.has_tiles { PANEL_OF_TILES } else { 0 };
        Buffers {
            activations: rows(row),
            products: rows(input_bytes(setup.precision, widest.input()))
                .saturating_add(mul(threads, per_thread)),
            attention: mul(threads, tile_bytes(widest.head, setup)).saturating_add(decode_parts(
                config,
                setup.context,
                setup.n_sequences,
            )),
            logits: mul(setup.n_sequences as u64, mul(8, config.vocab_size as u64)),
        }
    }
}

/// The widest of each kind of row over all layers, in elements.
struct Widths {
    model: u64,
    q: u64,
    kv: u64,
    mlp: u64,
    head: u64,
}

impl Widths {
    fn of(config: &Config) -> Widths {
        let widest =
            |of: &dyn Fn(&LayerConfig) -> usize| config.layers.iter().map(of).max().unwrap_or(0) as u64;
        Widths {
            model: config.d_model as u64,
            q: widest(&LayerConfig::q_width),
            kv: widest(&LayerConfig::kv_width),
            mlp: widest(&|layer| layer.d_ff),
            head: widest(&|layer| layer.head_dim),
        }
    }

    /// The widest input of a product.
    fn input(&self) -> u64 {
        self.model.max(self.q).max(self.mlp)
    }
}

/// Bytes of one row as a product takes it: f32, and with integers one or two bytes an element beside scales
/// and sums for every 16 and 32.
fn input_bytes(precision: Precision, width: u64) -> u64 {
    let integers = |bytes: u64| width * bytes + width * 12 / 16 + width * 12 / 32;
    4 * width
        + match precision {
            Precision::F32 => 0,
            Precision::Int8 => integers(1),
            Precision::Int16 => integers(2),
        }
}

/// Bytes that experts take for one token: the input and the result of each that it goes to.
fn expert_bytes(config: &Config, setup: &Setup) -> u64 {
    let of_layer = |layer: &LayerConfig| {
        let experts = layer.experts?;
        let (d_model, d_ff) = (config.d_model as u64, experts.d_ff as u64);
        let inputs = input_bytes(setup.precision, d_model) + input_bytes(setup.precision, d_ff);
        Some((inputs + 4 * (2 * d_ff + d_model)).saturating_mul(experts.n_used as u64))
    };
    config.layers.iter().filter_map(of_layer).max().unwrap_or(0)
}

/// Bytes of one thread's panel of weight rows: 32 rows of bytes with their scales, or 64 rows of f32 and one more.
fn panel_bytes(width: u64, has_floats: bool) -> u64 {
    let integers = 32 * width + 32 * width / 16 * 4 * 2;
    let floats = if has_floats { 65 * 4 * width } else { 0 };
    integers + floats
}

/// Bytes of one thread's panel where there is AMX: 128 rows of a chunk of 256 columns as tiles, twice for 16 bits, and
/// the sums of 512 activation rows.
const PANEL_OF_TILES: u64 = 2 * 2 * 128 * 256 + 4 * 128 * 512;

/// Bytes of one thread's tile of prefill attention: queries and their sums, 64 keys and values, the scores; 96
/// queries in f32, or 192 with operands in bf16 beside those in f32. Tiles of AMX take copies of both operands, and of
/// what rounding loses from f16.
fn tile_bytes(head_dim: u64, setup: &Setup) -> u64 {
    let floats = |rows: u64| 4 * (2 * rows * head_dim + 2 * 64 * head_dim + 64 * rows);
    let pairs = 2 * (192 * head_dim + 2 * 64 * head_dim + 64 * 192);
    let copies = if setup.has_tiles {
        2 * (32 + 192) * head_dim
    } else {
        0
    };
    match setup.kv_dtype {
        KvDType::F16 if setup.has_tiles => floats(192) + 2 * (pairs + copies),
        KvDType::F16 | KvDType::F32 => floats(96),
        KvDType::Bf16 | KvDType::Q8_0 | KvDType::Q4_0 => floats(192) + pairs + copies,
    }
}

/// Bytes of the partial results of decode attention: one per 512 positions, head and sequence.
fn decode_parts(config: &Config, context: usize, n_sequences: usize) -> u64 {
    let of_layer = |layer: &LayerConfig| {
        let span = layer.window.unwrap_or(context).min(context) as u64;
        let parts = (span / 512 + 2).saturating_mul(layer.n_heads as u64);
        parts.saturating_mul(4 * (layer.head_dim as u64 + 2))
    };
    let widest = config.layers.iter().map(of_layer).max().unwrap_or(0);
    widest.saturating_mul(n_sequences as u64)
}

/// Bytes of the program itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Code, stacks, the opened file's lists. Measured.
    pub program: u64,
    /// Vocabulary and merges as the tokenizer keeps them. Measured.
    pub tokenizer: u64,
}

/// What `carat` needs with a model of a few kilobytes, on Linux.
const PROGRAM_BYTES: u64 = 7_500_000;
/// The tokenizer's memory over the pieces of its vocabulary: 12.4 MiB for 262,144.
const TOKENIZER_BYTES_PER_PIECE: u64 = 50;

/// What one way of running a model costs, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The weights, mapped.
    pub weights: Weights,
    /// The caches, full.
    pub kv: Kv,
    /// What is computed in.
    pub buffers: Buffers,
    /// The towers for images and sounds, mapped as the weights are, and what they compute in.
    pub towers: u64,
    /// The drafter, mapped as the weights are, with its cache and what it computes in.
    pub drafter: u64,
    /// The program.
    pub process: Process,
    /// Read from memory for each token that is decoded behind a full context, per sequence alone.
    pub decode_bytes: u64,
    /// Whether the context is more than the model was made for.
    pub is_beyond_context: bool,
}

impl Plan {
    /// What running a model of this shape with these weights costs.
    #[must_use]
    pub fn new(config: &Config, weights: &Weights, setup: &Setup) -> Plan {
        Plan {
            weights: *weights,
            kv: Kv::of(config, setup.kv_dtype, setup.context, setup.n_sequences),
            buffers: Buffers::of(config, weights.has_floats, setup),
            towers: setup.tower_bytes,
            drafter: setup.drafter.map_or(0, |drafter| drafter.total(setup)),
            process: Process {
                program: PROGRAM_BYTES,
                tokenizer: TOKENIZER_BYTES_PER_PIECE.saturating_mul(config.vocab_size as u64),
            },
            decode_bytes: decode_bytes(config, weights, setup.kv_dtype, setup.context),
            is_beyond_context: setup.context > config.context_len,
        }
    }

    /// Most memory that the run holds at a time.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.on_device()
            .saturating_add(self.process.program)
            .saturating_add(self.process.tokenizer)
    }

    /// What a GPU would have to hold of it: everything but the program and its tokenizer.
    #[must_use]
    pub fn on_device(&self) -> u64 {
        let parts = [
            self.weights.total(),
            self.kv.total(),
            self.buffers.total(),
            self.towers,
            self.drafter,
        ];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

/// Bytes that decoding one token of one sequence reads behind `depth` others: the weights once, and of every layer's
/// cache what it sees. Over a memory's bandwidth it is the least time of a token.
#[must_use]
pub fn decode_bytes(config: &Config, weights: &Weights, dtype: KvDType, depth: usize) -> u64 {
    let of_layer = |layer: &LayerConfig| {
        let span = layer.window.unwrap_or(depth).min(depth) as u64;
        let position = 2 * layer.n_kv_heads * dtype.bytes_for_row(layer.head_dim);
        span.saturating_mul(position as u64)
    };
    let cache = config.layers.iter().map(of_layer).fold(0, u64::saturating_add);
    weights.read_per_token(config).saturating_add(cache)
}

#[cfg(test)]
mod tests {
    use super::*;
    use carat_model::convert::Mix;

    fn setup(context: usize) -> Setup {
        Setup {
            context,
            n_sequences: 1,
            kv_dtype: KvDType::F16,
            n_threads: 2,
            has_tiles: false,
            max_batch_tokens: 512,
            precision: Precision::Int8,
            tower_bytes: 0,
            drafter: None,
        }
    }

    fn plan_of(size: &str, mix: Mix, setup: &Setup) -> Plan {
        let config = Config::published(size).unwrap();
        Plan::new(&config, &Weights::of_mix(&config, mix), setup)
    }

    /// 8 KiB a layer and position; 40 local layers of 1,024 positions, 8 global ones.
    #[test]
    fn local_layers_of_the_12b_hold_their_window_and_global_ones_everything() {
        let at = |n| plan_of("12B", Mix::Q4_0, &setup(n)).kv;
        let long = at(131_072);
        assert_eq!(long.global, 8 << 30);
        let window = 40 * 1024 * 8192;
        assert!((window..window * 5 / 4).contains(&long.local), "{}", long.local);
        assert_eq!(long.local, at(32_768).local);
        assert_eq!(at(1024).global, 8 * 1024 * 8192);
    }

    #[test]
    fn the_12b_in_q4_0_needs_its_file_its_cache_and_little_more() {
        let plan = plan_of("12B", Mix::Q4_0, &setup(8192));
        let beside = plan.peak() - plan.weights.total() - plan.kv.total();
        assert!((50_000_000..400_000_000).contains(&beside), "{beside}");
        assert!(
            plan.weights.total().abs_diff(6_886_958_912) < 5_000_000,
            "{plan:?}"
        );
    }

    #[test]
    fn everything_grows_with_what_it_depends_on() {
        let base = setup(4096);
        let plan = plan_of("1B", Mix::Q8_0, &base);
        let more = |change: &dyn Fn(&mut Setup)| {
            let mut changed = base;
            change(&mut changed);
            plan_of("1B", Mix::Q8_0, &changed)
        };
        let four = more(&|s| s.n_sequences = 4);
        assert_eq!(four.kv.total(), 4 * plan.kv.total());
        assert_eq!(four.decode_bytes, plan.decode_bytes);
        assert!(more(&|s| s.kv_dtype = KvDType::Q8_0).kv.total() < plan.kv.total() * 6 / 10);
        assert!(more(&|s| s.n_threads = 64).buffers.total() > plan.buffers.total());
        assert_eq!(
            more(&|s| s.max_batch_tokens = 1024).buffers.activations,
            2 * plan.buffers.activations
        );
        assert!(more(&|s| s.has_tiles = true).buffers.total() > plan.buffers.total());
        assert!(more(&|s| s.precision = Precision::Int16).buffers.products > plan.buffers.products);
        assert_eq!(
            more(&|s| s.tower_bytes = 900_000_000).peak(),
            plan.peak() + 900_000_000
        );
        assert!(more(&|s| s.context = 40_000).is_beyond_context && !plan.is_beyond_context);
    }

    #[test]
    fn decoding_reads_the_window_of_local_layers_and_all_of_global_ones() {
        let config = Config::published("270M").unwrap();
        let weights = Weights::of_mix(&config, Mix::Q8_0);
        let read = |depth| decode_bytes(&config, &weights, KvDType::F16, depth) - weights.tensors();
        assert_eq!(read(0), 0);
        assert_eq!(read(512), 18 * 512 * 1024);
        assert_eq!(read(8192), (15 * 512 + 3 * 8192) * 1024);
    }

    /// Of E2B's 35 layers 12 local and 3 global ones have keys and values: 6 KiB a token, and 6 MiB of windows.
    #[test]
    fn layers_that_share_take_no_cache() {
        let plan = plan_of("E2B", Mix::Q4_0, &setup(131_072));
        assert_eq!(plan.kv.global, 131_072 * 6 * 1024);
        let windows = 12 * 512 * 1024;
        assert!(
            (windows..windows * 5 / 4).contains(&plan.kv.local),
            "{}",
            plan.kv.local
        );
    }

    #[test]
    fn impossible_sizes_do_not_overflow() {
        let plan = plan_of(
            "27B",
            Mix::F32,
            &Setup {
                context: usize::MAX,
                n_sequences: usize::MAX,
                n_threads: usize::MAX,
                max_batch_tokens: usize::MAX,
                ..setup(1)
            },
        );
        assert_eq!(plan.peak(), u64::MAX);
    }
}
