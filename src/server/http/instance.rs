//! One run of tiny_http on the listener: takes its requests and has each of them answered.
//!
//! tiny_http's accept loop ends on the first error, its connections do not, so there may be an older
//! instance beside the one that accepts.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tiny_http::Request;

use super::pipelines::{Entered, MAX_PIPELINED};
use super::question;
use super::sockets::OwnAddress;
use super::unanswered::Unanswered;
use super::wait::Wait;
use super::{Shared, TICK, sockets};
use crate::manager::{Outcome, Place};
use crate::protocol::Reply;
use crate::server::handler::Handled;
use crate::server::workers::Workers;
use crate::server::workers::leadership::{Lead, Leadership};

/// A body up to this length is read and thrown away before the reply; a longer one ends its connection.
const MAX_BODY: usize = 1024 * 1024;

/// How long the leader looks for the next request before it sleeps. To wake it takes some 20 µs where
/// the processor sleeps too; and where others want to run, they do meanwhile.
const POLL: Duration = Duration::from_micros(50);

pub(super) struct Instance {
    tiny: tiny_http::Server,
    shared: Arc<Shared>,
    leadership: Leadership,
    /// A leadership that no thread was found for.
    vacant: Mutex<Option<Lead>>,
    workers: Workers<Task>,
    /// Requests taken, to tell a busy leader from a stuck one.
    taken: AtomicUsize,
    /// How many had been taken when somebody last saw more of them than before, and when that was.
    looked: Mutex<(usize, Instant)>,
    /// The descriptor that tiny_http accepts with. It closes it when it accepts no more.
    listener: RawFd,
    closing: AtomicBool,
    /// Whether it has taken what had come when it was closed. What comes later is not answered.
    drained: AtomicBool,
    dismissed: AtomicBool,
    /// LOCKs that are decided, and that no thread was found for.
    late: Mutex<Vec<(Arc<Wait>, Outcome)>>,
}

/// What a thread of the workers does.
pub(super) enum Task {
    /// Takes requests, and answers those that do not block.
    Lead(Lead),
    /// Waits for a LOCK to be decided, and answers it.
    Wait(Arc<Wait>, Place),
    /// Answers a LOCK that is decided.
    Answer(Arc<Wait>, Outcome),
    /// Reads a body that nobody asked for.
    Refuse(SocketAddr, Request),
}

impl Instance {
    pub fn open(listener: &TcpListener, shared: Arc<Shared>) -> io::Result<Arc<Self>> {
        let listener = listener.try_clone()?;
        let own = listener.as_raw_fd();
        let tiny = tiny_http::Server::from_listener(listener, None)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let (leadership, lead) = Leadership::new();
        let instance = Arc::new(Instance {
            tiny,
            shared,
            leadership,
            vacant: Mutex::new(None),
            workers: Workers::new(),
            taken: AtomicUsize::new(0),
            looked: Mutex::new((0, Instant::now())),
            listener: own,
            closing: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            dismissed: AtomicBool::new(false),
            late: Mutex::default(),
        });
        instance.run(Task::Lead(lead));
        Ok(instance)
    }

    /// Whether tiny_http still accepts connections. Its loop ends with the first error of `accept`,
    /// and by a panic where the descriptor that it wants to copy then is one too many.
    pub fn is_accepting(&self) -> bool {
        sockets::is_listening(self.listener)
    }

    /// Whether the leader serves a request now, or there is none.
    pub fn is_serving(&self) -> bool {
        self.leadership.is_serving() || self.vacant.lock().is_some()
    }

    /// Deposes a leader that has served one request for as long as this: it writes to a client that
    /// does not read.
    pub fn depose_if_stuck(self: &Arc<Self>, patience: Duration) {
        let taken = self.taken.load(SeqCst);
        let mut looked = self.looked.lock();
        if looked.0 != taken {
            *looked = (taken, Instant::now());
            return;
        }
        if looked.1.elapsed() >= patience {
            let lead = self
                .vacant
                .lock()
                .take()
                .or_else(|| self.leadership.depose());
            lead.into_iter().for_each(|lead| self.run(Task::Lead(lead)));
        }
    }

    /// Takes nothing more than what has come. What waits, or stands behind it, is still answered.
    pub fn close(&self) {
        self.closing.store(true, SeqCst);
        self.workers.hold();
        self.tiny.unblock();
    }

    /// Ends the threads of a closed instance, each after what it is doing.
    pub fn dismiss(&self) {
        self.dismissed.store(true, SeqCst);
        self.workers.close();
        self.tiny.unblock();
    }

    /// Has answered what no thread was found for.
    pub fn answer_late(self: &Arc<Self>) {
        for (wait, outcome) in std::mem::take(&mut *self.late.lock()) {
            self.run(Task::Answer(wait, outcome));
        }
    }

    /// Has a thread do the task, or does without where the system has no thread left.
    pub fn run(self: &Arc<Self>, task: Task) {
        let instance = self.clone();
        let work = move || {
            while let Some(task) = instance.workers.next() {
                instance.work(task);
            }
        };
        let Err((task, error)) = self.workers.run(task, work) else {
            return;
        };
        match task {
            // The next look at it tries again.
            Task::Lead(lead) => {
                log::error!("no thread left to take requests: {error}");
                *self.vacant.lock() = Some(lead);
            }
            Task::Wait(wait, place) => {
                log::warn!("no thread left for a waiter: {error}");
                let reply = self.shared.handler.give_up(&place);
                self.finish_wait(&wait, Some(&reply));
            }
            // The next tick tries again.
            Task::Answer(wait, outcome) => self.late.lock().push((wait, outcome)),
            Task::Refuse(client, request) => {
                discard(client, request, self.shared.own);
                self.shared.pipelines.done(client);
            }
        }
    }

    fn work(self: &Arc<Self>, task: Task) {
        match task {
            Task::Lead(lead) => self.lead(&lead),
            Task::Wait(wait, place) => {
                let outcome = self.shared.handler.manager.wait(&place);
                self.answer(&wait, outcome);
            }
            Task::Answer(wait, outcome) => self.answer(&wait, outcome),
            Task::Refuse(client, request) => {
                refuse_body(client, request, self.shared.own);
                // What tiny_http took for a further request may have been the body.
                self.clear_line(client);
                self.finish(client);
            }
        }
    }

    /// Takes requests and answers them until somebody else leads, or the server ends.
    fn lead(self: &Arc<Self>, lead: &Lead) {
        while let Some((client, request)) = self.take() {
            self.taken.fetch_add(1, SeqCst);
            self.leadership.serve(lead);
            self.serve(client, request);
            if !self.leadership.receive(lead) {
                // The one that leads now may have begun to wait before a pipeline was ready again.
                self.tiny.unblock();
                return;
            }
        }
    }

    /// The next request in the order of the pipelines. `None` when the server ends and none is left.
    fn take(&self) -> Option<(SocketAddr, Request)> {
        let pipelines = &self.shared.pipelines;
        loop {
            // Whatever has come enters its pipeline before anything is served.
            let received = if self.is_draining() || pipelines.is_ready() {
                self.tiny.try_recv()
            } else if self.is_over() {
                return None;
            } else {
                self.receive()
            };
            match received {
                Ok(Some(request)) => self.enter(request),
                Ok(None) => match pipelines.next() {
                    None if self.closing.load(SeqCst) => self.drained.store(true, SeqCst),
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

    fn is_draining(&self) -> bool {
        self.closing.load(SeqCst) && !self.drained.load(SeqCst)
    }

    /// Whether nothing is left to be answered that had come before the instance was closed.
    fn is_over(&self) -> bool {
        self.dismissed.load(SeqCst)
            || (self.drained.load(SeqCst) && self.shared.pipelines.is_empty())
    }

    /// Waits for a request. `None` if there is something else to look at.
    fn receive(&self) -> io::Result<Option<Request>> {
        let until = Instant::now() + POLL;
        while Instant::now() < until {
            let received = self.tiny.try_recv();
            // Where it says that nothing has come, it may have been woken up to look again.
            if !matches!(received, Ok(None))
                || self.is_draining()
                || self.is_over()
                || self.shared.pipelines.is_ready()
            {
                return received;
            }
            thread::yield_now();
        }
        self.tiny.recv().map(Some)
    }

    fn enter(&self, request: Request) {
        // tiny_http knows no address only of UNIX sockets.
        let Some(&client) = request.remote_addr() else {
            return;
        };
        if self.drained.load(SeqCst) {
            return forget(client, request, self.shared.own);
        }
        if self.shared.pipelines.enter(client, request) == Entered::TooMany {
            log::debug!("{client} sent more than {MAX_PIPELINED} requests ahead of its answers");
            self.clear_line(client);
        }
    }

    /// Ends a connection and forgets what it has sent ahead.
    fn clear_line(&self, client: SocketAddr) {
        sockets::shut_down(client, self.shared.own);
        for request in self.shared.pipelines.clear(client) {
            forget(client, request, self.shared.own);
        }
    }

    /// Answers a request, or has a thread wait for its answer.
    fn serve(self: &Arc<Self>, client: SocketAddr, request: Request) {
        let shared = &self.shared;
        if has_unread_body(&request) {
            // Reading it may take for ever.
            return self.run(Task::Refuse(client, request));
        }
        let handler = &shared.handler;
        let answer = match question::understand(&request, handler) {
            Ok(question) => handler.answer(&question, None),
            Err(reply) => Handled::Reply(reply),
        };
        match answer {
            Handled::Reply(reply) => {
                self.write(client, Unanswered::new(client, request), &reply);
                shared.pipelines.done(client);
            }
            Handled::Wait(place) => self.wait(client, request, place),
        }
    }

    /// Has a LOCK answered once it is decided.
    fn wait(self: &Arc<Self>, client: SocketAddr, request: Request, place: Place) {
        let shared = &self.shared;
        let wait = Wait::new(client, Unanswered::new(client, request), self.clone());
        // A tick that looks through thousands is not waited for.
        let known = shared.known.try_lock();
        if let Some(pair) = known.and_then(|known| known.pair_at(&client)) {
            wait.found(pair);
        }
        shared
            .pipelines
            .set_waiting(client, wait.clone(), place.clone());
        if let Some(outcome) = shared.handler.manager.employ(&place, wait.clone()) {
            self.answer(&wait, outcome);
        } else if place.deadline() < Instant::now() + 2 * TICK {
            // The next tick may be too late for it.
            wait.block(place);
        }
    }

    /// Answers a LOCK that is decided, if nobody else has done it.
    pub fn answer(&self, wait: &Wait, outcome: Outcome) {
        // Nobody is there to read what became of an abandoned one.
        let reply =
            (outcome != Outcome::Abandoned).then(|| self.shared.handler.outcome_reply(outcome));
        self.finish_wait(wait, reply.as_ref());
    }

    fn finish_wait(&self, wait: &Wait, reply: Option<&Reply>) {
        let Some(unanswered) = wait.take() else {
            return;
        };
        match reply {
            Some(reply) => self.write(wait.client, unanswered, reply),
            None => drop(unanswered),
        }
        self.finish(wait.client);
    }

    fn write(&self, client: SocketAddr, unanswered: Unanswered, reply: &Reply) {
        if let Err(error) = unanswered.write(reply) {
            log::debug!("{client} did not take its answer: {error}");
            // A part of it may have been written: nothing that comes after could be understood.
            self.clear_line(client);
        }
    }

    /// Ends the service of a request that was not the leader's.
    fn finish(&self, client: SocketAddr) {
        if self.shared.pipelines.done(client) {
            // The leader may wait for requests, and does not see that another one is ready.
            self.tiny.unblock();
        }
    }
}

/// Whether the request announces a body that tiny_http has not read together with it: all but those
/// of a known length up to 1024 bytes. A length that is no number hides a body, too.
fn has_unread_body(request: &Request) -> bool {
    const READ_BY_TINY_HTTP: usize = 1024;
    request.headers().iter().any(|header| {
        header.field.equiv("Transfer-Encoding")
            || header.field.equiv("Expect")
            || (header.field.equiv("Content-Length")
                && request
                    .body_length()
                    .is_none_or(|length| length > READ_BY_TINY_HTTP))
    })
}

/// Answers a request whose body nobody asked for, and ends its connection: where the body ends may
/// not be known.
fn refuse_body(client: SocketAddr, mut request: Request, own: OwnAddress) {
    if request
        .body_length()
        .is_some_and(|length| length > MAX_BODY)
    {
        return discard(client, request, own);
    }
    // Sends the `100 Continue` that the client may wait for; what is left is read with the reply.
    let _ = request.as_reader();
    if let Err(error) = Unanswered::last(client, request).write(&question::body_refused()) {
        log::debug!("{client} did not take its answer: {error}");
    }
}

/// Ends a request's connection without an answer.
fn discard(client: SocketAddr, request: Request, own: OwnAddress) {
    let connection = sockets::shut_down(client, own);
    if !can_be_dropped(&request) {
        log::debug!("{client} announced a body that there is no memory for");
        std::mem::forget(request);
        return connection.close();
    }
    drop(request.into_writer());
}

/// Ends the service of a request that is not answered. Dropped as it is, it would wait for those before
/// it, to write an answer of tiny_http's.
pub(super) fn forget(client: SocketAddr, request: Request, own: OwnAddress) {
    if can_be_dropped(&request) {
        drop(request.into_writer());
    } else {
        discard(client, request, own);
    }
}

/// Whether dropping a request does no harm.
///
/// tiny_http throws an unread body away by asking for as much memory as was announced, and where
/// that is not to be had the process ends. Such a request is never dropped: it costs the thread that
/// reads its connection, which then waits for nothing.
fn can_be_dropped(request: &Request) -> bool {
    Vec::<u8>::new()
        .try_reserve_exact(request.body_length().unwrap_or(0))
        .is_ok()
}
