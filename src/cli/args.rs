//! The command line: what may be typed, and how it is parsed. The verbs with their options and help are in the modules
//! below.

mod client;
mod look;
mod server;

use std::env;
use std::ffi::OsString;

use argh::{ArgsInfo, CommandInfoWithArgs, FromArgs};

pub use self::client::{
    Break, Check, EventsArgs, Exec, Lock, Ping, Question, Renew, Sharing, Shutdown, Target, Unlock,
    Verify,
};
pub use self::look::{List, Show, StoreArgs, StoreLook};
pub use self::server::{Restart, Run, ServerArgs, Start, StatusArgs, Stop};
use crate::cli::exit::{Failure, USAGE};
use crate::cli::{help, usage};

/// The verb whose arguments end at `--`.
pub const EXEC: &str = "exec";

/// The word before a topic. The parser has no verb of this name.
pub const HELP: &str = "help";

/// What the command line asks for.
pub enum Command {
    /// To print this text, such as the help of `--help`.
    Print(String),
    /// To show the help on these words.
    Help(Vec<String>),
    /// To run this verb.
    Verb(Box<Subcommand>),
}

/// The command line as it was typed.
pub struct Given {
    /// The arguments, in the form that the parser knows.
    pub arguments: Vec<String>,
    /// The words after the first `--` of `exec`, which may be any bytes.
    pub words: Option<Vec<OsString>>,
}

/// Reads the arguments of this process. A failure comes with the verb, if it was recognised.
pub fn from_env() -> Result<Given, (Failure, Option<&'static str>)> {
    let mut typed: Vec<OsString> = env::args_os().skip(1).collect();
    let is_exec = typed.first().is_some_and(|verb| verb == EXEC);
    let separator = typed.iter().position(|argument| argument == "--");
    let words = separator.filter(|_| is_exec).map(|separator| {
        let words = typed.split_off(separator + 1);
        typed.pop();
        words
    });
    let mut arguments = Vec::new();
    for argument in typed {
        let argument = argument.into_string().map_err(|argument| {
            let failure = Failure::new(USAGE, format!("argument {argument:?} is not UTF-8"));
            (failure, verb_of(&arguments))
        })?;
        arguments.push(argument);
    }
    let arguments = with_verb(arguments);
    let verb = verb_of(&arguments);
    if let Some(switch) =
        verb.and_then(|verb| usage::switch_with_value(&info_of(verb)?, &arguments))
    {
        let failure = Failure::usage(format!("{switch} takes no value"));
        return Err((failure, verb));
    }
    let arguments = split_at_equals(arguments);
    Ok(Given { arguments, words })
}

/// The arguments in the form that the parser knows, with a verb.
pub fn as_parsed(typed: Vec<String>) -> Vec<String> {
    split_at_equals(with_verb(typed))
}

/// Parses the arguments.
pub fn parse(arguments: &[String]) -> Result<Command, Failure> {
    if let [first, asked @ ..] = arguments
        && first == HELP
    {
        return Ok(Command::Help(asked.to_vec()));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match Arguments::from_args(&["lock-server"], &arguments) {
        Ok(Arguments { version: true, .. }) => {
            let version = concat!("lock-server ", env!("CARGO_PKG_VERSION"));
            Ok(Command::Print(version.into()))
        }
        Ok(Arguments {
            verb: Some(verb), ..
        }) => Ok(Command::Verb(verb.into())),
        Ok(Arguments { verb: None, .. }) => Err(Failure::new(USAGE, "no verb")),
        Err(early) if early.status.is_ok() => {
            let said = early.output.trim_end();
            let usage = said.lines().next().unwrap_or_default();
            let verb = arguments.first().and_then(|first| info_of(first));
            let help = verb.map(|verb| help::of_verb(usage, &verb));
            Ok(Command::Print(help.unwrap_or(said.into())))
        }
        Err(early) => {
            let explained = usage::explain(&early.output, &arguments, &verbs(), |arguments| {
                let answer = Arguments::from_args(&["lock-server"], arguments);
                answer.err().map(|early| early.output)
            });
            let one_line = || {
                early
                    .output
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            Err(Failure::new(USAGE, explained.unwrap_or_else(one_line)))
        }
    }
}

/// The help of a verb.
pub fn help_of(verb: &str) -> Option<String> {
    let name = info_of(verb)?.name.to_string();
    match parse(&[name, "--help".into()]) {
        Ok(Command::Print(help)) => Some(help),
        _ => None,
    }
}

/// All verbs, with their arguments.
pub fn verbs() -> Vec<CommandInfoWithArgs> {
    let verbs = Arguments::get_args_info().commands;
    verbs.into_iter().map(|verb| verb.command).collect()
}

/// The arguments of a verb.
fn info_of(verb: &str) -> Option<CommandInfoWithArgs> {
    verbs().into_iter().find(|info| info.name == verb)
}

/// The verb among the arguments, for a hint at its help.
pub fn verb_of(arguments: &[String]) -> Option<&'static str> {
    info_of(arguments.first()?).map(|info| info.name)
}

/// Splits `--port=8080` into `--port 8080`, the only form that the parser knows.
fn split_at_equals(arguments: Vec<String>) -> Vec<String> {
    let mut split = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.split_once('=') {
            Some((option, value)) if option.starts_with("--") => {
                split.extend([option.into(), value.into()]);
            }
            _ if argument == "--" => {
                split.push(argument);
                split.extend(arguments.by_ref());
            }
            _ => split.push(argument),
        }
    }
    split
}

/// Puts the verb first: adds `run` if there is none, and moves a request for help behind it.
fn with_verb(mut arguments: Vec<String>) -> Vec<String> {
    match arguments.first().map(String::as_str) {
        Some("-h" | "--help") => {
            if let Some(verb) = verb_of(&arguments[1..]) {
                return vec![verb.into(), "--help".into()];
            }
        }
        Some("-V" | "--version") => {}
        Some(first) if !first.starts_with('-') => {}
        _ => arguments.insert(0, "run".into()),
    }
    arguments
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    description = "A light-weight lock server: processes take turns on named keys over plain HTTP.",
    usage = "[COMMAND] [options]",
    help_triggers("-h", "--help"),
    example = "\
{command_name} start        # a server in the background, on 127.0.0.1:8004
{command_name} lock KEYA    # waits for its turn, prints when the lock runs out
{command_name} unlock KEYA
{command_name} exec KEYA -- ls -l    # runs ls while it has the key
{command_name} stop",
    note = "\
Without a command: run. Help on a command: {command_name} COMMAND --help
Pages on tokens, services, stores and more: {command_name} help
LOCK_SERVER (host:port or a URL, or several with commas between, of which one
leads) and LOCK_SERVER_NAME say where lock, unlock, renew, check, verify,
break, exec, events, list, show, ping, shutdown and status ask, and under
which name. Options override them. stop and restart take the port from
LOCK_SERVER, if that names this machine; run and start do not read it. A
server that asks for a token gets the one from the file in
LOCK_SERVER_TOKEN_FILE, or else LOCK_SERVER_TOKEN.

Exit codes, except of exec, which has its own:
  0     done, or the answer is yes
  1     run, start, stop, restart, status: it does not run, or can't
        the others: the answer is no; somebody else has the key, for instance
  2     wrong usage, or a time that the server does not allow
  69    neither yes nor no: no server there, or it is full, is ending, or
        does not allow that
  71    the answer could not be written"
)]
/// The whole command line.
pub struct Arguments {
    /// print the version
    #[argh(switch, short = 'V')]
    version: bool,

    #[argh(subcommand)]
    verb: Option<Subcommand>,
}

/// What to do.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum Subcommand {
    Run(Run),
    Start(Start),
    Stop(Stop),
    Restart(Restart),
    Status(StatusArgs),
    Lock(Lock),
    Unlock(Unlock),
    Renew(Renew),
    Check(Check),
    Verify(Verify),
    Break(Break),
    Events(EventsArgs),
    Exec(Exec),
    List(List),
    Show(Show),
    Ping(Ping),
    Shutdown(Shutdown),
    Store(StoreArgs),
    Completion(Completion),
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "completion",
    description = "print a script with which a shell completes verbs and options",
    usage = "SHELL",
    help_triggers("-h", "--help", "help"),
    example = "\
{command_name} bash >~/.lock-server.bash    # source it in ~/.bashrc
{command_name} zsh >~/.zfunc/_lock-server    # a folder of $fpath
{command_name} fish >~/.config/fish/completions/lock-server.fish",
    note = "Exit codes: 0 printed, 2 wrong usage, 71 it could not be written."
)]
/// The arguments of `completion`.
pub struct Completion {
    /// bash, zsh or fish
    #[argh(positional, arg_name = "SHELL", from_str_fn(parse_shell))]
    pub shell: Shell,
}

/// A shell for which there is a completion script.
#[derive(Clone, Copy)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

fn parse_shell(name: &str) -> Result<Shell, String> {
    Ok(match name {
        "bash" => Shell::Bash,
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        _ => return Err("give bash, zsh or fish".into()),
    })
}

#[cfg(test)]
mod tests {
    use lock_server::Options;

    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_ascii_whitespace().map(String::from).collect()
    }

    fn normal(line: &str) -> Vec<String> {
        split_at_equals(with_verb(words(line)))
    }

    #[test]
    fn run_is_the_default_verb() {
        assert_eq!(normal(""), ["run"]);
        assert_eq!(normal("--port 0"), ["run", "--port", "0"]);
        assert_eq!(normal("--version"), ["--version"]);
        assert_eq!(normal("-h"), ["-h"]);
        assert_eq!(normal("stop"), ["stop"]);
    }

    #[test]
    fn an_equals_sign_separates_an_option_from_its_value() {
        assert_eq!(normal("lock --name=a=b K"), words("lock --name a=b K"));
        assert_eq!(normal("lock K=1"), words("lock K=1"));
        assert_eq!(normal("lock -- --K=1"), words("lock -- --K=1"));
    }

    #[test]
    fn help_for_a_verb_is_never_taken_for_a_key() {
        for line in ["--help lock", "-h lock KEYA"] {
            assert_eq!(normal(line), ["lock", "--help"], "{line}");
        }
    }

    #[test]
    fn a_key_may_be_called_help() {
        let parsed = parse(&words("lock help")).ok();
        let Some(Command::Verb(verb)) = parsed else {
            panic!("not understood");
        };
        let Subcommand::Lock(lock) = *verb else {
            panic!("not understood as lock");
        };
        assert_eq!(Question::from(&lock).key, "help");
    }

    #[test]
    fn help_names_the_defaults_of_the_library() {
        let defaults = Options::default();
        let Ok(Command::Print(help)) = parse(&words("run --help")) else {
            panic!("no help");
        };
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for (option, default) in [
            ("--host", defaults.host),
            ("--port", defaults.port.to_string()),
            (
                "--lock-timeout",
                defaults.lock_timeout.as_secs_f64().to_string(),
            ),
            (
                "--lock-attempt-timeout",
                defaults.lock_attempt_timeout.as_secs_f64().to_string(),
            ),
            (
                "--reconnect-attempts",
                defaults.reconnect_attempts.to_string(),
            ),
            ("--max-waiters", defaults.max_waiters.to_string()),
            ("--max-keys", defaults.max_keys.to_string()),
            ("--max-lock-timeout", "3600".into()),
            ("--max-lock-attempt-timeout", "3600".into()),
        ] {
            let (_, about) = help.split_once(&format!(" {option} ")).expect("an option");
            let (_, rest) = about.split_once("default ").expect("a default");
            assert_eq!(rest.split(' ').next(), Some(default.as_str()), "{option}");
        }
        assert!(!defaults.allow_shutdown);
        assert!(!defaults.allow_break);
    }
}
