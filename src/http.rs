//! The front door: takes requests from tiny_http, a thread for each as long as it needs one.
//!
//! A request's way: a thread of a [`door`] takes it, [`answer`] asks the lock manager, the same thread
//! writes the reply. Before a thread blocks, another one stands ready, so a waiting LOCK costs its own
//! thread and delays nobody.
//!
//! | file | owns |
//! |---|---|
//! | `http.rs` | opening, tending and closing; whatever mends what tiny_http leaves open |
//! | [`door`] | one run of tiny_http: its threads, and the bytes of a reply |
//! | [`leader`] | which thread takes the next request |
//! | [`lines`] | the order of the requests of one connection |
//! | [`answer`] | one question and its reply |
//! | [`sockets`] | what the kernel knows of the connections |

mod answer;
mod door;
mod leader;
mod lines;
mod sockets;

use std::collections::HashSet;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{self, Backlog, sockopt};
use nix::sys::time::TimeVal;

pub(crate) use self::answer::Admission;
use self::door::Door;
use self::lines::Lines;
use self::sockets::{Connections, Watch};
use crate::manager::LockManager;

/// How often the front door looks after itself; also the longest that a connection is overlooked.
const BEAT: Duration = Duration::from_millis(100);

/// How many seconds a reply may take to be written to a client that does not read.
const SEND_TIMEOUT: i64 = 10;

/// How long the answers being written get before the server ends.
const FINISH: Duration = Duration::from_millis(500);

/// Asks the server to end, from whatever thread.
pub(crate) struct Shutdown(EventFd);

impl Shutdown {
    pub fn new() -> io::Result<Self> {
        Ok(Shutdown(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?))
    }

    pub fn request(&self, reason: &str) {
        log::info!("ending: {reason}");
        // It fails only when it has been asked for 2^64 - 2 times.
        let _ = self.0.write(1);
    }
}

/// The server's end of a port.
pub(crate) struct FrontDoor {
    shared: Arc<Shared>,
    listener: TcpListener,
    address: SocketAddr,
    doors: Vec<Arc<Door>>,
    watch: Watch,
    /// Beats in a row in which nobody accepted a connection.
    unanswered: u32,
}

/// What all doors share.
struct Shared {
    manager: Arc<LockManager>,
    admission: Admission,
    shutdown: Arc<Shutdown>,
    lines: Lines,
    closing: AtomicBool,
}

impl Shared {
    fn is_closing(&self) -> bool {
        self.closing.load(SeqCst)
    }
}

impl FrontDoor {
    /// Serves on a bound listener, in threads of its own.
    pub fn open(
        listener: TcpListener,
        manager: Arc<LockManager>,
        admission: Admission,
        shutdown: Arc<Shutdown>,
    ) -> io::Result<Self> {
        // std listens with a backlog of 128; a crowd larger than that would be kept waiting for a
        // second by the kernel. What is set on a listener, Linux passes on to what it accepts:
        // replies go out at once, and a client that does not read them loses its connection.
        socket::listen(&listener, Backlog::MAXCONN)?;
        socket::setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
        socket::setsockopt(
            &listener,
            sockopt::SendTimeout,
            &TimeVal::new(SEND_TIMEOUT, 0),
        )?;
        let watch = Watch::new(shutdown.0.as_fd())?;
        let shared = Arc::new(Shared {
            manager,
            admission,
            shutdown,
            lines: Lines::default(),
            closing: AtomicBool::new(false),
        });
        let address = listener.local_addr()?;
        let door = Door::open(&listener, shared.clone())?;
        Ok(FrontDoor {
            shared,
            listener,
            address,
            doors: vec![door],
            watch,
            unanswered: 0,
        })
    }

    /// Looks after the door for one beat. `true` once the server is asked to end.
    pub fn tend(&mut self) -> bool {
        let (hung_up, stop) = self.watch.wait(BEAT.as_millis() as u16);
        if stop {
            return true;
        }
        self.abandon(hung_up.into_iter().collect());
        self.watch_waiters();
        self.serve_overlooked();
        for door in &self.doors {
            door.depose_if_stuck();
        }
        false
    }

    /// Refuses and breaks off LOCKs, lets replies be finished, closes every connection.
    pub fn close(self) {
        self.shared.closing.store(true, SeqCst);
        self.shared.manager.stop();
        for door in &self.doors {
            door.close();
        }
        self.shared.lines.wait_until_served(Instant::now() + FINISH);
        if let Ok(connections) = Connections::look_up() {
            connections.shut_down_all(self.address.port());
        }
    }

    /// Has waiters watched for their client's end.
    fn watch_waiters(&mut self) {
        let unwatched = self.shared.lines.to_be_watched();
        if unwatched.is_empty() {
            return;
        }
        let Ok(connections) = Connections::look_up() else {
            return;
        };
        // What ended before it was watched, or can't be watched, reports nothing later.
        let watched = |(peer, id): &(SocketAddr, u64)| {
            connections
                .get(peer)
                .is_some_and(|fd| self.watch.watch(fd, *id).is_ok())
                && !connections.has_hung_up(peer)
        };
        self.abandon(
            unwatched
                .into_iter()
                .filter(|waiter| !watched(waiter))
                .map(|(_, id)| id)
                .collect(),
        );
    }

    /// Gives up the places of those waiters whose client has gone.
    fn abandon(&self, suspects: HashSet<u64>) {
        let suspects = if suspects.is_empty() {
            Vec::new()
        } else {
            self.shared.lines.watched_as(&suspects)
        };
        if suspects.is_empty() {
            return;
        }
        let Ok(connections) = Connections::look_up() else {
            return;
        };
        for (peer, place) in suspects {
            if connections.has_hung_up(&peer) {
                log::debug!("{peer} went away while it waited");
                self.shared.manager.abandon(&place);
            }
        }
    }

    /// Frees connections that tiny_http has accepted and then overlooked, and opens a new door
    /// where nobody accepts any more.
    ///
    /// tiny_http 0.12 hands a new connection to a thread that it believes to be idle, by a count
    /// that is stale until that thread runs: of several connections that arrive at once, some are
    /// queued for a thread that is taken already, and stay queued for as long as no connection ends.
    /// A connection that comes while no thread is idle gets a new thread, and that thread serves
    /// the queue next. So each nudge, a connection opened and closed again from in here, either
    /// frees one that was overlooked, and the process has a thread more than before, or is served by
    /// an idle thread, and then none was.
    fn serve_overlooked(&mut self) {
        const QUIET: u32 = 2;
        const MOST: u32 = 256;
        let (mut quiet, mut served) = (0, 0);
        for tried in 0..MOST {
            let before = threads();
            match self.nudge() {
                Nudge::Served => served += 1,
                Nudge::Unserved if served == 0 && tried >= 3 => break,
                Nudge::Unserved => continue,
                // Out of descriptors; or the listener is gone, and then so is everything.
                Nudge::Impossible => return,
            }
            quiet = if threads() <= before { quiet + 1 } else { 0 };
            if quiet == QUIET {
                break;
            }
        }
        self.unanswered = if served == 0 { self.unanswered + 1 } else { 0 };
        let accepting = self.doors.last().is_some_and(|door| door.is_accepting());
        if !accepting || self.unanswered >= 3 {
            self.reopen();
        }
    }

    /// Opens and closes a connection, and waits a little for tiny_http to close it, too.
    fn nudge(&self) -> Nudge {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let address = SocketAddr::new(ip, self.address.port());
        let patience = Duration::from_millis(20);
        let Ok(mut stream) = TcpStream::connect_timeout(&address, patience) else {
            return Nudge::Impossible;
        };
        let ended = stream
            .shutdown(std::net::Shutdown::Write)
            .and_then(|()| stream.set_read_timeout(Some(patience)))
            .and_then(|()| stream.read(&mut [0]));
        if matches!(ended, Ok(0)) {
            Nudge::Served
        } else {
            Nudge::Unserved
        }
    }

    /// Opens a new door on the same listener. The older ones go on serving their connections.
    fn reopen(&mut self) {
        match Door::open(&self.listener, self.shared.clone()) {
            Ok(door) => {
                log::info!("accepting connections again");
                self.unanswered = 0;
                self.doors.push(door);
            }
            Err(error) => log::trace!("cannot accept connections yet: {error}"),
        }
    }
}

enum Nudge {
    Served,
    Unserved,
    Impossible,
}

/// How many threads the process has. A link of the directory for each, and two of its own.
fn threads() -> Option<u64> {
    std::fs::metadata("/proc/self/task")
        .ok()
        .map(|tasks| tasks.nlink())
}
