//! A server under a service manager: what it reports, and the sockets that it gets. The test plays the manager.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};

use lock_server::{Client, Error, Options, Server, ServerState};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::program::{Outcome, PROGRAM, clean, program, typed, unshared};
use crate::common::{PATIENCE, Wire, free_port, options, ports, until};

/// A process that is killed at the end of a test.
struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
    introduction: String,
}

impl Running {
    fn begin(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut introduction = String::new();
        stderr.read_line(&mut introduction).expect("UTF-8");
        Running {
            child,
            stderr,
            introduction,
        }
    }

    /// Sends SIGTERM, and returns the exit code.
    fn end(&mut self) -> Option<i32> {
        let pid = Pid::from_raw(self.child.id() as i32);
        signal::kill(pid, Signal::SIGTERM).expect("it is not reaped");
        let mut log = String::new();
        self.stderr.read_to_string(&mut log).expect("UTF-8");
        self.child.wait().expect("a child").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The notification socket of a service manager.
struct Manager {
    _folder: TempDir,
    path: PathBuf,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("bound");
        socket.set_read_timeout(Some(PATIENCE)).expect("not zero");
        Manager {
            _folder: folder,
            path,
            socket,
        }
    }

    /// Receives the next message.
    fn told(&self) -> String {
        let mut message = [0; 1024];
        let length = self.socket.recv(&mut message).expect("a message arrives");
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    #[track_caller]
    fn is_told_nothing(&self) {
        self.socket.set_nonblocking(true).expect("a socket");
        let error = self.socket.recv(&mut [0; 1024]).expect_err("nothing");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}

/// `lock-server run` with these descriptors from 3 on, as in sd_listen_fds(3).
fn activated(sockets: &[BorrowedFd], names: &str, arguments: &[&str]) -> Command {
    // A shell sets its own process ID, and is replaced by the server.
    let script = r#"export LISTEN_PID=$$; exec "$0" run "$@""#;
    let mut command = Command::new("sh");
    clean(&mut command)
        .args(["-c", script, PROGRAM])
        .args(arguments)
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDNAMES", names);
    // Duplicated to high numbers, so that no `dup2` below overwrites another socket.
    let sockets: Vec<i32> = sockets
        .iter()
        .map(|socket| fcntl(socket, FcntlArg::F_DUPFD_CLOEXEC(20)).expect("a descriptor is left"))
        .collect();
    let hand_down = move || {
        for (number, socket) in (3..).zip(&sockets) {
            // SAFETY: both are numbers. The second one was free, or a descriptor that is closed on exec, or std's pipe
            // that reports a failed exec.
            if unsafe { libc::dup2(*socket, number) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: it only makes system calls.
    unsafe { command.pre_exec(hand_down) };
    command
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("it is bound").port()
}

/// Seen to fail: nothing was reported for 30 s.
#[test]
fn run_reports_that_it_serves_and_that_it_stops() {
    let manager = Manager::new();
    let mut command = program(["run", "--port", "0", "--classic-port", "0"]);
    let mut server = Running::begin(command.env("NOTIFY_SOCKET", &manager.path));
    let ready = manager.told();
    let (_, rest) = server.introduction.split_once("127.0.0.1:").expect("where");
    let port = rest.split(' ').next().expect("a port").parse();
    assert!(Client::new("A", "127.0.0.1", port.expect("a number")).ping());
    let lines: Vec<&str> = ready.lines().collect();
    assert_eq!(lines[0], "READY=1");
    assert!(
        lines[1].starts_with("STATUS=serves on 127.0.0.1:"),
        "{ready}"
    );
    manager.is_told_nothing();
    manager.socket.set_nonblocking(false).expect("a socket");
    assert_eq!(server.end(), Some(0));
    assert_eq!(manager.told(), "STOPPING=1\n");
    manager.is_told_nothing();
}

#[test]
fn shutdown_is_reported_too_and_a_missing_manager_does_not_end_the_server() {
    let manager = Manager::new();
    let mut command = program(["run", "--port", "0", "--allow-shutdown"]);
    let mut server = Running::begin(command.env("NOTIFY_SOCKET", &manager.path));
    assert!(manager.told().starts_with("READY=1\n"));
    fs::remove_file(&manager.path).expect("it is there");
    let (port, _) = ports(&server.introduction);
    typed(&format!("shutdown --port {port}")).expect(0, "1\n");
    let mut log = String::new();
    server.stderr.read_to_string(&mut log).expect("UTF-8");
    assert_eq!(server.child.wait().expect("a child").code(), Some(0));
    assert!(log.contains("cannot notify the service manager"), "{log}");
}

#[test]
fn a_server_that_cannot_serve_reports_nothing() {
    let manager = Manager::new();
    let taken = listener();
    let line = format!("run --reconnect-attempts 0 --port {}", port(&taken));
    let mut command = program(line.split_ascii_whitespace());
    Outcome::of(command.env("NOTIFY_SOCKET", &manager.path)).expect(1, "");
    manager.is_told_nothing();
}

/// The server in the background is not the unit's process, and a command under `exec` reports its own state.
#[test]
fn start_and_exec_report_nothing_and_the_command_of_exec_can() {
    let manager = Manager::new();
    let folder = tempfile::tempdir().expect("a folder");
    let (port, pid_file) = (free_port(), folder.path().join("pid"));
    let with = |line: &str| {
        let mut command = program(line.split_ascii_whitespace());
        let pid_file = pid_file.to_str().expect("UTF-8");
        if !line.starts_with("exec") {
            command.args(["--pid-file", pid_file]);
        }
        Outcome::of(command.env("NOTIFY_SOCKET", &manager.path))
    };
    assert_eq!(with(&format!("start --port {port}")).code, Some(0));
    let line = format!("exec --port {port} KEYA -- printenv NOTIFY_SOCKET");
    with(&line).expect(0, &format!("{}\n", manager.path.display()));
    assert_eq!(with("stop").code, Some(0));
    manager.is_told_nothing();
}

/// Seen to fail: it took port 8004.
#[test]
fn run_serves_on_the_sockets_of_a_service_manager() {
    let [classic, http] = [listener(), listener()];
    let manager = Manager::new();
    let sockets = [classic.as_fd(), http.as_fd()];
    let mut command = activated(&sockets, "classic:lock-server.socket", &[]);
    let mut server = Running::begin(command.env("NOTIFY_SOCKET", &manager.path));
    let on = format!(
        " serves on 127.0.0.1:{} (classic clients: port {})",
        port(&http),
        port(&classic)
    );
    assert!(server.introduction.contains(&on), "{}", server.introduction);
    assert!(manager.told().starts_with("READY=1\n"));
    assert_eq!(Wire::to_port(port(&http)).ask("/LOCK/KEYA/A").status, 200);
    let mut bare = Wire::to_port(port(&classic));
    assert_eq!(bare.send("GET /CHECK/KEYA\n\n").rest(), "1\n");
    assert_eq!(server.end(), Some(0));
}

#[test]
fn sockets_for_another_process_are_not_used() {
    let http = listener();
    let mut command = activated(&[http.as_fd()], "http", &[]);
    let script = r#"export LISTEN_PID=1; exec "$0" run --port 0"#;
    let mut other = Command::new("sh");
    clean(&mut other)
        .args(["-c", script, PROGRAM])
        .env("LISTEN_FDS", "1");
    let server = Running::begin(&mut other);
    let taken = format!("127.0.0.1:{};", port(&http));
    assert!(!server.introduction.contains(&taken));
    // With its own process ID it uses them.
    let server = Running::begin(&mut command);
    assert!(
        server.introduction.contains(&taken),
        "{}",
        server.introduction
    );
}

/// Seen to fail with "Connection refused": the first server had shut the socket down.
#[test]
fn a_client_that_connects_while_no_server_runs_is_served_by_the_next_one() {
    let [http, classic] = [listener(), listener()];
    let run = || {
        let sockets = [http.as_fd(), classic.as_fd()];
        Running::begin(&mut activated(&sockets, "http:classic", &[]))
    };
    let mut first = run();
    assert!(Client::new("A", "127.0.0.1", port(&http)).ping());
    assert_eq!(first.end(), Some(0));
    let mut early = Wire::to_port(port(&http));
    early.get("/LOCK/KEYA/A");
    let mut early_classic = Wire::to_port(port(&classic));
    early_classic.send("GET /LOCK/KEYB/A\n\n");
    let _second = run();
    assert_eq!(early.reply().status, 200);
    assert!(early_classic.rest().contains('.'), "no time of an end");
}

/// A pending connection would make systemd start the service again. Seen to fail with a shutdown, after which `accept`
/// returned "Invalid argument", and with the connection that tiny_http makes when it is dropped.
#[test]
fn a_server_leaves_borrowed_listeners_unchanged() -> Result<(), Error> {
    let [http, classic] = [listener(), listener()];
    for _ in 0..10 {
        let lend = |listener: &TcpListener| listener.try_clone().expect("a descriptor is left");
        let mut server = Server::new(options());
        let address = server.bind_to(lend(&http), Some(lend(&classic)))?;
        assert_eq!(address.port(), port(&http));
        assert_eq!(server.spawn()?, address);
        assert_eq!(server.classic_port(), Some(port(&classic)));
        assert!(server.client("A").lock("KEYA")?.is_some());
        assert!(server.stop()?);
        for listener in [&http, &classic] {
            listener.set_nonblocking(true).expect("a socket");
            let error = listener.accept().expect_err("nobody has come");
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
        }
    }
    Ok(())
}

#[test]
fn a_descriptor_that_is_not_a_tcp_listener_is_refused_with_its_kind() {
    let folder = tempfile::tempdir().expect("a folder");
    let datagram: OwnedFd = UdpSocket::bind("127.0.0.1:0").expect("a free port").into();
    let unix = UnixListener::bind(folder.path().join("socket")).expect("bound");
    let unix: OwnedFd = unix.into();
    let file: OwnedFd = fs::File::open("/dev/null").expect("it is there").into();
    let tcp = listener();
    let connected: OwnedFd = TcpStream::connect(("127.0.0.1", port(&tcp)))
        .expect("it listens")
        .into();
    for (wrong, why) in [
        (datagram, "is a socket, but not of a stream"),
        (unix, "is no socket of TCP"),
        (file, "is no socket;"),
        (connected, "does not listen"),
    ] {
        let outcome = Outcome::of(&mut activated(&[wrong.as_fd()], "locks.socket", &[]));
        outcome.expect(1, "");
        outcome.expect_stderr(&["descriptor 3, \"locks.socket\", ", why, "Accept=no"]);
    }
    let [one, other] = [listener(), listener()];
    let both = [one.as_fd(), other.as_fd()];
    for (sockets, names, why) in [
        (&both[..], "a:b", "several sockets for HTTP"),
        (&both[..], "classic:classic", "none for HTTP"),
        (&both[..1], "classic", "none for HTTP"),
        (&both[..], "a", "invalid LISTEN_FDNAMES"),
    ] {
        let outcome = Outcome::of(&mut activated(sockets, names, &[]));
        outcome.expect(1, "");
        outcome.expect_stderr(&[why]);
    }
    for option in ["--port=8004", "--host=127.0.0.1", "--classic-port=0"] {
        let outcome = Outcome::of(&mut activated(&both[..1], "http", &[option]));
        outcome.expect(2, "");
        let (option, _) = option.split_once('=').expect("it has a value");
        outcome.expect_stderr(&[&format!("leave {option} out")]);
    }
}

#[test]
fn a_program_learns_the_states_of_its_own_server() -> Result<(), Error> {
    let http = listener();
    let port = port(&http);
    let mut server = Server::new(Options {
        allow_shutdown: true,
        ..options()
    });
    server.bind_to(http, None)?;
    let states = std::sync::Mutex::new(Vec::new());
    server.run_with(|state| {
        if state == ServerState::Serving {
            std::thread::spawn(move || Client::new("A", "127.0.0.1", port).shutdown());
        }
        states.lock().expect("nobody panicked").push(state);
    })?;
    let states = states.into_inner().expect("nobody panicked");
    assert_eq!(states, [ServerState::Serving, ServerState::Stopping]);
    // No other process has a copy of the listener.
    until("the port is free", || {
        TcpListener::bind(("127.0.0.1", port)).is_ok()
    });
    Ok(())
}

/// The systemd units of the operations page, by their file names.
fn units() -> Vec<(&'static str, &'static str)> {
    let page = include_str!("../../src/guide/operations.md");
    let blocks = page.split("```ini\n").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split("```").next());
    blocks
        .map(|block| {
            let path = block
                .lines()
                .next()
                .and_then(|line| line.strip_prefix("# "));
            let name = path.and_then(|path| path.rsplit_once('/'));
            (name.expect("its first line is a path").1, block)
        })
        .collect()
}

#[test]
fn systemd_accepts_the_units_of_the_operations_page() {
    let units = units();
    assert_eq!(units.len(), 4, "{units:?}");
    let folder = tempfile::tempdir().expect("a folder");
    for (name, unit) in &units {
        let both = "Type=notify\nSockets=lock-server.socket lock-server-classic.socket";
        let unit = unit
            .replace("/usr/local/bin/lock-server", PROGRAM)
            .replace("/usr/local/bin/report", "/bin/true")
            .replace("Type=notify", both);
        fs::write(folder.path().join(name), unit).expect("written");
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    let files = units.iter().map(|(name, _)| folder.path().join(name));
    let Ok(verified) = verify.args(files).output() else {
        eprintln!("skipped: there is no systemd-analyze");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    let of_ours: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("lock-server") || line.contains("report"))
        .collect();
    assert!(verified.status.success() && of_ours.is_empty(), "{said}");
}

/// As in a container without `--init`.
#[test]
fn as_process_1_run_ends_on_sigterm_and_ping_is_its_health_check() {
    let manager = Manager::new();
    let Some(mut unshare) = unshared(&["-pf", "--mount-proc", "--kill-child"]) else {
        return;
    };
    unshare.args([PROGRAM, "run", "--port", "0"]);
    let mut server = Running::begin(unshare.env("NOTIFY_SOCKET", &manager.path));
    assert!(manager.told().starts_with("READY=1\n"));
    let (port, _) = ports(&server.introduction);
    typed(&format!("ping --port {port}")).expect(0, "1\n");
    let unshare = server.child.id();
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
    let process_1 = children
        .expect("it runs")
        .trim()
        .parse()
        .expect("one child");
    signal::kill(Pid::from_raw(process_1), Signal::SIGTERM).expect("it runs");
    assert_eq!(server.child.wait().expect("a child").code(), Some(0));
    assert_eq!(manager.told(), "STOPPING=1\n");
    typed(&format!("ping --port {port}")).expect(69, "");
}
