//! What `start`, `status` and `run` print about a server with its store in etcd.

use std::fs::Permissions;
use std::io::BufRead;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use crate::common::program::{Outcome, program};
use crate::common::{free_port, run, until};
use crate::etcd::Etcds;

/// A server in the background, with its pid file.
struct Started {
    folder: TempDir,
    store: String,
    outcome: Option<Outcome>,
}

impl Started {
    /// Starts it with the options of the store and with `more`.
    fn with(store: &str, more: &[&str]) -> Self {
        let mut started = Started {
            folder: tempfile::tempdir().expect("a folder"),
            store: store.into(),
            outcome: None,
        };
        let store = started.store.clone();
        let options = [
            "start",
            "--port",
            "0",
            "--store",
            &store,
            "--store-ttl",
            "2",
        ];
        let outcome = started.typed(options.iter().chain(more));
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        started.outcome = Some(outcome);
        started
    }

    fn typed<'a>(&self, line: impl IntoIterator<Item = &'a &'a str>) -> Outcome {
        let mut command = program(line);
        let pid_file = self.folder.path().join("pid");
        Outcome::of(command.arg("--pid-file").arg(pid_file))
    }

    fn said(&self) -> &Outcome {
        self.outcome.as_ref().expect("it was started")
    }

    fn status(&self) -> Outcome {
        self.typed(&["status", "--port", "0"])
    }

    /// The beginning of the line that `status` prints.
    fn running(&self) -> String {
        let started = self.said().stdout.trim_end();
        started.replace("started lock-server", "running")
    }

    fn address(&self) -> String {
        let running = self.running();
        running.rsplit(' ').next().unwrap_or_default().into()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.typed(&["stop", "--port", "0"]);
    }
}

/// Seen to fail: neither printed it, and the server locked nothing.
#[test]
fn start_and_status_print_that_etcd_is_not_reached_with_advice() {
    let store = format!("etcd:http://127.0.0.1:{}", free_port());
    let server = Started::with(&store, &[]);
    let why = "it stands by and locks nothing, since it can't use etcd: ";
    let said = &server.said().stderr;
    assert_eq!(said.matches('\n').count(), 1, "{said}");
    server
        .said()
        .expect_stderr(&[why, "is etcd running there", "--log-file"]);
    let status = server.status();
    assert_eq!(status.code, Some(0), "{status:?}");
    let begins = format!("{}; {why}", server.running());
    assert!(status.stdout.starts_with(&begins), "{status:?}");
}

#[test]
fn status_prints_the_role_of_a_server_and_the_leader() {
    let Some(etcds) = Etcds::one() else { return };
    let urls: Vec<String> = etcds
        .addresses()
        .iter()
        .map(|address| format!("http://{address}"))
        .collect();
    let store = format!("etcd:{}", urls.join(","));
    let leader = Started::with(&store, &[]);
    let standby = Started::with(&store, &[]);
    for server in [&leader, &standby] {
        assert_eq!(server.said().stderr, "");
    }
    leader
        .status()
        .expect(0, &format!("{}; it leads\n", leader.running()));
    let line = format!(
        "{}; it stands by, and {} leads\n",
        standby.running(),
        leader.address()
    );
    standby.status().expect(0, &line);
    drop(leader);
    let line = format!("{}; it leads\n", standby.running());
    until("the other one leads", || standby.status().stdout == line);
}

/// A standby redirects, and curl sends a token to another server only with an option.
#[test]
fn run_introduces_a_server_of_a_cluster_with_a_curl_that_follows_to_the_leader() {
    let store = format!("etcd:http://127.0.0.1:{}", free_port());
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, "lock 0123456789abcdef0123456789abcdef\n").expect("a file");
    let private = Permissions::from_mode(0o600);
    std::fs::set_permissions(&tokens, private).expect("it is ours");
    let tokens = tokens.to_str().expect("UTF-8");
    for (more, curl) in [
        (&[][..], "curl -L http://"),
        (
            &["--token-file", tokens],
            "curl --location-trusted -u :TOKEN http://",
        ),
    ] {
        let options = ["run", "--port", "0", "--store", &store];
        let (mut child, _, mut stderr) = run(&mut program(options.iter().chain(more)));
        for verb in ["/LOCK/", "/UNLOCK/"] {
            let mut line = String::new();
            // A log line may come first.
            while !line.contains(verb) {
                line.clear();
                assert_ne!(stderr.read_line(&mut line).expect("UTF-8"), 0);
            }
            assert!(line.contains(curl), "{line}");
        }
        child.kill().expect("it runs");
        child.wait().expect("a child");
    }
}
