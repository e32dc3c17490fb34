//! A real Prometheus, as Debian packages it, and its `promtool`. `.ci/run` installs them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::program::installed;
use super::{PATIENCE, until};

/// A running Prometheus with a folder of its own, on a free loopback port. Dropping it ends it.
pub struct Prometheus {
    folder: TempDir,
    process: Child,
    port: u16,
}

impl Prometheus {
    /// Starts it with these jobs. `None`, with a printed reason, if it is not installed.
    pub fn run(jobs: &str) -> Option<Self> {
        let program = installed("prometheus")?;
        let folder = TempDir::new().unwrap();
        let at = folder.path();
        let configuration = format!("global:\n  scrape_interval: 1s\nscrape_configs:\n{jobs}");
        fs::write(at.join("configuration"), configuration).unwrap();
        let log = fs::File::create(at.join("log")).unwrap();
        let process = Command::new(program)
            .args(["--config.file=configuration", "--storage.tsdb.path=data"])
            .arg("--web.listen-address=127.0.0.1:0")
            .current_dir(at)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut prometheus = Prometheus {
            folder,
            process,
            port: 0,
        };
        until("Prometheus listens", || {
            let ended = prometheus.process.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", prometheus.log());
            prometheus.port = prometheus.listening_port().unwrap_or(0);
            prometheus.port != 0
        });
        Some(prometheus)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn listening_port(&self) -> Option<u16> {
        let log = self.log();
        let line = log.lines().find(|line| line.contains("\"Listening on\""))?;
        line.rsplit_once(':')?.1.parse().ok()
    }

    /// The present series of a query, each with its value. Empty until Prometheus is ready.
    pub fn query(&self, query: &str) -> Vec<(Value, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let query = query.replace('"', "%22");
        let request = format!("GET /api/v1/query?query={query} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let Ok(answer) = serde_json::from_str::<Value>(body) else {
            return Vec::new();
        };
        let series = answer["data"]["result"].as_array().cloned();
        let series = series.unwrap_or_default().into_iter();
        series
            .map(|one| {
                let value = one["value"][1].as_str().unwrap_or_default().to_string();
                (one["metric"].clone(), value)
            })
            .collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = signal::kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

/// Runs `promtool check` with these arguments on this input. `Err` has its complaints. `None`, with a printed reason,
/// if it is not installed.
pub fn promtool(arguments: &[&str], input: &str) -> Option<Result<(), String>> {
    let mut process = Command::new(installed("promtool")?)
        .arg("check")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = process.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let ended = process.wait_with_output().unwrap();
    let said = [ended.stdout, ended.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    Some(if ended.status.success() {
        Ok(())
    } else {
        Err(said)
    })
}
