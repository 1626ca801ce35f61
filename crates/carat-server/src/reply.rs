//! One request's answers, from the engine's thread to the client's connection.
//!
//! All choices of a request share one channel, large enough for every token that they may have, so that the engine never
//! waits. Dropping the reply cancels what is still running.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use carat_api::{ApiError, Delta, ErrorKind, Finish, GenerationRequest, Usage};
use carat_engine::{Cancel, Constraint, FinishReason, Job, Request, SamplingParams, Update};
use carat_traces::Trace;
use tokio::sync::mpsc::{Receiver, channel};

use crate::limits;
use crate::model::ServedModel;
use crate::output::{Calls, OutputReader};
use crate::pool::Lease;
use crate::prompt::Prompt;
use crate::server::State;
use crate::tools::{self, prompted::CallReader};
use crate::trace::{self, Reasons};

/// Who asks, and since when.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Shares of the engine go by this.
    pub(crate) client: u64,
    /// Its share beside others'.
    pub(crate) weight: u32,
    /// When the request came.
    pub(crate) arrived: Instant,
    /// The request's span, if somebody wants to have it.
    pub(crate) trace: Option<Trace>,
}

/// A piece of some choice.
pub(crate) enum Output {
    /// More of it.
    Delta(usize, Delta),
    /// Its end, and what prefill and decode took.
    Finish(usize, Finish, [Duration; 2]),
    /// There will be no more of any choice.
    Failed(ApiError),
}

/// The answers of one request. See the module's head.
pub(crate) struct Reply {
    state: Arc<State>,
    /// Keeps the model loaded.
    model: Lease,
    receiver: Receiver<(usize, Update)>,
    cancels: Vec<Cancel>,
    readers: Vec<OutputReader>,
    n_open: usize,
    caller: Caller,
    latest: Vec<Option<Instant>>,
    /// Sum over prompts.
    usage: Usage,
    n_choices: usize,
    n_prompt: usize,
    reasons: Reasons,
    has_failed: bool,
    /// Comes when the server stops and waits for no answer any longer.
    over: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Prompts and what binds their answers.
pub(crate) struct Start {
    /// Each is answered `n` times.
    pub(crate) prompts: Vec<Prompt>,
    /// One for each answer, or none.
    pub(crate) constraints: Vec<Constraint>,
    /// One for each answer.
    pub(crate) readers: Vec<OutputReader>,
    /// A token that no answer may have beside those of the model's own settings.
    pub(crate) forbidden: Option<u32>,
}

/// How many answers `n` for each of so many prompts are.
///
/// # Errors
/// When they are too many.
pub(crate) fn checked_choices(n_prompts: usize, n: usize) -> Result<usize, ApiError> {
    let n_choices = n_prompts.saturating_mul(n);
    if n_choices <= limits::CHOICES {
        return Ok(n_choices);
    }
    let most = limits::CHOICES;
    let message = format!("{n_choices} answers are asked for at once; at most {most} may be");
    Err(ApiError::field("n", message))
}

impl Reply {
    /// Queues all answers of a request.
    pub(crate) fn start(
        state: &Arc<State>,
        model: Lease,
        request: &GenerationRequest,
        start: Start,
        caller: Caller,
    ) -> Result<Self, ApiError> {
        if let Some(trace) = &caller.trace {
            trace::asked(trace, request, &model.setup.id);
        }
        let n_choices = checked_choices(start.prompts.len(), request.n)?;
        let sampling = sampling(state, &model, request)?;
        let suppressed = [&model.setup.suppressed, start.forbidden.as_slice()].concat();
        let room = |prompt: &Prompt| model.context().saturating_sub(prompt.ids.len());
        let capacity: usize = start
            .prompts
            .iter()
            .map(|prompt| request.n * (request.max_tokens.unwrap_or(usize::MAX).min(room(prompt)) + 2))
            .sum();
        let (sender, receiver) = channel(capacity.max(1));
        let mut reply = Self {
            state: Arc::clone(state),
            model,
            receiver,
            cancels: Vec::with_capacity(n_choices),
            readers: start.readers,
            n_open: n_choices,
            caller: caller.clone(),
            latest: vec![None; n_choices],
            usage: Usage::default(),
            n_choices: request.n,
            n_prompt: start.prompts.iter().map(|prompt| prompt.ids.len()).sum(),
            reasons: Reasons::default(),
            has_failed: false,
            over: Box::pin(state.over()),
        };
        let mut constraints = start.constraints.into_iter();
        let choices = start
            .prompts
            .iter()
            .flat_map(|prompt| std::iter::repeat_n(prompt, request.n));
        let mut jobs = Vec::with_capacity(n_choices);
        for (choice, prompt) in choices.enumerate() {
            let sender = sender.clone();
            let sink = move |update| match sender.try_send((choice, update)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            };
            let request = Request {
                prompt: prompt.ids.clone(),
                media: prompt.media.clone(),
                sampling: SamplingParams {
                    seed: sampling.seed.wrapping_add(choice as u64),
                    ..sampling.clone()
                },
                max_tokens: request.max_tokens,
                stop_ids: reply.model.setup.tokenizer.stop_ids().to_vec(),
                stop_strings: request.stop.clone(),
                suppressed: suppressed.clone(),
                logprobs: request.logprobs,
                drafting: reply.model.setup.drafting,
            };
            let mut job = Job::new(request, Box::new(sink));
            job.constraint = constraints.next();
            (job.client, job.weight) = (caller.client, caller.weight);
            job.deadline = state.deadline(caller.arrived);
            reply.cancels.push(job.cancel.clone());
            jobs.push(job);
        }
        reply.model.engine.submit_all(jobs).map_err(engine_error)?;
        Ok(reply)
    }

    /// Everything that has come since, or `None` at the end.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, out: &mut Vec<Output>) -> Poll<Option<()>> {
        if self.n_open == 0 {
            return Poll::Ready(None);
        }
        if self.over.as_mut().poll(cx).is_ready() {
            // The connection would be cut, and the client not know whether that was all.
            self.fail(cancelled(), out);
            self.cancels.iter().for_each(Cancel::raise);
            return Poll::Ready(Some(()));
        }
        loop {
            match self.receiver.poll_recv(cx) {
                Poll::Ready(Some((choice, update))) => self.take(choice, update, out),
                // The engine is gone, and with it every sender.
                Poll::Ready(None) => self.fail(engine_error(carat_engine::Error::Stopped), out),
                Poll::Pending if out.is_empty() => return Poll::Pending,
                Poll::Pending => return Poll::Ready(Some(())),
            }
            if self.n_open == 0 {
                return Poll::Ready(Some(()));
            }
        }
    }

    /// All answers, whole.
    pub(crate) async fn gather(mut self) -> Result<Gathered, ApiError> {
        let mut choices: Vec<(Vec<Delta>, Option<Finish>)> = vec![(Vec::new(), None); self.latest.len()];
        let mut times = [Duration::ZERO; 2];
        let mut outputs = Vec::new();
        while std::future::poll_fn(|cx| self.poll(cx, &mut outputs))
            .await
            .is_some()
        {
            for output in outputs.drain(..) {
                match output {
                    Output::Delta(choice, delta) => choices[choice].0.push(delta),
                    Output::Finish(choice, finish, took) => {
                        choices[choice].1 = Some(finish);
                        times = took;
                    }
                    Output::Failed(error) => return Err(error),
                }
            }
        }
        let whole = choices
            .into_iter()
            .map(|(deltas, finish)| Some((deltas, finish?)));
        let choices = whole
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| engine_error(carat_engine::Error::Stopped))?;
        Ok(Gathered {
            choices,
            usage: self.usage,
            times,
        })
    }

    /// The name of the model that answers.
    pub(crate) fn model_id(&self) -> String {
        self.model.setup.id.clone()
    }

    /// Tokens of all prompts.
    pub(crate) fn n_prompt(&self) -> usize {
        self.n_prompt
    }

    /// Usage of all answers that have ended.
    pub(crate) fn usage(&self) -> &Usage {
        &self.usage
    }

    fn take(&mut self, choice: usize, update: Update, out: &mut Vec<Output>) {
        let mut deltas = Vec::new();
        let finish = match update {
            Update::Token { id, text, logprobs } => {
                self.time_token(choice);
                let tokenizer = Arc::clone(&self.model.setup.tokenizer);
                self.readers[choice].token(&tokenizer, id, text, logprobs.as_deref(), &mut deltas);
                None
            }
            Update::Finished(finished) => match finished.reason {
                FinishReason::Deadline => {
                    self.fail(too_late(), out);
                    return;
                }
                FinishReason::Cancelled => {
                    self.fail(cancelled(), out);
                    return;
                }
                _ => {
                    let finish = self.readers[choice].finish(&finished, &mut deltas);
                    let times = [finished.timings.prefill, finished.timings.decode];
                    Some((finish, times))
                }
            },
            // Only jobs for vectors end so, and they are not started here.
            Update::Embedded(_) => {
                self.fail(engine_error(carat_engine::Error::NoEmbeddings), out);
                return;
            }
            Update::Failed(error) => {
                self.fail(engine_error(*error), out);
                return;
            }
        };
        out.extend(deltas.into_iter().map(|delta| Output::Delta(choice, delta)));
        if let Some((finish, times)) = finish {
            self.count(choice, &finish.usage);
            if self.caller.trace.is_some() {
                self.reasons.add(&finish.kind);
            }
            self.n_open -= 1;
            out.push(Output::Finish(choice, finish, times));
        }
    }

    /// A prompt counts once, however often it is answered.
    fn count(&mut self, choice: usize, usage: &Usage) {
        if choice.is_multiple_of(self.n_choices.max(1)) {
            self.usage.prompt += usage.prompt;
            self.usage.cached += usage.cached;
        }
        self.usage.completion += usage.completion;
        self.usage.reasoning += usage.reasoning;
        self.usage.drafted += usage.drafted;
        self.usage.accepted += usage.accepted;
    }

    fn fail(&mut self, error: ApiError, out: &mut Vec<Output>) {
        self.n_open = 0;
        self.has_failed = true;
        out.push(Output::Failed(error));
    }

    fn time_token(&mut self, choice: usize) {
        let now = Instant::now();
        match self.latest[choice].replace(now) {
            None => {
                self.state.metrics.first_token.record(now - self.caller.arrived);
                if let Some(trace) = &self.caller.trace {
                    trace::spoke(trace);
                }
            }
            Some(before) => self.state.metrics.next_token.record(now - before),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.cancels.iter().for_each(Cancel::raise);
        self.state.metrics.duration.record(self.caller.arrived.elapsed());
        if let Some(trace) = &self.caller.trace {
            trace::ended(
                trace,
                &self.usage,
                &self.reasons,
                self.n_open == 0 && !self.has_failed,
            );
        }
    }
}

/// All answers of a request.
pub(crate) struct Gathered {
    /// Pieces and end of each.
    pub(crate) choices: Vec<(Vec<Delta>, Finish)>,
    /// Of all together.
    pub(crate) usage: Usage,
    /// What prefill and decode of the last one took.
    pub(crate) times: [Duration; 2],
}

/// The server stops, and waits for the answer no longer.
pub(crate) fn cancelled() -> ApiError {
    let message = "the answer was cancelled: the server is stopping";
    ApiError::new(ErrorKind::Unavailable, message)
}

/// The request's settings over the model's.
fn sampling(
    state: &State,
    model: &ServedModel,
    request: &GenerationRequest,
) -> Result<SamplingParams, ApiError> {
    let (base, wish) = (&model.setup.sampling, &request.sampling);
    let params = SamplingParams {
        temperature: wish.temperature.unwrap_or(base.temperature),
        top_k: wish.top_k.unwrap_or(base.top_k),
        top_p: wish.top_p.unwrap_or(base.top_p),
        min_p: wish.min_p.unwrap_or(base.min_p),
        typical_p: wish.typical_p.unwrap_or(base.typical_p),
        repetition_penalty: wish.repetition_penalty.unwrap_or(base.repetition_penalty),
        frequency_penalty: wish.frequency_penalty.unwrap_or(base.frequency_penalty),
        presence_penalty: wish.presence_penalty.unwrap_or(base.presence_penalty),
        penalty_window: wish.penalty_window.unwrap_or(base.penalty_window),
        logit_bias: wish.logit_bias.clone(),
        seed: wish.seed.unwrap_or_else(|| state.ids.number()),
    };
    params
        .validate(model.setup.tokenizer.len())
        .map_err(engine_error)?;
    Ok(params)
}

/// Refuses too many or too long texts. Before anything copies them for each answer.
pub(crate) fn check_stops(stop: &[String]) -> Result<(), ApiError> {
    if stop.len() > limits::STOP_STRINGS {
        let message = format!("`stop` may hold at most {} texts", limits::STOP_STRINGS);
        return Err(ApiError::field("stop", message));
    }
    if stop
        .iter()
        .any(|text| text.is_empty() || text.len() > limits::STOP_STRING_BYTES)
    {
        let message = format!(
            "a text of `stop` must have from 1 to {} bytes",
            limits::STOP_STRING_BYTES
        );
        return Err(ApiError::field("stop", message));
    }
    Ok(())
}

/// The request's time is over.
pub(crate) fn too_late() -> ApiError {
    let message = "the request took longer than this server allows; ask for less, or try again later";
    ApiError::new(ErrorKind::TooLate, message)
}

/// What the engine says, as clients are told.
pub(crate) fn engine_error(error: carat_engine::Error) -> ApiError {
    use carat_engine::Error;
    let message = error.to_string();
    match error {
        Error::Setting { field, .. } | Error::UnknownToken { field, .. } => ApiError::field(field, message),
        Error::QueueFull { .. } | Error::TooManyTogether { .. } => {
            ApiError::new(ErrorKind::RateLimit, message)
        }
        Error::Stopped => ApiError::new(ErrorKind::Unavailable, message),
        Error::PromptTooLong { .. } => {
            ApiError::new(ErrorKind::InvalidRequest, message).with_code("context_length_exceeded")
        }
        Error::EmptyPrompt | Error::NoTokensAllowed | Error::EmptyStopString | Error::Grammar { .. } => {
            ApiError::new(ErrorKind::InvalidRequest, message)
        }
        Error::NoCandidate { .. } | Error::NoEmbeddings => ApiError::new(ErrorKind::InvalidRequest, message),
        // The detail is for the log: it is no use to a client.
        other => {
            tracing::error!(error = %other, "a request failed");
            ApiError::new(
                ErrorKind::Internal,
                "the server made a mistake; its log says more",
            )
        }
    }
}

impl State {
    /// Readers for `n` answers of a conversation's request.
    pub(crate) fn readers(
        &self,
        model: &ServedModel,
        request: &GenerationRequest,
        n: usize,
    ) -> Vec<OutputReader> {
        let calls = || {
            let id = format!("{:016x}", self.ids.number());
            match model.call_marks {
                _ if !tools::are_offered(request) => Calls::None,
                Some(_) => Calls::Native { id, n: 0 },
                None => Calls::Prompted(CallReader::new(id)),
            }
        };
        (0..n)
            .map(|_| OutputReader::new(model, &request.stop, calls()))
            .collect()
    }
}
