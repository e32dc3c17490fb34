//! The HTTP transport under load, faults and hostile input.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::program::program;
use crate::common::{
    PATIENCE, Wire, alone, ask, bound, limit_descriptors, ms, options, ports, raise_own_limit, run,
    sleeps, slowness, start, until, waiting_wire,
};
use lock_server::{Options, Server};
use nix::libc::linger;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{self, Signal};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

fn patient() -> Options {
    Options {
        lock_timeout: Duration::from_secs(600),
        lock_attempt_timeout: Duration::from_secs(600),
        ..options()
    }
}

/// Seen to fail without the probes of `server/tiny/stalls.rs`: 4 to 60 of each first burst were never answered.
#[test]
fn of_64_connections_at_once_each_is_answered_within_250_ms_whatever_else_is_connected() {
    let _alone = alone();
    let server = start(patient());
    ask(&server, "/LOCK/KEYA/holder");
    let mut others: Vec<Wire> = Vec::new();
    for burst in 0..12 {
        let began = Instant::now();
        let mut crowd: Vec<Wire> = (0..64).map(|_| Wire::to(&server)).collect();
        for wire in &mut crowd {
            wire.get("/PING");
        }
        for wire in &mut crowd {
            assert_eq!(wire.reply().body, "1\n");
        }
        let slowest = began.elapsed();
        assert!(
            slowest <= ms(250),
            "burst {burst} was answered after {slowest:?}"
        );
        // For the next burst there are idle, waiting and busy connections, or threads that have just become free.
        match burst % 4 {
            0 => others.append(&mut crowd),
            1 => {
                for (number, mut wire) in crowd.into_iter().enumerate() {
                    wire.get(&format!("/LOCK/KEYA/waiter-{burst}-{number}"));
                    others.push(wire);
                }
            }
            2 => {
                for mut wire in crowd {
                    wire.send("GET /PI");
                    others.push(wire);
                }
            }
            _ => others.clear(),
        }
    }
}

/// Two unconditional probes at each tick took the whole half percent.
#[test]
fn an_idle_server_takes_less_than_half_a_percent_of_a_core() {
    let _alone = alone();
    let mut server = Server::new(patient());
    let pid = server.start().unwrap();
    let mut connected: Vec<Wire> = (0..64).map(|_| Wire::to(&server)).collect();
    connected
        .iter_mut()
        .for_each(|wire| assert_eq!(wire.ask("/PING").body, "1\n"));
    ask(&server, "/LOCK/KEYA/holder");
    let _waiters: Vec<Wire> = (0..8)
        .map(|number| waiting_wire(&server, "KEYA", &format!("waiter-{number}")))
        .collect();
    // It becomes idle within a few ticks of the last connection.
    thread::sleep(ms(500));
    let window = || {
        let before = cpu_time(pid);
        thread::sleep(Duration::from_secs(4));
        cpu_time(pid) - before
    };
    // Connections to other servers of the machine cost it something, too, so one quiet period is enough.
    let mut used = window();
    for _ in 0..4 {
        if used > ms(20) {
            used = window();
        }
    }
    assert!(used <= ms(20), "{used:?} in 4 s, the last of five times");
}

/// Seen to fail with `reopen` returning early: without a new instance nobody was answered again.
#[test]
fn without_descriptors_the_locks_stay_and_new_connections_are_answered_within_a_second_of_some_being_free()
 {
    let _alone = alone();
    let mut server = Foreground::start(&["--lock-timeout", "600"]);
    let mut kept = Wire::to_port(server.port);
    assert_ne!(kept.ask("/LOCK/KEYA/CLIENT_A").body, "0\n");
    // The server raised its soft limit to the hard one, or to what the machine has threads for.
    let before = limit_descriptors(server.process.id(), 100);
    assert!(
        before.rlim_cur == before.rlim_max || before.rlim_cur >= 16_000,
        "{}",
        before.rlim_cur
    );
    for _ in 0..3 {
        let mut crowd: Vec<Wire> = (0..100).map(|_| Wire::to_port(server.port)).collect();
        crowd
            .iter_mut()
            .for_each(|wire| drop(wire.stream().write(b"GET /PING HTTP/1.1\r\n\r\n")));
        until("some of the crowd are answered", || {
            crowd.iter().any(Wire::has_answer)
        });
        // Long enough to run out of descriptors, and to stay so for a while.
        thread::sleep(ms(500));
        assert_eq!(
            kept.ask("/VERIFY/KEYA/CLIENT_A").body,
            "1\n",
            "a connection that was there is served"
        );
        drop(crowd);
        let free = Instant::now();
        // A connection may be reset until the server has closed its ends of the crowd's connections.
        let late = loop {
            let mut next = Wire::to_port(server.port);
            let question = b"GET /VERIFY/KEYA/CLIENT_A HTTP/1.1\r\nHost: localhost\r\n\r\n";
            drop(next.stream().write(question));
            match next.try_reply() {
                Ok(reply) => {
                    assert_eq!(reply.body, "1\n");
                    break free.elapsed();
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
            }
        };
        println!("answered {late:?} after some were free");
        assert!(
            late <= bound(Duration::from_secs(1)),
            "answered after {late:?}"
        );
        assert_eq!(kept.ask("/PING").body, "1\n");
    }
    let log = server.end(Signal::SIGTERM);
    let told = log.matches("no connection is accepted").count();
    // It ran out three times, and shorter pauses in between are not logged.
    assert!((1..=3).contains(&told), "{told} times:\n{log}");
    assert!(!log.contains("panicked"), "{log}");
}

/// Seen to fail with `abandon` doing nothing: the dead were granted the key one after another.
#[test]
fn after_a_hundred_dead_waiters_the_living_one_is_granted_the_key_at_once() {
    let _alone = alone();
    let server = start(patient());
    ask(&server, "/LOCK/KEYA/holder");
    let mut dead: Vec<Wire> = (0..100)
        .map(|number| waiting_wire(&server, "KEYA", &format!("dead-{number}")))
        .collect();
    let mut living = waiting_wire(&server, "KEYA", "living");
    for (number, wire) in dead.drain(..).enumerate() {
        if number % 2 == 0 {
            wire.reset();
        }
    }
    thread::sleep(Duration::from_secs(1));
    let released = Instant::now();
    assert_eq!(ask(&server, "/UNLOCK/KEYA/holder").body, "1\n");
    assert_ne!(living.reply().body, "0\n");
    let late = released.elapsed();
    assert!(
        late <= ms(50),
        "the living waiter had the key after {late:?}"
    );
    assert_eq!(ask(&server, "/VERIFY/KEYA/living").body, "1\n");
    assert_eq!(ask(&server, "/UNLOCK/KEYA/living").body, "1\n");
    assert_eq!(
        ask(&server, "/CHECK/KEYA").body,
        "0\n",
        "nobody is left in the queue"
    );
}

/// Seen to fail without the watch: the dead waiter was granted the key.
#[test]
fn a_waiter_whose_process_is_killed_gives_up_its_place_within_a_second() {
    let _alone = alone();
    let server = start(patient());
    ask(&server, "/LOCK/KEYA/holder");
    let (mut process, name) = waiting_process(&server);
    process.kill().unwrap();
    process.wait().unwrap();
    thread::sleep(Duration::from_secs(1));
    // One of its two LOCKs waits, unless the dead waiter still does.
    let mut next = waiting_wire(&server, "KEYA", &name);
    assert_eq!(ask(&server, "/UNLOCK/KEYA/holder").body, "1\n");
    assert_ne!(next.reply().body, "0\n");
}

#[test]
fn a_watched_waiter_that_hangs_up_is_never_granted_the_key() {
    let _alone = alone();
    let mut server = Server::new(patient());
    let pid = server.start().unwrap();
    let mut holder = Wire::to(&server);
    let alone = watched(pid);
    for round in 0..30 {
        let name = format!("KEYA/holder-{round}");
        assert_ne!(holder.ask(&format!("/LOCK/{name}")).body, "0\n");
        let mut waiter = Wire::to(&server);
        until("the last one is forgotten", || watched(pid) == alone);
        waiter.get(&format!("/LOCK/KEYA/dead-{round}"));
        until("it is watched", || watched(pid) > alone);
        drop(waiter);
        assert_eq!(holder.ask(&format!("/UNLOCK/{name}")).body, "1\n");
        assert_eq!(holder.ask("/CHECK/KEYA").body, "0\n", "round {round}");
    }
}

/// The number of descriptors that a process watches with epoll.
fn watched(pid: u32) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let told = descriptors.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
    told.map(|info| info.matches("tfd:").count()).sum()
}

#[test]
fn a_client_that_hangs_up_after_the_grant_keeps_the_lease() {
    let _alone = alone();
    let server = start(patient());
    assert_ne!(ask(&server, "/LOCK/KEYA/CLIENT_A").body, "0\n");
    thread::sleep(ms(500));
    assert_eq!(ask(&server, "/VERIFY/KEYA/CLIENT_A").body, "1\n");
}

#[test]
fn beyond_the_limits_a_lock_is_refused_at_once_and_all_else_works() {
    let _alone = alone();
    let server = start(Options {
        max_waiters: 2,
        max_keys: 2,
        ..patient()
    });
    for key in ["KEYA", "KEYB"] {
        assert_ne!(ask(&server, &format!("/LOCK/{key}/CLIENT_A")).body, "0\n");
    }
    let full = ask(&server, "/LOCK/KEYC/CLIENT_A");
    assert_eq!(
        (full.status, full.result(), full.header("Retry-After")),
        (503, "full", Some("1"))
    );
    assert!(full.body.contains("max_keys allows, 2;"), "{}", full.body);
    let mut waiters: Vec<Wire> = ["CLIENT_B", "CLIENT_C"]
        .iter()
        .map(|name| waiting_wire_alone(&server, "KEYA", name))
        .collect();
    let full = ask(&server, "/LOCK/KEYB/CLIENT_D");
    assert_eq!(
        (full.status, full.result(), full.header("Retry-After")),
        (503, "full", Some("1"))
    );
    let limit = "max_waiters allows, 2;";
    assert!(full.body.contains(limit), "{}", full.body);
    assert_eq!(ask(&server, "/VERIFY/KEYB/CLIENT_A").body, "1\n");
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    assert_ne!(waiters[0].reply().body, "0\n");
    assert_eq!(ask(&server, "/UNLOCK/KEYB/CLIENT_A").body, "1\n");
    assert_ne!(ask(&server, "/LOCK/KEYC/CLIENT_A").body, "0\n");
}

/// Seen to fail most times when a tick marked whatever waited on the connection that it checked.
#[test]
fn a_wait_that_begins_while_a_crowd_is_checked_ends_at_its_timeout() {
    const LAPS: usize = 4;
    let _alone = alone();
    raise_own_limit(20_000);
    let server = start(patient());
    let mut teller = Wire::to(&server);
    teller.ask("/LOCK/KEYA/teller");
    let mut crowd: Vec<Wire> = (0..1000 * LAPS).map(|_| Wire::to(&server)).collect();
    let mut quick: Vec<Wire> = (0..150).map(|_| Wire::to(&server)).collect();
    for (key, wire) in quick.iter_mut().enumerate() {
        assert_ne!(teller.ask(&format!("/LOCK/{key}/teller")).body, "0\n");
        wire.get(&format!("/LOCK/{key}/quick?lock_attempt_timeout=60"));
    }
    for lap in 0..LAPS {
        for (number, wire) in crowd.iter_mut().enumerate().skip(lap * 1000).take(1000) {
            wire.get(&format!("/LOCK/KEYA/{number}"));
        }
        // Their waits end and begin one after another, some of them in the middle of a tick.
        for (key, wire) in quick.iter_mut().enumerate() {
            assert_eq!(teller.ask(&format!("/UNLOCK/{key}/teller")).body, "1\n");
            assert_ne!(wire.reply().body, "0\n");
            assert_eq!(wire.ask(&format!("/UNLOCK/{key}/quick")).body, "1\n");
            assert_ne!(teller.ask(&format!("/LOCK/{key}/teller")).body, "0\n");
            let patience = if lap + 1 < LAPS { 60 } else { 1 };
            wire.get(&format!(
                "/LOCK/{key}/quick?lock_attempt_timeout={patience}"
            ));
        }
    }
    for wire in &mut quick {
        assert_eq!(wire.reply().result(), "timeout");
    }
}

#[test]
fn requests_behind_a_waiting_lock_are_answered_when_the_server_ends() {
    let _alone = alone();
    for _ in 0..10 {
        let mut server = Server::new(patient());
        let pid = server.start().unwrap();
        ask(&server, "/LOCK/KEYA/holder");
        let mut wire = waiting_wire(&server, "KEYA", "CLIENT_A");
        for _ in 0..3 {
            wire.get("/PING");
        }
        // A request that is still on its way when the server ends gets no answer.
        until("all of it is read", || sleeps(pid) && sleeps(pid));
        assert!(server.stop().unwrap());
        assert_eq!(wire.reply().result(), "stopping");
        for _ in 0..3 {
            assert_eq!(wire.reply().body, "1\n");
        }
    }
}

const WAITERS: usize = 8000;

/// Seen to fail with the queue served from its other end.
#[test]
fn eight_thousand_waiters_on_one_key_are_served_in_their_order() {
    let _alone = alone();
    raise_own_limit(20_000);
    let server = start(patient());
    let mut teller = Wire::to(&server);
    assert_ne!(teller.ask("/LOCK/KEYA/holder").body, "0\n");
    // Each is certainly in the queue before the next one arrives: of two LOCKs with its name one is refused, and that
    // connection is used for the next name.
    let mut spare = Wire::to(&server);
    let mut waiters: Vec<Wire> = (0..WAITERS)
        .map(|number| {
            let mut wire = Wire::to(&server);
            for wire in [&mut spare, &mut wire] {
                wire.get(&format!("/LOCK/KEYA/waiter-{number}"));
            }
            until("one of the two is refused", || {
                spare.has_answer() || wire.has_answer()
            });
            if wire.has_answer() {
                std::mem::swap(&mut wire, &mut spare);
            }
            assert_eq!(spare.reply().result(), "already-waiting", "waiter {number}");
            wire
        })
        .collect();
    let began = Instant::now();
    let mut holder = "holder".to_string();
    for (number, waiter) in waiters.iter_mut().enumerate() {
        assert_eq!(teller.ask(&format!("/UNLOCK/KEYA/{holder}")).body, "1\n");
        assert_ne!(waiter.reply().body, "0\n", "waiter {number}");
        holder = format!("waiter-{number}");
    }
    println!("{WAITERS} waiters were served in {:?}", began.elapsed());
}

/// Seen to fail: each cost 42 kB while a waiter's thread answered requests before it waited, and the end took 0.9 s
/// while thousands of threads ended at the same time.
#[test]
fn eight_thousand_waiters_cost_32_kb_each_and_end_with_the_server_within_a_second() {
    let _alone = alone();
    raise_own_limit(20_000);
    let mut server = Foreground::start(&["--lock-timeout", "600", "--lock-attempt-timeout", "600"]);
    let (pid, port) = (server.process.id(), server.port);
    assert_ne!(Wire::to_port(port).ask("/LOCK/KEYA/holder").body, "0\n");
    let (resident_before, threads_before) = (status(pid, "VmRSS:"), status(pid, "Threads:"));
    let mut waiters: Vec<Wire> = (0..WAITERS)
        .map(|number| {
            let mut wire = Wire::to_port(port);
            wire.get(&format!("/LOCK/KEYA/waiter-{number}"));
            wire
        })
        .collect();
    // Two threads for each waiter, one that reads the connection and one that waits, beside a few others.
    until("all of them wait", || {
        status(pid, "Threads:") + 10 >= threads_before + 2 * WAITERS
    });
    let each = (status(pid, "VmRSS:") - resident_before) as f64 / WAITERS as f64;
    println!("{WAITERS} waiters, {each:.1} kB each");
    assert!(each <= 32.0, "{each} kB each");

    let readers = thread::spawn(move || {
        let answers: Vec<_> = waiters
            .iter_mut()
            .filter_map(|wire| wire.try_reply().ok())
            .collect();
        assert!(
            answers.iter().all(|answer| answer.result() == "stopping"),
            "a grant"
        );
        answers.len()
    });
    let began = Instant::now();
    signal::kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap();
    let ended = server.process.wait().unwrap();
    let took = began.elapsed();
    println!("ended with {WAITERS} waiters in {took:?}");
    assert_eq!(ended.code(), Some(0));
    assert!(
        took < bound(Duration::from_secs(1)),
        "it took {took:?} to end"
    );
    let told = readers.join().unwrap();
    assert!(
        told + 10 >= WAITERS,
        "only {told} were told why; a few had perhaps not yet come"
    );
}

#[test]
fn a_slow_request_is_answered_and_an_endless_one_delays_nobody() {
    let _alone = alone();
    let server = start(options());
    let mut endless = Wire::to(&server);
    endless.send("GET /PING HTTP/1.1\r\nX-Endless: ");
    let mut unfinished = Wire::to(&server);
    unfinished.send("GET /PING HTTP/1.1\r\n");
    let mut trickle = Wire::to(&server);
    for byte in b"GET /PING HTTP/1.1\r\nHost: localhost\r\n\r\n" {
        trickle.send([*byte]);
        endless.send([b'x'; 10_000]);
        assert_eq!(ask(&server, "/PING").body, "1\n");
    }
    assert_eq!(trickle.reply().body, "1\n");
}

/// Seen to fail with every request dropped: the server ended with "memory allocation of 1000000000000 bytes failed".
#[test]
fn a_huge_content_length_ends_only_its_own_connection() {
    let _alone = alone();
    let server = start(options());
    let mut kept = Wire::to(&server);
    for length in [
        "1025",
        "2000000",
        "1000000000000",
        "9223372036854775807",
        "18446744073709551615",
        "99999999999999999999",
        "-1",
        "x",
    ] {
        let mut wire = Wire::to(&server);
        wire.send(format!("POST /LOCK/KEYA/CLIENT_A HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\nsome"));
        if length == "1025" {
            wire.stream().shutdown(std::net::Shutdown::Write).unwrap();
        }
        assert!(!wire.rest().contains("200 OK"), "{length}");
        assert_eq!(kept.ask("/PING").body, "1\n", "after {length}");
    }
    assert_eq!(kept.ask("/CHECK/KEYA").body, "0\n");
}

/// Seen to fail with such requests leaked: each kept a thread until the server ended. And with tiny_http's count of the
/// bytes to come set to zero: the requests in the body were served.
#[test]
fn a_body_announced_larger_than_the_memory_costs_nothing_that_stays() {
    let _alone = alone();
    let mut server = Server::new(patient());
    let pid = server.start().unwrap();
    ask(&server, "/LOCK/KEYA/holder");
    let of_process = || (status(pid, "Threads:"), descriptors(pid));
    let before = of_process();
    let post = "POST /PING HTTP/1.1\r\nHost: localhost\r\n".to_string();
    let behind_a_lock =
        |n: usize| format!("GET /LOCK/KEYA/waiter-{n} HTTP/1.1\r\nHost: localhost\r\n\r\n{post}");
    let headers = [
        "X-Plain: 1",
        "Expect: 100-continue",
        "Connection: upgrade",
        "Connection: close",
    ];
    let body = "GET /LOCK/SMUGGLED/X HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    let mut wires = Vec::new();
    for n in 0..25 {
        for header in headers {
            for start in [post.clone(), behind_a_lock(wires.len())] {
                let mut wire = Wire::to(&server);
                wire.send(format!(
                    "{start}Content-Length: 100000000000000\r\n{header}\r\n\r\n{body}"
                ));
                wires.push(wire);
                if n == 0 {
                    assert_eq!(ask(&server, "/CHECK/KEYA").body, "1\n", "after {header}");
                }
            }
        }
    }
    // Those behind a LOCK that waits are served once its client has gone.
    drop(wires);
    until("the threads and descriptors are gone", || {
        let (threads, descriptors) = of_process();
        // An idle thread of tiny_http ends after 5 s, unless a probe of `stalls.rs` wakes it: with connections of others
        // on the machine, up to 60 stay.
        threads <= before.0 + 100 && descriptors <= before.1
    });
    assert_eq!(ask(&server, "/CHECK/SMUGGLED").body, "0\n");
    assert_eq!(ask(&server, "/CHECK/KEYA").body, "1\n");
}

/// tiny_http parses the rest of a body that is not read to its end. Seen to fail: some of the requests in a chunk were
/// served, after the connection had ended.
#[test]
fn requests_in_a_refused_body_are_not_served() {
    let _alone = alone();
    let mut server = Server::new(patient());
    let pid = server.start().unwrap();
    let before = descriptors(pid);
    for count in [1, 10, 200, 3000] {
        let requests = (0..count)
            .map(|n| format!("GET /LOCK/SMUGGLED-{n}/X HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let body: String = requests.collect();
        let chunk = format!("{:x}\r\n{body}", body.len());
        for (headers, body) in [
            ("Transfer-Encoding: chunked", &chunk),
            ("Transfer-Encoding: chunked", &format!("x\r\n{body}")),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked", &chunk),
            ("Content-Length: 5000000", &body),
            ("Content-Length: 0\r\nContent-Length: 5000", &body),
            ("Expect: 100-continue\r\nContent-Length: 5000000", &body),
            ("Connection: upgrade\r\nContent-Length: 5000000", &body),
        ] {
            for is_reset in [false, true].repeat(10) {
                let mut wire = Wire::to(&server);
                wire.send(format!(
                    "POST /PING HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n"
                ));
                // It fails if the server has ended the connection already.
                let _ = wire.stream().write_all(body.as_bytes());
                if is_reset {
                    let at_once = linger {
                        l_onoff: 1,
                        l_linger: 0,
                    };
                    setsockopt(wire.stream(), sockopt::Linger, &at_once).unwrap();
                } else {
                    let _ = wire.until_closed();
                }
            }
            // A request that is not served yet keeps a descriptor.
            until("the connections are over", || descriptors(pid) <= before);
            let locks = ask(&server, "/locks").body;
            assert!(!locks.contains("SMUGGLED"), "{headers}, {count}: {locks}");
        }
    }
}

/// tiny_http may not be done with the ended connection yet. Seen to fail: the request got no answer.
#[test]
fn a_client_that_comes_back_from_the_port_of_an_ended_connection_is_served() {
    let _alone = alone();
    let server = start(options());
    let mut refused = Wire::from_port(0, server.port());
    let own = refused.own_port();
    refused.send("POST /PING HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n");
    assert_eq!(refused.reply().status, 400);
    assert!(!refused.rest().contains("200 OK"));
    drop(refused);
    until("it is served", || {
        let mut back = Wire::from_port(own, server.port());
        let patience = bound(Duration::from_secs(5));
        back.stream().set_read_timeout(Some(patience)).unwrap();
        match back.get("/PING").try_reply() {
            Ok(reply) => {
                // Otherwise the port could not be used again for a while.
                back.reset();
                reply.status == 200
            }
            // It may be ended together with the first connection.
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::WouldBlock, "it has no answer");
                false
            }
        }
    });
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Seen to fail with a leader that answers each request as it takes it: everybody else waited until the hundred
/// thousand were done.
#[test]
fn a_hundred_thousand_pipelined_requests_delay_nobody_else() {
    let _alone = alone();
    let server = start(options());
    let flood = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let mut answers = flood.try_clone().unwrap();
    let reader = thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
    let mut sender = flood.try_clone().unwrap();
    let writer = thread::spawn(move || {
        let requests = "GET /PING HTTP/1.1\r\n\r\n".repeat(1000);
        // Fails once the server has closed the connection.
        (0..100)
            .take_while(|_| sender.write_all(requests.as_bytes()).is_ok())
            .count()
    });
    let mut wire = Wire::to(&server);
    let mut slowest = Duration::ZERO;
    while !writer.is_finished() || slowest.is_zero() {
        let began = Instant::now();
        assert_eq!(wire.ask("/PING").body, "1\n");
        slowest = slowest.max(began.elapsed());
    }
    println!(
        "{} thousand were sent; the slowest answer beside them took {slowest:?}",
        writer.join().unwrap()
    );
    let _ = flood.shutdown(std::net::Shutdown::Both);
    let _ = reader.join().unwrap();
}

/// Seen to fail: without another leader nobody was answered for 10 s, and without the end of the connection each
/// further answer to it blocked everybody again.
#[test]
fn a_client_that_never_reads_delays_nobody_and_loses_its_connection() {
    let _alone = alone();
    let server = start(options());
    let mut crowd: Vec<TcpStream> = (0..4)
        .map(|_| {
            let stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
            setsockopt(&stream, sockopt::RcvBuf, &65536).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        })
        .collect();
    // Answers longer than their requests fill every buffer on the way, with too few at a time to be closed for too many
    // pipelined requests. While its connection is open, a write fails only with "would block".
    let requests = "GET /FOO HTTP/1.1\r\n\r\n".repeat(10);
    let mut wire = Wire::to(&server);
    let mut slowest = Duration::ZERO;
    until("each of them has lost its connection", || {
        crowd.retain_mut(|stream| match stream.write(requests.as_bytes()) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
        let began = Instant::now();
        assert_eq!(wire.ask("/PING").body, "1\n");
        slowest = slowest.max(began.elapsed());
        crowd.is_empty()
    });
    println!("the slowest answer beside them took {slowest:?}");
    assert!(
        slowest < Duration::from_secs(10),
        "somebody else waited for them: {slowest:?}"
    );
}

/// Seen to fail: identified only by its address, the dead waiter counted as alive while the new connection was open.
#[test]
fn a_waiter_is_not_kept_alive_by_a_new_connection_from_its_port() {
    let _alone = alone();
    let mut server = Server::new(patient());
    let pid = server.start().unwrap();
    ask(&server, "/LOCK/KEYA/holder");
    let alone = watched(pid);
    let mut dead = Wire::from_port(0, server.port());
    let port = dead.own_port();
    dead.get("/LOCK/KEYA/dead");
    until("it is watched", || watched(pid) > alone);
    dead.reset();
    let mut new = Wire::from_port(port, server.port());
    let second = Some(Duration::from_secs(1));
    new.stream().set_read_timeout(second).unwrap();
    assert_eq!(new.ask("/PING").body, "1\n", "served within a second");
    assert_eq!(ask(&server, "/UNLOCK/KEYA/holder").body, "1\n");
    assert_eq!(
        ask(&server, "/CHECK/KEYA").body,
        "0\n",
        "the key was granted to the dead"
    );
}

/// Seen to fail with `end_unfinished` doing nothing: the server took 1.46 GB after 17 s.
#[test]
fn an_endless_header_line_ends_its_connection_and_its_memory_is_freed() {
    let _alone = alone();
    send_endless_headers();
}

/// Seen to fail with as many threads that trim as this process's processors have arenas: glibc makes them for each
/// processor of the machine, and 12 to 25 MB stayed.
#[test]
fn with_one_processor_of_several_the_memory_of_endless_headers_is_freed() {
    let _alone = alone();
    let mut first = CpuSet::new();
    let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let one = (0..CpuSet::count()).find(|cpu| all.is_set(*cpu).unwrap());
    first.set(one.unwrap()).unwrap();
    // The server's process inherits it from this thread.
    sched_setaffinity(Pid::from_raw(0), &first).unwrap();
    send_endless_headers();
}

fn send_endless_headers() {
    let mut server = Server::new(options());
    let pid = server.start().unwrap();
    let mut kept = Wire::to(&server);
    assert_eq!(kept.ask("/PING").body, "1\n");
    // The allocator keeps some of the many small pieces for reuse.
    for (headers, kept_free) in [("x", 2 * 1024), ("a:\r\n", 4 * 1024)] {
        let before = status(pid, "VmRSS:");
        // A connection that was answered before, and a new one.
        for mut wire in [Wire::to(&server), Wire::to(&server)] {
            if headers == "x" {
                assert_eq!(wire.ask("/PING").body, "1\n");
            }
            wire.send("GET /PING HTTP/1.1\r\nA: ");
            let piece = headers.repeat(4096);
            let began = Instant::now();
            while wire.stream().write_all(piece.as_bytes()).is_ok() {
                assert!(
                    began.elapsed() < bound(Duration::from_secs(1)),
                    "{headers:?}"
                );
            }
        }
        let mut seen = Vec::new();
        let until = Instant::now() + PATIENCE;
        while seen.last().is_none_or(|now| *now > before + kept_free) {
            let now = status(pid, "VmRSS:");
            if seen.last() != Some(&now) {
                seen.push(now);
            }
            assert!(Instant::now() < until, "{before} kB, and then {seen:?}");
            std::thread::sleep(ms(10));
        }
    }
    assert_eq!(kept.ask("/PING").body, "1\n");
}

/// Seen to fail with `end_unfinished` doing nothing: it was 1 GB.
#[test]
fn a_thousand_clients_with_endless_headers_take_at_most_256_mib() {
    let _alone = alone();
    raise_own_limit(3000);
    let mut server = Server::new(options());
    let pid = server.start().unwrap();
    let crowd: Vec<Wire> = (0..1000).map(|_| Wire::to(&server)).collect();
    let piece = ["x".repeat(4096), "a:\r\n".repeat(1024)];
    let mut sending: Vec<(usize, &TcpStream)> =
        crowd.iter().map(Wire::stream).enumerate().collect();
    for (_, stream) in &mut sending {
        stream.set_nonblocking(true).unwrap();
        stream.write_all(b"GET /PING HTTP/1.1\r\nA: ").unwrap();
    }
    let mut most = 0;
    let until = Instant::now() + bound(Duration::from_secs(15));
    while !sending.is_empty() {
        assert!(Instant::now() < until, "{} are left", sending.len());
        sending.retain_mut(|(number, stream)| {
            let sent = stream.write(piece[*number % 2].as_bytes());
            sent.is_ok_and(|sent| sent > 0)
                || stream
                    .peek(&mut [0])
                    .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        });
        most = most.max(status(pid, "VmRSS:"));
    }
    println!("at most {most} kB");
    // On a busy machine the server ends their connections later.
    let bound = 256 * 1024 * slowness() as usize;
    assert!(most <= bound, "{most} kB");
    assert_eq!(ask(&server, "/PING").body, "1\n");
}

/// Seen to fail with `end_unfinished` doing nothing: the connections stayed open.
#[test]
fn a_request_incomplete_after_10_s_ends_its_connection_and_a_waiting_lock_goes_on() {
    let _alone = alone();
    let server = start(patient());
    ask(&server, "/LOCK/KEYA/holder");
    let mut waiter = waiting_wire(&server, "KEYA", "waiter");
    const PARTS: [&str; 6] = [
        "G",
        "GET /PING HTTP/1.1\r\nHost: localhost\r\n",
        "GET /PING HTTP/1.1\n\n",
        "POST /PING HTTP/1.1\r\nContent-Length: 5000\r\n\r\nsome",
        "POST /PING HTTP/1.1\r\nContent-Length: 500\r\n\r\nsome",
        "POST /PING HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ];
    let began = Instant::now();
    let ends: Vec<_> = PARTS
        .iter()
        .flat_map(|part| [(part, false), (part, true)])
        .map(|(part, trickles)| {
            let mut wire = Wire::to(&server);
            wire.send(part);
            thread::spawn(move || {
                let end = |wire: &mut Wire| wire.has_answer() && wire.is_closed();
                while !end(&mut wire) {
                    assert!(began.elapsed() < bound(Duration::from_secs(12)), "{part:?}");
                    if trickles {
                        let _ = wire.stream().write(b"1");
                    }
                    thread::sleep(ms(500));
                }
                began.elapsed()
            })
        })
        .collect();
    for end in ends {
        let after = end.join().unwrap();
        assert!(after >= Duration::from_millis(9900), "{after:?}");
    }
    assert!(!waiter.has_answer());
    ask(&server, "/UNLOCK/KEYA/holder");
    assert_ne!(waiter.reply().body, "0\n");
}

/// `LOCK_SERVER_TEST_STRINGS` sets their number; 50,000 take a minute.
#[test]
fn after_thousands_of_random_strings_the_server_and_its_locks_are_unchanged() {
    let _alone = alone();
    let strings =
        std::env::var("LOCK_SERVER_TEST_STRINGS").map_or(4000, |many| many.parse().unwrap());
    let mut server = Server::new(Options {
        lock_attempt_timeout: ms(20),
        ..patient()
    });
    let pid = server.start().unwrap();
    let mut kept = Wire::to(&server);
    assert_ne!(kept.ask("/LOCK/KEYA/holder").body, "0\n");
    let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let seed: u64 = std::env::var("LOCK_SERVER_TEST_SEED")
        .map_or(std::process::id().into(), |seed| seed.parse().unwrap());
    println!("LOCK_SERVER_TEST_SEED={seed}");
    let bombard = |strings: u64| {
        thread::scope(|scope| {
            for number in 0..4 {
                let server = &server;
                scope.spawn(move || {
                    let mut random = Random(seed * 4 + number + 1);
                    for _ in 0..strings / 4 {
                        let mut wire = Wire::to(server);
                        // Fails if the server has ended the connection meanwhile.
                        let _ = wire.stream().write_all(&random.like_http());
                        let _ = wire.stream().shutdown(std::net::Shutdown::Write);
                        wire.rest();
                    }
                });
            }
        });
    };
    bombard(400);
    let (memory, open) = (status(pid, "VmRSS:"), descriptors());
    bombard(strings);
    assert_eq!(kept.ask("/VERIFY/KEYA/holder").body, "1\n");
    until("descriptors and memory are as before", || {
        descriptors() <= open && status(pid, "VmRSS:") <= memory + 2048
    });
}

struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        // Marsaglia's xorshift64.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % most
    }

    /// Bytes that partly look like a request.
    fn like_http(&mut self) -> Vec<u8> {
        // Without HTTP/2, whose connections tiny_http never closes.
        const PIECES: [&str; 24] = [
            "GET ",
            "POST ",
            "HEAD ",
            "PUT ",
            "/LOCK/",
            "/UNLOCK/",
            "/CHECK/",
            "KEYA",
            "/you",
            "?fence=1",
            "%",
            "/PING",
            " HTTP/1.1",
            " HTTP/1.0",
            "\r\n",
            "\r\n",
            "\r\n\r\n",
            "\n",
            "Host: localhost",
            "Content-Length: 12",
            "Content-Length: 3000",
            "Transfer-Encoding: chunked",
            "Connection: close",
            ": ",
        ];
        let mut bytes = Vec::new();
        for _ in 0..=self.below(12) {
            match self.below(6) {
                0 => (0..self.below(40)).for_each(|_| bytes.push(self.below(256) as u8)),
                1 => bytes.extend(b"GET /LOCK/KEYA/you HTTP/1.1\r\n\r\n"),
                _ => bytes.extend(PIECES[self.below(PIECES.len())].as_bytes()),
            }
        }
        bytes
    }
}

/// The server in the foreground, with its log recorded.
struct Foreground {
    process: Child,
    port: u16,
    log: Option<thread::JoinHandle<String>>,
}

impl Foreground {
    fn start(arguments: &[&str]) -> Self {
        let mut command = program(["run", "--port", "0"]);
        let (process, first, mut stderr) = run(command.args(arguments));
        let (port, _) = ports(&first);
        let log = thread::spawn(move || {
            let mut log = first;
            stderr.read_to_string(&mut log).unwrap();
            log
        });
        until("it answers", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Foreground {
            process,
            port,
            log: Some(log),
        }
    }

    fn end(&mut self, signal: Signal) -> String {
        signal::kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
        assert_eq!(self.process.wait().unwrap().code(), Some(0));
        self.log.take().unwrap().join().unwrap()
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        // Both fail if it has ended already, as it has unless the test failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A process whose LOCK certainly waits, and its name.
fn waiting_process(server: &Server) -> (Child, String) {
    let port = server.port().to_string();
    for number in 0..100 {
        let name = format!("process-{number}");
        let mut process = program(["lock", "KEYA", "--name", &name, "--port", &port])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Mostly long enough for the process to be first.
        thread::sleep(ms(20 << number.min(6)));
        let mut probe = Wire::to(server);
        probe.get(&format!("/LOCK/KEYA/{name}"));
        let mut ended = false;
        until("one of the two is refused", || {
            ended = process.try_wait().unwrap().is_some();
            ended || probe.has_answer()
        });
        if !ended {
            return (process, name);
        }
    }
    panic!("none of a hundred waits");
}

/// A waiter for a server that has no room for a second LOCK.
fn waiting_wire_alone(server: &Server, key: &str, requester: &str) -> Wire {
    let mut wire = Wire::to(server);
    wire.get(&format!("/LOCK/{key}/{requester}"));
    until("it waits", || {
        let mut probe = Wire::to(server);
        probe.get(&format!("/LOCK/{key}/{requester}"));
        until("the probe is refused", || {
            probe.has_answer() || wire.has_answer()
        });
        if wire.has_answer() {
            // The probe was first, so it is the waiter.
            std::mem::swap(&mut wire, &mut probe);
        }
        probe.reply().result() == "already-waiting"
    });
    wire
}

/// The processor time of a process and its threads, ended ones included, in steps of 10 ms.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// A number in `/proc/PID/status`.
fn status(pid: u32, name: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
