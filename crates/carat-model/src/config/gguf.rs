//! A configuration from the keys of a GGUF file: Gemma 3, and which other file of this folder reads the rest.

mod gemma4;

use std::borrow::Cow;
use std::path::Path;

use carat_format::{Gguf, Metadata};
use carat_kernels::DType;

pub(crate) use gemma4::{ROPE_FACTORS, SEES_SPANS, usually_sees_spans};

use super::{Config, Gemma3Sizes, Rope, every_nth_global};
use crate::Error;

/// Layers of the 27B, whose scores are scaled by 168^-0.5 instead of head_dim^-0.5. Files do not say so.
const LAYERS_OF_27B: usize = 62;

/// What a configuration is read from: a GGUF file, or what is to become one.
pub(crate) trait GgufHead {
    /// The keys.
    fn metadata(&self) -> &Metadata;

    /// The shape of a tensor, outermost first; `None` where there is no such tensor.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// The numbers of a tensor, as they are stored.
    ///
    /// # Errors
    /// A format that carat does not read.
    fn values(&self, name: &str) -> Result<Option<(DType, &[u8])>, Error>;
}

impl GgufHead for Gguf {
    fn metadata(&self) -> &Metadata {
        self.metadata()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        let info = self.infos().find(|info| info.name == name)?;
        Some(info.shape)
    }

    fn values(&self, name: &str) -> Result<Option<(DType, &[u8])>, Error> {
        let tensor = self.tensor(name).transpose()?;
        Ok(tensor.map(|tensor| (tensor.dtype, tensor.bytes)))
    }
}

impl Config {
    /// Reads the configuration of an opened GGUF file.
    ///
    /// # Errors
    /// [`Error::Architecture`] for another model, [`Error::MissingField`] and [`Error::BadField`] for sizes
    /// that are missing or impossible.
    pub fn from_gguf(gguf: &Gguf, path: &Path) -> Result<Config, Error> {
        Config::from_head(gguf, path)
    }

    /// As [`Config::from_gguf`], also of what is not a file yet.
    pub(crate) fn from_head(gguf: &dyn GgufHead, path: &Path) -> Result<Config, Error> {
        let keys = Keys {
            metadata: gguf.metadata(),
            path,
            is_drafter: false,
        };
        let architecture = keys.metadata.str("general.architecture")?.unwrap_or("(none)");
        if architecture == "gemma4" {
            return gemma4::read(gguf, &keys);
        }
        if architecture != "gemma3" {
            return Err(Error::Architecture {
                path: path.to_owned(),
                architecture: architecture.to_owned(),
            });
        }
        let n_layers = keys.required("gemma3.block_count")?;
        let (n_heads, n_kv_heads) = keys.heads(n_layers)?;
        let head_dim = keys.usize("gemma3.attention.key_length")?.unwrap_or(256);
        if keys
            .usize("gemma3.attention.value_length")?
            .is_some_and(|n| n != head_dim)
        {
            return Err(keys.bad("gemma3.attention.value_length", "the key length"));
        }
        let scale_of = if n_layers == LAYERS_OF_27B {
            168.0
        } else {
            head_dim as f32
        };
        let sizes = Gemma3Sizes {
            n_layers,
            d_model: keys.required("gemma3.embedding_length")?,
            d_ff: keys.required("gemma3.feed_forward_length")?,
            n_heads,
            n_kv_heads,
            head_dim,
            vocab_size: vocabulary_rows(gguf),
            context_len: keys.required("gemma3.context_length")?,
            window: keys.required("gemma3.attention.sliding_window")?,
            norm_eps: keys
                .f32("gemma3.attention.layer_norm_rms_epsilon")?
                .unwrap_or(1e-6),
            score_scale: keys
                .f32("gemma3.attention.scale")?
                .unwrap_or(1.0 / scale_of.sqrt()),
            local_rope: Rope {
                theta: keys.local_theta()?,
                scaling: 1.0,
                n_turning: None,
            },
            global_rope: Rope {
                theta: keys.f32("gemma3.rope.freq_base")?.unwrap_or(1e6),
                scaling: keys.scaling([
                    "gemma3.rope.scaling.type",
                    "gemma3.rope.scaling.factor",
                    "gemma3.rope.scale_linear",
                ])?,
                n_turning: None,
            },
            is_global: keys.pattern(n_layers)?,
        };
        sizes.into_config(path)
    }
}

/// The configuration of a drafter's layers, as if they had keys and values of their own, and the width of the model
/// that it drafts for.
pub(super) fn read_drafter(gguf: &Gguf, path: &Path) -> Result<(Config, usize), Error> {
    let keys = Keys {
        metadata: gguf.metadata(),
        path,
        is_drafter: true,
    };
    let architecture = keys.metadata.str("general.architecture")?.unwrap_or("(none)");
    if architecture != DRAFTER {
        return Err(Error::NoDrafter {
            path: path.to_owned(),
            architecture: architecture.to_owned(),
        });
    }
    let d_target = keys.required("gemma4.embedding_length_out")?;
    Ok((gemma4::read(gguf, &keys)?, d_target))
}

/// Rows of the embedding; 0, which is refused as a vocabulary size, when there is none.
fn vocabulary_rows(gguf: &dyn GgufHead) -> usize {
    let shape = gguf.shape("token_embd.weight");
    shape.and_then(|shape| shape.first().copied()).unwrap_or(0)
}

/// Typed access that knows the file for its errors.
struct Keys<'a> {
    metadata: &'a Metadata,
    path: &'a Path,
    /// Whether the keys of Gemma 4 begin with its drafters' architecture.
    is_drafter: bool,
}

/// The architecture of Gemma 4's drafters.
const DRAFTER: &str = "gemma4-assistant";

impl Keys<'_> {
    /// The key as this file has it.
    fn name(&self, key: &'static str) -> Cow<'static, str> {
        match key.strip_prefix("gemma4.") {
            Some(rest) if self.is_drafter => format!("{DRAFTER}.{rest}").into(),
            _ => key.into(),
        }
    }

    fn usize(&self, key: &'static str) -> Result<Option<usize>, Error> {
        Ok(self.metadata.u32(&self.name(key))?.map(|value| value as usize))
    }

    fn f32(&self, key: &'static str) -> Result<Option<f32>, Error> {
        Ok(self.metadata.f32(&self.name(key))?)
    }

    fn required(&self, field: &'static str) -> Result<usize, Error> {
        self.usize(field)?.ok_or_else(|| Error::MissingField {
            path: self.path.to_owned(),
            field,
        })
    }

    fn bad(&self, field: &'static str, expected: &'static str) -> Error {
        let value = self
            .metadata
            .get(&self.name(field))
            .map_or_else(|| "nothing".to_owned(), |value| format!("{value:?}"));
        Error::BadField {
            path: self.path.to_owned(),
            field,
            value,
            expected,
        }
    }

    /// Linear scaling of the global rope, from the keys of its kind, of its factor and of the factor's older name. Local
    /// ropes have none. A file that names no kind means linear, as in llama.cpp.
    fn scaling(&self, [kind, factor, older]: [&'static str; 3]) -> Result<f32, Error> {
        match self.metadata.str(&self.name(kind))? {
            Some("linear") | None => Ok(match self.f32(factor)? {
                Some(factor) => factor,
                None => self.f32(older)?.unwrap_or(1.0),
            }),
            Some("none") => Ok(1.0),
            Some(_) => Err(self.bad(kind, "linear or none")),
        }
    }

    /// Query and KV heads. Old Ollama conversions leave them out: then the published model of that depth.
    fn heads(&self, n_layers: usize) -> Result<(usize, usize), Error> {
        let given = (
            self.usize("gemma3.attention.head_count")?,
            self.usize("gemma3.attention.head_count_kv")?,
        );
        match (given, n_layers) {
            ((Some(heads), Some(kv_heads)), _) => Ok((heads, kv_heads)),
            (_, 18 | 26) => Ok((4, 1)),
            (_, 34) => Ok((8, 4)),
            (_, 48) => Ok((16, 8)),
            (_, LAYERS_OF_27B) => Ok((32, 16)),
            _ => Err(Error::MissingField {
                path: self.path.to_owned(),
                field: "gemma3.attention.head_count",
            }),
        }
    }

    /// Local rope base: rarely written; 10,000 in every Gemma 3. Ollama and newer converters name it each
    /// their own way.
    fn local_theta(&self) -> Result<f32, Error> {
        let newer = self.f32("gemma3.rope.freq_base_swa")?;
        Ok(match newer {
            Some(theta) => theta,
            None => self.f32("gemma3.rope.local.freq_base")?.unwrap_or(1e4),
        })
    }

    /// Which layers are global. Absent in most files: then every sixth. An array says which are local.
    fn pattern(&self, n_layers: usize) -> Result<Vec<bool>, Error> {
        const KEY: &str = "gemma3.attention.sliding_window_pattern";
        match self.metadata.get(KEY) {
            None => Ok(every_nth_global(n_layers, 6)),
            Some(carat_format::Value::Array(_)) => {
                let local = self.metadata.bools(KEY)?.unwrap_or_default();
                Ok(local.into_iter().map(|is_local| !is_local).collect())
            }
            Some(_) => Ok(every_nth_global(n_layers, self.usize(KEY)?.unwrap_or(6))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carat_format::Value;

    #[test]
    fn a_rope_is_scaled_as_llama_cpp_reads_it() {
        const KIND: &str = "gemma3.rope.scaling.type";
        const FACTOR: &str = "gemma3.rope.scaling.factor";
        const OLDER: &str = "gemma3.rope.scale_linear";
        let path = Path::new("m.gguf");
        let read = |entries: &[(&str, Value)]| {
            let entries = entries
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()));
            let metadata = Metadata::from_entries(path, entries).unwrap();
            let keys = Keys {
                metadata: &metadata,
                path,
                is_drafter: false,
            };
            keys.scaling([KIND, FACTOR, OLDER]).ok()
        };
        let kind = |name: &str| (KIND, Value::from(name));
        let (factor, older) = ((FACTOR, Value::F32(8.0)), (OLDER, Value::F32(4.0)));
        assert_eq!(read(&[]), Some(1.0));
        assert_eq!(read(&[kind("linear"), factor.clone()]), Some(8.0));
        assert_eq!(
            read(std::slice::from_ref(&factor)),
            Some(8.0),
            "no kind is linear"
        );
        assert_eq!(read(std::slice::from_ref(&older)), Some(4.0));
        assert_eq!(read(&[factor.clone(), older]), Some(8.0));
        assert_eq!(read(&[kind("none"), factor.clone()]), Some(1.0));
        assert_eq!(read(&[kind("yarn"), factor]), None);
    }
}
