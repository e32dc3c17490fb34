//! A real etcd on free ports, in a temporary folder.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::PATIENCE;
use crate::store::etcd::EtcdStore;
use crate::store::{Batch, Recovered, Store, StoreError};

/// Runs the program until standard input ends, so that it also ends when the test process is killed.
const UNTIL_STDIN_ENDS: &str = r#"
folder=$1; shift
"$@" </dev/null >"$folder/log" 2>&1 &
echo $!
cat >/dev/null
kill -9 $!
wait $! 2>/dev/null
rm -rf "$folder"
"#;

/// An etcd of one or several members. It ends when it is dropped, or with the process.
pub(in crate::store) struct RealEtcd {
    members: Vec<Member>,
    pub endpoints: Vec<String>,
}

struct Member {
    shell: Child,
    pid: Pid,
}

/// Whether etcd is installed. If not, prints that; in CI it panics.
pub(in crate::store) fn is_installed() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = env::split_paths(&path).any(|folder| folder.join("etcd").is_file());
    if !is_there {
        let is_needed = env::var_os("CI").is_some();
        assert!(!is_needed, "etcd is not installed, and CI needs it");
        eprintln!("skipped: etcd is not installed");
    }
    is_there
}

/// The etcd that tests share, each with a prefix of its own. `None` if etcd is not installed.
pub(in crate::store) fn shared() -> Option<&'static RealEtcd> {
    static SHARED: OnceLock<Option<RealEtcd>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| is_installed().then(|| RealEtcd::start(1, &[])));
    shared.as_ref()
}

/// A prefix that no other test has.
pub(in crate::store) fn new_prefix() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("/lock-server/test-{}/", NEXT.fetch_add(1, Relaxed))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("it is bound").port()
}

impl RealEtcd {
    pub fn start(members: usize, more: &[&str]) -> Self {
        // A port may be taken between its choice and its use.
        for _ in 0..10 {
            let etcd = RealEtcd::try_start(members, more);
            if etcd.answers() {
                return etcd;
            }
        }
        panic!("etcd does not start");
    }

    fn try_start(members: usize, more: &[&str]) -> Self {
        let ports: Vec<_> = (0..members).map(|_| (free_port(), free_port())).collect();
        let cluster: Vec<_> = ports
            .iter()
            .enumerate()
            .map(|(number, (_, peer))| format!("m{number}=http://127.0.0.1:{peer}"))
            .collect();
        let cluster = cluster.join(",");
        let start = |(number, (client, peer)): (usize, &(u16, u16))| {
            let folder = TempDir::new().expect("a folder").keep();
            let client = format!("http://127.0.0.1:{client}");
            let peer = format!("http://127.0.0.1:{peer}");
            let mut shell = Command::new("sh");
            shell.args(["-c", UNTIL_STDIN_ENDS, "sh"]).arg(&folder);
            shell.args(["etcd", "--logger", "zap", "--log-level", "warn"]);
            shell.args(["--name", &format!("m{number}")]);
            shell.arg("--data-dir").arg(folder.join("data"));
            for option in ["--listen-client-urls", "--advertise-client-urls"] {
                shell.args([option, &client]);
            }
            for option in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
                shell.args([option, &peer]);
            }
            shell.args(["--initial-cluster", &cluster]).args(more);
            let shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut shell = shell.spawn().expect("there is a shell");
            let mut line = String::new();
            let stdout = shell.stdout.as_mut().expect("it is piped");
            BufReader::new(stdout).read_line(&mut line).expect("a pid");
            let pid = Pid::from_raw(line.trim().parse().expect("a pid"));
            Member { shell, pid }
        };
        let endpoint = |(client, _): &(u16, u16)| format!("http://127.0.0.1:{client}");
        RealEtcd {
            endpoints: ports.iter().map(endpoint).collect(),
            members: ports.iter().enumerate().map(start).collect(),
        }
    }

    /// Waits until it accepts writes. `false` if a member has ended.
    fn answers(&self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let put = serde_json::json!({"key": "eA==", "value": "eA=="});
            let is_ready = |endpoint: &String| ask(endpoint, "/v3/kv/put", &put, "").0 == 200;
            if self.endpoints.iter().all(is_ready) {
                return true;
            }
            thread::sleep(Duration::from_millis(50));
            // Not checked by the command line, which is empty during an exec.
            let is_gone = |member: &Member| {
                let stat = fs::read_to_string(format!("/proc/{}/stat", member.pid));
                let state = stat.as_ref().map(|stat| stat.rsplit(") ").next());
                state.is_ok_and(|state| state.is_none_or(|state| state.starts_with('Z')))
            };
            if self.members.iter().any(is_gone) {
                return false;
            }
        }
        false
    }

    /// The answer to a call that has to succeed.
    pub fn ask(&self, path: &str, request: &Value) -> Value {
        let (status, answer) = ask(&self.endpoints[0], path, request, "");
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// The store with this prefix, as of a process. Dropping it is its orderly end.
    pub fn store(&self, prefix: &str) -> Box<dyn Store> {
        Box::new(OrderlyStore(super::store(&super::options(
            &self.endpoints,
            prefix,
        ))))
    }

    /// Stops a member, and returns once all its threads stand still: until then it may still answer.
    pub fn suspend(&self, member: usize) {
        let pid = self.members[member].pid;
        signal::kill(pid, Signal::SIGSTOP).expect("it runs");
        let until = Instant::now() + PATIENCE;
        while !stands_still(pid) {
            assert!(Instant::now() < until, "{pid} still runs");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets a suspended member go on.
    pub fn resume(&self, member: usize) {
        signal::kill(self.members[member].pid, Signal::SIGCONT).expect("it is there");
    }
}

/// Whether all threads of a process are stopped: proc(5).
fn stands_still(process: Pid) -> bool {
    let mut threads = fs::read_dir(format!("/proc/{process}/task")).expect("it is there");
    threads.all(|thread| {
        let stat = fs::read_to_string(thread.expect("an entry").path().join("stat"));
        // A thread that has ended meanwhile.
        stat.map_or(true, |stat| stat.contains(") T "))
    })
}

struct OrderlyStore(EtcdStore);

impl Store for OrderlyStore {
    fn open(&mut self) -> Result<Recovered, StoreError> {
        self.0.open()
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.0.commit(batch)
    }
}

impl Drop for OrderlyStore {
    fn drop(&mut self) {
        self.0.resign();
    }
}

impl Drop for RealEtcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            drop(member.shell.stdin.take());
            let mut rest = String::new();
            let stdout = member.shell.stdout.as_mut().expect("it is piped");
            let _ = stdout.read_to_string(&mut rest);
            let _ = member.shell.wait();
        }
    }
}

/// The status and the answer of one call. The status is 0 without an answer.
pub(in crate::store) fn ask(
    endpoint: &str,
    path: &str,
    request: &Value,
    token: &str,
) -> (u16, Value) {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(5)))
        .proxy(None);
    let agent = ureq::Agent::new_with_config(config.build());
    let mut post = agent.post(format!("{endpoint}{path}"));
    if !token.is_empty() {
        post = post.header("Authorization", token);
    }
    let Ok(mut response) = post.send(request.to_string()) else {
        return (0, Value::Null);
    };
    let body = response.body_mut().read_to_vec().unwrap_or_default();
    let answer = serde_json::from_slice(&body).unwrap_or(Value::Null);
    (response.status().as_u16(), answer)
}
