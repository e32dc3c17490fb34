//! Many clients, one key, real HTTP.

use std::fs;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Instant;

use crate::common::{PATIENCE, Wire, ask, options, start, waiting_wire};
use lock_server::{Options, Server};

/// 64 threads, each with a client of its own, take 200 turns each.
#[test]
fn of_64_clients_on_one_key_never_two_hold_it_and_none_is_refused() {
    const CLIENTS: usize = 64;
    const ROUNDS: usize = 200;
    let server = start(Options {
        lock_timeout: PATIENCE,
        lock_attempt_timeout: PATIENCE,
        ..options()
    });
    let inside = AtomicU32::new(0);
    let turns = Mutex::new(Vec::with_capacity(CLIENTS * ROUNDS));
    let barrier = Barrier::new(CLIENTS);
    let began = Instant::now();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (inside, turns, barrier, server) = (&inside, &turns, &barrier, &server);
            scope.spawn(move || {
                let me = server.client(&format!("CLIENT_{client}"));
                barrier.wait();
                for _ in 0..ROUNDS {
                    let lease = me.lock("KEYA").unwrap().expect("nobody is refused");
                    assert_eq!(inside.fetch_add(1, SeqCst), 0, "two clients inside");
                    turns.lock().unwrap().push(lease.expires);
                    assert_eq!(inside.fetch_sub(1, SeqCst), 1);
                    assert!(me.unlock("KEYA").unwrap());
                }
            });
        }
    });
    println!(
        "{} rounds of {CLIENTS} clients on one key in {:?}",
        CLIENTS * ROUNDS,
        began.elapsed()
    );

    let turns = turns.into_inner().unwrap();
    assert_eq!(turns.len(), CLIENTS * ROUNDS);
    // Leases of one length end in the order of their grants. The next test proves that grants follow arrival.
    assert!(
        turns.is_sorted(),
        "the clients did not have the key in the order of their grants"
    );
}

/// Each waiter arrives only when the one before it is certainly in the queue.
#[test]
fn waiters_are_served_in_the_order_of_their_arrival() {
    let server = start(Options {
        lock_timeout: PATIENCE,
        lock_attempt_timeout: PATIENCE,
        ..options()
    });
    assert_ne!(ask(&server, "/LOCK/KEYA/first").body, "0\n");
    let mut queue: Vec<Wire> = (0..64)
        .map(|waiter| waiting_wire(&server, "KEYA", &format!("waiter-{waiter}")))
        .collect();
    let mut holder = "first".to_string();
    for (waiter, wire) in queue.iter_mut().enumerate() {
        assert_eq!(ask(&server, &format!("/UNLOCK/KEYA/{holder}")).body, "1\n");
        assert_ne!(wire.reply().body, "0\n");
        holder = format!("waiter-{waiter}");
        assert_eq!(ask(&server, &format!("/VERIFY/KEYA/{holder}")).body, "1\n");
    }
}

/// A single thread would get only one share of the processors, beside the threads of all clients.
#[test]
fn while_requests_pile_up_more_than_one_thread_answers_them() {
    if thread::available_parallelism().map_or(1, NonZero::get) == 1 {
        eprintln!("on one processor one thread answers: not tested");
        return;
    }
    let mut server = Server::new(options());
    let pid = server.start().expect("a server on a free port");
    let is_enough = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in 0..64 {
            let (server, is_enough) = (&server, &is_enough);
            scope.spawn(move || {
                let (me, key) = (server.client("ME"), format!("KEY_{client}"));
                while !is_enough.load(SeqCst) {
                    assert!(me.lock(&key).unwrap().is_some());
                    assert!(me.unlock(&key).unwrap());
                }
            });
        }
        while threads_that_worked(pid, "lock-request") < 2 {
            thread::yield_now();
        }
        is_enough.store(true, SeqCst);
    });
}

/// How many threads of a process have this name, and have run for at least 10 ms.
fn threads_that_worked(pid: u32, name: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let worked = tasks.filter_map(|task| {
        let stat = fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
        // proc(5): the name is in parentheses, and utime and stime are the 12th and 13th behind it.
        let (before, behind) = stat.rsplit_once(')')?;
        let mut times = behind.split_whitespace().skip(11).take(2);
        let has_worked = times.any(|ticks| ticks != "0");
        (before.ends_with(name) && has_worked).then_some(())
    });
    worked.count()
}
