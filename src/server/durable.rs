//! The store that the options name, opened for the lock manager.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::stop::StopSources;
use crate::error::Error;
use crate::host::{host_and_port, is_of_one_machine, parse_address};
use crate::lease::StoreId;
use crate::manager::OpenStore;
use crate::options::{ClusterOptions, Options, StoreAddress};
use crate::store::election::Election;
use crate::store::etcd::tls::EtcdTls;
#[cfg(feature = "tls")]
use crate::store::etcd::tls::TlsFiles;
use crate::store::etcd::{EtcdOptions, EtcdStore, PasswordFile, SharedOptions};
use crate::store::file::{FileStore, Sync};
use crate::store::{Recovered, Store, StoreError};

/// What the server learns from its store.
#[derive(Default)]
pub(super) struct StoreNews {
    /// The store's ID, once it is known: `Lock-Store`.
    pub id: Arc<OnceLock<StoreId>>,
    /// The address that is advertised for this server, if several share the store.
    pub address: OnceLock<String>,
    /// Why nothing can be stored any more. Empty while the store works.
    pub lost: Arc<OnceLock<String>>,
}

/// Opens the store that the options name, if any. If it is lost later, the server is asked to stop.
pub(super) fn open_store(
    options: &Options,
    addresses: &[SocketAddr],
    stop: &Arc<StopSources>,
    news: &StoreNews,
) -> Result<Option<OpenStore>, Error> {
    let Some(address) = &options.store else {
        return Ok(None);
    };
    let (id, lost, stop) = (news.id.clone(), news.lost.clone(), stop.clone());
    let is_shared = matches!(address, StoreAddress::Etcd(_));
    let leads = move |recovered: &Recovered| {
        // `set` fails only if this server has led before, with the same store.
        let _ = id.set(recovered.store.as_str().into());
        if is_shared {
            log::info!("this server leads, with {} holds", recovered.holds.len());
        }
    };
    let lost = move |error: StoreError| {
        log::error!("nothing can be stored any more: {error}");
        // Set once: a store is lost once.
        let _ = lost.set(error.to_string());
        stop.request("its store failed");
    };
    let (store, recovered, election): (Box<dyn Store>, _, _) = match address {
        StoreAddress::File(path) => {
            let sync = match options.store_sync {
                true => Sync::Disk,
                false => Sync::Off,
            };
            let mut store = Box::new(FileStore::new(path, sync));
            let recovered = store
                .open()
                .map_err(|error| cannot_start(error.to_string()))?;
            (store, Some(recovered), None)
        }
        StoreAddress::Etcd(members) => {
            let election = Arc::new(Election::default());
            let etcd = etcd_options(options, members, addresses)?;
            warn_of_a_lone_address(&etcd.address);
            // Set once: one call opens one store.
            let _ = news.address.set(etcd.address.clone());
            warn_of_short_leases(options);
            let store = EtcdStore::new(etcd, election.clone());
            (Box::new(store), None, Some(election))
        }
    };
    Ok(Some(OpenStore {
        store,
        recovered,
        election,
        leads: Box::new(leads),
        lost: Box::new(lost),
    }))
}

fn etcd_options(
    options: &Options,
    members: &[String],
    addresses: &[SocketAddr],
) -> Result<EtcdOptions, Error> {
    let cluster = &options.cluster;
    let address = match &cluster.advertise {
        Some(address) => address.clone(),
        None => own_address(addresses)?,
    };
    if let Some(path) = &cluster.password_file {
        std::fs::read_to_string(path).map_err(|error| {
            let path = path.display();
            cannot_start(format!(
                "cannot read {path}, the option store_password_file: {error}"
            ))
        })?;
    }
    let password = cluster.password_file.clone().map(PasswordFile);
    let user = cluster.user.clone().zip(password);
    Ok(EtcdOptions {
        endpoints: members.to_vec(),
        prefix: cluster.prefix.clone(),
        user,
        tls: etcd_tls(cluster, members)?,
        ttl: cluster.ttl,
        address,
        shared: shared_options(options),
    })
}

/// The options that should be alike on all servers of a cluster. Of tokens, only whether there is a file: readers of
/// etcd must learn nothing about them.
fn shared_options(options: &Options) -> SharedOptions {
    let seconds = |time: Duration| time.as_secs_f64().to_string();
    let named = [
        ("lock_timeout", seconds(options.lock_timeout)),
        (
            "lock_attempt_timeout",
            seconds(options.lock_attempt_timeout),
        ),
        ("max_lock_timeout", seconds(options.longest_lock_timeout())),
        (
            "max_lock_attempt_timeout",
            seconds(options.longest_lock_attempt_timeout()),
        ),
        ("max_waiters", options.max_waiters.to_string()),
        ("max_keys", options.max_keys.to_string()),
        ("allow_break", options.allow_break.to_string()),
        ("token_file", if_given(options.token_file.as_ref())),
        ("classic_port", if_given(options.classic_port.as_ref())),
    ];
    let named = named.into_iter();
    named.map(|(name, value)| (name.into(), value)).collect()
}

fn if_given<T>(option: Option<&T>) -> String {
    option.map_or("not given", |_| "given").into()
}

/// Reads the TLS files if a member has an `https` URL.
#[cfg(feature = "tls")]
fn etcd_tls(cluster: &ClusterOptions, members: &[String]) -> Result<EtcdTls, Error> {
    if !members.iter().any(|member| member.starts_with("https://")) {
        return Ok(EtcdTls::default());
    }
    let shown = cluster.cert_file.clone().zip(cluster.key_file.clone());
    let files = TlsFiles {
        ca: cluster.ca_file.clone(),
        shown,
    };
    EtcdTls::read(&files).map_err(cannot_start)
}

/// Without TLS there is nothing to read: the options refuse `https` members.
#[cfg(not(feature = "tls"))]
fn etcd_tls(_: &ClusterOptions, _: &[String]) -> Result<EtcdTls, Error> {
    Ok(EtcdTls::default())
}

/// The address under which other machines reach the listener: the machine's name, if it listens on all addresses.
fn own_address(addresses: &[SocketAddr]) -> Result<String, Error> {
    let address = addresses[0];
    if !address.ip().is_unspecified() {
        return Ok(address.to_string());
    }
    let name = nix::unistd::gethostname()
        .map_err(io::Error::from)
        .map_err(|error| {
            cannot_start(format!(
                "cannot read this machine's name, by which others would reach it ({error}); set the option advertise"
            ))
        })?;
    Ok(host_and_port(&name.to_string_lossy(), address.port()))
}

/// Logs at which address others reach this server, and warns of an address that means only this machine.
fn warn_of_a_lone_address(address: &str) {
    let host = parse_address(address).map_or_else(|_| String::new(), |(host, _)| host);
    match is_of_one_machine(&host) {
        true => log::warn!(
            "other servers send clients to {address}, which only this machine can reach; set the option advertise to change it"
        ),
        false => log::info!("clients and other servers reach this server at {address}"),
    }
}

/// Warns in the log if a lease may end before another server has taken over.
fn warn_of_short_leases(options: &Options) {
    // One `ttl` until etcd gives up the leader and that is noticed, and the same time again for a renewal.
    let enough = 2 * options.cluster.ttl;
    let usual = options.lock_timeout;
    if usual < enough {
        log::warn!(
            "a lock lasts {} s here, and a failover may take longer; the option lock_timeout should be {} s or more",
            usual.as_secs_f64(),
            enough.as_secs()
        );
    }
}

fn cannot_start(reason: String) -> Error {
    Error::CannotStart {
        reason,
        source: None,
    }
}
