//! What fences protect against: a holder that is suspended past its lease, and a server that is restarted.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::common::{PATIENCE, ms, options, start, until};
use lock_server::{Client, Error, Guard, LockOptions, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

// Kleppmann's example ("How to do distributed locking", 2016): a holder reads, is suspended for longer than its lease,
// goes on, and writes a result of its outdated read.

/// A store of one row, like a database: each question is one atomic step.
///
/// | question | SQL | answer |
/// |---|---|---|
/// | `read` | `SELECT number` | the number |
/// | `write N` | `UPDATE … SET number = N` | `yes` |
/// | `write N up to F` | `UPDATE … SET number = N, fence = F WHERE fence <= F` | `yes` or `no` |
/// | `claim F` | `UPDATE … SET fence = F WHERE fence <= F` | `yes` or `no` |
/// | `write N under F` | `UPDATE … SET number = N WHERE fence = F` | `yes` or `no` |
fn store() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let row = Arc::new(Mutex::new((0, 0)));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (row, stream) = (row.clone(), stream.expect("a client"));
            thread::spawn(move || serve_store(&row, BufReader::new(stream)));
        }
    });
    port
}

fn serve_store(row: &Mutex<(u64, u64)>, mut stream: BufReader<TcpStream>) {
    let mut line = String::new();
    while stream.read_line(&mut line).is_ok_and(|length| length > 0) {
        let answer = {
            let mut row = row.lock().expect("no panic");
            let (now, seen) = *row;
            let mut set = |may: bool, new: (u64, u64)| {
                if may {
                    *row = new;
                }
                if may { "yes" } else { "no" }.to_string()
            };
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["read"] => now.to_string(),
                ["write", new] => set(true, (whole(new), seen)),
                ["write", new, "up", "to", f] => set(seen <= whole(f), (whole(new), whole(f))),
                ["claim", f] => set(seen <= whole(f), (now, whole(f))),
                ["write", new, "under", f] => set(seen == whole(f), (whole(new), seen)),
                _ => panic!("the store does not understand {line:?}"),
            }
        };
        line.clear();
        // Fails if the client has been killed.
        let _ = writeln!(stream.get_mut(), "{answer}");
    }
}

fn whole(number: &str) -> u64 {
    number.parse().expect("a whole number")
}

/// A connection to the store.
struct Store(BufReader<TcpStream>);

impl Store {
    fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        stream.set_nodelay(true).expect("it is a socket");
        Store(BufReader::new(stream))
    }

    fn ask(&mut self, question: &str) -> String {
        // In one write: a second one would wait for a delayed acknowledgement.
        let question = format!("{question}\n");
        self.0
            .get_mut()
            .write_all(question.as_bytes())
            .expect("it reads");
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("a line");
        answer.trim_end().into()
    }

    fn read(&mut self) -> u64 {
        whole(&self.ask("read"))
    }
}

/// How a holder changes the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recipe {
    /// Asks the server right before it writes, and gives the store no fence.
    Check,
    /// Gives the store the fence only with the write.
    FenceWithTheWrite,
    /// Gives the store the fence before it reads: then no older holder can write any more.
    FenceBeforeTheRead,
}

impl Recipe {
    const ALL: [Recipe; 3] = [
        Recipe::Check,
        Recipe::FenceWithTheWrite,
        Recipe::FenceBeforeTheRead,
    ];

    fn named(name: &str) -> Self {
        let mut all = Recipe::ALL.into_iter();
        all.find(|recipe| format!("{recipe:?}") == name)
            .expect("a recipe")
    }

    /// Reads the number. `None` if the holder is too late.
    fn read(self, store: &mut Store, fence: u64) -> Option<u64> {
        if self == Recipe::FenceBeforeTheRead && store.ask(&format!("claim {fence}")) == "no" {
            return None;
        }
        Some(store.read())
    }

    /// Writes the number. Returns whether the store took it.
    fn write(self, store: &mut Store, number: u64, fence: u64) -> bool {
        let question = match self {
            Recipe::Check => format!("write {number}"),
            Recipe::FenceWithTheWrite => format!("write {number} up to {fence}"),
            Recipe::FenceBeforeTheRead => format!("write {number} under {fence}"),
        };
        store.ask(&question) == "yes"
    }
}

/// The environment variable for a process of these tests: its task, and the ports of server and store.
const ROLE: &str = "LOCK_SERVER_TEST_ROLE";

/// Adds one to the number in the store, under a lock: once, or repeatedly in several threads.
#[test]
#[ignore = "a process that another test starts"]
fn other_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let words: Vec<&str> = role.split(' ').collect();
    let [what, recipe, server, store] = words[..] else {
        panic!("no role: {role:?}")
    };
    let recipe = Recipe::named(recipe);
    let [server, store] = [server, store].map(|port| port.parse().expect("a port"));
    match what {
        "holder" => holder(recipe, server, store),
        worker => pool_worker(worker, recipe, server, store),
    }
}

fn other_process_as(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args([
            "--exact",
            "working_safely::other_process",
            "--ignored",
            "--nocapture",
        ])
        .env(ROLE, role)
        .stdout(Stdio::null());
    command
}

/// Reads the number, checks its guard, and writes after a line on standard input.
fn holder(recipe: Recipe, server: u16, store: u16) {
    let client = Client::new("CLIENT_A", "127.0.0.1", server);
    let brief = LockOptions {
        lock_timeout: Some(ms(1000)),
        ..LockOptions::default()
    };
    let guard = client.guard_with("KEYA", &brief).expect("it is free");
    let mut store = Store::connect(store);
    let number = recipe
        .read(&mut store, guard.fence())
        .expect("nobody was here before");
    guard.check().expect("it was locked a moment ago");
    // To standard error, since standard output belongs to the test harness.
    eprintln!("holds {}", guard.fence());
    // Here it is suspended: between its last check and its write.
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("a line");
    eprintln!(
        "wrote {}",
        recipe.write(&mut store, number + 1, guard.fence())
    );
    eprintln!("guard {}", if guard.is_held() { "held" } else { "lost" });
}

/// Dropping it kills the process.
struct Holder {
    process: Child,
    said: BufReader<ChildStderr>,
}

impl Holder {
    fn start(recipe: Recipe, server: u16, store: u16) -> Self {
        let mut process = other_process_as(&format!("holder {recipe:?} {server} {store}"))
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this program starts");
        let said = BufReader::new(process.stderr.take().expect("it is piped"));
        Holder { process, said }
    }

    /// The rest of its next line that begins with this word.
    fn says(&mut self, about: &str) -> String {
        let mut line = String::new();
        while self.said.read_line(&mut line).expect("text") > 0 {
            if let Some((word, rest)) = line.trim_end().split_once(' ')
                && word == about
            {
                return rest.into();
            }
            line.clear();
        }
        panic!("it ended and said nothing of {about}");
    }

    fn go_on(&mut self) {
        let mut stdin = self.process.stdin.take().expect("it is piped");
        writeln!(stdin, "go on").expect("it reads");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Both fail if it has ended already, as it has unless the test failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn signal(process: &Child, signal: Signal) {
    let pid = i32::try_from(process.id()).expect("a process number");
    kill(Pid::from_raw(pid), signal).expect("it runs");
}

/// When the suspended holder writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// After the next holder has written.
    Last,
    /// Between the next holder's read and its write.
    Between,
}

/// Two holders add one each, and the first is suspended past its lease. Returns whether the store took its write,
/// whether it took the second one's, and the number in the end.
fn a_holder_is_stopped_past_its_lease(recipe: Recipe, order: Order) -> (bool, bool, u64) {
    let server = start(Options {
        lock_attempt_timeout: PATIENCE,
        ..options()
    });
    let port = store();
    let mut store = Store::connect(port);
    let mut stopped = Holder::start(recipe, server.port(), port);
    let fence = whole(&stopped.says("holds"));
    signal(&stopped.process, Signal::SIGSTOP);

    // The second holder gets the key when that lease has run out.
    let guard = server
        .client("CLIENT_B")
        .guard("KEYA")
        .expect("its turn comes");
    assert!(guard.fence() > fence);
    let number = recipe
        .read(&mut store, guard.fence())
        .expect("it is the newest");
    let mut write = |number| recipe.write(&mut store, number, guard.fence());
    let mut next_wrote = order == Order::Last && write(number + 1);

    signal(&stopped.process, Signal::SIGCONT);
    stopped.go_on();
    let stopped_wrote = stopped.says("wrote") == "true";
    let says = stopped.says("guard");
    assert_eq!(
        says, "lost",
        "a check would have shown that the lease is lost"
    );
    assert!(stopped.process.wait().unwrap().success());
    guard.check().expect("nobody has unlocked it for CLIENT_B");
    if order == Order::Between {
        next_wrote = write(number + 1);
    }
    (stopped_wrote, next_wrote, store.read())
}

#[test]
fn a_store_that_gets_the_fence_before_the_read_refuses_an_outdated_holder() {
    for order in [Order::Last, Order::Between] {
        let ended = a_holder_is_stopped_past_its_lease(Recipe::FenceBeforeTheRead, order);
        assert_eq!(ended, (false, true, 1), "the first has to begin anew");
    }
}

#[test]
fn a_fence_sent_only_with_the_write_is_too_late() {
    let ended = a_holder_is_stopped_past_its_lease(Recipe::FenceWithTheWrite, Order::Last);
    assert_eq!(ended, (false, true, 1), "in this order it is not too late");
    let ended = a_holder_is_stopped_past_its_lease(Recipe::FenceWithTheWrite, Order::Between);
    assert_eq!(
        ended,
        (true, true, 1),
        "both writes were taken, and one of them is lost"
    );
}

#[test]
fn a_store_without_fences_is_corrupted_by_an_outdated_holder() {
    for order in [Order::Last, Order::Between] {
        let ended = a_holder_is_stopped_past_its_lease(Recipe::Check, order);
        assert_eq!(
            ended,
            (true, true, 1),
            "both writes were taken, and one of them is lost"
        );
    }
}

// A pool of processes, whose threads all change one row. One process is suspended repeatedly.

const PROCESSES: u64 = 8;
const THREADS: u64 = 4;

/// How often each thread changes the row: `LOCK_SERVER_POOL_ROUNDS`, by default a few times.
fn rounds() -> u64 {
    std::env::var("LOCK_SERVER_POOL_ROUNDS").map_or(3, |rounds| whole(&rounds))
}

fn pool_worker(name: &str, recipe: Recipe, server: u16, store: u16) {
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let client = Client::new(&format!("{name}.{thread}"), "127.0.0.1", server);
            scope.spawn(move || {
                let mut store = Store::connect(store);
                let mut done = 0;
                while done < rounds() {
                    match client.guard("KEYA") {
                        Ok(guard) => done += u64::from(add_one(recipe, &mut store, &guard)),
                        Err(error) => assert!(error.is_retryable(), "{error:?}"),
                    }
                }
            });
        }
    });
}

/// Adds one to the number. Returns whether the store took the write.
fn add_one(recipe: Recipe, store: &mut Store, guard: &Guard) -> bool {
    let Some(number) = recipe.read(store, guard.fence()) else {
        return false;
    };
    // The work, during which a holder may be suspended.
    thread::sleep(ms(2));
    recipe.write(store, number + 1, guard.fence())
}

#[test]
fn a_pool_of_processes_with_a_stopped_one_loses_no_update() {
    let server = start(Options {
        lock_timeout: ms(300),
        lock_attempt_timeout: PATIENCE,
        ..options()
    });
    let store = store();
    let recipe = Recipe::FenceBeforeTheRead;
    let mut workers: Vec<Child> = (0..PROCESSES)
        .map(|n| other_process_as(&format!("w{n} {recipe:?} {} {store}", server.port())).spawn())
        .map(|worker| worker.expect("this program starts"))
        .collect();
    let mut pauses = pauses();
    while workers[0].try_wait().expect("it is ours").is_none() {
        thread::sleep(ms(5) + pauses.next().expect("there is always one") / 20);
        // It has not been reaped, so the process exists, if only as a zombie.
        signal(&workers[0], Signal::SIGSTOP);
        // Longer than its lease.
        thread::sleep(ms(350) + pauses.next().expect("there is always one") / 10);
        signal(&workers[0], Signal::SIGCONT);
        thread::sleep(ms(20));
    }
    for worker in &mut workers {
        assert!(worker.wait().expect("it is ours").success());
    }
    let number = Store::connect(store).read();
    assert_eq!(number, PROCESSES * THREADS * rounds());
}

/// Pseudo-random pauses of up to a second, the same in each run.
fn pauses() -> impl Iterator<Item = Duration> {
    let mut seed = 12345u64;
    std::iter::repeat_with(move || {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ms((seed >> 33) % 1000)
    })
}

#[test]
fn a_client_sees_growing_fences_over_restarts_and_old_leases_stay_over() {
    let mut server = start(options());
    let store = store();
    let mut old = None;
    for number in 0..5 {
        let client = server.client("CLIENT_A");
        let lease = client
            .lock("KEYA")
            .unwrap()
            .expect("a new server knows no locks");
        let mut store = Store::connect(store);
        let recipe = Recipe::FenceBeforeTheRead;
        assert!(recipe.read(&mut store, lease.fence).is_some());
        assert!(recipe.write(&mut store, number, lease.fence));
        if let Some(old) = old.replace(lease.clone()) {
            assert!(lease.fence > old.fence);
            assert!(!client.verify(&old).unwrap());
            assert_eq!(client.renew(&old).unwrap(), None);
            let released = client.release(&old);
            assert!(
                matches!(released, Err(Error::LeaseLost { .. })),
                "{released:?}"
            );
            assert!(client.verify(&lease).unwrap());
        }
        server.stop().unwrap();
        server.start().unwrap();
    }
}

#[test]
fn a_guard_does_not_outlive_the_server_that_granted_it() {
    let mut server = start(options());
    let guard = server.client("CLIENT_A").guard("KEYA").expect("it is free");
    server.stop().unwrap();
    server.start().unwrap();
    until("the guard knows", || !guard.is_held());
}
