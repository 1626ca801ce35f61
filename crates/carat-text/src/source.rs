//! The three forms in which a Gemma tokenizer comes; all end in the same [`Tokenizer`](crate::Tokenizer).

mod gguf;
mod sentencepiece;
mod tokenizer_json;

pub use gguf::GgufVocabulary;
pub use sentencepiece::SentencePieceModel;
