//! TLS over the connections to a server: rustls with the roots that the system trusts. And why there is none on a
//! connection, as data.
//!
//! ureq's own connector reads the roots anew for each connection whose question has a time-out, and holds a connection
//! for ended by which the other side has sent a record between two questions, as TLS 1.3 allows it.

use std::error;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore, Stream};
use ureq::unversioned::transport::time::Instant;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
};

use super::address::ServerAddress;
use super::connection::{TrackedConnection, TrackedStream, deadline, in_time};
use crate::error::TlsFailure;

/// Sets TLS up on the connections of one pool, where its server is asked so.
#[derive(Debug)]
pub(super) struct TlsConnector(Option<Result<TlsSettings, TlsError>>);

/// What all connections share, with the sessions that they may resume.
#[derive(Clone, Debug)]
struct TlsSettings {
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl TlsConnector {
    /// Reads the roots, if the address needs them: once in the life of a pool.
    pub fn new(address: &ServerAddress) -> Self {
        TlsConnector(address.is_https.then(|| TlsSettings::of(&address.host)))
    }
}

impl TlsSettings {
    fn of(host: &str) -> Result<Self, TlsError> {
        let name = ServerName::try_from(host.to_string())
            .map_err(|error| TlsError::new(TlsFailure::OtherName, error))?;
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has all that TLS 1.2 and 1.3 need")
            .with_root_certificates(roots()?)
            .with_no_client_auth();
        Ok(TlsSettings {
            name,
            config: Arc::new(config),
        })
    }
}

/// Those of the system, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
fn roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // One that can't be read is no reason to distrust the others.
    roots.add_parsable_certificates(found.certs);
    if !roots.is_empty() {
        return Ok(roots);
    }
    let said = match found.errors.first() {
        Some(error) => error.to_string(),
        None => "there are none".into(),
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
        let (settings, connection) = match (&self.0, chained) {
            (Some(settings), Some(connection)) => (settings.clone()?, connection),
            (_, connection) => return Ok(connection.map(Either::A)),
        };
        let tcp = connection.into_stream();
        let mut tls = ClientConnection::new(settings.config, settings.name)
            .map_err(|error| TlsError::of_rustls(&error))?;
        // The time is for both, and the connection has taken a part of it.
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

/// No question was sent yet.
fn in_handshake(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    let of_rustls = error.get_ref().and_then(|inner| inner.downcast_ref());
    match (of_rustls, error.kind()) {
        (Some(of_rustls), _) => TlsError::of_rustls(of_rustls).into(),
        (None, ErrorKind::WouldBlock | ErrorKind::TimedOut) => in_time(error, timeout),
        (None, _) => TlsError {
            cause: None,
            said: format!("the connection ended before TLS was agreed on ({error})"),
        }
        .into(),
    }
}

/// Why there is no TLS on a connection that was made. It travels through ureq.
#[derive(Clone, Debug)]
pub(super) struct TlsError {
    /// `None` where the connection ended meanwhile, as it may by chance.
    pub cause: Option<TlsFailure>,
    said: String,
}

impl TlsError {
    fn new(cause: TlsFailure, said: impl fmt::Display) -> Self {
        TlsError {
            cause: Some(cause),
            said: said.to_string(),
        }
    }

    fn of_rustls(error: &rustls::Error) -> Self {
        TlsError::new(failure(error), error)
    }

    /// That of ureq's errors which is one.
    pub fn of(error: ureq::Error) -> Result<Self, ureq::Error> {
        match &error {
            ureq::Error::Io(source) => {
                let inner = source.get_ref().and_then(|inner| inner.downcast_ref());
                inner.cloned().ok_or(error)
            }
            _ => Err(error),
        }
    }
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
pub(super) struct TlsConnection {
    tcp: TrackedStream,
    tls: ClientConnection,
    buffers: LazyBuffers,
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
        // `write` leaves it to `flush` to report that nothing goes out.
        stream
            .write_all(output)
            .and_then(|()| stream.flush())
            .map_err(|error| in_time(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let timeout = timeout.for_read();
        let mut tcp = self.tcp.until(deadline(timeout));
        let read = Stream::new(&mut self.tls, &mut tcp).read(self.buffers.input_append_buf());
        let amount = read.map_err(|error| in_time(error, timeout))?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    /// Between two questions no answer comes from the server. Records of TLS may come: a ticket for the next session,
    /// a new key. They are taken in here, so that the socket is silent again for who waits for its end.
    fn is_open(&mut self) -> bool {
        let TlsConnection { tcp, tls, .. } = self;
        let taken = tcp.at_once(|mut stream| {
            loop {
                if tls.read_tls(&mut stream)? == 0 {
                    return Ok(());
                }
                let state = tls.process_new_packets().map_err(io::Error::other)?;
                if state.peer_has_closed() || state.plaintext_bytes_to_read() > 0 {
                    return Ok(());
                }
            }
        });
        matches!(taken, Err(error) if error.kind() == ErrorKind::WouldBlock)
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
        let address = ServerAddress {
            host: "a..b".into(),
            is_https: true,
            ..ServerAddress::default()
        };
        let TlsConnector(settings) = TlsConnector::new(&address);
        let error = settings.expect("it is https").expect_err("no name");
        assert_eq!(error.cause, Some(TlsFailure::OtherName), "{error}");
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
