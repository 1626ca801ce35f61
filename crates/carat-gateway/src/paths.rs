//! Where an operation is asked for at a provider.

use crate::endpoint::{Dialect, Endpoint, Kind, encoded};
use crate::provider::{Provider, Surface};

/// The path under the provider's base URL. `endpoint` is the client's own where the provider has it too; else one
/// of the same kind.
pub(crate) fn path(provider: &Provider, endpoint: Endpoint, model: &str, is_stream: bool) -> String {
    match (provider.dialect, &provider.surface) {
        (Dialect::OpenAi, Surface::Deployments(version)) => {
            let model = encoded(model);
            format!("/deployments/{model}{}?api-version={version}", openai(endpoint))
        }
        (Dialect::OpenAi, _) => openai(endpoint).into(),
        (Dialect::Anthropic, Surface::Vertex) => {
            let verb = if is_stream {
                "streamRawPredict"
            } else {
                "rawPredict"
            };
            format!("/models/{}:{verb}", encoded(model))
        }
        (Dialect::Anthropic, _) => match endpoint.kind() {
            Kind::Count => "/v1/messages/count_tokens".into(),
            _ => "/v1/messages".into(),
        },
        (Dialect::Gemini, surface) => {
            let verb = match endpoint.kind() {
                Kind::Embeddings if *surface == Surface::Vertex => "predict",
                Kind::Embeddings if endpoint == Endpoint::EmbedContent => "embedContent",
                Kind::Embeddings => "batchEmbedContents",
                Kind::Count => "countTokens",
                _ if is_stream => "streamGenerateContent?alt=sse",
                _ => "generateContent",
            };
            format!("/models/{}:{verb}", encoded(model))
        }
        (Dialect::Ollama, _) => match (endpoint.kind(), endpoint) {
            (Kind::Embeddings, _) => "/api/embed".into(),
            (_, Endpoint::OllamaGenerate) => "/api/generate".into(),
            _ => "/api/chat".into(),
        },
        (Dialect::Cohere, _) => match (endpoint.kind(), endpoint) {
            (Kind::Embeddings, _) => "/v2/embed".into(),
            (_, Endpoint::Rerank) => "/v2/rerank".into(),
            _ => "/v2/chat".into(),
        },
        (Dialect::Replicate, _) => match model.split_once(':') {
            Some(_) => "/predictions".into(),
            None => predictions(model),
        },
        (Dialect::Bedrock, _) => {
            let verb = match endpoint.kind() {
                Kind::Embeddings => "invoke",
                _ if is_stream => "converse-stream",
                _ => "converse",
            };
            format!("/model/{}/{verb}", encoded(model))
        }
    }
}

/// `owner/name`, or `deployments/owner/name`: each part stays one.
fn predictions(model: &str) -> String {
    let kind = if model.starts_with("deployments/") {
        ""
    } else {
        "/models"
    };
    let parts: String = model
        .split('/')
        .map(|part| format!("/{}", encoded(part)))
        .collect();
    format!("{kind}{parts}/predictions")
}

fn openai(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Completions => "/completions",
        Endpoint::Responses => "/responses",
        other if other.kind() == Kind::Embeddings => "/embeddings",
        Endpoint::Rerank => "/rerank",
        Endpoint::Moderations => "/moderations",
        _ => "/chat/completions",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Env};

    #[test]
    fn names_of_models_cannot_leave_their_place_in_a_path() {
        let env: Env = std::sync::Arc::new(|_| None);
        let path_at = |provider: &str, endpoint, is_stream| {
            let vars = "vars = { region = \"r\", resource = \"r\", location = \"l\", project = \"p\" }";
            let config = Config::parse(&format!("[providers.{provider}]\n{vars}"), &env).unwrap();
            path(&config.providers[provider], endpoint, "a/../b?c:0", is_stream)
        };
        let cases = [
            ("openai", false, "/chat/completions"),
            (
                "gemini",
                true,
                "/models/a%2F..%2Fb%3Fc%3A0:streamGenerateContent?alt=sse",
            ),
            ("vertex", false, "/models/a%2F..%2Fb%3Fc%3A0:generateContent"),
            (
                "vertex-anthropic",
                true,
                "/models/a%2F..%2Fb%3Fc%3A0:streamRawPredict",
            ),
            ("bedrock", true, "/model/a%2F..%2Fb%3Fc%3A0/converse-stream"),
            (
                "azure-deployments",
                false,
                "/deployments/a%2F..%2Fb%3Fc%3A0/chat/completions?api-version=2024-10-21",
            ),
            ("ollama", false, "/api/chat"),
            ("cohere", false, "/v2/chat"),
            ("replicate", false, "/predictions"),
        ];
        for (provider, is_stream, expected) in cases {
            assert_eq!(
                path_at(provider, Endpoint::Chat, is_stream),
                expected,
                "{provider}"
            );
        }
        assert_eq!(predictions("meta/l?a"), "/models/meta/l%3Fa/predictions");
        assert_eq!(predictions("deployments/me/x"), "/deployments/me/x/predictions");
        assert_eq!(predictions("../x"), "/models/%2E%2E/x/predictions");
        assert_eq!(
            path_at("anthropic", Endpoint::CountTokens, false),
            "/v1/messages/count_tokens"
        );
    }
}
