//! Requests with an unexpected body, and requests that are not answered.
//!
//! tiny_http reads a body together with the request if its length is known and at most 1024 bytes. It discards any
//! other body when the request is dropped, and allocates the announced length for that; if that allocation fails, the
//! process ends. So a request with a larger body than that is made to expect none before it is dropped.

use std::fs::File;
use std::io::{self, Read};
use std::mem::{self, ManuallyDrop};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::thread;

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
    sockets.shut_down(client);
    release(client, request);
}

/// Ends the service of a request that is not answered. A plain drop would wait for the requests before it, to write
/// tiny_http's own answer.
pub(super) fn forget(client: SocketAddr, request: Request, sockets: &Sockets) {
    if can_be_dropped(&request) {
        return drop(request.into_writer());
    }
    sockets.shut_down(client);
    // The requests before it may still be served, and `release` may wait for them.
    let request = ManuallyDrop::new(request);
    let release = move || release(client, ManuallyDrop::into_inner(request));
    if let Err(error) = thread::Builder::new().spawn(release) {
        log::debug!("{client}: no thread to release a request in, so it is leaked: {error}");
    }
}

/// Drops a request whose connection was shut down. May send a `100 Continue`, which waits for the requests before it.
fn release(client: SocketAddr, mut request: Request) {
    if can_be_dropped(&request) || expect_no_more(&mut request) {
        drop(request.into_writer());
    } else {
        log::debug!("{client}: a request is leaked, with its connection's thread and descriptors");
        mem::forget(request);
    }
}

/// Whether a request can be dropped: there is memory for its announced body, or tiny_http will not read the body.
fn can_be_dropped(request: &Request) -> bool {
    let mut headers = request.headers().iter();
    // As tiny_http finds it: then the body has no end, and is not read when the request is dropped.
    let is_upgrade = headers
        .find(|header| header.field.equiv("Connection"))
        .is_some_and(|header| {
            let value = header.value.as_str().to_ascii_lowercase();
            value.contains("upgrade")
        });
    let announced = request.body_length().unwrap_or(0);
    is_upgrade || Vec::<u8>::new().try_reserve_exact(announced).is_ok()
}

/// Makes tiny_http expect no more of the body that a request announced, so that it allocates nothing for it. `false`
/// if that failed.
///
/// Nobody reads from a body that is larger than the memory, so its reader still has the announced length in a private
/// field, which is found by that length and set to zero. If the length occurs twice, for instance as an address, nothing
/// is changed.
fn expect_no_more(request: &mut Request) -> bool {
    let Some(announced) = request.body_length() else {
        return false;
    };
    let reader = request.as_reader();
    if mem::size_of_val(reader) != size_of::<Box<dyn Read + Send>>() {
        return false;
    }
    // SAFETY: `as_reader` returns the request's own box, by the source of tiny_http 0.12.0. Cargo.toml allows no other
    // version, and the reader in the box is larger than a box.
    let reader = unsafe { &mut **ptr::from_mut(reader).cast::<Box<dyn Read + Send>>() };
    let mut bytes = vec![0; mem::size_of_val(reader)];
    let words = ptr::from_mut(reader).cast::<usize>();
    // The kernel reads it, since parts of it may be uninitialised.
    let read = File::open("/proc/self/mem")
        .and_then(|memory| memory.read_exact_at(&mut bytes, words.addr() as u64));
    if read.is_err() || !words.is_aligned() {
        return false;
    }
    let (chunks, _) = bytes.as_chunks();
    let is_announced = |bytes: &[u8; size_of::<usize>()]| usize::from_ne_bytes(*bytes) == announced;
    let mut found = (0..chunks.len()).filter(|&at| is_announced(&chunks[at]));
    let (Some(at), None) = (found.next(), found.next()) else {
        return false;
    };
    // SAFETY: inside the reader, which nobody else uses meanwhile, and aligned. It is the reader's count of the bytes
    // that are still to come, of which zero is a valid value.
    unsafe { words.add(at).write(0) };
    true
}
