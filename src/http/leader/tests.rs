//! Who leads, and who does when that one is stuck.

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread;

use parking_lot::Mutex;

use super::*;

#[test]
fn a_leader_goes_on_leading_request_after_request() {
    let (leadership, lead) = Leadership::new();
    for _ in 0..3 {
        leadership.serve(&lead);
        assert!(leadership.receive(&lead));
    }
}

#[test]
fn a_leader_that_receives_cannot_be_deposed() {
    let (leadership, lead) = Leadership::new();
    assert_eq!(leadership.depose(), None);
    leadership.serve(&lead);
    assert!(leadership.receive(&lead));
    assert_eq!(leadership.depose(), None);
    leadership.serve(&lead);
    assert!(leadership.receive(&lead));
}

#[test]
fn a_deposed_leader_finds_out_when_it_comes_back() {
    let (leadership, old) = Leadership::new();
    leadership.serve(&old);
    let new = leadership.depose().expect("it serves");
    assert_ne!(new, old);
    assert!(!leadership.receive(&old));
    leadership.serve(&new);
    assert!(!leadership.receive(&old));
    assert!(leadership.receive(&new));
    assert!(!leadership.receive(&old));
}

#[test]
fn who_is_deposed_is_deposed_once() {
    let (leadership, lead) = Leadership::new();
    leadership.serve(&lead);
    let new = leadership.depose();
    assert!(new.is_some());
    // The new leader receives.
    assert_eq!(leadership.depose(), None);
    leadership.serve(&new.unwrap());
    assert!(leadership.depose().is_some());
}

#[test]
fn no_two_leaders_are_the_same() {
    let (leadership, first) = Leadership::new();
    let mut leads = vec![first];
    for _ in 0..100 {
        leadership.serve(&leads[leads.len() - 1]);
        let next = leadership.depose().expect("it serves");
        assert!(!leads.contains(&next));
        leads.push(next);
    }
    assert!(!leads[..100].iter().any(|old| leadership.receive(old)));
}

#[test]
fn a_leader_comes_back_or_is_deposed_and_never_both() {
    const ROUNDS: usize = 10_000;
    let start = AtomicUsize::new(0);
    // Both sides start each round at the same moment, as far as the machine lets them.
    let starts_round = |round: usize| {
        start.fetch_add(1, SeqCst);
        while start.load(SeqCst) < 2 * round {
            thread::yield_now();
        }
    };
    let (leadership, mut lead) = Leadership::new();
    let next = Mutex::new(None);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                starts_round(2 * round - 1);
                *next.lock() = leadership.depose();
                starts_round(2 * round);
            }
        });
        for round in 1..=ROUNDS {
            leadership.serve(&lead);
            starts_round(2 * round - 1);
            let is_back = leadership.receive(&lead);
            starts_round(2 * round);
            let next = next.lock().take();
            assert_ne!(is_back, next.is_some());
            lead = next.unwrap_or(lead);
        }
    });
}

#[test]
fn only_one_leads_at_a_time() {
    const LEADERS: usize = 300;
    let (leadership, first) = Leadership::new();
    let taking = AtomicBool::new(false);
    let ended = AtomicBool::new(false);
    // Takes requests until it is deposed.
    let lead = |lead: Lead| {
        loop {
            assert!(!taking.swap(true, SeqCst), "somebody else takes requests");
            thread::yield_now();
            assert!(taking.swap(false, SeqCst));
            leadership.serve(&lead);
            thread::yield_now();
            if ended.load(SeqCst) || !leadership.receive(&lead) {
                return;
            }
        }
    };
    thread::scope(|scope| {
        let mut leaders = vec![scope.spawn(|| lead(first))];
        while leaders.len() < LEADERS {
            if let Some(next) = leadership.depose() {
                leaders.push(scope.spawn(|| lead(next)));
            }
            // Who panicked leaves the lead to nobody.
            if leaders.last().is_some_and(|leader| leader.is_finished()) {
                break;
            }
            thread::yield_now();
        }
        ended.store(true, SeqCst);
        assert_eq!(leaders.len(), LEADERS);
    });
}
