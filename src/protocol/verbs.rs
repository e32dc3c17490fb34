//! The verb table and the parameter table: all facts about a verb that the two wires, their ends and the documentation
//! share, except its effect.
//!
//! A new verb is a variant of [`Verb`] and its row; a new parameter is a variant of [`Parameter`] and its row. The
//! entries and tables of `guide/wire.md` say the same in words, and tests compare them.
//!
//! Knows no path, no query and no reply.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::text::{MAX_ID, MAX_NAME, MAX_NOTE};
use crate::lease::{Fence, MAX_SLOTS};
use crate::refusal::Refusal;
use crate::token::Role;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Check,
    Lock,
    Unlock,
    Renew,
    Verify,
    Ping,
    Shutdown,
    Break,
    Livez,
    Readyz,
    Locks,
    Status,
    Metrics,
    Events,
    /// The status page, at `/`.
    Page,
}

/// A row of the verb table.
pub(crate) struct VerbRow {
    pub verb: Verb,
    /// The first segment of the path.
    pub name: &'static str,
    /// The kinds of the other segments, in order.
    pub names: &'static [&'static str],
    /// Whether the path may lack these segments.
    pub names_are_optional: bool,
    pub parameters: &'static [Parameter],
    /// The parameters that a question has to carry.
    pub required: &'static [Parameter],
    pub repeatable: Repeatable,
    pub methods: Methods,
    /// The least role that a server with tokens requires. `None` if the verb needs no token.
    pub role: Option<Role>,
    /// Whether its answer takes so long that it is made on another thread.
    pub is_slow: bool,
    /// Whether the original's wire has it.
    pub is_classic: bool,
    /// The words of a `0` with status 200.
    pub refusals: &'static [Refusal],
}

/// The HTTP methods that may ask a verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Methods {
    /// The verb changes nothing, so HEAD may ask it, too (RFC 9110, section 9.2.1).
    Safe,
    /// The original's clients change locks with GET.
    Changing,
    /// A link that somebody follows, or an image of a web page, must not be able to ask it.
    PostAlone,
}

impl Methods {
    /// The methods of a verb. A path without a verb changes nothing, so it takes the safe methods.
    pub fn of(verb: Option<&VerbRow>) -> Self {
        verb.map_or(Methods::Safe, |row| row.methods)
    }

    /// The methods as in the header `Allow`.
    pub fn as_str(self) -> &'static str {
        match self {
            Methods::Safe => "GET, HEAD, POST",
            Methods::Changing => "GET, POST",
            Methods::PostAlone => "POST",
        }
    }

    pub fn contain(self, method: &str) -> bool {
        match method {
            "HEAD" => self == Methods::Safe,
            "GET" => self != Methods::PostAlone,
            method => method == "POST",
        }
    }
}

/// Whether a request may be sent again after its answer was lost. The server may have carried it out already.
pub(crate) enum Repeatable {
    Always,
    /// If it carries this parameter.
    With(Parameter),
    Never,
}

const KEY: &[&str] = &["key"];
const KEY_AND_REQUESTER: &[&str] = &["key", "requester"];

/// Why a requester does not hold a key.
const NOT_HELD: &[Refusal] = &[
    Refusal::Free,
    Refusal::NotHolder,
    Refusal::StaleFence,
    Refusal::Broken,
];

/// The values that most rows share.
const USUAL: VerbRow = VerbRow {
    verb: Verb::Ping,
    name: "",
    names: &[],
    names_are_optional: false,
    parameters: &[],
    required: &[],
    repeatable: Repeatable::Always,
    methods: Methods::Safe,
    role: None,
    is_slow: false,
    is_classic: false,
    refusals: &[],
};

/// The verb table, in the order of [`Verb`]. Upper-case verbs are for clients. Lower-case ones are for people and
/// monitors, and change nothing. UNLOCK without a fence is not repeatable: the repetition could release a grant that
/// another process of the same name got in between. SHUTDOWN is not repeatable either: it could end the next server.
#[rustfmt::skip]
pub(crate) static VERBS: [VerbRow; 15] = [
    VerbRow { verb: Verb::Check, name: "CHECK", names: KEY,
        role: Some(Role::Read), is_classic: true, refusals: &[Refusal::Free], ..USUAL },
    VerbRow { verb: Verb::Lock, name: "LOCK", names: KEY_AND_REQUESTER,
        parameters: &[Parameter::LockTimeout, Parameter::LockAttemptTimeout, Parameter::RequestId, Parameter::Note,
            Parameter::Slots, Parameter::Shared],
        repeatable: Repeatable::With(Parameter::RequestId), methods: Methods::Changing, role: Some(Role::Lock), is_classic: true,
        refusals: &[Refusal::AlreadyHolder, Refusal::AlreadyWaiting, Refusal::Timeout, Refusal::TakenOver], ..USUAL },
    VerbRow { verb: Verb::Unlock, name: "UNLOCK", names: KEY_AND_REQUESTER, parameters: &[Parameter::Fence],
        repeatable: Repeatable::With(Parameter::Fence), methods: Methods::Changing, role: Some(Role::Lock), is_classic: true, refusals: NOT_HELD, ..USUAL },
    VerbRow { verb: Verb::Renew, name: "RENEW", names: KEY_AND_REQUESTER,
        parameters: &[Parameter::LockTimeout, Parameter::Fence],
        methods: Methods::Changing, role: Some(Role::Lock), refusals: NOT_HELD, ..USUAL },
    VerbRow { verb: Verb::Verify, name: "VERIFY", names: KEY_AND_REQUESTER, parameters: &[Parameter::Fence],
        role: Some(Role::Read), is_classic: true, refusals: NOT_HELD, ..USUAL },
    VerbRow { verb: Verb::Ping, name: "PING",
        is_classic: true, ..USUAL },
    VerbRow { verb: Verb::Shutdown, name: "SHUTDOWN", repeatable: Repeatable::Never,
        methods: Methods::Changing, role: Some(Role::Admin), is_classic: true, ..USUAL },
    VerbRow { verb: Verb::Break, name: "BREAK", names: KEY, parameters: &[Parameter::Fence, Parameter::By],
        required: &[Parameter::Fence], methods: Methods::PostAlone, role: Some(Role::Admin),
        refusals: &[Refusal::Free, Refusal::StaleFence], ..USUAL },
    VerbRow { verb: Verb::Livez, name: "livez",
        ..USUAL },
    VerbRow { verb: Verb::Readyz, name: "readyz",
        ..USUAL },
    VerbRow { verb: Verb::Locks, name: "locks", names: KEY, names_are_optional: true, is_slow: true,
        parameters: &[Parameter::Prefix, Parameter::Holder, Parameter::Limit, Parameter::After],
        role: Some(Role::Read), ..USUAL },
    VerbRow { verb: Verb::Status, name: "status", is_slow: true,
        role: Some(Role::Read), ..USUAL },
    VerbRow { verb: Verb::Metrics, name: "metrics", is_slow: true,
        role: Some(Role::Read), ..USUAL },
    VerbRow { verb: Verb::Events, name: "events", parameters: &[Parameter::Prefix],
        role: Some(Role::Read), is_slow: true, ..USUAL },
    VerbRow { verb: Verb::Page, name: "", is_slow: true,
        role: Some(Role::Read), ..USUAL },
];

impl Verb {
    pub fn row(self) -> &'static VerbRow {
        &VERBS[self as usize]
    }

    /// Whether the verb is about the server itself and not about holds. Each server of a cluster answers such a verb
    /// for itself.
    pub fn is_of_the_server(self) -> bool {
        matches!(
            self,
            Verb::Ping | Verb::Shutdown | Verb::Livez | Verb::Readyz | Verb::Status | Verb::Metrics
        )
    }
}

impl VerbRow {
    /// The row of the verb that a path names. Names are case-sensitive.
    pub fn of(name: &str) -> Option<&'static VerbRow> {
        VERBS.iter().find(|row| row.name == name)
    }
}

/// The form of the path, such as `/LOCK/key/requester`.
impl fmt::Display for VerbRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.name)?;
        let names = self.names.iter();
        names
            .filter(|_| !self.names_are_optional)
            .try_for_each(|name| write!(f, "/{name}"))
    }
}

/// A parameter of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parameter {
    LockTimeout,
    LockAttemptTimeout,
    Fence,
    RequestId,
    Note,
    Slots,
    Shared,
    Prefix,
    Holder,
    Limit,
    After,
    By,
}

/// A row of the parameter table.
pub(crate) struct ParameterRow {
    pub parameter: Parameter,
    pub name: &'static str,
    pub range: Range,
}

/// The values that a parameter can have.
pub(crate) enum Range {
    /// From the shortest to the longest time.
    Seconds(Duration, fn(&MaxTimes) -> Duration),
    /// A whole number, and the advice for a value that is not in the range.
    Number(RangeInclusive<u64>, &'static str),
    /// 1 to 64 characters of an alphabet that needs no escaping.
    Id,
    /// Any text of 1 to this many bytes.
    Text(usize),
    /// Any text of up to this many bytes. It may be empty, because the form of the status page sends empty fields.
    TextOrNone(usize),
}

/// The longest times that a question may ask for, a year at most, so that adding them to an instant can't overflow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaxTimes {
    pub lock_timeout: Duration,
    pub lock_attempt_timeout: Duration,
}

/// The parameter table, in the order of [`Parameter`], which is also the order in a written query. The shortest lease
/// is the shortest time that a header can express.
#[rustfmt::skip]
pub(crate) static PARAMETERS: [ParameterRow; 12] = [
    ParameterRow { parameter: Parameter::LockTimeout, name: "lock_timeout",
        range: Range::Seconds(Duration::from_millis(1), |max| max.lock_timeout) },
    ParameterRow { parameter: Parameter::LockAttemptTimeout, name: "lock_attempt_timeout",
        range: Range::Seconds(Duration::ZERO, |max| max.lock_attempt_timeout) },
    ParameterRow { parameter: Parameter::Fence, name: "fence",
        range: Range::Number(0..=Fence::MAX, "the whole number from Lock-Fence, or from fence in /locks/key") },
    ParameterRow { parameter: Parameter::RequestId, name: "request", range: Range::Id },
    ParameterRow { parameter: Parameter::Note, name: "note", range: Range::Text(MAX_NOTE) },
    ParameterRow { parameter: Parameter::Slots, name: "slots",
        range: Range::Number(1..=MAX_SLOTS as u64, "a whole number, from 1 to 1000000") },
    ParameterRow { parameter: Parameter::Shared, name: "shared", range: Range::Number(1..=1, "1, or leave it out") },
    ParameterRow { parameter: Parameter::Prefix, name: "prefix", range: Range::TextOrNone(MAX_NAME) },
    ParameterRow { parameter: Parameter::Holder, name: "holder", range: Range::TextOrNone(MAX_NAME) },
    ParameterRow { parameter: Parameter::Limit, name: "limit",
        range: Range::Number(1..=1000, "a whole number, from 1 to 1000") },
    ParameterRow { parameter: Parameter::After, name: "after", range: Range::Id },
    ParameterRow { parameter: Parameter::By, name: "by", range: Range::Text(MAX_NAME) },
];

impl Parameter {
    pub fn row(self) -> &'static ParameterRow {
        &PARAMETERS[self as usize]
    }
}

impl Range {
    pub fn is_text(&self) -> bool {
        matches!(self, Range::Text(_) | Range::TextOrNone(_))
    }
}

impl ParameterRow {
    /// The range in words: the end of the sentence about a value that is out of it. The most of a time is an option of
    /// the server, which the sentence names.
    pub fn range_in_words(&self, max: &MaxTimes) -> String {
        match &self.range {
            Range::Seconds(least, most) => format!(
                "seconds, from {} to {}, the server's max_{}",
                least.as_secs_f64(),
                most(max).as_secs_f64(),
                self.name
            ),
            Range::Number(_, what) => (*what).into(),
            Range::Id => format!("1 to {MAX_ID} of A-Z a-z 0-9 _ . : -"),
            Range::Text(most) => format!("1 to {most} bytes of text"),
            Range::TextOrNone(most) => format!("up to {most} bytes of text"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MAX: MaxTimes = MaxTimes {
        lock_timeout: Duration::from_secs(3600),
        lock_attempt_timeout: Duration::from_secs(1800),
    };

    /// The cells of the table with this first heading, without the table's head. Each line of `source` begins with
    /// `before`.
    fn table(source: &'static str, before: &'static str, heading: &str) -> Vec<Vec<&'static str>> {
        let head = format!("{before}| {heading} |");
        let lines = source.lines().skip_while(|line| !line.starts_with(&head));
        let rows = lines
            .skip(2)
            .map_while(|line| line.strip_prefix(before)?.strip_prefix("|"));
        rows.map(|row| row.split('|').map(str::trim).collect())
            .collect()
    }

    fn documented(heading: &str) -> Vec<Vec<&'static str>> {
        let table = table(include_str!("../guide/wire.md"), "", heading);
        assert!(!table.is_empty(), "no table of {heading}");
        table
    }

    /// The page's entry of a verb: a heading with its path, a line of facts, and a list of replies.
    struct VerbEntry {
        path: &'static str,
        facts: &'static str,
        /// The words of the replies that are a `0` with status 200.
        words: Vec<&'static str>,
    }

    impl VerbEntry {
        /// The path, followed by the facts and words as the page writes them.
        fn cells(&self) -> [String; 6] {
            let after = |label: &str| {
                let (_, rest) = self.facts.split_once(label).expect(label);
                let fact = rest.split_once(". ").map_or(rest, |(fact, _)| fact);
                fact.trim_end_matches('.').to_string()
            };
            let parameters = after("Parameters: ");
            let parameters = if parameters == "none" {
                String::new()
            } else {
                parameters
            };
            [
                self.path.into(),
                parameters,
                after("Again: "),
                after("Methods: "),
                quoted(&self.words),
                after("Token: "),
            ]
        }
    }

    fn entries() -> Vec<VerbEntry> {
        let page = include_str!("../guide/wire.md");
        let entries = page.split("\n### ").skip(1).map(|entry| {
            let entry = entry.split("\n## ").next().unwrap_or(entry);
            let replies = entry
                .lines()
                .filter_map(|line| line.strip_prefix("- `0`, `"));
            VerbEntry {
                path: entry.lines().next().unwrap_or_default(),
                facts: entry
                    .lines()
                    .find(|line| line.starts_with("Methods: "))
                    .expect("facts"),
                words: replies
                    .filter_map(|reply| Some(reply.split_once('`')?.0))
                    .collect(),
            }
        });
        entries.collect()
    }

    fn quoted(words: impl IntoIterator<Item = impl fmt::Display>) -> String {
        let words: Vec<String> = words.into_iter().map(|word| format!("`{word}`")).collect();
        words.join(", ")
    }

    #[test]
    fn the_rows_are_in_the_order_of_the_variants() {
        for (at, row) in VERBS.iter().enumerate() {
            assert_eq!(row.verb as usize, at, "{row}");
        }
        for (at, row) in PARAMETERS.iter().enumerate() {
            assert_eq!(row.parameter as usize, at, "{}", row.name);
        }
    }

    #[test]
    fn a_lower_case_path_changes_nothing() {
        for row in &VERBS {
            let is_lower = row.name.chars().all(|letter| letter.is_ascii_lowercase());
            assert!(row.methods == Methods::Safe || !is_lower, "{row}");
        }
    }

    #[test]
    fn each_verb_is_documented_with_its_parameters_repeats_methods_and_words() {
        let expected: Vec<_> = VERBS
            .iter()
            .map(|row| {
                let parameters = row.parameters.iter().map(|parameter| parameter.row().name);
                let repeatable = match row.repeatable {
                    Repeatable::Always => "yes".into(),
                    Repeatable::With(parameter) => format!("with `{}`", parameter.row().name),
                    Repeatable::Never => "no".into(),
                };
                let (path, parameters) = (quoted([row]), quoted(parameters));
                let role = row.role.map_or("none", Role::as_str);
                [
                    path,
                    parameters,
                    repeatable,
                    row.methods.as_str().into(),
                    quoted(row.refusals),
                    role.into(),
                ]
            })
            .collect();
        let documented: Vec<_> = entries().iter().map(VerbEntry::cells).collect();
        assert_eq!(documented, expected);
    }

    #[test]
    fn each_parameter_is_documented_with_its_range() {
        let documented = documented("parameter");
        assert_eq!(documented.len(), PARAMETERS.len());
        for (row, cells) in PARAMETERS.iter().zip(documented) {
            assert_eq!(cells[0], quoted([row.name]));
            let range = match &row.range {
                Range::Seconds(least, _) => format!(" {} ", least.as_secs_f64()),
                Range::Number(..) => "number".into(),
                Range::Id => row.range_in_words(&MAX).split_off("1 to 64 of ".len()),
                Range::Text(_) | Range::TextOrNone(_) => row.range_in_words(&MAX),
            };
            assert!(cells[1].contains(&range), "{range}: {}", cells[1]);
            if let Range::Seconds(..) = row.range {
                let most = format!(" to the server's `max_{}`", row.name);
                assert!(cells[1].ends_with(&most), "{most}: {}", cells[1]);
            }
        }
    }

    #[test]
    fn each_word_is_documented() {
        let of_verbs = entries().into_iter().flat_map(|entry| entry.words);
        let of_statuses = documented("status")
            .into_iter()
            .map(|cells| cells[1].trim_matches('`'));
        let words: BTreeSet<&str> = of_verbs.chain(of_statuses).collect();
        let known: BTreeSet<&str> = Refusal::sent().map(Refusal::as_str).collect();
        assert_eq!(words, known);
    }

    #[test]
    fn the_classic_wire_is_documented_with_its_verbs() {
        let classic = VERBS.iter().filter(|row| row.is_classic);
        let expected: Vec<String> = classic.map(|row| quoted([row])).collect();
        let documented = table(include_str!("classic.rs"), "//! ", "question");
        let documented: Vec<&str> = documented.into_iter().map(|cells| cells[0]).collect();
        assert_eq!(documented, expected);
    }
}
