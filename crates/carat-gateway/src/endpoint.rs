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
    /// Converse of AWS Bedrock. No client speaks this one or the next two here.
    Bedrock,
    /// Cohere's second version.
    Cohere,
    /// Replicate's predictions.
    Replicate,
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
    Messages,
    CountTokens,
    Generate,
    EmbedContent,
    BatchEmbedContents,
    GeminiCount,
    OllamaChat,
    OllamaGenerate,
    OllamaEmbed,
}

/// What can be told in more than one dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Conversation,
    Embeddings,
    /// How long a prompt is.
    Count,
    /// Nothing else.
    Other,
}

/// What a POST to a path asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Called {
    pub(crate) endpoint: Endpoint,
    /// The model, where the path names it.
    pub(crate) model: Option<String>,
    /// Whether the answer streams, where the path says so.
    pub(crate) stream: Option<bool>,
    /// It is only to be told who would be asked.
    pub(crate) is_dry: bool,
}

impl Called {
    /// Reads a path. Some clients leave OpenAI's `/v1` out.
    pub(crate) fn of(path: &str) -> Option<Self> {
        // Google's own clients say v1beta or v1, by version.
        let versions = ["/v1beta/models/", "/v1/models/", "/v1alpha/models/"];
        let rest = versions.iter().find_map(|version| path.strip_prefix(version));
        if let Some((model, verb)) = rest.and_then(|rest| rest.rsplit_once(':')) {
            let (endpoint, stream) = match verb {
                "generateContent" => (Endpoint::Generate, false),
                "streamGenerateContent" => (Endpoint::Generate, true),
                "embedContent" => (Endpoint::EmbedContent, false),
                "batchEmbedContents" => (Endpoint::BatchEmbedContents, false),
                "countTokens" => (Endpoint::GeminiCount, false),
                _ => return None,
            };
            return Some(Self {
                endpoint,
                model: Some(decoded(model)?),
                stream: Some(stream),
                is_dry: false,
            });
        }
        // Azure's clients name the model in the path, slashes and all.
        if let Some(rest) = path.strip_prefix("/openai/deployments/") {
            let operations = [
                ("/chat/completions", Endpoint::Chat),
                ("/completions", Endpoint::Completions),
                ("/embeddings", Endpoint::Embeddings),
            ];
            let mut found = operations
                .iter()
                .filter_map(|(end, endpoint)| Some((rest.strip_suffix(end)?, *endpoint)));
            let (model, endpoint) = found.next()?;
            return Some(Self {
                endpoint,
                model: Some(decoded(model)?),
                stream: None,
                is_dry: false,
            });
        }
        let endpoint = match path.strip_prefix("/v1").unwrap_or(path) {
            "/chat/completions" | "/route" => Endpoint::Chat,
            "/completions" => Endpoint::Completions,
            "/responses" => Endpoint::Responses,
            "/embeddings" => Endpoint::Embeddings,
            "/rerank" => Endpoint::Rerank,
            "/moderations" => Endpoint::Moderations,
            "/messages" => Endpoint::Messages,
            "/messages/count_tokens" => Endpoint::CountTokens,
            "/api/chat" => Endpoint::OllamaChat,
            "/api/generate" => Endpoint::OllamaGenerate,
            "/api/embed" => Endpoint::OllamaEmbed,
            _ => return None,
        };
        Some(Self {
            endpoint,
            model: None,
            stream: None,
            is_dry: path.ends_with("/route"),
        })
    }
}

impl Endpoint {
    /// Whose words the client speaks.
    pub(crate) fn dialect(self) -> Dialect {
        match self {
            Self::Messages | Self::CountTokens => Dialect::Anthropic,
            Self::Generate | Self::EmbedContent | Self::BatchEmbedContents | Self::GeminiCount => {
                Dialect::Gemini
            }
            Self::OllamaChat | Self::OllamaGenerate | Self::OllamaEmbed => Dialect::Ollama,
            _ => Dialect::OpenAi,
        }
    }

    /// Who else may be asked the same.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Chat
            | Self::Completions
            | Self::Responses
            | Self::Messages
            | Self::Generate
            | Self::OllamaChat
            | Self::OllamaGenerate => Kind::Conversation,
            Self::Embeddings | Self::EmbedContent | Self::BatchEmbedContents | Self::OllamaEmbed => {
                Kind::Embeddings
            }
            Self::CountTokens | Self::GeminiCount => Kind::Count,
            Self::Rerank | Self::Moderations => Kind::Other,
        }
    }

    /// Whether an answer in its words can be read again, as caches do and who goes on with it.
    pub(crate) fn is_conversation(self) -> bool {
        matches!(
            self,
            Self::Chat | Self::Messages | Self::Generate | Self::OllamaChat
        )
    }

    /// Whether streams are lines, and come unless the request says otherwise.
    pub(crate) fn has_lines(self) -> bool {
        matches!(self, Self::OllamaChat | Self::OllamaGenerate)
    }

    /// Whether `stream_options` means something there.
    pub(crate) fn has_stream_options(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }
}

/// Whether a byte stands for itself in every part of an address.
pub(crate) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// A name as part of a path.
pub(crate) fn encoded(name: &str) -> String {
    // Dots alone would lead to other places.
    if matches!(name, "." | "..") {
        return name.replace('.', "%2E");
    }
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if is_unreserved(byte) || byte == b'@' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The name that a part of a path stands for.
pub(crate) fn decoded(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = after;
            continue;
        }
        let digits = std::str::from_utf8(after.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_what_is_asked() {
        let called = Called::of("/v1beta/models/gemini%2Fgemma:4b:streamGenerateContent").unwrap();
        assert_eq!(
            (called.model.as_deref(), called.stream),
            (Some("gemini/gemma:4b"), Some(true))
        );
        assert_eq!(
            Called::of("/chat/completions"),
            Called::of("/v1/chat/completions")
        );
        let azure = Called::of("/openai/deployments/my%2Dmodel/chat/completions").unwrap();
        assert_eq!(
            (azure.endpoint, azure.model.as_deref()),
            (Endpoint::Chat, Some("my-model"))
        );
        let slash = Called::of("/openai/deployments/m/x/embeddings").unwrap();
        assert_eq!(
            (slash.endpoint, slash.model.as_deref()),
            (Endpoint::Embeddings, Some("m/x"))
        );
        assert_eq!(Called::of("/openai/deployments/x/files"), None);
        let stable = Called::of("/v1/models/gemini/x:generateContent").unwrap();
        assert_eq!(
            (stable.endpoint, stable.model.as_deref()),
            (Endpoint::Generate, Some("gemini/x"))
        );
        assert_eq!(Called::of("/v1beta/models/x:delete"), None);
        assert_eq!(Called::of("/v1beta/models/%zz:generateContent"), None);
        assert_eq!(encoded("a/../b?c"), "a%2F..%2Fb%3Fc");
    }
}
