//! What every listener of the server is set to.

use std::io;
use std::net::TcpListener;

use nix::sys::socket::{self, Backlog, sockopt};
use nix::sys::time::TimeVal;

/// How many seconds an answer may take to be written to a client that does not read.
const SEND_TIMEOUT: i64 = 10;

/// How many bytes of a client may lie unread, so that one that sends more than it should is not far ahead when that is
/// noticed. A question takes a few hundred.
const RECEIVE_BUFFER: usize = 16 * 1024;

/// Prepares a listener for a crowd. What is set on it, Linux passes on to what it accepts: answers go out at
/// once, and a client that does not read them loses its connection.
pub(crate) fn prepare(listener: &TcpListener) -> io::Result<()> {
    socket::setsockopt(listener, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
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
