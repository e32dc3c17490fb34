//! How many requests were answered, by verb and status, and why the answer was no: a fixed table of counters.
//!
//! No counter has a key or a name: there are as many as there are verbs, statuses and words, whatever clients ask.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::protocol::{Reply, ReplyBody, Status, VERBS, Verb};
use crate::refusal::Refusal;

const STATUSES: usize = Status::ALL.len();

/// The row of what names no verb.
const NO_VERB: usize = VERBS.len();

/// What it is called.
const NO_VERB_NAME: &str = "other";

pub(crate) struct RequestCounts {
    answers: [[AtomicU64; STATUSES]; NO_VERB + 1],
    refusals: [AtomicU64; Refusal::COUNT],
}

impl RequestCounts {
    pub(super) const fn new() -> Self {
        RequestCounts {
            answers: [const { [const { AtomicU64::new(0) }; STATUSES] }; NO_VERB + 1],
            refusals: [const { AtomicU64::new(0) }; Refusal::COUNT],
        }
    }

    /// Counts a reply to a request for that verb, or for none that there is.
    pub fn count(&self, verb: Option<Verb>, reply: &Reply) {
        let row = verb.map_or(NO_VERB, |verb| verb as usize);
        self.answers[row][reply.status.index()].fetch_add(1, Relaxed);
        if let ReplyBody::No { result, .. } = reply.answer {
            self.refusals[result as usize].fetch_add(1, Relaxed);
        }
    }

    /// Each verb with each status: those that were answered, and of each verb the one that is usual.
    pub(super) fn answers(&self) -> Vec<(&'static str, u16, u64)> {
        let names = VERBS.iter().map(|row| match row.name {
            // The page's path has no name, and Prometheus takes a label without a value for none.
            "" => ("/", Status::Ok),
            name => (name, Status::Ok),
        });
        let names = names.chain([(NO_VERB_NAME, Status::NotFound)]);
        let mut answers = Vec::new();
        for ((name, usual), row) in names.zip(&self.answers) {
            for (status, count) in Status::ALL.into_iter().zip(row) {
                let count = count.load(Relaxed);
                if count > 0 || status == usual {
                    answers.push((name, status as u16, count));
                }
            }
        }
        answers
    }

    /// All words that a server sends.
    pub(super) fn refusals(&self) -> Vec<(&'static str, u64)> {
        Refusal::sent()
            .map(|word| (word.as_str(), self.refusals[word as usize].load(Relaxed)))
            .collect()
    }
}
