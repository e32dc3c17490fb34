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
//! | [`nudge`] | connections that tiny_http overlooks |
//! | [`leader`] | which thread takes the next request |
//! | [`lines`] | the order of the requests of one connection |
//! | [`answer`] | one question and its reply |
//! | [`sockets`] | what the kernel knows of the connections |

mod answer;
mod door;
mod leader;
mod lines;
mod nudge;
mod sockets;

use std::collections::HashSet;
use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{self, Backlog, sockopt};
use nix::sys::time::TimeVal;

pub(crate) use self::answer::Admission;
use self::door::Door;
use self::lines::Lines;
use self::nudge::{Found, Nudger};
use self::sockets::{Connections, Watch};
use crate::manager::LockManager;

/// How often the front door looks after itself; also the longest that a connection is overlooked.
const BEAT: Duration = Duration::from_millis(100);

/// Every so many beats the doors are looked through that accept no more.
const RETIRE_EVERY: u32 = 10;

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
    door: Arc<Door>,
    /// Doors that accept no more, each with the connections that may be its own.
    older: Vec<(Arc<Door>, Connections)>,
    watch: Watch,
    nudger: Nudger,
    next_beat: Instant,
    beats: u32,
    /// Whether the log was told that nothing is accepted.
    starved: bool,
}

/// What all doors share.
struct Shared {
    manager: Arc<LockManager>,
    admission: Admission,
    shutdown: Arc<Shutdown>,
    lines: Lines,
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
        let timeout = TimeVal::new(SEND_TIMEOUT, 0);
        socket::setsockopt(&listener, sockopt::SendTimeout, &timeout)?;
        let watch = Watch::new(shutdown.0.as_fd())?;
        let shared = Arc::new(Shared { manager, admission, shutdown, lines: Lines::default() });
        let nudger = Nudger::new(listener.local_addr()?);
        let door = Door::open(&listener, shared.clone())?;
        Ok(FrontDoor {
            shared,
            listener,
            door,
            older: Vec::new(),
            watch,
            nudger,
            next_beat: Instant::now() + BEAT,
            beats: 0,
            starved: false,
        })
    }

    /// Looks after the door until the next beat or the next event. `true` once the server is asked
    /// to end.
    pub fn tend(&mut self) -> bool {
        let left = self.next_beat.saturating_duration_since(Instant::now());
        // Rounded up, so as not to come back for less than a millisecond.
        let (hung_up, stop) = self.watch.wait(left.as_millis() as u16 + 1);
        if stop {
            return true;
        }
        self.abandon(hung_up.into_iter().collect());
        if Instant::now() >= self.next_beat {
            self.beat();
            self.next_beat = Instant::now() + BEAT;
        }
        false
    }

    fn beat(&mut self) {
        self.beats = self.beats.wrapping_add(1);
        self.watch_waiters();
        for door in self.older.iter().map(|(door, _)| door).chain([&self.door]) {
            door.depose_if_stuck();
        }
        if !self.door.is_accepting() || self.nudger.nudge_if_busy() == Found::NobodyAccepts {
            self.reopen();
        }
        if !self.older.is_empty() && self.beats % RETIRE_EVERY == 0 {
            self.retire();
        }
    }

    /// Opens a new door on the same listener, once there are descriptors again. tiny_http accepts
    /// nothing more after its first error, but goes on serving the connections that it has.
    fn reopen(&mut self) {
        if !mem::replace(&mut self.starved, true) {
            log::warn!("out of descriptors: no connection is accepted for now, the locks stay");
        }
        // With fewer than a handful it would be over again at once.
        let handful: io::Result<Vec<_>> = (0..16).map(|_| self.listener.try_clone()).collect();
        if handful.map(drop).is_err() {
            return;
        }
        let reopened = Connections::look_up()
            .and_then(|connections| Ok((Door::open(&self.listener, self.shared.clone())?, connections)));
        match reopened {
            Ok((door, connections)) => {
                self.older.push((mem::replace(&mut self.door, door), connections));
                self.starved = false;
                log::warn!("accepting connections again");
            }
            Err(error) => log::debug!("cannot accept connections yet: {error}"),
        }
    }

    /// Closes the doors whose connections have all ended.
    fn retire(&mut self) {
        let Ok(connections) = Connections::look_up() else {
            return;
        };
        self.older.retain(|(door, own)| {
            let needed = own.any_in(&connections);
            if !needed {
                door.close();
            }
            needed
        });
    }

    /// Refuses and breaks off LOCKs, lets replies be finished, closes every connection.
    pub fn close(self) {
        self.shared.manager.stop();
        for door in self.older.iter().map(|(door, _)| door).chain([&self.door]) {
            door.close();
        }
        self.shared.lines.wait_until_served(Instant::now() + FINISH);
        if let (Ok(connections), Ok(address)) = (Connections::look_up(), self.listener.local_addr()) {
            connections.shut_down_all(address.port());
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
}
