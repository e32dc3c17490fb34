//! TLS to etcd: its files, which are read once, and the connections that are made with what is in them. Without the
//! feature `tls` there is none.

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

/// How endpoints with `https://` are asked. The default asks none.
#[derive(Clone, Debug, Default)]
pub(crate) struct EtcdTls {
    #[cfg(feature = "tls")]
    config: Option<Arc<ClientConfig>>,
}

impl EtcdTls {
    /// Whether an endpoint with `https://` can be asked.
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

/// Files in PEM, as the options name them.
#[cfg(feature = "tls")]
#[derive(Default)]
pub(crate) struct TlsFiles {
    /// Whose signature etcd's certificate has to have. `None`: the roots of the system.
    pub ca: Option<PathBuf>,
    /// What is shown to etcd, and its key.
    pub shown: Option<(PathBuf, PathBuf)>,
}

#[cfg(feature = "tls")]
impl EtcdTls {
    /// Reads the files. The error says in a sentence what is wrong, and with which option.
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

/// All that are in a file, at least one.
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

/// Why these two can't be shown.
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
