//! Requests with a body that nobody asked for, and requests that are not answered.
//!
//! tiny_http reads a body with the request where its length is known and at most 1024 bytes. It throws any other one
//! away when the request is dropped, by asking for as much memory as was announced; and where that is not to be had
//! the process ends.

use std::io;
use std::mem;
use std::net::SocketAddr;

use tiny_http::Request;

use super::sockets::Sockets;

/// A body up to this length is read and thrown away before the reply; a longer one ends its connection.
const MAX_BODY: usize = 1024 * 1024;

/// Whether the request announces a body that tiny_http has not read together with it: all but those
/// of a known length up to 1024 bytes. A length that is no number hides a body, too.
pub(super) fn is_unread(request: &Request) -> bool {
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

/// Whether an unread body is empty, as gateways send one with a GET. Blocks until its first bytes have come; the
/// request may be served if it is, and what is behind it is the next request.
///
/// A body that is announced twice is none that is empty: who is in between may have read it in the other way.
pub(super) fn turns_out_empty(request: &mut Request) -> bool {
    let is_framing = |header: &&tiny_http::Header| {
        header.field.equiv("Transfer-Encoding") || header.field.equiv("Content-Length")
    };
    let mut framing = request.headers().iter().filter(is_framing);
    let is_plain = match (framing.next(), framing.next()) {
        (None, _) => true,
        (Some(only), None) if only.field.equiv("Content-Length") => {
            request.body_length() == Some(0)
        }
        // tiny_http takes every transfer coding for chunked.
        (Some(only), None) => only.value.as_str().eq_ignore_ascii_case("chunked"),
        _ => false,
    };
    // Sends the `100 Continue` that the client may wait for.
    is_plain && matches!(request.as_reader().read(&mut [0]), Ok(0))
}

/// Whether the body may be read to answer the request.
pub(super) fn is_short(request: &Request) -> bool {
    request
        .body_length()
        .is_none_or(|length| length <= MAX_BODY)
}

/// Reads a body of a known length to its end, in small pieces: tiny_http would ask for as much memory as was announced.
/// Any other one is not read any further.
pub(super) fn throw_away(request: &mut Request) -> io::Result<()> {
    // Sends the `100 Continue` that the client may wait for.
    let is_of_known_length = request.body_length().is_some();
    let body = request.as_reader();
    let mut piece = [0; 4096];
    while is_of_known_length && body.read(&mut piece)? > 0 {}
    Ok(())
}

/// Ends a request's connection without an answer.
pub(super) fn discard(client: SocketAddr, request: Request, sockets: &Sockets) {
    let connection = sockets.shut_down(client);
    if can_be_dropped(&request) {
        return drop(request.into_writer());
    }
    log::debug!("{client} announced a body that there is no memory for");
    mem::forget(request);
    connection.close();
}

/// Ends the service of a request that is not answered. Dropped as it is, it would wait for those before
/// it, to write an answer of tiny_http's.
pub(super) fn forget(client: SocketAddr, request: Request, sockets: &Sockets) {
    if can_be_dropped(&request) {
        drop(request.into_writer());
    } else {
        discard(client, request, sockets);
    }
}

/// Whether dropping a request does no harm. Where it does, the request is never dropped: that costs the thread that
/// reads its connection, which then waits for nothing.
fn can_be_dropped(request: &Request) -> bool {
    Vec::<u8>::new()
        .try_reserve_exact(request.body_length().unwrap_or(0))
        .is_ok()
}
