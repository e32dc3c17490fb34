//! Which runs of a server have answered at one address, and whether two of them run side by side.
//!
//! Knows nothing of leases.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::lease::ServerId;

/// How many are remembered: more than anybody has behind one address by mistake.
const MOST: usize = 8;

/// In the order in which they were met.
#[derive(Default)]
pub(super) struct ServersMet(Mutex<VecDeque<ServerMet>>);

struct ServerMet {
    id: ServerId,
    /// When its first answer had come.
    met: Instant,
    /// When the latest question was sent that it answered.
    last_asked: Instant,
}

impl ServersMet {
    /// Notes who answered a question that was sent then.
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

    /// Whether the one that was met first has answered a question that was sent after the other had answered one. An
    /// answer that was under way meanwhile proves nothing: a server that ends answers its last questions.
    pub fn are_both_there(&self, one: &ServerId, other: &ServerId) -> bool {
        let met = self.met();
        let mut both = met.iter().filter(|met| met.id == *one || met.id == *other);
        match (both.next(), both.next()) {
            (Some(first), Some(second)) => first.last_asked > second.met,
            _ => false,
        }
    }

    fn met(&self) -> MutexGuard<'_, VecDeque<ServerMet>> {
        // Nothing panics under it.
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
