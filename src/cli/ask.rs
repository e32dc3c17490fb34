//! The verbs that ask a server: the answer on standard output as on the wire, and as an exit code.

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use lock_server::{Client, ClientOptions, Error, Lease, LockOptions, RenewOptions, ServerAddress};
use nix::unistd::{Pid, Uid, User, gethostname, getppid};

use crate::cli::advice::explain;
use crate::cli::args::{Check, Lock, Question, Renew, Target, Unlock, Verify};
use crate::cli::exit::{Failure, NO, UNREACHABLE};
use crate::cli::{print, start_log};

/// Where the server is, if no option says it.
pub const SERVER_VARIABLE: &str = "LOCK_SERVER";

/// The name to ask under, if no option says it.
pub const NAME_VARIABLE: &str = "LOCK_SERVER_NAME";

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
        ..LockOptions::default()
    };
    let (client, key) = Question::from(args).client()?;
    match client.lock_with(&key, &options) {
        Ok(lease) => {
            let line = if args.shell {
                variables(&lease)
            } else {
                lease.expires_unix()
            };
            let printed = print(&line);
            if printed != ExitCode::SUCCESS {
                // Its exit code says that nothing is locked.
                client.release(&lease)?;
            }
            Ok(printed)
        }
        // A shell would take the answer for a command.
        Err(Error::NotGranted { .. }) if args.shell => Ok(ExitCode::from(NO)),
        Err(Error::NotGranted { .. }) => Ok(answer(false)),
        Err(error) => Err(error.into()),
    }
}

/// Unlocks the key.
pub fn unlock(args: &Unlock) -> Result<ExitCode, Failure> {
    let (client, key) = Question::from(args).client()?;
    let unlocked = match args.fence {
        Some(fence) => client.unlock_fenced(&key, fence),
        None => client.unlock(&key),
    };
    Ok(answer(unlocked?))
}

/// Gives the lease another end.
pub fn renew(args: &Renew) -> Result<ExitCode, Failure> {
    let (client, key) = Question::from(args).client()?;
    let options = RenewOptions {
        lock_timeout: args.lock_timeout,
        fence: args.fence,
    };
    match client.renew_with(&key, &options)? {
        Some(lease) => Ok(print(&lease.expires_unix())),
        None => Ok(answer(false)),
    }
}

/// Whether anybody holds the key.
pub fn check(args: &Check) -> Result<ExitCode, Failure> {
    let (client, key) = Question::from(args).client()?;
    Ok(answer(client.is_locked(&key)?))
}

/// Whether this name holds the key.
pub fn verify(args: &Verify) -> Result<ExitCode, Failure> {
    let (client, key) = Question::from(args).client()?;
    let held = match args.fence {
        Some(fence) => client.verify_fenced(&key, fence),
        None => client.locked_by_me(&key),
    };
    Ok(answer(held?))
}

/// Whether a server answers.
pub fn ping(target: &Target) -> Result<ExitCode, Failure> {
    match target.client()?.try_ping() {
        Ok(()) => Ok(answer(true)),
        // Whatever answers there, it is no lock server.
        Err(error) => Err(Failure::new(UNREACHABLE, explain(&error))),
    }
}

/// Stops the server, if it lets itself be stopped.
pub fn shutdown(target: &Target) -> Result<ExitCode, Failure> {
    target.client()?.shutdown()?;
    Ok(answer(true))
}

fn answer(yes: bool) -> ExitCode {
    if yes {
        return print("1");
    }
    print("0");
    ExitCode::from(NO)
}

/// As a shell reads it: nothing means anything between single quotes but a single quote.
fn variables(lease: &Lease) -> String {
    let key = lease.key.replace('\'', r"'\''");
    let fence = lease.fence;
    format!("LOCK_SERVER_KEY='{key}' LOCK_SERVER_FENCE={fence}")
}

impl Question {
    /// Who asks, and about which key.
    fn client(self) -> Result<(Client, String), Failure> {
        Ok((self.target.client()?, self.key))
    }
}

impl Target {
    fn client(&self) -> Result<Client, Failure> {
        start_log("warn", None)?;
        let ServerAddress { host, port } = self.address()?;
        let name = match &self.name {
            Some(name) => name.clone(),
            None => variable(NAME_VARIABLE)?.unwrap_or_else(|| usual_name(getppid())),
        };
        // Given options, it tries again also where nobody is there yet: the server may be about to start.
        let options = ClientOptions::default();
        Ok(Client::with_options(&name, &host, port, options))
    }

    /// What the options say wins over what the environment says.
    pub fn address(&self) -> Result<ServerAddress, Failure> {
        let said = match variable(SERVER_VARIABLE)? {
            // Options that say it all spare looking at what can't be read.
            Some(text) if self.host.is_none() || self.port.is_none() => {
                text.parse().map_err(|error| match error {
                    Error::InvalidOption { reason, .. } => {
                        Failure::usage(format!("bad {SERVER_VARIABLE}: {reason}"))
                    }
                    error => error.into(),
                })?
            }
            _ => ServerAddress::default(),
        };
        Ok(ServerAddress {
            host: self.host.clone().unwrap_or(said.host),
            port: self.port.unwrap_or(said.port),
        })
    }
}

/// A variable of the environment. An empty one is as good as none.
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

/// The name of a process that has none: the user's, the machine's and its number.
///
/// A question takes that of the shell that calls it, so that two commands typed in one shell are one requester.
pub fn usual_name(process: Pid) -> String {
    let uid = Uid::current();
    let user = match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    };
    let host = gethostname().unwrap_or_default();
    format!("{user}@{}:{process}", host.to_string_lossy())
}
