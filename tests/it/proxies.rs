//! Behind real proxies: nginx and HAProxy, as Debian packages them. `.ci/run` installs them.
//!
//! They listen on sockets of the file system, so that no port has to be free.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::common::program::program;
use crate::common::{PATIENCE, ask, options, ports, run, start, until};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// A proxy that runs in front of a server, and the folder that it has for itself. It ends when it is dropped.
struct Proxy {
    folder: PathBuf,
    process: Child,
}

/// Whether the program is there. Where it is not, the test says so; in CI it fails.
fn is_installed(program: &str) -> bool {
    let version = Command::new(program).arg("-v").output();
    if version.is_ok() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
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
        let configuration = format!(
            "daemon off; pid {at}/pid; error_log stderr;\n\
             events {{ worker_connections 64; }}\n\
             http {{\n access_log off;\n client_body_temp_path {at};\n proxy_temp_path {at};\n\
             fastcgi_temp_path {at};\n uwsgi_temp_path {at};\n scgi_temp_path {at};\n\
             server {{ listen unix:{at}/front; location / {{\n\
             proxy_pass http://127.0.0.1:{port};\n{lines}\n}} }} }}\n"
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
    const HOST: &str = "Host: locks.example.com\r\n";
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
    let page = through(port, &format!("{HOST}Origin: http://example.com\r\n"));
    assert!(page.starts_with("HTTP/1.1 403 "), "{page}");
    signal::kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
    assert!(process.wait().unwrap().success());
}
