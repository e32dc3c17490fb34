//! Streams of events: answers that go on until their client or the server ends them.
//!
//! One thread sends them all, some times a second, and waits for no client: what one does not take is kept up to a bound,
//! and beyond it the connection is ended. The thread is there while there is a reader.

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

/// How many streams a server has at the most.
const MAX_STREAMS: usize = 200;

/// Each takes a descriptor beside the two of its connection: one for so many clients leaves the others enough.
const CLIENTS_PER_STREAM: usize = 10;

/// How often what happened is sent.
const TICK: Duration = Duration::from_millis(100);

/// How long nothing is sent, at the longest.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(15);

/// How much of what a client has not taken is kept of a stream, beside what the kernel keeps.
const MAX_KEPT: usize = 256 * 1024;

/// How much all streams are sent in a tick, how much each may be sent in any case, and at the most.
const BYTES_TOGETHER: usize = 8 * 1024 * 1024;
const LEAST_BYTES: usize = 64 * 1024;
const MOST_BYTES: usize = 1024 * 1024;

/// How often, and after what pause, a connection is looked for that has just been made.
const SEARCHES: u32 = 50;
const SEARCH_PAUSE: Duration = Duration::from_millis(10);

const STACK: usize = 128 * 1024;

/// The streams of a server.
pub(in crate::server) struct EventStreams {
    handler: Arc<Handler>,
    most: usize,
    streams: Mutex<Streams>,
    /// Wakes the thread before its time.
    ending: Condvar,
}

#[derive(Default)]
struct Streams {
    readers: Vec<Reader>,
    /// The thread that sends. `None` where nobody reads.
    sender: Option<JoinHandle<()>>,
    is_ending: bool,
}

impl EventStreams {
    /// Of a server that takes so many clients.
    pub fn new(handler: Arc<Handler>, clients: usize) -> Arc<Self> {
        Arc::new(EventStreams {
            handler,
            most: (clients / CLIENTS_PER_STREAM).clamp(1, MAX_STREAMS),
            streams: Mutex::default(),
            ending: Condvar::new(),
        })
    }

    /// Answers with the events of the keys that begin so, from now on. Blocks for a moment where the connection has to be
    /// looked for.
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
        // What was before is none of its.
        streams.send(manager);
        if streams.is_ending {
            return Err(Box::new((exchange, stopping("it has no more events"))));
        }
        if streams.readers.len() >= self.most {
            let message = format!("{} read events already, as many as may", self.most);
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
            // Its client has gone already.
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

    /// What the thread does.
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

    /// Sends what has happened, as far as it is taken at once, and ends all streams.
    pub fn end(&self) {
        let mut streams = self.streams.lock();
        streams.is_ending = true;
        streams.send(&self.handler.manager);
        streams.clear(&self.handler.manager);
        let sender = streams.sender.take();
        drop(streams);
        self.ending.notify_all();
        if let Some(sender) = sender {
            // It only panics if a mistake is in here, and that was reported.
            let _ = sender.join();
        }
    }
}

impl Streams {
    /// Sends each reader what has happened since the last time.
    fn send(&mut self, manager: &LockManager) {
        if self.readers.is_empty() {
            return;
        }
        let term = manager.term();
        if manager.stands_by() || self.readers.iter().any(|reader| reader.term != term) {
            // What happens now is told by the server that leads, and another one may have led since.
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
    /// Under which leadership of this server it began.
    term: u64,
    /// What the client has not taken. Readers of a feed share the bytes.
    kept: VecDeque<Arc<[u8]>>,
    /// How much of the first of them it has taken.
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

    /// Sends what is kept, and something where nothing has been sent for long. An error if the client has gone or does
    /// not read.
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

    /// Sends as much as the client takes. What came last may be more than is kept: it may not have had the time to read.
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
