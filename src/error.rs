//! The one error of the crate: something broke, or a call did not get what it was to return.

use std::fmt;
use std::io;

pub use self::cause::{OtherServer, TlsFailure, Unreached};
use crate::lease::{Holder, Lease};
use crate::refusal::Refusal;

mod cause;

/// What broke, where, and after how many attempts, as data.
///
/// ```
/// use std::time::Duration;
/// use lock_server::{Client, Error, Refusal};
///
/// fn under_the_lock(client: &Client) -> Result<(), Error> {
///     let guard = match client.guard("KEYA") {
///         Ok(guard) => guard,
///         Err(Error::NotGranted { reason: Refusal::Timeout, holder, .. }) => {
///             println!("busy; it is {holder:?}'s turn");
///             return Ok(());
///         }
///         Err(error) if error.is_retryable() => {
///             std::thread::sleep(Duration::from_secs(1));
///             client.guard("KEYA")?
///         }
///         Err(error) => return Err(error),
///     };
///     println!("under fence {}", guard.fence());
///     Ok(())
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An option has a value that is not allowed.
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A key or a requester's name is empty or longer than 1024 bytes.
    InvalidName {
        /// Which name: `key` or `requester`.
        what: &'static str,
        /// Its length in bytes.
        bytes: usize,
    },
    /// The server could not listen on its address. If the source is [`AddrInUse`](io::ErrorKind::AddrInUse), another
    /// program has the port, such as the server of another test: [`port: 0`](crate::Options::port) takes a free one.
    CannotListen {
        /// Which option to change: `host` if it can't be resolved or is not this machine's, otherwise the one that names
        /// the port, `port` or `classic_port`.
        option: &'static str,
        /// `host:port`.
        address: String,
        /// How many times it was tried.
        attempts: u32,
        /// The error of the last attempt.
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
        /// The error of the system, if there is one.
        source: Option<io::Error>,
    },
    /// The server ended because its [store](crate::Options::store) can't be written any more. It sent no answer about
    /// anything that may not be stored.
    StoreFailed {
        /// The store's error.
        reason: String,
    },
    /// The server's process could not be stopped.
    CannotStop {
        /// The process of that server.
        pid: u32,
        /// The error of the system.
        source: io::Error,
    },
    /// No connection to the server was made, so it has not acted. With [several servers](crate::Client::of_cluster): no
    /// server that leads was reached.
    Unreachable {
        /// `host:port`, or a URL where the client's address has a prefix or is asked over TLS. For several servers, all
        /// addresses, with commas between.
        address: String,
        /// How many times it was tried.
        attempts: u32,
        /// What failed.
        cause: Unreached,
        /// The error of the last attempt.
        source: io::Error,
    },
    /// The connection broke before the answer came, the answer did not come in time, or a proxy answered in the
    /// server's place (502, 503 or 504, for instance). It is not known whether the server acted; ask with
    /// [`Client::locked_by_me`](crate::Client::locked_by_me).
    Interrupted {
        /// The question, such as `LOCK/KEYA/CLIENT_A`.
        question: String,
        /// `host:port`, or a URL where the client's address has a prefix or is asked over TLS.
        address: String,
        /// How many times it was tried.
        attempts: u32,
        /// What broke.
        source: io::Error,
    },
    /// At an address of a [cluster](crate::Client::of_cluster), a server answered that does not share the cluster's
    /// locks: it was started without the cluster's store. No other server answered. It may have carried out the
    /// question among its own locks, which mean nothing in the cluster.
    NotOfCluster {
        /// `host:port`, or a URL where the client's address has a prefix or is asked over TLS.
        address: String,
        /// The store that the server names. `None` if it names none.
        store: Option<String>,
        /// The store of the other servers. `None` if none of them has named one yet.
        expected: Option<String>,
    },
    /// The server answered the LOCK with no, or the wait was called off.
    NotGranted {
        /// The key.
        key: String,
        /// Why not.
        reason: Refusal,
        /// Who held the key then. `None` if it had become free by then, or if the server does not report it.
        holder: Option<Holder>,
    },
    /// The server refused to answer the question.
    Refused {
        /// The question, such as `SHUTDOWN`.
        question: String,
        /// Why not.
        reason: Refusal,
        /// The server's message, one sentence.
        message: String,
    },
    /// The answer is not HTTP; a [classic port](crate::Options::classic_port) answers so, for instance. It is not known
    /// whether the server acted.
    NotHttp {
        /// The question.
        question: String,
        /// `host:port`, or a URL where the client's address has a prefix or is asked over TLS.
        address: String,
    },
    /// The TLS handshake failed, so this question was not sent. Only a client with the feature `tls` returns this
    /// error.
    TlsFailed {
        /// The URL.
        address: String,
        /// What is wrong.
        cause: TlsFailure,
        /// The error of the TLS library.
        source: io::Error,
    },
    /// A lease that was to be kept is over, or may be: it was not renewed in time, somebody of the same name unlocked
    /// its key, somebody [broke](crate::Client::break_lock) it, or the server that answers now is not the one that
    /// granted it. A server that was restarted with its store counts as the same server.
    LeaseLost {
        /// The key.
        key: String,
        /// The number of the grant.
        fence: u64,
        /// The other server, if that is the reason. On the server that granted the lease, the key may stay locked until
        /// the lease runs out.
        other_server: Option<OtherServer>,
        /// The server's answer about the lease: [`Refusal::Free`], [`Refusal::NotHolder`], [`Refusal::StaleFence`] or
        /// [`Refusal::Broken`]. `None` without such an answer: the lease was not renewed in time, or another server
        /// answers.
        reason: Option<Refusal>,
    },
    /// The thread that is to renew a lease could not be started. The key was unlocked again.
    CannotRenew {
        /// The key.
        key: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The answer is HTTP, but not of this protocol.
    BadReply {
        /// The question.
        question: String,
        /// `host:port`, or a URL where the client's address has a prefix or is asked over TLS.
        address: String,
        /// The first line of the answer, shortened; or what is wrong with the answer, such as `status 404`.
        reply: String,
    },
}

impl Error {
    /// [`Error::LeaseLost`] for this lease.
    pub(crate) fn lease_lost(
        lease: &Lease,
        other_server: Option<OtherServer>,
        reason: Option<Refusal>,
    ) -> Self {
        Error::LeaseLost {
            key: lease.key.clone(),
            fence: lease.fence,
            other_server,
            reason,
        }
    }

    /// Whether the same call may succeed a little later, with nothing changed but the time: no server was reached, the
    /// port was taken, the connection broke, a proxy answered in the server's place, the server is full or ending, or
    /// the key did not become free in time. After any other error the caller or the server has to be changed first, or
    /// the lease is gone and the work under it has to start again.
    ///
    /// After [`Error::Interrupted`] the first call may have been carried out. A second LOCK then finds that this name
    /// holds the key ([`Refusal::AlreadyHolder`]) until that lease is over, unless it has the same
    /// [`request_id`](crate::LockOptions::request_id).
    #[must_use = "it only returns whether to try again"]
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::Interrupted { .. } => true,
            Error::NotGranted { reason, .. } => *reason == Refusal::Timeout,
            Error::Refused { reason, .. } => {
                matches!(
                    reason,
                    Refusal::Full | Refusal::StoreFull | Refusal::Stopping | Refusal::Standby
                )
            }
            Error::CannotListen { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
            _ => false,
        }
    }

    /// The number of attempts, in words.
    fn times(&self) -> String {
        match self {
            Error::CannotListen { attempts, .. }
            | Error::Unreachable { attempts, .. }
            | Error::Interrupted { attempts, .. }
                if *attempts != 1 =>
            {
                format!("{attempts} attempts")
            }
            _ => "1 attempt".into(),
        }
    }

    /// Why a server's store is not the cluster's, in words.
    fn of_another_store(&self) -> String {
        match self {
            Error::NotOfCluster {
                store: Some(store),
                expected: Some(expected),
                ..
            } => format!("its store is {store}, and the others have {expected}"),
            _ => "it keeps its locks to itself, without a store".into(),
        }
    }

    /// Why a lease is lost, in words.
    fn because_of(&self) -> String {
        let Error::LeaseLost {
            other_server,
            reason,
            ..
        } = self
        else {
            return String::new();
        };
        if let Some(other_server) = other_server {
            return other_server.to_string();
        }
        match reason {
            None => "it was not renewed in time".into(),
            Some(Refusal::Broken) => "it was broken by an operator".into(),
            Some(Refusal::Free) => "nobody holds the key".into(),
            Some(Refusal::NotHolder) => "another name holds the key".into(),
            Some(Refusal::StaleFence) => "the key was locked again under this name".into(),
            Some(other) => format!("the server answered {other}"),
        }
    }

    /// The same error with `asked_for` as its question: the question of the caller, on behalf of which another one was
    /// sent.
    pub(crate) fn about(mut self, asked_for: String) -> Self {
        if let Error::Interrupted { question, .. }
        | Error::Refused { question, .. }
        | Error::NotHttp { question, .. }
        | Error::BadReply { question, .. } = &mut self
        {
            *question = asked_for;
        }
        self
    }
}

/// Why a server can't be started: the reason and its causes, in one line.
#[cfg(feature = "server")]
pub(crate) fn why_not_started(error: &Error) -> String {
    let said = match error {
        Error::CannotStart { reason, .. } => reason.clone(),
        other => other.to_string(),
    };
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    causes.fold(said, |said, cause| format!("{said}: {cause}"))
}

/// What broke, without the system's error: that is the [`source`](std::error::Error::source).
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = self.times();
        match self {
            Error::InvalidOption { option, reason } => write!(f, "bad option {option}: {reason}"),
            Error::InvalidName { what, bytes } => f.write_str(&bad_name(what, *bytes)),
            Error::CannotListen { address, .. } => {
                write!(f, "cannot listen on {address} after {times}")
            }
            Error::AlreadyStarted { pid } => {
                write!(f, "this handle already runs a server, in process {pid}")
            }
            Error::CannotStart { reason, .. } => write!(f, "cannot start a server: {reason}"),
            Error::StoreFailed { reason } => write!(f, "the store failed: {reason}"),
            Error::CannotStop { pid, .. } => write!(f, "cannot stop the server in process {pid}"),
            Error::Unreachable { address, cause, .. } => {
                let leads = cause.leads_or_reached();
                write!(f, "no lock server {leads} at {address} after {times}")
            }
            Error::Interrupted {
                question, address, ..
            } => write!(
                f,
                "no complete answer to {question} from {address} after {times}"
            ),
            Error::NotOfCluster { address, .. } => {
                let what = self.of_another_store();
                write!(f, "{address} is not of this cluster: {what}")
            }
            Error::NotGranted {
                key,
                reason,
                holder,
            } => write!(
                f,
                "{key:?} was not granted: {reason}{}",
                held_by(holder.as_ref())
            ),
            Error::Refused {
                question,
                reason,
                message,
            } => write!(f, "the server refused {question} ({reason}): {message}"),
            Error::NotHttp { address, .. } => write!(f, "{address} answers, but not in HTTP"),
            Error::TlsFailed { address, cause, .. } => write!(f, "{address} {cause}"),
            Error::LeaseLost { key, fence, .. } => write!(
                f,
                "the lease of {key:?} under fence {fence} is lost; {}; write nothing more under it",
                self.because_of()
            ),
            Error::CannotRenew { key, .. } => write!(
                f,
                "no thread could be started to renew the lease of {key:?}, so the key was unlocked"
            ),
            Error::BadReply {
                question,
                address,
                reply,
            } => write!(f, "{address} answered {question} with {reply:?}"),
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
            | Error::TlsFailed { source, .. }
            | Error::Interrupted { source, .. } => Some(source),
            _ => None,
        }
    }
}

fn bad_name(what: &str, bytes: usize) -> String {
    match bytes {
        0 => format!("the {what} is empty; give 1 to 1024 bytes"),
        _ => format!("the {what} is {bytes} bytes long; give 1 to 1024"),
    }
}

fn held_by(holder: Option<&Holder>) -> String {
    holder.map_or_else(String::new, |holder| {
        format!("; {:?} holds it", holder.name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_lost_lease_names_the_reason() {
        let lost = |reason| Error::LeaseLost {
            key: "K".into(),
            fence: 7,
            other_server: None,
            reason,
        };
        for (reason, why) in [
            (None, "it was not renewed in time"),
            (Some(Refusal::Free), "nobody holds the key"),
            (Some(Refusal::NotHolder), "another name holds the key"),
            (
                Some(Refusal::StaleFence),
                "the key was locked again under this name",
            ),
        ] {
            assert_eq!(
                lost(reason).to_string(),
                format!(
                    "the lease of \"K\" under fence 7 is lost; {why}; write nothing more under it"
                )
            );
        }
    }

    #[test]
    fn the_text_does_not_repeat_its_source() {
        let error = Error::Unreachable {
            address: "127.0.0.1:9".into(),
            attempts: 2,
            cause: Unreached::Connect,
            source: io::Error::other("refused"),
        };
        assert_eq!(
            error.to_string(),
            "no lock server reached at 127.0.0.1:9 after 2 attempts"
        );
        let source = std::error::Error::source(&error).expect("there is one");
        assert_eq!(source.to_string(), "refused");
    }
}
