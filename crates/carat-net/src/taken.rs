//! Connections whose clients must take what is written to them.
//!
//! Nobody polls an answer while what came of it before cannot be written. So a client that reads nothing would hold
//! its answer for as long as it likes, whatever time limits the answer has, and with it what the answer holds: a place
//! at a provider, a connection to it, money. A write that can go nowhere for [`TAKING_WAIT`] ends the connection.
//!
//! A client that reads slowly shall not be cut, and that it reads is seen late: a system says that there is room again
//! when much of its buffer has gone out, not after every packet. A client that reads [`BODY_RATE`] makes itself felt
//! once it has read what may lie in these buffers; so a write may wait for as long as that takes too. Nothing more can
//! lie there than was written, which keeps the time short where buffers are small.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::limits::{BODY_RATE, TAKING_BYTES, TAKING_WAIT};

/// A connection that ends when its other side takes nothing any more.
#[derive(Debug)]
pub(crate) struct Taken<I> {
    stream: I,
    /// Bytes, as far as they matter.
    n_written: u64,
    is_waiting: bool,
    /// Made when a write waits for the first time: most never do.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<I> Taken<I> {
    pub(crate) fn new(stream: I) -> Self {
        Self {
            stream,
            n_written: 0,
            is_waiting: false,
            alarm: None,
        }
    }

    /// What a write came to, which may have waited long enough.
    fn timed(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Pending if self.is_late(cx) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client takes nothing of its answer",
            ))),
            Poll::Pending => Poll::Pending,
            Poll::Ready(written) => {
                self.is_waiting = false;
                if let Ok(n_bytes) = written {
                    self.n_written = TAKING_BYTES.min(self.n_written + n_bytes as u64);
                }
                Poll::Ready(written)
            }
        }
    }

    /// Nothing could be written: whether no more is waited for.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let is_new = !std::mem::replace(&mut self.is_waiting, true);
        let until = || {
            let buffered = Duration::from_millis(self.n_written * 1000 / BODY_RATE);
            Instant::now() + TAKING_WAIT + buffered
        };
        let alarm = match &mut self.alarm {
            Some(alarm) => {
                if is_new {
                    alarm.as_mut().reset(until());
                }
                alarm
            }
            none => none.insert(Box::pin(sleep_until(until()))),
        };
        alarm.as_mut().poll(cx).is_ready()
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Taken<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Taken<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.timed(written, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, pieces);
        this.timed(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_not_waited_for() {
        let (stream, mut client) = duplex(1 << 10);
        let mut stream = Taken::new(stream);
        stream.write_all(&[0; 1 << 10]).await.unwrap();
        // A write that had to wait and then could go is forgotten.
        for _ in 0..3 {
            let reading = async {
                tokio::time::sleep(TAKING_WAIT).await;
                client.read_exact(&mut [0; 1 << 10]).await.unwrap();
            };
            let (written, ()) = tokio::join!(stream.write_all(&[0; 1 << 10]), reading);
            written.unwrap();
        }
        let began = Instant::now();
        let error = stream.write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), TAKING_WAIT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_is_waited_for_however_late_it_is_seen() {
        // The buffer has room for all that was written before, and says so only when all of it is gone.
        let buffered = 1 << 20;
        let (stream, mut client) = duplex(buffered);
        let mut stream = Taken::new(stream);
        stream.write_all(&vec![0; buffered]).await.unwrap();
        let time = Duration::from_secs(buffered as u64 / BODY_RATE);
        assert!(time > TAKING_WAIT, "else this shows nothing");
        let reading = async {
            tokio::time::sleep(time).await;
            client.read_exact(&mut vec![0; buffered]).await.unwrap();
        };
        let (written, ()) = tokio::join!(stream.write_all(b"x"), reading);
        written.unwrap();
    }
}
