//! The descriptors of the connections that tiny_http holds and hides, and what the kernel knows of them.
//!
//! tiny_http gives no access to its sockets and hides their end, so they are found among the process's own descriptors,
//! by the client's address. A descriptor found here is used by number, which may already be another file's: another
//! connection's, or, with a server in a program's threads, any file of the program. Each function says why that does no
//! harm.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{self, PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{self, MsgFlags, Shutdown, SockaddrStorage, sockopt};
use nix::sys::stat;
use parking_lot::Mutex;

use super::traffic::{Traffic, is_established};

/// The connections of one port.
pub(in crate::server) struct Sockets {
    own: OwnAddress,
    /// The connections at the last look-up, which takes milliseconds for thousands.
    known: Mutex<Connections>,
    /// When a client may cause the next search.
    next_search: Mutex<Option<Instant>>,
    /// A descriptor that is closed for a look-up if no other one is free.
    spare: Mutex<Option<EventFd>>,
}

/// The pause after a search for a client, for each connection beyond a thousand: nine times the time of the search, so
/// that a client that causes searches does not delay the others.
const SEARCH_PAUSE: Duration = Duration::from_micros(9);
const CHEAP_SEARCH: usize = 1000;

impl Sockets {
    pub fn new(listener: SocketAddr) -> Self {
        Sockets {
            own: OwnAddress(listener),
            known: Mutex::default(),
            next_search: Mutex::default(),
            spare: Mutex::new(open_spare()),
        }
    }

    /// Does work that needs one descriptor. Closes the spare one for it if no other is free.
    fn with_spare<T>(&self, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
        let error = match work() {
            Err(error) => error,
            done => return done,
        };
        let mut spare = self.spare.lock();
        if spare.take().is_none() {
            return Err(error);
        }
        let result = work();
        *spare = open_spare();
        result
    }

    /// The client's descriptors, if they are known and still its own.
    pub(super) fn find(&self, client: SocketAddr) -> Option<SocketPair> {
        let pair = self.known.lock().0.get(&client).copied();
        pair.filter(|pair| pair.is_of(client, self.own))
    }

    /// [Refreshes](Self::refresh), to find a new client. `false` if it did not: searches are too frequent for so many
    /// connections, or no descriptor is left.
    pub fn search(&self) -> bool {
        let mut next = self.next_search.lock();
        if next.is_some_and(|next| Instant::now() < next) || self.refresh().is_err() {
            return false;
        }
        let connections = self.known.lock().0.len();
        let dear = connections.saturating_sub(CHEAP_SEARCH) as u32;
        *next = Some(Instant::now() + SEARCH_PAUSE * dear);
        true
    }

    /// Looks up all connections, which [`find`](Self::find) then knows.
    pub fn refresh(&self) -> io::Result<()> {
        let mut found = self.look_up()?;
        mem::swap(&mut *self.known.lock(), &mut found);
        Ok(())
    }

    /// How many connections there are. Without a free descriptor, how many there were at the last look-up.
    pub fn count(&self) -> usize {
        match self.look_up() {
            Ok(connections) => connections.0.len(),
            Err(_) => self.known.lock().0.len(),
        }
    }

    /// The connections at the last look-up.
    pub(super) fn known(&self) -> Vec<(SocketAddr, SocketPair)> {
        let known = self.known.lock();
        known
            .0
            .iter()
            .map(|(client, pair)| (*client, *pair))
            .collect()
    }

    /// Looks through all descriptors: about 0.5 µs each.
    pub(super) fn look_up(&self) -> io::Result<Connections> {
        let mut connections = HashMap::new();
        for (client, fd) in self.with_spare(|| connected(self.own))? {
            if let Some(inode) = inode_of(fd) {
                let first = SocketPair {
                    fds: [fd, fd],
                    inode,
                };
                let pair = connections.entry(client).or_insert(first);
                if pair.inode == inode {
                    pair.fds[1] = fd;
                } else {
                    // A later connection from the same port.
                    *pair = first;
                }
            }
        }
        Ok(Connections(connections))
    }

    /// Ends the connection to a client at this port, both ways. `None` if that failed: not even the spare descriptor was
    /// free.
    pub(super) fn shut_down(&self, client: SocketAddr) -> Option<ShutDown> {
        let connected = self.with_spare(|| connected(self.own)).ok()?;
        let its_own = connected.into_iter().filter(|(other, _)| *other == client);
        let fds: Vec<_> = its_own
            .filter_map(|(_, fd)| Some((fd, inode_of(fd)?)))
            .collect();
        for &(fd, _) in &fds {
            // tiny_http may close the descriptor now, and its number may go to another client. A copy stays the same
            // connection.
            //
            // SAFETY: only copied; that fails if it is not open any more.
            let copy = || unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned();
            match self.with_spare(copy) {
                Ok(copy) if client_of(copy.as_raw_fd(), self.own) == Some(client) => {
                    // It fails only if the connection is already gone.
                    let _ = socket::shutdown(copy.as_raw_fd(), Shutdown::Both);
                }
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(Errno::EBADF as i32) => {}
                Err(_) => return None,
            }
        }
        Some(ShutDown(fds))
    }

    /// Ends each of these connections, both ways.
    pub(super) fn shut_down_all(&self, connections: &Connections) {
        for pair in connections.0.values() {
            let copy = || pair.copy().ok_or_else(|| io::Error::from(Errno::ENOTCONN));
            // There is no copy if the connection is already gone.
            if let Ok(copy) = self.with_spare(copy) {
                copy.shut_down();
            }
        }
    }
}

/// The connections of one port, by the client's address. A connection of another port of this process, a classic port
/// or another server's, is not included, even if its client has the same address.
#[derive(Default)]
pub(super) struct Connections(HashMap<SocketAddr, SocketPair>);

impl Connections {
    /// Whether `others` has any of these connections.
    pub fn any_in(&self, others: &Connections) -> bool {
        self.0.keys().any(|client| others.0.contains_key(client))
    }

    /// Leaves out the connections that `others` has.
    pub fn without(mut self, others: &Connections) -> Self {
        self.0.retain(|client, _| !others.0.contains_key(client));
        self
    }
}

/// tiny_http has two descriptors of each connection, to read from and to write to, and closes one before the other.
/// Both entries are equal once only one is open.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketPair {
    fds: [RawFd; 2],
    /// Unique to the connection, among earlier and later ones, too.
    inode: u64,
}

impl SocketPair {
    /// Whether the client is connected: it has neither closed nor reset its connection, and has not lost it, as far as
    /// the kernel knows.
    ///
    /// Reads the connection's state: an end of file would prove nothing, because tiny_http itself shuts down the
    /// reading side once it expects no further request.
    pub fn are_connected(&self) -> bool {
        self.open().is_some_and(is_established)
    }

    /// Whether a short answer can be written without waiting for the client to read. Linux: whether a third of the send
    /// buffer is free.
    pub fn have_room(&self) -> bool {
        let Some(fd) = self.open() else {
            return false;
        };
        // SAFETY: the descriptor is only polled; if it is not open, `poll` reports that.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let mut asked = [PollFd::new(fd, PollFlags::POLLOUT)];
        poll::poll(&mut asked, PollTimeout::ZERO) == Ok(1)
            && asked[0].revents() == Some(PollFlags::POLLOUT)
    }

    /// An ID that no other connection has.
    pub fn id(&self) -> u64 {
        self.inode
    }

    /// How many bytes it has carried, and when. `None` if it is over.
    pub fn traffic(&self) -> Option<Traffic> {
        self.open().and_then(Traffic::of)
    }

    /// A copy of its descriptor, which stays this connection when tiny_http closes its own. `None` if the connection is
    /// over, or no descriptor is left.
    pub fn copy(&self) -> Option<OwnedConnection> {
        // SAFETY: only copied; that fails if it is not open any more. If its number has gone to another client, the
        // check of the inode below drops the copy.
        let copy = unsafe { BorrowedFd::borrow_raw(self.open()?) }.try_clone_to_owned();
        let copy = OwnedConnection(copy.ok()?);
        (inode_of(copy.0.as_raw_fd()) == Some(self.inode)).then_some(copy)
    }

    /// Aborts the connection. After a shutdown, tiny_http would read it for as long as its client sends.
    pub fn break_off(&self) {
        let Some(OwnedConnection(copy)) = self.copy() else {
            return;
        };
        let nobody = libc::sockaddr {
            sa_family: libc::AF_UNSPEC as libc::sa_family_t,
            sa_data: [0; 14],
        };
        let length = mem::size_of_val(&nobody) as libc::socklen_t;
        // SAFETY: the address outlives the call. connect(2): an address without a family ends a connection.
        if unsafe { libc::connect(copy.as_raw_fd(), &nobody, length) } != 0 {
            // Linux 6.4 and 6.5 refuse that while another thread reads. The shutdown fails only if the connection is
            // gone.
            let _ = socket::shutdown(copy.as_raw_fd(), Shutdown::Both);
        }
    }

    /// The descriptor that still belongs to the connection.
    pub fn open(&self) -> Option<RawFd> {
        let mut fds = self.fds.into_iter();
        fds.find(|fd| inode_of(*fd) == Some(self.inode))
    }

    fn is_of(&self, client: SocketAddr, own: OwnAddress) -> bool {
        self.open()
            .is_some_and(|fd| client_of(fd, own) == Some(client))
    }
}

/// A connection through a descriptor that tiny_http does not close.
pub(super) struct OwnedConnection(OwnedFd);

impl OwnedConnection {
    /// Sends as much as there is room for, and returns how many bytes that was. Does not block.
    pub fn send_at_once(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match socket::send(self.0.as_raw_fd(), bytes, flags) {
            Ok(sent) => Ok(sent),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the client is connected, as far as the kernel knows.
    pub fn is_connected(&self) -> bool {
        is_established(self.0.as_raw_fd())
    }

    /// Ends it, both ways, after the bytes that were sent.
    pub fn shut_down(&self) {
        // It fails only if the connection is already gone.
        let _ = socket::shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

/// The address that a transport listens on. Its connections have this address at their own end; a listener on all
/// addresses has any with this port.
#[derive(Clone, Copy, Debug)]
struct OwnAddress(SocketAddr);

impl OwnAddress {
    fn has(self, own_end: SocketAddr) -> bool {
        let OwnAddress(listener) = self;
        own_end.port() == listener.port()
            && (listener.ip().is_unspecified() || listener.ip() == own_end.ip())
    }
}

/// tiny_http's listener: its number, and its inode, because the number may be another file's once tiny_http has closed
/// it.
pub(super) struct ListenerId(RawFd, Option<u64>);

impl ListenerId {
    pub fn of(listener: &TcpListener) -> Self {
        let fd = listener.as_raw_fd();
        ListenerId(fd, inode_of(fd))
    }

    /// Whether it still accepts connections.
    pub fn is_listening(&self) -> bool {
        let ListenerId(number, inode) = *self;
        // SAFETY: only reads an option, which fails if the descriptor is not open.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        inode_of(number) == inode && socket::getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false)
    }
}

/// A connection that was shut down, both ways.
///
/// Its descriptors, each with its inode. If the client has reset it, it has no address any more, and some are missing.
#[derive(Default)]
pub(super) struct ShutDown(Vec<(RawFd, u64)>);

impl ShutDown {
    /// Whether any of its descriptors is open. Each request of tiny_http keeps one of them open, to write its answer to.
    pub fn is_open(&self) -> bool {
        let mut fds = self.0.iter();
        fds.any(|&(fd, inode)| inode_of(fd) == Some(inode))
    }

    /// Whether both of its descriptors were found.
    pub fn is_whole(&self) -> bool {
        self.0.len() > 1
    }

    /// Closes the descriptors of a connection of which a request was leaked.
    ///
    /// Their owner is never dropped, and the thread that reads from them waits for it, so nobody uses the numbers
    /// again.
    pub fn close(&self) {
        for &(fd, _) in &self.0 {
            // SAFETY: nobody uses or closes this descriptor any more, see above.
            unsafe { libc::close(fd) };
        }
    }
}

/// The sockets of a port's connections, each with the client's address.
fn connected(own: OwnAddress) -> io::Result<Vec<(SocketAddr, RawFd)>> {
    let descriptors = fs::read_dir("/proc/self/fd")?;
    let descriptors =
        descriptors.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    Ok(descriptors
        .filter_map(|fd| Some((client_of(fd, own)?, fd)))
        .collect())
}

/// An eventfd needs no file: a bare container may have none.
fn open_spare() -> Option<EventFd> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).ok()
}

/// The client's address of a connection at this port. `None` for any other descriptor.
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

/// The inode of an open descriptor.
fn inode_of(fd: RawFd) -> Option<u64> {
    // SAFETY: only calls `fstat`, which fails if the descriptor is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    stat::fstat(fd).ok().map(|stat| stat.st_ino)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpStream};

    use nix::libc;

    use super::*;

    fn connection() -> (TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        (listener, client, accepted)
    }

    #[test]
    fn a_descriptor_number_that_was_used_again_is_not_shut_down() {
        let (listener, mut client, accepted) = connection();
        let sockets = Sockets::new(listener.local_addr().unwrap());
        let connections = sockets.look_up().unwrap();
        let (_elsewhere, mut other_end, mut another) = connection();
        // SAFETY: the number stays open, and `accepted` owns it; from now on it is another connection's.
        assert!(unsafe { libc::dup2(another.as_raw_fd(), accepted.as_raw_fd()) } >= 0);
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "it is closed");

        sockets.shut_down_all(&connections);

        another.write_all(b"x").unwrap();
        other_end.read_exact(&mut [0]).unwrap();
    }
}
