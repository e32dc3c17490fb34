//! TLS between a lock server and a real etcd that requires a certificate.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{Authority, LOCALHOST};
use crate::common::program::{Outcome, clean, installed, program};
use crate::common::{PATIENCE, Reply, Wire, ends_with_this_thread, free_port, ms, until};

/// A process. Dropping it kills the process.
struct Running(Child);

impl Running {
    /// Starts it with its output in this file.
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log);
        command.stdout(Stdio::null()).stderr(log.unwrap());
        Running(ends_with_this_thread(command).spawn().unwrap())
    }

    /// Sends SIGTERM, and returns the exit code.
    fn end(&mut self) -> Option<i32> {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An etcd with a certificate of its CA, which accepts clients with a certificate of that CA.
struct TlsEtcd {
    port: u16,
    peer: u16,
    program: PathBuf,
    process: Option<Running>,
    folder: TempDir,
}

impl TlsEtcd {
    /// `None`, with a printed reason, if etcd is not installed.
    fn start(authority: &Authority, certificate: &str) -> Option<Self> {
        let mut etcd = TlsEtcd {
            port: free_port(),
            peer: free_port(),
            program: installed("etcd")?,
            process: None,
            folder: tempfile::tempdir().unwrap(),
        };
        etcd.show(authority, certificate);
        Some(etcd)
    }

    /// Starts it, or starts it again with another certificate.
    fn show(&mut self, authority: &Authority, certificate: &str) {
        self.process = None;
        let client = format!("https://127.0.0.1:{}", self.port);
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let file = |name: &str| authority.file(name).display().to_string();
        let mut command = Command::new(&self.program);
        clean(&mut command).args([
            format!("--data-dir={}", self.folder.path().join("data").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            format!("--cert-file={}", file(&format!("{certificate}.pem"))),
            format!("--key-file={}", file(&format!("{certificate}.key"))),
            format!("--trusted-ca-file={}", file("ca.pem")),
            "--client-cert-auth".into(),
            "--heartbeat-interval=40".into(),
            "--election-timeout=400".into(),
            "--logger=zap".into(),
        ]);
        let log = self.folder.path().join("log");
        self.process = Some(Running::start(&mut command, &log));
    }

    fn url(&self) -> String {
        format!("etcd:https://127.0.0.1:{}", self.port)
    }

    /// Adds the user root and switches authentication on, which needs that user. `None` if curl is not installed.
    fn have_users(&self, authority: &Authority, certificate: &str, password: &str) -> Option<()> {
        let curl = installed("curl")?;
        let ask = |path: &str, body: &str| {
            let file = |end: &str| authority.file(&format!("{certificate}.{end}"));
            let mut command = Command::new(&curl);
            clean(&mut command).args(["-sf", "-d", body, "--cacert"]);
            command.arg(authority.file("ca.pem")).arg("--cert");
            command.arg(file("pem")).arg("--key").arg(file("key"));
            command.arg(format!("https://127.0.0.1:{}{path}", self.port));
            Outcome::of(&mut command).code == Some(0)
        };
        let user = format!(r#"{{"name":"root","password":"{password}"}}"#);
        until("it has a user", || ask("/v3/auth/user/add", &user));
        // Some versions have the role already.
        ask("/v3/auth/role/add", r#"{"name":"root"}"#);
        let role = r#"{"user":"root","role":"root"}"#;
        assert!(ask("/v3/auth/user/grant", role));
        assert!(ask("/v3/auth/enable", "{}"));
        Some(())
    }
}

/// A lock server with a store in etcd.
struct Served {
    process: Running,
    address: SocketAddr,
    log: PathBuf,
    _folder: TempDir,
}

impl Served {
    /// Starts it with these TLS options.
    fn start(etcd: &TlsEtcd, options: &[(&str, &Path)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (port, log) = (free_port(), folder.path().join("log"));
        let mut command = program(["run", "--host", "127.0.0.1", "--store-ttl", "2", "--store"]);
        command.arg(etcd.url()).args(["--port", &port.to_string()]);
        for (option, file) in options {
            command.arg(option).arg(file);
        }
        let served = Served {
            process: Running::start(&mut command, &log),
            address: ([127, 0, 0, 1], port).into(),
            log,
            _folder: folder,
        };
        until("the server answers", || served.ask("/livez").is_some());
        served
    }

    /// Starts it with this CA's root, and a certificate with this name of another CA.
    fn with(etcd: &TlsEtcd, ca: &Authority, signed_by: &Authority, name: &str) -> Self {
        Served::start(
            etcd,
            &[
                ("--store-ca", &ca.file("ca.pem")),
                ("--store-cert", &signed_by.file(&format!("{name}.pem"))),
                ("--store-key", &signed_by.file(&format!("{name}.key"))),
            ],
        )
    }

    fn ask(&self, path: &str) -> Option<Reply> {
        let stream = std::net::TcpStream::connect(self.address).ok()?;
        Wire::over(stream, PATIENCE).try_once(path).ok()
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn until_leads(&self) {
        until("the server leads", || {
            self.ask("/readyz").is_some_and(|ready| ready.status == 200)
        });
    }

    /// Waits until a line of the log has all these words, and checks that the server stands by.
    #[track_caller]
    fn until_says(&self, words: &[&str]) {
        let begun = Instant::now();
        let has_all = |line: &str| words.iter().all(|word| line.contains(word));
        while !self.log().lines().any(has_all) {
            assert!(begun.elapsed() < PATIENCE, "no {words:?}: {}", self.log());
            std::thread::sleep(ms(10));
        }
        let ready = self.ask("/readyz").expect("it answers");
        assert_eq!((ready.status, ready.result()), (503, "standby"));
    }
}

/// A CA with certificates for etcd and for a lock server. `None` if openssl or etcd is not installed.
fn authority() -> Option<Authority> {
    installed("etcd")?;
    let authority = Authority::new()?;
    authority.sign("etcd", LOCALHOST);
    authority.sign("locks", "DNS:locks.example.com");
    Some(authority)
}

#[test]
fn a_server_with_a_certificate_leads_and_stores_over_tls() {
    let Some(authority) = authority() else { return };
    let Some(etcd) = TlsEtcd::start(&authority, "etcd") else {
        return;
    };
    let mut first = Served::with(&etcd, &authority, &authority, "locks");
    first.until_leads();
    let locked = first.ask("/LOCK/KEYA/A?lock_timeout=600").unwrap();
    assert!(locked.header("Lock-Fence").is_some(), "{locked:?}");
    // Longer than the lease lasts without keepalives, on connections that stay open.
    let begun = Instant::now();
    while begun.elapsed() < ms(3000) {
        let verified = first.ask("/VERIFY/KEYA/A").unwrap();
        assert_eq!(verified.body, "1\n", "{verified:?}");
    }
    assert!(!first.log().contains("stops leading"), "{}", first.log());
    assert_eq!(first.process.end(), Some(0), "{}", first.log());
    let second = Served::with(&etcd, &authority, &authority, "locks");
    second.until_leads();
    let verified = second.ask("/VERIFY/KEYA/A").unwrap();
    assert_eq!(verified.body, "1\n", "{verified:?}");
}

#[test]
fn without_a_certificate_that_etcd_accepts_a_server_stands_by_and_logs_it() {
    let (Some(authority), Some(other)) = (authority(), Authority::new()) else {
        return;
    };
    other.sign("locks", "DNS:locks.example.com");
    let Some(etcd) = TlsEtcd::start(&authority, "etcd") else {
        return;
    };
    let said = [
        "cannot lead",
        "does not take the certificate of this server",
        "store_cert and store_key",
        "--trusted-ca-file",
    ];
    let ca = authority.file("ca.pem");
    Served::start(&etcd, &[("--store-ca", &ca)]).until_says(&said);
    Served::with(&etcd, &authority, &other, "locks").until_says(&said);
}

#[test]
fn an_untrusted_etcd_is_not_used_and_the_log_has_the_reason() {
    let (Some(authority), Some(other)) = (authority(), Authority::new()) else {
        return;
    };
    let Some(etcd) = TlsEtcd::start(&authority, "etcd") else {
        return;
    };
    let issuer = "of an issuer that is not trusted";
    let foreign = Served::with(&etcd, &other, &authority, "locks");
    foreign.until_says(&["cannot lead", issuer, "store_ca"]);
    // With the system's root certificates.
    let mine = Served::start(&etcd, &[]);
    mine.until_says(&["cannot lead", issuer, "store_ca"]);
}

#[test]
fn a_server_that_stands_by_leads_once_etcds_certificate_has_its_name() {
    let Some(authority) = authority() else { return };
    let Some(mut etcd) = TlsEtcd::start(&authority, "locks") else {
        return;
    };
    let served = Served::with(&etcd, &authority, &authority, "locks");
    served.until_says(&["cannot lead", "of another name", "locks.example.com"]);
    etcd.show(&authority, "etcd");
    served.until_leads();
    assert!(served.log().contains("answers"), "{}", served.log());
}

/// etcd's gateway could take such a name for a user, so it refuses the certificate.
#[test]
fn where_etcd_has_users_a_server_leads_with_a_certificate_without_a_common_name_alone() {
    let Some(authority) = authority() else { return };
    authority.sign_nameless("nameless", "DNS:locks.example.com");
    // etcd's gateway shows this one to etcd.
    authority.sign_nameless("etcd", LOCALHOST);
    let Some(etcd) = TlsEtcd::start(&authority, "etcd") else {
        return;
    };
    let password = authority.file("password");
    fs::write(&password, "secret\n").unwrap();
    if etcd.have_users(&authority, "nameless", "secret").is_none() {
        return;
    }
    let with = |certificate: &str| {
        let file = |end: &str| authority.file(&format!("{certificate}.{end}"));
        Served::start(
            &etcd,
            &[
                ("--store-ca", &authority.file("ca.pem")),
                ("--store-cert", &file("pem")),
                ("--store-key", &file("key")),
                ("--store-user", Path::new("root")),
                ("--store-password-file", &password),
            ],
        )
    };
    with("locks").until_says(&["cannot lead", "no common name (CN)", "store_cert"]);
    let served = with("nameless");
    served.until_leads();
    let locked = served.ask("/LOCK/KEYA/A?lock_timeout=600").unwrap();
    assert!(locked.header("Lock-Fence").is_some(), "{locked:?}");
}

/// The start fails without a request, with a sentence that names the file and its option.
#[test]
fn bad_tls_files_are_refused_in_a_sentence() {
    let Some(authority) = Authority::new() else {
        return;
    };
    authority.sign("locks", LOCALHOST);
    authority.sign("other", LOCALHOST);
    let (ca, cert, key) = (
        authority.file("ca.pem"),
        authority.file("locks.pem"),
        authority.file("locks.key"),
    );
    let (missing, empty, broken) = (
        authority.file("missing"),
        authority.file("empty"),
        authority.file("broken"),
    );
    fs::write(&empty, "no PEM\n").unwrap();
    let begin = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(&broken, begin).unwrap();
    let other = authority.file("other.key");
    for (ca, cert, key, file, words) in [
        (&missing, &cert, &key, &missing, "cannot read,store_ca"),
        (&empty, &cert, &key, &empty, "store_ca,no certificate"),
        (&broken, &cert, &key, &broken, "store_ca,bad certificate"),
        (&ca, &missing, &key, &missing, "cannot read,store_cert"),
        (&ca, &empty, &key, &empty, "store_cert,no certificate"),
        (&ca, &broken, &key, &broken, "store_cert,cannot be used"),
        (&ca, &cert, &missing, &missing, "cannot read,store_key"),
        (&ca, &cert, &cert, &cert, "store_key,no key"),
        (&ca, &cert, &other, &other, "store_key,does not belong to"),
    ] {
        let mut command = program(["run", "--port", "0", "--store", "etcd:https://127.0.0.1:1"]);
        command.arg("--store-ca").arg(ca).arg("--store-cert");
        command.arg(cert).arg("--store-key").arg(key);
        let outcome = Outcome::of(&mut command);
        assert!(outcome.code.is_some_and(|code| code > 0), "{outcome:?}");
        outcome.expect_stderr(&[file.to_str().unwrap(), "cannot start a server"]);
        outcome.expect_stderr(&words.split(',').collect::<Vec<_>>());
    }
    for (option, file, said) in [
        ("--store-key", &key, "--store-cert"),
        ("--store-cert", &cert, "--store-cert"),
    ] {
        let mut command = program(["run", "--port", "0", "--store", "etcd:https://127.0.0.1:1"]);
        let outcome = Outcome::of(command.arg(option).arg(file));
        outcome.expect_stderr(&[said, "go together"]);
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
    }
    let mut command = program(["run", "--port", "0", "--store", "etcd:http://127.0.0.1:1"]);
    let outcome = Outcome::of(command.arg("--store-ca").arg(&ca));
    outcome.expect_stderr(&["--store-ca", "https://"]);
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
}
