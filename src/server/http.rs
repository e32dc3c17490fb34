//! The HTTP transport: takes requests from tiny_http, a thread for each as long as it needs one.
//!
//! A request's way: the leader of an [`instance`] takes it, the handler asks the lock manager, the leader
//! writes the reply. What has to wait gets a worker of its own first, so a LOCK blocks its own thread and nobody
//! else's.
//!
//! | file | owns |
//! |---|---|
//! | `http.rs` | opening, polling and closing; whatever mends what tiny_http leaves open |
//! | [`instance`] | one run of tiny_http: its threads, and the bytes of a reply |
//! | [`stalls`] | connections that tiny_http overlooks |
//! | [`pipelines`] | the order of the requests of one connection |
//! | [`wait`] | a LOCK that waits, and who answers it |
//! | [`unanswered`] | a request without its answer |
//! | [`question`] | what a request asks, or why it asks nothing |
//! | [`sockets`] | what the kernel knows of the connections |

mod instance;
mod pipelines;
mod question;
mod sockets;
mod stalls;
mod unanswered;
mod wait;

use std::collections::HashSet;
use std::io;
use std::mem;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket;
use parking_lot::Mutex;

use self::instance::Instance;
use self::pipelines::{Pipelines, Watched};
use self::sockets::{Connections, OwnAddress, Watch};
use self::stalls::{Nudged, StallBreaker};
use self::wait::Wait;
use crate::manager::Place;
use crate::server::handler::Handler;

/// How often the transport looks after itself.
const TICK: Duration = Duration::from_millis(100);

/// How soon after a connection has come it is made sure that it was not overlooked, and how long after
/// that no further one is looked after: where many come, that takes one part in twenty of a core.
const SOON: Duration = Duration::from_millis(3);
const PAUSE: Duration = Duration::from_millis(10);

/// How long that pause becomes at the most, while nothing is found: a connection is never overlooked for
/// a quarter of a second.
const LONGEST_PAUSE: Duration = Duration::from_millis(160);

/// Every so many ticks it looks after what hardly ever happens.
const SELDOM: u32 = 10;

/// How long a leader may serve one request before another one leads.
const STUCK: Duration = Duration::from_millis(20);

/// How long tiny_http has to accept again before the log is told, and how long it is left alone when it
/// gave up again.
const STABLE: Duration = Duration::from_secs(2);
const REOPEN_PAUSE: Duration = Duration::from_millis(200);

/// The server's end of a port.
pub(crate) struct HttpTransport {
    shared: Arc<Shared>,
    listener: TcpListener,
    instance: Arc<Instance>,
    /// Doors that accept no more, each with the connections that may be its own.
    older: Vec<(Arc<Instance>, Connections)>,
    watch: Watch,
    /// Waiters, by the id they are watched under, whose client may have gone.
    suspects: HashSet<u64>,
    nudger: StallBreaker,
    next_tick: Instant,
    next_watch_id: u64,
    /// When to look for overlooked connections; `None` until one comes.
    next_nudge: Option<Instant>,
    /// How long not to look for further ones after that.
    pause: Duration,
    ticks: u32,
    /// Since when nothing was accepted, or something again. `None` if the log was told that it is over.
    starved: Option<Instant>,
    next_reopening: Instant,
}

/// What all instances share.
struct Shared {
    handler: Arc<Handler>,
    own: OwnAddress,
    pipelines: Pipelines,
    /// The connections as they were when last looked up to watch a waiter.
    known: Mutex<Connections>,
}

impl HttpTransport {
    /// Serves on a prepared listener, in threads of its own.
    pub fn open(listener: TcpListener, handler: Arc<Handler>) -> io::Result<Self> {
        let watch = Watch::new(listener.try_clone()?, handler.stop.descriptors())?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            handler,
            own: OwnAddress(address),
            pipelines: Pipelines::default(),
            known: Mutex::default(),
        });
        let nudger = StallBreaker::new(address);
        let instance = Instance::open(&listener, shared.clone())?;
        Ok(HttpTransport {
            shared,
            listener,
            instance,
            older: Vec::new(),
            watch,
            suspects: HashSet::new(),
            nudger,
            next_tick: Instant::now() + TICK,
            next_watch_id: 0,
            next_nudge: None,
            pause: PAUSE,
            ticks: 0,
            starved: None,
            next_reopening: Instant::now(),
        })
    }

    /// Looks after the instance until the next tick or the next event. `true` once the server is asked
    /// to end.
    pub fn poll(&mut self) -> bool {
        let mut next = self
            .next_nudge
            .map_or(self.next_tick, |nudge| nudge.min(self.next_tick));
        if self.instances().any(|instance| instance.is_serving()) {
            next = next.min(Instant::now() + STUCK);
        }
        let left = next.saturating_duration_since(Instant::now());
        // Rounded up, so as not to come back for less than a millisecond.
        let events = self.watch.wait(left.as_millis() as u16 + 1);
        if events.stop {
            return true;
        }
        self.suspects.extend(events.ended);
        let now = Instant::now();
        // During a pause it may have been a nudge.
        if events.arrival && self.next_nudge.is_none() {
            self.next_nudge = Some(now + SOON);
        }
        if self.next_nudge.is_some_and(|nudge| nudge <= now) {
            self.nudge();
        }
        self.instances()
            .for_each(|instance| instance.depose_if_stuck(STUCK));
        if self.next_tick <= now {
            self.tick();
            self.next_tick = Instant::now() + TICK;
        }
        false
    }

    fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.older
            .iter()
            .map(|(instance, _)| instance)
            .chain([&self.instance])
    }

    fn tick(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        self.see_to_waiters();
        self.abandon_suspects();
        if !self.instance.is_accepting() {
            self.reopen();
        } else if self.starved.is_some_and(|since| since.elapsed() > STABLE) {
            self.starved = None;
            log::warn!("accepting connections again");
        }
        // Whoever came unnoticed is noticed now.
        self.next_nudge.get_or_insert_with(Instant::now);
        if self.ticks.is_multiple_of(SELDOM) {
            self.retire();
        }
    }

    /// Sees to it that no connection is overlooked.
    fn nudge(&mut self) {
        // Before the count is read, so that whoever comes after that is told of.
        let watched = self.watch.watch_arrivals();
        let nudged = self.nudger.nudge_if_busy();
        // Where other servers of the machine have many clients, they are counted, too.
        self.pause = match nudged {
            Nudged::InVain => (self.pause * 2).min(LONGEST_PAUSE),
            Nudged::NotAtAll | Nudged::Freed => PAUSE,
        };
        let again = nudged != Nudged::NotAtAll || watched.is_err();
        self.next_nudge = again.then(|| Instant::now() + self.pause);
    }

    /// Opens a new instance on the same listener, once there are descriptors again. tiny_http accepts
    /// nothing more after its first error, but goes on serving the connections that it has.
    fn reopen(&mut self) {
        if self.starved.replace(Instant::now()).is_none() {
            log::warn!(
                "no connection is accepted for now, most likely out of descriptors; the locks stay"
            );
        }
        // With fewer than a handful it would be over again at once.
        let handful: io::Result<Vec<_>> = (0..16).map(|_| self.listener.try_clone()).collect();
        if Instant::now() < self.next_reopening || handful.map(drop).is_err() {
            return;
        }
        self.next_reopening = Instant::now() + REOPEN_PAUSE;
        let reopened = Connections::look_up(self.shared.own).and_then(|connections| {
            Ok((
                Instance::open(&self.listener, self.shared.clone())?,
                connections,
            ))
        });
        match reopened {
            Ok((instance, connections)) => {
                let own = self
                    .older
                    .iter()
                    .fold(connections, |own, (_, others)| own.without(others));
                self.older
                    .push((mem::replace(&mut self.instance, instance), own));
                self.next_nudge = Some(Instant::now());
            }
            Err(error) => log::debug!("cannot accept connections yet: {error}"),
        }
    }

    /// Closes the instances whose connections have all ended.
    fn retire(&mut self) {
        if self.older.is_empty() {
            return;
        }
        let Ok(connections) = Connections::look_up(self.shared.own) else {
            return;
        };
        self.older.retain(|(instance, own)| {
            let needed = own.any_in(&connections);
            if !needed {
                instance.close();
                instance.dismiss();
            }
            needed
        });
    }

    /// Refuses and breaks off LOCKs, lets replies be finished until then, closes every connection and the
    /// port.
    pub fn close(self, until: Instant) {
        // tiny_http keeps a copy for a moment; shut down, it keeps nobody from the port.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        self.instances().for_each(|instance| instance.close());
        self.shared.handler.manager.stop();
        self.shared.pipelines.wait_until_served(until);
        if let Ok(connections) = Connections::look_up(self.shared.own) {
            connections.shut_down_all();
        }
        for (client, request) in self.shared.pipelines.end() {
            instance::forget(client, request, self.shared.own);
        }
        self.instances().for_each(|instance| instance.dismiss());
    }

    /// Has waiters watched for their client's end, and has a thread block for each.
    fn see_to_waiters(&mut self) {
        let unattended = self.shared.pipelines.unattended();
        self.watch(&unattended);
        for (wait, place) in unattended {
            wait.block(place);
        }
        self.instances().for_each(|instance| instance.answer_late());
    }

    fn watch(&mut self, unattended: &[(Arc<Wait>, Place)]) {
        let mut known = self.shared.known.lock();
        // To look through thousands takes milliseconds, and most clients have waited before.
        if !unattended.iter().all(|(wait, _)| known.has(&wait.client)) {
            match Connections::look_up(self.shared.own) {
                Ok(connections) => *known = connections,
                // Out of descriptors: the next tick tries again.
                Err(_) => return,
            }
        }
        for (wait, _) in unattended {
            self.next_watch_id += 1;
            let (id, client) = (self.next_watch_id, wait.client);
            if let Some(pair) = known.pair(&client) {
                wait.found(pair);
            }
            let fd = known.get(&client);
            if fd.is_none_or(|fd| self.watch.watch(fd, id).is_err()) || known.has_ended(&client) {
                // What has ended before reports nothing later.
                self.suspects.insert(id);
            }
            let watched = Watched {
                client,
                id,
                connection: known.identity(&client),
            };
            self.shared.pipelines.watch(wait, watched);
        }
    }

    /// Gives up the places of those suspects whose client has gone.
    fn abandon_suspects(&mut self) {
        let suspects = self.shared.pipelines.suspects(&self.suspects);
        if suspects.is_empty() {
            self.suspects.clear();
            return;
        }
        // Out of descriptors, nothing can be looked up: they stay suspects.
        let Ok(connections) = Connections::look_up(self.shared.own) else {
            return;
        };
        self.suspects.clear();
        for (watched, place) in suspects {
            if connections.has_hung_up(&watched) {
                log::debug!("{} went away while it waited", watched.client);
                self.shared.handler.manager.abandon(&place);
            }
        }
    }
}
