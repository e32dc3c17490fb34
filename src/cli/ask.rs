//! The verbs that ask a server: they print the answer to standard output as it is on the wire, and exit with its code.

use std::env;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use lock_server::{
    Client, ClientOptions, Error, Holder, Lease, LockOptions, Refusal, RenewOptions, ServerAddress,
    Token,
};
use nix::unistd::getppid;

use crate::cli::advice::explain;
use crate::cli::args::{Check, Lock, Question, Renew, Sharing, Target, Unlock, Verify};
use crate::cli::exit::{Failure, NO, UNREACHABLE};
use crate::cli::usual_name::usual_name;
use crate::cli::{print, print_and, reasons, say, start_log};

/// The variable with the server's address, if no option gives it.
pub const SERVER_VARIABLE: &str = "LOCK_SERVER";

/// The variable with the name to ask under, if no option gives it.
pub const NAME_VARIABLE: &str = "LOCK_SERVER_NAME";

/// What to do if the address of a server needs TLS and this program has none.
const INSTALL_WITH_TLS: &str =
    ", in its sources with: cargo install --locked --path . --features tls";

/// How many may hold the key together, from the options.
pub fn slots(sharing: Sharing) -> Result<u32, Failure> {
    let alone = LockOptions::default().slots;
    match (sharing.shared, sharing.exclusive, sharing.slots) {
        (true, false, None) => Ok(LockOptions::shared().slots),
        (false, true, None) => Ok(alone),
        (false, false, slots) => Ok(slots.unwrap_or(alone)),
        _ => Err(Failure::usage(
            "give one of --shared, --exclusive and --slots",
        )),
    }
}

/// Waits for the key and locks it.
pub fn lock(args: &Lock) -> Result<ExitCode, Failure> {
    let lock_attempt_timeout = match (args.once, args.lock_attempt_timeout) {
        (true, Some(_)) => {
            let message = "--try does not wait; leave it out, or --lock-attempt-timeout";
            return Err(Failure::usage(message));
        }
        (true, None) => Some(Duration::ZERO),
        (false, patience) => patience,
    };
    let options = LockOptions {
        lock_timeout: args.lock_timeout,
        lock_attempt_timeout,
        note: args.note.clone(),
        slots: slots(Sharing {
            shared: args.shared,
            exclusive: args.exclusive,
            slots: args.slots,
        })?,
        ..LockOptions::default()
    };
    let asked = Question::from(args).asked()?;
    let (client, key) = (&asked.client, &asked.key);
    match client.lock_with(key, &options) {
        Ok(lease) => {
            let line = if args.shell {
                variables(&lease)
            } else {
                lease.expires_unix()
            };
            let printed = print(&line);
            if printed != ExitCode::SUCCESS {
                // The exit code will say that nothing is locked, so unlock it.
                client.release(&lease)?;
            }
            Ok(printed)
        }
        Err(Error::NotGranted { reason, holder, .. }) => {
            asked.say(|| reasons::of_lock(key, client.name(), reason, holder.as_ref()));
            match args.shell {
                // With --shell nothing is printed: the shell would run the `0` as a command.
                true => Ok(ExitCode::from(NO)),
                false => Ok(answer(false)),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Unlocks the key.
pub fn unlock(args: &Unlock) -> Result<ExitCode, Failure> {
    let asked = Question::from(args).asked()?;
    let unlocked = match args.fence {
        Some(fence) => asked.client.unlock_fenced(&asked.key, fence),
        None => asked.client.unlock(&asked.key),
    };
    Ok(asked.answer(unlocked?, args.fence))
}

/// Renews the lease.
pub fn renew(args: &Renew) -> Result<ExitCode, Failure> {
    let asked = Question::from(args).asked()?;
    let options = RenewOptions {
        lock_timeout: args.lock_timeout,
        fence: args.fence,
    };
    match asked.client.renew_with(&asked.key, &options)? {
        Some(lease) => Ok(print(&lease.expires_unix())),
        None => Ok(asked.answer(false, args.fence)),
    }
}

/// Whether anybody holds the key.
pub fn check(args: &Check) -> Result<ExitCode, Failure> {
    let asked = Question::from(args).asked()?;
    let key = &asked.key;
    if asked.is_quiet {
        return Ok(answer(asked.client.is_locked(key)?));
    }
    let holder = asked.client.holder(key)?;
    if let Some(holder) = &holder {
        asked.say(|| reasons::held_by(key, holder));
    }
    Ok(answer(holder.is_some()))
}

/// Whether this name holds the key.
pub fn verify(args: &Verify) -> Result<ExitCode, Failure> {
    let asked = Question::from(args).asked()?;
    let held = match args.fence {
        Some(fence) => asked.client.verify_fenced(&asked.key, fence),
        None => asked.client.locked_by_me(&asked.key),
    };
    Ok(asked.answer(held?, args.fence))
}

/// Whether a server answers.
pub fn ping(target: &Target) -> Result<ExitCode, Failure> {
    match target.client()?.try_ping() {
        Ok(()) => Ok(answer(true)),
        Err(error @ Error::InvalidOption { .. }) => Err(error.into()),
        // What answers is no lock server.
        Err(error) => Err(Failure::new(UNREACHABLE, explain(&error))),
    }
}

/// Stops the server, if it allows that.
pub fn shutdown(target: &Target) -> Result<ExitCode, Failure> {
    if let [one, _, ..] = target.addresses()?.as_slice() {
        let (host, port) = (&one.host, one.port);
        return Err(Failure::usage(format!(
            "several servers are named, and one is stopped; say which, as in --host {host} --port {port}"
        )));
    }
    target.client()?.shutdown()?;
    Ok(answer(true))
}

/// Prints an answer, and returns its exit code.
pub fn answer(yes: bool) -> ExitCode {
    match yes {
        true => print("1"),
        false => print_and("0", NO.into()),
    }
}

/// The lease as variables for a shell. Between single quotes, only a single quote has a meaning.
fn variables(lease: &Lease) -> String {
    let key = lease.key.replace('\'', r"'\''");
    let fence = lease.fence;
    format!("LOCK_SERVER_KEY='{key}' LOCK_SERVER_FENCE={fence}")
}

/// The client that asks, and the key.
pub struct Asked {
    pub client: Client,
    pub key: String,
    pub is_quiet: bool,
}

impl Asked {
    /// Writes a message about the answer to standard error, unless `--quiet` is given.
    pub fn say(&self, line: impl FnOnce() -> String) {
        if !self.is_quiet {
            say(&line());
        }
    }

    /// Prints an answer about this name. If it is no, writes to standard error who has the key.
    fn answer(&self, yes: bool, fence: Option<u64>) -> ExitCode {
        if !yes && !self.is_quiet {
            // These questions change nothing. If they fail, the answer is printed without an explanation.
            if let Ok(holder) = self.client.holder(&self.key) {
                let (key, me) = (&self.key, self.client.name());
                let was_broken = self.client.why_not_held(&self.key, fence);
                say(&match (fence, &holder) {
                    _ if matches!(was_broken, Ok(Some(Refusal::Broken))) => {
                        reasons::of_broken(key, me, holder.as_ref())
                    }
                    (Some(fence), Some(holder)) if self.is_among(holder) => {
                        reasons::of_stale_fence(key, me, fence, holder)
                    }
                    _ => reasons::of_holder(key, me, holder.as_ref()),
                });
            }
        }
        answer(yes)
    }

    /// Whether this name is one of the holders of the key. The server names only the first of them.
    fn is_among(&self, holder: &Holder) -> bool {
        holder.name == self.client.name()
            || holder.holders > 1 && self.client.locked_by_me(&self.key).unwrap_or(false)
    }
}

impl Question {
    /// The client that asks.
    pub fn asked(self) -> Result<Asked, Failure> {
        Ok(Asked {
            client: self.target.client()?,
            key: self.key,
            is_quiet: self.quiet,
        })
    }
}

impl Target {
    /// A client of the server in the options or the environment.
    pub fn client(&self) -> Result<Client, Failure> {
        // A person at a terminal learns why nothing happens.
        let level = match io::stderr().is_terminal() {
            true => "warn,lock_server::client::tries=info",
            false => "warn",
        };
        start_log(level, None)?;
        let addresses = self.addresses()?;
        let name = match &self.name {
            Some(name) => name.clone(),
            None => variable(NAME_VARIABLE)?.unwrap_or_else(|| usual_name(getppid())),
        };
        // With options, it also tries again if no server is there yet: the server may be about to start.
        Ok(Client::of_cluster(&name, &addresses, client_options()?))
    }

    /// The server, or the servers of which one leads. Options override the environment.
    pub fn addresses(&self) -> Result<Vec<ServerAddress>, Failure> {
        let said = match variable(SERVER_VARIABLE)? {
            // If both options are given, the variable is not read, since it may be invalid.
            Some(text) if self.host.is_none() || self.port.is_none() => {
                ServerAddress::parse_list(&text).map_err(|error| match error {
                    Error::InvalidOption { reason, .. } => {
                        let install = match text.contains("https://") {
                            true if !cfg!(feature = "tls") => INSTALL_WITH_TLS,
                            _ => "",
                        };
                        Failure::usage(format!("bad {SERVER_VARIABLE}: {reason}{install}"))
                    }
                    error => error.into(),
                })?
            }
            _ => vec![ServerAddress::default()],
        };
        // The prefix of a URL belongs to its host and port, so it is dropped. TLS stays: without it, a token would be
        // sent in clear.
        let is_https = said.iter().any(|address| address.is_https);
        let at = |host: &str, port| ServerAddress {
            host: host.into(),
            port,
            prefix: String::new(),
            is_https,
        };
        Ok(match (&self.host, self.port) {
            (None, None) => said,
            (None, Some(port)) => said.iter().map(|said| at(&said.host, port)).collect(),
            (Some(hosts), port) => {
                // There is a first one: parsing refuses an empty list.
                let port = port.unwrap_or_else(|| said[0].port);
                hosts.split(',').map(|host| at(host.trim(), port)).collect()
            }
        })
    }
}

/// The default options, with the token of the environment.
pub fn client_options() -> Result<ClientOptions, Failure> {
    let token = Token::from_env().map_err(|error| match error {
        Error::InvalidOption { option, reason } => {
            Failure::usage(format!("bad {option}: {reason}"))
        }
        error => error.into(),
    })?;
    Ok(ClientOptions {
        token,
        ..ClientOptions::default()
    })
}

/// A variable of the environment. An empty one counts as not set.
pub fn variable(name: &str) -> Result<Option<String>, Failure> {
    match env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(value)) => {
            let message = format!("bad {name}: {value:?} is not UTF-8");
            Err(Failure::usage(message))
        }
    }
}
