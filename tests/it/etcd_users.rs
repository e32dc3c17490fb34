//! Lock servers with a real etcd that has users: the password, the token and its end.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::common::until;
use crate::etcd::Etcds;
use crate::etcd::api::{b64, range_end};
use crate::etcd::fault_proxy::{Accident, Request};
use crate::etcd::lock_servers::{LockServers, PREFIX};

const PASSWORD: &str = "open sesame";

/// How long etcd keeps an unused token, in seconds: its minimum.
const TOKEN_SECONDS: u64 = 1;

/// Longer than a test takes.
const LEADERSHIP: Duration = Duration::from_secs(20);

/// An etcd whose user `locks` may read and write only below the prefix.
fn etcd_with_users() -> Option<Etcds> {
    let etcds = Etcds::with(&[format!("--auth-token-ttl={TOKEN_SECONDS}")])?;
    let api = etcds.api();
    let under = json!({
        "permType": "READWRITE",
        "key": b64(PREFIX),
        "range_end": b64(range_end(PREFIX)),
    });
    for (path, question) in [
        ("user/add", json!({ "name": "root", "password": "root" })),
        ("user/grant", json!({ "user": "root", "role": "root" })),
        ("role/add", json!({ "name": "locks" })),
        ("role/grant", json!({ "name": "locks", "perm": under })),
        ("user/add", json!({ "name": "locks", "password": PASSWORD })),
        ("user/grant", json!({ "user": "locks", "role": "locks" })),
        ("enable", json!({})),
    ] {
        api.ask(&format!("/v3/auth/{path}"), &question);
    }
    Some(etcds)
}

/// A server that has not been started, and the folder of its password file.
fn server_of_user(password: &str) -> Option<(LockServers, TempDir)> {
    let mut servers = LockServers::prepare(1, etcd_with_users(), LEADERSHIP)?;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    fs::write(&file, password).expect("a file");
    servers.servers[0].add_options([
        "--store-user",
        "locks",
        "--store-password-file",
        path(&file),
    ]);
    Some((servers, folder))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn is_authentication(request: &Request) -> bool {
    request.path() == "/v3/auth/authenticate"
}

#[test]
fn a_server_with_an_etcd_user_gets_a_new_token_when_its_own_expires() {
    let Some((mut servers, _folder)) = server_of_user(PASSWORD) else {
        return;
    };
    let asked = servers.servers[0]
        .proxy
        .trap(usize::MAX, Accident::Seen, is_authentication);
    servers.start_one(0);
    let server = &mut servers.servers[0];
    let granted = server.reply("/LOCK/K/A?lock_timeout=60");
    let verify = format!(
        "/VERIFY/K/A?fence={}",
        granted.header("Lock-Fence").expect("it is granted")
    );
    assert_eq!(server.reply(&verify).body, "1\n");
    // Use extends a token; it expires while it is not used.
    let before = asked.caught().len();
    server.process().stop();
    thread::sleep(Duration::from_secs(TOKEN_SECONDS + 2));
    server.process().go_on();
    assert_eq!(server.reply(&verify).body, "1\n");
    assert!(asked.caught().len() > before, "its token was over");
    // A restarted etcd may or may not know its earlier token.
    servers.etcds.restart(0);
    let server = &servers.servers[0];
    assert_eq!(server.reply(&verify).body, "1\n");
    assert_eq!(server.reply("/LOCK/J/B?lock_timeout=60").status, 200);
    let log = server.log();
    assert_eq!(log.matches("this server leads, ").count(), 1, "{log}");
}

#[test]
fn a_wrong_password_is_logged_and_shown_by_status_and_is_read_again() {
    let Some((mut servers, folder)) = server_of_user("open wheat") else {
        return;
    };
    let server = &mut servers.servers[0];
    server.start();
    let [wrong, advice] = ["authentication failed", "is the user's password right"];
    until("the log says so", || {
        let log = server.log();
        log.contains(wrong) && log.contains(advice)
    });
    assert!(!server.log().contains("open wheat"));
    let status = server.reply("/status").body;
    assert!(
        status.contains(wrong) && status.contains(advice),
        "{status}"
    );
    let refused = server.reply("/LOCK/K/A");
    assert_eq!((refused.status, refused.result()), (503, "standby"));
    fs::write(folder.path().join("password"), format!("{PASSWORD}\n")).expect("a file");
    until("it leads", || server.is_leader());
    let status = server.reply("/status").body;
    assert!(!status.contains(wrong), "{status}");
}
