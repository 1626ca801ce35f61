//! Answers that a provider could not finish, by its own word: it is well, and neither it nor another is asked again, since
//! what was said has been paid for. Who speaks its own API gets its answer as it is; all others get what came before,
//! and then an error.

use super::{Event, Writer};
use crate::endpoint::Endpoint;
use crate::failure::{Class, Failure};
use crate::reply;

/// The event of such an end.
pub(super) fn event(reason: &str) -> Event {
    Event::Broken(format!("the provider could not finish its answer ({reason})"))
}

/// What a client is told of it. That it is no illness of the provider's is what its class is for.
pub(super) fn failure(why: &str) -> Failure {
    Failure::new(Class::BadRequest, 502, why)
}

/// Ends a stream with an error instead of its usual end if it was broken.
pub(super) struct Ending {
    endpoint: Endpoint,
    writer: Box<dyn Writer>,
    why: Option<String>,
}

impl Ending {
    pub(super) fn new(endpoint: Endpoint, writer: Box<dyn Writer>) -> Self {
        Self {
            endpoint,
            writer,
            why: None,
        }
    }
}

impl Writer for Ending {
    fn event(&mut self, event: &Event, out: &mut Vec<u8>) {
        if let Event::Broken(why) = event {
            self.why = Some(why.clone());
        }
        self.writer.event(event, out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        match &self.why {
            None => self.writer.end(out),
            Some(why) => reply::stream_error(self.endpoint, &failure(why), out),
        }
    }
}
