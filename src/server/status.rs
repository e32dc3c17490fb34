//! The inspection documents and the metrics: made from copies of the lock manager's state, and from the server's own
//! counters.

mod history;
mod metrics;
mod page;
mod process;
mod requests;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;

use self::history::History;
use self::metrics::Scrape;
use self::process::ProcessFigures;
use self::requests::RequestCounts;
use crate::manager::{LockManager, Moment};
use crate::protocol::json::{
    HeldBy, HeldKey, KeyDetail, LockPage, StatusReport, StoreReport, Totals, WaitingBy, to_json,
};
use crate::protocol::{Malformed, Parameter, Reply, Request};
use crate::server::status::page::PageRow;
use crate::table::{Filter, HoldView, KeyView, Limits, WaiterView};

pub(super) mod events;

/// How many keys a page has if the question gives no limit.
const USUAL_LIMIT: u64 = 100;

/// How many holders and how many waiters of one key are shown.
const MOST_OF_ONE_KEY: usize = 10_000;

const JSON: &str = "application/json";

pub(crate) struct ServerStatus {
    pub manager: Arc<LockManager>,
    /// The name of this run of the server.
    pub server: Arc<str>,
    /// Counts the answers of both transports.
    pub requests: RequestCounts,
    limits: Limits,
    /// The kind of the store, as it is shown. `None` without a store.
    store_kind: Option<&'static str>,
    /// Whether the process is the server's own.
    has_process: bool,
    started: Moment,
    history: Mutex<History>,
    /// Counts the connections of each listener. Not set until the transports exist.
    connections: OnceLock<Vec<ConnectionCount>>,
}

/// Counts the connections of one listener.
pub(crate) type ConnectionCount = Box<dyn Fn() -> usize + Send + Sync>;

impl ServerStatus {
    pub fn new(
        manager: Arc<LockManager>,
        server: Arc<str>,
        limits: Limits,
        store_kind: Option<&'static str>,
        has_process: bool,
    ) -> Self {
        let started = Moment::now();
        ServerStatus {
            manager,
            server,
            requests: RequestCounts::new(),
            limits,
            store_kind,
            has_process,
            started,
            history: Mutex::new(History::begin(started.instant)),
            connections: OnceLock::new(),
        }
    }

    /// Sets what counts the connections of each listener.
    pub fn count_connections(&self, counts: Vec<ConnectionCount>) {
        // Set once: a server serves once.
        let _ = self.connections.set(counts);
    }

    fn connections(&self) -> usize {
        let counts = self.connections.get().into_iter().flatten();
        counts.map(|count| count()).sum()
    }

    /// Ends a sample of the history, if it is due. Called by the server's loop.
    pub fn tick(&self) {
        if self.history.lock().is_due(Instant::now()) {
            self.record();
        }
    }

    /// Ends a sample, and logs which leases ran out, if that is due.
    pub fn record(&self) {
        let (size, statistics) = self.manager.statistics();
        let store = self.manager.store_statistics();
        let commit_times = store.map(|(_, statistics)| statistics.commit_times);
        let now = Moment::now();
        let mut history = self.history.lock();
        history.record(now, size, statistics, commit_times);
        let notice = history.notice(now.instant);
        drop(history);
        if let Some(notice) = notice {
            log::info!("{notice}");
        }
    }

    /// The reply to `/status`.
    pub fn status(&self, may_break: bool) -> Reply {
        Reply::document(JSON, to_json(&self.report(may_break)))
    }

    fn report(&self, may_break: bool) -> StatusReport {
        let (size, statistics) = self.manager.statistics();
        let now = Moment::now();
        let process = ProcessFigures::read();
        let store = self.store();
        let is_stopping = self.manager.is_stopping();
        let elected = self.manager.elected();
        StatusReport {
            server: self.server.to_string(),
            now: now.time,
            version: env!("CARGO_PKG_VERSION").into(),
            role: self.role().into(),
            leader: elected
                .as_ref()
                .and_then(|elected| elected.leader.as_deref().map(Into::into)),
            leader_since: elected.and_then(|elected| elected.since),
            state: if is_stopping { "stopping" } else { "serving" }.into(),
            started: self.started.time,
            uptime: now.since(self.started.instant),
            keys: size.keys,
            holds: size.holds,
            waiting: size.waiters,
            connections: self.connections(),
            threads: process.threads,
            memory_bytes: process.resident_bytes,
            event_streams: self.manager.readers(),
            may_break,
            totals: Totals {
                granted: statistics.granted_at_once,
                handed_over: statistics.handed_over,
                released: statistics.released,
                expired: statistics.expired,
                renewed: statistics.renewed,
                broken: statistics.broken,
                timed_out: statistics.timed_out,
            },
            store,
            history: self.history.lock().samples(),
        }
    }

    /// `single` if no other server can lead.
    fn role(&self) -> &'static str {
        match (self.manager.elected(), self.manager.stands_by()) {
            (None, _) => "single",
            (Some(_), true) => "standby",
            (Some(_), false) => "leader",
        }
    }

    fn store(&self) -> Option<StoreReport> {
        let kind = self.store_kind?;
        let (store, statistics) = self.manager.store_statistics()?;
        let times = self.history.lock().latest_commits(statistics.commit_times);
        let elected = self.manager.elected();
        Some(StoreReport {
            kind: kind.into(),
            bytes: statistics.bytes,
            commits: statistics.commits,
            records: statistics.records,
            failures: statistics.failures,
            is_full: store.is_full,
            last_error: statistics.last_error,
            trouble: elected.and_then(|elected| elected.trouble.as_deref().map(Into::into)),
            lag: store.lag,
            commit_p50: times.quantile(0.5),
            commit_p99: times.quantile(0.99),
        })
    }

    /// The reply to `/metrics`.
    pub fn metrics(&self) -> Reply {
        let (size, statistics) = self.manager.statistics();
        let scrape = Scrape {
            started: self.started.time,
            size,
            limits: self.limits,
            statistics,
            store: self.manager.store_statistics(),
            leads: !self.manager.stands_by(),
            connections: self.connections(),
            event_streams: self.manager.readers(),
            answers: self.requests.answers(),
            refusals: self.requests.refusals(),
            process: self.has_process.then(ProcessFigures::read),
        };
        Reply::document(metrics::CONTENT_TYPE, scrape.into_text())
    }

    /// The reply to `/locks` and `/locks/key`.
    pub fn locks(&self, question: &Request) -> Reply {
        match question.key.is_empty() {
            true => self.page(question),
            false => Reply::document(JSON, to_json(&self.detail(&question.key))),
        }
    }

    /// The reply to `/`.
    pub fn front_page(&self, may_break: bool) -> Reply {
        let everything = Filter {
            prefix: "",
            holder: None,
        };
        let look = self.manager.look(everything, None, page::ROWS);
        let now = Moment::now();
        // A listed key has a holder.
        let rows = look.found.iter().filter_map(|key| {
            let hold = key.holds.first()?;
            Some(PageRow {
                key: &key.key,
                holder: &hold.requester,
                holders: key.holders,
                held: now.since(hold.since),
                left: now.until(hold.expires),
                waiters: key.waiters,
                note: hold.note.as_deref(),
            })
        });
        let html = page::render(&self.report(may_break), &rows.collect::<Vec<_>>());
        Reply::document(page::CONTENT_TYPE, html)
            .with_header("Content-Security-Policy", page::CONTENT_SECURITY_POLICY)
    }

    fn page(&self, question: &Request) -> Reply {
        let after = question.text(Parameter::After);
        let after = match after.map(|after| self.manager.read_cursor(after)) {
            Some(None) => {
                let reason =
                    "after is no cursor; give the next of the page before, or leave it out";
                return Malformed::BadRequest(reason.into()).into();
            }
            after => after.flatten(),
        };
        let filter = Filter {
            prefix: question.text(Parameter::Prefix).unwrap_or_default(),
            holder: question
                .text(Parameter::Holder)
                .filter(|holder| !holder.is_empty()),
        };
        let limit = question.number(Parameter::Limit).unwrap_or(USUAL_LIMIT);
        let look = self.manager.look(filter, after, limit as usize);
        let (now, size) = (Moment::now(), self.manager.size());
        let locks = look.found.into_iter().map(|key| held_key(key, now));
        let page = LockPage {
            server: self.server.to_string(),
            now: now.time,
            keys: size.keys,
            holds: size.holds,
            waiting: size.waiters,
            locks: locks.collect(),
            next: look.next.map(|next| self.manager.write_cursor(next)),
        };
        Reply::document(JSON, to_json(&page))
    }

    fn detail(&self, key: &str) -> KeyDetail {
        let found = self.manager.look_at(key, MOST_OF_ONE_KEY);
        let now = Moment::now();
        let (held, queue) = match found {
            Some((view, queue)) => (Some(held_key(view, now)), queue),
            None => (None, Vec::new()),
        };
        let (holders, waiters, held_by) = held.map_or((0, 0, Vec::new()), |held| {
            (held.holders, held.waiters, held.held_by)
        });
        KeyDetail {
            server: self.server.to_string(),
            now: now.time,
            key: key.into(),
            holders,
            waiters,
            held_by,
            queue: queue.iter().map(|waiter| waiting_by(waiter, now)).collect(),
        }
    }
}

fn held_key(view: KeyView, now: Moment) -> HeldKey {
    HeldKey {
        key: view.key.to_string(),
        holders: view.holders,
        waiters: view.waiters,
        held_by: view.holds.iter().map(|hold| held_by(hold, now)).collect(),
    }
}

fn held_by(hold: &HoldView, now: Moment) -> HeldBy {
    HeldBy {
        name: hold.requester.to_string(),
        fence: hold.fence,
        slots: hold.slots,
        note: hold.note.as_deref().map(Into::into),
        since: now.time_of(hold.since),
        held: now.since(hold.since),
        expires: now.time_of(hold.expires),
        left: now.until(hold.expires),
        lease: hold.lock_timeout,
    }
}

fn waiting_by(waiter: &WaiterView, now: Moment) -> WaitingBy {
    WaitingBy {
        name: waiter.requester.to_string(),
        slots: waiter.slots,
        note: waiter.note.as_deref().map(Into::into),
        since: now.time_of(waiter.since),
        waiting: now.since(waiter.since),
        left: now.until(waiter.deadline),
    }
}
