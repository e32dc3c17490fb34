//! Frees connections that tiny_http has accepted and then overlooked.
//!
//! tiny_http 0.12 hands a new connection to a thread that it believes to be idle, by a count that is
//! stale until that thread runs. Of several connections that arrive at once some are queued for
//! a thread that is taken already, and stay queued for as long as no other connection ends. But a
//! connection that comes while no thread is idle gets a new thread, and that thread serves the queue
//! next. So each *nudge*, a connection opened and closed again from in here, either frees one that was
//! overlooked, and then the process has a thread more than before; or it is served by an idle thread,
//! and then none was overlooked.
//!
//! Nothing is nudged as long as the kernel has counted no new connection: reading its count takes
//! 40 µs, a nudge five times that and three threads.

use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// How long a nudge waits to be served. It is itself overlooked now and then.
const PATIENCE: Duration = Duration::from_millis(20);

/// How many nudges in a row have to find nothing: a thread that ends meanwhile can hide one that began.
const QUIET: u32 = 2;

/// How many nudges at a time; the rest of a larger crowd waits for the next time.
const MOST: u32 = 256;

/// After this many nudges that nobody served, nobody accepts connections.
const UNANSWERED: u32 = 4;

pub(super) struct Nudger {
    /// The server's own address, as itself can reach it.
    address: SocketAddr,
    /// How many connections the kernel had counted when none of them was overlooked.
    calm_at: Option<u64>,
}

/// What nudging has shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Connections are accepted and served.
    Fine,
    /// Connections are made and nobody accepts them.
    NobodyAccepts,
}

impl Nudger {
    pub fn new(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        Nudger { address: SocketAddr::new(ip, address.port()), calm_at: None }
    }

    /// Nudges until no connection is overlooked, if any has come since the last time.
    pub fn nudge_if_busy(&mut self) -> Found {
        let before = connections_made();
        if before.is_some() && before == self.calm_at {
            return Found::Fine;
        }
        self.calm_at = None;
        let (mut made, mut served, mut quiet) = (0, 0, 0);
        while made < MOST && quiet < QUIET {
            let threads_before = threads();
            // Out of descriptors: whoever has them will give some back.
            let Ok(nudge) = TcpStream::connect_timeout(&self.address, PATIENCE) else {
                return Found::Fine;
            };
            made += 1;
            if !is_served(nudge) {
                if served == 0 && made == UNANSWERED {
                    return Found::NobodyAccepts;
                }
                continue;
            }
            served += 1;
            quiet = if threads() <= threads_before { quiet + 1 } else { 0 };
        }
        // Whoever came while this went on is looked after next time.
        let after = connections_made();
        if quiet == QUIET && before.map(|before| before + u64::from(made)) == after {
            self.calm_at = after;
        }
        Found::Fine
    }
}

/// Closes a connection, and waits for tiny_http to close it, too.
fn is_served(mut nudge: TcpStream) -> bool {
    let read = nudge
        .shutdown(Shutdown::Write)
        .and_then(|()| nudge.set_read_timeout(Some(PATIENCE)))
        .and_then(|()| nudge.read(&mut [0]));
    matches!(read, Ok(0))
}

/// How many connections the kernel has made for servers on this machine: `PassiveOpens` of RFC 4022.
/// `None` where it does not tell.
fn connections_made() -> Option<u64> {
    let counts = fs::read_to_string("/proc/self/net/snmp").ok()?;
    let mut lines = counts.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let column = lines.next()?.split(' ').position(|name| name == "PassiveOpens")?;
    lines.next()?.split(' ').nth(column)?.parse().ok()
}

/// How many threads the process has: each is a link of the directory, which has two of its own.
fn threads() -> Option<u64> {
    fs::metadata("/proc/self/task").ok().map(|tasks| tasks.nlink())
}
