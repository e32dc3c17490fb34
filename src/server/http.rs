//! The HTTP transport: requests come as exchanges from [`tiny`](super::tiny), and the handler answers them.
//!
//! One thread, the [`leader`], takes the requests and answers them; while they pile up, [`helpers`] answer, too. A LOCK
//! that waits is [`parked`]: a worker blocks for it, and for nothing else. Answers that wait for the store, or that go
//! to an address which tries many tokens, are [`delayed`]. An answer without an end is a stream of [`events`]. The
//! [`pace`] limits slow answers.

mod delayed;
mod events;
mod helpers;
mod leader;
mod pace;
mod parked;

use std::io;
use std::mem;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use self::delayed::DelayedAnswers;
pub(super) use self::events::EventStreams;
use self::helpers::Help;
use self::leader::Leader;
use self::pace::Pace;
use self::parked::Parked;
use super::handler::Handler;
use super::limits;
use super::poller::Poller;
use super::status::ConnectionCount;
use super::tiny::{Exchange, Sockets, TinyHttp};
use super::workers::Workers;
use super::workers::leadership::Lead;
use crate::manager::{StoreEpoch, Waiter};
use crate::protocol::Reply;
use crate::server::access::Caller;

/// How often the transport checks its waiters and its port.
const TICK: Duration = Duration::from_millis(100);

/// How many ticks pass between two checks for what happens rarely.
const SELDOM: u32 = 10;

/// How long a leader may serve one request before another thread leads.
const LEADER_TIMEOUT: Duration = Duration::from_millis(20);

/// HTTP on one listener.
pub(crate) struct HttpTransport {
    http: Arc<Http>,
    tiny: TinyHttp,
    /// One for each instance of tiny_http.
    leaders: Vec<Arc<Leader>>,
    next_tick: Instant,
    ticks: u32,
}

/// The parts that all threads of the transport share.
struct Http {
    handler: Arc<Handler>,
    poller: Arc<Poller>,
    workers: Workers<Task>,
    /// Threads of a lower priority, which make slow answers for callers that are already let in: locking goes first.
    lookers: Workers<(Box<Exchange>, Caller)>,
    pace: Pace,
    sockets: Arc<Sockets>,
    /// Waiters that were added since the last tick.
    new_waiters: Mutex<Vec<Arc<Parked>>>,
    delayed: DelayedAnswers,
    /// One for all transports of the server.
    events: Arc<EventStreams>,
}

/// The tasks of a worker.
enum Task {
    /// Takes requests, and answers those that do not wait.
    Lead(Arc<Leader>, Lead),
    /// Answers requests that are ready, beside the leader.
    Help(Arc<Leader>, Help),
    /// Waits for a LOCK to be decided, and answers it.
    Attend(Arc<Parked>),
    /// Reads a body. Answers the request as usual if the body is empty, and refuses it otherwise.
    ReadBody(Box<Exchange>),
    /// Writes the delayed answers that are due.
    WriteDelayed,
}

impl HttpTransport {
    /// Serves on a prepared listener, in its own threads.
    pub fn open(
        listener: TcpListener,
        is_lent: bool,
        handler: Arc<Handler>,
        poller: Arc<Poller>,
        events: Arc<EventStreams>,
    ) -> io::Result<Self> {
        let tiny = TinyHttp::open(listener, is_lent, handler.names.clone())?;
        let http = Arc::new(Http {
            handler,
            poller,
            workers: Workers::new(),
            lookers: Workers::new(),
            pace: Pace::default(),
            sockets: tiny.sockets(),
            new_waiters: Mutex::default(),
            delayed: DelayedAnswers::default(),
            events,
        });
        let leader = Leader::start(tiny.instance().clone(), http.clone());
        Ok(HttpTransport {
            http,
            tiny,
            leaders: vec![leader],
            next_tick: Instant::now() + TICK,
            ticks: 0,
        })
    }

    /// The latest time for the next [`poll`](Self::poll).
    pub fn next_poll(&self) -> Instant {
        let is_serving = self.leaders.iter().any(|leader| leader.is_serving());
        let stuck = is_serving.then(|| Instant::now() + LEADER_TIMEOUT);
        let sooner = stuck.into_iter().chain(self.tiny.next_look());
        sooner.fold(self.next_tick, Instant::min)
    }

    /// Checks leaders, connections and waiters. `arrival` is true if a connection has arrived.
    pub fn poll(&mut self, arrival: bool) {
        if arrival {
            self.tiny.note_arrival();
        }
        let poller = &self.http.poller;
        self.tiny.look_for_stalls(|| poller.expect_arrival());
        for leader in &self.leaders {
            leader.depose_if_stuck(LEADER_TIMEOUT);
        }
        if self.next_tick <= Instant::now() {
            self.tick();
            self.next_tick = Instant::now() + TICK;
        }
    }

    /// Whether no connection has many unanswered bytes: then freed memory can go back to the system.
    pub fn is_calm(&self) -> bool {
        self.tiny.is_calm()
    }

    /// Returns a function that counts the open connections.
    pub fn connection_count(&self) -> ConnectionCount {
        let sockets = self.http.sockets.clone();
        Box::new(move || sockets.count())
    }

    fn tick(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        self.leaders
            .iter()
            .for_each(|leader| leader.give_up_stuck_helpers());
        self.attend_waiters();
        self.write_delayed();
        if let Some(instance) = self.tiny.keep_accepting() {
            let leader = Leader::start(instance, self.http.clone());
            self.leaders.push(leader);
        }
        self.tiny.end_unfinished();
        if self.ticks.is_multiple_of(SELDOM) {
            self.tiny.retire();
            self.leaders.retain(|leader| !leader.instance.is_over());
        }
    }

    fn write_delayed(&self) {
        let http = &self.http;
        http.delayed.replace_stuck_writer();
        http.delayed.look(|| http.run(Task::WriteDelayed));
    }

    /// Watches the clients of new waiters for hang-ups, and has a worker block for each waiter.
    fn attend_waiters(&self) {
        let waiters = mem::take(&mut *self.http.new_waiters.lock());
        // A look-up of thousands takes milliseconds, and most clients have waited before.
        let found = match waiters.iter().all(|waiter| waiter.is_located()) {
            true => Ok(()),
            false => self.tiny.find_connections(),
        };
        for waiter in waiters {
            if found.is_ok() || waiter.is_located() {
                waiter.watch();
            } else {
                // Out of descriptors: the next tick looks again.
                self.http.new_waiters.lock().push(waiter.clone());
            }
            waiter.attend();
        }
    }

    /// Stops accepting connections. Requests that have arrived are still answered.
    pub fn refuse(&self) {
        self.http.workers.hold();
        self.http.lookers.hold();
        self.tiny.refuse();
    }

    /// Lets answers be written until `until`, then ends every connection. The lock manager has to be stopped before:
    /// then each waiting LOCK is decided.
    pub fn close(self, until: Instant) {
        self.http.delayed.end();
        self.write_delayed();
        self.tiny.close(until);
        self.http.workers.close();
        self.http.lookers.close();
        self.http.delayed.clear();
        // Each waiter holds an `Arc` of the transport, which holds the waiter.
        self.http.new_waiters.lock().clear();
    }
}

/// Runs work in its own stack frame. Inlined, the work would take a page of the stack of each thread that blocks for a
/// LOCK.
#[inline(never)]
fn in_own_frame<R>(work: impl FnOnce() -> R) -> R {
    work()
}

impl Http {
    /// Has a worker do the task. If the system has no thread left, the task is put off, or its request fails.
    fn run(self: &Arc<Self>, task: Task) {
        let http = self.clone();
        let work = move || {
            while let Some(task) = http.workers.next() {
                match task {
                    Task::Lead(leader, lead) => in_own_frame(|| leader.lead(&lead)),
                    Task::Help(leader, help) => in_own_frame(|| leader.help(&help)),
                    Task::Attend(parked) => parked.wait_and_answer(),
                    Task::ReadBody(exchange) => in_own_frame(|| http.read_body(*exchange)),
                    Task::WriteDelayed => in_own_frame(|| http.delayed.write()),
                }
            }
        };
        let Err((task, error)) = self.workers.run(task, work) else {
            return;
        };
        match task {
            Task::Lead(leader, lead) => {
                log::error!("no thread left to take requests: {error}");
                leader.leave_vacant(lead);
            }
            Task::Help(leader, help) => leader.do_without(&help),
            Task::Attend(parked) => parked.do_without(&error),
            // Dropping the exchange ends its connection.
            Task::ReadBody(exchange) => drop(exchange),
            Task::WriteDelayed => self.delayed.do_without(),
        }
    }

    /// Answers a request once every decision before this call is stored. `asked` was read before the request was
    /// decided.
    fn answer_once_stored(
        self: &Arc<Self>,
        mut exchange: Exchange,
        reply: Reply,
        asked: StoreEpoch,
    ) {
        exchange.park();
        let http = self.clone();
        let later = move |(exchange, reply)| {
            let reply = http.handler.stored_reply(reply, asked);
            http.write_soon(exchange, reply);
        };
        let handler = &self.handler;
        let now = handler.manager.once_stored(asked, (exchange, reply), later);
        if let Some((exchange, reply)) = now {
            exchange.answer(&handler.stored_reply(reply, asked));
        }
    }

    /// Queues an answer for the worker that writes delayed answers.
    fn write_soon(self: &Arc<Self>, exchange: Exchange, reply: Reply) {
        self.delayed.add(exchange, reply);
        self.delayed.look(|| self.run(Task::WriteDelayed));
    }

    /// Has a worker of a lower priority answer a request.
    fn have_looked(self: &Arc<Self>, exchange: Box<Exchange>, caller: Caller) {
        let http = self.clone();
        let work = move || {
            limits::lower_priority();
            while let Some((exchange, caller)) = http.lookers.next() {
                http.look(*exchange, &caller);
            }
        };
        // Dropping the exchange ends its connection.
        if let Err((_, error)) = self.lookers.run((exchange, caller), work) {
            log::warn!("no thread left for a slow answer: {error}");
        }
    }

    /// Keeps a waiting LOCK until its outcome is decided.
    fn park(&self, parked: Arc<Parked>) {
        parked.settle();
        let deadline = parked.pending().deadline();
        self.new_waiters.lock().push(parked.clone());
        if deadline < Instant::now() + 2 * TICK {
            // The next tick may come after its deadline.
            parked.attend();
        }
    }
}
