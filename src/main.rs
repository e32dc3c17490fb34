//! The command: serve, start and stop a server, ask it.

mod cli;

use std::process::ExitCode;

use cli::args::{self, Command, Verb};
use cli::failure::Failure;
use cli::{daemon, foreground, print, questions};

fn main() -> ExitCode {
    let arguments = match args::from_env() {
        Ok(arguments) => arguments,
        Err(failure) => return failure.report(None),
    };
    args::parse(&arguments)
        .and_then(carry_out)
        .unwrap_or_else(|failure| failure.report(args::verb_of(&arguments)))
}

fn carry_out(command: Command) -> Result<ExitCode, Failure> {
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
        Verb::Ping(args) => questions::ping(&args.into()),
        Verb::Shutdown(args) => questions::shutdown(&args.into()),
    }
}
