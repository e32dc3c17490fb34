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

/// A request that is being served, the first of its connection's pipeline. Dropping it lets the next one be served;
/// dropping it without an answer ends the connection.
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
    /// The request is parsed, and waits for its answer.
    Parked(WayBack),
    /// Answered, or its client has gone.
    Over,
}

/// What an answer needs of its request. Kept small, because thousands may wait.
struct WayBack {
    writer: Box<dyn Write + Send>,
    /// The value of the answer's `Connection` header.
    connection: Option<&'static str>,
    /// Whether the answer has no body: HEAD.
    head: bool,
    /// The client's ID for its question, to be repeated in the answer.
    echo: Option<Box<str>>,
    /// The request's name in the log. Empty if it isn't logged.
    name: String,
}

impl Exchange {
    /// Blocks for the next request of an instance. Call it from one thread at a time. `None` when the server ends and
    /// no request is left.
    pub fn take(instance: &Arc<Instance>) -> Option<Self> {
        let (client, request) = instance.take()?;
        Some(Self::new(instance, client, request))
    }

    /// Returns a ready request, for a thread beside the one that calls [`take`](Self::take). `None` if none is ready.
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

    /// The client's address.
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// The method as it was sent. Empty once the exchange is parked, like the target and the headers.
    pub fn method(&self) -> &str {
        self.question()
            .map_or("", |request| request.method().as_str())
    }

    /// The path and the query.
    pub fn target(&self) -> &str {
        self.question().map_or("", |request| request.url())
    }

    /// The header lines, each as its field and its value.
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

    /// Whether a body is announced that may take any time to arrive. A worker then asks whether it [turns out
    /// empty](Self::turns_out_empty), or else [refuses](Self::refuse_body) it.
    pub fn has_unread_body(&self) -> bool {
        self.question().is_some_and(body::is_unread)
    }

    /// Whether the unread body is empty: then the request is served like any other. Blocks until its first bytes
    /// arrive.
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

    /// Writes the reply to a request with an unread body, and ends its connection: the end of the body may be unknown,
    /// and tiny_http may have parsed the body as a further request.
    pub fn refuse_body(mut self, reply: &Reply) {
        if !self.question().is_some_and(body::is_short) {
            // Too long to be read: dropping the exchange ends the connection.
            return;
        }
        if let ExchangeState::Asked(mut request) = self.take_state() {
            let read = body::throw_away(&mut request);
            if read.is_err() {
                // The connection is over, or was ended because the body took too long.
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

    /// Finds its connection. Looks through all connections for a new one. `false` if it is over, or if searches were
    /// too frequent.
    pub fn is_located(&mut self) -> bool {
        self.find_connection().is_some()
            || (self.instance.sockets.search() && self.find_connection().is_some())
    }

    /// Begins an answer that lasts until either end closes the connection. Returns its head, to be sent first. The
    /// exchange is returned as the error if its connection is not known, or no descriptor is left.
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

    /// Drops what only parsing the request needed.
    pub fn park(&mut self) {
        if self.question().is_some()
            && let ExchangeState::Asked(request) = self.take_state()
        {
            self.state = ExchangeState::Parked(WayBack::new(self.client, request));
        }
    }

    /// Finds the connection's descriptor. `None` if it is not known, or closed.
    pub fn find_connection(&mut self) -> Option<BorrowedFd<'_>> {
        if self.sockets.is_none() {
            self.sockets = self.instance.sockets.find(self.client);
        }
        let fd = self.sockets?.open()?;
        // SAFETY: it was open just now. If it is closed since, calls on it fail. If its number has gone to another
        // connection, a hang-up of that connection is reported, and this client is then found to be connected.
        Some(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Whether the client is connected. `true` if its connection is not known.
    pub fn is_connected(&self) -> bool {
        self.sockets.is_none_or(|sockets| sockets.are_connected())
    }

    /// Whether a short answer can be written without waiting for the client to read.
    pub fn takes_at_once(&self) -> bool {
        self.sockets.is_some_and(|sockets| sockets.have_room())
    }

    /// Whether a write is known to block until the client reads.
    pub fn is_blocked(&self) -> bool {
        self.sockets.is_some_and(|sockets| !sockets.have_room())
    }

    fn write(&mut self, reply: &Reply) {
        if let ExchangeState::Parked(way_back) = self.take_state()
            && let Err(error) = way_back.write(reply, &self.instance.names)
        {
            log::debug!("{} did not take its answer: {error}", self.client);
            // A part may have been written: the client could not parse a further answer.
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
                self.instance.end_connection(self.client);
                body::discard(self.client, request, &self.instance.sockets);
            }
            ExchangeState::Parked(_) => {
                self.instance.end_connection(self.client);
            }
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

    /// Writes the reply, from the server of these names. An error if the client did not take it.
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

/// An answer without an end, sent through its own descriptor: tiny_http's writer would block on a client that does not
/// read. Dropping it ends the connection.
pub(in crate::server) struct AnswerStream {
    /// Keeps the connection's next request from being served.
    exchange: Exchange,
    connection: OwnedConnection,
}

impl AnswerStream {
    /// Sends as much as there is room for, and returns how many bytes that was.
    pub fn send_at_once(&self, bytes: &[u8]) -> io::Result<usize> {
        self.connection.send_at_once(bytes)
    }

    /// Whether the client is connected, as far as the kernel knows.
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

/// The client's ID for its question, if it sent one. Anything but an ID is not echoed.
fn echo_of(request: &Request) -> Option<Box<str>> {
    let mut headers = request.headers().iter();
    let echo = headers.find(|header| header.field.equiv(protocol::LOCK_ECHO))?;
    let echo = echo.value.as_str();
    protocol::is_id(echo).then(|| echo.into())
}

/// The reply's `Connection` header: it states what tiny_http's own rule will do with the connection.
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
