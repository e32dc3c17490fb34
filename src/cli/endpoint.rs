//! Where a server serves, and the one form in which every verb says it.

use std::fmt;
use std::net::SocketAddr;

use lock_server::{Error, Server, ServerAddress};

/// What a server listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// For HTTP: where clients ask.
    pub address: SocketAddr,
    /// The other addresses of its host, on the same port.
    pub others: Vec<SocketAddr>,
    /// For the original's clients, on the same host.
    pub classic_port: Option<u16>,
}

impl Endpoint {
    /// Takes a server's ports.
    pub fn bind(server: &mut Server) -> Result<Self, Error> {
        let address = server.bind()?;
        let others = server.addrs().iter().skip(1).copied();
        Ok(Endpoint {
            address,
            others: others.collect(),
            classic_port: server.classic_port(),
        })
    }

    /// Whether it takes this port.
    pub fn has(&self, port: u16) -> bool {
        self.address.port() == port || self.classic_port == Some(port)
    }

    /// Its addresses that other machines can reach.
    pub fn exposed(&self) -> impl Iterator<Item = &SocketAddr> {
        let all = [&self.address].into_iter().chain(&self.others);
        all.filter(|address| !address.ip().is_loopback())
    }

    /// Where to reach it from this machine.
    pub fn reachable(&self) -> ServerAddress {
        self.address.into()
    }

    /// As [`reachable`](Self::reachable), the classic port.
    pub fn reachable_classic(&self) -> Option<ServerAddress> {
        let port = self.classic_port?;
        Some(SocketAddr::new(self.address.ip(), port).into())
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
