//! The verbs that ask a server about a key, `exec` among them, or about the server itself.

use std::time::Duration;

use argh::{ArgsInfo, FromArgs};

use crate::cli::parsers::{attempt, client_port, count, exit_code, lease, note, seconds, slots};

/// Which server to ask, and under which name, as far as options give it.
#[derive(Default)]
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
    /// Whether to leave out why an answer is no.
    pub quiet: bool,
}

/// The verbs that ask about a key, each with its own options. A macro adds the options that they share, since the
/// parser has no way to. The word `help` may be a key, so it is not one of their help triggers. The macro takes a type
/// in parts, since the derive can't read one that is passed as a whole.
macro_rules! key_verbs {
    ($($(#[$about:meta])* $verb:ident { $($(#[$meaning:meta])* $option:ident: $type:ident $(<$inner:ident>)?,)* })*) => { $(
        #[derive(FromArgs, ArgsInfo)]
        #[argh(subcommand, usage = "[options] [--] KEY", help_triggers("-h", "--help"))]
        $(#[$about])*
        pub struct $verb {
            /// up to 1024 bytes; after -- it may begin with -
            #[argh(positional, arg_name = "KEY")]
            key: String,

            $(
                $(#[$meaning])*
                pub $option: $type $(<$inner>)?,
            )*

            /// do not say on standard error who has the key
            #[argh(switch, short = 'q')]
            quiet: bool,

            /// server, or A,B; else LOCK_SERVER, or 127.0.0.1
            #[argh(option, arg_name = "HOST")]
            host: Option<String>,

            /// its port; default: LOCK_SERVER, or 8004
            #[argh(option, arg_name = "PORT", from_str_fn(client_port))]
            port: Option<u16>,

            /// name to lock under; default: LOCK_SERVER_NAME
            #[argh(option, arg_name = "NAME")]
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
Prints when the lock runs out, in Unix seconds with six decimals; or 0 if it
was not granted, and on standard error who has the key. With --shell it prints
LOCK_SERVER_KEY='KEYA' LOCK_SERVER_FENCE=1463000000123456 for eval, or nothing.
A script with several processes needs --name or LOCK_SERVER_NAME.
Exit codes: 0 locked, 1 not locked since another or this name has it, 2 wrong
usage or a time that the server does not allow, 69 no server there, or it is
full or ending, 71 the answer could not be written."
    )]
    /// The arguments of `lock`.
    Lock {
        /// how long the lock lasts; default: the server's
        #[argh(option, arg_name = "SECONDS", from_str_fn(lease))]
        lock_timeout: Option<Duration>,

        /// how long to wait; default: the server's
        #[argh(option, arg_name = "SECONDS", from_str_fn(attempt))]
        lock_attempt_timeout: Option<Duration>,

        /// do not wait; as --lock-attempt-timeout 0
        #[argh(switch, long = "try")]
        once: bool,

        /// share the key with other --shared holders
        #[argh(switch, short = 's')]
        shared: bool,

        /// hold the key alone; the default
        #[argh(switch, short = 'x')]
        exclusive: bool,

        /// share the key: N holders with this one
        #[argh(option, arg_name = "N", from_str_fn(slots))]
        slots: Option<u32>,

        /// text for those who wait, up to 256 bytes
        #[argh(option, arg_name = "TEXT", from_str_fn(note))]
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
        /// only the lock of this fence; lock --shell prints it
        #[argh(option, arg_name = "N", from_str_fn(count))]
        fence: Option<u64>,
    }

    #[argh(
        name = "renew",
        description = "make a lock last longer, counted from now",
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
        /// how long it lasts from now on; default: as before
        #[argh(option, arg_name = "SECONDS", from_str_fn(lease))]
        lock_timeout: Option<Duration>,

        /// only the lock of this fence; lock --shell prints it
        #[argh(option, arg_name = "N", from_str_fn(count))]
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
        /// only the lock of this fence; lock --shell prints it
        #[argh(option, arg_name = "N", from_str_fn(count))]
        fence: Option<u64>,
    }

    #[argh(
        name = "break",
        description = "end somebody else's lock of a key, after a question",
        example = "\
{command_name} KEYA
{command_name} --yes --holder CLIENT_A KEYA",
        note = "\
Shows who has the key, since when and for how long, and how many wait; asks
whether to break it, and breaks that lock alone or none. The former holder goes
on until it asks the server: end it first if you can. The server logs --name. It
needs a server with --allow-break, or a token of the role admin.
Prints 1; or 0 if nothing was broken.
Exit codes: 0 broken, 1 nothing was broken, 2 wrong usage, or several have the
key, or nobody can be asked; 69 it is not allowed, or no server there."
    )]
    /// The arguments of `break`.
    Break {
        /// only the lock of this fence
        #[argh(option, arg_name = "N", from_str_fn(count))]
        fence: Option<u64>,

        /// only the lock of this name
        #[argh(option, arg_name = "NAME")]
        holder: Option<String>,

        /// do not ask
        #[argh(switch, short = 'y')]
        yes: bool,
    }
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "exec",
    description = "run a command, without a shell, while a key is locked; unlock it afterwards",
    usage = "[options] KEY -- COMMAND [ARG...]",
    help_triggers("-h", "--help"),
    example = "\
{command_name} KEYA -- ls -l
{command_name} -n -E 0 -q nightly -- /usr/local/bin/nightly-job
{command_name} -w 600 --lock-timeout 30 deploy -- ./deploy.sh production
{command_name} --also db2 db1 -- ./copy.sh db1 db2",
    note = "\
Exit codes: the command's own; 64 wrong usage, 69 no server, 71 no process, 75
not obtained, 123 --timeout, 124 lease lost; 126, 127, 128+N as in a shell."
)]
/// The arguments of `exec`.
pub struct Exec {
    /// up to 1024 bytes
    #[argh(positional, arg_name = "KEY")]
    pub key: Option<String>,

    /// a further key; all are held, or none; repeatable
    #[argh(option, arg_name = "KEY2")]
    pub also: Vec<String>,

    /// do not wait if the key is locked
    #[argh(switch, short = 'n')]
    pub nonblock: bool,

    /// how long to wait; default: as long as it takes
    #[argh(option, short = 'w', arg_name = "SECONDS", from_str_fn(seconds))]
    pub wait: Option<Duration>,

    /// how long the server may be away; default: as -w
    #[argh(option, arg_name = "SECONDS", from_str_fn(seconds))]
    pub connect_timeout: Option<Duration>,

    /// exit code if not obtained; default 75
    #[argh(option, short = 'E', arg_name = "N", from_str_fn(exit_code))]
    pub conflict_exit_code: Option<u8>,

    /// length of the lease that is renewed; default 30
    #[argh(option, arg_name = "SECONDS", from_str_fn(lease))]
    pub lock_timeout: Option<Duration>,

    /// how long the command may take; default: no end
    #[argh(option, arg_name = "SECONDS", from_str_fn(seconds))]
    pub timeout: Option<Duration>,

    /// time to end after SIGTERM; default 5
    #[argh(option, short = 'k', arg_name = "SECONDS", from_str_fn(seconds))]
    pub kill_after: Option<Duration>,

    /// share the key with other --shared holders
    #[argh(switch, short = 's')]
    pub shared: bool,

    /// hold the key alone; the default
    #[argh(switch, short = 'x')]
    pub exclusive: bool,

    /// share the key: N holders with this one
    #[argh(option, arg_name = "N", from_str_fn(slots))]
    pub slots: Option<u32>,

    /// text for those who wait; default: COMMAND
    #[argh(option, arg_name = "TEXT", from_str_fn(note))]
    pub note: Option<String>,

    /// print only what goes wrong
    #[argh(switch, short = 'q')]
    pub quiet: bool,

    /// print what happens: locked, renewed, unlocked
    #[argh(switch, short = 'v')]
    pub verbose: bool,

    /// server, or A,B; else LOCK_SERVER, or 127.0.0.1
    #[argh(option, arg_name = "HOST")]
    pub host: Option<String>,

    /// its port; default: LOCK_SERVER, or 8004
    #[argh(option, arg_name = "PORT", from_str_fn(client_port))]
    pub port: Option<u16>,

    /// name to lock under; default: LOCK_SERVER_NAME
    #[argh(option, arg_name = "NAME")]
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

/// How many may hold the key together, after flock(1): `--shared`, `--exclusive`, or `--slots`.
#[derive(Clone, Copy)]
pub struct Sharing {
    pub shared: bool,
    pub exclusive: bool,
    pub slots: Option<u32>,
}

/// As `key_verbs`, for the verbs that ask about the server itself.
macro_rules! plain_verbs {
    ($($(#[$about:meta])* $verb:ident)*) => { $(
        #[derive(FromArgs, ArgsInfo)]
        #[argh(subcommand, usage = "[options]", help_triggers("-h", "--help", "help"))]
        $(#[$about])*
        pub struct $verb {
            /// server, or A,B; else LOCK_SERVER, or 127.0.0.1
            #[argh(option, arg_name = "HOST")]
            host: Option<String>,

            /// its port; default: LOCK_SERVER, or 8004
            #[argh(option, arg_name = "PORT", from_str_fn(client_port))]
            port: Option<u16>,

            /// as for lock, but makes no difference here
            #[argh(option, arg_name = "NAME")]
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
Prints 1 when the server ends. With --token-file it takes a token of admin.
Exit codes: 0 it ends, 2 wrong usage, 69 it is not allowed, or no server there."
    )]
    /// The arguments of `shutdown`.
    Shutdown
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "events",
    description = "print what happens to keys, a line for each event, as it happens",
    usage = "[options]",
    help_triggers("-h", "--help", "help"),
    example = "\
{command_name}
{command_name} --prefix deploy/
{command_name} --json | jq -r 'select(.event == \"expired\") | .key'",
    note = "\
Goes on until Ctrl-C, or until nobody reads its output. When the server is
restarted, it reports that and asks again; events in between are missing.
Exit codes: 0 nobody reads its output, 2 wrong usage, 69 no server there when it
began, or it does not allow that, 71 the output could not be written."
)]
/// The arguments of `events`.
pub struct EventsArgs {
    /// only keys with this prefix
    #[argh(option, arg_name = "P")]
    pub prefix: Option<String>,

    /// print the server's JSON, an object in each line
    #[argh(switch)]
    pub json: bool,

    /// server, or A,B; else LOCK_SERVER, or 127.0.0.1
    #[argh(option, arg_name = "HOST")]
    host: Option<String>,

    /// its port; default: LOCK_SERVER, or 8004
    #[argh(option, arg_name = "PORT", from_str_fn(client_port))]
    port: Option<u16>,

    /// as for lock, but makes no difference here
    #[argh(option, arg_name = "NAME")]
    name: Option<String>,
}

impl EventsArgs {
    /// The server, and the name to ask under.
    pub fn target(&self) -> Target {
        Target {
            host: self.host.clone(),
            port: self.port,
            name: self.name.clone(),
        }
    }
}
