//! The forward pass of Gemma 3, over any [`Backend`].
//!
//! ```text
//! embed * sqrt(d_model) → for each layer { norm → q,k,v → norm and rotate q,k → attention → o → norm → add
//!                                          norm → gate,up → gelu(gate) * up → down → norm → add }
//!                       → wanted rows → final norm → logits (tied to the embedding)
//! ```
//!
//! After the reference's `modeling_gemma3`: norms before and after both halves of a layer, per-head norms of
//! queries and keys, five local layers to a global one. What differs between layers is in their
//! [`crate::LayerConfig`].

use crate::backend::{AttentionShape, Backend, Sequence};
use crate::weights::{LayerWeights, Weights};
use crate::{Config, Error};

/// All activations of a pass; allocated once, viewed at the present size.
pub(crate) struct Buffers<B: Backend> {
    /// The residual stream `[T, d_model]`.
    x: B::Buffer,
    normed: B::Buffer,
    q: B::Buffer,
    k: B::Buffer,
    v: B::Buffer,
    attended: B::Buffer,
    projected: B::Buffer,
    gate: B::Buffer,
    up: B::Buffer,
    last: B::Buffer,
    logits: B::Buffer,
    angles: Vec<B::Angles>,
    hidden: Vec<f32>,
}

impl<B: Backend> Default for Buffers<B> {
    fn default() -> Buffers<B> {
        Buffers {
            x: B::Buffer::default(),
            normed: B::Buffer::default(),
            q: B::Buffer::default(),
            k: B::Buffer::default(),
            v: B::Buffer::default(),
            attended: B::Buffer::default(),
            projected: B::Buffer::default(),
            gate: B::Buffer::default(),
            up: B::Buffer::default(),
            last: B::Buffer::default(),
            logits: B::Buffer::default(),
            angles: Vec::new(),
            hidden: Vec::new(),
        }
    }
}

/// One pass: the tokens of all sequences one after another.
pub(crate) struct Pass<'a, 'b, C> {
    pub(crate) tokens: &'a [u32],
    pub(crate) positions: &'a [usize],
    /// Rows of `d_model` that take the place of embedded tokens, with the index of the first.
    pub(crate) media: &'a [(usize, &'a [f32])],
    pub(crate) sequences: &'a mut [Sequence<'b, C>],
    /// Indexes of the rows whose logits are wanted.
    pub(crate) wanted: &'a [usize],
}

/// Sees the residual stream: index 0 after the embedding, `i` after layer `i`, and last the wanted rows after
/// the final norm. Rows of `d_model`.
pub type Observer<'a> = dyn FnMut(usize, &[f32]) + 'a;

/// Runs a pass; `logits` becomes `[wanted, vocab_size]`.
pub(crate) fn forward<B: Backend>(
    backend: &mut B,
    config: &Config,
    weights: &Weights<B>,
    buffers: &mut Buffers<B>,
    pass: &mut Pass<'_, '_, B::Cache>,
    logits: &mut Vec<f32>,
    mut observer: Option<&mut Observer<'_>>,
) -> Result<(), Error> {
    buffers.angles.resize_with(config.ropes.len(), B::Angles::default);
    for (i, (rope, angles)) in config.ropes.iter().zip(&mut buffers.angles).enumerate() {
        if let Some(layer) = config.layers.iter().find(|layer| layer.rope == i) {
            backend.angles(rope, layer.head_dim, pass.positions, angles);
        }
    }
    backend.embed(
        &weights.embedding,
        pass.tokens,
        config.embed_scale,
        &mut buffers.x,
    )?;
    for (first, rows) in pass.media {
        backend.replace_rows(&mut buffers.x, *first, rows);
    }
    let n_layers = config.layers.len();
    for i in 0..n_layers {
        observe::<B>(backend, &buffers.x, &mut buffers.hidden, i, &mut observer);
        attention(backend, config, i, &weights.layers[i], buffers, pass.sequences);
        mlp(backend, config, &weights.layers[i], buffers);
    }
    backend.advance(pass.sequences);
    if pass.wanted.is_empty() {
        logits.clear();
        return Ok(());
    }
    let b = buffers;
    backend.gather(&b.x, pass.wanted, &mut b.last);
    backend.norm(&b.last, &weights.final_norm, config.norm_eps, &mut b.normed);
    observe::<B>(backend, &b.normed, &mut b.hidden, n_layers, &mut observer);
    let head = weights.head.as_ref().unwrap_or(&weights.embedding);
    backend.multiply(&b.normed, &mut [(head, &mut b.logits)]);
    backend.take(&mut b.logits, logits);
    Ok(())
}

fn observe<B: Backend>(
    backend: &B,
    x: &B::Buffer,
    copy: &mut Vec<f32>,
    i: usize,
    observer: &mut Option<&mut Observer<'_>>,
) {
    if let Some(observer) = observer {
        backend.read(x, copy);
        observer(i, copy);
    }
}

/// The first half of layer `i`.
fn attention<B: Backend>(
    backend: &mut B,
    config: &Config,
    i: usize,
    w: &LayerWeights<B>,
    b: &mut Buffers<B>,
    sequences: &mut [Sequence<'_, B::Cache>],
) {
    let (layer, eps) = (&config.layers[i], config.norm_eps);
    let shape = AttentionShape {
        layer,
        score_scale: config.score_scale,
    };
    let angles = &b.angles[layer.rope];
    backend.norm(&b.x, &w.attention_norm, eps, &mut b.normed);
    backend.multiply(
        &b.normed,
        &mut [(&w.q, &mut b.q), (&w.k, &mut b.k), (&w.v, &mut b.v)],
    );
    backend.norm_rotate(&mut b.q, &w.q_norm, eps, layer.head_dim, angles);
    backend.norm_rotate(&mut b.k, &w.k_norm, eps, layer.head_dim, angles);
    backend.attend(
        i,
        &shape,
        [&mut b.q, &mut b.k, &mut b.v],
        sequences,
        &mut b.attended,
    );
    backend.multiply(&b.attended, &mut [(&w.o, &mut b.projected)]);
    backend.add_norm(&mut b.x, &b.projected, &w.post_attention_norm, eps);
}

/// The second half of a layer.
fn mlp<B: Backend>(backend: &mut B, config: &Config, w: &LayerWeights<B>, b: &mut Buffers<B>) {
    let eps = config.norm_eps;
    backend.norm(&b.x, &w.mlp_norm, eps, &mut b.normed);
    backend.multiply(&b.normed, &mut [(&w.gate, &mut b.gate), (&w.up, &mut b.up)]);
    backend.gelu_mul(&mut b.gate, &b.up);
    backend.multiply(&b.gate, &mut [(&w.down, &mut b.projected)]);
    backend.add_norm(&mut b.x, &b.projected, &w.post_mlp_norm, eps);
}
