//! Asking a question again: whether, after what pause, and how often.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::no_answer::NoAnswer;
use super::transport::{HttpAnswer, Transport};
use crate::error::{Error, Unreached};
use crate::protocol::{Request, Verb};
use crate::refusal::Refusal;

/// How long one of several servers is listened to before another one is asked. Longer than a leader's answer takes but for
/// an election in its store: some milliseconds.
const MOMENT: Duration = Duration::from_millis(1500);

/// The least time between two rounds through servers of which none leads.
const LEADERLESS_PAUSE: Duration = Duration::from_millis(100);

impl Transport {
    /// Asks a question, and again as often as the options allow.
    pub(super) fn ask(&self, question: &Request) -> Result<HttpAnswer, Error> {
        self.ask_within(question, || Duration::MAX)
    }

    /// As [`ask`](Self::ask), each time with an answer within what is left.
    pub(super) fn ask_within(
        &self,
        question: &Request,
        left: impl Fn() -> Duration,
    ) -> Result<HttpAnswer, Error> {
        let mut tries = Tries::new(self);
        loop {
            let asked = Instant::now();
            let timeout = tries.timeout_of_next(question);
            match self.call(question, timeout.min(left())) {
                Ok(answer) => return Ok(tries.answered(answer)),
                Err(failure) => thread::sleep(tries.failed(question, asked, failure)?),
            }
        }
    }

    /// Asks a question that changes nothing a single time; of several servers, one after the other for a moment each, until
    /// one answers.
    pub(super) fn ask_each_once(
        &self,
        question: &Request,
        timeout: Duration,
    ) -> Result<HttpAnswer, Error> {
        let begun = Instant::now();
        let servers = self.cluster.count();
        let moment = MOMENT.min(timeout / servers as u32);
        for _ in 1..servers {
            match self.call(question, moment) {
                // The next one was put first.
                Err(NoAnswer::Interrupted(_)) => {}
                Err(failure) if failure.is_timeout() => {}
                done => return done.map_err(|failure| self.error(question, failure, 1, false)),
            }
        }
        self.ask_once(question, timeout.saturating_sub(begun.elapsed()))
    }

    /// How long the first try may take. One of several servers that is suspended, or whose machine has gone, says nothing, and
    /// another one answers: after a moment it is asked. One that only took longer finds the question repeated.
    pub(super) fn timeout_of_first_try(&self, question: &Request) -> Duration {
        let usual = self.timeout_of_one_try(question);
        match self.moves_on(question) {
            true => usual.min(MOMENT),
            false => usual,
        }
    }

    /// Whether another server is asked after a moment. What ends a hold is given more time: repeated, it finds it ended,
    /// and can't tell by whom.
    fn moves_on(&self, question: &Request) -> bool {
        let ends_hold = matches!(question.verb, Verb::Unlock | Verb::Break);
        self.cluster.count() > 1 && self.is_asked_again(question) && !ends_hold
    }

    /// How long one try may take to be answered. Where no answer comes a question is asked twice, and both tries
    /// together take the time that the options give.
    pub(super) fn timeout_of_one_try(&self, question: &Request) -> Duration {
        self.options.answer_timeout / if self.is_asked_again(question) { 2 } else { 1 }
    }

    /// Whether a question is asked again where no answer comes.
    fn is_asked_again(&self, question: &Request) -> bool {
        self.options.reconnect_attempts > 0 && question.is_repeatable()
    }
}

/// The tries to have one question answered.
pub(super) struct Tries<'a> {
    transport: &'a Transport,
    attempts: u32,
    /// When a question was sent that may have reached the server, and what broke then.
    broken: Option<(Instant, Error)>,
    was_gone: bool,
    /// Whether somebody was there, if only to say that it is ending.
    was_there: bool,
    /// Until when it is tried again, however often, where a proxy answers in the server's place. `None` counts
    /// such an answer as any other try.
    by_proxy_until: Option<Instant>,
    /// Until when it is tried again, however often, while servers stand by and none leads. `None` is for as long as an
    /// answer may take.
    leaderless_until: Option<Instant>,
    /// When the first one was asked that was not answered.
    begun: Option<Instant>,
}

impl<'a> Tries<'a> {
    pub fn new(transport: &'a Transport) -> Self {
        Tries {
            transport,
            attempts: 0,
            broken: None,
            was_gone: false,
            was_there: false,
            by_proxy_until: None,
            leaderless_until: None,
            begun: None,
        }
    }

    /// The same, where it is tried until then at the least while a proxy answers in the server's place.
    pub fn by_proxy_until(self, until: Instant) -> Self {
        Tries {
            by_proxy_until: Some(until),
            ..self
        }
    }

    /// The same, where it is tried until then at the least while no server leads.
    pub fn leaderless_until(self, until: Instant) -> Self {
        Tries {
            leaderless_until: Some(until),
            ..self
        }
    }

    /// How long the next try may take: a moment at each server but the last one, which has what the options leave.
    fn timeout_of_next(&self, question: &Request) -> Duration {
        let transport = self.transport;
        let servers = transport.cluster.count() as u32;
        if !transport.moves_on(question) {
            return transport.timeout_of_one_try(question);
        }
        if self.attempts + 1 < servers {
            return transport.timeout_of_first_try(question);
        }
        let begun = self.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        let left = transport.options.answer_timeout.saturating_sub(begun);
        left.max(transport.timeout_of_one_try(question))
    }

    /// Whether the question may have reached the server before.
    pub fn may_have_acted(&self) -> bool {
        self.broken.is_some()
    }

    /// Counts the tries from here, because the server had the question and was there.
    pub fn begin_anew(&mut self) {
        self.was_there = true;
        self.attempts = 0;
    }

    /// Takes in why a question that was sent then was not answered, and says how long to wait before the next try;
    /// or that there may be none.
    pub fn failed(
        &mut self,
        question: &Request,
        asked: Instant,
        failure: NoAnswer,
    ) -> Result<Duration, Error> {
        self.attempts += 1;
        let pause = self.pause_after(&failure, question);
        let reached = matches!(failure, NoAnswer::Interrupted(_));
        // Behind a proxy that answers itself there may have been nobody, and another server may be there next time. Of
        // several, another one is asked next.
        self.was_gone |= matches!(failure, NoAnswer::NotConnected(..))
            || failure.is_by_proxy()
            || self.transport.cluster.is_several();
        self.was_there |= !matches!(failure, NoAnswer::NotConnected(..));
        let may_have_acted = self.may_have_acted();
        let goes_on = self.goes_on(asked, &failure);
        let error = self
            .transport
            .error(question, failure, self.attempts, may_have_acted);
        let most = self.transport.options.reconnect_attempts;
        let is_allowed = self.attempts <= most || (goes_on && most > 0);
        let Some(pause) = pause.filter(|_| is_allowed) else {
            return Err(error);
        };
        log::debug!("{error}; trying again");
        if reached && self.broken.is_none() {
            self.broken = Some((asked, error));
        }
        Ok(pause)
    }

    /// Whether it is tried again, however often it was: a proxy or servers without a leader are there, and it is not late.
    fn goes_on(&mut self, asked: Instant, failure: &NoAnswer) -> bool {
        let begun = *self.begun.get_or_insert(asked);
        let now = Instant::now();
        if failure.is_leaderless() {
            let usual = || begun.checked_add(self.transport.options.answer_timeout);
            return self.leaderless_until.or_else(usual) > Some(now);
        }
        failure.is_by_proxy() && self.by_proxy_until > Some(now)
    }

    /// An answer, with what happened before it.
    pub fn answered(self, mut answer: HttpAnswer) -> HttpAnswer {
        answer.broken = self.broken.map(|(_, error)| error);
        answer.was_gone |= self.was_gone;
        answer
    }

    /// How long to wait before the next try. `None` if there may not be one.
    fn pause_after(&self, failure: &NoAnswer, question: &Request) -> Option<Duration> {
        let pause = spread(self.transport.options.time_between_attempts);
        match failure {
            // The server ends in good order; perhaps another one begins.
            NoAnswer::Told(Error::Refused { reason, .. }) if *reason == Refusal::Stopping => {
                Some(pause)
            }
            NoAnswer::Told(_) => None,
            // Also for a caller that pauses itself: those who stand by are asked by all clients.
            NoAnswer::Standby(_) | NoAnswer::NotConnected(Unreached::NoLeader, _) => {
                Some(pause.max(spread(LEADERLESS_PAUSE)))
            }
            NoAnswer::Interrupted(_) if !question.is_repeatable() => None,
            NoAnswer::Interrupted(_) if failure.is_by_proxy() => Some(pause),
            // The place in the queue is not kept for long.
            NoAnswer::Interrupted(_) if !self.may_have_acted() => Some(Duration::ZERO),
            // Twice in a row it is not the connection that has gone astray; of several servers each is asked.
            NoAnswer::Interrupted(_) if failure.is_timeout() => {
                let each = self.transport.cluster.count();
                ((self.attempts as usize) < each).then_some(Duration::ZERO)
            }
            NoAnswer::NotConnected(Unreached::Timeout, _) if self.attempts > 1 => None,
            NoAnswer::NotConnected(Unreached::Connect, source)
                if source.kind() == io::ErrorKind::ConnectionRefused
                    && self.transport.is_loopback() =>
            {
                (self.transport.tries_refused || self.was_there).then_some(pause)
            }
            NoAnswer::Interrupted(_) | NoAnswer::NotConnected(..) => Some(pause),
        }
    }
}

/// A time that is by chance up to a quarter shorter or longer: clients whose connections a server has ended in one
/// instant do not come back in one.
fn spread(time: Duration) -> Duration {
    // The standard library seeds each by chance.
    let chance = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
    time.mul_f64(0.75 + chance / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ClientOptions;
    use crate::protocol::{Parameter, Value};

    /// Repeated at another server, an UNLOCK finds the hold ended and can't tell by whom. The last server has what is left.
    #[test]
    fn each_of_several_servers_has_a_moment_but_the_last_one_and_but_for_what_ends_a_hold() {
        let timeouts = |servers: &[u16], question: &Request| {
            let at = |port: &u16| format!("127.0.0.1:{port}").parse().expect("an address");
            let servers: Vec<_> = servers.iter().map(at).collect();
            let transport = Transport::to_all(&servers);
            let mut tries = Tries::new(&transport);
            let each = servers.iter().map(|_| {
                let timeout = tries.timeout_of_next(question);
                tries.attempts += 1;
                timeout
            });
            each.collect::<Vec<_>>()
        };
        let whole = ClientOptions::default().answer_timeout;
        let check = Request::new(Verb::Check, "K", "");
        assert_eq!(timeouts(&[1, 2, 3], &check), [MOMENT, MOMENT, whole]);
        assert_eq!(timeouts(&[1], &check), [whole / 2]);
        let unlock =
            Request::new(Verb::Unlock, "K", "A").with(Parameter::Fence, Some(Value::Number(1)));
        assert_eq!(timeouts(&[1, 2], &unlock), [whole / 2; 2]);
    }

    /// They had all come back in one instant.
    #[test]
    fn the_pauses_of_many_clients_are_spread_over_half_their_length() {
        let second = Duration::from_secs(1);
        let mut pauses: Vec<_> = (0..1000).map(|_| spread(second)).collect();
        pauses.sort_unstable();
        assert!(pauses[0] >= second * 3 / 4 && pauses[999] <= second * 5 / 4);
        // Of 1,000 in half a second, 2 in each millisecond.
        let most = pauses
            .iter()
            .map(|pause| {
                let end = *pause + Duration::from_millis(10);
                pauses
                    .iter()
                    .filter(|other| (*pause..end).contains(*other))
                    .count()
            })
            .max();
        assert!(most < Some(60), "{most:?} within 10 ms");
        assert_eq!(spread(Duration::ZERO), Duration::ZERO);
    }
}
