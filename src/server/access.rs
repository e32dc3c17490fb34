//! Which requests the server admits: the guard against web pages, and tokens.

mod attempts;
mod tokens;

use std::fmt;
use std::net::IpAddr;

pub(crate) use self::tokens::{KnownTokens, Tokens};
use self::tokens::{Shown, user_of_basic};
use crate::host::bare_host;
use crate::protocol;
use crate::protocol::VerbRow;
use crate::token::Role;

/// The rules for admitting requests.
pub(crate) struct Access {
    /// Whether SHUTDOWN needs no token of the role admin.
    pub allow_shutdown: bool,
    /// Whether everybody may BREAK. Used only without tokens.
    pub allow_break: bool,
    /// The configured host, which a client may use in `Host`.
    pub host: String,
    /// Further names that a client may use in `Host`. `*` allows any.
    pub allowed_hosts: Vec<String>,
    /// Whether the server listens only on loopback.
    pub loopback: bool,
    /// `None` admits every question from everybody.
    pub tokens: Option<Tokens>,
}

/// Why a request is refused, as one sentence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TurnedAway {
    FromAPage(String),
    WrongHost(String),
    NoToken(String),
    /// The flag: whether the refusal is delayed.
    WrongToken(String, bool),
    WrongRole(String),
}

/// What is known of the client of an admitted question.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    /// `None` if the server has no tokens.
    pub role: Option<Role>,
    /// `None` on the classic port.
    pub from: Option<IpAddr>,
    /// The user name of Basic, for a verb that takes the role admin.
    pub user: Option<String>,
}

/// The address, as the end of a log line.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from {
            Some(from) => write!(f, " at {}", from.to_canonical()),
            None => Ok(()),
        }
    }
}

/// What the header lines of a request say of the client and the host that it asks. If a line occurs twice, neither
/// counts: a proxy and the server could use different ones.
#[derive(Default)]
pub(crate) struct Asker<'h> {
    host: Option<&'h str>,
    /// The scheme, host and port of the asking page.
    origin: Option<&'h str>,
    /// Whether `Sec-Fetch-Site` says that a page from another site asks.
    is_from_elsewhere: bool,
    /// Whether a proxy reports that the client used TLS.
    is_tls: bool,
    authorization: Option<&'h str>,
}

impl<'h> Asker<'h> {
    pub fn of(headers: impl Iterator<Item = (&'h str, &'h str)>) -> Self {
        let mut asker = Asker::default();
        for (field, value) in headers {
            let is = |name: &str| field.eq_ignore_ascii_case(name);
            if is("Host") {
                asker.host = Some(asker.host.map_or(value, |_| ""));
            } else if is("Origin") {
                asker.origin = Some(asker.origin.map_or(value, |_| ""));
            } else if is("Sec-Fetch-Site") {
                asker.is_from_elsewhere |= !matches!(value, "none" | "same-origin");
            } else if is("X-Forwarded-Proto") {
                asker.is_tls = value.eq_ignore_ascii_case("https");
            } else if is("Authorization") {
                asker.authorization = Some(asker.authorization.map_or(value, |_| ""));
            }
        }
        asker
    }

    /// The user name of Basic. The password is not checked.
    pub fn user(&self) -> Option<String> {
        user_of_basic(self.authorization?)
    }

    /// Whether the page is this server's own: its origin is the scheme and the host that the request went to (RFC 6454,
    /// section 4). No page can make a browser send another `Host` or an `X-Forwarded-Proto`.
    fn is_own_page(&self, origin: &str) -> bool {
        let scheme = if self.is_tls { "https" } else { "http" };
        let host = self.host.filter(|host| !host.is_empty());
        origin.split_once("://").is_some_and(|(of_page, page)| {
            of_page == scheme && host.is_some_and(|host| page.eq_ignore_ascii_case(host))
        })
    }
}

impl Access {
    /// Refuses what a web page from another site can make a browser send.
    ///
    /// Any page can make its visitor's browser GET an address on the visitor's machine. The browser then says so in
    /// `Origin` or `Sec-Fetch-Site` (Fetch Metadata). A page whose name was pointed at 127.0.0.1 (DNS rebinding) is
    /// recognised by `Host`. The guard covers only this: requests through a proxy come from loopback, too, wherever the
    /// client is.
    pub fn admit(&self, asker: &Asker) -> Result<(), TurnedAway> {
        let is_foreign = |origin| !asker.is_own_page(origin);
        if asker.is_from_elsewhere || asker.origin.is_some_and(is_foreign) {
            let field = match asker.is_from_elsewhere {
                true => "Sec-Fetch-Site",
                false => "Origin",
            };
            return Err(TurnedAway::FromAPage(format!(
                "a web page from elsewhere may not ask: the request carries a foreign {field}"
            )));
        }
        if let Some(host) = asker.host.filter(|host| !self.is_own_name(host))
            && self.loopback
        {
            return Err(TurnedAway::WrongHost(format!(
                "this server is not {:?}: use 127.0.0.1, localhost or the host that it was given to listen on; \
                 the option allowed_hosts permits others",
                protocol::shorten(host)
            )));
        }
        Ok(())
    }

    /// Returns the caller's role for a verb, `None` if the server has no tokens. Refuses a request without a token, or
    /// with one that is wrong or has too low a role. An unknown verb needs the role `read`.
    pub fn role_of(
        &self,
        asker: &Asker,
        from: IpAddr,
        verb: Option<&VerbRow>,
    ) -> Result<Option<Role>, TurnedAway> {
        let Some(tokens) = &self.tokens else {
            return Ok(None);
        };
        let Some(needed) = verb.map_or(Some(Role::Read), |verb| verb.role) else {
            return Ok(None);
        };
        match tokens.shown(asker.authorization, from) {
            Shown::Known(role) if role >= needed => Ok(Some(role)),
            Shown::Known(role) => {
                let verb = verb.map_or("that", |verb| verb.name);
                Err(TurnedAway::WrongRole(format!(
                    "{verb} takes a token of the role {needed}, and this one has the role {role}"
                )))
            }
            Shown::Nothing => Err(TurnedAway::NoToken(
                "this server asks for a token, as in Authorization: Bearer TOKEN, or as the password of Basic"
                    .into(),
            )),
            Shown::Wrong { is_one_of_many } => Err(TurnedAway::WrongToken(
                "this server does not know the token that the request carries".into(),
                is_one_of_many,
            )),
        }
    }

    /// Whether a caller with this role may end the server. Without tokens, and on the classic port, the role is `None`.
    pub fn may_shut_down(&self, role: Option<Role>) -> bool {
        self.allow_shutdown || role == Some(Role::Admin)
    }

    /// Whether a caller with this role may end another client's hold. With tokens, the role alone decides it.
    pub fn may_break(&self, role: Option<Role>) -> bool {
        match self.tokens {
            None => self.allow_break,
            Some(_) => role == Some(Role::Admin),
        }
    }

    /// Whether a `Host` header names loopback, the configured host, or one of the allowed hosts.
    fn is_own_name(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_allowed = |allowed: &String| allowed == "*" || same_host(name, allowed);
        // The most frequent ones first.
        name.eq_ignore_ascii_case(&self.host)
            || name.eq_ignore_ascii_case("localhost")
            || is_below_localhost(name)
            || name
                .parse()
                .is_ok_and(|address: IpAddr| address.is_loopback())
            || self.allowed_hosts.iter().any(is_allowed)
    }
}

/// Whether a name ends with `.localhost` (RFC 6761, section 6.3). Allocates nothing, because every request is checked.
fn is_below_localhost(name: &str) -> bool {
    const SUFFIX: &[u8] = b".localhost";
    let (_, end) = name
        .as_bytes()
        .split_at(name.len().saturating_sub(SUFFIX.len()));
    end.eq_ignore_ascii_case(SUFFIX)
}

/// Whether both are the same name, apart from case, brackets and a final dot.
fn same_host(name: &str, allowed: &str) -> bool {
    let allowed = bare_host(allowed);
    name.eq_ignore_ascii_case(allowed.strip_suffix('.').unwrap_or(allowed))
}
