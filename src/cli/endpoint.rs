//! Where a server serves, and the one form in which every verb says it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lock_server::{Error, Server};

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

    /// Where to reach it from this machine: what listens on every interface is reached at home.
    pub fn reachable(self) -> SocketAddr {
        let home: IpAddr = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(home, self.address.port())
    }

    /// As [`reachable`](Self::reachable), the classic port.
    pub fn reachable_classic(self) -> Option<SocketAddr> {
        let home = self.reachable().ip();
        self.classic_port.map(|port| SocketAddr::new(home, port))
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
