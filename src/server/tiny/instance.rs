//! One run of tiny_http on the listener: its requests, one by one, those of each connection in their order.
//!
//! One connection's requests are served one after another, and connections take turns, so that one
//! that sends a thousand requests ahead delays nobody but itself.
//!
//! tiny_http's accept loop ends on the first error, its connections do not, so there may be an older
//! instance beside the one that accepts.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tiny_http::Request;

use super::body;
use super::polling::Polling;
use super::sockets::{ListenerId, Sockets};
use super::unfinished::Activity;
use crate::memory::{shrink_map, shrink_queue};
use crate::protocol::ServerNames;

pub(in crate::server) struct Instance {
    tiny: tiny_http::Server,
    pub(super) sockets: Arc<Sockets>,
    /// Stand in each answer.
    pub(super) names: ServerNames,
    pipelines: Pipelines,
    /// The clients whose bodies are read, each since when.
    bodies: Mutex<HashMap<SocketAddr, Instant>>,
    /// What tiny_http accepts with. It closes it when it accepts no more.
    listener: ListenerId,
    /// One of the phases below. It only grows.
    phase: AtomicU8,
    polling: Polling,
    /// Whether a thread sleeps in [`Instance::take`], or is about to.
    is_receiving: AtomicBool,
}

/// Requests are taken as they come.
const OPEN: u8 = 0;
/// What has come by now is taken.
const CLOSING: u8 = 1;
/// Nothing more is taken. What comes later is not answered.
const DRAINED: u8 = 2;
/// Nothing more is served.
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
            bodies: Mutex::default(),
            listener: own,
            phase: AtomicU8::new(OPEN),
            polling: Polling::default(),
            is_receiving: AtomicBool::new(false),
        }))
    }

    /// Whether tiny_http still accepts connections. Its loop ends with the first error of `accept`,
    /// and by a panic where the descriptor that it wants to copy then is one too many.
    pub(super) fn is_accepting(&self) -> bool {
        self.listener.is_listening()
    }

    /// Takes nothing more than what has come. What waits, or stands behind it, is still answered.
    pub fn close(&self) {
        self.advance(CLOSING);
    }

    /// Ends [`take`](Self::take), also where something is not answered.
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

    /// Blocks until everything that has come before it was closed is answered, at most until `deadline`.
    pub(super) fn wait_until_served(&self, deadline: Instant) {
        let is_drained = || self.phase() >= DRAINED;
        self.pipelines.wait_until_served(is_drained, deadline);
    }

    /// Forgets what was never served.
    pub(super) fn forget_requests(&self) {
        for (client, request) in self.pipelines.end() {
            body::forget(client, request, &self.sockets);
        }
    }

    /// The next request in the order of the pipelines, one thread at a time. `None` when the server ends and none is
    /// left.
    pub(super) fn take(&self) -> Option<(SocketAddr, Request)> {
        loop {
            // Whatever has come enters its pipeline before anything is served.
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
                Ok(None) => match self.pipelines.next() {
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
                // Woken up to look again.
                Err(_) => {}
            }
        }
    }

    /// The next request that is ready, for a thread beside the one that [takes](Self::take) them.
    pub(super) fn take_ready(&self) -> Option<(SocketAddr, Request)> {
        self.pipelines.next()
    }

    /// How many requests may be served beside those that are.
    pub fn ready(&self) -> usize {
        self.pipelines.ready()
    }

    /// Whether nothing is left to be answered that had come before the instance was closed.
    pub fn is_over(&self) -> bool {
        match self.phase() {
            DISMISSED => true,
            DRAINED => self.pipelines.is_empty(),
            _ => false,
        }
    }

    /// A request that has come before it was closed. `None` if there is none.
    fn receive_last(&self) -> io::Result<Option<Request>> {
        // It says that there is none also where somebody was to be woken: by this being closed, and by `done`.
        for _ in 0..2 {
            let received = self.tiny.try_recv();
            if !matches!(received, Ok(None)) {
                return received;
            }
        }
        self.tiny.try_recv()
    }

    /// Waits for a request. `None` if there is something else to look at.
    fn receive(&self) -> io::Result<Option<Request>> {
        let received = self.polling.look(Instant::now, thread::yield_now, || {
            let received = self.tiny.try_recv();
            // Where it says that nothing has come, it may have been woken up to look again.
            (!matches!(received, Ok(None)) || self.has_news()).then_some(received)
        });
        if let Some(received) = received {
            return received;
        }
        // A thread that makes news after this wakes it.
        self.is_receiving.store(true, SeqCst);
        let received = if self.has_news() {
            Ok(None)
        } else {
            self.tiny.recv().map(Some)
        };
        self.is_receiving.store(false, SeqCst);
        received
    }

    /// Whether there is something to look at beside what comes.
    fn has_news(&self) -> bool {
        self.phase() == CLOSING || self.is_over() || self.pipelines.is_ready()
    }

    fn enter(&self, request: Request) {
        // tiny_http knows no address only of UNIX sockets.
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

    /// What is done for a client now.
    pub(super) fn activity(&self, client: SocketAddr) -> Activity {
        match self.bodies.lock().get(&client) {
            Some(since) => Activity::ReadsBody(*since),
            None if self.pipelines.is_served(client) => Activity::Serves,
            None => Activity::None,
        }
    }

    /// Notes that a client's body is read, until it [was](Self::note_body_read).
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

    /// Ends a connection and forgets what it has sent ahead.
    pub(super) fn end_connection(&self, client: SocketAddr) {
        self.sockets.shut_down(client);
        self.forget_ahead(client);
    }

    /// Forgets what a client has sent ahead.
    pub(super) fn forget_ahead(&self, client: SocketAddr) {
        for request in self.pipelines.clear(client) {
            body::forget(client, request, &self.sockets);
        }
    }

    /// Ends the service of a connection's request. The next one of its pipeline may be served.
    pub(super) fn done(&self, client: SocketAddr) {
        let is_ready = self.pipelines.done(client);
        let has_news = is_ready || self.phase() == DRAINED;
        // Once is enough: who wakes up looks at everything.
        if has_news && self.is_receiving.swap(false, SeqCst) {
            self.tiny.unblock();
        }
    }
}

/// How many requests of one connection may wait for the one before them: tiny_http takes 1.5 kB for the shortest.
const MAX_PIPELINED: usize = 500;

/// The requests that have come and are not yet answered, in a pipeline for each connection.
#[derive(Default)]
struct Pipelines {
    requests: Mutex<Requests>,
    /// Notified when the last pipeline has ended.
    all_served: Condvar,
}

#[derive(Default)]
struct Requests {
    /// What has come behind the request that is ready or being served. A pipeline exists as long as a request of its
    /// connection is not answered.
    pipelines: HashMap<SocketAddr, VecDeque<Request>>,
    /// The requests that may be served, at most one of each connection.
    ready: VecDeque<(SocketAddr, Request)>,
}

impl Pipelines {
    /// Puts a request at the end of its connection's pipeline. `false` if the connection sends faster than it is
    /// served.
    fn enter(&self, client: SocketAddr, request: Request) -> bool {
        let mut requests = self.requests.lock();
        let Some(behind) = requests.pipelines.get_mut(&client) else {
            requests.pipelines.insert(client, VecDeque::new());
            requests.ready.push_back((client, request));
            return true;
        };
        behind.push_back(request);
        behind.len() <= MAX_PIPELINED
    }

    /// Whether every request is answered.
    fn is_empty(&self) -> bool {
        self.requests.lock().pipelines.is_empty()
    }

    /// Whether a request of a client is not answered.
    fn is_served(&self, client: SocketAddr) -> bool {
        self.requests.lock().pipelines.contains_key(&client)
    }

    /// How often [`next`](Self::next) has something.
    fn ready(&self) -> usize {
        self.requests.lock().ready.len()
    }

    fn is_ready(&self) -> bool {
        self.ready() > 0
    }

    /// The next request to serve. The others of its connection wait until it is [`done`](Self::done).
    fn next(&self) -> Option<(SocketAddr, Request)> {
        let mut requests = self.requests.lock();
        let next = requests.ready.pop_front();
        shrink_queue(&mut requests.ready);
        next
    }

    /// Ends the service of a connection's request. `true` if the next one of its pipeline is ready now.
    fn done(&self, client: SocketAddr) -> bool {
        let mut requests = self.requests.lock();
        let behind = requests.pipelines.get_mut(&client);
        if let Some(next) = behind.and_then(|behind| behind.pop_front()) {
            requests.ready.push_back((client, next));
            return true;
        }
        requests.pipelines.remove(&client);
        shrink_map(&mut requests.pipelines);
        if requests.pipelines.is_empty() {
            self.all_served.notify_all();
        }
        false
    }

    /// Takes away what stands in a connection's pipeline.
    fn clear(&self, client: SocketAddr) -> VecDeque<Request> {
        let mut requests = self.requests.lock();
        let behind = requests.pipelines.get_mut(&client);
        behind.map(mem::take).unwrap_or_default()
    }

    /// Ends all pipelines, and returns what was never served.
    fn end(&self) -> Vec<(SocketAddr, Request)> {
        let Requests { pipelines, ready } = mem::take(&mut *self.requests.lock());
        let behind = pipelines.into_iter().flat_map(|(client, behind)| {
            let behind = behind.into_iter();
            behind.map(move |request| (client, request))
        });
        ready.into_iter().chain(behind).collect()
    }

    /// Has [`wait_until_served`](Self::wait_until_served) look again.
    fn notify(&self) {
        let _requests = self.requests.lock();
        self.all_served.notify_all();
    }

    /// Blocks until all requests have come and are answered, at most until `deadline`.
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
