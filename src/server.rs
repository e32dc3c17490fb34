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
/// A started server ends when it is [stopped](Server::stop), when this handle is dropped, and when the process that
/// started it ends, in whatever way. With [`Options::outlive_parent`] it ends only when it is stopped. A spawned server
/// ends when it is stopped and when this handle is dropped.
///
/// After a `fork`, the server belongs to the process that started it: dropping the other process's copy of the handle
/// does not stop it.
#[must_use = "a server ends when its handle is dropped: keep it in a variable with a name"]
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
    /// `None` once the running server has taken them.
    listeners: Option<Listeners>,
    /// Shared by all clients of this server.
    transport: Transport,
}

impl Server {
    /// Makes a server with these options. It does nothing until it is started or run.
    pub fn new(options: Options) -> Self {
        Server {
            options,
            bound: None,
            running: None,
        }
    }

    /// Binds the ports, so that [`port`](Self::port) and [`classic_port`](Self::classic_port) are known.
    /// [`start`](Self::start), [`spawn`](Self::spawn) and [`run`](Self::run) do it if it was not done. Returns the HTTP
    /// address; while the server runs, the one that it runs on. A busy port is tried again as
    /// [`Options::reconnect_attempts`] and [`Options::time_between_attempts`] say.
    ///
    /// A host name may have several addresses, as `localhost` has 127.0.0.1 and ::1. The server listens on each, up to
    /// 16, with one port for all; this returns the first one, and [`addrs`](Self::addrs) returns all. An address that
    /// this machine can't listen on is left out with a [warning](Self::warnings), if another one works.
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

    /// Uses listeners that another program bound, for example a service manager with socket activation, instead of
    /// binding ports. `classic` is for clients of the Perl original. Returns the HTTP address. [`Options::host`],
    /// [`Options::port`] and [`Options::classic_port`] become those of the listeners.
    ///
    /// Other processes may have copies of the listeners and continue to listen when the server ends. So a server of
    /// [`run`](Self::run) or [`spawn`](Self::spawn) does not shut them down, and later connections wait for the next
    /// server on them. A server of [`start`](Self::start) shuts them down.
    ///
    /// # Errors
    /// [`Error::AlreadyStarted`]; [`Error::InvalidOption`]; [`Error::CannotStart`] if the system knows no address of a
    /// listener.
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

    /// Starts the server in a child process. Returns its process ID once the server answers.
    ///
    /// The child executes this program again, and becomes a server before `main` begins. So it does not depend on the
    /// other threads of this program, nor on the locks that they hold. Its standard input and output are `/dev/null`;
    /// its standard error, too, unless it is the file of [`Options::log_to`]. It leaves the process group, so that
    /// Ctrl-C on a terminal reaches only this program, which can then release its locks and stop the server. Starting
    /// takes some milliseconds.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind): [`Error::CannotListen`] if another server, perhaps of a test that runs at the same
    /// time, has the [`port`](Options::port), which 0 prevents. [`Error::AlreadyStarted`]; [`Error::CannotStart`], with
    /// the child's message, for example if the system refuses it descriptors, if `/proc` is missing, if no connection to
    /// it can be made, or if this crate is linked not into the program but into a library that it loads.
    pub fn start(&mut self) -> Result<u32, Error> {
        self.expect_not_running()?;
        self.bind()?;
        let ping = self.client("ping");
        // Dropped at the end: with the parent's copies the ports would outlive the child.
        let listeners = self.take_listeners()?;
        let child = Child::start(&self.options, &listeners, || ping.try_ping())?;
        let pid = child.pid();
        self.running = Some(Running::Child(child));
        Ok(pid)
    }

    /// Serves in threads of this process until it is [stopped](Self::stop) or this handle is dropped. Returns the HTTP
    /// address once it serves. Starts no process and handles no signal; any number of servers may be spawned at the
    /// same time.
    ///
    /// The number of its clients is limited by the descriptors that this process may still open: two for each client
    /// and 40 for the server. It does not raise that limit. It logs through this program's [`log`] and ignores
    /// [`Options::outlive_parent`] and [`Options::log_to`]. Stopping the program, for example in a debugger, stops its
    /// server, too.
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
                    // The receiver waits only for the first state, and may have gone.
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

    /// Serves in this process until SIGTERM, SIGINT or, if allowed, SHUTDOWN. The server handles both signals while it
    /// runs; if several servers run in one process, a signal ends them all. When the last one ends, the previous
    /// handlers are restored. Raises this process's soft limit of descriptors to the hard one, or to what the machine
    /// has threads for, and leaves it there.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind); [`Error::AlreadyStarted`]; [`Error::CannotStart`] if the system refuses threads
    /// or descriptors.
    pub fn run(&mut self) -> Result<(), Error> {
        self.run_with(|_| ())
    }

    /// Like [`run`](Self::run), and calls `notify` in this thread when the server begins to serve and when it begins to
    /// end, for a program that reports both to its service manager. While `notify` runs, LOCKs whose client has gone
    /// keep their place.
    ///
    /// # Errors
    /// Those of [`run`](Self::run). `notify` is not called if the server does not begin to serve.
    pub fn run_with(&mut self, notify: impl Fn(ServerState)) -> Result<(), Error> {
        self.expect_not_running()?;
        // First, so that an early signal ends the server like a late one.
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

    /// Stops the started or spawned server: ends waiting LOCKs, and frees the port before it returns. Reaps a child
    /// process, and kills it if it has not ended after 3 s. A spawned server lets answers be written for half a second;
    /// idle threads of ended connections stay for up to 5 s more.
    ///
    /// Returns `false` if none was started or it had already ended.
    ///
    /// # Errors
    /// [`Error::CannotStop`] if the system does not allow ending it, or if this process is a fork of the one that
    /// started it.
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

    /// Returns whether a lock server answers at this server's address within 5 s. Before a start and after a stop that
    /// may be another server. Never fails.
    pub fn ping(&self) -> bool {
        self.client("ping").ping()
    }

    /// Returns a client of this server with the given name. Start the server first, then make its clients: a client
    /// keeps the address that is known when it is made, and with port 0 that changes with each start. Before the first
    /// one, or [`bind`](Self::bind), each question to port 0 returns [`Error::InvalidOption`]; after a stop,
    /// [`Error::Unreachable`], unless another server has the port by then. All clients of one server share their
    /// connections.
    ///
    /// With an [`Options::token_file`], the client uses the first token with the role `lock` or `admin` that the file
    /// had when the server was [bound](Self::bind).
    pub fn client(&self, name: &str) -> Client {
        if let Some(bound) = &self.bound {
            return Client::of(name, bound.transport.clone());
        }
        let transport = Transport::new(&self.client_host(), self.options.port);
        // `bind` reports what is wrong with the file.
        Client::of(
            name,
            transport.with_token(self.client_token().ok().flatten()),
        )
    }

    /// The first token of the file that may lock. `None` without a file.
    fn client_token(&self) -> Result<Option<Token>, Error> {
        let Some(path) = &self.options.token_file else {
            return Ok(None);
        };
        Ok(KnownTokens::read(path)?.that_locks().cloned())
    }

    /// Returns the bound address, which may be `0.0.0.0` or `::`; [`url`](Self::url) returns one to connect to. The
    /// first one, if there are several. `None` before the server was [bound](Self::bind).
    pub fn addr(&self) -> Option<SocketAddr> {
        self.addrs().first().copied()
    }

    /// Returns all bound addresses, one for each address of the host. Empty before the server was [bound](Self::bind).
    pub fn addrs(&self) -> &[SocketAddr] {
        self.bound.as_ref().map_or(&[], |bound| &bound.addresses)
    }

    /// Returns the warnings that [`bind`](Self::bind) logged, one line each: about an address that it left out, or
    /// about a host name that is loopback on this machine and may be known to others. Usually empty.
    pub fn warnings(&self) -> &[String] {
        self.bound.as_ref().map_or(&[], |bound| &bound.warnings)
    }

    /// Returns the URL of the server on this machine, `http://127.0.0.1:8004`, without a slash at the end; with the
    /// [`port`](Self::port) that is known by now. A [host](Options::host) name is kept as it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.reachable())
    }

    /// Returns the environment variables by which the command, [`Client::from_env`] and other programs find this
    /// server once it was started: `LOCK_SERVER` with `host:port`, and with an [`Options::token_file`] also
    /// `LOCK_SERVER_TOKEN_FILE` with its absolute path. For [`Command::envs`](std::process::Command::envs):
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

    /// Returns the HTTP port: the one that was bound last, or before that the one of the options, perhaps 0.
    pub fn port(&self) -> u16 {
        self.bound
            .as_ref()
            .map_or(self.options.port, |bound| bound.addresses[0].port())
    }

    /// Returns the port for clients of the Perl original: the bound one, or before that the one of the options. `None`
    /// without a classic port.
    pub fn classic_port(&self) -> Option<u16> {
        let bound = self.bound.as_ref().and_then(|bound| bound.classic);
        bound
            .map(|address| address.port())
            .or(self.options.classic_port)
    }

    /// The host under which clients reach this server: loopback, if it listens on every interface.
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
            // A failure cannot be returned here.
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
