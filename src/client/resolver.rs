//! Looks up a server's host for ureq: an address at once, a name once in a while.
//!
//! ureq's own resolver starts a thread for each question that has a time-out, even if the host is an address or the
//! connection is open already. It panics if no thread can be started.
//!
//! An address that was found is kept, since the server can be reached even if its name can't be looked up for a while.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// How long the addresses of a name are cached.
const KNOWN_FOR: Duration = Duration::from_secs(30);

/// How long a question waits at most for a look-up if it has an address from an earlier one.
const MOST_TO_LOOK_UP_AGAIN: Duration = Duration::from_millis(500);

/// How many addresses of a name are tried: as many as ureq takes.
const MOST_ADDRESSES: usize = 16;

/// The resolver of one server's clients.
#[derive(Debug)]
pub(super) struct CachingResolver {
    host: String,
    port: u16,
    known: Arc<KnownAddresses>,
}

/// The result of the last look-up of the name.
#[derive(Debug, Default)]
pub(super) struct KnownAddresses(Mutex<LookedUp>);

#[derive(Debug, Default)]
struct LookedUp {
    /// Empty before the first look-up that found any.
    addresses: Vec<SocketAddr>,
    /// When they were looked up. `None` if they are to be looked up again before their next use.
    since: Option<Instant>,
}

impl KnownAddresses {
    /// Asks for a new look-up at the next use, because no server was reached at these addresses.
    pub fn doubt(&self) {
        self.lock().since = None;
    }

    fn lock(&self) -> MutexGuard<'_, LookedUp> {
        // The value is set in one step, so a panic under the lock leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name has no address, or could not be looked up.
#[derive(Debug)]
pub(super) struct Unresolved(io::Error);

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Unresolved {}

impl CachingResolver {
    /// `host` without brackets.
    pub fn new(host: &str, port: u16, known: Arc<KnownAddresses>) -> Self {
        CachingResolver {
            host: host.into(),
            port,
            known,
        }
    }

    fn addresses(&self, timeout: NextTimeout) -> Result<Vec<SocketAddr>, ureq::Error> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, self.port)]);
        }
        let known = {
            let known = self.known.lock();
            if known.since.is_some_and(|since| since.elapsed() < KNOWN_FOR) {
                return Ok(known.addresses.clone());
            }
            known.addresses.clone()
        };
        // If addresses are known, half of the time is kept for them.
        let time = if known.is_empty() {
            *timeout.after
        } else {
            (*timeout.after / 2).min(MOST_TO_LOOK_UP_AGAIN)
        };
        match self.look_up(time) {
            Ok(addresses) => {
                *self.known.lock() = LookedUp {
                    addresses: addresses.clone(),
                    since: Some(Instant::now()),
                };
                Ok(addresses)
            }
            Err(error) if known.is_empty() => Err(error),
            Err(error) => {
                log::debug!(
                    "cannot look up {}, using its last known address: {error}",
                    self.host
                );
                // Counts as looked up for a while, so that not every question waits for a look-up.
                self.known.lock().since = Some(Instant::now());
                Ok(known)
            }
        }
    }

    /// Asks the system's resolver, which has no time-out, on a thread that may outlast the wait for it.
    fn look_up(&self, time: Duration) -> Result<Vec<SocketAddr>, ureq::Error> {
        let (answer, answered) = mpsc::sync_channel(1);
        let (host, port) = (self.host.clone(), self.port);
        let look_up = move || {
            let found = (host.as_str(), port).to_socket_addrs();
            // After a time-out nobody receives the result.
            let _ = answer.send(found.map(|found| found.take(MOST_ADDRESSES).collect()));
        };
        thread::Builder::new()
            .name("lock-resolver".into())
            .spawn(look_up)
            .map_err(unresolved)?;
        match answered.recv_timeout(time) {
            Ok(found) => found.map_err(unresolved),
            Err(RecvTimeoutError::Timeout) => Err(ureq::Error::Timeout(ureq::Timeout::Resolve)),
            Err(RecvTimeoutError::Disconnected) => Err(unresolved(io::Error::other(
                "the look-up ended without an answer",
            ))),
        }
    }
}

impl Resolver for CachingResolver {
    fn resolve(
        &self,
        _uri: &Uri,
        _config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let addresses = self.addresses(timeout)?;
        let mut resolved = self.empty();
        for address in addresses.into_iter().take(MOST_ADDRESSES) {
            resolved.push(address);
        }
        match resolved.is_empty() {
            true => Err(ureq::Error::HostNotFound),
            false => Ok(resolved),
        }
    }
}

fn unresolved(error: io::Error) -> ureq::Error {
    ureq::Error::Io(io::Error::new(error.kind(), Unresolved(error)))
}
