//! What clients may ask for, in whose words.

use serde::Deserialize;

/// Whose API somebody speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Dialect {
    /// OpenAI's and the many like it.
    #[serde(rename = "openai")]
    OpenAi,
    /// Anthropic's Messages.
    Anthropic,
    /// Google's generateContent.
    Gemini,
    /// Ollama's own.
    Ollama,
}

/// One operation of an API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
    Responses,
    Embeddings,
    Rerank,
    Moderations,
}

impl Endpoint {
    /// What a POST to `path` asks for. Some clients leave `/v1` out.
    pub(crate) fn of(path: &str) -> Option<Self> {
        let path = path.strip_prefix("/v1").unwrap_or(path);
        Some(match path {
            "/chat/completions" => Self::Chat,
            "/completions" => Self::Completions,
            "/responses" => Self::Responses,
            "/embeddings" => Self::Embeddings,
            "/rerank" => Self::Rerank,
            "/moderations" => Self::Moderations,
            _ => return None,
        })
    }

    /// The path under a provider's base URL.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Completions => "/completions",
            Self::Responses => "/responses",
            Self::Embeddings => "/embeddings",
            Self::Rerank => "/rerank",
            Self::Moderations => "/moderations",
        }
    }

    /// Whose words the client speaks.
    pub(crate) fn dialect(self) -> Dialect {
        Dialect::OpenAi
    }

    /// Whether `stream_options` means something there.
    pub(crate) fn has_stream_options(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }
}
