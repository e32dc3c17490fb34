//! The server in the background: start, stop, restart, status.

use std::env;
use std::io::{self, Write};
use std::path;
use std::process::ExitCode;

use lock_server::{Client, Error, Options, Server};

use crate::cli::advice::explain;
use crate::cli::args::{ServerArgs, StatusArgs, Stop};
use crate::cli::endpoint::Endpoint;
use crate::cli::exit::{FAILED, Failure};
use crate::cli::pid_file::{Found, PidFile, Record};
use crate::cli::print;

/// Starts a server, and returns once it answers.
pub fn start(args: ServerArgs) -> Result<ExitCode, Failure> {
    let pid_file = PidFile::new(args.pid_file, args.options.port)?;
    pid_file.expect_free()?;
    start_with(args.options, &pid_file)
}

/// Stops the server that the pid file names.
pub fn stop(args: Stop) -> Result<ExitCode, Failure> {
    let port = args.port.unwrap_or(Options::default().port);
    let pid_file = PidFile::new(args.pid_file, port)?;
    let path = pid_file.path();
    let not_running = match pid_file.find()? {
        Found::Running(record) => {
            end(&record, &pid_file)?;
            return Ok(ExitCode::SUCCESS);
        }
        Found::Nothing => match without_pid_file(&Options::default().host, port, &pid_file) {
            Some(answers) => format!("not running, but {answers}; end it where it was started"),
            None => format!("not running: there is no {path}"),
        },
        Found::Stale(why) => {
            pid_file.remove()?;
            format!("not running; removed {path}, which was stale: {why}")
        }
        Found::Foreign(why) => format!("not running; {path} is no pid file of ours: {why}"),
    };
    Err(Failure::new(FAILED, not_running))
}

/// Stops the server, if it runs, and starts it again with these options.
pub fn restart(args: ServerArgs) -> Result<ExitCode, Failure> {
    let pid_file = PidFile::new(args.pid_file, args.options.port)?;
    let Found::Running(record) = pid_file.find()? else {
        pid_file.expect_free()?;
        return start_with(args.options, &pid_file);
    };
    // Options that cannot serve are found out while the running server still does. Its own ports will be free.
    let free = |port| if record.endpoint.has(port) { 0 } else { port };
    let trial = Options {
        port: free(args.options.port),
        classic_port: args.options.classic_port.map(free),
        ..args.options.clone()
    };
    Server::new(trial).bind()?;
    let lost = record
        .endpoint
        .classic_port
        .filter(|_| args.options.classic_port.is_none());
    end(&record, &pid_file)?;
    let started = start_with(args.options, &pid_file)?;
    if let Some(port) = lost {
        // Nobody has to read it.
        let _ = writeln!(
            io::stderr(),
            "lock-server: the old server had classic clients on port {port}; the new one has none"
        );
    }
    Ok(started)
}

/// Says whether the server that the pid file names runs and answers.
pub fn status(args: StatusArgs) -> Result<ExitCode, Failure> {
    let defaults = Options::default();
    let port = args.port.unwrap_or(defaults.port);
    let host = args.host.unwrap_or(defaults.host);
    let pid_file = PidFile::new(args.pid_file, port)?;
    let path = pid_file.path();
    let state = match pid_file.find()? {
        Found::Running(record) => {
            let (pid, endpoint) = (record.process.pid, record.endpoint);
            let here = endpoint.reachable();
            if Client::new("status", &here.host, here.port).ping() {
                return Ok(print(&format!("running, process {pid}, on {endpoint}")));
            }
            format!(
                "process {pid} runs but does not answer on {}",
                endpoint.address
            )
        }
        Found::Nothing => match without_pid_file(&host, port, &pid_file) {
            Some(answers) => format!("not running, but {answers}"),
            None => "not running".into(),
        },
        Found::Stale(why) => format!("not running; {path} is stale: {why}"),
        Found::Foreign(why) => format!("not running; {path} is no pid file of ours: {why}"),
    };
    print(&state);
    Ok(ExitCode::from(FAILED))
}

/// What answers where no pid file says that anything does.
fn without_pid_file(host: &str, port: u16, pid_file: &PidFile) -> Option<String> {
    if port == 0 {
        return None;
    }
    match Client::new("status", host, port).try_ping() {
        Ok(()) => Some(format!(
            "a server that has no {} answers on {host}:{port}",
            pid_file.path()
        )),
        Err(error @ Error::NotHttp { .. }) => Some(explain(&error)),
        Err(_) => None,
    }
}

fn start_with(options: Options, pid_file: &PidFile) -> Result<ExitCode, Failure> {
    let log_to = options.log_to.map(path::absolute).transpose();
    let mut server = Server::new(Options {
        outlive_parent: true,
        log_to: log_to.map_err(|error| Failure::system("no current directory", error))?,
        ..options
    });
    let endpoint = Endpoint::bind(&mut server)?;
    if !endpoint.address.ip().is_loopback() {
        // The daemon may have no log. Nobody has to read it.
        let _ = writeln!(
            io::stderr(),
            "lock-server: {endpoint} can be reached from other machines, and names are not credentials: \
             all that reach it can lock and unlock"
        );
    }
    // The child would keep the directory from being unmounted or removed.
    env::set_current_dir("/").map_err(|error| Failure::system("cannot go to /", error))?;
    let pid = server.start()?;
    if let Err(failure) = pid_file.write(pid, endpoint) {
        // Nobody would find a server without a record again.
        server.stop()?;
        return Err(failure);
    }
    // It serves, whether or not anybody reads that.
    print(&format!(
        "started lock-server, process {pid}, on {endpoint}"
    ));
    Ok(ExitCode::SUCCESS)
}

fn end(record: &Record, pid_file: &PidFile) -> Result<(), Failure> {
    let pid = record.process.pid;
    record
        .process
        .end()
        .map_err(|error| Failure::system(format_args!("cannot stop process {pid}"), error))?;
    pid_file.remove_if_of(record)?;
    print(&format!("stopped process {pid}"));
    Ok(())
}
