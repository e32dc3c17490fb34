//! The table, call by call, against a model of it that is too simple to be wrong.

use super::*;

/// One call, or a step of the clock. Times are in milliseconds.
#[derive(Clone, Copy)]
enum Op {
    /// Requester, key, request ID, lease, patience, slots.
    Acquire(Name, Name, Option<Name>, u64, u64, Slots),
    Release(Name, Name, Under),
    /// Requester, key, which fence, lease. Without a lease it lasts as long as before.
    Renew(Name, Name, Under, Option<u64>),
    Check(Name),
    Verify(Name, Name, Under),
    /// The nth ticket, modulo the number of tickets.
    Abandon(usize),
    /// The connection of the nth ticket breaks, modulo the number of tickets.
    Orphan(usize),
    /// A hold is broken: its requester, its key, and which fence is named.
    Break(Name, Name, Under),
    Settle(Name),
    Expire(usize),
    DrainWaiters,
    Pass(u64),
    /// To the earliest end of a lease of the key.
    PassToEnd(Name),
    /// To a nanosecond before that.
    PassJustBeforeEnd(Name),
    /// To the instant at which the first kept place is forgotten, or a nanosecond before it.
    PassGrace {
        just_before: bool,
    },
    /// To the instant at which the hold that was broken first is forgotten, or a nanosecond before it.
    PassMemory {
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

/// Prints a counter-example as a transcript.
impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Acquire(who, key, request, lease, patience, slots) => {
                let request = request.unwrap_or("nameless");
                write!(
                    f,
                    "{who} acquires {key} for {lease} ms, waiting {patience} ms, as {request}, \
                     with {slots} slots"
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
            Op::Break(who, key, under) => {
                write!(
                    f,
                    "the hold of {key} by {who} under {under:?} fence is broken"
                )
            }
            Op::Abandon(nth) => write!(f, "ticket {nth} is abandoned"),
            Op::Settle(key) => write!(f, "{key} is settled"),
            Op::Expire(batch) => write!(f, "all expire, {batch} in a batch"),
            Op::DrainWaiters => write!(f, "the waiters are drained"),
            Op::Pass(time) => write!(f, "{time} ms pass"),
            Op::PassToEnd(key) => write!(f, "the first lease of {key} ends"),
            Op::PassJustBeforeEnd(key) => write!(f, "the first lease of {key} is about to end"),
            Op::PassGrace { just_before: false } => write!(f, "a kept place is forgotten"),
            Op::PassGrace { just_before: true } => {
                write!(f, "a kept place is about to be forgotten")
            }
            Op::PassMemory { just_before: false } => write!(f, "a broken hold is forgotten"),
            Op::PassMemory { just_before: true } => {
                write!(f, "a broken hold is about to be forgotten")
            }
        }
    }
}

/// Chooses by hand: one strategy for each kind takes ten times as long.
fn op() -> impl Strategy<Value = Op> {
    let (who, key) = (select(&REQUESTERS[..]), select(&KEYS[..]));
    let request = select(&[None, None, Some("#1"), Some("#2")][..]);
    let under = select(&[Under::Any, Under::Its, Under::Another][..]);
    let slots = select(&[1, 1, 2, 2, 3, MAX_SLOTS, MAX_SLOTS][..]);
    let numbers = (1..12u64, 0..16u64, 0..40u8, slots);
    (0..60, who, key, request, under, numbers).prop_map(
        |(kind, who, key, request, under, (lease, patience, number, slots))| match kind {
            0..16 => Op::Acquire(who, key, request, lease, patience, slots),
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
            55 => Op::DrainWaiters,
            56..59 => Op::Break(who, key, under),
            _ => Op::PassMemory {
                just_before: number % 2 == 0,
            },
        },
    )
}

fn limits() -> impl Strategy<Value = Limits> {
    let tight = (1..=3usize, 0..=4usize).prop_map(|(holds, waiters)| Limits { holds, waiters });
    prop_oneof![Just(NO_LIMITS), tight]
}

/// The rules of the table, written with lists that are searched from the front.
struct Model {
    held: Vec<Held>,
    /// The first to be forgotten comes first.
    reserved: Vec<Orphan>,
    /// The hold that was broken first comes first.
    broken: Vec<Unforgotten>,
    limits: Limits,
    next_fence: Fence,
    next_ticket: Ticket,
    told: Vec<(Handle, Grant)>,
}

/// A waiter's handle: the number of its acquire.
type Handle = u64;

/// Whether the client of a waiter is still connected when the key is proposed to it.
fn is_there(handle: &Handle) -> bool {
    !handle.is_multiple_of(5)
}

struct Held {
    key: Name,
    /// The hold that began first comes first.
    holds: Vec<Owner>,
    waiters: Vec<Waiting>,
}

struct Owner {
    holder: Name,
    grant: Grant,
    lease: Duration,
    request: Option<Name>,
}

impl Held {
    fn of(&self, requester: Name) -> Option<&Owner> {
        self.holds.iter().find(|hold| hold.holder == requester)
    }

    fn first_end(&self) -> Option<End> {
        let ends = self
            .holds
            .iter()
            .map(|hold| (hold.grant.expires, hold.grant.fence));
        ends.min()
    }

    /// When time next changes something. The head of the queue leaves a nanosecond after its deadline; that matters
    /// only if there is room.
    fn next_change(&self) -> Option<Instant> {
        let ends = self.first_end().map(|(end, _)| end);
        let first = self.waiters.first().filter(|_| self.room() > 0);
        let leaves = first.map(|first| first.deadline + Duration::from_nanos(1));
        ends.into_iter().chain(leaves).min()
    }

    /// How many more holders the slots of the present holders allow.
    fn room(&self) -> usize {
        let least = self.holds.iter().map(|hold| hold.grant.slots).min();
        least.unwrap_or(MAX_SLOTS) as usize - self.holds.len()
    }

    fn admits(&self, slots: Slots) -> bool {
        self.room() > 0 && self.holds.len() < slots as usize
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Orphan {
    /// When it is forgotten.
    end: Instant,
    ticket: Ticket,
    /// Key, requester and request ID.
    claim: (String, String, String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Unforgotten {
    key: Name,
    holder: Name,
    fence: Fence,
    /// When it is forgotten.
    until: Instant,
}

struct Waiting {
    requester: Name,
    request: Option<Name>,
    ticket: Ticket,
    lease: Duration,
    deadline: Instant,
    slots: Slots,
    handle: Handle,
}

impl Model {
    fn grant(&mut self, now: Instant, lease: Duration, slots: Slots) -> Grant {
        self.next_fence += 1;
        Grant {
            expires: now + lease,
            fence: self.next_fence - 1,
            slots,
        }
    }

    fn find(&mut self, key: Name) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.key == key)
    }

    #[allow(clippy::too_many_arguments, reason = "an acquire has this many parts")]
    fn acquire(
        &mut self,
        now: Instant,
        key: Name,
        requester: Name,
        terms: Terms,
        request: Option<Name>,
        slots: Slots,
        handle: Handle,
    ) -> Answer<Handle> {
        self.expire_key(now, key);
        let Limits {
            holds: most_holds,
            waiters: most,
        } = self.limits;
        while self.holds() >= most_holds {
            if self.expire(now, self.holds() + 1 - most_holds) {
                break;
            }
        }
        let is_full = self.holds() >= most_holds;
        let Some(held) = self.find(key) else {
            if is_full {
                return Answer::Refused(Full);
            }
            self.reclaim(now, key, requester, request);
            self.held.push(Held {
                key,
                holds: Vec::new(),
                waiters: Vec::new(),
            });
            return Answer::Granted(self.begin(
                now,
                key,
                requester,
                terms.lock_timeout,
                request,
                slots,
            ));
        };
        let same = |earlier: Option<Name>| request.is_some() && request == earlier;
        if let Some(hold) = held.of(requester) {
            return match same(hold.request) {
                true => Answer::Repeated(hold.grant),
                false => Answer::Refused(AlreadyHolder),
            };
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
            earlier.slots = slots;
            self.let_in(now, key, now);
            return Answer::TakenOver { ticket, before };
        }
        held.waiters.retain(|waiting| !mine(waiting));
        let kept = self.kept(now, key, requester, request);
        let waiters: usize = self.held.iter().map(|held| held.waiters.len()).sum();
        let held = self.find(key).expect("it was there just now");
        let first = held.waiters.first().map(|first| first.ticket);
        let is_next = first.is_none_or(|first| kept.is_some_and(|kept| kept < first));
        if is_next && held.admits(slots) {
            if is_full {
                return Answer::Refused(Full);
            }
            self.reclaim(now, key, requester, request);
            return Answer::Granted(self.begin(
                now,
                key,
                requester,
                terms.lock_timeout,
                request,
                slots,
            ));
        }
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
            slots,
            handle,
        });
        waiters.sort_by_key(|waiting| waiting.ticket);
        Answer::Queued(ticket)
    }

    fn holds(&self) -> usize {
        self.held.iter().map(|held| held.holds.len()).sum()
    }

    fn begin(
        &mut self,
        now: Instant,
        key: Name,
        holder: Name,
        lease: Duration,
        request: Option<Name>,
        slots: Slots,
    ) -> Grant {
        self.broken
            .retain(|broken| (broken.key, broken.holder) != (key, holder));
        let grant = self.grant(now, lease, slots);
        let held = self.find(key).expect("the caller has just put it there");
        held.holds.push(Owner {
            holder,
            grant,
            lease,
            request,
        });
        grant
    }

    fn kept(
        &self,
        now: Instant,
        key: Name,
        requester: Name,
        request: Option<Name>,
    ) -> Option<Ticket> {
        let claim = (key.into(), requester.into(), request?.into());
        let mut kept = self.reserved.iter();
        let found = kept.find(|kept| kept.claim == claim)?;
        (now < found.end).then_some(found.ticket)
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
            self.keep(now, ticket, (key, waiting.requester, request));
        }
        self.let_in(now, key, now);
        true
    }

    fn keep(
        &mut self,
        now: Instant,
        ticket: Ticket,
        (key, requester, request): (Name, Name, Name),
    ) {
        self.reserved.push(Orphan {
            end: now + RESERVED_FOR,
            ticket,
            claim: (key.into(), requester.into(), request.into()),
        });
        self.reserved.sort();
        if self.reserved.len() > self.limits.waiters {
            self.reserved.remove(0);
        }
    }

    fn release(
        &mut self,
        now: Instant,
        key: Name,
        requester: Name,
        fence: Option<Fence>,
    ) -> Result<(), Refusal> {
        self.verify(now, key, requester, fence)?;
        let held = self.find(key).expect("it was verified just now");
        held.holds.retain(|hold| hold.holder != requester);
        self.let_in(now, key, now);
        Ok(())
    }

    fn break_hold(&mut self, now: Instant, key: Name, fence: Fence) -> Result<Name, Refusal> {
        self.expire_key(now, key);
        let held = self.find(key).ok_or(Free)?;
        let mut holds = held.holds.iter();
        let place = holds.position(|hold| hold.grant.fence == fence);
        let hold = held.holds.remove(place.ok_or(StaleFence)?);
        self.broken.push(Unforgotten {
            key,
            holder: hold.holder,
            fence,
            until: hold.grant.expires + REMEMBERED_FOR,
        });
        if self.broken.len() > self.limits.waiters.max(LEAST_REMEMBERED) {
            self.broken.remove(0);
        }
        self.let_in(now, key, now);
        Ok(hold.holder)
    }

    /// Whether a hold that is over was broken.
    fn was_broken(&self, now: Instant, key: Name, who: Name, fence: Option<Fence>) -> bool {
        self.broken.iter().any(|broken| {
            (broken.key, broken.holder) == (key, who)
                && now < broken.until
                && fence.is_none_or(|fence| fence == broken.fence)
        })
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
        let mut holds = held.holds.iter_mut();
        let hold = holds.find(|hold| hold.holder == requester);
        let hold = hold.expect("it was verified just now");
        hold.lease = lease.unwrap_or(hold.lease);
        hold.grant.expires = hold.grant.expires.max(now + hold.lease);
        Ok(hold.grant)
    }

    fn verify(
        &mut self,
        now: Instant,
        key: Name,
        requester: Name,
        fence: Option<Fence>,
    ) -> Result<Grant, Refusal> {
        self.expire_key(now, key);
        let was_broken = self.was_broken(now, key, requester, fence);
        let or_broken = |refusal| if was_broken { Refusal::Broken } else { refusal };
        let held = self.find(key).ok_or(or_broken(Free))?;
        let hold = held.of(requester).ok_or(or_broken(NotHolder))?;
        match fence {
            Some(fence) if fence != hold.grant.fence => Err(StaleFence),
            _ => Ok(hold.grant),
        }
    }

    fn holding(&mut self, key: Name) -> Option<Holding> {
        self.find(key).map(|held| Holding {
            holder: held.holds[0].holder.into(),
            note: None,
            grant: held.holds[0].grant,
            holders: held.holds.len(),
            waiters: held.waiters.len(),
        })
    }

    /// The fence that a requester names which believes that it holds the key now.
    fn fence(&mut self, now: Instant, key: Name, requester: Name, under: Under) -> Option<Fence> {
        self.expire_key(now, key);
        let hold = self.find(key).and_then(|held| held.of(requester));
        let of_hold = hold.map(|hold| hold.grant.fence);
        let mut broken = self.broken.iter();
        let of_broken = broken.find(|broken| (broken.key, broken.holder) == (key, requester));
        let of_broken = of_broken.map(|broken| broken.fence);
        let current = of_hold.or(of_broken).unwrap_or(FIRST_FENCE);
        match under {
            Under::Any => None,
            Under::Its => Some(current),
            Under::Another => Some(current - 1),
        }
    }

    fn abandon(&mut self, now: Instant, key: Name, ticket: Ticket) -> bool {
        self.expire_key(now, key);
        let before = self.handles().len();
        for held in &mut self.held {
            held.waiters.retain(|waiting| waiting.ticket != ticket);
        }
        let has_left = self.handles().len() < before;
        if has_left {
            self.let_in(now, key, now);
        }
        has_left
    }

    /// Makes the changes that are due, instant by instant.
    fn expire_key(&mut self, now: Instant, key: Name) {
        while let Some(held) = self.find(key) {
            match held.next_change() {
                Some(at) if at <= now => self.let_in(now, key, at),
                _ => return,
            }
        }
    }

    /// The changes at one instant: leases end, timed-out waiters leave, the next waiters are granted the key.
    fn let_in(&mut self, now: Instant, key: Name, at: Instant) {
        loop {
            let Some(held) = self.find(key) else { return };
            held.holds.retain(|hold| hold.grant.expires > at);
            if held.holds.is_empty() && held.waiters.is_empty() {
                self.held.retain(|held| held.key != key);
                return;
            }
            let Some(first) = held.waiters.first() else {
                return;
            };
            if held.room() > 0 && first.deadline < at {
                held.waiters.remove(0);
                continue;
            }
            if !held.admits(first.slots) {
                return;
            }
            let Waiting {
                requester,
                request,
                ticket,
                lease,
                deadline,
                slots,
                handle,
            } = held.waiters.remove(0);
            if !is_there(&handle) {
                if let Some(request) = request
                    && deadline >= now
                {
                    self.keep(now, ticket, (key, requester, request));
                }
                continue;
            }
            let grant = self.begin(now, key, requester, lease, request, slots);
            self.told.push((handle, grant));
        }
    }

    fn expire(&mut self, now: Instant, batch: usize) -> bool {
        // Forgotten first: a grant in the rest of this call may forget a broken hold, too.
        let mut broken = 0;
        while broken < batch && self.broken.first().is_some_and(|first| first.until <= now) {
            self.broken.remove(0);
            broken += 1;
        }
        // Forgotten first: the kept place of a waiter that is passed over may push out an old one.
        let mut forgotten = 0;
        while forgotten < batch && self.reserved.first().is_some_and(|first| first.end <= now) {
            self.reserved.remove(0);
            forgotten += 1;
        }
        let contended = self.held.iter().filter(|held| !held.waiters.is_empty());
        let mut due: Vec<_> = contended
            .map(|held| (held.next_change(), held.holds[0].grant.fence, held.key))
            .collect();
        due.sort();
        for (_, _, key) in due {
            self.expire_key(now, key);
        }
        let mut freed = 0;
        while freed < batch
            && let Some(((_, fence), key)) = self.first_lapsed(now)
        {
            let held = self.find(key).expect("it was found just now");
            held.holds.retain(|hold| hold.grant.fence != fence);
            self.held.retain(|held| !held.holds.is_empty());
            freed += 1;
        }
        freed < batch && forgotten < batch && broken < batch
    }

    /// The lapsed hold that ended first among the uncontended keys. Of two at one instant, that of the key whose first
    /// hold has the smaller fence.
    fn first_lapsed(&self, now: Instant) -> Option<(End, Name)> {
        let held = self.held.iter();
        let held = held.filter(|held| held.waiters.is_empty());
        let ends = held.filter_map(|held| Some((held.first_end()?, held)));
        let first = ends.min_by_key(|((end, _), held)| (*end, held.holds[0].grant.fence))?;
        let ((end, fence), held) = first;
        (end <= now).then_some(((end, fence), held.key))
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
            holds: held.holds.iter().map(Owner::remembered).collect(),
            queue: held.waiters.iter().map(Waiting::remembered).collect(),
        });
        sorted(contents)
    }

    fn listed(&self, now: Instant) -> Vec<Listed> {
        let mut held: Vec<&Held> = self.held.iter().collect();
        held.sort_by_key(|held| {
            (
                held.waiters.is_empty(),
                held.next_change(),
                held.holds[0].grant.fence,
            )
        });
        let listed = held.into_iter().map(|held| {
            let live = held.holds.iter().filter(|hold| hold.grant.expires > now);
            let fences: Vec<Fence> = live.map(|hold| hold.grant.fence).collect();
            (held.key.into(), fences, held.waiters.len())
        });
        listed.filter(|(_, fences, _)| !fences.is_empty()).collect()
    }
}

impl Owner {
    fn remembered(&self) -> RememberedHold<'_> {
        ((self.holder, self.request), self.grant, self.lease)
    }
}

impl Waiting {
    fn remembered(&self) -> Place<'_> {
        let from = (self.requester, self.request);
        let ask = (self.lease, self.slots);
        (self.ticket, from, ask, self.deadline, self.handle)
    }
}

/// Everything that is remembered of a key.
#[derive(Debug, PartialEq)]
struct Remembered<'a> {
    key: &'a str,
    holds: Vec<RememberedHold<'a>>,
    queue: Vec<Place<'a>>,
}

/// A requester and its request ID.
type Asker<'a> = (&'a str, Option<&'a str>);

type RememberedHold<'a> = (Asker<'a>, Grant, Duration);

type Place<'a> = (Ticket, Asker<'a>, (Duration, Slots), Instant, Handle);

fn contents(table: &LockTable<Handle>) -> Vec<Remembered<'_>> {
    sorted(table.entries.iter().map(|(key, entry)| {
        let waiters = entry
            .queue()
            .into_iter()
            .flat_map(|queue| &queue.by_arrival);
        let places = waiters.map(|(&ticket, waiter)| {
            let claim = &waiter.claim;
            let ask = (claim.lock_timeout.into(), claim.slots);
            (ticket, asker(claim), ask, waiter.deadline, waiter.handle)
        });
        let holds = entry.holds().map(|hold| {
            let claim = &hold.claim;
            (asker(claim), hold.grant(), claim.lock_timeout.into())
        });
        Remembered {
            key,
            holds: holds.collect(),
            queue: places.collect(),
        }
    }))
}

/// A key, the fences of its leases that have not ended, and the number of its waiters.
type Listed = (String, Vec<Fence>, usize);

/// The keys of all pages, of one key and two steps each.
fn listed(table: &LockTable<Handle>, now: Instant) -> Vec<Listed> {
    let all = Filter {
        prefix: "",
        holder: None,
    };
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = table.look(now, all, after, 1, 2);
        listed.extend(page.found.into_iter().map(|view| {
            let fences = view.holds.iter().map(|hold| hold.fence).collect();
            (view.key.to_string(), fences, view.waiters)
        }));
        after = page.next;
        if after.is_none() {
            return listed;
        }
    }
}

fn asker(claim: &Claim) -> Asker<'_> {
    (&claim.requester, claim.request_id.as_deref())
}

fn reserved(table: &LockTable<Handle>) -> Vec<Orphan> {
    let reserved = table.ledger.reserved.by_end.iter();
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
    /// The waiters that have not been notified, with their places.
    waiting: HashMap<Handle, (Name, Ticket)>,
    /// The grant that the last acquire got at once.
    granted: Option<Grant>,
    /// The earlier grant that the last acquire repeated.
    repeated: Option<Grant>,
    /// The place to which the last acquire came back.
    came_back: Option<(Name, Ticket)>,
    fences: Vec<Fence>,
    last_granted: HashMap<Name, Ticket>,
}

impl Race {
    fn new(limits: Limits) -> Self {
        Race {
            table: Managed::new(limits, FIRST_FENCE).asking(is_there),
            model: Model {
                held: Vec::new(),
                reserved: Vec::new(),
                broken: Vec::new(),
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
        let remembered = self.table.ledger.broken.by_number.values();
        let remembered: Vec<_> = remembered.map(|(key, who)| (&**key, &**who)).collect();
        let expected = self.model.broken.iter();
        let expected: Vec<_> = expected.map(|broken| (broken.key, broken.holder)).collect();
        prop_assert_eq!(remembered, expected);
        prop_assert_eq!(listed(&self.table, self.now), self.model.listed(self.now));
        let next = self.model.held.iter().filter(|h| !h.waiters.is_empty());
        prop_assert_eq!(
            self.table.next_hand_over(),
            next.filter_map(Held::next_change).min()
        );
        Ok(())
    }

    fn call(&mut self, op: Op) -> Result<(), TestCaseError> {
        if let Op::Acquire(requester, key, request, lease, patience, slots) = op {
            return self.acquire(key, requester, request, terms(lease, patience), slots);
        }
        let Race {
            table, model, now, ..
        } = self;
        match op {
            Op::Acquire(..) => unreachable!("it has a function of its own"),
            Op::Release(requester, key, under) => {
                let fence = model.fence(*now, key, requester, under);
                prop_assert_eq!(
                    table.release(*now, key, requester, fence),
                    model.release(*now, key, requester, fence)
                );
            }
            Op::Renew(requester, key, under, lease) => {
                let fence = model.fence(*now, key, requester, under);
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
                let fence = model.fence(*now, key, requester, under);
                prop_assert_eq!(
                    table.verify(*now, key, requester, fence),
                    model.verify(*now, key, requester, fence)
                );
            }
            Op::Abandon(nth) => {
                if let Some(&(key, ticket)) = self.tickets.get(nth % self.tickets.len().max(1)) {
                    prop_assert_eq!(
                        table.abandon(*now, key, ticket),
                        model.abandon(*now, key, ticket)
                    );
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
            Op::Break(requester, key, under) => {
                let fence = model.fence(*now, key, requester, under);
                let fence = fence.unwrap_or(FIRST_FENCE);
                let broken = table.break_hold(*now, key, fence);
                let broken = broken.map(|broken| broken.holder.to_string());
                let expected = model.break_hold(*now, key, fence);
                prop_assert_eq!(broken, expected.map(String::from));
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
                let end = model.find(key).and_then(|held| held.first_end());
                *now = (*now).max(end.map_or(*now, |(end, _)| end));
            }
            Op::PassGrace { just_before } => {
                let end = model.reserved.first().map(|reserve| reserve.end);
                let before = Duration::from_nanos(u64::from(just_before));
                *now = (*now).max(end.map_or(*now, |end| end - before));
            }
            Op::PassMemory { just_before } => {
                let end = model.broken.first().map(|broken| broken.until);
                let before = Duration::from_nanos(u64::from(just_before));
                *now = (*now).max(end.map_or(*now, |end| end - before));
            }
            Op::PassJustBeforeEnd(key) => {
                let end = model.find(key).and_then(|held| held.first_end());
                let before = Duration::from_nanos(1);
                *now = (*now).max(end.map_or(*now, |(end, _)| end - before));
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
        slots: Slots,
    ) -> Result<(), TestCaseError> {
        let (now, handle) = (self.now, self.next_handle);
        self.next_handle += 1;
        let model = &mut self.model;
        let expected = model.acquire(now, key, requester, terms, request, slots, handle);
        let table = &mut self.table;
        let acquired = table.acquire(now, key, requester, terms, request, slots, || handle);
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
            Answer::Refused(Full) if !table.entries.contains_key(key) => {
                let mut holds = table.entries.values().flat_map(Entry::holds);
                prop_assert!(
                    holds.all(|hold| hold.expires > now),
                    "a lapsed hold takes the place of a new one"
                );
            }
            Answer::Refused(_) => {}
        }
        Ok(())
    }

    /// Also checks, without the model, that each waiter is notified once, that grants follow arrival and that fences
    /// only grow.
    fn compare_hand_overs(&mut self) -> Result<(), TestCaseError> {
        let told = self.table.take_handed_over();
        let told: Vec<_> = told.into_iter().map(|h| (h.waiter, h.grant)).collect();
        for &(handle, grant) in &told {
            self.note_fence(grant)?;
            let place = self.waiting.remove(&handle);
            let (key, ticket) = place.expect("only a waiter is handed a key");
            let earlier = self.last_granted.insert(key, ticket);
            prop_assert!(earlier < Some(ticket), "a later arrival came first");
        }
        prop_assert_eq!(told, std::mem::take(&mut self.model.told));
        // An acquire may have ended leases first, so its own result is noted after them.
        if let Some((key, ticket)) = self.came_back.take() {
            // It may now be granted the key after requesters that arrived later and were granted it meanwhile.
            let last = self.last_granted.entry(key).or_default();
            *last = (*last).min(ticket - 1);
        }
        if let Some(grant) = self.granted.take() {
            self.note_fence(grant)?;
        }
        if let Some(grant) = self.repeated.take() {
            prop_assert!(
                self.fences.contains(&grant.fence),
                "the grant was made before"
            );
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
        Answer::Granted(Grant { expires, fence, .. }) => {
            format!("granted for {:?} as {fence}", *expires - now)
        }
        Answer::Repeated(Grant { expires, fence, .. }) => {
            format!("repeated for {:?} as {fence}", *expires - now)
        }
        other => format!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(cases(8192))]

    #[test]
    fn the_table_and_a_naive_model_agree_after_every_call(limits in limits(), ops in vec(op(), 1..256)) {
        let mut race = Race::new(limits);
        for (n, op) in ops.into_iter().enumerate() {
            race.step(op).map_err(|error| {
                TestCaseError::fail(format!("step {n}, {op:?}: {error}"))
            })?;
        }
    }
}
