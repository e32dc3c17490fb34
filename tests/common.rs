//! The fixtures that the test binaries share: a server on a free port, a plain connection to it, and more below.

#![allow(dead_code, reason = "each test binary uses only a part")]

#[path = "common/browser.rs"]
pub mod browser;
#[path = "common/gateway.rs"]
pub mod gateway;
#[path = "common/program.rs"]
pub mod program;
#[path = "common/prometheus.rs"]
pub mod prometheus;
#[path = "common/proxy.rs"]
pub mod proxy;
#[path = "common/real_proxy.rs"]
pub mod real_proxy;
#[path = "common/scripted.rs"]
pub mod scripted;

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lock_server::{Options, Server};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

/// A time-out that even a busy machine never reaches. It is never a bound that a test checks.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A bound that an issue gives for an idle machine, times `LOCK_SERVER_TEST_SLOWNESS`.
pub fn bound(on_an_idle_machine: Duration) -> Duration {
    on_an_idle_machine * slowness()
}

/// The factor for bounds on this machine: `LOCK_SERVER_TEST_SLOWNESS`, by default 1.
pub fn slowness() -> u32 {
    let slowness = std::env::var("LOCK_SERVER_TEST_SLOWNESS");
    slowness.map_or(1, |times| times.parse().expect("a whole number"))
}

/// Options for a test: any free port, no second try.
pub fn options() -> Options {
    Options {
        port: 0,
        reconnect_attempts: 0,
        ..Options::default()
    }
}

/// A server in a child process. It is stopped when it is dropped.
pub fn start(options: Options) -> Server {
    let mut server = Server::new(options);
    server.start().expect("a server on a free port");
    server
}

/// Starts a `lock-server run`. Returns the process, the first line of its log and the rest of it. The process is killed
/// when the test's thread ends, so that a failed test leaves no server behind.
pub fn run(command: &mut Command) -> (Child, String, BufReader<ChildStderr>) {
    ends_with_this_thread(command);
    let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(process.stderr.take().expect("it is piped"));
    let mut introduction = String::new();
    stderr.read_line(&mut introduction).unwrap();
    (process, introduction, stderr)
}

/// Sets a command up so that its process is killed when this thread ends, and inherits no descriptors.
pub fn ends_with_this_thread(command: &mut Command) -> &mut Command {
    // SAFETY: it only makes system calls.
    unsafe { command.pre_exec(hand_down_no_descriptors) };
    // SAFETY: as above.
    unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)) };
    command
}

/// Closes inherited descriptors at exec, since they would count against a server's limit.
fn hand_down_no_descriptors() -> std::io::Result<()> {
    let close_on_exec = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: nothing is closed before the exec. A kernel before 5.11 refuses the flag, and the descriptors are
    // inherited.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, close_on_exec) };
    Ok(())
}

/// Sets another process's descriptor limits, and returns the former ones.
pub fn limit_descriptors(pid: u32, most: usize) -> libc::rlimit {
    let new = libc::rlimit {
        rlim_cur: most as u64,
        rlim_max: most as u64,
    };
    let mut old = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both structures outlive the call.
    let result = unsafe { libc::prlimit(pid as i32, libc::RLIMIT_NOFILE, &new, &mut old) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    old
}

/// The ports in the first line of the log of `lock-server run`: for HTTP, and for clients of the Perl original.
pub fn ports(introduction: &str) -> (u16, Option<u16>) {
    let after = |words: &str| {
        let (_, rest) = introduction.split_once(words)?;
        rest.split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    };
    let port = after(" on 127.0.0.1:").unwrap_or_else(|| panic!("no port in {introduction:?}"));
    (port, after("classic clients: port "))
}

/// A lock for tests of a binary that load the machine or measure times: one of them runs at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // The mutex guards no data, so a failed test leaves nothing wrong behind.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Raises this process's soft limit of descriptors to the hard one. Panics if that is less than `needed`.
pub fn raise_own_limit(needed: u64) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(
        hard >= needed,
        "this test needs {needed} descriptors, and the hard limit is {hard}"
    );
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Prints why a test is skipped, directly to standard error: libtest hides the output of `eprintln!` in a test that
/// passes.
pub fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Runs a test in a thread that sees this text as `/etc/hosts`. So do the threads and processes that it starts. Skips
/// the test if the machine allows no mounts.
pub fn with_hosts(hosts: &str, test: impl FnOnce() + Send) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, hosts).unwrap();
    // Readable for everyone, like the file that it hides.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let path = CString::new(file.path().as_os_str().as_bytes()).unwrap();
    let hides = || mount(&path, c"/etc/hosts", c"", libc::MS_BIND, c"");
    with_mounts("no /etc/hosts of one's own", hides, test);
}

/// Runs a test with a tmpfs of its own, of this size as mount(8) takes it. Only the test's thread and what it starts
/// see it. Skips the test if the machine allows no mounts.
pub fn with_disk(size: &str, test: impl FnOnce(&Path) + Send) {
    let folder = tempfile::tempdir().unwrap();
    let path = CString::new(folder.path().as_os_str().as_bytes()).unwrap();
    let data = CString::new(format!("size={size}")).unwrap();
    let add = || mount(c"none", &path, c"tmpfs", 0, &data);
    with_mounts("no disk of one's own", add, || test(folder.path()));
}

/// Runs a test in a thread with mounts that only it sees.
fn with_mounts(
    missing: &str,
    mounts: impl FnOnce() -> nix::Result<()> + Send,
    test: impl FnOnce() + Send,
) {
    let unshared = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE, c"")?;
        mounts()
    };
    thread::scope(|scope| {
        let tested = scope.spawn(|| match unshared() {
            Ok(()) => test(),
            Err(errno) => skip(&format!("{missing}: {errno}")),
        });
        if let Err(panic) = tested.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn mount(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: libc::c_ulong,
    data: &CStr,
) -> nix::Result<()> {
    // SAFETY: the strings outlive the call. mount(2) does not look at an empty kind, nor at data, with the flags above.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    };
    Errno::result(result).map(drop)
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Waits until the server's end of this connection knows that it has ended. On a busy machine that may happen after the
/// server gets what is sent later on another connection.
fn until_heard([own, server]: [u16; 2]) {
    // Local address, remote address, state: 01 is ESTABLISHED (proc(5)).
    let whole = format!(":{server:04X} 0100007F:{own:04X} 01 ");
    until("the server's end of the connection is closed, too", || {
        let table = fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
        !table.contains(&whole)
    });
}

/// Waits until something is true.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited for 30 s until {what}");
        std::thread::sleep(ms(1));
    }
}

/// A connection on which a test sends and sees the bytes.
pub struct Wire {
    reader: BufReader<TcpStream>,
}

/// A reply: its status line, headers and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The word of its `Lock-Result` header.
    pub fn result(&self) -> &str {
        self.header("Lock-Result").unwrap_or("")
    }

    /// The remaining time of the lease: the header `Lock-Expires-In`.
    pub fn expires_in(&self) -> Duration {
        let seconds = self.header("Lock-Expires-In");
        let seconds = seconds.unwrap_or_else(|| panic!("the answer is not a lease: {self:?}"));
        Duration::from_secs_f64(seconds.parse().unwrap())
    }

    /// The end of the lease in the body of a granted LOCK.
    pub fn expires(&self) -> SystemTime {
        let (seconds, micros) = self
            .body
            .trim_end()
            .split_once('.')
            .unwrap_or_else(|| panic!("the answer is not a lease: {self:?}"));
        let since = Duration::new(
            seconds.parse().unwrap(),
            micros.parse::<u32>().unwrap() * 1000,
        );
        UNIX_EPOCH + since
    }
}

impl Wire {
    pub fn to(server: &Server) -> Self {
        Wire::to_port(server.port())
    }

    pub fn to_port(port: u16) -> Self {
        Wire::at((Ipv4Addr::LOCALHOST, port).into())
    }

    pub fn at(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        Wire::over(stream, PATIENCE)
    }

    /// Sends one `GET` on a connection of its own, and returns the reply. An error if no server listens, or it ends
    /// meanwhile.
    pub fn try_ask(port: u16, path: &str) -> std::io::Result<Reply> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        Wire::over(stream, PATIENCE).try_once(path)
    }

    /// Sends one `GET`, and returns the reply. An error if the connection ends, or no reply comes in time.
    pub fn try_once(mut self, path: &str) -> std::io::Result<Reply> {
        let question = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.reader.get_mut().write_all(question.as_bytes())?;
        self.try_reply()
    }

    /// Connects from this local port, which may already have a connection to another port; 0 is any free one.
    pub fn from_port(own: u16, port: u16) -> Self {
        let (family, kind) = (AddressFamily::Inet, SockType::Stream);
        let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
        setsockopt(&socket, sockopt::ReusePort, &true).unwrap();
        let [from, to] = [own, port].map(|port| SockaddrIn::new(127, 0, 0, 1, port));
        bind(socket.as_raw_fd(), &from).unwrap();
        connect(socket.as_raw_fd(), &to).expect("the server listens");
        Wire::over(socket.into(), PATIENCE)
    }

    /// A connection whose reads time out after `patience`.
    pub fn over(stream: TcpStream, patience: Duration) -> Self {
        stream.set_read_timeout(Some(patience)).unwrap();
        stream.set_nodelay(true).unwrap();
        Wire {
            reader: BufReader::new(stream),
        }
    }

    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    pub fn own_port(&self) -> u16 {
        self.stream().local_addr().unwrap().port()
    }

    /// Ends the connection at once. A drop ends it only when the last copy of the descriptor is closed, and a process
    /// that another test is starting may have one for a moment.
    pub fn hang_up(self) {
        let ends = self.ends();
        let _ = self.stream().shutdown(Shutdown::Both);
        until_heard(ends);
    }

    /// Ends the connection with a reset, even if another process has a copy.
    pub fn reset(self) {
        let ends = self.ends();
        // SAFETY: all zeros is a valid address, of the family AF_UNSPEC.
        let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
        let length = size_of_val(&nobody) as libc::socklen_t;
        // SAFETY: the address outlives the call. connect(2): AF_UNSPEC dissolves the connection.
        let result = unsafe { libc::connect(self.stream().as_raw_fd(), &nobody, length) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        until_heard(ends);
    }

    /// The ports of this end and of the server's.
    fn ends(&self) -> [u16; 2] {
        let server = self.stream().peer_addr().expect("it is connected");
        [self.own_port(), server.port()]
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.reader
            .get_mut()
            .write_all(bytes.as_ref())
            .expect("the server takes it");
        self
    }

    /// Sends `GET` without waiting for the reply.
    pub fn get(&mut self, path: &str) -> &mut Self {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    /// Sends `GET` and reads the reply.
    pub fn ask(&mut self, path: &str) -> Reply {
        self.get(path).reply()
    }

    /// Reads one reply with its body.
    pub fn reply(&mut self) -> Reply {
        self.try_reply().expect("a whole reply")
    }

    /// Like [`reply`](Self::reply); an error if the connection ends first.
    pub fn try_reply(&mut self) -> std::io::Result<Reply> {
        let ended = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(ended());
        }
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .ok_or_else(ended)?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(ended());
            }
            match line.trim_end_matches("\r\n").split_once(": ") {
                Some((name, value)) => headers.push((name.to_string(), value.to_string())),
                None => break,
            }
        }
        let mut reply = Reply {
            status,
            headers,
            body: String::new(),
        };
        let length = reply
            .header("Content-Length")
            .and_then(|length| length.parse().ok())
            .unwrap_or(0);
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        reply.body = String::from_utf8(body).expect("a reply is UTF-8");
        Ok(reply)
    }

    /// Whether there are bytes to read, or the connection has ended.
    pub fn has_answer(&self) -> bool {
        if !self.reader.buffer().is_empty() {
            return true;
        }
        self.stream().set_nonblocking(true).unwrap();
        let peeked = self.stream().peek(&mut [0]);
        self.stream().set_nonblocking(false).unwrap();
        peeked.is_ok()
    }

    /// Reads everything until the connection ends.
    pub fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        // A reset after the last byte is an end, too.
        let _ = self.reader.read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Like [`rest`](Self::rest); an error if the connection is reset or stays open.
    pub fn until_closed(&mut self) -> std::io::Result<String> {
        let mut rest = String::new();
        self.reader.read_to_string(&mut rest)?;
        Ok(rest)
    }

    /// Whether the server closes the connection.
    pub fn is_closed(&mut self) -> bool {
        match self.reader.read(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// An answer with masks for the remaining seconds of a lease, its fence and the server's process, and without the
/// header `Lock-Server`.
pub fn masked(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let lines = head.split("\r\n");
    let lines = lines.filter(|line| !line.starts_with("Lock-Server: "));
    let lines = lines.map(|line| match line.split_once(": ") {
        Some((name @ ("Lock-Expires-In" | "Lock-Holder-Expires-In"), _)) => format!("{name}: S"),
        Some((name @ ("Lock-Fence" | "Lock-Server-Pid"), _)) => format!("{name}: N"),
        _ => line.into(),
    });
    format!("{}\r\n\r\n{body}", lines.collect::<Vec<_>>().join("\r\n"))
}

/// Sends one `GET` on a connection of its own, and returns the reply.
pub fn ask(server: &Server, path: &str) -> Reply {
    Wire::to(server).ask(path)
}

/// A connection whose LOCK is certainly in the queue: of two LOCKs with one name, one is refused at once with
/// `already-waiting`, so the other waits.
pub fn waiting_wire(server: &Server, key: &str, requester: &str) -> Wire {
    let mut pair = [Wire::to(server), Wire::to(server)];
    for wire in &mut pair {
        wire.get(&format!("/LOCK/{key}/{requester}"));
    }
    until("one of the two is refused", || {
        pair.iter().any(Wire::has_answer)
    });
    let [mut one, mut two] = pair;
    if !one.has_answer() {
        std::mem::swap(&mut one, &mut two);
    }
    assert_eq!(one.reply().result(), "already-waiting");
    two
}

/// Whether every thread of a process sleeps. If it returns `true` twice in a row, the process has handled everything
/// that had arrived.
pub fn sleeps(pid: u32) -> bool {
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.all(|thread| {
        let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
        let state = stat
            .rsplit_once(") ")
            .map(|(_, fields)| fields.as_bytes()[0]);
        state.is_none_or(|state| state == b'S')
    })
}
