//! Calls of etcd's JSON gateway: one try each, at one endpoint, and at the next one after a failure. Knows nothing of
//! the calls' meaning.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::failure::{CallFailure, FailureClass, failure_in, no_answer};
use super::messages::{Answer, AuthAnswer, AuthRequest};
use super::{EtcdOptions, PasswordFile};

/// The longest accepted answer, in bytes: longer than a page of holds with the longest names.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;

/// The shortest time between two log lines about failures.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// The calls of one thread to etcd, on one connection that stays open.
pub(super) struct EtcdGateway {
    agent: Agent,
    addresses: Arc<KnownEndpoints>,
    endpoints: Vec<String>,
    current: usize,
    user: Option<(String, PasswordFile)>,
    token: Option<String>,
    /// 0 before the first answer.
    cluster_id: u64,
    /// The greatest revision in an answer so far.
    revision: i64,
    logged: Option<Instant>,
    /// When a TLS failure was last logged. Apart, so that other failures, perhaps at another endpoint, do not hide one
    /// that somebody has to repair.
    logged_tls: Option<Instant>,
}

impl EtcdGateway {
    /// The greatest revision in an answer so far.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    pub fn new(options: &EtcdOptions) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("lock-server/", env!("CARGO_PKG_VERSION")))
            .accept("application/json")
            .build();
        let addresses = Arc::<KnownEndpoints>::default();
        let resolver = EndpointResolver(addresses.clone());
        let endpoints = options.endpoints.iter();
        EtcdGateway {
            agent: options.tls.agent(config, resolver),
            addresses,
            endpoints: endpoints
                .map(|endpoint| endpoint.trim_end_matches('/').into())
                .collect(),
            current: 0,
            user: options.user.clone(),
            token: None,
            cluster_id: 0,
            revision: 0,
            logged: None,
            logged_tls: None,
        }
    }

    /// The number of endpoints, and so of tries until each was called.
    pub fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// One try.
    pub fn call<A: Answer>(
        &mut self,
        path: &str,
        request: &impl Serialize,
        time: Duration,
    ) -> Result<A, CallFailure> {
        let request = serde_json::to_vec(request).expect("its keys are text");
        self.send(path, &request, time)
    }

    /// One try with an encoded request.
    pub fn send<A: Answer>(
        &mut self,
        path: &str,
        request: &[u8],
        time: Duration,
    ) -> Result<A, CallFailure> {
        let answer = self.authenticate(time);
        let answer = answer.and_then(|()| self.ask(path, request, time));
        if let Err(failure) = &answer {
            self.after(failure);
        }
        answer
    }

    fn after(&mut self, failure: &CallFailure) {
        if failure.class == FailureClass::TokenExpired {
            self.token = None;
        }
        if failure.class.is_of_the_member() {
            self.addresses.forget();
            self.current = (self.current + 1) % self.endpoints.len();
        }
    }

    /// Requests a token, if there is a user and no token.
    fn authenticate(&mut self, time: Duration) -> Result<(), CallFailure> {
        let Some((name, password)) = self.user.as_ref().filter(|_| self.token.is_none()) else {
            return Ok(());
        };
        let password = password.read().map_err(|message| CallFailure {
            class: FailureClass::Denied,
            endpoint: self.endpoints[self.current].clone(),
            message,
        })?;
        let request = AuthRequest {
            name,
            password: &password,
        };
        let request = serde_json::to_vec(&request).expect("its keys are text");
        match self.ask::<AuthAnswer>("/v3/auth/authenticate", &request, time) {
            Ok(answer) => self.token = Some(answer.token),
            Err(failure) if failure.class == FailureClass::NoUsers => {}
            Err(mut failure) => {
                // The call that needs the token was not sent.
                if failure.class == FailureClass::Unknown {
                    failure.class = FailureClass::NotSent;
                }
                return Err(failure);
            }
        }
        Ok(())
    }

    fn ask<A: Answer>(
        &mut self,
        path: &str,
        request: &[u8],
        time: Duration,
    ) -> Result<A, CallFailure> {
        let had_token = self.token.is_some();
        let (class, message) = match self.exchange(path, request, time) {
            Err(error) => no_answer(&error),
            Ok((status, body)) => match failure_in(status, &body) {
                // Meanwhile authentication was switched on.
                Some((FailureClass::Denied, message))
                    if message.contains("user name is empty")
                        && self.user.is_some()
                        && !had_token =>
                {
                    (FailureClass::TokenExpired, message)
                }
                Some(failure) => failure,
                None => match serde_json::from_slice::<A>(&body) {
                    Ok(answer) if answer.header().cluster_id != 0 => match self.check(&answer) {
                        Ok(()) => return Ok(answer),
                        Err(message) => (FailureClass::Untrusted, message),
                    },
                    Ok(_) => (FailureClass::Unknown, "the answer is not etcd's".into()),
                    Err(error) => (
                        FailureClass::Unknown,
                        format!("the answer is not etcd's: {error}"),
                    ),
                },
            },
        };
        Err(CallFailure {
            class,
            endpoint: self.endpoints[self.current].clone(),
            message,
        })
    }

    fn exchange(
        &self,
        path: &str,
        request: &[u8],
        time: Duration,
    ) -> Result<(u16, Vec<u8>), ureq::Error> {
        let url = format!("{}{path}", self.endpoints[self.current]);
        let post = self.agent.post(&url).config();
        let post = post
            .timeout_global(Some(time))
            // Shorter than the whole time, to distinguish a missing connection from a missing answer.
            .timeout_connect(Some(time * 3 / 4))
            .build()
            .content_type("application/json");
        let post = match &self.token {
            Some(token) => post.header("Authorization", token),
            None => post,
        };
        let mut response = post.send(request)?;
        let body = response.body_mut().with_config().limit(MAX_ANSWER);
        let body = body.read_to_vec()?;
        Ok((response.status().as_u16(), body))
    }

    /// Checks that this is the same etcd cluster as before, and that it has lost nothing.
    fn check(&mut self, answer: &impl Answer) -> Result<(), String> {
        let cluster_id = answer.header().cluster_id;
        if self.cluster_id != 0 && cluster_id != self.cluster_id {
            return Err(format!(
                "this is another cluster than before: {cluster_id:x}, not {:x}",
                self.cluster_id
            ));
        }
        self.cluster_id = cluster_id;
        if let Some(revision) = answer.revision() {
            if revision < self.revision {
                return Err(format!(
                    "etcd's revision fell from {} to {revision}, as it does when etcd is restored from a copy",
                    self.revision
                ));
            }
            self.revision = revision;
        }
        Ok(())
    }

    /// Logs a failure: the first one at once, and then at most one every [`LOG_EVERY`].
    pub fn log_failure(&mut self, doing: &str, failure: &CallFailure) {
        let logged = match failure.class {
            FailureClass::NoTls(_) => &mut self.logged_tls,
            _ => &mut self.logged,
        };
        if logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            *logged = Some(Instant::now());
            let advice = failure.class.advice();
            log::warn!("cannot {doing}, and tries again: etcd at {failure}; {advice}");
        }
    }

    /// Logs that etcd answers, if a failure was logged before.
    pub fn log_success(&mut self) {
        let failed = [self.logged.take(), self.logged_tls.take()];
        if failed.iter().any(Option::is_some) {
            log::info!("etcd at {} answers", self.endpoints[self.current]);
        }
    }
}

/// Resolves an endpoint once, and again after a failure. ureq's own resolver starts a thread for each call with a
/// time-out, even on an open connection.
#[derive(Debug)]
struct EndpointResolver(Arc<KnownEndpoints>);

#[derive(Debug, Default)]
struct KnownEndpoints(Mutex<HashMap<String, ResolvedSocketAddrs>>);

impl KnownEndpoints {
    fn forget(&self) {
        self.0.lock().clear();
    }
}

impl Resolver for EndpointResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if let Some(known) = self.0.0.lock().get(authority) {
            return Ok(known.clone());
        }
        let found = DefaultResolver::default().resolve(uri, config, timeout);
        let found = found.map_err(|error| match error {
            // The request was not sent.
            ureq::Error::Io(error) => {
                log::debug!("cannot look up {authority}: {error}");
                ureq::Error::HostNotFound
            }
            error => error,
        })?;
        self.0.0.lock().insert(authority.into(), found.clone());
        Ok(found)
    }
}
