//! The server as a program uses it: bind, start, run, stop, ping, client.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::admission::Admission;
use crate::capacity;
use crate::child::{self, Birth, Child, StopSignals};
use crate::client::{Client, ClientOptions};
use crate::error::Error;
use crate::http::FrontDoor;
use crate::manager::LockManager;
use crate::options::Options;
use crate::service::Service;
use crate::shutdown::Shutdown;
use crate::table::{Limits, Terms};

/// A lock server: in a child process with [`start`](Server::start), or in this one with
/// [`run`](Server::run).
///
/// A started server ends when it is [stopped](Server::stop), when this handle is dropped, and when
/// the process that started it ends, however it ends; with [`Options::outlive_parent`] only when it is
/// stopped.
pub struct Server {
    options: Options,
    bound: Option<Bound>,
    child: Option<Child>,
}

struct Bound {
    address: SocketAddr,
    /// `None` once the server that serves on it has it.
    listener: Option<TcpListener>,
}

impl Server {
    /// A server with these options. Nothing happens until it is started or run.
    pub fn new(options: Options) -> Self {
        Server {
            options,
            bound: None,
            child: None,
        }
    }

    /// Takes the port, so that [`port`](Self::port) is known; [`start`](Self::start) and
    /// [`run`](Self::run) do it themselves if need be. Of a server that was started, its address. A busy port is tried again as
    /// [`Options::reconnect_attempts`] and [`Options::time_between_attempts`] say.
    ///
    /// # Errors
    /// [`Error::CannotListen`], [`Error::InvalidOption`].
    pub fn bind(&mut self) -> Result<SocketAddr, Error> {
        let started = self.child.as_ref().is_some_and(Child::is_alive);
        if let Some(Bound { address, listener }) = &self.bound
            && (started || listener.is_some())
        {
            return Ok(*address);
        }
        self.options.validate()?;
        let listener = self.listen()?;
        let address = listener
            .local_addr()
            .map_err(|source| self.cannot_listen(1, source))?;
        self.bound = Some(Bound {
            address,
            listener: Some(listener),
        });
        Ok(address)
    }

    /// Starts the server in a child process, and returns that process' number once it answers.
    ///
    /// The child keeps the standard streams and writes nothing to them. Safe to call in a program
    /// with other threads: a child that such a thread's locks would block is replaced.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind); [`Error::AlreadyStarted`]; [`Error::CannotStart`].
    pub fn start(&mut self) -> Result<u32, Error> {
        if let Some(child) = self.child.as_ref().filter(|child| child.is_alive()) {
            return Err(Error::AlreadyStarted { pid: child.pid() });
        }
        let address = self.bind()?;
        // The parent's copy is dropped at the end, or the port would outlive the child.
        let listener = self.take_listener()?;
        let ping = Client::new("ping", &address.ip().to_string(), address.port());
        let serve = |birth: &Birth| {
            let served = StopSignals::install()
                .and_then(|signals| Ok((listener.try_clone()?, signals)))
                .map_err(start_failed("cannot share the listener"))
                .and_then(|(listener, signals)| {
                    serve(listener, &self.options, &signals, Some(birth))
                });
            i32::from(served.is_err())
        };
        let child = Child::start(
            listener.as_raw_fd(),
            self.options.outlive_parent,
            serve,
            || ping.ping(),
        )?;
        let pid = child.pid();
        self.child = Some(child);
        Ok(pid)
    }

    /// Serves in this process until SIGTERM, SIGINT or, if allowed, SHUTDOWN. Both signals are the
    /// server's while it runs. It raises this process's soft limit of descriptors to the hard one, or as
    /// far as the machine has threads for the clients, and leaves it there.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind); [`Error::AlreadyStarted`]; [`Error::CannotStart`] where the system refuses threads or
    /// descriptors.
    pub fn run(&mut self) -> Result<(), Error> {
        if let Some(child) = self.child.as_ref().filter(|child| child.is_alive()) {
            return Err(Error::AlreadyStarted { pid: child.pid() });
        }
        // First of all, so that a signal that comes early ends it as one that comes late.
        let signals = StopSignals::install().map_err(start_failed("cannot handle signals"))?;
        self.bind()?;
        let listener = self.take_listener()?;
        serve(listener, &self.options, &signals, None)
    }

    /// Stops the started server: LOCKs that wait are broken off, the process is reaped, the port is
    /// free on return. A server that has not ended after 3 s is killed.
    ///
    /// `false` if none was started or it had ended by itself.
    ///
    /// # Errors
    /// [`Error::CannotStop`] if the system does not let it be ended.
    pub fn stop(&mut self) -> Result<bool, Error> {
        let Some(child) = &self.child else {
            return Ok(false);
        };
        let pid = child.pid();
        let stopped = child
            .stop()
            .map_err(|source| Error::CannotStop { pid, source })?;
        self.child = None;
        Ok(stopped)
    }

    /// Whether a lock server answers at this server's address, within 5 s. Never an error.
    pub fn ping(&self) -> bool {
        self.client("ping").ping()
    }

    /// A client of this server with the given name.
    pub fn client(&self, name: &str) -> Client {
        Client::with_options(
            name,
            &self.client_host(),
            self.port(),
            ClientOptions::default(),
        )
    }

    /// The port that the server serves on: what was bound, or else what the options say.
    pub fn port(&self) -> u16 {
        self.bound
            .as_ref()
            .map_or(self.options.port, |bound| bound.address.port())
    }

    /// The host to reach this server by: an address that means "every interface" is reached at home.
    fn client_host(&self) -> String {
        match self.options.host.parse() {
            Ok(IpAddr::V4(ip)) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
            Ok(IpAddr::V6(ip)) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
            _ => self.options.host.clone(),
        }
    }

    fn take_listener(&mut self) -> Result<TcpListener, Error> {
        self.bound
            .as_mut()
            .and_then(|bound| bound.listener.take())
            .ok_or_else(|| Error::CannotStart {
                reason: "the port is not bound".into(),
                source: None,
            })
    }

    fn listen(&self) -> Result<TcpListener, Error> {
        let Options {
            host,
            port,
            reconnect_attempts,
            time_between_attempts,
            ..
        } = &self.options;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let bound = (host.as_str(), *port)
                .to_socket_addrs()
                .and_then(|addresses| {
                    let addresses: Vec<SocketAddr> = addresses.collect();
                    TcpListener::bind(&*addresses)
                });
            match bound {
                Ok(listener) => return Ok(listener),
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse
                        && attempts <= *reconnect_attempts =>
                {
                    log::info!("{host}:{port} is busy; trying again in {time_between_attempts:?}");
                    thread::sleep(*time_between_attempts);
                }
                Err(source) => return Err(self.cannot_listen(attempts, source)),
            }
        }
    }

    fn cannot_listen(&self, attempts: u32, source: io::Error) -> Error {
        let address = format!("{}:{}", self.options.host, self.options.port);
        Error::CannotListen {
            address,
            attempts,
            source,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.options.outlive_parent {
            // Nobody is left to be told of a failure.
            let _ = self.stop();
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("options", &self.options)
            .field("address", &self.bound.as_ref().map(|bound| bound.address))
            .field("pid", &self.child.as_ref().map(Child::pid))
            .finish()
    }
}

/// How often memory is given back.
const TRIM_EVERY: Duration = Duration::from_secs(5);

/// Serves on a bound listener until it is told to stop.
fn serve(
    listener: TcpListener,
    options: &Options,
    signals: &StopSignals,
    birth: Option<&Birth>,
) -> Result<(), Error> {
    let address = listener
        .local_addr()
        .map_err(start_failed("the listener has no address"))?;
    let terms = Terms {
        lock_timeout: options.lock_timeout,
        lock_attempt_timeout: options.lock_attempt_timeout,
    };
    let admission = Admission {
        allow_shutdown: options.allow_shutdown,
        host: options.host.clone(),
        loopback: address.ip().is_loopback(),
    };
    let clients = capacity::raise().map_err(start_failed("cannot set the descriptor limit"))?;
    // Some are left for those who unlock.
    let waiters = usize::try_from(clients - (clients / 2).min(100)).unwrap_or(usize::MAX);
    let limits = Limits {
        keys: options.max_keys,
        waiters: options.max_waiters.min(waiters),
    };
    let shutdown = Shutdown::new().map_err(start_failed("no descriptor left"))?;
    let mut door = signals.kept_to_this_thread(|| {
        let manager = LockManager::start(terms, limits).map_err(start_failed("no thread left"))?;
        let service = Arc::new(Service {
            manager,
            admission,
            shutdown,
        });
        FrontDoor::open(listener, service).map_err(start_failed("cannot serve"))
    })?;
    log::info!(
        "serving on {address}, up to {clients} clients at the same time, {} of them waiting",
        limits.waiters
    );
    if !address.ip().is_loopback() {
        log::warn!(
            "{address} can be reached from other machines, and names are not credentials: whoever reaches it can lock and unlock"
        );
    }
    if let Some(birth) = birth {
        birth.serving();
    }
    let mut next_trim = Instant::now() + TRIM_EVERY;
    loop {
        if door.tend() {
            break;
        }
        if Instant::now() >= next_trim {
            capacity::give_back_memory();
            next_trim = Instant::now() + TRIM_EVERY;
        }
        if signals.arrived() {
            log::info!("ending: a signal asked for it");
            break;
        }
        if birth
            .and_then(|birth| birth.parent)
            .is_some_and(child::has_ended_parent)
        {
            break;
        }
    }
    door.close();
    log::info!("ended");
    Ok(())
}

fn start_failed(reason: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::CannotStart {
        reason: reason.into(),
        source: Some(source),
    }
}
