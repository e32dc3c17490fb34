//! A TCP proxy that breaks its first connection after a number of bytes, or all connections on demand.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::libc::linger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::until;

/// When the first connection breaks, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Request(usize),
    Reply(usize),
    Never,
}

/// How a connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Like a process that ends.
    Close,
    /// Like a middlebox that drops a connection.
    Reset,
    /// Like an unplugged cable.
    Silence,
}

pub struct Proxy {
    pub port: u16,
    road: Arc<Road>,
}

#[derive(Default)]
struct Road {
    /// The number of connections so far.
    connections: AtomicUsize,
    holds_up: AtomicBool,
    is_closed: AtomicBool,
    /// Copies of both ends of each connection, for `break_off`. A connection stays open as long as a copy is here.
    ends: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub fn to(server: u16, cut: Cut, how: Break) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let road = Arc::new(Road::default());
        let proxy = Proxy {
            port,
            road: road.clone(),
        };
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a client");
                if road.is_closed.load(SeqCst) {
                    break;
                }
                let first = road.connections.fetch_add(1, SeqCst) == 0;
                until("connections pass again", || !road.holds_up.load(SeqCst));
                if road.is_closed.load(SeqCst) {
                    break;
                }
                let server = TcpStream::connect(("127.0.0.1", server)).expect("it listens");
                let by_hand = [&client, &server].into_iter().filter(|_| cut == Cut::Never);
                for end in by_hand {
                    let end = end.try_clone().expect("a descriptor is left");
                    road.ends.lock().expect("nobody panicked").push(end);
                }
                let cut = first.then_some(cut);
                thread::spawn(move || carry(&client, &server, cut, how));
            }
        });
        proxy
    }

    /// The number of connections so far.
    pub fn connections(&self) -> usize {
        self.road.connections.load(SeqCst)
    }

    /// Breaks every connection, and holds up new ones. For a proxy without a cut.
    pub fn break_off(&self) {
        self.hold_up();
        for end in self.road.ends.lock().expect("nobody panicked").drain(..) {
            // It fails if the other side has closed it already.
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Holds up new connections. Those that exist pass on.
    pub fn hold_up(&self) {
        self.road.holds_up.store(true, SeqCst);
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.road.holds_up.store(false, SeqCst);
    }
}

/// Ends the accepting thread: a test makes hundreds of proxies, and their remains would slow each fork of this process
/// down.
impl Drop for Proxy {
    fn drop(&mut self) {
        self.road.is_closed.store(true, SeqCst);
        self.mend();
        // It fails if the thread has panicked.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Copies bytes both ways, until one side ends or the cut is reached.
fn carry(client: &TcpStream, server: &TcpStream, cut: Option<Cut>, how: Break) {
    let (mut requests, mut replies) = match cut {
        None | Some(Cut::Never) => (usize::MAX, usize::MAX),
        Some(Cut::Request(most)) => (most, usize::MAX),
        Some(Cut::Reply(most)) => (usize::MAX, most),
    };
    while requests > 0 {
        let mut ends = [client, server].map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        poll(&mut ends, PollTimeout::NONE).expect("both are sockets");
        let goes_on = match ends.map(|end| end.any()) {
            [Some(true), _] => pass(client, server, &mut requests),
            // The server has acted, and its answer is lost.
            _ if replies == 0 => break,
            _ => match pass(server, client, &mut replies) {
                true if replies == 0 => break,
                goes_on => goes_on,
            },
        };
        if !goes_on {
            return;
        }
    }
    match how {
        Break::Close => {}
        Break::Reset => {
            let at_once = linger {
                l_onoff: 1,
                l_linger: 0,
            };
            for end in [client, server] {
                setsockopt(end, sockopt::Linger, &at_once).expect("it is a socket");
            }
        }
        // Reads and drops what the client sends.
        Break::Silence => while pass(client, &std::io::sink(), &mut usize::MAX.clone()) {},
    }
}

/// Copies what is there, at most `most` bytes. `false` at the end of the stream.
fn pass(mut from: &TcpStream, mut to: impl Write, most: &mut usize) -> bool {
    let mut buffer = [0; 4096];
    let Ok(read @ 1..) = from.read(&mut buffer) else {
        return false;
    };
    let passed = read.min(*most);
    *most -= passed;
    to.write_all(&buffer[..passed]).is_ok()
}
