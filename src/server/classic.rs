//! The wire of the Perl original, on its own port: a bare line, and a bare line back.
//!
//! Each connection carries one question, in the form of `protocol/classic.rs`.
//!
//! # Answers
//!
//! The answer is one line, then the server closes the connection. `0` is also the answer to a name that is missing,
//! empty, too long or not UTF-8, when the server is full, and to LOCKs that wait when the server ends. An unknown verb,
//! a request from a web page, a request of more than 64 kB and a request that is not complete after 10 s get no answer:
//! the server closes the connection.
//!
//! # Clients that go
//!
//! A client that closes or half-closes its connection while it waits loses its place: the two look alike. A client that
//! goes away after the grant keeps the lease until it ends, even if the answer was still on its way: the server can't
//! know what the client has read of it.
//!
//! If each thread has a connection, the server closes the connection that has been silent for longest, to serve the
//! next client.
//!
//! # Threads
//!
//! Each connection is accepted by a thread, which serves it until it is closed. Before it serves, the thread ensures
//! that another one is ready to accept; so a LOCK blocks only its own thread, and most questions start no thread. The
//! server's loop watches the clients of waiting LOCKs.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{self, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{self, sockopt};
use nix::sys::time::TimeVal;
use parking_lot::{Condvar, Mutex};

use crate::manager::{Answerer, Pending, Waiter};
use crate::protocol::classic::{MAX_REQUEST, Progress, Received};
use crate::protocol::{Malformed, Reply, Status};
use crate::server::access::{Asker, Caller};
use crate::server::handler::Handler;
use crate::server::listen;
use crate::server::poller::Poller;
use crate::server::status::ConnectionCount;

/// How long a client may take to send its request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The most threads that are ready to accept.
const MAX_IDLE: usize = 32;

/// The stack of a thread, in bytes. Serving a question needs little depth.
const STACK: usize = 128 * 1024;

/// The pause after accepting fails for lack of descriptors or memory.
const STARVED_PAUSE: Duration = Duration::from_millis(100);

/// How long accepting has to work again before that is logged.
const STABLE: Duration = Duration::from_secs(2);

/// The transport for the original's clients, on one listener.
pub(crate) struct ClassicTransport(Arc<Classic>);

struct Classic {
    listener: TcpListener,
    /// Whether another process listens on it, too.
    is_lent: bool,
    handler: Arc<Handler>,
    /// How many connections may be open at the same time: each has a thread.
    most: usize,
    state: Mutex<Open>,
    /// Notified when a thread has ended.
    ended: Condvar,
    poller: Arc<Poller>,
}

/// The open connections and their threads.
#[derive(Default)]
struct Open {
    threads: usize,
    /// How many threads accept, or are about to.
    idle: usize,
    next_id: u64,
    connections: HashMap<u64, Arc<TcpStream>>,
    /// The connections that have not sent their request, oldest first.
    silent: BTreeSet<u64>,
    closing: bool,
    /// When accepting last failed. `None` if it works, and the log says so.
    starved: Option<Instant>,
}

impl ClassicTransport {
    /// Serves on a prepared listener, in its own threads, up to `most` connections at the same time.
    pub fn open(
        listener: TcpListener,
        is_lent: bool,
        handler: Arc<Handler>,
        poller: Arc<Poller>,
        most: usize,
    ) -> io::Result<Self> {
        // Connections inherit it. It also limits each `accept`.
        let timeout = TimeVal::new(TIMEOUT.as_secs() as i64, 0);
        socket::setsockopt(&listener, sockopt::ReceiveTimeout, &timeout)?;
        let classic = Arc::new(Classic {
            listener,
            is_lent,
            handler,
            most,
            state: Mutex::default(),
            ended: Condvar::new(),
            poller,
        });
        let transport = ClassicTransport(classic);
        transport.0.state.lock().begin_thread();
        transport.0.start_thread()?;
        Ok(transport)
    }

    /// Returns a function that counts the open connections.
    pub fn connection_count(&self) -> ConnectionCount {
        let classic = Arc::downgrade(&self.0);
        Box::new(move || {
            let classic = classic.upgrade();
            classic.map_or(0, |classic| classic.state.lock().connections.len())
        })
    }

    /// Stops accepting connections.
    pub fn refuse(&self) {
        let classic = &self.0;
        classic.state.lock().closing = true;
        listen::refuse(&classic.listener, classic.is_lent, || {
            classic.state.lock().idle > 0
        });
    }

    /// Lets answers be written until `until`, then closes every connection. [`refuse`](Self::refuse) has to be called
    /// before, and the lock manager stopped: then each waiting LOCK is decided.
    pub fn close(self, until: Instant) {
        let classic = &self.0;
        let mut state = classic.state.lock();
        // Requests that are not complete by now are not waited for.
        state.shut_down_all(Shutdown::Read);
        while state.threads > 0 && !classic.ended.wait_until(&mut state, until).timed_out() {}
        state.shut_down_all(Shutdown::Both);
    }
}

impl Open {
    /// Counts a thread that is about to accept.
    fn begin_thread(&mut self) {
        self.threads += 1;
        self.idle += 1;
    }

    fn mark_served(&mut self, id: u64) {
        self.silent.remove(&id);
    }

    /// Closes the connection that has been silent for longest, except `but`.
    fn shut_down_most_silent(&mut self, but: u64) {
        let most_silent = self.silent.iter().find(|id| **id != but).copied();
        if let Some(id) = most_silent {
            self.silent.remove(&id);
            if let Some(stream) = self.connections.get(&id) {
                // It fails only if the client has gone.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    fn shut_down_all(&self, how: Shutdown) {
        for stream in self.connections.values() {
            // It fails only if the client has gone.
            let _ = stream.shutdown(how);
        }
    }
}

/// A connection that is being served.
struct Connection {
    id: u64,
    stream: Arc<TcpStream>,
    /// Whether another thread accepts meanwhile. If not, a LOCK must not block this one.
    may_wait: bool,
}

impl Classic {
    /// Starts a thread that is already counted.
    fn start_thread(self: &Arc<Self>) -> io::Result<()> {
        let classic = self.clone();
        let thread = thread::Builder::new().name("lock-classic".into());
        let thread = thread.stack_size(STACK);
        thread.spawn(move || classic.accept_and_serve()).map(drop)
    }

    fn accept_and_serve(self: &Arc<Self>) {
        while let Some(stream) = self.accept() {
            let connection = self.enter(stream);
            self.serve(&connection);
            if !self.leave(connection) {
                return self.count_out();
            }
        }
        self.state.lock().idle -= 1;
        self.count_out();
    }

    /// Uncounts a thread that ends.
    fn count_out(&self) {
        self.state.lock().threads -= 1;
        self.ended.notify_all();
    }

    /// Blocks for the next connection. `None` when the server ends.
    fn accept(&self) -> Option<TcpStream> {
        loop {
            let error = match self.listener.accept() {
                Ok((stream, _)) => return Some(stream),
                Err(error) => error,
            };
            let mut state = self.state.lock();
            if state.closing {
                return None;
            }
            if matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
            ) {
                continue;
            }
            if state.starved.replace(Instant::now()).is_none() {
                log::warn!("no classic connection is accepted for now: {error}; the locks stay");
            }
            drop(state);
            thread::sleep(STARVED_PAUSE);
        }
    }

    /// Adds a connection, and ensures that another thread is ready to accept the next one.
    fn enter(self: &Arc<Self>, stream: TcpStream) -> Connection {
        let stream = Arc::new(stream);
        let mut state = self.state.lock();
        if state.starved.is_some_and(|since| since.elapsed() > STABLE) {
            state.starved = None;
            log::warn!("accepting classic connections again");
        }
        let id = state.next_id;
        state.next_id += 1;
        state.connections.insert(id, stream.clone());
        state.silent.insert(id);
        state.idle -= 1;
        let wanted = state.idle == 0 && !state.closing;
        let may_start = wanted && state.threads < self.most;
        if may_start {
            state.begin_thread();
        } else if wanted {
            state.shut_down_most_silent(id);
        }
        drop(state);
        let mut may_wait = true;
        if may_start && let Err(error) = self.start_thread() {
            log::warn!("no thread left to accept classic connections: {error}");
            self.state.lock().idle -= 1;
            self.count_out();
            may_wait = false;
        }
        Connection {
            id,
            stream,
            may_wait,
        }
    }

    /// Closes a served connection. `false` if enough other threads accept: then this thread has to end.
    fn leave(&self, connection: Connection) -> bool {
        let mut state = self.state.lock();
        state.connections.remove(&connection.id);
        let accepts = state.idle < MAX_IDLE && !state.closing;
        state.idle += usize::from(accepts);
        accepts
    }

    fn serve(&self, connection: &Connection) {
        let mut stream = &*connection.stream;
        let received = receive(stream);
        self.state.lock().mark_served(connection.id);
        let received = match received {
            Ok(received) => received,
            Err(error) => return log::debug!("a classic client sent no request: {error}"),
        };
        let Some(line) = self.answer(connection, &received) else {
            return;
        };
        if let Err(error) = stream.write_all(line.as_bytes()) {
            log::debug!("a classic client did not take its answer: {error}");
        }
        if received.has_more() {
            drain(stream);
        }
    }

    /// The line to answer with. `None` closes the connection without an answer.
    fn answer(&self, connection: &Connection, received: &Received) -> Option<String> {
        let handler = &*self.handler;
        let headers: Vec<_> = received.headers().collect();
        let headers = headers
            .iter()
            .map(|(field, value)| (&**field, value.trim()));
        if handler.access.admit(&Asker::of(headers)).is_err() {
            log::debug!("a classic request got no answer: a web page sent it");
            return None;
        }
        let question = match received.question() {
            Ok(question) => question,
            Err(Malformed::NoSuchVerb) => {
                log::debug!("a classic request got no answer: there is no such verb");
                return None;
            }
            Err(Malformed::BadRequest(reason)) => {
                log::debug!("a classic request was answered 0: {reason}");
                let reply = Malformed::BadRequest(reason).into();
                handler.status.requests.count(None, &reply);
                return Some(reply.answer.first_line().into_owned());
            }
        };
        if handler.redirect(question.verb, "").is_some() {
            log::debug!("a classic request got no answer: another server leads");
            return None;
        }
        let asked = handler.manager.asked();
        let mut waiter = None;
        let reply = handler.answer(&question, &Caller::default(), |pending| {
            let stream = connection.stream.clone();
            let new = Arc::new(ClassicWaiter { pending, stream });
            waiter = Some(new.clone());
            new
        });
        let once_stored = |reply: Reply| match handler.waits_for_store(question.verb, &reply) {
            true => {
                let is_stored = handler.manager.wait_until_stored(asked);
                is_stored.then(|| handler.stored_reply(reply, asked))
            }
            false => Some(reply),
        };
        let reply = match (reply, waiter) {
            (None, Some(waiter)) if connection.may_wait => self.wait(&waiter)?,
            (None, Some(waiter)) => once_stored(handler.give_up(&(waiter as Arc<dyn Waiter>)))?,
            (reply, _) => once_stored(reply?)?,
        };
        log::trace!("classic {question} {}", reply.status as u16);
        (reply.status != Status::Forbidden).then(|| reply.answer.first_line().into_owned())
    }

    /// Blocks until a LOCK is decided. `None` if its client has gone.
    fn wait(&self, waiter: &Arc<ClassicWaiter>) -> Option<Reply> {
        let as_waiter: Arc<dyn Waiter> = waiter.clone();
        let client = waiter.stream.as_fd();
        match self.poller.watch(client, Arc::downgrade(&as_waiter)) {
            Ok(_watched) => {
                let manager = &self.handler.manager;
                let outcome = manager.wait(&waiter.pending);
                let pending = &waiter.pending;
                let stored = pending.is_stored()
                    || !outcome.tells_of_hold()
                    || manager.wait_until_stored(pending.asked());
                stored.then(|| self.handler.outcome_reply(waiter.pending.key(), &outcome))?
            }
            Err(error) => {
                // Out of memory. A hang-up of the client would not be noticed.
                log::warn!("no room to watch one more waiter: {error}");
                Some(self.handler.give_up(&as_waiter))
            }
        }
    }
}

/// A waiting client. Its connection's thread blocks for the outcome.
struct ClassicWaiter {
    pending: Pending,
    stream: Arc<TcpStream>,
}

impl Waiter for ClassicWaiter {
    fn pending(&self) -> &Pending {
        &self.pending
    }

    /// A client that has closed its sending half looks like one that has gone.
    fn is_there(&self) -> bool {
        let gone = PollFlags::from_bits_retain(libc::POLLRDHUP);
        let mut asked = [PollFd::new(self.stream.as_fd(), gone)];
        // It can fail only if it would have to block.
        poll::poll(&mut asked, PollTimeout::ZERO) != Ok(1)
    }

    fn notify(self: Arc<Self>, _: Answerer) {}
}

/// Reads a request. An error if it is not complete within [`TIMEOUT`], or too long.
fn receive(mut stream: &TcpStream) -> io::Result<Received> {
    let until = Instant::now() + TIMEOUT;
    let mut received = Received::default();
    let mut piece = [0; 2048];
    loop {
        let length = match stream.read(&mut piece) {
            Ok(0) => return Ok(received),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        match received.take(&piece[..length]) {
            Progress::Complete => return Ok(received),
            Progress::TooLong => return Err(ErrorKind::InvalidData.into()),
            Progress::Incomplete => {}
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
    }
}

/// Discards the bytes after the request: closing the connection with unread bytes would reset it, and the client might
/// lose its answer.
fn drain(mut stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.set_nonblocking(true);
    let mut piece = [0; 2048];
    for _ in 0..MAX_REQUEST / piece.len() {
        if !matches!(stream.read(&mut piece), Ok(1..)) {
            return;
        }
    }
}
