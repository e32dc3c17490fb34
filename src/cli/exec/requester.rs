//! The name that `exec` asks under, which is unique unless one is given; and the names of the commands that it runs
//! under.

use std::time::Duration;

use lock_server::{Client, ClientOptions, ServerAddress};
use nix::unistd::{Pid, getpid, getppid};

use crate::cli::args::Target;
use crate::cli::ask::{NAME_VARIABLE, client_options, variable};
use crate::cli::exit::Failure;
use crate::cli::process::ProcessStat;
use crate::cli::usual_name::usual_name;

/// What a command finds in its environment, together with the name and the server's address: the key and the fence.
pub const KEY_VARIABLE: &str = "LOCK_SERVER_KEY";
pub const FENCE_VARIABLE: &str = "LOCK_SERVER_FENCE";

/// All keys, and all fences in the same order, with blanks between.
pub const KEYS_VARIABLE: &str = "LOCK_SERVER_KEYS";
pub const FENCES_VARIABLE: &str = "LOCK_SERVER_FENCES";

/// Separates the name of a holder from the process IDs of the commands that run under it.
const UNDER: char = '>';

/// The longest name, in bytes.
const MAX_NAME: usize = 1024;

/// A requester's name and its server.
#[derive(Clone)]
pub struct Requester {
    pub name: String,
    /// The address of the server, or the addresses of a cluster.
    pub addresses: Vec<ServerAddress>,
    /// All questions of this process share its connections, and the address that its host was looked up to.
    client: Client,
    /// The name under whose lease this program runs, if it does.
    above: Option<String>,
}

impl Requester {
    /// Options override the environment. A name from the environment is used as it is, unless it is the name of an
    /// `exec` that this program runs under: several of these programs in one command need different names.
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

    /// The server's address, in the form of `LOCK_SERVER`.
    pub fn address(&self) -> String {
        self.client.address()
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client that tries this often, without pauses. A kept connection that is dead by now takes one try.
    pub fn hasty_client(&self, tries: u32, answer_timeout: Duration) -> Client {
        self.client.tuned(ClientOptions {
            reconnect_attempts: tries - 1,
            time_between_attempts: Duration::ZERO,
            answer_timeout,
            ..ClientOptions::default()
        })
    }

    /// The names of the commands that this program runs under, as far as they are known: those in the environment, and
    /// the default names of all ancestors.
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

    /// Whether this holder goes on only when this program has ended. The environment names the holders above, unless
    /// something like `env -i` or `su` has cleared it; the default names of all ancestors are known without it.
    pub fn runs_under(&self, holder: &str) -> bool {
        let is_above = |above: &str| {
            let below = above.strip_prefix(holder);
            below.is_some_and(|below| below.is_empty() || below.starts_with(UNDER))
        };
        self.above.as_deref().is_some_and(is_above) || is_ancestor(holder, &ancestors())
    }
}

/// A name, and the names that it runs under.
fn each_above(name: &str) -> Vec<String> {
    let ends = name.match_indices(UNDER).map(|(end, _)| end);
    let ends = ends.chain([name.len()]).filter(|end| *end > 0);
    ends.map(|end| name[..end].to_string()).collect()
}

/// Whether a holder with a default name is one of these processes, or an `exec` among them that runs under one.
fn is_ancestor(holder: &str, ancestors: &[Pid]) -> bool {
    let mut processes = holder.split(UNDER);
    let first = processes.next().unwrap_or_default();
    // The default name of another user's process differs only in the user.
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
        // IDs may be reused meanwhile: stop at a circle, which would never end.
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
    fn only_the_names_above_are_above() {
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
    fn an_ancestor_is_recognised_by_its_default_name_for_any_user() {
        let ancestors = ancestors();
        let name = usual_name(getppid());
        let (_, process) = name.split_once('@').expect("a user");
        assert!(is_ancestor(&name, &ancestors));
        assert!(is_ancestor(&format!("somebody@{process}"), &ancestors));
        let own = usual_name(getpid());
        let elsewhere = format!("somebody@else-{process}");
        // A sibling under the same ancestor does not wait for this program.
        let sibling = format!("{name}>{}", getpid());
        for other in [&own, &elsewhere, &sibling, "ME", ""] {
            assert!(!is_ancestor(other, &ancestors), "{other}");
        }
    }
}
