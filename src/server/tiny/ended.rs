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
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its connection was not ended.
    Served,
    /// The client learns that it has to ask again.
    Answered,
    /// The client's connection is ended again.
    EndedAgain,
    Forgotten,
}

impl EndedConnection {
    fn is_recognised(&self, now: Instant) -> bool {
        let age = now.duration_since(self.since);
        age < RECOGNISED_FOR && self.connection.is_open()
            || age < RECOGNISED_UNKNOWN_FOR && !self.connection.is_whole()
    }
}

impl EndedConnections {
    /// Notes that the connection to a client was ended.
    pub fn note(&self, client: SocketAddr, connection: ShutDown) {
        self.note_at(client, connection, Instant::now());
    }

    fn note_at(&self, client: SocketAddr, connection: ShutDown, now: Instant) {
        let mut all = self.0.lock();
        let earlier = all.get(&client).filter(|ended| ended.is_recognised(now));
        let ended = EndedConnection {
            connection,
            since: earlier.map_or(now, |earlier| earlier.since),
            again: now,
            requests: 0,
        };
        all.insert(client, ended);
        // Not each time, since others may be many.
        if all.len().is_power_of_two() {
            all.retain(|_, ended| ended.is_recognised(now));
            shrink_map(&mut all);
        }
    }

    /// What becomes of a request from this address. It may also be of the client's next connection from the same port.
    pub fn fate_of_request(&self, client: SocketAddr) -> Fate {
        self.fate_at(client, Instant::now())
    }

    fn fate_at(&self, client: SocketAddr, now: Instant) -> Fate {
        let mut all = self.0.lock();
        let Some(ended) = all.get_mut(&client) else {
            return Fate::Served;
        };
        if !ended.is_recognised(now) {
            all.remove(&client);
            return Fate::Served;
        }
        ended.requests += 1;
        if now.duration_since(ended.again) >= ENDED_AGAIN_AFTER {
            Fate::EndedAgain
        } else if ended.requests <= MOST_ANSWERS {
            Fate::Answered
        } else {
            Fate::Forgotten
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "127.0.0.1:40000";

    #[test]
    fn requests_of_an_ended_connection_are_recognised_for_two_seconds_without_its_descriptors() {
        let (ended, begun) = (EndedConnections::default(), Instant::now());
        let client = CLIENT.parse().unwrap();
        assert_eq!(ended.fate_at(client, begun), Fate::Served);
        let ms = Duration::from_millis;
        ended.note_at(client, ShutDown::default(), begun);
        assert_eq!(ended.fate_at(client, begun + ms(49)), Fate::Answered);
        assert_eq!(ended.fate_at(client, begun + ms(50)), Fate::EndedAgain);
        // To end it again does not prolong that.
        ended.note_at(client, ShutDown::default(), begun + ms(1990));
        assert_eq!(ended.fate_at(client, begun + ms(1999)), Fate::Answered);
        assert_eq!(ended.fate_at(client, begun + ms(2000)), Fate::Served);
    }

    #[test]
    fn no_more_than_20_requests_of_an_ended_connection_are_answered() {
        let (ended, now) = (EndedConnections::default(), Instant::now());
        let client = CLIENT.parse().unwrap();
        ended.note_at(client, ShutDown::default(), now);
        for _ in 0..20 {
            assert_eq!(ended.fate_at(client, now), Fate::Answered);
        }
        assert_eq!(ended.fate_at(client, now), Fate::Forgotten);
    }
}
