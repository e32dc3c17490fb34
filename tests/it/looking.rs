//! Which keys are held, as seen through real sockets, the client and the command.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, SystemTime};

use lock_server::{
    Client, ClientOptions, Error, KeyDetail, ListOptions, LockOptions, Options, Refusal, Server,
};
use serde_json::Value;

use crate::common::{PATIENCE, Wire, ask, ms, options, start, until};

/// A server whose leases and attempt time-outs last longer than a test.
fn patient() -> Server {
    start(Options {
        lock_timeout: PATIENCE,
        lock_attempt_timeout: PATIENCE,
        ..options()
    })
}

#[track_caller]
fn lock(server: &Server, lock: &str) {
    let reply = ask(server, &format!("/LOCK/{lock}"));
    assert_ne!(reply.body, "0\n", "{lock}: {reply:?}");
}

/// A connection whose LOCK is in the queue, as one of `count` waiters.
fn queued(server: &Server, key: &str, lock: &str, count: usize) -> Wire {
    let mut wire = Wire::to(server);
    wire.get(&format!("/LOCK/{lock}"));
    let client = server.client("");
    until("it is in the queue", || {
        client.show(key).expect("an answer").waiters == count
    });
    wire
}

/// The JSON at a path.
#[track_caller]
fn shown(server: &Server, path: &str) -> Value {
    let reply = ask(server, path);
    assert_eq!(
        (reply.status, reply.header("Content-Type")),
        (200, Some("application/json")),
        "{reply:?}"
    );
    serde_json::from_str(&reply.body).expect("JSON")
}

#[track_caller]
fn keys(server: &Server, path: &str) -> Vec<String> {
    let page = shown(server, path);
    let locks = page["locks"].as_array().expect("a list").iter();
    let keys = locks.map(|lock| lock["key"].as_str().expect("a key").to_string());
    keys.collect()
}

#[test]
fn contended_keys_come_first_in_the_order_of_their_next_change() {
    let server = patient();
    lock(&server, "LATE/A?lock_timeout=900");
    lock(&server, "SOON/A?lock_timeout=300");
    lock(&server, "WANTED_LATE/A?lock_timeout=800");
    lock(&server, "WANTED/A?lock_timeout=700");
    let _late = queued(&server, "WANTED_LATE", "WANTED_LATE/B", 1);
    let _soon = queued(&server, "WANTED", "WANTED/B", 1);
    let order = ["WANTED", "WANTED_LATE", "SOON", "LATE"];
    assert_eq!(keys(&server, "/locks"), order);
    let page = shown(&server, "/locks?prefix=WANTED&limit=1");
    let (keys, holds, waiting) = (&page["keys"], &page["holds"], &page["waiting"]);
    assert_eq!(
        [keys, holds, waiting].map(Value::as_u64),
        [4, 4, 2].map(Some)
    );
    assert_eq!(page["locks"][0]["waiters"], 1);
}

#[test]
fn keys_are_found_by_prefix_and_by_any_of_their_holders() {
    let server = patient();
    lock(&server, "deploy%2Fweb/A?lock_timeout=300");
    lock(&server, "deploy%2Fdb/A?shared=1&lock_timeout=400");
    lock(&server, "deploy%2Fdb/B?shared=1&lock_timeout=500");
    lock(&server, "backup/B?lock_timeout=600");
    for (query, found) in [
        ("", &["deploy/web", "deploy/db", "backup"][..]),
        ("?prefix=deploy%2F", &["deploy/web", "deploy/db"]),
        ("?holder=B", &["deploy/db", "backup"]),
        ("?prefix=deploy/&holder=B", &["deploy/db"]),
        ("?prefix=none", &[]),
        ("?holder=deploy", &[]),
        ("?prefix=&holder=", &["deploy/web", "deploy/db", "backup"]),
    ] {
        assert_eq!(keys(&server, &format!("/locks{query}")), found, "{query}");
    }
    let of_b = ListOptions {
        holder: Some("B".into()),
        ..ListOptions::default()
    };
    let page = server.client("").list(&of_b).expect("a page");
    let names = page.locks[0].held_by.iter().map(|hold| &*hold.name);
    assert_eq!(names.collect::<Vec<_>>(), ["A", "B"]);
}

#[test]
fn of_2500_keys_in_pages_each_is_seen_once_except_one_renewed_meanwhile() {
    let server = patient();
    let client = server.client("CLIENT_A");
    for key in 0..2500 {
        let lease = client.try_lock(&format!("KEY{key}")).expect("an answer");
        assert!(lease.is_some());
    }
    let thousand = ListOptions {
        limit: Some(1000),
        ..ListOptions::default()
    };
    let mut seen = Vec::new();
    let mut sizes = Vec::new();
    for page in client.list_pages(thousand) {
        let page = page.expect("a page");
        assert_eq!((page.keys, page.holds, page.waiting), (2500, 2500, 0));
        sizes.push(page.locks.len());
        seen.extend(page.locks.into_iter().map(|held| held.key));
        if sizes.len() == 1 {
            let renewed = ask(&server, "/RENEW/KEY0/CLIENT_A?lock_timeout=600");
            assert_ne!(renewed.body, "0\n");
        }
    }
    assert_eq!(sizes, [1000, 1000, 501]);
    assert_eq!(
        seen.pop().as_deref(),
        Some("KEY0"),
        "its lease now ends last"
    );
    assert_eq!(seen[0], "KEY0");
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 2500);
}

#[test]
fn a_bad_limit_or_cursor_is_400_in_a_sentence() {
    let server = patient();
    for (query, sentence) in [
        (
            "limit=0",
            "limit is \"0\"; give a whole number, from 1 to 1000",
        ),
        (
            "limit=1001",
            "limit is \"1001\"; give a whole number, from 1 to 1000",
        ),
        (
            "after=x",
            "after is no cursor; give the next of the page before, or leave it out",
        ),
        ("after=c.1.2.3", "after is no cursor"),
        ("after=u.-1.2", "after is no cursor"),
        ("after=u.99999999999999999999999.2", "after is no cursor"),
        ("after=", "after is \"\"; give 1 to 64 of"),
        (
            "color=red",
            "locks takes no parameter \"color\"; it takes prefix, holder, limit, after",
        ),
    ] {
        let reply = ask(&server, &format!("/locks?{query}"));
        assert_eq!(
            (reply.status, reply.result()),
            (400, "bad-request"),
            "{query}"
        );
        let said = reply.body.strip_prefix("0\n").expect("no");
        assert!(said.starts_with(sentence), "{query}: {said}");
    }
    let too_many = ListOptions {
        limit: Some(1001),
        ..ListOptions::default()
    };
    match server.client("").list(&too_many) {
        Err(Error::Refused { reason, .. }) => assert_eq!(reason, Refusal::BadRequest),
        other => panic!("{other:?}"),
    }
}

#[test]
fn of_more_than_100_holders_100_are_shown_and_all_are_counted() {
    let server = patient();
    let client = server.client("");
    let names: Vec<String> = (0..150).map(|reader| format!("READER_{reader}")).collect();
    for name in &names {
        let granted = client.named(name).lock_with("KEYA", &LockOptions::shared());
        let _ = granted.expect("there is room beside the others");
    }
    let page = client.list(&ListOptions::default()).expect("a page");
    let shown = page.locks[0].held_by.iter().map(|hold| &hold.name);
    assert!(shown.eq(&names[..100]));
    assert_eq!((page.locks[0].holders, page.holds), (150, 150));
    let detail = client.show("KEYA").expect("an answer");
    assert!(detail.held_by.iter().map(|hold| &hold.name).eq(&names));
    assert_eq!(detail.holders, 150);
}

#[test]
fn a_lease_that_has_ended_is_not_shown() {
    let server = patient();
    lock(&server, "SHORT/A?lock_timeout=0.001");
    lock(&server, "LONG/A");
    until("it has ended", || keys(&server, "/locks") == ["LONG"]);
    assert_eq!(
        shown(&server, "/locks/SHORT")["held_by"],
        Value::Array(vec![])
    );
}

#[test]
fn a_key_is_shown_with_its_queue_in_order_with_times_slots_and_notes() {
    let server = patient();
    lock(&server, "KEYA/A?note=nightly%20job&slots=2");
    let _b = queued(&server, "KEYA", "KEYA/B?lock_attempt_timeout=900&note=b", 1);
    let _c = queued(
        &server,
        "KEYA",
        "KEYA/C?lock_attempt_timeout=300&slots=3",
        2,
    );
    let detail = server.client("").show("KEYA").expect("an answer");
    assert_eq!(
        (&*detail.key, detail.holders, detail.waiters),
        ("KEYA", 1, 2)
    );
    let hold = &detail.held_by[0];
    let said = (&*hold.name, hold.slots, hold.note.as_deref());
    assert_eq!(said, ("A", 2, Some("nightly job")));
    let queue: Vec<_> = detail
        .queue
        .iter()
        .map(|waiter| (&*waiter.name, waiter.slots, waiter.note.as_deref()))
        .collect();
    assert_eq!(queue, [("B", 1, Some("b")), ("C", 3, None)]);
    let [b, c] = &detail.queue[..] else {
        unreachable!("two");
    };
    assert!(b.waiting >= c.waiting && b.since <= c.since);
    for (waiter, patience) in [(b, 900), (c, 300)] {
        let patience = Duration::from_secs(patience);
        let whole = waiter.waiting + waiter.left;
        // The server truncates both to milliseconds.
        assert!(whole <= patience && whole + ms(2) > patience, "{waiter:?}");
    }
}

#[test]
fn a_free_key_has_neither_holders_nor_a_queue() {
    let server = patient();
    let detail = shown(&server, "/locks/KEYA");
    let nobody = Value::Array(vec![]);
    assert_eq!((&detail["held_by"], &detail["queue"]), (&nobody, &nobody));
    assert_eq!([&detail["holders"], &detail["waiters"]], [0, 0]);
    assert_eq!(detail["key"], "KEYA");
}

#[test]
fn names_of_any_text_are_returned_unchanged() {
    let server = patient();
    let client = server.client("");
    for text in [
        "a/b",
        "ключ 鍵",
        "\"quoted\" \\ 'and'",
        "\u{1}\n\x1b[2J\u{7f}\u{9b}",
        "%2F?#&=+",
        "[1]",
    ] {
        let options = LockOptions {
            note: Some(text.into()),
            ..LockOptions::default()
        };
        let lease = client
            .named(text)
            .lock_with(text, &options)
            .expect("granted");
        let by_name = ListOptions {
            prefix: text.into(),
            holder: Some(text.into()),
            ..ListOptions::default()
        };
        let page = client.list(&by_name).expect("a page");
        let [held] = &page.locks[..] else {
            panic!("{text:?}: {page:?}");
        };
        let detail = client.show(text).expect("an answer");
        assert_eq!((&*held.key, &*detail.key), (text, text));
        for hold in [&held.held_by[0], &detail.held_by[0]] {
            let said = (&*hold.name, hold.note.as_deref(), hold.fence);
            assert_eq!(said, (text, Some(text), lease.fence));
        }
    }
}

#[test]
fn head_and_post_work_like_get() {
    let server = patient();
    for path in ["/locks", "/locks/KEYA"] {
        let post = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        let reply = Wire::to(&server).send(post).reply();
        assert_eq!(reply.status, 200);
        assert!(serde_json::from_str::<Value>(&reply.body).is_ok());
        let head = format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let head = Wire::to(&server).send(head).rest();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("\r\nContent-Type: application/json\r\n"));
        assert!(head.ends_with("\r\n\r\n"), "a body: {head}");
        let put = format!("PUT {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let reply = Wire::to(&server).send(put).reply();
        let allowed = (reply.status, reply.header("Allow"));
        assert_eq!(allowed, (405, Some("GET, HEAD, POST")));
    }
}

#[test]
fn looking_needs_the_role_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    fs::write(&file, "read read-4V1LrMZ0Ut\nlock lock-Vk2Qw7cTt9\n").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let server = start(Options {
        token_file: Some(file),
        ..options()
    });
    for path in ["/locks", "/locks/KEYA"] {
        assert_eq!(ask(&server, path).status, 401);
    }
    let client = |token: Option<&str>| {
        let options = ClientOptions {
            token: token.map(|token| token.parse().unwrap()),
            reconnect_attempts: 0,
            ..ClientOptions::default()
        };
        Client::with_options("", "127.0.0.1", server.port(), options)
    };
    assert!(client(Some("read-4V1LrMZ0Ut")).show("KEYA").is_ok());
    for token in [None, Some("another-0Ut4V1LrMZ")] {
        match client(token).list(&ListOptions::default()) {
            Err(Error::Refused { reason, .. }) => assert_eq!(reason, Refusal::Unauthorized),
            other => panic!("{other:?}"),
        }
    }
}

/// The distance between two times.
fn apart(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other)
        .unwrap_or_else(|error| error.duration())
}

#[test]
fn times_of_day_and_seconds_agree() {
    let server = patient();
    lock(&server, "KEYA/A?lock_timeout=900");
    let _b = queued(&server, "KEYA", "KEYA/B", 1);
    let json = shown(&server, "/locks/KEYA");
    for time in [
        &json["now"],
        &json["held_by"][0]["since"],
        &json["held_by"][0]["expires"],
    ] {
        let text = time.as_str().expect("text");
        let form: String = text
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        assert_eq!(form, "0000-00-00T00:00:00.000000Z");
    }
    let detail: KeyDetail = serde_json::from_value(json).expect("it is one");
    assert!(apart(detail.now, SystemTime::now()) < PATIENCE);
    let (hold, waiter) = (&detail.held_by[0], &detail.queue[0]);
    for (from, to, seconds) in [
        (hold.since, detail.now, hold.held),
        (detail.now, hold.expires, hold.left),
        (waiter.since, detail.now, waiter.waiting),
    ] {
        let between = to.duration_since(from).expect("in this order");
        assert!(apart(from + seconds, from + between) <= ms(1), "{detail:?}");
    }
    assert!(apart(hold.since + Duration::from_secs(900), hold.expires) <= ms(1));
}

/// The text of a section of the guide's page.
fn section(heading: &str) -> &'static str {
    let page = include_str!("../../src/guide/looking.md");
    let (_, rest) = page
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("no {heading}"));
    rest.split("\n## ").next().unwrap_or_default()
}

/// The fields in the first column of a section's table, each with its enclosing object.
fn documented(section: &str) -> BTreeSet<String> {
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let mut fields = BTreeSet::new();
    for cell in cells {
        let mut within = "";
        for name in cell.split('`').skip(1).step_by(2) {
            if let Some((head, _)) = name.split_once("[].") {
                within = head;
            }
            let field = match name.strip_prefix('.') {
                Some(name) => format!("{within}[].{name}"),
                None => name.into(),
            };
            fields.insert(field);
        }
    }
    fields
}

/// Collects the fields of a JSON object and of the objects in its lists.
fn fields(json: &Value, within: &str, found: &mut BTreeSet<String>) {
    for (name, value) in json.as_object().expect("an object") {
        let is_top = within.is_empty();
        found.insert(if is_top {
            name.clone()
        } else {
            format!("{within}[].{name}")
        });
        for part in value.as_array().into_iter().flatten() {
            fields(part, name, found);
        }
    }
}

#[test]
fn each_field_is_documented_and_each_documented_field_exists() {
    let server = patient();
    lock(&server, "KEYA/A?note=a");
    lock(&server, "KEYB/A");
    let _b = queued(&server, "KEYA", "KEYA/B?note=b", 1);
    let mut in_page = BTreeSet::new();
    fields(&shown(&server, "/locks?limit=1"), "", &mut in_page);
    assert_eq!(documented(section("Which keys are held")), in_page);

    let mut in_detail = BTreeSet::new();
    fields(&shown(&server, "/locks/KEYA"), "", &mut in_detail);
    let text = section("One key");
    let in_table = documented(text);
    let of_queue = in_detail.iter().filter(|field| field.starts_with("queue"));
    assert!(in_table.iter().eq(of_queue), "{in_table:?} {in_detail:?}");
    for field in in_detail.iter().filter(|field| !field.contains('[')) {
        assert!(text.contains(&format!("`{field}`")), "{field}");
    }
}

// --- the client ---

/// Starts a server that answers each connection once, with these bytes. Returns its port.
fn answers_with(reply: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = Vec::new();
        while !question.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            question.extend(byte);
        }
        // Fails if the client has already closed the connection.
        let _ = stream.write_all(reply.as_bytes());
    });
    port
}

fn client_of(port: u16) -> Client {
    let options = ClientOptions {
        reconnect_attempts: 0,
        ..ClientOptions::default()
    };
    Client::with_options("", "127.0.0.1", port, options)
}

#[test]
fn the_error_for_a_server_that_is_too_old_says_that() {
    let body = "0\nno such verb; ask /CHECK/key\n";
    let length = body.len();
    let reply = format!(
        "HTTP/1.1 404 Not Found\r\nContent-Length: {length}\r\nLock-Result: no-such-verb\r\n\r\n{body}"
    );
    let error = client_of(answers_with(reply)).show("KEYA").unwrap_err();
    let said = "the server refused locks/KEYA (no-such-verb): it has no such page: it is older than \
                0.2.0, or its address has a wrong path";
    assert_eq!(error.to_string(), said);
}

#[test]
fn an_answer_that_is_not_a_list_is_a_bad_reply_and_a_proxys_page_an_interruption() {
    let json = |head: &str, body: &str| {
        let length = body.len();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{head}\r\n{body}"
        )
    };
    for (reply, said) in [
        (json("", "{}"), "other JSON: missing field `server`"),
        (json("", "<html>"), "other JSON: expected value"),
        (
            json("Lock-Echo: x\r\n", "{}"),
            "the answer to another question",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1\n".into(),
            "no document",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n<html>\n".into(),
            "<html>",
        ),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into(),
            "status 404",
        ),
    ] {
        match client_of(answers_with(reply.clone())).list(&ListOptions::default()) {
            Err(Error::BadReply { reply, .. }) => assert!(reply.starts_with(said), "{reply}"),
            other => panic!("{reply}: {other:?}"),
        }
    }
    let away = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
    match client_of(answers_with(away.into())).show("KEYA") {
        Err(Error::Interrupted { question, .. }) => assert_eq!(question, "locks/KEYA"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_list_that_breaks_off_is_requested_again() {
    use crate::common::proxy::{Break, Cut, Proxy};
    let server = patient();
    lock(&server, "KEYA/A");
    let proxy = Proxy::to(server.port(), Cut::Reply(300), Break::Close);
    let client = Client::with_options("", "127.0.0.1", proxy.port, ClientOptions::default());
    let page = client
        .list(&ListOptions::default())
        .expect("the second time");
    assert_eq!(page.locks[0].key, "KEYA");
    assert_eq!(proxy.connections(), 2, "the first one broke");
}

#[test]
fn a_filter_that_no_name_can_match_is_refused_without_a_request() {
    let client = client_of(9);
    for (options, what) in [
        (
            ListOptions {
                prefix: "x".repeat(1025),
                ..ListOptions::default()
            },
            "prefix",
        ),
        (
            ListOptions {
                holder: Some(String::new()),
                ..ListOptions::default()
            },
            "holder",
        ),
    ] {
        match client.list(&options) {
            Err(Error::InvalidName { what: named, .. }) => assert_eq!(named, what),
            other => panic!("{other:?}"),
        }
    }
}
