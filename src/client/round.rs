//! One question to several servers of which one leads: it begins at the server that answered last, and goes to the next
//! one as long as it is certain that none has carried it out.

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
    /// Asks the server that answered last and, while it is certain that none has acted, each of the others once. Also
    /// returns whether the server that answered is not the one that was asked first.
    ///
    /// If a server may have carried out the question, the round ends: the caller decides whether to ask again. An
    /// UNLOCK without a fence is not asked again.
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

/// The servers that were asked and have not carried out the question, with their answers.
struct Round<'a> {
    cluster: &'a Cluster,
    asked: Vec<(usize, NoAnswer)>,
    /// The leader, as named by the last server that stands by.
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

    /// Notes a server that has not carried out the question. Returns the failure if the server may have carried it out
    /// or has answered.
    fn take(&mut self, at: usize, failure: NoAnswer) -> Result<(), NoAnswer> {
        let route = self.cluster.route(at);
        let first = self.asked.first().map_or(at, |(first, _)| *first);
        match &failure {
            NoAnswer::Standby(standby) => {
                let leader = standby.leader.as_deref();
                self.leader = leader.and_then(|leader| self.cluster.leader(at, leader));
            }
            NoAnswer::NotConnected(..) => {}
            // No question was sent.
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
            // No server of this cluster was asked: see `Cluster::check_store`.
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

    /// The next server to ask: the leader that was named, or else the next one of the list. `None` if all were asked.
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

    /// Why no server has answered. The next round begins with a server that stands by, if one does.
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

/// The result of a question at one server, in words.
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

/// The result at each server that was asked, in words.
#[derive(Debug)]
struct AllAsked(Vec<String>);

impl fmt::Display for AllAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl error::Error for AllAsked {}
