//! Connections that the server has ended. tiny_http goes on to parse what it has received of them, which may be the
//! middle of a body. What it takes for requests there is not served.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::sockets::ShutDown;
use crate::memory::shrink_map;

/// How long requests of an ended connection are recognised: as long as it is open, but at most for the first time; for
/// the second one if its descriptors are not known. What tiny_http still has to parse is a receive buffer, some
/// milliseconds of work.
const RECOGNISED_FOR: Duration = Duration::from_secs(10);
const RECOGNISED_UNKNOWN_FOR: Duration = Duration::from_secs(2);

/// After this time the client may have a new connection. It is not looked for at each request, since that takes a while.
const ENDED_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How many requests are answered in that time: so many answers fit into any send buffer, and do not block.
const MOST_ANSWERS: u32 = 20;

/// By the client's address.
#[derive(Default)]
pub(super) struct EndedConnections(Mutex<HashMap<SocketAddr, EndedConnection>>);

struct EndedConnection {
    connection: ShutDown,
    since: Instant,
    /// When it was ended last, and how many requests were recognised since.
    again: Instant,
    requests: u32,
}

/// What becomes of a request.
pub(super) enum Fate {
    /// Its connection was not ended.
    Served,
    /// The client is told to ask again.
    Answered,
    /// The client's connection is ended again.
    EndedAgain,
    Forgotten,
}

impl EndedConnection {
    fn is_recognised(&self) -> bool {
        let age = self.since.elapsed();
        age < RECOGNISED_FOR && self.connection.is_open()
            || age < RECOGNISED_UNKNOWN_FOR && !self.connection.is_whole()
    }
}

impl EndedConnections {
    /// Notes that the connection to a client was ended.
    pub fn note(&self, client: SocketAddr, connection: ShutDown) {
        let again = Instant::now();
        let mut all = self.0.lock();
        let earlier = all.get(&client).filter(|ended| ended.is_recognised());
        let ended = EndedConnection {
            connection,
            since: earlier.map_or(again, |earlier| earlier.since),
            again,
            requests: 0,
        };
        all.insert(client, ended);
        // Not each time, since others may be many.
        if all.len().is_power_of_two() {
            all.retain(|_, ended| ended.is_recognised());
            shrink_map(&mut all);
        }
    }

    /// What becomes of a request from this address. It may also be of the client's next connection from the same port.
    pub fn fate_of_request(&self, client: SocketAddr) -> Fate {
        let mut all = self.0.lock();
        let Some(ended) = all.get_mut(&client) else {
            return Fate::Served;
        };
        if !ended.is_recognised() {
            all.remove(&client);
            return Fate::Served;
        }
        ended.requests += 1;
        if ended.again.elapsed() >= ENDED_AGAIN_AFTER {
            Fate::EndedAgain
        } else if ended.requests <= MOST_ANSWERS {
            Fate::Answered
        } else {
            Fate::Forgotten
        }
    }
}
