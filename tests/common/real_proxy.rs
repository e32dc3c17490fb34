//! Real proxies: nginx and HAProxy, as Debian packages them. `.ci/run` installs them.
//!
//! They listen on sockets of the file system, so that no port has to be free.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::program::installed;
use super::{PATIENCE, until};

/// A proxy that runs in front of a server, and the folder that it has for itself. It ends when it is dropped.
pub struct RealProxy {
    folder: TempDir,
    process: Child,
}

impl RealProxy {
    /// HAProxy with these lines for its back end, and its report as CSV at the socket `stats`. `None` where it is not
    /// installed, and that is said.
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
        Some(RealProxy::run(folder, &mut command))
    }

    /// nginx that passes everything on to the port of a server, with these further lines. It listens on a port, too,
    /// where it is given one. `None` as for HAProxy.
    pub fn nginx(server: u16, port: Option<u16>, lines: &str) -> Option<Self> {
        let program = installed("nginx")?;
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let listen = port.map(|port| format!("listen 127.0.0.1:{port};"));
        let listen = listen.unwrap_or_default();
        let configuration = format!(
            "daemon off; pid {at}/pid; error_log stderr;\n\
             events {{ worker_connections 64; }}\n\
             http {{\n access_log off;\n client_body_temp_path {at};\n proxy_temp_path {at};\n\
             fastcgi_temp_path {at};\n uwsgi_temp_path {at};\n scgi_temp_path {at};\n\
             server {{ listen unix:{at}/front; {listen} location / {{\n\
             proxy_pass http://127.0.0.1:{server};\n{lines}\n}} }} }}\n"
        );
        let file = folder.path().join("configuration");
        fs::write(&file, configuration).unwrap();
        let mut command = Command::new(program);
        command.args(["-e", "stderr", "-p"]).arg(folder.path());
        command.arg("-c").arg(file);
        Some(RealProxy::run(folder, &mut command))
    }

    fn run(folder: TempDir, command: &mut Command) -> Self {
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
            UnixStream::connect(proxy.folder.path().join("front")).is_ok()
        });
        proxy
    }

    /// What it has logged.
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("said")).unwrap_or_default()
    }

    /// Asks at one of its sockets, with these header lines, and returns all that comes.
    pub fn ask(&self, socket: &str, path: &str, headers: &str) -> String {
        exchange(
            &self.folder.path().join(socket),
            &format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n"),
        )
    }
}

fn exchange(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A reset after the last byte is an end, too.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

impl Drop for RealProxy {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = signal::kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM);
        let _ = self.process.wait();
    }
}
