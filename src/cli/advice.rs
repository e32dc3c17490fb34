//! Advice about errors, in terms of the command's options. The library's errors name what broke, and no options.

use std::error::Error as _;
use std::io::ErrorKind;
use std::iter::successors;
use std::net::IpAddr;
use std::time::Duration;

use lock_server::{
    Client, ClientOptions, Error, Refusal, ServerAddress, StoreError, TlsFailure, Unreached,
};

use crate::cli::pid_record;

/// How many servers are named where the one that was asked is not there.
const SHOWN: usize = 3;

/// An error with its causes and, if there is something to do, advice. One line.
pub fn explain(error: &Error) -> String {
    // The server's own message names the library's option, not the command's.
    if let Error::Refused {
        question,
        reason: reason @ Refusal::Forbidden,
        ..
    } = error
        && let Some(option) = option_that_allows(question)
    {
        return format!(
            "the server refused {question} ({reason}): it allows that if it was started with {option}"
        );
    }
    if let Error::Refused {
        reason: Refusal::BadRequest,
        message,
        ..
    } = error
        && let Some((parameter, said)) = message.split_once(' ')
        && let Some(option) = option_of(parameter)
    {
        let most = format!("--max-{}", &option[2..]);
        let said = said.replace(&format!("max_{parameter}"), &most);
        return format!("{option} {said}");
    }
    let causes = successors(error.source(), |&cause| cause.source());
    let said = causes.fold(error.to_string(), |said, cause| format!("{said}: {cause}"));
    match advice(error) {
        Some(advice) => format!("{said}; {advice}"),
        None => said,
    }
}

/// Why the file of a store can't be read, and advice. One line.
pub fn explain_store(error: &StoreError) -> String {
    let advice = match error {
        StoreError::Taken(_) => "if that is a server, ask it with lock-server list, or stop it",
        StoreError::Foreign(_) => "give the PATH of --store file:PATH",
        StoreError::Newer(..) => "use that version",
        StoreError::Damaged(..) => {
            "keep a copy, and start with a new file once all holders have stopped"
        }
        _ => return error.to_string(),
    };
    format!("{error}; {advice}")
}

/// The option for a parameter whose range a server sets. `None` for any other word: the message may be about anything.
fn option_of(parameter: &str) -> Option<&'static str> {
    match parameter {
        "lock_timeout" => Some("--lock-timeout"),
        "lock_attempt_timeout" => Some("--lock-attempt-timeout"),
        _ => None,
    }
}

/// The option of a server that allows this question.
fn option_that_allows(question: &str) -> Option<&'static str> {
    let is_shutdown = question.split('/').next() == Some("SHUTDOWN");
    is_shutdown.then_some("--allow-shutdown")
}

fn advice(error: &Error) -> Option<String> {
    Some(match error {
        Error::CannotListen {
            option,
            address,
            source,
            ..
        } => return advice_on_listening(option, address, source.kind()),
        Error::Refused { reason, .. } => return advice_on_refusal(*reason).map(String::from),
        Error::AlreadyStarted { .. } => "stop it first".into(),
        Error::Unreachable {
            address,
            cause,
            source,
            ..
        } => advice_on_reaching(address, *cause, source.kind()),
        Error::Interrupted { question, .. } => match question.split('/').next() {
            Some("BREAK") => "it may or may not have been broken, look with CHECK".into(),
            Some("LOCK" | "UNLOCK" | "RENEW") => {
                "it may or may not have been done, ask with VERIFY".into()
            }
            _ => "ask again".into(),
        },
        Error::NotHttp { .. } => "if that is a --classic-port, give the server's --port".into(),
        Error::LeaseLost {
            other_server: Some(other_server),
            ..
        } if other_server.are_both_there => "have one server there, and lock the key again".into(),
        Error::TlsFailed { cause, .. } => return advice_on_tls(*cause).map(String::from),
        Error::NotOfCluster { .. } => {
            "start it with the same --store etcd: and --store-prefix as the others, or leave it out of the list".into()
        }
        Error::LeaseLost { .. } => "lock the key again".into(),
        Error::BadReply { address, .. } => match address.parse() {
            Ok(ServerAddress { prefix, .. }) if !prefix.is_empty() => {
                format!("is it a lock server, and is {prefix} what a proxy there takes off?")
            }
            _ => "is it a lock server?".into(),
        },
        _ => return None,
    })
}

fn advice_on_refusal(reason: Refusal) -> Option<&'static str> {
    Some(match reason {
        Refusal::Unauthorized => {
            "set LOCK_SERVER_TOKEN_FILE to a file with a token, or LOCK_SERVER_TOKEN to the token"
        }
        Refusal::WrongRole => {
            "the token is from LOCK_SERVER_TOKEN_FILE or LOCK_SERVER_TOKEN; set another one"
        }
        Refusal::WrongHost => {
            "the server takes another name if it was started with --allow-host NAME"
        }
        Refusal::NoSuchVerb => {
            "if LOCK_SERVER has a path, is it the one that the proxy there takes off?"
        }
        _ => return None,
    })
}

fn advice_on_listening(option: &str, address: &str, kind: ErrorKind) -> Option<String> {
    let advice = match kind {
        ErrorKind::AddrInUse if option == "classic_port" => {
            "stop what listens there (the Perl original?), or give another --classic-port"
        }
        ErrorKind::AddrInUse if is_lock_server(address) => {
            return Some(format!(
                "a lock server serves there: use it, stop it (LOCK_SERVER={address} lock-server stop), or choose another \
                 port (0 takes any)"
            ));
        }
        ErrorKind::AddrInUse => "stop what listens there, or choose another port (0 takes any)",
        ErrorKind::PermissionDenied => "ports below 1024 are for root, choose a higher one",
        ErrorKind::AddrNotAvailable => "give a host that is this machine's own",
        _ if option == "host" => "give a --host that can be resolved, or an address",
        _ => return None,
    };
    Some(advice.into())
}

fn advice_on_tls(cause: TlsFailure) -> Option<&'static str> {
    Some(match cause {
        TlsFailure::UnknownIssuer => {
            "for a CA of your own, set SSL_CERT_FILE to a file with its certificate"
        }
        TlsFailure::OtherName => "ask under a name that is in the certificate",
        TlsFailure::OutOfDate => "renew the certificate, or set the clock",
        TlsFailure::NoRoots => {
            "install ca-certificates, or set SSL_CERT_FILE to a file with certificates"
        }
        TlsFailure::NoHandshake => "if plain HTTP is spoken there, write http:// for https://",
        _ => return None,
    })
}

/// Whether what listens at an address of this machine is a lock server.
fn is_lock_server(address: &str) -> bool {
    let options = ClientOptions {
        reconnect_attempts: 0,
        answer_timeout: Duration::from_secs(1),
        ..ClientOptions::default()
    };
    let Ok(address) = address.parse::<ServerAddress>() else {
        return false;
    };
    // A PING takes as long as it likes. A refusal is an answer of a lock server, too.
    let asked = Client::at("start", &address, options).is_locked("K");
    matches!(asked, Ok(_) | Err(Error::Refused { .. }))
}

/// Where servers of this user serve: the begin of an advice.
fn running_elsewhere() -> String {
    let running = pid_record::running(SHOWN);
    let running = running.iter().map(|record| {
        let address = record.endpoint.reachable();
        format!("one serves on {address} (ask it with LOCK_SERVER={address}); ")
    });
    running.collect()
}

fn advice_on_reaching(address: &str, cause: Unreached, kind: ErrorKind) -> String {
    if cause == Unreached::NoLeader {
        return "another server leads a few seconds after a leader is gone; if none does, do they reach their store? \
                See their logs"
            .into();
    }
    if address.contains(',') {
        return "are they running there, and does this machine reach them?".into();
    }
    // An error's address can be parsed, unless the one that was given was invalid.
    let ServerAddress {
        host,
        port,
        prefix,
        is_https,
    } = address.parse().unwrap_or_default();
    let host = host.as_str();
    let is_loopback = |ip: IpAddr| ip.is_loopback();
    let is_of_loopback = |host: &str| host == "localhost" || host.parse().is_ok_and(is_loopback);
    if kind == ErrorKind::WouldBlock {
        "end other processes, or raise the limits (ulimit -u, -v)".into()
    } else if cause == Unreached::Resolve {
        format!("is {host:?} the server's name or address?")
    } else if is_https {
        "is a proxy with TLS there, and is that its address? The server itself speaks plain HTTP"
            .into()
    } else if !prefix.is_empty() {
        "is the proxy there, and is that its address?".into()
    } else if is_of_loopback(host) && pid_record::has_crashed(port) {
        format!(
            "the last one ended without a stop; start it again, with its options: lock-server restart --port {port}"
        )
    } else if matches!(host, "localhost" | "127.0.0.1") {
        let elsewhere = running_elsewhere();
        format!("{elsewhere}start one with: lock-server start --port {port}")
    } else if host.parse().is_ok_and(is_loopback) {
        let elsewhere = running_elsewhere();
        format!("{elsewhere}start one with: lock-server start --host {host} --port {port}")
    } else {
        format!(
            "is one running there, and was it started with --host {host} or 0.0.0.0? \
             By default it listens on 127.0.0.1 only"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_for_an_unreachable_server_leads_to_one() {
        use Unreached::{Connect, NoLeader, Resolve};
        for (address, cause, advice) in [
            ("127.0.0.1:9", Connect, "with: lock-server start --port 9"),
            ("localhost:9", Connect, "with: lock-server start --port 9"),
            ("[::1]:9", Connect, "start --host ::1 --port 9"),
            ("127.0.0.2:9", Connect, "start --host 127.0.0.2 --port 9"),
            ("10.0.0.7:9", Connect, "listens on 127.0.0.1 only"),
            (
                "nohost:9",
                Resolve,
                "is \"nohost\" the server's name or address?",
            ),
            ("a:9,b:9", Connect, "does this machine reach them?"),
            ("a:9", NoLeader, "See their logs"),
        ] {
            let said = advice_on_reaching(address, cause, ErrorKind::Other);
            assert!(said.ends_with(advice), "{said}");
        }
    }
}
