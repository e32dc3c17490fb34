//! The wire, word by word and byte by byte.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use std::time::{SystemTime, UNIX_EPOCH};

use super::http::{NotAnswered, ParsedAnswer, ParsedLease, ParsedReply, ServerTimes};
use super::text::parse_seconds;
use super::*;
use crate::lease::{Fence, Holder};

/// The default caps, an hour each.
const MAX: MaxTimes = MaxTimes {
    lock_timeout: Duration::from_secs(3600),
    lock_attempt_timeout: Duration::from_secs(1800),
};

fn parse(target: &str) -> Result<Request<'_>, Malformed> {
    Request::parse(target, &MAX)
}

fn check(key: &str) -> Request<'_> {
    Request::new(Verb::Check, key, "")
}

fn lock<'a>(key: &'a str, requester: &'a str) -> Request<'a> {
    Request::new(Verb::Lock, key, requester)
}

fn unlock<'a>(key: &'a str, requester: &'a str) -> Request<'a> {
    Request::new(Verb::Unlock, key, requester)
}

fn verify<'a>(key: &'a str, requester: &'a str) -> Request<'a> {
    Request::new(Verb::Verify, key, requester)
}

fn renew<'a>(key: &'a str, requester: &'a str) -> Request<'a> {
    Request::new(Verb::Renew, key, requester)
}

/// The first line of a `200` without headers.
fn parse_answer(body: &str) -> Option<ParsedAnswer> {
    let parsed = ParsedReply::parse(200, |_| None, body, "");
    parsed.ok().map(|reply| reply.said)
}

/// The sentence that a bad request gets.
#[track_caller]
fn reason(target: &str) -> String {
    match parse(target) {
        Err(Malformed::BadRequest(reason)) => reason,
        other => panic!("{target} should be a bad request: {other:?}"),
    }
}

// Questions.

#[test]
fn every_verb_is_understood() {
    assert_eq!(parse("/CHECK/KEYA"), Ok(check("KEYA")));
    assert_eq!(parse("/LOCK/KEYA/ann"), Ok(lock("KEYA", "ann")));
    assert_eq!(parse("/UNLOCK/KEYA/ann"), Ok(unlock("KEYA", "ann")));
    assert_eq!(parse("/VERIFY/KEYA/ann"), Ok(verify("KEYA", "ann")));
    assert_eq!(parse("/RENEW/KEYA/ann"), Ok(renew("KEYA", "ann")));
    assert_eq!(parse("/PING"), Ok(Request::bare(Verb::Ping)));
    assert_eq!(parse("/SHUTDOWN"), Ok(Request::bare(Verb::Shutdown)));
    assert_eq!(parse("/livez"), Ok(Request::bare(Verb::Livez)));
    assert_eq!(parse("/readyz"), Ok(Request::bare(Verb::Readyz)));
    assert_eq!(parse("/"), Ok(Request::bare(Verb::Page)));
    assert!(reason("//").contains("too many segments"));
}

#[test]
fn a_name_is_percent_encoded_utf_8() {
    for (segment, name) in [
        ("KEY%41", "KEYA"),
        ("%2F", "/"),
        ("var%2Flib%2fdb", "var/lib/db"),
        ("a%20b", "a b"),
        ("a+b", "a+b"),
        ("100%25", "100%"),
        ("%2541", "%41"),
        ("%3F%3D%26%23", "?=&#"),
        ("%00%0D%0A", "\0\r\n"),
        ("schl%C3%BCssel", "schlüssel"),
        ("%E2%82%AC", "€"),
        ("%f0%9f%94%92", "🔒"),
        ("schlüssel", "schlüssel"),
        ("..", ".."),
        ("LOCK", "LOCK"),
    ] {
        let target = format!("/LOCK/{segment}/{segment}");
        assert_eq!(parse(&target), Ok(lock(name, name)), "{segment}");
    }
}

#[test]
fn a_whole_address_is_taken_as_its_path() {
    assert_eq!(parse("http://localhost:8004/CHECK/K"), Ok(check("K")));
    assert_eq!(parse("http://[::1]/LOCK/K/ann"), Ok(lock("K", "ann")));
    assert_eq!(parse("http://localhost"), Ok(Request::bare(Verb::Page)));
    assert!(reason("http://localhost/?x").contains("no parameter"));
    assert!(reason("https://localhost/PING").contains("begin with a slash"));
}

#[test]
fn an_empty_query_is_none() {
    assert_eq!(parse("/CHECK/K?"), Ok(check("K")));
    assert_eq!(parse("/PING?&&"), Ok(Request::bare(Verb::Ping)));
}

#[test]
fn a_verb_is_upper_case_and_one_of_the_table() {
    for target in [
        "/check/K",
        "/Ping",
        "/LIVEZ",
        "/LOCKS/K/ann",
        "/%4COCK/K/ann",
        "/ PING",
    ] {
        assert_eq!(parse(target), Err(Malformed::NoSuchVerb), "{target}");
    }
}

#[test]
fn an_unknown_verb_is_reported_before_other_faults() {
    assert_eq!(parse("/EXTEND//%ZZ?x"), Err(Malformed::NoSuchVerb));
}

#[test]
fn a_path_begins_with_a_slash() {
    for target in ["*", "PING", "CHECK/K", "localhost:8004", "://"] {
        assert!(reason(target).contains("begin with a slash"), "{target}");
    }
}

#[test]
fn a_missing_name_is_refused() {
    assert_eq!(reason("/CHECK"), "the key is missing: ask /CHECK/key");
    assert_eq!(
        reason("/LOCK"),
        "the key is missing: ask /LOCK/key/requester"
    );
    assert_eq!(
        reason("/LOCK/K"),
        "the requester is missing: ask /LOCK/key/requester"
    );
    assert_eq!(
        reason("/UNLOCK/K"),
        "the requester is missing: ask /UNLOCK/key/requester"
    );
    assert_eq!(
        reason("/VERIFY/K?"),
        "the requester is missing: ask /VERIFY/key/requester"
    );
}

#[test]
fn an_empty_name_is_refused() {
    for target in ["/CHECK/", "/CHECK//", "/LOCK/", "/LOCK//ann", "/UNLOCK//"] {
        assert_eq!(reason(target), "the key is empty", "{target}");
    }
    for target in ["/LOCK/K/", "/UNLOCK/K//", "/VERIFY/K/?"] {
        assert_eq!(reason(target), "the requester is empty", "{target}");
    }
}

#[test]
fn a_surplus_segment_is_refused() {
    for target in [
        "/CHECK/K/",
        "/CHECK/K/ann",
        "/CHECK/var/lib/db",
        "/LOCK/K/ann/",
        "/LOCK/K/ann/5",
        "/PING/",
        "/PING/K",
        "/SHUTDOWN/now",
    ] {
        assert!(reason(target).starts_with("too many segments"), "{target}");
    }
}

#[test]
fn a_bad_escape_is_refused_and_named() {
    for (segment, escape) in [
        ("%ZZ", "%ZZ"),
        ("%", "%"),
        ("100%", "%"),
        ("%4", "%4"),
        ("a%4", "%4"),
        ("%4G", "%4G"),
        ("%%41", "%%4"),
        ("%+1", "%+1"),
        ("%41%x", "%x"),
        ("%é", "%é"),
        ("%€", "%"),
        ("%4é", "%"),
    ] {
        let bad = format!("has a bad escape {escape:?}; a percent sign itself is %25");
        assert_eq!(
            reason(&format!("/CHECK/{segment}")),
            format!("the key {bad}")
        );
        let target = format!("/LOCK/K/{segment}");
        assert_eq!(reason(&target), format!("the requester {bad}"));
    }
}

#[test]
fn a_name_that_is_not_utf_8_is_refused() {
    for segment in ["%FF", "a%C3", "%C3%28", "%E2%82", "%ED%A0%80", "%C0%80"] {
        assert_eq!(
            reason(&format!("/CHECK/{segment}")),
            "the key is not UTF-8",
            "{segment}"
        );
    }
}

#[test]
fn a_name_has_at_most_1024_bytes_however_it_is_written() {
    for longest in [
        "a".repeat(1024),
        "%61".repeat(1024),
        "é".repeat(512),
        "%C3%A9".repeat(512),
        format!("{}a", "€".repeat(341)),
        "🔒".repeat(256),
    ] {
        assert!(parse(&format!("/CHECK/{longest}")).is_ok());
        assert!(parse(&format!("/LOCK/{longest}/{longest}")).is_ok());
        let too_long = "is 1025 bytes long; the most is 1024";
        assert_eq!(
            reason(&format!("/CHECK/{longest}a")),
            format!("the key {too_long}")
        );
        assert_eq!(
            reason(&format!("/LOCK/K/a{longest}")),
            format!("the requester {too_long}")
        );
    }
}

// Parameters.

#[test]
fn a_verb_takes_the_parameters_of_its_row() {
    let seconds = Duration::from_secs_f64;
    let asked = lock("K", "ann")
        .with(Parameter::LockTimeout, Some(seconds(2.5)))
        .with(Parameter::LockAttemptTimeout, Some(seconds(0.0)))
        .with(Parameter::RequestId, Some("a_B.9:-"));
    for query in [
        "lock_timeout=2.5&lock_attempt_timeout=0&request=a_B.9:-",
        "request=a_B.9:-&lock_attempt_timeout=0.000&&lock_timeout=02.50&",
        "lock_timeout=25e-1&lock_attempt_timeout=.0&request=a_B%2e9%3A-",
    ] {
        let target = format!("/LOCK/K/ann?{query}");
        assert_eq!(parse(&target).as_ref(), Ok(&asked), "{query}");
    }
    let fence = Some(1_463_000_000_123_456);
    let under = "fence=1463000000123456";
    let renewed = renew("K", "ann")
        .with(Parameter::LockTimeout, Some(seconds(60.0)))
        .with(Parameter::Fence, fence);
    let target = format!("/RENEW/K/ann?{under}&lock_timeout=60");
    assert_eq!(parse(&target), Ok(renewed));
    let unlocked = unlock("K", "ann").with(Parameter::Fence, fence);
    assert_eq!(parse(&format!("/UNLOCK/K/ann?{under}")), Ok(unlocked));
    let verified = verify("K", "ann").with(Parameter::Fence, fence);
    assert_eq!(parse(&format!("/VERIFY/K/ann?{under}")), Ok(verified));
}

#[test]
fn a_parameter_of_no_row_is_refused_and_named() {
    assert_eq!(reason("/PING?x"), r#"PING takes no parameter "x""#);
    assert_eq!(reason("/CHECK/K?a=b"), r#"CHECK takes no parameter "a""#);
    let lock = "it takes lock_timeout, lock_attempt_timeout, request, note, \
             slots, shared";
    for (name, target) in [
        ("wait", "/LOCK/K/ann?&wait=5&x=6"),
        ("fence", "/LOCK/K/ann?fence=1"),
        ("Request", "/LOCK/K/ann?Request=1"),
        ("request ", "/LOCK/K/ann?request =1"),
        ("request%20", "/LOCK/K/ann?request%20=1"),
    ] {
        let expected = format!("LOCK takes no parameter {name:?}; {lock}");
        assert_eq!(reason(target), expected);
    }
    for (verb, name) in [
        ("UNLOCK", "lock_timeout"),
        ("UNLOCK", "request"),
        ("VERIFY", "lock_timeout"),
        ("RENEW", "request"),
        ("RENEW", "lock_attempt_timeout"),
    ] {
        let said = reason(&format!("/{verb}/K/ann?{name}=1"));
        let expected = format!("{verb} takes no parameter {name:?}; it takes ");
        assert!(said.starts_with(&expected), "{said}");
    }
    assert_eq!(reason("/PING??"), r#"PING takes no parameter "?""#);
    assert_eq!(reason("/PING?="), r#"PING takes no parameter """#);
    assert!(reason(&format!("/PING?{}", "x".repeat(5000))).len() < 100);
}

#[test]
fn a_parameter_may_be_given_once() {
    for (target, name) in [
        ("/LOCK/K/ann?lock_timeout=1&lock_timeout=1", "lock_timeout"),
        (
            "/LOCK/K/ann?lock_attempt_timeout=1&request=1&lock_attempt_timeout=2",
            "lock_attempt_timeout",
        ),
        ("/LOCK/K/ann?request=a&request=b", "request"),
        ("/RENEW/K/ann?lock_timeout=1&lock_timeout=2", "lock_timeout"),
        ("/UNLOCK/K/ann?fence=1&fence=2", "fence"),
    ] {
        assert_eq!(reason(target), format!("{name} is given twice"));
    }
}

#[test]
fn a_time_is_a_number_of_seconds_up_to_its_cap() {
    let bad = [
        "", "-1", "-0", "+1", "NaN", "nan", "inf", "infinity", "-inf", "1e400", "3s", "1,5",
        "1.5.5", "0x10", "%201", "1%20", "1%ZZ", "%FF", "1e", ".", "١", "1_000",
    ];
    let too_long = [
        "3600.001",
        "3601",
        "99999999999999999999999",
        "1e9",
        "31536001",
    ];
    let too_short = ["0", "0.0", "0e5", "0.0009", "1e-300"];
    for value in bad.iter().chain(&too_long).chain(&too_short) {
        for verb in ["LOCK", "RENEW"] {
            let said = reason(&format!("/{verb}/K/ann?lock_timeout={value}"));
            assert!(said.starts_with("lock_timeout is \""), "{said}");
            let range = "give seconds, from 0.001 to 3600, the server's max_lock_timeout";
            assert!(said.ends_with(range), "{value}: {said}");
        }
    }
    for value in bad.iter().chain(&["1800.001", "3600"]) {
        let said = reason(&format!("/LOCK/K/ann?lock_attempt_timeout={value}"));
        assert!(said.starts_with("lock_attempt_timeout is \""), "{said}");
        let range = "give seconds, from 0 to 1800, the server's max_lock_attempt_timeout";
        assert!(said.ends_with(range), "{value}: {said}");
    }
    let long = format!("/LOCK/K/ann?lock_timeout={}", "9".repeat(5000));
    assert!(reason(&long).len() < 200);
    for target in [
        "/LOCK/K/ann?lock_timeout",
        "/LOCK/K/ann?lock_timeout&request=1",
    ] {
        assert!(reason(target).starts_with("lock_timeout is \"\"; "));
    }
    for target in [
        "/LOCK/K/ann?lock_timeout=0.001&lock_attempt_timeout=0",
        "/LOCK/K/ann?lock_timeout=3600&lock_attempt_timeout=1800",
        "/RENEW/K/ann?lock_timeout=3600.000",
    ] {
        assert!(parse(target).is_ok(), "{target}");
    }
}

#[test]
fn a_fence_is_a_whole_number() {
    for value in [
        "",
        "-1",
        "+1",
        "1.0",
        "1e3",
        "0x1",
        "%201",
        "1 ",
        "x",
        "18446744073709551616",
    ] {
        for verb in ["UNLOCK", "RENEW", "VERIFY"] {
            let said = reason(&format!("/{verb}/K/ann?fence={value}"));
            assert!(said.starts_with("fence is \""), "{value}: {said}");
            assert!(
                said.ends_with(
                    "give the whole number from Lock-Fence, or from fence in /locks/key"
                )
            );
        }
    }
    for value in ["0", "1", "007", "9007199254740991", "18446744073709551615"] {
        assert!(parse(&format!("/VERIFY/K/ann?fence={value}")).is_ok());
    }
}

#[test]
fn a_request_id_is_1_to_64_of_its_alphabet() {
    let longest = "x".repeat(64);
    for id in ["0", "a", "-", "a:b.c_d-e", &longest, "%61", "%3a"] {
        assert!(parse(&format!("/LOCK/K/ann?request={id}")).is_ok(), "{id}");
    }
    let too_long = "x".repeat(65);
    for id in [
        "", "a b", "a+b", "a%20b", "a/b", "a%00", "é", "%C3%A9", "%FF", "%", "a%4", "~", "a=b",
        &too_long,
    ] {
        let said = reason(&format!("/LOCK/K/ann?request={id}"));
        assert!(said.starts_with("request is \""), "{id}: {said}");
        assert!(
            said.ends_with("give 1 to 64 of A-Z a-z 0-9 _ . : -"),
            "{said}"
        );
    }
}

#[test]
fn a_reason_is_one_line_for_any_target() {
    for target in [
        "/CHECK/%\r\n",
        "/PING?\r\nSet-Cookie: x",
        "/LOCK/K/ann?request=\r\n",
        "/LOCK/K/ann?request=%0D%0A",
        "/LOCK/K/ann?lock_timeout=%0D%0A1",
        "/UNLOCK/K/ann?fence=%0A1",
    ] {
        assert!(!reason(target).contains(['\r', '\n']), "{target:?}");
    }
}

#[test]
fn a_question_is_written_with_everything_escaped_that_is_not_unreserved() {
    assert_eq!(check("KEYA").to_string(), "/CHECK/KEYA");
    assert_eq!(lock("a/b", "é ?").to_string(), "/LOCK/a%2Fb/%C3%A9%20%3F");
    assert_eq!(
        unlock("az-AZ.09_~", "%").to_string(),
        "/UNLOCK/az-AZ.09_~/%25"
    );
    assert_eq!(verify("K", "ann").to_string(), "/VERIFY/K/ann");
    assert_eq!(renew("K", "ann").to_string(), "/RENEW/K/ann");
    assert_eq!(Request::bare(Verb::Ping).to_string(), "/PING");
    assert_eq!(Request::bare(Verb::Shutdown).to_string(), "/SHUTDOWN");
}

#[test]
fn a_question_is_written_with_the_parameters_that_it_has() {
    let asked = lock("K", "ann")
        .with(Parameter::LockTimeout, Some(Duration::from_millis(2500)))
        .with(Parameter::LockAttemptTimeout, Some(Duration::ZERO))
        .with(Parameter::RequestId, Some("a:1"));
    assert_eq!(
        asked.to_string(),
        "/LOCK/K/ann?lock_timeout=2.5&lock_attempt_timeout=0&request=a:1"
    );
    let renewed = renew("K", "ann")
        .with(Parameter::LockTimeout, Some(Duration::from_secs(3600)))
        .with(Parameter::Fence, Some(7));
    assert_eq!(
        renewed.to_string(),
        "/RENEW/K/ann?lock_timeout=3600&fence=7"
    );
    let verified = verify("K", "ann").with(Parameter::Fence, Some(7));
    assert_eq!(verified.to_string(), "/VERIFY/K/ann?fence=7");
}

fn name() -> impl Strategy<Value = String> {
    let tricky = select(
        &[
            '/', '%', '?', '#', '.', ' ', '+', '\0', '\n', 'ß', '€', '🔒',
        ][..],
    );
    let character = prop_oneof![any::<char>(), tricky];
    vec(character, 1..=40).prop_map(String::from_iter)
}

/// A target that a stranger may send: meaningful pieces in any order.
fn target() -> impl Strategy<Value = String> {
    const PIECES: [&str; 27] = [
        "lock_timeout",
        "lock_attempt_timeout",
        "fence",
        "request",
        "0.5",
        "1e3",
        "/RENEW",
        "/CHECK",
        "/LOCK",
        "/UNLOCK",
        "/VERIFY",
        "/PING",
        "/",
        "//",
        "?",
        "&",
        "=",
        "%",
        "%4",
        "%41",
        "%FF",
        "%C3",
        "http://",
        "host",
        "é",
        "€",
        "*",
    ];
    let piece = prop_oneof![
        4 => select(&PIECES[..]).prop_map(String::from),
        1 => any::<char>().prop_map(String::from),
    ];
    vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

/// Without a file of failures: a counter-example becomes a test of its own.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

proptest! {
    #![proptest_config(cases(1024))]

    #[test]
    fn a_written_question_is_parsed_as_the_same_question(
        key in name(),
        requester in name(),
        nanos in option::of(1_000_000..3_600_000_000_000_u64),
        patience in option::of(0..=1_800_000_000_000_u64),
        id in option::of("[A-Za-z0-9_.:-]{1,64}"),
        fence in any::<Option<Fence>>(),
    ) {
        let lock_timeout = nanos.map(Duration::from_nanos);
        let (key, requester) = (&*key, &*requester);
        for question in [
            check(key),
            lock(key, requester)
                .with(Parameter::LockTimeout, lock_timeout)
                .with(Parameter::LockAttemptTimeout, patience.map(Duration::from_nanos))
                .with(Parameter::RequestId, id.as_deref()),
            unlock(key, requester).with(Parameter::Fence, fence),
            renew(key, requester)
                .with(Parameter::LockTimeout, lock_timeout)
                .with(Parameter::Fence, fence),
            verify(key, requester).with(Parameter::Fence, fence),
        ] {
            let path = question.to_string();
            prop_assert!(path.is_ascii());
            prop_assert_eq!(parse(&path), Ok(question));
        }
    }

    #[test]
    fn no_target_makes_the_parser_panic_and_a_parsed_question_is_parsed_again(
        target in prop_oneof![target(), any::<Vec<char>>().prop_map(String::from_iter)],
    ) {
        if let Ok(question) = parse(&target) {
            let path = question.to_string();
            prop_assert_eq!(parse(&path), Ok(question));
        }
    }

    #[test]
    fn no_body_makes_the_client_panic(body in any::<Vec<char>>().prop_map(String::from_iter)) {
        let _ = parse_answer(&body);
        let _ = parse_answer(&format!("{body}\n"));
        let _ = parse_seconds(&body);
        let _ = shorten(&body);
    }

    #[test]
    fn a_lease_goes_over_the_wire_to_the_microsecond(micros in 0..=4_000_000_000_000_000_u64) {
        let expires = UNIX_EPOCH + Duration::from_micros(micros);
        let body = body(&Reply::lease(LeaseView { expires, ..standing(0, 0) }));
        prop_assert_eq!(parse_answer(&body), Some(ParsedAnswer::Expiry(expires)));
    }

    #[test]
    fn a_number_of_seconds_goes_over_the_wire_to_the_millisecond(
        millis in 0..=365 * 24 * 60 * 60 * 1000_u64,
    ) {
        let duration = Duration::from_millis(millis);
        let read = parse_seconds(&Seconds(duration).to_string()).expect("it is a number");
        prop_assert!(read.abs_diff(duration) < Duration::from_micros(1));
    }
}

// Replies.

/// The names of the server that writes the replies.
fn names() -> ServerNames {
    ServerNames {
        server: "5f-1".into(),
        store: Arc::default(),
    }
}

/// The names of a server with a store.
fn with_store() -> ServerNames {
    let names = names();
    names
        .store
        .set("00112233445566778899aabbccddeeff".into())
        .unwrap();
    names
}

fn text(reply: &Reply) -> String {
    without_server(reply.to_bytes(&names(), None, None, false))
}

/// The bytes without the header that each reply has.
fn without_server(reply: Vec<u8>) -> String {
    let reply = String::from_utf8(reply).unwrap();
    let (before, after) = reply.split_once("Lock-Server: 5f-1\r\n").unwrap();
    format!("{before}{after}")
}

fn body(reply: &Reply) -> String {
    let text = text(reply);
    let (_, body) = text
        .split_once("\r\n\r\n")
        .expect("an empty line ends the head");
    body.into()
}

fn unix_time(seconds: u64, nanos: u32) -> SystemTime {
    UNIX_EPOCH + Duration::new(seconds, nanos)
}

/// A grant that lasts until this time on the wall clock.
fn standing(seconds: u64, nanos: u32) -> LeaseView {
    LeaseView {
        expires: unix_time(seconds, nanos),
        left: Duration::from_micros(29_998_999),
        fence: 1_463_000_000_123_456,
        slots: 3,
    }
}

#[test]
fn yes_byte_for_byte() {
    assert_eq!(
        text(&Reply::yes()),
        "HTTP/1.1 200 OK\r\n\
         Content-Type: text/plain\r\n\
         Content-Length: 2\r\n\
         Cache-Control: no-store\r\n\
         \r\n\
         1\n"
    );
}

#[test]
fn no_byte_for_byte() {
    assert_eq!(
        text(&Reply::no(Refusal::Timeout)),
        "HTTP/1.1 200 OK\r\n\
         Content-Type: text/plain\r\n\
         Content-Length: 2\r\n\
         Cache-Control: no-store\r\n\
         Lock-Result: timeout\r\n\
         \r\n\
         0\n"
    );
}

#[test]
fn a_lease_byte_for_byte() {
    assert_eq!(
        text(&Reply::lease(standing(1_463_000_000, 123_456_000))),
        "HTTP/1.1 200 OK\r\n\
         Content-Type: text/plain\r\n\
         Content-Length: 18\r\n\
         Cache-Control: no-store\r\n\
         Lock-Expires-In: 29.998\r\n\
         Lock-Fence: 1463000000123456\r\nLock-Slots: 3\r\n\
         \r\n\
         1463000000.123456\n"
    );
}

#[test]
fn the_holders_verify_byte_for_byte() {
    assert_eq!(
        text(&Reply::holder(standing(1_463_000_000, 123_456_000))),
        "HTTP/1.1 200 OK\r\n\
         Content-Type: text/plain\r\n\
         Content-Length: 2\r\n\
         Cache-Control: no-store\r\n\
         Lock-Expires-In: 29.998\r\n\
         Lock-Fence: 1463000000123456\r\nLock-Slots: 3\r\n\
         \r\n\
         1\n"
    );
}

#[test]
fn who_holds_the_key_byte_for_byte() {
    let left = Duration::from_micros(2_000_999);
    let reply = Reply::no(Refusal::Timeout).with_holder("me@host/é\r\n", left, 2, 3);
    assert_eq!(
        text(&reply),
        "HTTP/1.1 200 OK\r\n\
         Content-Type: text/plain\r\n\
         Content-Length: 2\r\n\
         Cache-Control: no-store\r\n\
         Lock-Result: timeout\r\n\
         Lock-Holder: me%40host%2F%C3%A9%0D%0A\r\n\
         Lock-Holder-Expires-In: 2.000\r\n\
         Lock-Holders: 2\r\n\
         Lock-Waiters: 3\r\n\
         \r\n\
         0\n"
    );
}

#[test]
fn a_refusal_byte_for_byte() {
    let refusal = Reply::refusal(Status::Unavailable, Refusal::Full, "the server is full; é")
        .with_header("Retry-After", 1)
        .with_header("Allow", "GET, POST");
    assert_eq!(
        text(&refusal),
        "HTTP/1.1 503 Service Unavailable\r\n\
         Content-Type: text/plain\r\n\
         Content-Length: 25\r\n\
         Cache-Control: no-store\r\n\
         Lock-Result: full\r\n\
         Retry-After: 1\r\n\
         Allow: GET, POST\r\n\
         \r\n\
         0\n\
         the server is full; é\n"
    );
}

#[test]
fn every_status_has_its_line() {
    for (status, line) in [
        (Status::Ok, "HTTP/1.1 200 OK\r\n"),
        (Status::BadRequest, "HTTP/1.1 400 Bad Request\r\n"),
        (Status::Unauthorized, "HTTP/1.1 401 Unauthorized\r\n"),
        (Status::Forbidden, "HTTP/1.1 403 Forbidden\r\n"),
        (Status::NotFound, "HTTP/1.1 404 Not Found\r\n"),
        (
            Status::MethodNotAllowed,
            "HTTP/1.1 405 Method Not Allowed\r\n",
        ),
        (Status::Misdirected, "HTTP/1.1 421 Misdirected Request\r\n"),
        (
            Status::TemporaryRedirect,
            "HTTP/1.1 307 Temporary Redirect\r\n",
        ),
        (Status::Unavailable, "HTTP/1.1 503 Service Unavailable\r\n"),
    ] {
        assert!(text(&Reply::refusal(status, Refusal::Other, "why")).starts_with(line));
    }
}

#[test]
fn the_reply_to_head_has_the_same_head_and_no_body() {
    for reply in [
        Reply::yes(),
        Reply::no(Refusal::Free),
        Reply::lease(standing(1, 0)),
        Reply::refusal(
            Status::MethodNotAllowed,
            Refusal::BadMethod,
            "HEAD is not for this path",
        ),
    ] {
        let head = without_server(reply.to_bytes(&names(), None, None, true));
        assert!(head.ends_with("\r\n\r\n"));
        assert_eq!(head + &body(&reply), text(&reply));
    }
}

#[test]
fn each_answer_names_the_store_of_a_server_that_has_one() {
    let line = "Lock-Store: 00112233445566778899aabbccddeeff\r\n";
    for reply in [
        Reply::yes(),
        Reply::no(Refusal::Free),
        Reply::lease(standing(1, 0)),
        Reply::refusal(Status::NotFound, Refusal::NoSuchVerb, "why"),
        Reply::document("text/plain", "all of it".into()),
        Reply::event_stream(),
    ] {
        for head in [false, true] {
            let [with, without] = [with_store(), names()].map(|names| {
                let bytes = reply.to_bytes(&names, None, Some("a-1"), head);
                String::from_utf8(bytes).expect("a reply is text")
            });
            assert_eq!(with.replacen(line, "", 1), without);
            assert!(with.contains(line) && !without.contains(LOCK_STORE));
        }
    }
}

#[test]
fn the_future_of_the_connection_is_one_header() {
    for future in ["close", "keep-alive"] {
        let reply = without_server(Reply::yes().to_bytes(&names(), Some(future), None, false));
        let header = format!("Connection: {future}\r\n");
        assert!(reply.contains(&header));
        assert_eq!(reply.replace(&header, ""), text(&Reply::yes()));
    }
}

#[test]
fn the_expiry_is_cut_off_and_never_late() {
    assert_eq!(body(&Reply::lease(standing(1, 999_999_999))), "1.999999\n");
    assert_eq!(body(&Reply::lease(standing(1, 999))), "1.000000\n");
}

#[test]
fn a_clock_before_1970_says_0_seconds() {
    let expires = UNIX_EPOCH - Duration::from_secs(1);
    let standing = LeaseView {
        expires,
        ..standing(0, 0)
    };
    assert_eq!(body(&Reply::lease(standing)), "0.000000\n");
}

// What a client reads.

/// Parses the bytes of a reply, split as ureq splits them.
fn parsed(reply: &Reply, sent: Option<&str>, expected: &str) -> Result<ParsedReply, NotAnswered> {
    let text = String::from_utf8(reply.to_bytes(&names(), None, sent, false)).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("an empty line");
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(field, _)| *field == name)
            .map(|(_, value)| value.as_bytes())
    };
    ParsedReply::parse(reply.status as u16, header, body, expected)
}

#[test]
fn a_client_reads_what_the_server_wrote() {
    let view = standing(1_463_000_000, 123_456_000);
    let nothing = ParsedReply {
        said: ParsedAnswer::Yes,
        refusal: None,
        lease: None,
        holder: None,
        times: None,
        process: None,
        server: Some("5f-1".into()),
        store: None,
    };
    let lease = Some(ParsedLease {
        fence: view.fence,
        left: Duration::from_millis(29_998),
        slots: view.slots,
    });
    let holder = Holder {
        name: "me@host/é\r\n".into(),
        expires_in: Duration::from_secs(2),
        holders: 2,
        waiters: 3,
        note: Some("nightly: é\n".into()),
    };
    let left = Duration::from_micros(2_000_999);
    for (reply, expected) in [
        (Reply::yes(), nothing.clone()),
        (
            Reply::no(Refusal::TakenOver),
            ParsedReply {
                said: ParsedAnswer::No,
                refusal: Some(Refusal::TakenOver),
                ..nothing.clone()
            },
        ),
        (
            Reply::lease(view),
            ParsedReply {
                said: ParsedAnswer::Expiry(view.expires),
                lease,
                ..nothing.clone()
            },
        ),
        (
            Reply::holder(view),
            ParsedReply {
                lease,
                ..nothing.clone()
            },
        ),
        (
            Reply::yes()
                .with_holder(&holder.name, left, holder.holders, holder.waiters)
                .with_note(holder.note.as_deref()),
            ParsedReply {
                holder: Some(holder),
                ..nothing.clone()
            },
        ),
        (
            Reply::yes()
                .with_header(LOCK_ATTEMPT_TIMEOUT, Seconds(Duration::from_secs(3)))
                .with_header(LOCK_MAX_ATTEMPT_TIMEOUT, Seconds(Duration::from_secs(4))),
            ParsedReply {
                times: Some(ServerTimes {
                    lock_attempt_timeout: Duration::from_secs(3),
                    max_lock_attempt_timeout: Duration::from_secs(4),
                }),
                ..nothing
            },
        ),
    ] {
        assert_eq!(
            parsed(&reply, Some("a-1"), "a-1"),
            Ok(expected),
            "{reply:?}"
        );
    }
}

#[test]
fn a_client_reads_the_run_and_the_store_from_valid_ids_alone() {
    let [longest, too_long] = [64, 65].map(|length| "a".repeat(length));
    let ids = ["00112233445566778899aabbccddeeff", "s", &longest];
    let others = ["", "a b", "é", "a\u{7f}", &too_long];
    for (value, is_id) in ids
        .map(|id| (id, true))
        .into_iter()
        .chain(others.map(|other| (other, false)))
    {
        let id = is_id.then(|| value.into());
        for (name, server, store) in [(LOCK_SERVER, id.clone(), None), (LOCK_STORE, None, id)] {
            let header = |other: &str| (other == name).then_some(value.as_bytes());
            let parsed = ParsedReply::parse(200, header, "1\n", "a-1").expect("it is a yes");
            assert_eq!((parsed.server, parsed.store), (server, store), "{value:?}");
        }
    }
}

#[test]
fn a_refusal_is_read_with_its_word_and_its_sentence() {
    let reply = Reply::refusal(Status::Unavailable, Refusal::Full, "the server is full; é");
    let refused = NotAnswered::Refused(Refusal::Full, "the server is full; é".into());
    assert_eq!(parsed(&reply, None, "a-1"), Err(refused));
    let foreign = ParsedReply::parse(404, |_| None, "<html>", "a-1");
    assert_eq!(foreign, Err(NotAnswered::Foreign("status 404".into())));
}

#[test]
fn the_answer_to_another_question_is_none() {
    let another = NotAnswered::Foreign("the answer to another question".into());
    assert_eq!(parsed(&Reply::yes(), Some("a-1"), "a-2"), Err(another));
    assert!(parsed(&Reply::yes(), None, "a-2").is_ok());
}

#[test]
fn a_question_that_was_not_understood_has_its_own_reply() {
    let reply = Reply::from(Malformed::NoSuchVerb);
    assert_eq!(
        (reply.status, body(&reply)),
        (
            Status::NotFound,
            "0\nno such verb; ask, in this upper and lower case, /CHECK/key, /LOCK/key/requester, /UNLOCK/key/requester, \
         /RENEW/key/requester, /VERIFY/key/requester, /PING, /SHUTDOWN, /BREAK/key, /livez, /readyz, /locks, /status, /metrics, /events or /\n"
                .into(),
        )
    );
    let reply = Reply::from(Malformed::BadRequest("why".into()));
    assert_eq!(
        (reply.status, body(&reply)),
        (Status::BadRequest, "0\nwhy\n".into())
    );
}

#[test]
fn a_question_may_be_asked_again_as_its_row_says() {
    let id = Some("a");
    for (question, again) in [
        (check("K"), true),
        (lock("K", "ann"), false),
        (lock("K", "ann").with(Parameter::RequestId, id), true),
        (unlock("K", "ann"), false),
        (unlock("K", "ann").with(Parameter::Fence, Some(7)), true),
        (renew("K", "ann"), true),
        (verify("K", "ann"), true),
        (Request::bare(Verb::Ping), true),
        (Request::bare(Verb::Shutdown), false),
        (Request::bare(Verb::Livez), true),
    ] {
        assert_eq!(question.is_repeatable(), again, "{question}");
    }
}

#[test]
fn an_answer_has_one_of_the_three_forms() {
    assert_eq!(parse_answer("1\n"), Some(ParsedAnswer::Yes));
    assert_eq!(parse_answer("0\n"), Some(ParsedAnswer::No));
    assert_eq!(
        parse_answer("1463000000.123456\n"),
        Some(ParsedAnswer::Expiry(unix_time(1_463_000_000, 123_456_000)))
    );
    assert_eq!(
        parse_answer("0.000000\n"),
        Some(ParsedAnswer::Expiry(unix_time(0, 0)))
    );
}

#[test]
fn a_text_of_no_known_form_is_no_answer() {
    for body in [
        "",
        "\n",
        "1",
        "0",
        "1\n\n",
        "1\r\n",
        " 1\n",
        "1 \n",
        "01\n",
        "2\n",
        "yes\n",
        "0\nthe server is full\n",
        "1463000000\n",
        "1463000000.123456",
        "1463000000.12345\n",
        "1463000000.1234567\n",
        "1463000000,123456\n",
        "1463000000.123456.0\n",
        "1463000000.\n",
        ".123456\n",
        "-1.000000\n",
        "+1.000000\n",
        "1.+00000\n",
        "1e9.000000\n",
        " 1.000000\n",
        "١.000000\n",
        "18446744073709551615.000000\n",
        "99999999999999999999.000000\n",
    ] {
        assert_eq!(parse_answer(body), None, "{body:?}");
    }
}

#[test]
fn seconds_are_written_with_three_decimals_cut_off() {
    assert_eq!(Seconds(Duration::ZERO).to_string(), "0.000");
    assert_eq!(Seconds(Duration::from_millis(4005)).to_string(), "4.005");
    assert_eq!(
        Seconds(Duration::from_micros(1_999_999)).to_string(),
        "1.999"
    );
}

#[test]
fn seconds_are_read_if_they_are_a_duration() {
    assert_eq!(parse_seconds("4.000"), Some(Duration::from_secs(4)));
    assert_eq!(parse_seconds("0.001"), Some(Duration::from_millis(1)));
    for value in ["", "x", "-1.000", "4.000 s", "inf", "NaN", "1e99"] {
        assert_eq!(parse_seconds(value), None, "{value:?}");
    }
}

#[test]
fn a_long_text_is_cut_after_sixty_characters_of_any_width() {
    for character in ["a", "é", "€", "🔒"] {
        let sixty = character.repeat(60);
        assert_eq!(shorten(&sixty), sixty);
        assert_eq!(shorten(&format!("{sixty}a")), format!("{sixty}…"));
    }
    assert_eq!(shorten(""), "");
}
