//! Which requests the server lets in.

use std::net::IpAddr;

use crate::host::bare_host;
use crate::protocol;

/// What the transports let in.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub allow_shutdown: bool,
    /// The configured host, which a client may call the server by.
    pub host: String,
    /// Further names that it may be asked for under. `*` is any.
    pub allowed_hosts: Vec<String>,
    /// Whether it listens on loopback alone.
    pub loopback: bool,
}

/// Why a request is turned away, in one plain sentence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TurnedAway {
    FromAPage(String),
    WrongHost(String),
}

impl Access {
    /// Turns away what a web page can make a browser send.
    ///
    /// A page from anywhere may ask its visitor's browser to GET an address on that visitor's own
    /// machine. The browser then says so in `Origin` or `Sec-Fetch-Site` (Fetch Metadata); and a page
    /// whose name was pointed at 127.0.0.1 (DNS rebinding) shows itself in `Host`. That is all that the guard is for:
    /// what a proxy passes on comes from loopback, too, wherever its client is.
    pub fn admit(&self, field: &str, value: &str) -> Result<(), TurnedAway> {
        let is = |name: &str| field.eq_ignore_ascii_case(name);
        if is("Origin") || (is("Sec-Fetch-Site") && !matches!(value, "none" | "same-origin")) {
            return Err(TurnedAway::FromAPage(format!(
                "a web page may not ask for locks: the request carries {field}"
            )));
        }
        if self.loopback && is("Host") && !self.is_own_name(value) {
            return Err(TurnedAway::WrongHost(format!(
                "this server is not {:?}: ask for 127.0.0.1, localhost or the host that it was given to listen on; \
                 the option allowed_hosts permits others",
                protocol::shorten(value)
            )));
        }
        Ok(())
    }

    /// Whether a `Host` header names this machine's loopback, what the server was told to listen on, or what it was
    /// told to be called.
    fn is_own_name(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_allowed = |allowed: &String| allowed == "*" || same_host(name, allowed);
        name.eq_ignore_ascii_case("localhost")
            || name.to_ascii_lowercase().ends_with(".localhost")
            || name.eq_ignore_ascii_case(&self.host)
            || name
                .parse()
                .is_ok_and(|address: IpAddr| address.is_loopback())
            || self.allowed_hosts.iter().any(is_allowed)
    }
}

/// Whether they are the same name but for upper and lower case, brackets and a dot in the end.
fn same_host(name: &str, allowed: &str) -> bool {
    let allowed = bare_host(allowed);
    name.eq_ignore_ascii_case(allowed.strip_suffix('.').unwrap_or(allowed))
}
