//! Counters of the answers by verb and status, and of the refusals by their word: a table of fixed size.
//!
//! No counter is for a key or a name: the number of counters depends only on verbs, statuses and words, not on clients.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::protocol::{Reply, ReplyBody, Status, VERBS, Verb};
use crate::refusal::Refusal;

const STATUSES: usize = Status::ALL.len();

/// The row of unknown verbs.
const NO_VERB: usize = VERBS.len();

/// The label of unknown verbs.
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

    /// Counts a reply to a request. `None`: its verb is unknown.
    pub fn count(&self, verb: Option<Verb>, reply: &Reply) {
        let row = verb.map_or(NO_VERB, |verb| verb as usize);
        self.answers[row][reply.status.index()].fetch_add(1, Relaxed);
        if let ReplyBody::No { result, .. } = reply.answer {
            self.refusals[result as usize].fetch_add(1, Relaxed);
        }
    }

    /// The counters by verb and status: those above 0, and the usual status of each verb.
    pub(super) fn answers(&self) -> Vec<(&'static str, u16, u64)> {
        let names = VERBS.iter().map(|row| match row.name {
            // The page's path has no name, and Prometheus treats an empty label as a missing one.
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

    /// The counters of all words that a server sends.
    pub(super) fn refusals(&self) -> Vec<(&'static str, u64)> {
        Refusal::sent()
            .map(|word| (word.as_str(), self.refusals[word as usize].load(Relaxed)))
            .collect()
    }
}
