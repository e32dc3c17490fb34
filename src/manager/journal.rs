//! The journal: each event of the lock table as a line of the log, at level trace.

use std::time::Instant;

use crate::event::{Change, TableEvent};
use crate::lease::{Grant, Slots, Ticket};

/// The log target of the journal.
const TARGET: &str = "lock_server::journal";

/// Numbers the lines, because two threads may write theirs in any order.
pub(super) struct Journal {
    begun: Instant,
    number: u64,
}

impl Journal {
    /// `None` unless the log takes level trace for the journal.
    pub fn begin() -> Option<Self> {
        log::log_enabled!(target: TARGET, log::Level::Trace).then(|| Journal {
            begun: Instant::now(),
            number: 0,
        })
    }

    pub fn line<W>(&mut self, now: Instant, event: &TableEvent<W>) -> String {
        self.number += 1;
        let at = now.saturating_duration_since(self.begun).as_micros();
        let TableEvent {
            key,
            requester,
            change,
        } = event;
        let (verb, details) = match change {
            Change::Granted { grant, .. } => {
                ("granted", lease(now, grant) + &together(grant.slots))
            }
            Change::Repeated(grant) => ("repeated", lease(now, grant)),
            Change::Renewed { grant, .. } => ("renewed", lease(now, grant)),
            Change::Released(_) => ("released", String::new()),
            Change::Expired(ended) => ("expired", format!(" fence {}", ended.fence)),
            Change::Broken { ended, .. } => ("broken", format!(" fence {}", ended.fence)),
            Change::Queued { ticket, slots } => ("queued", place(*ticket, *slots)),
            Change::TakenOver { ticket, slots, .. } => ("taken-over", place(*ticket, *slots)),
            Change::Left { ticket, .. } => ("left", format!(" ticket {ticket}")),
            Change::Reserved { ticket, .. } => ("reserved", format!(" ticket {ticket}")),
        };
        format!(
            "{} at {at} {verb} {key:?} {requester:?}{details}",
            self.number
        )
    }
}

pub(super) fn write(line: &str) {
    log::trace!(target: TARGET, "{line}");
}

fn place(ticket: Ticket, slots: Slots) -> String {
    format!(" ticket {ticket}{}", together(slots))
}

/// The slots, if others may hold the key at the same time.
fn together(slots: Slots) -> String {
    match slots {
        1 => String::new(),
        slots => format!(" slots {slots}"),
    }
}

fn lease(now: Instant, grant: &Grant) -> String {
    let left = grant.expires.saturating_duration_since(now).as_micros();
    format!(" fence {} for {left}", grant.fence)
}
