//! The limit of a server that uses tiny_http: a bare loop that answers each request with the same line.

use std::error::Error;
use std::io::{Error as IoError, Result as IoResult};
use std::net::TcpListener;
use std::process::Command;
use std::thread;

use crate::load::Result;
use crate::systems::{self, Accent, System};

/// The first argument of this program for the role of the loop. The number of receivers and the port follow it.
pub const ARGUMENT: &str = "--bare-loop";

/// The names of the loops in the report.
pub const ONE_RECEIVER: &str = "bare loop x1";
pub const TWO_RECEIVERS: &str = "bare loop x2";

/// As many bytes as the answer to a LOCK.
const ANSWER: &str = "1463000003.123456\n";

/// The loop in a process of its own, like each system.
pub fn system(name: &'static str, receivers: usize) -> Result<System> {
    let port = systems::free_port()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([ARGUMENT, &receivers.to_string(), &port.to_string()]);
    let (pid, process) = systems::spawn(command, systems::folder(name)?, port)?;
    System::new(name, Accent::BareLoop, port, pid, process)
}

/// Answers until it is killed.
pub fn serve(arguments: &[String]) -> std::result::Result<(), Box<dyn Error + Send + Sync>> {
    let [receivers, port] = arguments else {
        return Err("give the receivers and the port".into());
    };
    let listener = TcpListener::bind(("127.0.0.1", port.parse()?))?;
    let server = tiny_http::Server::from_listener(listener, None)?;
    let ended: IoResult<Vec<()>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..receivers.parse().unwrap_or(1))
            .map(|_| scope.spawn(|| receive(&server)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<IoResult<()>>| {
            let panicked = |_| Err(IoError::other("a receiver panicked"));
            thread.join().unwrap_or_else(panicked)
        };
        threads.into_iter().map(join).collect()
    });
    Ok(ended.map(drop)?)
}

fn receive(server: &tiny_http::Server) -> IoResult<()> {
    loop {
        let request = server.recv()?;
        // Fails if the client has gone.
        let _ = request.respond(tiny_http::Response::from_string(ANSWER));
    }
}
