//! Real etcds, as Debian packages them: one, or a cluster of three. `.ci/run` installs them. The tests use the first `etcd`
//! on the path, so another path tests another version; each test prints the version.
//!
//! Each test has a cluster of its own, in a folder of its own, on a loopback address that no other process uses, so
//! that a free port stays free until it is bound. They end with the test. Their elections are quick, so the shortest
//! lease that they grant is [`LEAST_TTL`]. They use a file system in memory if there is one, since tests kill processes
//! and not the machine.

#![allow(dead_code, reason = "only the tests of the cluster use the rest")]

pub mod api;
pub mod fault_proxy;
pub mod framing;
pub mod history;
pub mod lock_servers;

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::program::{clean, installed};
use crate::common::{ends_with_this_thread, until};
use api::Api;

/// The election time-out in milliseconds. Long enough for a busy machine, and one and a half times it is less than a
/// second.
const ELECTION: u32 = 400;
const HEARTBEAT: u32 = 40;

/// The shortest lease that etcd grants, in seconds: one and a half election time-outs, rounded up.
pub const LEAST_TTL: i64 = 1;

/// The loopback address of this process alone.
pub fn own_address() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    // Outside 127.0.0.0/10, which all other programs use. A process ID is less than 2^22.
    Ipv4Addr::new(127, 64 + (high & 63), middle, low)
}

/// A port of our [own address](own_address) that was not used before.
pub fn own_port() -> SocketAddr {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().expect("nobody panicked");
    loop {
        let listener = TcpListener::bind((own_address(), 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        if given.insert(address.port()) {
            return address;
        }
    }
}

/// A process that can be killed, suspended and restarted.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts a process that is killed when this thread ends, or when it is dropped.
    pub fn spawn(command: &mut Command) -> Self {
        let child = ends_with_this_thread(command).spawn();
        Process(child.expect("the program starts"))
    }

    pub fn of(child: Child) -> Self {
        Process(child)
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_some()
    }

    pub fn kill(&mut self) {
        // Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Sends SIGTERM, and returns the exit code.
    pub fn end(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.0.wait().expect("a child").code()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).expect("it is a child");
    }

    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        let threads = format!("/proc/{}/task", self.0.id());
        until("all its threads are stopped", || {
            let mut threads = fs::read_dir(&threads).expect("a child");
            threads.all(|thread| {
                let stat = fs::read_to_string(thread.expect("an entry").path().join("stat"));
                // A thread that has ended meanwhile.
                stat.map_or(true, |stat| stat.contains(") T "))
            })
        });
    }

    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One etcd or three.
pub struct Etcds {
    members: Vec<Member>,
    /// Dropped after the processes that write into it.
    _folder: TempDir,
}

struct Member {
    process: Option<Process>,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    client: SocketAddr,
}

impl Member {
    fn start(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log);
        let log = log.expect("a file");
        let mut command = Command::new(&self.program);
        clean(&mut command)
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(log);
        self.process = Some(Process::spawn(&mut command));
    }

    /// Whether it answers. Panics if it has ended by itself.
    fn is_ready(&mut self) -> bool {
        let has_ended = self.process.as_mut().is_none_or(Process::has_ended);
        assert!(!has_ended, "it ended: {}", said(&self.log));
        Api::at(self.client).is_ready()
    }
}

fn said(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}

impl Etcds {
    /// One etcd. `None`, with a printed reason, if etcd is not installed.
    pub fn one() -> Option<Self> {
        Etcds::start(1, &[])
    }

    pub fn three() -> Option<Self> {
        Etcds::start(3, &[])
    }

    /// One etcd with room for this many bytes. The minimum is 16 pages of 4096.
    pub fn with_quota(bytes: u64) -> Option<Self> {
        Etcds::start(1, &[format!("--quota-backend-bytes={bytes}")])
    }

    /// One etcd with further options.
    pub fn with(more: &[String]) -> Option<Self> {
        Etcds::start(1, more)
    }

    fn start(many: usize, more: &[String]) -> Option<Self> {
        let program = installed("etcd")?;
        let memory = Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let folder = folder.expect("a folder");
        let peers: Vec<SocketAddr> = (0..many).map(|_| own_port()).collect();
        let names = (0..).zip(&peers);
        let cluster: Vec<String> = names
            .map(|(name, peer)| format!("{name}=http://{peer}"))
            .collect();
        let member = |(name, peer): (usize, &SocketAddr)| {
            let client = own_port();
            let mut arguments = vec![
                format!("--name={name}"),
                format!(
                    "--data-dir={}",
                    folder.path().join(name.to_string()).display()
                ),
                format!("--listen-client-urls=http://{client}"),
                format!("--advertise-client-urls=http://{client}"),
                format!("--listen-peer-urls=http://{peer}"),
                format!("--initial-advertise-peer-urls=http://{peer}"),
                format!("--initial-cluster={}", cluster.join(",")),
                format!("--heartbeat-interval={HEARTBEAT}"),
                format!("--election-timeout={ELECTION}"),
                "--logger=zap".into(),
                "--log-level=warn".into(),
            ];
            arguments.extend_from_slice(more);
            Member {
                process: None,
                program: program.clone(),
                arguments,
                log: folder.path().join(format!("{name}.log")),
                client,
            }
        };
        let members = peers.iter().enumerate().map(member).collect();
        let mut etcds = Etcds {
            members,
            _folder: folder,
        };
        etcds.members.iter_mut().for_each(Member::start);
        until("etcd answers", || etcds.are_ready());
        // Captured with the test's own output.
        println!("etcd {}", etcds.api().version());
        Some(etcds)
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.client).collect()
    }

    /// The API of the first member.
    pub fn api(&self) -> Api {
        Api::at(self.members[0].client)
    }

    /// The API of a member that answers at present.
    pub fn ready_api(&self) -> Api {
        let mut apis = self.members.iter().map(|member| Api::at(member.client));
        let is_ready = |api: &Api| api.is_ready();
        let found = apis.find(is_ready);
        found.expect("a member that answers")
    }

    /// Whether all members answer. Panics if one has ended by itself.
    pub fn are_ready(&mut self) -> bool {
        self.members.iter_mut().all(Member::is_ready)
    }

    /// A member's running process.
    pub fn process(&mut self, member: usize) -> &mut Process {
        let process = self.members[member].process.as_mut();
        process.expect("it was started")
    }

    /// Restarts a killed member, with the data on its disk.
    pub fn restart(&mut self, member: usize) {
        self.process(member).kill();
        self.members[member].start();
    }
}

// Tests of these fixtures.

#[test]
fn one_etcd_answers_and_ends_with_its_test() {
    let Some(etcd) = Etcds::one() else { return };
    let api = etcd.api();
    let revision = api.put("a", "1");
    assert_eq!(api.put("a", "2"), revision + 1);
    let found = api.get("a").expect("it was put");
    assert_eq!((found.value.as_str(), found.version), ("2", 2));
    assert_eq!(api.all("a"), [found]);
    assert_eq!(api.delete("a"), 1);
    assert_eq!(api.get("a"), None);
    let (lease, seconds) = api.grant(1);
    assert_eq!(seconds, LEAST_TTL);
    api.revoke(lease);
    api.compact(api.revision());
    let (folder, pid) = (
        etcd._folder.path().to_path_buf(),
        etcd.members[0].process.as_ref(),
    );
    let pid = pid.expect("it runs").id();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _etcd = etcd;
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(panicked.is_err());
    assert!(!folder.exists() && !Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn three_etcds_go_on_without_one_and_stall_without_two() {
    let Some(mut etcds) = Etcds::three() else {
        return;
    };
    etcds.api().put("a", "1");
    etcds.process(0).kill();
    let api = Api::at(etcds.addresses()[1]);
    until("the other two have a leader", || api.is_ready());
    api.put("a", "2");
    etcds.process(2).stop();
    assert!(!api.is_ready());
    etcds.process(2).go_on();
    etcds.restart(0);
    until("all answer", || etcds.are_ready());
    assert_eq!(etcds.api().get("a").expect("it is there").value, "2");
}

#[test]
fn an_etcd_with_a_quota_is_full_until_it_is_compacted_defragmented_and_disarmed() {
    let Some(etcd) = Etcds::with_quota(400_000) else {
        return;
    };
    let api = etcd.api();
    api.fill();
    assert!(api.is_full());
    api.compact(api.revision());
    api.defragment();
    api.disarm();
    assert!(!api.is_full());
    api.put("a", "1");
}
