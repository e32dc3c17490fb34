//! The server as a process: start, stop, and outside interference.
//!
//! A binary of its own, without a harness: a program with a `main` of its own, which `Server::start` executes again as
//! a server. Its tests change their process: they fork it, change its signals, log and limits, count its descriptors,
//! threads and memory, trace its children and send it signals. So they run one after another, without other threads. It
//! plays other roles as a child of itself.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use common::{PATIENCE, Wire, ask, bound, free_port, ms, options, start, until, waiting_wire};
use lock_server::{Client, ClientOptions, Error, Lease, Options, Server, Unreached};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// The environment variable for the role of this process.
const ROLE: &str = "LOCK_SERVER_TEST_ROLE";

fn main() {
    match std::env::var(ROLE).as_deref() {
        Ok("parent") => return parent(),
        Ok("many") => return parent_of_many(),
        Ok("runs") => return two_runs(),
        Ok("limited") => return limited(),
        Ok("killed") => return killed_while_it_starts(),
        Ok("no network") => return without_network(),
        Ok("pre-forking") => return pre_forking(),
        Ok("secure") => return secure(),
        Ok(role) => panic!("no role {role}"),
        Err(_) => {}
    }
    let tests: &[(&str, fn())] = &[
        (
            "start_returns_the_childs_pid_once_it_answers",
            start_returns_the_childs_pid_once_it_answers,
        ),
        (
            "stop_ends_waiting_locks_and_frees_the_port",
            stop_ends_waiting_locks_and_frees_the_port,
        ),
        ("a_second_stop_stops_nothing", a_second_stop_stops_nothing),
        (
            "a_second_start_on_one_handle_is_an_error",
            a_second_start_on_one_handle_is_an_error,
        ),
        (
            "a_stopped_server_can_be_started_again",
            a_stopped_server_can_be_started_again,
        ),
        (
            "a_busy_port_is_tried_again_as_configured",
            a_busy_port_is_tried_again_as_configured,
        ),
        (
            "a_port_that_becomes_free_in_time_is_taken",
            a_port_that_becomes_free_in_time_is_taken,
        ),
        (
            "options_out_of_range_are_refused_before_anything_is_bound",
            options_out_of_range_are_refused_before_anything_is_bound,
        ),
        ("a_killed_child_is_noticed", a_killed_child_is_noticed),
        (
            "no_zombie_is_left_when_the_child_ends_by_itself",
            no_zombie_is_left_when_the_child_ends_by_itself,
        ),
        (
            "a_child_that_does_not_end_is_killed",
            a_child_that_does_not_end_is_killed,
        ),
        (
            "the_child_inherits_no_descriptors",
            the_child_inherits_no_descriptors,
        ),
        (
            "the_child_does_not_inherit_the_parents_signals_buffers_and_exit_functions",
            the_child_does_not_inherit_the_parents_signals_buffers_and_exit_functions,
        ),
        (
            "a_dropped_handle_ends_its_server",
            a_dropped_handle_ends_its_server,
        ),
        (
            "the_child_ends_with_its_parent_however_the_parent_ends",
            the_child_ends_with_its_parent_however_the_parent_ends,
        ),
        (
            "the_child_outlives_the_thread_that_started_it",
            the_child_outlives_the_thread_that_started_it,
        ),
        (
            "a_child_outlives_its_parent_with_the_option",
            a_child_outlives_its_parent_with_the_option,
        ),
        (
            "servers_started_beside_busy_threads_serve_and_end_after_six_seconds",
            servers_started_beside_busy_threads_serve_and_end_after_six_seconds,
        ),
        (
            "many_servers_and_the_pipe_end_with_a_parent_that_is_killed",
            many_servers_and_the_pipe_end_with_a_parent_that_is_killed,
        ),
        (
            "sixty_four_starts_at_once_take_less_than_a_second",
            sixty_four_starts_at_once_take_less_than_a_second,
        ),
        (
            "ctrl_c_reaches_the_parent_and_not_the_server",
            ctrl_c_reaches_the_parent_and_not_the_server,
        ),
        (
            "the_error_of_a_child_that_cannot_serve_has_the_reason",
            the_error_of_a_child_that_cannot_serve_has_the_reason,
        ),
        (
            "a_start_without_loopback_fails_at_once_with_the_reason",
            a_start_without_loopback_fails_at_once_with_the_reason,
        ),
        (
            "a_signal_to_a_forked_worker_ends_the_worker_and_not_the_server",
            a_signal_to_a_forked_worker_ends_the_worker_and_not_the_server,
        ),
        (
            "a_suspended_child_is_continued_and_ends_in_order",
            a_suspended_child_is_continued_and_ends_in_order,
        ),
        (
            "a_hung_child_is_ended_by_its_watchdog",
            a_hung_child_is_ended_by_its_watchdog,
        ),
        (
            "only_the_child_of_a_start_becomes_a_server",
            only_the_child_of_a_start_becomes_a_server,
        ),
        (
            "a_parent_killed_during_start_leaves_no_second_copy_of_itself",
            a_parent_killed_during_start_leaves_no_second_copy_of_itself,
        ),
        (
            "a_program_with_more_rights_than_its_caller_is_not_executed_again",
            a_program_with_more_rights_than_its_caller_is_not_executed_again,
        ),
        (
            "two_runs_in_one_process_share_the_signals",
            two_runs_in_one_process_share_the_signals,
        ),
        (
            "a_client_on_both_sides_of_a_fork_gets_its_own_answers",
            a_client_on_both_sides_of_a_fork_gets_its_own_answers,
        ),
        (
            "handles_dropped_in_a_forked_child_have_no_effect",
            handles_dropped_in_a_forked_child_have_no_effect,
        ),
        (
            "a_thousand_guards_are_renewed_by_a_few_threads",
            a_thousand_guards_are_renewed_by_a_few_threads,
        ),
        (
            "many_spawned_servers_come_and_go_without_leaving_descriptors",
            many_spawned_servers_come_and_go_without_leaving_descriptors,
        ),
        (
            "every_start_beside_busy_threads_serves",
            every_start_beside_busy_threads_serves,
        ),
        (
            "fifty_servers_started_at_once_all_serve",
            fifty_servers_started_at_once_all_serve,
        ),
        (
            "the_error_of_an_absent_server_has_the_address_and_the_number_of_tries",
            the_error_of_an_absent_server_has_the_address_and_the_number_of_tries,
        ),
        (
            "a_client_tries_again_until_the_server_is_there",
            a_client_tries_again_until_the_server_is_there,
        ),
        (
            "a_lock_that_may_have_reached_the_server_is_sent_again_under_its_id",
            a_lock_that_may_have_reached_the_server_is_sent_again_under_its_id,
        ),
        (
            "a_client_finds_a_server_that_was_restarted",
            a_client_finds_a_server_that_was_restarted,
        ),
        (
            "a_client_distinguishes_another_program_from_a_lock_server",
            a_client_distinguishes_another_program_from_a_lock_server,
        ),
        (
            "run_serves_in_this_process_until_it_is_stopped",
            run_serves_in_this_process_until_it_is_stopped,
        ),
    ];
    if std::env::args().any(|arg| arg == "--list") {
        return tests.iter().for_each(|(name, _)| println!("{name}: test"));
    }
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let mut passed = 0;
    println!("\nrunning {} tests", tests.len());
    for (name, test) in tests {
        if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            print!("test {name} ... ");
            std::io::stdout().flush().unwrap();
            let began = Instant::now();
            test();
            println!("ok ({:.2} s)", began.elapsed().as_secs_f32());
            passed += 1;
        }
    }
    println!(
        "\ntest result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; {} filtered out\n",
        tests.len() - passed
    );
}

fn start_returns_the_childs_pid_once_it_answers() {
    let mut server = Server::new(options());
    let pid = server.start().unwrap();
    // `ping` does not retry, so the server has to be there.
    assert!(server.ping());
    assert_ne!(server.port(), 0);
    assert_eq!(parent_of(pid), std::process::id());
    assert!(server.stop().unwrap());
    assert!(!is_there(pid));
}

fn stop_ends_waiting_locks_and_frees_the_port() {
    let mut server = start(Options {
        lock_timeout: PATIENCE,
        lock_attempt_timeout: PATIENCE,
        ..options()
    });
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let waiter = waiting_client(&server);
    let mut raw = waiting_wire(&server, "KEYA", "CLIENT_C");
    let port = server.port();
    assert!(server.stop().unwrap());
    TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    let reply = raw.reply();
    assert_eq!((reply.status, reply.result()), (503, "stopping"));
    assert!(raw.is_closed());
    match waiter.join().unwrap() {
        // The client then looked for another server, and found none.
        Err(Error::Unreachable { cause, .. }) => assert_eq!(cause, Unreached::Connect),
        other => panic!("a waiter got {other:?} after the stop"),
    }
}

fn a_second_stop_stops_nothing() {
    let mut server = start(options());
    assert!(server.stop().unwrap());
    assert!(!server.stop().unwrap());
    assert!(!Server::new(options()).stop().unwrap());
}

fn a_second_start_on_one_handle_is_an_error() {
    let mut server = Server::new(options());
    let pid = server.start().unwrap();
    match server.start() {
        Err(Error::AlreadyStarted { pid: running }) => assert_eq!(running, pid),
        other => panic!("{other:?}"),
    }
    assert!(server.ping());
}

fn a_stopped_server_can_be_started_again() {
    let mut server = start(options());
    server.stop().unwrap();
    server.start().unwrap();
    assert!(server.ping());
}

fn a_busy_port_is_tried_again_as_configured() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut server = Server::new(Options {
        port,
        reconnect_attempts: 2,
        time_between_attempts: ms(10),
        ..options()
    });
    let began = Instant::now();
    let error = server.start().unwrap_err();
    assert!(
        began.elapsed() >= ms(20),
        "it did not wait between the attempts"
    );
    assert!(
        matches!(error, Error::CannotListen { attempts: 3, .. }),
        "{error:?}"
    );
    let said = error.to_string();
    assert!(
        said.contains(&format!("127.0.0.1:{port} after 3 attempts")),
        "{said}"
    );
}

fn a_port_that_becomes_free_in_time_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut server = Server::new(Options {
        port,
        reconnect_attempts: 3000,
        time_between_attempts: ms(10),
        ..options()
    });
    let starter = thread::spawn(move || {
        server.start().unwrap();
        server
    });
    drop(taken);
    let server = starter.join().unwrap();
    assert_eq!(server.port(), port);
    assert!(server.ping());
}

fn options_out_of_range_are_refused_before_anything_is_bound() {
    let bad = [
        Options {
            lock_timeout: Duration::ZERO,
            ..options()
        },
        Options {
            lock_timeout: Duration::MAX,
            ..options()
        },
        Options {
            lock_attempt_timeout: Duration::MAX,
            ..options()
        },
        Options {
            host: String::new(),
            ..options()
        },
        Options {
            max_keys: 0,
            ..options()
        },
        Options {
            max_lock_timeout: Some(Duration::from_secs(2)),
            ..options()
        },
        Options {
            max_lock_timeout: Some(Duration::MAX),
            ..options()
        },
        Options {
            max_lock_attempt_timeout: Some(Duration::from_secs(3)),
            ..options()
        },
        Options {
            max_lock_attempt_timeout: Some(Duration::MAX),
            ..options()
        },
    ];
    for options in bad {
        let mut server = Server::new(options);
        assert!(
            matches!(server.start(), Err(Error::InvalidOption { .. })),
            "{server:?}"
        );
    }
    let mut elsewhere = Server::new(Options {
        host: "192.0.2.1".into(),
        ..options()
    });
    assert!(matches!(
        elsewhere.start(),
        Err(Error::CannotListen { attempts: 1, .. })
    ));
}

fn a_killed_child_is_noticed() {
    let mut server = Server::new(options());
    let pid = server.start().unwrap();
    kill(pid, Signal::SIGKILL);
    until("the child is gone", || !is_there(pid));
    assert!(!server.ping());
    assert!(!server.stop().unwrap());
    server.start().unwrap();
    assert!(server.ping());
}

fn no_zombie_is_left_when_the_child_ends_by_itself() {
    let mut server = Server::new(Options {
        allow_shutdown: true,
        ..options()
    });
    let pid = server.start().unwrap();
    server.client("CLIENT_A").shutdown().unwrap();
    // A zombie would still exist.
    until("the child is reaped", || !is_there(pid));
}

fn a_child_that_does_not_end_is_killed() {
    let mut server = Server::new(options());
    let pid = server.start().unwrap();
    kill(pid, Signal::SIGSTOP);
    assert!(server.stop().unwrap());
    assert!(!is_there(pid));
}

fn the_child_inherits_no_descriptors() {
    let mut server = Server::new(options());
    let (file, inherited) = (
        tempfile::tempfile().unwrap(),
        TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    let pid = server.start().unwrap();
    let kept: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    for not_its_own in [link_of(file.as_raw_fd()), link_of(inherited.as_raw_fd())] {
        assert!(!kept.contains(&not_its_own), "{not_its_own} among {kept:?}");
    }
    // Conversely, the parent has no copy of the child's listener.
    let port = server.port();
    kill(pid, Signal::SIGKILL);
    until("the port is free", || {
        TcpListener::bind(("127.0.0.1", port)).is_ok()
    });
}

/// The parent ignores a signal, blocks another, has text in a buffer and an exit function.
fn the_child_does_not_inherit_the_parents_signals_buffers_and_exit_functions() {
    let mut role = Role::parent("buffered");
    let pid = role.read_pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mask = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        // Signals above 31 belong to the C library.
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap() & 0x7fff_ffff
    };
    let bit = |signal: Signal| 1u64 << (signal as u64 - 1);
    assert_eq!(mask("SigIgn:") & !bit(Signal::SIGPIPE), 0, "ignored");
    assert_eq!(mask("SigBlk:") & bit(Signal::SIGUSR2), 0, "blocked");
    assert_eq!(
        mask("SigCgt:") & !(bit(Signal::SIGTERM) | bit(Signal::SIGINT)),
        0,
        "caught"
    );
    kill(pid, Signal::SIGTERM);
    until("the child has ended", || !is_there(pid));
    let rest = role.finish();
    assert_eq!(rest.matches("in the buffer").count(), 1, "{rest}");
    assert_eq!(rest.matches("at exit").count(), 1, "{rest}");
}

fn a_dropped_handle_ends_its_server() {
    let mut server = Server::new(options());
    let pid = server.start().unwrap();
    drop(server);
    assert!(!is_there(pid));
}

fn the_child_ends_with_its_parent_however_the_parent_ends() {
    for how in ["exit", "panic", "abort", "wait"] {
        let mut role = Role::parent(how);
        let pid = role.read_pid();
        if how == "wait" {
            role.process.kill().unwrap();
        }
        role.finish();
        until("the child has ended", || has_ended(pid));
    }
}

fn the_child_outlives_the_thread_that_started_it() {
    let (server, pid) = thread::spawn(|| {
        let mut server = Server::new(options());
        let pid = server.start().unwrap();
        (server, pid)
    })
    .join()
    .unwrap();
    // Three times the interval at which the child checks its parent.
    thread::sleep(ms(300));
    assert!(is_there(pid) && server.ping());
}

fn a_child_outlives_its_parent_with_the_option() {
    let mut role = Role::parent("outlive");
    let pid = role.read_pid();
    role.finish();
    thread::sleep(ms(300));
    assert!(is_there(pid));
    assert_ne!(
        session_of(pid),
        session_of(std::process::id()),
        "out of reach of the terminal"
    );
    kill(pid, Signal::SIGTERM);
    until("the server has ended", || has_ended(pid));
}

/// The number in this environment variable, or else the default.
fn number(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |number| number.parse().expect("a number"))
}

/// Runs a call while other threads allocate, print and resolve names.
fn beside_busy_threads<R>(call: impl FnOnce() -> R) -> R {
    let done = AtomicBool::new(false);
    let busy = |work: fn()| {
        let done = &done;
        move || {
            while !done.load(SeqCst) {
                work();
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(busy(|| drop(std::hint::black_box(vec![0u8; 2000]))));
            scope.spawn(busy(|| drop(std::hint::black_box(vec![0u8; 100_000]))));
            scope.spawn(busy(|| {
                drop(std::hint::black_box(format!("{:?}", Instant::now())))
            }));
            scope.spawn(busy(|| {
                use std::net::ToSocketAddrs;
                drop(std::hint::black_box(("localhost", 1).to_socket_addrs()));
            }));
        }
        let result = call();
        done.store(true, SeqCst);
        result
    })
}

/// `LOCK_SERVER_TEST_STARTS=300` is the whole trial. Seen to fail with a child that was forked without an exec: 7 of 10
/// hung five seconds later, in `mallinfo2`, on an arena that a thread of the parent had held. A LOCK was not answered
/// at its time-out, and each `stop` took 3 s.
fn servers_started_beside_busy_threads_serve_and_end_after_six_seconds() {
    let count = number("LOCK_SERVER_TEST_STARTS", 30);
    let servers: Vec<Server> = beside_busy_threads(|| {
        let brief = || Options {
            lock_attempt_timeout: ms(50),
            ..options()
        };
        (0..count).map(|_| start(brief())).collect()
    });
    // Each server lives at least this long.
    thread::sleep(Duration::from_secs(6));
    let mut slowest = Duration::ZERO;
    for mut server in servers {
        ask(&server, "/LOCK/KEYA/CLIENT_A");
        assert_eq!(ask(&server, "/LOCK/KEYA/CLIENT_B").result(), "timeout");
        let begun = Instant::now();
        assert!(server.stop().unwrap());
        slowest = slowest.max(begun.elapsed());
    }
    print!("{count} servers, the slowest stop took {slowest:?} ... ");
    assert!(slowest < bound(ms(500)), "a stop took {slowest:?}");
}

/// Starts servers beside busy threads, prints their pids, lives for six seconds more and waits to be killed.
fn parent_of_many() {
    let servers: Vec<u32> = beside_busy_threads(|| {
        let start = || std::mem::ManuallyDrop::new(Server::new(options())).start();
        (0..10).map(|_| start().unwrap()).collect()
    });
    thread::sleep(Duration::from_secs(6));
    let pids: Vec<String> = servers.iter().map(u32::to_string).collect();
    println!("{}", pids.join(" "));
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

fn many_servers_and_the_pipe_end_with_a_parent_that_is_killed() {
    let mut role = Role::of("many", "");
    role.read_pid();
    let pids: Vec<u32> = role
        .seen
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect();
    assert_eq!(pids.len(), 10);
    let begun = Instant::now();
    role.process.kill().unwrap();
    // The servers have no copy of the parent's standard output.
    role.output.read_to_string(&mut String::new()).unwrap();
    let pipe = begun.elapsed();
    until("the servers have ended", || {
        pids.iter().all(|&pid| has_ended(pid))
    });
    let servers = begun.elapsed();
    print!("the pipe after {pipe:?}, the servers after {servers:?} ... ");
    assert!(
        pipe < bound(ms(500)) && servers < bound(ms(500)),
        "{pipe:?}, {servers:?}"
    );
    role.process.wait().unwrap();
}

/// Seen to fail in a dev build: it took 4.6 s, and 355 children were killed because they had not answered in time.
fn sixty_four_starts_at_once_take_less_than_a_second() {
    let barrier = Barrier::new(65);
    let took = thread::scope(|scope| {
        let starts: Vec<_> = (0..64)
            .map(|_| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    start(options())
                })
            })
            .collect();
        barrier.wait();
        let begun = Instant::now();
        let servers: Vec<Server> = starts
            .into_iter()
            .map(|start| start.join().unwrap())
            .collect();
        let took = begun.elapsed();
        assert!(servers.iter().all(Server::ping));
        took
    });
    print!("{took:?} ... ");
    assert!(took < bound(Duration::from_secs(1)), "{took:?}");
}

/// A terminal sends SIGINT to its foreground process group.
fn ctrl_c_reaches_the_parent_and_not_the_server() {
    let mut server = Server::new(options());
    let pid = server.start().unwrap();
    assert_ne!(group_of(pid), group_of(std::process::id()));
    assert_eq!(group_of(pid), pid);
    assert_eq!(session_of(pid), session_of(std::process::id()));
}

fn the_error_of_a_child_that_cannot_serve_has_the_reason() {
    let mut role = Role::of("limited", "");
    let mut said = String::new();
    role.output.read_to_string(&mut said).unwrap();
    for expected in ["too few descriptors", "may open 43", "needs 44"] {
        assert!(said.contains(expected), "no {expected:?} in {said}");
    }
    role.process.wait().unwrap();
}

/// With a descriptor limit that is enough to start a server, and too low to be one.
fn limited() {
    common::limit_descriptors(std::process::id(), 43);
    println!("{}", Server::new(options()).start().unwrap_err());
}

fn a_start_without_loopback_fails_at_once_with_the_reason() {
    if !nix::unistd::geteuid().is_root() {
        return print!("not shown: only root can leave the network ... ");
    }
    let mut role = Role::of("no network", "");
    let mut said = String::new();
    role.output.read_to_string(&mut said).unwrap();
    role.process.wait().unwrap();
    if said.contains("not shown") {
        return print!("{} ... ", said.trim());
    }
    assert!(said.contains("but does not answer"), "{said}");
    assert!(said.contains("Unreachable"), "{said}");
}

/// In a network namespace with loopback down.
fn without_network() {
    if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
        return println!("not shown: {errno}");
    }
    let error = Server::new(options()).start().unwrap_err();
    println!("{error}: {error:?}");
}

fn a_signal_to_a_forked_worker_ends_the_worker_and_not_the_server() {
    let mut role = Role::of("pre-forking", "");
    assert_eq!(
        role.read_pid(),
        1,
        "the worker has ended, and the server answers"
    );
    role.finish();
}

/// Serves in this process, and forks a worker with the C library.
fn pre_forking() {
    let mut server = Server::new(options());
    let port = server.bind().unwrap().port();
    thread::spawn(move || server.run());
    let client = Client::new("CLIENT_A", "127.0.0.1", port);
    until("it serves", || client.ping());
    let (pids, told) = std::sync::mpsc::channel();
    let worker = in_forked_child_of(
        || {
            thread::sleep(PATIENCE);
            true
        },
        |pid| pids.send(pid).unwrap(),
    );
    kill(told.recv().unwrap(), Signal::SIGTERM);
    let ended_by_itself = worker.join().unwrap();
    thread::sleep(ms(200));
    println!("{}", i32::from(!ended_by_itself && client.ping()));
}

fn a_suspended_child_is_continued_and_ends_in_order() {
    let mut server = Server::new(patient());
    let pid = server.start().unwrap();
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let mut waiting = waiting_wire(&server, "KEYA", "CLIENT_B");
    kill(pid, Signal::SIGSTOP);
    assert!(server.stop().unwrap());
    assert_eq!(waiting.reply().result(), "stopping");
}

/// A tracer stops the first thread, which then hangs as on a lock that is never released. The tracer is a process of
/// its own, because any wait in its process may get the reports of the traced thread.
fn a_hung_child_is_ended_by_its_watchdog() {
    use nix::sys::ptrace;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let mut server = Server::new(options());
    let pid = server.start().unwrap();
    let first = Pid::from_raw(pid as i32);
    let (mut stopped, mut tell) = std::io::pipe().unwrap();
    let tracer = in_forked_child(|| {
        let begun = ptrace::seize(first, ptrace::Options::empty())
            .and_then(|()| ptrace::interrupt(first))
            .and_then(|()| waitpid(first, Some(WaitPidFlag::__WALL)));
        tell.write_all(if begun.is_ok() { b"+" } else { b"-" })
            .unwrap();
        // Keeps tracing until the thread ends: without its tracer it would go on.
        while begun.is_ok() {
            match waitpid(first, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => break,
                Ok(_) => {}
            }
        }
        true
    });
    drop(tell);
    let mut answer = [0];
    stopped.read_exact(&mut answer).unwrap();
    if answer != *b"+" {
        return print!("not shown, no tracing here ... ");
    }
    kill(pid, Signal::SIGTERM);
    let begun = Instant::now();
    until("the watchdog ends it", || has_ended(pid));
    print!("after {:?} ... ", begun.elapsed());
    assert!(tracer.join().unwrap());
}

fn only_the_child_of_a_start_becomes_a_server() {
    // Like a program that inherits the variable, but has no descriptor with orders.
    let output = Command::new(std::env::current_exe().unwrap())
        .arg("no-test-of-this-name")
        .env(
            concat!("LOCK_SERVER_", env!("CARGO_PKG_VERSION"), "_STARTED_BY"),
            std::process::id().to_string(),
        )
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("0 passed"), "{said}");
}

/// Notes that it runs, and kills itself this number of microseconds after it begins to start a server.
fn killed_while_it_starts() {
    let mut args = std::env::args().skip(1);
    let said = args.next().unwrap();
    let (micros, file) = said.split_once(' ').unwrap();
    let mut file = fs::File::options().append(true).open(file).unwrap();
    file.write_all(b".").unwrap();
    let pause = Duration::from_micros(micros.parse().unwrap());
    thread::spawn(move || {
        thread::sleep(pause);
        kill(std::process::id(), Signal::SIGKILL);
    });
    let _ = Server::new(options()).start();
    thread::sleep(PATIENCE);
}

/// Seen to fail, 14 of 61 times: the new child found another parent, and ran `main`.
fn a_parent_killed_during_start_leaves_no_second_copy_of_itself() {
    let runs = tempfile::NamedTempFile::new().unwrap();
    const KILLS: usize = 60;
    for kill in 0..KILLS {
        let how = format!("{} {}", kill * 100, runs.path().display());
        Role::of("killed", &how).process.wait().unwrap();
    }
    // A second copy would have run by now.
    thread::sleep(ms(300));
    let runs = fs::read_to_string(runs.path()).unwrap().len();
    assert_eq!(runs, KILLS);
}

fn secure() {
    // SAFETY: the call only reads the auxiliary vector.
    if unsafe { nix::libc::getauxval(nix::libc::AT_SECURE) } == 0 {
        return println!("not shown");
    }
    println!("{}", Server::new(options()).start().unwrap_err());
}

/// Each of its children would ignore the orders and run `main`, which starts another child.
fn a_program_with_more_rights_than_its_caller_is_not_executed_again() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !nix::unistd::geteuid().is_root() {
        return print!("not shown: only root can make such a program ... ");
    }
    let folder = tempfile::tempdir().unwrap();
    let everybody = |mode| fs::Permissions::from_mode(mode);
    fs::set_permissions(folder.path(), everybody(0o755)).unwrap();
    let program = folder.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, everybody(0o4755)).unwrap();
    const NOBODY: u32 = 65534;
    let output = Command::new(program)
        .env(ROLE, "secure")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    if said.contains("not shown") {
        return print!(
            "not shown: set-user-ID has no effect in {} ... ",
            folder.path().display()
        );
    }
    assert!(said.contains("more rights than its caller"), "{output:?}");
}

/// Two servers in threads of one process, ended in the order of their starts; then a signal.
fn two_runs() {
    // A shell that runs the tests in the background may have SIGINT ignored.
    let usual = signal::SigAction::new(
        signal::SigHandler::SigDfl,
        signal::SaFlags::empty(),
        signal::SigSet::empty(),
    );
    // SAFETY: no handler is called.
    unsafe { signal::sigaction(Signal::SIGINT, &usual) }.unwrap();
    let run = || {
        let mut server = Server::new(Options {
            allow_shutdown: true,
            ..options()
        });
        let port = server.bind().unwrap().port();
        let runner = thread::spawn(move || server.run());
        let client = Client::new("CLIENT_A", "127.0.0.1", port);
        until("it serves", || client.ping());
        (client, runner)
    };
    let (one, first) = run();
    let (_, second) = run();
    one.shutdown().unwrap();
    first.join().unwrap().unwrap();
    // The signal still belongs to the second server, which ends in order.
    kill(std::process::id(), Signal::SIGINT);
    second.join().unwrap().unwrap();
    println!("1");
    // No server handles the signal any more, so it has its former effect.
    kill(std::process::id(), Signal::SIGINT);
    thread::sleep(PATIENCE);
}

fn two_runs_in_one_process_share_the_signals() {
    use std::os::unix::process::ExitStatusExt;
    let mut role = Role::of("runs", "");
    assert_eq!(role.read_pid(), 1, "the second ended in good order");
    let status = role.process.wait().unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGINT as i32));
}

/// Seen to fail: of 60 runs, one had a false grant in the child, and 55 had a wrong refusal in the parent.
fn a_client_on_both_sides_of_a_fork_gets_its_own_answers() {
    let server = start(patient());
    let _held = server.client("CLIENT_T").lock("KEYA").unwrap().unwrap();
    for run in 0..60 {
        let client = server.client("CLIENT_S");
        assert!(client.ping(), "it has a connection now");
        let at = Instant::now() + ms(5);
        let at_once = || while Instant::now() < at {};
        let status = in_forked_child(|| {
            at_once();
            matches!(client.try_lock("KEYA"), Ok(None))
        });
        at_once();
        let lease = client.try_lock("KEYB").expect("it is answered");
        assert!(client.release(&lease.expect("it is free")).unwrap());
        assert!(status.join().unwrap(), "run {run}: the child got a grant");
    }
}

/// Runs a call in a child that the C library forks. The returned thread returns the result.
fn in_forked_child(call: impl FnOnce() -> bool) -> thread::JoinHandle<bool> {
    in_forked_child_of(call, |_| ())
}

/// Like [`in_forked_child`], and also returns the child's process ID.
fn in_forked_child_of(
    call: impl FnOnce() -> bool,
    forked: impl FnOnce(u32),
) -> thread::JoinHandle<bool> {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};
    // SAFETY: the C library's fork leaves its locks free in the child, which ends without unwinding and without exit
    // functions.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
            // SAFETY: it ends the process at once.
            unsafe { nix::libc::_exit(i32::from(!matches!(ok, Ok(true)))) }
        }
        ForkResult::Parent { child } => {
            forked(child.as_raw() as u32);
            thread::spawn(move || matches!(waitpid(child, None), Ok(WaitStatus::Exited(_, 0))))
        }
    }
}

fn handles_dropped_in_a_forked_child_have_no_effect() {
    let mut server = Server::new(patient());
    let pid = server.start().unwrap();
    let mut spawned = Server::new(patient());
    spawned.spawn().unwrap();
    let guard = server.client("CLIENT_A").guard("KEYA").unwrap();
    let begun = Instant::now();
    let child = in_forked_child(|| {
        let refused = matches!(server.stop(), Err(Error::CannotStop { .. }));
        let is_held = guard.is_held();
        // SAFETY: the copies here are not used again; the parent's are in other memory.
        unsafe {
            std::ptr::drop_in_place(&raw const server as *mut Server);
            std::ptr::drop_in_place(&raw const spawned as *mut Server);
            std::ptr::drop_in_place(&raw const guard as *mut lock_server::Guard);
        }
        refused && is_held
    });
    assert!(child.join().unwrap());
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "it waited for a missing thread or process"
    );
    guard
        .check()
        .expect("the copy that was dropped was not the guard's");
    assert!(is_there(pid) && server.ping() && spawned.ping());
    assert!(server.stop().unwrap() && spawned.stop().unwrap());
}

/// `LOCK_SERVER_TEST_GUARD_SECONDS=60` is the whole trial. Seen to fail with a thread for each guard: in a dev build
/// 967 of 1,000 were lost, and it took 243 MB.
fn a_thousand_guards_are_renewed_by_a_few_threads() {
    const GUARDS: usize = 1000;
    let server = start(options());
    let before = resident_kilobytes();
    let lost = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let guards: Vec<_> = (0..GUARDS)
        .map(|n| {
            let client = server.client(&format!("CLIENT_{n}"));
            let guard = client.guard(&format!("KEY_{n}")).unwrap();
            let lost = lost.clone();
            guard.on_lost(move || {
                lost.fetch_add(1, SeqCst);
            });
            guard
        })
        .collect();
    let until =
        Instant::now() + Duration::from_secs(number("LOCK_SERVER_TEST_GUARD_SECONDS", 7) as u64);
    let (mut threads, mut kilobytes) = (0, 0);
    while Instant::now() < until {
        thread::sleep(ms(100));
        threads = threads.max(fs::read_dir("/proc/self/task").unwrap().count());
        kilobytes = kilobytes.max(resident_kilobytes().saturating_sub(before));
    }
    print!("{threads} threads, {kilobytes} kB more ... ");
    assert_eq!(lost.load(SeqCst), 0, "lost");
    assert!(guards.iter().all(lock_server::Guard::is_held));
    assert!(threads <= 20, "{threads} threads");
    assert!(kilobytes <= 40_000, "{kilobytes} kB");
}

fn many_spawned_servers_come_and_go_without_leaving_descriptors() {
    let count = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = count();
    for _ in 0..50 {
        let mut server = Server::new(options());
        server.spawn().expect("it serves on a free port");
        drop(server.client("CLIENT_A").guard("KEYA").unwrap());
    }
    // Seen to fail: a LOCK that had begun to wait just before the end kept the server's descriptors.
    for _ in 0..20 {
        let mut server = Server::new(patient());
        server.spawn().expect("it serves on a free port");
        ask(&server, "/LOCK/KEYA/CLIENT_A");
        let waiting = waiting_wire(&server, "KEYA", "CLIENT_B");
        server.stop().unwrap();
        drop(waiting);
    }
    until("they are closed", || count() <= before);
}

fn resident_kilobytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

fn patient() -> Options {
    Options {
        lock_timeout: PATIENCE,
        lock_attempt_timeout: PATIENCE,
        ..options()
    }
}

/// Here the threads also print, log and wait for each other.
fn every_start_beside_busy_threads_serves() {
    const ROUNDS: usize = 300;
    let _ = env_logger::Builder::new()
        .filter_level(log::LevelFilter::Info)
        .target(env_logger::Target::Pipe(Box::new(std::io::sink())))
        .try_init();
    let done = Arc::new(AtomicBool::new(false));
    let contended = Arc::new(parking_lot::Mutex::new(0u64));
    let hammers: Vec<_> = (0..8)
        .map(|_| {
            let (done, contended) = (done.clone(), contended.clone());
            thread::spawn(move || {
                while !done.load(SeqCst) {
                    for _ in 0..20 {
                        // Held long enough that the others wait for it, all in one bucket of the parking lot.
                        let mut count = contended.lock();
                        *count += 1;
                        (0..200).for_each(|_| std::hint::spin_loop());
                        drop(count);
                        // One allocation from the thread's cache, and one from its arena.
                        drop(std::hint::black_box((vec![0u8; 1000], vec![0u8; 20_000])));
                    }
                    log::info!("busy");
                    print!("");
                    std::io::stdout().flush().unwrap();
                }
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for round in 0..ROUNDS {
        let began = Instant::now();
        let mut server = start(options());
        slowest = slowest.max(began.elapsed());
        let mut first = Wire::to(&server);
        assert_ne!(
            first.ask("/LOCK/KEYA/CLIENT_A").body,
            "0\n",
            "round {round}"
        );
        let mut second = Wire::to(&server);
        second.get("/LOCK/KEYA/CLIENT_B");
        assert_eq!(
            first.ask("/UNLOCK/KEYA/CLIENT_A").body,
            "1\n",
            "round {round}"
        );
        assert_ne!(second.reply().body, "0\n", "round {round}");
        assert!(server.stop().unwrap(), "round {round}");
    }
    done.store(true, SeqCst);
    hammers
        .into_iter()
        .for_each(|hammer| hammer.join().unwrap());
    print!("{ROUNDS} starts, the slowest took {slowest:?} ... ");
    assert!(
        slowest < Duration::from_secs(2),
        "the slowest start took {slowest:?}"
    );
}

fn fifty_servers_started_at_once_all_serve() {
    let barrier = Barrier::new(50);
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                barrier.wait();
                let server = start(options());
                assert_ne!(ask(&server, "/LOCK/KEYA/CLIENT_A").body, "0\n");
            });
        }
    });
}

fn the_error_of_an_absent_server_has_the_address_and_the_number_of_tries() {
    let port = free_port();
    let retry = ClientOptions {
        reconnect_attempts: 2,
        time_between_attempts: ms(1),
        ..ClientOptions::default()
    };
    let client = Client::with_options("CLIENT_A", "127.0.0.1", port, retry);
    assert!(!client.ping());
    for error in [
        client.lock("KEYA").unwrap_err(),
        client.unlock("KEYA").unwrap_err(),
    ] {
        assert!(
            matches!(error, Error::Unreachable { attempts: 3, .. }),
            "{error:?}"
        );
        assert!(
            error
                .to_string()
                .contains(&format!("127.0.0.1:{port} after 3 attempts")),
            "{error}"
        );
    }
    assert!(matches!(
        client.lock(""),
        Err(Error::InvalidName {
            what: "key",
            bytes: 0
        })
    ));
}

fn a_client_tries_again_until_the_server_is_there() {
    let port = free_port();
    let retry = ClientOptions {
        reconnect_attempts: 3000,
        time_between_attempts: ms(10),
        ..ClientOptions::default()
    };
    let client = Client::with_options("CLIENT_A", "127.0.0.1", port, retry);
    let locker = thread::spawn(move || client.lock("KEYA"));
    let _server = start(Options {
        port,
        reconnect_attempts: 3000,
        time_between_attempts: ms(10),
        ..options()
    });
    assert!(locker.join().unwrap().unwrap().is_some());
}

/// A server that answers PING, and breaks the connection after reading a LOCK.
fn a_lock_that_may_have_reached_the_server_is_sent_again_under_its_id() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let mut locks = Vec::new();
        loop {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(stream);
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).unwrap_or(0) == 0 {
                    break;
                }
                let mut header = String::new();
                while stream.read_line(&mut header).unwrap_or(0) > 2 {
                    header.clear();
                }
                if line.starts_with("GET /SHUTDOWN") {
                    return locks;
                }
                if line.starts_with("GET /LOCK") {
                    locks.push(line.clone());
                }
                if line.starts_with("GET /PING") {
                    let pong = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nLock-Attempt-Timeout: 4.000\r\n\r\n1\n";
                    stream.get_mut().write_all(pong.as_bytes()).unwrap();
                } else {
                    break;
                }
            }
        }
    });
    let retry = ClientOptions {
        reconnect_attempts: 5,
        time_between_attempts: ms(1),
        ..ClientOptions::default()
    };
    let client = Client::with_options("CLIENT_A", "127.0.0.1", port, retry);
    let error = client.lock("KEYA").unwrap_err();
    assert!(
        matches!(&error, Error::Interrupted { question, attempts: 6, .. } if question == "LOCK/KEYA/CLIENT_A"),
        "{error:?}"
    );
    assert!(client.shutdown().is_err());
    let locks = server.join().unwrap();
    assert_eq!(locks.len(), 6);
    let id = |lock: &String| {
        let (_, id) = lock.split_once("request=").expect("an ID");
        id.to_string()
    };
    assert!(
        locks.iter().all(|lock| id(lock) == id(&locks[0])),
        "{locks:?}"
    );
}

fn a_client_finds_a_server_that_was_restarted() {
    let port = free_port();
    let fixed = Options { port, ..options() };
    let mut server = start(fixed.clone());
    let client = server.client("CLIENT_A");
    assert!(client.lock("KEYA").unwrap().is_some());
    server.stop().unwrap();
    let _server = start(fixed);
    // The idle connection has ended. No request was sent on it, so none is lost.
    assert!(!client.is_locked("KEYA").unwrap());
    assert!(client.lock("KEYA").unwrap().is_some());
}

fn a_client_distinguishes_another_program_from_a_lock_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n",
            );
        }
    });
    let client = Client::new("CLIENT_A", "127.0.0.1", port);
    assert!(!client.ping());
    let error = client.is_locked("KEYA").unwrap_err();
    assert!(
        matches!(&error, Error::BadReply { reply, .. } if reply == "hello"),
        "{error:?}"
    );
    assert!(client.lock("KEYA").is_err());
}

fn run_serves_in_this_process_until_it_is_stopped() {
    let mut server = Server::new(Options {
        allow_shutdown: true,
        ..options()
    });
    let port = server.bind().unwrap().port();
    let runner = thread::spawn(move || server.run());
    let client = Client::new("CLIENT_A", "127.0.0.1", port);
    assert!(client.lock("KEYA").unwrap().is_some());
    let mut kept = Wire::to_port(port);
    assert_eq!(kept.ask("/PING").body, "1\n");
    client.shutdown().unwrap();
    runner.join().unwrap().unwrap();
    assert!(kept.is_closed());
    TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
}

/// The role of a parent: starts a server, prints its process ID, and ends.
fn parent() {
    let how = std::env::args().next_back().unwrap();
    if how == "buffered" {
        extern "C" fn at_exit() {
            println!("at exit");
        }
        let ignore = signal::SigAction::new(
            signal::SigHandler::SigIgn,
            signal::SaFlags::empty(),
            signal::SigSet::empty(),
        );
        // SAFETY: ignoring a signal and printing at exit affect nothing else.
        unsafe {
            signal::sigaction(Signal::SIGUSR1, &ignore).unwrap();
            nix::libc::atexit(at_exit);
        }
        signal::SigSet::from(Signal::SIGUSR2)
            .thread_block()
            .unwrap();
    }
    let mut server = Server::new(Options {
        outlive_parent: how == "outlive",
        ..options()
    });
    if how == "buffered" {
        print!("in the buffer ");
    }
    println!("{}", server.start().unwrap());
    match how.as_str() {
        "panic" => panic!("as a test would"),
        "abort" => std::process::abort(),
        "exit" | "outlive" => std::process::exit(0),
        _ => {
            std::io::stdin().read_line(&mut String::new()).unwrap();
        }
    }
}

/// This program in another role.
struct Role {
    process: Child,
    output: BufReader<std::process::ChildStdout>,
    seen: String,
}

impl Role {
    fn parent(how: &str) -> Self {
        Role::of("parent", how)
    }

    fn of(role: &str, how: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg(how)
            .env(ROLE, role)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Role {
            process,
            output,
            seen: String::new(),
        }
    }

    fn read_pid(&mut self) -> u32 {
        self.output.read_line(&mut self.seen).unwrap();
        self.seen
            .split_whitespace()
            .last()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Lets it end, and returns the rest of its output.
    fn finish(mut self) -> String {
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
        // Not up to the end of the file, since a server that outlives it may hold the other end.
        if !self.seen.contains("buffer") {
            return self.seen;
        }
        self.output.read_to_string(&mut self.seen).unwrap();
        self.seen
    }
}

fn kill(pid: u32, signal: Signal) {
    signal::kill(Pid::from_raw(pid as i32), signal).unwrap();
}

/// Whether the process exists, if only as a zombie.
fn is_there(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

/// Whether the process has ended, if only as a zombie: its new parent may be slow to reap it.
fn has_ended(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

/// A field of `/proc/PID/stat`, counted from the field after the name.
fn stat(pid: u32, field: usize) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(field).unwrap().parse().unwrap()
}

fn parent_of(pid: u32) -> u32 {
    stat(pid, 1)
}

fn group_of(pid: u32) -> u32 {
    stat(pid, 2)
}

fn session_of(pid: u32) -> u32 {
    stat(pid, 3)
}

fn link_of(fd: i32) -> String {
    fs::read_link(format!("/proc/self/fd/{fd}"))
        .unwrap()
        .to_string_lossy()
        .into_owned()
}

/// A client's LOCK that certainly waits, because a second one with its name is refused at once.
fn waiting_client(server: &Server) -> thread::JoinHandle<Result<Option<Lease>, Error>> {
    for name in 0.. {
        let name = format!("CLIENT_{name}");
        let client = server.client(&name);
        // A first LOCK, so that the client has a connection and knows the server.
        client.lock(&name).unwrap();
        let waiter = thread::spawn(move || client.lock("KEYA"));
        let mut probe = Wire::to(server);
        probe.get(&format!("/LOCK/KEYA/{name}"));
        until("one of the two is refused", || {
            probe.has_answer() || waiter.is_finished()
        });
        if !waiter.is_finished() {
            return waiter;
        }
        // The probe was first, so this LOCK was refused. Tries again with another name.
    }
    unreachable!("names do not run out")
}
