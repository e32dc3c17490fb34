//! A request that was understood and is still to be answered: what tiny_http's writer needs to know, and no
//! more, because thousands may wait.

use std::io::Write;
use std::net::SocketAddr;

use tiny_http::Request;

use crate::protocol::{self, Reply};

pub(super) struct Unanswered {
    writer: Box<dyn Write + Send>,
    /// What becomes of the connection.
    connection: Option<&'static str>,
    /// Whether only the head is wanted.
    head: bool,
    /// What the client calls its question, to be said with the answer.
    echo: Option<Box<str>>,
    /// What the log calls it. Empty if it isn't told.
    name: String,
}

impl Unanswered {
    /// Keeps tiny_http's rule for the connection.
    pub fn new(client: SocketAddr, request: Request) -> Self {
        let connection = future_of_connection(&request);
        Unanswered::with_connection(client, request, connection)
    }

    /// Ends the connection with the answer.
    pub fn last(client: SocketAddr, request: Request) -> Self {
        Unanswered::with_connection(client, request, Some("close"))
    }

    fn with_connection(
        client: SocketAddr,
        request: Request,
        connection: Option<&'static str>,
    ) -> Self {
        let told = log::log_enabled!(log::Level::Trace);
        let name = told.then(|| format!("{client} {} {:?}", request.method(), request.url()));
        Unanswered {
            connection,
            head: *request.method() == tiny_http::Method::Head,
            echo: echo_of(&request),
            name: name.unwrap_or_default(),
            writer: request.into_writer(),
        }
    }

    /// Writes the reply. An error if the client did not take it.
    pub fn write(mut self, reply: &Reply) -> std::io::Result<()> {
        log::trace!("{} {}", self.name, reply.status as u16);
        let bytes = reply.to_bytes(self.connection, self.echo.as_deref(), self.head);
        self.writer.write_all(&bytes)?;
        self.writer.flush()
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
