//! Serves in this process, with a pid file, and prints what a person at the terminal needs.

use std::cell::Cell;
use std::env;
use std::io::{self, Write};
use std::panic;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;

use lock_server::{Options, Server, ServerAddress, ServerState, StoreAddress};

use crate::cli::args::ServerArgs;
use crate::cli::ask::SERVER_VARIABLE;
use crate::cli::endpoint::Endpoint;
use crate::cli::exit::Failure;
use crate::cli::local_server::at;
use crate::cli::pid_file::{LockedPidFile, PidFile};
use crate::cli::typed_options::TypedOptions;
use crate::cli::{say, service, start_log};

/// The advice if another server has the pid file.
pub fn stop_it(running: &Endpoint, wanted: &ServerAddress, has_pid_file: bool) -> String {
    let is_blocked = running.blocks(&wanted.host, wanted.port);
    match (has_pid_file, is_blocked) {
        (true, false) => "stop it, or give another --pid-file".into(),
        (true, true) => "stop it, or give another --port and another --pid-file".into(),
        (false, true) => "stop it, or give another --port".into(),
        (false, false) => format!(
            "stop it, or give another --port, or a --pid-file for a second server, on {wanted}"
        ),
    }
}

/// A warning about an option that does nothing beside another one.
pub fn useless_option(options: &Options) -> Option<&'static str> {
    let is_useless = options.allow_break && options.token_file.is_some();
    is_useless.then_some(
        "--allow-break does nothing beside a --token-file: tokens of the role admin may break, and no others",
    )
}

/// Serves until it is asked to stop, and prints its address.
pub fn run(args: ServerArgs, typed: TypedOptions) -> Result<ExitCode, Failure> {
    // Before anything is opened: the sockets have the lowest numbers.
    let handed_down = service::sockets()?;
    start_log("info", args.options.log_to.as_deref())?;
    log_panics_of_tiny_http();
    let pid_file = match args.pid_file {
        Some(path) => {
            let pid_file = PidFile::new(Some(path), args.options.port)?;
            let wanted = at(Some(args.options.host.clone()), Some(args.options.port));
            let words = typed.absolute()?.words();
            Some(pid_file.claim(words, |running| stop_it(running, &wanted, true))?)
        }
        None => None,
    };
    useless_option(&args.options).into_iter().for_each(say);
    let asks_for_token = args.options.token_file.is_some();
    let is_in_cluster = matches!(args.options.store, Some(StoreAddress::Etcd(_)));
    let mut server = Server::new(args.options);
    if let Some(sockets) = handed_down {
        if let Some(option) = args.listens_by {
            return Err(Failure::usage(format!(
                "{option} says where to listen, and so do the sockets of LISTEN_FDS; leave {option} out, and give the \
                 address to the unit of the socket"
            )));
        }
        server.bind_to(sockets.http, sockets.classic)?;
    }
    let endpoint = Endpoint::bind(&mut server)?;
    let notify = |state| {
        if state == ServerState::Serving {
            introduce(&endpoint, curl_options(asks_for_token, is_in_cluster));
        }
        service::notify(state, &endpoint);
    };
    serve(server, &endpoint, pid_file, notify)?;
    Ok(ExitCode::SUCCESS)
}

/// Serves until it is asked to stop, and keeps a pid file meanwhile. Calls `notify` with each state of the server.
pub fn serve(
    mut server: Server,
    endpoint: &Endpoint,
    mut pid_file: Option<LockedPidFile>,
    notify: impl Fn(ServerState),
) -> Result<(), Failure> {
    if let Some(pid_file) = &mut pid_file {
        pid_file.write(endpoint)?;
    }
    let served = thread::scope(|scope| {
        let (serves, ended) = mpsc::channel();
        let kept = Cell::new(pid_file.as_mut().zip(Some(ended)));
        let served = server.run_with(|state| {
            notify(state);
            // Not earlier: the server's setup takes longer with a second thread.
            if let Some((pid_file, ended)) = kept.take() {
                let thread = thread::Builder::new().name("lock-pid-file".into());
                let keep = move || pid_file.keep(endpoint, &ended);
                if let Err(error) = thread.spawn_scoped(scope, keep) {
                    log::warn!("cannot start a thread that keeps the pid file: {error}");
                }
            }
        });
        drop::<mpsc::Sender<()>>(serves);
        served
    });
    let removed = pid_file.map_or(Ok(()), LockedPidFile::remove);
    served?;
    removed
}

/// Sends panics in tiny_http to the log, at debug level: its accepting thread panics if there is no descriptor left.
/// The server starts a new one, so that is no error.
pub fn log_panics_of_tiny_http() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        match panic
            .location()
            .filter(|place| place.file().contains("tiny_http"))
        {
            Some(place) => log::debug!("tiny_http gave up at {place}"),
            None => usual(panic),
        }
    }));
}

/// The options that curl needs, each followed by a space. A standby redirects to the leader, and curl shows the token
/// there only with the option that trusts the new location.
fn curl_options(asks_for_token: bool, is_in_cluster: bool) -> &'static str {
    match (asks_for_token, is_in_cluster) {
        (false, false) => "",
        (true, false) => "-u :TOKEN ",
        (false, true) => "-L ",
        (true, true) => "--location-trusted -u :TOKEN ",
    }
}

fn introduce(endpoint: &Endpoint, curl: &str) {
    let here = endpoint.reachable();
    let options = client_options(&here);
    // It does not matter whether anybody reads it.
    let _ = write!(
        io::stderr(),
        "lock-server {version} serves on {endpoint}; Ctrl-C ends it\n\
         lock a key:    curl {curl}http://{here}/LOCK/KEYA/me      or: lock-server lock{options} KEYA\n\
         unlock it:     curl {curl}http://{here}/UNLOCK/KEYA/me    or: lock-server unlock{options} KEYA\n",
        version = env!("CARGO_PKG_VERSION"),
    );
    if let Some(classic) = endpoint.reachable_classic() {
        let _ = writeln!(
            io::stderr(),
            "classic port:  curl --http0.9 http://{classic}/LOCK/KEYA/me"
        );
    }
}

/// The options that a client needs to ask this server, each with a space before it.
fn client_options(address: &ServerAddress) -> String {
    let defaults = Options::default();
    let environment_says = env::var_os(SERVER_VARIABLE).is_some();
    let mut options = String::new();
    if environment_says || address.host != defaults.host {
        options += &format!(" --host {}", address.host);
    }
    if environment_says || address.port != defaults.port {
        options += &format!(" --port {}", address.port);
    }
    options
}
