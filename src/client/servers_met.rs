//! Which runs of a server have answered at one address, and whether two of them run side by side.
//!
//! Knows nothing of leases.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::lease::ServerId;

/// How many runs are remembered: more than anybody has behind one address by mistake.
const MOST: usize = 8;

/// The runs, in the order in which they first answered.
#[derive(Default)]
pub(super) struct ServersMet(Mutex<VecDeque<ServerMet>>);

struct ServerMet {
    id: ServerId,
    /// When its first answer had arrived.
    met: Instant,
    /// When the latest question that it answered was sent.
    last_asked: Instant,
}

impl ServersMet {
    /// Notes that `server` answered a question that was sent at `asked`.
    pub fn note(&self, server: &ServerId, asked: Instant) {
        let mut met = self.met();
        if let Some(known) = met.iter_mut().find(|known| known.id == *server) {
            known.last_asked = known.last_asked.max(asked);
            return;
        }
        if met.len() == MOST {
            met.pop_front();
        }
        met.push_back(ServerMet {
            id: server.clone(),
            met: Instant::now(),
            last_asked: asked,
        });
    }

    /// Whether the earlier of the two has answered a question that was sent after the later one had answered. An answer
    /// to an earlier question proves nothing: a server that is ending still answers its last questions.
    pub fn are_both_there(&self, one: &ServerId, other: &ServerId) -> bool {
        let met = self.met();
        let mut both = met.iter().filter(|met| met.id == *one || met.id == *other);
        match (both.next(), both.next()) {
            (Some(first), Some(second)) => first.last_asked > second.met,
            _ => false,
        }
    }

    fn met(&self) -> MutexGuard<'_, VecDeque<ServerMet>> {
        // Nothing panics under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_a_question_from_before_the_other_server_was_met_proves_nothing() {
        let [old, new]: [ServerId; 2] = ["old".into(), "new".into()];
        let met = ServersMet::default();
        let before = Instant::now();
        met.note(&old, before);
        met.note(&new, before);
        met.note(&old, before);
        met.note(&new, Instant::now());
        assert!(!met.are_both_there(&old, &new));
        met.note(&old, Instant::now());
        assert!(met.are_both_there(&old, &new) && met.are_both_there(&new, &old));
        assert!(!met.are_both_there(&old, &"never met".into()));
    }

    #[test]
    fn only_the_latest_servers_are_remembered() {
        let met = ServersMet::default();
        for number in 0..100 {
            met.note(&number.to_string().into(), Instant::now());
        }
        assert_eq!(met.met().len(), MOST);
    }
}
