//! A server with a store that is killed repeatedly, and clients that check its answers against each other.
//!
//! Never two clients hold a key at once, and fences grow in the order of the grants; an answered grant stays valid, and
//! its UNLOCK returns `1`. It takes `LOCK_SERVER_STORE_TRIAL_SECONDS`, by default 5.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Reply, Wire, ms};
use crate::store::Place;
use crate::trial::{Dice, Told, judge};

const KEYS: [&str; 3] = ["KEYA", "KEYB", "KEYC"];
const CLIENTS: u64 = 8;

/// Ends the clients even if the trial fails.
struct Over<'a>(&'a Trial);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, SeqCst);
    }
}

struct Trial {
    port: u16,
    is_over: AtomicBool,
    told: Mutex<Vec<Told>>,
    /// Answers that violate a rule.
    wrong: Mutex<Vec<String>>,
    verified: AtomicU64,
}

impl Trial {
    /// Repeats a request until there is an answer. Returns the answer, when the request was first sent, and whether it
    /// was repeated.
    fn ask(&self, path: &str) -> Option<(Reply, Instant, bool)> {
        let mut is_again = false;
        while !self.is_over.load(SeqCst) {
            let asked = Instant::now();
            match Wire::try_ask(self.port, path) {
                // The server is ending, or does not serve yet.
                Ok(reply) if reply.status == 503 => {}
                Ok(reply) => {
                    assert_eq!(reply.status, 200, "{path}: {reply:?}");
                    return Some((reply, asked, is_again));
                }
                Err(_) => is_again = true,
            }
            thread::park_timeout(ms(2));
        }
        None
    }

    fn client(&self, client: u64) {
        let mut dice = Dice::of(client);
        for number in 0.. {
            let key = KEYS[dice.below(KEYS.len() as u64) as usize];
            let lock = format!(
                "/LOCK/{key}/client{client}?lock_timeout=0.4&lock_attempt_timeout=5&request={client}.{number}"
            );
            let first = Instant::now();
            let Some((reply, asked, _)) = self.ask(&lock) else {
                return;
            };
            let Some(fence) = reply.header("Lock-Fence") else {
                // An acquire that this client has given up may hold the key.
                continue;
            };
            let fence: u64 = fence.parse().expect("a number");
            let heard = Instant::now();
            let mut until = asked + reply.expires_in();
            let mut told = Told {
                key,
                client: client.to_string(),
                fence,
                asked: first,
                heard,
                until,
            };
            for _ in 0..dice.below(4) {
                let verb = if dice.below(2) == 0 {
                    "VERIFY"
                } else {
                    "RENEW"
                };
                let question = format!("/{verb}/{key}/client{client}?fence={fence}");
                let Some((reply, asked, _)) = self.ask(&question) else {
                    break;
                };
                let now = Instant::now();
                if reply.result() != "" && now < until {
                    let wrong = format!("{question}: {reply:?} {:?} before its end", until - now);
                    self.wrong.lock().unwrap().push(wrong);
                } else if verb == "RENEW" && reply.result().is_empty() {
                    until = until.max(asked + reply.expires_in());
                }
                self.verified.fetch_add(1, SeqCst);
                thread::park_timeout(ms(dice.below(20)));
            }
            // Some leases are left to run out.
            let unlocks = dice.below(8) > 0;
            let asked = Instant::now();
            told.until = if unlocks { until.min(asked) } else { until };
            self.told.lock().unwrap().push(told);
            if unlocks {
                let question = format!("/UNLOCK/{key}/client{client}?fence={fence}");
                let Some((reply, _, is_again)) = self.ask(&question) else {
                    return;
                };
                if reply.body != "1\n" && !is_again && Instant::now() < until {
                    let wrong = format!("{question}: {reply:?}");
                    self.wrong.lock().unwrap().push(wrong);
                }
            }
        }
    }
}

#[test]
fn a_server_killed_repeatedly_grants_nothing_twice_and_keeps_each_answered_grant() {
    let seconds = std::env::var("LOCK_SERVER_STORE_TRIAL_SECONDS");
    let seconds = seconds.map_or(5, |seconds| seconds.parse().expect("a number"));
    let ends = Instant::now() + Duration::from_secs(seconds);
    let place = Place::new();
    let trial = Trial {
        port: place.port,
        is_over: AtomicBool::new(false),
        told: Mutex::default(),
        wrong: Mutex::default(),
        verified: AtomicU64::new(0),
    };
    let mut kills = 0;
    thread::scope(|scope| {
        for client in 1..=CLIENTS {
            let trial = &trial;
            scope.spawn(move || trial.client(client));
        }
        let _over = Over(&trial);
        let mut dice = Dice::of(42);
        let mut server = place.run(&[]);
        while Instant::now() < ends {
            // Mostly longer than a lease, since each restart begins the leases of clients that gave up anew.
            thread::park_timeout(ms(20 + dice.below(1500)));
            server.kill();
            kills += 1;
            server = place.run(&[]);
        }
    });
    let wrong = trial.wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{kills} kills: {wrong:#?}");
    let told = trial.told.into_inner().unwrap();
    let wrong = judge(&told);
    assert!(wrong.is_empty(), "{kills} kills: {wrong:#?}");
    for key in KEYS {
        let grants = told.iter().filter(|told| told.key == key).count();
        assert!(grants > 10, "{key}: {grants} grants");
    }
    println!(
        "{kills} kills, {} grants, {} times verified or renewed",
        told.len(),
        trial.verified.into_inner()
    );
}
