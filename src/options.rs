//! The options of a server, with their defaults and ranges.

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::cluster::{ClusterOptions, StoreAddress};
use crate::error::Error;
use crate::host::{bad_host, bare_host};

mod cluster;

/// The most [`Options::allowed_hosts`]: they travel to a started server in one message.
const MOST_ALLOWED_HOSTS: usize = 32;

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

    /// How long a LOCK waits for its turn before the server answers `0`. Default 4 s; 0 (try once) to 365 days.
    pub lock_attempt_timeout: Duration,

    /// The TCP port to serve on. Default 8004. One server can have a port at a time: a second one returns
    /// [`Error::CannotListen`]. 0 takes any free port, which [`Server::port`](crate::Server::port) then returns; so
    /// servers of tests that run at the same time do not collide.
    pub port: u16,

    /// A second TCP port, for clients of the Perl original, which speak bare lines instead of HTTP. Both ports see the
    /// same locks. Default `None`: no such port. `Some(0)` takes any free port, which
    /// [`Server::classic_port`](crate::Server::classic_port) then returns.
    pub classic_port: Option<u16>,

    /// Whether a server with a [`token_file`](Self::token_file) may have a [`classic_port`](Self::classic_port), whose
    /// clients have no way to show a token: every client that reaches that port can lock and unlock. Default `false`: a
    /// server with both does not start.
    pub classic_without_token: bool,

    /// The name or address to listen on, without a port; an IPv6 address may be in brackets. Default `127.0.0.1`. For a
    /// name, the server listens on each of its addresses, up to 16. `0.0.0.0` or `::` listens on every interface; names
    /// are not credentials, so do that only where everybody is trusted, or with a [`token_file`](Self::token_file).
    pub host: String,

    /// Further names that a server on loopback accepts in `Host`: those that a proxy on the same machine passes on. `*`
    /// is any name. Default: none, so that the server accepts the names of this machine's loopback and
    /// [`host`](Self::host), and answers requests for other names with `421`. Up to 32, each without a port.
    ///
    /// A web page whose own name was pointed at 127.0.0.1 (DNS rebinding) can ask for locks under a name that is
    /// allowed here: allow only names that are yours.
    pub allowed_hosts: Vec<String>,

    /// Whether `SHUTDOWN` stops the server. Default `false`: it gets `403`. With a [`token_file`](Self::token_file),
    /// SHUTDOWN over HTTP needs a token of the role `admin` instead, and this option is for the classic port alone.
    pub allow_shutdown: bool,

    /// Whether anybody may end another client's hold with `BREAK`. Default `false`: it gets `403`. With a
    /// [`token_file`](Self::token_file) BREAK needs a token of the role `admin`, and this option has no effect.
    pub allow_break: bool,

    /// A file of tokens. A client has to show one of them: `Authorization: Bearer TOKEN`, or as the password of Basic.
    /// Default `None`: everybody may ask everything.
    ///
    /// Each line is `ROLE TOKEN`, up to 100 of them; blank lines and those that begin with `#` do not count. A role is
    /// `read` (CHECK, VERIFY and the lower-case paths), `lock` (the verbs, too) or `admin` (SHUTDOWN and BREAK, too);
    /// PING, `/livez` and `/readyz` need no token. A [`Token`](crate::Token) is 8 to 256 of
    /// `A-Z a-z 0-9 - . _ ~ + / =`, and at least one has to be of the role `lock` or `admin`. The file has to belong to
    /// this user or to root, and nobody else may have access to it (mode 600).
    ///
    /// A server of [`start`](crate::Server::start) or [`run`](crate::Server::run) reads the file again at SIGHUP; a bad
    /// file then changes nothing. The path is UTF-8 without control characters.
    pub token_file: Option<PathBuf>,

    /// How often to try again when the port is busy: 0 (try once) to [`u32::MAX`]. Default 3.
    pub reconnect_attempts: u32,

    /// How long to wait between two tries: 0 to 365 days. Default 1 s.
    pub time_between_attempts: Duration,

    /// Whether a server started with [`Server::start`](crate::Server::start) goes on, in a session of its own, when its
    /// handle is dropped and when the process that started it ends. Default `false`: it ends with its parent, so that a
    /// test that panics leaves no server behind.
    pub outlive_parent: bool,

    /// The longest lease that a LOCK or RENEW may ask for with `lock_timeout`; a longer one gets `400`. Default `None`:
    /// 1 h, or [`lock_timeout`](Self::lock_timeout) if that is longer. `Some` must not be less than that; up to
    /// 365 days.
    pub max_lock_timeout: Option<Duration>,

    /// The longest wait that a LOCK may ask for with `lock_attempt_timeout`; a longer one gets `400`. Default `None`:
    /// 1 h, or [`lock_attempt_timeout`](Self::lock_attempt_timeout) if that is longer. `Some` must not be less than
    /// that; up to 365 days.
    pub max_lock_attempt_timeout: Option<Duration>,

    /// How many LOCKs may wait at the same time, over all keys. Default 10,000; at most 100 fewer than the clients that
    /// the server has room for. A LOCK beyond that gets `503` at once. With 0, a LOCK that would have to wait gets
    /// `503`; a LOCK that tries once (`lock_attempt_timeout` 0) is answered as usual.
    pub max_waiters: usize,

    /// How many keys may be held at the same time; a key with several holders counts once for each. Default 1,000,000;
    /// 1 or more. A LOCK of one more key gets `503` at once. A LOCK that already waits for its turn is not refused.
    pub max_keys: usize,

    /// The file that a server of [`Server::start`](crate::Server::start) logs to. It is made if it is missing, appended
    /// to, and never truncated or replaced. `RUST_LOG` sets the level, from `error` to `trace`; without it, `info`.
    /// Default `None`: it logs nothing. A server of [`run`](crate::Server::run) or [`spawn`](crate::Server::spawn)
    /// ignores it and logs through the program's own [`log`].
    pub log_to: Option<PathBuf>,

    /// Where locks are kept, so that they outlive the server: see [`StoreAddress`]. Default `None`: locks end with the
    /// server.
    pub store: Option<StoreAddress>,

    /// Whether each answer about a hold waits until the disk has what the answer reports. Default `true`: locks outlive
    /// a crash of the machine. With `false` the server is faster, and locks outlive only a crash of its process: after
    /// a power failure the store may lack the last grants, or be damaged. For a store in a [file](StoreAddress::File)
    /// only.
    pub store_sync: bool,

    /// How several servers share a store in [etcd](StoreAddress::Etcd). For such a store only.
    pub cluster: ClusterOptions,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            lock_timeout: Duration::from_secs(3),
            lock_attempt_timeout: Duration::from_secs(4),
            port: 8004,
            classic_port: None,
            classic_without_token: false,
            host: "127.0.0.1".into(),
            allowed_hosts: Vec::new(),
            allow_shutdown: false,
            allow_break: false,
            token_file: None,
            reconnect_attempts: 3,
            time_between_attempts: Duration::from_secs(1),
            outlive_parent: false,
            max_lock_timeout: None,
            max_lock_attempt_timeout: None,
            max_waiters: 10_000,
            max_keys: 1_000_000,
            log_to: None,
            store: None,
            store_sync: true,
            cluster: ClusterOptions::default(),
        }
    }
}

/// The longest lease, wait and pause.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The default caps on the times that a question may ask for.
const HOUR: Duration = Duration::from_secs(60 * 60);

impl Options {
    /// The host without the brackets of an IPv6 address.
    pub(crate) fn bare_host(&self) -> &str {
        bare_host(&self.host)
    }

    /// The effective value of [`max_lock_timeout`](Self::max_lock_timeout).
    pub(crate) fn longest_lock_timeout(&self) -> Duration {
        self.max_lock_timeout.unwrap_or(HOUR.max(self.lock_timeout))
    }

    /// The effective value of [`max_lock_attempt_timeout`](Self::max_lock_attempt_timeout).
    pub(crate) fn longest_lock_attempt_timeout(&self) -> Duration {
        self.max_lock_attempt_timeout
            .unwrap_or(HOUR.max(self.lock_attempt_timeout))
    }

    /// Refuses values that no server can have, before anything is bound or forked.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let invalid = |option, reason: String| Err(Error::InvalidOption { option, reason });
        self.validate_times()?;
        if self.classic_port == Some(self.port) && self.port != 0 {
            return invalid(
                "classic_port",
                format!(
                    "{} is the port for HTTP already; give another one",
                    self.port
                ),
            );
        }
        self.validate_access()?;
        if !self.store_sync && matches!(self.store, Some(StoreAddress::Etcd(_))) {
            let reason = "it is for a store in a file; etcd syncs what it takes";
            return invalid("store_sync", reason.into());
        }
        if let Err((option, reason)) = cluster::validate(self.store.as_ref(), &self.cluster) {
            return invalid(option, reason);
        }
        if self.max_keys == 0 {
            return invalid("max_keys", "it is 0, so nothing could be locked".into());
        }
        if let Some(reason) = bad_host(&self.host) {
            return invalid("host", reason);
        }
        Ok(())
    }

    /// The part of [`validate`](Self::validate) for the times.
    fn validate_times(&self) -> Result<(), Error> {
        let invalid = |option, reason: String| Err(Error::InvalidOption { option, reason });
        if !(Duration::from_millis(1)..=YEAR).contains(&self.lock_timeout) {
            let reason = "s is not between 0.001 s and 31536000 s, 365 days";
            return invalid(
                "lock_timeout",
                format!("{} {reason}", self.lock_timeout.as_secs_f64()),
            );
        }
        let times = [
            ("lock_attempt_timeout", self.lock_attempt_timeout),
            ("time_between_attempts", self.time_between_attempts),
        ];
        if let Some((option, reason)) = times.into_iter().find_map(too_long) {
            return invalid(option, reason);
        }
        expect_cap(
            ("max_lock_timeout", self.max_lock_timeout),
            ("lock_timeout", self.lock_timeout),
        )?;
        expect_cap(
            ("max_lock_attempt_timeout", self.max_lock_attempt_timeout),
            ("lock_attempt_timeout", self.lock_attempt_timeout),
        )
    }

    /// Whether a client without a token can lock a key.
    pub(crate) fn lets_strangers_lock(&self) -> bool {
        self.token_file.is_none() || self.classic_port.is_some()
    }

    /// The part of [`validate`](Self::validate) for the options about access.
    fn validate_access(&self) -> Result<(), Error> {
        let invalid = |option, reason: String| Err(Error::InvalidOption { option, reason });
        if let Some(path) = &self.token_file {
            if !is_line(path) {
                return invalid("token_file", not_a_line(path));
            }
            if self.classic_port.is_some() && !self.classic_without_token {
                let reason = "clients of the original have no way to show a token; leave it out, or let them in \
                              with the option classic_without_token";
                return invalid("classic_port", reason.into());
            }
        }
        if self.allowed_hosts.len() > MOST_ALLOWED_HOSTS {
            return invalid("allowed_hosts", "there are more than 32".into());
        }
        let mut names = self.allowed_hosts.iter().filter(|name| *name != "*");
        match names.find_map(|name| bad_allowed_host(name)) {
            Some(reason) => invalid("allowed_hosts", reason),
            None => Ok(()),
        }
    }
}

/// An option and what is wrong with its time, if that is longer than [`YEAR`].
fn too_long((option, time): (&'static str, Duration)) -> Option<(&'static str, String)> {
    let reason = || format!("{} s is more than 31536000 s, 365 days", time.as_secs_f64());
    (time > YEAR).then(|| (option, reason()))
}

/// Whether a path can travel to a started server as a line of text.
fn is_line(path: &Path) -> bool {
    path.to_str()
        .is_some_and(|path| !path.contains(char::is_control))
}

fn not_a_line(path: &Path) -> String {
    format!("{path:?} is not UTF-8, or has control characters in it")
}

fn bad_allowed_host(name: &str) -> Option<String> {
    // The longest name that DNS allows.
    const LONGEST: usize = 253;
    if name.len() > LONGEST {
        return Some("a host name has at most 253 bytes".into());
    }
    if name.contains('%') {
        return Some(format!("{name:?} has a zone, which no Host has"));
    }
    bad_host(name)
}

/// Refuses a cap that the server's own time exceeds: a LOCK that names the default time would be refused as too long.
fn expect_cap(
    (option, cap): (&'static str, Option<Duration>),
    (capped, usual): (&str, Duration),
) -> Result<(), Error> {
    let Some(cap) = cap else {
        return Ok(());
    };
    if let Some((option, reason)) = too_long((option, cap)) {
        return Err(Error::InvalidOption { option, reason });
    }
    if cap >= usual {
        return Ok(());
    }
    let (most, usual) = (cap.as_secs_f64(), usual.as_secs_f64());
    let reason =
        format!("{most} s is less than {capped}, {usual} s; give more, or a shorter {capped}");
    Err(Error::InvalidOption { option, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOURS_2: Duration = Duration::from_secs(2 * 60 * 60);

    fn refusal(options: Options) -> String {
        options.validate().expect_err("it is bad").to_string()
    }

    #[test]
    fn the_caps_are_an_hour_or_the_servers_own_times_if_those_are_longer() {
        let caps = |options: &Options| {
            options.validate().expect("it is good");
            let longest_attempt = options.longest_lock_attempt_timeout();
            (options.longest_lock_timeout(), longest_attempt)
        };
        assert_eq!(caps(&Options::default()), (HOUR, HOUR));
        let long = Options {
            lock_timeout: HOURS_2,
            lock_attempt_timeout: HOURS_2,
            ..Options::default()
        };
        assert_eq!(caps(&long), (HOURS_2, HOURS_2));
        let capped = Options {
            max_lock_timeout: Some(Duration::from_secs(3)),
            max_lock_attempt_timeout: Some(YEAR),
            ..Options::default()
        };
        assert_eq!(caps(&capped), (Duration::from_secs(3), YEAR));
    }

    #[test]
    fn an_allowed_host_is_a_name_or_an_address_or_any() {
        let allowed = |names: &[&str]| Options {
            allowed_hosts: names.iter().map(ToString::to_string).collect(),
            ..Options::default()
        };
        for names in [&[][..], &["*"], &["locks.example.com", "10.0.0.7", "::1"]] {
            assert!(allowed(names).validate().is_ok(), "{names:?}");
        }
        for names in [
            &[""][..],
            &["*.example.com"],
            &["a", "b:80"],
            &["a b"],
            &["fe80::1%a b"],
        ] {
            let refused = refusal(allowed(names));
            assert!(
                refused.starts_with("bad option allowed_hosts: "),
                "{refused}"
            );
        }
        let many = ["a"; MOST_ALLOWED_HOSTS + 1];
        assert!(refusal(allowed(&many)).ends_with("more than 32"));
        assert!(allowed(&many[1..]).validate().is_ok());
    }

    /// A server on a busy port hung.
    #[test]
    fn a_pause_of_more_than_365_days_is_refused() {
        let pausing = |time_between_attempts| Options {
            time_between_attempts,
            ..Options::default()
        };
        for time in [Duration::ZERO, YEAR] {
            assert!(pausing(time).validate().is_ok(), "{time:?}");
        }
        assert_eq!(
            refusal(pausing(YEAR + Duration::from_secs(1))),
            "bad option time_between_attempts: 31536001 s is more than 31536000 s, 365 days"
        );
        assert!(pausing(Duration::MAX).validate().is_err());
    }

    #[test]
    fn a_cap_below_the_servers_own_time_is_refused() {
        let capped = Options {
            lock_timeout: HOURS_2,
            max_lock_timeout: Some(HOUR),
            ..Options::default()
        };
        assert_eq!(
            refusal(capped),
            "bad option max_lock_timeout: 3600 s is less than lock_timeout, 7200 s; \
             give more, or a shorter lock_timeout"
        );
        let capped = Options {
            max_lock_attempt_timeout: Some(Duration::from_millis(500)),
            ..Options::default()
        };
        assert_eq!(
            refusal(capped),
            "bad option max_lock_attempt_timeout: 0.5 s is less than lock_attempt_timeout, 4 s; \
             give more, or a shorter lock_attempt_timeout"
        );
    }
}
