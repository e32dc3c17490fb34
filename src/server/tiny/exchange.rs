//! One request, and the way back to its client.

use std::io::{self, Write};
use std::mem;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use tiny_http::Request;

use super::body;
use super::instance::Instance;
use super::sockets::{OwnedConnection, SocketPair};
use crate::protocol::{self, Reply, ServerNames};

/// A request that is being served, the first of its connection's pipeline. Dropped, it lets the next one be served;
/// dropped without an answer, it ends the connection.
pub(in crate::server) struct Exchange {
    instance: Arc<Instance>,
    client: SocketAddr,
    state: ExchangeState,
    /// Whether its body is being read.
    reads_body: bool,
    /// The descriptors of its connection. `None` until they are found.
    sockets: Option<SocketPair>,
}

enum ExchangeState {
    Asked(Request),
    /// The request is understood, and waits for its answer.
    Parked(WayBack),
    /// Answered, or its client has gone.
    Over,
}

/// What tiny_http's writer needs to know of a request, and no more, because thousands may wait.
struct WayBack {
    writer: Box<dyn Write + Send>,
    /// What becomes of the connection.
    connection: Option<&'static str>,
    /// Whether only the head is wanted.
    head: bool,
    /// What the client calls its question, to be repeated in the answer.
    echo: Option<Box<str>>,
    /// What the log calls the request. Empty if it isn't logged.
    name: String,
}

impl Exchange {
    /// Blocks for the next request of an instance, for one thread at a time. `None` when the server ends and none is
    /// left.
    pub fn take(instance: &Arc<Instance>) -> Option<Self> {
        let (client, request) = instance.take()?;
        Some(Self::new(instance, client, request))
    }

    /// A request that is ready, for another thread than the one that [takes](Self::take) them. `None` if there is none.
    pub fn take_ready(instance: &Arc<Instance>) -> Option<Self> {
        let (client, request) = instance.take_ready()?;
        Some(Self::new(instance, client, request))
    }

    fn new(instance: &Arc<Instance>, client: SocketAddr, request: Request) -> Self {
        Exchange {
            instance: instance.clone(),
            client,
            state: ExchangeState::Asked(request),
            reads_body: false,
            sockets: None,
        }
    }

    /// Where its connection comes from.
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// The method as it was sent. Empty once it is parked, as are the others of the question.
    pub fn method(&self) -> &str {
        self.question()
            .map_or("", |request| request.method().as_str())
    }

    /// The path and the query.
    pub fn target(&self) -> &str {
        self.question().map_or("", |request| request.url())
    }

    /// The header lines, each with its field and its value.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let headers = self.question().map_or(&[][..], |request| request.headers());
        headers
            .iter()
            .map(|header| (header.field.as_str().as_str(), header.value.as_str()))
    }

    pub fn has_body(&self) -> bool {
        self.question()
            .and_then(|request| request.body_length())
            .is_some_and(|length| length > 0)
    }

    /// Whether a body is announced that may take any time to come. A thread that nobody waits for asks whether it
    /// [turns out empty](Self::turns_out_empty), or else [refuses](Self::refuse_body) it.
    pub fn has_unread_body(&self) -> bool {
        self.question().is_some_and(body::is_unread)
    }

    /// Whether the unread body is empty: then the request is served like any other. Blocks for its first bytes.
    pub fn turns_out_empty(&mut self) -> bool {
        self.reads_body = true;
        self.instance.note_body(self.client);
        let is_empty = match &mut self.state {
            ExchangeState::Asked(request) => body::turns_out_empty(request),
            _ => false,
        };
        if is_empty {
            self.reads_body = false;
            self.instance.note_body_read(self.client);
        }
        is_empty
    }

    fn question(&self) -> Option<&Request> {
        match &self.state {
            ExchangeState::Asked(request) => Some(request),
            _ => None,
        }
    }

    /// Writes the reply.
    pub fn answer(mut self, reply: &Reply) {
        self.park();
        self.write(reply);
    }

    /// Writes the reply to a request with an unread body, and ends its connection: where the body ends may not be
    /// known, and what tiny_http took for a further request may have been the body.
    pub fn refuse_body(mut self, reply: &Reply) {
        if !self.question().is_some_and(body::is_short) {
            // Too long to be read: dropped, it ends the connection.
            return;
        }
        if let ExchangeState::Asked(mut request) = self.take_state() {
            let read = body::throw_away(&mut request);
            if read.is_err() {
                // Its connection is over, or was ended because it took too long.
                self.state = ExchangeState::Asked(request);
                return;
            }
            let mut way_back = WayBack::new(self.client, request);
            way_back.connection = Some("close");
            self.state = ExchangeState::Parked(way_back);
            self.write(reply);
        }
        self.instance.end_connection(self.client);
    }

    /// Finds its connection, also if it has just been made: looks through all of them then. `false` if it is over, or
    /// others have looked too often.
    pub fn is_located(&mut self) -> bool {
        self.find_connection().is_some()
            || (self.instance.sockets.search() && self.find_connection().is_some())
    }

    /// Begins an answer that goes on until one end of the connection ends it. Returns its head, which is to be sent first.
    /// The exchange comes back where its connection is not known, or there is no descriptor left.
    pub fn stream(mut self, reply: &Reply) -> Result<(AnswerStream, Vec<u8>), Box<Self>> {
        let found = self.find_connection().is_some();
        let Some(connection) = self.sockets.filter(|_| found).and_then(|pair| pair.copy()) else {
            return Err(self.into());
        };
        self.park();
        let ExchangeState::Parked(way_back) = &self.state else {
            return Err(self.into());
        };
        let head = way_back.bytes(reply, &self.instance.names, Some("close"));
        let exchange = self;
        Ok((
            AnswerStream {
                exchange,
                connection,
            },
            head,
        ))
    }

    /// Ends the service of a request whose client has gone.
    pub fn abandon(mut self) {
        self.state = ExchangeState::Over;
    }

    /// Lets go of what was needed only to understand the request.
    pub fn park(&mut self) {
        if self.question().is_some()
            && let ExchangeState::Asked(request) = self.take_state()
        {
            self.state = ExchangeState::Parked(WayBack::new(self.client, request));
        }
    }

    /// Finds the connection's descriptors. `None` if they are not known, or closed.
    pub fn find_connection(&mut self) -> Option<BorrowedFd<'_>> {
        if self.sockets.is_none() {
            self.sockets = self.instance.sockets.find(self.client);
        }
        let fd = self.sockets?.open()?;
        // SAFETY: it was open just now. Were it closed since, what is asked of it fails; were it used again for
        // another connection, then another one's hang-up would be reported, and the client found to be there.
        Some(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Whether the client is there, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.sockets.is_none_or(|sockets| sockets.are_connected())
    }

    /// Whether a short answer can be written without waiting for the client to read.
    pub fn takes_at_once(&self) -> bool {
        self.sockets.is_some_and(|sockets| sockets.have_room())
    }

    /// Whether it is known that the client would have to read before an answer can be written.
    pub fn is_blocked(&self) -> bool {
        self.sockets.is_some_and(|sockets| !sockets.have_room())
    }

    fn write(&mut self, reply: &Reply) {
        if let ExchangeState::Parked(way_back) = self.take_state()
            && let Err(error) = way_back.write(reply, &self.instance.names)
        {
            log::debug!("{} did not take its answer: {error}", self.client);
            // A part of it may have been written: nothing that comes after could be understood.
            self.instance.end_connection(self.client);
        }
    }

    fn take_state(&mut self) -> ExchangeState {
        mem::replace(&mut self.state, ExchangeState::Over)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        match self.take_state() {
            ExchangeState::Asked(request) => {
                body::discard(self.client, request, &self.instance.sockets);
            }
            ExchangeState::Parked(_) => self.instance.end_connection(self.client),
            ExchangeState::Over => {}
        }
        if self.reads_body {
            self.instance.note_body_read(self.client);
        }
        self.instance.done(self.client);
    }
}

impl WayBack {
    fn new(client: SocketAddr, request: Request) -> Self {
        let logged = log::log_enabled!(log::Level::Trace);
        let name = logged.then(|| format!("{client} {} {:?}", request.method(), request.url()));
        WayBack {
            connection: future_of_connection(&request),
            head: *request.method() == tiny_http::Method::Head,
            echo: echo_of(&request),
            name: name.unwrap_or_default(),
            writer: request.into_writer(),
        }
    }

    /// Writes the reply of the server of those names. An error if the client did not take it.
    fn write(mut self, reply: &Reply, names: &ServerNames) -> io::Result<()> {
        let bytes = self.bytes(reply, names, self.connection);
        self.writer.write_all(&bytes)?;
        self.writer.flush()
    }

    fn bytes(&self, reply: &Reply, names: &ServerNames, connection: Option<&str>) -> Vec<u8> {
        log::trace!("{} {}", self.name, reply.status as u16);
        reply.to_bytes(names, connection, self.echo.as_deref(), self.head)
    }
}

/// An answer that goes on, sent by a descriptor of its own: tiny_http's writer would wait for a client that does not
/// read. Dropped, it ends the connection.
pub(in crate::server) struct AnswerStream {
    /// Keeps the connection's next request from being served.
    exchange: Exchange,
    connection: OwnedConnection,
}

impl AnswerStream {
    /// Sends as much as there is room for, and returns how much that was.
    pub fn send_at_once(&self, bytes: &[u8]) -> io::Result<usize> {
        self.connection.send_at_once(bytes)
    }

    /// Whether the client is there, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.connection.is_connected()
    }
}

impl Drop for AnswerStream {
    fn drop(&mut self) {
        self.connection.shut_down();
        let Exchange {
            instance, client, ..
        } = &self.exchange;
        instance.forget_ahead(*client);
        self.exchange.take_state();
    }
}

/// What a client calls its question, if it does. What is no ID is not echoed.
fn echo_of(request: &Request) -> Option<Box<str>> {
    let mut headers = request.headers().iter();
    let echo = headers.find(|header| header.field.equiv(protocol::LOCK_ECHO))?;
    let echo = echo.value.as_str();
    protocol::is_id(echo).then(|| echo.into())
}

/// What becomes of a connection after a reply, by tiny_http's own rule, for the reply to say so.
fn future_of_connection(request: &Request) -> Option<&'static str> {
    let old = *request.http_version() == (1, 0);
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
