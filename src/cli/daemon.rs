//! The server in the background: start and stop. The server is that of `run`, in a process that is forked here.

use std::env;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::RawFd;
use std::path::Path;
use std::process::{self, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use lock_server::{Client, Error, Server, ServerAddress, StoreAddress};
use nix::sys::signal::{self, SigSet, SigmaskHow, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{self, ForkResult, Pid};

use crate::cli::advice::explain;
use crate::cli::args::{ServerArgs, Stop, Target};
use crate::cli::ask::{SERVER_VARIABLE, variable};
use crate::cli::endpoint::Endpoint;
use crate::cli::exit::{FAILED, Failure};
use crate::cli::local_server::{self, Answering, at, but_answers, found_by_port};
use crate::cli::pid_file::{Found, LockedPidFile, PidFile};
use crate::cli::pid_record::PidRecord;
use crate::cli::typed_options::TypedOptions;
use crate::cli::{open_log, print, role, say, serve, start_log};

/// How long a server may take until it answers. It needs some milliseconds; the rest is for a busy machine.
const SERVE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often to ask whether it answers.
const POLL: Duration = Duration::from_millis(10);

/// Starts a server, and returns once it answers.
pub fn start(args: ServerArgs, typed: TypedOptions) -> Result<ExitCode, Failure> {
    close_inherited();
    let has_pid_file = args.pid_file.is_some();
    let pid_file = PidFile::new(args.pid_file, args.options.port)?;
    let wanted = at(Some(args.options.host.clone()), Some(args.options.port));
    let typed = typed.absolute()?;
    warn_of_last_options(&pid_file, &typed)?;
    let claimed = pid_file.claim(typed.words(), |running| {
        serve::stop_it(running, &wanted, has_pid_file)
    })?;
    Ok(start_with(typed, claimed)?)
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
        Found::Stale(why, _, file) => {
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

/// Closes the descriptors that the caller had open: a server in the background would keep them open for as long as it
/// serves. Called before this program opens anything.
pub(super) fn close_inherited() {
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

/// Why no server was started.
pub(super) enum NotStarted {
    Failed(Failure),
    /// Another command ended the new server before it answered.
    Ended(Failure),
}

impl From<Failure> for NotStarted {
    fn from(failure: Failure) -> Self {
        NotStarted::Failed(failure)
    }
}

impl From<Error> for NotStarted {
    fn from(error: Error) -> Self {
        NotStarted::Failed(error.into())
    }
}

impl From<NotStarted> for Failure {
    fn from(not_started: NotStarted) -> Self {
        match not_started {
            NotStarted::Failed(failure) | NotStarted::Ended(failure) => failure,
        }
    }
}

/// Starts a server with these options, whose pid file is locked.
pub(super) fn start_with(
    typed: TypedOptions,
    pid_file: LockedPidFile,
) -> Result<ExitCode, NotStarted> {
    let options = typed.parse()?.options;
    let log_to = options.log_to.clone();
    let is_in_cluster = matches!(options.store, Some(StoreAddress::Etcd(_)));
    serve::useless_option(&options).into_iter().for_each(say);
    let lets_strangers_lock = options.token_file.is_none() || options.classic_port.is_some();
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
            warn_of_clients_elsewhere(&endpoint);
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

/// A warning if the last server ended without a stop, and had options that the new one does not get: a store, for
/// instance.
fn warn_of_last_options(pid_file: &PidFile, typed: &TypedOptions) -> Result<(), Failure> {
    if let Found::Stale(_, Some(last), _) = pid_file.find()?
        && let Some(last) = last.options
    {
        let missing = typed.kept_of(&TypedOptions::of(&last));
        if !missing.is_empty() {
            say(&format!(
                "the last server ended without a stop, and had other options, which restart keeps: {}",
                missing.words().join(" ")
            ));
        }
    }
    Ok(())
}

/// A warning if the verbs that ask a server do not ask this one, by the environment. What a proxy leads to is not known.
fn warn_of_clients_elsewhere(endpoint: &Endpoint) {
    let Ok(named) = Target::default().addresses() else {
        return;
    };
    let may_lead_here = |named: &ServerAddress| {
        let is_proxy = named.is_https || !named.prefix.is_empty();
        let is_port = named.port == endpoint.address.port();
        is_proxy || is_port && endpoint.serves_host(&named.host)
    };
    if let Ok(Some(said)) = variable(SERVER_VARIABLE)
        && !named.iter().any(may_lead_here)
    {
        let here = endpoint.reachable();
        say(&format!(
            "{SERVER_VARIABLE} is {said}, so lock, exec and the others ask there; to ask this server, set it to {here}"
        ));
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
fn await_answer(
    child: Pid,
    endpoint: &Endpoint,
    mut failure: PipeReader,
) -> Result<(), NotStarted> {
    let until = Instant::now() + SERVE_TIMEOUT;
    let here = endpoint.reachable();
    let client = Client::new("start", &here.host, here.port);
    while let Err(error) = client.try_ping() {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) if Instant::now() < until => thread::sleep(POLL),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                let failure = Failure::new(FAILED, ended_by(child, signal));
                return Err(match signal {
                    Signal::SIGTERM | Signal::SIGKILL => NotStarted::Ended(failure),
                    _ => NotStarted::Failed(failure),
                });
            }
            Ok(WaitStatus::Exited(_, code)) => {
                let mut message = String::new();
                // A reason that can't be read is left out.
                let _ = failure.read_to_string(&mut message);
                if message.is_empty() {
                    message = ended_with(child, code);
                }
                let is_ended = code == 0;
                let code = u8::try_from(code).unwrap_or(FAILED).max(FAILED);
                let failure = Failure::new(code, message);
                return Err(match is_ended {
                    true => NotStarted::Ended(failure),
                    false => NotStarted::Failed(failure),
                });
            }
            ended => {
                let _ = signal::kill(child, Signal::SIGKILL);
                let why = format!(
                    "process {child} ({ended:?}) does not answer: {}",
                    explain(&error)
                );
                return Err(Failure::new(FAILED, why).into());
            }
        }
    }
    Ok(())
}

pub(super) fn end(server: &PidRecord, file: &File, pid_file: &PidFile) -> Result<(), Failure> {
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
