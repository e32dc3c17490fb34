//! Lock servers that share a store in etcd: one leads, the others stand by.
//!
//! Each is a real process, and has a way to etcd of its own, on which a test lets accidents happen.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

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
        LockServers::start_with(many, etcds, &[])
    }

    pub fn start_with(many: usize, etcds: Option<Etcds>, more: &[&str]) -> Option<Self> {
        let etcds = etcds?;
        let folder = tempfile::tempdir().expect("a folder");
        let server = |number: usize| {
            let address = own_port();
            let proxy = FaultProxy::to(&etcds.addresses());
            let urls: Vec<String> = proxy
                .addresses()
                .iter()
                .map(|address| format!("http://{address}"))
                .collect();
            let mut options = vec!["run".to_string()];
            let (host, port) = (address.ip().to_string(), address.port().to_string());
            let ttl = TTL.as_secs().to_string();
            for (name, value) in [
                ("--host", &host),
                ("--port", &port),
                ("--advertise", &address.to_string()),
                ("--store", &format!("etcd:{}", urls.join(","))),
                ("--store-prefix", &PREFIX.to_string()),
                ("--store-ttl", &ttl),
            ] {
                options.extend([name.to_string(), value.clone()]);
            }
            options.extend(more.iter().map(ToString::to_string));
            LockServer {
                address,
                proxy,
                process: None,
                options,
                log: folder.path().join(format!("{number}.log")),
            }
        };
        let servers = (0..many).map(server).collect();
        let mut all = LockServers {
            servers,
            etcds,
            _folder: folder,
        };
        for number in 0..many {
            all.servers[number].start();
            let server = &mut all.servers[number];
            until("the server runs, and the first one leads", || {
                let has_ended = server.process().has_ended();
                assert!(!has_ended, "it ended: {}", server.log());
                match number {
                    0 => server.is_leader(),
                    _ => server.is_standby(),
                }
            });
        }
        Some(all)
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
