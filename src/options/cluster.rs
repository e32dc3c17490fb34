//! Where locks are kept, and how several servers share them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::{is_line, not_a_line};
use crate::host::parse_address;

/// Where a server keeps locks that outlive it. Written as `file:PATH` or `etcd:URL,URL…`.
///
/// ```
/// use lock_server::StoreAddress;
///
/// let store: StoreAddress = "file:/var/lib/lock-server/locks.db".parse().unwrap();
/// assert_eq!(store, StoreAddress::File("/var/lib/lock-server/locks.db".into()));
/// let store: StoreAddress = "etcd:http://10.0.0.1:2379,http://10.0.0.2:2379".parse().unwrap();
/// assert_eq!(store.to_string(), "etcd:http://10.0.0.1:2379,http://10.0.0.2:2379");
/// assert!("/var/lib/lock-server/locks.db".parse::<StoreAddress>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreAddress {
    /// A file on a local disk, made if it is missing; its log file `PATH-wal` belongs to it. One server uses it at a
    /// time. Its folder has to exist and be writable; the path is UTF-8 without control characters. Not on a network
    /// file system: locks and syncs may have no effect there.
    File(PathBuf),
    /// The members of an etcd cluster, version 3.4 or later: the URLs of 1 to 32, each `http://` or `https://`, a host
    /// and a port. Several lock servers may use the same cluster: one of them leads, and the others stand by. See
    /// [`ClusterOptions`] and the guide's page `cluster`.
    Etcd(Vec<String>),
}

/// The most members of an etcd cluster in a store address.
const MOST_MEMBERS: usize = 32;

impl FromStr for StoreAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(StoreAddress::File(path.into())),
            Some(("etcd", members)) => {
                let members: Result<Vec<_>, _> = members.split(',').map(member).collect();
                Ok(StoreAddress::Etcd(members?))
            }
            None if !text.is_empty() => {
                Err(format!("{text:?} is no store; did you mean file:{text}?"))
            }
            _ => Err(format!(
                "{text:?} is no store; give file:PATH, or etcd:http://HOST:2379"
            )),
        }
    }
}

/// The URL of a member of etcd, without a slash at the end.
fn member(url: &str) -> Result<String, String> {
    let url = url.trim().trim_end_matches('/');
    let advice = "give http:// or https://, a host and a port, as in etcd:http://10.0.0.1:2379";
    let (scheme, address) = url.split_once("://").unwrap_or_default();
    if !matches!(scheme, "http" | "https") {
        return Err(format!("{url:?} is no URL of etcd; {advice}"));
    }
    match parse_address(address) {
        Ok((_, Some(_))) => Ok(url.into()),
        _ => Err(format!("{url:?} has no host and port of etcd; {advice}")),
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreAddress::File(path) => write!(f, "file:{}", path.display()),
            StoreAddress::Etcd(members) => write!(f, "etcd:{}", members.join(",")),
        }
    }
}

/// How several servers share an [etcd](StoreAddress::Etcd). All servers of one cluster have the same
/// [`prefix`](Self::prefix).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterOptions {
    /// The beginning of the names of all keys in etcd: servers with the same prefix share their locks. It begins and
    /// ends with a slash, 3 to 256 bytes, without control characters. Default `/lock-server/default/`.
    pub prefix: String,

    /// The user of etcd. Default `None`: etcd asks for none.
    pub user: Option<String>,

    /// A file that holds only that user's password, and perhaps a line feed. Default `None`.
    pub password_file: Option<PathBuf>,

    /// How long etcd waits for a silent leader before another server may lead. Whole seconds, 2 to 600; default 5 s.
    /// etcd may wait longer: its minimum is 1.5 times its election timeout, which makes 2 s with its defaults.
    pub ttl: Duration,

    /// Where clients and the other servers reach this one: `HOST:PORT`. Default `None`: the address and port that it
    /// listens on; if it listens on every address of the machine, the machine's name and the port.
    pub advertise: Option<String>,

    /// A PEM file with the root certificates that etcd's certificate has to lead to. Default `None`: those that the
    /// system trusts. This option and the next two need the feature `tls` and a member with `https://`. The files are
    /// read once, when the server starts: a new certificate needs a restart.
    pub ca_file: Option<PathBuf>,

    /// A PEM file with the certificate to show to etcd, followed by those of intermediate CAs. Default `None`: none is
    /// shown.
    pub cert_file: Option<PathBuf>,

    /// A PEM file with the certificate's key, without a password.
    pub key_file: Option<PathBuf>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions {
            prefix: "/lock-server/default/".into(),
            user: None,
            password_file: None,
            ttl: Duration::from_secs(5),
            advertise: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
        }
    }
}

/// Checks a store and the options that go with it. An error is the option's name and the reason.
pub(super) fn validate(
    store: Option<&StoreAddress>,
    cluster: &ClusterOptions,
) -> Result<(), (&'static str, String)> {
    match store {
        Some(StoreAddress::File(path)) if !is_line(path) => Err(("store", not_a_line(path))),
        Some(StoreAddress::Etcd(members)) => {
            if !(1..=MOST_MEMBERS).contains(&members.len()) {
                return Err(("store", "give 1 to 32 URLs of etcd".into()));
            }
            if let Some(reason) = members.iter().find_map(|url| member(url).err()) {
                return Err(("store", reason));
            }
            let is_tls = members.iter().any(|url| url.starts_with("https:"));
            if is_tls && !cfg!(feature = "tls") {
                let reason = "https:// needs the feature tls, which this server was built without";
                return Err(("store", reason.into()));
            }
            let (option, is_given) = match cluster.ca_file {
                Some(_) => ("store_ca", true),
                None => ("store_cert", cluster.cert_file.is_some()),
            };
            if is_given && !is_tls {
                return Err((option, "it is for URLs of etcd with https://".into()));
            }
            cluster.validate()
        }
        _ => match cluster.given() {
            Some(option) => {
                let reason = "it is for a store in etcd, as in store etcd:http://HOST:2379";
                Err((option, reason.into()))
            }
            None => Ok(()),
        },
    }
}

impl ClusterOptions {
    /// The name of the first option that differs from its default.
    fn given(&self) -> Option<&'static str> {
        let usual = ClusterOptions::default();
        let options = [
            ("store_prefix", self.prefix != usual.prefix),
            ("store_user", self.user.is_some()),
            ("store_password_file", self.password_file.is_some()),
            ("store_ttl", self.ttl != usual.ttl),
            ("advertise", self.advertise.is_some()),
            ("store_ca", self.ca_file.is_some()),
            ("store_cert", self.cert_file.is_some()),
            ("store_key", self.key_file.is_some()),
        ];
        let given = options.into_iter().find(|(_, is_given)| *is_given);
        given.map(|(option, _)| option)
    }

    fn validate(&self) -> Result<(), (&'static str, String)> {
        let prefix = &self.prefix;
        let is_path = prefix.starts_with('/') && prefix.ends_with('/');
        if !is_path || !(3..=256).contains(&prefix.len()) || prefix.contains(char::is_control) {
            let reason = format!("{prefix:?} is not 1 to 254 bytes between two slashes");
            return Err(("store_prefix", reason));
        }
        let ttl = self.ttl;
        if ttl.subsec_nanos() != 0 || !(2..=600).contains(&ttl.as_secs()) {
            let reason = format!("{} s is not 2 to 600 whole seconds", ttl.as_secs_f64());
            return Err(("store_ttl", reason));
        }
        if let Some(address) = &self.advertise
            && !matches!(parse_address(address), Ok((_, Some(1..))))
        {
            let reason = format!("{address:?} is no HOST:PORT; give one that clients reach");
            return Err(("advertise", reason));
        }
        match (&self.user, &self.password_file) {
            (Some(user), Some(_)) if user.contains(char::is_control) => {
                return Err(("store_user", format!("{user:?} is no name")));
            }
            (Some(_), None) => {
                return Err(("store_user", "give the file with its password, too".into()));
            }
            (None, Some(_)) => {
                return Err(("store_password_file", "give the user, too".into()));
            }
            _ => {}
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            let reason = "a certificate and its key go together; give both, or none";
            return Err(("store_cert", reason.into()));
        }
        let files = [
            &self.password_file,
            &self.ca_file,
            &self.cert_file,
            &self.key_file,
        ];
        let mut paths = files.into_iter().flatten();
        match paths.find(|path| !is_line(path)) {
            Some(path) => Err(("store", not_a_line(path))),
            None => Ok(()),
        }
    }

    /// All options as one line of text, for a started server.
    pub(crate) fn to_line(&self) -> String {
        let path =
            |path: &Option<PathBuf>| path.as_deref().map(|path| path.to_string_lossy().into());
        let fields: [Option<String>; 8] = [
            Some(self.prefix.clone()),
            self.user.clone(),
            path(&self.password_file),
            Some(self.ttl.as_secs().to_string()),
            self.advertise.clone(),
            path(&self.ca_file),
            path(&self.cert_file),
            path(&self.key_file),
        ];
        serde_json::to_string(&fields).expect("texts have a form in JSON")
    }

    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let [prefix, user, password_file, ttl, advertise, ca, cert, key]: [Option<String>; 8] =
            serde_json::from_str(line).ok()?;
        let path = |text: Option<String>| text.map(|text| Path::new(&text).into());
        Some(ClusterOptions {
            prefix: prefix?,
            user,
            password_file: path(password_file),
            ttl: Duration::from_secs(ttl?.parse().ok()?),
            advertise,
            ca_file: path(ca),
            cert_file: path(cert),
            key_file: path(key),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(store: &str, cluster: ClusterOptions) -> &'static str {
        let store = store.parse().unwrap();
        let refused = validate(Some(&store), &cluster);
        refused.map_or_else(|(option, _)| option, |()| "nothing")
    }

    #[test]
    fn a_store_is_a_file_or_the_members_of_etcd() {
        for store in [
            "file:locks",
            "etcd:http://a:1",
            "etcd:http://a:1,https://[::1]:2379",
        ] {
            assert_eq!(store.parse::<StoreAddress>().unwrap().to_string(), store);
        }
        let tidy: StoreAddress = "etcd:http://a:1/, http://b:2".parse().unwrap();
        assert_eq!(tidy.to_string(), "etcd:http://a:1,http://b:2");
        for store in [
            "",
            "file:",
            "etcd:",
            "etcd:a:2379",
            "etcd:http://a",
            "etcd:http://a:1,",
            "etcd:ftp://a:1",
            "redis:x",
        ] {
            assert!(store.parse::<StoreAddress>().is_err(), "{store}");
        }
    }

    #[test]
    fn a_bad_option_of_a_cluster_is_refused_by_its_name() {
        let usual = ClusterOptions::default;
        let etcd = "etcd:http://a:1";
        assert_eq!(refused(etcd, usual()), "nothing");
        let ttl = |ttl| ClusterOptions { ttl, ..usual() };
        for seconds in [0.0, 1.0, 2.5, 601.0] {
            let ttl = ttl(Duration::from_secs_f64(seconds));
            assert_eq!(refused(etcd, ttl), "store_ttl");
        }
        for prefix in ["", "/", "//", "a/", "/a", "/a\n/"] {
            let prefix = prefix.into();
            assert_eq!(
                refused(etcd, ClusterOptions { prefix, ..usual() }),
                "store_prefix"
            );
        }
        for address in ["", "host", "host:0", "http://host:1", "a b:1"] {
            let advertise = Some(address.into());
            let cluster = ClusterOptions {
                advertise,
                ..usual()
            };
            assert_eq!(refused(etcd, cluster), "advertise", "{address}");
        }
        let user = Some("ann".into());
        assert_eq!(
            refused(etcd, ClusterOptions { user, ..usual() }),
            "store_user"
        );
        let key_file = Some("key".into());
        assert_eq!(
            refused(
                etcd,
                ClusterOptions {
                    key_file,
                    ..usual()
                }
            ),
            "store_cert"
        );
        let ca_file = Some("ca".into());
        let with_ca = ClusterOptions { ca_file, ..usual() };
        assert_eq!(refused(etcd, with_ca), "store_ca");
        assert_eq!(refused("file:x", ttl(Duration::from_secs(2))), "store_ttl");
    }
}
