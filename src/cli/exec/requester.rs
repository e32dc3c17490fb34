//! The name that `exec` asks under: a name of its own, unless it is given one, and the names of those it runs under.

use std::time::Duration;

use lock_server::{Client, ClientOptions, ServerAddress};
use nix::unistd::{Pid, getpid, getppid};

use crate::cli::args::Target;
use crate::cli::ask::{NAME_VARIABLE, client_options, variable};
use crate::cli::exit::Failure;
use crate::cli::process::ProcessStat;
use crate::cli::usual_name::usual_name;

/// What a command finds in its environment, besides the name: the key, the fence, and where the server is.
pub const KEY_VARIABLE: &str = "LOCK_SERVER_KEY";
pub const FENCE_VARIABLE: &str = "LOCK_SERVER_FENCE";

/// All keys, and all fences in the same order, with blanks between.
pub const KEYS_VARIABLE: &str = "LOCK_SERVER_KEYS";
pub const FENCES_VARIABLE: &str = "LOCK_SERVER_FENCES";

/// Stands between the name of one who holds a key and the names of those who run under it.
const UNDER: char = '>';

/// The longest name, in bytes.
const MAX_NAME: usize = 1024;

/// A name at a server.
#[derive(Clone)]
pub struct Requester {
    pub name: String,
    /// Of the server, or of those of which one leads.
    pub addresses: Vec<ServerAddress>,
    /// Its connections, and the address that its host was looked up to, serve all questions of this process.
    client: Client,
    /// Under whose lease this runs, if it does.
    above: Option<String>,
}

impl Requester {
    /// What the options say wins over what the environment says. A name from the environment is used as it
    /// is, unless it is that of an `exec` that this runs under: each of several in one such command needs a name of
    /// its own.
    pub fn new(target: &Target) -> Result<Self, Failure> {
        let addresses = target.addresses()?;
        let said = variable(NAME_VARIABLE)?;
        let above = said
            .clone()
            .filter(|_| variable(FENCE_VARIABLE).is_ok_and(|fence| fence.is_some()));
        let name = match (&target.name, &above) {
            (Some(name), _) => name.clone(),
            (None, Some(above)) => name_under(above),
            (None, None) => said.unwrap_or_else(|| usual_name(getpid())),
        };
        let client = Client::of_cluster(&name, &addresses, client_options()?);
        Ok(Requester {
            name,
            addresses,
            client,
            above,
        })
    }

    #[cfg(test)]
    pub fn of(name: &str, address: &str) -> Self {
        let addresses = ServerAddress::parse_list(address).expect("addresses");
        Requester {
            name: name.into(),
            client: Client::of_cluster(name, &addresses, ClientOptions::default()),
            addresses,
            above: None,
        }
    }

    /// Where it asks, as `LOCK_SERVER` says it.
    pub fn address(&self) -> String {
        self.client.address()
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
            ..ClientOptions::default()
        })
    }

    /// The names of those that this runs under, as far as they can be told: those that the environment names, and the
    /// usual names of all ancestors.
    pub fn names_above(&self) -> Vec<String> {
        let mut names: Vec<_> = self.above.as_deref().map_or_else(Vec::new, each_above);
        for process in ancestors() {
            let name = usual_name(process);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Whether that holder goes on only when this has ended. The environment names those above, if nobody between has
    /// cleared it, as `env -i` and `su` do; the usual names of all ancestors are known without it.
    pub fn runs_under(&self, holder: &str) -> bool {
        let is_above = |above: &str| {
            let below = above.strip_prefix(holder);
            below.is_some_and(|below| below.is_empty() || below.starts_with(UNDER))
        };
        self.above.as_deref().is_some_and(is_above) || is_ancestor(holder, &ancestors())
    }
}

/// A name, and those that it runs under.
fn each_above(name: &str) -> Vec<String> {
    let ends = name.match_indices(UNDER).map(|(end, _)| end);
    let ends = ends.chain([name.len()]).filter(|end| *end > 0);
    ends.map(|end| name[..end].to_string()).collect()
}

/// Whether a holder with a usual name is one of these processes: it, and those that it runs under itself.
fn is_ancestor(holder: &str, ancestors: &[Pid]) -> bool {
    let mut processes = holder.split(UNDER);
    let first = processes.next().unwrap_or_default();
    // Another user's process has the same name but for the user.
    let without_user = |name: &str| Some(name.split_once('@')?.1.to_string());
    let Some(first) = without_user(first) else {
        return false;
    };
    let is_first = |process: &Pid| without_user(&usual_name(*process)).as_ref() == Some(&first);
    let is_one = |number: &str| {
        let number = number.parse().map(Pid::from_raw);
        number.is_ok_and(|process| ancestors.contains(&process))
    };
    processes.all(is_one) && ancestors.iter().any(is_first)
}

/// The processes that this one descends from, its parent first.
fn ancestors() -> Vec<Pid> {
    let mut ancestors = vec![getppid()];
    while let Some(&child) = ancestors.last()
        && let Some(parent) = ProcessStat::of(child).and_then(|stat| stat.parent())
    {
        // Processes may come and go meanwhile; a circle would never end.
        if ancestors.contains(&parent) {
            break;
        }
        ancestors.push(parent);
    }
    ancestors
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
            above: above.map(String::from),
            ..Requester::of("me", "127.0.0.1:8004")
        }
    }

    #[test]
    fn everybody_above_is_known_and_nobody_else() {
        let me = under(Some("a>1>2"));
        for above in ["a", "a>1", "a>1>2"] {
            assert!(me.runs_under(above), "{above}");
        }
        let above = me.names_above();
        assert_eq!(above[..3], ["a", "a>1", "a>1>2"]);
        assert!(above.contains(&usual_name(getppid())));
        for other in ["a>", "b", "a>1>2>3", "1", "a>2", ""] {
            assert!(!me.runs_under(other), "{other}");
        }
        assert!(!under(None).runs_under("a"));
    }

    #[test]
    fn an_ancestor_is_known_by_its_usual_name_whatever_its_user() {
        let ancestors = ancestors();
        let name = usual_name(getppid());
        let (_, process) = name.split_once('@').expect("a user");
        assert!(is_ancestor(&name, &ancestors));
        assert!(is_ancestor(&format!("somebody@{process}"), &ancestors));
        let own = usual_name(getpid());
        let elsewhere = format!("somebody@else-{process}");
        // A sibling that runs under the same ancestor goes on without this one.
        let sibling = format!("{name}>{}", getpid());
        for other in [&own, &elsewhere, &sibling, "ME", ""] {
            assert!(!is_ancestor(other, &ancestors), "{other}");
        }
    }
}
