//! The parts of the command, and what they share: standard output and the log.

pub mod advice;
pub mod args;
pub mod ask;
pub mod completion;
pub mod daemon;
pub mod endpoint;
pub mod exec;
pub mod exit;
pub mod parsers;
pub mod pid_file;
pub mod reasons;
pub mod serve;
pub mod service;
pub mod usage;
pub mod usual_name;

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use env_logger::Target;
use log::LevelFilter;

use self::exit::{Failure, SYSTEM};

/// Prints a line, and succeeds where somebody takes it or nobody wants to.
pub fn print(line: &str) -> ExitCode {
    // `println!` would panic where the reader is gone, as in `lock-server --help | head -1`.
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "lock-server: cannot write {line:?}: {error}");
            ExitCode::from(SYSTEM)
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Writes a line to standard error, in the name of this program.
fn say(line: &str) {
    // `eprintln!` would panic where nobody listens.
    let _ = writeln!(io::stderr(), "lock-server: {line}");
}

/// Says how much is logged, to this program alone. `RUST_LOG` is that of a program under test, or of the command
/// of `exec`.
const LOG_VARIABLE: &str = "LOCK_SERVER_LOG";

/// Sends the log to a file or to standard error, as [`LOG_VARIABLE`] or else `RUST_LOG` says, or else from this level on.
fn start_log(default_level: &str, file: Option<&Path>) -> Result<(), Failure> {
    let target = match file {
        None => Target::Stderr,
        Some(path) => Target::Pipe(Box::new(open_log(path)?)),
    };
    let variable = match env::var_os(LOG_VARIABLE) {
        Some(_) => LOG_VARIABLE,
        None => "RUST_LOG",
    };
    log_to(target, variable, default_level);
    Ok(())
}

/// Sends the log there, as this variable says, or else from this level on. tiny_http logs only
/// where the variable names it: each end of its accepting is an error to it, wanted or not, and one that was
/// not wanted the server tells in its own words.
fn log_to(target: Target, variable: &str, default_level: &str) {
    let env = env_logger::Env::new().filter_or(variable, default_level);
    let env = env.write_style("RUST_LOG_STYLE");
    env_logger::Builder::new()
        .target(target)
        .filter_module("tiny_http", LevelFilter::Off)
        .parse_env(env)
        .format(|out, record| {
            let (time, level) = (out.timestamp_millis(), record.level());
            let style = out.default_level_style(level);
            writeln!(out, "{time} {style}{level:5}{style:#} {}", record.args())
        })
        .init();
}

fn open_log(path: &Path) -> Result<File, Failure> {
    let log = File::options().append(true).create(true).open(path);
    log.map_err(|error| Failure::system(format_args!("cannot open the log {path:?}"), error))
}
