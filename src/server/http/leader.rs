//! The thread that takes an instance's requests. It answers those that neither wait nor take long.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::helpers::{Help, Helpers};
use super::parked::Parked;
use super::{Http, Task};
use crate::protocol::http::origin_form;
use crate::protocol::{self, Malformed, Methods, Parameter, Reply, Request, Status, Verb, VerbRow};
use crate::refusal::Refusal;
use crate::server::access::{Access, Asker, Caller, TurnedAway};
use crate::server::handler::Handler;
use crate::server::tiny::{Exchange, Instance};
use crate::server::workers::leadership::{Lead, Leadership};
use crate::token::Role;

/// Which thread leads at one instance of tiny_http.
pub(super) struct Leader {
    pub instance: Arc<Instance>,
    http: Arc<Http>,
    leadership: Leadership,
    /// A leadership for which no thread could be started.
    vacant: Mutex<Option<Lead>>,
    helpers: Helpers,
    /// How many requests were taken: a busy leader takes more, a stuck one does not.
    taken: AtomicUsize,
    /// The last value of `taken` that a check has seen, and when it was first seen.
    looked: Mutex<(usize, Instant)>,
}

/// How many processors the process may use. 1 if unknown.
fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

impl Leader {
    /// Starts a thread that leads.
    pub fn start(instance: Arc<Instance>, http: Arc<Http>) -> Arc<Self> {
        let (leadership, lead) = Leadership::new();
        let leader = Arc::new(Leader {
            instance,
            http,
            leadership,
            vacant: Mutex::new(None),
            helpers: Helpers::new(processors()),
            taken: AtomicUsize::new(0),
            looked: Mutex::new((0, Instant::now())),
        });
        leader.clone().run(lead);
        leader
    }

    fn run(self: Arc<Self>, lead: Lead) {
        let http = self.http.clone();
        http.run(Task::Lead(self, lead));
    }

    /// Keeps a leadership for which there is no thread, until the next check.
    pub fn leave_vacant(&self, lead: Lead) {
        *self.vacant.lock() = Some(lead);
    }

    /// Whether the leader serves a request now, or no thread leads.
    pub fn is_serving(&self) -> bool {
        self.leadership.is_serving() || self.vacant.lock().is_some()
    }

    /// Deposes a leader that has served one request for `patience`: it writes to a client that does not read.
    pub fn depose_if_stuck(self: &Arc<Self>, patience: Duration) {
        let taken = self.taken.load(SeqCst);
        let mut looked = self.looked.lock();
        if looked.0 != taken {
            *looked = (taken, Instant::now());
            return;
        }
        if looked.1.elapsed() >= patience {
            let vacant = self.vacant.lock().take();
            if let Some(lead) = vacant.or_else(|| self.leadership.depose()) {
                self.clone().run(lead);
            }
        }
    }

    /// Takes requests and answers them until another thread leads, or the server ends.
    pub fn lead(self: &Arc<Self>, lead: &Lead) {
        while let Some(exchange) = Exchange::take(&self.instance) {
            if let Some(help) = self.helpers.call(self.instance.ready()) {
                self.http.run(Task::Help(self.clone(), help));
            }
            self.taken.fetch_add(1, SeqCst);
            self.leadership.serve(lead);
            self.http.serve(exchange);
            if !self.leadership.receive(lead) {
                return;
            }
        }
    }

    /// Answers requests until none is ready.
    pub fn help(&self, help: &Help) {
        while let Some(exchange) = Exchange::take_ready(&self.instance) {
            let goes_on = self.helpers.begin(help);
            self.http.serve(exchange);
            if !goes_on {
                return;
            }
        }
        self.helpers.end(help);
    }

    /// Ends a helper's turn for which the system has no thread.
    pub fn do_without(&self, help: &Help) {
        self.helpers.end(help);
    }

    /// Replaces helpers that are blocked by a client.
    pub fn give_up_stuck_helpers(&self) {
        self.helpers.give_up_stuck();
    }
}

impl Http {
    /// Answers a request, or has a worker read its body first.
    fn serve(self: &Arc<Self>, exchange: Exchange) {
        match exchange.has_unread_body() {
            // Reading may block without a limit.
            true => self.run(Task::ReadBody(exchange.into())),
            false => self.answer(exchange),
        }
    }

    /// Reads a body, and answers its request. For a worker.
    pub(super) fn read_body(self: &Arc<Self>, mut exchange: Exchange) {
        match exchange.turns_out_empty() {
            true => self.answer(exchange),
            false => {
                let reply = body_refused();
                self.count(exchange.target(), &reply);
                exchange.refuse_body(&reply);
            }
        }
    }

    /// Answers a request, or has a worker make a slow answer.
    fn answer(self: &Arc<Self>, exchange: Exchange) {
        let target = exchange.target().to_owned();
        let (handler, verb) = (&self.handler, Request::verb_row(&target));
        let caller = match let_in(&exchange, verb, &handler.access) {
            Ok(caller) => caller,
            Err(why) => return self.turn_away(exchange, &target, why),
        };
        match understand(&exchange, &target, verb, handler) {
            Ok(request)
                if let Some(reply) = handler.redirect(request.verb, origin_form(&target)) =>
            {
                self.count(&target, &reply);
                exchange.answer(&reply);
            }
            Ok(request) if request.verb.row().is_slow => {
                self.have_looked(exchange.into(), caller);
            }
            Ok(request) => self.carry_out(exchange, &request, &caller),
            Err(reply) => {
                self.count(&target, &reply);
                exchange.answer(&reply);
            }
        }
    }

    /// Makes a slow answer, at the pace of all of them. For a worker.
    pub(super) fn look(self: &Arc<Self>, exchange: Exchange, caller: &Caller) {
        self.pace.wait();
        let target = exchange.target().to_owned();
        let verb = Request::verb_row(&target);
        match understand(&exchange, &target, verb, &self.handler) {
            Ok(request) => self.carry_out(exchange, &request, caller),
            Err(reply) => {
                self.count(&target, &reply);
                exchange.answer(&reply);
            }
        }
    }

    /// Counts a reply that the handler did not make. The handler counts its own.
    fn count(&self, target: &str, reply: &Reply) {
        let verb = Request::verb_row(target).map(|row| row.verb);
        self.handler.status.requests.count(verb, reply);
    }

    /// Answers a request, or parks it until its answer is decided.
    fn carry_out(self: &Arc<Self>, exchange: Exchange, request: &Request, caller: &Caller) {
        if request.verb == Verb::Events && exchange.method() != "HEAD" {
            let prefix = request.text(Parameter::Prefix).unwrap_or_default();
            return self.events.open(exchange, prefix);
        }
        let (handler, begun) = (&self.handler, Instant::now());
        let asked = handler.manager.asked();
        let mut exchange = Some(exchange);
        let mut parked = None;
        let reply = handler.answer(request, caller, |pending| {
            let exchange = exchange.take().expect("it waits once");
            let new = Parked::new(pending, exchange, self.clone());
            parked = Some(new.clone());
            new
        });
        match (reply, exchange, parked) {
            (Some(reply), Some(exchange), _) => {
                let from = exchange.client().ip();
                if request.verb.row().is_slow {
                    self.pace.add(begun.elapsed(), Instant::now());
                }
                let reply = handler.with_process(reply, request.verb, from);
                match handler.waits_for_store(request.verb, &reply) {
                    true => self.answer_once_stored(exchange, reply, asked),
                    false => exchange.answer(&reply),
                }
            }
            (_, _, Some(parked)) => self.park(parked),
            _ => unreachable!("a request without a reply waits"),
        }
    }

    /// Refuses a request that is not let in. The reply is delayed if its address tries many tokens.
    fn turn_away(&self, exchange: Exchange, target: &str, why: TurnedAway) {
        if let TurnedAway::WrongRole(reason) | TurnedAway::FromAPage(reason) = &why
            && Request::verb_row(target).is_some_and(|row| row.verb == Verb::Break)
        {
            let (target, from) = (protocol::shorten(target), exchange.client().ip());
            log::info!(
                "{target:?} from {} was refused: {reason}",
                from.to_canonical()
            );
        }
        let is_slow = matches!(why, TurnedAway::WrongToken(_, true));
        let reply = refused(why);
        self.count(target, &reply);
        match is_slow {
            true => self.delayed.hold_back(exchange, reply),
            false => exchange.answer(&reply),
        }
    }
}

/// Returns the caller if the request is let in.
fn let_in(
    exchange: &Exchange,
    verb: Option<&VerbRow>,
    access: &Access,
) -> Result<Caller, TurnedAway> {
    let asker = Asker::of(exchange.headers());
    access.admit(&asker)?;
    let from = exchange.client().ip();
    let is_of_admin = verb.is_some_and(|verb| verb.role == Some(Role::Admin));
    Ok(Caller {
        role: access.role_of(&asker, from, verb)?,
        from: Some(from),
        user: if is_of_admin { asker.user() } else { None },
    })
}

/// Parses the exchange's target, which asks this verb. An error is the reply to a bad request.
fn understand<'a>(
    exchange: &Exchange,
    target: &'a str,
    verb: Option<&VerbRow>,
    handler: &Handler,
) -> Result<Request<'a>, Reply> {
    if exchange.has_body() && exchange.headers().any(holds_parameters) {
        let reason = "parameters belong behind a ? in the URL, not in the body; with curl, add -G, or for POST write them into the URL";
        return Err(Malformed::BadRequest(reason.into()).into());
    }
    let (method, methods) = (exchange.method(), Methods::of(verb));
    if !methods.contain(method) {
        return Err(protocol::method_not_allowed(method, methods));
    }
    Ok(Request::parse(target, &handler.caps)?)
}

/// The content types of HTML forms, and of `curl` with `-d`, `-F` and `--json`. Their clients would believe that
/// parameters in the body were read.
const WITH_PARAMETERS: [&str; 3] = [
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "application/json",
];

fn holds_parameters((field, value): (&str, &str)) -> bool {
    let kind = value.split(';').next().unwrap_or_default().trim();
    let is_known = |known: &&str| kind.eq_ignore_ascii_case(known);
    field.eq_ignore_ascii_case("Content-Type") && WITH_PARAMETERS.iter().any(is_known)
}

/// The reply to a request whose body tiny_http did not read with it.
fn body_refused() -> Reply {
    let reason =
        "the question is the URL; send no body, or one of at most 1024 bytes that is not chunked";
    Malformed::BadRequest(reason.into()).into()
}

fn refused(why: TurnedAway) -> Reply {
    match why {
        TurnedAway::NoToken(reason) | TurnedAway::WrongToken(reason, _) => {
            // Two lines: some browsers read no list. RFC 6750, section 3, and RFC 7617, section 2.1.
            Reply::refusal(Status::Unauthorized, Refusal::Unauthorized, reason)
                .with_header(
                    "WWW-Authenticate",
                    r#"Basic realm="lock-server", charset="UTF-8""#,
                )
                .with_header("WWW-Authenticate", r#"Bearer realm="lock-server""#)
        }
        TurnedAway::WrongRole(reason) => {
            Reply::refusal(Status::Forbidden, Refusal::WrongRole, reason)
        }
        TurnedAway::FromAPage(reason) => {
            Reply::refusal(Status::Forbidden, Refusal::Forbidden, reason)
        }
        TurnedAway::WrongHost(reason) => {
            Reply::refusal(Status::Misdirected, Refusal::WrongHost, reason)
        }
    }
}
