//! One of several servers leads, and the others stand by: the change between both.
//!
//! A standby decides nothing. Its table is empty, and it has dropped the answers to everything that it had decided and
//! not stored: those connections end. A server that leads again begins with the contents of the store.

use std::mem;
use std::time::SystemTime;

use super::commit::{first_fence, restore};
use super::unstored::HAS_STORE;
use super::{Answerer, LockManager, Outcome, notify};
use crate::lease;
use crate::refusal::Refusal;
use crate::store::election::Elected;
use crate::store::{Recovered, Store, StoreError};
use crate::table::LockTable;

impl LockManager {
    /// Whether another server leads, or may lead: then nothing is decided here.
    pub fn stands_by(&self) -> bool {
        self.election.is_some() && self.state.lock().stands_by()
    }

    /// How many times this server has begun to lead. 0 if no other server can.
    pub fn term(&self) -> u64 {
        match self.election {
            Some(_) => self.asked().term,
            None => 0,
        }
    }

    /// Which server leads, as far as this one knows. `None` if no other server can.
    pub fn elected(&self) -> Option<Elected> {
        self.election.as_ref().map(|election| election.elected())
    }

    /// Leads whenever the store allows it, until the server ends. Calls `leads` each time.
    pub(super) fn lead_and_stand_by(
        &self,
        store: &mut dyn Store,
        leads: &dyn Fn(&Recovered),
    ) -> Result<(), StoreError> {
        loop {
            if self.stands_by() {
                match store.open() {
                    Ok(recovered) => {
                        leads(&recovered);
                        self.lead(recovered);
                    }
                    Err(StoreError::Stopped) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            match self.store_all(store) {
                Err(error @ StoreError::Deposed) => {
                    log::warn!("{error}; it stands by");
                    self.stand_by(&error);
                }
                ended => return ended,
            }
        }
    }

    /// Begins to lead with the contents of the store. Each hold begins its full lease.
    pub(super) fn lead(&self, recovered: Recovered) {
        let stored = recovered.greatest_fence;
        let mut table = LockTable::new(self.limits, first_fence(stored, SystemTime::now()));
        let held: Vec<_> = recovered.holds.iter().map(|hold| hold.fence).collect();
        restore(&mut table, recovered.holds);
        let mut state = self.state.lock();
        let unstored = state.unstored.as_mut().expect(HAS_STORE);
        unstored.lead(stored, held.into_iter());
        let before = mem::replace(&mut state.table, table);
        drop(state);
        self.clock.notify_one();
        drop(before);
    }

    /// Empties the table, and refuses all waiters, which may ask another server.
    fn stand_by(&self, why: &StoreError) {
        let mut state = self.state.lock();
        let unstored = state.unstored.as_mut().expect(HAS_STORE);
        unstored.statistics.last_error = Some(why.to_string());
        let never = unstored.stand_by();
        state.feeds.forget();
        let waiters = state.table.drain_waiters();
        for waiter in &waiters {
            // Already set means already granted, which must not be sent.
            let standby = Outcome::Refused(Refusal::Standby, None);
            let _ = waiter.pending().outcome.set(standby);
        }
        let empty = LockTable::new(self.limits, lease::first_fence(SystemTime::now()));
        let before = mem::replace(&mut state.table, empty);
        drop(state);
        // Dropping each ends its connection, which does not need the mutex.
        drop(never);
        for waiter in waiters {
            notify(&waiter, Answerer::AnotherThread);
        }
        drop(before);
    }
}
