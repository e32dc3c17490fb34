//! Whom the server lets in.

use std::net::IpAddr;

use crate::protocol;

/// What the transports let in.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub allow_shutdown: bool,
    /// The configured host, which a client may call the server by.
    pub host: String,
    /// Whether only this machine can reach the server.
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
    /// whose name was pointed at 127.0.0.1 (DNS rebinding) shows itself in `Host`.
    pub fn admit(&self, field: &str, value: &str) -> Result<(), TurnedAway> {
        let is = |name: &str| field.eq_ignore_ascii_case(name);
        if is("Origin") || (is("Sec-Fetch-Site") && !matches!(value, "none" | "same-origin")) {
            return Err(TurnedAway::FromAPage(format!(
                "a web page may not ask for locks: the request carries {field}"
            )));
        }
        if self.loopback && is("Host") && !is_own_name(value, &self.host) {
            return Err(TurnedAway::WrongHost(format!(
                "this server is not {:?}: ask for 127.0.0.1, localhost or the host that it was given to listen on",
                protocol::shorten(value)
            )));
        }
        Ok(())
    }
}

/// Whether a `Host` header names this machine's loopback, or what the server was told to listen on.
fn is_own_name(host: &str, configured: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || name.eq_ignore_ascii_case(configured)
        || name
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}
