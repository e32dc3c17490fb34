//! A table that is asked every millisecond, as the time keeper and its waiters do, against a world
//! in which time passes in milliseconds and everyone acts at once.

use super::*;

/// What somebody does, so many milliseconds after the one before.
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
        /// How long the waiter's thread takes to say that its patience is over.
        slow: u64,
    },
    Release,
    Renew {
        lease: u64,
    },
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
                slow,
            } => write!(
                f,
                "after {after} ms {requester} acquires {key} for {lease} ms, waiting {patience} ms and {slow} late"
            ),
            What::Release => write!(f, "after {after} ms {requester} releases {key}"),
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
    let acquire = (1..8u64, 0..10u64, 0..6u64).prop_map(|(lease, patience, slow)| What::Acquire {
        lease,
        patience,
        slow,
    });
    let renew = (1..8u64).prop_map(|lease| What::Renew { lease });
    let what = prop_oneof![6 => acquire, 2 => Just(What::Release), 1 => renew];
    (0..4u64, 0..2usize, select(&REQUESTERS[..]), what).prop_map(|(after, key, requester, what)| {
        Act {
            after,
            key,
            requester,
            what,
        }
    })
}

/// One key of the world: its holder with the end of the lease, and who waits, until when, for what.
#[derive(Default)]
struct Spot {
    holder: Option<(Name, u64)>,
    queue: Vec<(Name, u64, u64)>,
}

impl Spot {
    /// Lets the time come. Whoever is granted the key by that, and until when, is returned.
    fn tick(&mut self, time: u64) -> Option<(Name, u64)> {
        self.queue.retain(|&(_, deadline, _)| deadline >= time);
        self.holder.take_if(|&mut (_, end)| end == time)?;
        self.grant_head(time)
    }

    fn grant_head(&mut self, time: u64) -> Option<(Name, u64)> {
        if !self.queue.is_empty() {
            let (next, _, lease) = self.queue.remove(0);
            self.holder = Some((next, time + lease));
        }
        self.holder
    }

    fn acquire(&mut self, time: u64, requester: Name, lease: u64, patience: u64) -> Said {
        match self.holder {
            None => {
                self.holder = Some((requester, time + lease));
                Until(time + lease)
            }
            Some((holder, _)) if holder == requester => No(AlreadyHolder),
            Some(_) if self.queue.iter().any(|waiter| waiter.0 == requester) => No(AlreadyWaiting),
            Some(_) if patience == 0 => No(Timeout),
            Some(_) => {
                self.queue.push((requester, time + patience, lease));
                Queued
            }
        }
    }

    fn renew(&mut self, time: u64, requester: Name, lease: u64) -> Result<u64, Refusal> {
        let (holder, end) = self.holder.as_mut().ok_or(Free)?;
        if *holder != requester {
            return Err(NotHolder);
        }
        *end = time + lease;
        Ok(*end)
    }

    fn release(
        &mut self,
        time: u64,
        requester: Name,
    ) -> (Result<(), Refusal>, Option<(Name, u64)>) {
        match self.holder {
            None => (Err(Free), None),
            Some((holder, _)) if holder != requester => (Err(NotHolder), None),
            Some(_) => {
                self.holder = None;
                (Ok(()), self.grant_head(time))
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(2048))]

    #[test]
    fn a_table_kept_in_time_does_what_the_rules_say_millisecond_by_millisecond(
        acts in vec(act(), 1..40)
    ) {
        let mut desk = Desk::new();
        let mut world = [Spot::default(), Spot::default()];
        // When which ticket is given up.
        let mut slow_waiters: Vec<(u64, Name, Ticket)> = Vec::new();
        let mut acts = acts.into_iter().scan(0, |time, act| {
            *time += act.after;
            Some((*time, act))
        }).peekable();
        let mut time = 0;
        while acts.peek().is_some() {
            desk.at(time).expire(9);
            for &(_, key, ticket) in slow_waiters.iter().filter(|slow| slow.0 == time) {
                desk.table.abandon(key, ticket);
            }
            let mut told = desk.told();
            told.sort();
            let mut expected: Vec<_> = world.iter_mut().filter_map(|spot| spot.tick(time)).collect();
            expected.sort();
            prop_assert_eq!(told, expected, "at {}", time);

            while let Some((_, act)) = acts.next_if(|(at, _)| *at == time) {
                let (key, requester) = (KEYS[act.key], act.requester);
                let spot = &mut world[act.key];
                match act.what {
                    What::Acquire { lease, patience, slow } => {
                        let said = desk.acquire_on(key, requester, lease, patience);
                        if said == Queued {
                            let ticket = desk.tickets[&(key, requester)];
                            slow_waiters.push((time + patience + 1 + slow, key, ticket));
                        }
                        let expected = spot.acquire(time, requester, lease, patience);
                        prop_assert_eq!(said, expected, "at {}, {:?}", time, act);
                    }
                    What::Renew { lease } => {
                        let expected = spot.renew(time, requester, lease);
                        let renewed = desk.renew(key, requester, lease);
                        prop_assert_eq!(renewed, expected, "at {}, {:?}", time, act);
                    }
                    What::Release => {
                        let (expected, next) = spot.release(time, requester);
                        let released = desk.release(key, requester);
                        prop_assert_eq!(released, expected, "at {}, {:?}", time, act);
                        prop_assert_eq!(desk.told(), Vec::from_iter(next), "at {}, {:?}", time, act);
                    }
                }
            }
            time += 1;
        }
    }
}
