//! The events of keys, as server-sent events (the HTML standard, section 9.2), made from what the lock manager kept.

use crate::event::EndedHold;
use crate::manager::{FeedChange, FeedEvent, Moment, TakenEvents};
use crate::protocol::json::{LockEvent, LockEventKind, to_json};

/// Sent when nothing happens, so that a proxy keeps the stream open. A comment, which readers skip.
pub(crate) const HEARTBEAT: &[u8] = b":\n\n";

/// The first line of a stream: a comment with the name of this run of the server.
pub(crate) fn introduction(server: &str) -> String {
    format!(": lock-server {server}\n\n")
}

/// The events in their order, in `most` bytes or little more. The last event says how many were left out.
pub(crate) fn block(taken: &TakenEvents, now: Moment, most: usize) -> Vec<u8> {
    let mut block = String::new();
    let mut missed = taken.missed + taken.events.len() as u64;
    for event in &taken.events {
        if block.len() >= most {
            break;
        }
        missed -= 1;
        write(&mut block, &shown(event, now));
    }
    if missed > 0 {
        let mut event = LockEvent::new(LockEventKind::Missed, now.time);
        event.events = Some(missed);
        write(&mut block, &event);
    }
    block.into_bytes()
}

/// `to_json` writes one line, so one `data` field is enough.
fn write(block: &mut String, event: &LockEvent) {
    let kind = event.kind.to_string();
    for part in ["event: ", &kind, "\ndata: ", &to_json(event), "\n"] {
        block.push_str(part);
    }
}

fn shown(event: &FeedEvent, now: Moment) -> LockEvent {
    let at = now.time_of(event.at);
    let mut shown = LockEvent::new(LockEventKind::Left, at);
    shown.key = event.key.to_string();
    shown.name = event.requester.to_string();
    shown.kind = match &event.change {
        FeedChange::Granted {
            fence,
            slots,
            left,
            waited,
        } => {
            shown.fence = Some(*fence);
            shown.slots = Some(*slots);
            shown.left = Some(*left);
            shown.waited = *waited;
            match waited {
                Some(_) => LockEventKind::HandedOver,
                None => LockEventKind::Granted,
            }
        }
        FeedChange::Renewed { fence, left } => {
            shown.fence = Some(*fence);
            shown.left = Some(*left);
            LockEventKind::Renewed
        }
        FeedChange::Released(ended) => over(&mut shown, ended, LockEventKind::Released),
        FeedChange::Expired(ended) => over(&mut shown, ended, LockEventKind::Expired),
        FeedChange::Broken { ended, by } => {
            shown.by = by.as_deref().map(Into::into);
            over(&mut shown, ended, LockEventKind::Broken)
        }
        FeedChange::Queued(slots) => {
            shown.slots = Some(*slots);
            LockEventKind::Queued
        }
        FeedChange::Left => LockEventKind::Left,
    };
    shown
}

/// Adds the figures of an ended hold. Returns `kind`.
fn over(shown: &mut LockEvent, ended: &EndedHold, kind: LockEventKind) -> LockEventKind {
    shown.fence = Some(ended.fence);
    shown.held = Some(ended.held.length());
    kind
}
