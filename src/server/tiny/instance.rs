//! One run of tiny_http on the listener: takes its requests one by one, those of each connection in their order.
//!
//! The requests of one connection are served one after another, and connections take turns, so a client that sends a
//! thousand requests ahead delays only itself.
//!
//! tiny_http's accept loop ends on the first error, but its connections stay. So older instances may exist beside the
//! one that accepts.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::mem;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tiny_http::Request;

use super::body;
use super::ended::{EndedConnections, Fate};
use super::polling::Polling;
use super::sockets::{ListenerId, Sockets};
use super::unfinished::Activity;
use crate::memory::{shrink_map, shrink_queue};
use crate::protocol::{Reply, ServerNames};

pub(in crate::server) struct Instance {
    tiny: tiny_http::Server,
    pub(super) sockets: Arc<Sockets>,
    /// The names in each answer.
    pub(super) names: ServerNames,
    pipelines: Pipelines,
    ended: EndedConnections,
    /// The clients whose bodies are being read, and since when.
    bodies: Mutex<HashMap<SocketAddr, Instant>>,
    /// tiny_http's listener. tiny_http closes it when it stops accepting.
    listener: ListenerId,
    /// One of the phases below. It only grows.
    phase: AtomicU8,
    polling: Polling,
    /// Whether a thread sleeps in [`Instance::take`], or is about to.
    is_receiving: AtomicBool,
}

/// Requests are taken as they arrive.
const OPEN: u8 = 0;
/// Only requests that have arrived by now are taken.
const CLOSING: u8 = 1;
/// No more requests are taken. Later ones are not answered.
const DRAINED: u8 = 2;
/// No more requests are served.
const DISMISSED: u8 = 3;

impl Instance {
    pub(super) fn open(
        listener: &TcpListener,
        sockets: Arc<Sockets>,
        names: ServerNames,
    ) -> io::Result<Arc<Self>> {
        let listener = listener.try_clone()?;
        let own = ListenerId::of(&listener);
        let tiny = tiny_http::Server::from_listener(listener, None)
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Arc::new(Instance {
            tiny,
            sockets,
            names,
            pipelines: Pipelines::default(),
            ended: EndedConnections::default(),
            bodies: Mutex::default(),
            listener: own,
            phase: AtomicU8::new(OPEN),
            polling: Polling::default(),
            is_receiving: AtomicBool::new(false),
        }))
    }

    /// Whether tiny_http still accepts connections. Its loop ends at the first error of `accept`; without a descriptor
    /// for the copy that it makes, it ends by a panic.
    pub(super) fn is_accepting(&self) -> bool {
        self.listener.is_listening()
    }

    /// Takes only requests that have arrived. They, LOCKs that wait and the requests behind them are still answered.
    pub fn close(&self) {
        self.advance(CLOSING);
    }

    /// Ends [`take`](Self::take), even if requests are unanswered.
    pub fn dismiss(&self) {
        self.advance(DISMISSED);
    }

    fn advance(&self, phase: u8) {
        self.phase.fetch_max(phase, SeqCst);
        self.tiny.unblock();
    }

    fn phase(&self) -> u8 {
        self.phase.load(SeqCst)
    }

    /// Blocks until all requests that arrived before [`close`](Self::close) are answered, at most until `deadline`.
    pub(super) fn wait_until_served(&self, deadline: Instant) {
        let is_drained = || self.phase() >= DRAINED;
        self.pipelines.wait_until_served(is_drained, deadline);
    }

    /// Forgets the requests that were never served.
    pub(super) fn forget_requests(&self) {
        for (client, request) in self.pipelines.end() {
            body::forget(client, request, &self.sockets);
        }
    }

    /// Blocks for the next request in the order of the pipelines. Call it from one thread at a time. `None` when the
    /// server ends and no request is left.
    pub(super) fn take(&self) -> Option<(SocketAddr, Request)> {
        loop {
            // All requests that have arrived enter their pipelines before one is served.
            let is_closing = self.phase() == CLOSING;
            let received = if is_closing {
                self.receive_last()
            } else if self.pipelines.is_ready() {
                self.tiny.try_recv()
            } else if self.is_over() {
                return None;
            } else {
                self.receive()
            };
            match received {
                Ok(Some(request)) => self.enter(request),
                Ok(None) => match self.take_ready() {
                    None if is_closing => {
                        self.phase.fetch_max(DRAINED, SeqCst);
                        self.pipelines.notify();
                    }
                    None => {}
                    next => return next,
                },
                Err(error) if error.raw_os_error().is_some() => {
                    log::debug!("tiny_http accepts no more connections: {error}");
                }
                // `unblock` woke it, to look again.
                Err(_) => {}
            }
        }
    }

    /// The next ready request, also for a thread beside the one that calls [`take`](Self::take).
    pub(super) fn take_ready(&self) -> Option<(SocketAddr, Request)> {
        loop {
            let (client, request) = self.pipelines.next()?;
            // Not when it arrives: its connection may be ended after that.
            if let Some(request) = self.unless_ended(client, request) {
                return Some((client, request));
            }
            self.done(client);
        }
    }

    /// How many requests are ready to be served.
    pub fn ready(&self) -> usize {
        self.pipelines.ready()
    }

    /// Whether all requests that arrived before [`close`](Self::close) are answered.
    pub fn is_over(&self) -> bool {
        match self.phase() {
            DISMISSED => true,
            DRAINED => self.pipelines.is_empty(),
            _ => false,
        }
    }

    /// The next request that arrived before [`close`](Self::close). `None` if there is no more.
    fn receive_last(&self) -> io::Result<Option<Request>> {
        // `try_recv` also returns `None` for each pending `unblock`: one by `close`, one by `done`.
        for _ in 0..2 {
            let received = self.tiny.try_recv();
            if !matches!(received, Ok(None)) {
                return received;
            }
        }
        self.tiny.try_recv()
    }

    /// Blocks for a request. `None` if there is something else to look at.
    fn receive(&self) -> io::Result<Option<Request>> {
        let received = self.polling.look(Instant::now, thread::yield_now, || {
            let received = self.tiny.try_recv();
            // `None` may also come from an `unblock`: then there is news.
            (!matches!(received, Ok(None)) || self.has_news()).then_some(received)
        });
        if let Some(received) = received {
            return received;
        }
        // A thread that causes news after this line wakes this one.
        self.is_receiving.store(true, SeqCst);
        let received = if self.has_news() {
            Ok(None)
        } else {
            self.tiny.recv().map(Some)
        };
        self.is_receiving.store(false, SeqCst);
        received
    }

    /// Whether there is something to do beside receiving.
    fn has_news(&self) -> bool {
        self.phase() == CLOSING || self.is_over() || self.pipelines.is_ready()
    }

    fn enter(&self, request: Request) {
        // Only UNIX sockets have no address.
        let Some(&client) = request.remote_addr() else {
            return;
        };
        if self.phase() >= DRAINED {
            return body::forget(client, request, &self.sockets);
        }
        if !self.pipelines.enter(client, request) {
            log::debug!("{client} sent more than {MAX_PIPELINED} requests ahead of its answers");
            self.end_connection(client);
        }
    }

    /// What the server does for a client now.
    pub(super) fn activity(&self, client: SocketAddr) -> Activity {
        match self.bodies.lock().get(&client) {
            Some(since) => Activity::ReadsBody(*since),
            None if self.pipelines.is_served(client) => Activity::Serves,
            None => Activity::None,
        }
    }

    /// Notes that a client's body is being read, until [`note_body_read`](Self::note_body_read).
    pub(super) fn note_body(&self, client: SocketAddr) {
        self.bodies
            .lock()
            .entry(client)
            .or_insert_with(Instant::now);
    }

    /// Notes that a client's body has been read.
    pub(super) fn note_body_read(&self, client: SocketAddr) {
        self.bodies.lock().remove(&client);
    }

    /// Ends a connection, and forgets the requests that it has sent ahead, and those that tiny_http is still to parse.
    pub(super) fn end_connection(&self, client: SocketAddr) {
        let connection = self.sockets.shut_down(client).unwrap_or_default();
        self.ended.note(client, connection);
        self.forget_ahead(client);
    }

    /// Forgets the requests that a client has sent ahead.
    pub(super) fn forget_ahead(&self, client: SocketAddr) {
        for request in self.pipelines.clear(client) {
            body::forget(client, request, &self.sockets);
        }
    }

    /// Returns a request, unless it is of a connection that was ended, or perhaps of the client's next one from the same
    /// port. So that the client of a next one does not wait, that one is ended, too, or the request is answered.
    fn unless_ended(&self, client: SocketAddr, request: Request) -> Option<Request> {
        match self.ended.fate_of_request(client) {
            Fate::Served => return Some(request),
            Fate::Answered if !body::is_unread(&request) => self.turn_away(request),
            Fate::EndedAgain => {
                self.end_connection(client);
                body::forget(client, request, &self.sockets);
            }
            Fate::Answered | Fate::Forgotten => body::forget(client, request, &self.sockets),
        }
        None
    }

    /// Tells a client to ask again.
    fn turn_away(&self, request: Request) {
        let reply = Reply::stopping("this connection is being ended; ask again on another one");
        let is_head = *request.method() == tiny_http::Method::Head;
        let bytes = reply.to_bytes(&self.names, Some("close"), None, is_head);
        let mut writer = request.into_writer();
        // It fails if it is the ended connection.
        let _ = writer.write_all(&bytes).and_then(|()| writer.flush());
    }

    /// Ends the service of a connection's request. The next one of its pipeline may be served.
    pub(super) fn done(&self, client: SocketAddr) {
        let is_ready = self.pipelines.done(client);
        let has_news = is_ready || self.phase() == DRAINED;
        // One wake-up is enough: the woken thread looks at everything.
        if has_news && self.is_receiving.swap(false, SeqCst) {
            self.tiny.unblock();
        }
    }
}

/// How many requests of one connection may wait behind the first one: tiny_http takes 1.5 kB for the shortest.
const MAX_PIPELINED: usize = 500;

/// The unanswered requests, in one pipeline for each connection.
#[derive(Default)]
struct Pipelines {
    requests: Mutex<Requests>,
    /// Notified when the last pipeline has ended.
    all_served: Condvar,
}

#[derive(Default)]
struct Requests {
    /// The requests behind the one that is ready or being served. A pipeline exists as long as a request of its
    /// connection is unanswered.
    pipelines: HashMap<SocketAddr, VecDeque<Request>>,
    /// The requests that may be served now, at most one of each connection.
    ready: VecDeque<(SocketAddr, Request)>,
}

impl Pipelines {
    /// Puts a request at the end of its connection's pipeline. `false` if the pipeline has more than [`MAX_PIPELINED`].
    fn enter(&self, client: SocketAddr, request: Request) -> bool {
        let requests = &mut *self.requests.lock();
        match requests.pipelines.entry(client) {
            Entry::Vacant(pipeline) => {
                pipeline.insert(VecDeque::new());
                requests.ready.push_back((client, request));
                true
            }
            Entry::Occupied(mut behind) => {
                behind.get_mut().push_back(request);
                behind.get().len() <= MAX_PIPELINED
            }
        }
    }

    /// Whether every request is answered.
    fn is_empty(&self) -> bool {
        self.requests.lock().pipelines.is_empty()
    }

    /// Whether a client has an unanswered request.
    fn is_served(&self, client: SocketAddr) -> bool {
        self.requests.lock().pipelines.contains_key(&client)
    }

    /// How many requests [`next`](Self::next) can return now.
    fn ready(&self) -> usize {
        self.requests.lock().ready.len()
    }

    fn is_ready(&self) -> bool {
        self.ready() > 0
    }

    /// The next request to serve. The following one of its connection waits for [`done`](Self::done).
    fn next(&self) -> Option<(SocketAddr, Request)> {
        let mut requests = self.requests.lock();
        let next = requests.ready.pop_front();
        shrink_queue(&mut requests.ready);
        next
    }

    /// Ends the service of a connection's request. `true` if the next one of its pipeline is ready now.
    fn done(&self, client: SocketAddr) -> bool {
        let requests = &mut *self.requests.lock();
        if let Entry::Occupied(mut behind) = requests.pipelines.entry(client) {
            if let Some(next) = behind.get_mut().pop_front() {
                requests.ready.push_back((client, next));
                return true;
            }
            behind.remove();
        }
        shrink_map(&mut requests.pipelines);
        if requests.pipelines.is_empty() {
            self.all_served.notify_all();
        }
        false
    }

    /// Removes and returns the requests in a connection's pipeline.
    fn clear(&self, client: SocketAddr) -> VecDeque<Request> {
        let mut requests = self.requests.lock();
        let behind = requests.pipelines.get_mut(&client);
        behind.map(mem::take).unwrap_or_default()
    }

    /// Ends all pipelines, and returns the requests that were never served.
    fn end(&self) -> Vec<(SocketAddr, Request)> {
        let Requests { pipelines, ready } = mem::take(&mut *self.requests.lock());
        let behind = pipelines.into_iter().flat_map(|(client, behind)| {
            let behind = behind.into_iter();
            behind.map(move |request| (client, request))
        });
        ready.into_iter().chain(behind).collect()
    }

    /// Makes [`wait_until_served`](Self::wait_until_served) check again.
    fn notify(&self) {
        let _requests = self.requests.lock();
        self.all_served.notify_all();
    }

    /// Blocks until `have_come` is true and all requests are answered, at most until `deadline`.
    fn wait_until_served(&self, have_come: impl Fn() -> bool, deadline: Instant) {
        let mut requests = self.requests.lock();
        while !(have_come() && requests.pipelines.is_empty()) {
            if self
                .all_served
                .wait_until(&mut requests, deadline)
                .timed_out()
            {
                return;
            }
        }
    }
}
