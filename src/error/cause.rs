//! What stands between a client and its server: parts of the one error.

use std::fmt;

/// Why no connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unreached {
    /// The name of the server could not be looked up.
    Resolve,
    /// Nobody accepts connections at its address, or there is no way to it.
    Connect,
    /// It took too long.
    Timeout,
    /// Of several servers that share a store none leads, as far as those know that are there and stand by.
    NoLeader,
}

/// Where the server was that granted a lease, another one answers: it was restarted, or two stand behind one address.
///
/// It knows nothing of the lease, and may have granted the key to somebody else. Servers are told apart by the header
/// `Lock-Server`. A server before 0.2.0 sends none, and a proxy may drop it: then this is never reported. Nor is it where
/// both name the same store in `Lock-Store`: the next run of a server with a store knows the leases of the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OtherServer {
    /// `host:port`, or a URL where the client's address has a prefix.
    pub address: String,
    /// What the run of a server is called that granted the lease, or renewed it last, 1 to 64 of
    /// `A-Z a-z 0-9 _ . : -`.
    pub granted_by: String,
    /// What the one is called that answers now.
    pub answered_by: String,
    /// Whether both are known to run side by side: this process asked the older one after the newer one had answered,
    /// and it answered. `false` where that is not known: after a restart, and before both have answered often
    /// enough.
    pub are_both_there: bool,
}

/// What it is about, in words for people.
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
                "another server answers at {address} now: it was restarted, or there are two behind it"
            ),
        }
    }
}

/// Why there is no TLS with what answers at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsFailure {
    /// None of the roots that this machine trusts stands behind its certificate. Where the variable `SSL_CERT_FILE`
    /// names a file of certificates in PEM, those are the roots.
    UnknownIssuer,
    /// Its certificate is for another name than the one it was asked under.
    OtherName,
    /// Its certificate has expired, or is not valid yet; or the clock here is wrong.
    OutOfDate,
    /// Its certificate is not accepted for another reason.
    BadCertificate,
    /// There are no roots to check a certificate by.
    NoRoots,
    /// What answers does not speak TLS, or has no version or cipher in common with this client.
    NoHandshake,
}

/// What is wrong with what answers, in words for people that follow its address.
impl fmt::Display for TlsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TlsFailure::UnknownIssuer => "has a certificate of an issuer that is not trusted here",
            TlsFailure::OtherName => "has a certificate of another name",
            TlsFailure::OutOfDate => "has a certificate that is not valid at this time",
            TlsFailure::BadCertificate => "has a bad certificate",
            TlsFailure::NoRoots => "has a certificate, and there are no roots here to check it by",
            TlsFailure::NoHandshake => "did not agree on TLS",
        })
    }
}

impl Unreached {
    /// What no server did.
    pub(super) fn leads_or_reached(self) -> &'static str {
        match self {
            Unreached::NoLeader => "leads",
            _ => "reached",
        }
    }
}
