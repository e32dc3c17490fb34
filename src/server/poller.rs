//! Everything that a server's loop waits for, in one epoll: what asks it to end or to read its tokens again, new
//! connections, and the hang-ups of waiting clients.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use parking_lot::Mutex;

use crate::manager::Waiter;
use crate::memory::shrink_map;

pub(super) struct Poller {
    epoll: Epoll,
    /// Copies of the listeners for HTTP.
    listeners: Vec<TcpListener>,
    watched: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    waiters: HashMap<u64, Weak<dyn Waiter>>,
    next_id: u64,
}

/// The events of one wait.
#[derive(Default)]
pub(super) struct Happened {
    /// The server is asked to end.
    pub stop: bool,
    /// The server is asked to read its token file again.
    pub reload: bool,
    /// A connection has arrived since [`Poller::expect_arrival`].
    pub arrival: bool,
    /// Waiters whose connection has reported an event: the client may have gone.
    pub hang_ups: Vec<Arc<dyn Waiter>>,
}

const STOP: u64 = u64::MAX;
const ARRIVAL: u64 = u64::MAX - 1;
const RELOAD: u64 = u64::MAX - 2;

impl Poller {
    /// One of the descriptors in `stop` becomes readable when the server has to end. `reload` is written to when it has
    /// to read its token file again.
    pub fn new<'a>(
        listeners: &[TcpListener],
        stop: impl Iterator<Item = BorrowedFd<'a>>,
        reload: Option<BorrowedFd>,
    ) -> io::Result<Arc<Self>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for stop in stop {
            epoll.add(stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        }
        if let Some(reload) = reload {
            // Reported at each write, and never read: several servers may wait for it.
            let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, RELOAD);
            epoll.add(reload, event)?;
        }
        let listeners: io::Result<Vec<_>> = listeners.iter().map(TcpListener::try_clone).collect();
        let listeners = listeners?;
        for listener in &listeners {
            epoll.add(listener, arrival())?;
        }
        Ok(Arc::new(Poller {
            epoll,
            listeners,
            watched: Mutex::default(),
        }))
    }

    /// Makes [`wait`](Self::wait) report the next connection to each listener, once.
    pub fn expect_arrival(&self) -> io::Result<()> {
        for listener in &self.listeners {
            self.epoll.modify(listener, &mut arrival())?;
        }
        Ok(())
    }

    /// Makes [`wait`](Self::wait) report a waiter when its client hangs up, at once if it already has. Dropping the
    /// returned value ends this.
    pub fn watch(
        self: &Arc<Self>,
        client: BorrowedFd,
        waiter: Weak<dyn Waiter>,
    ) -> io::Result<Watched> {
        let mut clients = self.watched.lock();
        clients.next_id += 1;
        let id = clients.next_id;
        clients.waiters.insert(id, waiter);
        drop(clients);
        let watched = Watched {
            poller: self.clone(),
            id,
        };
        let event = EpollEvent::new(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET, id);
        match self.epoll.add(client, event) {
            // An earlier wait on this connection added it.
            Err(Errno::EEXIST) => self.epoll.modify(client, &mut { event })?,
            result => result?,
        }
        Ok(watched)
    }

    /// Blocks until an event, or for `timeout`, which has to be less than a minute. Returns early for a signal.
    pub fn wait(&self, timeout: Duration) -> Happened {
        let mut events = [EpollEvent::empty(); 512];
        // Rounded up, so that the loop does not come back for less than a millisecond.
        let timeout = EpollTimeout::from(timeout.as_millis() as u16 + 1);
        // An error can only be an interruption: descriptor and buffer are ours.
        let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
        let mut happened = Happened::default();
        let clients = self.watched.lock();
        for event in &events[..count] {
            match event.data() {
                STOP => happened.stop = true,
                RELOAD => happened.reload = true,
                ARRIVAL => happened.arrival = true,
                id => {
                    let waiter = clients.waiters.get(&id).and_then(Weak::upgrade);
                    happened.hang_ups.extend(waiter);
                }
            }
        }
        happened
    }
}

fn arrival() -> EpollEvent {
    EpollEvent::new(
        EpollFlags::EPOLLIN | EpollFlags::EPOLLET | EpollFlags::EPOLLONESHOT,
        ARRIVAL,
    )
}

/// A client whose hang-up is reported. The kernel forgets the connection when it is closed.
pub(super) struct Watched {
    poller: Arc<Poller>,
    id: u64,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut clients = self.poller.watched.lock();
        clients.waiters.remove(&self.id);
        shrink_map(&mut clients.waiters);
    }
}
