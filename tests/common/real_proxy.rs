//! Real proxies: nginx, HAProxy and Caddy, as Debian packages them. `.ci/run` installs them.
//!
//! They listen on Unix sockets, so that they need no free port.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::program::installed;
use super::{PATIENCE, until};

/// The guide's page with the proxies' configurations.
const OPERATIONS: &str = include_str!("../../src/guide/operations.md");

/// The proxies for which the operations page has a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Nginx,
    Haproxy,
    Caddy,
}

use Program::{Caddy, Haproxy, Nginx};

impl Program {
    /// The configuration of the page, for a server at this port and clients at this socket.
    fn configuration(self, port: u16, front: &str) -> String {
        let (language, listen, at_front) = match self {
            Nginx => ("nginx", "listen 8080;", format!("listen unix:{front};")),
            Haproxy => ("haproxy", "bind :8080", format!("bind unix@{front}")),
            Caddy => (
                "caddyfile",
                ":8080 {",
                format!(":8080 {{\n\tbind unix/{front}"),
            ),
        };
        let block = OPERATIONS.split(&format!("```{language}\n")).nth(1);
        let block = block.and_then(|rest| rest.split("```").next());
        let block = block.unwrap_or_else(|| panic!("the page has no block of {language}"));
        for part in [listen, "127.0.0.1:8004"] {
            assert_eq!(block.matches(part).count(), 1, "{part}: {block}");
        }
        block
            .replace(listen, &at_front)
            .replace("127.0.0.1:8004", &format!("127.0.0.1:{port}"))
    }

    fn name(self) -> &'static str {
        match self {
            Nginx => "nginx",
            Haproxy => "haproxy",
            Caddy => "caddy",
        }
    }

    /// Whether it is installed. If not, prints that; in CI it panics, except for Caddy, which not every Debian has.
    pub fn is_installed(self) -> bool {
        installed(self.name()).is_some()
    }
}

/// A running proxy in front of a server, with a folder of its own. Dropping it ends it.
pub struct RealProxy {
    folder: TempDir,
    process: Child,
}

impl RealProxy {
    /// HAProxy with these lines for its back end, and its statistics as CSV at the socket `stats`. `None`, with a
    /// printed reason, if it is not installed.
    pub fn haproxy(backend: &str) -> Option<Self> {
        let program = installed("haproxy")?;
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let configuration = format!(
            "defaults\n mode http\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n\
             frontend front\n bind unix@{at}/front\n default_backend locks\n\
             backend locks\n{backend}\n\
             listen stats\n bind unix@{at}/stats\n stats enable\n stats uri /\n"
        );
        let file = folder.path().join("configuration");
        fs::write(&file, configuration).unwrap();
        let mut command = Command::new(program);
        command.args(["-db", "-f"]).arg(file);
        Some(RealProxy::run(folder, &["front", "stats"], &mut command))
    }

    /// nginx that passes everything on to the port of a server, with these further lines. With `port` it also listens
    /// on that port. `None`, with a printed reason, if it is not installed.
    pub fn nginx(server: u16, port: Option<u16>, lines: &str) -> Option<Self> {
        let program = installed("nginx")?;
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let listen = port.map(|port| format!("listen 127.0.0.1:{port};"));
        let listen = listen.unwrap_or_default();
        let block = format!(
            "server {{ listen unix:{at}/front; {listen} location / {{\n\
             proxy_pass http://127.0.0.1:{server};\n{lines}\n}} }}"
        );
        Some(RealProxy::nginx_in(folder, program, &block))
    }

    /// nginx with this `server` block.
    fn nginx_in(folder: TempDir, program: PathBuf, block: &str) -> Self {
        let at = folder.path().display();
        let configuration = format!(
            "daemon off; pid {at}/pid; error_log stderr;\n\
             events {{ worker_connections 64; }}\n\
             http {{\n access_log off;\n client_body_temp_path {at};\n proxy_temp_path {at};\n\
             fastcgi_temp_path {at};\n uwsgi_temp_path {at};\n scgi_temp_path {at};\n\
             {block} }}\n"
        );
        let file = folder.path().join("configuration");
        fs::write(&file, configuration).unwrap();
        let mut command = Command::new(program);
        command.args(["-e", "stderr", "-p"]).arg(folder.path());
        command.arg("-c").arg(file);
        RealProxy::run(folder, &["front"], &mut command)
    }

    /// A proxy with the configuration of the operations page, for a server at this port. Panics if it is not
    /// [installed](Program::is_installed).
    pub fn of_the_page(program: Program, port: u16) -> Self {
        RealProxy::of_the_page_but(program, port, "", "")
    }

    /// A proxy with the configuration of the operations page, with `text` replaced by `other`.
    pub fn of_the_page_but(program: Program, port: u16, text: &str, other: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let front = folder.path().join("front");
        let front = front.to_str().expect("UTF-8");
        let mut configuration = program.configuration(port, front);
        if !text.is_empty() {
            assert!(configuration.contains(text), "{text}: {configuration}");
            configuration = configuration.replace(text, other);
        }
        let file = folder.path().join("configuration");
        let path = installed(program.name()).expect("it is installed");
        let mut command = Command::new(&path);
        match program {
            Nginx => return RealProxy::nginx_in(folder, path, &configuration),
            Haproxy => command.args(["-db", "-f"]),
            Caddy => {
                // Without the admin API, which would need a free port.
                configuration = format!("{{\n\tadmin off\n}}\n{configuration}");
                command
                    .args(["run", "--adapter", "caddyfile", "--config"])
                    .env("HOME", folder.path())
                    .env_remove("XDG_CONFIG_HOME")
                    .env_remove("XDG_DATA_HOME")
            }
        };
        fs::write(&file, configuration).unwrap();
        RealProxy::run(folder, &["front"], command.arg(file))
    }

    /// Starts the proxy, and returns when it listens on all of these sockets.
    fn run(folder: TempDir, sockets: &[&str], command: &mut Command) -> Self {
        let said = fs::File::create(folder.path().join("said")).unwrap();
        let process = command
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap();
        let mut proxy = RealProxy { folder, process };
        until("the proxy listens", || {
            let ended = proxy.process.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", proxy.said());
            let mut paths = sockets
                .iter()
                .map(|socket| proxy.folder.path().join(socket));
            paths.all(|path| UnixStream::connect(path).is_ok())
        });
        proxy
    }

    /// Its log.
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("said")).unwrap_or_default()
    }

    /// Sends a `GET` with these header lines to one of its sockets, and returns the whole answer.
    pub fn ask(&self, socket: &str, path: &str, headers: &str) -> String {
        let end = "Connection: close\r\n\r\n";
        self.exchange(socket, &format!("GET {path} HTTP/1.1\r\n{headers}{end}"))
    }

    /// Sends these bytes to one of its sockets, and returns everything that it sends back.
    pub fn exchange(&self, socket: &str, request: &str) -> String {
        let mut stream = self.connect(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A reset after the last byte is an end, too.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub fn connect(&self, socket: &str) -> UnixStream {
        UnixStream::connect(self.folder.path().join(socket)).unwrap()
    }
}

impl Drop for RealProxy {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = signal::kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM);
        let _ = self.process.wait();
    }
}
