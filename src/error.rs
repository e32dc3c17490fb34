//! The one error of the crate: something broke, or a call that returns what it was asked for did not get it.

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
    /// The server ended because its [store](crate::Options::store) can't be written any more. Nobody was told of anything
    /// that may not be stored.
    StoreFailed {
        /// What the store says.
        reason: String,
    },
    /// The server's process could not be stopped.
    CannotStop {
        /// The process of that server.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// No connection to the server was made, so it has not acted. Of [several](crate::Client::of_cluster): none was
    /// reached that leads.
    Unreachable {
        /// `host:port`, or a URL where the client's address has a prefix or is asked over TLS. Of several servers all,
        /// with commas between.
        address: String,
        /// How many times it was tried.
        attempts: u32,
        /// What failed.
        cause: Unreached,
        /// What the last attempt said.
        source: io::Error,
    },
    /// The connection broke before the answer came, the answer did not come in time, or a proxy answered in the
    /// server's place (502, 503 or 504, for instance), so that it is not known whether the server acted.
    /// [`Client::locked_by_me`](crate::Client::locked_by_me) tells.
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
    /// At the address of one of [several](crate::Client::of_cluster) servers one answered that does not share their locks:
    /// it was started without their store. Nobody else answered either. It may have carried the question out among its
    /// own locks, which count for nothing.
    NotOfCluster {
        /// `host:port`, or a URL where the client's address has a prefix or is asked over TLS.
        address: String,
        /// The store that it names. `None` if it names none.
        store: Option<String>,
        /// The store of the others. `None` where none of them has named one yet.
        expected: Option<String>,
    },
    /// The server answered the LOCK, and the answer is no; or the wait was called off.
    NotGranted {
        /// The key.
        key: String,
        /// Why not.
        reason: Refusal,
        /// Who held the key then, unless it had become free by then or the server does not tell.
        holder: Option<Holder>,
    },
    /// The server would not answer the question.
    Refused {
        /// The question, such as `SHUTDOWN`.
        question: String,
        /// Why not.
        reason: Refusal,
        /// What the server said, in one sentence.
        message: String,
    },
    /// What answered does not speak HTTP, as a [classic port](crate::Options::classic_port) does not. It is
    /// not known whether it acted.
    NotHttp {
        /// The question.
        question: String,
        /// `host:port`, or a URL where the client's address has a prefix or is asked over TLS.
        address: String,
    },
    /// TLS could not be agreed on with what answers there, so this question was not sent. Only a client with the
    /// feature `tls` returns it.
    TlsFailed {
        /// The URL.
        address: String,
        /// What is wrong.
        cause: TlsFailure,
        /// What the TLS library said.
        source: io::Error,
    },
    /// A lease that was to be kept is over, or may be: it was not renewed in time, somebody of the same name
    /// unlocked its key, somebody [broke](crate::Client::break_lock) it, or another server than the one that granted it
    /// answers now. A server that was restarted with its store is not another one.
    LeaseLost {
        /// The key.
        key: String,
        /// The number of the grant.
        fence: u64,
        /// The other server, if that is the reason. At the one that granted it, the key may stay locked until the
        /// lease runs out.
        other_server: Option<OtherServer>,
        /// What the server said of it: [`Refusal::Free`], [`Refusal::NotHolder`], [`Refusal::StaleFence`] or
        /// [`Refusal::Broken`]. `None` where it said nothing: the lease was not renewed in time, or another server
        /// answers.
        reason: Option<Refusal>,
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
        /// `host:port`, or a URL where the client's address has a prefix or is asked over TLS.
        address: String,
        /// The first line that came back, shortened; or what is wrong with it, such as `status 404`.
        reply: String,
    },
}

impl Error {
    /// The lease is lost, perhaps because of another server, or as the server says.
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

    /// Whether the same call may succeed a little later, with nothing changed but the time: nobody was there, the port
    /// was taken, the connection broke, a proxy
    /// answered in the server's place, the server is full or ending, or the turn did not come in time. Otherwise the caller or the
    /// server has to be changed first, or the lease is gone and what was done under it has to be begun anew.
    ///
    /// After [`Error::Interrupted`] the first call may have been carried out. A LOCK that is called again finds that
    /// this name holds the key ([`Refusal::AlreadyHolder`]) until that lease is over, unless it has the same
    /// [`request_id`](crate::LockOptions::request_id).
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

    /// How often it was tried, in words.
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

    /// What is wrong with the store that a server names, in words.
    fn of_another_store(&self) -> String {
        match self {
            Error::NotOfCluster {
                store: Some(store),
                expected: Some(expected),
                ..
            } => format!("its store is {store}, and that of the others {expected}"),
            _ => "it keeps its locks to itself, without a store".into(),
        }
    }

    /// Because of which other server a lease is lost, or that somebody broke it, in words.
    fn because_of(&self) -> String {
        match self {
            Error::LeaseLost {
                other_server: Some(other_server),
                ..
            } => format!("{other_server}; "),
            Error::LeaseLost {
                reason: Some(Refusal::Broken),
                ..
            } => "it was broken by an operator; ".into(),
            _ => String::new(),
        }
    }

    /// The same error, of the question that another one was asked for.
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

/// Why a server can't be started: the reason and what is behind it, in one line.
#[cfg(feature = "server")]
pub(crate) fn why_not_started(error: &Error) -> String {
    let said = match error {
        Error::CannotStart { reason, .. } => reason.clone(),
        other => other.to_string(),
    };
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    causes.fold(said, |said, cause| format!("{said}: {cause}"))
}

/// What broke. What the system said of it is the [`source`](std::error::Error::source), and not said twice.
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
                "{address} did not answer {question} to its end after {times}"
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
                "the lease of {key:?} under fence {fence} is lost; {}write nothing more under it",
                self.because_of()
            ),
            Error::CannotRenew { key, .. } => write!(
                f,
                "no thread to renew the lease of {key:?} in; it is unlocked"
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
        _ => format!("bad {what}: {bytes} bytes long; give 1 to 1024"),
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
    fn what_the_source_says_is_not_said_twice() {
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
