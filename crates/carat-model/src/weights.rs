//! The tensors of a model by what they are for, whatever they are called in the file.
//!
//! What they are called is known in `names` alone. Every tensor of the file must find its place here, and
//! every place its tensor: what is missing or left over is reported by name, since a model with a forgotten
//! tensor runs and talks nonsense. Matrices stay mapped in their own format; norms become f32.

mod names;

use carat_format::TensorView;
use carat_kernels::dequantize;

use crate::Error;
use crate::backend::{Backend, ExpertMatrices};
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Experts, Family, KvSource, LayerConfig};
use names::{GateUp, Names, Place, Role, places};

pub use names::gguf_name;
pub(crate) use names::gguf_shapes;

/// A model's weights on a backend.
#[derive(Debug)]
pub(crate) struct Weights<B: Backend> {
    /// `[vocab_size, d_model]`
    pub(crate) embedding: B::Matrix,
    /// `[vocab_size, d_model]` where the file has a matrix of its own for the logits; else the embedding.
    pub(crate) head: Option<B::Matrix>,
    /// `[d_model]`
    pub(crate) final_norm: B::Vector,
    /// What makes the per-layer inputs, in models that have them.
    pub(crate) per_layer_inputs: Option<PerLayerInputs<B>>,
    pub(crate) layers: Vec<LayerWeights<B>>,
}

/// What makes the inputs that each layer has for the tokens themselves. All layers are in one row.
#[derive(Debug)]
pub(crate) struct PerLayerInputs<B: Backend> {
    /// `[vocab_size, L * width]`
    pub(crate) embedding: B::Matrix,
    /// `[L * width, d_model]`
    pub(crate) projection: B::Matrix,
    /// `[width]`
    pub(crate) norm: B::Vector,
}

/// One layer's weights. Matrices are `[out, in]`.
#[derive(Debug)]
pub(crate) struct LayerWeights<B: Backend> {
    pub(crate) attention_norm: B::Vector,
    pub(crate) q: B::Matrix,
    pub(crate) q_norm: B::Vector,
    /// `None` where the layer attends to another's keys and values.
    pub(crate) kv: Option<KvWeights<B>>,
    pub(crate) o: B::Matrix,
    pub(crate) post_attention_norm: B::Vector,
    pub(crate) mlp_norm: B::Vector,
    pub(crate) gate: B::Matrix,
    pub(crate) up: B::Matrix,
    pub(crate) down: B::Matrix,
    pub(crate) post_mlp_norm: B::Vector,
    pub(crate) experts: Option<ExpertWeights<B>>,
    pub(crate) per_layer: Option<PerLayerWeights<B>>,
    /// What the residual stream is multiplied with at the end of the layer.
    pub(crate) scalar: Option<f32>,
}

/// What makes a layer's keys and values.
#[derive(Debug)]
pub(crate) struct KvWeights<B: Backend> {
    pub(crate) k: B::Matrix,
    /// `None` where the values are the keys before their norm.
    pub(crate) v: Option<B::Matrix>,
    pub(crate) k_norm: B::Vector,
    /// All ones: values are normed without weights, where at all.
    pub(crate) v_norm: Option<B::Vector>,
}

/// The experts beside a layer's MLP.
#[derive(Debug)]
pub(crate) struct ExpertWeights<B: Backend> {
    /// Of the MLP's own result.
    pub(crate) post_dense_norm: B::Vector,
    /// `[experts, d_model]`
    pub(crate) router: B::Matrix,
    /// The router's scale of its input, times `d_model^-0.5`.
    pub(crate) router_norm: B::Vector,
    /// `[experts]`
    pub(crate) scale: B::Vector,
    /// Of the experts' input and result.
    pub(crate) norm: B::Vector,
    pub(crate) post_norm: B::Vector,
    pub(crate) matrices: ExpertMatrices<B>,
    /// Experts that a token goes to.
    pub(crate) n_used: usize,
}

/// What adds a layer's own input for the token.
#[derive(Debug)]
pub(crate) struct PerLayerWeights<B: Backend> {
    /// `[width, d_model]`
    pub(crate) gate: B::Matrix,
    /// `[d_model, width]`
    pub(crate) projection: B::Matrix,
    pub(crate) norm: B::Vector,
}

impl<B: Backend> Weights<B> {
    /// Finds every tensor, checks its shape and hands it to the backend.
    pub(crate) fn load(checkpoint: &Checkpoint, backend: &B) -> Result<Weights<B>, Error> {
        let config = checkpoint.config();
        let (names, places) = understood(checkpoint)?;
        let loader = Loader {
            checkpoint,
            names: &names,
            places: &places,
            backend,
        };
        let head = match names.head() {
            Some(name) => Some(backend.matrix(&tensor(checkpoint, name, &head_shape(config))?)?),
            None => None,
        };
        let layers = (0..config.layers.len())
            .map(|i| loader.layer(i))
            .collect::<Result<Vec<_>, Error>>()?;
        let once = loader.at(None);
        Ok(Weights {
            embedding: once.matrix(Role::Embedding)?,
            head,
            final_norm: once.norm(Role::FinalNorm)?,
            per_layer_inputs: if config.per_layer_width > 0 {
                Some(PerLayerInputs {
                    embedding: once.matrix(Role::PerLayerEmbedding)?,
                    projection: once.matrix(Role::PerLayerInputProjection)?,
                    norm: once.norm(Role::PerLayerInputNorm)?,
                })
            } else {
                None
            },
            layers,
        })
    }
}

/// Whether loading would find every tensor of the text model in its shape, and none that it has no place for.
///
/// # Errors
/// [`Error::MissingTensors`], [`Error::UnknownTensors`], [`Error::TensorShape`], and tensors in formats that carat does not
/// read.
pub(crate) fn check(checkpoint: &Checkpoint) -> Result<(), Error> {
    let (names, places) = understood(checkpoint)?;
    for (layer, role, shape) in &places {
        tensor(checkpoint, &names.of(*layer, *role), shape)?;
    }
    if let Some(name) = names.head() {
        tensor(checkpoint, name, &head_shape(checkpoint.config()))?;
    }
    Ok(())
}

/// What the checkpoint calls its tensors, and which there are; all of them by name, and no others.
fn understood(checkpoint: &Checkpoint) -> Result<(Names, Vec<Place>), Error> {
    let names = Names::new(checkpoint);
    let places = places(checkpoint.config(), names.gate_up);
    names.check(checkpoint, &places)?;
    Ok((names, places))
}

/// Of a matrix of its own for the logits.
fn head_shape(config: &Config) -> [usize; 2] {
    [config.vocab_size, config.d_model]
}

/// The matrix called `name`, of shape `[out, in]`.
pub(crate) fn matrix<B: Backend>(
    checkpoint: &Checkpoint,
    backend: &B,
    name: &str,
    shape: [usize; 2],
) -> Result<B::Matrix, Error> {
    backend.matrix(&tensor(checkpoint, name, &shape)?)
}

struct Loader<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    names: &'a Names,
    places: &'a [Place],
    backend: &'a B,
}

/// The tensors of one layer, or those that are there once.
struct At<'a, B: Backend> {
    loader: &'a Loader<'a, B>,
    layer: Option<usize>,
    /// Where the layer's places begin: one search for all of them.
    places: &'a [Place],
}

impl<B: Backend> Loader<'_, B> {
    fn layer(&self, i: usize) -> Result<LayerWeights<B>, Error> {
        let config: &Config = self.checkpoint.config();
        let layer = &config.layers[i];
        let at = self.at(Some(i));
        let is_gemma4 = config.family == Family::Gemma4;
        Ok(LayerWeights {
            attention_norm: at.norm(Role::AttentionNorm)?,
            q: at.matrix(Role::Q)?,
            q_norm: at.norm(Role::QNorm)?,
            kv: if layer.owns_kv() {
                Some(self.kv(&at, layer, is_gemma4)?)
            } else {
                None
            },
            o: at.matrix(Role::O)?,
            post_attention_norm: at.norm(Role::PostAttentionNorm)?,
            mlp_norm: at.norm(Role::MlpNorm)?,
            gate: at.matrix(Role::Gate)?,
            up: at.matrix(Role::Up)?,
            down: at.matrix(Role::Down)?,
            post_mlp_norm: at.norm(Role::PostMlpNorm)?,
            experts: layer
                .experts
                .map(|experts| self.experts(&at, experts))
                .transpose()?,
            per_layer: if config.per_layer_width > 0 {
                Some(PerLayerWeights {
                    gate: at.matrix(Role::PerLayerGate)?,
                    projection: at.matrix(Role::PerLayerProjection)?,
                    norm: at.norm(Role::PerLayerNorm)?,
                })
            } else {
                None
            },
            scalar: if is_gemma4 {
                at.values(Role::Scalar)?.first().copied()
            } else {
                None
            },
        })
    }

    fn kv(&self, at: &At<'_, B>, layer: &LayerConfig, norms_values: bool) -> Result<KvWeights<B>, Error> {
        Ok(KvWeights {
            k: at.matrix(Role::K)?,
            v: if layer.kv == KvSource::Own {
                Some(at.matrix(Role::V)?)
            } else {
                None
            },
            k_norm: at.norm(Role::KNorm)?,
            v_norm: norms_values.then(|| self.backend.vector(vec![1.0; layer.head_dim])),
        })
    }

    fn experts(&self, at: &At<'_, B>, experts: Experts) -> Result<ExpertWeights<B>, Error> {
        let root = (self.checkpoint.config().d_model as f32).powf(-0.5);
        let scale = at
            .values(Role::RouterScale)?
            .into_iter()
            .map(|w| w * root)
            .collect();
        let (gate, up) = match self.names.gate_up {
            GateUp::Together => (at.matrix(Role::ExpertGateUp)?, None),
            GateUp::Apart => (at.matrix(Role::ExpertGate)?, Some(at.matrix(Role::ExpertUp)?)),
        };
        Ok(ExpertWeights {
            post_dense_norm: at.norm(Role::PostDenseNorm)?,
            router: at.matrix(Role::Router)?,
            router_norm: self.backend.vector(scale),
            scale: self.backend.vector(at.values(Role::ExpertScale)?),
            norm: at.norm(Role::ExpertNorm)?,
            post_norm: at.norm(Role::PostExpertNorm)?,
            matrices: ExpertMatrices {
                gate,
                up,
                down: at.matrix(Role::ExpertDown)?,
                d_ff: experts.d_ff,
            },
            n_used: experts.n_used,
        })
    }

    fn at(&self, layer: Option<usize>) -> At<'_, B> {
        // Places are in the order of layers, those without one first.
        let first = self.places.partition_point(|place| place.0 < layer);
        At {
            loader: self,
            layer,
            places: &self.places[first..],
        }
    }
}

fn tensor<'a>(checkpoint: &'a Checkpoint, name: &str, shape: &[usize]) -> Result<TensorView<'a>, Error> {
    let path = || checkpoint.path().to_owned();
    let Some(tensor) = checkpoint.tensor(name)? else {
        return Err(Error::MissingTensors {
            path: path(),
            names: vec![name.to_owned()],
        });
    };
    if tensor.shape != shape {
        return Err(Error::TensorShape {
            path: path(),
            name: name.to_owned(),
            expected: shape.to_vec(),
            found: tensor.shape.to_vec(),
        });
    }
    Ok(tensor)
}

impl<B: Backend> At<'_, B> {
    fn tensor(&self, role: Role) -> Result<TensorView<'_>, Error> {
        let place = self.places.iter().find(|place| place.1 == role);
        let shape = place.map_or(&[][..], |place| &place.2);
        tensor(
            self.loader.checkpoint,
            &self.loader.names.of(self.layer, role),
            shape,
        )
    }

    fn matrix(&self, role: Role) -> Result<B::Matrix, Error> {
        self.loader.backend.matrix(&self.tensor(role)?)
    }

    fn values(&self, role: Role) -> Result<Vec<f32>, Error> {
        let tensor = self.tensor(role)?;
        let mut values = vec![0.0; tensor.n_elements()];
        dequantize(tensor.dtype, tensor.bytes, &mut values).map_err(|source| Error::Tensor {
            name: tensor.name.to_owned(),
            source,
        })?;
        Ok(values)
    }

    fn norm(&self, role: Role) -> Result<B::Vector, Error> {
        let mut values = self.values(role)?;
        let is_gemma3 = self.loader.checkpoint.config().family == Family::Gemma3;
        if is_gemma3 && self.loader.names.prefix.is_some() {
            // Gemma 3 safetensors hold the weight less one; the sum is taken in f32, as the reference does.
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(self.loader.backend.vector(values))
    }
}
