//! Frees connections that tiny_http has accepted and then overlooked.
//!
//! tiny_http 0.12 hands a new connection to a thread that it believes to be idle, by a count that is stale until that
//! thread runs. Of several connections that arrive at once, some are queued for a busy thread and stay queued until
//! another connection ends. But a connection that arrives while no thread is idle gets a new thread, which then serves
//! the queue. So each *probe*, a connection that this module opens and closes, has one of two results: it frees an
//! overlooked connection, and the process has one more thread; or an idle thread serves it, and no connection was
//! overlooked.
//!
//! No probe is made while the kernel counts no new connection: reading its count takes 40 µs, a probe five times that
//! and three threads.

use std::fs;
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::host::reachable;

/// How long a probe waits to be served. Sometimes tiny_http overlooks the probe itself.
const PROBE_TIMEOUT: Duration = Duration::from_millis(20);

/// How many probes in a row have to find nothing: one is not enough, because a thread that ends can hide one that
/// began.
const QUIET_PROBES: u64 = 2;

/// How many connections are assumed to be overlooked if the kernel does not count them.
const MANY: u64 = 256;

/// How long one round of probes may take. The rest of a larger crowd waits for the next round.
const AT_A_TIME: Duration = Duration::from_millis(50);

/// How long after a connection arrives the first look follows, and the pause until the next look. With many
/// connections, looks take a twentieth of a core.
const FIRST_LOOK: Duration = Duration::from_millis(3);
const PAUSE: Duration = Duration::from_millis(10);

/// The longest pause, reached while looks find nothing. It limits how long a connection stays overlooked: less than 250
/// ms.
const LONGEST_PAUSE: Duration = Duration::from_millis(160);

/// How many probes this process has made. The kernel counts them, too; without this count, two listeners of one server
/// would probe without end because of each other's probes.
static PROBES: AtomicU64 = AtomicU64::new(0);

pub(super) struct StallBreaker {
    /// The address at which the server can reach itself.
    address: SocketAddr,
    /// The kernel's count at the last look, without the probes.
    counted: Option<u64>,
    /// How many connections may be overlooked.
    doubtful: u64,
    /// When to look for overlooked connections; `None` until one comes.
    next_look: Option<Instant>,
    /// The pause between two looks.
    pause: Duration,
}

/// The result of a round of probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probed {
    /// No probe: no connection has arrived since the last round.
    NotAtAll,
    /// No connection was overlooked.
    Needlessly,
    /// Connections may have been overlooked, and are freed.
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

    /// Notes that a connection has arrived. During a pause it may be a probe.
    pub fn expect_one(&mut self, now: Instant) {
        self.next_look.get_or_insert(now + FIRST_LOOK);
    }

    /// Makes the next look due now, in case an arrival was not reported.
    pub fn look_soon(&mut self, now: Instant) {
        self.next_look.get_or_insert(now);
    }

    /// Frees overlooked connections, if a look is due. `expect_arrival` makes the next connection reported.
    pub fn look(&mut self, expect_arrival: impl FnOnce() -> io::Result<()>) {
        if self.next_look.is_none_or(|next| Instant::now() < next) {
            return;
        }
        // Called before the count is read, so that a later connection is reported.
        let expected = expect_arrival();
        let probed = self.probe_if_busy();
        // The kernel also counts the connections of other servers on the machine.
        self.pause = match probed {
            Probed::Needlessly => (self.pause * 2).min(LONGEST_PAUSE),
            Probed::NotAtAll | Probed::Freed => PAUSE,
        };
        let again = probed != Probed::NotAtAll || expected.is_err();
        self.next_look = again.then(|| Instant::now() + self.pause);
    }

    /// Probes until no connection is overlooked, if any has arrived since the last round.
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
                // Out of descriptors: some are soon free again.
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
        // A connection that arrived meanwhile counts for the next round.
        self.counted = counted;
        match busy {
            false => Probed::NotAtAll,
            true if made == QUIET_PROBES && quiet == QUIET_PROBES => Probed::Needlessly,
            true => Probed::Freed,
        }
    }
}

/// Closes the probe. Returns whether tiny_http closes it, too, in time.
fn is_served(mut probe: TcpStream) -> bool {
    let read = probe
        .shutdown(Shutdown::Write)
        .and_then(|()| probe.set_read_timeout(Some(PROBE_TIMEOUT)))
        .and_then(|()| probe.read(&mut [0]));
    matches!(read, Ok(0))
}

/// How many connections the kernel has accepted for all servers on this machine: `PassiveOpens` of RFC 4022. `None` if
/// it is not known.
fn connections_made() -> Option<u64> {
    let counts = fs::read_to_string("/proc/self/net/snmp").ok()?;
    let mut lines = counts.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let column = lines
        .next()?
        .split(' ')
        .position(|name| name == "PassiveOpens")?;
    lines.next()?.split(' ').nth(column)?.parse().ok()
}

/// How many threads the process has, plus two: the links of the directory.
fn threads() -> Option<u64> {
    fs::metadata("/proc/self/task")
        .ok()
        .map(|tasks| tasks.nlink())
}
