//! Why a client can't reach its server: parts of the one error.

use std::fmt;

/// Why no connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unreached {
    /// The name of the server could not be looked up.
    Resolve,
    /// Nobody accepts connections at its address, or the network has no route to it.
    Connect,
    /// It took too long.
    Timeout,
    /// None of the servers that share a store leads, as far as the servers that stand by know.
    NoLeader,
}

/// At the address of the server that granted a lease, another server answers: it was restarted, or there are two behind
/// one address.
///
/// The other server does not know the lease, and may have granted the key to somebody else. The header `Lock-Server`
/// distinguishes servers. A server before 0.2.0 does not send it, and a proxy may drop it: then this is never reported.
/// It is not reported either if both servers name the same store in `Lock-Store`: the next run of a server with a store
/// knows the leases of the run before.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OtherServer {
    /// `host:port`, or a URL where the client's address has a prefix.
    pub address: String,
    /// The ID of the run of a server that granted the lease or renewed it last: 1 to 64 of `A-Z a-z 0-9 _ . : -`.
    pub granted_by: String,
    /// The ID of the run that answers now.
    pub answered_by: String,
    /// Whether both are known to run side by side: the older one still answered this process after the newer one had
    /// answered. `false` while that is not known: after a restart, and before both have answered often enough.
    pub are_both_there: bool,
}

/// The situation in words, for people.
impl fmt::Display for OtherServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = &self.address;
        match self.are_both_there {
            true => write!(
                f,
                "two servers answer at {address}, and each knows only its own locks"
            ),
            false => write!(
                f,
                "another server answers at {address} now: the first one was restarted, or two share the address"
            ),
        }
    }
}

/// Why the TLS handshake with a server failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsFailure {
    /// Its certificate does not lead to a root that this machine trusts. If the variable `SSL_CERT_FILE` names a PEM
    /// file of certificates, those are the roots.
    UnknownIssuer,
    /// Its certificate is for another name than the one it was asked under.
    OtherName,
    /// Its certificate has expired, or is not valid yet; or the clock here is wrong.
    OutOfDate,
    /// Its certificate is not accepted for another reason.
    BadCertificate,
    /// This machine has no roots to check a certificate against.
    NoRoots,
    /// The server does not speak TLS, or has no version or cipher in common with this client.
    NoHandshake,
}

/// What is wrong, in words for people. They follow the server's address in a message.
impl fmt::Display for TlsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TlsFailure::UnknownIssuer => "has a certificate of an issuer that is not trusted here",
            TlsFailure::OtherName => "has a certificate of another name",
            TlsFailure::OutOfDate => "has a certificate that is not valid at this time",
            TlsFailure::BadCertificate => "has a bad certificate",
            TlsFailure::NoRoots => {
                "has a certificate, and this machine has no roots to check it against"
            }
            TlsFailure::NoHandshake => "did not agree on TLS",
        })
    }
}

impl Unreached {
    /// The verb in "no lock server …".
    pub(super) fn leads_or_reached(self) -> &'static str {
        match self {
            Unreached::NoLeader => "leads",
            _ => "reached",
        }
    }
}
