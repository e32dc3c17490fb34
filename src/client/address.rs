//! The address of a server: parsed from text, and written as text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use crate::error::Error;
use crate::host::{host_and_port, parse_address, reachable};

const HAS_TLS: bool = cfg!(feature = "tls");

/// Why an address can't be `https://` in a program without TLS.
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
/// // Behind a proxy, which passes on the paths that begin with /locks.
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
    /// The port, 1 to 65535. Parsing refuses 0; each question of a client with port 0 returns [`Error::InvalidOption`].
    pub port: u16,
    /// The prefix of each path, for a proxy that needs one: empty, or text that begins with a slash and ends without
    /// one.
    pub prefix: String,
    /// Whether to use TLS, which needs the feature `tls`. Without the feature, parsing refuses `https://`, and each
    /// question of a client with `true` here returns [`Error::InvalidOption`].
    pub is_https: bool,
}

impl ServerAddress {
    const DEFAULT_PORT: u16 = 8004;

    /// The port of an `http://` URL that names none.
    const DEFAULT_HTTP_PORT: u16 = 80;

    /// The port of an `https://` URL that names none.
    const DEFAULT_HTTPS_PORT: u16 = 443;

    /// `option` is what holds the text.
    pub(super) fn read(option: &'static str, text: &str) -> Result<Self, Error> {
        let bad = |reason| Error::InvalidOption {
            option,
            reason: format!("{text:?} is no host:port and no URL of a server: {reason}"),
        };
        if text.contains(char::is_whitespace) {
            return Err(bad("there is a blank in it; commas separate servers".into()));
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None if text.contains('/') => {
                return Err(bad(format!(
                    "a URL begins with http://, as in http://{text}"
                )));
            }
            None => (None, text),
        };
        let default_port = match scheme {
            None => Self::DEFAULT_PORT,
            Some("http") => Self::DEFAULT_HTTP_PORT,
            Some("https") if HAS_TLS => Self::DEFAULT_HTTPS_PORT,
            Some("https") => return Err(bad(NO_TLS.into())),
            Some(_) => return Err(bad("only http:// and https:// are known".into())),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
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
    /// Parses addresses with commas between them, as in `LOCK_SERVER` for the servers of a cluster. Each may have any
    /// of the forms of an address. A single address is a list of one. Write a comma in a prefix as `%2C`.
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
    /// [`Error::InvalidOption`] if one of them is no address.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, Error> {
        ServerAddress::read_list("address", text)
    }

    /// `option` is what holds the text.
    pub(super) fn read_list(option: &'static str, text: &str) -> Result<Vec<Self>, Error> {
        let each = text.split(',').map(str::trim);
        each.map(|text| ServerAddress::read(option, text)).collect()
    }
}

/// The default address, `127.0.0.1:8004`.
impl Default for ServerAddress {
    fn default() -> Self {
        SocketAddr::from((Ipv4Addr::LOCALHOST, Self::DEFAULT_PORT)).into()
    }
}

/// `host:port`, or `host` with port 8004; an IPv6 address with a port needs brackets. Or a URL, as
/// [`Server::url`](crate::Server::url) returns it: `http://host:port`, perhaps followed by a prefix for each path, if a
/// proxy needs one; with the feature `tls` also `https://`. Without a port it is 80 or 443. [`Error::InvalidOption`]
/// for any other text.
impl FromStr for ServerAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        ServerAddress::read("address", text)
    }
}

/// The address at which this machine reaches a listener on it: `0.0.0.0` and `::` become the loopback address.
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

/// Why a server can't be asked over TLS, if its address requires TLS and this program was built without it.
pub(super) fn missing_tls(address: &ServerAddress) -> Option<String> {
    (address.is_https && !HAS_TLS).then(|| NO_TLS.into())
}

/// Why a prefix is not a path of a URL that needs no escaping (RFC 3986, 3.3). `None` if it is one.
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
    fn a_text_that_is_no_url_of_a_server_is_refused() {
        for (text, reason) in [
            ("http://", "the host is empty"),
            ("http:///locks", "the host is empty"),
            ("http://me@h/locks", "no name and no address"),
            ("http://h:9/a?b", "no path of a URL"),
            ("http://h:9/a#b", "no path of a URL"),
            ("http://h:9/a b", "a blank"),
            ("h :9", "a blank"),
            ("h:1 i:2", "commas separate servers"),
            ("https://", ""),
            ("HTTPS//h:9", "a URL begins with http://"),
            ("ftp://h:9", "only http:// and https://"),
            ("h:9/locks", "as in http://h:9/locks"),
        ] {
            let refused = text.parse::<ServerAddress>().expect_err(text);
            assert!(refused.to_string().contains(reason), "{refused}");
        }
    }
}
