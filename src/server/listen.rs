//! Listeners: bound, set for a crowd, and closed to it.

use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{self, Backlog, sockopt};
use nix::sys::time::TimeVal;

use crate::error::Error;
use crate::host::{host_and_port, reachable};
use crate::options::Options;

/// How many seconds an answer may take to be written to a client that does not read.
const SEND_TIMEOUT: i64 = 10;

/// How many bytes of a client may lie unread, so that one that sends more than it should is not far ahead when that is
/// noticed. A question takes a few hundred.
const RECEIVE_BUFFER: usize = 16 * 1024;

/// How long the threads get that accept on a lent listener to end. It takes them microseconds, unless a firewall drops
/// what wakes them.
const REFUSE_TIMEOUT: Duration = Duration::from_millis(250);

/// How long a thread in an `accept` gets to take a connection, and to find that nothing more has come.
const TAKE_TIMEOUT: Duration = Duration::from_millis(20);
const MOMENT: Duration = Duration::from_millis(1);

/// Binds a port of the host that the options name. `option` is the one that names the port.
pub(crate) fn bind(
    options: &Options,
    option: &'static str,
    port: u16,
) -> Result<(TcpListener, SocketAddr), Error> {
    let Options {
        reconnect_attempts,
        time_between_attempts,
        ..
    } = options;
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
                if error.kind() == io::ErrorKind::AddrInUse && attempts <= *reconnect_attempts =>
            {
                log::info!("{host}:{port} is busy; trying again in {time_between_attempts:?}");
                thread::sleep(*time_between_attempts);
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

/// A listener that somebody else bound, as the rest of the server expects it, and its address.
pub(crate) fn adopt(listener: TcpListener) -> Result<(TcpListener, SocketAddr), Error> {
    let address = listener
        .set_nonblocking(false)
        .and_then(|()| listener.local_addr());
    match address {
        Ok(address) => Ok((listener, address)),
        Err(source) => Err(Error::CannotStart {
            reason: "the listener is none of TCP".into(),
            source: Some(source),
        }),
    }
}

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

/// Ends the accepting on a listener in this process: no `accept` succeeds any more once the connections that have come
/// are taken, and the threads that are in one return. `accepts` says whether any may be.
///
/// A lent listener is somebody else's, too, who goes on listening, and a shutdown would end that: systemd then gives
/// the socket up. So the threads are woken by connections, and what comes later waits for the next server.
pub(crate) fn refuse(listener: &TcpListener, is_lent: bool, accepts: impl Fn() -> bool) {
    if !is_lent {
        // It fails where that has been done.
        let _ = socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Both);
        return;
    }
    // It fails on no socket.
    let _ = listener.set_nonblocking(true);
    let Ok(address) = listener.local_addr() else {
        return;
    };
    let here = SocketAddr::new(reachable(address.ip()), address.port());
    let until = Instant::now() + REFUSE_TIMEOUT;
    loop {
        // A thread that is not in an `accept` yet ends by itself.
        thread::sleep(MOMENT);
        if !accepts() || Instant::now() > until {
            return;
        }
        let Ok(waker) = TcpStream::connect_timeout(&here, REFUSE_TIMEOUT) else {
            return;
        };
        if !is_taken(&waker) {
            // The next server would find it.
            take_back(listener, &waker);
        }
    }
}

/// Whether a thread accepts a connection: then it finds its end and closes it.
fn is_taken(mut waker: &TcpStream) -> bool {
    let at_end = waker
        .shutdown(Shutdown::Write)
        .and_then(|()| waker.set_read_timeout(Some(TAKE_TIMEOUT)))
        .and_then(|()| waker.read(&mut [0]));
    match at_end {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// Accepts a connection of this process, and those before it.
fn take_back(listener: &TcpListener, waker: &TcpStream) {
    if let Ok(own) = waker.local_addr() {
        while listener.accept().is_ok_and(|(_, client)| client != own) {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    /// systemd starts a service for each connection that it finds.
    #[test]
    fn a_lent_listener_is_left_empty_where_no_thread_accepts() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        refuse(&listener, true, || true);
        let error = listener.accept().expect_err("nobody has come");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
    }

    #[test]
    fn threads_that_accept_on_a_lent_listener_end() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let accepting = AtomicUsize::new(3);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while listener.accept().is_ok() {}
                    accepting.fetch_sub(1, SeqCst);
                });
            }
            refuse(&listener, true, || accepting.load(SeqCst) > 0);
        });
        let error = listener.accept().expect_err("nobody has come");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
    }
}
