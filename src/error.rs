//! The one error of the crate: something broke. A plain "no" is a value, never an error.

use std::io;

/// What broke, where, and after how many attempts.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An option is out of its range.
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A key or a requester's name is empty or longer than 1024 bytes.
    InvalidName {
        /// What was named: `key` or `requester`.
        what: &'static str,
        /// Its length in bytes.
        bytes: usize,
    },
    /// The server could not listen on its address.
    CannotListen {
        /// Which option named the port: `port` or `classic_port`.
        option: &'static str,
        /// `host:port`.
        address: String,
        /// How many times it was tried.
        attempts: u32,
        /// What the last attempt said.
        source: io::Error,
    },
    /// This handle already runs a server.
    AlreadyStarted {
        /// The process of that server.
        pid: u32,
    },
    /// The server's process could not be started, or did not begin to answer.
    CannotStart {
        /// What was tried.
        reason: String,
        /// What the system said, if it said anything.
        source: Option<io::Error>,
    },
    /// The server's process could not be stopped.
    CannotStop {
        /// The process of that server.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// No connection to the server was made.
    Unreachable {
        /// `host:port`.
        address: String,
        /// How many times it was tried.
        attempts: u32,
        /// What the last attempt said.
        source: io::Error,
    },
    /// The connection broke before the answer came, or the answer did not come in time, so that it is not known
    /// whether the server acted. [`Client::locked_by_me`](crate::Client::locked_by_me) tells.
    Interrupted {
        /// The question, such as `LOCK/KEYA/CLIENT_A`.
        question: String,
        /// `host:port`.
        address: String,
        /// How many times it was tried.
        attempts: u32,
        /// What broke.
        source: io::Error,
    },
    /// The server understood the question and would not answer it.
    Refused {
        /// The question, such as `SHUTDOWN`.
        question: String,
        /// The HTTP status, such as 403.
        status: u16,
        /// The stable word of the reply's `Lock-Result`, such as `stopping`.
        result: String,
        /// What the server said, in one sentence.
        message: String,
    },
    /// What answered does not speak HTTP, as a [classic port](crate::Options::classic_port) does not. It is
    /// not known whether it acted.
    NotHttp {
        /// The question.
        question: String,
        /// `host:port`.
        address: String,
    },
    /// A lease that was to be kept is over, or may be: it was not renewed in time, or somebody of the same name
    /// unlocked its key.
    LeaseLost {
        /// The key.
        key: String,
        /// The number of the grant.
        fence: u64,
    },
    /// There is no thread to renew a lease in; its key was unlocked again.
    CannotRenew {
        /// The key.
        key: String,
        /// What the system said.
        source: io::Error,
    },
    /// What answered does not speak this protocol.
    BadReply {
        /// The question.
        question: String,
        /// `host:port`.
        address: String,
        /// The first line that came back, shortened.
        reply: String,
    },
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::InvalidOption { option, reason } => write!(f, "bad option {option}: {reason}"),
            Error::InvalidName { what, bytes: 0 } => {
                write!(f, "the {what} is empty; give 1 to 1024 bytes")
            }
            Error::InvalidName { what, bytes } => {
                write!(f, "bad {what}: {bytes} bytes long; give 1 to 1024")
            }
            Error::CannotListen {
                option,
                address,
                attempts,
                source,
            } => {
                let hint = match source.kind() {
                    io::ErrorKind::AddrInUse if *option == "classic_port" => {
                        "; stop what listens there (the Perl original?), or give another --classic-port"
                    }
                    io::ErrorKind::AddrInUse => {
                        "; stop what listens there, or choose another port (0 takes any)"
                    }
                    io::ErrorKind::PermissionDenied => {
                        "; ports below 1024 are for root, choose a higher one"
                    }
                    io::ErrorKind::AddrNotAvailable => "; give a host that is this machine's own",
                    _ => "",
                };
                write!(
                    f,
                    "cannot listen on {address} after {}: {source}{hint}",
                    times(*attempts)
                )
            }
            Error::AlreadyStarted { pid } => {
                write!(
                    f,
                    "this handle already runs a server, process {pid}; stop it first"
                )
            }
            Error::CannotStart {
                reason,
                source: None,
            } => write!(f, "cannot start a server: {reason}"),
            Error::CannotStart {
                reason,
                source: Some(source),
            } => {
                write!(f, "cannot start a server: {reason}: {source}")
            }
            Error::CannotStop { pid, source } => {
                write!(f, "cannot stop server process {pid}: {source}")
            }
            Error::Unreachable {
                address,
                attempts,
                source,
            } => {
                let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
                let host = host.trim_matches(['[', ']']);
                write!(
                    f,
                    "no lock server reached at {address} after {}: {source}; ",
                    times(*attempts)
                )?;
                if port == "0" {
                    f.write_str("no server has port 0: start it first, and make its clients then")
                } else if source.kind() == io::ErrorKind::WouldBlock {
                    f.write_str("end other processes, or raise the limits (ulimit -u, -v)")
                } else if is_unknown_name(source) {
                    write!(f, "is {host:?} the server's name or address?")
                } else if matches!(host, "localhost" | "127.0.0.1") {
                    write!(f, "start one with: lock-server start --port {port}")
                } else if is_this_machine(host) {
                    write!(
                        f,
                        "start one with: lock-server start --host {host} --port {port}"
                    )
                } else {
                    write!(
                        f,
                        "is one running there, and was it started with --host {host} or 0.0.0.0? \
                         By default it listens on 127.0.0.1 only"
                    )
                }
            }
            Error::Interrupted {
                question,
                address,
                attempts,
                source,
            } => {
                let verb = question.split('/').next().unwrap_or_default();
                let advice = match verb {
                    "LOCK" | "UNLOCK" | "RENEW" => {
                        "it may or may not have been done, ask with VERIFY"
                    }
                    _ => "ask again",
                };
                write!(
                    f,
                    "{address} did not answer {question} to its end after {}: {source}; {advice}",
                    times(*attempts)
                )
            }
            Error::Refused {
                question,
                status,
                result: _,
                message,
            } => {
                write!(f, "the server refused {question} with {status}: {message}")
            }
            Error::NotHttp {
                question: _,
                address,
            } => {
                write!(
                    f,
                    "{address} answers, but not in HTTP; if that is a --classic-port, \
                     give the server's --port"
                )
            }
            Error::LeaseLost { key, fence } => {
                write!(
                    f,
                    "the lease of {key:?} under fence {fence} is lost; \
                     write nothing more under it, and lock the key again"
                )
            }
            Error::CannotRenew { key, source } => {
                write!(f, "no thread to renew the lease of {key:?} in: {source}")
            }
            Error::BadReply {
                question,
                address,
                reply,
            } => {
                write!(
                    f,
                    "{address} answered {question} with {reply:?}; is it a lock server?"
                )
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::CannotListen { source, .. }
            | Error::CannotStart {
                source: Some(source),
                ..
            }
            | Error::CannotStop { source, .. }
            | Error::CannotRenew { source, .. }
            | Error::Unreachable { source, .. }
            | Error::Interrupted { source, .. } => Some(source),
            Error::InvalidOption { .. }
            | Error::InvalidName { .. }
            | Error::AlreadyStarted { .. }
            | Error::CannotStart { source: None, .. }
            | Error::Refused { .. }
            | Error::NotHttp { .. }
            | Error::LeaseLost { .. }
            | Error::BadReply { .. } => None,
        }
    }
}

/// Whether only this machine has the address.
fn is_this_machine(host: &str) -> bool {
    host.parse()
        .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// Whether there is no address for a name. The standard library has no kind for it, only these words.
fn is_unknown_name(error: &io::Error) -> bool {
    error.to_string().contains("lookup address")
}

fn times(attempts: u32) -> String {
    if attempts == 1 {
        "1 attempt".into()
    } else {
        format!("{attempts} attempts")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_server_is_the_advice_leads_to_one() {
        let refused = "Connection refused (os error 111)";
        let unknown = "failed to lookup address information: Name or service not known";
        for (address, source, advice) in [
            ("127.0.0.1:9", refused, "with: lock-server start --port 9"),
            ("localhost:9", refused, "with: lock-server start --port 9"),
            ("[::1]:9", refused, "start --host ::1 --port 9"),
            ("127.0.0.2:9", refused, "start --host 127.0.0.2 --port 9"),
            ("10.0.0.7:9", refused, "listens on 127.0.0.1 only"),
            (
                "nohost:9",
                unknown,
                "is \"nohost\" the server's name or address?",
            ),
            (
                "127.0.0.1:0",
                refused,
                "start it first, and make its clients then",
            ),
        ] {
            let error = Error::Unreachable {
                address: address.into(),
                attempts: 1,
                source: io::Error::other(source),
            };
            let said = error.to_string();
            assert!(said.ends_with(advice), "{said}");
        }
    }
}
