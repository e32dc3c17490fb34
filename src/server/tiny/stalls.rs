//! Frees connections that tiny_http has accepted and then overlooked.
//!
//! tiny_http 0.12 hands a new connection to a thread that it believes to be idle, by a count that is
//! stale until that thread runs. Of several connections that arrive at once some are queued for
//! a thread that is taken already, and stay queued for as long as no other connection ends. But a
//! connection that comes while no thread is idle gets a new thread, and that thread serves the queue
//! next. So each *probe*, a connection opened and closed again from in here, either frees one that was
//! overlooked, and then the process has a thread more than before; or it is served by an idle thread,
//! and then none was overlooked.
//!
//! Nothing is probed as long as the kernel has counted no new connection: reading its count takes
//! 40 µs, a probe five times that and three threads.

use std::fs;
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::host::reachable;

/// How long a probe waits to be served. It is itself overlooked now and then.
const PROBE_TIMEOUT: Duration = Duration::from_millis(20);

/// How many probes in a row have to find nothing: a thread that ends meanwhile can hide one that began.
const QUIET_PROBES: u64 = 2;

/// How many connections are doubted where the kernel does not count them.
const MANY: u64 = 256;

/// How long probing may go on; the rest of a larger crowd waits for the next time.
const AT_A_TIME: Duration = Duration::from_millis(50);

/// How soon after a connection has come it is made sure that it was not overlooked, and how long after
/// that no further one is looked after: where many come, that takes one part in twenty of a core.
const FIRST_LOOK: Duration = Duration::from_millis(3);
const PAUSE: Duration = Duration::from_millis(10);

/// How long that pause becomes at the most, while nothing is found: a connection is never overlooked for
/// a quarter of a second.
const LONGEST_PAUSE: Duration = Duration::from_millis(160);

/// How many probes this process has made. A probe is a connection, too, which the kernel counts; and where a server
/// listens on two addresses, each would probe without end for the probes of the other one.
static PROBES: AtomicU64 = AtomicU64::new(0);

pub(super) struct StallBreaker {
    /// The server's own address, as itself can reach it.
    address: SocketAddr,
    /// How many connections there had been when last asked, without the probes.
    counted: Option<u64>,
    /// How many of them may be overlooked.
    doubtful: u64,
    /// When to look for overlooked connections; `None` until one comes.
    next_look: Option<Instant>,
    /// How long not to look for further ones after that.
    pause: Duration,
}

/// What there was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probed {
    /// No connection has come since the last time.
    NotAtAll,
    /// No connection was overlooked.
    Needlessly,
    /// Some were, perhaps.
    Freed,
}

impl StallBreaker {
    pub fn new(address: SocketAddr) -> Self {
        let ip = reachable(address.ip());
        StallBreaker {
            address: SocketAddr::new(ip, address.port()),
            counted: None,
            doubtful: 0,
            next_look: None,
            pause: PAUSE,
        }
    }

    pub fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    /// Notes that a connection has come. In a pause that may have been a probe.
    pub fn expect_one(&mut self, now: Instant) {
        self.next_look.get_or_insert(now + FIRST_LOOK);
    }

    /// Looks at the next opportunity, in case a connection came that was not reported.
    pub fn look_soon(&mut self, now: Instant) {
        self.next_look.get_or_insert(now);
    }

    /// Frees overlooked connections, if it is time. `expect_arrival` has the next connection reported.
    pub fn look(&mut self, expect_arrival: impl FnOnce() -> io::Result<()>) {
        if self.next_look.is_none_or(|next| Instant::now() < next) {
            return;
        }
        // Before the count is read, so that a later connection is reported.
        let expected = expect_arrival();
        let probed = self.probe_if_busy();
        // Where other servers of the machine have many clients, they are counted, too.
        self.pause = match probed {
            Probed::Needlessly => (self.pause * 2).min(LONGEST_PAUSE),
            Probed::NotAtAll | Probed::Freed => PAUSE,
        };
        let again = probed != Probed::NotAtAll || expected.is_err();
        self.next_look = again.then(|| Instant::now() + self.pause);
    }

    /// Probes until no connection is overlooked, if any has come since the last time.
    fn probe_if_busy(&mut self) -> Probed {
        let counted = connections_made().map(|made| {
            // Read second: each probe that the kernel has counted is in it.
            made.saturating_sub(PROBES.load(SeqCst))
        });
        self.doubtful += counted
            .zip(self.counted)
            .map_or(MANY, |(now, then)| now.saturating_sub(then));
        let (mut made, mut quiet) = (0, 0);
        let until = Instant::now() + AT_A_TIME;
        while self.doubtful > 0 && quiet < QUIET_PROBES && Instant::now() < until {
            let threads_before = threads();
            PROBES.fetch_add(1, SeqCst);
            let Ok(probe) = TcpStream::connect_timeout(&self.address, PROBE_TIMEOUT) else {
                // Out of descriptors: some are given back soon.
                PROBES.fetch_sub(1, SeqCst);
                break;
            };
            made += 1;
            if is_served(probe) {
                quiet = if threads() <= threads_before {
                    quiet + 1
                } else {
                    0
                };
            }
        }
        let busy = self.doubtful > 0;
        if quiet == QUIET_PROBES {
            self.doubtful = 0;
        }
        // A connection that came meanwhile is looked after next time.
        self.counted = counted;
        match busy {
            false => Probed::NotAtAll,
            true if made == QUIET_PROBES && quiet == QUIET_PROBES => Probed::Needlessly,
            true => Probed::Freed,
        }
    }
}

/// Closes a connection, and waits for tiny_http to close it, too.
fn is_served(mut probe: TcpStream) -> bool {
    let read = probe
        .shutdown(Shutdown::Write)
        .and_then(|()| probe.set_read_timeout(Some(PROBE_TIMEOUT)))
        .and_then(|()| probe.read(&mut [0]));
    matches!(read, Ok(0))
}

/// How many connections the kernel has made for servers on this machine: `PassiveOpens` of RFC 4022.
/// `None` where it does not tell.
fn connections_made() -> Option<u64> {
    let counts = fs::read_to_string("/proc/self/net/snmp").ok()?;
    let mut lines = counts.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let column = lines
        .next()?
        .split(' ')
        .position(|name| name == "PassiveOpens")?;
    lines.next()?.split(' ').nth(column)?.parse().ok()
}

/// How many threads the process has: each is a link of the directory, which has two of its own.
fn threads() -> Option<u64> {
    fs::metadata("/proc/self/task")
        .ok()
        .map(|tasks| tasks.nlink())
}
