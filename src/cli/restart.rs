//! `restart`: the server in the background is stopped, and started again with its options, of which the command line
//! replaces some.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use lock_server::{Options, Server, ServerAddress, StoreAddress};
use nix::unistd::{self, AccessFlags};

use crate::cli::args::ServerArgs;
use crate::cli::ask::SERVER_VARIABLE;
use crate::cli::daemon::{NotStarted, close_inherited, end, start_with};
use crate::cli::endpoint::{self, Endpoint};
use crate::cli::exit::{FAILED, Failure};
use crate::cli::local_server::{self, Answering, LocalServer, Meant, but_answers, found_by_port};
use crate::cli::pid_file::{Found, LockedPidFile, PidFile};
use crate::cli::pid_record::PidRecord;
use crate::cli::typed_options::TypedOptions;
use crate::cli::{open_log, print, say};

/// The advice if another server takes the pid file during a restart.
const RESTART_AGAIN: &str =
    "another start or restart came first; restart again for a server with these options";

/// How long to look for a server. Another restart may have ended the old one just now, and not have started its own:
/// then neither has a pid file.
const TAKE_OVER_TIME: Duration = Duration::from_millis(200);

/// How often to look.
const POLL: Duration = Duration::from_millis(10);

/// Stops the server, if it runs, and starts it again with its options, of which these replace some.
pub fn restart(mut args: ServerArgs, typed: TypedOptions) -> Result<ExitCode, Failure> {
    close_inherited();
    let mut typed = typed.absolute()?;
    let has_pid_file = args.pid_file.is_some();
    // The old server listens on this machine, whatever the new `--host` is.
    let meant = local_server::meant(args.port, has_pid_file)?;
    let here = &meant.address;
    let pid_file = PidFile::new(args.pid_file.take(), here.port)?;
    let old = OldServer::find(&pid_file, &meant, has_pid_file)?;
    let before = old.as_ref().and_then(|old| old.options(here.port));
    let port_of_old = before.as_ref().and_then(|before| before.value("--port"));
    let port = match (args.port, port_of_old) {
        // Its port may change.
        (None, Some(port)) if has_pid_file => port.into(),
        _ => here.port.to_string(),
    };
    let kept = before.as_ref().map(|before| typed.kept_of(before));
    typed = typed.with(kept.clone().unwrap_or_default());
    typed.set("--port", port);
    let classic_port = before
        .as_ref()
        .and_then(|before| before.value("--classic-port"));
    if let Some(port) = classic_port.filter(|_| typed.value("--classic-port").is_none()) {
        typed.set("--classic-port", port);
    }
    args = typed.parse()?;
    check_named_host(&meant, &args)?;
    let restart = Restart {
        pid_file,
        typed,
        before,
        kept,
    };
    match old {
        Some(old) if old.runs() => restart.replace(old, &args.options, here),
        _ => restart.start(here),
    }
}

/// A restart whose options are known.
struct Restart {
    pid_file: PidFile,
    /// The options of the new server.
    typed: TypedOptions,
    /// Those of the old server, if they are known, and those of them that the new server has, too.
    before: Option<TypedOptions>,
    kept: Option<TypedOptions>,
}

impl Restart {
    fn claim(&self, typed: &TypedOptions) -> Result<LockedPidFile, Failure> {
        let pid_file = self.pid_file.clone();
        pid_file.claim(typed.words(), |_| RESTART_AGAIN.into())
    }

    /// Starts a server where none runs.
    fn start(self, here: &ServerAddress) -> Result<ExitCode, Failure> {
        let claimed = self.claim(&self.typed)?;
        match self.kept.filter(|kept| !kept.is_empty()) {
            Some(kept) => {
                let kept = kept.words().join(" ");
                say(&format!(
                    "no server was running on {here}; kept the options of the last one: {kept}"
                ));
            }
            None => say(&format!("no server was running on {here}")),
        }
        Ok(start_with(self.typed, claimed)?)
    }

    /// Ends the old server, and starts the new one. If that fails, starts one with the old options.
    fn replace(
        self,
        old: OldServer,
        options: &Options,
        here: &ServerAddress,
    ) -> Result<ExitCode, Failure> {
        let goes_on = |failure: Failure| failure.and("the old server goes on");
        try_options(options, |port| old.frees(&options.host, port)).map_err(goes_on)?;
        // Before the old server ends, unless that one has the file.
        let claimed = match &old {
            OldServer::OfPidFile(..) => None,
            _ => Some(self.claim(&self.typed).map_err(goes_on)?),
        };
        let is_foreground = self.before.is_some() && old.is_without_record();
        old.end(&self.pid_file, here)?;
        let claimed = match claimed {
            Some(claimed) => claimed,
            None => self.claim(&self.typed)?,
        };
        match start_with(self.typed.clone(), claimed) {
            Err(NotStarted::Failed(failure)) => Err(self.start_again(failure)),
            Err(NotStarted::Ended(failure)) => Err(failure),
            Ok(started) => {
                self.report_kept();
                if is_foreground {
                    say("it is in the background now, and logs only with --log-file");
                }
                Ok(started)
            }
        }
    }

    /// After a failure that left no server, starts one with the options of the old one. Returns what came of both.
    fn start_again(&self, failure: Failure) -> Failure {
        let Some(before) = &self.before else {
            return failure.and("no server is left");
        };
        let claimed = self.claim(before).map_err(NotStarted::from);
        match claimed.and_then(|claimed| start_with(before.clone(), claimed)) {
            Ok(_) => failure.and("one with the old options serves again"),
            Err(again) => {
                let (_, why) = Failure::from(again).into_parts();
                failure.and(format!("nor does one with the old options start: {why}"))
            }
        }
    }

    /// Writes which options of the old server the new one keeps, and whether it leaves the locks of the old one behind.
    fn report_kept(&self) {
        let (Some(before), Some(kept)) = (&self.before, &self.kept) else {
            return say(
                "the options of the old server are not known, so none is kept; \
                 if it had a --store or a --host, for instance, restart again with it",
            );
        };
        if !kept.is_empty() {
            let kept = kept.words().join(" ");
            say(&format!("kept the options of the old server: {kept}"));
        }
        let (old, new) = (before.value("--store"), self.typed.value("--store"));
        if let Some(old) = old.filter(|_| old != new) {
            say(&format!(
                "the old server kept its locks in {old}; the new one does not know those locks"
            ));
        }
    }
}

/// The server whose place a restart takes.
enum OldServer {
    /// The one of the pid file, which it has locked.
    OfPidFile(PidRecord, File),
    /// The one that answers at the port.
    AtPort(LocalServer),
    /// The last one of a stale pid file, which has ended without a stop.
    Ended(PidRecord),
}

impl OldServer {
    /// The server that is meant: a running one, or else the last one.
    fn find(
        pid_file: &PidFile,
        meant: &Meant,
        has_pid_file: bool,
    ) -> Result<Option<Self>, Failure> {
        let until = Instant::now() + TAKE_OVER_TIME;
        loop {
            match OldServer::look(pid_file, meant, has_pid_file)? {
                None if Instant::now() < until => thread::sleep(POLL),
                found => return Ok(found),
            }
        }
    }

    fn look(
        pid_file: &PidFile,
        meant: &Meant,
        has_pid_file: bool,
    ) -> Result<Option<Self>, Failure> {
        // A stale file is closed again here, so that the new server can lock it.
        let last = match pid_file.find()? {
            Found::Running(other, _) if !has_pid_file && !meant.is(&other.endpoint) => {
                return Err(not_meant(pid_file, &other.endpoint, &meant.address));
            }
            Found::Running(old, file) => return Ok(Some(OldServer::OfPidFile(old, file))),
            Found::Stale(_, last, _) => last.filter(|last| meant.is(&last.endpoint)),
            _ => None,
        };
        let last = last.map(OldServer::Ended);
        if has_pid_file {
            return Ok(last);
        }
        match local_server::ask(&meant.address)? {
            // A server as root with the options of another user would open files for that user.
            Answering::Ours(old) if !old.is_own => {
                let why = format!(
                    "process {} serves on {} as another user; nothing was restarted: restart it as that user",
                    old.pid, meant.address
                );
                Err(Failure::new(FAILED, why))
            }
            Answering::Ours(old) => Ok(Some(OldServer::AtPort(old))),
            Answering::NotOurs(why) => {
                let why = format!(": {why}; nothing was restarted, end it where it was started");
                let answers = but_answers(pid_file, &meant.address, &why);
                Err(Failure::new(FAILED, format!("not running{answers}")))
            }
            // If something else listens there, the new server reports it.
            _ => Ok(last),
        }
    }

    /// Whether it runs.
    fn runs(&self) -> bool {
        !matches!(self, OldServer::Ended(_))
    }

    /// Whether it has no pid file.
    fn is_without_record(&self) -> bool {
        matches!(self, OldServer::AtPort(old) if old.recorded_options().is_none())
    }

    /// What it was started with, if that can be found out, with the ports that it has. `port` is its HTTP port, if no
    /// record names it.
    fn options(&self, port: u16) -> Option<TypedOptions> {
        let (typed, port, classic_port) = match self {
            OldServer::OfPidFile(old, _) | OldServer::Ended(old) => {
                let Endpoint {
                    address,
                    classic_port,
                    ..
                } = &old.endpoint;
                let typed = old.options.as_deref().map(TypedOptions::of);
                (typed, address.port(), *classic_port)
            }
            OldServer::AtPort(old) => {
                let typed = old.recorded_options();
                let typed = typed.or_else(|| old.foreground_options());
                let classic_port = old.ports.iter().copied().find(|other| *other != port);
                (typed, port, classic_port)
            }
        };
        let mut typed = typed?;
        typed.set("--port", port);
        if let Some(classic_port) = classic_port {
            typed.set("--classic-port", classic_port);
        }
        Some(typed)
    }

    /// Whether a server on this host can have the port once this one has ended.
    fn frees(&self, host: &str, port: u16) -> bool {
        match self {
            OldServer::OfPidFile(old, _) => old.endpoint.blocks(host, port),
            OldServer::AtPort(old) => old.ports.contains(&port),
            OldServer::Ended(_) => false,
        }
    }

    /// Ends it, and closes its pid file, whose lock this process may have now: the new server must not inherit it.
    fn end(self, pid_file: &PidFile, here: &ServerAddress) -> Result<(), Failure> {
        match self {
            OldServer::OfPidFile(old, file) => end(&old, &file, pid_file),
            OldServer::AtPort(old) => {
                old.end()?;
                say(&found_by_port(pid_file, None, here));
                print(&format!("stopped process {}", old.pid));
                Ok(())
            }
            OldServer::Ended(_) => Ok(()),
        }
    }
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
    if let Some(path) = &options.log_to {
        open_log(path)?;
    }
    let Some(StoreAddress::File(path)) = &options.store else {
        return Ok(());
    };
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let folder = folder.unwrap_or(Path::new("."));
    let may_write = AccessFlags::W_OK | AccessFlags::X_OK;
    unistd::access(folder, may_write).map_err(|error| {
        let what = format!("cannot make a store in {}", folder.display());
        Failure::system(&what, io::Error::from(error))
    })
}
