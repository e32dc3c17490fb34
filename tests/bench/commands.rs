//! The times that a shell or a test waits for: a command under a lock, and the start of a server.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use lock_server::{Options, Server};

use crate::load::{Connection, Framing, Result};
use crate::report::quantile;
use crate::systems::{self, System};
use crate::{Bench, Contestant};

/// The time of a command that does nothing, under `exec`, under flock(1), which needs no server, and under etcdctl,
/// which uses etcd.
pub fn under_a_lock(bench: &mut Bench) -> Result<()> {
    const COLUMN: &str = "a command under a lock";
    if !bench.wanted(COLUMN) {
        return Ok(());
    }
    let server = systems::ours_with_long_leases()?;
    let times = if bench.quick { 15 } else { 40 };
    let contestant = |name, mut command: Command| {
        command.stdout(Stdio::null());
        Contestant::new(name, move || {
            Ok(vec![("", median_run(&mut command, times)?)])
        })
    };
    // A copy, like an installed program. The linker's file is in smaller pieces in the page cache, and starts later by
    // a tenth of a command under flock.
    let installed = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("installed");
    fs::copy(env!("CARGO_BIN_EXE_lock-server"), &installed)?;
    let mut exec = Command::new(installed);
    exec.args([
        "exec",
        "--port",
        &server.port.to_string(),
        "K",
        "--",
        "true",
    ]);
    let mut flock = Command::new("flock");
    flock
        .arg(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("flock"))
        .arg("true");
    let mut contestants = vec![contestant("lock-server", exec), contestant("flock", flock)];
    let etcd = systems::etcd()?;
    match etcd.as_ref().map(etcdctl_lock) {
        Some(Ok(etcdctl)) => contestants.push(contestant("etcdctl lock", etcdctl)),
        Some(Err(missing)) => bench.report.note(missing),
        None => bench.report.note("etcd is not on the path".into()),
    }
    bench.column(COLUMN, "ms", contestants);
    Ok(())
}

fn etcdctl_lock(etcd: &System) -> std::result::Result<Command, String> {
    let program = systems::on_path("etcdctl").ok_or("etcdctl is not on the path")?;
    let mut command = Command::new(program);
    command
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints=http://127.0.0.1:{}", etcd.port))
        .args(["lock", "K", "true"]);
    Ok(command)
}

/// The median time of a command from its start to its end, in milliseconds.
fn median_run(command: &mut Command, times: usize) -> Result<f64> {
    let mut taken = Vec::new();
    for _ in 0..times {
        let begun = Instant::now();
        let status = command.status()?;
        taken.push(begun.elapsed().as_secs_f64() * 1e3);
        if !status.success() {
            return Err(format!("it ended with {status}").into());
        }
    }
    Ok(quantile(&taken, 0.5))
}

/// The time from the call of `Server::start` until a client has an answer.
pub fn start(bench: &mut Bench) {
    const COLUMN: &str = "start until it answers";
    let times = if bench.quick { 5 } else { 20 };
    let start = move || {
        let mut taken = Vec::new();
        for _ in 0..times {
            let mut server = Server::new(Options {
                port: 0,
                ..Options::default()
            });
            let begun = Instant::now();
            server.start()?;
            Connection::to(server.port(), Framing::Http)?.ask(&systems::http("GET", "/PING"))?;
            taken.push(begun.elapsed().as_secs_f64() * 1e3);
            server.stop()?;
        }
        Ok(vec![("", quantile(&taken, 0.5))])
    };
    bench.column(COLUMN, "ms", vec![Contestant::new("lock-server", start)]);
}
