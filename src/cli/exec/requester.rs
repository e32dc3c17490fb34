//! Whom `exec` asks for: a name of its own, unless it is given one, and the names of those it runs under.

use std::time::Duration;

use lock_server::{Client, ClientOptions, ServerAddress};
use nix::unistd::getpid;

use crate::cli::args::Target;
use crate::cli::ask::{NAME_VARIABLE, usual_name, variable};
use crate::cli::exit::Failure;

/// What a command finds in its environment, besides the name: the key, the fence, and where the server is.
pub const KEY_VARIABLE: &str = "LOCK_SERVER_KEY";
pub const FENCE_VARIABLE: &str = "LOCK_SERVER_FENCE";

/// Stands between the name of one who holds a key and the names of those who run under it.
const UNDER: char = '>';

/// The longest name, in bytes.
const MAX_NAME: usize = 1024;

/// A name at a server.
#[derive(Clone)]
pub struct Requester {
    pub name: String,
    pub address: ServerAddress,
    /// Its connections, and the address that its host was looked up to, serve all questions of this process.
    client: Client,
    /// Under whose lease this runs, if it does.
    above: Option<String>,
}

impl Requester {
    /// What the options say wins over what the environment says. A name from the environment is used as it
    /// is, unless it belongs to one who holds a key and under whom this runs: of several that do, each has
    /// to be somebody else.
    pub fn new(target: &Target) -> Result<Self, Failure> {
        let address = target.address()?;
        let said = variable(NAME_VARIABLE)?;
        let above = said
            .clone()
            .filter(|_| variable(FENCE_VARIABLE).is_ok_and(|fence| fence.is_some()));
        let name = match (&target.name, &above) {
            (Some(name), _) => name.clone(),
            (None, Some(above)) => name_under(above),
            (None, None) => said.unwrap_or_else(|| usual_name(getpid())),
        };
        let options = ClientOptions::default();
        let client = Client::with_options(&name, &address.host, address.port, options);
        Ok(Requester {
            name,
            address,
            client,
            above,
        })
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client that tries so often, without a pause between. A connection that was kept open and leads nowhere by now
    /// takes one try.
    pub fn hasty_client(&self, tries: u32, answer_timeout: Duration) -> Client {
        self.client.tuned(ClientOptions {
            reconnect_attempts: tries - 1,
            time_between_attempts: Duration::ZERO,
            answer_timeout,
        })
    }

    fn client_with(&self, options: ClientOptions) -> Client {
        let ServerAddress { host, port } = &self.address;
        Client::with_options(&self.name, host, *port, options)
    }

    /// Whether this waits in vain for that holder, who goes on only when this has ended.
    pub fn runs_under(&self, holder: &str) -> bool {
        let is_above = |above: &str| {
            let below = above.strip_prefix(holder);
            below.is_some_and(|below| below.is_empty() || below.starts_with(UNDER))
        };
        self.above.as_deref().is_some_and(is_above)
    }
}

fn name_under(above: &str) -> String {
    let name = format!("{above}{UNDER}{}", getpid());
    if name.len() <= MAX_NAME {
        name
    } else {
        usual_name(getpid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn under(above: Option<&str>) -> Requester {
        Requester {
            name: "me".into(),
            address: ServerAddress::default(),
            client: Client::new("me", "127.0.0.1", 8004),
            above: above.map(String::from),
        }
    }

    #[test]
    fn everybody_above_is_known_and_nobody_else() {
        let me = under(Some("a>1>2"));
        for above in ["a", "a>1", "a>1>2"] {
            assert!(me.runs_under(above), "{above}");
        }
        for other in ["a>", "b", "a>1>2>3", "1", "a>2", ""] {
            assert!(!me.runs_under(other), "{other}");
        }
        assert!(!under(None).runs_under("a"));
    }
}
