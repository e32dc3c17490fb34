//! The connections of a client to a server, and with TLS those of a server to etcd. They are made for ureq, which keeps
//! them open. The one in use is noted here, so that a caller can wait for its end: ureq's own TCP transport hides its
//! socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

/// How long a connection stays open after a question on it was given up to be asked again. A server takes over the place
/// of a LOCK within that time, unless it is suspended, or its machine is gone.
const OVERLAP: Duration = Duration::from_secs(2);

/// Whether only a connect fails with this error, so that nothing was sent. A reset is not one: it can also come later.
pub(crate) fn is_of_connect(error: ErrorKind) -> bool {
    matches!(
        error,
        ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::AddrNotAvailable
    )
}

/// The connection that the latest question was sent on.
#[derive(Debug, Default)]
pub(crate) struct LatestConnection(Mutex<Weak<TcpStream>>);

impl LatestConnection {
    /// Another handle of its socket, if the connection is still open.
    pub fn get(&self) -> Option<TcpStream> {
        self.lock().upgrade()?.try_clone().ok()
    }

    fn set(&self, stream: &Arc<TcpStream>) {
        *self.lock() = Arc::downgrade(stream);
    }

    fn lock(&self) -> MutexGuard<'_, Weak<TcpStream>> {
        // The value is set in one step, so a panic under the lock leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the connections of one pool.
#[derive(Debug)]
pub(crate) struct TrackedConnector(pub Arc<LatestConnection>);

impl Connector for TrackedConnector {
    type Out = TrackedConnection;

    fn connect(
        &self,
        details: &ConnectionDetails,
        _chained: Option<()>,
    ) -> Result<Option<TrackedConnection>, ureq::Error> {
        let stream = connect(details)?;
        stream.set_nodelay(true)?;
        let (input, output) = (
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        Ok(Some(TrackedConnection {
            stream: TrackedStream {
                stream: Arc::new(stream),
                latest: self.0.clone(),
            },
            buffers: LazyBuffers::new(input, output),
        }))
    }
}

/// Tries the addresses one after another. The last one gets all the time that is left, each other one half of it.
fn connect(details: &ConnectionDetails) -> Result<TcpStream, ureq::Error> {
    let until = deadline(details.timeout);
    let count = details.addrs.len();
    let mut failure = ureq::Error::HostNotFound;
    for (number, address) in details.addrs.iter().enumerate() {
        let is_last = number + 1 == count;
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let connected = match left.map(|left| if is_last { left } else { left / 2 }) {
            Some(left) if left.is_zero() => Err(ErrorKind::TimedOut.into()),
            Some(left) => TcpStream::connect_timeout(address, left),
            None => TcpStream::connect(address),
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = in_time(error, details.timeout),
        }
    }
    Err(failure)
}

pub(crate) fn deadline(timeout: NextTimeout) -> Option<Instant> {
    let left = timeout.not_zero()?;
    Instant::now().checked_add(*left)
}

/// The system reports "would block" when a socket's time-out has passed.
pub(crate) fn in_time(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => ureq::Error::Io(error),
    }
}

/// A connection for ureq.
#[derive(Debug)]
pub(crate) struct TrackedConnection {
    stream: TrackedStream,
    buffers: LazyBuffers,
}

impl TrackedConnection {
    /// The TCP stream, for TLS to run over.
    #[cfg(feature = "tls")]
    pub fn into_stream(self) -> TrackedStream {
        self.stream
    }
}

impl Transport for TrackedConnection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let timeout = timeout.for_write();
        let output = &self.buffers.output()[..amount];
        self.stream
            .until(deadline(timeout))
            .write_all(output)
            .map_err(|error| in_time(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let timeout = timeout.for_read();
        let read = self
            .stream
            .until(deadline(timeout))
            .read(self.buffers.input_append_buf());
        let amount = read.map_err(|error| self.stream.cannot_read(error, timeout))?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    /// Between two questions the server sends nothing. Any input means that the connection can't be used again, and so
    /// does its end.
    fn is_open(&mut self) -> bool {
        let peeked = self.stream.at_once(|stream| stream.peek(&mut [0]));
        matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

/// A socket. It becomes the latest connection when something is sent on it.
#[derive(Debug)]
pub(crate) struct TrackedStream {
    stream: Arc<TcpStream>,
    latest: Arc<LatestConnection>,
}

impl TrackedStream {
    /// The same stream for reading and writing, with `until` as the time limit of each call.
    pub fn until(&self, until: Option<Instant>) -> TimedStream<'_> {
        TimedStream {
            tracked: self,
            until,
        }
    }

    /// The error to report when reading fails. A time-out of [`ureq::Timeout::RecvResponse`] means that the question is
    /// asked again on another connection. The server takes a closed connection for the end of the wait, so this one is
    /// closed later.
    pub fn cannot_read(&self, error: io::Error, timeout: NextTimeout) -> ureq::Error {
        let error = in_time(error, timeout);
        if let ureq::Error::Timeout(ureq::Timeout::RecvResponse) = error {
            close_after_the_answer(self.stream.clone());
        }
        error
    }

    /// Runs `act` with the socket set not to block.
    pub fn at_once<T>(&self, act: impl FnOnce(&TcpStream) -> io::Result<T>) -> io::Result<T> {
        self.stream.set_nonblocking(true)?;
        let done = act(&self.stream);
        self.stream.set_nonblocking(false)?;
        done
    }
}

/// Keeps a connection open until the server has answered on it or ended it, at most for [`OVERLAP`].
fn close_after_the_answer(stream: Arc<TcpStream>) {
    let wait = move || {
        // The connection has no further use, whatever the read returns.
        let _ = stream.set_read_timeout(Some(OVERLAP));
        let _ = (&*stream).read(&mut [0]);
    };
    // If no thread can be started, the connection is closed at once, and the place in the queue is reserved for a while.
    let _ = thread::Builder::new()
        .name("lock-overlap".into())
        .spawn(wait);
}

/// A socket whose calls end at a time limit.
pub(crate) struct TimedStream<'a> {
    tracked: &'a TrackedStream,
    until: Option<Instant>,
}

impl TimedStream<'_> {
    /// Sets the socket's time-out to the time that is left, and makes one call.
    fn call(
        &self,
        set: impl Fn(Option<Duration>) -> io::Result<()>,
        mut call: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            let left = self
                .until
                .map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(ErrorKind::TimedOut.into());
            }
            set(left)?;
            match call() {
                // A signal handler of the program ran meanwhile.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl Read for TimedStream<'_> {
    fn read(&mut self, input: &mut [u8]) -> io::Result<usize> {
        let mut stream = &*self.tracked.stream;
        self.call(
            |left| self.tracked.stream.set_read_timeout(left),
            || stream.read(input),
        )
    }
}

impl Write for TimedStream<'_> {
    fn write(&mut self, output: &[u8]) -> io::Result<usize> {
        self.tracked.latest.set(&self.tracked.stream);
        let mut stream = &*self.tracked.stream;
        self.call(
            |left| self.tracked.stream.set_write_timeout(left),
            || stream.write(output),
        )
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
