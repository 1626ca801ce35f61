//! A model that says a script after any prompt, letter by letter, and a vocabulary of bytes and letters for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use carat_model::{LanguageModel, LogitRows, Segment, SequenceCache};
use carat_text::{GgufVocabulary, Tokenizer};

const SPECIAL: [&str; 6] = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
];
/// What Gemma 4's format adds, behind the bytes.
const MARKS: [&str; 11] = [
    "<|tool>",
    "<tool|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    "<|\"|>",
    "<|think|>",
    "<|channel>",
    "<channel|>",
    "<|turn>",
];
/// `<tool_response|>` among the marks.
const RESULT_END: u32 = 5;
const EOS: u32 = 1;
const FIRST_BYTE: u32 = SPECIAL.len() as u32;
const FIRST_MARK: u32 = FIRST_BYTE + 256;
const N_TOKENS: usize = SPECIAL.len() + 256 + MARKS.len();

/// `<pad> <eos> <bos> <unk>`, the turn markers, 256 bytes and the marks of Gemma 4.
pub(crate) fn tokenizer() -> Tokenizer {
    let special = SPECIAL.iter().map(|piece| (piece.as_bytes().to_vec(), 3));
    let bytes = (0..=255u8).map(|b| (format!("<0x{b:02X}>").into_bytes(), 6));
    let marks = MARKS.iter().map(|piece| (piece.as_bytes().to_vec(), 4));
    let pieces: Vec<(Vec<u8>, i32)> = special.chain(bytes).chain(marks).collect();
    let scores: Vec<f32> = (0..N_TOKENS).map(|i| -(i as f32)).collect();
    let token_types: Vec<i32> = pieces
        .iter()
        .map(|(piece, kind)| if piece == b"<unk>" { 2 } else { *kind })
        .collect();
    Tokenizer::from_gguf(GgufVocabulary {
        tokens: Box::new(pieces.iter().map(|(piece, _)| piece.as_slice())),
        scores: &scores,
        token_types: &token_types,
        merges: None,
        bos: Some(2),
        eos: Some(EOS),
        unk: Some(3),
        pad: Some(0),
        eot: Some(5),
        add_bos: true,
        add_space_prefix: false,
    })
    .unwrap()
}

pub(crate) struct Cache {
    tokens: Vec<u32>,
    max_tokens: usize,
}

impl SequenceCache for Cache {
    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn truncate(&mut self, len: usize) -> bool {
        self.tokens.truncate(len);
        true
    }

    fn fork(&self, len: usize) -> Option<Self> {
        let tokens = self.tokens.get(..len)?.to_vec();
        Some(Self { tokens, ..*self })
    }

    fn visit_memory(&self, _: &mut dyn FnMut(usize, usize)) {}
}

/// Says `script` after the last generation prompt, then ends. Where a grammar forbids what it wants to say, it says
/// what the grammar allows.
pub(crate) struct Fake {
    pub(crate) script: String,
    /// Tokens computed so far.
    pub(crate) n_computed: Arc<AtomicUsize>,
    /// `[rows, 3]` of the last pass.
    pub(crate) hidden: Vec<f32>,
    /// Says anything at all, always the same after the same.
    pub(crate) is_chaotic: bool,
}

/// A script's tokens: marks are one each.
fn ids_of(mut script: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    while let Some(&byte) = script.as_bytes().first() {
        let mark = MARKS.iter().position(|mark| script.starts_with(mark));
        match mark {
            Some(i) => {
                ids.push(FIRST_MARK + i as u32);
                script = &script[MARKS[i].len()..];
            }
            None => {
                let n = script.chars().next().map_or(1, char::len_utf8);
                ids.extend(script.bytes().take(n).map(|b| FIRST_BYTE + u32::from(b)));
                assert!(n > 1 || byte.is_ascii());
                script = &script[n..];
            }
        }
    }
    ids
}

impl Fake {
    fn predict(&self, seen: &[u32]) -> Vec<f32> {
        if self.is_chaotic {
            let mut hash = seen
                .iter()
                .fold(17u64, |h, &t| (h ^ u64::from(t)).wrapping_mul(0x100_0000_01b3));
            let mut next = || {
                hash = hash
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (hash >> 40) as f32 / 2e6
            };
            return (0..N_TOKENS).map(|_| next()).collect();
        }
        let script = ids_of(&self.script);
        // The answer begins after "model\n", or for raw prompts after a question mark.
        let text: Vec<u8> = seen
            .iter()
            .map(|id| match id {
                _ if *id == FIRST_MARK + RESULT_END => 0xFF,
                FIRST_BYTE..FIRST_MARK => (id - FIRST_BYTE) as u8,
                _ => 0,
            })
            .collect();
        // So does it behind a tool's result.
        let ends = [&b"model\n"[..], &b"?"[..], &b"\xFF"[..]];
        let start = ends
            .iter()
            .filter_map(|end| {
                text.windows(end.len())
                    .rposition(|w| w == *end)
                    .map(|at| at + end.len())
            })
            .max()
            .unwrap_or(0);
        let wanted = script.get(text.len() - start).copied().unwrap_or(EOS);
        let mut logits: Vec<f32> = (0..N_TOKENS).map(|id| -(id as f32) / 1e4).collect();
        logits[wanted as usize] = 50.0;
        logits
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the fake cannot")]
pub(crate) struct Cannot;

impl LanguageModel for Fake {
    type Cache = Cache;
    type Error = Cannot;

    fn vocab_size(&self) -> usize {
        N_TOKENS
    }

    fn context_len(&self) -> usize {
        4096
    }

    fn max_batch_tokens(&self) -> usize {
        64
    }

    fn new_cache(&self, max_tokens: usize) -> Result<Cache, Cannot> {
        let tokens = Vec::new();
        Ok(Cache { tokens, max_tokens })
    }

    fn cache_bytes(&self, n_tokens: usize) -> usize {
        n_tokens
    }

    fn forward(&mut self, batch: &mut [Segment<'_, Cache>], logits: &mut Vec<f32>) -> Result<(), Cannot> {
        logits.clear();
        self.hidden.clear();
        for segment in batch {
            self.n_computed.fetch_add(segment.tokens.len(), Ordering::Relaxed);
            segment.cache.tokens.extend_from_slice(segment.tokens);
            if segment.logits == LogitRows::Hidden {
                let rows = segment.tokens.iter().flat_map(|_| [0.6, 0.8, 0.0]);
                self.hidden.extend(rows);
            }
            if segment.logits == LogitRows::Last {
                logits.extend(self.predict(&segment.cache.tokens));
            }
        }
        Ok(())
    }

    fn hidden(&self) -> &[f32] {
        &self.hidden
    }
}
