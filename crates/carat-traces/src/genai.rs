//! Names of OpenTelemetry's conventions for generative models and HTTP, as far as they are used.
//!
//! The conventions have no attribute for the time to the first token, only metrics; its name here is that of the metric.

/// `chat`, `text_completion`, `embeddings` or `generate_content`.
pub const OPERATION: &str = "gen_ai.operation.name";
/// Who answers, such as `openai`.
pub const PROVIDER: &str = "gen_ai.provider.name";
/// The model that was asked for.
pub const REQUEST_MODEL: &str = "gen_ai.request.model";
/// Most tokens of the answer.
pub const MAX_TOKENS: &str = "gen_ai.request.max_tokens";
/// The sampler's temperature.
pub const TEMPERATURE: &str = "gen_ai.request.temperature";
/// The sampler's top-p.
pub const TOP_P: &str = "gen_ai.request.top_p";
/// The sampler's top-k.
pub const TOP_K: &str = "gen_ai.request.top_k";
/// The penalty of tokens by how often they came.
pub const FREQUENCY_PENALTY: &str = "gen_ai.request.frequency_penalty";
/// The penalty of tokens that came.
pub const PRESENCE_PENALTY: &str = "gen_ai.request.presence_penalty";
/// The sampler's seed.
pub const SEED: &str = "gen_ai.request.seed";
/// Answers that are asked for.
pub const CHOICES: &str = "gen_ai.request.choice.count";
/// Whether the answer is sent as it is made.
pub const STREAM: &str = "gen_ai.request.stream";
/// The model that answered.
pub const RESPONSE_MODEL: &str = "gen_ai.response.model";
/// Why each answer ended.
pub const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
/// Tokens of the prompt, cached ones among them.
pub const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
/// Tokens of the answer, thoughts among them.
pub const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
/// Of the prompt's tokens those that were in a cache.
pub const CACHED_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
/// Seconds from the request to the first token, on the side that answers.
pub const SERVER_FIRST_TOKEN: &str = "gen_ai.server.time_to_first_token";
/// Seconds from the call to the first words, on the side that asks.
pub const CLIENT_FIRST_CHUNK: &str = "gen_ai.client.operation.time_to_first_chunk";
/// What kind of failure.
pub const ERROR_TYPE: &str = "error.type";
/// How it was asked.
pub const METHOD: &str = "http.request.method";
/// The path, without what a client may write into it.
pub const ROUTE: &str = "http.route";
/// What was answered.
pub const STATUS: &str = "http.response.status_code";
/// Whom a call goes to.
pub const SERVER_ADDRESS: &str = "server.address";
/// Its port.
pub const SERVER_PORT: &str = "server.port";
