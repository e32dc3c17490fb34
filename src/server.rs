//! The server as a program uses it: bind, start, run, stop, ping, client.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path;
use std::process;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use self::access::KnownTokens;
use self::child::Child;
use self::listen::{BoundPort, adopt, bind, bind_classic};
use self::running::{Running, Threads};
pub use self::serve::ServerState;
use self::serve::{Listeners, ProcessUse, serve, start_failed};
use self::stop::{StopSignals, StopSources};
use crate::client::{Client, Transport};
use crate::error::Error;
use crate::host::{host_and_port, reachable};
use crate::options::Options;
use crate::token::{TOKEN_FILE_VARIABLE, Token};

mod access;
mod advertised;
mod child;
mod classic;
mod durable;
mod handler;
mod http;
mod limits;
mod listen;
mod poller;
mod running;
mod serve;
mod status;
mod stop;
mod tiny;
mod workers;

/// A lock server: in a child process with [`start`](Server::start), in threads of this process with
/// [`spawn`](Server::spawn), or in the thread that calls [`run`](Server::run).
///
/// ```
/// use lock_server::{Options, Server};
///
/// # fn main() -> Result<(), lock_server::Error> {
/// let mut server = Server::new(Options { port: 0, ..Options::default() });
/// server.start()?;
/// let guard = server.client("CLIENT_A").guard("KEYA")?;
/// assert!(server.client("CLIENT_B").try_lock("KEYA")?.is_none());
/// drop(guard);
/// assert!(server.stop()?);
/// # Ok(())
/// # }
/// ```
///
/// A started server ends when it is [stopped](Server::stop), when this handle is dropped, and when
/// the process that started it ends, however it ends; with [`Options::outlive_parent`] only when it is
/// stopped. A spawned server ends when it is stopped and when this handle is dropped.
///
/// After a `fork`, the server belongs to the process that started it: the copy of the handle in the other process
/// stops nothing when it is dropped.
pub struct Server {
    options: Options,
    bound: Option<Bound>,
    running: Option<Running>,
}

struct Bound {
    /// One for each address of the host. Never empty.
    addresses: Vec<SocketAddr>,
    classic: Option<SocketAddr>,
    warnings: Vec<String>,
    /// `None` once the server that serves on them has them.
    listeners: Option<Listeners>,
    /// What all clients of this server share.
    transport: Transport,
}

impl Server {
    /// A server with these options. Nothing happens until it is started or run.
    pub fn new(options: Options) -> Self {
        Server {
            options,
            bound: None,
            running: None,
        }
    }

    /// Takes its ports, so that [`port`](Self::port) and [`classic_port`](Self::classic_port) are known;
    /// [`start`](Self::start) and [`run`](Self::run) do it themselves if need be. Returns the HTTP address; for a
    /// started server, the one it was started on. A busy port is tried again as
    /// [`Options::reconnect_attempts`] and [`Options::time_between_attempts`] say.
    ///
    /// A host that is a name may have several addresses, as `localhost` has 127.0.0.1 and ::1: the server listens on
    /// each, up to 16, with one port for all, and the first one is returned; [`addrs`](Self::addrs) has all. One that
    /// this machine can't listen on is left out with a [warning](Self::warnings), if there is another one.
    ///
    /// # Errors
    /// [`Error::CannotListen`], [`Error::InvalidOption`].
    pub fn bind(&mut self) -> Result<SocketAddr, Error> {
        let is_running = self.running.as_ref().is_some_and(Running::is_alive);
        if let Some(bound) = &self.bound
            && (is_running || bound.listeners.is_some())
        {
            return Ok(bound.addresses[0]);
        }
        self.options.validate()?;
        let http = bind(&self.options)?;
        let classic = self.options.classic_port;
        let classic = classic.map(|port| bind_classic(&self.options, port, &http.addresses));
        self.set_bound(http, classic.transpose()?, false)
    }

    /// Takes listeners that somebody else bound, as a service manager hands them down (socket activation), in place
    /// of ports of its own; `classic` is for clients of the Perl original. Returns the HTTP address.
    /// [`Options::host`], [`Options::port`] and [`Options::classic_port`] become those of the listeners.
    ///
    /// Others may have copies of the listeners and go on listening when the server ends: a server of
    /// [`run`](Self::run) or [`spawn`](Self::spawn) does not shut them down, and connections that come later wait for
    /// the next server on them. One of [`start`](Self::start) shuts them down.
    ///
    /// # Errors
    /// [`Error::AlreadyStarted`]; [`Error::InvalidOption`]; [`Error::CannotStart`] where the system knows no address of
    /// a listener.
    pub fn bind_to(
        &mut self,
        http: TcpListener,
        classic: Option<TcpListener>,
    ) -> Result<SocketAddr, Error> {
        self.expect_not_running()?;
        let http = adopt(http)?;
        let classic = classic.map(adopt).transpose()?;
        self.options.host = http.addresses[0].ip().to_string();
        self.options.port = http.addresses[0].port();
        self.options.classic_port = classic.as_ref().map(|bound| bound.addresses[0].port());
        self.options.validate()?;
        self.set_bound(http, classic, true)
    }

    fn set_bound(
        &mut self,
        http: BoundPort,
        classic: Option<BoundPort>,
        are_lent: bool,
    ) -> Result<SocketAddr, Error> {
        let token = self.client_token()?;
        let classic = classic.unwrap_or_default();
        let address = http.addresses[0];
        self.bound = Some(Bound {
            addresses: http.addresses,
            classic: classic.addresses.first().copied(),
            warnings: http.warnings,
            listeners: Some(Listeners {
                http: http.listeners,
                classic: classic.listeners,
                are_lent,
            }),
            transport: Transport::new(&self.client_host(), address.port()).with_token(token),
        });
        Ok(address)
    }

    /// Starts the server in a child process, and returns that process's number once it answers.
    ///
    /// The child is this program, executed again: before its `main` begins, it finds that it is to be a server. So
    /// it does not matter what other threads of this program do meanwhile, and which locks they hold. Its standard
    /// streams lead nowhere, except that standard error is the file of [`Options::log_to`]; and it leaves the
    /// process group, so that Ctrl-C on a terminal reaches this program alone, which can then release and stop. It
    /// takes some milliseconds.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind); [`Error::AlreadyStarted`]; [`Error::CannotStart`], with what the child
    /// said: for instance where the system refuses it descriptors, where `/proc` is missing, where no connection
    /// can be made to it, and where this crate is not linked into the program but into a library that it loads.
    pub fn start(&mut self) -> Result<u32, Error> {
        self.expect_not_running()?;
        self.bind()?;
        let ping = self.client("ping");
        // Dropped at the end: the parent's copies would have the ports outlive the child.
        let listeners = self.take_listeners()?;
        let child = Child::start(&self.options, &listeners, || ping.try_ping())?;
        let pid = child.pid();
        self.running = Some(Running::Child(child));
        Ok(pid)
    }

    /// Serves in threads of this process until it is [stopped](Self::stop) or this handle is dropped, and returns
    /// the address for HTTP once it serves. No process is made and no signal is handled; any number of
    /// servers may be spawned at the same time.
    ///
    /// It has as many clients as this process may still open descriptors for, two for each beside 40 of its own, and
    /// does not raise that limit. It logs through this program's [`log`] and ignores [`Options::outlive_parent`] and
    /// [`Options::log_to`]. A program that is stopped (in a debugger, say) stops its server, too.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind); [`Error::AlreadyStarted`]; [`Error::CannotStart`].
    pub fn spawn(&mut self) -> Result<SocketAddr, Error> {
        self.expect_not_running()?;
        let address = self.bind()?;
        let listeners = self.take_listeners()?;
        let stop =
            Arc::new(StopSources::new(None, None).map_err(start_failed("no descriptor left"))?);
        let (options, asked) = (self.options.clone(), stop.clone());
        let (serving, began) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("lock-server".into())
            .spawn(move || {
                serve(listeners, &options, &asked, ProcessUse::Shared, &|_| {
                    // The other end waits for the first one.
                    let _ = serving.send(());
                })
            })
            .map_err(start_failed("no thread left"))?;
        if began.recv().is_err() {
            let served = thread.join().unwrap_or(Ok(()));
            return Err(served.err().unwrap_or_else(|| Error::CannotStart {
                reason: "its thread ended at once".into(),
                source: None,
            }));
        }
        self.running = Some(Running::Threads(Threads {
            stop,
            thread,
            process: process::id(),
        }));
        Ok(address)
    }

    /// Serves in this process until SIGTERM, SIGINT or, if allowed, SHUTDOWN. Both signals are the
    /// server's while it runs; where several run at once in one process, a signal ends them all. When the last
    /// of them ends, the previous handlers are restored. It raises this process's soft limit of
    /// descriptors to the hard one, or as far as the machine has threads for the clients, and leaves it there.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind); [`Error::AlreadyStarted`]; [`Error::CannotStart`] where the system refuses threads or
    /// descriptors.
    pub fn run(&mut self) -> Result<(), Error> {
        self.run_with(|_| ())
    }

    /// As [`run`](Self::run), and calls `notify` in this thread once the server serves, and when it begins to end: for
    /// a program that reports both to its service manager. Until `notify` returns, LOCKs whose client has gone
    /// keep their place.
    ///
    /// # Errors
    /// Those of [`run`](Self::run). A server that does not serve calls nothing.
    pub fn run_with(&mut self, notify: impl Fn(ServerState)) -> Result<(), Error> {
        self.expect_not_running()?;
        // First of all, so that a signal that comes early ends it as one that comes late.
        let signals = StopSignals::install(self.options.token_file.is_some())
            .map_err(start_failed("cannot handle signals"))?;
        let stop =
            StopSources::new(Some(&signals), None).map_err(start_failed("no descriptor left"))?;
        let stop = Arc::new(stop);
        self.bind()?;
        let listeners = self.take_listeners()?;
        limits::grow_futex_hash();
        serve(listeners, &self.options, &stop, ProcessUse::Own, &notify)
    }

    /// Stops the started or spawned server: LOCKs that wait are broken off, and the port is free on return. A process
    /// is reaped; one that has not ended after 3 s is killed. A spawned server gives the answers
    /// that are being written half a second; threads whose connections have ended stay for up to 5 s more, idle.
    ///
    /// `false` if none was started or it had ended by itself.
    ///
    /// # Errors
    /// [`Error::CannotStop`] if the system does not let it be ended, or if another process started it, of which this
    /// one is a fork.
    pub fn stop(&mut self) -> Result<bool, Error> {
        let Some(running) = self.running.take_if(|running| running.is_ours()) else {
            return match &self.running {
                None => Ok(false),
                Some(elsewhere) => Err(Error::CannotStop {
                    pid: elsewhere.pid(),
                    source: io::Error::other("another process started it and has to stop it"),
                }),
            };
        };
        let child = match running {
            Running::Threads(threads) => return Ok(threads.stop()),
            Running::Child(child) => child,
        };
        let stopped = child.stop();
        let pid = child.pid();
        if stopped.is_err() {
            self.running = Some(Running::Child(child));
        }
        stopped.map_err(|source| Error::CannotStop { pid, source })
    }

    /// Whether a lock server answers at this server's address, within 5 s. Never an error.
    pub fn ping(&self) -> bool {
        self.client("ping").ping()
    }

    /// A client of this server with the given name, at the address that it has now. With port 0 that is known
    /// once it was started, and another one when it is started again. All clients of one server share their
    /// connections.
    ///
    /// Of a server with an [`Options::token_file`], it has the first token of the role `lock` or `admin` that the file
    /// had when the server was [bound](Self::bind).
    pub fn client(&self, name: &str) -> Client {
        if let Some(bound) = &self.bound {
            return Client::of(name, bound.transport.clone());
        }
        let transport = Transport::new(&self.client_host(), self.options.port);
        // What is wrong with the file is said by `bind`.
        Client::of(
            name,
            transport.with_token(self.client_token().ok().flatten()),
        )
    }

    /// A token of the file that may lock.
    fn client_token(&self) -> Result<Option<Token>, Error> {
        let Some(path) = &self.options.token_file else {
            return Ok(None);
        };
        Ok(KnownTokens::read(path)?.that_locks().cloned())
    }

    /// Returns the bound address, `0.0.0.0` or `::` included; [`url`](Self::url) returns one to connect to. Of several
    /// the first. `None` before it was [bound](Self::bind).
    pub fn addr(&self) -> Option<SocketAddr> {
        self.addrs().first().copied()
    }

    /// Returns all bound addresses, one for each address of the host. Empty before it was [bound](Self::bind).
    pub fn addrs(&self) -> &[SocketAddr] {
        self.bound.as_ref().map_or(&[], |bound| &bound.addresses)
    }

    /// What [`bind`](Self::bind) found odd about the host and logged, a line each: an address that it left out, or a
    /// name that other machines may know and that is loopback on this one. Most times there is nothing.
    pub fn warnings(&self) -> &[String] {
        self.bound.as_ref().map_or(&[], |bound| &bound.warnings)
    }

    /// How to reach the server from this machine: `http://127.0.0.1:8004`, with no slash at the end. A
    /// [host](Options::host) that is a name stands in it as it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.reachable())
    }

    /// The environment that tells the command, [`Client::from_env`] and whatever else reads it where this server is:
    /// `LOCK_SERVER` with `host:port`, and with an [`Options::token_file`] `LOCK_SERVER_TOKEN_FILE` with its absolute
    /// path. For [`Command::envs`](std::process::Command::envs):
    ///
    /// ```no_run
    /// # use lock_server::{Options, Server};
    /// # let mut server = Server::new(Options::default());
    /// # server.start().unwrap();
    /// std::process::Command::new("program-under-test").envs(server.env()).status().unwrap();
    /// ```
    pub fn env(&self) -> Vec<(&'static str, String)> {
        let path = self.options.token_file.as_ref();
        let path = path.and_then(|path| {
            path::absolute(path)
                .ok()?
                .into_os_string()
                .into_string()
                .ok()
        });
        let server = (crate::client::SERVER_VARIABLE, self.reachable());
        let token = path.map(|path| (TOKEN_FILE_VARIABLE, path));
        [server].into_iter().chain(token).collect()
    }

    /// `host:port`, an IPv6 host in brackets.
    fn reachable(&self) -> String {
        host_and_port(&self.client_host(), self.port())
    }

    /// The port that the server serves on: what was bound, or else what the options say.
    pub fn port(&self) -> u16 {
        self.bound
            .as_ref()
            .map_or(self.options.port, |bound| bound.addresses[0].port())
    }

    /// The port for clients of the Perl original: what was bound, or else what the options say. `None` if
    /// there is none.
    pub fn classic_port(&self) -> Option<u16> {
        let bound = self.bound.as_ref().and_then(|bound| bound.classic);
        bound
            .map(|address| address.port())
            .or(self.options.classic_port)
    }

    /// The host to reach this server by: an address that means "every interface" is reached at home.
    fn client_host(&self) -> String {
        let host = self.options.bare_host();
        match host.parse() {
            Ok(ip) => reachable(ip).to_string(),
            Err(_) => host.into(),
        }
    }

    fn expect_not_running(&self) -> Result<(), Error> {
        match self.running.as_ref().filter(|running| running.is_alive()) {
            Some(running) => Err(Error::AlreadyStarted { pid: running.pid() }),
            None => Ok(()),
        }
    }

    fn take_listeners(&mut self) -> Result<Listeners, Error> {
        self.bound
            .as_mut()
            .and_then(|bound| bound.listeners.take())
            .ok_or_else(|| Error::CannotStart {
                reason: "the port is not bound".into(),
                source: None,
            })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let is_child = matches!(self.running, Some(Running::Child(_)));
        let goes_on = is_child && self.options.outlive_parent;
        if !goes_on && self.running.as_ref().is_some_and(Running::is_ours) {
            // Nobody is left to be told of a failure.
            let _ = self.stop();
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("options", &self.options)
            .field("addresses", &self.addrs())
            .field(
                "classic_address",
                &self.bound.as_ref().and_then(|bound| bound.classic),
            )
            .field("pid", &self.running.as_ref().map(Running::pid))
            .finish()
    }
}
