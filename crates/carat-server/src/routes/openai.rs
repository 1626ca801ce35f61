//! OpenAI's routes but for responses.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State as Shared};
use carat_api::ApiError;
use carat_api::openai::{self, Prompt};
use carat_engine::{Cancel, FinishReason, Grammar, Job, Update};
use carat_text::{ControlText, Special};
use serde_json::Value;
use tokio::sync::oneshot;

use super::{
    Answer, Presence, at, blocking, converse, for_each_answer, in_time, is_brief, json, named, prepared,
    whole,
};
use crate::ids;
use crate::limits;
use crate::model::ServedModel;
use crate::pool::Lease;
use crate::prompt;
use crate::reply::{Caller, Reply, Start, check_stops, checked_choices, engine_error, too_late};
use crate::server::State;
use crate::stream::{self, Writer};
use crate::trace;

/// Most tokens of a text to be embedded.
const MAX_EMBEDDED: usize = 8192;
/// Texts of one request that are embedded at a time.
const EMBEDDED_TOGETHER: usize = 16;

pub(super) async fn models(Shared(state): Shared<Arc<State>>) -> Answer {
    let listed = state.models.list().await.map_err(at("/v1/models"))?;
    let own = listed.iter().map(|model| {
        (
            &model.id,
            model.modified.map_or(state.created, |time| time.as_secs()),
        )
    });
    let aliases = state
        .models
        .aliases()
        .iter()
        .map(|(name, _)| (name, state.created));
    let models: Vec<Value> = own
        .chain(aliases)
        .map(|(name, created)| openai::model(name, created))
        .collect();
    Ok(json(&openai::model_list(&models)))
}

pub(super) async fn model(
    Shared(state): Shared<Arc<State>>,
    name: Result<Path<String>, PathRejection>,
) -> Answer {
    let refuse = at("/v1/models");
    let name = named(name).map_err(refuse)?;
    state.models.exact_id_of(&name).await.map_err(refuse)?;
    Ok(json(&openai::model(&name, state.created)))
}

pub(super) async fn chat(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/v1/chat/completions");
    let request = openai::chat_request(&whole(body).map_err(refuse)?).map_err(refuse)?;
    let request = Arc::new(request);
    let reply = converse(&state, &request, caller).await.map_err(refuse)?;
    let (id, created, model) = (state.ids.id("chatcmpl-"), ids::now().as_secs(), reply.model_id());
    if request.stream {
        let events = openai::ChatEvents::new(id, created, model, request.n, request.include_usage);
        return Ok(stream::respond(reply, Writer::Chat(events)));
    }
    let gathered = reply.gather().await.map_err(refuse)?;
    let with_logprobs = request.logprobs.is_some();
    Ok(json(&openai::chat_completion(
        &id,
        created,
        &model,
        &gathered.choices,
        with_logprobs,
    )))
}

pub(super) async fn completions(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/v1/completions");
    let request = openai::completion_request(&whole(body).map_err(refuse)?).map_err(refuse)?;
    let (reply, heads) = complete(&state, &request, caller).await.map_err(refuse)?;
    let (id, created, model) = (state.ids.id("cmpl-"), ids::now().as_secs(), reply.model_id());
    if request.generation.stream {
        let events =
            openai::CompletionEvents::new(id, created, model, heads, request.generation.include_usage);
        return Ok(stream::respond(reply, Writer::Completion(events)));
    }
    let gathered = reply.gather().await.map_err(refuse)?;
    Ok(json(&openai::completion(
        &id,
        created,
        &model,
        &heads,
        &gathered.choices,
        &gathered.usage,
    )))
}

/// Queues the prompts of a completion. With them comes what each answer begins with.
pub(super) async fn complete(
    state: &Arc<State>,
    request: &openai::CompletionRequest,
    caller: Caller,
) -> Result<(Reply, Vec<String>), ApiError> {
    let wanted = &request.generation;
    checked_choices(request.prompts.len(), wanted.n)?;
    check_stops(&wanted.stop)?;
    let (lease, start, heads) = in_time(state, &caller, begin(state, request)).await?;
    let reply = Reply::start(state, lease, wanted, start, caller)?;
    Ok((reply, heads))
}

/// The model, the prompts as it takes them, and what each answer begins with.
async fn begin(
    state: &Arc<State>,
    request: &openai::CompletionRequest,
) -> Result<(Lease, Start, Vec<String>), ApiError> {
    let wanted = &request.generation;
    let lease = state.models.lease(&wanted.model, wanted.keep_alive).await?;
    let (shared, prompts, echo) = (Arc::clone(state), request.prompts.clone(), request.echo);
    let wanted = request.generation.clone();
    let n_bytes = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(ids) => size_of_val(ids.as_slice()),
    };
    let n_bytes = prompts.iter().map(n_bytes).fold(0, usize::saturating_add);
    let is_brief = is_brief(&wanted) && n_bytes <= limits::BRIEF_BYTES;
    let presence = Presence::default();
    let absent = presence.absent();
    // The work holds the lease: it goes on for a while when its client has gone.
    prepared(is_brief, move || {
        let n_answers = prompts.len().saturating_mul(wanted.n);
        let mut start = Start {
            prompts: Vec::new(),
            constraints: Vec::new(),
            readers: shared.readers(&lease, &wanted, n_answers),
            forbidden: None,
        };
        let mut heads = Vec::new();
        for prompt in prompts {
            if absent.load(Ordering::Relaxed) {
                return Err(prompt::given_up());
            }
            let (ids, head) = match prompt {
                Prompt::Text(text) => (prompt::raw(&lease, &text)?, text),
                Prompt::Tokens(ids) => {
                    let text = lease.setup.tokenizer.decode(&ids, ControlText::Hide);
                    (prompt::given(&lease, ids, "prompt")?, text)
                }
            };
            start.prompts.push(prompt::Prompt::of_ids(ids));
            let head = if echo { head } else { String::new() };
            heads.extend(std::iter::repeat_n(head, wanted.n));
        }
        let compile = |(grammar, field): (Grammar, &str)| lease.compile(&grammar, field);
        let constraint = prompt::grammar(&wanted)?.map(compile).transpose()?;
        start.constraints = for_each_answer(constraint, n_answers);
        Ok((lease, start, heads))
    })
    .await
}

pub(super) async fn embeddings(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/v1/embeddings");
    let request = openai::embedding_request(&whole(body).map_err(refuse)?).map_err(refuse)?;
    let model = in_time(&state, &caller, state.models.lease(&request.model, None));
    let model = model.await.map_err(refuse)?;
    let vectors = embed(&state, &model, request.inputs, TooLong::Refused, caller);
    let (mut vectors, n_tokens) = vectors.await.map_err(refuse)?;
    if let Some(n) = request.dimensions {
        shorten(&mut vectors, n).map_err(refuse)?;
    }
    Ok(json(&openai::embedding_list(
        &model.setup.id,
        &vectors,
        request.base64,
        n_tokens,
    )))
}

/// What becomes of texts that have more tokens than can be embedded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TooLong {
    Refused,
    /// They lose their ends.
    Cut,
}

/// Vectors of texts, and how many tokens they had.
pub(super) async fn embed(
    state: &State,
    model: &Lease,
    inputs: Vec<Prompt>,
    too_long: TooLong,
    caller: Caller,
) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
    let shared = model.model();
    let presence = Presence::default();
    let absent = presence.absent();
    let texts = blocking(move || {
        let mut texts = Vec::with_capacity(inputs.len());
        for input in inputs {
            if absent.load(Ordering::Relaxed) {
                return Err(prompt::given_up());
            }
            texts.push(embeddable(&shared, input, too_long)?);
        }
        Ok(texts)
    });
    // What follows ends in time by itself.
    let texts: Vec<Vec<u32>> = in_time(state, &caller, texts).await?;
    let n_tokens = texts.iter().map(Vec::len).sum();
    if let Some(trace) = &caller.trace {
        trace::embedded(trace, &model.setup.id, n_tokens);
    }
    let mut vectors = Vec::with_capacity(texts.len());
    let mut texts = texts.into_iter();
    // A few at a time, so that one request does not fill the queue for all others.
    let n_together = EMBEDDED_TOGETHER.min(model.engine.limits().n_jobs());
    loop {
        let begun = texts.by_ref().take(n_together);
        let (begun, jobs): (Vec<Embedding>, Vec<Job>) =
            begun.map(|ids| Embedding::begin(state, ids, &caller)).unzip();
        if jobs.is_empty() {
            return Ok((vectors, n_tokens));
        }
        model.engine.submit_all(jobs).map_err(engine_error)?;
        for embedding in begun {
            vectors.push(embedding.vector().await?);
        }
    }
}

/// The tokens of a text, if they are not too many or may be fewer.
fn embeddable(model: &ServedModel, input: Prompt, too_long: TooLong) -> Result<Vec<u32>, ApiError> {
    let longest = model.context().saturating_sub(1).min(MAX_EMBEDDED);
    let refused = |n: &str| {
        let message = format!("a text of `input` has {n} tokens, but at most {longest} can be embedded");
        ApiError::field("input", message).with_code("context_length_exceeded")
    };
    let mut ids = match input {
        Prompt::Text(text) => {
            let n_least = model.least_tokens(&text);
            if too_long == TooLong::Refused && n_least > longest {
                return Err(refused(&format!("at least {n_least}")));
            }
            let tokenizer = &model.setup.tokenizer;
            let mut ids: Vec<u32> = tokenizer.bos().into_iter().collect();
            tokenizer.encode_into(&text, Special::AsText, &mut ids);
            ids
        }
        Prompt::Tokens(ids) => prompt::given(model, ids, "input")?,
    };
    if too_long == TooLong::Cut {
        ids.truncate(longest);
    }
    if ids.len() > longest {
        return Err(refused(&ids.len().to_string()));
    }
    Ok(ids)
}

/// A vector on its way. Dropping it cancels the work.
struct Embedding {
    cancel: Cancel,
    receiver: oneshot::Receiver<Update>,
}

impl Embedding {
    /// A vector, and the job that makes it.
    fn begin(state: &State, ids: Vec<u32>, caller: &Caller) -> (Self, Job) {
        let (sender, receiver) = oneshot::channel();
        let mut sender = Some(sender);
        let sink = move |update| {
            if let Some(sender) = sender.take()
                && sender.send(update).is_err()
            {
                // Who no longer waits needs no vector.
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        let mut job = Job::embedding(ids, Box::new(sink));
        (job.client, job.weight) = (caller.client, caller.weight);
        job.deadline = state.deadline(caller.arrived);
        let cancel = job.cancel.clone();
        (Self { cancel, receiver }, job)
    }

    async fn vector(mut self) -> Result<Vec<f32>, ApiError> {
        match (&mut self.receiver).await {
            Ok(Update::Embedded(vector)) => Ok(vector),
            Ok(Update::Failed(error)) => Err(engine_error(*error)),
            Ok(Update::Finished(finished)) if finished.reason == FinishReason::Deadline => Err(too_late()),
            _ => Err(engine_error(carat_engine::Error::Stopped)),
        }
    }
}

impl Drop for Embedding {
    fn drop(&mut self) {
        self.cancel.raise();
    }
}

/// Keeps the first `n` numbers and makes the length 1 again.
pub(super) fn shorten(vectors: &mut [Vec<f32>], n: usize) -> Result<(), ApiError> {
    for vector in vectors {
        if n > vector.len() {
            let message = format!(
                "`dimensions` is {n}, but this model's vectors have {}",
                vector.len()
            );
            return Err(ApiError::field("dimensions", message));
        }
        vector.truncate(n);
        let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        if norm > 0.0 {
            vector.iter_mut().for_each(|x| *x /= norm);
        }
    }
    Ok(())
}
