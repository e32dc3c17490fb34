//! Listeners: binds them, prepares them for a crowd, and stops accepting.

use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{self, Backlog, sockopt};
use nix::sys::time::TimeVal;

use crate::error::Error;
use crate::host::{host_and_port, looks_public, reachable};
use crate::options::Options;

/// How many seconds writing an answer may block on a client that does not read.
const SEND_TIMEOUT: i64 = 10;

/// The receive buffer of a connection, in bytes: it limits how far ahead a client is that sends too much. A question
/// takes a few hundred bytes.
const RECEIVE_BUFFER: usize = 16 * 1024;

/// How long the threads that accept on a lent listener may take to end. They need microseconds, unless a firewall drops
/// the connections that wake them.
const REFUSE_TIMEOUT: Duration = Duration::from_millis(250);

/// How long a thread in `accept` may take to take a connection, and the pause before each check for such threads.
const TAKE_TIMEOUT: Duration = Duration::from_millis(20);
const MOMENT: Duration = Duration::from_millis(1);

/// The most addresses of a host that a server listens on: a client tries as many.
pub(crate) const MOST_ADDRESSES: usize = 16;

/// How many ports are tried if any port will do, and the one of the first address is busy on another address.
const PORT_TRIES: u32 = 32;

/// A port with a listener on each address of a host.
#[derive(Default)]
pub(crate) struct BoundPort {
    pub listeners: Vec<TcpListener>,
    /// Their addresses, in the order of the name look-up. Never empty once bound.
    pub addresses: Vec<SocketAddr>,
    /// Warnings about the host, one line each.
    pub warnings: Vec<String>,
}

/// Binds the HTTP port of the options, on each address of the host. Leaves out an address that this machine can't
/// listen on, if another one works.
pub(crate) fn bind(options: &Options) -> Result<BoundPort, Error> {
    let (host, port) = (options.bare_host(), options.port);
    let addresses = (host, port).to_socket_addrs();
    let addresses = addresses.map_err(|source| Error::CannotListen {
        option: "host",
        address: host_and_port(host, port),
        attempts: 1,
        source,
    })?;
    let addresses: Vec<_> = addresses.collect();
    let bound = bind_patiently(options, "port", port, || bind_all(host, &addresses))?;
    for warning in &bound.warnings {
        log::warn!("{warning}");
    }
    Ok(bound)
}

/// Binds the port for clients of the Perl original, on the addresses of the HTTP port.
pub(crate) fn bind_classic(
    options: &Options,
    port: u16,
    addresses: &[SocketAddr],
) -> Result<BoundPort, Error> {
    let mut addresses = addresses.to_vec();
    for address in &mut addresses {
        address.set_port(port);
    }
    bind_patiently(options, "classic_port", port, || {
        bind_all(options.bare_host(), &addresses)
    })
}

/// Binds, and tries again while the port is busy, as the options say. `option` is the option that names the port.
fn bind_patiently(
    options: &Options,
    option: &'static str,
    port: u16,
    bind: impl Fn() -> io::Result<BoundPort>,
) -> Result<BoundPort, Error> {
    let Options {
        reconnect_attempts,
        time_between_attempts,
        ..
    } = options;
    let host = options.bare_host();
    let mut attempts = 0;
    loop {
        attempts += 1;
        match bind() {
            Ok(bound) => return Ok(bound),
            Err(error) if is_busy(&error) && attempts <= *reconnect_attempts => {
                log::info!("{host}:{port} is busy; trying again in {time_between_attempts:?}");
                thread::sleep(*time_between_attempts);
            }
            Err(source) => {
                let is_of_host = source.kind() == io::ErrorKind::AddrNotAvailable;
                return Err(Error::CannotListen {
                    option: if is_of_host { "host" } else { option },
                    address: host_and_port(host, port),
                    attempts,
                    source,
                });
            }
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

/// Binds all addresses of a host, with one port for all.
fn bind_all(host: &str, addresses: &[SocketAddr]) -> io::Result<BoundPort> {
    let any_port = addresses.iter().all(|address| address.port() == 0);
    let mut tries = 1;
    loop {
        match bind_once(host, addresses) {
            Err(error) if is_busy(&error) && any_port && tries < PORT_TRIES => tries += 1,
            bound => return bound,
        }
    }
}

/// Like [`bind_all`], with one try. If any port will do, all addresses use the port that the first one gets; fails if
/// it is busy on another address.
fn bind_once(host: &str, addresses: &[SocketAddr]) -> io::Result<BoundPort> {
    let mut bound = BoundPort::default();
    let mut left_out: Vec<(SocketAddr, io::Error)> = Vec::new();
    for &(mut address) in addresses {
        let is_known = |known: &SocketAddr| known.ip() == address.ip();
        if bound.addresses.iter().any(is_known) {
            continue;
        }
        if let Some(first) = bound.addresses.first() {
            address.set_port(first.port());
        }
        let listener = match bound.addresses.len() < MOST_ADDRESSES {
            true => TcpListener::bind(address),
            false => Err(io::Error::other("a server listens on at most 16 addresses")),
        };
        match listener.and_then(|listener| Ok((listener.local_addr()?, listener))) {
            Ok((address, listener)) => {
                bound.addresses.push(address);
                bound.listeners.push(listener);
            }
            Err(error) if is_busy(&error) => return Err(error),
            Err(error) => left_out.push((address, error)),
        }
    }
    if bound.addresses.is_empty() {
        let none = || io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
        return Err(left_out.pop().map_or_else(none, |(_, error)| error));
    }
    let here = and(&bound.addresses);
    let left_out = left_out.iter().map(|(address, error)| {
        format!(
            "{host} is also {}, which is left out: {error}; the server listens on {here}",
            address.ip()
        )
    });
    let for_this_machine = bound.addresses.iter().all(|bound| bound.ip().is_loopback());
    let unreachable = (for_this_machine && looks_public(host)).then(|| {
        format!(
            "{host} is {here} on this machine, so no other machine can reach the server; \
             to change that, let it listen on 0.0.0.0 or on this machine's own address"
        )
    });
    bound.warnings = left_out.chain(unreachable).collect();
    Ok(bound)
}

/// Joins addresses with "and".
pub(crate) fn and(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
    addresses.join(" and ")
}

/// Adopts a listener that another program bound.
pub(crate) fn adopt(listener: TcpListener) -> Result<BoundPort, Error> {
    let address = listener
        .set_nonblocking(false)
        .and_then(|()| listener.local_addr());
    match address {
        Ok(address) => Ok(BoundPort {
            listeners: vec![listener],
            addresses: vec![address],
            warnings: Vec::new(),
        }),
        Err(source) => Err(Error::CannotStart {
            reason: "the listener is not a TCP socket".into(),
            source: Some(source),
        }),
    }
}

/// Prepares a listener for a crowd. Connections inherit its options on Linux: answers are sent at once, and a client
/// that does not read them loses its connection.
pub(crate) fn prepare(listener: &TcpListener) -> io::Result<()> {
    socket::setsockopt(listener, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    // std listens with a backlog of 128; beyond that, the kernel would make clients wait for a second.
    socket::listen(listener, Backlog::MAXCONN)?;
    socket::setsockopt(listener, sockopt::TcpNoDelay, &true)?;
    let timeout = TimeVal::new(SEND_TIMEOUT, 0);
    socket::setsockopt(listener, sockopt::SendTimeout, &timeout)?;
    // A client whose machine is gone counts as hung up after a minute.
    socket::setsockopt(listener, sockopt::KeepAlive, &true)?;
    socket::setsockopt(listener, sockopt::TcpKeepIdle, &30)?;
    socket::setsockopt(listener, sockopt::TcpKeepInterval, &10)?;
    socket::setsockopt(listener, sockopt::TcpKeepCount, &3)?;
    Ok(())
}

/// Stops accepting on a listener in this process: once the connections that have arrived are taken, no `accept`
/// succeeds, and the threads in `accept` return. `accepts` returns whether a thread may be in `accept`.
///
/// Another process uses a lent listener, too, and a shutdown would end its listening: systemd would give up the socket.
/// So connections wake the threads, and later connections wait for the next server.
pub(crate) fn refuse(listener: &TcpListener, is_lent: bool, accepts: impl Fn() -> bool) {
    if !is_lent {
        // It fails if it was already done.
        let _ = socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Both);
        return;
    }
    // It cannot fail on a socket.
    let _ = listener.set_nonblocking(true);
    let Ok(address) = listener.local_addr() else {
        return;
    };
    let here = SocketAddr::new(reachable(address.ip()), address.port());
    let until = Instant::now() + REFUSE_TIMEOUT;
    loop {
        // A thread that is not yet in `accept` ends by itself.
        thread::sleep(MOMENT);
        if !accepts() || Instant::now() > until {
            return;
        }
        let Ok(waker) = TcpStream::connect_timeout(&here, REFUSE_TIMEOUT) else {
            return;
        };
        if !is_taken(&waker) {
            // Otherwise the next server would accept it.
            take_back(listener, &waker);
        }
    }
}

/// Whether a thread has accepted the connection: then it reads the end and closes it.
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

/// Accepts and drops the connections up to and including `waker`.
fn take_back(listener: &TcpListener, waker: &TcpStream) {
    if let Ok(own) = waker.local_addr() {
        while listener.accept().is_ok_and(|(_, client)| client != own) {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    /// systemd would start a service for a left connection.
    #[test]
    fn a_lent_listener_is_left_empty_if_no_thread_accepts() {
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
