//! What targets cost: the configuration's prices over the price list.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use carat_ledger::{Price, PriceList};

use crate::Error;
use crate::provider::Provider;
use crate::route::Candidate;

/// Most prices that are remembered; beyond it they are looked up every time.
const MAX_FOUND: usize = 4096;

/// Prices by target.
#[derive(Debug)]
pub(crate) struct Prices {
    list: PriceList,
    /// The configuration's own.
    own: HashMap<String, Arc<Price>>,
    found: Mutex<HashMap<String, Option<Arc<Price>>>>,
    contexts: Mutex<HashMap<String, Option<u64>>>,
}

impl Prices {
    /// The list that comes with carat, with the configuration's prices before it.
    pub(crate) fn new(own: HashMap<String, Arc<Price>>) -> Result<Self, Error> {
        Ok(Self {
            list: PriceList::builtin().map_err(Error::Ledger)?,
            own,
            found: Mutex::default(),
            contexts: Mutex::default(),
        })
    }

    /// Tokens that a model takes, if the list knows it.
    pub(crate) fn context(&self, provider: &Provider, model: &str) -> Option<u64> {
        let name = format!("{}/{model}", provider.prices);
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = contexts.get(&name) {
            return *context;
        }
        let context = self
            .list
            .find(&provider.prices, model)
            .and_then(|listed| listed.context);
        if contexts.len() < MAX_FOUND {
            contexts.insert(name, context);
        }
        context
    }

    /// A target's price. What is on this machine costs nothing unless the configuration says otherwise.
    pub(crate) fn of(&self, candidate: &Candidate) -> Option<Arc<Price>> {
        if let Some(price) = self.own.get(&candidate.name) {
            return Some(Arc::clone(price));
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(price) = found.get(&candidate.name) {
            return price.clone();
        }
        let provider = &candidate.provider;
        let listed = self.list.find(&provider.prices, &candidate.model);
        let price = match listed {
            Some(listed) => Some(Arc::new(listed.price.clone())),
            None => provider.is_local.then(Arc::default),
        };
        if found.len() < MAX_FOUND {
            found.insert(candidate.name.clone(), price.clone());
        }
        price
    }
}
