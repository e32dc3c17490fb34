//! The parts of the command, and the helpers that they share: standard output, standard error and the log.

pub mod advice;
pub mod args;
pub mod ask;
pub mod break_lock;
pub mod columns;
pub mod completion;
pub mod daemon;
pub mod endpoint;
pub mod events;
pub mod exec;
pub mod exit;
pub mod grid;
pub mod help;
pub mod local_server;
pub mod look;
pub mod pages;
pub mod parsers;
pub mod pid_file;
pub mod pid_record;
pub mod process;
pub mod reasons;
pub mod restart;
pub mod role;
pub mod serve;
pub mod service;
pub mod status;
mod stdout;
pub mod store;
pub mod typed_options;
pub mod usage;
pub mod usual_name;

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::ExitCode;

use env_logger::Target;
use log::LevelFilter;
use nix::errno::Errno;

use self::exit::{Failure, SYSTEM};
use self::stdout::was_stdout_closed;

/// Prints a line. Success also if the reader has closed its end.
pub fn print(line: &str) -> ExitCode {
    print_and(line, ExitCode::SUCCESS)
}

/// Prints a line, and returns this exit code, or [`SYSTEM`] if the line could not be written.
fn print_and(line: &str, code: ExitCode) -> ExitCode {
    match print_part(&format!("{line}\n")) {
        ControlFlow::Break(failed) if failed != ExitCode::SUCCESS => failed,
        _ => code,
    }
}

/// Prints whole lines. Breaks with an exit code if they could not be written, or if the reader has closed its end,
/// which is a success.
fn print_part(lines: &str) -> ControlFlow<ExitCode> {
    match write_out(lines) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            ControlFlow::Break(ExitCode::SUCCESS)
        }
        Err(error) => {
            say(&format!("cannot write to standard output: {error}"));
            ControlFlow::Break(ExitCode::from(SYSTEM))
        }
    }
}

/// Writes to standard output.
fn write_out(text: &str) -> io::Result<()> {
    match was_stdout_closed() {
        true => Err(Errno::EBADF.into()),
        // `print!` would panic if the reader is gone, as in `lock-server --help | head -1`.
        false => io::stdout().write_all(text.as_bytes()),
    }
}

/// Writes a line to standard error, with this program's name before it.
fn say(line: &str) {
    // `eprintln!` would panic if the reader is gone.
    let _ = writeln!(io::stderr(), "lock-server: {}", printable(line));
}

/// Escapes what a terminal would obey: a name may be any text.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if is_hidden(c) { '?' } else { c })
        .collect()
}

/// Whether a terminal obeys a character, reverses the text around it, or shows nothing for it. Joiners stay visible:
/// emoji and Persian need them. The status page hides the same characters, in a room that the command may not import.
fn is_hidden(c: char) -> bool {
    const INVISIBLE: [RangeInclusive<char>; 6] = [
        '\u{61c}'..='\u{61c}',
        '\u{200b}'..='\u{200b}',
        '\u{200e}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{2069}',
        '\u{feff}'..='\u{feff}',
    ];
    c.is_control() || INVISIBLE.iter().any(|range| range.contains(&c))
}

/// The log level of this program alone. `RUST_LOG` may be meant for a program under test, or for the command of `exec`.
const LOG_VARIABLE: &str = "LOCK_SERVER_LOG";

/// Sends the log to a file or to standard error. The level is from [`LOG_VARIABLE`], or else from `RUST_LOG`, or else
/// `default_level`.
fn start_log(default_level: &str, file: Option<&Path>) -> Result<(), Failure> {
    let target = match file {
        None => Target::Stderr,
        Some(path) => Target::Pipe(Box::new(open_log(path)?)),
    };
    // An empty variable counts as not set.
    let is_set = env::var_os(LOG_VARIABLE).is_some_and(|said| !said.is_empty());
    let variable = if is_set { LOG_VARIABLE } else { "RUST_LOG" };
    log_to(target, variable, default_level);
    Ok(())
}

/// Sends the log to `target`, with the level in this variable or else `default_level`. tiny_http logs only if the
/// variable names it: it logs each end of accepting as an error, also a wanted one, and the server itself logs an
/// unwanted one.
fn log_to(target: Target, variable: &str, default_level: &str) {
    let said = env::var(variable).ok().filter(|said| !said.is_empty());
    let style = env::var("RUST_LOG_STYLE").unwrap_or_default();
    env_logger::Builder::new()
        .target(target)
        .filter_module("tiny_http", LevelFilter::Off)
        .parse_filters(said.as_deref().unwrap_or(default_level))
        .parse_write_style(&style)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_control_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc\u{9b}"), "a?[2Jb?c?");
        assert_eq!(
            printable("A\u{202e}nimda \u{200f}\u{5d0}"),
            "A?nimda ?\u{5d0}"
        );
    }
}
