//! Who holds a key that is waited for, and whether a wait for it can end.
//!
//! The server names one holder and sends the number of holders. So if there are several, it is asked about each name
//! above this program. The thread that has received the answer asks, not the first thread.

use lock_server::{Client, Error, Holder};

use crate::cli::exec::requester::Requester;
use crate::cli::reasons::holder_of;

/// Who holds a key.
#[derive(Debug)]
pub struct Holders {
    /// The server's answer: one of the holders, and their number.
    pub first: Holder,
    /// The holders that go on only when this program has ended.
    above: Vec<String>,
}

impl Holders {
    /// Asks the server about the other holders, if there are several. If it does not answer, they stay unknown, and the
    /// wait finds out what is wrong.
    pub fn of(first: Holder, key: &str, client: &Client, me: &Requester) -> Self {
        let mut above = Vec::new();
        if me.runs_under(&first.name) {
            above.push(first.name.clone());
        }
        if first.holders > 1 {
            let holds = |name: &String| {
                *name != first.name && client.named(name).locked_by_me(key).unwrap_or(false)
            };
            above.extend(me.names_above().into_iter().filter(holds));
        }
        Holders { first, above }
    }

    /// Asks who holds the key now.
    pub fn ask(key: &str, client: &Client, me: &Requester) -> Result<Option<Self>, Error> {
        let first = client.holder(key)?;
        Ok(first.map(|first| Holders::of(first, key, client, me)))
    }

    /// Whether a holder waits for this program to end.
    pub fn are_above(&self) -> bool {
        !self.above.is_empty()
    }

    /// Why a LOCK with this number of slots is never granted. `None` if it may be.
    pub fn why_endless(&self, key: &str, slots: u32) -> Option<String> {
        let name = self.above.first()?;
        if leaves_room(self.above.len(), self.first.holders, slots) {
            return None;
        }
        Some(format!(
            "{key} is held by {name}, which this command runs under and which waits for it to end; unlock {key} first, or run the command without exec"
        ))
    }
}

/// Whether a LOCK with this number of slots may be granted together with the holders above, once all others have ended.
/// The holders above then have room for one more, since they had it for another holder.
fn leaves_room(above: usize, holders: usize, slots: u32) -> bool {
    above < holders && above < slots as usize
}

/// Who has the key, in words, as far as it is known.
pub fn in_words(key: &str, holder: Option<&Holder>) -> String {
    match holder {
        Some(holder) => holder_of(key, holder),
        None => format!("{key} is held by somebody else now"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_above_leave_room_if_others_hold_the_key_too_and_there_are_slots_enough() {
        for (above, holders, slots) in [(1, 3, 3), (1, 3, 2), (2, 3, 3), (1, 2, 2)] {
            let case = format!("{above} of {holders}, {slots} slots");
            assert!(leaves_room(above, holders, slots), "{case}");
        }
        for (above, holders, slots) in [(1, 1, 1), (1, 1, 3), (1, 2, 1), (2, 2, 3), (2, 3, 2)] {
            let case = format!("{above} of {holders}, {slots} slots");
            assert!(!leaves_room(above, holders, slots), "{case}");
        }
    }
}
