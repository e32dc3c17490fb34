//! `status`: whether servers run and answer: the one of a pid file, the one at a port of this machine, or those that the
//! environment names.

use std::process::ExitCode;

use lock_server::{Client, ClientOptions, Error, ServerAddress};

use crate::cli::advice::explain;
use crate::cli::args::{StatusArgs, Target};
use crate::cli::ask::{SERVER_VARIABLE, variable};
use crate::cli::endpoint::Endpoint;
use crate::cli::exit::{FAILED, Failure};
use crate::cli::local_server::{
    self, Answering, Meant, at, but_answers, client_of, found_by_port, is_here, is_named,
};
use crate::cli::pid_file::{Found, PidFile};
use crate::cli::pid_record::PidRecord;
use crate::cli::{print, print_and, role, say};

/// Prints a line for each server that is meant. Options override the environment. Success if all of them run.
pub fn status(args: StatusArgs) -> Result<ExitCode, Failure> {
    let has_option = args.host.is_some() || args.port.is_some() || args.pid_file.is_some();
    let (names_host, names_port) = match has_option {
        true => (args.host.is_some(), is_named(args.port)),
        false => {
            let is_set = variable(SERVER_VARIABLE)?.is_some();
            (is_set, is_set)
        }
    };
    // If only a pid file is given, the server at the default port may be a different one.
    let may_go_by_port = args.port.is_some() || args.pid_file.is_none();
    let meant = match has_option {
        true => vec![at(args.host, args.port)],
        false => Target::default().addresses()?,
    };
    let mut code = ExitCode::SUCCESS;
    for address in meant {
        let state = if args.pid_file.is_some() || is_here(&address) {
            let pid_file = PidFile::new(args.pid_file.clone(), address.port)?;
            let meant = Meant {
                address,
                names_host,
                names_port,
            };
            here(&pid_file, &meant, args.pid_file.is_some(), may_go_by_port)?
        } else {
            elsewhere(&address)?
        };
        let printed = match state {
            Health::Up(line) => print(&line),
            Health::Down(line) => print_and(&line, FAILED.into()),
        };
        if printed != ExitCode::SUCCESS {
            code = printed;
        }
    }
    Ok(code)
}

/// The begin of the line about a server that does not run.
const NOT_RUNNING: &str = "not running";

/// How a server is, in a line.
enum Health {
    Up(String),
    Down(String),
}

/// The server that the pid file names, or else the one at the port. It is asked at the address, if that was named.
fn here(
    pid_file: &PidFile,
    meant: &Meant,
    has_pid_file: bool,
    may_go_by_port: bool,
) -> Result<Health, Failure> {
    let path = pid_file.path();
    let (address, names_host) = (&meant.address, meant.names_host);
    let mut not_running = NOT_RUNNING.to_string();
    if names_host {
        not_running += &format!(" on {address}");
    }
    let not_running = match pid_file.find()? {
        Found::Running(PidRecord { pid, endpoint, .. }, _) if !meant.is(&endpoint) => {
            let not_running = match has_pid_file {
                true => format!("process {pid} runs, on {endpoint}, not on {address}"),
                false => format!("not running on {address}; {path} names the server on {endpoint}"),
            };
            let may_go_by_port = may_go_by_port && !has_pid_file;
            let other = Some(&endpoint);
            return by_port(pid_file, other, address, may_go_by_port, &not_running);
        }
        Found::Running(PidRecord { pid, endpoint, .. }, _) => {
            let mut asked = endpoint.reachable();
            if names_host {
                asked.host = address.host.clone();
            }
            let client = asked_once(&asked);
            return Ok(match client.try_ping() {
                Ok(()) => {
                    let role = role::of(&client);
                    Health::Up(format!("running, process {pid}, on {endpoint}{role}"))
                }
                Err(error @ Error::Refused { .. }) => Health::Down(format!(
                    "process {pid} runs, on {endpoint}, and answers on {asked}: {}",
                    explain(&error)
                )),
                Err(_) if names_host => Health::Down(format!(
                    "process {pid} runs, on {endpoint}, but does not answer on {asked}"
                )),
                Err(_) => {
                    let address = endpoint.address;
                    Health::Down(format!(
                        "process {pid} runs but does not answer on {address}"
                    ))
                }
            });
        }
        Found::Nothing => not_running,
        Found::Stale(why, None, _) => format!("{not_running}; {path} is stale: {why}"),
        Found::Stale(why, Some(_), _) => format!(
            "{not_running}; {path} is stale: {why}; lock-server restart starts that server again, with its options"
        ),
        Found::Foreign(why) => format!("{not_running}; {path} is no pid file of ours: {why}"),
    };
    by_port(pid_file, None, address, may_go_by_port, &not_running)
}

/// The server that answers at the port, without a pid file. `other` is what the pid file's server has, if one runs.
fn by_port(
    pid_file: &PidFile,
    other: Option<&Endpoint>,
    here: &ServerAddress,
    may_go_by_port: bool,
    not_running: &str,
) -> Result<Health, Failure> {
    let why = match local_server::ask(here)? {
        Answering::Ours(server) if may_go_by_port => {
            say(&found_by_port(pid_file, other, here));
            let role = role::of(&asked_once(here));
            let line = format!("running, process {}, on {here}{role}", server.pid);
            return Ok(Health::Up(line));
        }
        Answering::Ours(server) => {
            let why = format!(" as process {}", server.pid);
            but_answers(pid_file, here, &why)
        }
        Answering::NotOurs(why) => but_answers(pid_file, here, &format!(": {why}")),
        Answering::NotHttp(why) => format!("; {why}"),
        // Where it was asked for is all that can be said.
        Answering::Nothing if may_go_by_port && not_running == NOT_RUNNING && here.port != 0 => {
            format!(" on {here}")
        }
        Answering::Nothing => String::new(),
    };
    Ok(Health::Down(format!("{not_running}{why}")))
}

/// A server on another machine, or behind a proxy: its process can't be inspected.
fn elsewhere(address: &ServerAddress) -> Result<Health, Failure> {
    let client = asked_once(address);
    Ok(match client.try_ping() {
        Ok(()) => Health::Up(format!(
            "a server answers on {address}{}",
            role::of(&client)
        )),
        Err(error @ Error::InvalidOption { .. }) => return Err(error.into()),
        Err(error) => Health::Down(explain(&error)),
    })
}

fn asked_once(address: &ServerAddress) -> Client {
    client_of(address.clone(), ClientOptions::default().answer_timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_is_named_in_brackets() {
        assert_eq!(at(Some("::1".into()), Some(8004)).to_string(), "[::1]:8004");
    }
}
