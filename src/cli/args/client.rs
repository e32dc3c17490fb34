//! The verbs that ask a server: about a key, with `exec` among them, or about itself.

use std::time::Duration;

use argh::{ArgsInfo, FromArgs};

use crate::cli::parsers::{client_port, count, exit_code, seconds};

/// Which server to ask, and under which name, as far as the options say it.
pub struct Target {
    /// The name or address of the server.
    pub host: Option<String>,
    /// The port of the server.
    pub port: Option<u16>,
    /// The requester's name.
    pub name: Option<String>,
}

/// A key, and the server to ask about it.
pub struct Question {
    /// The key.
    pub key: String,
    /// The server, and the name to ask under.
    pub target: Target,
    /// Whether to keep to oneself why an answer is no.
    pub quiet: bool,
}

/// The verbs that ask about a key, each with options of its own; the parser has no way to share the others,
/// but a macro has. The word `help` may be a key, so it is none of their help triggers. A type is taken apart,
/// since the derive can't read one in a whole.
macro_rules! key_verbs {
    ($($(#[$about:meta])* $verb:ident { $($(#[$meaning:meta])* $option:ident: $type:ident $(<$inner:ident>)?,)* })*) => { $(
        #[derive(FromArgs, ArgsInfo)]
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

            /// do not say on standard error who has the key
            #[argh(switch, short = 'q')]
            quiet: bool,

            /// name or address of the server; default: the host in LOCK_SERVER, or else 127.0.0.1
            #[argh(option)]
            host: Option<String>,

            /// port of the server; default: the port in LOCK_SERVER, or else 8004
            #[argh(option, from_str_fn(client_port))]
            port: Option<u16>,

            /// the name to lock under, 1 to 1024 bytes; default: LOCK_SERVER_NAME, or else
            /// user@host:PID-ID of the calling shell
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
                Question { key: args.key.clone(), target, quiet: args.quiet }
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
key did not become free in time, or this name has it already, and on standard
error who has it, for how long, and how many wait. With --shell it
prints the key and its fence for eval, as in
LOCK_SERVER_KEY='KEYA' LOCK_SERVER_FENCE=1463000000123456
or nothing if it was not locked.
What is typed in one shell has one default name, so that it may unlock what it
locked; the ID in it tells containers and reboots apart. A script of several
processes gives --name or sets LOCK_SERVER_NAME.
LOCK_SERVER is host:port, host, [::1]:8004, or http://host:port/prefix.
Exit codes: 0 locked, 1 not locked since another or this name has it, 2 wrong
usage or a time that the server does not allow, 69 no server there, or it is
full or ending."
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

        /// what those who wait for the key are told of this lock, 1 to 256 bytes
        #[argh(option)]
        note: Option<String>,

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
Prints 1 if it is locked, and on standard error who has it, for how long, and
how many wait; 0 if it is free. The name makes no difference.
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

#[derive(FromArgs, ArgsInfo)]
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
Waits for the key, and for a server that is away, and runs the command as it
stands, without a shell; its standard streams are those given here. The lease
is renewed after each third of it. Where that fails, the process group of the
command gets SIGTERM --kill-after seconds before the lease runs out, and
SIGKILL so early that it is gone by then. Where the server says that the lease
is over, it gets SIGKILL at once.
Signals are handed on to the command, and it ends when exec is killed. Ctrl-Z
does not suspend it.
It finds LOCK_SERVER (host:port), LOCK_SERVER_KEY, LOCK_SERVER_NAME and
LOCK_SERVER_FENCE in its environment. An exec in it for the same key fails at
once. RUST_LOG is the command's; LOCK_SERVER_LOG=debug shows what exec does.
A key that begins with a dash takes a -- of its own: exec -- -K -- ls.

Exit codes:
  the command's own; ended by signal N, exec dies of it, too: 128+N in a shell
  64     wrong usage
  69     no server there within --connect-timeout or -w, or it can't serve now
  71     the system had no process or thread for exec itself
  75     the key was not obtained; -E N says N instead
  123    the command took longer than --timeout, and was ended
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

    /// how long the server may be away before or while it waits, in seconds; default: as long as it
    /// waits for the key
    #[argh(option, from_str_fn(seconds))]
    pub connect_timeout: Option<Duration>,

    /// exit code when the key was not obtained, 0 to 255; default 75
    #[argh(option, short = 'E', from_str_fn(exit_code))]
    pub conflict_exit_code: Option<u8>,

    /// how long the lease lasts that is renewed, in seconds, and how soon the key is free if this
    /// machine fails; default 30, or less if the server's --max-lock-timeout is less
    #[argh(option, from_str_fn(seconds))]
    pub lock_timeout: Option<Duration>,

    /// how long the command may take in all, in seconds, as in timeout(1): then SIGTERM, and SIGKILL
    /// after --kill-after; 0 or default: as long as it takes
    #[argh(option, from_str_fn(seconds))]
    pub timeout: Option<Duration>,

    /// how long the command may take to end after SIGTERM, in seconds, at most a third of the lease;
    /// default 5
    #[argh(option, short = 'k', from_str_fn(seconds))]
    pub kill_after: Option<Duration>,

    /// what those who wait for the key are told of this job, 1 to 256 bytes
    #[argh(option)]
    pub note: Option<String>,

    /// say nothing but what went wrong: not who has the key, and no line while waiting
    #[argh(switch, short = 'q')]
    pub quiet: bool,

    /// say what happens: locked, renewed, unlocked
    #[argh(switch, short = 'v')]
    pub verbose: bool,

    /// name or address of the server; default: the host in LOCK_SERVER, or else 127.0.0.1
    #[argh(option)]
    pub host: Option<String>,

    /// port of the server; default: the port in LOCK_SERVER, or else 8004
    #[argh(option, from_str_fn(client_port))]
    pub port: Option<u16>,

    /// the name to lock under, 1 to 1024 bytes; default: LOCK_SERVER_NAME, or else user@host:PID-ID
    /// of this process; under another exec, that one's name with >PID
    #[argh(option)]
    pub name: Option<String>,
}

impl Exec {
    /// The server, and the name to ask under.
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
        #[derive(FromArgs, ArgsInfo)]
        #[argh(subcommand, usage = "[options]", help_triggers("-h", "--help", "help"))]
        $(#[$about])*
        pub struct $verb {
            /// name or address of the server; default: the host in LOCK_SERVER, or else 127.0.0.1
            #[argh(option)]
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
Prints 1 when the server ends. One with --token-file takes a token of the role
admin for it.
Exit codes: 0 it ends, 2 wrong usage, 69 no server there, or not allowed."
    )]
    /// The arguments of `shutdown`.
    Shutdown
}
