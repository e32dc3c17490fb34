//! Which thread leads, and which one after a stuck leader.

pub(super) mod model;

use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;

#[test]
fn a_leader_leads_for_request_after_request() {
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
fn a_deposed_leader_notices_when_it_comes_back() {
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
fn a_leader_is_deposed_once() {
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
fn each_leader_has_its_own_number() {
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
fn only_one_thread_leads_at_a_time() {
    const LEADERS: usize = 300;
    let (leadership, first) = Leadership::new();
    let taking = AtomicBool::new(false);
    let ended = AtomicBool::new(false);
    // Takes requests until it is deposed.
    let lead = |lead: Lead| {
        loop {
            assert!(!taking.swap(true, SeqCst), "another thread takes requests");
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
            // A thread that panicked keeps the lead.
            if leaders.last().is_some_and(|leader| leader.is_finished()) {
                break;
            }
            thread::yield_now();
        }
        ended.store(true, SeqCst);
        assert_eq!(leaders.len(), LEADERS);
    });
}
