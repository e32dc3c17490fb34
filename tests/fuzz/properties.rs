//! The properties of the wire for any bytes. Compiled into the crate only with `--cfg fuzzing`, since the types of the
//! wire are private.

use std::time::{Duration, UNIX_EPOCH};

use crate::lease::{Holder, LeaseView};
use crate::protocol::classic::{MAX_REQUEST, Progress, Received};
use crate::protocol::http::{NotAnswered, ParsedAnswer, ParsedReply, ServerTimes};
use crate::protocol::{
    LOCK_ATTEMPT_TIMEOUT, LOCK_ECHO, LOCK_EXPIRES_IN, LOCK_FENCE, LOCK_HOLDER,
    LOCK_HOLDER_EXPIRES_IN, LOCK_HOLDERS, LOCK_MAX_ATTEMPT_TIMEOUT, LOCK_RESULT, LOCK_SLOTS,
    LOCK_WAITERS, MAX_NAME, Malformed, MaxTimes, Reply, Request, Seconds, ServerNames, Status,
};
use crate::refusal::Refusal;

const MAX: MaxTimes = MaxTimes {
    lock_timeout: Duration::from_secs(3600),
    lock_attempt_timeout: Duration::from_secs(3600),
};

/// A valid request target, parsed and written, parses as the same request. The error of an invalid one is one short
/// line.
pub fn request(data: &[u8]) {
    let Ok(target) = str::from_utf8(data) else {
        return;
    };
    check(Request::parse(target, &MAX));
}

/// A classic request means the same however its bytes are cut, and its target means the same on the HTTP wire.
pub fn classic(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first_chunk::<2>() else {
        return;
    };
    if bytes.len() > MAX_REQUEST {
        return;
    }
    let cut = usize::from(u16::from_le_bytes(*cut)) % (bytes.len() + 1);
    let whole = received([bytes]);
    let (first, rest) = bytes.split_at(cut);
    for other in [received([first, rest]), received(bytes.chunks(1))] {
        assert_eq!(other.0, whole.0);
        assert_eq!(other.1.question(), whole.1.question());
        assert_eq!(other.1.has_more(), whole.1.has_more());
        assert!(other.1.headers().eq(whole.1.headers()));
    }
    check(whole.1.question());
}

fn received<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Progress, Received) {
    let mut received = Received::default();
    let mut progress = received.take(b"");
    for piece in pieces {
        progress = received.take(piece);
    }
    (progress, received)
}

fn check(question: Result<Request, Malformed>) {
    match question {
        Ok(question) => {
            for (name, is_taken) in names(&question) {
                assert_eq!(
                    (1..=MAX_NAME).contains(&name.len()),
                    is_taken,
                    "{question:?}"
                );
            }
            let target = question.to_string();
            assert!(target.is_ascii(), "{target}");
            assert_eq!(Request::parse(&target, &MAX), Ok(question));
        }
        Err(Malformed::NoSuchVerb) => {}
        Err(Malformed::BadRequest(reason)) => {
            assert!(!reason.contains(['\r', '\n']), "{reason:?}");
            assert!(reason.len() < 1000, "{reason:?}");
        }
    }
}

/// The names in a request, and whether its verb takes them.
fn names<'q>(question: &'q Request) -> [(&'q str, bool); 2] {
    let taken = question.verb.row().names.len();
    [
        (&question.key, taken >= 1),
        (&question.requester, taken >= 2),
    ]
}

/// A client parses every reply that a server writes, and does not panic on any other bytes.
pub fn reply(data: &[u8]) {
    let mut data = Data(data);
    if data.byte() % 4 == 0 {
        return foreign_reply(data);
    }
    let (left, waiters) = (data.duration(), data.number() as usize);
    let holders = data.number() as usize;
    let lease = LeaseView {
        expires: UNIX_EPOCH + Duration::from_micros(data.number() >> 10),
        left: data.duration(),
        fence: data.number(),
        slots: data.number() as u32,
    };
    let times = [data.duration(), data.duration()];
    let refusal = data.refusal();
    let kind = data.byte();
    let is_understood = data.byte() % 4 > 0;
    let (message, holder) = (data.line(), data.name());
    let reply = match kind % 4 {
        _ if !is_understood => Reply::refusal(Status::Unavailable, refusal, message.clone()),
        0 => Reply::yes(),
        1 => Reply::no(refusal),
        2 => Reply::lease(lease),
        _ => Reply::holder(lease),
    };
    let reply = match kind / 4 % 4 {
        0 => reply.with_holder(&holder, left, holders, waiters),
        1 => reply
            .with_header(LOCK_ATTEMPT_TIMEOUT, Seconds(times[0]))
            .with_header(LOCK_MAX_ATTEMPT_TIMEOUT, Seconds(times[1])),
        _ => reply,
    };
    let names = ServerNames {
        server: "5f-1".into(),
        store: Default::default(),
    };
    let text = reply.to_bytes(&names, None, Some("a-1"), false);
    let text = String::from_utf8(text).expect("a reply is text");
    let (head, body) = text
        .split_once("\r\n\r\n")
        .expect("a reply has an empty line");
    let length = body.len();
    assert!(head.contains(&format!("\r\nContent-Length: {length}\r\n")));
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        let line = lines.find(|(field, _)| *field == name);
        line.map(|(_, value)| value.as_bytes())
    };
    let parse = |echo| ParsedReply::parse(reply.status as u16, header, body, echo);
    assert!(matches!(parse("a-2"), Err(NotAnswered::Foreign(_))));
    let parsed = match parse("a-1") {
        Err(NotAnswered::Refused(word, sentence)) => {
            assert!(!is_understood);
            return assert_eq!((word, sentence), (refusal, message));
        }
        parsed => parsed.expect("a client understands a reply"),
    };
    assert!(is_understood);
    let said = match kind % 4 {
        1 => ParsedAnswer::No,
        2 => ParsedAnswer::Expiry(lease.expires),
        _ => ParsedAnswer::Yes,
    };
    assert_eq!(parsed.said, said);
    assert_eq!(parsed.refusal, (kind % 4 == 1).then_some(refusal));
    assert_eq!(parsed.lease.is_some(), kind % 4 >= 2);
    if let Some(told) = parsed.lease {
        assert_eq!((told.fence, told.slots), (lease.fence, lease.slots));
        assert_is_told(told.left, lease.left);
    }
    assert_eq!(parsed.holder.is_some(), kind / 4 % 4 == 0);
    if let Some(Holder {
        name,
        expires_in,
        holders: told_holders,
        waiters: told,
        note,
    }) = parsed.holder
    {
        assert_eq!((name, told, note), (holder, waiters, None));
        assert_eq!(told_holders, holders.max(1));
        assert_is_told(expires_in, left);
    }
    assert_eq!(parsed.times.is_some(), kind / 4 % 4 == 1);
    if let Some(ServerTimes {
        lock_attempt_timeout,
        max_lock_attempt_timeout,
    }) = parsed.times
    {
        assert_is_told(lock_attempt_timeout, times[0]);
        assert_is_told(max_lock_attempt_timeout, times[1]);
    }
}

/// A header's time is truncated to milliseconds, within the precision of a floating-point number.
fn assert_is_told(told: Duration, duration: Duration) {
    let exact = Duration::from_millis(duration.as_millis() as u64);
    assert!(
        told.abs_diff(exact) < Duration::from_micros(1),
        "{told:?} {exact:?}"
    );
}

/// A status, headers and a body that no server writes together.
fn foreign_reply(mut data: Data) {
    let status = [200, 200, 404, 503][usize::from(data.byte() % 4)];
    let names = [
        LOCK_RESULT,
        LOCK_ECHO,
        LOCK_FENCE,
        LOCK_EXPIRES_IN,
        LOCK_SLOTS,
        LOCK_HOLDER,
        LOCK_HOLDERS,
        LOCK_HOLDER_EXPIRES_IN,
        LOCK_WAITERS,
        LOCK_ATTEMPT_TIMEOUT,
        LOCK_MAX_ATTEMPT_TIMEOUT,
    ];
    let values = names.map(|_| data.piece());
    let header = |name: &str| {
        let at = names.iter().position(|known| *known == name)?;
        (!values[at].is_empty()).then_some(values[at])
    };
    let body = String::from_utf8_lossy(data.0);
    let echo = String::from_utf8_lossy(values[1]);
    if let Ok(ParsedReply { holder, .. }) = ParsedReply::parse(status, header, &body, &echo) {
        assert_eq!(status, 200);
        assert!(holder.is_none_or(|holder| (1..=MAX_NAME).contains(&holder.name.len())));
    }
}

/// A source of values from bytes. After their end it gives zeros.
struct Data<'a>(&'a [u8]);

impl<'a> Data<'a> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    fn number(&mut self) -> u64 {
        let bytes: [u8; 8] = std::array::from_fn(|_| self.byte());
        // Shifted, so that small numbers are as frequent as large ones.
        u64::from_le_bytes(bytes) >> (self.byte() % 64)
    }

    /// Up to ten years.
    fn duration(&mut self) -> Duration {
        Duration::from_micros(self.number() % (10 * 366 * 24 * 3600 * 1_000_000))
    }

    /// Up to 31 bytes.
    fn piece(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte() % 32).min(self.0.len());
        self.0.split_off(..length).unwrap_or_default()
    }

    /// A sentence, perhaps an empty one.
    fn line(&mut self) -> String {
        String::from_utf8_lossy(self.piece()).replace(['\r', '\n'], " ")
    }

    fn name(&mut self) -> String {
        let name = String::from_utf8_lossy(self.piece());
        format!("{name}.")
    }

    fn refusal(&mut self) -> Refusal {
        let sent: Vec<Refusal> = Refusal::sent().collect();
        sent[usize::from(self.byte()) % sent.len()]
    }
}
