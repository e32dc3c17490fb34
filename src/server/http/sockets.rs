//! What the kernel knows of the connections that tiny_http holds and does not show.
//!
//! tiny_http gives no access to its sockets and swallows their end, so they are found among the
//! process's own descriptors by the address of their other end. A descriptor found here is used by
//! number and may by then belong to someone else; each function says why that does no harm.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use super::pipelines::Watched;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{self, PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{self, Shutdown, SockaddrStorage, sockopt};

/// The connections that came in at one HTTP transport's port, by the other end's address. What came in at another
/// port of this process, a classic port or another server's, is none of these, though a client there may have the
/// very address of one here.
#[derive(Default)]
pub(super) struct Connections(HashMap<SocketAddr, SocketPair>);

/// What a transport listens on. Its connections have this address at their own end, or any with that port.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnAddress(pub SocketAddr);

impl OwnAddress {
    fn has(self, own_end: SocketAddr) -> bool {
        let OwnAddress(listener) = self;
        own_end.port() == listener.port()
            && (listener.ip().is_unspecified() || listener.ip() == own_end.ip())
    }
}

/// tiny_http has two descriptors of each connection, to read from and to write to, and closes one of them
/// before the other. The same one twice where it has already.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketPair {
    own: OwnAddress,
    fds: [RawFd; 2],
}

impl SocketPair {
    /// Whether the client has closed, reset or lost its connection, as far as is known.
    pub fn have_been_left_by(self, client: SocketAddr) -> bool {
        self.at(client).is_some_and(|fd| !is_established(fd))
    }

    /// Whether a short answer to the client can be written without waiting for it to read.
    pub fn take_at_once(self, client: SocketAddr) -> bool {
        self.at(client).is_some_and(has_room)
    }

    /// The one that is still the client's.
    fn at(self, client: SocketAddr) -> Option<RawFd> {
        self.fds
            .into_iter()
            .find(|fd| client_of(*fd, self.own) == Some(client))
    }
}

/// Whether a third of what may lie unread is free, says Linux.
fn has_room(fd: RawFd) -> bool {
    // SAFETY: the descriptor is only asked; where it is not open, that is the answer.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut asked = [PollFd::new(fd, PollFlags::POLLOUT)];
    poll::poll(&mut asked, PollTimeout::ZERO) == Ok(1)
        && asked[0].revents() == Some(PollFlags::POLLOUT)
}

impl Connections {
    /// Looks through all descriptors: some 0.5 µs each.
    pub fn look_up(own: OwnAddress) -> io::Result<Self> {
        let mut connections = HashMap::new();
        for (client, fd) in connected(own)? {
            let first = SocketPair { own, fds: [fd, fd] };
            connections.entry(client).or_insert(first).fds[1] = fd;
        }
        Ok(Connections(connections))
    }

    pub fn get(&self, client: &SocketAddr) -> Option<RawFd> {
        self.pair(client).map(|pair| pair.fds[1])
    }

    pub fn pair(&self, client: &SocketAddr) -> Option<SocketPair> {
        self.0.get(client).copied()
    }

    /// Whether a client is found where it was when these were looked up.
    pub fn has(&self, client: &SocketAddr) -> bool {
        self.pair_at(client).is_some()
    }

    /// Where a client is still found.
    pub fn pair_at(&self, client: &SocketAddr) -> Option<SocketPair> {
        self.pair(client)
            .filter(|pair| client_of(pair.fds[1], pair.own) == Some(*client))
    }

    /// Whether any of these is among the others.
    pub fn any_in(&self, others: &Connections) -> bool {
        self.0.keys().any(|client| others.0.contains_key(client))
    }

    /// What tells a connection from every other one, before and after: its inode.
    pub fn identity(&self, client: &SocketAddr) -> Option<u64> {
        let fd = self.get(client)?;
        fs::metadata(format!("/proc/self/fd/{fd}"))
            .ok()
            .map(|socket| socket.ino())
    }

    /// Whether a client has closed, reset or lost its connection. tiny_http shuts the reading side
    /// down itself once it expects no further request, so an end of file says nothing; the state of
    /// the connection does. A connection that is not there any more has ended, too, and so has one
    /// where another one comes from the same port.
    pub fn has_hung_up(&self, watched: &Watched) -> bool {
        self.has_ended(&watched.client) || watched.connection != self.identity(&watched.client)
    }

    /// Whether a client has closed or reset its connection by now.
    pub fn has_ended(&self, client: &SocketAddr) -> bool {
        !self.get(client).is_some_and(is_established)
    }

    /// Leaves out those that are among the others.
    pub fn without(mut self, others: &Connections) -> Self {
        self.0.retain(|client, _| !others.0.contains_key(client));
        self
    }

    /// Ends each of them.
    pub fn shut_down_all(&self) {
        for pair in self.0.values() {
            // It fails only on a connection that is gone, which is as good.
            let _ = socket::shutdown(pair.fds[0], Shutdown::Both);
        }
    }
}

/// Whether a descriptor is one that connections are accepted with. Closed by tiny_http, the number
/// is nobody's or another file's; nobody else here keeps one of this kind.
pub(super) fn is_listening(fd: RawFd) -> bool {
    // SAFETY: the descriptor is only asked for an option; where it is not open, that fails.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    socket::getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false)
}

/// A connection that was shut down, both ways.
pub(super) struct ShutDown(Vec<RawFd>);

impl ShutDown {
    /// Closes the descriptors of a connection one of whose requests was forgotten.
    ///
    /// What owns them is never dropped, and the thread that read from them waits for it, so nobody uses
    /// the numbers again.
    pub fn close(&self) {
        for &fd in &self.0 {
            // SAFETY: nobody uses or closes this descriptor any more, see above.
            unsafe { libc::close(fd) };
        }
    }
}

/// Ends the connection to a client at this port, both ways.
pub(super) fn shut_down(client: SocketAddr, own: OwnAddress) -> ShutDown {
    let fds: Vec<RawFd> = connected(own).map_or(Vec::new(), |connected| {
        connected
            .filter(|(other, _)| *other == client)
            .map(|(_, fd)| fd)
            .collect()
    });
    for &fd in &fds {
        // tiny_http may close the descriptor now, and its number be given to another client. A copy stays
        // what it is.
        //
        // SAFETY: only copied; where it is not open any more, that fails.
        let copy = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned();
        if let Ok(copy) = copy
            && client_of(copy.as_raw_fd(), own) == Some(client)
        {
            // It fails only on a connection that is gone, which is as good.
            let _ = socket::shutdown(copy.as_raw_fd(), Shutdown::Both);
        }
    }
    ShutDown(fds)
}

/// The sockets of the connections that came in at a port, each with the address of its other end.
fn connected(own: OwnAddress) -> io::Result<impl Iterator<Item = (SocketAddr, RawFd)>> {
    let descriptors = fs::read_dir("/proc/self/fd")?;
    let descriptors =
        descriptors.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    Ok(descriptors.filter_map(move |fd| Some((client_of(fd, own)?, fd))))
}

/// The other end of a connection that came in at a port. `None` if it is none.
fn client_of(fd: RawFd, own: OwnAddress) -> Option<SocketAddr> {
    let client = socket::getpeername::<SockaddrStorage>(fd)
        .ok()
        .and_then(to_std)?;
    let here = socket::getsockname::<SockaddrStorage>(fd)
        .ok()
        .and_then(to_std)?;
    own.has(here).then_some(client)
}

fn to_std(address: SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    address
        .as_sockaddr_in6()
        .map(|v6| SocketAddr::V6((*v6).into()))
}

/// Linux: `TCP_ESTABLISHED`, `include/net/tcp_states.h`. A client that closes takes the connection
/// to CLOSE_WAIT, one that resets it to CLOSE.
const ESTABLISHED: u8 = 1;

fn is_established(fd: RawFd) -> bool {
    let mut state = 0u8;
    let mut length: libc::socklen_t = 1;
    // SAFETY: `state` and `length` outlive the call, and `length` says how much room `state` has;
    // the state is the first byte of the kernel's `struct tcp_info`. A descriptor that is no
    // connection any more makes the call fail, nothing else.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &mut length,
        )
    };
    result == 0 && state == ESTABLISHED
}

/// Tells when a watched connection ends, when a new one comes, and when the server is asked to stop.
pub(super) struct Watch {
    epoll: Epoll,
    listener: TcpListener,
}

/// What happened.
#[derive(Default)]
pub(super) struct Events {
    /// The ids of connections at whose other end something happened.
    pub ended: Vec<u64>,
    /// A connection has come since [`Watch::watch_arrivals`]. It is told once.
    pub arrival: bool,
    pub stop: bool,
}

const STOP: u64 = u64::MAX;
const ARRIVAL: u64 = u64::MAX - 1;

impl Watch {
    /// `stop` are the descriptors of which one becomes readable when the server is to end.
    pub fn new<'a>(
        listener: TcpListener,
        stop: impl Iterator<Item = BorrowedFd<'a>>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for stop in stop {
            epoll.add(stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        }
        epoll.add(&listener, arrival())?;
        Ok(Watch { epoll, listener })
    }

    /// Tells of the next connection that comes.
    pub fn watch_arrivals(&self) -> io::Result<()> {
        Ok(self.epoll.modify(&self.listener, &mut arrival())?)
    }

    /// Watches a connection, to report `id` when something happens at its other end. The kernel
    /// forgets it when the connection is closed here.
    pub fn watch(&self, fd: RawFd, id: u64) -> io::Result<()> {
        // SAFETY: the caller has just found the descriptor open. Were it closed since, adding fails;
        // were it reused, the hang-ups of another connection are reported and found to concern nobody.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let event = EpollEvent::new(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET, id);
        match self.epoll.add(fd, event) {
            // It waited before on the same connection.
            Err(Errno::EEXIST) => Ok(self.epoll.modify(fd, &mut { event })?),
            result => Ok(result?),
        }
    }

    /// Waits for something to happen, at most so many milliseconds. Returns early for a signal.
    pub fn wait(&self, timeout: u16) -> Events {
        let mut happened = [EpollEvent::empty(); 512];
        // An error can only be an interruption: descriptor and buffer are ours.
        let count = self
            .epoll
            .wait(&mut happened, EpollTimeout::from(timeout))
            .unwrap_or(0);
        let mut events = Events::default();
        for event in &happened[..count] {
            match event.data() {
                STOP => events.stop = true,
                ARRIVAL => events.arrival = true,
                id => events.ended.push(id),
            }
        }
        events
    }
}

fn arrival() -> EpollEvent {
    EpollEvent::new(
        EpollFlags::EPOLLIN | EpollFlags::EPOLLET | EpollFlags::EPOLLONESHOT,
        ARRIVAL,
    )
}
