//! Serving on bound listeners: builds the parts, runs the one loop, and ends them in order.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::access::{Access, Tokens};
use super::classic::ClassicTransport;
use super::handler::Handler;
use super::http::HttpTransport;
use super::limits::Trim;
use super::poller::Poller;
use super::stop::StopSources;
use super::{limits, listen};
use crate::error::Error;
use crate::manager::LockManager;
use crate::options::Options;
use crate::protocol::MaxTimes;
use crate::table::{Limits, Terms};

/// What the server serves on.
pub(crate) struct Listeners {
    pub http: TcpListener,
    pub classic: Option<TcpListener>,
    /// Whether others listen on them, too, and go on when this server ends.
    pub are_lent: bool,
}

/// What a server reports of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ServerState {
    /// It answers questions.
    Serving,
    /// It was asked to stop. LOCKs that wait are about to be broken off.
    Stopping,
}

/// Whose the process is that the server runs in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcessUse {
    /// The server's: its limits are raised, and its memory is given back.
    Own,
    /// The program's, which the server leaves as it is.
    Shared,
}

/// How long the answers being written get before the server ends.
const FINISH_TIMEOUT: Duration = Duration::from_millis(500);

/// Serves on bound listeners until it is asked to stop. Calls `notify` with each of its states.
pub(crate) fn serve(
    listeners: Listeners,
    options: &Options,
    stop: &Arc<StopSources>,
    process_use: ProcessUse,
    notify: &dyn Fn(ServerState),
) -> Result<(), Error> {
    let address = listeners
        .http
        .local_addr()
        .map_err(start_failed("the listener has no address"))?;
    let clients = match process_use {
        ProcessUse::Own => {
            limits::keep_little_memory();
            limits::raise()
        }
        ProcessUse::Shared => limits::left(),
    };
    let clients = clients.map_err(start_failed("too few descriptors"))?;
    let limits = Limits {
        holds: options.max_keys,
        // Some are left for those who unlock.
        waiters: options.max_waiters.min(clients - (clients / 2).min(100)),
    };
    let handler = handler(options, address, limits, stop, process_use)?;
    let mut parts = match Parts::open(listeners, handler.clone(), clients) {
        Ok(parts) => parts,
        Err(error) => {
            handler.manager.stop();
            return Err(error);
        }
    };
    notify(ServerState::Serving);
    log::info!(
        "serving on {address}, up to {clients} clients at the same time, {} of them waiting",
        limits.waiters
    );
    if !address.ip().is_loopback() && options.lets_strangers_lock() {
        log::warn!(
            "{address} can be reached from other machines, and names are not credentials: all that reach it can lock and unlock"
        );
    }
    parts.run(process_use);
    stop.log_reason();
    notify(ServerState::Stopping);
    parts.close();
    log::info!("ended");
    Ok(())
}

/// What serves: both transports, and the epoll that the loop waits with.
struct Parts {
    handler: Arc<Handler>,
    poller: Arc<Poller>,
    http: HttpTransport,
    classic: Option<ClassicTransport>,
}

impl Parts {
    fn open(listeners: Listeners, handler: Arc<Handler>, clients: usize) -> Result<Self, Error> {
        let Listeners {
            http,
            classic,
            are_lent,
        } = listeners;
        let stop = &handler.stop;
        let poller = Poller::new(&http, stop.descriptors(), stop.reload())
            .map_err(start_failed("no descriptor left"))?;
        let http = listen::prepare(&http)
            .and_then(|()| HttpTransport::open(http, are_lent, handler.clone(), poller.clone()))
            .map_err(start_failed("cannot serve"))?;
        let mut parts = Parts {
            handler,
            poller,
            http,
            classic: None,
        };
        let opened = classic.map(|listener| {
            listen::prepare(&listener)?;
            let (handler, poller) = (parts.handler.clone(), parts.poller.clone());
            ClassicTransport::open(listener, are_lent, handler, poller, clients)
        });
        match opened.transpose() {
            Ok(classic) => parts.classic = classic,
            Err(error) => {
                parts.close();
                return Err(start_failed("cannot serve classic clients")(error));
            }
        }
        Ok(parts)
    }

    /// The loop, until the server is asked to end.
    fn run(&mut self, process_use: ProcessUse) {
        let mut trim = Trim::new();
        loop {
            let left = self.http.next_poll();
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
            self.http.poll(happened.arrival);
            // It takes the allocator's locks, one after another: beside a thousand threads that allocate it takes long.
            if process_use == ProcessUse::Own && self.http.is_calm() {
                trim.tick();
            }
        }
    }

    /// Refuses what comes, breaks off what waits, finishes what is being answered, and closes the connections.
    fn close(self) {
        let until = Instant::now() + FINISH_TIMEOUT;
        if let Some(classic) = &self.classic {
            classic.refuse();
        }
        self.http.refuse();
        self.handler.manager.stop();
        self.http.close(until);
        if let Some(classic) = self.classic {
            classic.close(until);
        }
    }
}

/// What answers the questions of both transports.
fn handler(
    options: &Options,
    address: SocketAddr,
    limits: Limits,
    stop: &Arc<StopSources>,
    process_use: ProcessUse,
) -> Result<Arc<Handler>, Error> {
    let terms = Terms {
        lock_timeout: options.lock_timeout,
        lock_attempt_timeout: options.lock_attempt_timeout,
    };
    // Before there is a thread that an error would leave behind.
    let tokens = options
        .token_file
        .as_deref()
        .map(Tokens::open)
        .transpose()?;
    let manager = LockManager::start(terms, limits).map_err(start_failed("no thread left"))?;
    Ok(Arc::new(Handler {
        manager,
        access: Access {
            allow_shutdown: options.allow_shutdown,
            host: options.bare_host().into(),
            allowed_hosts: options.allowed_hosts.clone(),
            loopback: address.ip().is_loopback(),
            tokens,
        },
        caps: MaxTimes {
            lock_timeout: options.longest_lock_timeout(),
            lock_attempt_timeout: options.longest_lock_attempt_timeout(),
        },
        stop: stop.clone(),
        server: name_of_this_run(),
        process: (process_use == ProcessUse::Own).then(process::id),
    }))
}

/// Made of the start's time, so that it tells a run of a server from the one before it, and of chance, so that it tells
/// two that are started at once.
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
