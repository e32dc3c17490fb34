//! The server in the background: start, stop, restart. The server is that of `run`, in a process that is forked here.

use std::env;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::RawFd;
use std::path::{self, Path};
use std::process::{self, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use lock_server::{Client, Options, Server, ServerAddress, StoreAddress};
use nix::sys::signal::{self, SigSet, SigmaskHow, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{self, AccessFlags, ForkResult, Pid};

use crate::cli::advice::explain;
use crate::cli::args::{ServerArgs, Stop};
use crate::cli::ask::SERVER_VARIABLE;
use crate::cli::endpoint::{self, Endpoint};
use crate::cli::exit::{FAILED, Failure};
use crate::cli::local_server::{self, Answering, Meant, at, but_answers, client_of, found_by_port};
use crate::cli::pid_file::{Found, PidFile, PidRecord};
use crate::cli::{open_log, print, role, say, serve, start_log};

/// How long a server may take until it answers. It needs some milliseconds; the rest is for a busy machine.
const SERVE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often to ask whether it answers.
const POLL: Duration = Duration::from_millis(10);

/// The advice if another server takes the pid file during a restart.
const RESTART_AGAIN: &str =
    "another start or restart came first; restart again for a server with these options";

/// Starts a server, and returns once it answers.
pub fn start(args: ServerArgs) -> Result<ExitCode, Failure> {
    close_inherited();
    let has_pid_file = args.pid_file.is_some();
    let pid_file = PidFile::new(args.pid_file, args.options.port)?;
    let wanted = at(Some(args.options.host.clone()), Some(args.options.port));
    start_with(args.options, pid_file, |running| {
        serve::stop_it(running, &wanted, has_pid_file)
    })
}

/// Stops the server that the pid file names, or else the one at the port. If only a pid file is given, the server at
/// the default port may be a different one.
pub fn stop(args: Stop) -> Result<ExitCode, Failure> {
    let has_pid_file = args.pid_file.is_some();
    let may_go_by_port = args.port.is_some() || !has_pid_file;
    let meant = local_server::meant(args.port, has_pid_file)?;
    let here = &meant.address;
    let pid_file = PidFile::new(args.pid_file, here.port)?;
    let path = pid_file.path();
    let mut other = None;
    let not_running = match pid_file.find()? {
        Found::Running(server, file) if meant.is(&server.endpoint) => {
            end(&server, &file, &pid_file)?;
            return Ok(ExitCode::SUCCESS);
        }
        Found::Running(PidRecord { endpoint, .. }, _) if has_pid_file => {
            let port = here.port;
            let why = format!(
                "{path} names the server on {endpoint}, not one at port {port}; nothing was stopped: leave out --port or --pid-file"
            );
            return Err(Failure::new(FAILED, why));
        }
        Found::Running(PidRecord { endpoint, .. }, _) => {
            let why = format!("not running on {here}; {path} names the server on {endpoint}");
            other = Some(endpoint);
            why
        }
        Found::Nothing => "not running".into(),
        Found::Stale(why, file) => {
            pid_file.remove(&file)?;
            format!("not running; removed {path}, which was stale: {why}")
        }
        Found::Foreign(why) => format!("not running; {path} is no pid file of ours: {why}"),
    };
    let port = here.port;
    let why = match local_server::ask(here)? {
        Answering::Ours(server) if may_go_by_port => {
            server.end()?;
            say(&found_by_port(&pid_file, other.as_ref(), here));
            print(&format!("stopped process {}", server.pid));
            return Ok(ExitCode::SUCCESS);
        }
        Answering::Ours(_) => {
            let why = format!(" as another process than {path} names; stop it with --port {port}");
            but_answers(&pid_file, here, &why)
        }
        Answering::NotOurs(why) => {
            let why = format!(": {why}; end it where it was started");
            but_answers(&pid_file, here, &why)
        }
        Answering::NotHttp(why) => format!("; {why}"),
        Answering::Nothing if other.is_some() => String::new(),
        Answering::Nothing => format!("; no running server has the pid file {path}"),
    };
    Err(Failure::new(FAILED, format!("{not_running}{why}")))
}

/// Stops the server, if it runs, and starts it again with these options.
pub fn restart(mut args: ServerArgs) -> Result<ExitCode, Failure> {
    close_inherited();
    let may_go_by_port = args.pid_file.is_none();
    // The old server listens on this machine, whatever the new `--host` is.
    let meant = local_server::meant(args.port, args.pid_file.is_some())?;
    let here = &meant.address;
    let pid_file = PidFile::new(args.pid_file.take(), here.port)?;
    // A stale file is closed again here, so that the new server can lock it.
    let running = match pid_file.find()? {
        Found::Running(old, file) => Some((old, file)),
        _ => None,
    };
    let port = match &running {
        // Its port may change.
        Some((old, _)) if !may_go_by_port => args.port.unwrap_or(old.endpoint.address.port()),
        Some((other, _)) if !meant.is(&other.endpoint) => {
            return Err(not_meant(&pid_file, &other.endpoint, here));
        }
        _ => here.port,
    };
    check_named_host(&meant, &args)?;
    args.options.port = port;
    let mut store = None;
    let classic_port = if let Some((old, file)) = running {
        let host = &args.options.host;
        try_options(&args.options, |port| old.endpoint.blocks(host, port))?;
        store = store_of(old.endpoint.reachable());
        end(&old, &file, &pid_file)?;
        old.endpoint.classic_port
    } else {
        match local_server::ask(here)? {
            Answering::Ours(old) if may_go_by_port => {
                try_options(&args.options, |port| old.ports.contains(&port))?;
                store = store_of(here.clone());
                old.end()?;
                say(&found_by_port(&pid_file, None, here));
                print(&format!("stopped process {}", old.pid));
                old.ports.into_iter().find(|other| *other != port)
            }
            _ => None,
        }
    };
    let lost = classic_port.filter(|_| args.options.classic_port.is_none());
    let lost_store = store.filter(|_| args.options.store.is_none());
    let started = start_with(args.options, pid_file, |_| RESTART_AGAIN.into())?;
    if let Some(port) = lost {
        say(&format!(
            "the old server had classic clients on port {port}; the new one has none"
        ));
    }
    if let Some(kind) = lost_store {
        say(&format!(
            "the old server kept its locks in a store ({kind}); the new one has none and does not know those locks: give --store to restart, too"
        ));
    }
    Ok(started)
}

/// The failure if the pid file that the new server would have is another server's than the one that is meant.
fn not_meant(pid_file: &PidFile, other: &Endpoint, meant: &ServerAddress) -> Failure {
    let path = pid_file.path();
    let why = format!(
        "{path} names the server on {other}, not one on {meant}; nothing was restarted: give --host, --port and the --pid-file of the server that you mean"
    );
    Failure::new(FAILED, why)
}

/// Refuses to stop a server that the environment names where the new one would, for lack of `--host`, listen elsewhere.
fn check_named_host(meant: &Meant, args: &ServerArgs) -> Result<(), Failure> {
    let (named, host) = (&meant.address, &args.options.host);
    let is_given = args.listens_by == Some("--host");
    if !meant.names_host || is_given || endpoint::leads_to(&named.host, host) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{SERVER_VARIABLE} names {named}, but the new server would listen on {host}; nothing was restarted: give --host and --port"
    )))
}

/// Finds out whether the options can serve, while the old server still does. Its ports will be free.
fn try_options(options: &Options, will_be_free: impl Fn(u16) -> bool) -> Result<(), Failure> {
    let free = |port| if will_be_free(port) { 0 } else { port };
    let trial = Options {
        port: free(options.port),
        classic_port: options.classic_port.map(free),
        ..options.clone()
    };
    Server::new(trial).bind()?;
    let Some(StoreAddress::File(path)) = &options.store else {
        return Ok(());
    };
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let folder = folder.unwrap_or(Path::new("."));
    let may_write = AccessFlags::W_OK | AccessFlags::X_OK;
    unistd::access(folder, may_write).map_err(|error| {
        let what = format!(
            "cannot make a store in {}; the old server goes on",
            folder.display()
        );
        Failure::system(&what, io::Error::from(error))
    })
}

/// The kind of store of a server on this machine, if it has one and reports it.
fn store_of(here: ServerAddress) -> Option<String> {
    let client = client_of(here, Duration::from_secs(1));
    Some(client.status().ok()?.store?.kind)
}

/// Closes the descriptors that the caller had open: a server in the background would keep them open for as long as it
/// serves. Called before this program opens anything.
fn close_inherited() {
    let Ok(open) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<RawFd> = open
        .filter_map(|fd| fd.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // The descriptor that the list was read with is closed already.
        let _ = unistd::close(fd);
    }
}

/// Makes the paths absolute, because the server changes its directory.
fn make_absolute(options: &mut Options) -> io::Result<()> {
    if let Some(StoreAddress::File(path)) = &mut options.store {
        *path = path::absolute(&path)?;
    }
    let cluster = &mut options.cluster;
    let paths = [
        &mut options.log_to,
        &mut options.token_file,
        &mut cluster.password_file,
        &mut cluster.ca_file,
        &mut cluster.cert_file,
        &mut cluster.key_file,
    ];
    for path in paths.into_iter().flatten() {
        *path = path::absolute(&path)?;
    }
    Ok(())
}

fn start_with(
    mut options: Options,
    pid_file: PidFile,
    advice: impl Fn(&Endpoint) -> String,
) -> Result<ExitCode, Failure> {
    make_absolute(&mut options).map_err(|error| Failure::system("no current directory", error))?;
    let log_to = options.log_to.clone();
    let is_in_cluster = matches!(options.store, Some(StoreAddress::Etcd(_)));
    let lets_strangers_lock = options.token_file.is_none() || options.classic_port.is_some();
    let pid_file = pid_file.claim(advice)?;
    let mut server = Server::new(options);
    let endpoint = Endpoint::bind(&mut server)?;
    // The daemon may have no log.
    server.warnings().iter().for_each(|warning| say(warning));
    if endpoint.exposed().next().is_some() && lets_strangers_lock {
        say(&format!(
            "{endpoint} can be reached from other machines, and names are not credentials: \
             all that reach it can lock and unlock"
        ));
    }
    // The server would keep its directory from being unmounted or removed.
    env::set_current_dir("/").map_err(|error| Failure::system("cannot go to /", error))?;
    let (failure, mut report) =
        io::pipe().map_err(|error| Failure::system("cannot make a pipe", error))?;
    // SAFETY: this process has had only one thread until here, so no other thread can hold a lock that the child needs.
    let forked = unsafe { unistd::fork() };
    match forked.map_err(|error| Failure::system("cannot fork", error))? {
        ForkResult::Child => {
            let lived = detach(log_to.as_deref())
                .and_then(|()| serve::serve(server, &endpoint, Some(pid_file), |_| ()));
            let (code, message) = lived.err().map(Failure::into_parts).unwrap_or_default();
            if code != 0 {
                log::error!("{message}");
                // It fails once the server has answered: then the parent no longer reads it.
                let _ = report.write_all(message.as_bytes());
            }
            process::exit(code.into())
        }
        ForkResult::Parent { child } => {
            let looks = is_in_cluster.then(|| server.client("start"));
            drop((server, report));
            pid_file.leave_to_child();
            await_answer(child, &endpoint, failure)?;
            // The server serves, even if this line can't be printed.
            print(&format!(
                "started lock-server, process {child}, on {endpoint}"
            ));
            if let Some(why) = looks.and_then(|client| role::why_leaderless(&client)) {
                let log = log_to.map_or("give it --log-file for more".into(), |log| {
                    format!("see {}", log.display())
                });
                say(&format!("{why} ({log})"));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Detaches this process from the terminal, its signals and the caller's streams. Standard error becomes the log, so
/// that panics are logged, too.
fn detach(log_to: Option<&Path>) -> Result<(), Failure> {
    let cannot = |error| Failure::system("cannot run in the background", error);
    // It fails only for the leader of a process group, which a newly forked process is not.
    let _ = unistd::setsid();
    let _ = signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    let nowhere = File::options().read(true).write(true).open("/dev/null");
    let nowhere = nowhere.map_err(|error| Failure::system("cannot open /dev/null", error))?;
    unistd::dup2_stdin(&nowhere).map_err(cannot)?;
    unistd::dup2_stdout(&nowhere).map_err(cannot)?;
    let Some(log_to) = log_to else {
        return unistd::dup2_stderr(&nowhere).map_err(cannot);
    };
    unistd::dup2_stderr(open_log(log_to)?).map_err(cannot)?;
    start_log("info", None)?;
    serve::log_panics_of_tiny_http();
    Ok(())
}

/// The message for a server that a signal ended before it answered.
fn ended_by(child: Pid, signal: Signal) -> String {
    match signal {
        Signal::SIGTERM | Signal::SIGKILL => ended_by_another(child, signal.as_str()),
        signal => format!("process {child} was ended by {signal} before it answered"),
    }
}

/// The message for a server that ended with this exit code and without a reason.
fn ended_with(child: Pid, code: i32) -> String {
    match code {
        0 => ended_by_another(child, "a stop"),
        code => format!("process {child} ended with {code} before it answered"),
    }
}

fn ended_by_another(child: Pid, by: &str) -> String {
    format!(
        "process {child} was ended by {by} before it answered, most likely for another stop or restart; start or restart again"
    )
}

/// Returns once the server answers, and fails if it ends before.
fn await_answer(child: Pid, endpoint: &Endpoint, mut failure: PipeReader) -> Result<(), Failure> {
    let until = Instant::now() + SERVE_TIMEOUT;
    let here = endpoint.reachable();
    let client = Client::new("start", &here.host, here.port);
    while let Err(error) = client.try_ping() {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) if Instant::now() < until => thread::sleep(POLL),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Err(Failure::new(FAILED, ended_by(child, signal)));
            }
            Ok(WaitStatus::Exited(_, code)) => {
                let mut message = String::new();
                // A reason that can't be read is left out.
                let _ = failure.read_to_string(&mut message);
                if message.is_empty() {
                    message = ended_with(child, code);
                }
                let code = u8::try_from(code).unwrap_or(FAILED).max(FAILED);
                return Err(Failure::new(code, message));
            }
            ended => {
                let _ = signal::kill(child, Signal::SIGKILL);
                let why = format!(
                    "process {child} ({ended:?}) does not answer: {}",
                    explain(&error)
                );
                return Err(Failure::new(FAILED, why));
            }
        }
    }
    Ok(())
}

fn end(server: &PidRecord, file: &File, pid_file: &PidFile) -> Result<(), Failure> {
    pid_file.end(server, file)?;
    print(&format!("stopped process {}", server.pid));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen to fail: the message had the debug form of a wait status.
    #[test]
    fn only_an_end_that_a_stop_asks_for_is_called_another_stop() {
        let child = Pid::from_raw(7);
        let is_another = |why: &str| why.contains("another stop or restart");
        for why in [
            ended_by(child, Signal::SIGTERM),
            ended_by(child, Signal::SIGKILL),
            ended_with(child, 0),
        ] {
            assert!(is_another(&why), "{why}");
        }
        for (why, word) in [
            (ended_by(child, Signal::SIGSEGV), "SIGSEGV"),
            (ended_with(child, 101), "101"),
        ] {
            assert!(why.contains(word) && !is_another(&why), "{why}");
        }
    }
}
