//! One run of tiny_http on the listener: takes its requests and has each of them answered.
//!
//! tiny_http's accept loop ends on the first error, its connections do not, so there may be an older
//! door beside the one that accepts.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;

use tiny_http::Request;

use super::answer::{self, Answer};
use super::leader::{Lead, Leadership};
use super::lines::{Entered, MAX_PIPELINED};
use super::{Shared, sockets};
use crate::manager::{Outcome, Place};
use crate::protocol::Reply;

/// Receivers, and what they call, need little depth.
const STACK: usize = 128 * 1024;

/// A body up to this length is read and thrown away before the reply; a longer one ends its connection.
const MAX_BODY: usize = 1024 * 1024;

pub(super) struct Door {
    tiny: tiny_http::Server,
    shared: Arc<Shared>,
    leadership: Leadership,
    /// Requests taken since somebody last looked, to tell a busy leader from a stuck one.
    taken: AtomicUsize,
    accepting: AtomicBool,
    closing: AtomicBool,
}

impl Door {
    pub fn open(listener: &TcpListener, shared: Arc<Shared>) -> io::Result<Arc<Self>> {
        let tiny = tiny_http::Server::from_listener(listener.try_clone()?, None)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let door = Arc::new(Door {
            tiny,
            shared,
            leadership: Leadership::new(),
            taken: AtomicUsize::new(0),
            accepting: AtomicBool::new(true),
            closing: AtomicBool::new(false),
        });
        door.add_follower()?;
        Ok(door)
    }

    /// Whether tiny_http has said nothing else.
    pub fn is_accepting(&self) -> bool {
        self.accepting.load(SeqCst)
    }

    /// Deposes a leader that has served the same request since the last call: it writes to a client
    /// that does not read. Everything else that blocks steps down before.
    pub fn depose_if_stuck(self: &Arc<Self>) {
        if self.taken.swap(0, SeqCst) == 0
            && let Some(lead) = self.leadership.serving()
            && !self.step_down(&lead)
        {
            log::warn!("the machine has no thread left to take requests");
        }
    }

    /// Sends the threads home that wait for requests.
    pub fn close(&self) {
        self.closing.store(true, SeqCst);
        self.leadership.close();
        self.tiny.unblock();
    }

    fn add_follower(self: &Arc<Self>) -> io::Result<()> {
        if !self.leadership.join() {
            return Ok(());
        }
        let door = self.clone();
        let spawned = thread::Builder::new()
            .name("lock-request".into())
            .stack_size(STACK)
            .spawn(move || door.take_part());
        if spawned.is_err() {
            self.leadership.leave();
        }
        spawned.map(drop)
    }

    fn step_down(self: &Arc<Self>, lead: &Lead) -> bool {
        self.leadership
            .step_down(lead, || self.add_follower().is_ok())
    }

    /// What a thread of this door does, from when it has joined.
    fn take_part(self: &Arc<Self>) {
        while let Some(lead) = self.leadership.follow() {
            self.lead(&lead);
            if !self.leadership.join() {
                return;
            }
        }
    }

    /// Takes requests and serves them until somebody else leads, or the server ends.
    fn lead(self: &Arc<Self>, lead: &Lead) {
        while let Some((peer, request)) = self.take() {
            self.taken.fetch_add(1, SeqCst);
            self.leadership.serve(lead);
            self.serve(lead, peer, request);
            if !self.leadership.receive(lead) {
                // The one that leads now may have begun to wait before a line was ready again.
                self.tiny.unblock();
                return;
            }
        }
    }

    /// The next request in the order of the lines. `None` when the server ends and none is left.
    fn take(&self) -> Option<(SocketAddr, Request)> {
        let lines = &self.shared.lines;
        loop {
            let closing = self.closing.load(SeqCst);
            // Whatever has come enters its line before anything is served.
            let at_once = closing || lines.is_ready();
            let received = if at_once {
                self.tiny.try_recv()
            } else {
                self.tiny.recv().map(Some)
            };
            match received {
                Ok(Some(request)) => self.enter(request),
                Ok(None) => match lines.next() {
                    None if closing => return None,
                    None => {}
                    next => return next,
                },
                Err(error) if error.raw_os_error().is_some() => {
                    log::debug!("tiny_http accepts no more connections: {error}");
                    self.accepting.store(false, SeqCst);
                }
                // Woken up to look again.
                Err(_) => {}
            }
        }
    }

    fn enter(&self, request: Request) {
        // tiny_http knows no address only of UNIX sockets.
        let Some(&peer) = request.remote_addr() else {
            return;
        };
        if self.shared.lines.enter(peer, request) == Entered::TooMany {
            log::debug!("{peer} sent more than {MAX_PIPELINED} requests ahead of its answers");
            sockets::shut_down(peer);
            self.clear_line(peer);
        }
    }

    /// Forgets what a connection that was shut down has sent.
    fn clear_line(&self, peer: SocketAddr) {
        self.shared.lines.clear(peer).into_iter().for_each(let_go);
    }

    /// Serves a request. A thread that had to stop leading for it has nothing else to do, and serves
    /// those behind it in its line, too; a leader lets the other connections have their turn.
    fn serve(self: &Arc<Self>, lead: &Lead, peer: SocketAddr, request: Request) {
        let mut lead = Some(lead);
        let mut next = Some(request);
        while let Some(request) = next.take() {
            self.serve_one(&mut lead, peer, request);
            match lead {
                Some(_) => self.shared.lines.done(peer),
                None => next = self.shared.lines.next_of(peer),
            }
        }
    }

    fn serve_one(self: &Arc<Self>, lead: &mut Option<&Lead>, peer: SocketAddr, request: Request) {
        let shared = &self.shared;
        if has_unread_body(&request) {
            // Reading it may take for ever.
            if self.may_block(lead) {
                refuse_body(peer, request);
            } else {
                discard(peer, request);
            }
            // What tiny_http takes for a further request may have been the body.
            return self.clear_line(peer);
        }
        match answer::answer(
            &request,
            &shared.admission,
            &shared.manager,
            &shared.shutdown,
        ) {
            Answer::Reply(reply) => respond(peer, request, &reply),
            Answer::Wait(place) => match self.wait(lead, peer, &place) {
                Some(reply) => respond(peer, request, &reply),
                // Nobody is there to read it. Without a request tiny_http writes nothing of its own.
                None => drop(request.into_writer()),
            },
        }
    }

    /// Sees to it that somebody else takes requests while this thread does not.
    fn may_block(self: &Arc<Self>, lead: &mut Option<&Lead>) -> bool {
        let may = lead.is_none_or(|lead| self.step_down(lead));
        if may {
            *lead = None;
        }
        may
    }

    /// Blocks until a LOCK is decided. `None` if its client has gone.
    fn wait(
        self: &Arc<Self>,
        lead: &mut Option<&Lead>,
        peer: SocketAddr,
        place: &Place,
    ) -> Option<Reply> {
        let Shared { manager, lines, .. } = &*self.shared;
        if !self.may_block(lead) {
            manager.abandon(place);
            return Some(match manager.wait(place) {
                Outcome::Abandoned => answer::no_thread(),
                // What was granted in the last moment is granted.
                outcome => answer::outcome_reply(outcome, manager),
            });
        }
        lines.set_waiting(peer, Some(place.clone()));
        let outcome = manager.wait(place);
        lines.set_waiting(peer, None);
        (outcome != Outcome::Abandoned).then(|| answer::outcome_reply(outcome, manager))
    }
}

/// What becomes of a connection after a reply, by tiny_http's own rule, for the reply to say so.
fn future_of_connection(request: &Request) -> Option<&'static str> {
    let old = *request.http_version() < (1, 1);
    let connection = request
        .headers()
        .iter()
        .find(|header| header.field.equiv("Connection"));
    let connection = connection.map(|header| header.value.as_str().to_ascii_lowercase());
    match connection.as_deref() {
        Some(value) if value.contains("close") || value.contains("upgrade") => Some("close"),
        Some(value) if old && value.contains("keep-alive") => Some("keep-alive"),
        _ => old.then_some("close"),
    }
}

/// Writes the reply. What a client that has gone does not get concerns nobody.
fn respond(peer: SocketAddr, request: Request, reply: &Reply) {
    let connection = future_of_connection(&request);
    respond_and(peer, request, reply, connection);
}

fn respond_and(peer: SocketAddr, request: Request, reply: &Reply, connection: Option<&str>) {
    let head = *request.method() == tiny_http::Method::Head;
    log::trace!(
        "{peer} {} {} {}",
        request.method(),
        request.url(),
        reply.status as u16
    );
    let bytes = reply.to_bytes(connection, head);
    let mut writer = request.into_writer();
    if let Err(error) = writer.write_all(&bytes).and_then(|()| writer.flush()) {
        log::debug!("{peer} did not take its answer: {error}");
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
fn refuse_body(peer: SocketAddr, mut request: Request) {
    if request
        .body_length()
        .is_some_and(|length| length > MAX_BODY)
    {
        return discard(peer, request);
    }
    // Sends the `100 Continue` that the client may wait for; what is left is read with the reply.
    let _ = request.as_reader();
    respond_and(peer, request, &answer::body_refused(), Some("close"));
    sockets::shut_down(peer);
}

/// Ends a request's connection without an answer.
fn discard(peer: SocketAddr, request: Request) {
    sockets::shut_down(peer);
    let_go(request);
}

/// Drops a request without an answer; its connection was shut down.
///
/// tiny_http throws an unread body away by asking for as much memory as was announced, and where
/// that is not to be had the process ends. Such a request is never dropped: it costs a thread of
/// tiny_http's, which waits for nothing.
fn let_go(request: Request) {
    let announced = request.body_length().unwrap_or(0);
    if Vec::<u8>::new().try_reserve_exact(announced).is_ok() {
        drop(request.into_writer());
    } else {
        log::debug!("{request:?} announced a body of {announced} bytes");
        std::mem::forget(request);
    }
}
