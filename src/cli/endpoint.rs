//! The addresses that a server serves on, and the form in which every verb prints them.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use lock_server::{Error, Server, ServerAddress};

/// What a server listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address for HTTP.
    pub address: SocketAddr,
    /// The other addresses of its host, with the same port.
    pub others: Vec<SocketAddr>,
    /// The port for clients of the original, on the same host.
    pub classic_port: Option<u16>,
}

impl Endpoint {
    /// Binds a server's ports.
    pub fn bind(server: &mut Server) -> Result<Self, Error> {
        let address = server.bind()?;
        let others = server.addrs().iter().skip(1).copied();
        Ok(Endpoint {
            address,
            others: others.collect(),
            classic_port: server.classic_port(),
        })
    }

    /// Its addresses that other machines can reach.
    pub fn exposed(&self) -> impl Iterator<Item = &SocketAddr> {
        self.all().filter(|address| !address.ip().is_loopback())
    }

    /// Whether a client that asks this host, at its port, reaches it.
    pub fn serves_host(&self, host: &str) -> bool {
        let asked = addresses_of(host);
        self.all()
            .any(|address| asked.iter().any(|asked| reaches(*asked, address.ip())))
    }

    /// Whether a server for this host and port could not listen beside it.
    pub fn blocks(&self, host: &str, port: u16) -> bool {
        let wanted = addresses_of(host);
        let shares = |ip| {
            let mut wanted = wanted.iter();
            wanted.any(|wanted| listens_for(*wanted, ip) || listens_for(ip, *wanted))
        };
        let is_its_own = self.address.port() == port || self.classic_port == Some(port);
        is_its_own && self.all().any(|address| shares(address.ip()))
    }

    fn all(&self) -> impl Iterator<Item = &SocketAddr> {
        [&self.address].into_iter().chain(&self.others)
    }

    /// The address at which this machine reaches it.
    pub fn reachable(&self) -> ServerAddress {
        self.address.into()
    }

    /// As [`reachable`](Self::reachable), for the classic port.
    pub fn reachable_classic(&self) -> Option<ServerAddress> {
        let port = self.classic_port?;
        Some(SocketAddr::new(self.address.ip(), port).into())
    }
}

/// Whether a client that asks this host reaches a server that listens for the other one.
pub fn leads_to(asked: &str, listening: &str) -> bool {
    let listening = addresses_of(listening);
    let mut asked = addresses_of(asked).into_iter();
    asked.any(|asked| listening.iter().any(|ip| reaches(asked, *ip)))
}

/// The addresses of a host. None if nobody knows it.
fn addresses_of(host: &str) -> Vec<IpAddr> {
    let found = (host, 0).to_socket_addrs();
    found.map_or(Vec::new(), |found| {
        found.map(|found| found.ip().to_canonical()).collect()
    })
}

fn reaches(asked: IpAddr, listening: IpAddr) -> bool {
    // Who connects to the unspecified address reaches the loopback interface.
    let reached: ServerAddress = SocketAddr::new(asked, 0).into();
    let reached = reached.host.parse().unwrap_or(asked);
    listens_for(listening, reached)
}

/// Whether a socket that is bound to an address takes connections to the other one. The unspecified address takes all
/// of its family, and that of IPv6 those of IPv4, too.
fn listens_for(bound: IpAddr, asked: IpAddr) -> bool {
    match bound.to_canonical() {
        IpAddr::V4(any) if any.is_unspecified() => asked.is_ipv4(),
        IpAddr::V6(any) if any.is_unspecified() => true,
        one => one == asked,
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        for other in &self.others {
            write!(f, " and {other}")?;
        }
        match self.classic_port {
            Some(port) => write!(f, " (classic clients: port {port})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(addresses: &[&str]) -> Endpoint {
        let addresses = addresses.iter();
        let mut all = addresses.map(|address| address.parse().expect("an address"));
        Endpoint {
            address: all.next().expect("one"),
            others: all.collect(),
            classic_port: None,
        }
    }

    #[test]
    fn a_server_serves_the_hosts_that_lead_to_its_addresses() {
        for (addresses, host, serves) in [
            (&["127.0.0.1:1"][..], "127.0.0.1", true),
            (&["127.0.0.1:1"], "127.0.0.2", false),
            (&["127.0.0.1:1"], "localhost", true),
            (&["127.0.0.1:1"], "0.0.0.0", true),
            (&["127.0.0.2:1"], "0.0.0.0", false),
            (&["127.0.0.1:1"], "::ffff:127.0.0.1", true),
            (&["127.0.0.1:1"], "::1", false),
            (&["127.0.0.1:1", "[::1]:1"], "::1", true),
            (&["0.0.0.0:1"], "127.0.0.2", true),
            (&["0.0.0.0:1"], "::1", false),
            (&["[::]:1"], "127.0.0.2", true),
        ] {
            let endpoint = endpoint(addresses);
            assert_eq!(endpoint.serves_host(host), serves, "{endpoint} {host}");
        }
    }

    #[test]
    fn a_server_blocks_its_port_at_the_addresses_that_it_takes() {
        let one = endpoint(&["127.0.0.2:1"]);
        assert!(one.blocks("127.0.0.2", 1) && one.blocks("0.0.0.0", 1));
        assert!(!one.blocks("127.0.0.1", 1) && !one.blocks("127.0.0.2", 2));
        assert!(endpoint(&["0.0.0.0:1"]).blocks("127.0.0.1", 1));
    }
}
