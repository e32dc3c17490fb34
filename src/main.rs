//! The command: serve, start and stop a server, ask it, run commands under its locks.

mod cli;

use std::ffi::OsString;
use std::process::ExitCode;

use cli::args::{self, Command, Given, Subcommand};
use cli::exit::Failure;
use cli::typed_options::TypedOptions;
use cli::{
    ask, break_lock, completion, daemon, events, exec, look, pages, print, restart, serve, status,
    store,
};

fn main() -> ExitCode {
    let Given { arguments, words } = match args::from_env() {
        Ok(given) => given,
        Err((failure, verb)) => return failure.report(verb),
    };
    args::parse(&arguments)
        .and_then(|command| carry_out(command, &arguments, words))
        .unwrap_or_else(|failure| failure.report(args::verb_of(&arguments)))
}

/// `arguments` are those of the command line, and `words` the command of `exec`.
fn carry_out(
    command: Command,
    arguments: &[String],
    words: Option<Vec<OsString>>,
) -> Result<ExitCode, Failure> {
    let verb = match command {
        Command::Print(text) => return Ok(print(&text)),
        Command::Help(asked) => return Ok(print(&pages::help(&asked)?)),
        Command::Verb(verb) => verb,
    };
    // Behind the verb.
    let typed = || TypedOptions::of(&arguments[1..]);
    match *verb {
        Subcommand::Run(args) => serve::run(args.into(), typed()),
        Subcommand::Start(args) => daemon::start(args.into(), typed()),
        Subcommand::Stop(args) => daemon::stop(args),
        Subcommand::Restart(args) => restart::restart(args.into(), typed()),
        Subcommand::Status(args) => status::status(args),
        Subcommand::Lock(args) => ask::lock(&args),
        Subcommand::Unlock(args) => ask::unlock(&args),
        Subcommand::Renew(args) => ask::renew(&args),
        Subcommand::Check(args) => ask::check(&args),
        Subcommand::Verify(args) => ask::verify(&args),
        Subcommand::Break(args) => break_lock::break_lock(&args),
        Subcommand::Events(args) => events::events(&args),
        Subcommand::Exec(args) => exec::exec(args, words),
        Subcommand::List(args) => look::list(&args),
        Subcommand::Show(args) => look::show(&args),
        Subcommand::Ping(args) => ask::ping(&args.into()),
        Subcommand::Shutdown(args) => ask::shutdown(&args.into()),
        Subcommand::Store(args) => store::store(&args),
        Subcommand::Completion(args) => Ok(print(&completion::script(args.shell))),
    }
}
