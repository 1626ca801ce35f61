//! A sequence's cache in a file, so that a long prompt is not computed again after a restart.
//!
//! ```text
//! "caratkv1" | owner [32] | tokens u64 | high u64 | layers u64 | pages of each layer u64
//! token ids u32 ... | pages as they are in memory, layer by layer | SHA-256 of all before [32]
//! ```
//!
//! Numbers are little-endian. `owner` is a digest of the model, its settings and how it is run: keys and values of
//! other weights, of weights that are used otherwise, or in another format, mean nothing. A file is believed only when its digest is right, and no length
//! in it is believed before it has been held against what the model and the wanted context allow.

use std::io::{self, Read, Write};
use std::sync::Arc;

use carat_kernels::attention::{KvDType, KvPage};
use sha2::{Digest, Sha256};

use crate::checkpoint::Container;
use crate::fingerprint::{fingerprint, short};
use crate::kv_cache::KvCache;
use crate::{Checkpoint, Config, Error, Model, SequenceCache};

const MAGIC: &[u8; 8] = b"caratkv1";
/// Counted up when carat begins to compute other keys and values from the same model, by more than rounding.
const ARITHMETIC: u32 = 1;

/// Writes and reads the caches of one model, run in one way.
#[derive(Clone, Debug)]
pub struct CacheFiles {
    owner: [u8; 32],
    config: Config,
    kv_dtype: KvDType,
}

impl CacheFiles {
    /// For caches that `model`, loaded from `checkpoint`, makes. Reads a little of every tensor.
    #[must_use]
    pub fn new(checkpoint: &Checkpoint, model: &Model) -> CacheFiles {
        let (config, options) = (model.config(), model.options());
        // The same tensors with another window or rope give other keys and values.
        let settings = format!(
            "{ARITHMETIC} {config:?} {:?} {}",
            options.precision, options.kv_dtype
        );
        CacheFiles {
            owner: match checkpoint.container() {
                Container::Gguf(files) => fingerprint(&settings, files.infos(), files.tensors()),
                Container::HuggingFace(files) => fingerprint(&settings, files.infos(), files.tensors()),
            },
            config: config.clone(),
            kv_dtype: options.kv_dtype,
        }
    }

    /// Eight bytes that tell the owners of files apart in their names.
    #[must_use]
    pub fn owner_id(&self) -> u64 {
        short(&self.owner)
    }

    /// Writes a cache and the `tokens` that it holds. What a drafter keeps is left out.
    ///
    /// # Errors
    /// Those of `to`.
    ///
    /// # Panics
    /// When there are not as many tokens as are cached.
    pub fn write(&self, tokens: &[u32], cache: &KvCache, to: &mut dyn Write) -> io::Result<()> {
        let (layers, high) = cache.saved_state();
        assert_eq!(tokens.len(), cache.len(), "the tokens are not those of the cache");
        let mut to = Hashed::new(to);
        to.write_all(MAGIC)?;
        to.write_all(&self.owner)?;
        let n_pages = layers.iter().map(|pages| pages.len());
        for n in [tokens.len(), high, layers.len()].into_iter().chain(n_pages) {
            to.write_all(&(n as u64).to_le_bytes())?;
        }
        for token in tokens {
            to.write_all(&token.to_le_bytes())?;
        }
        for page in layers.iter().copied().flatten() {
            to.write_all(page.as_bytes())?;
        }
        let digest = to.digest();
        to.inner.write_all(&digest)
    }

    /// Reads what [`CacheFiles::write`] wrote: the tokens, and a cache of them that has room for `max_tokens`.
    ///
    /// # Errors
    /// [`Error::SavedCache`] when the file is none, is damaged, belongs to another model or holds more tokens than there
    /// is room for; [`Error::SavedCacheUnread`] when the system gives another error than the file's end;
    /// [`Error::CacheMemory`] when memory cannot be had.
    pub fn read(&self, max_tokens: usize, from: &mut dyn Read) -> Result<(Vec<u32>, KvCache), Error> {
        let mut from = Hashed::new(from);
        let head = self.read_head(max_tokens, &mut from)?;
        let mut cache = KvCache::new(&self.config, self.kv_dtype, max_tokens);
        cache.fill_pages(&head, |page| {
            from.read_exact(page.as_bytes_mut()).map_err(unreadable)
        })?;
        let digest = from.digest();
        let mut written = [0; 32];
        from.inner.read_exact(&mut written).map_err(unreadable)?;
        if written != digest {
            return Err(refused("its digest is wrong, so it is damaged"));
        }
        Ok((head.tokens, cache))
    }

    /// The tokens alone, from the begin of a file; what follows is not looked at.
    ///
    /// # Errors
    /// As [`CacheFiles::read`].
    pub fn read_tokens(&self, max_tokens: usize, from: &mut dyn Read) -> Result<Vec<u32>, Error> {
        Ok(self.read_head(max_tokens, &mut Hashed::new(from))?.tokens)
    }

    fn read_head(&self, max_tokens: usize, from: &mut Hashed<&mut dyn Read>) -> Result<Head, Error> {
        if &from.array::<8>()? != MAGIC {
            return Err(refused("it is no file of carat's"));
        }
        if from.array::<32>()? != self.owner {
            return Err(refused(
                "it belongs to another model or version of carat, or to other settings of --dtype and --kv-type",
            ));
        }
        let (n_tokens, high, n_layers) = (from.number()?, from.number()?, from.number()?);
        if n_tokens >= max_tokens || n_tokens > high {
            let reason = format!("it holds {n_tokens} tokens, and there is room for {max_tokens}");
            return Err(refused(&reason));
        }
        if n_layers != self.config.layers.len() {
            return Err(refused("it has another number of layers"));
        }
        let n_pages = (0..n_layers)
            .map(|_| from.number())
            .collect::<Result<_, Error>>()?;
        let mut tokens = Vec::new();
        for _ in 0..n_tokens {
            tokens.push(u32::from_le_bytes(from.array()?));
        }
        Ok(Head {
            tokens,
            high,
            n_pages,
        })
    }
}

/// What a file says before its pages.
struct Head {
    tokens: Vec<u32>,
    high: usize,
    n_pages: Vec<usize>,
}

impl KvCache {
    /// Gives an empty cache the pages that `head` tells of, filled by `fill`.
    fn fill_pages(
        &mut self,
        head: &Head,
        mut fill: impl FnMut(&mut KvPage) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let len = head.tokens.len();
        for (layer, &n) in head.n_pages.iter().enumerate() {
            if !self.may_have_pages(layer, len, head.high, n) {
                return Err(refused("its pages are not those of so many tokens"));
            }
            let shape = *self.shape(layer);
            for _ in 0..n {
                let mut page = KvPage::new(&shape).ok_or(Error::CacheMemory {
                    n_tokens: len,
                    bytes: shape.page_bytes().unwrap_or(usize::MAX),
                })?;
                fill(&mut page)?;
                self.push_page(layer, Arc::new(page));
            }
        }
        self.set_state(len, head.high);
        Ok(())
    }
}

fn refused(reason: &str) -> Error {
    Error::SavedCache {
        reason: reason.to_owned(),
    }
}

fn unreadable(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => refused("it ends too early"),
        _ => Error::SavedCacheUnread { source: error },
    }
}

/// A stream whose bytes are digested as they pass.
struct Hashed<T> {
    inner: T,
    digest: Sha256,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            digest: Sha256::new(),
        }
    }

    fn digest(&self) -> [u8; 32] {
        self.digest.clone().finalize().into()
    }
}

impl Write for Hashed<&mut dyn Write> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.digest.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Read for Hashed<&mut dyn Read> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(to)?;
        self.digest.update(&to[..n]);
        Ok(n)
    }
}

impl Hashed<&mut dyn Read> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes).map_err(unreadable)?;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<usize, Error> {
        let number = u64::from_le_bytes(self.array()?);
        usize::try_from(number).map_err(|_| refused("a length in it is beyond all bounds"))
    }
}
