//! A connection to a provider, driven by whoever asks over it.
//!
//! It has no task of its own: the request that it carries polls it, then the answer's body does, so that a byte from a
//! provider wakes nobody but the client's own connection, and everything that one read has brought is at hand without
//! another turn of the scheduler. It keeps no buffer either: what is read is decoded at once ([`crate::http1`]). Between
//! requests nobody drives it; [`crate::pool`] looks at it before it is used again.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::rt::{Read, ReadBuf, Write};
use hyper_rustls::MaybeHttpsStream;
use tokio::task::coop::unconstrained;

use crate::engine::Door;
use crate::http1::{self, Framing, Head, HeadReader, Malformed};
use crate::pool::Home;

/// What goes over it.
type Io = MaybeHttpsStream<Door>;
/// Most that is read at once, in bytes.
const READ_BYTES: usize = 16 << 10;

/// Why an answer does not come, or not to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// Before a byte of the answer.
    #[error("the connection was closed instead of an answer")]
    Unanswered {
        /// The other side may have all of the request.
        is_sent: bool,
    },
    #[error("the connection was closed in the middle of an answer")]
    Closed,
    #[error("{0}")]
    Malformed(#[from] Malformed),
}

/// A connection.
pub(crate) struct Link {
    io: Io,
    /// It is of use once the answer is whole.
    is_kept: bool,
}

impl Link {
    /// Over a stream that is open.
    pub(crate) fn new(io: Io) -> Self {
        Self { io, is_kept: true }
    }

    /// Sends a request, up to the head of its answer. Dropped before that, the connection is of no more use.
    pub(crate) async fn ask(&mut self, request: &Request<Bytes>) -> Result<Response<Beginning>, Broken> {
        let mut unsent = Bytes::from(http1::request_head(request)).chain(request.body().clone());
        let mut is_sent = false;
        let mut is_heard = false;
        let mut reader = HeadReader::default();
        let mut found: Option<Head> = None;
        poll_fn(|cx| {
            if !is_sent {
                match self.poll_send(cx, &mut unsent) {
                    Poll::Ready(Ok(())) => is_sent = true,
                    // It may still say why it listens no more.
                    Poll::Ready(Err(_)) => (is_sent, self.is_kept) = (true, false),
                    Poll::Pending => {}
                }
            }
            while found.is_none() {
                let mut read = Ok(None);
                match ready!(self.poll_read(cx, |bytes| read = reader.feed(bytes))) {
                    Ok(0) | Err(_) if !is_heard => {
                        let is_sent = !unsent.has_remaining();
                        return Poll::Ready(Err(Broken::Unanswered { is_sent }));
                    }
                    Ok(0) => return Poll::Ready(Err(Broken::Closed)),
                    Ok(_) => (is_heard, found) = (true, read?),
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
            }
            // A refusal may come before all was sent, and ends the matter.
            match found.take_if(|head| is_sent || !head.response.status().is_success()) {
                Some(head) => Poll::Ready(Ok(head)),
                None => Poll::Pending,
            }
        })
        .await
        .map(|head| {
            self.is_kept &= is_sent && head.is_kept;
            head.response.map(|()| Beginning {
                framing: head.framing,
                unread: reader.unread,
            })
        })
    }

    /// Whether another request may be sent, as far as can be known.
    pub(crate) fn is_idle(&mut self) -> bool {
        // Nobody is to be woken for it any more, and a task that has used up its turn must see what has come, too.
        let mut cx = Context::from_waker(Waker::noop());
        let look = unconstrained(poll_fn(|cx| self.poll_read(cx, |_| ())));
        // A byte that nobody asked for is as bad as the end.
        pin!(look).poll(&mut cx).is_pending() && self.is_kept
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, unsent: &mut impl Buf) -> Poll<io::Result<()>> {
        while unsent.has_remaining() {
            let mut pieces = [IoSlice::new(&[]); 2];
            let n_pieces = unsent.chunks_vectored(&mut pieces);
            let io = Pin::new(&mut self.io);
            match ready!(io.poll_write_vectored(cx, &pieces[..n_pieces]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => unsent.advance(n),
            }
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Hands over what has come, and says how much that is: nothing at the end.
    fn poll_read(&mut self, cx: &mut Context<'_>, take: impl FnOnce(&[u8])) -> Poll<io::Result<usize>> {
        let mut space = [MaybeUninit::uninit(); READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer.unfilled()))?;
        let read = buffer.filled();
        take(read);
        Poll::Ready(Ok(read.len()))
    }
}

/// The beginning of a body.
pub(crate) struct Beginning {
    framing: Framing,
    /// What came with the head.
    unread: Vec<u8>,
}

/// The body of an answer, with the connection that it comes over.
pub(crate) struct LinkBody {
    framing: Framing,
    /// What was decoded and not handed out.
    said: Vec<u8>,
    /// Gone once nothing more comes.
    link: Option<(Box<Link>, Home)>,
    /// Why nothing more comes, if that is not the end.
    broken: Option<Broken>,
}

impl LinkBody {
    pub(crate) fn new(beginning: Beginning, link: Box<Link>, home: Home) -> Self {
        let mut body = Self {
            framing: beginning.framing,
            said: Vec::new(),
            link: Some((link, home)),
            broken: None,
        };
        let decoded = body.framing.decode(&beginning.unread, &mut body.said);
        body.came(beginning.unread.len(), decoded);
        body
    }

    /// So many bytes came, and so many of them are of this body.
    fn came(&mut self, n_read: usize, decoded: Result<usize, Malformed>) {
        match decoded {
            Ok(n_own) if self.framing.is_done() => {
                if let Some((mut link, home)) = self.link.take()
                    && n_own == n_read
                    && link.is_idle()
                {
                    home.take_back(link);
                }
            }
            Ok(_) => {}
            Err(error) => self.breaks(error.into()),
        }
    }

    fn breaks(&mut self, why: Broken) {
        self.link = None;
        self.broken = Some(why);
    }
}

impl Body for LinkBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        loop {
            if !this.said.is_empty() {
                let said = std::mem::take(&mut this.said);
                return Poll::Ready(Some(Ok(Frame::data(said.into()))));
            }
            let Some((link, _)) = &mut this.link else {
                return Poll::Ready(this.broken.take().map(Err));
            };
            let mut decoded = Ok(0);
            let read = link.poll_read(cx, |read| decoded = this.framing.decode(read, &mut this.said));
            match ready!(read) {
                Ok(0) if this.framing == Framing::UntilClosed => this.link = None,
                Ok(0) => this.breaks(Broken::Closed),
                Ok(n_read) => this.came(n_read, decoded),
                Err(error) => this.breaks(error.into()),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.link.is_none() && self.said.is_empty() && self.broken.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.framing.length().map(|left| left + self.said.len() as u64);
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
