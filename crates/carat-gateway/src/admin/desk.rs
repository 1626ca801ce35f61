//! Where acts on the ledger are done, one after another, on a thread of their own: a database may take its time, and
//! threads that serve requests do not wait for it.

use std::sync::mpsc;

use carat_ledger::{Admin, Place};
use http::StatusCode;
use tokio::sync::oneshot;

use super::Refused;
use crate::Error;

/// Most acts that wait.
const WAITING: usize = 64;

type Act = Box<dyn FnOnce(&mut Admin) + Send>;

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Desk {
    acts: mpsc::SyncSender<Act>,
}

impl Desk {
    /// Opens the ledger and starts the thread; it ends when the desk is dropped.
    pub(super) fn open(place: Place) -> Result<Self, Error> {
        let (acts, orders) = mpsc::sync_channel::<Act>(WAITING);
        let (opened, is_open) = mpsc::channel();
        let run = move || match Admin::open(place) {
            Ok(mut admin) => {
                let _heard = opened.send(Ok(()));
                while let Ok(act) = orders.recv() {
                    act(&mut admin);
                }
            }
            Err(error) => {
                let _heard = opened.send(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name("admin".into()).spawn(run);
        thread.map_err(|source| Error::Thread { source })?;
        match is_open.recv() {
            Ok(Ok(())) => Ok(Self { acts }),
            Ok(Err(error)) => Err(Error::Ledger(error)),
            Err(_) => Err(Error::config(
                "ledger",
                "the ledger cannot be opened; the log says more",
            )),
        }
    }

    /// Does something as `actor`.
    pub(super) async fn act<T: Send + 'static>(
        &self,
        actor: String,
        act: impl FnOnce(&mut Admin) -> Result<T, carat_ledger::Error> + Send + 'static,
    ) -> Result<T, Refused> {
        let (done, is_done) = oneshot::channel();
        let act: Act = Box::new(move |admin| {
            admin.set_actor(&actor);
            // It may be hours after the act before: a lost connection must not outlive the act that finds it so.
            let _heard = done.send(admin.renew().and_then(|()| act(admin)));
        });
        let busy = |_| {
            Refused::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too much is being done; try again",
            )
        };
        self.acts.try_send(act).map_err(busy)?;
        let broken = || {
            Refused::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the ledger cannot be used; the log says more",
            )
        };
        match is_done.await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(carat_ledger::Error::Refused(message))) => {
                Err(Refused::new(StatusCode::CONFLICT, message))
            }
            Ok(Err(error)) => {
                tracing::error!(%error, source = ?std::error::Error::source(&error), "an act of the admin API failed");
                Err(broken())
            }
            Err(_) => Err(broken()),
        }
    }
}
