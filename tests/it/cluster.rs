//! Several lock servers with one etcd or three: one leads, the others stand by and take over. All are real processes,
//! with faults on the connections between them.
//!
//! The guide's page about clusters has the rules of a store that several servers share.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cluster_failovers::store_holds;
use crate::common::{Reply, Wire, bound, ms, skip, sleeps, until};
use crate::etcd::Etcds;
use crate::etcd::fault_proxy::{Accident, Request};
use crate::etcd::lock_servers::{LockServer, LockServers, PREFIX, TTL};

/// Long enough to hold a commit back for a while without the end of the leadership.
const PATIENT_TTL: Duration = Duration::from_secs(10);

const ALL: usize = usize::MAX;

fn one_leads_one_stands_by() -> Option<LockServers> {
    LockServers::start(2, Etcds::one())
}

#[track_caller]
fn fence(reply: &Reply) -> u64 {
    let fence = reply.header("Lock-Fence");
    let fence = fence.unwrap_or_else(|| panic!("it is no grant: {reply:?}"));
    fence.parse().expect("a number")
}

/// Whether it is an answer about a hold. The end of a connection is none, and neither is the answer of a standby.
fn is_answer(reply: &std::io::Result<Reply>) -> bool {
    reply.as_ref().is_ok_and(|reply| reply.status == 200)
}

/// Waits until the server has handled everything that has arrived, as far as it can.
fn until_idle(server: &mut LockServer) {
    let pid = server.process().id();
    until("the server has nothing to do", || {
        sleeps(pid) && sleeps(pid)
    });
}

fn verify(server: &LockServer, key: &str, who: &str, fence: u64) -> Reply {
    server.reply(&format!("/VERIFY/{key}/{who}?fence={fence}"))
}

// Rule 1.

/// No answer to any request shows an unstored decision.
#[test]
fn rule_1_nobody_gets_an_answer_about_an_unstored_decision_and_the_next_leader_does_not_know_it() {
    let Some(mut servers) = LockServers::start_with(2, Etcds::one(), PATIENT_TTL) else {
        return;
    };
    let trap = servers.servers[0]
        .proxy
        .trap(ALL, Accident::Held, Request::is_commit);
    let lock = "/LOCK/K/A?lock_timeout=60&request=1";
    let server = &mut servers.servers[0];
    let mut wires = vec![server.get(lock)];
    trap.until_caught(1);
    for question in [
        lock,
        "/VERIFY/K/A",
        "/RENEW/K/A",
        "/CHECK/K",
        "/LOCK/K/A",
        "/UNLOCK/K/A",
        "/UNLOCK/K/A",
        "/CHECK/K",
    ] {
        wires.push(server.get(question));
        until_idle(server);
    }
    for wire in &wires {
        assert!(!wire.has_answer());
    }
    // The answer to PING is not about a hold.
    assert_eq!(server.reply("/PING").body, "1\n");
    server.kill();
    for mut wire in wires {
        assert_eq!(wire.rest(), "");
    }
    let next = servers.until_leads(1);
    assert_eq!(next.reply("/CHECK/K").result(), "free");
    assert_eq!(next.reply("/VERIFY/K/A").result(), "free");
    let granted = fence(&next.reply("/LOCK/K/B?lock_timeout=60"));
    drop(trap);
    assert_eq!(verify(next, "K", "B", granted).body, "1\n");
}

/// A stored grant without an answer is valid, and its repeated LOCK gets it.
#[test]
fn rule_1_a_stored_unanswered_grant_goes_to_the_repeated_lock_at_the_next_leader() {
    let Some(mut servers) = one_leads_one_stands_by() else {
        return;
    };
    let trap = servers.servers[0]
        .proxy
        .trap(1, Accident::AnswerHeld, Request::is_commit);
    let lock = "/LOCK/K/A?lock_timeout=60&request=1";
    let wire = servers.servers[0].get(lock);
    trap.until_answered(1);
    assert!(!wire.has_answer());
    servers.servers[0].kill();
    let next = servers.until_leads(1);
    let other = next.reply("/LOCK/K/B?lock_attempt_timeout=0");
    assert_eq!(other.result(), "timeout");
    let again = fence(&next.reply(lock));
    let stored = servers.stored("K").expect("it is held");
    assert_eq!(stored["fence"], again.to_string());
}

// Rule 2.

#[test]
fn rule_2_a_commit_that_arrives_after_a_failover_changes_nothing() {
    let Some(mut servers) = one_leads_one_stands_by() else {
        return;
    };
    let trap = servers.servers[0]
        .proxy
        .trap(ALL, Accident::Held, Request::is_commit);
    let _wire = servers.servers[0].get("/LOCK/K/A?lock_timeout=60");
    trap.until_caught(1);
    servers.servers[0].kill();
    let next = servers.until_leads(1);
    let granted = fence(&next.reply("/LOCK/K/B?lock_timeout=60"));
    trap.let_go();
    trap.until_answered(1);
    assert_eq!(servers.stored("K").expect("it is held")["who"], "B");
    assert_eq!(verify(next, "K", "B", granted).body, "1\n");
}

// Rule 3.

/// Ends the leadership in etcd without the leader's knowledge, and keeps every server from winning it. Then checks that
/// the leader grants nothing.
fn rule_3_under(deposes: impl Fn(&LockServers)) {
    let Some(servers) = one_leads_one_stands_by() else {
        return;
    };
    let leader = &servers.servers[0];
    let granted = fence(&leader.reply("/LOCK/K/A?lock_timeout=60"));
    let campaign =
        |server: &LockServer| server.proxy.trap(ALL, Accident::Held, Request::is_campaign);
    let traps: Vec<_> = servers.servers.iter().map(campaign).collect();
    deposes(&servers);
    for question in [
        format!("/VERIFY/K/A?fence={granted}"),
        format!("/RENEW/K/A?fence={granted}"),
        "/CHECK/K".into(),
        "/LOCK/K/B?lock_attempt_timeout=0".into(),
        "/LOCK/J/B".into(),
        format!("/UNLOCK/K/A?fence={granted}"),
    ] {
        let answer = leader.ask(&question);
        assert!(!is_answer(&answer), "{question}: {answer:?}");
    }
    drop(traps);
    let next = &servers.servers[servers.until_led()];
    assert_eq!(verify(next, "K", "A", granted).body, "1\n");
}

#[test]
fn rule_3_a_leader_whose_lease_was_revoked_grants_nothing() {
    rule_3_under(|servers| {
        let leader = servers.leader_key().expect("one leads");
        servers.api().revoke(leader.lease);
    });
}

#[test]
fn rule_3_a_leader_whose_key_was_deleted_grants_nothing() {
    rule_3_under(|servers| {
        assert_eq!(servers.api().delete(&format!("{PREFIX}leader")), 1);
    });
}

/// The leader is suspended for longer than its leadership and the hold, and then reads the requests that have waited in
/// its sockets.
#[test]
fn rule_3_a_leader_suspended_past_a_failover_answers_none_of_its_waiting_requests() {
    let Some(mut servers) = one_leads_one_stands_by() else {
        return;
    };
    let leader = &mut servers.servers[0];
    let granted = fence(&leader.reply("/LOCK/K/A?lock_timeout=1"));
    let mut kept = Wire::at(leader.address);
    assert_eq!(kept.ask("/PING").body, "1\n");
    leader.process().stop();
    let questions = [
        format!("/VERIFY/K/A?fence={granted}"),
        format!("/RENEW/K/A?fence={granted}&lock_timeout=60"),
        "/CHECK/K".into(),
        format!("/UNLOCK/K/A?fence={granted}"),
        "/LOCK/K/C?lock_timeout=60".into(),
        "/LOCK/J/C?lock_timeout=60".into(),
    ];
    let mut wires: Vec<Wire> = questions
        .iter()
        .map(|question| leader.get(question))
        .collect();
    kept.get(&questions[0]);
    wires.push(kept);
    let next = servers.until_leads(1);
    let next_granted = fence(&next.reply("/LOCK/K/B?lock_timeout=60"));
    assert!(next_granted > granted);
    servers.servers[0].process().go_on();
    for (mut wire, question) in wires
        .into_iter()
        .zip(questions.iter().chain(&questions[..1]))
    {
        let answer = wire.try_reply();
        assert!(!is_answer(&answer), "{question}: {answer:?}");
    }
    let next = &servers.servers[1];
    assert_eq!(verify(next, "K", "B", next_granted).body, "1\n");
    assert_eq!(next.reply("/CHECK/J").result(), "free");
    until("it stands by", || servers.servers[0].is_standby());
}

/// Without a quorum a member of etcd answers a transaction without operations by itself.
#[test]
fn rule_3_without_a_quorum_of_etcd_nobody_is_answered() {
    let Some(mut servers) = LockServers::start(1, Etcds::three()) else {
        return;
    };
    let granted = fence(&servers.servers[0].reply("/LOCK/K/A?lock_timeout=60"));
    for stopped in [[0, 1], [1, 2], [0, 2]] {
        for member in stopped {
            servers.etcds.process(member).stop();
        }
        for question in [format!("/VERIFY/K/A?fence={granted}"), "/CHECK/K".into()] {
            let answer = servers.servers[0].ask(&question);
            assert!(!is_answer(&answer), "{question}: {answer:?}");
        }
        for member in stopped {
            servers.etcds.process(member).go_on();
        }
        let leader = servers.until_leads(0);
        assert_eq!(verify(leader, "K", "A", granted).body, "1\n");
    }
}

// Rule 4.

#[test]
fn rule_4_a_server_restarted_at_once_does_not_adopt_its_old_leader_key() {
    let Some(mut servers) = LockServers::start(1, Etcds::one()) else {
        return;
    };
    let before = servers.leader_key().expect("it leads");
    let trap = servers.servers[0]
        .proxy
        .trap(1, Accident::Held, Request::is_commit);
    let _wire = servers.servers[0].get("/LOCK/K/A?lock_timeout=60");
    trap.until_caught(1);
    servers.servers[0].start();
    let again = servers.until_leads(0);
    let after = servers.leader_key().expect("it leads");
    assert!(after.create_revision > before.create_revision, "{after:?}");
    let granted = fence(&again.reply("/LOCK/K/B?lock_timeout=60"));
    trap.let_go();
    trap.until_answered(1);
    assert_eq!(servers.stored("K").expect("it is held")["who"], "B");
    assert_eq!(verify(again, "K", "B", granted).body, "1\n");
}

#[test]
fn rule_4_a_server_whose_win_was_not_answered_leads_with_the_key_that_it_made() {
    let Some(mut servers) = LockServers::prepare(1, Etcds::one(), TTL) else {
        return;
    };
    for accident in [Accident::AnswerCut, Accident::Dropped, Accident::Doubled] {
        let trap = servers.servers[0]
            .proxy
            .trap(1, accident, Request::is_campaign);
        servers.start_one(0);
        trap.until_caught(1);
        let leader = &servers.servers[0];
        let granted = fence(&leader.reply("/LOCK/K/A?lock_timeout=60"));
        assert_eq!(
            leader.reply(&format!("/UNLOCK/K/A?fence={granted}")).body,
            "1\n"
        );
        assert_eq!(servers.leader_key().expect("it leads").version, 1);
        servers.servers[0].process().end();
    }
}

// Rule 5.

/// The old leader's commit is applied, and its answer is under way, while the next server wins.
#[test]
fn rule_5_a_server_that_wins_during_a_commit_knows_what_it_stored() {
    let Some(servers) = one_leads_one_stands_by() else {
        return;
    };
    let [old, next] = &servers.servers[..] else {
        unreachable!("there are two")
    };
    let _out = old.proxy.trap(ALL, Accident::Held, Request::is_campaign);
    let trap = old.proxy.trap(ALL, Accident::AnswerHeld, |request| {
        request.is_commit_of("K")
    });
    let lock = "/LOCK/K/A?lock_timeout=60&request=1";
    let mut wire = old.get(lock);
    trap.until_answered(1);
    servers
        .api()
        .revoke(servers.leader_key().expect("one leads").lease);
    servers.until_leads(1);
    assert_eq!(
        next.reply("/LOCK/K/B?lock_attempt_timeout=0").result(),
        "timeout"
    );
    let granted = fence(&next.reply(lock));
    drop(trap);
    // It was stored in the old leadership, so the old leader may answer it, but only with the same fence.
    if let Ok(reply) = wire.try_reply().and_then(|reply| match reply.status {
        200 => Ok(reply),
        _ => Err(std::io::ErrorKind::Other.into()),
    }) {
        assert_eq!(fence(&reply), granted);
    }
}

/// The load is slow, and the old leader's commit arrives after the win.
#[test]
fn rule_5_a_server_that_wins_before_a_commit_arrives_never_sees_it() {
    let Some(servers) = one_leads_one_stands_by() else {
        return;
    };
    let [old, next] = &servers.servers[..] else {
        unreachable!("there are two")
    };
    let _out = old.proxy.trap(ALL, Accident::Held, Request::is_campaign);
    let commit = old
        .proxy
        .trap(ALL, Accident::Held, |request| request.is_commit_of("K"));
    let load = next.proxy.trap(1, Accident::Held, Request::is_load);
    let mut wire = old.get("/LOCK/K/A?lock_timeout=60");
    commit.until_caught(1);
    servers
        .api()
        .revoke(servers.leader_key().expect("one leads").lease);
    load.until_caught(1);
    commit.let_go();
    commit.until_answered(1);
    load.let_go();
    let answer = wire.try_reply();
    assert!(!is_answer(&answer), "{answer:?}");
    servers.until_leads(1);
    assert_eq!(servers.stored("K"), None);
    assert_eq!(next.reply("/CHECK/K").result(), "free");
}

const LONG: Duration = Duration::from_secs(600);

#[test]
fn rule_5_a_load_whose_revision_is_compacted_between_two_pages_starts_again() {
    let Some(mut servers) = LockServers::prepare(1, Etcds::one(), TTL) else {
        return;
    };
    // A page has a thousand holds.
    let many = 2500;
    store_holds(&servers, many, LONG);
    let first = servers.servers[0]
        .proxy
        .trap(1, Accident::AnswerHeld, Request::is_load);
    servers.servers[0].start();
    first.until_answered(1);
    let revision = servers.api().put("other", "");
    servers.api().compact(revision);
    let further = servers.servers[0]
        .proxy
        .trap(ALL, Accident::Seen, Request::is_load);
    first.let_go();
    let leader = servers.until_leads(0);
    for number in [0, 999, 1000, 1001, many - 1] {
        let check = leader.reply(&format!("/CHECK/k{number}"));
        assert_eq!(check.header("Lock-Holder"), Some("A"), "k{number}");
    }
    assert_eq!(leader.reply(&format!("/CHECK/k{many}")).result(), "free");
    // The second page, which failed, and then all pages again.
    assert!(further.caught().len() >= 4, "{}", further.caught().len());
    assert!(fence(&leader.reply("/LOCK/new/B")) > 1_000_000 + many as u64);
}

/// A value that can't be read may be a grant.
#[test]
fn rule_5_a_server_that_cannot_read_a_hold_does_not_lead() {
    let Some(mut servers) = LockServers::prepare(1, Etcds::one(), TTL) else {
        return;
    };
    store_holds(&servers, 2, LONG);
    let newer = json!({ "v": 2, "who": "A", "fence": "1000000", "ms": 600_000, "slots": 1 });
    servers
        .api()
        .put(&format!("{PREFIX}h/k0/0"), &newer.to_string());
    let trap = servers.servers[0]
        .proxy
        .trap(ALL, Accident::Seen, Request::is_load);
    servers.servers[0].start();
    trap.until_answered(1);
    let process = servers.servers[0].process().id();
    until("it has tried to load", || {
        let is_gone = !fs::exists(format!("/proc/{process}/task")).unwrap_or(false);
        is_gone || servers.servers[0].process().has_ended() || sleeps(process)
    });
    assert!(!servers.servers[0].is_leader());
}

// Rules 6 and 7.

#[test]
fn rules_6_and_7_a_renewed_lease_survives_a_failover_in_full() {
    let Some(mut servers) = one_leads_one_stands_by() else {
        return;
    };
    let leader = &mut servers.servers[0];
    leader.reply("/LOCK/K/A?lock_timeout=1");
    let renewed = leader.reply("/RENEW/K/A?lock_timeout=60");
    assert!(
        renewed.expires_in() > Duration::from_secs(55),
        "{renewed:?}"
    );
    assert_eq!(leader.reply("/RENEW/K/A?lock_timeout=1").status, 200);
    leader.kill();
    let next = servers.until_leads(1);
    let other = next.reply("/LOCK/K/B?lock_attempt_timeout=0");
    assert_eq!(other.result(), "timeout");
    let left = other.header("Lock-Holder-Expires-In").expect("it is held");
    let left: f64 = left.parse().expect("a number");
    assert!(left > 55.0, "{left}");
}

#[test]
fn rule_6_after_a_failover_a_waiter_is_granted_the_key_only_after_the_holders_full_lease() {
    let Some(mut servers) = one_leads_one_stands_by() else {
        return;
    };
    let leader = &mut servers.servers[0];
    let asked = Instant::now();
    let granted = leader.reply("/LOCK/K/A?lock_timeout=4");
    let renewed_at = Instant::now();
    let renewed = leader.reply("/RENEW/K/A");
    let until = (asked + granted.expires_in()).max(renewed_at + renewed.expires_in());
    leader.kill();
    let next = servers.until_leads(1);
    let other = fence(&next.reply("/LOCK/K/B?lock_attempt_timeout=60"));
    assert!(Instant::now() >= until);
    assert!(other > fence(&granted));
}

// Rule 9.

#[test]
fn rule_9_a_hold_that_lapsed_before_a_failover_does_not_come_back_beside_the_next_grant() {
    let Some(mut servers) = one_leads_one_stands_by() else {
        return;
    };
    let leader = &mut servers.servers[0];
    let lapsed = fence(&leader.reply("/LOCK/K/A?lock_timeout=0.2"));
    let granted = fence(&leader.reply("/LOCK/K/B?lock_timeout=60"));
    leader.kill();
    let next = servers.until_leads(1);
    for verb in ["RENEW", "VERIFY", "UNLOCK"] {
        let answer = next.reply(&format!("/{verb}/K/A?fence={lapsed}"));
        let is_no = ["stale-fence", "not-holder"].contains(&answer.result());
        assert!(is_no, "{verb}: {answer:?}");
    }
    assert_eq!(verify(next, "K", "B", granted).body, "1\n");
}

// Rules 10 and 15.

#[test]
fn rules_10_and_15_a_queue_survives_a_store_that_stalls_for_ten_leases() {
    let Some(mut servers) = LockServers::start_with(1, Etcds::one(), PATIENT_TTL) else {
        return;
    };
    let lease = ms(200);
    let trap = servers.servers[0]
        .proxy
        .trap(ALL, Accident::Held, Request::is_commit);
    let server = &mut servers.servers[0];
    let mut wires = Vec::new();
    for who in ["A", "B", "C", "D", "E"] {
        wires.push(server.get(&format!("/LOCK/K/{who}?lock_timeout=0.2")));
        until_idle(server);
    }
    trap.until_caught(1);
    // This is the stall itself, and no wait for a condition.
    thread::sleep(10 * lease);
    assert!(!wires.iter().any(Wire::has_answer));
    trap.let_go();
    let mut latest = 0;
    for mut wire in wires {
        let reply = wire.reply();
        assert!(fence(&reply) > latest, "{reply:?}");
        latest = fence(&reply);
        // Full when it began, and a little shorter by now.
        assert!(reply.expires_in() > lease / 2, "{reply:?}");
    }
}

// Rule 11.

#[test]
fn rule_11_fences_grow_over_a_failover_even_if_nothing_is_held_any_more() {
    let Some(mut servers) = one_leads_one_stands_by() else {
        return;
    };
    let leader = &mut servers.servers[0];
    let mut greatest = 0;
    for key in ["K", "J"] {
        greatest = fence(&leader.reply(&format!("/LOCK/{key}/A?lock_timeout=60")));
    }
    for key in ["K", "J"] {
        assert_eq!(leader.reply(&format!("/UNLOCK/{key}/A")).body, "1\n");
    }
    assert_eq!(servers.stored("K").or(servers.stored("J")), None);
    servers.servers[0].kill();
    let next = servers.until_leads(1);
    assert!(fence(&next.reply("/LOCK/K/B")) > greatest);
}

// Rule 12.

#[test]
fn rule_12_a_commit_that_arrives_twice_counts_once() {
    let Some(servers) = LockServers::start(1, Etcds::one()) else {
        return;
    };
    let leader = &servers.servers[0];
    let leadership = servers.leader_key();
    let doubled = leader
        .proxy
        .trap(2, Accident::Doubled, |request| request.is_commit_of("K"));
    let granted = fence(&leader.reply("/LOCK/K/A?lock_timeout=60"));
    assert_eq!(
        servers.stored("K").expect("it is held")["fence"],
        granted.to_string()
    );
    let unlocked = leader.reply(&format!("/UNLOCK/K/A?fence={granted}"));
    assert_eq!(unlocked.body, "1\n");
    assert_eq!(servers.stored("K"), None);
    // Two further commits.
    leader.reply("/LOCK/J/A?lock_timeout=60");
    let next = fence(&leader.reply("/LOCK/K/B?lock_timeout=60"));
    let stored = servers.stored("K");
    for (which, what) in ["the grant", "the unlock"].iter().enumerate() {
        let answer = doubled.send_again(which);
        assert_ne!(answer["succeeded"], true, "{what}: {answer}");
        assert_eq!(servers.stored("K"), stored, "{what}");
    }
    assert_eq!(verify(leader, "K", "B", next).body, "1\n");
    assert!(fence(&leader.reply("/LOCK/I/A")) > next);
    assert_eq!(servers.leader_key(), leadership, "it still leads");
}

#[test]
fn rule_12_a_commit_whose_answer_was_lost_is_sent_again_whether_it_was_applied_or_not() {
    let Some(servers) = LockServers::start(1, Etcds::one()) else {
        return;
    };
    let leader = &servers.servers[0];
    let leadership = servers.leader_key();
    for accident in [Accident::AnswerCut, Accident::Dropped] {
        let trap = leader
            .proxy
            .trap(1, accident, |request| request.is_commit_of("K"));
        let granted = fence(&leader.reply("/LOCK/K/A?lock_timeout=60"));
        trap.until_caught(1);
        assert_eq!(
            servers.stored("K").expect("it is held")["fence"],
            granted.to_string()
        );
        let trap = leader
            .proxy
            .trap(1, accident, |request| request.is_commit_of("K"));
        assert_eq!(
            leader.reply(&format!("/UNLOCK/K/A?fence={granted}")).body,
            "1\n"
        );
        trap.until_caught(1);
        assert_eq!(servers.stored("K"), None);
    }
    assert_eq!(servers.leader_key(), leadership, "it still leads");
}

/// Here only a confirmation is under way, and no commit.
#[test]
fn rule_12_a_confirmation_whose_answer_was_lost_is_sent_again() {
    let Some(servers) = LockServers::start(1, Etcds::one()) else {
        return;
    };
    let leader = &servers.servers[0];
    let granted = fence(&leader.reply("/LOCK/K/A?lock_timeout=60"));
    for accident in [Accident::AnswerCut, Accident::Dropped, Accident::Doubled] {
        let trap = leader.proxy.trap(1, accident, Request::is_confirm);
        assert_eq!(verify(leader, "K", "A", granted).body, "1\n");
        trap.until_caught(1);
    }
}

// Rule 18.

/// A suspended thread. Dropping it lets the thread go on.
struct StoppedThread(Pid);

impl StoppedThread {
    /// `None`, with a printed reason, if this machine allows no tracing.
    fn of(server: &mut LockServer, name: &str) -> Option<Self> {
        let tasks = format!("/proc/{}/task", server.process().id());
        let tasks = fs::read_dir(tasks).expect("it runs");
        let mut tasks = tasks.map(|task| task.expect("an entry").path());
        let comm = |task: &std::path::PathBuf| fs::read_to_string(task.join("comm"));
        let found = tasks.find(|task| comm(task).is_ok_and(|comm| comm.trim_end() == name));
        let found = found.unwrap_or_else(|| panic!("it has no thread {name}"));
        let tid = found.file_name().and_then(|tid| tid.to_str()?.parse().ok());
        let tid = Pid::from_raw(tid.expect("a number"));
        let stopped = ptrace::seize(tid, ptrace::Options::empty())
            .and_then(|()| ptrace::interrupt(tid))
            .and_then(|()| waitpid(tid, Some(WaitPidFlag::__WALL)));
        if let Err(error) = stopped {
            skip(&format!("no thread can be traced here: {error}"));
            return None;
        }
        Some(StoppedThread(tid))
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        // It fails if the process has ended.
        let _ = ptrace::detach(self.0, None);
    }
}

#[test]
fn rule_18_a_leader_whose_committing_thread_hangs_loses_its_key() {
    let Some(mut servers) = one_leads_one_stands_by() else {
        return;
    };
    let granted = fence(&servers.servers[0].reply("/LOCK/K/A?lock_timeout=60"));
    let Some(stopped) = StoppedThread::of(&mut servers.servers[0], "lock-store") else {
        return;
    };
    let verify_path = format!("/VERIFY/K/A?fence={granted}");
    let mut wire = servers.servers[0].get(&verify_path);
    let next = servers.until_leads(1);
    assert_eq!(verify(next, "K", "A", granted).body, "1\n");
    assert!(!wire.has_answer());
    drop(stopped);
    let answer = wire.try_reply();
    assert!(!is_answer(&answer), "{answer:?}");
    until("it stands by", || servers.servers[0].is_standby());
}

// etcd's room.

/// Sends LOCKs until one is refused. The first one that finds etcd full gets no answer, since the leader first has to
/// find out whether it is stored.
fn until_refused(leader: &LockServer) {
    until("a LOCK is refused", || match leader.ask("/LOCK/L/A") {
        Ok(refused) => {
            let refusal = (refused.status, refused.result());
            assert_eq!(refusal, (503, "store-full"), "{refused:?}");
            true
        }
        Err(_) => false,
    });
}

#[test]
fn with_a_full_etcd_nothing_is_locked_and_holds_can_be_unlocked() {
    let etcd = Etcds::with_quota(400_000);
    let Some(mut servers) = LockServers::start(1, etcd) else {
        return;
    };
    let api = servers.api();
    let leader = &servers.servers[0];
    let granted =
        ["K", "J"].map(|key| fence(&leader.reply(&format!("/LOCK/{key}/A?lock_timeout=600"))));
    api.fill();
    until_refused(leader);
    assert_eq!(leader.reply("/RENEW/K/A").status, 200);
    assert_eq!(verify(leader, "K", "A", granted[0]).body, "1\n");
    assert_eq!(leader.reply("/CHECK/L").result(), "free");
    assert_eq!(leader.reply("/UNLOCK/K/A").body, "1\n");
    assert_eq!(servers.stored("K"), None);
    // No server can win, since that needs a lease in etcd.
    servers.servers[0].start();
    until("it stands by", || servers.servers[0].is_standby());
    api.compact(api.revision());
    api.defragment();
    api.disarm();
    let leader = servers.until_leads(0);
    assert_eq!(verify(leader, "J", "A", granted[1]).body, "1\n");
    assert!(fence(&leader.reply("/LOCK/L/A")) > granted[1]);
}

#[test]
fn a_leader_grants_locks_again_once_etcd_has_room() {
    let etcd = Etcds::with_quota(400_000);
    let Some(servers) = LockServers::start(1, etcd) else {
        return;
    };
    let api = servers.api();
    let leader = &servers.servers[0];
    let leadership = servers.leader_key();
    api.fill();
    until_refused(leader);
    api.compact(api.revision());
    api.defragment();
    api.disarm();
    until("it takes locks again", || {
        let reply = leader.reply("/LOCK/K/A?lock_attempt_timeout=0");
        reply.header("Lock-Fence").is_some()
    });
    assert_eq!(servers.leader_key(), leadership, "it still leads");
}

// Taking over.

/// The time from `begun` until the second server leads.
fn failover(servers: &LockServers, begun: Instant) -> Duration {
    servers.until_leads(1);
    begun.elapsed()
}

#[test]
fn after_an_orderly_end_a_standby_serves_within_half_a_second() {
    let Some(mut servers) = one_leads_one_stands_by() else {
        return;
    };
    let granted = fence(&servers.servers[0].reply("/LOCK/K/A?lock_timeout=60"));
    let code = servers.servers[0].process().end();
    assert_eq!(code, Some(0), "{}", servers.servers[0].log());
    let taken = failover(&servers, Instant::now());
    println!("after {taken:?}");
    assert!(taken < bound(ms(500)), "{taken:?}");
    assert_eq!(verify(&servers.servers[1], "K", "A", granted).body, "1\n");
}

#[test]
fn after_a_kill_a_standby_serves_within_the_leadership_s_time_and_a_second() {
    let Some(mut servers) = one_leads_one_stands_by() else {
        return;
    };
    let granted = fence(&servers.servers[0].reply("/LOCK/K/A?lock_timeout=60"));
    let begun = Instant::now();
    servers.servers[0].kill();
    let taken = failover(&servers, begun);
    println!("after {taken:?}");
    assert!(taken < bound(TTL + Duration::from_secs(1)), "{taken:?}");
    assert_eq!(verify(&servers.servers[1], "K", "A", granted).body, "1\n");
}

#[test]
fn a_standby_redirects_to_the_leader_and_names_it() {
    let Some(servers) = one_leads_one_stands_by() else {
        return;
    };
    let [leader, standby] = &servers.servers[..] else {
        unreachable!("there are two")
    };
    let target = "/LOCK/a%2Fb/A?lock_timeout=60&request=1";
    let redirected = standby.reply(target);
    assert_eq!(
        (redirected.status, redirected.result()),
        (307, "standby"),
        "{redirected:?}"
    );
    let address = leader.address.to_string();
    assert_eq!(redirected.header("Lock-Leader"), Some(&*address));
    // Follows the redirect, like `curl -L`.
    let location = redirected.header("Location").expect("it redirects");
    let there = location.strip_prefix(&format!("http://{address}"));
    assert_eq!(there, Some(target));
    let granted = fence(&leader.reply(target));
    for question in [
        "/CHECK/K",
        "/VERIFY/K/A",
        "/RENEW/K/A",
        "/UNLOCK/K/A",
        "/locks",
        "/locks/K",
    ] {
        let reply = standby.reply(question);
        assert_eq!(
            (reply.status, reply.result()),
            (307, "standby"),
            "{question}: {reply:?}"
        );
        let location = format!("http://{address}{question}");
        assert_eq!(reply.header("Location"), Some(&*location));
    }
    assert_eq!(verify(leader, "a%2Fb", "A", granted).body, "1\n");
}

#[test]
fn readyz_livez_and_status_show_whether_a_server_leads() {
    let Some(mut servers) = one_leads_one_stands_by() else {
        return;
    };
    let status = |server: &LockServer| -> (Value, Value) {
        let status = server.reply("/status").body;
        let status: Value = serde_json::from_str(&status).expect("it is JSON");
        (status["role"].clone(), status["leader"].clone())
    };
    let address = servers.servers[0].address.to_string();
    for (server, ready, role) in [(0, 200, "leader"), (1, 503, "standby")] {
        let server = &servers.servers[server];
        for own in ["/livez", "/PING", "/", "/status", "/metrics"] {
            assert_eq!(server.reply(own).status, 200, "{own} at the {role}");
        }
        let is_ready = server.reply("/readyz");
        assert_eq!(is_ready.status, ready);
        if role == "standby" {
            assert_eq!(is_ready.result(), "standby");
        }
        assert_eq!(status(server), (json!(role), json!(address)));
    }
    // Now no server leads, and none can win.
    let campaign =
        |server: &LockServer| server.proxy.trap(ALL, Accident::Held, Request::is_campaign);
    let traps: Vec<_> = servers.servers.iter().map(campaign).collect();
    servers.servers[0].kill();
    let left = &servers.servers[1];
    until("it knows that nobody leads", || {
        left.reply("/CHECK/K").status == 503
    });
    let nowhere = left.reply("/CHECK/K");
    assert_eq!(nowhere.result(), "standby");
    assert_eq!(
        (nowhere.header("Location"), nowhere.header("Lock-Leader")),
        (None, None)
    );
    assert_eq!(left.reply("/livez").status, 200);
    assert_eq!(left.reply("/readyz").status, 503);
    assert_eq!(status(left).0, json!("standby"));
    drop(traps);
    servers.until_leads(1);
    let address = servers.servers[1].address.to_string();
    assert_eq!(
        status(&servers.servers[1]),
        (json!("leader"), json!(address))
    );
}

/// A waiter at the old leader is not granted the key, and repeats its LOCK at the next leader.
#[test]
fn a_waiter_is_refused_when_its_server_stands_by_and_may_wait_at_the_next_leader() {
    let Some(servers) = one_leads_one_stands_by() else {
        return;
    };
    let [old, next] = &servers.servers[..] else {
        unreachable!("there are two")
    };
    let granted = fence(&old.reply("/LOCK/K/A?lock_timeout=60"));
    let _out = old.proxy.trap(ALL, Accident::Held, Request::is_campaign);
    let lock = "/LOCK/K/B?lock_timeout=60&lock_attempt_timeout=60&request=1";
    let mut waits = old.get(lock);
    until("it waits", || {
        old.reply("/CHECK/K").header("Lock-Waiters") == Some("1")
    });
    servers
        .api()
        .revoke(servers.leader_key().expect("one leads").lease);
    let answer = waits.try_reply();
    assert!(!is_answer(&answer), "{answer:?}");
    servers.until_leads(1);
    let mut waits = next.get(lock);
    until("it waits", || {
        next.reply("/CHECK/K").header("Lock-Waiters") == Some("1")
    });
    assert_eq!(
        next.reply(&format!("/UNLOCK/K/A?fence={granted}")).body,
        "1\n"
    );
    assert!(fence(&waits.reply()) > granted);
}

#[test]
fn a_standby_logs_which_of_its_options_differ_from_the_leaders() {
    let Some(mut servers) = LockServers::prepare(2, Etcds::one(), TTL) else {
        return;
    };
    servers.servers[1].add_options(["--max-lock-timeout", "60"]);
    (0..2).for_each(|number| servers.start_one(number));
    let difference = "max_lock_timeout is 3600 there and 60 here";
    until("the log says so", || {
        servers.servers[1].log().contains(difference)
    });
    assert!(!servers.servers[0].log().contains("other options"));
}
