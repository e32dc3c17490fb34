//! The verbs that serve, and those that see to the server in the background.

use std::path::PathBuf;
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};
use lock_server::Options;

use crate::cli::parsers::{count, seconds, server_port};

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
        #[derive(FromArgs, ArgsInfo)]
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

            /// let clients on the classic port in though --token-file asks the others for a token; default no
            #[argh(switch)]
            classic_without_token: bool,

            /// another name that it may be asked for under, as behind a proxy on this machine; * is any;
            /// repeatable
            #[argh(option)]
            allow_host: Vec<String>,

            /// how long a lock lasts, in seconds, 0.001 to 31536000; default 3
            #[argh(option, from_str_fn(seconds))]
            lock_timeout: Option<Duration>,

            /// how long a LOCK waits for its turn, in seconds; 0 tries once; default 4
            #[argh(option, from_str_fn(seconds))]
            lock_attempt_timeout: Option<Duration>,

            /// let clients stop the server; default no. With --token-file a token of the role admin may
            #[argh(switch)]
            allow_shutdown: bool,

            /// file of tokens, of which clients have to show one; see below; default none
            #[argh(option)]
            token_file: Option<PathBuf>,

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

            /// file to log to, appended to; default: run logs to standard error, the others nowhere
            #[argh(option)]
            log_file: Option<PathBuf>,

            /// where to write down process and address; default: see below
            #[argh(option)]
            pid_file: Option<PathBuf>,
        }

        impl From<$verb> for ServerArgs {
            fn from(args: $verb) -> Self {
                let defaults = Options::default();
                let options = Options {
                    host: args.host.unwrap_or(defaults.host),
                    allowed_hosts: args.allow_host,
                    port: args.port.unwrap_or(defaults.port),
                    classic_port: args.classic_port.or(defaults.classic_port),
                    lock_timeout: args.lock_timeout.unwrap_or(defaults.lock_timeout),
                    lock_attempt_timeout: args
                        .lock_attempt_timeout
                        .unwrap_or(defaults.lock_attempt_timeout),
                    classic_without_token: args.classic_without_token
                        || defaults.classic_without_token,
                    token_file: args.token_file,
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
                    log_to: args.log_file,
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
Says on standard error where it serves, then logs there or to --log-file:
RUST_LOG=debug for more, RUST_LOG=warn for less.
A line of the token file is ROLE TOKEN, as in: lock mF_9.B5f-4.1JqM. read may
check and verify, lock may lock, too, and admin may shut down, too. Only its
owner may have a right to it (chmod 600). SIGHUP has it read anew.
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
{command_name} --log-file lock-server.log
{command_name} --port 8080 --classic-port 8004    # for old clients",
        note = "\
A line of the token file is ROLE TOKEN, as in: lock mF_9.B5f-4.1JqM. read may
check and verify, lock may lock, too, and admin may shut down, too. Only its
owner may have a right to it (chmod 600). SIGHUP has it read anew.
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
of the old one: without --classic-port it has no classic clients, and without
--token-file it asks for no token.
Pid file: $XDG_RUNTIME_DIR/lock-server-PORT.pid, or else
lock-server-UID-PORT.pid in $TMPDIR or /tmp. PORT is as given here; port 0
needs --pid-file.
Exit codes: 0 it serves, 1 cannot stop or cannot serve, 2 wrong usage."
    )]
    /// The arguments of `restart`.
    Restart
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "stop",
    description = "stop the server in the background, and return once it has ended",
    usage = "[options]",
    help_triggers("-h", "--help", "help"),
    example = "{command_name}\n{command_name} --port 8080",
    note = "\
Sends SIGTERM, and SIGKILL if the process has not ended after 5 seconds. A pid
file is believed only if it is yours or root's and its server still has it
locked (flock); a stale one is removed.
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

#[derive(FromArgs, ArgsInfo)]
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
pub struct StatusArgs {
    /// where to ask if there is no pid file; default 127.0.0.1
    #[argh(option)]
    pub host: Option<String>,

    /// the port given to start; default 8004
    #[argh(option, from_str_fn(server_port))]
    pub port: Option<u16>,

    /// the pid file given to start; default: see lock-server start --help
    #[argh(option)]
    pub pid_file: Option<PathBuf>,
}
