//! Streams of events: answers that last until the client or the server ends them.
//!
//! One thread sends them all, ten times a second, and blocks for no client. What a client does not take is kept up to a
//! limit; beyond it the connection is ended. The thread exists while there is a reader.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::manager::{FeedId, LockManager, Moment};
use crate::protocol::{Reply, Verb};
use crate::server::handler::{Handler, full, stopping};
use crate::server::status::events::{HEARTBEAT, block, introduction};
use crate::server::tiny::{AnswerStream, Exchange};

/// The highest number of streams of a server.
const MAX_STREAMS: usize = 200;

/// One stream is allowed for each ten clients: a stream takes a descriptor beside the two of its connection.
const CLIENTS_PER_STREAM: usize = 10;

/// How often events are sent.
const TICK: Duration = Duration::from_millis(100);

/// The longest time without a byte on a stream.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(15);

/// How many bytes are kept for a client that does not take them, beside the kernel's buffer.
const MAX_KEPT: usize = 256 * 1024;

/// How many bytes all streams together are sent in a tick, and the least and the most for each.
const BYTES_TOGETHER: usize = 8 * 1024 * 1024;
const LEAST_BYTES: usize = 64 * 1024;
const MOST_BYTES: usize = 1024 * 1024;

/// How often a new connection is searched for, and the pause between.
const SEARCHES: u32 = 50;
const SEARCH_PAUSE: Duration = Duration::from_millis(10);

const STACK: usize = 128 * 1024;

/// The streams of a server.
pub(in crate::server) struct EventStreams {
    handler: Arc<Handler>,
    most: usize,
    streams: Mutex<Streams>,
    /// Wakes the thread before the next tick.
    ending: Condvar,
}

#[derive(Default)]
struct Streams {
    readers: Vec<Reader>,
    /// The thread that sends. `None` without readers.
    sender: Option<JoinHandle<()>>,
    is_ending: bool,
}

impl EventStreams {
    /// For a server that serves up to `clients` clients.
    pub fn new(handler: Arc<Handler>, clients: usize) -> Arc<Self> {
        Arc::new(EventStreams {
            handler,
            most: (clients / CLIENTS_PER_STREAM).clamp(1, MAX_STREAMS),
            streams: Mutex::default(),
            ending: Condvar::new(),
        })
    }

    /// Answers with the events, from now on, of the keys that begin with `prefix`. Blocks up to half a second while it
    /// searches for a new connection.
    pub fn open(self: &Arc<Self>, mut exchange: Exchange, prefix: &str) {
        let mut searches = 0..SEARCHES;
        while !exchange.is_located() && searches.next().is_some() {
            thread::sleep(SEARCH_PAUSE);
        }
        let requests = &self.handler.status.requests;
        match self.add(exchange, prefix) {
            Ok(()) => requests.count(Some(Verb::Events), &Reply::event_stream()),
            Err(refused) => {
                let (exchange, why_not) = *refused;
                requests.count(Some(Verb::Events), &why_not);
                exchange.answer(&why_not);
            }
        }
    }

    fn add(
        self: &Arc<Self>,
        exchange: Exchange,
        prefix: &str,
    ) -> Result<(), Box<(Exchange, Reply)>> {
        let manager = &self.handler.manager;
        let mut streams = self.streams.lock();
        // Flushes earlier events, which the new reader must not get.
        streams.send(manager);
        if streams.is_ending {
            return Err(Box::new((exchange, stopping("it has no more events"))));
        }
        if streams.readers.len() >= self.most {
            let message = format!(
                "{} clients read events already, the most that this server allows",
                self.most
            );
            return Err(Box::new((exchange, full(&message))));
        }
        let (stream, head) = exchange
            .stream(&Reply::event_stream())
            .map_err(|exchange| {
                Box::new((*exchange, full("no descriptor is left for the events")))
            })?;
        let feed = manager.read_along(prefix);
        let mut reader = Reader::new(stream, feed, manager.term());
        let introduction = introduction(&self.handler.names.server);
        reader.keep([&head, introduction.as_bytes()].concat().into());
        if reader.send().is_err() {
            // The client has already gone.
            manager.stop_reading(feed);
            return Ok(());
        }
        streams.readers.push(reader);
        if streams.sender.is_none() {
            self.start_sender(&mut streams);
        }
        Ok(())
    }

    fn start_sender(self: &Arc<Self>, streams: &mut Streams) {
        let this = self.clone();
        let thread = thread::Builder::new().name("lock-events".into());
        match thread.stack_size(STACK).spawn(move || this.run()) {
            Ok(thread) => streams.sender = Some(thread),
            Err(error) => {
                log::error!("no thread left to send events: {error}");
                streams.clear(&self.handler.manager);
            }
        }
    }

    /// Sends events until there is no reader, or the server ends. The body of the thread.
    fn run(&self) {
        let mut streams = self.streams.lock();
        while !streams.is_ending {
            streams.send(&self.handler.manager);
            if streams.readers.is_empty() {
                streams.sender = None;
                return;
            }
            self.ending.wait_for(&mut streams, TICK);
        }
    }

    /// Sends the last events without blocking, and ends all streams.
    pub fn end(&self) {
        let mut streams = self.streams.lock();
        streams.is_ending = true;
        streams.send(&self.handler.manager);
        streams.clear(&self.handler.manager);
        let sender = streams.sender.take();
        drop(streams);
        self.ending.notify_all();
        if let Some(sender) = sender {
            // The thread panics only by a bug in this file, and the panic was logged.
            let _ = sender.join();
        }
    }
}

impl Streams {
    /// Sends each reader the events since the last call.
    fn send(&mut self, manager: &LockManager) {
        if self.readers.is_empty() {
            return;
        }
        let term = manager.term();
        if manager.stands_by() || self.readers.iter().any(|reader| reader.term != term) {
            // Another server leads, or has led since the reader began: its events are not known here.
            return self.clear(manager);
        }
        let now = Moment::now();
        let most = (BYTES_TOGETHER / self.readers.len()).clamp(LEAST_BYTES, MOST_BYTES);
        for taken in manager.take_events() {
            let block: Arc<[u8]> = block(&taken, now, most).into();
            let readers = self.readers.iter_mut();
            for reader in readers.filter(|reader| reader.feed == taken.feed) {
                reader.keep(block.clone());
            }
        }
        self.readers.retain_mut(|reader| {
            let sent = reader.send_or_beat(now.instant);
            if let Err(error) = &sent {
                log::debug!("a stream of events is ended: {error}");
                manager.stop_reading(reader.feed);
            }
            sent.is_ok()
        });
    }

    fn clear(&mut self, manager: &LockManager) {
        for reader in mem::take(&mut self.readers) {
            manager.stop_reading(reader.feed);
        }
    }
}

struct Reader {
    stream: AnswerStream,
    feed: FeedId,
    /// The server's term when the reader began.
    term: u64,
    /// Blocks that the client has not taken. Readers of a feed share them.
    kept: VecDeque<Arc<[u8]>>,
    /// How many bytes of the first block it has taken.
    sent: usize,
    last: Instant,
}

impl Reader {
    fn new(stream: AnswerStream, feed: FeedId, term: u64) -> Self {
        Reader {
            stream,
            feed,
            term,
            kept: VecDeque::new(),
            sent: 0,
            last: Instant::now(),
        }
    }

    fn keep(&mut self, bytes: Arc<[u8]>) {
        self.kept.push_back(bytes);
    }

    /// Sends the kept blocks, or a heartbeat if nothing was sent for long. An error if the client has gone or does not
    /// read.
    fn send_or_beat(&mut self, now: Instant) -> io::Result<()> {
        if self.kept.is_empty() {
            if !self.stream.is_connected() {
                return Err(io::ErrorKind::NotConnected.into());
            }
            if now.saturating_duration_since(self.last) < HEARTBEAT_EVERY {
                return Ok(());
            }
            self.keep(HEARTBEAT.into());
        }
        self.last = now;
        self.send()
    }

    /// Sends as much as the client takes. The last block does not count for the limit: the client may not have had the
    /// time to read it.
    fn send(&mut self) -> io::Result<()> {
        while let Some(first) = self.kept.front() {
            let sent = self.stream.send_at_once(&first[self.sent..])?;
            self.sent += sent;
            if self.sent < first.len() {
                break;
            }
            self.kept.pop_front();
            self.sent = 0;
        }
        let before_last = self.kept.len().saturating_sub(1);
        let kept: usize = self
            .kept
            .iter()
            .take(before_last)
            .map(|kept| kept.len())
            .sum();
        match kept.saturating_sub(self.sent) > MAX_KEPT {
            true => Err(io::Error::other("its client does not read")),
            false => Ok(()),
        }
    }
}
