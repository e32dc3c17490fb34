//! One question and its reply: who is let in, what the lock manager says, and with which status.
//!
//! Knows no socket and no thread; what has to wait is handed back as a place in the queue.

use std::net::IpAddr;

use crate::http::Shutdown;
use crate::manager::{Attempt, LockManager, Outcome, Place};
use crate::protocol::{self, Malformed, Reply, Request, Seconds, Status};
use crate::table::Refusal;

/// What the front door lets in.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    pub allow_shutdown: bool,
    /// The configured host, which a client may call the server by.
    pub host: String,
    /// Whether only this machine can reach the server.
    pub loopback: bool,
}

/// A reply, or a wait that ends with one.
pub(super) enum Answer {
    Reply(Reply),
    Wait(Place),
}

/// Answers a request, or finds it a place to wait at.
pub(super) fn answer(
    request: &tiny_http::Request,
    admission: &Admission,
    manager: &LockManager,
    shutdown: &Shutdown,
) -> Answer {
    match understand(request, admission) {
        Err(refusal) => Answer::Reply(refusal),
        Ok(Request::Lock { key, requester }) => match manager.acquire(&key, &requester) {
            Attempt::Decided(outcome) => Answer::Reply(outcome_reply(outcome, manager)),
            Attempt::Queued(place) => Answer::Wait(place),
        },
        Ok(Request::Unlock { key, requester }) => verdict(manager.release(&key, &requester)),
        Ok(Request::Verify { key, requester }) => verdict(manager.verify(&key, &requester)),
        Ok(Request::Check { key }) if manager.check(&key) => Answer::Reply(Reply::yes()),
        Ok(Request::Check { .. }) => Answer::Reply(Reply::no(word(Refusal::Free))),
        Ok(Request::Ping) => {
            let terms = manager.terms();
            let reply = Reply::yes()
                .with_header(protocol::LOCK_TIMEOUT, Seconds(terms.lock_timeout))
                .with_header(
                    protocol::LOCK_ATTEMPT_TIMEOUT,
                    Seconds(terms.lock_attempt_timeout),
                );
            Answer::Reply(reply)
        }
        Ok(Request::Shutdown) if admission.allow_shutdown => {
            shutdown.request("SHUTDOWN was asked for");
            Answer::Reply(Reply::yes())
        }
        Ok(Request::Shutdown) => Answer::Reply(Reply::refusal(
            Status::Forbidden,
            "forbidden",
            "SHUTDOWN is not allowed here; start the server with --allow-shutdown",
        )),
    }
}

/// The reply to a request that announces a body which was not read with it.
pub(super) fn body_refused() -> Reply {
    Reply::refusal(
        Status::BadRequest,
        "bad-request",
        "the question stands in the path; send no body, or at most 1024 bytes of it, not chunked",
    )
}

/// The reply to a LOCK for which there is no thread to wait in.
pub(super) fn no_thread() -> Reply {
    full("the machine has no thread left for one more waiter")
}

fn understand<'a>(
    request: &'a tiny_http::Request,
    admission: &Admission,
) -> Result<Request<'a>, Reply> {
    admit(request, admission)?;
    let question = Request::parse(request.url()).map_err(|malformed| match malformed {
        Malformed::NoSuchVerb => Reply::refusal(
            Status::NotFound,
            "no-such-verb",
            "no such verb; ask /CHECK/key, /LOCK/key/requester, /UNLOCK/key/requester, \
             /VERIFY/key/requester, /PING or /SHUTDOWN",
        ),
        Malformed::BadRequest(reason) => Reply::refusal(Status::BadRequest, "bad-request", reason),
    })?;
    match request.method() {
        tiny_http::Method::Get | tiny_http::Method::Post => Ok(question),
        method => Err(Reply::refusal(
            Status::MethodNotAllowed,
            "bad-method",
            format!("{method} is not for locks; use GET or POST"),
        )
        .with_header("Allow", "GET, POST")),
    }
}

/// Turns away what a web page can make a browser send.
///
/// A page from anywhere may ask its visitor's browser to GET an address on that visitor's own
/// machine. The browser then says so in `Origin` or `Sec-Fetch-Site` (Fetch Metadata); and a page
/// whose name was pointed at 127.0.0.1 (DNS rebinding) shows itself in `Host`.
fn admit(request: &tiny_http::Request, admission: &Admission) -> Result<(), Reply> {
    for header in request.headers() {
        let (field, value) = (&header.field, header.value.as_str());
        let from_a_page = field.equiv("Origin")
            || (field.equiv("Sec-Fetch-Site") && !matches!(value, "none" | "same-origin"));
        if from_a_page {
            return Err(Reply::refusal(
                Status::Forbidden,
                "forbidden",
                format!("a web page may not ask for locks: the request carries {field}"),
            ));
        }
        if admission.loopback && field.equiv("Host") && !is_own_name(value, &admission.host) {
            return Err(Reply::refusal(
                Status::Misdirected,
                "wrong-host",
                format!(
                    "this server is not {:?}: ask for 127.0.0.1, localhost or the --host it was started with",
                    protocol::shorten(value)
                ),
            ));
        }
    }
    Ok(())
}

/// Whether a `Host` header names this machine's loopback, or what the server was told to listen on.
fn is_own_name(host: &str, configured: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || name.eq_ignore_ascii_case(configured)
        || name
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

fn verdict(result: Result<(), Refusal>) -> Answer {
    Answer::Reply(match result {
        Ok(()) => Reply::yes(),
        Err(refusal) => Reply::no(word(refusal)),
    })
}

/// The reply to a LOCK that is decided.
pub(super) fn outcome_reply(outcome: Outcome, manager: &LockManager) -> Reply {
    match outcome {
        Outcome::Granted(grant) => Reply::lease(manager.lease(grant)),
        Outcome::Refused(Refusal::Full) => {
            full("the server has as many waiters or held keys as it allows")
        }
        Outcome::Refused(refusal) => Reply::no(word(refusal)),
        Outcome::Abandoned | Outcome::Stopping => Reply::refusal(
            Status::Unavailable,
            "stopping",
            "the server is ending; nothing was locked",
        ),
    }
}

fn full(message: &str) -> Reply {
    Reply::refusal(
        Status::Unavailable,
        word(Refusal::Full),
        format!("{message}; try again later"),
    )
    .with_header("Retry-After", 1)
}

/// The stable word of a refusal.
fn word(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::AlreadyHolder => "already-holder",
        Refusal::AlreadyWaiting => "already-waiting",
        Refusal::Free => "free",
        Refusal::Full => "full",
        Refusal::NotHolder => "not-holder",
        Refusal::Timeout => "timeout",
    }
}
