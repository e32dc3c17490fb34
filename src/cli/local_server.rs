//! A server on this machine: which one is meant; and one that no pid file names is asked for its process, and the answer
//! is checked.
//!
//! Anything may listen at a port and name any process. A process counts as the server if it belongs to this user (or
//! this user is root), runs this program, and has the socket open that listens at the port. All that is read after a
//! pidfd of the process is opened and before it is used, so it is about the process that is signalled.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;
use std::time::{Duration, Instant};

use lock_server::{Client, ClientOptions, Error, ServerAddress, Token};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Uid;

use crate::cli::advice::explain;
use crate::cli::args::{self, Target};
use crate::cli::ask::{SERVER_VARIABLE, variable};
use crate::cli::endpoint::Endpoint;
use crate::cli::exit::Failure;
use crate::cli::pid_file::PidFile;
use crate::cli::pid_record::record_of;
use crate::cli::typed_options::TypedOptions;

/// How long a process may take to end, once for each signal.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// The name of this program's processes, and of those in which a program starts a server.
const PROGRAM: &str = "lock-server";

/// What answers at a port.
pub enum Answering {
    /// Nothing, or nothing that answers the question.
    Nothing,
    /// A server that this program may end.
    Ours(LocalServer),
    /// A server that it may not end, and why.
    NotOurs(String),
    /// Something that does not speak HTTP, in a sentence.
    NotHttp(String),
}

/// The process of a server.
pub struct LocalServer {
    pub pid: u32,
    /// All ports that it listens on.
    pub ports: Vec<u16>,
    /// Whether it runs as this user. Root may end servers of others, too.
    pub is_own: bool,
    pidfd: OwnedFd,
}

/// Where the server is that is meant, and what of that was named. The rest are defaults.
pub struct Meant {
    pub address: ServerAddress,
    pub names_host: bool,
    pub names_port: bool,
}

impl Meant {
    /// Whether the server of a pid file's record can be the one that is meant.
    pub fn is(&self, endpoint: &Endpoint) -> bool {
        let is_at_port = !self.names_port || endpoint.address.port() == self.address.port;
        is_at_port && (!self.names_host || endpoint.serves_host(&self.address.host))
    }
}

/// The server that `stop` and `restart` act on: the one at the port, or else the one that the environment names, which
/// has to be on this machine. A pid file names its server itself.
pub fn meant(port: Option<u16>, has_pid_file: bool) -> Result<Meant, Failure> {
    if port.is_some() || has_pid_file {
        return Ok(Meant {
            address: at(None, port),
            names_host: false,
            names_port: is_named(port),
        });
    }
    let is_set = variable(SERVER_VARIABLE)?.is_some();
    let mut named = Target::default().addresses()?;
    match (named.pop(), named.as_slice()) {
        (Some(address), []) if is_here(&address) => Ok(Meant {
            address,
            names_host: is_set,
            names_port: is_set,
        }),
        (last, others) => {
            let all: Vec<String> = others
                .iter()
                .chain(&last)
                .map(ToString::to_string)
                .collect();
            Err(Failure::usage(format!(
                "{SERVER_VARIABLE} names {}, but stop and restart act on one server of this machine; give its --port",
                all.join(",")
            )))
        }
    }
}

/// Whether an option names the port of a server. 0 stands for any.
pub fn is_named(port: Option<u16>) -> bool {
    port.is_some_and(|port| port != 0)
}

/// The server at this host and port, or else at the default ones.
pub fn at(host: Option<String>, port: Option<u16>) -> ServerAddress {
    let usual = ServerAddress::default();
    ServerAddress {
        host: host.unwrap_or(usual.host),
        port: port.unwrap_or(usual.port),
        ..ServerAddress::default()
    }
}

/// Whether an address leads to this machine, and to the server itself.
pub fn is_here(address: &ServerAddress) -> bool {
    let has_proxy = address.is_https || !address.prefix.is_empty();
    // Only a machine's own address can be bound. Nobody sends anything to this socket.
    !has_proxy && UdpSocket::bind((address.host.as_str(), 0)).is_ok()
}

/// A client that asks once, with the token of the environment.
pub fn client_of(address: ServerAddress, answer_timeout: Duration) -> Client {
    let options = ClientOptions {
        token: Token::from_env().ok().flatten(),
        reconnect_attempts: 0,
        answer_timeout,
        ..ClientOptions::default()
    };
    Client::at("status", &address, options)
}

/// A message about how a server was found without its pid file, which may name another server.
pub fn found_by_port(pid_file: &PidFile, other: Option<&Endpoint>, here: &ServerAddress) -> String {
    let path = pid_file.path();
    match other {
        Some(other) => format!(
            "{path} names the server on {other}; the server that answers on {here} was asked for its process"
        ),
        None => format!(
            "no running server has the pid file {path}, so the one that answers on {here} was asked for its process"
        ),
    }
}

/// What answers at the port if no pid file names a running server: the end of a sentence.
pub fn but_answers(pid_file: &PidFile, here: &ServerAddress, why: &str) -> String {
    let path = pid_file.path();
    format!(", but a server that has no {path} answers on {here}{why}")
}

/// Asks what listens at the port. Nothing listens at port 0.
pub fn ask(here: &ServerAddress) -> Result<Answering, Failure> {
    let port = here.port;
    if port == 0 {
        return Ok(Answering::Nothing);
    }
    Ok(
        match Client::new("status", &here.host, port).server_process() {
            Ok(Some(pid)) => match LocalServer::of(pid, port) {
                Ok(server) => Answering::Ours(server),
                Err(why) => Answering::NotOurs(why),
            },
            Ok(None) => Answering::NotOurs("it has no process of its own on this machine".into()),
            Err(error @ Error::NotHttp { .. }) => Answering::NotHttp(explain(&error)),
            Err(error @ Error::InvalidOption { .. }) => return Err(error.into()),
            // It answers, but not to this name, for instance.
            Err(error @ Error::Refused { .. }) => Answering::NotOurs(explain(&error)),
            Err(_) => Answering::Nothing,
        },
    )
}

impl LocalServer {
    /// Checks the process that the server at this port names. An error says why it can't be the server.
    fn of(pid: u32, port: u16) -> Result<Self, String> {
        let unknown = |error| format!("it names process {pid}, which cannot be inspected: {error}");
        let pidfd = pidfd_open(pid).map_err(unknown)?;
        let process = Path::new("/proc").join(pid.to_string());
        let status = fs::read_to_string(process.join("status")).map_err(unknown)?;
        let (own, owner) = (Uid::effective(), effective_user(&status));
        if !own.is_root() && owner != Some(own.as_raw()) {
            let owner = owner.map_or("another user".into(), |owner| format!("user {owner}"));
            return Err(format!("it names process {pid}, which belongs to {owner}"));
        }
        // If the program's file was replaced while it runs, its path ends with " (deleted)".
        let exe = fs::read_link(process.join("exe")).unwrap_or_default();
        let name = exe.file_name().unwrap_or_default().to_string_lossy();
        let comm = fs::read_to_string(process.join("comm")).map_err(unknown)?;
        if comm.trim_end() != PROGRAM && name.split(' ').next() != Some(PROGRAM) {
            let comm = comm.trim_end();
            return Err(format!("it names process {pid}, which runs {comm}"));
        }
        let ports = listening_ports(&process).map_err(unknown)?;
        if !ports.contains(&port) {
            return Err(format!(
                "it names process {pid}, which does not listen there"
            ));
        }
        // It is alive, so all of the above was about this process, and not about a later one with its ID.
        send(&pidfd, None).map_err(unknown)?;
        let is_own = owner == Some(own.as_raw());
        Ok(LocalServer {
            pid,
            ports,
            is_own,
            pidfd,
        })
    }

    /// The options that it was started with, if it has a pid file.
    pub fn recorded_options(&self) -> Option<TypedOptions> {
        let record = record_of(self.pid)?;
        Some(TypedOptions::of(&record.options?))
    }

    /// The options of its command line, if that is one of `run`: paths start in its directory. A server in the
    /// background has left that directory.
    pub fn foreground_options(&self) -> Option<TypedOptions> {
        let process = Path::new("/proc").join(self.pid.to_string());
        let exe = fs::read_link(process.join("exe")).ok()?;
        let name = exe.file_name()?.to_str()?;
        let words = fs::read(process.join("cmdline")).ok()?;
        // Each word has a zero byte at its end.
        let words = String::from_utf8(words).ok()?;
        let words = words.split_terminator('\0').skip(1).map(String::from);
        let arguments = args::as_parsed(words.collect());
        if name.split(' ').next() != Some(PROGRAM) || args::verb_of(&arguments) != Some("run") {
            return None;
        }
        // The path of a removed directory has " (deleted)" at its end.
        let directory = fs::read_link(process.join("cwd")).ok()?;
        let directory = directory.exists().then_some(directory)?;
        TypedOptions::of(&arguments[1..]).in_directory(&directory)
    }

    /// Ends the process, and waits for its end.
    pub fn end(&self) -> Result<(), Failure> {
        let cannot =
            |error| Failure::system(format_args!("cannot stop process {}", self.pid), error);
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            match send(&self.pidfd, Some(signal)) {
                Err(error) if error.raw_os_error() != Some(Errno::ESRCH as i32) => {
                    return Err(cannot(error));
                }
                _ => {}
            }
            if self.ends_within(END_TIMEOUT).map_err(cannot)? {
                return Ok(());
            }
        }
        let why = "it has not ended even after SIGKILL";
        Err(cannot(io::Error::new(io::ErrorKind::TimedOut, why)))
    }

    /// A pidfd is readable once its process has ended.
    fn ends_within(&self, timeout: Duration) -> io::Result<bool> {
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(
                &mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)],
                left,
            ) {
                Err(Errno::EINTR) => {}
                polled => return Ok(polled? > 0),
            }
        }
    }
}

/// The second of the four users in `/proc/PID/status`: proc(5).
fn effective_user(status: &str) -> Option<u32> {
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The ports of the listening TCP sockets that a process has open, in the network namespace of this process.
fn listening_ports(process: &Path) -> io::Result<Vec<u16>> {
    let mut listening = HashMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A machine without IPv6 lacks the second file.
        let table = fs::read_to_string(table).unwrap_or_default();
        listening.extend(table.lines().filter_map(listening_socket));
    }
    let mut ports = Vec::new();
    for fd in fs::read_dir(process.join("fd"))? {
        // The descriptor may be closed by now.
        let target = fs::read_link(fd?.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        let inode = target.strip_prefix("socket:[");
        let inode = inode.and_then(|rest| rest.strip_suffix(']')?.parse().ok());
        ports.extend(inode.and_then(|inode: u64| listening.get(&inode)));
    }
    ports.dedup();
    Ok(ports)
}

/// The inode and the port in a line of `/proc/net/tcp`, if its socket listens: proc(5).
fn listening_socket(line: &str) -> Option<(u64, u16)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, port) = fields.get(1)?.rsplit_once(':')?;
    let is_listening = *fields.get(3)? == "0A";
    let socket = (
        fields.get(9)?.parse().ok()?,
        u16::from_str_radix(port, 16).ok()?,
    );
    is_listening.then_some(socket)
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)? as RawFd;
    // SAFETY: the kernel has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to a process. `None` only checks whether that is possible.
fn send(pidfd: &OwnedFd, signal: Option<Signal>) -> io::Result<()> {
    let number = signal.map_or(0, |signal| signal as i32);
    let nothing = ptr::null::<libc::siginfo_t>();
    // SAFETY: the call takes numbers, and a null pointer instead of signal information, which the kernel then fills in.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            nothing,
            0,
        )
    };
    Ok(Errno::result(sent).map(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernels_table_is_read_if_its_socket_listens() {
        let line = |state| {
            format!(
                "   0: 0100007F:1F44 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000        0 4711 1"
            )
        };
        assert_eq!(listening_socket(&line("0A")), Some((4711, 8004)));
        assert_eq!(listening_socket(&line("01")), None);
        assert_eq!(listening_socket("  sl  local_address rem_address"), None);
    }
}
