//! Files that a request names by their address, for providers that take data alone: fetched once for a request, however
//! many are asked, and while it holds no place at anybody.

use std::sync::OnceLock;

use carat_fetch::Fetcher;

use crate::attempt::Call;
use crate::config::Config;
use crate::endpoint::Kind;
use crate::failure::{Class, Failure};
use crate::prepare;
use crate::route::Candidate;
use crate::translate::{Question, images};

/// A request's files, once they are needed.
#[derive(Default)]
pub(crate) struct Files {
    /// The request with its files in it, or why there is none.
    filled: OnceLock<Result<Box<Question>, Failure>>,
}

impl Files {
    /// Who fetches them, if a candidate cannot be asked before they are here.
    fn wanted<'a>(&self, call: &Call<'_>, candidate: &Candidate, config: &'a Config) -> Option<&'a Fetcher> {
        let is_told = needs_data(call, candidate) && call.wish.needs.named.by_address;
        config
            .fetcher
            .as_ref()
            .filter(|_| is_told && self.filled.get().is_none())
    }

    /// Whether a candidate cannot be asked before they are here.
    pub(crate) fn are_missing(&self, call: &Call<'_>, candidate: &Candidate, config: &Config) -> bool {
        self.wanted(call, candidate, config).is_some()
    }

    /// Fetches what a candidate needs, if that is not here yet.
    ///
    /// # Errors
    /// When that cannot be done. Who needs none of it may still be asked.
    pub(crate) async fn fetch(
        &self,
        call: &Call<'_>,
        candidate: &Candidate,
        config: &Config,
    ) -> Result<(), Failure> {
        let Some(fetcher) = self.wanted(call, candidate, config) else {
            return Ok(());
        };
        // On the heap, since few requests need it.
        let filling = Box::pin(filled(call, fetcher));
        let filled = tokio::time::timeout_at(call.deadline, filling).await;
        let late = || Failure::new(Class::Slow, 504, "the images took too long to be fetched");
        // No provider has heard of it.
        let filled = filled.unwrap_or_else(|_| Err(late())).map_err(Failure::undone);
        let failure = filled.as_ref().err().cloned();
        // Nobody else fills it meanwhile: a request fetches from one place.
        let _first = self.filled.set(filled);
        failure.map_or(Ok(()), Err)
    }

    /// What is asked of a candidate, with the files in it where it needs them so.
    ///
    /// # Errors
    /// When the request cannot be read, or its files could not be fetched.
    pub(crate) fn question(&self, call: &Call<'_>, candidate: &Candidate) -> Result<Question, Failure> {
        match self.filled.get().filter(|_| needs_data(call, candidate)) {
            Some(Ok(question)) => Ok(question.as_ref().clone()),
            Some(Err(failure)) => Err(failure.clone()),
            None => read(call),
        }
    }
}

/// Whether a candidate is told what is asked in its own words, in which there is no place for addresses.
fn needs_data(call: &Call<'_>, candidate: &Candidate) -> bool {
    let provider = candidate.provider.as_ref();
    call.endpoint.kind() == Kind::Conversation
        && !provider.has(call.endpoint)
        && images::wants_data(provider.dialect)
}

fn read(call: &Call<'_>) -> Result<Question, Failure> {
    Question::read(call.endpoint, &prepare::value(call)?)
}

async fn filled(call: &Call<'_>, fetcher: &Fetcher) -> Result<Box<Question>, Failure> {
    let mut question = read(call)?;
    images::fill(&mut question, fetcher).await?;
    Ok(Box::new(question))
}
