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
    OllamaChat,
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
        if let Some((model, verb)) = path
            .strip_prefix("/v1beta/models/")
            .and_then(|rest| rest.rsplit_once(':'))
        {
            let stream = match verb {
                "generateContent" => false,
                "streamGenerateContent" => true,
                _ => return None,
            };
            return Some(Self {
                endpoint: Endpoint::Generate,
                model: Some(decoded(model)?),
                stream: Some(stream),
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
            Self::Generate => Dialect::Gemini,
            Self::OllamaChat => Dialect::Ollama,
            _ => Dialect::OpenAi,
        }
    }

    /// Whether it is a conversation, which can be told in every dialect.
    pub(crate) fn is_conversation(self) -> bool {
        matches!(
            self,
            Self::Chat | Self::Messages | Self::Generate | Self::OllamaChat
        )
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
        assert_eq!(Called::of("/v1beta/models/x:delete"), None);
        assert_eq!(Called::of("/v1beta/models/%zz:generateContent"), None);
        assert_eq!(encoded("a/../b?c"), "a%2F..%2Fb%3Fc");
    }
}
