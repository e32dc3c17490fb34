//! The command: serve, start and stop a server, ask it, run commands under its locks.

mod cli;

use std::ffi::OsString;
use std::process::ExitCode;

use cli::args::{self, Command, Given, Verb};
use cli::failure::Failure;
use cli::{daemon, exec, foreground, print, questions};

fn main() -> ExitCode {
    let Given { arguments, words } = match args::from_env() {
        Ok(given) => given,
        Err((failure, verb)) => return failure.report(verb),
    };
    args::parse(&arguments)
        .and_then(|command| carry_out(command, words))
        .unwrap_or_else(|failure| failure.report(args::verb_of(&arguments)))
}

/// `words` are the command of `exec`.
fn carry_out(command: Command, words: Option<Vec<OsString>>) -> Result<ExitCode, Failure> {
    let verb = match command {
        Command::Print(text) => return Ok(print(&text)),
        Command::Verb(verb) => verb,
    };
    match verb {
        Verb::Run(args) => foreground::run(args.into()),
        Verb::Start(args) => daemon::start(args.into()),
        Verb::Stop(args) => daemon::stop(args),
        Verb::Restart(args) => daemon::restart(args.into()),
        Verb::Status(args) => daemon::status(args),
        Verb::Lock(args) => questions::lock(&args),
        Verb::Unlock(args) => questions::unlock(&args),
        Verb::Renew(args) => questions::renew(&args),
        Verb::Check(args) => questions::check(&args),
        Verb::Verify(args) => questions::verify(&args),
        Verb::Exec(args) => exec::exec(args, words),
        Verb::Ping(args) => questions::ping(&args.into()),
        Verb::Shutdown(args) => questions::shutdown(&args.into()),
    }
}
