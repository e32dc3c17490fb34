//! The mutual-exclusion trial: client processes lock, hang up, die and sleep, and afterwards the server's journal shows
//! whether it ever broke a promise. Every second client uses the classic wire. The others use HTTP, as writers, readers
//! and holders of one slot of three on the same keys. Now and then an operator breaks a hold.
//!
//! A binary of its own, without a harness, because it plays the clients as children of itself, and needs the machine
//! for itself. It takes `LOCK_SERVER_TRIAL_SECONDS`, by default 5. First the examiner proves on doctored journals that
//! it reports each violation. Seen to fail: without the watch for hang-ups, some grants of each run went to dead
//! clients; with the queue served from its other end, hundreds were out of turn; with UNLOCK allowed to everyone, the
//! first holder whose lease had run out got `1`.

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::mem;
use std::net::TcpStream;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::program::program;
use common::{Reply, Wire, ms, ports, run, until};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// The environment variable for the role of this process.
const ROLE: &str = "LOCK_SERVER_TEST_ROLE";
/// The environment variable for the length of the trial, in seconds.
const SECONDS: &str = "LOCK_SERVER_TRIAL_SECONDS";
const NAME: &str = "processes_that_die_sleep_and_hang_up_take_turns_on_every_key";

const KEYS: [&str; 4] = ["KEYA", "KEYB", "KEYC", "KEYD"];
const CLIENTS: usize = 16;
/// The most holders of a key with `slots=3`.
const SEMAPHORE: usize = 3;
/// The most clients that are suspended at the same time, so that enough others contend.
const MAX_STOPPED: usize = 3;

const LEASE: Duration = ms(500);
const ATTEMPT: Duration = Duration::from_secs(2);
/// The time in which the server notices a death: a second, and some more on a busy machine.
const NOTICE: Duration = ms(1000 + 200);
/// A key is stuck if it is free for longer than this while somebody waits. Long enough for a busy machine.
const STUCK: Duration = ms(500);

fn main() {
    match std::env::var(ROLE).as_deref() {
        Ok("client") => return client(),
        Ok(role) => panic!("no role {role}"),
        Err(_) => {}
    }
    if std::env::args().any(|argument| argument == "--list") {
        return println!("{NAME}: test");
    }
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let runs = wanted.is_empty() || wanted.iter().any(|wanted| NAME.contains(wanted.as_str()));
    println!("\nrunning {} tests", usize::from(runs));
    if runs {
        the_examiner_reports_each_violation();
        let seconds = std::env::var(SECONDS).map_or(5, |seconds| {
            seconds
                .parse()
                .expect("LOCK_SERVER_TRIAL_SECONDS is a number")
        });
        processes_that_die_sleep_and_hang_up_take_turns_on_every_key(seconds);
        println!("test {NAME} ... ok");
    }
    println!(
        "\ntest result: ok. {} passed; 0 failed; 0 ignored; 0 measured; {} filtered out\n",
        usize::from(runs),
        usize::from(!runs)
    );
}

fn processes_that_die_sleep_and_hang_up_take_turns_on_every_key(seconds: u64) {
    let server = Server::start();
    let mut crowd = Crowd::start([server.port, server.classic_port]);
    crowd.disturb(Duration::from_secs(seconds));
    let Crowd {
        killed,
        stops,
        seen,
        ..
    } = crowd.dismiss();
    every_key_is_free_and_can_be_locked(server.port, &seen);
    let record = server.end();

    let seen = mem::take(&mut *seen.lock().unwrap());
    let on_servers_clock = |at: Instant| micros(at.saturating_duration_since(record.begun));
    let deaths = Deaths {
        killed: killed
            .into_iter()
            .map(|(number, at)| (number, on_servers_clock(at)))
            .collect(),
        hung_up: seen
            .hung_up
            .iter()
            .map(|(&name, &at)| (name, on_servers_clock(at)))
            .collect(),
    };
    let mut journal = record.journal;
    let found = examine(&mut journal, &deaths, &seen.grants);
    if !found.violations.is_empty() {
        let kept = std::env::temp_dir().join(format!("lock-server-trial-{}", std::process::id()));
        let lines: String = journal.iter().map(|event| format!("{event}\n")).collect();
        fs::write(&kept, lines).unwrap();
        let some: Vec<_> = found.violations.iter().take(20).collect();
        panic!(
            "{} violations, {some:#?}; the journal is {kept:?}",
            found.violations.len()
        );
    }
    let (kills, hang_ups) = (deaths.killed.len(), deaths.hung_up.len());
    println!(
        "trial of {seconds} s: {} locks, {kills} kills, {stops} stops, {hang_ups} hang-ups, \
         {} leases that ran out, {} that were broken ({} heard so), {} grants after waiting, {} beside other \
         readers, {} beside other holders of a slot; no violation",
        found.locks,
        found.ran_out,
        found.broken,
        seen.broken,
        found.waited,
        found.shared,
        found.slots
    );
    for (what, count) in [
        ("reader beside a reader", found.shared),
        ("holder of a slot beside another one", found.slots),
        ("kill", kills),
        ("stop", stops),
        ("hang-up", hang_ups),
        ("lease that ran out", found.ran_out),
        ("grant after waiting", found.waited),
        ("holder that heard that it was too late", seen.too_late),
        ("holder that heard that its lease was broken", seen.broken),
    ] {
        assert!(
            count > 0,
            "there was no {what}, so the trial proves nothing"
        );
    }
}

/// Checks that each key becomes free once the leases of the dead have run out.
fn every_key_is_free_and_can_be_locked(port: u16, seen: &Mutex<Seen>) {
    let mut wire = Wire::to_port(port);
    let deadline = Instant::now() + NOTICE + LEASE + STUCK;
    while KEYS
        .iter()
        .any(|key| wire.ask(&format!("/CHECK/{key}")).body != "0\n")
    {
        assert!(
            Instant::now() < deadline,
            "a key is held though nobody is left"
        );
        thread::sleep(ms(10));
    }
    for key in KEYS {
        let began = Instant::now();
        let reply = wire.ask(&format!("/LOCK/{key}/client-0.0"));
        assert_ne!(reply.body, "0\n", "{key}: {}", reply.result());
        assert!(
            began.elapsed() < STUCK,
            "{key} was locked after {:?}",
            began.elapsed()
        );
        seen.lock()
            .unwrap()
            .note(&format!("granted {key} client-0.0"));
        assert_eq!(wire.ask(&format!("/UNLOCK/{key}/client-0.0")).body, "1\n");
        seen.lock()
            .unwrap()
            .note(&format!("unlocked {key} client-0.0 1"));
    }
    for key in KEYS {
        assert_eq!(wire.ask(&format!("/CHECK/{key}")).body, "0\n");
    }
}

// The clients, in processes of their own.

/// A client's connection: HTTP on one connection, or the classic wire with a new one for each request.
struct Caller {
    port: u16,
    is_classic: bool,
    wire: Wire,
}

impl Caller {
    fn new(port: u16, is_classic: bool) -> Self {
        Caller {
            port,
            is_classic,
            wire: Wire::to_port(port),
        }
    }

    /// Sends a request without waiting for the reply.
    fn get(&mut self, path: &str) {
        if self.is_classic {
            self.wire = Wire::to_port(self.port);
            self.wire.send(format!("GET {path}\n\n"));
        } else {
            self.wire.get(path);
        }
    }

    /// Reads the reply. The line of the classic wire becomes the body.
    fn reply(&mut self) -> Reply {
        if self.is_classic {
            Reply {
                status: 200,
                headers: Vec::new(),
                body: self.wire.until_closed().expect("a whole answer"),
            }
        } else {
            self.wire.reply()
        }
    }

    /// The word of a LOCK that timed out.
    fn timeout(&self) -> &'static str {
        if self.is_classic { "" } else { "timeout" }
    }
}

/// Locks and unlocks until its standard input ends, and prints the answers.
///
/// Its name changes when it hangs up, so that no name is reused that the server may still know.
fn client() {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|argument| argument.parse::<u32>().unwrap());
    let ports = [(); 2].map(|()| arguments.next().unwrap() as u16);
    let number = arguments.next().unwrap();
    let is_classic = is_classic(number);
    let caller = || Caller::new(ports[usize::from(is_classic)], is_classic);
    let ended = Arc::new(AtomicBool::new(false));
    let told = ended.clone();
    thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told.store(true, SeqCst);
    });
    let mut dice = Dice::new(std::process::id());
    let mut server = caller();
    let mut life = 0;
    while !ended.load(SeqCst) {
        let name = Name {
            process: number,
            life,
        };
        // Mostly its own key. Otherwise everyone would soon wait for a key whose holder died.
        let stray = if dice.below(20) == 0 {
            dice.below(KEYS.len() as u64) as u32
        } else {
            0
        };
        // The HTTP clients use two keys, and most of them one.
        let own = if is_classic || number % 8 == 0 {
            number
        } else {
            0
        };
        let key = KEYS[(own + stray) as usize % KEYS.len()];
        let slots = match dice.below(5) {
            _ if is_classic => "",
            0 | 1 => "",
            2 | 3 => "?shared=1",
            _ => "?slots=3",
        };
        server.get(&format!("/LOCK/{key}/{name}{slots}"));
        if dice.below(15) == 0 {
            thread::sleep(ms(dice.below(10)));
            if !server.wire.has_answer() {
                if dice.below(2) == 0 {
                    server.wire.reset();
                }
                println!("hung-up {name}");
                life += 1;
                server = caller();
                continue;
            }
        }
        let reply = server.reply();
        if reply.body == "0\n" {
            assert_eq!(
                (reply.status, reply.result()),
                (200, server.timeout()),
                "{name} asked for {key}"
            );
            continue;
        }
        // Panics unless the body is a time.
        reply.expires();
        println!("granted {key} {name}");
        let past_the_lease = dice.below(400) == 0;
        let hold = if past_the_lease {
            LEASE + ms(20 + dice.below(200))
        } else {
            ms(dice.below(5))
        };
        thread::sleep(hold);
        server.get(&format!("/UNLOCK/{key}/{name}"));
        let reply = server.reply();
        let word = (reply.result() == "broken").then(|| "broken".to_string());
        let answer = reply.body;
        assert!(
            !past_the_lease || answer == "0\n",
            "{name} released {key} after {hold:?}"
        );
        println!(
            "unlocked {key} {name} {}",
            word.as_deref().unwrap_or(answer.trim_end())
        );
        thread::sleep(ms(dice.below(4)));
    }
}

/// Xorshift: reproducible random numbers from a seed.
struct Dice(u64);

impl Dice {
    fn new(seed: u32) -> Self {
        // Anything but zero.
        Dice((u64::from(seed) << 32) | 0x9e37_79b9)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// What the clients have printed.
#[derive(Default)]
struct Seen {
    /// Each name's grants in order: the key, and how the hold ended by UNLOCK's answer, if there was one.
    grants: Testimony,
    /// When each hang-up was read.
    hung_up: HashMap<Name, Instant>,
    /// How many UNLOCKs were answered `0`.
    too_late: usize,
    /// How many of them with the word for a broken hold.
    broken: usize,
}

impl Seen {
    fn note(&mut self, line: &str) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["granted", key, name] => {
                self.grants
                    .entry(name.parse().unwrap())
                    .or_default()
                    .push((key_index(key), None));
            }
            ["unlocked", key, name, answer] => {
                let last = self
                    .grants
                    .get_mut(&name.parse().unwrap())
                    .and_then(|all| all.last_mut());
                let (held, end) = last.expect("an unlock follows a grant");
                assert_eq!((*held, *end), (key_index(key), None), "{line}");
                *end = Some(match answer {
                    "1" => End::Released,
                    "broken" => End::Broken,
                    _ => End::RanOut,
                });
                self.too_late += usize::from(answer == "0");
                self.broken += usize::from(answer == "broken");
            }
            ["hung-up", name] => {
                self.hung_up.insert(name.parse().unwrap(), Instant::now());
            }
            _ => panic!("a client printed {line:?}"),
        }
    }
}

/// One client's process. Dropping it kills the process.
struct Runner {
    number: u32,
    process: Child,
    reader: Option<JoinHandle<()>>,
    /// When it goes on, if it is suspended.
    resumes: Option<Instant>,
}

impl Runner {
    fn start(number: u32, ports: [u16; 2], seen: Arc<Mutex<Seen>>) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(ports.map(|port| port.to_string()))
            .arg(number.to_string())
            .env(ROLE, "client")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output: ChildStdout = process.stdout.take().expect("it is piped");
        let reader = thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                seen.lock().unwrap().note(&line.unwrap());
            }
        });
        Runner {
            number,
            process,
            reader: Some(reader),
            resumes: None,
        }
    }

    fn signal(&self, signal: Signal) {
        signal::kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// Reads the rest of its output.
    fn join(&mut self) {
        self.reader
            .take()
            .expect("joined once")
            .join()
            .expect("the client's output is well-formed");
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The running clients, and what was done to them.
struct Crowd {
    /// The ports for HTTP and for the classic wire.
    ports: [u16; 2],
    dice: Dice,
    /// The operator's connection, for BREAK.
    operator: Wire,
    runners: Vec<Runner>,
    next: u32,
    seen: Arc<Mutex<Seen>>,
    killed: HashMap<u32, Instant>,
    stops: usize,
}

impl Crowd {
    fn start(ports: [u16; 2]) -> Self {
        let mut crowd = Crowd {
            ports,
            dice: Dice::new(std::process::id()),
            operator: Wire::to_port(ports[0]),
            runners: Vec::new(),
            next: 1,
            seen: Arc::default(),
            killed: HashMap::new(),
            stops: 0,
        };
        (0..CLIENTS).for_each(|_| crowd.add());
        crowd
    }

    /// Starts another client, with a new name.
    fn add(&mut self) {
        self.runners
            .push(Runner::start(self.next, self.ports, self.seen.clone()));
        self.next += 1;
    }

    fn disturb(&mut self, duration: Duration) {
        let deadline = Instant::now() + duration;
        while Instant::now() < deadline {
            thread::sleep(ms(self.dice.below(200)));
            self.resume(|due| due <= Instant::now());
            let victim = self.dice.below(CLIENTS as u64) as usize;
            match self.dice.below(4) {
                0 => self.kill(victim),
                1 => self.stop(victim),
                _ => self.break_a_hold(),
            }
        }
    }

    fn kill(&mut self, victim: usize) {
        let mut runner = self.runners.swap_remove(victim);
        assert!(
            !runner.has_ended(),
            "client {} ended by itself",
            runner.number
        );
        runner.signal(Signal::SIGKILL);
        self.killed.insert(runner.number, Instant::now());
        runner.process.wait().unwrap();
        runner.join();
        self.add();
    }

    /// Breaks the hold of a present holder, and tries again if that hold has ended meanwhile. Mostly a young hold of an
    /// HTTP client: older holds mostly belong to dead clients, and the classic wire has no word for a broken hold.
    fn break_a_hold(&mut self) {
        for _ in 0..20 {
            let key = KEYS[self.dice.below(KEYS.len() as u64) as usize];
            let shown = self.operator.ask(&format!("/locks/{key}")).body;
            let is_any = self.dice.below(8) == 0;
            let people = shown.split("\"name\":\"client-").skip(1);
            // A waiter has no fence.
            let fences = people.filter_map(|one| {
                let process = one.split('.').next()?.parse().ok()?;
                let would_hear = one.contains("\"held_seconds\":0.0") && !is_classic(process);
                let (_, fence) = one.split_once("\"fence\":")?;
                (is_any || would_hear).then(|| fence.split(',').next())?
            });
            let fences: Vec<&str> = fences.collect();
            if fences.is_empty() {
                continue;
            }
            let fence = fences[self.dice.below(fences.len() as u64) as usize];
            let path = format!("/BREAK/{key}?fence={fence}&by=trial");
            let head = "Host: localhost\r\nContent-Length: 0";
            self.operator
                .send(format!("POST {path} HTTP/1.1\r\n{head}\r\n\r\n"));
            if self.operator.reply().body == "1\n" {
                return;
            }
        }
    }

    /// Suspends a client for longer than a lease, if enough others run.
    fn stop(&mut self, victim: usize) {
        let stopped = self
            .runners
            .iter()
            .filter(|runner| runner.resumes.is_some())
            .count();
        let runner = &mut self.runners[victim];
        if stopped < MAX_STOPPED && runner.resumes.is_none() {
            runner.signal(Signal::SIGSTOP);
            runner.resumes = Some(Instant::now() + LEASE + ms(200 + self.dice.below(500)));
            self.stops += 1;
        }
    }

    fn resume(&mut self, is_due: impl Fn(Instant) -> bool) {
        for runner in &mut self.runners {
            if runner.resumes.is_some_and(&is_due) {
                runner.resumes = None;
                runner.signal(Signal::SIGCONT);
            }
        }
    }

    /// Lets all clients finish their rounds.
    fn dismiss(mut self) -> Self {
        self.resume(|_| true);
        for runner in &mut self.runners {
            drop(runner.process.stdin.take());
        }
        for mut runner in mem::take(&mut self.runners) {
            until("a client ends", || runner.has_ended());
            let status = runner.process.wait().unwrap();
            assert!(
                status.success(),
                "client {} ended with {status}",
                runner.number
            );
            runner.join();
        }
        self
    }
}

// The server, and the recorder of its journal.

/// The real command. Dropping it kills the process.
struct Server {
    process: Child,
    port: u16,
    classic_port: u16,
    recorder: Option<JoinHandle<Record>>,
}

struct Record {
    journal: Vec<Event>,
    /// When the server's clock was zero. A line is read after it is written, so the line with the shortest delay gives
    /// the best estimate.
    begun: Instant,
    /// All other lines of the log.
    log: String,
}

impl Server {
    fn start() -> Self {
        let [lease, attempt] = [LEASE, ATTEMPT].map(|time| time.as_secs_f64().to_string());
        let mut command = program(["run", "--port", "0", "--classic-port", "0", "--allow-break"]);
        command
            .args(["--lock-timeout", &lease, "--lock-attempt-timeout", &attempt])
            .env("RUST_LOG", "info,lock_server::journal=trace,tiny_http=off");
        let (process, first, stderr) = run(&mut command);
        let (port, classic_port) = ports(&first);
        let recorder = Some(thread::spawn(move || record(stderr)));
        until("it answers", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Server {
            process,
            port,
            classic_port: classic_port.expect("it names the classic port"),
            recorder,
        }
    }

    fn end(mut self) -> Record {
        signal::kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM).unwrap();
        until("the server ends", || {
            self.process.try_wait().unwrap().is_some()
        });
        assert_eq!(self.process.wait().unwrap().code(), Some(0));
        let recorder = self.recorder.take().expect("it ends once");
        let record = recorder.join().expect("the log is readable");
        assert!(!record.log.contains("panicked"), "{}", record.log);
        record
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn record(stderr: BufReader<ChildStderr>) -> Record {
    let mut record = Record {
        journal: Vec::new(),
        begun: Instant::now(),
        log: String::new(),
    };
    for line in stderr.lines() {
        let line = line.unwrap();
        match line.split_once(" TRACE ") {
            Some((_, entry)) => {
                let event = Event::parse(entry).unwrap_or_else(|| panic!("unknown entry {line:?}"));
                if let Some(begun) = Instant::now().checked_sub(Duration::from_micros(event.at)) {
                    record.begun = record.begun.min(begun);
                }
                record.journal.push(event);
            }
            None => record.log += &(line + "\n"),
        }
    }
    record
}

/// The name of a client: its process's number, and how often it has hung up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name {
    process: u32,
    life: u32,
}

impl FromStr for Name {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (process, life) = text
            .strip_prefix("client-")
            .and_then(|rest| rest.split_once('.'))
            .ok_or(())?;
        Ok(Name {
            process: process.parse().or(Err(()))?,
            life: life.parse().or(Err(()))?,
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "client-{}.{}", self.process, self.life)
    }
}

/// A line of the journal.
#[derive(Clone, Copy, Debug)]
struct Event {
    number: u64,
    /// In microseconds of the server's clock.
    at: u64,
    key: usize,
    name: Name,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Granted {
        fence: u64,
        lease: u64,
        slots: usize,
    },
    Renewed {
        fence: u64,
        lease: u64,
    },
    Queued {
        ticket: u64,
        slots: usize,
    },
    TakenOver {
        ticket: u64,
        slots: usize,
    },
    Repeated {
        fence: u64,
    },
    /// It left its queue for any reason, also to a reserved place.
    Left {
        ticket: u64,
    },
    Released,
    Expired {
        fence: u64,
    },
    Broken {
        fence: u64,
    },
}

impl Event {
    fn parse(entry: &str) -> Option<Self> {
        let words: Vec<&str> = entry.split(' ').collect();
        let [number, "at", at, verb, key, name, rest @ ..] = &words[..] else {
            return None;
        };
        // Printed if there is more than one slot.
        let (rest, slots) = match rest {
            [rest @ .., "slots", slots] => (rest, slots.parse().ok()?),
            rest => (rest, 1),
        };
        let what = match (*verb, rest) {
            ("granted", ["fence", fence, "for", lease]) => What::Granted {
                fence: fence.parse().ok()?,
                lease: lease.parse().ok()?,
                slots,
            },
            ("queued", ["ticket", ticket]) => What::Queued {
                ticket: ticket.parse().ok()?,
                slots,
            },
            ("renewed", ["fence", fence, "for", lease]) => What::Renewed {
                fence: fence.parse().ok()?,
                lease: lease.parse().ok()?,
            },
            ("repeated", ["fence", fence, "for", _]) => What::Repeated {
                fence: fence.parse().ok()?,
            },
            ("taken-over", ["ticket", ticket]) => What::TakenOver {
                ticket: ticket.parse().ok()?,
                slots,
            },
            ("left" | "reserved", ["ticket", ticket]) => What::Left {
                ticket: ticket.parse().ok()?,
            },
            ("released", []) => What::Released,
            ("broken", ["fence", fence]) => What::Broken {
                fence: fence.parse().ok()?,
            },
            ("expired", ["fence", fence]) => What::Expired {
                fence: fence.parse().ok()?,
            },
            _ => return None,
        };
        Some(Event {
            number: number.parse().ok()?,
            at: at.parse().ok()?,
            key: KEYS
                .iter()
                .position(|known| *known == key.trim_matches('"'))?,
            name: name.trim_matches('"').parse().ok()?,
            what,
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event {
            number,
            at,
            key,
            name,
            what,
        } = self;
        write!(out, "{number} at {at} {} {name} {what:?}", KEYS[*key])
    }
}

fn key_index(key: &str) -> usize {
    KEYS.iter()
        .position(|known| *known == key)
        .expect("one of the keys")
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

// The examiner: checks the promises with the journal and the clients' output.

/// When each process or name died, on the server's clock. A killed process ends all its names.
#[derive(Default)]
struct Deaths {
    killed: HashMap<u32, u64>,
    hung_up: HashMap<Name, u64>,
}

impl Deaths {
    fn of(&self, name: Name) -> Option<u64> {
        let killed = self.killed.get(&name.process);
        killed
            .into_iter()
            .chain(self.hung_up.get(&name))
            .min()
            .copied()
    }
}

#[derive(Default)]
struct Found {
    locks: usize,
    ran_out: usize,
    broken: usize,
    waited: usize,
    /// The number of grants to readers beside readers.
    shared: usize,
    slots: usize,
    violations: Vec<String>,
}

type Testimony = HashMap<Name, Vec<(usize, Option<End>)>>;

/// How a hold ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Released,
    Broken,
    RanOut,
}

impl End {
    /// The end as a client with this name can see it. The classic wire has only `0`.
    fn as_heard_by(self, name: &Name) -> End {
        match self {
            End::Broken if is_classic(name.process) => End::RanOut,
            end => end,
        }
    }
}

fn is_classic(process: u32) -> bool {
    process % 2 == 1
}

/// Checks the journal in the order of the decisions.
fn examine(journal: &mut [Event], deaths: &Deaths, testimony: &Testimony) -> Found {
    journal.sort_by_key(|event| event.number);
    let mut examiner = Examiner {
        deaths,
        keys: Default::default(),
        grants: HashMap::new(),
        fence: 0,
        found: Found::default(),
    };
    let mut before = 0;
    for (expected, event) in (1..).zip(&*journal) {
        if event.number != expected || event.at < before {
            examiner.complain(
                event,
                "has an unexpected number: the journal is not complete",
            );
            break;
        }
        before = event.at;
        examiner.nobody_waits_for_nothing(event);
        match event.what {
            What::Granted {
                fence,
                lease,
                slots,
            } => examiner.granted(event, fence, lease, slots),
            What::Queued { ticket, slots } => {
                let waiter = Waiter {
                    name: event.name,
                    since: event.at,
                    slots,
                };
                examiner.keys[event.key].queue.insert(ticket, waiter);
            }
            What::Renewed { fence, lease } => examiner.renewed(event, fence, lease),
            What::Repeated { fence } => examiner.repeated(event, fence),
            What::TakenOver { ticket, slots } => examiner.taken_over(event, ticket, slots),
            What::Left { ticket } => examiner.left(event, ticket),
            What::Released => examiner.released(event),
            What::Expired { fence } => examiner.expired(event, fence),
            What::Broken { fence } => examiner.broken(event, fence),
        }
        examiner.keys[event.key].note_room(event.at);
    }
    examiner.nobody_is_left();
    examiner.compare(testimony);
    examiner.found
}

struct Examiner<'a> {
    deaths: &'a Deaths,
    keys: [Key; KEYS.len()],
    /// Each name's grants in order: the key, and how the hold ended.
    grants: HashMap<Name, Vec<(usize, End)>>,
    fence: u64,
    found: Found,
}

#[derive(Default)]
struct Key {
    /// The holds that have not ended so far.
    holds: Vec<Lease>,
    /// When the latest ended hold ended.
    ended: u64,
    /// The waiters, by ticket.
    queue: BTreeMap<u64, Waiter>,
    /// Since when there has been room for the head of the queue.
    room_since: Option<u64>,
}

#[derive(Clone, Copy)]
struct Lease {
    name: Name,
    fence: u64,
    /// When the lease runs out.
    end: u64,
    slots: usize,
}

#[derive(Clone, Copy)]
struct Waiter {
    name: Name,
    since: u64,
    slots: usize,
}

impl Key {
    /// Removes the leases that have run out by the instant `at`.
    fn expire(&mut self, at: u64) {
        for lease in self.holds.extract_if(.., |lease| lease.end <= at) {
            self.ended = self.ended.max(lease.end);
        }
    }

    /// The earliest deadline that entitles a waiter to the key at this instant: the end of the last lease if nobody
    /// holds the key. With other holders, the departure of the waiter before it may have made the room; then it had to
    /// wait until now.
    fn entitled(&self, at: u64) -> u64 {
        match self.holds.is_empty() {
            true => self.ended,
            false => at,
        }
    }

    fn note_room(&mut self, at: u64) {
        let admits = |waiter: &Waiter| {
            let least = self.holds.iter().map(|lease| lease.slots).min();
            self.holds.len() < least.unwrap_or(usize::MAX).min(waiter.slots)
        };
        let patient = |waiter: &&Waiter| was_patient_until(at, waiter.since) == Some(true);
        let head = self.queue.values().find(patient);
        self.room_since = match head.is_some_and(admits) {
            true => self.room_since.or(Some(at)),
            false => None,
        };
    }
}

/// Whether a waiter since `since` still waited when the lease ended. `None` if it can't be told, because instants are
/// truncated to microseconds.
fn was_patient_until(end: u64, since: u64) -> Option<bool> {
    let patience = since + micros(ATTEMPT);
    (patience.abs_diff(end) > 1).then_some(patience > end)
}

impl Examiner<'_> {
    fn complain(&mut self, event: &Event, complaint: &str) {
        self.found.violations.push(format!("{event}: {complaint}"));
    }

    /// Checks that nobody waits although there is room.
    fn nobody_waits_for_nothing(&mut self, event: &Event) {
        let since = self.keys[event.key].room_since;
        if since.is_some_and(|since| event.at > since + micros(STUCK)) {
            self.complain(
                event,
                "somebody waited although there was room: it was stuck",
            );
        }
    }

    fn granted(&mut self, event: &Event, fence: u64, lease: u64, slots: usize) {
        self.found.locks += 1;
        let &Event { at, key, name, .. } = event;
        self.keys[key].expire(at);
        let holds = &self.keys[key].holds;
        let least = holds.iter().map(|hold| hold.slots).chain([slots]).min();
        let is_crowded = holds.len() + 1 > least.expect("one at least");
        let beside = |slots| holds.iter().all(|hold| hold.slots == slots) && !holds.is_empty();
        self.found.shared += usize::from(slots > SEMAPHORE && beside(slots));
        self.found.slots += usize::from(slots == SEMAPHORE && beside(slots));
        if holds.iter().any(|hold| hold.name == name) {
            self.complain(event, "two live leases of one name");
        }
        if is_crowded {
            self.complain(
                event,
                "two live leases on one key, or more than one of them allows",
            );
        }
        if fence <= mem::replace(&mut self.fence, fence) {
            self.complain(event, "the fencing token does not grow");
        }
        if self
            .deaths
            .of(name)
            .is_some_and(|death| at > death + micros(NOTICE))
        {
            self.complain(event, "granted to the dead");
        }
        self.take_turn(event);
        self.keys[key].holds.push(Lease {
            name,
            fence,
            end: at + lease,
            slots,
        });
        self.grants
            .entry(name)
            .or_default()
            .push((key, End::RanOut));
    }

    /// Checks that the key goes to the first waiter that still waited, and to a newcomer only without such a waiter.
    fn take_turn(&mut self, event: &Event) {
        let key = &mut self.keys[event.key];
        let (end, is_free) = (key.entitled(event.at), key.holds.is_empty());
        while let Some((ticket, first)) = key.queue.pop_first() {
            match was_patient_until(end, first.since) {
                _ if first.name == event.name => {
                    self.found.waited += 1;
                    if is_free && event.at > end + micros(STUCK) {
                        self.complain(event, "the key was stuck after the earlier lease");
                    }
                    return;
                }
                Some(true) => {
                    key.queue.retain(|_, waiter| waiter.name != event.name);
                    key.queue.insert(ticket, first);
                    let first = first.name;
                    return self
                        .complain(event, &format!("granted out of turn: {first} was first"));
                }
                Some(false) | None => {}
            }
        }
    }

    /// The hold of this name, with this fence if one is given, that is valid at this instant.
    fn live(&mut self, event: &Event, fence: Option<u64>) -> Option<&mut Lease> {
        let mut holds = self.keys[event.key].holds.iter_mut();
        holds.find(|lease| {
            lease.name == event.name
                && fence.is_none_or(|fence| fence == lease.fence)
                && event.at <= lease.end
        })
    }

    /// A renewal: checks that the grant was still live.
    fn renewed(&mut self, event: &Event, fence: u64, length: u64) {
        match self.live(event, Some(fence)) {
            Some(lease) => lease.end = event.at + length,
            None => self.complain(event, "renewed by a name that does not hold it"),
        }
    }

    /// A holder repeated its LOCK, and got its grant again.
    fn repeated(&mut self, event: &Event, fence: u64) {
        if self.live(event, Some(fence)).is_none() {
            self.complain(event, "got a grant that is not live");
        }
    }

    /// A waiter repeated its LOCK, and its time-out begins anew.
    fn taken_over(&mut self, event: &Event, ticket: u64, slots: usize) {
        match self.keys[event.key].queue.get_mut(&ticket) {
            Some(waiter) if waiter.name == event.name => {
                (waiter.since, waiter.slots) = (event.at, slots);
            }
            _ => self.complain(event, "took over a place that was not its own"),
        }
    }

    fn left(&mut self, event: &Event, ticket: u64) {
        let key = &mut self.keys[event.key];
        key.expire(event.at);
        let (end, is_free) = (key.entitled(event.at), key.holds.is_empty());
        match key.queue.remove(&ticket) {
            None => self.complain(event, "left a queue in which it was not"),
            Some(Waiter { since, .. }) => {
                let passed_over = is_free
                    && event.at > end + micros(STUCK)
                    && was_patient_until(end, since) == Some(true);
                if passed_over {
                    self.complain(event, "left, although the key was free: it was stuck");
                }
            }
        }
    }

    fn released(&mut self, event: &Event) {
        if self.live(event, None).is_none() {
            return self.complain(event, "released by a name that does not hold it");
        }
        self.end(event, End::Released);
    }

    fn broken(&mut self, event: &Event, fence: u64) {
        if self.live(event, Some(fence)).is_none() {
            return self.complain(event, "broken, but was not held");
        }
        self.end(event, End::Broken);
    }

    fn end(&mut self, event: &Event, end: End) {
        let key = &mut self.keys[event.key];
        key.holds.retain(|lease| lease.name != event.name);
        key.ended = event.at;
        let granted = self
            .grants
            .get_mut(&event.name)
            .and_then(|all| all.last_mut());
        granted.expect("the holder was granted it").1 = end;
    }

    /// Checks that a lease that was neither released nor broken did not end early.
    fn expired(&mut self, event: &Event, fence: u64) {
        let key = &mut self.keys[event.key];
        let mut over = key.holds.extract_if(.., |lease| {
            lease.name == event.name && lease.fence == fence && event.at >= lease.end
        });
        match over.next() {
            Some(lease) => {
                drop(over);
                key.ended = key.ended.max(lease.end);
            }
            None => {
                drop(over);
                self.complain(event, "expired, but was not held until now");
            }
        }
    }

    fn nobody_is_left(&mut self) {
        let ended = |end| {
            let grants = self.grants.values().flatten();
            grants.filter(|(_, ended)| *ended == end).count()
        };
        (self.found.ran_out, self.found.broken) = (ended(End::RanOut), ended(End::Broken));
        for (name, key) in KEYS.iter().zip(&self.keys) {
            let last = key.holds.iter().map(|lease| lease.end).max();
            let end = last.unwrap_or(key.ended);
            let (key, queue) = (name, &key.queue);
            for Waiter { name, since, .. } in queue.values() {
                if was_patient_until(end, *since) == Some(true) {
                    self.found
                        .violations
                        .push(format!("{name} still waits for {key} at the end"));
                }
            }
        }
    }

    /// Checks that the clients got the decided answers. A dead one may have missed the last of them.
    fn compare(&mut self, testimony: &Testimony) {
        let names: HashSet<&Name> = self.grants.keys().chain(testimony.keys()).collect();
        for name in names {
            let decided = self.grants.get(name).map_or(&[][..], |grants| grants);
            let heard = testimony.get(name).map_or(&[][..], |grants| grants);
            let missed = decided.len() as i64 - heard.len() as i64;
            let agree = decided
                .iter()
                .zip(heard)
                .all(|((key, end), (heard_key, answer))| {
                    key == heard_key && answer.is_none_or(|answer| answer == end.as_heard_by(name))
                });
            let may_miss = i64::from(self.deaths.of(*name).is_some());
            if !agree || !(0..=may_miss).contains(&missed) {
                let complaint = format!(
                    "{name} got other answers than were decided: {heard:?} instead of {decided:?}"
                );
                self.found.violations.push(complaint);
            }
        }
    }
}

// Tests of the examiner.

fn the_examiner_reports_each_violation() {
    let nothing = Testimony::new();
    let sound = [
        "at 1000 granted KEYA client-1.0 fence 1 for 500000",
        "at 2000 queued KEYA client-2.0 ticket 1",
        "at 3000 queued KEYA client-3.0 ticket 2",
        "at 4000 left KEYA client-2.0 ticket 1",
        "at 5000 granted KEYB client-2.0 fence 2 for 500000",
        "at 501000 granted KEYA client-3.0 fence 3 for 500000",
        "at 501500 released KEYA client-3.0",
        "at 501500 granted KEYA client-1.0 fence 4 for 500000",
        "at 502000 renewed KEYA client-1.0 fence 4 for 500000",
        "at 600000 queued KEYA client-2.0 ticket 3",
        "at 700000 queued KEYA client-3.0 ticket 4",
        "at 800000 reserved KEYA client-2.0 ticket 3",
        "at 900000 queued KEYA client-2.0 ticket 3",
        "at 950000 taken-over KEYA client-2.0 ticket 3",
        "at 1002000 granted KEYA client-2.0 fence 5 for 500000",
        "at 1003000 left KEYA client-3.0 ticket 4",
    ];
    let decided = heard(&[
        "granted KEYA client-1.0",
        "unlocked KEYA client-1.0 0",
        "granted KEYB client-2.0",
        "granted KEYA client-3.0",
        "unlocked KEYA client-3.0 1",
        "granted KEYA client-1.0",
        "granted KEYA client-2.0",
    ]);
    let nobody = Deaths::default();
    let found = examine(&mut doctored(&sound), &nobody, &decided);
    assert_eq!((found.locks, found.ran_out, found.waited), (5, 4, 2));
    assert_eq!(found.violations, [""; 0]);

    let first_lease = "at 0 granted KEYA client-1.0 fence 1 for 500000";
    let patient = "at 1 queued KEYA client-2.0 ticket 1";
    let rules: &[(&str, &[&str])] = &[
        (
            "two live leases",
            &[
                first_lease,
                "at 499999 granted KEYA client-2.0 fence 2 for 500000",
            ],
        ),
        (
            "does not grow",
            &[
                first_lease,
                "at 500000 granted KEYA client-2.0 fence 1 for 500000",
            ],
        ),
        (
            "does not hold it",
            &[first_lease, "at 9 released KEYA client-2.0"],
        ),
        (
            "does not hold it",
            &[first_lease, "at 500001 released KEYA client-1.0"],
        ),
        (
            "does not hold it",
            &[
                first_lease,
                "at 9 released KEYA client-1.0",
                "at 9 released KEYA client-1.0",
            ],
        ),
        (
            "out of turn",
            &[
                first_lease,
                patient,
                "at 2 queued KEYA client-3.0 ticket 2",
                "at 9 released KEYA client-1.0",
                "at 9 granted KEYA client-3.0 fence 2 for 500000",
            ],
        ),
        (
            "out of turn",
            &[
                first_lease,
                patient,
                "at 9 released KEYA client-1.0",
                "at 9 granted KEYA client-1.0 fence 2 for 500000",
            ],
        ),
        (
            "two live leases",
            &[
                first_lease,
                "at 9 renewed KEYA client-1.0 fence 1 for 500000",
                "at 500001 granted KEYA client-2.0 fence 2 for 500000",
            ],
        ),
        (
            "renewed by a name",
            &[
                first_lease,
                "at 9 renewed KEYA client-2.0 fence 1 for 500000",
            ],
        ),
        (
            "renewed by a name",
            &[
                first_lease,
                "at 9 renewed KEYA client-1.0 fence 2 for 500000",
            ],
        ),
        (
            "renewed by a name",
            &[
                first_lease,
                "at 500001 renewed KEYA client-1.0 fence 1 for 500000",
            ],
        ),
        (
            "not its own",
            &[
                first_lease,
                patient,
                "at 9 taken-over KEYA client-3.0 ticket 1",
            ],
        ),
        (
            "stuck after",
            &[
                first_lease,
                patient,
                "at 1100000 granted KEYA client-2.0 fence 2 for 500000",
            ],
        ),
        (
            "it was stuck",
            &[
                first_lease,
                patient,
                "at 2000001 left KEYA client-2.0 ticket 1",
            ],
        ),
        (
            "in which it was not",
            &[first_lease, "at 9 left KEYA client-2.0 ticket 1"],
        ),
        ("still waits", &[first_lease, patient]),
        (
            "was not held",
            &[first_lease, "at 9 broken KEYA client-1.0 fence 2"],
        ),
        (
            "was not held",
            &[first_lease, "at 500001 broken KEYA client-1.0 fence 1"],
        ),
        (
            "not complete",
            &[first_lease, "at 9 released KEYA client-1.0", "skip"],
        ),
    ];
    for (rule, lines) in rules {
        let found = examine(&mut doctored(lines), &nobody, &nothing);
        assert!(
            found.violations.iter().any(|said| said.contains(rule)),
            "{rule}: {:?}",
            found.violations
        );
    }

    the_examiner_reports_each_violation_with_several_holders();

    // A timed-out waiter is passed over without an entry.
    let overdue = [
        "at 0 granted KEYA client-1.0 fence 1 for 2500000",
        patient,
        "at 700000 queued KEYA client-3.0 ticket 2",
        "at 2500000 granted KEYA client-3.0 fence 2 for 500000",
    ];
    assert!(!complains_of(
        &examine(&mut doctored(&overdue), &nobody, &nothing),
        "out of turn"
    ));

    let deaths = [
        Deaths {
            killed: [(3, 0)].into(),
            hung_up: HashMap::new(),
        },
        Deaths {
            killed: HashMap::new(),
            hung_up: [("client-3.0".parse().unwrap(), 0)].into(),
        },
    ];
    let late = [
        "at 0 granted KEYA client-1.0 fence 1 for 1500000",
        "at 1 queued KEYA client-3.0 ticket 1",
        "at 1500000 granted KEYA client-3.0 fence 2 for 500000",
    ];
    for deaths in &deaths {
        assert!(complains_of(
            &examine(&mut doctored(&late), deaths, &nothing),
            "to the dead"
        ));
    }

    // A client that learns that its lease ran out, although its hold was broken: that is right only on the classic
    // wire.
    let broken = [
        "at 0 granted KEYA client-2.0 fence 1 for 500000",
        "at 9 broken KEYA client-2.0 fence 1",
        "at 9 granted KEYA client-1.0 fence 2 for 500000",
        "at 19 broken KEYA client-1.0 fence 2",
    ];
    for (answers, is_true) in [
        (["broken", "0"], true),
        (["0", "0"], false),
        (["1", "0"], false),
    ] {
        let heard = heard(&[
            "granted KEYA client-2.0",
            &format!("unlocked KEYA client-2.0 {}", answers[0]),
            "granted KEYA client-1.0",
            &format!("unlocked KEYA client-1.0 {}", answers[1]),
        ]);
        let found = examine(&mut doctored(&broken), &nobody, &heard);
        assert_eq!(
            found.violations.is_empty(),
            is_true,
            "{:?}",
            found.violations
        );
        assert_eq!((found.broken, found.ran_out), (2, 0));
    }

    for lie in [
        heard(&["granted KEYB client-1.0"]),
        heard(&["granted KEYA client-1.0", "unlocked KEYA client-1.0 1"]),
        heard(&["granted KEYA client-1.0", "granted KEYA client-1.0"]),
        heard(&["granted KEYA client-1.0", "granted KEYA client-9.0"]),
        nothing,
    ] {
        let mut journal = doctored(&[first_lease]);
        assert!(
            complains_of(&examine(&mut journal, &nobody, &lie), "got other answers"),
            "{lie:?}"
        );
    }
}

fn the_examiner_reports_each_violation_with_several_holders() {
    let nobody = Deaths::default();
    let nothing = Testimony::new();
    let sound = [
        "at 1000 granted KEYA client-1.0 fence 1 for 500000 slots 1000000",
        "at 2000 granted KEYA client-2.0 fence 2 for 500000 slots 1000000",
        "at 3000 queued KEYA client-3.0 ticket 1",
        "at 4000 queued KEYA client-4.0 ticket 2 slots 1000000",
        "at 5000 released KEYA client-1.0",
        "at 6000 released KEYA client-2.0",
        "at 6000 granted KEYA client-3.0 fence 3 for 500000",
        "at 7000 released KEYA client-3.0",
        "at 7000 granted KEYA client-4.0 fence 4 for 500000 slots 1000000",
        "at 8000 granted KEYB client-1.0 fence 5 for 500000 slots 3",
        "at 8000 granted KEYB client-2.0 fence 6 for 500000 slots 3",
        "at 9000 queued KEYA client-3.0 ticket 3",
        "at 9000 queued KEYA client-5.0 ticket 4 slots 1000000",
        "at 9500 left KEYA client-3.0 ticket 3",
        "at 9500 granted KEYA client-5.0 fence 7 for 500000 slots 1000000",
    ];
    let found = examine(&mut doctored(&sound), &nobody, &nothing);
    assert_eq!((found.shared, found.slots, found.waited), (2, 1, 3));
    let said = |violation: &&String| !violation.contains("got other answers");
    assert_eq!(found.violations.iter().find(said), None);
    let reader = "at 0 granted KEYA client-1.0 fence 1 for 5000000 slots 1000000";
    let writer = "at 1 queued KEYA client-2.0 ticket 1";
    let rules: &[(&str, &[&str])] = &[
        (
            "more than one of them allows",
            &[reader, "at 9 granted KEYA client-2.0 fence 2 for 500000"],
        ),
        (
            "more than one of them allows",
            &[
                "at 0 granted KEYA client-1.0 fence 1 for 500000 slots 2",
                "at 1 granted KEYA client-2.0 fence 2 for 500000 slots 3",
                "at 2 granted KEYA client-3.0 fence 3 for 500000 slots 3",
            ],
        ),
        (
            "of one name",
            &[
                reader,
                "at 9 granted KEYA client-1.0 fence 2 for 500000 slots 1000000",
            ],
        ),
        (
            "out of turn",
            &[
                reader,
                writer,
                "at 9 granted KEYA client-3.0 fence 2 for 500000 slots 1000000",
            ],
        ),
        (
            "there was room",
            &[
                reader,
                "at 1 queued KEYA client-2.0 ticket 1 slots 1000000",
                "at 900000 released KEYA client-1.0",
            ],
        ),
        (
            "does not hold it",
            &[reader, "at 9 released KEYA client-2.0"],
        ),
    ];
    for (rule, lines) in rules {
        let found = examine(&mut doctored(lines), &nobody, &nothing);
        assert!(complains_of(&found, rule), "{rule}: {:?}", found.violations);
    }
}

fn complains_of(found: &Found, rule: &str) -> bool {
    found.violations.iter().any(|said| said.contains(rule))
}

/// Numbers the entries and shuffles them a little. `skip` leaves out the number before the last one.
fn doctored(lines: &[&str]) -> Vec<Event> {
    let skip = usize::from(lines.last() == Some(&"skip"));
    let lines = &lines[..lines.len() - skip];
    let mut journal: Vec<Event> = (1..)
        .zip(lines)
        .map(|(number, line)| {
            Event::parse(&format!("{number} {line}")).expect("a line of a journal")
        })
        .collect();
    if let Some(last) = journal.last_mut() {
        last.number += skip as u64;
    }
    journal.reverse();
    journal
}

fn heard(lines: &[&str]) -> Testimony {
    let mut seen = Seen::default();
    lines.iter().for_each(|line| seen.note(line));
    seen.grants
}
