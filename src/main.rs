//! The command: serve, start and stop a server, ask it, run commands under its locks.

mod cli;

use std::ffi::OsString;
use std::process::ExitCode;

use cli::args::{self, Command, Given, Verb};
use cli::exit::Failure;
use cli::{ask, daemon, exec, print, serve};

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
        Verb::Run(args) => serve::run(args.into()),
        Verb::Start(args) => daemon::start(args.into()),
        Verb::Stop(args) => daemon::stop(args),
        Verb::Restart(args) => daemon::restart(args.into()),
        Verb::Status(args) => daemon::status(args),
        Verb::Lock(args) => ask::lock(&args),
        Verb::Unlock(args) => ask::unlock(&args),
        Verb::Renew(args) => ask::renew(&args),
        Verb::Check(args) => ask::check(&args),
        Verb::Verify(args) => ask::verify(&args),
        Verb::Exec(args) => exec::exec(args, words),
        Verb::Ping(args) => ask::ping(&args.into()),
        Verb::Shutdown(args) => ask::shutdown(&args.into()),
    }
}
