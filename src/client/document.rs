//! One question whose answer is a document: JSON of any length up to a bound.

use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use ureq::http::header::CONTENT_TYPE;

use super::cluster::Route;
use super::no_answer::NoAnswer;
use super::transport::{Transport, UnreadAnswer, bad_reply};
use super::tries::Tries;
use crate::error::Error;
use crate::lease::ServerId;
use crate::protocol::{self, Request};
use crate::refusal::Refusal;

/// The longest document that is read. 1,000 keys with 100 holders each take 64 MiB if a holder takes 670 bytes: twice
/// the length of a holder whose name and note have 60 bytes each.
const MAX_DOCUMENT: u64 = 64 * 1024 * 1024;

impl Transport {
    /// Asks for a document, as often as the options allow.
    pub(super) fn ask_document<T: DeserializeOwned>(&self, question: &Request) -> Result<T, Error> {
        let mut tries = Tries::new(self);
        loop {
            let asked = Instant::now();
            let timeout = self.timeout_of_one_try(question);
            let document = self.in_round(timeout, |route, timeout| {
                self.call_document(route, question, timeout)
            });
            match document {
                Ok((document, _)) => return Ok(document),
                Err(failure) => thread::sleep(tries.failed(question, asked, failure)?),
            }
        }
    }

    fn call_document<T: DeserializeOwned>(
        &self,
        route: &Route,
        question: &Request,
        timeout: Duration,
    ) -> Result<T, NoAnswer> {
        let no_document = |reply: &str| NoAnswer::Told(bad_reply(&route.address, question, reply));
        let answer = self.send(route, question, timeout)?;
        if !is_json(&answer) {
            return Err(match self.read(route, question, answer) {
                Ok(_) => no_document("no document"),
                Err(NoAnswer::Told(error)) => NoAnswer::Told(if_too_old(error)),
                Err(failure) => failure,
            });
        }
        let UnreadAnswer {
            mut response,
            id,
            asked,
        } = answer;
        let header = |name: &str| Some(response.headers().get(name)?.as_bytes());
        // A proxy may drop the header, so its absence proves nothing.
        if header(protocol::LOCK_ECHO).is_some_and(|echoed| echoed != id.as_bytes()) {
            return Err(no_document("the answer to another question"));
        }
        let server = header(protocol::LOCK_SERVER).and_then(|id| str::from_utf8(id).ok());
        if let Some(server) = server.filter(|id| protocol::is_id(id)) {
            self.servers().note(&ServerId::from(server), asked);
        }
        let body = response.body_mut().with_config().limit(MAX_DOCUMENT);
        let body = match body.read_to_vec() {
            Ok(body) => body,
            Err(ureq::Error::BodyExceedsLimit(_)) => {
                return Err(no_document("more than 64 MiB; ask for fewer keys"));
            }
            Err(error) => return Err(NoAnswer::in_the_body(error)),
        };
        serde_json::from_slice(&body).map_err(|error| no_document(&format!("other JSON: {error}")))
    }
}

fn is_json(answer: &UnreadAnswer) -> bool {
    let kind = answer.response.headers().get(CONTENT_TYPE);
    let is_json = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    answer.response.status() == 200 && is_json
}

/// Replaces the message of a server before 0.2.0, which lists its verbs and does not explain the problem.
fn if_too_old(error: Error) -> Error {
    match error {
        Error::Refused {
            question,
            reason: reason @ Refusal::NoSuchVerb,
            ..
        } => Error::Refused {
            question,
            reason,
            message: "it has no such page: it is older than 0.2.0, or its address has a wrong path"
                .into(),
        },
        error => error,
    }
}
