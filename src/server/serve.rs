//! Serving on bound listeners: builds the parts, runs the one loop, and ends them in order.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::access::{Access, Tokens};
use super::classic::ClassicTransport;
use super::durable::{StoreNews, open_store};
use super::handler::Handler;
use super::http::{EventStreams, HttpTransport};
use super::limits::Trim;
use super::poller::Poller;
use super::status::ServerStatus;
use super::stop::StopSources;
use super::{advertised, limits, listen};
use crate::error::Error;
use crate::manager::LockManager;
use crate::options::{Options, StoreAddress};
use crate::protocol::{MaxTimes, ServerNames};
use crate::table::{Limits, Terms};

/// The listeners that the server serves on.
pub(crate) struct Listeners {
    /// One for each address of the host, all with one port. Never empty.
    pub http: Vec<TcpListener>,
    /// Listeners for clients of the Perl original. Empty without a classic port.
    pub classic: Vec<TcpListener>,
    /// Whether other processes listen on them, too, and continue when this server ends.
    pub are_lent: bool,
}

/// The states that a server reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ServerState {
    /// It answers questions.
    Serving,
    /// It was asked to stop. Waiting LOCKs are about to be refused.
    Stopping,
}

/// Who owns the process that the server runs in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcessUse {
    /// The server: it raises the process's limits and gives its memory back.
    Own,
    /// A program: the server leaves its process as it is.
    Shared,
}

/// How long answers that are being written may take when the server ends.
const FINISH_TIMEOUT: Duration = Duration::from_millis(500);

/// Serves on bound listeners until it is asked to stop. Calls `notify` with each of its states.
pub(crate) fn serve(
    listeners: Listeners,
    options: &Options,
    stop: &Arc<StopSources>,
    process_use: ProcessUse,
    notify: &dyn Fn(ServerState),
) -> Result<(), Error> {
    let addresses: io::Result<Vec<_>> =
        listeners.http.iter().map(TcpListener::local_addr).collect();
    let addresses = addresses.map_err(start_failed("the listener has no address"))?;
    let clients = room(process_use)?;
    let limits = Limits {
        holds: options.max_keys,
        // Some are reserved for clients that unlock.
        waiters: options.max_waiters.min(clients - (clients / 2).min(100)),
    };
    let news = StoreNews::default();
    let handler = handler(options, &addresses, limits, stop, process_use, &news)?;
    let recovered = handler.manager.size().holds;
    let mut parts = match Parts::open(listeners, handler.clone(), clients) {
        Ok(parts) => parts,
        Err(error) => {
            handler.manager.stop();
            handler.manager.end_store(Instant::now() + FINISH_TIMEOUT);
            return Err(error);
        }
    };
    notify(ServerState::Serving);
    log::info!(
        "serving on {}, up to {clients} clients at the same time, {} of them waiting",
        listen::and(&addresses),
        limits.waiters
    );
    if let Some(StoreAddress::File(path)) = &options.store {
        let path = path.display();
        log::info!("{recovered} holds of an earlier run were in file:{path}");
    }
    warn_of_strangers(addresses, options);
    if let Some(address) = news.address.get() {
        advertised::check(address.clone(), handler.names.server.clone());
    }
    parts.run(process_use);
    stop.log_reason();
    notify(ServerState::Stopping);
    parts.close();
    handler.manager.end_store(Instant::now() + FINISH_TIMEOUT);
    if let Some(reason) = news.lost.get() {
        let reason = String::clone(reason);
        return Err(Error::StoreFailed { reason });
    }
    log::info!("ended");
    Ok(())
}

/// How many clients there is room for.
fn room(process_use: ProcessUse) -> Result<usize, Error> {
    limits::expect_proc().map_err(start_failed(
        "/proc is not there, where it sees which clients have gone",
    ))?;
    let clients = match process_use {
        ProcessUse::Own => {
            limits::keep_little_memory();
            limits::raise()
        }
        ProcessUse::Shared => limits::left(),
    };
    clients.map_err(start_failed("too few descriptors"))
}

/// The serving parts: both transports, one for each listener, and the epoll that the loop waits with.
struct Parts {
    handler: Arc<Handler>,
    poller: Arc<Poller>,
    events: Arc<EventStreams>,
    http: Vec<HttpTransport>,
    classic: Vec<ClassicTransport>,
}

impl Parts {
    fn open(listeners: Listeners, handler: Arc<Handler>, clients: usize) -> Result<Self, Error> {
        let stop = &handler.stop;
        let poller = Poller::new(&listeners.http, stop.descriptors(), stop.reload())
            .map_err(start_failed("no descriptor left"))?;
        let mut parts = Parts {
            events: EventStreams::new(handler.clone(), clients),
            handler,
            poller,
            http: Vec::new(),
            classic: Vec::new(),
        };
        match parts.serve_on(listeners, clients) {
            Ok(()) => Ok(parts),
            Err(error) => {
                parts.close();
                Err(error)
            }
        }
    }

    fn serve_on(&mut self, listeners: Listeners, clients: usize) -> Result<(), Error> {
        let Listeners {
            http,
            classic,
            are_lent,
        } = listeners;
        let parts = || (self.handler.clone(), self.poller.clone());
        for listener in http {
            let (handler, poller) = parts();
            let events = self.events.clone();
            let http = listen::prepare(&listener)
                .and_then(|()| HttpTransport::open(listener, are_lent, handler, poller, events));
            self.http.push(http.map_err(start_failed("cannot serve"))?);
        }
        for listener in classic {
            let (handler, poller) = parts();
            let classic = listen::prepare(&listener).and_then(|()| {
                ClassicTransport::open(listener, are_lent, handler, poller, clients)
            });
            let classic = classic.map_err(start_failed("cannot serve classic clients"))?;
            self.classic.push(classic);
        }
        let http = self.http.iter().map(HttpTransport::connection_count);
        let classic = self.classic.iter().map(ClassicTransport::connection_count);
        let counts = http.chain(classic).collect();
        self.handler.status.count_connections(counts);
        Ok(())
    }

    /// The loop. Returns when the server is asked to end.
    fn run(&mut self, process_use: ProcessUse) {
        let mut trim = Trim::default();
        loop {
            let polls = self.http.iter().map(HttpTransport::next_poll);
            let left = polls.min().expect("there is a listener");
            let happened = self
                .poller
                .wait(left.saturating_duration_since(Instant::now()));
            if happened.stop {
                return;
            }
            if let Some(tokens) = self
                .handler
                .access
                .tokens
                .as_ref()
                .filter(|_| happened.reload)
            {
                tokens.reload();
            }
            for waiter in &happened.hang_ups {
                self.handler.hang_up(waiter);
            }
            for http in &mut self.http {
                http.poll(happened.arrival);
            }
            self.handler.status.tick();
            // Trimming takes the allocator's locks, one after another, which is slow while a thousand threads allocate.
            if process_use == ProcessUse::Own && self.http.iter().all(HttpTransport::is_calm) {
                trim.tick();
            }
        }
    }

    /// Refuses new connections, ends waits, lets answers be written, and closes the connections.
    fn close(self) {
        let until = Instant::now() + FINISH_TIMEOUT;
        self.classic.iter().for_each(ClassicTransport::refuse);
        self.http.iter().for_each(HttpTransport::refuse);
        self.handler.manager.stop();
        self.events.end();
        for http in self.http {
            http.close(until);
        }
        for classic in self.classic {
            classic.close(until);
        }
    }
}

/// Warns in the log if clients on other machines can lock without a credential.
fn warn_of_strangers(mut addresses: Vec<SocketAddr>, options: &Options) {
    addresses.retain(|address| !address.ip().is_loopback());
    if !addresses.is_empty() && options.lets_strangers_lock() {
        log::warn!(
            "{} can be reached from other machines, and names are not credentials: all that reach it can lock and unlock",
            listen::and(&addresses)
        );
    }
}

/// Makes the handler of all transports.
fn handler(
    options: &Options,
    addresses: &[SocketAddr],
    limits: Limits,
    stop: &Arc<StopSources>,
    process_use: ProcessUse,
    news: &StoreNews,
) -> Result<Arc<Handler>, Error> {
    let terms = Terms {
        lock_timeout: options.lock_timeout,
        lock_attempt_timeout: options.lock_attempt_timeout,
    };
    // Opened before a thread is started, which an error would leave behind.
    let tokens = options
        .token_file
        .as_deref()
        .map(Tokens::open)
        .transpose()?;
    let store = open_store(options, addresses, stop, news)?;
    let manager =
        LockManager::start(terms, limits, store).map_err(start_failed("no thread left"))?;
    let server = name_of_this_run();
    let names = ServerNames {
        server: server.clone(),
        store: news.id.clone(),
    };
    let store_kind = options.store.as_ref().map(|store| match store {
        StoreAddress::File(_) => "file",
        StoreAddress::Etcd(_) => "etcd",
    });
    Ok(Arc::new(Handler {
        status: ServerStatus::new(
            manager.clone(),
            server.clone(),
            limits,
            store_kind,
            process_use == ProcessUse::Own,
        ),
        manager,
        access: Access {
            allow_shutdown: options.allow_shutdown,
            allow_break: options.allow_break,
            host: options.bare_host().into(),
            allowed_hosts: options.allowed_hosts.clone(),
            loopback: addresses.iter().all(|address| address.ip().is_loopback()),
            tokens,
        },
        caps: MaxTimes {
            lock_timeout: options.longest_lock_timeout(),
            lock_attempt_timeout: options.longest_lock_attempt_timeout(),
        },
        stop: stop.clone(),
        names,
        process: (process_use == ProcessUse::Own).then(process::id),
    }))
}

/// A name with two parts: the start's time, which differs from earlier runs, and a random number, which differs between
/// servers that start at the same time.
fn name_of_this_run() -> Arc<str> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let start = since_1970.unwrap_or_default().as_micros();
    let chance = RandomState::new().build_hasher().finish() as u32;
    format!("{start:x}-{chance:08x}").into()
}

pub(crate) fn start_failed(reason: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::CannotStart {
        reason: reason.into(),
        source: Some(source),
    }
}
