//! Speech to text, for models that hear.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State as Shared;
use axum::extract::multipart::{Field, Multipart, MultipartError, MultipartRejection};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use carat_api::{
    ApiError, Delta, ErrorKind, GenerationRequest, Media, MediaSource, Part, Role, Sampling, Turn,
};
use carat_net::TooSlow;
use serde_json::json;

use super::{Answer, at, converse, json};
use crate::reply::Caller;
use crate::server::State;

/// Longest text field of the form, in bytes.
const MAX_FIELD_BYTES: usize = 64 << 10;
/// Languages that clients write as codes.
const LANGUAGES: [(&str, &str); 24] = [
    ("ar", "Arabic"),
    ("bn", "Bengali"),
    ("cs", "Czech"),
    ("de", "German"),
    ("el", "Greek"),
    ("en", "English"),
    ("es", "Spanish"),
    ("fa", "Persian"),
    ("fi", "Finnish"),
    ("fr", "French"),
    ("hi", "Hindi"),
    ("id", "Indonesian"),
    ("it", "Italian"),
    ("ja", "Japanese"),
    ("ko", "Korean"),
    ("nl", "Dutch"),
    ("pl", "Polish"),
    ("pt", "Portuguese"),
    ("ru", "Russian"),
    ("sv", "Swedish"),
    ("tr", "Turkish"),
    ("uk", "Ukrainian"),
    ("vi", "Vietnamese"),
    ("zh", "Chinese"),
];

/// What the form says.
#[derive(Default)]
struct Form {
    file: Option<Vec<u8>>,
    model: String,
    language: Option<String>,
    prompt: Option<String>,
    format: Option<String>,
    temperature: Option<f32>,
}

pub(super) async fn transcriptions(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    form: Result<Multipart, MultipartRejection>,
) -> Answer {
    let refuse = at("/v1/audio/transcriptions");
    let form = form.map_err(|_| {
        let message = "the body must be a form, as multipart/form-data, with the sound as `file`";
        refuse(ApiError::new(ErrorKind::InvalidRequest, message))
    })?;
    let form = read(form).await.map_err(refuse)?;
    let format = form.format.clone().unwrap_or_else(|| "json".to_string());
    if !["json", "text", "verbose_json"].contains(&format.as_str()) {
        let message =
            format!("`response_format` is `{format}`; give json, text or verbose_json: no times are known");
        return Err(refuse(ApiError::field("response_format", message)));
    }
    let language = form.language.clone();
    let request = Arc::new(request(form).map_err(refuse)?);
    let reply = converse(&state, &request, caller).await.map_err(refuse)?;
    let gathered = reply.gather().await.map_err(refuse)?;
    let Some((deltas, finish)) = gathered.choices.first() else {
        return Err(refuse(ApiError::new(ErrorKind::Internal, "there is no answer")));
    };
    let texts = deltas.iter().filter_map(|delta| match delta {
        Delta::Text(text) => Some(text.as_str()),
        _ => None,
    });
    let text: String = texts.collect();
    let text = text.trim();
    Ok(match format.as_str() {
        "text" => format!("{text}\n").into_response(),
        "verbose_json" => json(&json!({
            "task": "transcribe", "language": language.unwrap_or_default(), "text": text, "segments": [],
        })),
        _ => {
            let usage = &finish.usage;
            json(&json!({"text": text, "usage": {
                "type": "tokens", "input_tokens": usage.prompt, "output_tokens": usage.completion,
                "total_tokens": usage.prompt + usage.completion,
            }}))
        }
    })
}

async fn read(mut parts: Multipart) -> Result<Form, ApiError> {
    let mut form = Form::default();
    while let Some(field) = parts.next_field().await.map_err(broken)? {
        let name = field.name().unwrap_or_default().to_string();
        match name.as_str() {
            "file" => form.file = Some(field.bytes().await.map_err(broken)?.to_vec()),
            "model" => form.model = text(field, &name).await?,
            "language" => form.language = Some(text(field, &name).await?),
            "prompt" => form.prompt = Some(text(field, &name).await?),
            "response_format" => form.format = Some(text(field, &name).await?),
            "temperature" => {
                let temperature = text(field, &name)
                    .await?
                    .trim()
                    .parse()
                    .map_err(|_| ApiError::field("temperature", "`temperature` must be a number"))?;
                form.temperature = Some(temperature);
            }
            "stream" if text(field, &name).await?.trim() == "true" => {
                let message = "`stream` is not supported here; leave it out";
                return Err(ApiError::field("stream", message));
            }
            _ => {}
        }
    }
    Ok(form)
}

/// A field of text, which must be short.
async fn text(mut field: Field<'_>, name: &str) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(more) = field.chunk().await.map_err(broken)? {
        if bytes.len() + more.len() > MAX_FIELD_BYTES {
            let message = format!("`{name}` has more than {MAX_FIELD_BYTES} bytes");
            return Err(ApiError::field(name, message));
        }
        bytes.extend_from_slice(&more);
    }
    String::from_utf8(bytes).map_err(|_| ApiError::field(name, format!("`{name}` is not UTF-8")))
}

fn broken(error: MultipartError) -> ApiError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let message = "the body is larger than this server takes; send less";
        return ApiError::new(ErrorKind::TooLarge, message);
    }
    if TooSlow::is_behind(&error) {
        return ApiError::new(ErrorKind::Timeout, TooSlow.to_string());
    }
    let message = "the form is malformed or did not come whole; send it again";
    ApiError::new(ErrorKind::InvalidRequest, message)
}

/// The question that Google gives for speech, behind the sound.
fn request(form: Form) -> Result<GenerationRequest, ApiError> {
    let bytes = form
        .file
        .filter(|bytes| !bytes.is_empty())
        .ok_or_else(|| ApiError::field("file", "`file` is missing; send the sound as a file of the form"))?;
    let name = |code: &String| {
        let found = LANGUAGES
            .iter()
            .find(|(of, _)| of.eq_ignore_ascii_case(code.trim()));
        found.map_or_else(|| code.trim().to_string(), |(_, name)| (*name).to_string())
    };
    let language = form.language.as_ref().map(name).filter(|name| !name.is_empty());
    let mut text = match language {
        Some(language) => {
            format!("Transcribe the following speech segment in {language} into {language} text.")
        }
        None => "Transcribe the following speech segment in its original language.".to_string(),
    };
    text.push_str(
        " Follow these specific instructions for formatting the answer:\n* Only output the transcription, with no \
         newlines.\n* When transcribing numbers, write the digits.",
    );
    if let Some(prompt) = form.prompt.filter(|prompt| !prompt.trim().is_empty()) {
        text.push_str(&format!(
            "\n* What was said before, or how names are written: {prompt}"
        ));
    }
    let sound = Media {
        path: "file".to_string(),
        source: MediaSource::Bytes(bytes.into()),
    };
    Ok(GenerationRequest {
        continues: None,
        model: form.model,
        turns: vec![Turn::new(Role::User, vec![Part::Text(text), Part::Audio(sound)])],
        sampling: Sampling {
            temperature: Some(form.temperature.unwrap_or(0.0)),
            ..Sampling::default()
        },
        n: 1,
        ..GenerationRequest::default()
    })
}
