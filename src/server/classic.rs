//! The original's own wire, on a port of its own: a bare line, and a bare line back.
//!
//! One question on each connection, as `protocol/classic.rs` has it.
//!
//! # Answers
//!
//! The answer is one line, and the server closes the connection. `0` is also the answer to a name that is
//! missing, empty, too long or not UTF-8, when the server is full, and to those that wait when it ends.
//! No answer, only the end of the connection, gets an unknown verb, a request that a web page sent, one of
//! more than 64 kB, and one that is not there whole after 10 s.
//!
//! # Clients that go
//!
//! Who closes or half-closes its connection while it waits loses its place: the two look alike. Who goes
//! after the grant keeps the lease until it runs out, also where the answer was still on its way: what the
//! client has read of it can't be known.
//!
//! Where every thread has a connection, the connection that has been silent for longest is closed, so that
//! the next client is served.
//!
//! # Threads
//!
//! Each connection has a thread for as long as it is open, and that thread has accepted it. Before it
//! serves, it ensures that another one stands ready to accept; so a LOCK blocks its own thread and
//! nobody else's, and most questions start no thread. The server's loop watches the clients of those that wait.

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

/// How many threads stand ready at the most.
const MAX_IDLE: usize = 32;

/// A question is read, asked and answered: it needs little depth.
const STACK: usize = 128 * 1024;

/// How long nothing is accepted when the system has no descriptor or memory for it.
const STARVED_PAUSE: Duration = Duration::from_millis(100);

/// How long connections have to be accepted before that is logged.
const STABLE: Duration = Duration::from_secs(2);

/// The server's end of the port for the original's clients.
pub(crate) struct ClassicTransport(Arc<Classic>);

struct Classic {
    listener: TcpListener,
    /// Whether others listen on it, too.
    is_lent: bool,
    handler: Arc<Handler>,
    /// How many connections may be open at the same time: each has a thread.
    most: usize,
    state: Mutex<Open>,
    /// Tells that a thread has ended.
    ended: Condvar,
    poller: Arc<Poller>,
}

/// What is open.
#[derive(Default)]
struct Open {
    threads: usize,
    /// How many of them accept, or are about to.
    idle: usize,
    next_id: u64,
    connections: HashMap<u64, Arc<TcpStream>>,
    /// Those of them that have not sent their request.
    silent: BTreeSet<u64>,
    closing: bool,
    /// When accepting last failed, as long as the log was not told that this is over.
    starved: Option<Instant>,
}

impl ClassicTransport {
    /// Serves on a prepared listener, in threads of its own, up to so many connections at the same time.
    pub fn open(
        listener: TcpListener,
        is_lent: bool,
        handler: Arc<Handler>,
        poller: Arc<Poller>,
        most: usize,
    ) -> io::Result<Self> {
        // Passed on to what is accepted. `accept` itself comes back so often, too.
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

    /// What counts the connections that are open.
    pub fn connection_count(&self) -> ConnectionCount {
        let classic = Arc::downgrade(&self.0);
        Box::new(move || {
            let classic = classic.upgrade();
            classic.map_or(0, |classic| classic.state.lock().connections.len())
        })
    }

    /// Accepts nothing more.
    pub fn refuse(&self) {
        let classic = &self.0;
        classic.state.lock().closing = true;
        listen::refuse(&classic.listener, classic.is_lent, || {
            classic.state.lock().idle > 0
        });
    }

    /// Lets answers be finished until then, and closes every connection. Called once it [refuses](Self::refuse), and
    /// waiting LOCKs are decided: the lock manager has stopped.
    pub fn close(self, until: Instant) {
        let classic = &self.0;
        let mut state = classic.state.lock();
        // Who has not sent its request by now is not waited for.
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

    /// Closes the connection that has been silent for longest, other than this one.
    fn shut_down_most_silent(&mut self, but: u64) {
        let most_silent = self.silent.iter().find(|id| **id != but).copied();
        if let Some(id) = most_silent {
            self.silent.remove(&id);
            if let Some(stream) = self.connections.get(&id) {
                // It fails only where the client has gone.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    fn shut_down_all(&self, how: Shutdown) {
        for stream in self.connections.values() {
            // It fails only where the client has gone.
            let _ = stream.shutdown(how);
        }
    }
}

/// A connection that is served.
struct Connection {
    id: u64,
    stream: Arc<TcpStream>,
    /// Whether others are accepted meanwhile.
    may_wait: bool,
}

impl Classic {
    /// Starts a thread that is counted already.
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

    /// Counts out a thread that accepts no more.
    fn count_out(&self) {
        self.state.lock().threads -= 1;
        self.ended.notify_all();
    }

    /// The next connection. `None` when the server ends.
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

    /// Notes a connection, and ensures that a thread stands ready for the next one.
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

    /// Closes a connection that is served. `false` if enough others accept; then this thread is no more
    /// relied on to.
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

    /// The line to answer with. `None` closes the connection without one.
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
                return Some(reply.answer.to_string());
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
        (reply.status != Status::Forbidden).then(|| reply.answer.to_string())
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
                // Out of memory. Nobody would notice that the client goes.
                log::warn!("no room to watch one more waiter: {error}");
                Some(self.handler.give_up(&as_waiter))
            }
        }
    }
}

/// A client that waits. Its connection's thread blocks for the outcome.
struct ClassicWaiter {
    pending: Pending,
    stream: Arc<TcpStream>,
}

impl Waiter for ClassicWaiter {
    fn pending(&self) -> &Pending {
        &self.pending
    }

    /// A client that closed its sending half can't be told from one that has gone.
    fn is_there(&self) -> bool {
        let gone = PollFlags::from_bits_retain(libc::POLLRDHUP);
        let mut asked = [PollFd::new(self.stream.as_fd(), gone)];
        // It fails only where it would have to wait.
        poll::poll(&mut asked, PollTimeout::ZERO) != Ok(1)
    }

    fn notify(self: Arc<Self>, _: Answerer) {}
}

/// Reads a request, for as long as a client may take to send it.
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

/// Throws away what came after the request: closed with something unread, the connection would be reset,
/// and the client might lose its answer.
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
