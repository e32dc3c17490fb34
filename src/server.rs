//! The server as a program uses it: bind, start, run, stop, ping, client.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::admission::Admission;
use crate::capacity;
use crate::child::{self, Birth, Child, StopSignals};
use crate::classic::ClassicDoor;
use crate::client::{Client, ClientOptions};
use crate::error::Error;
use crate::http::FrontDoor;
use crate::listener;
use crate::manager::LockManager;
use crate::options::Options;
use crate::protocol::Caps;
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
    classic: Option<SocketAddr>,
    /// `None` once the server that serves on them has them.
    listeners: Option<Listeners>,
}

/// What the server serves on.
struct Listeners {
    http: TcpListener,
    classic: Option<TcpListener>,
}

impl Listeners {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(Listeners {
            http: self.http.try_clone()?,
            classic: self
                .classic
                .as_ref()
                .map(TcpListener::try_clone)
                .transpose()?,
        })
    }

    fn descriptors(&self) -> Vec<RawFd> {
        let all = [&self.http].into_iter().chain(&self.classic);
        all.map(TcpListener::as_raw_fd).collect()
    }
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

    /// Takes its ports, so that [`port`](Self::port) and [`classic_port`](Self::classic_port) are known;
    /// [`start`](Self::start) and [`run`](Self::run) do it themselves if need be. The address for HTTP; of a
    /// server that was started, that of then. A busy port is tried again as
    /// [`Options::reconnect_attempts`] and [`Options::time_between_attempts`] say.
    ///
    /// # Errors
    /// [`Error::CannotListen`], [`Error::InvalidOption`].
    pub fn bind(&mut self) -> Result<SocketAddr, Error> {
        let started = self.child.as_ref().is_some_and(Child::is_alive);
        if let Some(bound) = &self.bound
            && (started || bound.listeners.is_some())
        {
            return Ok(bound.address);
        }
        self.options.validate()?;
        let (http, address) = self.listen("port", self.options.port)?;
        let classic = self.options.classic_port;
        let classic = classic.map(|port| self.listen("classic_port", port));
        let (classic, classic_address) = classic.transpose()?.unzip();
        self.bound = Some(Bound {
            address,
            classic: classic_address,
            listeners: Some(Listeners { http, classic }),
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
        // The parent's copies are dropped at the end, or the ports would outlive the child.
        let listeners = self.take_listeners()?;
        let ping = Client::new("ping", &address.ip().to_string(), address.port());
        let serve = |birth: &Birth| {
            let served = StopSignals::install()
                .and_then(|signals| Ok((listeners.try_clone()?, signals)))
                .map_err(start_failed("cannot share the listeners"))
                .and_then(|(listeners, signals)| {
                    serve(listeners, &self.options, &signals, Some(birth))
                });
            i32::from(served.is_err())
        };
        let child = Child::start(
            &listeners.descriptors(),
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
        let listeners = self.take_listeners()?;
        serve(listeners, &self.options, &signals, None)
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

    /// A client of this server with the given name, at the address that it has now. With port 0 that is known
    /// once it was started, and another one when it is started again.
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
        match self.options.host.parse() {
            Ok(IpAddr::V4(ip)) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
            Ok(IpAddr::V6(ip)) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
            _ => self.options.host.clone(),
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

    fn listen(&self, option: &'static str, port: u16) -> Result<(TcpListener, SocketAddr), Error> {
        let Options {
            host,
            reconnect_attempts,
            time_between_attempts,
            ..
        } = &self.options;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let bound = (host.as_str(), port)
                .to_socket_addrs()
                .and_then(|addresses| {
                    let addresses: Vec<SocketAddr> = addresses.collect();
                    let listener = TcpListener::bind(&*addresses)?;
                    let address = listener.local_addr()?;
                    Ok((listener, address))
                });
            match bound {
                Ok(bound) => return Ok(bound),
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse
                        && attempts <= *reconnect_attempts =>
                {
                    log::info!("{host}:{port} is busy; trying again in {time_between_attempts:?}");
                    thread::sleep(*time_between_attempts);
                }
                Err(source) => {
                    return Err(Error::CannotListen {
                        option,
                        address: format!("{host}:{port}"),
                        attempts,
                        source,
                    });
                }
            }
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
            .field(
                "classic_address",
                &self.bound.as_ref().and_then(|bound| bound.classic),
            )
            .field("pid", &self.child.as_ref().map(Child::pid))
            .finish()
    }
}

/// How often memory is given back.
const TRIM_EVERY: Duration = Duration::from_secs(5);

/// How long the answers being written get before the server ends.
const FINISH: Duration = Duration::from_millis(500);

/// Serves on bound listeners until it is told to stop.
fn serve(
    listeners: Listeners,
    options: &Options,
    signals: &StopSignals,
    birth: Option<&Birth>,
) -> Result<(), Error> {
    let Listeners { http, classic } = listeners;
    let address = http
        .local_addr()
        .map_err(start_failed("the listener has no address"))?;
    let terms = Terms {
        lock_timeout: options.lock_timeout,
        lock_attempt_timeout: options.lock_attempt_timeout,
    };
    let caps = Caps {
        lock_timeout: options.longest_lock_timeout(),
        lock_attempt_timeout: options.longest_lock_attempt_timeout(),
    };
    let admission = Admission {
        allow_shutdown: options.allow_shutdown,
        host: options.host.clone(),
        loopback: address.ip().is_loopback(),
    };
    let clients = capacity::raise().map_err(start_failed("cannot set the descriptor limit"))?;
    let clients = usize::try_from(clients).unwrap_or(usize::MAX);
    capacity::spread_sleepers();
    let limits = Limits {
        keys: options.max_keys,
        // Some are left for those who unlock.
        waiters: options.max_waiters.min(clients - (clients / 2).min(100)),
    };
    let shutdown = Shutdown::new().map_err(start_failed("no descriptor left"))?;
    let (mut door, classic) = signals.kept_to_this_thread(|| {
        let manager = LockManager::start(terms, limits).map_err(start_failed("no thread left"))?;
        let service = Arc::new(Service {
            manager,
            admission,
            caps,
            shutdown,
        });
        let classic = classic.map(|listener| {
            listener::prepare(&listener)?;
            ClassicDoor::open(listener, service.clone(), clients)
        });
        listener::prepare(&http)
            .and_then(|()| Ok((FrontDoor::open(http, service)?, classic.transpose()?)))
            .map_err(start_failed("cannot serve"))
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
    let until = Instant::now() + FINISH;
    if let Some(classic) = &classic {
        classic.refuse();
    }
    door.close(until);
    if let Some(classic) = classic {
        classic.close(until);
    }
    log::info!("ended");
    Ok(())
}

fn start_failed(reason: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::CannotStart {
        reason: reason.into(),
        source: Some(source),
    }
}
