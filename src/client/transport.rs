//! One question and its answer over HTTP.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::process;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ureq::http::{HeaderValue, Response, header};
use ureq::{Body, RequestBuilder};

use super::ClientOptions;
use super::address::ServerAddress;
use super::cluster::{Cluster, Route};
use super::no_answer::{NoAnswer, Standby, is_status_of_proxy};
use super::pooled_agent::{MAX_REPLY, PooledAgent};
use super::servers_met::ServersMet;
use crate::error::{Error, Unreached};
use crate::host::is_of_one_machine;
use crate::protocol::http::{NotAnswered, ParsedReply, ServerTimes};
use crate::protocol::{self, Request};
use crate::refusal::Refusal;
#[cfg(feature = "tls")]
use crate::tls::TlsError;
use crate::token::Token;

/// The longest time for a connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Longer than any server lets a LOCK wait. Times are cut to it, so that they can be added to an instant.
pub(super) const LONGEST: Duration = Duration::from_secs(2 * 365 * 24 * 60 * 60);

/// Sends questions to one server, or to several of which one leads. A clone shares the connections, which are kept open
/// between questions.
#[derive(Clone)]
pub(crate) struct Transport {
    pub(super) cluster: Arc<Cluster>,
    pub(super) options: ClientOptions,
    /// Whether to try again if the first connection is refused on loopback. If not, the refusal means that no server
    /// runs there.
    pub(super) tries_refused: bool,
    /// The longest silence while an answer is awaited or read. `None` without such a limit.
    longest_silence: Option<Duration>,
    /// Whether a question that gets no answer in time is asked again, and its connection stays open until then.
    overlaps: bool,
}

/// An answer of which only the head has been read.
pub(super) struct UnreadAnswer {
    pub response: Response<Body>,
    /// The question's ID.
    pub id: String,
    /// When the question was sent.
    pub asked: Instant,
}

/// A whole answer.
pub(super) struct HttpAnswer {
    pub reply: ParsedReply,
    /// When the question that it answers was sent.
    pub asked: Instant,
    /// The error of an earlier try of the question, if there was one after which the server may have acted.
    pub broken: Option<Error>,
    /// Whether no server was reached in between. Then a different server may have answered, unless it names itself or
    /// its store.
    pub was_gone: bool,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Transport").field(&self.address()).finish()
    }
}

impl Transport {
    /// To one server, with the default options. An IPv6 host may have brackets.
    pub fn new(host: &str, port: u16) -> Self {
        Transport::to(&ServerAddress {
            host: host.into(),
            port,
            prefix: String::new(),
            is_https: false,
        })
    }

    /// As [`new`](Self::new), for an address that may have a prefix.
    pub fn to(address: &ServerAddress) -> Self {
        Transport::to_all(slice::from_ref(address))
    }

    /// To several servers of which one leads.
    pub fn to_all(addresses: &[ServerAddress]) -> Self {
        Transport::within(Cluster::of(addresses))
    }

    fn within(cluster: Cluster) -> Self {
        Transport {
            cluster: Arc::new(cluster),
            options: ClientOptions::default(),
            tries_refused: false,
            longest_silence: None,
            overlaps: false,
        }
    }

    /// The same servers, over new connections that count as broken after a silence of this length.
    pub(super) fn alone(&self, longest_silence: Duration) -> Self {
        Transport {
            options: self.options.clone(),
            longest_silence: Some(longest_silence),
            ..Transport::within(self.cluster.apart())
        }
    }

    /// The same connections, for a question that is asked again if it gets no answer in time. Its connection stays open
    /// for a while after that, so that a LOCK that waits is in the queue without a gap.
    pub(super) fn overlapping(&self) -> Self {
        Transport {
            overlaps: true,
            ..self.clone()
        }
    }

    /// The same connections, with these options.
    pub(super) fn with_options(self, options: ClientOptions) -> Self {
        let token = options.token.or(self.options.token);
        Transport {
            options: ClientOptions { token, ..options },
            tries_refused: true,
            ..self
        }
    }

    /// The same connections, with this token to show.
    pub(crate) fn with_token(mut self, token: Option<Token>) -> Self {
        self.options.token = token;
        self
    }

    /// `host:port`, an IPv6 host in brackets; with a prefix or over TLS, a URL. Several have commas between them.
    pub(super) fn address(&self) -> String {
        self.cluster.to_string()
    }

    /// The connections to the server that answered last.
    fn shared(&self) -> &PooledAgent {
        self.cluster.route(self.cluster.first()).shared()
    }

    /// The times of the server, if they are known and not older than `age`.
    pub(super) fn known_times(&self, age: Duration) -> Option<ServerTimes> {
        let (times, since) = (*self.shared().times())?;
        (since.elapsed() < age).then_some(times)
    }

    /// Notes the times of the server, or forgets them.
    pub(super) fn note_times(&self, times: Option<ServerTimes>) {
        *self.shared().times() = times.map(|times| (times, Instant::now()));
    }

    /// The connection that the latest question was sent on, if it is still open.
    pub(super) fn latest_connection(&self) -> Option<TcpStream> {
        self.shared().latest.get()
    }

    /// The servers that have answered.
    pub(super) fn servers(&self) -> &ServersMet {
        self.cluster.servers()
    }

    /// Asks a question a single time.
    pub(super) fn ask_once(
        &self,
        question: &Request,
        timeout: Duration,
    ) -> Result<HttpAnswer, Error> {
        self.call(question, timeout)
            .map_err(|failure| self.error(question, failure, 1, false))
    }

    /// Asks each server the question once, until one answers.
    pub(super) fn call(
        &self,
        question: &Request,
        timeout: Duration,
    ) -> Result<HttpAnswer, NoAnswer> {
        let (answer, was_another) = self.in_round(timeout, |route, timeout| {
            let response = self.send(route, question, timeout)?;
            self.read(route, question, response)
        })?;
        Ok(HttpAnswer {
            was_gone: was_another,
            ..answer
        })
    }

    /// Sends a question, and reads the head of the answer.
    pub(super) fn send(
        &self,
        route: &Route,
        question: &Request,
        timeout: Duration,
    ) -> Result<UnreadAnswer, NoAnswer> {
        if let Some((option, reason)) = route.bad.clone() {
            return Err(NoAnswer::Told(Error::InvalidOption { option, reason }));
        }
        self.options.check().map_err(NoAnswer::Told)?;
        let asked = Instant::now();
        let id = question_id();
        let (agent, url) = (&route.shared().agent, route.url(question));
        let response = match question.verb.row().methods.contain("GET") {
            true => self.prepare(agent.get(url), &id, timeout).call(),
            false => self.prepare(agent.post(url), &id, timeout).send_empty(),
        };
        let response = response.map_err(|error| self.failure(route, question, error))?;
        self.check_cluster(route, question, &response)?;
        Ok(UnreadAnswer {
            response,
            id,
            asked,
        })
    }

    /// Checks that an answer is of this cluster: with several servers, an answer about locks has to name the store that
    /// they share. Answers about the server itself and refusals, which depend on no lock, need not name it. A server
    /// that is not in the list has to name it in any case: it may be a stranger.
    fn check_cluster(
        &self,
        route: &Route,
        question: &Request,
        response: &Response<Body>,
    ) -> Result<(), NoAnswer> {
        let tells_of_locks = response.status().is_success() && !question.verb.is_of_the_server();
        if !self.cluster.is_several() || !(tells_of_locks || route.is_learned) {
            return Ok(());
        }
        let header = |name| response.headers().get(name)?.to_str().ok();
        let result = header(protocol::LOCK_RESULT);
        // The answer of a proxy does not show which server is behind it, nor whether that server has acted.
        let is_of_proxy = is_status_of_proxy(response.status().as_u16()) && result.is_none();
        if is_of_proxy || result == Some(Refusal::Standby.as_str()) {
            return Ok(());
        }
        let checked = self
            .cluster
            .check_store(route, header(protocol::LOCK_STORE));
        checked.map_err(NoAnswer::Told)
    }

    /// Adds the headers of a question and the time-out for its answer.
    fn prepare<B>(
        &self,
        mut request: RequestBuilder<B>,
        id: &str,
        timeout: Duration,
    ) -> RequestBuilder<B> {
        request = request.header(protocol::LOCK_ECHO, id);
        if let Some(token) = &self.options.token {
            request = request.header(header::AUTHORIZATION, authorization(token));
        }
        let timeout = timeout.min(LONGEST);
        // `TrackedStream::cannot_read` recognises the end of a turn by the kind of its time-out.
        let (whole, turn) = match self.overlaps {
            true => (2 * timeout, Some(timeout)),
            false => (timeout, None),
        };
        request
            .config()
            .timeout_global(Some(whole))
            .timeout_recv_response(turn)
            .timeout_connect(Some(self.connect_timeout(timeout)))
            .timeout_per_read(self.longest_silence)
            .build()
    }

    /// The time-out of a connect. If there are other servers to ask, it leaves time for them.
    fn connect_timeout(&self, timeout: Duration) -> Duration {
        let part = match self.cluster.count() {
            1 => timeout / 5 * 4,
            _ => timeout / 2,
        };
        CONNECT_TIMEOUT.min(part)
    }

    /// Reads an answer to its end, so that the connection can be used again.
    pub(super) fn read(
        &self,
        route: &Route,
        question: &Request,
        answer: UnreadAnswer,
    ) -> Result<HttpAnswer, NoAnswer> {
        let UnreadAnswer {
            mut response,
            id,
            asked,
        } = answer;
        let status = response.status().as_u16();
        let is_of_lock_server = response.headers().contains_key(protocol::LOCK_RESULT);
        if is_status_of_proxy(status) && !is_of_lock_server {
            // The proxy's page may have any length, and is not read.
            return Err(NoAnswer::by_proxy(status));
        }
        let body = response
            .body_mut()
            .with_config()
            .limit(MAX_REPLY as u64)
            .read_to_vec();
        let body = match body {
            Ok(body) => String::from_utf8_lossy(&body).into_owned(),
            // The page of a server that is no lock server. The connection is not used again.
            Err(ureq::Error::BodyExceedsLimit(_)) => {
                let reply = format!("status {status} and more than {MAX_REPLY} bytes");
                return Err(NoAnswer::Told(bad_reply(&route.address, question, &reply)));
            }
            Err(error) => return Err(NoAnswer::in_the_body(error)),
        };
        let header = |name: &str| Some(response.headers().get(name)?.as_bytes());
        match ParsedReply::parse(status, header, &body, &id) {
            Ok(reply) => {
                if let Some(server) = &reply.server {
                    self.servers().note(server, asked);
                }
                if let Some(store) = &reply.store {
                    self.cluster.note_store(route, store);
                }
                Ok(HttpAnswer {
                    reply,
                    asked,
                    broken: None,
                    was_gone: false,
                })
            }
            Err(NotAnswered::Refused(Refusal::Standby, _)) => Err(NoAnswer::Standby(Standby::by(
                header(protocol::LOCK_LEADER),
            ))),
            Err(NotAnswered::Refused(reason, message)) => Err(NoAnswer::Told(Error::Refused {
                question: name_of(question),
                reason,
                message,
            })),
            Err(NotAnswered::Foreign(reply)) => {
                Err(NoAnswer::Told(bad_reply(&route.address, question, &reply)))
            }
        }
    }

    /// The failure, which says whether the question can have reached the server.
    fn failure(&self, route: &Route, question: &Request, error: ureq::Error) -> NoAnswer {
        // The questions are well-formed, so the answer is malformed.
        if let ureq::Error::Protocol(_) = error {
            return NoAnswer::Told(Error::NotHttp {
                question: name_of(question),
                address: route.address.to_string(),
            });
        }
        #[cfg(feature = "tls")]
        if let Some(error) = TlsError::of(&error) {
            return NoAnswer::of_tls(error.clone(), route.address.to_string());
        }
        let failure = NoAnswer::from(error);
        if let NoAnswer::NotConnected(..) = failure {
            route.shared().known.doubt();
        }
        failure
    }

    /// The error to return. `may_have_acted`: whether the question may have reached the server in an earlier try.
    pub(super) fn error(
        &self,
        question: &Request,
        failure: NoAnswer,
        attempts: u32,
        may_have_acted: bool,
    ) -> Error {
        let address = self.address();
        match failure {
            NoAnswer::Told(error) => error,
            // A round never ends so. A question to a single server does.
            NoAnswer::Standby(standby) => Error::Unreachable {
                address,
                attempts,
                cause: Unreached::NoLeader,
                source: io::Error::other(standby),
            },
            NoAnswer::NotConnected(cause, source) if !may_have_acted => Error::Unreachable {
                address,
                attempts,
                cause,
                source,
            },
            NoAnswer::NotConnected(_, source) | NoAnswer::Interrupted(source) => {
                Error::Interrupted {
                    question: name_of(question),
                    address,
                    attempts,
                    source,
                }
            }
        }
    }

    /// The error for a reply that is no answer to this question.
    pub(super) fn bad_reply(&self, question: &Request, reply: &str) -> Error {
        let route = self.cluster.route(self.cluster.first());
        bad_reply(&route.address, question, reply)
    }

    /// Whether the server's address is of this machine only.
    pub(super) fn is_loopback(&self) -> bool {
        let mut addresses = self.cluster.addresses();
        addresses.all(|address| is_of_one_machine(&address.host))
    }
}

/// The error for a reply from this address that is no answer to this question.
pub(super) fn bad_reply(address: &ServerAddress, question: &Request, reply: &str) -> Error {
    let reply = protocol::shorten(reply.lines().next().unwrap_or_default());
    Error::BadReply {
        question: name_of(question),
        address: address.to_string(),
        reply,
    }
}

/// The header that shows a token (RFC 6750, section 2.1). It is marked as a secret, so that it is never logged.
fn authorization(token: &Token) -> HeaderValue {
    let value = HeaderValue::try_from(format!("Bearer {}", token.as_str()));
    let mut value = value.expect("a token is visible ASCII");
    value.set_sensitive(true);
    value
}

/// An ID that is unique among the questions of all processes, so that the answer to another question is recognised.
fn question_id() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("{:x}-{:x}", process::id(), NUMBER.fetch_add(1, Relaxed))
}

/// The question for people, without its slash and its parameters.
pub(super) fn name_of(question: &Request) -> String {
    let question = question.to_string();
    let path = question.split('?').next().unwrap_or_default();
    protocol::shorten(path.trim_start_matches('/'))
}
