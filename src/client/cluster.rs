//! The servers that a client may ask: those of its list, and those that they name as their leader. It first asks the
//! one that answered last.
//!
//! Knows no question. A question to a server that answers costs one atomic load here.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use super::address::{ServerAddress, bad_prefix, missing_tls};
use super::per_process::PerProcess;
use super::pooled_agent::PooledAgent;
use super::servers_met::ServersMet;
use crate::error::Error;
use crate::host::{bad_host, bare_host, host_and_port, is_of_one_machine, parse_address};
use crate::lease::StoreId;
use crate::protocol::Request;

/// How many leaders that are not in the list are remembered. Servers in containers get a new address with each start;
/// after this many, a client asks only the servers of its list and the leaders that it remembers.
const MOST_LEARNED: usize = 64;

/// How long a leader that is not in the list is skipped after it could not be reached. Perhaps only the other servers
/// can reach its address, and each try may take seconds.
const UNREACHABLE_FOR: Duration = Duration::from_secs(10);

/// Why there is no server at port 0.
const NO_PORT: &str =
    "it is 0; for a server on any free port, start the server first, then make its clients";

/// The time from which [`Route::failed`] counts.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The servers that share their locks, as one client and its clones know them.
pub(super) struct Cluster {
    /// The servers of the list, at least one.
    listed: Box<[Route]>,
    /// The leaders that they named. A place is filled once and not reused, because a question may still be using its
    /// route.
    learned: Box<[OnceLock<Box<Route>>]>,
    /// The server to ask first: an index into `listed`, or beyond its end into `learned`.
    first: AtomicUsize,
    /// The store that a server of the list named.
    store: OnceLock<StoreId>,
    /// The runs of servers that have answered. Each process has its own.
    servers: PerProcess<ServersMet>,
}

/// The way to one server.
pub(super) struct Route {
    /// The host of an IPv6 address has no brackets.
    pub address: ServerAddress,
    /// The part of the address that is not valid, if there is one, and why.
    pub bad: Option<(&'static str, String)>,
    /// Whether another server named it. `false` for the servers of the list.
    pub is_learned: bool,
    /// When it last could not be reached, in milliseconds since [`START`]; 0 is never.
    failed: AtomicU64,
    /// Whether it was logged that another service answers there.
    is_logged: AtomicBool,
    /// Its connections. Each process has its own.
    own: PerProcess<PooledAgent>,
}

impl Cluster {
    /// The servers of the list. If it is empty, each question returns [`Error::InvalidOption`].
    pub fn of(addresses: &[ServerAddress]) -> Self {
        let mut listed: Vec<_> = addresses.iter().map(Route::to).collect();
        if listed.is_empty() {
            let bad = Some(("addresses", "none is given".into()));
            let route = Route::to(&ServerAddress::default());
            listed.push(Route { bad, ..route });
        }
        Cluster {
            listed: listed.into(),
            learned: (0..MOST_LEARNED).map(|_| OnceLock::new()).collect(),
            first: AtomicUsize::new(0),
            store: OnceLock::new(),
            servers: PerProcess::new(),
        }
    }

    /// The same servers, with new connections.
    pub fn apart(&self) -> Self {
        let addresses: Vec<_> = self.addresses().cloned().collect();
        let apart = Cluster::of(&addresses);
        let first = self.first();
        if first < apart.listed.len() {
            apart.prefer(first);
        }
        apart
    }

    /// Those of the list.
    pub fn addresses(&self) -> impl Iterator<Item = &ServerAddress> {
        self.listed.iter().map(|route| &route.address)
    }

    /// Who is asked first.
    pub fn first(&self) -> usize {
        self.first.load(Relaxed)
    }

    pub fn route(&self, at: usize) -> &Route {
        let beyond = at.checked_sub(self.listed.len());
        match beyond.and_then(|at| self.learned[at].get()) {
            Some(learned) => learned,
            // An index that is not of a filled place is one of the list: no others are returned.
            None => &self.listed[at],
        }
    }

    /// How many servers are in the list.
    pub fn count(&self) -> usize {
        self.listed.len()
    }

    /// Whether a question may go to more than one server.
    pub fn is_several(&self) -> bool {
        self.listed.len() > 1 || self.learned[0].get().is_some()
    }

    /// Makes this server the one to ask first.
    pub fn prefer(&self, at: usize) {
        self.first.store(at, Relaxed);
    }

    /// After a round that began at `first` and ended at `at`, makes the next server of the list the one to ask first,
    /// unless another thread has chosen one meanwhile.
    pub fn leave(&self, first: usize, at: usize) {
        let next = self.after(at);
        let _ = self.first.compare_exchange(first, next, Relaxed, Relaxed);
    }

    /// The next server of the list.
    pub fn after(&self, at: usize) -> usize {
        match at < self.listed.len() {
            true => (at + 1) % self.listed.len(),
            false => 0,
        }
    }

    /// Which servers have answered.
    pub fn servers(&self) -> &ServersMet {
        self.servers.get(ServersMet::default)
    }

    /// Notes the store that a server of the list has named.
    pub fn note_store(&self, route: &Route, store: &StoreId) {
        if self.store.get().is_none() && !route.is_learned {
            // Another thread may have noted it.
            let _ = self.store.set(store.clone());
        }
    }

    /// Checks the store that an answer about locks names. A server that does not share the locks of this cluster would
    /// grant keys that are held already. It may be a server of the list that was started without the store, or somebody
    /// else's at an address that means another machine here.
    ///
    /// The first store that was named is the right one for the life of this client: of two, it can't know which is
    /// right.
    pub fn check_store(&self, route: &Route, named: Option<&str>) -> Result<(), Error> {
        let known = self.store.get();
        let is_known = match (named, known) {
            (Some(named), Some(known)) => *named == **known,
            (named, _) => named.is_some(),
        };
        if is_known {
            return Ok(());
        }
        let error = Error::NotOfCluster {
            address: route.address.to_string(),
            store: named.map(Into::into),
            expected: known.map(|known| (**known).into()),
        };
        if !route.is_logged.swap(true, Relaxed) {
            log::warn!("{error}; its answers are ignored");
        }
        Err(error)
    }

    /// The index of the server that another one names as its leader. `None` if it is not to be asked.
    ///
    /// A leader that is not in the list gets the scheme and the prefix of the server that named it. So the token, which
    /// that server was shown already, goes from https to https only, and there to a server with a certificate for its
    /// name.
    pub fn leader(&self, teller: usize, leader: &str) -> Option<usize> {
        let (host, Some(port)) = parse_address(leader).ok()? else {
            return None;
        };
        let is_same = |address: &ServerAddress| {
            address.port == port && address.host.eq_ignore_ascii_case(&host)
        };
        if let Some(at) = self.addresses().position(is_same) {
            return Some(at);
        }
        let teller = &self.route(teller).address;
        // From a server on another machine, this is a loopback address of that machine. On this one, anything may
        // listen there.
        if is_of_one_machine(&host) && !is_of_one_machine(&teller.host) {
            return None;
        }
        let address = ServerAddress {
            host,
            port,
            ..teller.clone()
        };
        let at = self.learned(&address)?;
        let is_doubtful = self.learned[at].get()?.has_failed_lately();
        (!is_doubtful).then_some(self.listed.len() + at)
    }

    /// The index of a server that is not in the list, in a new place if need be. `None` if no place is left.
    fn learned(&self, address: &ServerAddress) -> Option<usize> {
        self.learned.iter().position(|place| {
            if place.get().is_none() {
                let route = Route {
                    is_learned: true,
                    ..Route::to(address)
                };
                // If another thread was faster, its route is in the place.
                let _ = place.set(route.into());
            }
            place.get().is_some_and(|route| route.address == *address)
        })
    }
}

impl Route {
    fn to(address: &ServerAddress) -> Self {
        let ServerAddress {
            host, port, prefix, ..
        } = address;
        let bad = match port {
            0 => Some(("port", NO_PORT.into())),
            _ => bad_host(host)
                .map(|reason| ("host", reason))
                .or_else(|| Some(("prefix", bad_prefix(prefix)?)))
                .or_else(|| Some(("is_https", missing_tls(address)?))),
        };
        Route {
            address: ServerAddress {
                host: bare_host(host).into(),
                ..address.clone()
            },
            bad,
            is_learned: false,
            failed: AtomicU64::new(0),
            is_logged: AtomicBool::new(false),
            own: PerProcess::new(),
        }
    }

    pub fn url(&self, question: &Request) -> String {
        let ServerAddress {
            host,
            port,
            prefix,
            is_https,
        } = &self.address;
        let scheme = if *is_https { "https" } else { "http" };
        let authority = host_and_port(host, *port);
        format!("{scheme}://{authority}{prefix}{question}")
    }

    pub fn shared(&self) -> &PooledAgent {
        self.own.get(|| PooledAgent::new(&self.address))
    }

    /// Notes that the server could not be reached now.
    pub fn fail(&self) {
        let now = START.elapsed().as_millis() as u64;
        self.failed.store(now.max(1), Relaxed);
    }

    fn has_failed_lately(&self) -> bool {
        let failed = Duration::from_millis(self.failed.load(Relaxed));
        !failed.is_zero() && START.elapsed().saturating_sub(failed) < UNREACHABLE_FOR
    }
}

/// The addresses with commas between: the form of the variable `LOCK_SERVER`.
impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, address) in self.addresses().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma}{address}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(list: &str) -> Cluster {
        Cluster::of(&ServerAddress::parse_list(list).expect("addresses"))
    }

    /// The address that a client asks if the first server of a list names this leader.
    fn led(list: &str, leader: &str) -> Option<String> {
        let cluster = cluster(list);
        let at = cluster.leader(0, leader)?;
        Some(cluster.route(at).address.to_string())
    }

    #[test]
    fn a_leader_of_the_list_is_asked_as_the_list_says() {
        let list = "a:8004,http://B/locks";
        assert_eq!(led(list, "b:80").as_deref(), Some("http://B:80/locks"));
        assert_eq!(led(list, "a:8004").as_deref(), Some("a:8004"));
    }

    #[test]
    fn another_leader_is_asked_with_the_scheme_and_prefix_of_the_server_that_named_it() {
        assert_eq!(led("a:8004", "c:9").as_deref(), Some("c:9"));
        assert_eq!(led("http://a/x", "c:9").as_deref(), Some("http://c:9/x"));
        assert_eq!(led("a:8004", "[fe80::1]:9").as_deref(), Some("[fe80::1]:9"));
        #[cfg(feature = "tls")]
        assert_eq!(led("https://a", "c:9").as_deref(), Some("https://c:9"));
        for none in ["c", "c:0", "", "http://c:9", "c:9/x", "me@c:9"] {
            assert_eq!(led("a:8004", none), None, "{none:?}");
        }
    }

    /// Another server may listen on such an address of this machine.
    #[test]
    fn no_other_machine_s_server_leads_to_an_address_of_this_one() {
        for leader in [
            "127.0.0.1:8004",
            "localhost:8004",
            "[::1]:8004",
            "0.0.0.0:8004",
        ] {
            assert_eq!(led("10.0.0.7:8004", leader), None, "{leader}");
        }
        let led = led("localhost:8004", "127.0.0.1:8005");
        assert_eq!(led.as_deref(), Some("127.0.0.1:8005"));
    }

    #[test]
    fn a_leader_that_was_not_reached_is_not_asked_for_a_while() {
        let cluster = cluster("a:8004");
        let at = cluster.leader(0, "c:9").expect("it is asked");
        assert_eq!(cluster.leader(0, "c:9"), Some(at));
        cluster.route(at).fail();
        assert_eq!(cluster.leader(0, "c:9"), None);
        assert!(cluster.leader(0, "d:9").is_some());
    }

    #[test]
    fn no_more_leaders_are_remembered_than_there_are_places_for() {
        let cluster = cluster("a:8004");
        let leaders = (1..=MOST_LEARNED as u16).map(|port| format!("c:{port}"));
        assert!(
            leaders
                .into_iter()
                .all(|leader| cluster.leader(0, &leader).is_some())
        );
        assert_eq!(cluster.leader(0, "d:9"), None);
        assert_eq!(cluster.leader(0, "a:8004"), Some(0));
    }

    #[test]
    fn only_a_server_with_the_store_of_the_list_is_one_of_them() {
        let cluster = cluster("a:8004");
        let route = cluster.route(0);
        let is_of_them = |named| cluster.check_store(route, named).is_ok();
        assert!(!is_of_them(None) && is_of_them(Some("x")));
        cluster.note_store(route, &"y".into());
        assert!(!is_of_them(Some("x")) && is_of_them(Some("y")) && !is_of_them(None));
    }

    #[test]
    fn two_threads_that_leave_one_server_choose_the_same_next_one() {
        let cluster = cluster("a,b,c");
        cluster.leave(0, 0);
        cluster.leave(0, 0);
        assert_eq!(cluster.first(), 1);
    }

    /// The next round had begun with the first again, and never reached the third.
    #[test]
    fn after_an_unreachable_and_a_silent_server_the_third_is_asked_first() {
        let cluster = cluster("a,b,c");
        cluster.leave(0, 1);
        assert_eq!(cluster.first(), 2);
    }
}
