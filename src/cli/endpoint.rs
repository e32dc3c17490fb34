//! The addresses that a server serves on, and the form in which every verb prints them.

use std::fmt;
use std::net::SocketAddr;

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

    /// Whether this port is one of its ports.
    pub fn has(&self, port: u16) -> bool {
        self.address.port() == port || self.classic_port == Some(port)
    }

    /// Its addresses that other machines can reach.
    pub fn exposed(&self) -> impl Iterator<Item = &SocketAddr> {
        let all = [&self.address].into_iter().chain(&self.others);
        all.filter(|address| !address.ip().is_loopback())
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
