//! Requests with an unexpected body, and requests that are not answered.
//!
//! tiny_http reads a body together with the request if its length is known and at most 1024 bytes. It discards any
//! other body when the request is dropped, and allocates the announced length for that; if that allocation fails, the
//! process ends.

use std::io;
use std::mem;
use std::net::SocketAddr;

use tiny_http::Request;

use super::sockets::Sockets;

/// The longest body, in bytes, that is read and discarded before the reply. A longer one ends its connection.
const MAX_BODY: usize = 1024 * 1024;

/// Whether the request announces a body that tiny_http has not read together with it: any body but one of a known
/// length up to 1024 bytes. A length that is no number counts as unread, too.
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

/// Whether an unread body is empty, as gateways send one with a GET. Blocks until its first bytes arrive. If it is
/// empty, the request may be served, and the following bytes are the next request.
///
/// A body with two framing headers never counts as empty: a proxy in between may have read it by the other header.
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
        // tiny_http treats every transfer coding as chunked.
        (Some(only), None) => only.value.as_str().eq_ignore_ascii_case("chunked"),
        _ => false,
    };
    // Sends the `100 Continue` that the client may wait for.
    is_plain && matches!(request.as_reader().read(&mut [0]), Ok(0))
}

/// Whether the body is short enough to be read before the reply.
pub(super) fn is_short(request: &Request) -> bool {
    request
        .body_length()
        .is_none_or(|length| length <= MAX_BODY)
}

/// Reads a body of a known length to its end, in small pieces: tiny_http would allocate the announced length. A body of
/// unknown length is not read any further.
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

/// Ends the service of a request that is not answered. A plain drop would wait for the requests before it, to write
/// tiny_http's own answer.
pub(super) fn forget(client: SocketAddr, request: Request, sockets: &Sockets) {
    if can_be_dropped(&request) {
        drop(request.into_writer());
    } else {
        discard(client, request, sockets);
    }
}

/// Whether a request can be dropped: there is memory for its announced body. Otherwise it is leaked, which costs the
/// thread that reads its connection and then blocks without end.
fn can_be_dropped(request: &Request) -> bool {
    Vec::<u8>::new()
        .try_reserve_exact(request.body_length().unwrap_or(0))
        .is_ok()
}
