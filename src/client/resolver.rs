//! Looking up a server's address, for ureq: an address at once, a name once in a while.
//!
//! ureq's own resolver starts a thread for each question that has a time-out, also where the host is an address
//! and where the connection is open already, and panics where there is no thread.
//!
//! An address that worked is kept: where the name can't be looked up for a while, the server is still there.

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

/// How long what a name was looked up to is believed.
const KNOWN_FOR: Duration = Duration::from_secs(30);

/// How long a question waits at the most for a look-up where it has an address from an earlier one.
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

/// What the name was looked up to last.
#[derive(Debug, Default)]
pub(super) struct KnownAddresses(Mutex<LookedUp>);

#[derive(Debug, Default)]
struct LookedUp {
    /// Empty before the first look-up that found any.
    addresses: Vec<SocketAddr>,
    /// When that was. `None` if they are to be looked up again before they are used.
    since: Option<Instant>,
}

impl KnownAddresses {
    /// Has the name looked up again, if it can be: nobody is at these addresses.
    pub fn doubt(&self) {
        self.lock().since = None;
    }

    fn lock(&self) -> MutexGuard<'_, LookedUp> {
        // It is set in one step, whatever panicked beside it.
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
        // Half of the time is left for the addresses that are known, if there are any.
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
                    "{} is not looked up, its known address is used: {error}",
                    self.host
                );
                // For a while, so that each question does not wait anew.
                self.known.lock().since = Some(Instant::now());
                Ok(known)
            }
        }
    }

    /// Asks the system, which has no time-out, in a thread that may take longer than it is waited for.
    fn look_up(&self, time: Duration) -> Result<Vec<SocketAddr>, ureq::Error> {
        let (answer, answered) = mpsc::sync_channel(1);
        let (host, port) = (self.host.clone(), self.port);
        let look_up = move || {
            let found = (host.as_str(), port).to_socket_addrs();
            // Nobody waits any more where it took too long.
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
