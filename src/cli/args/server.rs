//! The verbs that serve, and those for the server in the background.

use std::path::PathBuf;
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};
use lock_server::{ClusterOptions, Options, StoreAddress};

use crate::cli::parsers::{attempt, count, lease, on_or_off, seconds, server_port, store};

/// The options of `run`, `start` and `restart`.
pub struct ServerArgs {
    /// The options that were given, and the library's defaults for the others.
    pub options: Options,
    /// The path of the pid file, if it is not the default one.
    pub pid_file: Option<PathBuf>,
    /// The port, if it was given.
    pub port: Option<u16>,
    /// The first of the given options that says where to listen, if there is one.
    pub listens_by: Option<&'static str>,
}

/// The default lease with a store in etcd, where another server may have to take over: that takes about 6 s, and a
/// holder renews when a third of its lease has passed.
const FAILOVER_LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// Adds the slashes around a prefix that were left out.
fn between_slashes(prefix: String) -> String {
    format!("/{}/", prefix.trim_matches('/'))
}

/// A macro, because the parser has no way to share options between verbs.
macro_rules! server_verbs {
    ($($(#[$about:meta])* $verb:ident)*) => { $(
        #[derive(FromArgs, ArgsInfo)]
        #[argh(subcommand, usage = "[options]", help_triggers("-h", "--help", "help"))]
        $(#[$about])*
        pub struct $verb {
            /// address to listen on; default 127.0.0.1
            #[argh(option, arg_name = "HOST")]
            host: Option<String>,

            /// port to serve on; 0: any; default 8004
            #[argh(option, arg_name = "PORT", from_str_fn(server_port))]
            port: Option<u16>,

            /// for the original's clients; default none
            #[argh(option, arg_name = "PORT", from_str_fn(server_port))]
            classic_port: Option<u16>,

            /// let its clients in without a token
            #[argh(switch, hidden_help)]
            classic_without_token: bool,

            /// another name to accept in Host; repeatable
            #[argh(option, arg_name = "NAME")]
            allow_host: Vec<String>,

            /// how long a lock lasts; default 3 (etcd 30)
            #[argh(option, arg_name = "SECONDS", from_str_fn(lease))]
            lock_timeout: Option<Duration>,

            /// how long a LOCK waits; default 4
            #[argh(option, arg_name = "SECONDS", from_str_fn(attempt))]
            lock_attempt_timeout: Option<Duration>,

            /// let clients stop the server; default no
            #[argh(switch)]
            allow_shutdown: bool,

            /// let clients end others' locks; default no
            #[argh(switch)]
            allow_break: bool,

            /// file of tokens that clients have to show
            #[argh(option, arg_name = "FILE")]
            token_file: Option<PathBuf>,

            /// file:PATH or etcd:URL; see: help store
            #[argh(option, arg_name = "STORE", from_str_fn(store))]
            store: Option<StoreAddress>,

            /// prefix of the names of its keys in etcd
            #[argh(option, hidden_help, arg_name = "PREFIX")]
            store_prefix: Option<String>,

            /// user of etcd
            #[argh(option, hidden_help, arg_name = "NAME")]
            store_user: Option<String>,

            /// file with that user's password
            #[argh(option, hidden_help, arg_name = "FILE")]
            store_password_file: Option<PathBuf>,

            /// how long etcd waits for a leader; default 5
            #[argh(option, hidden_help, arg_name = "SECONDS", from_str_fn(seconds))]
            store_ttl: Option<Duration>,

            /// root certificates for etcd's certificate
            #[argh(option, hidden_help, arg_name = "FILE")]
            store_ca: Option<PathBuf>,

            /// certificate to show to etcd
            #[argh(option, hidden_help, arg_name = "FILE")]
            store_cert: Option<PathBuf>,

            /// its key
            #[argh(option, hidden_help, arg_name = "FILE")]
            store_key: Option<PathBuf>,

            /// where clients and other servers reach this one
            #[argh(option, hidden_help, arg_name = "HOST:PORT")]
            advertise: Option<String>,

            /// off: faster; power failures lose locks
            #[argh(option, arg_name = "ON|OFF", from_str_fn(on_or_off))]
            store_sync: Option<bool>,

            /// more tries of a busy port; default 3
            #[argh(option, arg_name = "N", from_str_fn(count))]
            reconnect_attempts: Option<u32>,

            /// pause between these tries; default 1
            #[argh(option, hidden_help, arg_name = "SECONDS", from_str_fn(seconds))]
            time_between_attempts: Option<Duration>,

            /// longest lock to ask for; default 3600
            #[argh(option, arg_name = "SECONDS", from_str_fn(lease))]
            max_lock_timeout: Option<Duration>,

            /// longest wait to ask for; default 3600
            #[argh(option, arg_name = "SECONDS", from_str_fn(attempt))]
            max_lock_attempt_timeout: Option<Duration>,

            /// LOCKs that may wait; default 10000
            #[argh(option, arg_name = "N", from_str_fn(count))]
            max_waiters: Option<usize>,

            /// holds of all keys; default 1000000
            #[argh(option, arg_name = "N", from_str_fn(count))]
            max_keys: Option<usize>,

            /// file to log to; default: below
            #[argh(option, arg_name = "PATH")]
            log_file: Option<PathBuf>,

            /// the pid file; default: below
            #[argh(option, arg_name = "PATH")]
            pid_file: Option<PathBuf>,
        }

        impl From<$verb> for ServerArgs {
            fn from(args: $verb) -> Self {
                let listens_by = [
                    ("--host", args.host.is_some()),
                    ("--port", args.port.is_some()),
                    ("--classic-port", args.classic_port.is_some()),
                ];
                let listens_by = listens_by.iter().find(|(_, is_given)| *is_given);
                let defaults = Options::default();
                let cluster = defaults.cluster;
                let options = Options {
                    cluster: ClusterOptions {
                        prefix: args.store_prefix.map_or(cluster.prefix, between_slashes),
                        user: args.store_user,
                        password_file: args.store_password_file,
                        ttl: args.store_ttl.unwrap_or(cluster.ttl),
                        advertise: args.advertise,
                        ca_file: args.store_ca,
                        cert_file: args.store_cert,
                        key_file: args.store_key,
                    },
                    host: args.host.unwrap_or(defaults.host),
                    allowed_hosts: args.allow_host,
                    port: args.port.unwrap_or(defaults.port),
                    classic_port: args.classic_port.or(defaults.classic_port),
                    lock_timeout: args.lock_timeout.unwrap_or(match args.store {
                        Some(StoreAddress::Etcd(_)) => FAILOVER_LOCK_TIMEOUT,
                        _ => defaults.lock_timeout,
                    }),
                    lock_attempt_timeout: args
                        .lock_attempt_timeout
                        .unwrap_or(defaults.lock_attempt_timeout),
                    classic_without_token: args.classic_without_token
                        || defaults.classic_without_token,
                    token_file: args.token_file,
                    store: args.store,
                    store_sync: args.store_sync.unwrap_or(defaults.store_sync),
                    allow_shutdown: args.allow_shutdown || defaults.allow_shutdown,
                    allow_break: args.allow_break || defaults.allow_break,
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
                ServerArgs {
                    options,
                    pid_file: args.pid_file,
                    port: args.port,
                    listens_by: listens_by.map(|(option, _)| *option),
                }
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
{command_name} --store file:/var/lib/locks.db    # locks outlive the server
{command_name} --store etcd:http://10.0.0.1:2379 --advertise 10.0.0.7:8004
{command_name} --port 8080 --classic-port 8004    # for old clients",
        note = "\
Logs to standard error, as LOCK_SERVER_LOG says; no pid file. Under systemd it
notifies and takes LISTEN_FDS. Exit codes: 0 stopped, 1 failed, 2 wrong usage."
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
Logs to --log-file. Pid file: lock-server-PORT.pid in $XDG_RUNTIME_DIR, or else
lock-server-UID-PORT.pid in $TMPDIR or /tmp. Exit codes: 0 it serves, 1 not."
    )]
    /// The arguments of `start`.
    Start

    #[argh(
        name = "restart",
        description = "stop the server in the background, if there is one, and start it again",
        example = "{command_name}\n{command_name} --port 8080 --lock-timeout 10",
        note = "\
Keeps the old server's options that are not given here. Locks end, except those
in a --store. Port: as for stop. Exit codes: 0 it serves, 1 not, 2 wrong usage."
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
file is trusted only if it is yours or root's and its server still has it
locked (flock); a stale one is removed. Without one, the server at the port is
asked for its process, also one of run; with --pid-file only if --port is given.
It stops no server of another machine, also if LOCK_SERVER names one.
Exit codes: 0 stopped, 1 not running or cannot be stopped, 2 wrong usage."
)]
/// The arguments of `stop`.
pub struct Stop {
    /// port given to start; default: LOCK_SERVER, or 8004
    #[argh(option, arg_name = "PORT", from_str_fn(server_port))]
    pub port: Option<u16>,

    /// the pid file given to start; default: as for start
    #[argh(option, arg_name = "PATH")]
    pub pid_file: Option<PathBuf>,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "status",
    description = "say whether a server runs and answers",
    usage = "[options]",
    help_triggers("-h", "--help", "help"),
    example = "{command_name}\n{command_name} --port 8080",
    note = "\
Without a pid file, the server at the port is asked for its process. Without
options it is about the server in LOCK_SERVER, or each of several, in a line.
One of another machine, or behind a proxy, is only asked whether it answers.
Exit codes: 0 it runs and answers, 1 it does not, 2 wrong usage."
)]
/// The arguments of `status`.
pub struct StatusArgs {
    /// where to ask; default 127.0.0.1
    #[argh(option, arg_name = "HOST")]
    pub host: Option<String>,

    /// the port given to start; default 8004
    #[argh(option, arg_name = "PORT", from_str_fn(server_port))]
    pub port: Option<u16>,

    /// the pid file given to start; default: as for start
    #[argh(option, arg_name = "PATH")]
    pub pid_file: Option<PathBuf>,
}
