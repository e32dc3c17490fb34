//! The requests that have come and are not yet answered, in a line for each connection.
//!
//! One connection's requests are served one after another, and connections take turns, so that one
//! that sends a thousand requests ahead delays nobody but itself.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;

use parking_lot::{Condvar, Mutex};
use tiny_http::Request;

use crate::manager::Place;

/// How many requests of one connection may wait for the one before them.
pub(super) const MAX_PIPELINED: usize = 1000;

#[derive(Default)]
pub(super) struct Lines {
    state: Mutex<State>,
    /// Tells that the last line has ended.
    all_served: Condvar,
}

#[derive(Default)]
struct State {
    lines: HashMap<SocketAddr, Line>,
    /// The requests that may be served, at most one of each connection.
    ready: VecDeque<(SocketAddr, Request)>,
    next_watch_id: u64,
}

/// A line exists as long as a request of its connection is not answered.
#[derive(Default)]
struct Line {
    /// What has come behind the request that is ready or being served.
    behind: VecDeque<Request>,
    /// Where the request being served waits for its turn.
    waiting: Option<Waiting>,
}

struct Waiting {
    place: Place,
    watch: Watched,
}

/// Whether the connection of a waiter is watched for its end. Most waits are over before their
/// client could go away: one is watched from the second time on that it is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watched {
    No,
    Seen,
    As(u64),
}

/// What [`Lines::enter`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entered {
    Fine,
    /// The connection sends faster than it is served.
    TooMany,
}

impl Lines {
    /// Puts a request at the end of its connection's line.
    pub fn enter(&self, peer: SocketAddr, request: Request) -> Entered {
        let mut state = self.state.lock();
        let Some(line) = state.lines.get_mut(&peer) else {
            state.lines.insert(peer, Line::default());
            state.ready.push_back((peer, request));
            return Entered::Fine;
        };
        line.behind.push_back(request);
        if line.behind.len() > MAX_PIPELINED {
            Entered::TooMany
        } else {
            Entered::Fine
        }
    }

    /// Whether [`next`](Self::next) has something.
    pub fn is_ready(&self) -> bool {
        !self.state.lock().ready.is_empty()
    }

    /// The next request to serve. The others of its connection wait until it is [`done`](Self::done).
    pub fn next(&self) -> Option<(SocketAddr, Request)> {
        self.state.lock().ready.pop_front()
    }

    /// Ends the service of a connection's request. `true` if the next one of its line is ready now.
    pub fn done(&self, peer: SocketAddr) -> bool {
        let mut state = self.state.lock();
        let next = state
            .lines
            .get_mut(&peer)
            .and_then(|line| line.behind.pop_front());
        if let Some(next) = next {
            state.ready.push_back((peer, next));
            return true;
        }
        state.lines.remove(&peer);
        if state.lines.is_empty() {
            self.all_served.notify_all();
        }
        false
    }

    /// Takes away what stands in a connection's line.
    pub fn clear(&self, peer: SocketAddr) -> VecDeque<Request> {
        let mut state = self.state.lock();
        state
            .lines
            .get_mut(&peer)
            .map(|line| std::mem::take(&mut line.behind))
            .unwrap_or_default()
    }

    /// Notes that the request being served waits, or no longer does.
    pub fn set_waiting(&self, peer: SocketAddr, place: Option<Place>) {
        if let Some(line) = self.state.lock().lines.get_mut(&peer) {
            line.waiting = place.map(|place| Waiting {
                place,
                watch: Watched::No,
            });
        }
    }

    /// The waiters to be watched from now on, each with the id that it is watched under.
    pub fn to_be_watched(&self) -> Vec<(SocketAddr, u64)> {
        let mut state = self.state.lock();
        let State {
            lines,
            next_watch_id,
            ..
        } = &mut *state;
        let mut found = Vec::new();
        for (peer, line) in lines {
            let Some(waiting) = &mut line.waiting else {
                continue;
            };
            waiting.watch = match waiting.watch {
                Watched::No => Watched::Seen,
                Watched::Seen => {
                    *next_watch_id += 1;
                    found.push((*peer, *next_watch_id));
                    Watched::As(*next_watch_id)
                }
                watched => watched,
            };
        }
        found
    }

    /// The waiters that are watched under these ids and still wait.
    pub fn watched_as(&self, ids: &HashSet<u64>) -> Vec<(SocketAddr, Place)> {
        let state = self.state.lock();
        let waiting = state
            .lines
            .iter()
            .filter_map(|(peer, line)| Some((*peer, line.waiting.as_ref()?)));
        waiting
            .filter(|(_, waiting)| matches!(waiting.watch, Watched::As(id) if ids.contains(&id)))
            .map(|(peer, waiting)| (peer, waiting.place.clone()))
            .collect()
    }

    /// Blocks until every request is answered, at most until `deadline`.
    pub fn wait_until_served(&self, deadline: std::time::Instant) {
        let mut state = self.state.lock();
        while !state.lines.is_empty() {
            if self.all_served.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}
