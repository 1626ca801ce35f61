//! Replicate's way from a request to an answer: a prediction is made, and then waited for or listened to elsewhere.
//!
//! Where to listen comes with the answer; only addresses of the provider's own domain are followed, and the key goes
//! nowhere but to the host that is configured. A prediction that nobody waits for any longer, since its client has left
//! or its time is over, is cancelled.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::failure::{Class, Failure};
use crate::limits::PREDICTION_BYTES;
use crate::provider::Provider;
use crate::upstream::{self, AnswerBody, Leaving, Upstream};

/// Time between two looks at a prediction.
const LOOK: Duration = Duration::from_millis(500);

/// Longest time in which the provider says that it has made a prediction: it may wait a minute for its output.
const MAKING: Duration = Duration::from_secs(120);

/// What came when a prediction was asked for.
enum Made {
    Refused(Box<Response<AnswerBody>>),
    Prediction {
        told: Value,
        /// Cancels it, unless it has ended.
        cancelling: Option<Box<Leaving>>,
    },
}

/// The answer that a prediction becomes. `request`: asks for it.
pub(crate) async fn answer(
    upstream: &Upstream,
    provider: &Arc<Provider>,
    request: Request<Bytes>,
    is_stream: bool,
) -> Result<Response<AnswerBody>, Failure> {
    let (mut prediction, mut cancelling) = match make(upstream, provider, request).await? {
        Made::Refused(response) => return Ok(*response),
        Made::Prediction { told, cancelling } => (told, cancelling),
    };
    if let Some(url) = prediction["urls"]["stream"].as_str().filter(|_| is_stream) {
        let listened = upstream.plain(look(provider, url, "text/event-stream")?).await?;
        return Ok(listened.map(|body| match cancelling {
            Some(cancelling) => body.or_leaving(*cancelling),
            None => body,
        }));
    }
    while is_under_way(&prediction) {
        tokio::time::sleep(LOOK).await;
        let url = prediction["urls"]["get"].as_str().ok_or_else(unclear)?;
        let looked = upstream.plain(look(provider, url, "application/json")?).await?;
        if !looked.status().is_success() {
            return Ok(looked);
        }
        prediction = read(looked).await?;
    }
    if let Some(cancelling) = &mut cancelling {
        cancelling.forget();
    }
    if is_stream && prediction["status"] == "succeeded" {
        return Ok(made_up("text/event-stream", events(&prediction["output"])));
    }
    Ok(made_up("application/json", prediction.to_string()))
}

/// Has a prediction made, by a task of its own: one that nobody waits for when it is there is cancelled.
async fn make(
    upstream: &Upstream,
    provider: &Arc<Provider>,
    request: Request<Bytes>,
) -> Result<Made, Failure> {
    let (tell, told) = oneshot::channel();
    let (upstream, provider) = (upstream.clone(), Arc::clone(provider));
    tokio::spawn(async move {
        let made = tokio::time::timeout(MAKING, made(&upstream, &provider, request)).await;
        let late = || Failure::new(Class::Slow, 504, "the provider took too long to answer");
        let _dropped_is_cancelled = tell.send(made.unwrap_or_else(|_| Err(late())));
    });
    told.await.map_err(|_| unclear())?
}

async fn made(upstream: &Upstream, provider: &Provider, request: Request<Bytes>) -> Result<Made, Failure> {
    let response = upstream.plain(request).await?;
    if !response.status().is_success() {
        return Ok(Made::Refused(Box::new(response)));
    }
    let told = read(response).await?;
    let url = told["urls"]["cancel"].as_str().filter(|_| is_under_way(&told));
    let cancelling = url.map(|url| {
        let mut request = look(provider, url, "application/json")?;
        *request.method_mut() = Method::POST;
        Ok(Box::new(Leaving::new(upstream, request)))
    });
    let cancelling = cancelling.transpose()?;
    Ok(Made::Prediction { told, cancelling })
}

fn is_under_way(prediction: &Value) -> bool {
    matches!(prediction["status"].as_str(), Some("starting" | "processing"))
}

async fn read(response: Response<AnswerBody>) -> Result<Value, Failure> {
    let body = upstream::collect(response.into_body(), PREDICTION_BYTES).await?;
    serde_json::from_slice(&body).map_err(|_| unclear())
}

fn unclear() -> Failure {
    Failure::new(
        Class::ServerFault,
        502,
        "the provider's prediction makes no sense",
    )
}

/// A look at a place that the provider named.
fn look(provider: &Provider, url: &str, kind: &'static str) -> Result<Request<Bytes>, Failure> {
    let uri: Uri = url.parse().map_err(|_| unclear())?;
    let (own, there) = (&provider.base.authority, uri.authority());
    let is_own = there == Some(own);
    // api.replicate.com and stream.replicate.com are one house.
    let domain = own.host().split_once('.').map(|(_, domain)| domain);
    let is_house = domain
        .filter(|domain| domain.contains('.') && domain.parse::<std::net::Ipv4Addr>().is_err())
        .zip(uri.host())
        .is_some_and(|(domain, host)| host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')));
    let is_safe = is_own || is_house && uri.scheme_str() == Some("https") && uri.port().is_none();
    if !is_safe {
        tracing::warn!(
            host = uri.host(),
            "a prediction names a place elsewhere, which is not asked"
        );
        return Err(unclear());
    }
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() = uri;
    request
        .headers_mut()
        .insert(ACCEPT, HeaderValue::from_static(kind));
    if is_own {
        for (name, value) in &provider.headers {
            request.headers_mut().insert(name, value.clone());
        }
    }
    Ok(request)
}

/// An output as the stream that it would have been.
fn events(output: &Value) -> String {
    let text = match output {
        Value::Array(parts) => parts.iter().filter_map(Value::as_str).collect(),
        other => other.as_str().unwrap_or_default().to_string(),
    };
    let lines: String = text.split('\n').map(|line| format!("data: {line}\n")).collect();
    format!("event: output\n{lines}\nevent: done\ndata: {{}}\n\n")
}

fn made_up(kind: &'static str, body: String) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::whole(body));
    *response.status_mut() = StatusCode::OK;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Env};

    #[test]
    fn only_the_providers_own_house_is_asked_and_the_key_stays_at_its_door() {
        let env: Env = std::sync::Arc::new(|_| None);
        let config = Config::parse("[providers.replicate]\nkey = \"r8_secret\"", &env).unwrap();
        let provider = &config.providers["replicate"];
        let key = |url: &str| {
            let request = look(provider, url, "text/event-stream").ok()?;
            Some(request.headers().contains_key("authorization"))
        };
        assert_eq!(key("https://api.replicate.com/v1/predictions/x"), Some(true));
        assert_eq!(key("https://stream.replicate.com/v1/files/x"), Some(false));
        for far in [
            "http://stream.replicate.com/x",
            "https://replicate.com.evil.example/x",
            "https://evilreplicate.com/x",
            "https://stream.replicate.com:8443/x",
            "http://169.254.169.254/latest",
            "/relative",
        ] {
            assert_eq!(key(far), None, "{far}");
        }
    }

    #[test]
    fn an_output_without_stream_becomes_one() {
        assert_eq!(
            events(&serde_json::json!(["a\n", "b"])),
            "event: output\ndata: a\ndata: b\n\nevent: done\ndata: {}\n\n"
        );
    }
}
