//! The options of a server, with their defaults and ranges.

use std::time::Duration;

use crate::error::Error;

/// How a server behaves. Every field has a default, so name only what differs:
///
/// ```
/// use std::time::Duration;
/// use lock_server::Options;
///
/// let opts = Options { lock_timeout: Duration::from_secs(10), port: 0, ..Options::default() };
/// assert_eq!(opts.lock_attempt_timeout, Duration::from_secs(4));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long a lease lasts, counted from its grant. Default 3 s; 1 ms to 365 days.
    pub lock_timeout: Duration,

    /// How long a LOCK waits for its turn before it is answered `0`. Default 4 s; 0 (try once) to
    /// 365 days.
    pub lock_attempt_timeout: Duration,

    /// The TCP port to serve on. Default 8004. 0 takes any free port, which
    /// [`Server::port`](crate::Server::port) then tells.
    pub port: u16,

    /// A second TCP port, for clients of the Perl original, which speak bare lines instead of HTTP. Both see
    /// the same locks. Default `None`: there is none. `Some(0)` takes any free port, which
    /// [`Server::classic_port`](crate::Server::classic_port) then tells.
    pub classic_port: Option<u16>,

    /// The name or address to listen on. Default `127.0.0.1`. `0.0.0.0` or `::` listens on every
    /// interface; names are not credentials, so do that only where everybody is trusted.
    pub host: String,

    /// Whether `SHUTDOWN` stops the server. Default `false`: it gets `403`.
    pub allow_shutdown: bool,

    /// How often to try again when the port is busy. Default 3; 0 gives up after the first try.
    pub reconnect_attempts: u32,

    /// How long to wait between two tries. Default 1 s.
    pub time_between_attempts: Duration,

    /// Whether a server started with [`Server::start`](crate::Server::start) goes on when the
    /// process that started it has ended, in a session of its own, and when its handle is dropped.
    /// Default `false`: it ends with its parent, so that a test that panics leaves no server behind.
    pub outlive_parent: bool,

    /// How many LOCKs may wait at the same time, over all keys. Default 10,000. One more gets `503`
    /// at once.
    pub max_waiters: usize,

    /// How many keys may be held at the same time. Default 1,000,000. A LOCK of one more gets `503`
    /// at once.
    pub max_keys: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            lock_timeout: Duration::from_secs(3),
            lock_attempt_timeout: Duration::from_secs(4),
            port: 8004,
            classic_port: None,
            host: "127.0.0.1".into(),
            allow_shutdown: false,
            reconnect_attempts: 3,
            time_between_attempts: Duration::from_secs(1),
            outlive_parent: false,
            max_waiters: 10_000,
            max_keys: 1_000_000,
        }
    }
}

/// The longest lease and the longest wait.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Options {
    /// Refuses what no server can do, before anything is bound or forked.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let invalid = |option, reason: String| Err(Error::InvalidOption { option, reason });
        if !(Duration::from_millis(1)..=YEAR).contains(&self.lock_timeout) {
            let reason = "s is not between 0.001 s and 31536000 s, 365 days";
            return invalid(
                "lock_timeout",
                format!("{} {reason}", self.lock_timeout.as_secs_f64()),
            );
        }
        if self.lock_attempt_timeout > YEAR {
            let reason = "s is more than 31536000 s, 365 days";
            return invalid(
                "lock_attempt_timeout",
                format!("{} {reason}", self.lock_attempt_timeout.as_secs_f64()),
            );
        }
        if self.classic_port == Some(self.port) && self.port != 0 {
            return invalid(
                "classic_port",
                format!(
                    "{} is the port for HTTP already; give another one",
                    self.port
                ),
            );
        }
        if self.host.is_empty() {
            return invalid(
                "host",
                "it is empty; give a name or an address, such as 127.0.0.1".into(),
            );
        }
        Ok(())
    }
}
