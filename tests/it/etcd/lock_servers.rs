//! Lock servers that share a store in etcd: one leads, the others stand by.
//!
//! Each is a real process, and has a way to etcd of its own, on which a test lets accidents happen.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::api::{Api, KeyValue};
use super::fault_proxy::FaultProxy;
use super::{Etcds, Process, own_port};
use crate::common::program::program;
use crate::common::{PATIENCE, Reply, Wire, ms, until};

pub const PREFIX: &str = "/lock-server/test/";

/// How long etcd keeps a leader that is not heard of: the least that the option takes.
pub const TTL: Duration = Duration::from_secs(2);

/// How long a server that does not lead, or is stopped, is given to answer a look.
const LOOK: Duration = ms(500);

/// A server, and the place where it runs again after its end.
pub struct LockServer {
    pub address: SocketAddr,
    pub proxy: FaultProxy,
    process: Option<Process>,
    options: Vec<String>,
    log: PathBuf,
}

impl LockServer {
    /// Starts it, and does not wait until it answers.
    pub fn start(&mut self) {
        self.end_process();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log);
        let mut command = program(&self.options);
        command.stdout(Stdio::null()).stderr(log.expect("a file"));
        self.process = Some(Process::spawn(&mut command));
    }

    /// With these options, too, from its next start on.
    pub fn add_options<'a>(&mut self, more: impl IntoIterator<Item = &'a str>) {
        self.options.extend(more.into_iter().map(String::from));
    }

    fn end_process(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it was started")
    }

    pub fn kill(&mut self) {
        self.process().kill();
    }

    /// Asks one question on a connection of its own.
    pub fn ask(&self, path: &str) -> std::io::Result<Reply> {
        ask_at(self.address, path, PATIENCE)
    }

    /// Asks one question, and returns its answer.
    #[track_caller]
    pub fn reply(&self, path: &str) -> Reply {
        self.ask(path).expect("it answers")
    }

    /// Sends a question, for the answer to be read later.
    pub fn get(&self, path: &str) -> Wire {
        let mut wire = Wire::at(self.address);
        wire.get(path);
        wire
    }

    fn look(&self, path: &str) -> Option<Reply> {
        ask_at(self.address, path, LOOK).ok()
    }

    pub fn is_leader(&self) -> bool {
        let ready = self.look("/readyz");
        ready.is_some_and(|ready| ready.status == 200)
    }

    pub fn is_standby(&self) -> bool {
        let ready = self.look("/readyz");
        ready.is_some_and(|ready| ready.status == 503 && ready.result() == "standby")
    }

    /// Where the leader is, as far as a server that stands by knows.
    pub fn known_leader(&self) -> Option<String> {
        let ready = self.look("/readyz")?;
        ready.header("Lock-Leader").map(Into::into)
    }

    pub fn is_alive(&self) -> bool {
        let alive = self.look("/livez");
        alive.is_some_and(|alive| alive.status == 200)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Asks one question on a connection of its own, and waits so long for the answer.
pub fn ask_at(address: SocketAddr, path: &str, patience: Duration) -> std::io::Result<Reply> {
    let stream = TcpStream::connect_timeout(&address, patience)?;
    Wire::over(stream, patience).try_once(path)
}

/// Lock servers before one etcd or three.
pub struct LockServers {
    // Ended before etcd is.
    pub servers: Vec<LockServer>,
    pub etcds: Etcds,
    _folder: TempDir,
}

impl LockServers {
    /// So many servers, the first of which leads. `None` where etcd is not there.
    pub fn start(many: usize, etcds: Option<Etcds>) -> Option<Self> {
        LockServers::start_with(many, etcds, TTL)
    }

    /// The same where etcd keeps a leader that is not heard of for so long.
    pub fn start_with(many: usize, etcds: Option<Etcds>, ttl: Duration) -> Option<Self> {
        let mut servers = LockServers::prepare(many, etcds, ttl)?;
        (0..many).for_each(|number| servers.start_one(number));
        Some(servers)
    }

    /// Servers that are not started yet.
    pub fn prepare(many: usize, etcds: Option<Etcds>, ttl: Duration) -> Option<Self> {
        let etcds = etcds?;
        let folder = tempfile::tempdir().expect("a folder");
        let server = |number: usize| {
            let address = own_port();
            let proxy = FaultProxy::to(&etcds.addresses());
            let urls = proxy.addresses().iter();
            let urls: Vec<String> = urls.map(|address| format!("http://{address}")).collect();
            let options = [
                ("--host", address.ip().to_string()),
                ("--port", address.port().to_string()),
                ("--advertise", address.to_string()),
                ("--store", format!("etcd:{}", urls.join(","))),
                ("--store-prefix", PREFIX.to_string()),
                ("--store-ttl", ttl.as_secs().to_string()),
            ];
            let options = options.into_iter();
            let options = options.flat_map(|(name, value)| [name.to_string(), value]);
            LockServer {
                address,
                proxy,
                process: None,
                options: ["run".to_string()].into_iter().chain(options).collect(),
                log: folder.path().join(format!("{number}.log")),
            }
        };
        Some(LockServers {
            servers: (0..many).map(server).collect(),
            etcds,
            _folder: folder,
        })
    }

    /// Starts a server, and waits until it leads or stands by.
    pub fn start_one(&mut self, number: usize) {
        self.servers[number].start();
        let is_led = self.leader().is_some();
        let server = &mut self.servers[number];
        until("the server leads or stands by", || {
            let has_ended = server.process().has_ended();
            assert!(!has_ended, "it ended: {}", server.log());
            server.is_leader() || is_led && server.is_standby() && server.known_leader().is_some()
        });
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|server| server.address).collect()
    }

    /// As a client has them in `LOCK_SERVER`.
    pub fn list(&self) -> String {
        let addresses = self.addresses().into_iter();
        let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
        addresses.join(",")
    }

    /// Which of them leads, if one says so.
    pub fn leader(&self) -> Option<usize> {
        self.servers.iter().position(LockServer::is_leader)
    }

    /// Waits until one of them leads.
    pub fn until_led(&self) -> usize {
        let mut leader = None;
        until("one of the servers leads", || {
            leader = self.leader();
            leader.is_some()
        });
        leader.expect("one does")
    }

    /// etcd itself, with no accidents.
    pub fn api(&self) -> Api {
        self.etcds.api()
    }

    /// The key under which a server leads.
    pub fn leader_key(&self) -> Option<KeyValue> {
        self.api().get(&format!("{PREFIX}leader"))
    }

    /// What is stored of a lock that one holds alone.
    pub fn stored(&self, lock: &str) -> Option<Value> {
        let found = self.api().get(&format!("{PREFIX}h/{lock}/0"))?;
        Some(serde_json::from_str(&found.value).expect("it is JSON"))
    }

    /// Waits until this server leads.
    pub fn until_leads(&self, number: usize) -> &LockServer {
        let server = &self.servers[number];
        until("the other server leads", || server.is_leader());
        server
    }

    /// What the logs say, for a test that fails.
    pub fn logs(&self) -> String {
        let logs = (0..).zip(&self.servers);
        logs.map(|(number, server)| format!("--- server {number}\n{}", server.log()))
            .collect()
    }
}

impl Drop for LockServers {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Captured with the test's own output.
            println!("{}", self.logs());
        }
    }
}
