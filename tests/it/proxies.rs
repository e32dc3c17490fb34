//! Behind real proxies: nginx, HAProxy and Caddy, as Debian packages them. `.ci/run` installs them. Those with the
//! configurations of the operations page run with the very text of it.
//!
//! They listen on sockets of the file system, so that no port has to be free.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::program::program;
use crate::common::{PATIENCE, Reply, ask, options, ports, run, start, until};
use lock_server::{Options, Server};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// The page that has the configurations.
const OPERATIONS: &str = include_str!("../../src/guide/operations.md");

/// Longer than what proxies wait for an answer by default: nginx 60 s, Debian's HAProxy 50 s.
const PROXY_TIMEOUT: Duration = Duration::from_secs(61);

const HOST: &str = "Host: locks.example.com\r\n";

/// What the operations page has a configuration for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Nginx,
    Haproxy,
    Caddy,
}

use Program::{Caddy, Haproxy, Nginx};

impl Program {
    /// The block of the page, for a server at this port and clients at this socket.
    fn configuration(self, port: u16, front: &str) -> String {
        let (language, listen, at_front) = match self {
            Nginx => ("nginx", "listen 8080;", format!("listen unix:{front};")),
            Haproxy => ("haproxy", "bind :8080", format!("bind unix@{front}")),
            Caddy => (
                "caddyfile",
                ":8080 {",
                format!(":8080 {{\n\tbind unix/{front}"),
            ),
        };
        let block = OPERATIONS.split(&format!("```{language}\n")).nth(1);
        let block = block.and_then(|rest| rest.split("```").next());
        let block = block.unwrap_or_else(|| panic!("the page has no block of {language}"));
        for part in [listen, "127.0.0.1:8004"] {
            assert_eq!(block.matches(part).count(), 1, "{part}: {block}");
        }
        block
            .replace(listen, &at_front)
            .replace("127.0.0.1:8004", &format!("127.0.0.1:{port}"))
    }

    /// Does something with each of them that is installed, at the same time.
    fn each(programs: &[Program], test: impl Fn(Program) + Sync) {
        thread::scope(|scope| {
            for &program in programs {
                let name = format!("{program:?}").to_lowercase();
                if is_installed(&name) {
                    let test = &test;
                    scope.spawn(move || test(program));
                }
            }
        });
    }
}

/// A proxy that runs in front of a server, and the folder that it has for itself. It ends when it is dropped.
struct Proxy {
    folder: PathBuf,
    process: Child,
}

/// Whether the program is there. Where it is not, the test says so; in CI it fails, but for Caddy, which not every
/// Debian has.
fn is_installed(program: &str) -> bool {
    let version = Command::new(program).arg("-v").output();
    if version.is_ok() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none() || program == "caddy",
        "{program} is not installed, and CI needs it"
    );
    eprintln!("skipped: {program} is not installed");
    false
}

/// A folder for one proxy.
fn folder(of: &str) -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Relaxed);
    let name = format!("lock-server-{of}-{}-{number}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

impl Proxy {
    /// HAProxy with these lines for its back end, and its report as CSV at the socket `stats`.
    fn haproxy(backend: &str) -> Self {
        let folder = folder("haproxy");
        let at = folder.display();
        let configuration = format!(
            "defaults\n mode http\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n\
             frontend front\n bind unix@{at}/front\n default_backend locks\n\
             backend locks\n{backend}\n\
             listen stats\n bind unix@{at}/stats\n stats enable\n stats uri /\n"
        );
        fs::write(folder.join("configuration"), configuration).unwrap();
        let mut command = Command::new("haproxy");
        command
            .args(["-db", "-f"])
            .arg(folder.join("configuration"));
        Proxy::run(folder, &mut command)
    }

    /// nginx that passes everything on to this port, with these further lines.
    fn nginx(port: u16, lines: &str) -> Self {
        let folder = folder("nginx");
        let at = folder.display();
        let server = format!(
            "server {{ listen unix:{at}/front; location / {{\n\
             proxy_pass http://127.0.0.1:{port};\n{lines}\n}} }}"
        );
        Proxy::nginx_in(folder, &server)
    }

    /// nginx with this block of a server.
    fn nginx_in(folder: PathBuf, server: &str) -> Self {
        let at = folder.display();
        let configuration = format!(
            "daemon off; pid {at}/pid; error_log stderr;\n\
             events {{ worker_connections 64; }}\n\
             http {{\n access_log off;\n client_body_temp_path {at};\n proxy_temp_path {at};\n\
             fastcgi_temp_path {at};\n uwsgi_temp_path {at};\n scgi_temp_path {at};\n\
             {server} }}\n"
        );
        let file = folder.join("configuration");
        fs::write(&file, configuration).unwrap();
        let mut command = Command::new("nginx");
        command
            .arg("-e")
            .arg("stderr")
            .arg("-p")
            .arg(&folder)
            .arg("-c")
            .arg(file);
        Proxy::run(folder, &mut command)
    }

    /// With the configuration of the operations page, for a server at this port.
    fn of_the_page(program: Program, port: u16) -> Self {
        Proxy::of_the_page_but(program, port, "", "")
    }

    /// The same with another text in place of one.
    fn of_the_page_but(program: Program, port: u16, text: &str, other: &str) -> Self {
        let folder = folder("page");
        let front = folder.join("front");
        let front = front.to_str().expect("UTF-8");
        let mut configuration = program.configuration(port, front);
        if !text.is_empty() {
            assert!(configuration.contains(text), "{text}: {configuration}");
            configuration = configuration.replace(text, other);
        }
        let file = folder.join("configuration");
        let mut command = match program {
            Nginx => return Proxy::nginx_in(folder, &configuration),
            Haproxy => {
                let mut command = Command::new("haproxy");
                command.args(["-db", "-f"]);
                command
            }
            Caddy => {
                // Nobody has to reconfigure it, and its port would have to be free.
                configuration = format!("{{\n\tadmin off\n}}\n{configuration}");
                let mut command = Command::new("caddy");
                command
                    .args(["run", "--adapter", "caddyfile", "--config"])
                    .env("HOME", &folder)
                    .env_remove("XDG_CONFIG_HOME")
                    .env_remove("XDG_DATA_HOME");
                command
            }
        };
        fs::write(&file, configuration).unwrap();
        Proxy::run(folder, command.arg(file))
    }

    fn run(folder: PathBuf, command: &mut Command) -> Self {
        let said = fs::File::create(folder.join("said")).unwrap();
        let process = command
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap();
        let mut proxy = Proxy { folder, process };
        until("the proxy listens", || {
            let ended = proxy.process.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", proxy.said());
            UnixStream::connect(proxy.folder.join("front")).is_ok()
        });
        proxy
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.join("said")).unwrap_or_default()
    }

    /// Asks at one of its sockets, with these header lines, and returns all that comes.
    fn ask(&self, socket: &str, path: &str, headers: &str) -> String {
        exchange(
            &self.folder.join(socket),
            &format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n"),
        )
    }
}

fn exchange(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A reset after the last byte is an end, too.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = signal::kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM);
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// `option httpchk HEAD /PING` got 405, and the server was DOWN.
#[test]
fn haproxy_finds_the_server_up_by_head_and_by_readyz() {
    if !is_installed("haproxy") {
        return;
    }
    let server = start(options());
    for check in ["HEAD /PING", "GET /readyz", "HEAD /livez HTTP/1.1"] {
        let backend = format!(
            " option httpchk {check}\n server one 127.0.0.1:{} check inter 50ms fall 1",
            server.port()
        );
        let proxy = Proxy::haproxy(&backend);
        until("the first check has ended", || {
            let report = proxy.ask("stats", "/;csv", "Host: localhost\r\n");
            let one = report.lines().find(|line| line.starts_with("locks,one,"));
            let one = one.unwrap_or_else(|| panic!("no line of it in {report}"));
            assert!(!one.contains(",DOWN"), "{check}: {one}");
            one.contains(",L7OK,")
        });
        let answer = proxy.ask("front", "/LOCK/KEYA/CLIENT_A", "Host: localhost\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    }
}

/// `proxy_set_header Host $host` under a public name got 421, and no option allowed it.
#[test]
fn nginx_passes_on_a_public_name_that_is_allowed() {
    if !is_installed("nginx") {
        return;
    }
    let through = |port: u16, headers: &str| {
        let proxy = Proxy::nginx(port, " proxy_set_header Host $host;");
        proxy.ask("front", "/LOCK/a%2Fb/CLIENT_A?lock_timeout=30", headers)
    };
    let guarded = start(options());
    let refused = through(guarded.port(), HOST);
    assert!(refused.starts_with("HTTP/1.1 421 "), "{refused}");
    assert!(refused.contains("allowed_hosts"), "{refused}");

    let arguments = ["run", "--port", "0", "--allow-host", "locks.example.com"];
    let mut command = program(
        arguments
            .iter()
            .copied()
            .chain(["--allow-host", "other.example"]),
    );
    let (mut process, introduction, _log) = run(&mut command);
    let (port, _) = ports(&introduction);
    let granted = through(port, HOST);
    assert!(granted.starts_with("HTTP/1.1 200 "), "{granted}");
    assert!(granted.contains("\r\nLock-Fence: "), "{granted}");
    // The guard against web pages stands.
    let page = through(port, &format!("{HOST}Origin: http://locks.example.com\r\n"));
    assert!(page.starts_with("HTTP/1.1 403 "), "{page}");
    signal::kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
    assert!(process.wait().unwrap().success());
}

/// A server that the proxies of the page may ask under the name there.
fn named() -> Server {
    start(Options {
        allowed_hosts: vec!["locks.example.com".into()],
        ..options()
    })
}

/// The status of an answer as it came.
fn status(answer: &str) -> u16 {
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("no status: {answer:?}"))
}

fn holds(server: &Server, key: &str, requester: &str, seconds: u64) {
    let path = format!("/LOCK/{key}/{requester}?lock_timeout={seconds}&lock_attempt_timeout=0");
    assert!(!ask(server, &path).body.starts_with("0\n"), "{key} is free");
}

fn waiters(server: &Server, key: &str) -> String {
    let checked: Reply = ask(server, &format!("/CHECK/{key}"));
    checked.header("Lock-Waiters").expect("it is held").into()
}

#[test]
fn a_proxy_of_the_page_passes_on_names_with_a_slash_the_public_name_and_head() {
    Program::each(&[Nginx, Haproxy, Caddy], |program| {
        let server = named();
        let proxy = Proxy::of_the_page(program, server.port());
        // HAProxy has a server for up until it knows better.
        let granted = proxy.ask("front", "/LOCK/a%2Fb/c%2Fd?lock_timeout=30", HOST);
        assert_eq!(status(&granted), 200, "{program:?}: {granted}");
        assert_eq!(
            ask(&server, "/VERIFY/a%2Fb/c%2Fd").body,
            "1\n",
            "{program:?}"
        );
        assert_eq!(ask(&server, "/CHECK/a").body, "0\n", "{program:?}");
        let foreign = proxy.ask("front", "/PING", "Host: example.com\r\n");
        assert_eq!(status(&foreign), 421, "{program:?}: {foreign}");
        let request = format!("HEAD /readyz HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n");
        let ready = exchange(&proxy.folder.join("front"), &request);
        assert_eq!(status(&ready), 200, "{program:?}: {ready}");
    });
}

/// Seen to fail where HAProxy has `option abortonclose` in its backend alone.
#[test]
fn who_hangs_up_at_a_proxy_of_the_page_leaves_the_queue() {
    Program::each(&[Nginx, Haproxy, Caddy], |program| {
        let server = named();
        let proxy = Proxy::of_the_page(program, server.port());
        holds(&server, "KEYA", "A", 60);
        let mut client = UnixStream::connect(proxy.folder.join("front")).unwrap();
        let request = format!("GET /LOCK/KEYA/B?lock_attempt_timeout=600 HTTP/1.1\r\n{HOST}\r\n");
        client.write_all(request.as_bytes()).unwrap();
        until("it waits", || waiters(&server, "KEYA") == "1");
        drop(client);
        until("it has left the queue", || waiters(&server, "KEYA") == "0");
    });
}

/// A server that answers everything but LOCK, at which it ends the connection; and how many LOCKs it got.
fn breaks_at_lock() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let locks = Arc::new(AtomicUsize::new(0));
    let seen = locks.clone();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, seen) = (client.unwrap(), seen.clone());
            thread::spawn(move || {
                let mut reader = BufReader::new(client.try_clone().unwrap());
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
                    if line.contains("/LOCK/") {
                        seen.fetch_add(1, Relaxed);
                        let _ = client.shutdown(Shutdown::Both);
                        return;
                    }
                    if line.ends_with("\n\r\n") {
                        // Who asked may have gone.
                        let _ =
                            client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1\n");
                        line.clear();
                    }
                }
            });
        }
    });
    (port, locks)
}

/// Also on a connection that the proxy keeps open to its server, which may have ended meanwhile. Seen to fail with
/// Caddy's `keepalive` on: 2.
#[test]
fn a_proxy_of_the_page_asks_a_lock_once() {
    Program::each(&[Nginx, Haproxy, Caddy], |program| {
        let (port, locks) = breaks_at_lock();
        let proxy = Proxy::of_the_page(program, port);
        let request = format!(
            "GET /PING HTTP/1.1\r\n{HOST}\r\nGET /LOCK/KEYA/A HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"
        );
        let answers = exchange(&proxy.folder.join("front"), &request);
        assert_eq!(status(&answers), 200, "{program:?}: {answers}");
        assert!(
            !answers.contains("\n1\nHTTP/1.1 200"),
            "{program:?}: {answers}"
        );
        assert_eq!(locks.load(Relaxed), 1, "{program:?}");
    });
}

/// What the client takes for no answer: a status of its own, without `Lock-Result`.
#[test]
fn a_proxy_of_the_page_answers_502_503_or_504_itself_where_the_server_is_away_or_slow() {
    Program::each(&[Nginx, Haproxy, Caddy], |program| {
        let mut server = named();
        let proxy = match program {
            // Without a time-out of its own it is never too slow.
            Caddy => Proxy::of_the_page(program, server.port()),
            _ => Proxy::of_the_page_but(program, server.port(), "3700s", "1s"),
        };
        if program != Caddy {
            holds(&server, "KEYA", "A", 60);
            let slow = proxy.ask("front", "/LOCK/KEYA/B?lock_attempt_timeout=60", HOST);
            assert_eq!(status(&slow), 504, "{program:?}: {slow}");
            assert!(
                !slow.to_lowercase().contains("lock-result"),
                "{program:?}: {slow}"
            );
            until("its place is free", || waiters(&server, "KEYA") == "0");
        }
        server.stop().unwrap();
        let away = proxy.ask("front", "/LOCK/KEYA/B", HOST);
        let expected = if program == Haproxy { 503 } else { 502 };
        assert_eq!(status(&away), expected, "{program:?}: {away}");
        assert!(
            !away.to_lowercase().contains("lock-result"),
            "{program:?}: {away}"
        );
    });
}

/// The wait itself is the proof.
#[test]
fn a_lock_may_wait_for_longer_than_a_proxy_does_by_default() {
    Program::each(&[Nginx, Haproxy, Caddy], |program| {
        let server = named();
        let proxy = Proxy::of_the_page(program, server.port());
        holds(&server, "KEYA", "A", PROXY_TIMEOUT.as_secs());
        let began = Instant::now();
        let mut client = UnixStream::connect(proxy.folder.join("front")).unwrap();
        client
            .set_read_timeout(Some(PROXY_TIMEOUT + PATIENCE))
            .unwrap();
        let request = format!(
            "GET /LOCK/KEYA/B?lock_attempt_timeout=600 HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"
        );
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(status(&answer), 200, "{program:?}: {answer}");
        assert!(began.elapsed() > PROXY_TIMEOUT - Duration::from_secs(1));
        assert_eq!(ask(&server, "/VERIFY/KEYA/B").body, "1\n", "{program:?}");
    });
}
