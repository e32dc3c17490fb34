//! The connections to a server: made for ureq, which keeps them open, and noted here, so that somebody can wait for the
//! end of the one that is in use. ureq's own TCP transport hides its socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

/// The connection by which the latest question went.
#[derive(Debug, Default)]
pub(super) struct LatestConnection(Mutex<Weak<TcpStream>>);

impl LatestConnection {
    /// Another handle of it, if it is open still.
    pub fn get(&self) -> Option<TcpStream> {
        self.lock().upgrade()?.try_clone().ok()
    }

    fn set(&self, stream: &Arc<TcpStream>) {
        *self.lock() = Arc::downgrade(stream);
    }

    fn lock(&self) -> MutexGuard<'_, Weak<TcpStream>> {
        // It is set in one step, whatever panicked beside it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the connections of one pool.
#[derive(Debug)]
pub(super) struct TrackedConnector(pub Arc<LatestConnection>);

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
            stream: Arc::new(stream),
            buffers: LazyBuffers::new(input, output),
            latest: self.0.clone(),
        }))
    }
}

/// Tries the addresses one after another. Each but the last gets half of the time that is left.
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

fn deadline(timeout: NextTimeout) -> Option<Instant> {
    let left = timeout.not_zero()?;
    Instant::now().checked_add(*left)
}

/// The system says "would block" where a time-out of a socket has passed.
fn in_time(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => ureq::Error::Io(error),
    }
}

/// A connection for ureq.
#[derive(Debug)]
pub(super) struct TrackedConnection {
    stream: Arc<TcpStream>,
    buffers: LazyBuffers,
    latest: Arc<LatestConnection>,
}

impl TrackedConnection {
    /// Sets what one call may take, of what is left until then.
    fn left(
        until: Option<Instant>,
        set: impl FnOnce(Option<Duration>) -> io::Result<()>,
    ) -> io::Result<()> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match left {
            Some(left) if left.is_zero() => Err(ErrorKind::TimedOut.into()),
            left => set(left),
        }
    }
}

impl Transport for TrackedConnection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.latest.set(&self.stream);
        let timeout = timeout.for_write();
        let stream = &*self.stream;
        let output = &self.buffers.output()[..amount];
        Self::left(deadline(timeout), |left| stream.set_write_timeout(left))
            .and_then(|()| (&*stream).write_all(output))
            .map_err(|error| in_time(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let timeout = timeout.for_read();
        let until = deadline(timeout);
        let stream = &*self.stream;
        let input = self.buffers.input_append_buf();
        let read = loop {
            let read = Self::left(until, |left| stream.set_read_timeout(left))
                .and_then(|()| (&*stream).read(input));
            match read {
                // A signal handler of the program's ran meanwhile.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let amount = read.map_err(|error| in_time(error, timeout))?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    /// Between two questions nothing comes from the server, not even its end.
    fn is_open(&mut self) -> bool {
        let peek = || {
            self.stream.set_nonblocking(true)?;
            let peeked = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false)?;
            peeked
        };
        matches!(peek(), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}
