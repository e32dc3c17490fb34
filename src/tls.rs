//! TLS over the connections of a client to a server, and of a server to etcd: rustls, with the roots that the system
//! trusts or with others. Reports as data why TLS failed. Knows no options, and reads only the system's files.
//!
//! ureq's own connector has two defects. It reads the roots again for each connection whose question has a time-out.
//! And it takes a connection for ended if the other side has sent a record between two questions, which TLS 1.3 allows.

use std::error;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WantsClientCert;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, ConfigBuilder,
    RootCertStore, Stream,
};
use ureq::unversioned::transport::time::Instant;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
};

use crate::connection::{TrackedConnection, TrackedStream, deadline, in_time};
use crate::error::TlsFailure;
use crate::host::bare_host;

/// Sets up TLS on those connections of one pool whose URL has `https`. They share this configuration, and with it the
/// sessions that they may resume. `None` if no URL of the pool has `https`.
#[derive(Debug)]
pub(crate) struct TlsConnector(pub Option<Result<Arc<ClientConfig>, TlsError>>);

/// A configuration with these roots, and no client certificate yet.
pub(crate) fn builder(roots: RootCertStore) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let provider = Arc::new(ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has all that TLS 1.2 and 1.3 need")
        .with_root_certificates(roots)
}

/// A configuration with the roots of the system and no client certificate.
pub(crate) fn of_system() -> Result<Arc<ClientConfig>, TlsError> {
    Ok(Arc::new(builder(roots_of_system()?).with_no_client_auth()))
}

/// The roots of the system, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
pub(crate) fn roots_of_system() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A certificate that can't be read is no reason to distrust the others.
    roots.add_parsable_certificates(found.certs);
    if !roots.is_empty() {
        return Ok(roots);
    }
    let said = match found.errors.first() {
        Some(error) => error.to_string(),
        None => "the system has no certificates".into(),
    };
    Err(TlsError::new(TlsFailure::NoRoots, said))
}

impl Connector<TrackedConnection> for TlsConnector {
    type Out = Either<TrackedConnection, TlsConnection>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<TrackedConnection>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let (config, connection) = match (&self.0, chained) {
            (Some(config), Some(connection)) if details.needs_tls() => {
                (config.clone()?, connection)
            }
            (_, connection) => return Ok(connection.map(Either::A)),
        };
        let name = server_name(details.uri.host().unwrap_or_default())?;
        let tcp = connection.into_stream();
        let mut tls =
            ClientConnection::new(config, name).map_err(|error| TlsError::of_rustls(&error))?;
        // The time-out is for the TCP connection and the handshake together. The connection has used a part of it.
        let spent = match details.now {
            Instant::Exact(begin) => begin.elapsed(),
            _ => Duration::ZERO,
        };
        let until = deadline(details.timeout).and_then(|until| until.checked_sub(spent));
        tls.complete_io(&mut tcp.until(until))
            .map_err(|error| in_handshake(error, details.timeout))?;
        Ok(Some(Either::B(TlsConnection {
            tcp,
            tls,
            buffers: LazyBuffers::new(
                details.config.input_buffer_size(),
                details.config.output_buffer_size(),
            ),
        })))
    }
}

/// The name that the server's certificate has to be for.
fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(bare_host(host).to_string())
        .map_err(|error| TlsError::new(TlsFailure::OtherName, error))
}

/// The error of a handshake. No question was sent yet.
fn in_handshake(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    let of_rustls = error.get_ref().and_then(|inner| inner.downcast_ref());
    match (of_rustls, error.kind()) {
        (Some(of_rustls), _) => TlsError::of_rustls(of_rustls).into(),
        (None, ErrorKind::WouldBlock | ErrorKind::TimedOut) => in_time(error, timeout),
        (None, _) => TlsError {
            cause: None,
            is_about_ours: false,
            said: format!("the connection ended before TLS was agreed on ({error})"),
        }
        .into(),
    }
}

/// Why the TLS handshake on a TCP connection failed. It travels through ureq, inside its errors.
#[derive(Clone, Debug)]
pub(crate) struct TlsError {
    /// `None` if the connection ended during the handshake, which may be chance.
    pub cause: Option<TlsFailure>,
    /// Whether the other side asks for a certificate of this side, or does not accept the one that it was shown.
    pub is_about_ours: bool,
    said: String,
}

impl TlsError {
    fn new(cause: TlsFailure, said: impl fmt::Display) -> Self {
        TlsError {
            cause: Some(cause),
            is_about_ours: false,
            said: said.to_string(),
        }
    }

    fn of_rustls(error: &rustls::Error) -> Self {
        TlsError {
            is_about_ours: is_about_ours(error),
            ..TlsError::new(failure(error), error)
        }
    }

    /// The error, if it says that this side's certificate is not accepted. In TLS 1.3 that alert comes after the
    /// handshake; the other side has read no question by then.
    fn about_ours(error: &io::Error) -> Option<Self> {
        let error = error.get_ref()?.downcast_ref()?;
        is_about_ours(error).then(|| TlsError::of_rustls(error))
    }

    /// The TLS error inside an error of ureq, if it holds one.
    pub fn of(error: &ureq::Error) -> Option<&Self> {
        match error {
            ureq::Error::Io(source) => source.get_ref()?.downcast_ref(),
            _ => None,
        }
    }
}

/// As [`TlsError::is_about_ours`].
fn is_about_ours(error: &rustls::Error) -> bool {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked,
        CertificateUnknown, NoCertificate, UnknownCA, UnsupportedCertificate,
    };
    let rustls::Error::AlertReceived(alert) = error else {
        return false;
    };
    matches!(
        alert,
        AccessDenied
            | BadCertificate
            | CertificateExpired
            | CertificateRequired
            | CertificateRevoked
            | CertificateUnknown
            | NoCertificate
            | UnknownCA
            | UnsupportedCertificate
    )
}

fn failure(error: &rustls::Error) -> TlsFailure {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, UnknownIssuer,
    };
    let rustls::Error::InvalidCertificate(error) = error else {
        return TlsFailure::NoHandshake;
    };
    match error {
        UnknownIssuer => TlsFailure::UnknownIssuer,
        NotValidForName | NotValidForNameContext { .. } => TlsFailure::OtherName,
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => {
            TlsFailure::OutOfDate
        }
        _ => TlsFailure::BadCertificate,
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

impl error::Error for TlsError {}

impl From<TlsError> for ureq::Error {
    fn from(error: TlsError) -> Self {
        ureq::Error::Io(io::Error::other(error))
    }
}

/// A connection with TLS, for ureq.
#[derive(Debug)]
pub(crate) struct TlsConnection {
    tcp: TrackedStream,
    tls: ClientConnection,
    buffers: LazyBuffers,
}

impl TlsConnection {
    /// Reads and decrypts the records that have arrived. Returns "would block" if they hold no answer, and the
    /// connection has not ended.
    fn take_in(&mut self) -> io::Result<()> {
        let TlsConnection { tcp, tls, .. } = self;
        tcp.at_once(|mut stream| {
            loop {
                if tls.read_tls(&mut stream)? == 0 {
                    return Ok(());
                }
                let state = tls.process_new_packets().map_err(io::Error::other)?;
                if state.peer_has_closed() || state.plaintext_bytes_to_read() > 0 {
                    return Ok(());
                }
            }
        })
    }

    /// The error to report when sending fails. The other side may have sent an alert with the reason before it ended
    /// the connection.
    fn cannot_send(&mut self, error: io::Error, timeout: NextTimeout) -> ureq::Error {
        let is_ended = matches!(
            error.kind(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        );
        let said = is_ended.then(|| self.take_in()).and_then(Result::err);
        match said.and_then(|said| TlsError::about_ours(&said)) {
            Some(said) => said.into(),
            None => in_time(error, timeout),
        }
    }
}

impl Transport for TlsConnection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let timeout = timeout.for_write();
        let output = &self.buffers.output()[..amount];
        let mut tcp = self.tcp.until(deadline(timeout));
        let mut stream = Stream::new(&mut self.tls, &mut tcp);
        // `write` reports no failure to send; `flush` does.
        let sent = stream.write_all(output).and_then(|()| stream.flush());
        sent.map_err(|error| self.cannot_send(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let timeout = timeout.for_read();
        let mut tcp = self.tcp.until(deadline(timeout));
        let read = Stream::new(&mut self.tls, &mut tcp).read(self.buffers.input_append_buf());
        let amount = read.map_err(|error| match TlsError::about_ours(&error) {
            Some(said) => said.into(),
            None => self.tcp.cannot_read(error, timeout),
        })?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    /// Between two questions the server sends no answer. It may send records of TLS: a ticket for the next session, or
    /// a new key. They are read here, so that the socket is silent again for a caller that waits for its end.
    fn is_open(&mut self) -> bool {
        matches!(self.take_in(), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    fn is_tls(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_no_certificate_can_be_for_has_another_name() {
        let error = server_name("a..b").expect_err("no name");
        assert_eq!(error.cause, Some(TlsFailure::OtherName), "{error}");
    }

    #[test]
    fn an_address_in_brackets_is_a_name() {
        for host in ["[::1]", "127.0.0.1", "etcd.example.com"] {
            assert!(server_name(host).is_ok(), "{host}");
        }
    }

    #[test]
    fn an_alert_about_this_sides_certificate_is_distinguished_from_others() {
        for (alert, is_ours) in [
            (AlertDescription::CertificateRequired, true),
            (AlertDescription::BadCertificate, true),
            (AlertDescription::UnknownCA, true),
            (AlertDescription::InternalError, false),
        ] {
            let error = rustls::Error::AlertReceived(alert);
            assert_eq!(TlsError::of_rustls(&error).is_about_ours, is_ours);
            let error = io::Error::other(error);
            assert_eq!(TlsError::about_ours(&error).is_some(), is_ours);
        }
    }

    #[test]
    fn each_fault_of_a_certificate_has_its_cause() {
        use rustls::Error::InvalidCertificate;
        for (error, cause) in [
            (
                InvalidCertificate(CertificateError::Expired),
                TlsFailure::OutOfDate,
            ),
            (
                InvalidCertificate(CertificateError::NotValidYet),
                TlsFailure::OutOfDate,
            ),
            (
                InvalidCertificate(CertificateError::Revoked),
                TlsFailure::BadCertificate,
            ),
            (
                rustls::Error::NoApplicationProtocol,
                TlsFailure::NoHandshake,
            ),
        ] {
            assert_eq!(failure(&error), cause, "{error}");
        }
    }
}
