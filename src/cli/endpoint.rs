//! Where a server serves, and the one form in which every verb says it.

use std::fmt;
use std::net::SocketAddr;

use lock_server::{Error, Server, ServerAddress};

/// What a server listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// For HTTP.
    pub address: SocketAddr,
    /// For the original's clients, on the same host.
    pub classic_port: Option<u16>,
}

impl Endpoint {
    /// Takes a server's ports.
    pub fn bind(server: &mut Server) -> Result<Self, Error> {
        Ok(Endpoint {
            address: server.bind()?,
            classic_port: server.classic_port(),
        })
    }

    /// Whether it takes this port.
    pub fn has(self, port: u16) -> bool {
        self.address.port() == port || self.classic_port == Some(port)
    }

    /// Where to reach it from this machine.
    pub fn reachable(self) -> ServerAddress {
        self.address.into()
    }

    /// As [`reachable`](Self::reachable), the classic port.
    pub fn reachable_classic(self) -> Option<ServerAddress> {
        let port = self.classic_port?;
        Some(SocketAddr::new(self.address.ip(), port).into())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        match self.classic_port {
            Some(port) => write!(f, " (classic clients: port {port})"),
            None => Ok(()),
        }
    }
}
