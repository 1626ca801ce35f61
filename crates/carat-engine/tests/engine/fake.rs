//! A model without weights: its logits are a function of the tokens seen, given as a closure.

use carat_model::{
    DraftSegment, LanguageModel, LogitRows, MediaSpan, Segment, SequenceCache, SpanAttention, TokenLogit,
};
use carat_text::{GgufVocabulary, Tokenizer};

/// The cache remembers the tokens; with a window it refuses to go back further than that.
#[derive(Debug)]
pub(crate) struct FakeCache {
    pub(crate) tokens: Vec<u32>,
    max_tokens: usize,
    window: usize,
}

impl SequenceCache for FakeCache {
    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn truncate(&mut self, len: usize) -> bool {
        let possible = len == 0 || len + self.window >= self.tokens.len();
        if possible {
            self.tokens.truncate(len);
        }
        possible
    }

    fn fork(&self, len: usize) -> Option<Self> {
        let possible = len <= self.tokens.len() && (len == 0 || len + self.window >= self.tokens.len());
        possible.then(|| FakeCache {
            tokens: self.tokens[..len].to_vec(),
            ..*self
        })
    }

    fn visit_memory(&self, visit: &mut dyn FnMut(usize, usize)) {
        // Nothing is shared: each cache is one piece, named by where its tokens lie.
        visit(self.tokens.as_ptr().addr(), self.tokens.len());
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct FakeError(pub String);

/// Row of logits for a sequence that begins with these tokens.
pub(crate) type Predict = Box<dyn Fn(&[u32]) -> Vec<f32> + Send>;

/// Guesses after a sequence of tokens.
pub(crate) type Drafter = Box<dyn FnMut(&[u32], usize) -> Vec<u32> + Send>;

pub(crate) struct FakeModel {
    pub(crate) predict: Predict,
    pub(crate) vocab_size: usize,
    pub(crate) max_batch_tokens: usize,
    /// Rows of a pass that are computed as one alone.
    pub(crate) n_alike_rows: usize,
    pub(crate) window: usize,
    /// Tokens of each forward call.
    pub(crate) calls: Vec<usize>,
    /// `[rows, 2]` of the last pass: the token and 1.
    pub(crate) hidden: Vec<f32>,
    /// Most of the largest logits that it gives alone.
    pub(crate) max_top: usize,
    /// Those of the last pass.
    pub(crate) top: Vec<Vec<TokenLogit>>,
    /// Guesses so many tokens after these.
    pub(crate) drafter: Option<Drafter>,
    /// The call with this number fails.
    pub(crate) fails_at: Option<usize>,
    /// Calls with this token fail.
    pub(crate) refuses: Option<u32>,
}

impl FakeModel {
    pub(crate) fn new(vocab_size: usize, predict: impl Fn(&[u32]) -> Vec<f32> + Send + 'static) -> Self {
        Self {
            predict: Box::new(predict),
            vocab_size,
            max_batch_tokens: 8,
            n_alike_rows: usize::MAX,
            window: usize::MAX / 2,
            calls: Vec::new(),
            hidden: Vec::new(),
            max_top: 100,
            top: Vec::new(),
            drafter: None,
            fails_at: None,
            refuses: None,
        }
    }

    /// Says `script` after a prompt of `n_prompt` tokens, then `<eos>` for ever.
    pub(crate) fn scripted(n_prompt: usize, script: Vec<u32>) -> Self {
        Self::new(N_PIECES, move |seen| {
            let next = script
                .get(seen.len().wrapping_sub(n_prompt))
                .copied()
                .unwrap_or(EOS);
            (0..N_PIECES)
                .map(|id| if id == next as usize { 5.0 } else { 0.0 })
                .collect()
        })
    }

    /// Logits that depend on every token seen: a wrong cache, order or position changes the answer.
    pub(crate) fn chaotic() -> Self {
        Self::new(N_PIECES, |seen| {
            let mut hash = seen
                .iter()
                .fold(17u64, |h, &t| (h ^ u64::from(t)).wrapping_mul(0x100_0000_01b3));
            (0..N_PIECES)
                .map(|_| {
                    hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (hash >> 40) as f32 / 2e6
                })
                .collect()
        })
    }
}

impl LanguageModel for FakeModel {
    type Cache = FakeCache;
    type Error = FakeError;

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_len(&self) -> usize {
        1000
    }

    fn max_batch_tokens(&self) -> usize {
        self.max_batch_tokens
    }

    fn new_cache(&self, max_tokens: usize) -> Result<FakeCache, FakeError> {
        if max_tokens > self.context_len() {
            return Err(FakeError(format!("no cache of {max_tokens} tokens")));
        }
        Ok(FakeCache {
            tokens: Vec::new(),
            max_tokens,
            window: self.window,
        })
    }

    fn cache_bytes(&self, n_tokens: usize) -> usize {
        n_tokens
    }

    fn n_alike_rows(&self) -> usize {
        self.n_alike_rows
    }

    fn drafts(&self) -> bool {
        self.drafter.is_some()
    }

    fn draft(&mut self, batch: &mut [DraftSegment<'_, FakeCache>]) -> Result<(), FakeError> {
        for segment in batch {
            let (last, cached) = segment.tokens.split_last().unwrap();
            assert!(*last != 0 && segment.cache.tokens.len() == cached.len());
            let drafter = self.drafter.as_mut().unwrap();
            segment.guesses.extend(drafter(segment.tokens, segment.n));
        }
        Ok(())
    }

    fn forward(
        &mut self,
        batch: &mut [Segment<'_, FakeCache>],
        logits: &mut Vec<f32>,
    ) -> Result<(), FakeError> {
        if self.fails_at == Some(self.calls.len()) {
            self.calls.push(0);
            return Err(FakeError("the fake failed as asked".to_string()));
        }
        let mut tokens = batch.iter().flat_map(|segment| segment.tokens);
        if tokens.any(|token| self.refuses == Some(*token)) {
            return Err(FakeError("the fake refuses a token".to_string()));
        }
        let n_tokens: usize = batch.iter().map(|segment| segment.tokens.len()).sum();
        let images = batch.iter().flat_map(|segment| segment.media);
        let images = images.filter(|span| span.attention == SpanAttention::Bidirectional);
        // A fake row is one number; an image's rows say how many they are, so that a cut shows.
        let of_images =
            images.inspect(|span| assert_eq!(span.rows.len(), span.rows[0] as usize, "an image is cut"));
        let n_in_images: usize = of_images.map(|span| span.rows.len()).sum();
        assert!(
            n_tokens <= self.max_batch_tokens + n_in_images,
            "batch of {n_tokens}"
        );
        self.calls.push(n_tokens);
        self.hidden.clear();
        self.top.clear();
        logits.clear();
        for segment in batch {
            assert!(!segment.tokens.is_empty());
            for (i, &token) in segment.tokens.iter().enumerate() {
                let row = |span: &MediaSpan<'_>| span.rows.get(i.wrapping_sub(span.start)).copied();
                let row = segment.media.iter().find_map(row);
                segment
                    .cache
                    .tokens
                    .push(row.map_or(token, |value| 1_000_000 + value as u32));
                assert!(
                    segment.cache.tokens.len() <= segment.cache.max_tokens,
                    "cache overflows"
                );
                let wanted = match segment.logits {
                    LogitRows::None => false,
                    LogitRows::Hidden => {
                        self.hidden.extend([token as f32, 1.0]);
                        false
                    }
                    LogitRows::Last => i + 1 == segment.tokens.len(),
                    LogitRows::Top(k) => {
                        assert!(k <= self.max_top, "{k} largest are asked for");
                        if i + 1 == segment.tokens.len() {
                            self.top.push(largest((self.predict)(&segment.cache.tokens), k));
                        }
                        false
                    }
                    LogitRows::All => true,
                };
                if wanted {
                    logits.extend((self.predict)(&segment.cache.tokens));
                }
            }
        }
        Ok(())
    }

    fn hidden(&self) -> &[f32] {
        &self.hidden
    }

    fn top(&self) -> &[Vec<TokenLogit>] {
        &self.top
    }

    fn max_top(&self) -> usize {
        self.max_top
    }
}

/// The `k` largest of a row, by sorting it.
fn largest(row: Vec<f32>, k: usize) -> Vec<TokenLogit> {
    let mut all: Vec<TokenLogit> = (0..)
        .zip(row)
        .map(|(id, logit)| TokenLogit { id, logit })
        .collect();
    all.retain(|token| token.logit.is_finite());
    all.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
    all.truncate(k);
    all
}

pub(crate) const EOS: u32 = 1;
pub(crate) const BOS: u32 = 2;
const FIRST_BYTE: u32 = 4;
const WORDS: [&str; 7] = [" the", "ST", "OP", "ing", "\n", "é", "hello"];
pub(crate) const N_PIECES: usize = 4 + 256 + 26 + WORDS.len();

/// Id of a raw byte's piece.
pub(crate) fn byte(value: u8) -> u32 {
    FIRST_BYTE + u32::from(value)
}

/// Id of a word or a letter a-z.
pub(crate) fn word(text: &str) -> u32 {
    let letter = text.as_bytes()[0];
    match WORDS.iter().position(|&w| w == text) {
        Some(i) => FIRST_BYTE + 256 + 26 + i as u32,
        None => FIRST_BYTE + 256 + u32::from(letter - b'a'),
    }
}

/// `<pad> <eos> <bos> <unk>`, 256 bytes, a-z and a few words.
pub(crate) fn tokenizer() -> Tokenizer {
    let mut pieces: Vec<(Vec<u8>, i32)> = [("<pad>", 3), ("<eos>", 3), ("<bos>", 3), ("<unk>", 2)]
        .map(|(p, t)| (p.into(), t))
        .into();
    pieces.extend((0..=255u8).map(|b| (format!("<0x{b:02X}>").into_bytes(), 6)));
    pieces.extend((b'a'..=b'z').map(|b| (vec![b], 1)));
    pieces.extend(WORDS.iter().map(|w| (w.replace(' ', "▁").into_bytes(), 1)));
    assert_eq!(pieces.len(), N_PIECES);
    let scores: Vec<f32> = (0..N_PIECES).map(|i| -(i as f32)).collect();
    let token_types: Vec<i32> = pieces.iter().map(|&(_, kind)| kind).collect();
    Tokenizer::from_gguf(GgufVocabulary {
        tokens: Box::new(pieces.iter().map(|(piece, _)| piece.as_slice())),
        scores: &scores,
        token_types: &token_types,
        merges: None,
        bos: Some(BOS),
        eos: Some(EOS),
        unk: Some(3),
        pad: Some(0),
        eot: None,
        add_bos: true,
        add_space_prefix: false,
    })
    .unwrap()
}
