//! The verbs that look: which keys are held, everything about one key, and the file of a store.

use std::path::PathBuf;

use argh::{ArgsInfo, FromArgs};

use super::Target;
use crate::cli::columns::Columns;
use crate::cli::parsers::{client_port, store_file};

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "list",
    description = "list the keys that are held, and who holds them",
    usage = "[options]",
    help_triggers("-h", "--help", "help"),
    example = "\
{command_name}
{command_name} --prefix deploy/ -o key,holder,expires
{command_name} --no-headings -o key | sort
{command_name} --json | jq '.locks[].held_by[].name'",
    note = "\
A line for each holder; keys that somebody waits for come first, then those that
end first. COLUMNS are names with commas between: key,holder,held,left,
waiters,note is the default; fence, slots, holders, since and expires are the
others. On a terminal long names are cut and times are short; otherwise tabs
separate the columns, times are in seconds, and nothing is cut.
Exit codes: 0 listed, also if nothing is held, 2 wrong usage, 69 no server
there, or it does not allow that, 71 it could not be written."
)]
/// The arguments of `list`.
pub struct List {
    /// only keys with this prefix
    #[argh(option, arg_name = "P")]
    pub prefix: Option<String>,

    /// only keys that this name holds, with all their holders
    #[argh(option, arg_name = "HOLDER")]
    pub holder: Option<String>,

    /// what to show, in this order
    #[argh(option, short = 'o', arg_name = "COLUMNS")]
    pub columns: Option<Columns>,

    /// no line with the names of the columns
    #[argh(switch)]
    pub no_headings: bool,

    /// one JSON object, as GET /locks has it, with all keys
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

impl List {
    /// The server to ask.
    pub fn target(&self) -> Target {
        Target {
            host: self.host.clone(),
            port: self.port,
            name: self.name.clone(),
        }
    }
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "show",
    description = "show who holds a key, and who waits for it in which order",
    usage = "[options] [--] KEY",
    help_triggers("-h", "--help"),
    example = "\
{command_name} KEYA
{command_name} --json KEYA | jq -r '.queue[0].name'",
    note = "\
A line for each holder, the earliest first, and then one for each waiter, in the
order of the queue: how long so far, how much longer the lease or wait lasts,
how many may hold the key together with it, the fence of the grant, and the
note. On a terminal long names are cut and times are short; otherwise tabs
separate the columns, and times are in seconds.
Exit codes: 0 held, 1 free, 2 wrong usage, 69 no server there, or it does not
allow that, 71 it could not be written."
)]
/// The arguments of `show`.
pub struct Show {
    /// up to 1024 bytes; after -- it may begin with -
    #[argh(positional, arg_name = "KEY")]
    pub key: String,

    /// one JSON object, as GET /locks/KEY has it
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

impl Show {
    /// The server to ask.
    pub fn target(&self) -> Target {
        Target {
            host: self.host.clone(),
            port: self.port,
            name: self.name.clone(),
        }
    }
}

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "store",
    description = "check or print the file of a store that no server is using",
    usage = "check|dump PATH",
    help_triggers("-h", "--help", "help"),
    example = "\
{command_name} check /var/lib/lock-server/locks.db
{command_name} dump locks.db | jq -r '.holds[] | [.key, .requester] | @tsv'",
    note = "\
check compares everything in it with everything else, and prints one line, such
as: locks.db: 3 holds, greatest fence 1463000000123456, format 1, ok
dump prints one JSON object: store, format, greatest_fence, and holds with key,
requester, fence, lock_timeout in seconds, note, slots and request_id.
Both change nothing. A server keeps the file to itself: list and show ask it.
PATH-wal belongs to the file. If it exists, copy and move both.
Exit codes: 0 printed, 1 it is no store, is damaged, of a later version, or in
use, 2 wrong usage, 71 it could not be written."
)]
/// The arguments of `store`.
pub struct StoreArgs {
    /// check or dump
    #[argh(positional, arg_name = "WHAT", from_str_fn(parse_look))]
    pub what: StoreLook,

    /// the file, with or without the file: of --store
    #[argh(positional, arg_name = "PATH", from_str_fn(store_file))]
    pub path: PathBuf,
}

/// What to look for in the file of a store.
#[derive(Clone, Copy)]
pub enum StoreLook {
    /// Whether it is sound.
    Check,
    /// Everything.
    Dump,
}

fn parse_look(word: &str) -> Result<StoreLook, String> {
    Ok(match word {
        "check" => StoreLook::Check,
        "dump" => StoreLook::Dump,
        _ => return Err("give check or dump".into()),
    })
}
