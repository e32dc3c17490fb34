//! Three lock servers and three etcds, which are killed, suspended or isolated one after another, and clients that
//! check the servers' answers against each other.
//!
//! By the clients' records, two never hold a key at once, fences grow in the order of the grants, and an answered grant
//! is valid at every later leader, where its UNLOCK returns `1`. etcd's history agrees with the records ([`examine`]).
//! Most clients are those of this file, which see every answer; the others are the crate's own. It takes
//! `LOCK_SERVER_CLUSTER_TRIAL_SECONDS`, by default 8.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use lock_server::{Client, Error, LockOptions, Refusal};

use crate::common::{Reply, ms, until};
use crate::etcd::Etcds;
use crate::etcd::history::{Examined, Grant, examine, read};
use crate::etcd::lock_servers::{LockServers, PREFIX, ask_at};
use crate::trial::{Dice, Told, judge};

const KEYS: [&str; 4] = ["KEYA", "KEYB", "KEY/C", "KEYD"];
const OWN_CLIENTS: u64 = 8;
/// The number of the crate's own clients.
const CLIENTS: u64 = 4;

/// How long a LOCK waits for its turn.
const ATTEMPT: Duration = ms(1000);
/// How long a client of this file waits for an immediate answer, before it tries the next server.
const ANSWER: Duration = ms(1000);

struct Trial {
    addresses: Vec<SocketAddr>,
    is_over: AtomicBool,
    told: Mutex<Vec<Told>>,
    /// The grants whose UNLOCK returned `1`.
    unlocked: Mutex<Vec<Grant>>,
    /// Answers that violate a rule.
    wrong: Mutex<Vec<String>>,
    verified: AtomicU64,
    /// LOCKs of the crate's clients that ended in an error.
    errors: AtomicU64,
}

/// Ends the clients even if the trial fails.
struct Over<'a>(&'a Trial);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, SeqCst);
    }
}

impl Trial {
    fn complain(&self, wrong: String) {
        self.wrong.lock().unwrap().push(wrong);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(SeqCst)
    }

    fn grant(&self, told: &Told) -> Grant {
        Grant {
            lock: told.key.into(),
            requester: told.client.clone(),
            fence: told.fence,
        }
    }
}

/// A client of this file.
struct Asker<'t> {
    trial: &'t Trial,
    name: String,
    dice: Dice,
    /// The server that it tries first.
    at: SocketAddr,
}

/// A leader's answer.
struct Answer {
    reply: Reply,
    /// When the answered request was sent.
    asked: Instant,
    /// Whether the request was sent earlier, too, and may have been carried out then.
    is_repeat: bool,
}

impl Asker<'_> {
    fn next_server(&mut self) {
        let all = &self.trial.addresses;
        let at = all.iter().position(|address| *address == self.at);
        // The address may be that of a leader outside the list; then it goes on with the first one of the list.
        self.at = all[at.map_or(0, |at| (at + 1) % all.len())];
    }

    /// Repeats a request until a leader answers. `None` once the trial is over.
    fn ask(&mut self, path: &str, patience: Duration) -> Option<Answer> {
        let mut is_repeat = false;
        while !self.trial.is_over() {
            let asked = Instant::now();
            match ask_at(self.at, path, patience) {
                Ok(reply) if reply.status == 200 => {
                    return Some(Answer {
                        reply,
                        asked,
                        is_repeat,
                    });
                }
                Ok(reply) if reply.result() == "standby" && [307, 503].contains(&reply.status) => {
                    let leader = reply.header("Lock-Leader");
                    match leader.and_then(|leader| leader.parse().ok()) {
                        Some(leader) if leader != self.at => self.at = leader,
                        _ => self.next_server(),
                    }
                }
                Ok(reply) if reply.status == 503 => self.next_server(),
                Ok(reply) => self.trial.complain(format!("{path}: {reply:?}")),
                Err(error) => {
                    is_repeat |= error.kind() != std::io::ErrorKind::ConnectionRefused;
                    self.next_server();
                }
            }
            thread::park_timeout(ms(5));
        }
        None
    }

    fn run(mut self) {
        for number in 0.. {
            // A slow hold lasts beyond a failover.
            let is_slow = self.dice.below(8) == 0;
            let lock_timeout = if is_slow { "6" } else { "0.7" };
            let key = KEYS[self.dice.below(KEYS.len() as u64) as usize];
            let path = key.replace('/', "%2F");
            let Self { name, .. } = &self;
            let lock = format!(
                "/LOCK/{path}/{name}?lock_timeout={lock_timeout}&lock_attempt_timeout={}&request={name}.{number}",
                ATTEMPT.as_secs_f64()
            );
            let first = Instant::now();
            let Some(answer) = self.ask(&lock, ATTEMPT + ANSWER) else {
                return;
            };
            let Some(fence) = answer.reply.header("Lock-Fence") else {
                // Another client has the key, or an acquire that this one has given up.
                continue;
            };
            let mut told = Told {
                key,
                client: self.name.clone(),
                fence: fence.parse().expect("a number"),
                asked: first,
                heard: Instant::now(),
                until: answer.asked + answer.reply.expires_in(),
            };
            self.hold(&mut told, is_slow, &path);
        }
    }

    /// Keeps the hold for a while, and records it.
    fn hold(&mut self, told: &mut Told, is_slow: bool, path: &str) {
        let fence = told.fence;
        let name = self.name.clone();
        let longest = if is_slow { 3000 } else { 60 };
        let end = Instant::now() + ms(self.dice.below(longest));
        let mut is_lost = false;
        while Instant::now() < end && !is_lost {
            let verb = ["VERIFY", "RENEW"][self.dice.below(2) as usize];
            let question = format!("/{verb}/{path}/{name}?fence={fence}");
            let Some(Answer { reply, asked, .. }) = self.ask(&question, ANSWER) else {
                break;
            };
            let now = Instant::now();
            is_lost = !reply.result().is_empty();
            if is_lost && now < told.until {
                let early = told.until - now;
                self.trial.complain(format!(
                    "{question}: {reply:?} {early:?} before its end: {told:?}"
                ));
            } else if !is_lost {
                told.until = told.until.max(asked + reply.expires_in());
            }
            self.trial.verified.fetch_add(1, SeqCst);
            thread::park_timeout(ms(self.dice.below(longest / 5)));
        }
        // Some leases are left to run out.
        let unlocks = !is_lost && self.dice.below(8) > 0;
        let was_until = told.until;
        if unlocks {
            told.until = told.until.min(Instant::now());
        }
        self.trial.told.lock().unwrap().push(told.clone());
        if unlocks {
            self.unlock(told, was_until, path);
        }
    }

    fn unlock(&mut self, told: &Told, until: Instant, path: &str) {
        let (fence, name) = (told.fence, self.name.clone());
        let question = format!("/UNLOCK/{path}/{name}?fence={fence}");
        let Some(Answer {
            reply, is_repeat, ..
        }) = self.ask(&question, ANSWER)
        else {
            return;
        };
        if reply.body == "1\n" {
            self.trial
                .unlocked
                .lock()
                .unwrap()
                .push(self.trial.grant(told));
            // The UNLOCK counts at every leader.
            let again = ["VERIFY", "UNLOCK", "RENEW"][self.dice.below(3) as usize];
            let question = format!("/{again}/{path}/{name}?fence={fence}");
            if let Some(Answer { reply, .. }) = self.ask(&question, ANSWER)
                && reply.result().is_empty()
            {
                self.trial
                    .complain(format!("{question} after its UNLOCK: {reply:?}"));
            }
        } else if !is_repeat && Instant::now() < until {
            self.trial
                .complain(format!("{question}: {reply:?}, {told:?}"));
        }
    }
}

/// A client of the crate, which goes from server to server by itself.
fn run_client(trial: &Trial, client: &Client, mut dice: Dice) {
    while !trial.is_over() {
        let key = KEYS[dice.below(KEYS.len() as u64) as usize];
        let options = LockOptions {
            lock_timeout: Some([ms(700), ms(6000)][dice.below(2) as usize]),
            lock_attempt_timeout: Some(ATTEMPT),
            ..LockOptions::default()
        };
        let asked = Instant::now();
        let lease = match client.lock_with(key, &options) {
            Ok(lease) => lease,
            Err(Error::NotGranted {
                reason: Refusal::Timeout | Refusal::AlreadyHolder,
                ..
            }) => continue,
            Err(_) => {
                // Its tries are used up.
                trial.errors.fetch_add(1, SeqCst);
                thread::park_timeout(ms(20));
                continue;
            }
        };
        let heard = Instant::now();
        let mut told = Told {
            key,
            client: client.name().into(),
            fence: lease.fence,
            asked,
            heard,
            until: heard + lease.remaining(),
        };
        thread::park_timeout(ms(dice.below(300)));
        let verified = client.verify_fenced(key, lease.fence);
        if matches!(verified, Ok(false)) && lease.remaining() > Duration::ZERO {
            trial.complain(format!("not verified: {told:?}"));
        }
        trial.verified.fetch_add(1, SeqCst);
        told.until = told.until.min(Instant::now());
        trial.told.lock().unwrap().push(told.clone());
        match client.release(&lease) {
            Ok(true) => trial.unlocked.lock().unwrap().push(trial.grant(&told)),
            Ok(false) if lease.remaining() > Duration::ZERO => {
                trial.complain(format!("not released: {told:?}"));
            }
            Ok(false) | Err(_) => {}
        }
    }
}

/// The faults so far.
#[derive(Debug, Default)]
struct Disturbed {
    kills: u32,
    stops: u32,
    cuts: u32,
    /// How often etcd had no quorum.
    standstills: u32,
}

impl Disturbed {
    /// Makes a fault at one of the six processes, or at two etcds, and ends it. Returns when a server leads.
    fn disturb(&mut self, servers: &mut LockServers, dice: &mut Dice) {
        let pause = ms(100 + dice.below(3000));
        let leader = servers.leader();
        let victim = dice.below(3) as usize;
        match dice.below(10) {
            // A fault at a server, mostly at the leader.
            kind @ 0..7 => {
                let victim = leader.filter(|_| dice.below(3) > 0).unwrap_or(victim);
                let server = &mut servers.servers[victim];
                match kind {
                    0..3 => {
                        server.kill();
                        thread::park_timeout(pause.min(ms(dice.below(3000))));
                        server.start();
                        self.kills += 1;
                    }
                    3..5 => {
                        server.process().stop();
                        thread::park_timeout(pause);
                        server.process().go_on();
                        self.stops += 1;
                    }
                    _ => {
                        server.proxy.cut_off();
                        thread::park_timeout(pause);
                        server.proxy.mend();
                        self.cuts += 1;
                    }
                }
            }
            7 => {
                servers.etcds.process(victim).kill();
                thread::park_timeout(pause);
                servers.etcds.restart(victim);
                self.kills += 1;
            }
            8 => {
                servers.etcds.process(victim).stop();
                thread::park_timeout(pause);
                servers.etcds.process(victim).go_on();
                self.stops += 1;
            }
            _ => {
                let two = [victim, (victim + 1) % 3];
                for etcd in two {
                    servers.etcds.process(etcd).stop();
                }
                thread::park_timeout(pause);
                for etcd in two {
                    servers.etcds.process(etcd).go_on();
                }
                self.standstills += 1;
            }
        }
        until("all etcds answer", || servers.etcds.are_ready());
        servers.until_led();
    }
}

/// The longest time that a key was free while its next holder waited.
fn longest_wait(told: &[Told]) -> Duration {
    let mut longest = Duration::ZERO;
    for key in KEYS {
        let mut grants: Vec<&Told> = told.iter().filter(|told| told.key == key).collect();
        grants.sort_by_key(|told| told.fence);
        for pair in grants.windows(2) {
            let free = pair[0].until.max(pair[1].asked);
            longest = longest.max(pair[1].heard.saturating_duration_since(free));
        }
    }
    longest
}

#[test]
fn killed_suspended_and_isolated_servers_and_etcds_grant_nothing_twice_and_lose_nothing() {
    let Some(mut servers) = LockServers::start(3, Etcds::three()) else {
        return;
    };
    let seconds = std::env::var("LOCK_SERVER_CLUSTER_TRIAL_SECONDS");
    let seconds = seconds.map_or(8, |seconds| seconds.parse().expect("a number"));
    let trial = Trial {
        addresses: servers.addresses(),
        is_over: AtomicBool::new(false),
        told: Mutex::default(),
        unlocked: Mutex::default(),
        wrong: Mutex::default(),
        verified: AtomicU64::new(0),
        errors: AtomicU64::new(0),
    };
    let client = Client::connect(&servers.list()).expect("a server leads");
    let mut disturbed = Disturbed::default();
    thread::scope(|scope| {
        let trial = &trial;
        for number in 0..OWN_CLIENTS {
            let asker = Asker {
                trial,
                name: format!("own{number}"),
                dice: Dice::of(number),
                at: trial.addresses[number as usize % 3],
            };
            scope.spawn(move || asker.run());
        }
        for number in 0..CLIENTS {
            let client = client.named(&format!("client{number}"));
            scope.spawn(move || run_client(trial, &client, Dice::of(100 + number)));
        }
        let _over = Over(trial);
        let mut dice = Dice::of(42);
        let ends = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < ends {
            thread::park_timeout(ms(200 + dice.below(1500)));
            disturbed.disturb(&mut servers, &mut dice);
        }
        // A pause without faults, so that the last leader grants something, too.
        thread::park_timeout(ms(500));
    });
    no_key_is_stuck(&servers);
    let told = trial.told.into_inner().unwrap();
    let mut wrong = trial.wrong.into_inner().unwrap();
    wrong.extend(judge(&told));
    let grants: Vec<Grant> = told
        .iter()
        .map(|told| Grant {
            lock: told.key.into(),
            requester: told.client.clone(),
            fence: told.fence,
        })
        .collect();
    let history = read(&servers.etcds.ready_api(), PREFIX).expect("etcd has all of it");
    let unlocked = trial.unlocked.into_inner().unwrap();
    let found = examine(&history, &grants, &unlocked);
    println!(
        "{} grants, {} times verified or renewed, {} unlocked, {} errors of clients\n\
         {disturbed:?}, {} failovers, the longest wait for a free key {:?}\n\
         etcd: {} changes, {} batches, {} grants, {} ends",
        told.len(),
        trial.verified.into_inner(),
        unlocked.len(),
        trial.errors.into_inner(),
        found.leaderships.saturating_sub(1),
        longest_wait(&told),
        history.len(),
        found.batches,
        found.grants,
        found.ends,
    );
    let Examined { violations, .. } = &found;
    wrong.extend(violations.iter().cloned());
    let few: Vec<&String> = wrong.iter().take(20).collect();
    assert!(wrong.is_empty(), "{} wrong answers: {few:#?}", wrong.len());
    for key in KEYS {
        let grants = told.iter().filter(|told| told.key == key).count();
        assert!(grants > 3, "{key}: {grants} grants");
    }
}

/// Checks that each key can be locked once the remaining leases have ended.
fn no_key_is_stuck(servers: &LockServers) {
    let leader = &servers.servers[servers.until_led()];
    for key in KEYS {
        let path = key.replace('/', "%2F");
        until("the key is free", || {
            let lock = format!("/LOCK/{path}/last?lock_attempt_timeout=10&request=last.{key}");
            let lock = lock.replace("KEY/C", "KEYC");
            let answer = leader.ask(&lock);
            answer.is_ok_and(|reply| reply.header("Lock-Fence").is_some())
        });
        let unlocked = leader.ask(&format!("/UNLOCK/{path}/last"));
        assert_eq!(unlocked.expect("it leads").body, "1\n");
    }
}
