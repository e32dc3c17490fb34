//! The manager with a store that several servers share, which the test steps.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::commit::{answer, fences_held, stored_hold, was_sent};
use super::*;
use crate::store::election::Election;
use crate::store::fake::{FakeDisk, Steps};
use crate::store::{Recovered, StoreError, StoredHold};

/// One server of several, and the controls that make it lead.
struct Cluster {
    manager: Running,
    steps: Steps,
    lead: Sender<Recovered>,
    /// How many holds it began with, each time that it began to lead.
    leads: Receiver<usize>,
}

impl Cluster {
    /// A server that stands by.
    fn start(lock_timeout: Duration) -> Self {
        let (store, steps, lead) = FakeDisk::new().shared();
        let (told, leads) = channel();
        let store = OpenStore {
            store: Box::new(store),
            recovered: None,
            election: Some(Arc::new(Election::default())),
            // It fails if the test has ended.
            leads: Box::new(move |recovered| {
                let _ = told.send(recovered.holds.len());
            }),
            lost: Box::new(|_| {}),
        };
        Cluster {
            manager: start_with(lock_timeout, LONG, Some(store)),
            steps,
            lead,
            leads,
        }
    }

    fn lead(&self, greatest_fence: Option<Fence>, holds: Vec<StoredHold>) {
        let recovered = Recovered {
            store: "fake".into(),
            greatest_fence,
            holds,
        };
        self.lead.send(recovered).expect("it stands by");
        self.leads.recv().expect("it leads");
        until(|| !self.manager.stands_by());
    }

    /// A server that leads, without a held key.
    fn leading(lock_timeout: Duration) -> Self {
        let cluster = Cluster::start(lock_timeout);
        cluster.lead(None, Vec::new());
        cluster
    }

    /// Expects an empty batch: a proof that this server leads.
    fn expect_proof(&self) {
        assert_eq!(self.steps.next().records, []);
    }
}

const STANDBY: Outcome = Outcome::Refused(Refusal::Standby, None);

fn usual() -> Terms {
    Terms {
        lock_timeout: LONG,
        lock_attempt_timeout: LONG,
    }
}

#[test]
fn a_server_that_stands_by_decides_nothing() {
    let cluster = Cluster::start(LONG);
    let manager = &cluster.manager;
    assert!(manager.stands_by());
    let acquired = manager.try_acquire("K", "ann", usual(), None);
    assert!(matches!(acquired, Attempt::Decided(outcome) if outcome == STANDBY));
    // Any other answer is dropped, because the server knows no hold.
    let asked = manager.asked();
    assert!(manager.verify("K", "ann", None).is_err());
    assert!(!manager.wait_until_stored(asked));
}

#[test]
fn rule_3_an_answer_that_only_reads_waits_for_a_proof_that_was_asked_for_after_its_decision() {
    let cluster = Cluster::leading(LONG);
    let (manager, steps) = (&cluster.manager, &cluster.steps);
    manager.granted("K", "ann");
    let granted = answer(manager);
    steps.next();
    // The grant that it reads is being stored, but that batch was sent before this decision.
    manager.verify("K", "ann", None).unwrap();
    let verified = answer(manager);
    steps.apply();
    granted.recv().expect("it is sent");
    cluster.expect_proof();
    assert!(!was_sent(&verified));
    manager.verify("K", "ann", None).unwrap();
    let later = answer(manager);
    steps.apply();
    verified.recv().expect("it is sent");
    cluster.expect_proof();
    assert!(!was_sent(&later));
    steps.apply();
    later.recv().expect("it is sent");
}

#[test]
fn rule_3_questions_at_the_same_time_share_a_proof() {
    let cluster = Cluster::leading(LONG);
    let first = answer(&cluster.manager);
    cluster.expect_proof();
    let others: Vec<_> = (0..100).map(|_| answer(&cluster.manager)).collect();
    cluster.steps.apply();
    first.recv().expect("it is sent");
    cluster.expect_proof();
    cluster.steps.apply();
    for other in others {
        other.recv().expect("it is sent");
    }
    assert!(cluster.steps.has_none());
}

#[test]
fn rule_12_a_deposed_leader_sends_no_answer_about_unstored_decisions() {
    let cluster = Cluster::leading(LONG);
    let (manager, steps) = (&cluster.manager, &cluster.steps);
    let ann = manager.granted("K", "ann").fence;
    let granted = answer(manager);
    assert_eq!(fences_held(&steps.next()), [ann]);
    let next = manager.queued("K", "bob");
    manager.release("K", "ann", None).unwrap();
    let (released, waits) = (answer(manager), manager.queued("K", "cat"));
    let asked = manager.asked();
    steps.refuse();
    // It is unknown whether that is stored: the connections end.
    assert!(granted.recv().is_err() && released.recv().is_err());
    until(|| !next.notified.lock().is_empty());
    assert_eq!(next.pending().outcome(), Some(&Outcome::Unknown));
    assert_eq!(manager.wait_for(&next), Outcome::Unknown);
    // A waiter has lost nothing and may ask another server.
    until(|| !waits.notified.lock().is_empty());
    assert_eq!(manager.wait_for(&waits), STANDBY);
    assert!(manager.stands_by());
    assert_eq!(manager.size().holds, 0);
    // It is not sent later either, when this server leads again.
    cluster.lead(Some(ann), Vec::new());
    assert!(!manager.wait_until_stored(asked));
    assert!(steps.has_none());
}

#[test]
fn rule_6_a_new_leader_begins_with_the_stored_holds_and_full_leases() {
    let cluster = Cluster::leading(LONG);
    let (manager, steps) = (&cluster.manager, &cluster.steps);
    manager.granted("K", "ann");
    steps.next();
    steps.refuse();
    until(|| manager.stands_by());
    let now = Instant::now();
    let held = stored_hold("K", "bob", 1 << 52, 2 * LONG);
    cluster.lead(Some(1 << 52), vec![held]);
    let grant = manager.verify("K", "bob", None).unwrap();
    assert!(grant.fence == 1 << 52 && grant.expires >= now + 2 * LONG);
    assert!(manager.verify("K", "ann", None).is_err());
    assert_eq!(manager.granted("L", "ann").fence, (1 << 52) + 1);
    assert_eq!(fences_held(&steps.next()), [(1 << 52) + 1]);
    steps.apply();
}

#[test]
fn a_server_that_ends_has_stored_its_decisions_and_sent_their_answers() {
    let cluster = Cluster::leading(LONG);
    let (manager, steps) = (&cluster.manager, &cluster.steps);
    let fence = manager.granted("K", "ann").fence;
    let granted = answer(manager);
    manager.stop();
    let ending = manager.0.clone();
    let ends = thread::spawn(move || ending.end_store(Instant::now() + LONG));
    assert_eq!(fences_held(&steps.next()), [fence]);
    steps.apply();
    granted.recv().expect("it is sent");
    ends.join().expect("it ends");
}

#[test]
fn a_grant_that_was_taken_back_is_never_sent_even_after_the_server_is_deposed() {
    let cluster = Cluster::leading(LONG);
    let (manager, steps) = (&cluster.manager, &cluster.steps);
    let ann = manager.granted("K", "ann").fence;
    steps.next();
    steps.apply();
    let bob = manager.queued("K", "bob");
    manager.release("K", "ann", None).unwrap();
    assert_eq!(fences_held(&steps.next()), [ann + 1]);
    steps.lose(StoreError::Full);
    // The end has room. Then bob's wait is over, and the thread that answers him asks whether his grant was taken back.
    until(|| {
        steps.apply_next();
        !bob.notified.lock().is_empty()
    });
    let _asked = answer(manager);
    steps.next();
    steps.refuse();
    until(|| manager.stands_by());
    assert!(manager.was_taken_back(ann + 1, None));
    // Another server may give this fence out.
    let held = stored_hold("K", "cat", ann + 1, LONG);
    cluster.lead(Some(ann + 1), vec![held]);
    assert!(!manager.was_taken_back(ann + 1, None));
}

#[test]
fn a_reader_of_events_gets_a_gap_if_another_server_may_have_led() {
    let cluster = Cluster::leading(LONG);
    let (manager, steps) = (&cluster.manager, &cluster.steps);
    let term = manager.term();
    manager.read_along("");
    manager.granted("K", "ann");
    steps.next();
    steps.refuse();
    until(|| manager.stands_by());
    cluster.lead(None, Vec::new());
    assert_ne!(manager.term(), term);
    let taken = manager.take_events();
    assert!(taken[0].events.is_empty());
    assert_eq!(taken[0].missed, 1);
    assert!(manager.take_events().is_empty());
}
