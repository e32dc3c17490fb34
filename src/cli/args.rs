//! What may be typed: the verbs, their options and their help.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use argh::{FromArgs, SubCommands};
use lock_server::Options;

use crate::cli::failure::{Failure, USAGE};
use crate::cli::usage;
use crate::cli::values::{client_host, client_port, count, exit_code, seconds, server_port};

/// The verb whose arguments end at `--`.
const EXEC: &str = "exec";

/// What the command line asks for.
pub enum Command {
    /// To say this, as `--help` does.
    Print(String),
    /// To do this.
    Verb(Verb),
}

/// What was typed.
pub struct Given {
    /// The arguments, in the form that the parser knows.
    pub arguments: Vec<String>,
    /// What stands behind the first `--` of `exec`, whatever bytes that is.
    pub words: Option<Vec<OsString>>,
}

/// Takes the arguments apart. A failure comes with the verb, if that could be read.
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
            (failure, is_exec.then_some(EXEC))
        })?;
        arguments.push(argument);
    }
    let arguments = with_verb(split_at_equals(arguments));
    Ok(Given { arguments, words })
}

/// Reads the arguments.
pub fn parse(arguments: &[String]) -> Result<Command, Failure> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match Arguments::from_args(&["lock-server"], &arguments) {
        Ok(Arguments { version: true, .. }) => {
            let version = concat!("lock-server ", env!("CARGO_PKG_VERSION"));
            Ok(Command::Print(version.into()))
        }
        Ok(Arguments {
            verb: Some(verb), ..
        }) => Ok(Command::Verb(verb)),
        Ok(Arguments { verb: None, .. }) => Err(Failure::new(USAGE, "no verb")),
        Err(early) if early.status.is_ok() => Ok(Command::Print(early.output.trim_end().into())),
        Err(early) => {
            let verbs: Vec<&str> = Verb::COMMANDS.iter().map(|command| command.name).collect();
            let explained = usage::explain(&early.output, &arguments, &verbs, |arguments| {
                let answer = Arguments::from_args(&["lock-server"], arguments);
                answer.err().map(|early| early.output)
            });
            Err(Failure::new(USAGE, explained.unwrap_or(early.output)))
        }
    }
}

/// The verb among the arguments, for whoever wants to point to its help.
pub fn verb_of(arguments: &[String]) -> Option<&str> {
    let first = arguments.first()?;
    Verb::COMMANDS
        .iter()
        .map(|command| command.name)
        .find(|verb| verb == first)
}

/// `--port=8080` as `--port 8080`, the only form that the parser knows.
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

/// Puts the verb first, where `run` or the wish for help goes without saying.
fn with_verb(mut arguments: Vec<String>) -> Vec<String> {
    match arguments.first().map(String::as_str) {
        // The parser would hand the word `help` on to the verb, and `lock` would take it for a key.
        Some("-h" | "--help" | "help") => {
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

#[derive(FromArgs)]
#[argh(
    description = "A light-weight lock server: processes take turns on named keys over plain HTTP.",
    usage = "[COMMAND] [options]",
    help_triggers("-h", "--help", "help"),
    example = "\
{command_name} start        # a server in the background, on 127.0.0.1:8004
{command_name} lock KEYA    # waits for its turn, prints when the lock runs out
{command_name} unlock KEYA
{command_name} exec KEYA -- ls -l    # runs ls while it has the key
{command_name} stop",
    note = "\
Without a command: run. More of a command: {command_name} COMMAND --help
LOCK_SERVER (host:port) and LOCK_SERVER_NAME say where lock, unlock, renew,
check, verify, exec, ping and shutdown ask, and under which name; options win.
Exit codes: 0 done or yes, 1 failed or no, 2 wrong usage, 69 no server there;
those of exec are its own."
)]
/// The whole command line.
struct Arguments {
    /// print the version
    #[argh(switch, short = 'V')]
    version: bool,

    #[argh(subcommand)]
    verb: Option<Verb>,
}

/// What to do.
#[derive(FromArgs)]
#[argh(subcommand)]
pub enum Verb {
    Run(Run),
    Start(Start),
    Stop(Stop),
    Restart(Restart),
    Status(Status),
    Lock(Lock),
    Unlock(Unlock),
    Renew(Renew),
    Check(Check),
    Verify(Verify),
    Exec(Exec),
    Ping(Ping),
    Shutdown(Shutdown),
}

/// How to serve, whichever verb asks for it.
pub struct ServerArgs {
    /// What the options say, and the defaults of the library for the rest.
    pub options: Options,
    /// Where the pid file shall be, if not at its usual place.
    pub pid_file: Option<PathBuf>,
}

/// The parser has no way to share options between verbs, but a macro has.
macro_rules! server_verbs {
    ($($(#[$about:meta])* $verb:ident)*) => { $(
        #[derive(FromArgs)]
        #[argh(subcommand, usage = "[options]", help_triggers("-h", "--help", "help"))]
        $(#[$about])*
        pub struct $verb {
            /// name or address to listen on; 0.0.0.0 or :: is every interface; default 127.0.0.1
            #[argh(option)]
            host: Option<String>,

            /// port to serve on; 0 takes any free one; default 8004
            #[argh(option, from_str_fn(server_port))]
            port: Option<u16>,

            /// second port, for clients of the Perl original; 0 takes any free one; default none
            #[argh(option, from_str_fn(server_port))]
            classic_port: Option<u16>,

            /// how long a lock lasts, in seconds, 0.001 to 31536000; default 3
            #[argh(option, from_str_fn(seconds))]
            lock_timeout: Option<Duration>,

            /// how long a LOCK waits for its turn, in seconds; 0 tries once; default 4
            #[argh(option, from_str_fn(seconds))]
            lock_attempt_timeout: Option<Duration>,

            /// let clients stop the server; default no
            #[argh(switch)]
            allow_shutdown: bool,

            /// how often to try again when the port is busy; default 3
            #[argh(option, from_str_fn(count))]
            reconnect_attempts: Option<u32>,

            /// how long to wait between two tries, in seconds; default 1
            #[argh(option, from_str_fn(seconds))]
            time_between_attempts: Option<Duration>,

            /// longest lock that a question may ask for, in seconds, up to 31536000; default 3600, or
            /// the lock timeout if that is longer
            #[argh(option, from_str_fn(seconds))]
            max_lock_timeout: Option<Duration>,

            /// longest wait that a question may ask for, in seconds, up to 31536000; default 3600, or
            /// the lock attempt timeout if that is longer
            #[argh(option, from_str_fn(seconds))]
            max_lock_attempt_timeout: Option<Duration>,

            /// how many LOCKs may wait at the same time; default 10000
            #[argh(option, from_str_fn(count))]
            max_waiters: Option<usize>,

            /// how many keys may be locked at the same time; default 1000000
            #[argh(option, from_str_fn(count))]
            max_keys: Option<usize>,

            /// where to write down process, address and start time; default: see below
            #[argh(option)]
            pid_file: Option<PathBuf>,
        }

        impl From<$verb> for ServerArgs {
            fn from(args: $verb) -> Self {
                let defaults = Options::default();
                let options = Options {
                    host: args.host.unwrap_or(defaults.host),
                    port: args.port.unwrap_or(defaults.port),
                    classic_port: args.classic_port.or(defaults.classic_port),
                    lock_timeout: args.lock_timeout.unwrap_or(defaults.lock_timeout),
                    lock_attempt_timeout: args
                        .lock_attempt_timeout
                        .unwrap_or(defaults.lock_attempt_timeout),
                    allow_shutdown: args.allow_shutdown || defaults.allow_shutdown,
                    reconnect_attempts: args
                        .reconnect_attempts
                        .unwrap_or(defaults.reconnect_attempts),
                    time_between_attempts: args
                        .time_between_attempts
                        .unwrap_or(defaults.time_between_attempts),
                    max_lock_timeout: args.max_lock_timeout.or(defaults.max_lock_timeout),
                    max_lock_attempt_timeout: args
                        .max_lock_attempt_timeout
                        .or(defaults.max_lock_attempt_timeout),
                    max_waiters: args.max_waiters.unwrap_or(defaults.max_waiters),
                    max_keys: args.max_keys.unwrap_or(defaults.max_keys),
                    outlive_parent: defaults.outlive_parent,
                };
                ServerArgs { options, pid_file: args.pid_file }
            }
        }
    )* };
}

server_verbs! {
    #[argh(
        name = "run",
        description = "serve in this process until SIGTERM, SIGINT (Ctrl-C) or SHUTDOWN",
        example = "\
{command_name}
{command_name} --port 0 --lock-timeout 10 --lock-attempt-timeout 0.5
{command_name} --port 8080 --classic-port 8004    # for old clients",
        note = "\
Says on standard error where it serves, then logs there: RUST_LOG=debug for
more, RUST_LOG=warn for less.
Pid file: none, unless --pid-file names one.
Exit codes: 0 told to stop, 1 cannot serve, 2 wrong usage."
    )]
    /// The arguments of `run`.
    Run

    #[argh(
        name = "start",
        description = "start a server in the background, and return once it answers",
        example = "\
{command_name}
{command_name} --port 8080 --lock-timeout 10
{command_name} --port 8080 --classic-port 8004    # for old clients",
        note = "\
Pid file: $XDG_RUNTIME_DIR/lock-server-PORT.pid, or else
lock-server-UID-PORT.pid in $TMPDIR or /tmp. PORT is as given here; port 0
needs --pid-file.
Exit codes: 0 it serves, 1 it runs already or cannot serve, 2 wrong usage."
    )]
    /// The arguments of `start`.
    Start

    #[argh(
        name = "restart",
        description = "stop the server in the background, if there is one, and start it again",
        example = "{command_name}\n{command_name} --port 8080 --lock-timeout 10",
        note = "\
All locks are gone then. The new server has the options given here, not those
of the old one: without --classic-port it has no classic clients.
Pid file: $XDG_RUNTIME_DIR/lock-server-PORT.pid, or else
lock-server-UID-PORT.pid in $TMPDIR or /tmp. PORT is as given here; port 0
needs --pid-file.
Exit codes: 0 it serves, 1 cannot stop or cannot serve, 2 wrong usage."
    )]
    /// The arguments of `restart`.
    Restart
}

#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "stop",
    description = "stop the server in the background, and return once it has ended",
    usage = "[options]",
    help_triggers("-h", "--help", "help"),
    example = "{command_name}\n{command_name} --port 8080",
    note = "\
Sends SIGTERM, and SIGKILL if the process has not ended after 5 seconds. A pid
file is believed only if it is yours or root's and the very process that it
names still lives; a stale one is removed.
Exit codes: 0 stopped, 1 not running or cannot be stopped, 2 wrong usage."
)]
/// The arguments of `stop`.
pub struct Stop {
    /// the port given to start; default 8004
    #[argh(option, from_str_fn(server_port))]
    pub port: Option<u16>,

    /// the pid file given to start; default: see lock-server start --help
    #[argh(option)]
    pub pid_file: Option<PathBuf>,
}

#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "status",
    description = "say whether the server in the background runs and answers",
    usage = "[options]",
    help_triggers("-h", "--help", "help"),
    example = "{command_name}\n{command_name} --port 8080",
    note = "Exit codes: 0 it runs and answers, 1 it does not, 2 wrong usage."
)]
/// The arguments of `status`.
pub struct Status {
    /// where to ask if there is no pid file; default 127.0.0.1
    #[argh(option, from_str_fn(client_host))]
    pub host: Option<String>,

    /// the port given to start; default 8004
    #[argh(option, from_str_fn(server_port))]
    pub port: Option<u16>,

    /// the pid file given to start; default: see lock-server start --help
    #[argh(option)]
    pub pid_file: Option<PathBuf>,
}

/// Which server to ask, and under which name, as far as the options say it.
pub struct Target {
    /// The name or address of the server.
    pub host: Option<String>,
    /// The port of the server.
    pub port: Option<u16>,
    /// The requester's name.
    pub name: Option<String>,
}

/// A key, and whom to ask about it.
pub struct Question {
    /// The key.
    pub key: String,
    /// Whom to ask.
    pub target: Target,
}

/// As `server_verbs`, for the verbs that ask about a key, each with options of its own. The word `help` may be a
/// key, so it is none of their help triggers. A type is taken apart, since the derive can't read one in a whole.
macro_rules! key_verbs {
    ($($(#[$about:meta])* $verb:ident { $($(#[$meaning:meta])* $option:ident: $type:ident $(<$inner:ident>)?,)* })*) => { $(
        #[derive(FromArgs)]
        #[argh(subcommand, usage = "[options] [--] KEY", help_triggers("-h", "--help"))]
        $(#[$about])*
        pub struct $verb {
            /// any name, 1 to 1024 bytes; after -- it may begin with a dash
            #[argh(positional, arg_name = "KEY")]
            key: String,

            $(
                $(#[$meaning])*
                pub $option: $type $(<$inner>)?,
            )*

            /// name or address of the server; default: the host in LOCK_SERVER, or else 127.0.0.1
            #[argh(option, from_str_fn(client_host))]
            host: Option<String>,

            /// port of the server; default: the port in LOCK_SERVER, or else 8004
            #[argh(option, from_str_fn(client_port))]
            port: Option<u16>,

            /// whom to lock for, 1 to 1024 bytes; default: LOCK_SERVER_NAME, or else user@host:PID,
            /// PID being the calling shell's
            #[argh(option)]
            name: Option<String>,
        }

        impl From<&$verb> for Question {
            fn from(args: &$verb) -> Self {
                let target = Target {
                    host: args.host.clone(),
                    port: args.port,
                    name: args.name.clone(),
                };
                Question { key: args.key.clone(), target }
            }
        }
    )* };
}

key_verbs! {
    #[argh(
        name = "lock",
        description = "wait for a key and lock it",
        example = "\
{command_name} KEYA
{command_name} --try --lock-timeout 60 KEYA
{command_name} --host 10.0.0.7 --name CLIENT_A KEYA
held=$({command_name} --shell KEYA) && eval \"$held\"",
        note = "\
Prints when the lock runs out, in Unix seconds with six decimals; or 0 if the
key did not become free in time, or this name has it already. With --shell it
prints the key and its fence for eval, as in
LOCK_SERVER_KEY='KEYA' LOCK_SERVER_FENCE=1463000000123456
or nothing if it was not locked.
What is typed in one shell has one default name, so that it may unlock what it
locked. A script of several processes gives --name or sets LOCK_SERVER_NAME.
LOCK_SERVER is host:port, host, or [::1]:8004.
Exit codes: 0 locked, 1 not locked, 2 wrong usage or a time that the server
does not allow, 69 no server there."
    )]
    /// The arguments of `lock`.
    Lock {
        /// how long the lock shall last, in seconds, 0.001 to the server's --max-lock-timeout; default:
        /// the server's --lock-timeout
        #[argh(option, from_str_fn(seconds))]
        lock_timeout: Option<Duration>,

        /// how long to wait, in seconds, up to the server's --max-lock-attempt-timeout; default: the
        /// server's --lock-attempt-timeout
        #[argh(option, from_str_fn(seconds))]
        lock_attempt_timeout: Option<Duration>,

        /// do not wait; as --lock-attempt-timeout 0
        #[argh(switch, long = "try")]
        once: bool,

        /// print variables for eval, not the time
        #[argh(switch)]
        shell: bool,
    }

    #[argh(
        name = "unlock",
        description = "unlock a key that this name locked",
        example = "\
{command_name} KEYA
{command_name} --host 10.0.0.7 --name CLIENT_A KEYA
{command_name} --fence \"$LOCK_SERVER_FENCE\" KEYA",
        note = "\
Prints 1; or 0 if this name does not have the key, or no longer, or not under
that fence.
Exit codes: 0 unlocked, 1 not locked by this name, 2 wrong usage, 69 no server
there."
    )]
    /// The arguments of `unlock`.
    Unlock {
        /// unlock only what was locked under this fence; lock --shell tells it
        #[argh(option, from_str_fn(count))]
        fence: Option<u64>,
    }

    #[argh(
        name = "renew",
        description = "make a lock last longer, or shorter, counted from now",
        example = "\
{command_name} KEYA
{command_name} --lock-timeout 60 --fence \"$LOCK_SERVER_FENCE\" KEYA
{command_name} --host 10.0.0.7 --name CLIENT_A KEYA",
        note = "\
Prints when the lock runs out now, in Unix seconds with six decimals; or 0 if
this name does not have the key, or no longer, or not under that fence.
Exit codes: 0 renewed, 1 not locked by this name, 2 wrong usage or a time that
the server does not allow, 69 no server there."
    )]
    /// The arguments of `renew`.
    Renew {
        /// how long it shall last from now on, in seconds, 0.001 to the server's --max-lock-timeout;
        /// default: as long as it was locked, or last renewed, for
        #[argh(option, from_str_fn(seconds))]
        lock_timeout: Option<Duration>,

        /// renew only what was locked under this fence; lock --shell tells it
        #[argh(option, from_str_fn(count))]
        fence: Option<u64>,
    }

    #[argh(
        name = "check",
        description = "say whether anybody has locked a key",
        example = "{command_name} KEYA\n{command_name} --host 10.0.0.7 KEYA",
        note = "\
Prints 1 if it is locked, 0 if it is free. The name makes no difference.
Exit codes: 0 locked, 1 free, 2 wrong usage, 69 no server there."
    )]
    /// The arguments of `check`.
    Check {}

    #[argh(
        name = "verify",
        description = "say whether a key is locked by this name",
        example = "\
{command_name} KEYA
{command_name} --host 10.0.0.7 --name CLIENT_A KEYA
{command_name} --fence \"$LOCK_SERVER_FENCE\" KEYA && mv new.db current.db",
        note = "\
Prints 1 if it is, 0 if it is free or another's, or not under that fence.
Exit codes: 0 locked by this name, 1 not, 2 wrong usage, 69 no server there."
    )]
    /// The arguments of `verify`.
    Verify {
        /// only if it was locked under this fence; lock --shell tells it
        #[argh(option, from_str_fn(count))]
        fence: Option<u64>,
    }
}

#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "exec",
    description = "run a command while a key is locked, and unlock it afterwards",
    usage = "[options] KEY -- COMMAND [ARG...]",
    help_triggers("-h", "--help"),
    example = "\
{command_name} KEYA -- ls -l
{command_name} -n -E 0 -q nightly -- /usr/local/bin/nightly-job
{command_name} -w 600 --lock-timeout 30 deploy -- ./deploy.sh production",
    note = "\
Waits for the key and runs the command as it stands, without a shell; its
standard streams are those given here. The lease is renewed after each third
of it. Where that fails, the process group of the command gets SIGTERM
--kill-after seconds before the lease runs out, and SIGKILL so early that it
is gone by then. Where the server says that the lease is over, it gets SIGKILL
at once.
Signals are handed on to the command, and it ends when exec is killed. Ctrl-Z
does not suspend it.
It finds LOCK_SERVER (host:port), LOCK_SERVER_KEY, LOCK_SERVER_NAME and
LOCK_SERVER_FENCE in its environment. An exec in it for the same key fails at
once.
A key that begins with a dash takes a -- of its own: exec -- -K -- ls.

Exit codes:
  the command's own, or 128+N if signal N ended it
  64     wrong usage
  69     no server there, or it can't serve now
  71     the system had no process or thread for exec itself
  75     the key was not obtained; -E N says N instead
  124    the lease was lost, and the command was ended
  126    the command can't be executed
  127    there is no such command, or not the interpreter that it names
  128+N  signal N ended the wait for the key"
)]
/// The arguments of `exec`.
pub struct Exec {
    /// any name, 1 to 1024 bytes
    #[argh(positional, arg_name = "KEY")]
    pub key: Option<String>,

    /// do not wait if the key is locked
    #[argh(switch, short = 'n')]
    pub nonblock: bool,

    /// how long to wait for the key, in seconds; 0 tries once; default: as long as it takes
    #[argh(option, short = 'w', from_str_fn(seconds))]
    pub wait: Option<Duration>,

    /// exit code when the key was not obtained, 0 to 255; default 75
    #[argh(option, short = 'E', from_str_fn(exit_code))]
    pub conflict_exit_code: Option<u8>,

    /// how long the lease lasts that is renewed, in seconds, and how soon the key is free if this
    /// machine fails; default: the server's --lock-timeout
    #[argh(option, from_str_fn(seconds))]
    pub lock_timeout: Option<Duration>,

    /// how long the command may take to end after SIGTERM, in seconds, at most a third of the lease;
    /// default 5
    #[argh(option, short = 'k', from_str_fn(seconds))]
    pub kill_after: Option<Duration>,

    /// say nothing but what went wrong: not who has the key, and no line while waiting
    #[argh(switch, short = 'q')]
    pub quiet: bool,

    /// say what happens: locked, renewed, unlocked
    #[argh(switch, short = 'v')]
    pub verbose: bool,

    /// name or address of the server; default: the host in LOCK_SERVER, or else 127.0.0.1
    #[argh(option, from_str_fn(client_host))]
    pub host: Option<String>,

    /// port of the server; default: the port in LOCK_SERVER, or else 8004
    #[argh(option, from_str_fn(client_port))]
    pub port: Option<u16>,

    /// whom to lock for, 1 to 1024 bytes; default: LOCK_SERVER_NAME, or else user@host:PID, PID
    /// being this process's; under another exec, that one's name with >PID
    #[argh(option)]
    pub name: Option<String>,
}

impl Exec {
    /// Whom to ask.
    pub fn target(&self) -> Target {
        Target {
            host: self.host.clone(),
            port: self.port,
            name: self.name.clone(),
        }
    }
}

/// As `key_verbs`, for the verbs that ask about the server itself.
macro_rules! plain_verbs {
    ($($(#[$about:meta])* $verb:ident)*) => { $(
        #[derive(FromArgs)]
        #[argh(subcommand, usage = "[options]", help_triggers("-h", "--help", "help"))]
        $(#[$about])*
        pub struct $verb {
            /// name or address of the server; default: the host in LOCK_SERVER, or else 127.0.0.1
            #[argh(option, from_str_fn(client_host))]
            host: Option<String>,

            /// port of the server; default: the port in LOCK_SERVER, or else 8004
            #[argh(option, from_str_fn(client_port))]
            port: Option<u16>,

            /// as for lock, but makes no difference here
            #[argh(option)]
            name: Option<String>,
        }

        impl From<$verb> for Target {
            fn from(args: $verb) -> Self {
                Target { host: args.host, port: args.port, name: args.name }
            }
        }
    )* };
}

plain_verbs! {
    #[argh(
        name = "ping",
        description = "say whether a server answers",
        example = "{command_name}\n{command_name} --host 10.0.0.7 --port 8080",
        note = "\
Prints 1 if one does within 5 seconds, at the first attempt.
Exit codes: 0 it answers, 2 wrong usage, 69 it does not."
    )]
    /// The arguments of `ping`.
    Ping

    #[argh(
        name = "shutdown",
        description = "ask a server to stop, if it runs with --allow-shutdown",
        example = "{command_name}\n{command_name} --host 10.0.0.7 --port 8080",
        note = "\
Prints 1 when the server ends.
Exit codes: 0 it ends, 1 it is not allowed, 2 wrong usage, 69 no server there."
    )]
    /// The arguments of `shutdown`.
    Shutdown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_ascii_whitespace().map(String::from).collect()
    }

    fn normal(line: &str) -> Vec<String> {
        with_verb(split_at_equals(words(line)))
    }

    #[test]
    fn run_goes_without_saying() {
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
        for line in ["help lock", "--help lock", "-h lock KEYA"] {
            assert_eq!(normal(line), ["lock", "--help"], "{line}");
        }
    }

    #[test]
    fn a_key_may_be_called_help() {
        let parsed = parse(&words("lock help")).ok();
        let Some(Command::Verb(Verb::Lock(lock))) = parsed else {
            panic!("not understood as lock");
        };
        assert_eq!(lock.key, "help");
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
            (
                "--time-between-attempts",
                defaults.time_between_attempts.as_secs_f64().to_string(),
            ),
            ("--max-waiters", defaults.max_waiters.to_string()),
            ("--max-keys", defaults.max_keys.to_string()),
            ("--max-lock-timeout", "3600,".into()),
            ("--max-lock-attempt-timeout", "3600,".into()),
        ] {
            let (_, about) = help.split_once(&format!(" {option} ")).expect("an option");
            let (_, rest) = about.split_once("default ").expect("a default");
            assert_eq!(rest.split(' ').next(), Some(default.as_str()), "{option}");
        }
        assert!(!defaults.allow_shutdown);
    }
}
