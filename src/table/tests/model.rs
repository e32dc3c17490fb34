//! The table, call by call, against a model of it that is too simple to be wrong.

use super::*;

/// One call, or a step of the clock. Times are in milliseconds.
#[derive(Clone, Copy)]
enum Op {
    /// Requester, key, request ID, lease, patience.
    Acquire(Name, Name, Option<Name>, u64, u64),
    Release(Name, Name, Under),
    /// Requester, key, which fence, lease. With no lease it lasts as long as before.
    Renew(Name, Name, Under, Option<u64>),
    Check(Name),
    Verify(Name, Name, Under),
    /// The ticket given out as the nth, counted round.
    Abandon(usize),
    /// The connection breaks of the ticket given out as the nth, counted round.
    Orphan(usize),
    Settle(Name),
    Expire(usize),
    DrainWaiters,
    Pass(u64),
    /// To the very end of the key's lease.
    PassToEnd(Name),
    /// To a nanosecond before it.
    PassJustBeforeEnd(Name),
    /// To the instant at which the first reserve is forgotten, or a nanosecond before it.
    PassGrace {
        just_before: bool,
    },
}

/// Which fence a holder names.
#[derive(Clone, Copy, Debug)]
enum Under {
    Any,
    Its,
    Another,
}

/// A counter-example is to be read like a transcript.
impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Acquire(who, key, request, lease, patience) => {
                let request = request.unwrap_or("nameless");
                write!(
                    f,
                    "{who} acquires {key} for {lease} ms, waiting {patience} ms, as {request}"
                )
            }
            Op::Release(who, key, under) => write!(f, "{who} releases {key} under {under:?} fence"),
            Op::Renew(who, key, under, lease) => {
                write!(
                    f,
                    "{who} renews {key} under {under:?} fence for {lease:?} ms"
                )
            }
            Op::Check(key) => write!(f, "{key} is checked"),
            Op::Verify(who, key, under) => {
                write!(f, "{key} is verified for {who} under {under:?} fence")
            }
            Op::Orphan(nth) => write!(f, "the connection of ticket {nth} breaks"),
            Op::Abandon(nth) => write!(f, "ticket {nth} is abandoned"),
            Op::Settle(key) => write!(f, "{key} is settled"),
            Op::Expire(batch) => write!(f, "all expire, {batch} in a batch"),
            Op::DrainWaiters => write!(f, "the waiters are drained"),
            Op::Pass(time) => write!(f, "{time} ms pass"),
            Op::PassToEnd(key) => write!(f, "the lease of {key} ends"),
            Op::PassJustBeforeEnd(key) => write!(f, "the lease of {key} is about to end"),
            Op::PassGrace { just_before: false } => write!(f, "an reserve is forgotten"),
            Op::PassGrace { just_before: true } => write!(f, "an reserve is about to be forgotten"),
        }
    }
}

/// One choice by hand: a strategy for each kind would take ten times as long.
fn op() -> impl Strategy<Value = Op> {
    let (who, key) = (select(&REQUESTERS[..]), select(&KEYS[..]));
    let request = select(&[None, None, Some("#1"), Some("#2")][..]);
    let under = select(&[Under::Any, Under::Its, Under::Another][..]);
    (0..56, who, key, request, under, 1..12u64, 0..16u64, 0..40u8).prop_map(
        |(kind, who, key, request, under, lease, patience, number)| match kind {
            0..16 => Op::Acquire(who, key, request, lease, patience),
            16..22 => Op::Release(who, key, under),
            22..28 => Op::Pass(u64::from(number % 4)),
            28 => Op::Pass(u64::from(number)),
            29 | 30 => Op::PassToEnd(key),
            31 | 32 => Op::PassJustBeforeEnd(key),
            33..37 => Op::Abandon(usize::from(number)),
            37..40 => Op::Expire(usize::from(number % 3)),
            40 => Op::Check(key),
            41 => Op::Verify(who, key, under),
            42..46 => {
                let lease = (number < 30).then(|| u64::from(number % 12));
                Op::Renew(who, key, under, lease)
            }
            46..52 => Op::Orphan(usize::from(number)),
            52 | 53 => Op::PassGrace {
                just_before: number % 2 == 0,
            },
            54 => Op::Settle(key),
            _ => Op::DrainWaiters,
        },
    )
}

fn limits() -> impl Strategy<Value = Limits> {
    let tight = (1..=3usize, 0..=4usize).prop_map(|(keys, waiters)| Limits { keys, waiters });
    prop_oneof![Just(NO_LIMITS), tight]
}

/// The same rules with nothing but lists that are searched from the front.
struct Model {
    held: Vec<Held>,
    /// The first to be forgotten stands first.
    reserved: Vec<Orphan>,
    limits: Limits,
    next_fence: Fence,
    next_ticket: Ticket,
    told: Vec<(Handle, Grant)>,
}

/// What a waiter is told by: the number of its acquire.
type Handle = u64;

struct Held {
    key: Name,
    holder: Name,
    grant: Grant,
    lease: Duration,
    request: Option<Name>,
    waiters: Vec<Waiting>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Orphan {
    /// When it is forgotten.
    end: Instant,
    ticket: Ticket,
    /// Key, requester and request ID.
    claim: (String, String, String),
}

struct Waiting {
    requester: Name,
    request: Option<Name>,
    ticket: Ticket,
    lease: Duration,
    deadline: Instant,
    handle: Handle,
}

impl Model {
    fn grant(&mut self, now: Instant, lease: Duration) -> Grant {
        self.next_fence += 1;
        Grant {
            expires: now + lease,
            fence: self.next_fence - 1,
        }
    }

    fn find(&mut self, key: Name) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.key == key)
    }

    fn acquire(
        &mut self,
        now: Instant,
        key: Name,
        requester: Name,
        terms: Terms,
        request: Option<Name>,
        handle: Handle,
    ) -> Answer<Handle> {
        self.expire_key(now, key);
        let waiters: usize = self.held.iter().map(|held| held.waiters.len()).sum();
        let Limits {
            keys,
            waiters: most,
        } = self.limits;
        let Some(held) = self.find(key) else {
            if self.held.len() >= keys {
                self.expire(now, 1);
            }
            if self.held.len() >= keys {
                return Answer::Refused(Full);
            }
            self.reclaim(now, key, requester, request);
            let grant = self.grant(now, terms.lock_timeout);
            self.held.push(Held {
                key,
                holder: requester,
                grant,
                lease: terms.lock_timeout,
                request,
                waiters: Vec::new(),
            });
            return Answer::Granted(grant);
        };
        let same = |earlier: Option<Name>| request.is_some() && request == earlier;
        if held.holder == requester && same(held.request) {
            return Answer::Repeated(held.grant);
        }
        if held.holder == requester {
            return Answer::Refused(AlreadyHolder);
        }
        let mine = |waiting: &Waiting| waiting.requester == requester;
        let in_time = |waiting: &&mut Waiting| mine(waiting) && waiting.deadline >= now;
        if let Some(earlier) = held.waiters.iter_mut().find(in_time) {
            if !same(earlier.request) {
                return Answer::Refused(AlreadyWaiting);
            }
            if terms.lock_attempt_timeout.is_zero() {
                return Answer::Refused(Timeout);
            }
            let (ticket, before) = (earlier.ticket, earlier.handle);
            earlier.lease = terms.lock_timeout;
            earlier.deadline = now + terms.lock_attempt_timeout;
            earlier.handle = handle;
            return Answer::TakenOver { ticket, before };
        }
        let before = held.waiters.len();
        held.waiters.retain(|waiting| !mine(waiting));
        let waiters = waiters - before + held.waiters.len();
        if terms.lock_attempt_timeout.is_zero() {
            return Answer::Refused(Timeout);
        }
        if waiters >= most {
            return Answer::Refused(Full);
        }
        let ticket = self
            .reclaim(now, key, requester, request)
            .unwrap_or_else(|| {
                self.next_ticket += 1;
                self.next_ticket - 1
            });
        let waiters = &mut self.find(key).expect("it was there just now").waiters;
        waiters.push(Waiting {
            requester,
            request,
            ticket,
            lease: terms.lock_timeout,
            deadline: now + terms.lock_attempt_timeout,
            handle,
        });
        waiters.sort_by_key(|waiting| waiting.ticket);
        Answer::Queued(ticket)
    }

    fn reclaim(
        &mut self,
        now: Instant,
        key: Name,
        requester: Name,
        request: Option<Name>,
    ) -> Option<Ticket> {
        let claim = (key.into(), requester.into(), request?.into());
        let found = self
            .reserved
            .iter()
            .position(|reserve| reserve.claim == claim)?;
        let reserve = self.reserved.remove(found);
        (now < reserve.end).then_some(reserve.ticket)
    }

    fn reserve(&mut self, now: Instant, key: Name, ticket: Ticket) -> bool {
        self.expire_key(now, key);
        let Some(held) = self.find(key) else {
            return false;
        };
        let Some(place) = held.waiters.iter().position(|w| w.ticket == ticket) else {
            return false;
        };
        let waiting = held.waiters.remove(place);
        if let Some(request) = waiting.request
            && waiting.deadline >= now
        {
            self.reserved.push(Orphan {
                end: now + RESERVED_FOR,
                ticket,
                claim: (key.into(), waiting.requester.into(), request.into()),
            });
            self.reserved.sort();
        }
        if self.reserved.len() > self.limits.waiters {
            self.reserved.remove(0);
        }
        true
    }

    fn release(
        &mut self,
        now: Instant,
        key: Name,
        requester: Name,
        fence: Option<Fence>,
    ) -> Result<(), Refusal> {
        self.verify(now, key, requester, fence)?;
        self.end_lease(now, key, now);
        Ok(())
    }

    fn renew(
        &mut self,
        now: Instant,
        key: Name,
        requester: Name,
        fence: Option<Fence>,
        lease: Option<Duration>,
    ) -> Result<Grant, Refusal> {
        self.verify(now, key, requester, fence)?;
        let held = self.find(key).expect("it was verified just now");
        held.lease = lease.unwrap_or(held.lease);
        held.grant.expires = now + held.lease;
        Ok(held.grant)
    }

    fn verify(
        &mut self,
        now: Instant,
        key: Name,
        requester: Name,
        fence: Option<Fence>,
    ) -> Result<Grant, Refusal> {
        self.expire_key(now, key);
        let held = self.find(key).ok_or(Free)?;
        if held.holder != requester {
            return Err(NotHolder);
        }
        match fence {
            Some(fence) if fence != held.grant.fence => Err(StaleFence),
            _ => Ok(held.grant),
        }
    }

    fn holding(&mut self, key: Name) -> Option<Holding> {
        self.find(key).map(|held| Holding {
            holder: held.holder.into(),
            note: None,
            grant: held.grant,
            waiters: held.waiters.len(),
        })
    }

    /// The fence that somebody names who believes that the key is held now.
    fn fence(&mut self, now: Instant, key: Name, under: Under) -> Option<Fence> {
        self.expire_key(now, key);
        let current = self.find(key).map_or(FIRST_FENCE, |held| held.grant.fence);
        match under {
            Under::Any => None,
            Under::Its => Some(current),
            Under::Another => Some(current - 1),
        }
    }

    fn abandon(&mut self, ticket: Ticket) -> bool {
        let before = self.handles().len();
        for held in &mut self.held {
            held.waiters.retain(|waiting| waiting.ticket != ticket);
        }
        self.handles().len() < before
    }

    fn expire_key(&mut self, now: Instant, key: Name) {
        if let Some(held) = self.find(key)
            && held.grant.expires <= now
        {
            let ended = held.grant.expires;
            self.end_lease(now, key, ended);
        }
    }

    fn expire(&mut self, now: Instant, batch: usize) -> bool {
        while let Some((_, key)) = self.first_lapsed(now, true) {
            self.expire_key(now, key);
        }
        let mut freed = 0;
        while freed < batch
            && let Some((_, key)) = self.first_lapsed(now, false)
        {
            self.expire_key(now, key);
            freed += 1;
        }
        let mut forgotten = 0;
        while forgotten < batch && self.reserved.first().is_some_and(|first| first.end <= now) {
            self.reserved.remove(0);
            forgotten += 1;
        }
        freed < batch && forgotten < batch
    }

    fn first_lapsed(&self, now: Instant, contended: bool) -> Option<(End, Name)> {
        let lapsed = self
            .held
            .iter()
            .filter(|held| held.grant.expires <= now && held.waiters.is_empty() != contended);
        lapsed
            .map(|held| ((held.grant.expires, held.grant.fence), held.key))
            .min()
    }

    fn end_lease(&mut self, now: Instant, key: Name, ended: Instant) {
        let held = self.find(key).expect("only a held key is let go");
        let Some(next) = held.waiters.iter().position(|w| w.deadline >= ended) else {
            self.held.retain(|held| held.key != key);
            return;
        };
        let Waiting {
            requester,
            request,
            lease,
            handle,
            ..
        } = held.waiters.drain(..=next).next_back().expect("position");
        let grant = self.grant(now, lease);
        let held = self.find(key).expect("it was there just now");
        held.holder = requester;
        held.grant = grant;
        held.lease = lease;
        held.request = request;
        self.told.push((handle, grant));
    }

    fn drain_waiters(&mut self) -> Vec<Handle> {
        let handles = self.handles();
        self.held.iter_mut().for_each(|held| held.waiters.clear());
        handles
    }

    fn handles(&self) -> Vec<Handle> {
        let waiters = self.held.iter().flat_map(|held| &held.waiters);
        waiters.map(|waiting| waiting.handle).collect()
    }

    fn contents(&self) -> Vec<Remembered<'_>> {
        let contents = self.held.iter().map(|held| Remembered {
            key: held.key,
            holder: (held.holder, held.request),
            grant: (held.grant, held.lease),
            queue: held.waiters.iter().map(Waiting::remembered).collect(),
        });
        sorted(contents)
    }
}

impl Waiting {
    fn remembered(&self) -> Place<'_> {
        let from = (self.requester, self.request);
        (self.ticket, from, self.lease, self.deadline, self.handle)
    }
}

/// Everything that is remembered of a key.
#[derive(Debug, PartialEq)]
struct Remembered<'a> {
    key: &'a str,
    holder: Asker<'a>,
    grant: (Grant, Duration),
    queue: Vec<Place<'a>>,
}

/// A requester and its request ID.
type Asker<'a> = (&'a str, Option<&'a str>);

type Place<'a> = (Ticket, Asker<'a>, Duration, Instant, Handle);

fn contents(table: &LockTable<Handle>) -> Vec<Remembered<'_>> {
    sorted(table.entries.iter().map(|(key, entry)| {
        let waiters = entry.queue.iter().flat_map(|queue| &queue.by_arrival);
        let places = waiters.map(|(&ticket, waiter)| {
            let from = (&*waiter.claim.requester, waiter.claim.request_id.as_deref());
            (
                ticket,
                from,
                waiter.claim.lock_timeout,
                waiter.deadline,
                waiter.handle,
            )
        });
        Remembered {
            key,
            holder: (
                &*entry.hold().claim.requester,
                entry.hold().claim.request_id.as_deref(),
            ),
            grant: (entry.hold().grant, entry.hold().claim.lock_timeout),
            queue: places.collect(),
        }
    }))
}

fn reserved(table: &LockTable<Handle>) -> Vec<Orphan> {
    let reserved = table.reserved.by_end.iter();
    reserved
        .map(|(&(end, ticket), (key, requester, request))| Orphan {
            end,
            ticket,
            claim: (key.to_string(), requester.to_string(), request.to_string()),
        })
        .collect()
}

fn sorted<'a>(contents: impl Iterator<Item = Remembered<'a>>) -> Vec<Remembered<'a>> {
    let mut contents: Vec<_> = contents.collect();
    contents.sort_by_key(|remembered| remembered.key);
    contents
}

/// The table and the model side by side.
struct Race {
    table: Managed<Handle>,
    model: Model,
    now: Instant,
    next_handle: Handle,
    tickets: Vec<(Name, Ticket)>,
    /// Whoever is still to be told, and where they stand.
    waiting: HashMap<Handle, (Name, Ticket)>,
    /// What the last acquire was granted at once.
    granted: Option<Grant>,
    /// What the last acquire was told that it had been granted before.
    repeated: Option<Grant>,
    /// Whom the last acquire let back to its place.
    came_back: Option<(Name, Ticket)>,
    fences: Vec<Fence>,
    last_granted: HashMap<Name, Ticket>,
}

impl Race {
    fn new(limits: Limits) -> Self {
        Race {
            table: Managed::new(limits, FIRST_FENCE),
            model: Model {
                held: Vec::new(),
                reserved: Vec::new(),
                limits,
                next_fence: FIRST_FENCE,
                next_ticket: 1,
                told: Vec::new(),
            },
            now: Instant::now(),
            next_handle: 0,
            tickets: Vec::new(),
            waiting: HashMap::new(),
            granted: None,
            repeated: None,
            came_back: None,
            fences: Vec::new(),
            last_granted: HashMap::new(),
        }
    }

    fn step(&mut self, op: Op) -> Result<(), TestCaseError> {
        self.call(op)?;
        self.compare_hand_overs()?;
        check_invariants(&self.table)?;
        prop_assert_eq!(contents(&self.table), self.model.contents());
        prop_assert_eq!(reserved(&self.table), self.model.reserved.clone());
        let next = self.model.held.iter().filter(|h| !h.waiters.is_empty());
        prop_assert_eq!(
            self.table.next_hand_over(),
            next.map(|held| held.grant.expires).min()
        );
        Ok(())
    }

    fn call(&mut self, op: Op) -> Result<(), TestCaseError> {
        if let Op::Acquire(requester, key, request, lease, patience) = op {
            return self.acquire(key, requester, request, terms(lease, patience));
        }
        let Race {
            table, model, now, ..
        } = self;
        match op {
            Op::Acquire(..) => unreachable!("it has a function of its own"),
            Op::Release(requester, key, under) => {
                let fence = model.fence(*now, key, under);
                prop_assert_eq!(
                    table.release(*now, key, requester, fence),
                    model.release(*now, key, requester, fence)
                );
            }
            Op::Renew(requester, key, under, lease) => {
                let fence = model.fence(*now, key, under);
                prop_assert_eq!(
                    table.renew(*now, key, requester, fence, lease.map(ms)),
                    model.renew(*now, key, requester, fence, lease.map(ms))
                );
            }
            Op::Check(key) => {
                model.expire_key(*now, key);
                prop_assert_eq!(table.holding(*now, key), model.holding(key));
            }
            Op::Verify(requester, key, under) => {
                let fence = model.fence(*now, key, under);
                prop_assert_eq!(
                    table.verify(*now, key, requester, fence),
                    model.verify(*now, key, requester, fence)
                );
            }
            Op::Abandon(nth) => {
                if let Some(&(key, ticket)) = self.tickets.get(nth % self.tickets.len().max(1)) {
                    prop_assert_eq!(table.abandon(key, ticket), model.abandon(ticket));
                }
            }
            Op::Orphan(nth) => {
                if let Some(&(key, ticket)) = self.tickets.get(nth % self.tickets.len().max(1)) {
                    prop_assert_eq!(
                        table.reserve(*now, key, ticket),
                        model.reserve(*now, key, ticket)
                    );
                }
            }
            Op::Settle(key) => {
                table.expire_key(*now, key);
                model.expire_key(*now, key);
            }
            Op::Expire(batch) => {
                prop_assert_eq!(table.expire(*now, batch), model.expire(*now, batch));
            }
            Op::DrainWaiters => {
                let (mut drained, mut expected) = (table.drain_waiters(), model.drain_waiters());
                drained.sort();
                expected.sort();
                prop_assert_eq!(drained, expected);
            }
            Op::Pass(time) => *now += ms(time),
            Op::PassToEnd(key) => {
                let end = model.find(key).map(|held| held.grant.expires);
                *now = (*now).max(end.unwrap_or(*now));
            }
            Op::PassGrace { just_before } => {
                let end = model.reserved.first().map(|reserve| reserve.end);
                let before = Duration::from_nanos(u64::from(just_before));
                *now = (*now).max(end.map_or(*now, |end| end - before));
            }
            Op::PassJustBeforeEnd(key) => {
                let end = model
                    .find(key)
                    .map(|held| held.grant.expires - Duration::from_nanos(1));
                *now = (*now).max(end.unwrap_or(*now));
            }
        }
        Ok(())
    }

    fn acquire(
        &mut self,
        key: Name,
        requester: Name,
        request: Option<Name>,
        terms: Terms,
    ) -> Result<(), TestCaseError> {
        let (now, handle) = (self.now, self.next_handle);
        self.next_handle += 1;
        let model = &mut self.model;
        let expected = model.acquire(now, key, requester, terms, request, handle);
        let table = &mut self.table;
        let acquired = table.acquire(now, key, requester, terms, request, || handle);
        prop_assert!(
            acquired == expected,
            "the table says {}, the model {}",
            in_words(&acquired, now),
            in_words(&expected, now)
        );
        match acquired {
            Answer::Granted(grant) => self.granted = Some(grant),
            Answer::Repeated(grant) => self.repeated = Some(grant),
            Answer::Queued(ticket) => {
                if self.tickets.contains(&(key, ticket)) {
                    self.came_back = Some((key, ticket));
                }
                self.tickets.push((key, ticket));
                self.waiting.insert(handle, (key, ticket));
            }
            Answer::TakenOver { ticket, before } => {
                let place = self.waiting.remove(&before);
                prop_assert_eq!(place, Some((key, ticket)), "somebody else's place");
                self.waiting.insert(handle, (key, ticket));
            }
            Answer::Refused(Full) if !table.entries.contains_key(key) => prop_assert!(
                table
                    .entries
                    .values()
                    .all(|entry| entry.hold().grant.expires > now),
                "a lapsed key takes the place of a new one"
            ),
            Answer::Refused(_) => {}
        }
        Ok(())
    }

    /// Also sees, without the model, that everyone is told once, that grants follow arrival and
    /// that fences only grow.
    fn compare_hand_overs(&mut self) -> Result<(), TestCaseError> {
        let told = self.table.take_handed_over();
        let told: Vec<_> = told.into_iter().map(|h| (h.waiter, h.grant)).collect();
        for &(handle, grant) in &told {
            self.note_fence(grant)?;
            let place = self.waiting.remove(&handle);
            let (key, ticket) = place.expect("only who waits is handed a key");
            let earlier = self.last_granted.insert(key, ticket);
            prop_assert!(earlier < Some(ticket), "a later arrival came first");
        }
        prop_assert_eq!(told, std::mem::take(&mut self.model.told));
        // An acquire may first have had to let leases run out. So all this comes after it.
        if let Some((key, ticket)) = self.came_back.take() {
            // It now comes before those who came later and were granted the key meanwhile.
            let last = self.last_granted.entry(key).or_default();
            *last = (*last).min(ticket - 1);
        }
        if let Some(grant) = self.granted.take() {
            self.note_fence(grant)?;
        }
        if let Some(grant) = self.repeated.take() {
            prop_assert!(self.fences.contains(&grant.fence), "it is no new grant");
        }
        Ok(())
    }

    fn note_fence(&mut self, grant: Grant) -> Result<(), TestCaseError> {
        prop_assert!(
            self.fences.last() < Some(&grant.fence),
            "a fence did not grow"
        );
        self.fences.push(grant.fence);
        Ok(())
    }
}

fn in_words(acquired: &Answer<Handle>, now: Instant) -> String {
    match acquired {
        Answer::Granted(Grant { expires, fence }) => {
            format!("granted for {:?} as {fence}", *expires - now)
        }
        Answer::Repeated(Grant { expires, fence }) => {
            format!("repeated for {:?} as {fence}", *expires - now)
        }
        other => format!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(cases(8192))]

    #[test]
    fn the_table_does_what_a_naive_model_does(limits in limits(), ops in vec(op(), 1..48)) {
        let mut race = Race::new(limits);
        for (n, op) in ops.into_iter().enumerate() {
            race.step(op).map_err(|error| {
                TestCaseError::fail(format!("step {n}, {op:?}: {error}"))
            })?;
        }
    }
}
