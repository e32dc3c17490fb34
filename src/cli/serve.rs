//! Serving in this very process, and what it says to the person in front of it.

use std::env;
use std::io::{self, Write};
use std::panic;
use std::process::{self, ExitCode};

use lock_server::{Options, Server, ServerAddress};

use crate::cli::args::ServerArgs;
use crate::cli::ask::SERVER_VARIABLE;
use crate::cli::endpoint::Endpoint;
use crate::cli::exit::Failure;
use crate::cli::pid_file::PidFile;
use crate::cli::start_log;

/// Serves until it is told to stop.
pub fn run(args: ServerArgs) -> Result<ExitCode, Failure> {
    start_log("info", args.options.log_to.as_deref())?;
    log_panics_of_tiny_http();
    let pid_file = match args.pid_file {
        Some(path) => Some(PidFile::new(Some(path), args.options.port)?),
        None => None,
    };
    if let Some(pid_file) = &pid_file {
        pid_file.expect_free()?;
    }
    let mut server = Server::new(args.options);
    let endpoint = Endpoint::bind(&mut server)?;
    let kept = match pid_file {
        Some(pid_file) => {
            let record = pid_file.write(process::id(), endpoint)?;
            Some((pid_file, record))
        }
        None => None,
    };
    introduce(endpoint);
    let served = server.run();
    let removed = kept.map_or(Ok(()), |(pid_file, record)| pid_file.remove_if_of(&record));
    served?;
    removed?;
    Ok(ExitCode::SUCCESS)
}

/// Sends panics in tiny_http to the log, at debug level: its accepting thread panics where the last
/// descriptor is gone, the server opens a new one, and nobody has to be alarmed.
fn log_panics_of_tiny_http() {
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

fn introduce(endpoint: Endpoint) {
    let here = endpoint.reachable();
    let options = client_options(&here);
    // Nobody has to listen.
    let _ = write!(
        io::stderr(),
        "lock-server {version} serves on {endpoint}; Ctrl-C ends it\n\
         lock a key:    curl http://{here}/LOCK/KEYA/me      or: lock-server lock{options} KEYA\n\
         unlock it:     curl http://{here}/UNLOCK/KEYA/me    or: lock-server unlock{options} KEYA\n",
        version = env!("CARGO_PKG_VERSION"),
    );
    if let Some(classic) = endpoint.reachable_classic() {
        let _ = writeln!(
            io::stderr(),
            "classic port:  curl --http0.9 http://{classic}/LOCK/KEYA/me"
        );
    }
}

/// What a client has to be told to ask there, each with a space before it.
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
