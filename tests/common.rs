//! What the test binaries share: a server on a free port, and a plain connection to it.

#![allow(dead_code, reason = "each test binary uses a part of it")]

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

/// Longer than anything takes on a machine that is busy with something else. Never a bound to prove.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A bound that an issue gave, for a machine with nothing else to do: `LOCK_SERVER_TEST_SLOWNESS` times as much
/// where the environment says that this one has.
pub fn bound(on_an_idle_machine: Duration) -> Duration {
    on_an_idle_machine * slowness()
}

/// How many times as much a bound may be here.
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

/// Starts a `lock-server run`, and returns what it says first and the rest of its log. It is killed when the thread of
/// this test ends: a test that fails leaves no server behind.
pub fn run(command: &mut Command) -> (Child, String, BufReader<ChildStderr>) {
    ends_with_this_thread(command);
    let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(process.stderr.take().expect("it is piped"));
    let mut introduction = String::new();
    stderr.read_line(&mut introduction).unwrap();
    (process, introduction, stderr)
}

/// Has what is started be killed when this thread ends, and hands it no descriptors down.
pub fn ends_with_this_thread(command: &mut Command) -> &mut Command {
    // SAFETY: it only calls the system.
    unsafe { command.pre_exec(hand_down_no_descriptors) };
    // SAFETY: as above.
    unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)) };
    command
}

/// What whoever runs the tests has open counts against a server's limits, too.
fn hand_down_no_descriptors() -> std::io::Result<()> {
    let close_on_exec = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: nothing is closed before this process becomes another program. A kernel before 5.11 hands them down.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, close_on_exec) };
    Ok(())
}

/// Sets another process's descriptor limits, and returns what they were.
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

/// The ports in the first line that `lock-server run` says: for HTTP, and for the original's clients.
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

/// For those tests of a binary that crowd the machine or measure it: one of them at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed has left nothing behind.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Raises the soft limit of descriptors of this process to the hard one, for tests that open so many.
pub fn raise_own_limit(needed: u64) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(
        hard >= needed,
        "this test needs {needed} descriptors, and the hard limit is {hard}"
    );
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Says why a test proves nothing here. libtest keeps what `eprintln!` writes to itself, where a test passes.
pub fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Does a test in a thread for which `/etc/hosts` is this text, as it is for all threads and processes that it starts.
/// Skips the test where the machine lets nobody mount.
pub fn with_hosts(hosts: &str, test: impl FnOnce() + Send) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, hosts).unwrap();
    // Everybody may read it, as the one that it hides.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let path = CString::new(file.path().as_os_str().as_bytes()).unwrap();
    let hides = || mount(&path, c"/etc/hosts", c"", libc::MS_BIND, c"");
    with_mounts("no /etc/hosts of one's own", hides, test);
}

/// Does a test with a disk of its own, of the size that mount(8) is given for a tmpfs. It is there for the thread of the
/// test alone, and for what that starts. Skips the test where the machine lets nobody mount.
pub fn with_disk(size: &str, test: impl FnOnce(&Path) + Send) {
    let folder = tempfile::tempdir().unwrap();
    let path = CString::new(folder.path().as_os_str().as_bytes()).unwrap();
    let data = CString::new(format!("size={size}")).unwrap();
    let add = || mount(c"none", &path, c"tmpfs", 0, &data);
    with_mounts("no disk of one's own", add, || test(folder.path()));
}

/// Does a test in a thread that has mounted something which nobody else sees.
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

/// Waits until the kernel has told the server that this connection has ended. On a busy machine that may come after what
/// is sent later, on another connection.
fn until_heard([own, server]: [u16; 2]) {
    // Local address, remote address, state: 01 is ESTABLISHED (proc(5)).
    let whole = format!(":{server:04X} 0100007F:{own:04X} 01 ");
    until("the server's end has heard of it", || {
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

/// A connection that shows the bytes.
pub struct Wire {
    reader: BufReader<TcpStream>,
}

/// A reply as it came.
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

    /// The stable word of a `0`.
    pub fn result(&self) -> &str {
        self.header("Lock-Result").unwrap_or("")
    }

    /// How long the lease still lasted.
    pub fn expires_in(&self) -> Duration {
        let seconds = self.header("Lock-Expires-In");
        let seconds = seconds.unwrap_or_else(|| panic!("it is no lease: {self:?}"));
        Duration::from_secs_f64(seconds.parse().unwrap())
    }

    /// The time that a granted LOCK was answered with.
    pub fn expires(&self) -> SystemTime {
        let (seconds, micros) = self
            .body
            .trim_end()
            .split_once('.')
            .unwrap_or_else(|| panic!("it is no lease: {self:?}"));
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

    /// Asks one question on a connection of its own. An error where there is no server, or none any more.
    pub fn try_ask(port: u16, path: &str) -> std::io::Result<Reply> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        Wire::over(stream, PATIENCE).try_once(path)
    }

    /// Asks one question. An error where its connection ends, or no answer comes in its time.
    pub fn try_once(mut self, path: &str) -> std::io::Result<Reply> {
        let question = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.reader.get_mut().write_all(question.as_bytes())?;
        self.try_reply()
    }

    /// From a port of ours, which may have a connection to another one already; 0 is any that is free.
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

    /// A connection that waits so long for what comes.
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

    /// Ends the connection. Dropped, it goes on until the last copy is closed, and another test may be starting a
    /// process that has one for a moment.
    pub fn hang_up(self) {
        let ends = self.ends();
        let _ = self.stream().shutdown(Shutdown::Both);
        until_heard(ends);
    }

    /// Ends the connection with a reset, also where such a process has a copy.
    pub fn reset(self) {
        let ends = self.ends();
        // SAFETY: all zeros is an address: that of no family.
        let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
        let length = size_of_val(&nobody) as libc::socklen_t;
        // SAFETY: the address outlives the call. connect(2): with no family it ends a connection.
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

    /// As [`reply`](Self::reply); an error if the connection ends before.
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

    /// Whether something has come that is not read yet, or the connection has ended.
    pub fn has_answer(&self) -> bool {
        if !self.reader.buffer().is_empty() {
            return true;
        }
        self.stream().set_nonblocking(true).unwrap();
        let peeked = self.stream().peek(&mut [0]);
        self.stream().set_nonblocking(false).unwrap();
        peeked.is_ok()
    }

    /// Everything until the connection ends.
    pub fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        // A reset after the last byte is an end, too.
        let _ = self.reader.read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// As [`rest`](Self::rest); an error if the connection is reset or stays open.
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

/// An answer without what differs from time to time: the seconds that are left of a lease, its fence, the server's
/// process, and the header that each answer of a server has.
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

/// One question on a connection of its own.
pub fn ask(server: &Server, path: &str) -> Reply {
    Wire::to(server).ask(path)
}

/// A connection whose LOCK is known to stand in the queue: of two of the same name one is refused at
/// once, `already-waiting`, and the other waits.
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

/// Whether every thread of a process was found asleep. Twice in a row, nothing that had come is left to do.
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
