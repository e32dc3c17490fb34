//! The load: clients over raw sockets, the same for every system, and the measurements with them.
//!
//! Requests are made beforehand and replies are read into one buffer, so that the load costs little beside the measured
//! server. `systems.rs` knows what the bytes mean.

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::systems::{Accent, System};

pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// A time-out for answers, longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a client gets to start waiting, if the server does not show that it waits.
const PARKING: Duration = Duration::from_millis(2);

/// How long a client sleeps between requests to a server without waits. Of none, 50 us, 200 us and 1 ms this gave Redis
/// the most grants, with 4, 16 and 64 clients: most grants go to the client that has just released, and the others send
/// fewer unsuccessful requests.
const POLLING: Duration = Duration::from_millis(1);

/// The stack of a client's thread, which has few frames.
const STACK: usize = 128 * 1024;

/// The length of a measurement's warm-up, and how long it counts.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub warm_up: Duration,
    pub counting: Duration,
}

/// Where a reply ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A head, and a body of `Content-Length` bytes.
    Http,
    /// Replies of Redis, except arrays.
    Resp,
    /// One line without a head: the classic wire.
    Line,
}

/// The beginning of a reply, long enough for all answers that matter.
pub struct Reply {
    /// The HTTP status; for other framings 200, or 500 for an error.
    pub status: u16,
    body: [u8; 64],
    length: usize,
}

impl Reply {
    fn new(status: u16, body: &[u8]) -> Self {
        let mut reply = Reply {
            status,
            body: [0; 64],
            length: body.len().min(64),
        };
        reply.body[..reply.length].copy_from_slice(&body[..reply.length]);
        reply
    }

    pub fn body(&self) -> &[u8] {
        &self.body[..self.length]
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.body()).trim().to_string()
    }
}

/// A connection, and the bytes that were read beyond the last reply.
pub struct Connection {
    stream: TcpStream,
    framing: Framing,
    buffer: Box<[u8]>,
    begin: usize,
    end: usize,
}

impl Connection {
    pub fn to(port: u16, framing: Framing) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Connection {
            stream,
            framing,
            buffer: vec![0; 1024].into_boxed_slice(),
            begin: 0,
            end: 0,
        })
    }

    pub fn send(&mut self, request: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(request)?)
    }

    pub fn ask(&mut self, request: &[u8]) -> Result<Reply> {
        self.send(request)?;
        self.reply()
    }

    pub fn reply(&mut self) -> Result<Reply> {
        loop {
            let read = &self.buffer[self.begin..self.end];
            if let Some((length, reply)) = frame(read, self.framing)? {
                self.begin += length;
                if self.begin == self.end {
                    (self.begin, self.end) = (0, 0);
                }
                return Ok(reply);
            }
            self.read_more()?;
        }
    }

    fn read_more(&mut self) -> Result<()> {
        if self.end == self.buffer.len() {
            self.buffer.copy_within(self.begin.., 0);
            self.end -= self.begin;
            self.begin = 0;
        }
        match self.stream.read(&mut self.buffer[self.end..])? {
            0 => Err("the server closed the connection".into()),
            read => {
                self.end += read;
                Ok(())
            }
        }
    }

    /// Waits until the server closes, so that TIME_WAIT is on the server's side.
    fn until_closed(mut self) -> Result<()> {
        while self.stream.read(&mut self.buffer)? > 0 {}
        Ok(())
    }
}

/// The first reply in these bytes, and its length. `None` if it is incomplete.
fn frame(bytes: &[u8], framing: Framing) -> Result<Option<(usize, Reply)>> {
    match framing {
        Framing::Http => frame_http(bytes),
        Framing::Resp => frame_resp(bytes),
        Framing::Line => Ok(bytes
            .iter()
            .position(|&byte| byte == b'\n')
            .map(|end| (end + 1, Reply::new(200, &bytes[..=end])))),
    }
}

fn frame_http(bytes: &[u8]) -> Result<Option<(usize, Reply)>> {
    const LENGTH: &[u8] = b"content-length:";
    let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let status = bytes.get(9..12).and_then(number).ok_or("no status line")?;
    let length = bytes[..head]
        .split(|&byte| byte == b'\n')
        .find(|line| {
            line.get(..LENGTH.len())
                .is_some_and(|name| name.eq_ignore_ascii_case(LENGTH))
        })
        .and_then(|line| number(&line[LENGTH.len()..]))
        .unwrap_or(0);
    let end = head + 4 + length;
    let Some(body) = bytes.get(head + 4..end) else {
        return Ok(None);
    };
    Ok(Some((end, Reply::new(u16::try_from(status)?, body))))
}

fn frame_resp(bytes: &[u8]) -> Result<Option<(usize, Reply)>> {
    let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else {
        return Ok(None);
    };
    let (line, end) = (&bytes[1..end], end + 2);
    match bytes[0] {
        b'+' | b':' => Ok(Some((end, Reply::new(200, line)))),
        b'$' if line == b"-1" => Ok(Some((end, Reply::new(200, line)))),
        b'$' => {
            let length = number(line).ok_or("no length")?;
            let text = bytes.get(end..end + length + 2);
            Ok(text.map(|text| (end + length + 2, Reply::new(200, &text[..length]))))
        }
        _ => Ok(Some((end, Reply::new(500, line)))),
    }
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.trim().parse().ok()
}

/// A client: one requester for one key.
pub struct Client {
    pub connection: Connection,
    pub accent: Accent,
    pub lock: Vec<u8>,
    pub unlock: Vec<u8>,
    /// The last request, so that the server keeps nothing of this client.
    pub farewell: Option<Vec<u8>>,
}

impl Client {
    pub fn send_lock(&mut self) -> Result<()> {
        self.connection.send(&self.lock)
    }

    pub fn send_unlock(&mut self) -> Result<()> {
        self.connection.send(&self.unlock)
    }

    /// Reads an answer, and fails unless it is a yes.
    pub fn read_yes(&mut self) -> Result<Reply> {
        let reply = self.connection.reply()?;
        if self.accent.is_yes(&reply)? {
            Ok(reply)
        } else {
            Err(format!("refused: {}", reply.text()).into())
        }
    }

    /// One round: locks the key, repeatedly if necessary, and releases it.
    fn round(&mut self) -> Result<()> {
        loop {
            self.send_lock()?;
            let reply = self.connection.reply()?;
            if self.accent.is_yes(&reply)? {
                break;
            }
            if !self.accent.polls() {
                return Err(format!("LOCK was refused: {}", reply.text()).into());
            }
            thread::sleep(POLLING);
        }
        self.send_unlock()?;
        self.read_yes().map(drop)
    }

    fn leave(mut self) -> Result<()> {
        if let Some(farewell) = &self.farewell {
            self.connection.ask(farewell)?;
        }
        Ok(())
    }
}

/// A client with a new connection for every request.
struct Stranger {
    port: u16,
    framing: Framing,
    accent: Accent,
    lock: Vec<u8>,
    unlock: Vec<u8>,
}

impl Stranger {
    fn round(&mut self) -> Result<()> {
        self.ask(&self.lock)?;
        self.ask(&self.unlock)
    }

    fn ask(&self, request: &[u8]) -> Result<()> {
        let mut connection = Connection::to(self.port, self.framing)?;
        let reply = connection.ask(request)?;
        if !self.accent.is_yes(&reply)? {
            return Err(format!("refused: {}", reply.text()).into());
        }
        connection.until_closed()
    }
}

/// The rounds per second of all clients together, each in a thread of its own.
fn count<T: Send>(
    window: Window,
    crowd: &mut [T],
    round: impl Fn(&mut T) -> Result<()> + Sync,
) -> Result<f64> {
    let begin = Instant::now() + window.warm_up;
    let end = begin + window.counting;
    let round = &round;
    let work = move |one: &mut T| -> Result<u64> {
        let mut rounds = 0;
        loop {
            round(one)?;
            let now = Instant::now();
            if now >= end {
                return Ok(rounds);
            }
            rounds += u64::from(now >= begin);
        }
    };
    let counted: Result<Vec<u64>> = thread::scope(|scope| {
        let threads = crowd
            .iter_mut()
            .map(|one| {
                thread::Builder::new()
                    .stack_size(STACK)
                    .spawn_scoped(scope, move || work(one))
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        threads
            .into_iter()
            .map(|thread| thread.join().expect("the load does not panic"))
            .collect()
    });
    Ok(counted?.into_iter().sum::<u64>() as f64 / window.counting.as_secs_f64())
}

fn count_clients(window: Window, mut clients: Vec<Client>) -> Result<f64> {
    let rate = count(window, &mut clients, Client::round)?;
    clients.into_iter().try_for_each(Client::leave)?;
    Ok(rate)
}

/// The rounds per second, with a key of its own for each client.
pub fn rounds(system: &System, clients: usize, window: Window) -> Result<f64> {
    let clients = (0..clients).map(|n| system.client(&format!("key-{n}"), &format!("client-{n}")));
    count_clients(window, clients.collect::<Result<_>>()?)
}

/// The grants per second on one key that all clients want.
pub fn hand_overs(system: &System, clients: usize, window: Window) -> Result<f64> {
    let clients = (0..clients).map(|n| system.client("wanted", &format!("client-{n}")));
    count_clients(window, clients.collect::<Result<_>>()?)
}

/// The grants per second on this number of keys, each wanted by an equal share of the clients.
pub fn hand_overs_of(system: &System, clients: usize, keys: usize, window: Window) -> Result<f64> {
    let client = |n| system.client(&format!("wanted-{}", n % keys), &format!("client-{n}"));
    count_clients(window, (0..clients).map(client).collect::<Result<_>>()?)
}

/// How many answers to this request one client gets per second.
pub fn repeated(system: &System, request: &[u8], window: Window) -> Result<f64> {
    let mut connection = [Connection::to(system.port, Framing::Http)?];
    let accent = system.accent;
    count(window, &mut connection, |connection| {
        let reply = connection.ask(request)?;
        match accent.is_yes(&reply)? {
            true => Ok(()),
            false => Err(format!("refused: {}", reply.text()).into()),
        }
    })
}

/// The rounds per second of clients that share one key, with this number of slots.
pub fn shared(system: &System, clients: usize, slots: u32, window: Window) -> Result<f64> {
    let client = |n| system.sharing_client("shared", &format!("client-{n}"), slots);
    count_clients(window, (0..clients).map(client).collect::<Result<_>>()?)
}

/// The rounds per second with a new connection for each request.
pub fn strangers(
    system: &System,
    port: u16,
    framing: Framing,
    clients: usize,
    window: Window,
) -> Result<f64> {
    let known = (0..clients)
        .map(|n| system.client(&format!("key-{n}"), &format!("client-{n}")))
        .collect::<Result<Vec<_>>>()?;
    let once = |request: &[u8]| match framing {
        Framing::Line => bare_line(request),
        _ => closing(request),
    };
    let mut strangers: Vec<Stranger> = known
        .iter()
        .map(|client| Stranger {
            port,
            framing,
            accent: client.accent,
            lock: once(&client.lock),
            unlock: once(&client.unlock),
        })
        .collect();
    let rate = count(window, &mut strangers, Stranger::round)?;
    known.into_iter().try_for_each(Client::leave)?;
    Ok(rate)
}

/// The request with a header that asks the server to close.
fn closing(request: &[u8]) -> Vec<u8> {
    let line = first_line(request);
    let (line, rest) = request.split_at(line.len() + 2);
    [line, b"Connection: close\r\n", rest].concat()
}

/// The request on the classic wire.
fn bare_line(request: &[u8]) -> Vec<u8> {
    let line = first_line(request);
    let line = line.strip_suffix(b" HTTP/1.1").unwrap_or(line);
    [line, b"\n\n"].concat()
}

fn first_line(request: &[u8]) -> &[u8] {
    request
        .split(|&byte| byte == b'\r')
        .next()
        .unwrap_or(request)
}

/// All samples of the time from sending a release until the waiter has read its grant.
pub fn latencies(system: &System, window: Window) -> Result<Vec<Duration>> {
    let mut holder = system.client("wanted", "client-0")?;
    let mut waiter = system.client("wanted", "client-1")?;
    holder.send_lock()?;
    holder.read_yes()?;
    let begin = Instant::now() + window.warm_up;
    let end = begin + window.counting;
    let mut samples = Vec::new();
    loop {
        waiter.send_lock()?;
        thread::sleep(PARKING);
        let released = Instant::now();
        holder.send_unlock()?;
        waiter.read_yes()?;
        let granted = Instant::now();
        holder.read_yes()?;
        if granted >= end {
            break;
        }
        if released >= begin {
            samples.push(granted - released);
        }
        std::mem::swap(&mut holder, &mut waiter);
    }
    waiter.send_unlock()?;
    waiter.read_yes()?;
    holder.leave()?;
    waiter.leave()?;
    Ok(samples)
}

/// All samples of the time from the end of a lease, by the server's answer, until the waiter has read its grant. Four
/// pairs at a time, each with a key of its own.
pub fn lateness(system: &System, window: Window) -> Result<Vec<Duration>> {
    let end = Instant::now() + window.warm_up + window.counting;
    let pairs = (0..4).map(|n| {
        let key = format!("key-{n}");
        Ok([system.client(&key, "one")?, system.client(&key, "other")?])
    });
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let threads: Vec<_> = pairs
            .into_iter()
            .map(|pair| scope.spawn(move || lateness_of_pair(pair, end)))
            .collect();
        let samples = threads
            .into_iter()
            .map(|thread| thread.join().expect("the load does not panic"))
            .collect::<Result<Vec<_>>>()?;
        Ok(samples.concat())
    })
}

fn lateness_of_pair(pair: [Client; 2], end: Instant) -> Result<Vec<Duration>> {
    let [mut holder, mut waiter] = pair;
    holder.send_lock()?;
    let mut expires = expiry(&holder.read_yes()?)?;
    let mut samples = Vec::new();
    while Instant::now() < end {
        waiter.send_lock()?;
        let next = expiry(&waiter.read_yes()?)?;
        // The printed expiry is truncated to microseconds, so it may be up to one microsecond early.
        samples.push(
            SystemTime::now()
                .duration_since(expires)
                .unwrap_or_default(),
        );
        expires = next;
        std::mem::swap(&mut holder, &mut waiter);
    }
    // The next measurement uses the same names, and has to find the key free.
    let left = expires.duration_since(SystemTime::now());
    thread::sleep(left.unwrap_or_default() + PARKING);
    Ok(samples)
}

fn expiry(granted: &Reply) -> Result<SystemTime> {
    let text = granted.text();
    let (seconds, micros) = text.split_once('.').ok_or("a lease has a fraction")?;
    let micros: u64 = micros.parse()?;
    Ok(UNIX_EPOCH + Duration::from_secs(seconds.parse()?) + Duration::from_micros(micros))
}

/// A holder and the waiters behind it, all run by one thread.
pub struct Queue {
    clients: Vec<Client>,
    ready: Epoll,
    holder: usize,
}

impl Queue {
    /// Returns when all clients but one wait.
    pub fn new(system: &System, waiters: usize) -> Result<Self> {
        let ready = Epoll::new(EpollCreateFlags::empty())?;
        let mut holder = system.client("wanted", "holder")?;
        holder.send_lock()?;
        holder.read_yes()?;
        let mut clients = vec![holder];
        for n in 0..waiters {
            let mut client = system.client("wanted", &format!("waiter-{n}"))?;
            client.send_lock()?;
            clients.push(client);
        }
        for (n, client) in clients.iter().enumerate() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, n as u64);
            ready.add(&client.connection.stream, event)?;
        }
        system.until_settled()?;
        let mut queue = Queue {
            clients,
            ready,
            holder: 0,
        };
        match queue.next_ready(Duration::ZERO)? {
            None => Ok(queue),
            Some(early) => {
                let reply = queue.clients[early].connection.reply();
                let said = reply.map_or_else(|error| error.to_string(), |reply| reply.text());
                Err(format!("the server has no room for {waiters} waiters: {said}").into())
            }
        }
    }

    /// All samples of the time from sending a release until the next grant is read. The client that has released joins
    /// the tail.
    pub fn releases(&mut self, window: Window) -> Result<Vec<Duration>> {
        let begin = Instant::now() + window.warm_up;
        let end = begin + window.counting;
        let mut samples = Vec::new();
        loop {
            let released = Instant::now();
            let (next, granted) = self.release()?;
            let last = std::mem::replace(&mut self.holder, next);
            self.clients[last].send_lock()?;
            if granted >= end {
                return Ok(samples);
            }
            if released >= begin {
                samples.push(granted - released);
            }
            thread::sleep(PARKING);
        }
    }

    fn release(&mut self) -> Result<(usize, Instant)> {
        self.clients[self.holder].send_unlock()?;
        let (mut released, mut next) = (false, None);
        while !released || next.is_none() {
            let n = self.next_ready(PATIENCE)?.ok_or("no answer")?;
            self.clients[n].read_yes()?;
            if n == self.holder {
                released = true;
            } else {
                next = Some((n, Instant::now()));
            }
        }
        next.ok_or_else(|| "no waiter was granted the key".into())
    }

    fn next_ready(&self, patience: Duration) -> Result<Option<usize>> {
        let mut events = [EpollEvent::empty()];
        let found = self
            .ready
            .wait(&mut events, EpollTimeout::try_from(patience)?)?;
        Ok((found > 0).then(|| events[0].data() as usize))
    }
}

/// Locks this many keys and leaves them locked. Pipelines the requests.
pub fn preload(system: &System, keys: usize) -> Result<()> {
    const AHEAD: usize = 500;
    let mut connection = Connection::to(system.port, Framing::Http)?;
    let mut requests = Vec::new();
    for first in (0..keys).step_by(AHEAD) {
        let batch = AHEAD.min(keys - first);
        requests.clear();
        for n in first..first + batch {
            write!(
                requests,
                "GET /LOCK/held-{n}/preload HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )?;
        }
        connection.send(&requests)?;
        for _ in 0..batch {
            let reply = connection.reply()?;
            if !Accent::Ours.is_yes(&reply)? {
                return Err(format!("a key was refused: {}", reply.text()).into());
            }
        }
    }
    Ok(())
}

/// The resident memory per waiter, in kB of 1024 bytes, for each of these crowds, smaller ones first.
pub fn memory_of_waiters(system: &System, crowds: &[usize]) -> Result<Vec<f64>> {
    let mut holder = system.client("wanted", "holder")?;
    holder.send_lock()?;
    holder.read_yes()?;
    memory_each(system, crowds, |n| {
        let mut client = system.waiter("wanted", &format!("waiter-{n}"))?;
        client.send_lock()?;
        Ok(client)
    })
}

/// The resident memory per idle connection that has had one request, in kB of 1024 bytes, for each of these crowds.
pub fn memory_of_connections(system: &System, crowds: &[usize]) -> Result<Vec<f64>> {
    let mut first = Connection::to(system.port, Framing::Http)?;
    first.ask(&system.greeting())?;
    memory_each(system, crowds, |_| {
        let mut connection = Connection::to(system.port, Framing::Http)?;
        connection.ask(&system.greeting())?;
        Ok(connection)
    })
}

fn memory_each<T>(
    system: &System,
    crowds: &[usize],
    mut next: impl FnMut(usize) -> Result<T>,
) -> Result<Vec<f64>> {
    system.until_settled()?;
    let before = system.resident()?;
    let mut crowd = Vec::new();
    let mut each = Vec::new();
    for &many in crowds {
        while crowd.len() < many {
            crowd.push(next(crowd.len())?);
        }
        system.until_settled()?;
        each.push((system.resident()? - before) / many as f64);
    }
    Ok(each)
}
