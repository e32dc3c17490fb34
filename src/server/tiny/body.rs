//! Requests with an unexpected body, and requests that are not answered.
//!
//! tiny_http reads a body together with the request if its length is known and at most 1024 bytes. It discards any
//! other body when the request is dropped, and allocates the announced length for that; if that allocation fails, the
//! process ends. So a request with a larger body than that is made to expect less before it is dropped.
//!
//! Of a body that is not read to its end, tiny_http parses the rest as further requests. So its connection is ended
//! first, which keeps them from being served: see [`Instance::end_connection`](super::Instance::end_connection).

use std::io::{self, IoSliceMut, Read};
use std::mem::{self, ManuallyDrop};
use std::net::SocketAddr;
use std::ptr;
use std::sync::OnceLock;
use std::thread;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use tiny_http::Request;

use super::sockets::{ShutDown, Sockets};

/// The longest body, in bytes, that is read and discarded before the reply. A longer one ends its connection.
const MAX_BODY: usize = 1024 * 1024;

/// Whether the request announces a body that tiny_http has not read together with it: any body but one of a known
/// length up to 1024 bytes. A length that is no number counts as unread, too, and so does a second length: tiny_http
/// takes the first one, and a proxy in between may have taken the other.
pub(super) fn is_unread(request: &Request) -> bool {
    const READ_BY_TINY_HTTP: usize = 1024;
    let mut lengths = 0;
    request.headers().iter().any(|header| {
        if header.field.equiv("Transfer-Encoding") || header.field.equiv("Expect") {
            return true;
        }
        if !header.field.equiv("Content-Length") {
            return false;
        }
        lengths += 1;
        let length = request.body_length();
        let length = length.filter(|_| is_number(header) && lengths == 1);
        length.is_none_or(|length| length > READ_BY_TINY_HTTP)
    })
}

/// Whether a length has digits alone: Rust's parser, which tiny_http uses, accepts a sign.
fn is_number(length: &tiny_http::Header) -> bool {
    let mut bytes = length.value.as_str().bytes();
    bytes.all(|byte| byte.is_ascii_digit())
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
            is_number(only) && request.body_length() == Some(0)
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

/// Drops a request whose connection was ended.
pub(super) fn discard(client: SocketAddr, request: Request, sockets: &Sockets) {
    if !is_long(&request) {
        return drop(request.into_writer());
    }
    release(client, request, sockets.shut_down(client));
}

/// Ends the service of a request that is not answered. A plain drop would wait for the requests before it, to write
/// tiny_http's own answer.
pub(super) fn forget(client: SocketAddr, request: Request, sockets: &Sockets) {
    if !is_unread(&request) {
        return drop(request.into_writer());
    }
    // Its body may never come, and a `100 Continue` waits for the requests before it.
    let is_long = is_long(&request);
    let connection = is_long.then(|| sockets.shut_down(client)).flatten();
    let request = ManuallyDrop::new(request);
    let drop = move || {
        let request = ManuallyDrop::into_inner(request);
        match is_long {
            true => release(client, request, connection),
            false => drop(request.into_writer()),
        }
    };
    let thread = thread::Builder::new().name("lock-drop".into());
    if let Err(error) = thread.spawn(drop) {
        log::debug!("{client}: no thread to drop a request in, so it is leaked: {error}");
    }
}

/// Drops a request with a long body, whose connection was shut down.
fn release(client: SocketAddr, mut request: Request, connection: Option<ShutDown>) {
    if (connection.is_some() && expect_less(&mut request)) || has_memory_for_body(&request) {
        return drop(request.into_writer());
    }
    log::debug!("{client}: a request is leaked, with its connection's thread");
    mem::forget(request);
    if let Some(connection) = connection {
        connection.close();
    }
}

/// More than any socket may have received: `listen.rs` sets 16 kB, and a listener that was handed over has the system's
/// limit of some megabytes. tiny_http allocates it for a moment, without touching what it does not read.
const MOST_RECEIVED: usize = 64 * 1024 * 1024;

/// Whether tiny_http would allocate more than [`MOST_RECEIVED`] when the request is dropped.
fn is_long(request: &Request) -> bool {
    let mut headers = request.headers().iter();
    // As tiny_http finds it: then it does not read the body, and no request follows it.
    let is_upgrade = headers
        .find(|header| header.field.equiv("Connection"))
        .is_some_and(|header| {
            let value = header.value.as_str().to_ascii_lowercase();
            value.contains("upgrade")
        });
    let length = request.body_length().unwrap_or(0);
    !is_upgrade && length > MOST_RECEIVED
}

fn has_memory_for_body(request: &Request) -> bool {
    let length = request.body_length().unwrap_or(0);
    Vec::<u8>::new().try_reserve_exact(length).is_ok()
}

/// Makes tiny_http expect no more of a body than what its connection, which was shut down, may still have received. So
/// it allocates no more than that, and reads to the end of the connection. `false` if that failed.
///
/// Nobody has read from such a body, so its reader still has the announced length in a private field, and the field is
/// found by that. A client may announce a length that occurs twice in the reader, for instance as an address. Then it is
/// the field that was found earlier; without one, nothing is changed.
fn expect_less(request: &mut Request) -> bool {
    /// Where in the reader the field is, in words.
    static FIELD: OnceLock<usize> = OnceLock::new();
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
    let whole = RemoteIoVec {
        base: words.addr(),
        len: bytes.len(),
    };
    let read = process_vm_readv(Pid::this(), &mut [IoSliceMut::new(&mut bytes)], &[whole]);
    if read != Ok(whole.len) || !words.is_aligned() {
        return false;
    }
    let (chunks, _) = bytes.as_chunks();
    let is_announced = |bytes: &[u8; size_of::<usize>()]| usize::from_ne_bytes(*bytes) == announced;
    let mut found = (0..chunks.len()).filter(|&at| is_announced(&chunks[at]));
    let at = match (found.next(), found.next(), FIELD.get()) {
        (Some(only), None, _) => *FIELD.get_or_init(|| only),
        (Some(_), Some(_), Some(&field)) => field,
        _ => return false,
    };
    if !chunks.get(at).is_some_and(is_announced) {
        return false;
    }
    // SAFETY: inside the reader, which nobody else uses meanwhile, and aligned. It is the reader's count of the bytes
    // that are still to come, of which every value is valid.
    unsafe { words.add(at).write(MOST_RECEIVED) };
    true
}
