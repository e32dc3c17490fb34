//! The listeners of the server: how they are bound, and what each is set to.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::thread;

use nix::sys::socket::{self, Backlog, sockopt};
use nix::sys::time::TimeVal;

use crate::error::Error;
use crate::host::host_and_port;
use crate::options::Options;

/// How many seconds an answer may take to be written to a client that does not read.
const SEND_TIMEOUT: i64 = 10;

/// Listens on a port of the host of these options; `option` names it. Where it is busy, tries again as the options say.
pub(crate) fn bind(
    options: &Options,
    option: &'static str,
    port: u16,
) -> Result<(TcpListener, SocketAddr), Error> {
    let pause = options.time_between_attempts;
    let host = options.bare_host();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let bound = (host, port).to_socket_addrs().and_then(|addresses| {
            let addresses: Vec<SocketAddr> = addresses.collect();
            let listener = TcpListener::bind(&*addresses)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        });
        match bound {
            Ok(bound) => return Ok(bound),
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && attempts <= options.reconnect_attempts =>
            {
                log::info!("{host}:{port} is busy; trying again in {pause:?}");
                thread::sleep(pause);
            }
            Err(source) => {
                return Err(Error::CannotListen {
                    option,
                    address: host_and_port(host, port),
                    attempts,
                    source,
                });
            }
        }
    }
}

/// Prepares a listener for a crowd. What is set on it, Linux passes on to what it accepts: answers go out at
/// once, and a client that does not read them loses its connection.
pub(crate) fn prepare(listener: &TcpListener) -> io::Result<()> {
    // std listens with a backlog of 128; a crowd larger than that would be kept waiting for a second by
    // the kernel.
    socket::listen(listener, Backlog::MAXCONN)?;
    socket::setsockopt(listener, sockopt::TcpNoDelay, &true)?;
    let timeout = TimeVal::new(SEND_TIMEOUT, 0);
    socket::setsockopt(listener, sockopt::SendTimeout, &timeout)?;
    // A client whose machine is gone has hung up after a minute, too.
    socket::setsockopt(listener, sockopt::KeepAlive, &true)?;
    socket::setsockopt(listener, sockopt::TcpKeepIdle, &30)?;
    socket::setsockopt(listener, sockopt::TcpKeepInterval, &10)?;
    socket::setsockopt(listener, sockopt::TcpKeepCount, &3)?;
    Ok(())
}
