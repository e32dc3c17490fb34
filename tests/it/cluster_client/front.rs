//! One of several servers, as its clients see it: several fronts share one real server with a store, each with a name
//! of its own in `Lock-Server`. One passes requests on, as the leader; the others stand by. The answers follow
//! `guide/wire.md`.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use nix::sys::socket::{self, shutdown};

pub enum Role {
    Leads,
    /// It stands by, and names this address of the leader.
    StandsByFor(String),
    /// It stands by, and does not know the leader.
    StandsBy,
}

pub struct Front {
    pub port: u16,
    listener: TcpListener,
    state: Arc<State>,
}

struct State {
    name: &'static str,
    server: u16,
    inner: Mutex<Inner>,
}

struct Inner {
    role: Role,
    /// The heads of the requests, in the order of their arrival.
    heads: Vec<String>,
    /// The verb of which the next request is carried out and not answered.
    cut: Option<&'static str>,
    /// The two connections of each client: to it and to the server.
    open: HashMap<usize, Vec<TcpStream>>,
    is_gone: bool,
}

impl Front {
    pub fn of(server: u16, name: &'static str, role: Role) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::new(State {
            name,
            server,
            inner: Mutex::new(Inner {
                role,
                heads: Vec::new(),
                cut: None,
                open: HashMap::new(),
                is_gone: false,
            }),
        });
        let (accepts, shared) = (listener.try_clone().expect("a descriptor"), state.clone());
        thread::spawn(move || {
            for (number, client) in accepts.incoming().enumerate() {
                let Ok(client) = client else { return };
                let state = shared.clone();
                thread::spawn(move || state.serve(number, &client));
            }
        });
        Front {
            port,
            listener,
            state,
        }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Sets its role from now on.
    pub fn be(&self, role: Role) {
        self.state.inner().role = role;
    }

    /// Ends like a killed process: its connections break, and new ones are refused.
    pub fn end(&self) {
        let mut inner = self.state.inner();
        inner.is_gone = true;
        shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both).expect("it listens");
        for stream in inner.open.drain().flat_map(|(_, streams)| streams) {
            // Fails if the other end has closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Carries the next request of this verb out, and breaks its connection instead of answering.
    pub fn cut(&self, verb: &'static str) {
        self.state.inner().cut = Some(verb);
    }

    /// The number of requests of a verb.
    pub fn asked(&self, verb: &str) -> usize {
        self.heads(verb).len()
    }

    /// The heads of the requests of a verb.
    pub fn heads(&self, verb: &str) -> Vec<String> {
        let inner = self.state.inner();
        let of_verb = |head: &&String| verb_of(target(head)) == verb;
        inner.heads.iter().filter(of_verb).cloned().collect()
    }
}

impl State {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panicked")
    }

    fn serve(&self, number: usize, client: &TcpStream) {
        if self.keep(number, client).is_none() {
            return;
        }
        let mut reader = BufReader::new(client);
        while let Some(head) = read_head(&mut reader) {
            if self.answer(number, client, &head).is_err() {
                break;
            }
        }
        // Shut down, since `keep` has a copy of the descriptor.
        let _ = client.shutdown(Shutdown::Both);
        self.inner().open.remove(&number);
    }

    /// Registers a connection that `end` breaks. `None` if it has ended already.
    fn keep(&self, number: usize, stream: &TcpStream) -> Option<()> {
        let mut inner = self.inner();
        let stream = stream.try_clone().expect("a descriptor");
        if inner.is_gone {
            let _ = stream.shutdown(Shutdown::Both);
            return None;
        }
        inner.open.entry(number).or_default().push(stream);
        Some(())
    }

    fn answer(&self, number: usize, mut client: &TcpStream, head: &str) -> io::Result<()> {
        let verb = verb_of(target(head));
        let (standby, is_cut) = {
            let mut inner = self.inner();
            inner.heads.push(head.into());
            let is_of_this = ["PING", "status", "livez"].contains(&verb);
            let standby = (!is_of_this).then(|| inner.role.answer(self.name, head));
            (
                standby.flatten(),
                inner.cut.take_if(|cut| *cut == verb).is_some(),
            )
        };
        if let Some(standby) = standby {
            return client.write_all(standby.as_bytes());
        }
        let mut server = TcpStream::connect(("127.0.0.1", self.server))?;
        self.keep(number, &server)
            .ok_or(io::ErrorKind::NotConnected)?;
        server.write_all(head.as_bytes())?;
        let mut reader = BufReader::new(server);
        let answer = read_head(&mut reader).ok_or(io::ErrorKind::UnexpectedEof)?;
        let length = header(&answer, "Content-Length").and_then(|length| length.parse().ok());
        let answer = self.renamed(&answer);
        if is_cut {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        client.write_all(answer.as_bytes())?;
        match length {
            Some(length) => io::copy(&mut reader.take(length), &mut client)?,
            // A stream of events.
            None => io::copy(&mut reader, &mut client)?,
        };
        Ok(())
    }

    /// Replaces the server's name with its own.
    fn renamed(&self, answer: &str) -> String {
        let lines = answer.split_inclusive("\r\n");
        let lines = lines.map(|line| match line.starts_with("Lock-Server: ") {
            true => format!("Lock-Server: {}\r\n", self.name),
            false => line.into(),
        });
        lines.collect()
    }
}

impl Role {
    /// The answer of a standby. `None` if it leads.
    fn answer(&self, name: &str, head: &str) -> Option<String> {
        let (status, leader, more) = match self {
            Role::Leads => return None,
            Role::StandsBy => ("503 Service Unavailable", "nobody", String::new()),
            Role::StandsByFor(leader) => {
                let location = format!("http://{leader}{}", target(head));
                let more = format!("Location: {location}\r\nLock-Leader: {leader}\r\n");
                ("307 Temporary Redirect", leader.as_str(), more)
            }
        };
        let body = format!("0\nthis server stands by, and {leader} leads; nothing was done\n");
        let echo = header(head, "lock-echo").unwrap_or_default();
        let length = body.len();
        Some(format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nLock-Server: {name}\r\n\
             Lock-Result: standby\r\nLock-Echo: {echo}\r\n{more}\r\n{body}"
        ))
    }
}

/// Reads the lines up to the empty one. `None` at the end of the connection.
fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

pub fn target(head: &str) -> &str {
    head.split(' ').nth(1).unwrap_or_default()
}

fn verb_of(target: &str) -> &str {
    let verb = target.split(['/', '?']).nth(1);
    verb.unwrap_or_default()
}

pub fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (header, value) = line.split_once(": ")?;
        header.eq_ignore_ascii_case(name).then_some(value)
    })
}
