//! Where a server is: read from what people write, and written as they read it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use crate::error::Error;
use crate::host::{host_and_port, parse_address, reachable};

/// The address of a server, in the form of the variable `LOCK_SERVER`.
///
/// ```
/// use lock_server::ServerAddress;
///
/// let address: ServerAddress = "[::1]:9".parse()?;
/// assert_eq!((address.host.as_str(), address.port), ("::1", 9));
/// assert_eq!(address.to_string(), "[::1]:9");
/// assert_eq!("localhost".parse::<ServerAddress>()?.port, 8004);
/// # Ok::<(), lock_server::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    /// A name or an address, an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl ServerAddress {
    const DEFAULT_PORT: u16 = 8004;

    /// `option` is what holds the text.
    pub(super) fn read(option: &'static str, text: &str) -> Result<Self, Error> {
        match parse_address(text) {
            Ok((host, port)) => Ok(ServerAddress {
                host,
                port: port.unwrap_or(Self::DEFAULT_PORT),
            }),
            Err(reason) => Err(Error::InvalidOption {
                option,
                reason: format!("{text:?} is no host:port: {reason}"),
            }),
        }
    }
}

/// Where a server is if nothing says it: `127.0.0.1:8004`.
impl Default for ServerAddress {
    fn default() -> Self {
        SocketAddr::from((Ipv4Addr::LOCALHOST, Self::DEFAULT_PORT)).into()
    }
}

/// `host:port`, or `host` with port 8004; an IPv6 address with a port stands in brackets. The URL that
/// [`Server::url`](crate::Server::url) returns is an address, too. [`Error::InvalidOption`] for anything else.
impl FromStr for ServerAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        ServerAddress::read("address", text)
    }
}

/// How this machine reaches what listens there: `0.0.0.0` and `::` become the loopback address.
impl From<SocketAddr> for ServerAddress {
    fn from(address: SocketAddr) -> Self {
        let ip: IpAddr = reachable(address.ip());
        ServerAddress {
            host: ip.to_string(),
            port: address.port(),
        }
    }
}

/// `host:port`, an IPv6 host in brackets.
impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&host_and_port(&self.host, self.port))
    }
}
