//! The tokens of a server: what each role allows, and where a token must not appear.

use std::fs::{self, DirEntry, Permissions};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lock_server::{Client, ClientOptions, Error, Options, Refusal, Server, Token};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use crate::common::program::{Outcome, PROGRAM, clean, program};
use crate::common::{Reply, Wire, bound, options, ports, run, sleeps, start, until};

pub const READ: &str = "read-4V1LrMZ0Ut";
pub const LOCK: &str = "lock-Vk2Qw7cTt9+/=";
pub const ADMIN: &str = "admin-o0Qx3bEw~_.";

pub const TOKENS: &str =
    "# ours\n\nread read-4V1LrMZ0Ut\n  lock lock-Vk2Qw7cTt9+/=\nadmin admin-o0Qx3bEw~_.\n";

/// A token file that only its owner may read.
pub struct TokenFile {
    _folder: TempDir,
    path: PathBuf,
}

impl TokenFile {
    pub fn new(text: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let file = TokenFile {
            path: folder.path().join("tokens"),
            _folder: folder,
        };
        file.write(text);
        file
    }

    pub fn write(&self, text: &str) {
        fs::write(&self.path, text).unwrap();
        self.allow(0o600);
    }

    fn allow(&self, mode: u32) {
        fs::set_permissions(&self.path, Permissions::from_mode(mode)).unwrap();
    }

    pub fn options(&self) -> Options {
        Options {
            token_file: Some(self.path.clone()),
            lock_attempt_timeout: Duration::ZERO,
            ..options()
        }
    }

    fn text(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

fn basic(user: &str, token: &str) -> String {
    let both = STANDARD.encode(format!("{user}:{token}"));
    format!("Authorization: Basic {both}\r\n")
}

fn send<'w>(wire: &'w mut Wire, path: &str, headers: &str) -> &'w mut Wire {
    wire.send(format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"
    ))
}

fn ask(port: u16, path: &str, headers: &str) -> Reply {
    send(&mut Wire::to_port(port), path, headers).reply()
}

fn client(server: &Server, token: &str) -> Client {
    let options = ClientOptions {
        token: Some(token.parse().unwrap()),
        reconnect_attempts: 0,
        ..ClientOptions::default()
    };
    Client::with_options("CLIENT_A", "127.0.0.1", server.port(), options)
}

#[test]
fn each_role_is_allowed_its_own_verbs_and_no_others() {
    let file = TokenFile::new(TOKENS);
    let server = start(file.options());
    let port = server.port();
    let unauthorized = (401, "unauthorized");
    let wrong_role = (403, "wrong-role");
    let yes = (200, "");
    // The results without a token, with a wrong one, and with one of each role.
    for (path, none, read, lock, admin) in [
        ("/PING", yes, yes, yes, yes),
        ("/livez", yes, yes, yes, yes),
        ("/readyz", yes, yes, yes, yes),
        (
            "/CHECK/KEYA",
            unauthorized,
            (200, "free"),
            (200, "free"),
            (200, "free"),
        ),
        (
            "/LOCK/KEYA/A",
            unauthorized,
            wrong_role,
            yes,
            (200, "already-holder"),
        ),
        ("/RENEW/KEYA/A", unauthorized, wrong_role, yes, yes),
        ("/VERIFY/KEYA/A", unauthorized, yes, yes, yes),
        (
            "/UNLOCK/KEYA/A",
            unauthorized,
            wrong_role,
            yes,
            (200, "free"),
        ),
        (
            "/nothing",
            unauthorized,
            (404, "no-such-verb"),
            (404, "no-such-verb"),
            (404, "no-such-verb"),
        ),
        (
            "/LOCK/KEYA",
            unauthorized,
            wrong_role,
            (400, "bad-request"),
            (400, "bad-request"),
        ),
    ] {
        for (headers, expected) in [
            (String::new(), none),
            (bearer(READ), read),
            (bearer(LOCK), lock),
            (basic("", ADMIN), admin),
        ] {
            let reply = ask(port, path, &headers);
            assert_eq!((reply.status, reply.result()), expected, "{path} {headers}");
        }
        for headers in [
            bearer("lock-Vk2Qw7cTt9+/"),
            basic("me", "wrong"),
            format!("{}{}", bearer(LOCK), bearer(LOCK)),
        ] {
            // None is delayed: the right tokens in between reset the count of wrong ones.
            let reply = ask(port, path, &headers);
            assert_eq!((reply.status, reply.result()), none, "{path} {headers}");
        }
    }
    let refused = ask(port, "/CHECK/KEYA", "");
    let schemes: Vec<_> = (refused.headers.iter())
        .filter(|(name, _)| name == "WWW-Authenticate")
        .map(|(_, value)| value.split(' ').next().unwrap())
        .collect();
    assert_eq!(schemes, ["Basic", "Bearer"]);
    let refused = ask(port, "/LOCK/KEYA/A", &basic("me", READ));
    let sentence = "0\nLOCK takes a token of the role lock, and this one has the role read\n";
    assert_eq!(refused.body, sentence);
}

#[test]
fn a_page_of_the_server_may_send_a_token_and_a_page_from_elsewhere_is_refused_even_with_one() {
    let file = TokenFile::new(TOKENS);
    let port = start_port(&file);
    let own = format!(
        "Origin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n{}",
        basic("", LOCK)
    );
    assert_eq!(ask(port.1, "/CHECK/KEYA", &own).status, 200);
    let foreign = format!("Origin: http://example.com\r\n{}", basic("", LOCK));
    assert_eq!(ask(port.1, "/CHECK/KEYA", &foreign).result(), "forbidden");
}

fn start_port(file: &TokenFile) -> (Server, u16) {
    let server = start(file.options());
    let port = server.port();
    (server, port)
}

#[test]
fn shutdown_requires_the_role_admin_whatever_allow_shutdown_is() {
    for allow_shutdown in [false, true] {
        let file = TokenFile::new(TOKENS);
        let mut server = start(Options {
            allow_shutdown,
            ..file.options()
        });
        let refused = ask(server.port(), "/SHUTDOWN", &bearer(LOCK));
        assert_eq!((refused.status, refused.result()), (403, "wrong-role"));
        assert!(refused.body.contains("role admin"), "{}", refused.body);
        let refused = client(&server, LOCK).shutdown().unwrap_err();
        assert!(matches!(
            refused,
            Error::Refused {
                reason: Refusal::WrongRole,
                ..
            }
        ));
        client(&server, ADMIN).shutdown().unwrap();
        until("it has ended", || !server.ping());
        // The server has ended by itself, or is ending.
        server.stop().unwrap();
    }
}

#[test]
fn a_servers_own_clients_have_a_token_from_its_file() {
    let file = TokenFile::new(TOKENS);
    let started = start(file.options());
    let mut spawned = Server::new(file.options());
    spawned.spawn().unwrap();
    for server in [&started, &spawned] {
        let client = server.client("CLIENT_A");
        let guard = client.guard("KEYA").unwrap();
        assert!(
            client
                .tuned(ClientOptions::default())
                .locked_by_me("KEYA")
                .unwrap()
        );
        assert!(client.named("CLIENT_B").try_lock("KEYA").unwrap().is_none());
        drop(guard);
        let stranger = Client::new("CLIENT_A", "127.0.0.1", server.port());
        stranger.try_ping().unwrap();
        let refused = stranger.try_lock("KEYA").unwrap_err();
        assert!(matches!(
            refused,
            Error::Refused {
                reason: Refusal::Unauthorized,
                ..
            }
        ));
        assert!(!refused.is_retryable());
        let shown = format!("{client:?} {server:?} {:?}", file.options());
        assert!(!shown.contains(LOCK), "{shown}");
        let environment = [
            ("LOCK_SERVER", format!("127.0.0.1:{}", server.port())),
            ("LOCK_SERVER_TOKEN_FILE", file.text().to_string()),
        ];
        assert_eq!(server.env(), environment);
    }
}

#[test]
fn a_token_file_that_others_may_read_or_own_is_refused() {
    let file = TokenFile::new(TOKENS);
    let refusal = |options: Options| {
        let refused = Server::new(options).start().expect_err("it is bad");
        let said = refused.to_string();
        assert!(
            matches!(
                refused,
                Error::InvalidOption {
                    option: "token_file",
                    ..
                }
            ),
            "{said}"
        );
        said
    };
    for mode in [0o640, 0o604, 0o644, 0o620, 0o601] {
        file.allow(mode);
        let said = refusal(file.options());
        let advice = format!("(mode {mode:o}); chmod 600 {:?}", file.path);
        assert!(said.ends_with(&advice), "{said}");
    }
    file.allow(0o400);
    assert!(start(file.options()).ping());
    if geteuid().is_root() {
        chown(&file.path, Some(65534), None).unwrap();
        let said = refusal(file.options());
        assert!(
            said.contains("belongs to user 65534") && said.contains("chown 0 "),
            "{said}"
        );
    } else {
        eprintln!("not tested: a file of another user, for which one has to be root");
    }
    for (path, said) in [
        (Path::new("/nowhere/tokens"), "cannot open it"),
        (Path::new("/dev/null"), "no regular file"),
        (Path::new("/tmp/two\nlines"), "control characters"),
    ] {
        let refused = refusal(Options {
            token_file: Some(path.into()),
            ..options()
        });
        assert!(refused.contains(said), "{refused}");
    }
}

#[test]
fn the_error_of_a_bad_line_has_its_number_and_not_its_token() {
    let file = TokenFile::new(&format!("{TOKENS}write secretsecret\n"));
    for verb in ["run", "start"] {
        let pid_file = file.path.with_extension("pid");
        let refused = Outcome::of(
            program([
                verb,
                "--port",
                "0",
                "--token-file",
                file.text(),
                "--pid-file",
            ])
            .arg(pid_file),
        );
        refused.expect(2, "");
        refused.expect_stderr(&["bad option --token-file: ", "line 6: ", "no role"]);
        for token in ["secret", READ, LOCK, ADMIN] {
            assert!(!refused.stderr.contains(token), "{refused:?}");
        }
    }
}

#[test]
fn on_sighup_the_server_reads_the_token_file_again_and_ignores_a_bad_one() {
    let file = TokenFile::new("lock first-token\n");
    let log = file.path.with_extension("log");
    let mut server = Server::new(Options {
        log_to: Some(log.clone()),
        ..file.options()
    });
    let pid = Pid::from_raw(server.start().unwrap() as i32);
    let is_let_in = |token: &str| ask(server.port(), "/CHECK/KEYA", &bearer(token)).status == 200;
    assert!(is_let_in("first-token") && !is_let_in("second-token"));
    file.write("admin second-token\n");
    assert!(is_let_in("first-token"), "nobody has said that it is new");
    kill(pid, Signal::SIGHUP).unwrap();
    until("the new token is let in", || is_let_in("second-token"));
    assert!(!is_let_in("first-token"));
    file.write("third-token\n");
    kill(pid, Signal::SIGHUP).unwrap();
    let said = || fs::read_to_string(&log).unwrap_or_default();
    until("the log says why not", || {
        said().contains("the tokens stay as they are")
    });
    assert!(said().contains("line 1: the role is missing"), "{}", said());
    assert!(is_let_in("second-token"));
    for token in ["first-token", "second-token", "third-token"] {
        assert!(!said().contains(token), "{}", said());
    }
    assert!(server.stop().unwrap());
}

#[test]
fn a_daemon_reads_and_rereads_a_token_file_with_a_relative_path() {
    let file = TokenFile::new("lock first-token\n");
    let folder = file.path.parent().unwrap();
    let typed = |arguments: &[&str]| {
        let pid_file = ["--pid-file", "pid"];
        Outcome::of(program(arguments).args(pid_file).current_dir(folder))
    };
    let started = typed(&["start", "--port", "0", "--token-file", "tokens"]);
    assert_eq!(started.code, Some(0), "{started:?}");
    let number = |after: &str| -> i32 {
        let (_, rest) = started.stdout.split_once(after).unwrap();
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
        digits.unwrap().parse().unwrap()
    };
    let port = number("127.0.0.1:") as u16;
    let is_let_in = |token: &str| ask(port, "/CHECK/KEYA", &bearer(token)).status == 200;
    assert!(is_let_in("first-token"));
    file.write("lock second-token\n");
    kill(Pid::from_raw(number("process ")), Signal::SIGHUP).unwrap();
    until("the new token is let in", || is_let_in("second-token"));
    assert_eq!(typed(&["status"]).code, Some(0), "PING takes no token");
    assert_eq!(typed(&["stop"]).code, Some(0));
}

#[test]
fn a_classic_port_with_tokens_needs_an_option_of_its_own() {
    let file = TokenFile::new(TOKENS);
    let with_classic = Options {
        classic_port: Some(0),
        ..file.options()
    };
    let refused = Server::new(with_classic.clone()).start().unwrap_err();
    let said = refused.to_string();
    assert!(
        matches!(
            refused,
            Error::InvalidOption {
                option: "classic_port",
                ..
            }
        ),
        "{said}"
    );
    assert!(said.contains("classic_without_token"), "{said}");
    let server = start(Options {
        classic_without_token: true,
        ..with_classic
    });
    let classic = |line: &str| {
        let mut wire = Wire::to_port(server.classic_port().unwrap());
        wire.send(format!("{line}\n\n")).rest()
    };
    assert_ne!(classic("GET /LOCK/KEYA/CLIENT_A"), "0\n");
    assert_eq!(classic("GET /CHECK/KEYA"), "1\n");
    assert_eq!(classic("GET /SHUTDOWN"), "", "it is not allowed there");
    assert_eq!(ask(server.port(), "/CHECK/KEYA", "").status, 401);
}

#[test]
fn the_command_takes_its_token_from_the_environment_and_says_which_variable_is_missing() {
    let file = TokenFile::new(TOKENS);
    let server = start(file.options());
    let port = server.port().to_string();
    let ask = |verb: &[&str], environment: &[(&str, &str)]| {
        let mut command = Command::new(PROGRAM);
        clean(&mut command)
            .arg(verb[0])
            .args(["--port", &port, "--name", "me"]);
        Outcome::of(command.args(&verb[1..]).envs(environment.iter().copied()))
    };
    let refused = ask(&["check", "KEYA"], &[]);
    refused.expect(69, "");
    refused.expect_stderr(&[
        "(unauthorized)",
        "LOCK_SERVER_TOKEN_FILE",
        "LOCK_SERVER_TOKEN to",
    ]);
    let refused = ask(&["lock", "KEYA"], &[("LOCK_SERVER_TOKEN", READ)]);
    refused.expect(69, "");
    refused.expect_stderr(&["(wrong-role)", "role lock", "LOCK_SERVER_TOKEN"]);
    ask(&["ping"], &[]).expect(0, "1\n");
    // The server's own token file works, too, and overrides the token.
    let both = [
        ("LOCK_SERVER_TOKEN_FILE", file.text()),
        ("LOCK_SERVER_TOKEN", "some-other"),
    ];
    assert_eq!(ask(&["lock", "KEYA"], &both).code, Some(0));
    ask(&["verify", "KEYA"], &[("LOCK_SERVER_TOKEN", READ)]).expect(0, "1\n");
    let own = TokenFile::new(&format!("# mine\n{LOCK}\n"));
    ask(
        &["unlock", "KEYA"],
        &[("LOCK_SERVER_TOKEN_FILE", own.text())],
    )
    .expect(0, "1\n");
    let command = "test \"$LOCK_SERVER_TOKEN\" = TOKEN && exec lock-server verify KEYA";
    let command = command.replace("TOKEN\" = TOKEN", &format!("TOKEN\" = '{LOCK}'"));
    let command = command.replace("exec lock-server", &format!("exec '{PROGRAM}'"));
    let exec = ["exec", "KEYA", "--", "sh", "-c", &command];
    ask(&exec, &[("LOCK_SERVER_TOKEN", LOCK)]).expect(0, "1\n");
    let refused = ask(&exec, &[]);
    refused.expect(69, "");
    refused.expect_stderr(&["LOCK_SERVER_TOKEN_FILE"]);
    for (variable, value, said) in [
        ("LOCK_SERVER_TOKEN", "secret secret", "no token"),
        ("LOCK_SERVER_TOKEN_FILE", "/nowhere/token", "cannot read it"),
    ] {
        let refused = ask(&["check", "KEYA"], &[(variable, value)]);
        refused.expect(2, "");
        refused.expect_stderr(&[&format!("bad {variable}: "), said]);
        assert!(!refused.stderr.contains("secret"), "{refused:?}");
    }
}

#[test]
fn no_log_level_logs_a_token() {
    let file = TokenFile::new(TOKENS);
    let arguments = ["run", "--port", "0", "--token-file", file.text()];
    let mut command = program(arguments);
    command.env("RUST_LOG", "trace,tiny_http=trace");
    let (mut process, introduction, mut log) = run(&mut command);
    let (port, _) = ports(&introduction);
    let mut said = introduction;
    let mut client = program(["exec", "--port", &port.to_string(), "KEYA", "--", "true"]);
    let locked = Outcome::of(
        client
            .env("LOCK_SERVER_TOKEN", LOCK)
            .env("LOCK_SERVER_LOG", "trace"),
    );
    locked.expect(0, "");
    ask(port, "/CHECK/KEYA", &bearer("some-wrong-token"));
    ask(port, "/CHECK/KEYA", &basic("me", READ));
    kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
    assert!(process.wait().unwrap().success());
    log.read_to_string(&mut said).unwrap();
    said += &locked.stderr;
    assert!(said.contains("CHECK/KEYA"), "much is logged: {said}");
    for token in [
        READ,
        LOCK,
        ADMIN,
        "some-wrong-token",
        &STANDARD.encode(format!("me:{READ}")),
    ] {
        assert!(!said.contains(token), "{token} in {said}");
    }
}

/// Sends `count` wrong tokens, each on a connection of its own that waits for the answer.
fn wrong_tokens(port: u16, count: usize) -> Vec<Wire> {
    let wrong = || {
        let mut wire = Wire::to_port(port);
        send(&mut wire, "/CHECK/KEYA", &bearer("wrong-token"));
        wire
    };
    (0..count).map(|_| wrong()).collect()
}

fn answer_to_a_wrong_token(port: u16) -> Duration {
    let asked = Instant::now();
    let reply = ask(port, "/CHECK/KEYA", &bearer("wrong-token"));
    assert_eq!(reply.status, 401);
    asked.elapsed()
}

#[test]
fn after_many_wrong_tokens_answers_are_slow_until_a_right_one() {
    let file = TokenFile::new(TOKENS);
    let (_server, port) = start_port(&file);
    let second = Duration::from_secs(1);
    let ten = Instant::now();
    for _ in 0..10 {
        answer_to_a_wrong_token(port);
    }
    let ten = ten.elapsed();
    for _ in 0..2 {
        assert!(answer_to_a_wrong_token(port) >= second);
    }
    // The first ten took less than ten seconds: none of them was delayed by a second.
    assert!(ten < second * 10, "{ten:?}");
    // A request without a token does not count as one with a wrong token.
    let asked = Instant::now();
    assert_eq!(ask(port, "/CHECK/KEYA", "").status, 401);
    assert!(asked.elapsed() < second, "it waited");
    // While a wrong one waits, a right one from the same address is answered first.
    let mut slow = wrong_tokens(port, 1).remove(0);
    assert_eq!(ask(port, "/CHECK/KEYA", &bearer(READ)).status, 200);
    assert!(!slow.has_answer());
    assert_eq!(slow.reply().status, 401);
    let asked = Instant::now();
    for _ in 0..10 {
        answer_to_a_wrong_token(port);
    }
    assert!(
        asked.elapsed() < second * 10,
        "the series of wrong tokens is over"
    );
}

#[test]
fn delayed_answers_take_no_thread_each_and_delay_nobody_else() {
    let file = TokenFile::new(TOKENS);
    let mut server = Server::new(file.options());
    let pid = server.start().unwrap();
    let port = server.port();
    for wire in &mut wrong_tokens(port, 10) {
        wire.reply();
    }
    let asked = Instant::now();
    let mut slow = wrong_tokens(port, 100);
    let client = server.client("CLIENT_A");
    let workers = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let is_worker = |task: &DirEntry| {
            let name = fs::read_to_string(task.path().join("comm"));
            name.unwrap_or_default().trim() == "lock-request"
        };
        tasks
            .filter(|task| is_worker(task.as_ref().unwrap()))
            .count()
    };
    for _ in 0..20 {
        drop(client.guard("KEYA").unwrap());
        assert!(workers() < 20, "{} threads", workers());
    }
    for wire in &mut slow {
        assert_eq!(wire.reply().status, 401);
    }
    // Each answer came a second after its request, so they did not wait for one another.
    assert!(
        asked.elapsed() < bound(Duration::from_secs(3)),
        "{:?}",
        asked.elapsed()
    );
    // A delayed answer is sent when the server ends. The right tokens have ended the earlier series.
    for wire in &mut wrong_tokens(port, 10) {
        wire.reply();
    }
    let mut last = wrong_tokens(port, 1).remove(0);
    until("it is held back", || sleeps(pid) && sleeps(pid));
    thread::scope(|scope| {
        let reply = scope.spawn(move || last.reply());
        server.stop().unwrap();
        assert_eq!(reply.join().unwrap().status, 401);
    });
}

#[test]
fn a_token_of_the_environment_is_read_by_from_env() {
    // In a process of its own, since other threads read the environment of this one.
    let file = TokenFile::new(TOKENS);
    let server = start(file.options());
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "access::program_with_a_token",
            "--ignored",
            "--nocapture",
        ])
        .env_remove("LOCK_SERVER_TOKEN")
        .envs(server.env())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The process that the test before runs.
#[test]
#[ignore = "run by another test"]
fn program_with_a_token() {
    let client = Client::from_env("worker").unwrap();
    drop(client.guard("KEYA").unwrap());
    assert!(Token::from_env().unwrap().is_some());
}

#[test]
fn a_server_beyond_loopback_warns_unless_all_need_a_token() {
    let file = TokenFile::new(TOKENS);
    let warns = |options: Options| {
        let log = TempDir::new().unwrap();
        let path = log.path().join("log");
        let server = start(Options {
            host: "0.0.0.0".into(),
            log_to: Some(path.clone()),
            ..options
        });
        let from: IpAddr = server
            .addr()
            .map(|address: SocketAddr| address.ip())
            .unwrap();
        assert!(from.is_unspecified());
        // Read after the server's end, since it may answer before it writes the warning.
        drop(server);
        fs::read_to_string(path)
            .unwrap()
            .contains("names are not credentials")
    };
    assert!(warns(options()));
    assert!(!warns(file.options()));
    assert!(warns(Options {
        classic_port: Some(0),
        classic_without_token: true,
        ..file.options()
    }));
}
