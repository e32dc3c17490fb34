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

/// More than any answer takes, its head or its body: two names of 1,024 bytes each, percent-encoded.
pub(super) const MAX_REPLY: usize = 16 * 1024;

/// More than any question takes: two such names in the path.
const MAX_QUESTION: usize = 8 * 1024;

/// How many connections are kept open for the next question: as many as threads have asked at once.
const MOST_KEPT: usize = 1024;

/// The connections of one process to one server, and what is known of both.
pub(super) struct PooledAgent {
    pub agent: Agent,
    pub known: Arc<KnownAddresses>,
    pub latest: Arc<LatestConnection>,
    /// The times of the server, and when it told them.
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
            // The roots are read where they are needed: once in the life of a pool.
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
        // Numbers are whole, whatever panicked beside them.
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
