//! `restart`: the server in the background is stopped, and started again with its options, of which the command line
//! replaces some.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use lock_server::{Options, Server, ServerAddress, StoreAddress};
use nix::unistd::{self, AccessFlags};

use crate::cli::args::ServerArgs;
use crate::cli::ask::SERVER_VARIABLE;
use crate::cli::daemon::{close_inherited, end, start_with};
use crate::cli::endpoint::{self, Endpoint};
use crate::cli::exit::{FAILED, Failure};
use crate::cli::local_server::{self, Answering, LocalServer, Meant, but_answers, found_by_port};
use crate::cli::pid_file::{Found, PidFile};
use crate::cli::pid_record::PidRecord;
use crate::cli::typed_options::TypedOptions;
use crate::cli::{print, say};

/// The advice if another server takes the pid file during a restart.
const RESTART_AGAIN: &str =
    "another start or restart came first; restart again for a server with these options";

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
    let port = match &old {
        // Its port may change.
        Some(OldServer::OfPidFile(old, _)) if has_pid_file => {
            args.port.unwrap_or(old.endpoint.address.port())
        }
        _ => here.port,
    };
    let before = old.as_ref().and_then(OldServer::options);
    let kept = before.as_ref().map(|before| typed.kept_of(before));
    typed = typed.with(kept.clone().unwrap_or_default());
    typed.set("--port", port);
    if let Some(old) = &old
        && typed.value("--classic-port").is_none()
        && let Some(classic_port) = old.classic_port(here.port)
    {
        typed.set("--classic-port", classic_port);
    }
    args = typed.parse()?;
    check_named_host(&meant, &args)?;
    if let Some(old) = old {
        let host = &args.options.host;
        try_options(&args.options, |port| old.frees(host, port))?;
        old.end(&pid_file, here)?;
        report_kept(before.as_ref(), kept.as_ref(), typed.value("--store"));
    }
    start_with(typed, pid_file, |_| RESTART_AGAIN.into())
}

/// Writes which options of the old server the new one keeps, and whether it leaves the locks of the old one behind.
fn report_kept(before: Option<&TypedOptions>, kept: Option<&TypedOptions>, store: Option<&str>) {
    let (Some(before), Some(kept)) = (before, kept) else {
        return say(
            "the options of the old server are not known, so none is kept; \
             if it had a --store or a --host, for instance, restart again with it",
        );
    };
    if !kept.is_empty() {
        let kept = kept.words().join(" ");
        say(&format!("kept the options of the old server: {kept}"));
    }
    if let Some(old) = before.value("--store").filter(|old| Some(*old) != store) {
        say(&format!(
            "the old server kept its locks in {old}; the new one does not know those locks"
        ));
    }
}

/// The server that a restart ends.
enum OldServer {
    /// The one of the pid file, which it has locked.
    OfPidFile(PidRecord, File),
    /// The one that answers at the port.
    AtPort(LocalServer),
}

impl OldServer {
    /// The server that is meant, if it runs.
    fn find(
        pid_file: &PidFile,
        meant: &Meant,
        has_pid_file: bool,
    ) -> Result<Option<Self>, Failure> {
        // A stale file is closed again here, so that the new server can lock it.
        match pid_file.find()? {
            Found::Running(other, _) if !has_pid_file && !meant.is(&other.endpoint) => {
                return Err(not_meant(pid_file, &other.endpoint, &meant.address));
            }
            Found::Running(old, file) => return Ok(Some(OldServer::OfPidFile(old, file))),
            _ if has_pid_file => return Ok(None),
            _ => {}
        }
        match local_server::ask(&meant.address)? {
            Answering::Ours(old) => Ok(Some(OldServer::AtPort(old))),
            Answering::NotOurs(why) => {
                let why = format!(": {why}; nothing was restarted, end it where it was started");
                let answers = but_answers(pid_file, &meant.address, &why);
                Err(Failure::new(FAILED, format!("not running{answers}")))
            }
            // If something else listens there, the new server reports it.
            _ => Ok(None),
        }
    }

    /// What it was started with, if that can be found out.
    fn options(&self) -> Option<TypedOptions> {
        match self {
            OldServer::OfPidFile(old, _) => Some(TypedOptions::of(&old.options)),
            OldServer::AtPort(old) => old.options(),
        }
    }

    /// Its classic port. `port` is the other one that it has.
    fn classic_port(&self, port: u16) -> Option<u16> {
        match self {
            OldServer::OfPidFile(old, _) => old.endpoint.classic_port,
            OldServer::AtPort(old) => old.ports.iter().copied().find(|other| *other != port),
        }
    }

    /// Whether a server on this host can have the port once this one has ended.
    fn frees(&self, host: &str, port: u16) -> bool {
        match self {
            OldServer::OfPidFile(old, _) => old.endpoint.blocks(host, port),
            OldServer::AtPort(old) => old.ports.contains(&port),
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
