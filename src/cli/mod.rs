//! The parts of the command, and what they share: standard output, the log, where a server is reached.

pub mod args;
pub mod daemon;
pub mod exec;
pub mod failure;
pub mod foreground;
pub mod pid_file;
pub mod process;
pub mod questions;
pub mod values;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

use lock_server::Server;

/// Prints a line, and succeeds where somebody takes it or nobody wants to.
pub fn print(line: &str) -> ExitCode {
    // `println!` would panic where the reader is gone, as in `lock-server --help | head -1`.
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "lock-server: cannot write {line:?}: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Sends the log to standard error, as `RUST_LOG` says, or else from this level on.
fn start_log(default_filter: &str) {
    let env = env_logger::Env::default().default_filter_or(default_filter);
    env_logger::Builder::from_env(env)
        .format(|out, record| {
            let (time, level) = (out.timestamp_millis(), record.level());
            let style = out.default_level_style(level);
            writeln!(out, "{time} {style}{level:5}{style:#} {}", record.args())
        })
        .init();
}

/// Where a bound server serves the original's clients, if it does.
fn classic_note(server: &Server) -> String {
    let note = |port| format!(" (classic clients: port {port})");
    server.classic_port().map(note).unwrap_or_default()
}

/// Where to reach a server of this machine: what listens on every interface is reached at home.
fn reachable(address: SocketAddr) -> SocketAddr {
    let home: IpAddr = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(home, address.port())
}
