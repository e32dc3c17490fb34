//! Calling off a wait from another thread.

use std::fmt;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Client;

/// How long after the first request to leave its queue a wait is sent another one.
const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Calls off waits that have a clone of it in [`LockOptions::cancel`](crate::LockOptions::cancel), and
/// [`Events`](crate::Events) that got it with [`until`](crate::Events::until).
///
/// ```
/// use std::{thread, time::Duration};
/// use lock_server::{CancelToken, Error, LockOptions, Options, Refusal, Server};
///
/// # fn main() -> Result<(), Error> {
/// let mut server = Server::new(Options { port: 0, ..Options::default() });
/// server.start()?;
/// let _held = server.client("CLIENT_A").guard("KEYA")?;
///
/// let cancel = CancelToken::new();
/// let waits = LockOptions { cancel: Some(cancel.clone()), ..LockOptions::endless() };
/// let client = server.client("CLIENT_B");
/// let waiter = thread::spawn(move || client.guard_with("KEYA", &waits));
/// cancel.cancel();
/// let refused = waiter.join().unwrap().unwrap_err();
/// assert!(matches!(refused, Error::NotGranted { reason: Refusal::Cancelled, .. }));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct CancelToken(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<CancelState>,
    /// Notified when the token is cancelled, and when a wait has ended.
    changed: Condvar,
}

#[derive(Default)]
struct CancelState {
    is_cancelled: bool,
    waits: Vec<RegisteredWait>,
    /// The connections of event streams, by their numbers.
    streams: Vec<(u64, TcpStream)>,
    next_number: u64,
}

/// A LOCK that may be waiting at a server.
#[derive(Clone)]
struct RegisteredWait {
    number: u64,
    client: Client,
    key: String,
    request_id: String,
}

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        CancelToken::default()
    }

    /// Ends the waits that have this token, now and later. Each returns [`Error::NotGranted`](crate::Error::NotGranted)
    /// with [`Refusal::Cancelled`](crate::Refusal::Cancelled), holds nothing, and has left the queue. This call asks
    /// the server for that. It returns when the waits have ended, or after
    /// [`answer_timeout`](crate::ClientOptions::answer_timeout) without an answer of the server; then a wait ends when
    /// its question times out, up to half a minute later. A LOCK that was granted before stays granted.
    pub fn cancel(&self) {
        {
            let mut state = self.state();
            state.is_cancelled = true;
            state.streams.drain(..).for_each(end);
        }
        self.0.changed.notify_all();
        let begun = Instant::now();
        loop {
            let waits = self.state().waits.clone();
            let waits: Vec<_> = waits
                .into_iter()
                .filter(|wait| begun.elapsed() < wait.client.answer_timeout())
                .collect();
            if waits.is_empty() {
                return;
            }
            for wait in waits {
                wait.client.leave_queue(&wait.key, &wait.request_id);
            }
            // A LOCK that was still on its way was not in the queue then. So the server is asked again.
            let waited =
                self.0
                    .changed
                    .wait_timeout_while(self.state(), ASKED_AGAIN_AFTER, |state| {
                        !state.waits.is_empty()
                    });
            drop(waited);
        }
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.state().is_cancelled
    }

    /// Waits for this time, or until the token is cancelled.
    pub(super) fn sleep(&self, time: Duration) {
        let waited = self
            .0
            .changed
            .wait_timeout_while(self.state(), time, |state| !state.is_cancelled);
        drop(waited);
    }

    /// Notes a LOCK that is about to wait, and returns its number.
    pub(super) fn enter(&self, client: &Client, key: &str, request_id: &str) -> u64 {
        let mut state = self.state();
        let number = state.next_number;
        state.next_number += 1;
        state.waits.push(RegisteredWait {
            number,
            client: client.clone(),
            key: key.into(),
            request_id: request_id.into(),
        });
        number
    }

    /// Forgets a LOCK that waits no longer. `false` if the token was cancelled before.
    pub(super) fn leave(&self, number: u64) -> bool {
        let mut state = self.state();
        state.waits.retain(|wait| wait.number != number);
        self.0.changed.notify_all();
        !state.is_cancelled
    }

    /// Notes a stream of events, and returns its number. Ends the stream at once if the token was cancelled before.
    pub(super) fn enter_stream(&self, connection: TcpStream) -> u64 {
        let mut state = self.state();
        let number = state.next_number;
        state.next_number += 1;
        match state.is_cancelled {
            true => end((number, connection)),
            false => state.streams.push((number, connection)),
        }
        number
    }

    /// Forgets a stream that has ended.
    pub(super) fn leave_stream(&self, number: u64) {
        self.state().streams.retain(|(other, _)| *other != number);
    }

    fn state(&self) -> MutexGuard<'_, CancelState> {
        // Each change is one step, so a panic under the lock leaves the state whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a stream for the thread that reads it.
fn end((_, connection): (u64, TcpStream)) {
    // It fails only if the connection has ended already.
    let _ = connection.shutdown(Shutdown::Both);
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken")
            .field("is_cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// Tokens are equal if they are clones of each other.
impl PartialEq for CancelToken {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for CancelToken {}
