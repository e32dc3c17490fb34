//! The lock manager with real threads. No test measures time, except that nothing may come early.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;

use super::time_keeper::{SWEEP_BATCH, SWEEP_EVERY};
use super::*;

mod commit;
mod standby;
mod traces;

const LONG: Duration = Duration::from_secs(60);
/// The outcome of a wait when the server ends.
const STOPPING: Outcome = Outcome::Refused(Refusal::Stopping, None);

const SHORT: Duration = Duration::from_millis(30);

/// A manager that stops and ends all waits when its test ends.
struct Running(Arc<LockManager>);

impl std::ops::Deref for Running {
    type Target = LockManager;

    fn deref(&self) -> &LockManager {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        self.end_store(Instant::now());
    }
}

fn start(lock_timeout: Duration, lock_attempt_timeout: Duration) -> Running {
    start_with(lock_timeout, lock_attempt_timeout, None)
}

fn start_with(
    lock_timeout: Duration,
    lock_attempt_timeout: Duration,
    store: Option<OpenStore>,
) -> Running {
    let terms = Terms {
        lock_timeout,
        lock_attempt_timeout,
    };
    let limits = Limits {
        holds: usize::MAX,
        waiters: usize::MAX,
    };
    Running(LockManager::start(terms, limits, store).expect("the machine has a thread left"))
}

/// A waiter that notes how it was notified.
struct Noted {
    pending: Pending,
    notified: Mutex<Vec<(Answerer, thread::ThreadId)>>,
    has_gone: AtomicBool,
    /// Known without a check.
    is_broken: AtomicBool,
}

impl Waiter for Noted {
    fn pending(&self) -> &Pending {
        &self.pending
    }

    fn is_there(&self) -> bool {
        !self.is_broken.load(SeqCst)
    }

    fn has_gone(&self) -> bool {
        self.has_gone.load(SeqCst)
    }

    fn notify(self: Arc<Self>, answerer: Answerer) {
        let thread = thread::current().id();
        self.notified.lock().push((answerer, thread));
    }
}

/// An acquire that was decided at once, or one that waits.
enum Attempt {
    Decided(Outcome),
    Queued(Arc<Noted>),
}

impl Running {
    fn try_acquire(
        &self,
        key: &str,
        requester: &str,
        terms: Terms,
        request_id: Option<&str>,
    ) -> Attempt {
        let mut waiter = None;
        let ask = Ask {
            key,
            requester,
            request_id,
            note: None,
            slots: 1,
            terms,
        };
        let outcome = self.acquire(ask, |pending| {
            let new = Arc::new(Noted {
                pending,
                notified: Mutex::default(),
                has_gone: AtomicBool::new(false),
                is_broken: AtomicBool::new(false),
            });
            waiter = Some(new.clone());
            new
        });
        match (outcome, waiter) {
            (Some(outcome), None) => Attempt::Decided(outcome),
            (None, Some(waiter)) => Attempt::Queued(waiter),
            _ => panic!("a waiter is made exactly for an acquire that waits"),
        }
    }

    fn wait_for(&self, waiter: &Noted) -> Outcome {
        self.wait(&waiter.pending)
    }

    fn give_up(&self, waiter: &Arc<Noted>) {
        self.abandon(&(waiter.clone() as Arc<dyn Waiter>));
    }

    /// An acquire with the manager's own times.
    fn ask(&self, key: &str, requester: &str) -> Attempt {
        self.try_acquire(key, requester, self.terms, None)
    }

    /// An acquire with a request ID.
    fn ask_as(&self, request: &str, key: &str, requester: &str) -> Attempt {
        self.try_acquire(key, requester, self.terms, Some(request))
    }

    fn granted(&self, key: &str, requester: &str) -> Grant {
        match self.ask(key, requester) {
            Attempt::Decided(Outcome::Granted(grant)) => grant,
            Attempt::Decided(other) => panic!("{requester} should be granted {key}: {other:?}"),
            Attempt::Queued(_) => panic!("{requester} should not have to wait for {key}"),
        }
    }

    fn queued(&self, key: &str, requester: &str) -> Arc<Noted> {
        place_of(self.ask(key, requester))
    }

    fn decided(&self, key: &str, requester: &str) -> Outcome {
        outcome_at_once(self.ask(key, requester))
    }

    fn is_held_by(&self, key: &str, requester: &str) -> bool {
        self.verify(key, requester, None).is_ok()
    }

    fn outcome_of(&self, attempt: Attempt) -> Outcome {
        match attempt {
            Attempt::Decided(outcome) => outcome,
            Attempt::Queued(place) => self.wait_for(&place),
        }
    }

    /// Starts a thread that waits at the place, and returns once it blocks.
    fn wait_in_thread(&self, place: &Arc<Noted>) -> JoinHandle<Outcome> {
        let (manager, waiting) = (self.0.clone(), place.clone());
        let thread = thread::spawn(move || manager.wait(&waiting.pending));
        until(|| {
            let state = self.state.lock();
            // Only waking somebody shows that somebody waits. A thread that is woken for nothing waits again before
            // another thread gets the lock.
            let blocked = place.pending.decided.notify_one();
            MutexGuard::unlock_fair(state);
            blocked || is_decided(place)
        });
        thread
    }

    /// A key with a waiter behind a holder whose lease has not run out yet.
    fn contended_key(&self) -> (String, Grant, Arc<Noted>) {
        let mut keys = (1..).map(|n| format!("KEY{n}"));
        loop {
            let key = keys.next().expect("it counts without end");
            let grant = self.granted(&key, "ann");
            if let Attempt::Queued(place) = self.ask(&key, "bob") {
                return (key, grant, place);
            }
        }
    }
}

fn place_of(attempt: Attempt) -> Arc<Noted> {
    match attempt {
        Attempt::Queued(place) => place,
        Attempt::Decided(outcome) => panic!("it should wait: {outcome:?}"),
    }
}

fn outcome_at_once(attempt: Attempt) -> Outcome {
    match attempt {
        Attempt::Decided(outcome) => outcome,
        Attempt::Queued(_) => panic!("it should not wait"),
    }
}

fn refusal_of(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal, _) => refusal,
        other => panic!("it should be refused: {other:?}"),
    }
}

fn grant_of(outcome: Outcome) -> Grant {
    match outcome {
        Outcome::Granted(grant) => grant,
        other => panic!("it should be granted: {other:?}"),
    }
}

/// The outcome of a thread's wait. Fails if the thread is not woken in time.
fn outcome_in(thread: JoinHandle<Outcome>) -> Outcome {
    until(|| thread.is_finished());
    thread.join().expect("a wait does not panic")
}

fn is_decided(place: &Noted) -> bool {
    place.pending.outcome().is_some()
}

fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "the condition is not true after 10 s"
        );
        thread::park_timeout(Duration::from_millis(1));
    }
}

#[test]
fn release_wakes_exactly_the_longest_waiter() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    let waiters = ["bob", "cat", "dan"].map(|name| (name, manager.queued("K", name)));
    let threads = waiters
        .each_ref()
        .map(|(_, place)| manager.wait_in_thread(place));
    let mut holder = "ann";
    for (n, thread) in threads.into_iter().enumerate() {
        assert_eq!(manager.release("K", holder, None), Ok(()));
        grant_of(outcome_in(thread));
        holder = waiters[n].0;
        assert!(manager.is_held_by("K", holder));
        assert!(!waiters[n + 1..].iter().any(|(_, place)| is_decided(place)));
    }
    assert_eq!(manager.release("K", holder, None), Ok(()));
    assert!(manager.holding("K").is_none());
}

#[test]
fn a_grant_may_come_before_the_wait_for_it_begins() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    let bob = manager.queued("K", "bob");
    assert_eq!(manager.release("K", "ann", None), Ok(()));
    grant_of(manager.wait_for(&bob));
}

#[test]
fn an_expiry_hands_over_with_no_further_request() {
    let manager = start(SHORT, LONG);
    let (key, first, bob) = manager.contended_key();
    let second = grant_of(outcome_in(manager.wait_in_thread(&bob)));
    assert!(Instant::now() >= first.expires);
    assert!(second.expires >= first.expires + SHORT);
    assert!(second.fence > first.fence);
    assert!(!manager.is_held_by(&key, "ann"));
}

#[test]
fn expiries_hand_over_all_along_the_queue() {
    let manager = start(SHORT, LONG);
    let (key, mut earlier, bob) = manager.contended_key();
    let others: Vec<_> = (0..5)
        .map(|n| manager.ask(&key, &format!("requester {n}")))
        .collect();
    for attempt in std::iter::once(Attempt::Queued(bob)).chain(others) {
        let grant = grant_of(manager.outcome_of(attempt));
        assert!(grant.expires >= earlier.expires + SHORT);
        earlier = grant;
    }
}

#[test]
fn a_wait_longer_than_the_lease_ahead_never_times_out() {
    const LEASE: Duration = Duration::from_millis(5);
    let manager = start(LEASE, LEASE);
    for n in 0..20 {
        let key = format!("KEY{n}");
        manager.granted(&key, "ann");
        let bob = manager.ask(&key, "bob");
        grant_of(manager.outcome_of(bob));
    }
}

#[test]
fn the_time_keeper_never_sleeps_beyond_the_next_hand_over() {
    let manager = start(Duration::from_millis(500), LONG);
    let (_, _, bob) = manager.contended_key();
    let state = manager.state.lock();
    match state.table.next_hand_over() {
        Some(next) => assert!(state.alarm.is_some_and(|alarm| alarm <= next)),
        None => assert!(is_decided(&bob), "it came before this looked"),
    }
}

#[test]
fn a_wait_ends_with_timeout_and_the_place_is_gone() {
    let manager = start(LONG, SHORT);
    manager.granted("K", "ann");
    let before = Instant::now();
    let bob = manager.queued("K", "bob");
    assert_eq!(refusal_of(manager.wait_for(&bob)), Refusal::Timeout);
    assert!(before.elapsed() >= SHORT);
    let now = Instant::now();
    assert!(
        !manager
            .state
            .lock()
            .table
            .abandon(now, "K", bob.pending.ticket)
    );
    assert_eq!(manager.release("K", "ann", None), Ok(()));
    assert!(manager.holding("K").is_none());
}

#[test]
fn a_requester_that_timed_out_may_queue_again() {
    let manager = start(LONG, SHORT);
    manager.granted("K", "ann");
    for _ in 0..2 {
        let bob = manager.queued("K", "bob");
        assert_eq!(refusal_of(manager.wait_for(&bob)), Refusal::Timeout);
    }
}

#[test]
fn refusals_come_at_once() {
    let manager = start(LONG, Duration::ZERO);
    manager.granted("K", "ann");
    let refusal = |requester| refusal_of(manager.decided("K", requester));
    assert_eq!(refusal("ann"), Refusal::AlreadyHolder);
    assert_eq!(refusal("bob"), Refusal::Timeout);
    assert_eq!(manager.release("K", "bob", None), Err(Refusal::NotHolder));
    assert_eq!(manager.release("L", "bob", None), Err(Refusal::Free));

    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    let bob = manager.queued("K", "bob");
    let refusal = refusal_of(manager.decided("K", "bob"));
    assert_eq!(refusal, Refusal::AlreadyWaiting);
    assert!(!is_decided(&bob));
}

#[test]
fn a_wait_whose_client_has_gone_is_over_when_its_name_asks_again() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    let [first, again] = ["a", "b"].map(|request| {
        let Attempt::Queued(waiter) = manager.ask_as(request, "K", "bob") else {
            panic!("{request} does not wait");
        };
        waiter.has_gone.store(request == "a", SeqCst);
        waiter
    });
    assert_eq!(manager.wait_for(&first), Outcome::Abandoned);
    let refusal = refusal_of(manager.decided("K", "bob"));
    assert_eq!(refusal, Refusal::AlreadyWaiting);
    assert_eq!(manager.release("K", "ann", None), Ok(()));
    grant_of(manager.wait_for(&again));
}

#[test]
fn an_abandoned_wait_ends_and_the_next_in_the_queue_is_unaffected() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    let (bob, cat) = (manager.queued("K", "bob"), manager.queued("K", "cat"));
    let thread = manager.wait_in_thread(&bob);
    manager.give_up(&bob);
    assert_eq!(outcome_in(thread), Outcome::Abandoned);
    assert_eq!(manager.wait_for(&bob), Outcome::Abandoned);
    assert!(!is_decided(&cat));
    let thread = manager.wait_in_thread(&cat);
    assert_eq!(manager.release("K", "ann", None), Ok(()));
    grant_of(outcome_in(thread));
    assert!(manager.is_held_by("K", "cat"));
}

#[test]
fn abandoning_after_the_grant_keeps_the_grant() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    let (bob, cat) = (manager.queued("K", "bob"), manager.queued("K", "cat"));
    assert_eq!(manager.release("K", "ann", None), Ok(()));
    manager.give_up(&bob);
    grant_of(manager.wait_for(&bob));
    assert!(manager.is_held_by("K", "bob"));
    assert!(!is_decided(&cat));
}

#[test]
fn abandoning_after_the_timeout_changes_nothing() {
    let manager = start(LONG, SHORT);
    manager.granted("K", "ann");
    let bob = manager.queued("K", "bob");
    assert_eq!(refusal_of(manager.wait_for(&bob)), Refusal::Timeout);
    manager.give_up(&bob);
    assert_eq!(refusal_of(manager.wait_for(&bob)), Refusal::Timeout);
}

#[test]
fn stop_ends_all_waits_and_refuses_new_acquires() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    manager.granted("L", "ann");
    let places = [("K", "bob"), ("K", "cat"), ("L", "bob"), ("L", "dan")];
    let threads = places.map(|(key, name)| manager.wait_in_thread(&manager.queued(key, name)));
    manager.stop();
    for thread in threads {
        assert_eq!(outcome_in(thread), STOPPING);
    }
    assert_eq!(manager.decided("K", "eve"), STOPPING);
    assert_eq!(manager.decided("free", "eve"), STOPPING);
    assert!(manager.holding("free").is_none());
}

#[test]
fn a_grant_before_a_stop_stays_granted() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    manager.granted("L", "cat");
    let bob = manager.queued("K", "bob");
    assert_eq!(manager.release("K", "ann", None), Ok(()));
    manager.stop();
    grant_of(manager.wait_for(&bob));
    assert_eq!(manager.release("K", "bob", None), Ok(()));
    assert!(manager.is_held_by("L", "cat"));
}

#[test]
fn stop_ends_the_time_keeper() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    manager.release("K", "ann", None).unwrap();
    // With nothing to wait for it sleeps until it is woken.
    until(|| manager.state.lock().alarm.is_none());
    assert_eq!(Arc::strong_count(&manager.0), 2);
    manager.stop();
    until(|| Arc::strong_count(&manager.0) == 1);
}

#[test]
fn one_thread_holds_the_key_at_a_time_in_the_order_of_arrival() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 200;
    let manager = start(LONG, LONG);
    let inside = AtomicBool::new(false);
    let turns = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for n in 0..THREADS {
            let (manager, inside, turns) = (&manager, &inside, &turns);
            scope.spawn(move || {
                let requester = format!("requester {n}");
                for _ in 0..ROUNDS {
                    let (ticket, outcome) = match manager.ask("K", &requester) {
                        Attempt::Decided(outcome) => (None, outcome),
                        Attempt::Queued(place) => {
                            (Some(place.pending.ticket), manager.wait_for(&place))
                        }
                    };
                    let grant = grant_of(outcome);
                    assert!(!inside.swap(true, SeqCst), "another thread holds the key");
                    turns.lock().push((ticket, grant.fence));
                    thread::yield_now();
                    assert!(inside.swap(false, SeqCst));
                    assert_eq!(manager.release("K", &requester, None), Ok(()));
                }
            });
        }
    });
    let mut turns = turns.into_inner();
    assert_eq!(turns.len(), THREADS * ROUNDS);
    turns.retain(|(ticket, _)| ticket.is_some());
    assert!(!turns.is_empty(), "nobody had to wait");
    turns.sort();
    assert!(turns.is_sorted_by_key(|&(_, fence)| fence));
}

#[test]
fn keys_do_not_wait_for_each_other() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    let bob = manager.queued("K", "bob");
    let thread = manager.wait_in_thread(&bob);
    manager.granted("L", "cat");
    assert_eq!(manager.release("L", "cat", None), Ok(()));
    assert!(!is_decided(&bob));
    assert_eq!(manager.release("K", "ann", None), Ok(()));
    grant_of(outcome_in(thread));
}

#[test]
fn lapsed_keys_are_forgotten_without_a_request() {
    let manager = start(Duration::from_millis(1), Duration::ZERO);
    // More than one batch.
    for n in 0..3 * SWEEP_BATCH {
        manager.granted(&format!("KEY{n}"), "ann");
    }
    until(|| manager.state.lock().table.is_empty());
}

#[test]
fn a_lease_is_shown_by_its_end_on_the_wall_clock_and_by_the_time_left() {
    let manager = start(LONG, LONG);
    let grant = manager.granted("K", "ann");
    let standing = manager.view(grant);
    let left = standing.expires.duration_since(SystemTime::now()).unwrap();
    for left in [left, standing.left, manager.left(grant)] {
        assert!(left <= LONG);
        assert!(left > LONG / 2);
    }
    assert_eq!(standing.fence, grant.fence);
}

// The times that an acquire asks for, and fences.

#[test]
fn an_acquire_may_name_its_own_times() {
    let manager = start(SHORT, SHORT);
    let long = Terms {
        lock_timeout: LONG,
        lock_attempt_timeout: LONG,
    };
    let at_once = Terms {
        lock_attempt_timeout: Duration::ZERO,
        ..long
    };
    let ann = manager.try_acquire("K", "ann", long, None);
    assert!(manager.left(grant_of(outcome_at_once(ann))) > LONG / 2);
    let bob = manager.try_acquire("K", "bob", at_once, None);
    assert_eq!(refusal_of(outcome_at_once(bob)), Refusal::Timeout);
    let before = Instant::now();
    let cat = place_of(manager.try_acquire("K", "cat", long, None));
    assert!(cat.pending.deadline() >= before + LONG);
    assert_eq!(manager.release("K", "ann", None), Ok(()));
    assert!(manager.left(grant_of(manager.wait_for(&cat))) > LONG / 2);
}

#[test]
fn a_refusal_says_who_holds_the_key_until_when_and_how_many_wait() {
    let manager = start(LONG, SHORT);
    let grant = manager.granted("K", "ann");
    let held = |waiters| {
        Some(Holding {
            holder: "ann".into(),
            note: None,
            grant,
            holders: 1,
            waiters,
        })
    };
    assert_eq!(manager.holding("K"), held(0));
    let bob = manager.queued("K", "bob");
    assert_eq!(manager.holding("K"), held(1));
    assert_eq!(
        manager.decided("K", "ann"),
        Outcome::Refused(Refusal::AlreadyHolder, held(1))
    );
    // A waiter that has left is not counted.
    assert_eq!(
        manager.wait_for(&bob),
        Outcome::Refused(Refusal::Timeout, held(0))
    );
}

#[test]
fn a_renewal_postpones_the_hand_over() {
    let manager = start(SHORT, LONG);
    let long = Terms {
        lock_timeout: LONG,
        ..manager.terms
    };
    let first = grant_of(outcome_at_once(manager.try_acquire("K", "ann", long, None)));
    let bob = manager.queued("K", "bob");
    let thread = manager.wait_in_thread(&bob);
    let renewed = manager.renew("K", "ann", Some(first.fence), None).unwrap();
    assert!(renewed.expires > first.expires);
    assert_eq!(renewed.fence, first.fence);
    manager.release("K", "ann", None).unwrap();
    assert!(grant_of(outcome_in(thread)).fence > first.fence);
}

#[test]
fn under_another_fence_nothing_is_released_renewed_or_verified() {
    let manager = start(LONG, LONG);
    let stale = manager.granted("K", "ann");
    assert_eq!(manager.release("K", "ann", Some(stale.fence)), Ok(()));
    let current = manager.granted("K", "ann");
    let fence = Some(stale.fence);
    let no = Refusal::StaleFence;
    assert_eq!(manager.release("K", "ann", fence), Err(no));
    assert_eq!(manager.renew("K", "ann", fence, None), Err(no));
    assert_eq!(manager.verify("K", "ann", fence), Err(no));
    assert_eq!(manager.verify("K", "ann", None), Ok(current));
}

// Repeated requests.

#[test]
fn a_repeat_is_granted_what_it_was_granted_before() {
    let manager = start(LONG, LONG);
    let first = grant_of(outcome_at_once(manager.ask_as("#1", "K", "ann")));
    let again = grant_of(outcome_at_once(manager.ask_as("#1", "K", "ann")));
    assert_eq!(again, first);
    let other = outcome_at_once(manager.ask_as("#2", "K", "ann"));
    assert_eq!(refusal_of(other), Refusal::AlreadyHolder);
}

#[test]
fn a_repeat_takes_over_the_place_and_ends_the_wait_there() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    let bob = place_of(manager.ask_as("#1", "K", "bob"));
    let cat = manager.queued("K", "cat");
    let thread = manager.wait_in_thread(&bob);
    let again = place_of(manager.ask_as("#1", "K", "bob"));
    assert_eq!(
        outcome_in(thread),
        Outcome::Refused(Refusal::TakenOver, manager.holding("K")),
        "with who holds the key"
    );
    let thread = manager.wait_in_thread(&again);
    assert_eq!(manager.release("K", "ann", None), Ok(()));
    grant_of(outcome_in(thread));
    assert!(!is_decided(&cat));
}

#[test]
fn a_wait_that_was_taken_over_takes_nobody_out_of_the_queue() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    let bob = place_of(manager.ask_as("#1", "K", "bob"));
    let again = place_of(manager.ask_as("#1", "K", "bob"));
    assert_eq!(again.pending.ticket, bob.pending.ticket);
    // The loss of its connection is noticed only now.
    manager.give_up(&bob);
    assert_eq!(refusal_of(manager.wait_for(&bob)), Refusal::TakenOver);
    assert_eq!(manager.release("K", "ann", None), Ok(()));
    grant_of(manager.wait_for(&again));
}

#[test]
fn a_repeat_after_a_lost_connection_gets_its_place_back() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    let bob = place_of(manager.ask_as("#1", "K", "bob"));
    let cat = manager.queued("K", "cat");
    let thread = manager.wait_in_thread(&bob);
    manager.give_up(&bob);
    assert_eq!(outcome_in(thread), Outcome::Abandoned);
    let again = place_of(manager.ask_as("#1", "K", "bob"));
    assert_eq!(manager.release("K", "ann", None), Ok(()));
    grant_of(manager.wait_for(&again));
    assert!(!is_decided(&cat));
}

#[test]
fn a_key_is_never_granted_to_a_connection_that_is_known_to_be_broken() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    let bob = place_of(manager.ask_as("#1", "K", "bob"));
    let cat = manager.queued("K", "cat");
    manager.give_up(&bob);
    assert_eq!(manager.release("K", "ann", None), Ok(()));
    grant_of(manager.wait_for(&cat));
    assert_eq!(manager.release("K", "cat", None), Ok(()));
    assert_eq!(manager.holding("K"), None);
}

/// Seen to fail: counted as a waiter that left.
#[test]
fn a_waiter_that_is_passed_over_is_counted_once() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    let bob = manager.queued("K", "bob");
    let cat = manager.queued("K", "cat");
    bob.is_broken.store(true, SeqCst);
    assert_eq!(manager.release("K", "ann", None), Ok(()));
    grant_of(manager.wait_for(&cat));
    manager.give_up(&bob);
    let (size, statistics) = manager.statistics();
    assert_eq!((size.keys, size.waiters), (1, 0));
    assert_eq!((statistics.passed_over, statistics.abandoned), (1, 0));
    assert_eq!((statistics.granted_at_once, statistics.handed_over), (1, 1));
}

#[test]
fn reserved_places_are_forgotten_without_a_request() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    manager.give_up(&place_of(manager.ask_as("#1", "K", "bob")));
    assert_eq!(manager.release("K", "ann", None), Ok(()));
    assert!(!manager.state.lock().table.is_empty());
    until(|| manager.state.lock().table.is_empty());
}

// Which thread answers.

#[test]
fn a_release_answers_the_next_holder_on_its_own_thread() {
    let manager = start(LONG, LONG);
    manager.granted("K", "ann");
    let bob = manager.queued("K", "bob");
    manager.release("K", "ann", None).unwrap();
    let here = thread::current().id();
    assert_eq!(*bob.notified.lock(), [(Answerer::ThisThread, here)]);
    grant_of(manager.wait_for(&bob));
}

#[test]
fn only_a_release_answers_on_its_own_thread() {
    let manager = start(SHORT, LONG);
    let (_, _, bob) = manager.contended_key();
    until(|| !bob.notified.lock().is_empty());
    assert_eq!(bob.notified.lock()[0].0, Answerer::AnotherThread);
    for end in [
        (|manager, bob| manager.give_up(bob)) as fn(&Running, &Arc<Noted>),
        |manager, _| manager.stop(),
        |manager, _| drop(manager.ask_as("#1", "K", "bob")),
    ] {
        let manager = start(LONG, LONG);
        manager.granted("K", "ann");
        let bob = place_of(manager.ask_as("#1", "K", "bob"));
        end(&manager, &bob);
        let here = thread::current().id();
        assert_eq!(*bob.notified.lock(), [(Answerer::AnotherThread, here)]);
    }
}
