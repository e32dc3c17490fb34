//! Repeats of a question: whether to ask again, after which pause, and how often.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::no_answer::NoAnswer;
use super::transport::{HttpAnswer, Transport};
use crate::error::{Error, Unreached};
use crate::protocol::{Request, Verb};
use crate::refusal::Refusal;

/// How long to wait for one of several servers before another one is asked. A leader's answer takes some milliseconds,
/// unless its store is in an election.
const MOMENT: Duration = Duration::from_millis(1500);

/// The shortest pause between two rounds through servers of which none leads.
const LEADERLESS_PAUSE: Duration = Duration::from_millis(100);

impl Transport {
    /// Asks a question, as often as the options allow.
    pub(super) fn ask(&self, question: &Request) -> Result<HttpAnswer, Error> {
        self.ask_within(question, || Duration::MAX)
    }

    /// As [`ask`](Self::ask), but no try takes longer than `left` returns.
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

    /// Asks a question that changes nothing once. With several servers, asks each for a moment, until one answers.
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
                // The failed call has made the next server the first one.
                Err(NoAnswer::Interrupted(_)) => {}
                Err(failure) if failure.is_timeout() => {}
                done => return done.map_err(|failure| self.error(question, failure, 1, false)),
            }
        }
        self.ask_once(question, timeout.saturating_sub(begun.elapsed()))
    }

    /// The time-out of the first try. With several servers it is a moment, because a server that is suspended, or whose
    /// machine is gone, reports nothing. A server that was only slow recognises the repeated question.
    pub(super) fn timeout_of_first_try(&self, question: &Request) -> Duration {
        let usual = self.timeout_of_one_try(question);
        match self.moves_on(question) {
            true => usual.min(MOMENT),
            false => usual,
        }
    }

    /// Whether another server is asked after a moment. A question that ends a hold gets more time: if it is repeated
    /// and finds the hold over, the client can't know who ended it.
    fn moves_on(&self, question: &Request) -> bool {
        let ends_hold = matches!(question.verb, Verb::Unlock | Verb::Break);
        self.cluster.count() > 1 && self.is_asked_again(question) && !ends_hold
    }

    /// The time-out of one try. A question that gets no answer is asked twice, and both tries together take the time of
    /// the options.
    pub(super) fn timeout_of_one_try(&self, question: &Request) -> Duration {
        self.options.answer_timeout / if self.is_asked_again(question) { 2 } else { 1 }
    }

    /// Whether a question is asked again if no answer comes.
    fn is_asked_again(&self, question: &Request) -> bool {
        self.options.reconnect_attempts > 0 && question.is_repeatable()
    }
}

/// The tries of one question.
pub(super) struct Tries<'a> {
    transport: &'a Transport,
    attempts: u32,
    /// When a question was sent that may have reached a server, and the error of that try.
    broken: Option<(Instant, Error)>,
    was_gone: bool,
    /// Whether a server was reached, even if it only answered that it is ending.
    was_there: bool,
    /// Until when there are further tries, without a limit on their number, while a proxy answers in the server's
    /// place. With `None` such a try counts like any other.
    by_proxy_until: Option<Instant>,
    /// Until when there are further tries, without a limit on their number, while servers stand by and none leads.
    /// `None`: for as long as an answer may take.
    leaderless_until: Option<Instant>,
    /// When the first question was sent that was not answered.
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

    /// Sets the time until which there are further tries while a proxy answers in the server's place.
    pub fn by_proxy_until(self, until: Instant) -> Self {
        Tries {
            by_proxy_until: Some(until),
            ..self
        }
    }

    /// Sets the time until which there are further tries while no server leads.
    pub fn leaderless_until(self, until: Instant) -> Self {
        Tries {
            leaderless_until: Some(until),
            ..self
        }
    }

    /// The time-out of the next try: a moment for each server, and for the last one the rest of the options' time.
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

    /// Whether an earlier try may have reached a server.
    pub fn may_have_acted(&self) -> bool {
        self.broken.is_some()
    }

    /// Starts the count of tries again, because the server had the question.
    pub fn begin_anew(&mut self) {
        self.was_there = true;
        self.attempts = 0;
    }

    /// Takes in the failure of a try that was sent at `asked`. Returns the pause before the next try, or the error if
    /// there may be none.
    pub fn failed(
        &mut self,
        question: &Request,
        asked: Instant,
        failure: NoAnswer,
    ) -> Result<Duration, Error> {
        self.attempts += 1;
        let pause = self.pause_after(&failure, question);
        let reached = matches!(failure, NoAnswer::Interrupted(_));
        // If a proxy answered itself, perhaps no server was behind it, and a different one may be there next time. Of
        // several servers, another one is asked next.
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
        let level = match self.attempts {
            // The command shows it on a terminal.
            1 => log::Level::Info,
            _ => log::Level::Debug,
        };
        log::log!(level, "{error}; trying again");
        if reached && self.broken.is_none() {
            self.broken = Some((asked, error));
        }
        Ok(pause)
    }

    /// Whether to try again regardless of the number of tries: a proxy answered, or servers without a leader, and the
    /// time for that is not over.
    fn goes_on(&mut self, asked: Instant, failure: &NoAnswer) -> bool {
        let begun = *self.begun.get_or_insert(asked);
        let now = Instant::now();
        if failure.is_leaderless() {
            let usual = || begun.checked_add(self.transport.options.answer_timeout);
            return self.leaderless_until.or_else(usual) > Some(now);
        }
        failure.is_by_proxy() && self.by_proxy_until > Some(now)
    }

    /// Adds to an answer what happened in the tries before it.
    pub fn answered(self, mut answer: HttpAnswer) -> HttpAnswer {
        answer.broken = self.broken.map(|(_, error)| error);
        answer.was_gone |= self.was_gone;
        answer
    }

    /// The pause before the next try. `None` if there may be none.
    fn pause_after(&self, failure: &NoAnswer, question: &Request) -> Option<Duration> {
        let pause = spread(self.transport.options.time_between_attempts);
        match failure {
            // The server is shutting down; perhaps another one starts.
            NoAnswer::Told(Error::Refused { reason, .. }) if *reason == Refusal::Stopping => {
                Some(pause)
            }
            NoAnswer::Told(_) => None,
            // Also for a caller that makes its own pauses: all clients ask the servers that stand by.
            NoAnswer::Standby(_) | NoAnswer::NotConnected(Unreached::NoLeader, _) => {
                Some(pause.max(spread(LEADERLESS_PAUSE)))
            }
            NoAnswer::Interrupted(_) if !question.is_repeatable() => None,
            NoAnswer::Interrupted(_) if failure.is_by_proxy() => Some(pause),
            // At once, because the server keeps the place in the queue only for a short time.
            NoAnswer::Interrupted(_) if !self.may_have_acted() => Some(Duration::ZERO),
            // After two time-outs in a row the connection is not the cause. Several servers are each asked.
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

/// A time that is randomly up to a quarter shorter or longer, so that clients whose connections ended at the same time
/// do not come back at the same time.
fn spread(time: Duration) -> Duration {
    // Each `RandomState` has random keys.
    let chance = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
    (time - time / 4).saturating_add((time / 2).mul_f64(chance))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ClientOptions;
    use crate::protocol::{Parameter, Value};

    /// An UNLOCK that is repeated at another server finds the hold over, and the client can't know who ended it. The
    /// last server has the rest of the time.
    #[test]
    fn each_server_but_the_last_has_a_moment_unless_the_question_ends_a_hold() {
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

    /// They had all come back at the same time.
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

    /// Seen to fail: it panicked for every other one.
    #[test]
    fn the_longest_pause_is_spread_without_a_panic() {
        for _ in 0..100 {
            assert!(spread(Duration::MAX) >= Duration::MAX / 2);
        }
    }
}
