//! Everything that exists because of tiny_http 0.12, and nothing else. Other rooms see [`Exchange`]s.
//!
//! | what tiny_http does | file | test |
//! |---|---|---|
//! | leaves a new connection unserved: a stale count makes it hand the connection to a busy thread | `stalls.rs` | `of_64_connections_at_once_each_is_answered_within_250_ms_whatever_else_is_connected` |
//! | ends its accept loop on the first error, by a panic at its last descriptor | `tiny.rs` | `without_descriptors_the_locks_stay_and_new_connections_are_answered_within_a_second_of_some_being_free` |
//! | hides its sockets, and that a client has gone | `sockets.rs` | `a_waiter_whose_process_is_killed_gives_up_its_place_within_a_second`, `a_waiter_is_not_kept_alive_by_a_new_connection_from_its_port`, `a_descriptor_number_that_was_used_again_is_not_shut_down` |
//! | reads a connection's next requests before the one before them is answered | `instance.rs` | `a_hundred_thousand_pipelined_requests_delay_nobody_else` |
//! | answers a dropped request itself, after waiting for the requests before it | `exchange.rs` | `requests_behind_a_waiting_lock_are_answered_when_the_server_ends` |
//! | blocks a thread that writes to a client which does not read | `exchange.rs` | `a_client_that_never_reads_delays_nobody_and_loses_its_connection` |
//! | reads a header line of any length, and never times a read out | `unfinished.rs` | `an_endless_header_line_ends_its_connection_and_its_memory_is_freed`, `a_request_incomplete_after_10_s_ends_its_connection_and_a_waiting_lock_goes_on` |
//! | reads a body to its end when a request is dropped, and allocates the announced length for it | `body.rs` | `a_huge_content_length_ends_only_its_own_connection`, `a_body_announced_larger_than_the_memory_costs_nothing_that_stays` |
//! | parses the rest of a body that is not read to its end as requests, also after its connection was shut down | `ended.rs` | `requests_in_a_refused_body_are_not_served` |
//! | ends a connection without an answer at a byte that is not ASCII, before there is a request | none: documented in `guide/wire.md` | `a_request_line_that_is_not_ascii_ends_its_connection_without_an_answer` |
//! | answers a request with `Expect: foo` with 417 at once, before the request ahead of it | none: only its sender is harmed | |
//! | leaves a thread and two descriptors waiting for a connection that sent an HTTP/2 or HTTP/3 request line, until the process ends | none: the thread cannot be reached | |
//! | starts threads in `from_listener` | `tiny.rs`: only the serving process calls it | `start_returns_the_childs_pid_once_it_answers` |

mod body;
mod ended;
mod exchange;
mod instance;
mod polling;
mod sockets;
mod stalls;
mod traffic;
mod unfinished;

use std::io;
use std::mem;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use self::exchange::{AnswerStream, Exchange};
pub(super) use self::instance::Instance;
use self::sockets::Connections;
pub(super) use self::sockets::Sockets;
use self::stalls::StallBreaker;
use self::unfinished::{Activity, Look, Observed, Unfinished};
use super::listen;
use crate::protocol::ServerNames;

/// How long tiny_http has to accept again before that is logged, and the pause between two tries to reopen it.
const STABLE: Duration = Duration::from_secs(2);
const REOPEN_PAUSE: Duration = Duration::from_millis(200);

/// tiny_http on one listener, kept running.
pub(super) struct TinyHttp {
    listener: TcpListener,
    /// Whether another process listens on it, too.
    is_lent: bool,
    sockets: Arc<Sockets>,
    instance: Arc<Instance>,
    /// Instances that accept no more, each with the connections that may belong to it.
    older: Vec<(Arc<Instance>, Connections)>,
    stalls: StallBreaker,
    unfinished: Unfinished,
    /// When accepting last failed. `None` if it works, and the log says so.
    starved: Option<Instant>,
    next_reopening: Instant,
}

impl TinyHttp {
    /// Accepts connections, for a server of these names. Their requests come from [`instance`](Self::instance).
    pub fn open(listener: TcpListener, is_lent: bool, names: ServerNames) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let sockets = Arc::new(Sockets::new(address));
        let instance = Instance::open(&listener, sockets.clone(), names)?;
        Ok(TinyHttp {
            listener,
            is_lent,
            sockets,
            instance,
            older: Vec::new(),
            stalls: StallBreaker::new(address),
            unfinished: Unfinished::new(Instant::now()),
            starved: None,
            next_reopening: Instant::now(),
        })
    }

    /// The instance that accepts connections.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        let older = self.older.iter().map(|(instance, _)| instance);
        older.chain([&self.instance])
    }

    /// When to look for overlooked connections. `None` until a connection comes.
    pub fn next_look(&self) -> Option<Instant> {
        self.stalls.next_look()
    }

    /// Notes that a connection has arrived, which tiny_http may overlook.
    pub fn note_arrival(&mut self) {
        self.stalls.expect_one(Instant::now());
    }

    /// Frees overlooked connections, if a look is due. `expect_arrival` makes the next connection reported.
    pub fn look_for_stalls(&mut self, expect_arrival: impl FnOnce() -> io::Result<()>) {
        self.stalls.look(expect_arrival);
    }

    /// Checks that connections are accepted, and schedules a look for overlooked ones. Returns a new instance if one
    /// had to be opened, whose requests have to be taken, too.
    pub fn keep_accepting(&mut self) -> Option<Arc<Instance>> {
        self.stalls.look_soon(Instant::now());
        if self.instance.is_accepting() {
            if self.starved.is_some_and(|since| since.elapsed() > STABLE) {
                self.starved = None;
                log::warn!("accepting connections again");
            }
            return None;
        }
        if self.starved.replace(Instant::now()).is_none() {
            log::warn!(
                "no connection is accepted for now, most likely out of descriptors; the locks stay"
            );
        }
        // With fewer descriptors than these it would fail again at once.
        let handful: io::Result<Vec<_>> = (0..16).map(|_| self.listener.try_clone()).collect();
        if Instant::now() < self.next_reopening || handful.map(drop).is_err() {
            return None;
        }
        self.next_reopening = Instant::now() + REOPEN_PAUSE;
        match self.reopen() {
            Ok(()) => Some(self.instance.clone()),
            Err(error) => {
                log::debug!("cannot accept connections yet: {error}");
                None
            }
        }
    }

    /// Ends connections whose requests never become complete, if a look is due.
    pub fn end_unfinished(&mut self) {
        let now = Instant::now();
        match self.unfinished.due(now) {
            None => return,
            Some(Look::Known) => {}
            Some(Look::All) => {
                if self.sockets.refresh().is_err() {
                    // Out of descriptors: the known connections are looked at.
                    log::trace!("no descriptor to look for connections with");
                }
            }
        }
        let instances: Vec<_> = self.instances().cloned().collect();
        let activity = |client| {
            let activities = instances.iter().map(|instance| instance.activity(client));
            let mut served = activities.filter(|activity| *activity != Activity::None);
            served.next().unwrap_or(Activity::None)
        };
        let connections = self.sockets.known().into_iter();
        let connections = connections.filter_map(|(client, pair)| {
            let observed = Observed {
                id: pair.id(),
                traffic: pair.traffic()?,
                activity: activity(client),
            };
            Some(((client, pair), observed))
        });
        self.unfinished
            .look(now, connections, |(client, pair), why| {
                log::debug!("the connection of {client} is ended: {why}");
                pair.break_off();
            });
    }

    /// Whether no connection has many unanswered bytes: then memory is not about to grow.
    pub fn is_calm(&self) -> bool {
        self.unfinished.is_calm()
    }

    /// Opens a new instance on the same listener. The old one keeps serving its connections.
    fn reopen(&mut self) -> io::Result<()> {
        let connections = self.sockets.look_up()?;
        let instance = Instance::open(
            &self.listener,
            self.sockets.clone(),
            self.instance.names.clone(),
        )?;
        let own = self
            .older
            .iter()
            .fold(connections, |own, (_, others)| own.without(others));
        self.older
            .push((mem::replace(&mut self.instance, instance), own));
        Ok(())
    }

    /// Closes the instances whose connections have all ended.
    pub fn retire(&mut self) {
        if self.older.is_empty() {
            return;
        }
        let Ok(connections) = self.sockets.look_up() else {
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

    /// The descriptors of its connections.
    pub fn sockets(&self) -> Arc<Sockets> {
        self.sockets.clone()
    }

    /// Looks up all connections, so that each exchange finds its own. An error if no descriptor is left.
    pub fn find_connections(&self) -> io::Result<()> {
        self.sockets.refresh()
    }

    /// Stops accepting connections. Requests that have arrived are still answered.
    pub fn refuse(&self) {
        // tiny_http keeps a copy for a moment; the shutdown frees the port at once.
        listen::refuse(&self.listener, self.is_lent, || {
            self.instance.is_accepting()
        });
        self.instances().for_each(|instance| instance.close());
    }

    /// Lets answers be written until `until`, then ends every connection.
    pub fn close(self, until: Instant) {
        self.instances()
            .for_each(|instance| instance.wait_until_served(until));
        if let Ok(connections) = self.sockets.look_up() {
            self.sockets.shut_down_all(&connections);
        }
        for instance in self.instances() {
            instance.forget_requests();
            instance.dismiss();
        }
        if self.is_lent {
            // When dropped, tiny_http connects to its port, to wake a thread that has ended. The next server on the
            // same listener would accept that connection.
            self.instances().cloned().for_each(mem::forget);
        }
    }
}
