//! What the server shows to those who look in, as data.

use std::time::Duration;

use ureq::Body;
use ureq::http::Response;

use super::no_answer::NoAnswer;
use super::transport::{Transport, is_status_of_proxy, name_of};
use super::{Client, valid};
use crate::error::Error;
use crate::protocol::http::{NotAnswered, ParsedReply};
use crate::protocol::json::KeyDetail;
use crate::protocol::{LOCK_RESULT, Request, Verb};

/// More than 10,000 holders and 10,000 waiters take, with names as long as they may be.
const MAX_DOCUMENT: u64 = 256 * 1024 * 1024;

impl Client {
    /// Who holds the key and who waits for it, each with its fence, its note and its times. Of a free key the lists are
    /// empty.
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked); [`Error::BadReply`] also of a server before 0.2.0.
    pub fn show(&self, key: &str) -> Result<KeyDetail, Error> {
        let question = Request::new(Verb::Locks, valid("key", key)?, "");
        let timeout = self.answer_timeout();
        let answer = self.transport.document(&question, timeout);
        let document = answer.map_err(|why| self.transport.error(&question, why, 1, false))?;
        serde_json::from_slice(&document)
            .map_err(|error| self.transport.bad_reply(&question, &error.to_string()))
    }
}

impl Transport {
    /// The document that answers a question which changes nothing.
    fn document(&self, question: &Request, timeout: Duration) -> Result<Vec<u8>, NoAnswer> {
        let mut response = self.send(question, "", timeout)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(MAX_DOCUMENT);
        let body = body.read_to_vec().map_err(NoAnswer::in_the_body)?;
        if status == 200 {
            return Ok(body);
        }
        Err(refused(self, question, &response, &body))
    }
}

/// Why there is no document in an answer.
pub(super) fn refused(
    transport: &Transport,
    question: &Request,
    response: &Response<Body>,
    body: &[u8],
) -> NoAnswer {
    let status = response.status().as_u16();
    let header = |name: &str| Some(response.headers().get(name)?.as_bytes());
    if is_status_of_proxy(status) && header(LOCK_RESULT).is_none() {
        return NoAnswer::by_proxy(status);
    }
    let text = String::from_utf8_lossy(body);
    match ParsedReply::parse(status, header, &text, "") {
        Err(NotAnswered::Refused(reason, message)) => NoAnswer::Told(Error::Refused {
            question: name_of(question),
            reason,
            message,
        }),
        _ => NoAnswer::Told(transport.bad_reply(question, &format!("status {status}"))),
    }
}
