//! TLS to etcd: reads its files once, and makes connections with them. Without the feature `tls` there is no TLS.

#[cfg(feature = "tls")]
use std::fs;
#[cfg(feature = "tls")]
use std::path::{Path, PathBuf};
#[cfg(feature = "tls")]
use std::sync::Arc;

#[cfg(feature = "tls")]
use rustls::pki_types::pem::PemObject;
#[cfg(feature = "tls")]
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
#[cfg(feature = "tls")]
use rustls::{ClientConfig, Error as RustlsError, RootCertStore};
use ureq::Agent;
use ureq::config::Config;
use ureq::unversioned::resolver::Resolver;
#[cfg(feature = "tls")]
use ureq::unversioned::transport::Connector;
use ureq::unversioned::transport::DefaultConnector;

#[cfg(feature = "tls")]
use crate::connection::TrackedConnector;
#[cfg(feature = "tls")]
use crate::tls::{TlsConnector, builder, roots_of_system};

/// The TLS settings for endpoints with `https://`. The default has no TLS.
#[derive(Clone, Debug, Default)]
pub(crate) struct EtcdTls {
    #[cfg(feature = "tls")]
    config: Option<Arc<ClientConfig>>,
}

impl EtcdTls {
    /// Whether an endpoint with `https://` can be called.
    pub fn is_there(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.config.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }

    pub fn agent(&self, config: Config, resolver: impl Resolver) -> Agent {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.config {
            let connector = TrackedConnector(Arc::default());
            let connector = connector.chain(TlsConnector(Some(Ok(tls.clone()))));
            return Agent::with_parts(config, connector, resolver);
        }
        Agent::with_parts(config, DefaultConnector::default(), resolver)
    }
}

/// The PEM files of the options.
#[cfg(feature = "tls")]
#[derive(Default)]
pub(crate) struct TlsFiles {
    /// The CA certificates that etcd's certificate has to come from. `None` for the system's.
    pub ca: Option<PathBuf>,
    /// This server's certificate for etcd, and its key.
    pub shown: Option<(PathBuf, PathBuf)>,
}

#[cfg(feature = "tls")]
impl EtcdTls {
    /// Reads the files. The error is a sentence with the problem and the option.
    pub fn read(files: &TlsFiles) -> Result<Self, String> {
        let roots = match &files.ca {
            Some(file) => roots(file)?,
            None => roots_of_system().map_err(|error| {
                format!(
                    "this system has no roots to check etcd's certificate by ({error}); name them with the option store_ca"
                )
            })?,
        };
        let builder = builder(roots);
        let config = match &files.shown {
            None => builder.with_no_client_auth(),
            Some((cert_file, key_file)) => {
                let shown = certificates("store_cert", cert_file)?;
                let key = key(key_file)?;
                builder
                    .with_client_auth_cert(shown, key)
                    .map_err(|error| unfit(&error, cert_file, key_file))?
            }
        };
        Ok(EtcdTls {
            config: Some(Arc::new(config)),
        })
    }
}

#[cfg(feature = "tls")]
fn roots(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("store_ca", file)? {
        roots.add(certificate).map_err(|error| {
            format!("{file:?}, the file of the option store_ca, has a bad certificate: {error}")
        })?;
    }
    Ok(roots)
}

/// All certificates in a file, at least one.
#[cfg(feature = "tls")]
fn certificates(option: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(option, file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!(
            "{file:?}, the file of the option {option}, has no certificate in PEM"
        )),
        Err(error) => Err(format!(
            "{file:?}, the file of the option {option}, is not sound PEM: {error}"
        )),
    }
}

#[cfg(feature = "tls")]
fn key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    use rustls::pki_types::pem::Error;

    let text = read("store_key", file)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        Error::NoItemsFound => format!(
            "{file:?}, the file of the option store_key, has no key in PEM that is readable without a password"
        ),
        error => format!("{file:?}, the file of the option store_key, is not sound PEM: {error}"),
    })
}

#[cfg(feature = "tls")]
fn read(option: &str, file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file)
        .map_err(|error| format!("cannot read {file:?}, the file of the option {option}: {error}"))
}

/// The error for a certificate and a key that can't be used.
#[cfg(feature = "tls")]
fn unfit(error: &RustlsError, cert_file: &Path, key_file: &Path) -> String {
    match error {
        RustlsError::InconsistentKeys(_) => format!(
            "the key in {key_file:?} (option store_key) does not belong to the certificate in {cert_file:?} (option store_cert)"
        ),
        error => format!(
            "the certificate in {cert_file:?} (option store_cert) cannot be used with the key in {key_file:?} (option store_key): {error}"
        ),
    }
}
