//! The connections that ureq keeps open to one server.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ureq::Agent;
#[cfg(feature = "tls")]
use ureq::unversioned::transport::Connector;

use super::address::ServerAddress;
use super::resolver::{CachingResolver, KnownAddresses};
use crate::connection::{LatestConnection, TrackedConnector};
use crate::protocol::http::ServerTimes;
#[cfg(feature = "tls")]
use crate::tls::{TlsConnector, of_system};

/// The longest head and the longest body of an answer, in bytes. Two names of 1,024 bytes each, percent-encoded, take
/// less.
pub(super) const MAX_REPLY: usize = 16 * 1024;

/// The longest question, in bytes. Two such names in the path take less.
const MAX_QUESTION: usize = 8 * 1024;

/// The most connections that are kept open: one for each thread that asked at the same time, up to this number.
const MOST_KEPT: usize = 1024;

/// The connections of one process to one server, and what is known about them and the server.
pub(super) struct PooledAgent {
    pub agent: Agent,
    pub known: Arc<KnownAddresses>,
    pub latest: Arc<LatestConnection>,
    /// The times of the server, and when it sent them.
    times: Mutex<Option<(ServerTimes, Instant)>>,
}

impl PooledAgent {
    pub fn new(address: &ServerAddress) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .input_buffer_size(MAX_REPLY)
            .output_buffer_size(MAX_QUESTION)
            .max_idle_connections(MOST_KEPT)
            .max_idle_connections_per_host(MOST_KEPT)
            .user_agent(concat!("lock-server/", env!("CARGO_PKG_VERSION")))
            .accept("text/plain, application/json")
            .build();
        let known = Arc::<KnownAddresses>::default();
        let latest = Arc::<LatestConnection>::default();
        let resolver = CachingResolver::new(&address.host, address.port, known.clone());
        let connector = TrackedConnector(latest.clone());
        #[cfg(feature = "tls")]
        let connector = {
            // The roots are read if they are needed, once for each pool.
            let config = address.is_https.then(of_system);
            connector.chain(TlsConnector(config))
        };
        PooledAgent {
            known,
            agent: Agent::with_parts(config, connector, resolver),
            latest,
            times: Mutex::default(),
        }
    }

    pub fn times(&self) -> MutexGuard<'_, Option<(ServerTimes, Instant)>> {
        // The value is set in one step, so a panic under the lock leaves it whole.
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
