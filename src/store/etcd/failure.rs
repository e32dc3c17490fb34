//! Failures of calls to etcd, classified by what the caller has to do.

use std::fmt;

use serde::Deserialize;

use crate::connection::is_of_connect;
use crate::error::TlsFailure;
#[cfg(feature = "tls")]
use crate::tls::TlsError;

/// What is known after a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureClass {
    /// It did not reach etcd.
    NotSent,
    /// It did not reach etcd, because there was no TLS connection. `None` if etcd requires a certificate or refuses
    /// this server's.
    #[cfg_attr(
        not(feature = "tls"),
        allow(dead_code, reason = "there is no TLS to fail")
    )]
    NoTls(Option<TlsFailure>),
    /// It may have been carried out, or may be carried out later.
    Unknown,
    /// Not carried out: etcd is overloaded.
    Busy,
    /// There is no room in etcd. **It may have been carried out nevertheless**: etcd checks again when it applies the
    /// call, and reports that after applying it. It is not carried out later.
    NoSpace,
    /// Not carried out: the token is no longer valid.
    TokenExpired,
    /// Not carried out: the user has no permission, or could not be authenticated.
    Denied,
    /// Not carried out: etcd has users, and its gateway then takes no certificate with a common name.
    CommonName,
    /// Not carried out: etcd has authentication switched off.
    NoUsers,
    /// Not carried out: this member does not serve such calls.
    NoService,
    /// Not carried out: the lease is over.
    NoLease,
    /// Not carried out: the requested revision has been compacted.
    Compacted,
    /// Not carried out: the answer would be too large.
    AnswerTooLarge,
    /// Not carried out: the call is wrong, so a retry would fail, too.
    Wrong,
    /// etcd no longer keeps reliably what it stored.
    Untrusted,
}

/// A call that failed.
#[derive(Clone, Debug)]
pub(super) struct CallFailure {
    pub class: FailureClass,
    /// The endpoint to which it was sent.
    pub endpoint: String,
    pub message: String,
}

impl fmt::Display for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.endpoint, self.message)
    }
}

impl FailureClass {
    /// Advice for the reader of the log.
    pub fn advice(self) -> &'static str {
        match self {
            FailureClass::NotSent => "is etcd running there, and is the address right?",
            FailureClass::NoTls(cause) => advice_on_tls(cause),
            FailureClass::Unknown => "does etcd have a leader and a majority of its members?",
            FailureClass::Busy => "etcd has too much to do",
            FailureClass::NoSpace => {
                "make room: etcdctl compact, etcdctl defrag, then etcdctl alarm disarm"
            }
            FailureClass::TokenExpired | FailureClass::NoUsers => "the server authenticates anew",
            FailureClass::Denied => {
                "is the user's password right, and has the user a role with readwrite on all keys of the prefix?"
            }
            FailureClass::CommonName => {
                "where etcd has users, the certificate that the option store_cert names must have no common name (CN)"
            }
            FailureClass::NoService => {
                "this has to be a voting member of etcd 3.4 or later whose JSON gateway is switched on"
            }
            FailureClass::NoLease | FailureClass::Compacted | FailureClass::AnswerTooLarge => {
                "the server begins anew"
            }
            FailureClass::Wrong => "this is a bug in the lock server",
            FailureClass::Untrusted => "check etcd before the server is started again",
        }
    }

    /// Whether the call may succeed at another member.
    pub fn is_of_the_member(self) -> bool {
        matches!(
            self,
            FailureClass::NotSent
                | FailureClass::NoTls(_)
                | FailureClass::Unknown
                | FailureClass::Busy
                | FailureClass::NoService
        )
    }
}

fn advice_on_tls(cause: Option<TlsFailure>) -> &'static str {
    match cause {
        None => {
            "the options store_cert and store_key have to name a certificate that the CA in etcd's --trusted-ca-file has signed, and its key"
        }
        Some(TlsFailure::UnknownIssuer | TlsFailure::NoRoots) => {
            "the option store_ca has to name the certificate of who signed it"
        }
        Some(TlsFailure::OtherName) => {
            "etcd needs one for the host in the option store, a name or an IP address"
        }
        Some(TlsFailure::OutOfDate) => "etcd needs a new one, or a clock is wrong",
        Some(TlsFailure::BadCertificate) => "etcd needs another one",
        Some(TlsFailure::NoHandshake) => "if etcd has no TLS there, write http:// for https://",
    }
}

/// All forms of an error. Before etcd 3.6 it has the text twice, since then only in `message`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorAnswer {
    error: ErrorField,
    code: Option<i64>,
    message: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ErrorField {
    Text(String),
    /// The form in streams, such as keepalives.
    InStream {
        #[serde(default, alias = "code")]
        grpc_code: i64,
        #[serde(default)]
        message: String,
    },
    None(()),
}

impl Default for ErrorField {
    fn default() -> Self {
        ErrorField::None(())
    }
}

/// The class and the message of an answer's failure. `None` if the answer is a success.
pub(super) fn failure_in(status: u16, body: &[u8]) -> Option<(FailureClass, String)> {
    let answer = serde_json::from_slice::<ErrorAnswer>(body);
    let (code, message) = match answer {
        // The answer is not from etcd, or from an etcd without its gateway.
        Err(_) if status == 404 || status == 501 => {
            let message = format!("it answers with status {status}");
            return Some((FailureClass::NoService, message));
        }
        Err(_) if says(body, "CommonName of client") => {
            let message =
                "it does not take the certificate of this server, which has a common name";
            return Some((FailureClass::CommonName, message.into()));
        }
        Err(_) => {
            let message = format!("it answers with status {status} and without JSON");
            return Some((FailureClass::Unknown, message));
        }
        Ok(answer) => match (answer.error, answer.message) {
            (ErrorField::InStream { grpc_code, message }, _) => (grpc_code, message),
            (ErrorField::Text(text), message) => {
                (answer.code.unwrap_or(0), message.unwrap_or(text))
            }
            (ErrorField::None(()), _) if status == 200 => return None,
            (ErrorField::None(()), message) => {
                (answer.code.unwrap_or(0), message.unwrap_or_default())
            }
        },
    };
    let class = classify(status, code, &message);
    Some((class, format!("{message} (status {status}, code {code})")))
}

fn says(body: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(body).contains(text)
}

/// etcd uses one code for unrelated errors, so their text counts, too. It is the same in 3.4 to 3.6.
fn classify(status: u16, code: i64, message: &str) -> FailureClass {
    let says = |text: &str| message.contains(text);
    match code {
        _ if says("learner") => FailureClass::NoService,
        3 if says("revision of auth store is old") => FailureClass::TokenExpired,
        3 if says("user name is empty") || says("authentication failed") => FailureClass::Denied,
        3 => FailureClass::Wrong,
        5 if says("requested lease not found") => FailureClass::NoLease,
        5 | 12 => FailureClass::NoService,
        7 => FailureClass::Denied,
        8 if says("database space exceeded") => FailureClass::NoSpace,
        8 if says("larger than max") => FailureClass::AnswerTooLarge,
        8 => FailureClass::Busy,
        9 if says("authentication is not enabled") => FailureClass::NoUsers,
        9 if says("user name not found") => FailureClass::Denied,
        11 => FailureClass::Compacted,
        15 => FailureClass::Untrusted,
        16 => FailureClass::TokenExpired,
        0 if status == 404 || status == 501 => FailureClass::NoService,
        _ => FailureClass::Unknown,
    }
}

/// The class and the message of ureq's error.
pub(super) fn no_answer(error: &ureq::Error) -> (FailureClass, String) {
    #[cfg(feature = "tls")]
    if let Some(error) = TlsError::of(error) {
        return no_tls(error);
    }
    let class = match error {
        ureq::Error::BodyExceedsLimit(_) => FailureClass::AnswerTooLarge,
        ureq::Error::Io(error) if is_of_connect(error.kind()) => FailureClass::NotSent,
        ureq::Error::HostNotFound
        | ureq::Error::BadUri(_)
        | ureq::Error::ConnectionFailed
        | ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
            FailureClass::NotSent
        }
        _ => FailureClass::Unknown,
    };
    let message = match error {
        ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
            "no connection was made in time".into()
        }
        ureq::Error::Timeout(_) => "no answer came in time".into(),
        error => error.to_string(),
    };
    (class, message)
}

#[cfg(feature = "tls")]
fn no_tls(error: &TlsError) -> (FailureClass, String) {
    match error.cause {
        _ if error.is_about_ours => {
            let message = format!("it does not take the certificate of this server: {error}");
            (FailureClass::NoTls(None), message)
        }
        Some(cause) => (
            FailureClass::NoTls(Some(cause)),
            format!("it {cause}: {error}"),
        ),
        None => (FailureClass::NotSent, error.to_string()),
    }
}
