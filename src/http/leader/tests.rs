//! Who leads, and who does when that one can't.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread::{self, JoinHandle};

use super::*;

/// A leader that has no rival, and has begun to serve.
fn start_serving(leadership: &Leadership) -> Lead {
    assert!(leadership.join());
    let lead = leadership.follow().expect("the door is open");
    leadership.serve(&lead);
    lead
}

fn follow_in_thread(leadership: &Arc<Leadership>) -> JoinHandle<Option<Lead>> {
    assert!(leadership.join());
    let leadership = leadership.clone();
    thread::spawn(move || leadership.follow())
}

fn nobody_is_needed() -> bool {
    panic!("there is a follower")
}

fn nobody_can_be_had() -> bool {
    false
}

#[test]
fn the_first_to_follow_leads() {
    let leadership = Leadership::new();
    assert!(leadership.serving().is_none());
    assert!(leadership.join());
    let lead = leadership.follow().unwrap();
    assert!(leadership.serving().is_none());
    leadership.serve(&lead);
    assert!(leadership.serving() == Some(lead));
}

#[test]
fn a_leader_goes_on_leading_request_after_request() {
    let leadership = Leadership::new();
    let lead = start_serving(&leadership);
    for _ in 0..3 {
        assert!(leadership.receive(&lead));
        assert!(leadership.serving().is_none());
        leadership.serve(&lead);
    }
}

#[test]
fn step_down_calls_a_follower_and_deposes_the_leader() {
    let leadership = Arc::new(Leadership::new());
    let old = start_serving(&leadership);
    let follower = follow_in_thread(&leadership);
    assert!(leadership.step_down(&old, nobody_is_needed));
    let new = follower.join().unwrap().expect("the door is open");
    assert!(new != old);
    assert!(!leadership.receive(&old));
    leadership.serve(&new);
    assert!(!leadership.receive(&old));
    assert!(leadership.receive(&new));
}

#[test]
fn step_down_has_a_follower_added_where_there_is_none() {
    let leadership = Arc::new(Leadership::new());
    let old = start_serving(&leadership);
    let mut added = None;
    assert!(leadership.step_down(&old, || {
        added = Some(follow_in_thread(&leadership));
        true
    }));
    assert!(added.unwrap().join().unwrap().is_some());
    assert!(!leadership.receive(&old));
}

#[test]
fn a_step_down_that_finds_no_follower_changes_nothing() {
    let leadership = Leadership::new();
    let lead = start_serving(&leadership);
    assert!(!leadership.step_down(&lead, nobody_can_be_had));
    assert!(leadership.serving().as_ref() == Some(&lead));
    assert!(leadership.receive(&lead));
}

#[test]
fn a_stuck_leader_is_deposed_by_another_thread() {
    let leadership = Arc::new(Leadership::new());
    let stuck = start_serving(&leadership);
    let follower = follow_in_thread(&leadership);
    let seen = leadership.serving().expect("it serves");
    assert!(leadership.step_down(&seen, nobody_is_needed));
    assert!(follower.join().unwrap().is_some());
    assert!(!leadership.receive(&stuck));
}

#[test]
fn a_late_step_down_does_not_depose_the_next_leader() {
    let leadership = Arc::new(Leadership::new());
    let old = start_serving(&leadership);
    let follower = follow_in_thread(&leadership);
    assert!(leadership.step_down(&old, nobody_is_needed));
    let new = follower.join().unwrap().unwrap();
    leadership.serve(&new);
    assert!(leadership.step_down(&old, nobody_is_needed));
    assert!(leadership.receive(&new));
}

#[test]
fn a_leader_that_receives_cannot_be_deposed() {
    let leadership = Leadership::new();
    let lead = start_serving(&leadership);
    let seen = leadership.serving().unwrap();
    assert!(leadership.receive(&lead));
    assert!(leadership.step_down(&seen, nobody_is_needed));
    leadership.serve(&lead);
    assert!(leadership.receive(&lead));
}

#[test]
fn no_more_than_enough_may_follow() {
    let leadership = Leadership::new();
    for _ in 0..MAX_FOLLOWERS {
        assert!(leadership.join());
    }
    assert!(!leadership.join());
    leadership.leave();
    assert!(leadership.join());
    assert!(!leadership.join());
}

#[test]
fn who_leads_follows_no_longer() {
    let leadership = Leadership::new();
    for _ in 0..MAX_FOLLOWERS {
        assert!(leadership.join());
    }
    leadership.follow().unwrap();
    assert!(leadership.join());
    assert!(!leadership.join());
}

#[test]
fn close_sends_the_followers_home() {
    let leadership = Arc::new(Leadership::new());
    let lead = start_serving(&leadership);
    let followers = [(); 3].map(|()| follow_in_thread(&leadership));
    leadership.close();
    for follower in followers {
        assert!(follower.join().unwrap().is_none());
    }
    assert!(!leadership.join());
    // The one that serves ends its request.
    assert!(leadership.receive(&lead));
    assert_eq!(leadership.bench.lock().followers, 0);
}

/// Ends the others' wait with the first thread's end, be it a panic.
struct CloseOnDrop<'a>(&'a Leadership);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[test]
fn only_one_leads_at_a_time_and_no_vacancy_lasts() {
    const THREADS: usize = 6;
    const LEADS: usize = 5000;
    let leadership = Leadership::new();
    let leads = AtomicBool::new(false);
    let times = AtomicUsize::new(0);
    let take_part = || {
        let _all_go_home = CloseOnDrop(&leadership);
        while let Some(lead) = leadership.follow() {
            loop {
                assert!(!leads.swap(true, SeqCst), "somebody leads already");
                let last = times.fetch_add(1, SeqCst) + 1 >= LEADS;
                thread::yield_now();
                assert!(leads.swap(false, SeqCst));
                if last {
                    return;
                }
                leadership.serve(&lead);
                if leadership.step_down(&lead, nobody_can_be_had) {
                    break;
                }
                assert!(leadership.receive(&lead), "nobody else could lead");
            }
            if !leadership.join() {
                return;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            assert!(leadership.join());
            scope.spawn(take_part);
        }
    });
    assert!(times.load(SeqCst) >= LEADS);
}
