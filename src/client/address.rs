//! Where a server is: read from what people write, and written as they read it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use crate::error::Error;
use crate::host::{host_and_port, parse_address, reachable};

const HAS_TLS: bool = cfg!(feature = "tls");

/// Why an address can't be `https://` where it can't.
const NO_TLS: &str = "this program was built without TLS; build it with --features tls";

/// The address of a server, in the form of the variable `LOCK_SERVER`; [`parse_list`](Self::parse_list) reads several.
///
/// ```
/// use lock_server::ServerAddress;
///
/// let address: ServerAddress = "[::1]:9".parse()?;
/// assert_eq!((address.host.as_str(), address.port), ("::1", 9));
/// assert_eq!(address.to_string(), "[::1]:9");
/// assert_eq!("localhost".parse::<ServerAddress>()?.port, 8004);
/// // Behind a proxy, which hands on what begins with /locks.
/// let address: ServerAddress = "http://proxy.example/locks".parse()?;
/// assert_eq!((address.port, address.prefix.as_str()), (80, "/locks"));
/// assert_eq!(address.to_string(), "http://proxy.example:80/locks");
/// # #[cfg(feature = "tls")] {
/// // Over TLS, with the feature `tls`.
/// let address: ServerAddress = "https://proxy.example".parse()?;
/// assert_eq!((address.port, address.is_https), (443, true));
/// # }
/// # Ok::<(), lock_server::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    /// A name or an address, an IPv6 address without brackets.
    pub host: String,
    /// The port, 1 to 65535. Parsing refuses 0; a client that is given it finds nobody
    /// ([`Error::Unreachable`]).
    pub port: u16,
    /// What stands before each path, as a proxy may want it: empty, or a slash and more, without one at the end.
    pub prefix: String,
    /// Whether it is asked over TLS. That takes the feature `tls`; without it parsing refuses `https://`, and a client
    /// that is given it returns [`Error::InvalidOption`] for each question.
    pub is_https: bool,
}

impl ServerAddress {
    const DEFAULT_PORT: u16 = 8004;

    /// That of a URL without a port.
    const DEFAULT_HTTP_PORT: u16 = 80;

    /// That of a URL with https and without a port.
    const DEFAULT_HTTPS_PORT: u16 = 443;

    /// `option` is what holds the text.
    pub(super) fn read(option: &'static str, text: &str) -> Result<Self, Error> {
        let bad = |reason| Error::InvalidOption {
            option,
            reason: format!("{text:?} is no host:port and no URL of a server: {reason}"),
        };
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, text),
        };
        let default_port = match scheme {
            None => Self::DEFAULT_PORT,
            Some("http") => Self::DEFAULT_HTTP_PORT,
            Some("https") if HAS_TLS => Self::DEFAULT_HTTPS_PORT,
            Some("https") => return Err(bad(NO_TLS.into())),
            Some(_) => return Err(bad("only http:// and https:// are known".into())),
        };
        // Without a scheme a slash is a bad port.
        let end = rest.find('/').filter(|_| scheme.is_some());
        let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
        let (host, port) = parse_address(authority).map_err(bad)?;
        let prefix = path.trim_end_matches('/').to_string();
        match bad_prefix(&prefix) {
            None => Ok(ServerAddress {
                host,
                port: port.unwrap_or(default_port),
                prefix,
                is_https: scheme == Some("https"),
            }),
            Some(reason) => Err(bad(reason)),
        }
    }
}

impl ServerAddress {
    /// Several addresses with commas between, each in the form of its own, as `LOCK_SERVER` names the servers of which one
    /// leads. One alone is a list of one. A comma in a prefix is written `%2C` here.
    ///
    /// ```
    /// use lock_server::ServerAddress;
    ///
    /// let three = ServerAddress::parse_list("a:8004, b, http://proxy.example/locks")?;
    /// let ports: Vec<u16> = three.iter().map(|address| address.port).collect();
    /// assert_eq!(ports, [8004, 8004, 80]);
    /// # Ok::<(), lock_server::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if one of them is none.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, Error> {
        ServerAddress::read_list("address", text)
    }

    /// `option` is what holds the text.
    pub(super) fn read_list(option: &'static str, text: &str) -> Result<Vec<Self>, Error> {
        let each = text.split(',').map(str::trim);
        each.map(|text| ServerAddress::read(option, text)).collect()
    }
}

/// Where a server is if nothing says it: `127.0.0.1:8004`.
impl Default for ServerAddress {
    fn default() -> Self {
        SocketAddr::from((Ipv4Addr::LOCALHOST, Self::DEFAULT_PORT)).into()
    }
}

/// `host:port`, or `host` with port 8004; an IPv6 address with a port stands in brackets. Or a URL, as
/// [`Server::url`](crate::Server::url) returns it: `http://host:port`, with a prefix for each path after it, if a
/// proxy wants one, or with the feature `tls` the same with `https`; its port is 80 or 443 where it names none.
/// [`Error::InvalidOption`] for anything else.
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
            prefix: String::new(),
            is_https: false,
        }
    }
}

/// `host:port`, an IPv6 host in brackets; with a prefix or over TLS, a URL.
impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = host_and_port(&self.host, self.port);
        match (self.prefix.as_str(), self.is_https) {
            ("", false) => f.write_str(&address),
            (prefix, false) => write!(f, "http://{address}{prefix}"),
            (prefix, true) => write!(f, "https://{address}{prefix}"),
        }
    }
}

/// Why a server is not asked over TLS, if it should be and can't.
pub(super) fn missing_tls(address: &ServerAddress) -> Option<String> {
    (address.is_https && !HAS_TLS).then(|| NO_TLS.into())
}

/// What is wrong with a prefix, if something is: it has to stand in a URL as it is (RFC 3986, 3.3).
pub(super) fn bad_prefix(prefix: &str) -> Option<String> {
    let is_allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@".contains(&byte);
    let is_path = prefix.is_empty() || (prefix.starts_with('/') && !prefix.ends_with('/'));
    (!is_path || !prefix.bytes().all(is_allowed))
        .then(|| format!("{prefix:?} is no path of a URL; give one as in http://host:8004/locks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_port_of_its_own_and_perhaps_a_prefix() {
        for (text, host, port, prefix) in [
            ("http://localhost:9", "localhost", 9, ""),
            ("http://[::1]:9/", "::1", 9, ""),
            ("http://localhost/locks", "localhost", 80, "/locks"),
            ("http://h:8004/a/b%20c/", "h", 8004, "/a/b%20c"),
        ] {
            let address: ServerAddress = text.parse().expect(text);
            assert_eq!(address.host, host, "{text}");
            assert_eq!((address.port, address.prefix.as_str()), (port, prefix));
            let written = address.to_string();
            assert_eq!(written.parse::<ServerAddress>().ok(), Some(address));
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn a_url_with_https_has_port_443_and_is_written_as_it_is_read() {
        for (text, host, port, prefix) in [
            ("https://h", "h", 443, ""),
            ("https://[::1]:9/", "::1", 9, ""),
            ("https://h:80/locks/", "h", 80, "/locks"),
        ] {
            let address: ServerAddress = text.parse().expect(text);
            assert!(address.is_https, "{text}");
            assert_eq!(address.host, host, "{text}");
            assert_eq!((address.port, address.prefix.as_str()), (port, prefix));
            let written = address.to_string();
            assert!(written.starts_with("https://"), "{written}");
            assert_eq!(written.parse::<ServerAddress>().ok(), Some(address));
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn https_without_the_feature_is_refused_and_the_feature_is_named() {
        let refused = "https://h:9".parse::<ServerAddress>().expect_err("no TLS");
        assert!(refused.to_string().contains("--features tls"), "{refused}");
        let address = ServerAddress {
            is_https: true,
            ..ServerAddress::default()
        };
        let client = crate::Client::at("A", &address, crate::ClientOptions::default());
        let refused = client.try_ping().expect_err("no TLS");
        assert!(refused.to_string().contains("--features tls"), "{refused}");
    }

    #[test]
    fn what_is_no_url_of_a_server_is_refused() {
        for text in [
            "http://",
            "http:///locks",
            "http://me@h/locks",
            "http://h:9/a?b",
            "http://h:9/a b",
            "http://h:9/a#b",
            "https://",
            "HTTPS//h:9",
            "ftp://h:9",
            "h:9/locks",
        ] {
            assert!(text.parse::<ServerAddress>().is_err(), "{text}");
        }
    }
}
