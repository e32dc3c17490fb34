//! Compares a table that is called every millisecond, as the manager's time keeper and waiters call it, with a world in
//! which time passes in milliseconds and everyone acts at once.

use super::*;

/// What a requester does, `after` milliseconds after the act before.
#[derive(Clone, Copy)]
struct Act {
    after: u64,
    key: usize,
    requester: Name,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Acquire {
        lease: u64,
        patience: u64,
        request: Option<Name>,
        slots: Slots,
        /// How late the waiter's thread calls `abandon` after the time-out, in milliseconds.
        slow: u64,
    },
    Release,
    Renew {
        lease: u64,
    },
    /// An operator breaks its hold.
    BreakHold,
    /// The connection breaks over which it waits.
    Break,
}

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Act {
            after,
            key,
            requester,
            what,
        } = self;
        let key = KEYS[*key];
        match what {
            What::Acquire {
                lease,
                patience,
                request,
                slots,
                slow,
            } => {
                let request = request.unwrap_or("nameless");
                write!(
                    f,
                    "after {after} ms {requester} acquires {key} for {lease} ms, \
                     waiting {patience} ms and {slow} late, as {request}, with {slots} slots"
                )
            }
            What::Release => write!(f, "after {after} ms {requester} releases {key}"),
            What::BreakHold => {
                write!(
                    f,
                    "after {after} ms the hold of {key} by {requester} is broken"
                )
            }
            What::Break => write!(f, "after {after} ms {requester} loses its connection"),
            What::Renew { lease } => {
                write!(
                    f,
                    "after {after} ms {requester} renews {key} for {lease} ms"
                )
            }
        }
    }
}

fn act() -> impl Strategy<Value = Act> {
    let request = select(&[None, Some("#1"), Some("#2")][..]);
    let slots = select(&[1, 1, 2, 2, 3, MAX_SLOTS, MAX_SLOTS][..]);
    let acquire = (1..8u64, 0..10u64, request, slots, 0..6u64).prop_map(
        |(lease, patience, request, slots, slow)| What::Acquire {
            lease,
            patience,
            request,
            slots,
            slow,
        },
    );
    let renew = (1..8u64).prop_map(|lease| What::Renew { lease });
    let what = prop_oneof![
        12 => acquire,
        4 => Just(What::Release),
        2 => renew,
        2 => Just(What::BreakHold),
        3 => Just(What::Break)
    ];
    // Sometimes so long that the kept places are about to be forgotten.
    let after = prop_oneof![99 => 0..4u64, 1 => GRACE - 4..GRACE + 2];
    (after, 0..2usize, select(&REQUESTERS[..]), what).prop_map(|(after, key, requester, what)| {
        Act {
            after,
            key,
            requester,
            what,
        }
    })
}

/// One key of the world: who holds it, who waits, and who lost the connection over which it waited.
#[derive(Default)]
struct Spot {
    holders: Vec<Holder>,
    /// In the order of arrival.
    queue: Vec<Stand>,
    /// With the time at which each is forgotten.
    away: Vec<(u64, Stand)>,
    arrivals: usize,
    /// Requesters whose hold was broken, until they are granted the key anew. No course lasts until that is forgotten.
    broken: Vec<Name>,
}

struct Holder {
    name: Name,
    request: Option<Name>,
    end: u64,
    slots: Slots,
}

/// A waiter: its deadline, and the length of its lease.
struct Stand {
    name: Name,
    request: Option<Name>,
    deadline: u64,
    lease: u64,
    slots: Slots,
    arrival: usize,
}

impl Spot {
    /// Moves to this time. Returns who is then granted the key, and until when.
    fn tick(&mut self, time: u64) -> Vec<(Name, u64)> {
        self.queue.retain(|stand| stand.deadline >= time);
        self.away.retain(|&(forgotten, _)| forgotten > time);
        self.holders.retain(|holder| holder.end != time);
        self.let_in(time)
    }

    fn let_in(&mut self, time: u64) -> Vec<(Name, u64)> {
        let mut told = Vec::new();
        while let Some(first) = self.queue.first()
            && self.admits(first.slots)
        {
            let next = self.queue.remove(0);
            let end = time + next.lease;
            self.broken.retain(|name| *name != next.name);
            self.holders.push(Holder {
                name: next.name,
                request: next.request,
                end,
                slots: next.slots,
            });
            told.push((next.name, end));
        }
        told
    }

    fn admits(&self, slots: Slots) -> bool {
        let of_holders = self.holders.iter().map(|holder| holder.slots);
        let least = of_holders.chain([slots]).min().expect("one at least");
        self.holders.len() < least as usize
    }

    /// The answer, and which others are granted the key by it.
    fn acquire(&mut self, time: u64, name: Name, ask: Wish) -> (Said, Vec<(Name, u64)>) {
        let Wish {
            lease,
            patience,
            request,
            slots,
            ..
        } = ask;
        let said = |said| (said, Vec::new());
        let same = |earlier: Option<Name>| request.is_some() && request == earlier;
        if let Some(holder) = self.holders.iter().find(|holder| holder.name == name) {
            return match same(holder.request) {
                true => said(Again(holder.end)),
                false => said(No(AlreadyHolder)),
            };
        }
        let deadline = time + patience;
        match self.queue.iter_mut().find(|stand| stand.name == name) {
            Some(stand) if !same(stand.request) => return said(No(AlreadyWaiting)),
            Some(_) if patience == 0 => return said(No(Timeout)),
            Some(stand) => {
                (stand.deadline, stand.lease, stand.slots) = (deadline, lease, slots);
                return (InPlaceOf(name), self.let_in(time));
            }
            None => {}
        }
        let comes_back = |(_, stand): &(_, Stand)| stand.name == name && same(stand.request);
        let back = self.away.iter().position(comes_back);
        let arrival = match back {
            Some(back) => self.away[back].1.arrival,
            None => self.arrivals + 1,
        };
        let is_next = self.queue.iter().all(|stand| arrival < stand.arrival);
        if !(is_next && self.admits(slots)) && patience == 0 {
            return said(No(Timeout));
        }
        back.map(|back| self.away.remove(back));
        if is_next && self.admits(slots) {
            let end = time + lease;
            self.broken.retain(|broken| *broken != name);
            self.holders.push(Holder {
                name,
                request,
                end,
                slots,
            });
            return said(Until(end));
        }
        self.arrivals = self.arrivals.max(arrival);
        self.queue.push(Stand {
            name,
            request,
            deadline,
            lease,
            slots,
            arrival,
        });
        self.queue.sort_by_key(|stand| stand.arrival);
        said(Queued)
    }

    /// Whether the requester waited, and who is granted the key by its departure.
    fn lose_connection(&mut self, time: u64, name: Name) -> (bool, Vec<(Name, u64)>) {
        let Some(place) = self.queue.iter().position(|stand| stand.name == name) else {
            return (false, Vec::new());
        };
        let stand = self.queue.remove(place);
        if stand.request.is_some() {
            self.away.push((time + GRACE, stand));
        }
        (true, self.let_in(time))
    }

    fn find(&mut self, requester: Name) -> Result<usize, Refusal> {
        let mut holders = self.holders.iter();
        let place = holders.position(|holder| holder.name == requester);
        place.ok_or(if self.broken.contains(&requester) {
            Refusal::Broken
        } else if self.holders.is_empty() {
            Free
        } else {
            NotHolder
        })
    }

    fn renew(&mut self, time: u64, requester: Name, lease: u64) -> Result<u64, Refusal> {
        let place = self.find(requester)?;
        let end = &mut self.holders[place].end;
        *end = (*end).max(time + lease);
        Ok(*end)
    }

    fn release(&mut self, time: u64, requester: Name) -> (Result<(), Refusal>, Vec<(Name, u64)>) {
        match self.find(requester) {
            Err(refusal) => (Err(refusal), Vec::new()),
            Ok(place) => {
                self.holders.remove(place);
                (Ok(()), self.let_in(time))
            }
        }
    }
}

/// A thread that gives up its ticket after its time-out, unless its wait ended before.
struct Thread {
    comes: u64,
    key: Name,
    ticket: Ticket,
}

/// The table with the requesters' threads, and the world.
#[derive(Default)]
struct Course {
    world: [Spot; 2],
    threads: Vec<Thread>,
}

impl Course {
    /// Moves both to this time.
    fn tick(&mut self, desk: &mut Desk, time: u64) -> Result<(), TestCaseError> {
        desk.at(time).expire(99);
        for thread in self.threads.extract_if(.., |thread| thread.comes == time) {
            let now = desk.now;
            desk.table.abandon(now, thread.key, thread.ticket);
        }
        let mut told = desk.told();
        told.sort();
        let mut expected: Vec<_> = self
            .world
            .iter_mut()
            .flat_map(|spot| spot.tick(time))
            .collect();
        expected.sort();
        prop_assert_eq!(told, expected);
        Ok(())
    }

    fn act(&mut self, desk: &mut Desk, time: u64, act: Act) -> Result<(), TestCaseError> {
        let (key, requester) = (KEYS[act.key], act.requester);
        let spot = &mut self.world[act.key];
        match act.what {
            What::Acquire {
                lease,
                patience,
                request,
                slots,
                slow,
            } => {
                let ask = Wish {
                    lease,
                    patience,
                    request,
                    slots,
                    ..ASK
                };
                let said = desk.ask(key, requester, ask);
                if matches!(said, Queued | InPlaceOf(_)) {
                    let ticket = desk.tickets[&(key, requester)];
                    // The earlier request, whose place it took over, has its answer.
                    self.threads.retain(|thread| thread.ticket != ticket);
                    self.threads.push(Thread {
                        comes: time + patience + 1 + slow,
                        key,
                        ticket,
                    });
                }
                let (expected, next) = spot.acquire(time, requester, ask);
                prop_assert_eq!(said, expected);
                prop_assert_eq!(desk.told(), next);
            }
            What::Renew { lease } => {
                let renewed = desk.renew(key, requester, lease);
                prop_assert_eq!(renewed, spot.renew(time, requester, lease));
            }
            What::Release => {
                let released = desk.release(key, requester);
                let (expected, next) = spot.release(time, requester);
                prop_assert_eq!(released, expected);
                prop_assert_eq!(desk.told(), next);
            }
            What::BreakHold => {
                let held = desk.table.table.verify(key, requester, None);
                let broken = held.and_then(|grant| desk.break_hold(key, grant.fence));
                let (expected, next) = match spot.find(requester) {
                    Ok(_) => {
                        let (_, next) = spot.release(time, requester);
                        // No other requester is granted the key by this.
                        spot.broken.push(requester);
                        (true, next)
                    }
                    Err(_) => (false, Vec::new()),
                };
                prop_assert_eq!(broken.is_ok(), expected);
                prop_assert_eq!(desk.told(), next);
            }
            What::Break => {
                let Some(&ticket) = desk.tickets.get(&(key, requester)) else {
                    return Ok(());
                };
                let (waited, next) = spot.lose_connection(time, requester);
                if waited {
                    self.threads.retain(|thread| thread.ticket != ticket);
                }
                let left = desk.reserve(key, requester);
                // After its time-out it stays in the table's queue until its thread calls.
                prop_assert!(left || !waited);
                prop_assert_eq!(desk.told(), next);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(cases(2048))]

    #[test]
    fn a_table_called_each_millisecond_follows_the_rules(
        acts in vec(act(), 1..40)
    ) {
        let mut desk = Desk::new();
        let mut course = Course::default();
        let mut time = 0;
        for act in acts {
            for _ in 0..act.after {
                time += 1;
                course.tick(&mut desk, time).map_err(|error| {
                    TestCaseError::fail(format!("at {time}: {error}"))
                })?;
            }
            course.act(&mut desk, time, act).map_err(|error| {
                TestCaseError::fail(format!("at {time}, {act:?}: {error}"))
            })?;
        }
    }
}
