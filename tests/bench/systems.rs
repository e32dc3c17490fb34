//! The measured systems: ours, and those found on the path. Each is a process on a free loopback port that ends with
//! the bench, and has its own requests for LOCK and UNLOCK.

use std::cell::RefCell;
use std::env;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lock_server::{Options, Server};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::load::{Client, Connection, Framing, Reply, Result};

pub const HOUR: Duration = Duration::from_secs(3600);

/// The lease in columns that wait for its end.
pub const SHORT_LEASE: Duration = Duration::from_millis(50);

/// Longer than any system takes to start.
const STARTING: Duration = Duration::from_secs(20);

/// Deletes a key of Redis if its value is still the requester, in one step, as on Redis' own page about locks.
const UNLOCK_SCRIPT: &str =
    "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end";

/// A system's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accent {
    Ours,
    Throttle,
    Redis,
    Etcd,
    /// Our requests, with always the same answer.
    BareLoop,
}

impl Accent {
    pub fn is_yes(self, reply: &Reply) -> Result<bool> {
        match (self, reply.status) {
            (Accent::Ours, 200) => Ok(reply.body() != b"0\n"),
            (Accent::Throttle | Accent::Etcd | Accent::BareLoop, 200) => Ok(true),
            (Accent::Throttle, 202) => Ok(false),
            (Accent::Redis, 200) => Ok(matches!(reply.body(), b"OK" | b"1")),
            (_, status) => Err(format!("{status}: {}", reply.text()).into()),
        }
    }

    /// Whether a client has to poll for a held key.
    pub fn polls(self) -> bool {
        self == Accent::Redis
    }
}

/// A running server.
pub struct System {
    pub name: &'static str,
    pub accent: Accent,
    pub port: u16,
    pid: u32,
    process: Process,
    /// The digest of Redis' script, loaded once per server.
    script: String,
    /// A connection for requests that are not part of the load.
    desk: RefCell<Connection>,
}

pub enum Process {
    Ours(Box<Server>),
    /// Dropping it kills the process and removes its files.
    Foreign {
        _ends_with_this: Foreign,
    },
}

pub struct Foreign {
    child: Child,
    folder: PathBuf,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // Fails if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Options with room for everything that is measured.
pub fn options(lock_timeout: Duration) -> Options {
    Options {
        port: 0,
        classic_port: Some(0),
        lock_timeout,
        lock_attempt_timeout: HOUR,
        max_keys: 1_100_000,
        max_waiters: 20_000,
        ..Options::default()
    }
}

/// Our own server.
pub fn ours(lock_timeout: Duration) -> Result<System> {
    ours_with("lock-server", options(lock_timeout))
}

/// Our own server under another name, with these options.
pub fn ours_with(name: &'static str, options: Options) -> Result<System> {
    let mut server = Server::new(options);
    let pid = server.start()?;
    let port = server.port();
    System::new(
        name,
        Accent::Ours,
        port,
        pid,
        Process::Ours(Box::new(server)),
    )
}

/// Our own server, with leases that outlast the bench.
pub fn ours_with_long_leases() -> Result<System> {
    ours(HOUR)
}

/// throttle-server, an HTTP server for semaphores. `None` if it is not on the path.
///
/// A round is `PUT /peers/ID/KEY?block_for=..` and `DELETE /peers/ID/KEY`, with an ID that was created beforehand: two
/// requests, like one of ours. Its configuration declares every key, with a count of one.
pub fn throttle() -> Result<Option<System>> {
    let Some(program) = on_path("throttle") else {
        return Ok(None);
    };
    let folder = folder("throttle")?;
    let configuration = folder.join("throttle.toml");
    let keys = (0..100).map(|n| format!("key-{n} = 1\n"));
    fs::write(
        &configuration,
        format!(
            "[semaphores]\nwanted = 1\nslots-4 = 4\n{}",
            keys.collect::<String>()
        ),
    )?;
    let port = free_port()?;
    let mut command = Command::new(program);
    command
        .args(["--address", "127.0.0.1", "--port", &port.to_string(), "-c"])
        .arg(configuration)
        .env_remove("THROTTLE_LOG");
    let (pid, process) = spawn(command, folder, port)?;
    System::new("throttle", Accent::Throttle, port, pid, process).map(Some)
}

/// Redis, without persistence. `None` if it is not on the path.
///
/// A round is `SET KEY NAME NX PX 30000` and a script that deletes the key if the name is still there. Redis has no
/// waits, so a client polls for a held key, see `load::POLLING`.
pub fn redis() -> Result<Option<System>> {
    let Some(program) = on_path("redis-server") else {
        return Ok(None);
    };
    let folder = folder("redis")?;
    let port = free_port()?;
    let mut command = Command::new(program);
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(&folder);
    let (pid, process) = spawn(command, folder, port)?;
    let mut system = System::new("redis", Accent::Redis, port, pid, process)?;
    let loaded = system
        .desk
        .get_mut()
        .ask(&resp(&["SCRIPT", "LOAD", UNLOCK_SCRIPT]))?;
    system.script = loaded.text();
    Ok(Some(system))
}

/// etcd, one member with its default settings, which syncs to the disk of the target folder. `None` if it is not on the
/// path.
///
/// A round is `/v3/lock/lock` and `/v3/lock/unlock` of its JSON gateway, with a lease that each client was granted
/// beforehand and that outlasts the bench: two requests, like one of ours.
pub fn etcd() -> Result<Option<System>> {
    let Some(program) = on_path("etcd") else {
        return Ok(None);
    };
    let folder = folder("etcd")?;
    let port = free_port()?;
    let url = format!("http://127.0.0.1:{port}");
    let mut command = Command::new(program);
    command
        .args(["--listen-client-urls", &url])
        .args(["--advertise-client-urls", &url])
        // A port for members, of which there are no others.
        .args(["--listen-peer-urls", "http://127.0.0.1:0"])
        .args(["--logger", "zap", "--data-dir"])
        .arg(folder.join("data"));
    let (pid, process) = spawn(command, folder, port)?;
    System::new("etcd", Accent::Etcd, port, pid, process).map(Some)
}

/// A transaction of etcd that puts one key, with a value about as large as a stored hold of ours.
pub fn txn_of_one_put() -> Vec<u8> {
    let (key, value) = (b64("put"), b64(&"x".repeat(100)));
    let put = format!(r#"{{"request_put":{{"key":"{key}","value":"{value}"}}}}"#);
    http_with_body("POST", "/v3/kv/txn", &format!(r#"{{"success":[{put}]}}"#))
}

impl System {
    pub fn new(
        name: &'static str,
        accent: Accent,
        port: u16,
        pid: u32,
        process: Process,
    ) -> Result<Self> {
        let framing = match accent {
            Accent::Ours | Accent::Throttle | Accent::Etcd | Accent::BareLoop => Framing::Http,
            Accent::Redis => Framing::Resp,
        };
        Ok(System {
            name,
            accent,
            port,
            pid,
            process,
            script: String::new(),
            desk: RefCell::new(Connection::to(port, framing)?),
        })
    }

    /// A client that has already sent a request on its connection.
    pub fn client(&self, key: &str, name: &str) -> Result<Client> {
        let mut client = self.waiter(key, name)?;
        client.connection.ask(&self.greeting())?;
        Ok(client)
    }

    /// A request that changes nothing.
    pub fn greeting(&self) -> Vec<u8> {
        match self.accent {
            Accent::Ours | Accent::BareLoop => http("GET", "/PING"),
            Accent::Throttle | Accent::Etcd => http("GET", "/health"),
            Accent::Redis => resp(&["PING"]),
        }
    }

    /// A client that shares a key with others, up to `slots` holders.
    pub fn sharing_client(&self, key: &str, name: &str, slots: u32) -> Result<Client> {
        match self.accent {
            Accent::Ours => {
                let mut client = self.client(key, name)?;
                client.lock = http("GET", &format!("/LOCK/{key}/{name}?slots={slots}"));
                Ok(client)
            }
            // throttle's configuration has the count.
            Accent::Throttle => self.client(&format!("slots-{slots}"), name),
            Accent::Redis | Accent::Etcd | Accent::BareLoop => Err("it has no shared lock".into()),
        }
    }

    /// A client without an earlier request on its connection.
    pub fn waiter(&self, key: &str, name: &str) -> Result<Client> {
        let (framing, lock, unlock, farewell) = match self.accent {
            Accent::Ours | Accent::BareLoop => (
                Framing::Http,
                http("GET", &format!("/LOCK/{key}/{name}")),
                http("GET", &format!("/UNLOCK/{key}/{name}")),
                None,
            ),
            Accent::Throttle => {
                let id = self.throttle_id()?;
                let lock = format!("/peers/{id}/{key}?block_for=60s");
                (
                    Framing::Http,
                    http_with_body("PUT", &lock, "1"),
                    http("DELETE", &format!("/peers/{id}/{key}")),
                    Some(http("DELETE", &format!("/peers/{id}"))),
                )
            }
            Accent::Redis => (
                Framing::Resp,
                resp(&["SET", key, name, "NX", "PX", "30000"]),
                resp(&["EVALSHA", &self.script, "1", key, name]),
                None,
            ),
            Accent::Etcd => {
                let lease = self.etcd_lease()?;
                let lock = format!(r#"{{"name":"{}","lease":"{lease}"}}"#, b64(key));
                // The name of the key that etcd puts, which is also in its answer.
                let unlock = format!(r#"{{"key":"{}"}}"#, b64(&format!("{key}/{lease:x}")));
                let revoke = format!(r#"{{"ID":"{lease}"}}"#);
                (
                    Framing::Http,
                    http_with_body("POST", "/v3/lock/lock", &lock),
                    http_with_body("POST", "/v3/lock/unlock", &unlock),
                    Some(http_with_body("POST", "/v3/lease/revoke", &revoke)),
                )
            }
        };
        Ok(Client {
            connection: Connection::to(self.port, framing)?,
            accent: self.accent,
            lock,
            unlock,
            farewell,
        })
    }

    fn throttle_id(&self) -> Result<String> {
        let request = http_with_body("POST", "/new_peer", r#"{"expires_in":"1h"}"#);
        Ok(self.desk.borrow_mut().ask(&request)?.text())
    }

    /// A lease of etcd that outlasts the bench. The request chooses its ID.
    fn etcd_lease(&self) -> Result<u64> {
        static LEASES: AtomicU64 = AtomicU64::new(1);
        let lease = LEASES.fetch_add(1, Relaxed);
        let grant = format!(r#"{{"TTL":"{}","ID":"{lease}"}}"#, HOUR.as_secs());
        let grant = http_with_body("POST", "/v3/lease/grant", &grant);
        let granted = self.desk.borrow_mut().ask(&grant)?;
        match self.accent.is_yes(&granted)? {
            true => Ok(lease),
            false => Err(granted.text().into()),
        }
    }

    /// Stops our own server in order. An error for other systems.
    pub fn stop(&mut self) -> Result<()> {
        match &mut self.process {
            Process::Ours(server) => Ok(server.stop().map(drop)?),
            Process::Foreign { .. } => Err("it is not ours".into()),
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid as i32), signal)?)
    }

    /// The classic port, if the server has one.
    pub fn classic_port(&self) -> Option<u16> {
        match &self.process {
            Process::Ours(server) => server.classic_port(),
            Process::Foreign { .. } => None,
        }
    }

    /// Resident memory in kB of 1024 bytes.
    pub fn resident(&self) -> Result<f64> {
        Ok(self.status("VmRSS:")?.parse()?)
    }

    /// Waits until neither the memory nor the threads of the server have changed for a while.
    pub fn until_settled(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let (mut last, mut since) = (self.status("VmRSS:")?, Instant::now());
        while since.elapsed() < Duration::from_millis(400) {
            if Instant::now() > deadline {
                return Err("the server does not become idle".into());
            }
            thread::sleep(Duration::from_millis(20));
            let now = self.status("VmRSS:")? + &self.status("Threads:")?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    fn status(&self, field: &str) -> Result<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let word = line.and_then(|line| line.split_whitespace().next());
        Ok(word.ok_or("the process has ended")?.to_string())
    }
}

pub fn http(method: &str, path: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
}

fn http_with_body(method: &str, path: &str, json: &str) -> Vec<u8> {
    let length = json.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{json}"
    )
    .into_bytes()
}

/// Bytes in base64, as in etcd's JSON.
fn b64(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

fn resp(words: &[&str]) -> Vec<u8> {
    let words_said = words
        .iter()
        .map(|word| format!("${}\r\n{word}\r\n", word.len()));
    format!("*{}\r\n{}", words.len(), words_said.collect::<String>()).into_bytes()
}

pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

pub fn folder(name: &str) -> Result<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("speed-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// A port that was free a moment ago, for systems that do not report which port they took.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Starts a program that is killed when this process ends, and waits until it listens.
pub fn spawn(mut command: Command, folder: PathBuf, port: u16) -> Result<(u32, Process)> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: between fork and exec only one system call is made.
    unsafe {
        command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    let mut foreign = Foreign {
        child: command.spawn()?,
        folder,
    };
    let deadline = Instant::now() + STARTING;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if let Some(status) = foreign.child.try_wait()? {
            return Err(format!("{:?} ended at once: {status}", command.get_program()).into());
        }
        if Instant::now() > deadline {
            return Err(format!("{:?} does not listen", command.get_program()).into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    let pid = foreign.child.id();
    let process = Process::Foreign {
        _ends_with_this: foreign,
    };
    Ok((pid, process))
}
