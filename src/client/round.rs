//! One question to several servers, of which one leads: from the one that answered last to the next one, for as long as
//! it is certain that nobody has carried it out.

use std::error;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, Route};
use super::no_answer::{NoAnswer, Standby};
use super::transport::Transport;
use crate::error::{Error, Unreached};
use crate::refusal::Refusal;

impl Transport {
    /// Asks the server that answered last and, while it is certain that none has acted, the others, each of them once.
    /// Returns also whether another one answered than the first.
    ///
    /// After a question that may have been carried out there is no next one here: whether it is asked again is for the
    /// caller to say, and an UNLOCK without a fence is not.
    pub(super) fn in_round<T>(
        &self,
        timeout: Duration,
        ask: impl Fn(&Route, Duration) -> Result<T, NoAnswer>,
    ) -> Result<(T, bool), NoAnswer> {
        let begun = Instant::now();
        let mut at = self.cluster.first();
        let mut failure = match ask(self.cluster.route(at), timeout) {
            Ok(answer) => return Ok((answer, false)),
            Err(failure) => failure,
        };
        let mut round = Round::new(&self.cluster);
        loop {
            round.take(at, failure)?;
            let left = timeout.saturating_sub(begun.elapsed());
            let next = round.next().filter(|_| !left.is_zero());
            let Some(next) = next else {
                return Err(round.end());
            };
            at = next;
            failure = match ask(self.cluster.route(at), left) {
                Ok(answer) => {
                    self.cluster.prefer(at);
                    return Ok((answer, true));
                }
                Err(failure) => failure,
            };
        }
    }
}

/// What the servers have said that did not carry a question out.
struct Round<'a> {
    cluster: &'a Cluster,
    asked: Vec<(usize, NoAnswer)>,
    /// Who leads, as the latest one says that stands by.
    leader: Option<usize>,
}

impl<'a> Round<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Round {
            cluster,
            asked: Vec::new(),
            leader: None,
        }
    }

    /// Takes in that one has not carried the question out; or returns what came, if it may have, or has answered.
    fn take(&mut self, at: usize, failure: NoAnswer) -> Result<(), NoAnswer> {
        let route = self.cluster.route(at);
        let first = self.asked.first().map_or(at, |(first, _)| *first);
        match &failure {
            NoAnswer::Standby(standby) => {
                let leader = standby.leader.as_deref();
                self.leader = leader.and_then(|leader| self.cluster.leader(at, leader));
            }
            NoAnswer::NotConnected(..) => {}
            // Nothing was asked.
            NoAnswer::Told(Error::TlsFailed { .. }) if self.cluster.is_several() => {}
            NoAnswer::Interrupted(_) => {
                self.cluster.leave(first, at);
                return Err(failure);
            }
            NoAnswer::Told(Error::Refused { reason, .. }) => {
                if *reason == Refusal::Stopping {
                    self.cluster.leave(first, at);
                }
                return Err(failure);
            }
            // Nothing was asked of this cluster: see `Cluster::check_store`.
            NoAnswer::Told(Error::NotOfCluster { .. }) => {}
            NoAnswer::Told(_) if route.is_learned => {}
            NoAnswer::Told(_) => return Err(failure),
        }
        if route.is_learned && !matches!(failure, NoAnswer::Standby(_)) {
            route.fail();
        }
        self.asked.push((at, failure));
        Ok(())
    }

    /// Who is asked next: the leader that was named, or else the next one of the list. `None` after all.
    fn next(&mut self) -> Option<usize> {
        let first = self.asked.first()?.0;
        let is_new = |at: &usize| self.asked.iter().all(|(asked, _)| asked != at);
        if let Some(leader) = self.leader.filter(is_new) {
            return Some(leader);
        }
        let mut at = first;
        for _ in 0..self.cluster.count() {
            at = self.cluster.after(at);
            if is_new(&at) {
                return Some(at);
            }
        }
        None
    }

    /// Why nobody has answered. The next round begins with one that is there, if one is.
    fn end(mut self) -> NoAnswer {
        let stands_by = |(_, failure): &&(usize, NoAnswer)| matches!(failure, NoAnswer::Standby(_));
        let standby = self.asked.iter().find(stands_by).map(|(at, _)| *at);
        match (standby, self.asked.first()) {
            (Some(at), _) => self.cluster.prefer(at),
            (None, Some((at, _))) => self.cluster.leave(*at, *at),
            (None, None) => {}
        }
        let is_one = self.asked.len() == 1 && standby.is_none();
        if let Some((_, failure)) = self.asked.pop_if(|_| is_one) {
            return failure;
        }
        let is_stranger = |(_, failure): &(usize, NoAnswer)| {
            matches!(failure, NoAnswer::Told(Error::NotOfCluster { .. }))
        };
        if standby.is_none()
            && let Some(at) = self.asked.iter().position(is_stranger)
        {
            return self.asked.swap_remove(at).1;
        }
        let of_last = match self.asked.last() {
            Some((_, NoAnswer::NotConnected(cause, source))) => (*cause, source.kind()),
            _ => (Unreached::Connect, io::ErrorKind::Other),
        };
        let (cause, kind) = match standby {
            Some(_) => (Unreached::NoLeader, io::ErrorKind::Other),
            None => of_last,
        };
        let told = self.asked.into_iter().map(|(at, failure)| {
            let address = self.cluster.route(at).address.to_string();
            in_words(&address, failure)
        });
        NoAnswer::NotConnected(cause, io::Error::new(kind, AllAsked(told.collect())))
    }
}

/// What became of a question at one server, in words.
fn in_words(address: &str, failure: NoAnswer) -> String {
    match failure {
        NoAnswer::Standby(Standby {
            leader: Some(leader),
            ..
        }) => format!("{address} stands by for {leader}"),
        NoAnswer::Standby(_) => format!("{address} stands by"),
        NoAnswer::NotConnected(_, source) | NoAnswer::Interrupted(source) => {
            format!("{address}: {source}")
        }
        NoAnswer::Told(error) => error.to_string(),
    }
}

/// What each server that was asked has said.
#[derive(Debug)]
struct AllAsked(Vec<String>);

impl fmt::Display for AllAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl error::Error for AllAsked {}
