//! The requests that have come and are not yet answered, in a pipeline for each connection.
//!
//! One connection's requests are served one after another, and connections take turns, so that one
//! that sends a thousand requests ahead delays nobody but itself.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tiny_http::Request;

use super::wait::Wait;
use crate::manager::Place;

/// How many requests of one connection may wait for the one before them.
pub(super) const MAX_PIPELINED: usize = 1000;

#[derive(Default)]
pub(super) struct Pipelines {
    state: Mutex<State>,
    /// Tells that the last pipeline has ended.
    all_served: Condvar,
}

#[derive(Default)]
struct State {
    pipelines: HashMap<SocketAddr, Pipeline>,
    /// The requests that may be served, at most one of each connection.
    ready: VecDeque<(SocketAddr, Request)>,
}

/// A pipeline exists as long as a request of its connection is not answered.
#[derive(Default)]
struct Pipeline {
    /// What has come behind the request that is ready or being served.
    behind: VecDeque<Request>,
    /// Where the request being served waits for its turn.
    waiting: Option<Waiting>,
}

struct Waiting {
    wait: Arc<Wait>,
    place: Place,
    /// `None` until it is watched for its client's end: most waits are over before.
    watch: Option<Watched>,
}

/// A waiter whose client may go away.
#[derive(Clone)]
pub(super) struct Watched {
    pub client: SocketAddr,
    pub id: u64,
    /// What tells its connection from a later one that comes from the same port. `None` if it was gone
    /// before it was looked for.
    pub connection: Option<u64>,
}

/// What [`Pipelines::enter`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entered {
    Fine,
    /// The connection sends faster than it is served.
    TooMany,
}

impl Pipelines {
    /// Puts a request at the end of its connection's pipeline.
    pub fn enter(&self, client: SocketAddr, request: Request) -> Entered {
        let mut state = self.state.lock();
        let Some(pipeline) = state.pipelines.get_mut(&client) else {
            state.pipelines.insert(client, Pipeline::default());
            state.ready.push_back((client, request));
            return Entered::Fine;
        };
        pipeline.behind.push_back(request);
        if pipeline.behind.len() > MAX_PIPELINED {
            Entered::TooMany
        } else {
            Entered::Fine
        }
    }

    /// Whether every request is answered.
    pub fn is_empty(&self) -> bool {
        self.state.lock().pipelines.is_empty()
    }

    /// Ends all pipelines, and returns what was never answered.
    pub fn end(&self) -> Vec<(SocketAddr, Request)> {
        let State { pipelines, ready } = std::mem::take(&mut *self.state.lock());
        let behind = pipelines.into_iter().flat_map(|(client, pipeline)| {
            let behind = pipeline.behind.into_iter();
            behind.map(move |request| (client, request))
        });
        ready.into_iter().chain(behind).collect()
    }

    /// Whether [`next`](Self::next) has something.
    pub fn is_ready(&self) -> bool {
        !self.state.lock().ready.is_empty()
    }

    /// The next request to serve. The others of its connection wait until it is [`done`](Self::done).
    pub fn next(&self) -> Option<(SocketAddr, Request)> {
        self.state.lock().ready.pop_front()
    }

    /// Ends the service of a connection's request. `true` if the next one of its pipeline is ready now.
    pub fn done(&self, client: SocketAddr) -> bool {
        let mut state = self.state.lock();
        let next = state.pipelines.get_mut(&client).and_then(|pipeline| {
            pipeline.waiting = None;
            pipeline.behind.pop_front()
        });
        if let Some(next) = next {
            state.ready.push_back((client, next));
            return true;
        }
        state.pipelines.remove(&client);
        if state.pipelines.is_empty() {
            self.all_served.notify_all();
        }
        false
    }

    /// Takes away what stands in a connection's pipeline.
    pub fn clear(&self, client: SocketAddr) -> VecDeque<Request> {
        let mut state = self.state.lock();
        state
            .pipelines
            .get_mut(&client)
            .map(|pipeline| std::mem::take(&mut pipeline.behind))
            .unwrap_or_default()
    }

    /// Notes that the request being served waits.
    pub fn set_waiting(&self, client: SocketAddr, wait: Arc<Wait>, place: Place) {
        if let Some(pipeline) = self.state.lock().pipelines.get_mut(&client) {
            pipeline.waiting = Some(Waiting {
                wait,
                place,
                watch: None,
            });
        }
    }

    /// The waiters that are not watched yet, or have no thread.
    pub fn unattended(&self) -> Vec<(Arc<Wait>, Place)> {
        let state = self.state.lock();
        let waiting = state
            .pipelines
            .values()
            .filter_map(|pipeline| pipeline.waiting.as_ref());
        waiting
            .filter(|waiting| waiting.watch.is_none() || !waiting.wait.has_thread())
            .map(|waiting| (waiting.wait.clone(), waiting.place.clone()))
            .collect()
    }

    /// Notes that a waiter is watched from now on, unless its wait is over: the next one on the same
    /// connection is another.
    pub fn watch(&self, wait: &Arc<Wait>, watched: Watched) {
        let mut state = self.state.lock();
        if let Some(waiting) = state
            .pipelines
            .get_mut(&watched.client)
            .and_then(|pipeline| pipeline.waiting.as_mut())
            .filter(|waiting| Arc::ptr_eq(&waiting.wait, wait))
        {
            waiting.watch = Some(watched);
        }
    }

    /// The watched waiters that may have lost their client: those under these ids, and those behind
    /// which a request has come, which may be from a new connection of the same port.
    pub fn suspects(&self, ids: &HashSet<u64>) -> Vec<(Watched, Place)> {
        let state = self.state.lock();
        let suspect = |pipeline: &Pipeline| {
            let waiting = pipeline.waiting.as_ref()?;
            let watched = waiting.watch.as_ref()?;
            (ids.contains(&watched.id) || !pipeline.behind.is_empty())
                .then(|| (watched.clone(), waiting.place.clone()))
        };
        state.pipelines.values().filter_map(suspect).collect()
    }

    /// Blocks until every request is answered, at most until `deadline`.
    pub fn wait_until_served(&self, deadline: std::time::Instant) {
        let mut state = self.state.lock();
        while !state.pipelines.is_empty() {
            if self.all_served.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}
