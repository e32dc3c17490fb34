//! The client over TLS to a real nginx, and a server with its store in an etcd with TLS. openssl makes the
//! certificates.
//!
//! A binary of its own, because the others are compiled without the feature `tls`:
//! `cargo test --features tls --test tls`.

mod common;
#[path = "tls/etcd.rs"]
mod etcd;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use common::program::{Outcome, clean, installed, program};
use common::real_proxy::{Program, RealProxy};
use common::{free_port, options, start};
use lock_server::{Client, ClientOptions, Error, ServerAddress, TlsFailure};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

const LOCALHOST: &str = "DNS:localhost,IP:127.0.0.1";

/// A CA in a folder of its own.
struct Authority {
    folder: TempDir,
    openssl: PathBuf,
}

impl Authority {
    /// `None`, with a printed reason, if openssl is not installed.
    fn new() -> Option<Self> {
        let authority = Authority {
            folder: tempfile::tempdir().unwrap(),
            openssl: installed("openssl")?,
        };
        authority.make("ca", &["basicConstraints=critical,CA:TRUE"], &[]);
        Some(authority)
    }

    /// A certificate for these names, signed by this CA.
    fn sign(&self, name: &str, names: &str) {
        let names = format!("subjectAltName={names}");
        let by = ["-CA", "ca.pem", "-CAkey", "ca.key"];
        self.make(name, &["basicConstraints=critical,CA:FALSE", &names], &by);
    }

    /// The same without a common name.
    fn sign_nameless(&self, name: &str, names: &str) {
        let names = format!("subjectAltName={names}");
        let by = ["-CA", "ca.pem", "-CAkey", "ca.key"];
        let subject = format!("/O={name} of {}", self.name());
        let extensions = ["basicConstraints=critical,CA:FALSE", &names];
        self.make_for(&subject, name, &extensions, &by);
    }

    fn make(&self, name: &str, extensions: &[&str], by: &[&str]) {
        let subject = format!("/CN={name} of {}", self.name());
        self.make_for(&subject, name, extensions, by);
    }

    fn make_for(&self, subject: &str, name: &str, extensions: &[&str], by: &[&str]) {
        let mut openssl = std::process::Command::new(&self.openssl);
        clean(&mut openssl)
            .current_dir(self.folder.path())
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
            .args(["ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(["-subj", subject])
            .args(["-out", &format!("{name}.pem")])
            .args(["-keyout", &format!("{name}.key")])
            .args(by);
        // An empty configuration, since openssl's own adds the extensions of a CA.
        fs::write(
            self.folder.path().join("config"),
            "[req]\ndistinguished_name=dn\n[dn]\n",
        )
        .unwrap();
        openssl.args(["-config", "config"]);
        for extension in extensions {
            openssl.args(["-addext", extension]);
        }
        Outcome::of(&mut openssl).expect(0, "");
    }

    /// The CA's name, which is unique.
    fn name(&self) -> std::borrow::Cow<'_, str> {
        let folder = self.folder.path().file_name();
        folder.expect("below another").to_string_lossy()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The nginx of the operations page, for the server at this port, with TLS on a port of its own.
    fn nginx(&self, server: u16, certificate: &str) -> (RealProxy, u16) {
        let port = free_port();
        let name = "server_name locks.example.com;";
        let tls = format!(
            "{name} listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {};",
            self.file(&format!("{certificate}.pem")).display(),
            self.file(&format!("{certificate}.key")).display(),
        );
        let proxy = RealProxy::of_the_page_but(Program::Nginx, server, name, &tls);
        (proxy, port)
    }
}

/// The CA and a certificate for this machine. `None` if nginx or openssl is not installed.
fn authority() -> Option<Authority> {
    let authority = Authority::new().filter(|_| Program::Nginx.is_installed())?;
    authority.sign("localhost", LOCALHOST);
    Some(authority)
}

/// Runs the command with this URL, and with these root certificates.
fn asks(arguments: &[&str], url: &str, roots: &Path) -> Outcome {
    let mut command = program(arguments);
    command.env("LOCK_SERVER", url).env("SSL_CERT_FILE", roots);
    Outcome::of(command.env_remove("SSL_CERT_DIR"))
}

#[test]
fn the_command_locks_renews_verifies_and_unlocks_over_tls() {
    let Some(authority) = authority() else { return };
    let server = start(options());
    let (_nginx, port) = authority.nginx(server.port(), "localhost");
    for host in ["localhost", "127.0.0.1"] {
        let url = format!("https://{host}:{port}");
        let asked = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            asks(&words, &url, &authority.file("ca.pem"))
        };
        asked("ping").expect(0, "1\n");
        let locked = asked("lock --name A --lock-timeout 30 KEYA");
        assert_eq!(locked.code, Some(0), "{locked:?}");
        assert_eq!(asked("renew --name A --lock-timeout 60 KEYA").code, Some(0));
        asked("verify --name A KEYA").expect(0, "1\n");
        asked("verify --name B KEYA").expect(1, "0\n");
        assert!(server.client("A").locked_by_me("KEYA").unwrap());
        asked("unlock --name A KEYA").expect(0, "1\n");
    }
}

#[test]
fn exec_passes_the_url_on_and_holds_its_key_over_tls() {
    let Some(authority) = authority() else { return };
    let server = start(options());
    let (_nginx, port) = authority.nginx(server.port(), "localhost");
    let url = format!("https://localhost:{port}");
    let inner = format!(
        "echo $LOCK_SERVER; exec {} verify KEYA",
        common::program::PROGRAM
    );
    let outer = ["exec", "KEYA", "--", "sh", "-c", &inner];
    asks(&outer, &url, &authority.file("ca.pem")).expect(0, &format!("{url}\n1\n"));
    assert!(!server.client("A").is_locked("KEYA").unwrap());
}

/// Each command ends at once with 69 and advice. So does `exec`, although it waits for an absent server.
#[test]
fn an_untrusted_certificate_is_exit_69_with_the_reason() {
    let Some(authority) = authority() else { return };
    let Some(other) = Authority::new() else {
        return;
    };
    authority.sign("other", "DNS:locks.example.com");
    let server = start(options());
    let (_nginx, port) = authority.nginx(server.port(), "localhost");
    let (_other_nginx, other_port) = authority.nginx(server.port(), "other");
    let (own, foreign) = (authority.file("ca.pem"), other.file("ca.pem"));
    let plain = server.port();
    for (port, roots, said) in [
        (
            port,
            &foreign,
            ["of an issuer that is not trusted", "set SSL_CERT_FILE"],
        ),
        (other_port, &own, ["of another name", "locks.example.com"]),
        (plain, &own, ["localhost", "plain HTTP"]),
    ] {
        let url = format!("https://localhost:{port}");
        for line in [
            &["lock", "KEYA"][..],
            &["exec", "-w", "0", "KEYA", "--", "true"],
        ] {
            let outcome = asks(line, &url, roots);
            outcome.expect(69, "");
            outcome.expect_stderr(&said);
            assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
        }
    }
    assert!(!server.client("A").is_locked("KEYA").unwrap());
    // Conversely, plain HTTP to the TLS port.
    let outcome = asks(&["ping"], &format!("localhost:{port}"), &own);
    outcome.expect(69, "");
    outcome.expect_stderr(&["status 400"]);
}

#[test]
fn a_clients_error_has_the_tls_failure_as_data() {
    let Some(authority) = authority() else { return };
    let server = start(options());
    let (_nginx, port) = authority.nginx(server.port(), "localhost");
    let address = ServerAddress {
        port,
        host: "localhost".into(),
        is_https: true,
        ..ServerAddress::default()
    };
    let client = Client::at("A", &address, ClientOptions::default());
    let error = client.lock("KEYA").expect_err("nobody knows that CA");
    assert!(!error.is_retryable(), "{error:?}");
    let Error::TlsFailed { address, cause, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(address, format!("https://localhost:{port}"));
    // A machine may have no root certificates.
    assert!(
        matches!(cause, TlsFailure::UnknownIssuer | TlsFailure::NoRoots),
        "{cause:?}"
    );
}

/// A TLS proxy that updates its key after each answer, as TLS 1.3 allows: that sends a record that is no answer.
struct ChangesItsKey {
    port: u16,
    connections: Arc<AtomicUsize>,
    questions: Arc<AtomicUsize>,
}

impl ChangesItsKey {
    /// Starts it. Its threads end with their connections, and the accepting one with this process.
    fn before(server: u16, certificate: &Path, key: &Path) -> Self {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(certificate).unwrap()],
                PrivateKeyDer::from_pem_file(key).unwrap(),
            );
        let config = Arc::new(config.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = ChangesItsKey {
            port: listener.local_addr().unwrap().port(),
            connections: Arc::default(),
            questions: Arc::default(),
        };
        let (connections, questions) = (proxy.connections.clone(), proxy.questions.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                connections.fetch_add(1, SeqCst);
                let tls = ServerConnection::new(config.clone()).unwrap();
                let stream = StreamOwned::new(tls, stream.unwrap());
                let questions = questions.clone();
                thread::spawn(move || pass_on(stream, server, &questions));
            }
        });
        proxy
    }
}

/// Copies until either side closes.
fn pass_on(
    client: StreamOwned<ServerConnection, TcpStream>,
    server: u16,
    questions: &AtomicUsize,
) -> Option<()> {
    let mut client = BufReader::new(client);
    let mut server = BufReader::new(TcpStream::connect(("127.0.0.1", server)).ok()?);
    loop {
        let question = head(&mut client)?;
        questions.fetch_add(1, SeqCst);
        server.get_mut().write_all(question.as_bytes()).ok()?;
        let mut answer = head(&mut server)?;
        let length = answer.to_lowercase();
        let length = length.split("content-length: ").nth(1)?.lines().next()?;
        let body = length.parse().expect("a length");
        server
            .by_ref()
            .take(body)
            .read_to_string(&mut answer)
            .ok()?;
        let client = client.get_mut();
        client.write_all(answer.as_bytes()).ok()?;
        client.conn.refresh_traffic_keys().expect("TLS 1.3");
        client.flush().ok()?;
    }
}

/// Reads a head up to the empty line.
fn head(stream: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

/// Seen to fail with a client that polls for readable bytes: it took a record between two requests for the end of the
/// connection.
#[test]
fn a_tls_record_without_an_answer_does_not_end_the_connection() {
    let Some(authority) = Authority::new() else {
        return;
    };
    authority.sign("localhost", LOCALHOST);
    let server = start(options());
    let proxy = ChangesItsKey::before(
        server.port(),
        &authority.file("localhost.pem"),
        &authority.file("localhost.key"),
    );
    let url = format!("https://localhost:{}", proxy.port);
    let exec = ["exec", "KEYA", "--", "sleep", "1"];
    asks(&exec, &url, &authority.file("ca.pem")).expect(0, "");
    let counts = (proxy.connections.load(SeqCst), proxy.questions.load(SeqCst));
    assert!(
        counts.0 <= 2 && counts.1 <= 8,
        "connections, questions: {counts:?}"
    );
    assert!(!server.client("A").is_locked("KEYA").unwrap());
}
