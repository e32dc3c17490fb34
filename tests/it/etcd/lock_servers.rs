//! Lock servers that share a store in etcd: one leads, the others stand by.
//!
//! Each is a real process, with a proxy of its own in front of etcd, at which a test can make faults.

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

/// The TTL of the leader's lease: the minimum of the option.
pub const TTL: Duration = Duration::from_secs(2);

/// The time-out of a look at a server that may be suspended.
const LOOK: Duration = ms(500);

/// A server, and what it needs to be started again.
pub struct LockServer {
    pub address: SocketAddr,
    pub proxy: FaultProxy,
    process: Option<Process>,
    options: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
    log: PathBuf,
}

impl LockServer {
    /// Starts it, without a wait for its first answer.
    pub fn start(&mut self) {
        self.end_process();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log);
        let mut command = program(&self.options);
        command.stdout(Stdio::null()).stderr(log.expect("a file"));
        command.envs(self.environment.iter().cloned());
        self.process = Some(Process::spawn(&mut command));
    }

    /// Sets environment variables from its next start on.
    pub fn set_environment(&mut self, variables: impl Into<Vec<(&'static str, PathBuf)>>) {
        self.environment = variables.into();
    }

    /// Adds options from its next start on.
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

    /// Sends one `GET` on a connection of its own.
    pub fn ask(&self, path: &str) -> std::io::Result<Reply> {
        ask_at(self.address, path, PATIENCE)
    }

    /// Sends one `GET`, and returns the reply.
    #[track_caller]
    pub fn reply(&self, path: &str) -> Reply {
        self.ask(path).expect("it answers")
    }

    /// Sends a `GET` whose reply is read later.
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

    /// The leader's address, as far as this standby knows it.
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

/// Sends one `GET` on a connection of its own, and waits up to `patience` for the reply.
pub fn ask_at(address: SocketAddr, path: &str, patience: Duration) -> std::io::Result<Reply> {
    let stream = TcpStream::connect_timeout(&address, patience)?;
    Wire::over(stream, patience).try_once(path)
}

/// Lock servers with one etcd or three.
pub struct LockServers {
    // Dropped before etcd.
    pub servers: Vec<LockServer>,
    pub etcds: Etcds,
    _folder: TempDir,
}

impl LockServers {
    /// Starts this many servers, the first of which leads. `None` without etcd.
    pub fn start(many: usize, etcds: Option<Etcds>) -> Option<Self> {
        LockServers::start_with(many, etcds, TTL)
    }

    /// Starts this many servers with this TTL, the first of which leads. `None` without etcd.
    pub fn start_with(many: usize, etcds: Option<Etcds>, ttl: Duration) -> Option<Self> {
        let mut servers = LockServers::prepare(many, etcds, ttl)?;
        (0..many).for_each(|number| servers.start_one(number));
        Some(servers)
    }

    /// Prepares servers without starting them.
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
                environment: Vec::new(),
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

    /// The value of `LOCK_SERVER` with all of them.
    pub fn list(&self) -> String {
        let addresses = self.addresses().into_iter();
        let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
        addresses.join(",")
    }

    /// The number of the server that leads. `None` if none does.
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

    /// The API of etcd, without the proxies.
    pub fn api(&self) -> Api {
        self.etcds.api()
    }

    /// The leader key.
    pub fn leader_key(&self) -> Option<KeyValue> {
        self.api().get(&format!("{PREFIX}leader"))
    }

    /// The stored hold of a lock with one holder.
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

    /// All logs, for a failed test.
    pub fn logs(&self) -> String {
        let logs = (0..).zip(&self.servers);
        logs.map(|(number, server)| format!("--- server {number}\n{}", server.log()))
            .collect()
    }
}

impl Drop for LockServers {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Printed, so that it is captured with the test's output.
            println!("{}", self.logs());
        }
    }
}
