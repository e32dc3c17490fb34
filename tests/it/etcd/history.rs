//! etcd's history as the journal of a trial: what was written, which leader can have written it, and whether that
//! agrees with the clients' answers.
//!
//! [`read`] reads the whole history, so nothing may have been compacted. [`examine`] is a pure function of it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::io::{self, BufRead, BufReader};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::api::{Api, KeyValue, b64, number, range_end};
use super::framing::chunk;

/// A put or a deletion of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: i64,
    /// The key, without the prefix.
    pub key: String,
    pub state: Option<Put>,
}

/// The value and the numbers of a put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub value: String,
    pub create_revision: i64,
    pub version: i64,
}

/// A grant, as a client received it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    pub lock: String,
    pub requester: String,
    pub fence: u64,
}

/// What a history contains, and its violations.
#[derive(Debug, Default)]
pub struct Examined {
    /// The number of leaderships.
    pub leaderships: usize,
    pub batches: usize,
    pub grants: usize,
    pub ends: usize,
    pub violations: Vec<String>,
}

/// How many revisions an etcd watch sends at a time, before it pauses for 100 ms.
const AT_A_TIME: i64 = 1000;
/// The most parallel watches: more would slow each pass of etcd over the history down.
const MOST_WATCHES: i64 = 32;

/// How long a watch may be silent.
const SILENCE: Duration = Duration::from_secs(15);

/// Reads all changes of keys with this prefix, in order. Puts one more key, to find the end.
///
/// Rarely a watch of etcd 3.4 stays silent; then it is repeated, with the same result.
pub fn read(api: &Api, prefix: &str) -> io::Result<Vec<Change>> {
    let patient = Api {
        timeout: SILENCE,
        ..*api
    };
    let last = api.put(&format!("{prefix}end-of-history"), "");
    let mut tries = 0;
    loop {
        tries += 1;
        match read_until(&patient, prefix, last) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < 3 => {}
            result => return result,
        }
    }
}

/// Reads the changes before `last`, the last revision.
fn read_until(api: &Api, prefix: &str, last: i64) -> io::Result<Vec<Change>> {
    let watches = (last / AT_A_TIME + 1).min(MOST_WATCHES);
    let each = last / watches + 1;
    let begins = |watch: i64| 1 + watch * each;
    let body: String = (0..watches)
        .map(|watch| {
            let create = json!({
                "key": b64(prefix),
                "range_end": b64(range_end(prefix)),
                "start_revision": begins(watch).to_string(),
                "watch_id": (watch + 1).to_string(),
            });
            json!({ "create_request": create }).to_string()
        })
        .collect();
    let mut stream = Stream::open(api, &body)?;
    let mut open: BTreeSet<i64> = (0..watches).collect();
    let mut changes = BTreeMap::new();
    while !open.is_empty() {
        let message = stream.next()?;
        let result = &message["result"];
        if message["error"].is_object() || result["canceled"] == true {
            return Err(io::Error::other(message.to_string()));
        }
        let watch = number(&result["watch_id"]) - 1;
        let events = result["events"].as_array();
        for event in events.into_iter().flatten() {
            let change = change(event, prefix);
            if change.revision + 1 >= begins(watch + 1).min(last + 1) {
                open.remove(&watch);
            }
            changes.insert((change.revision, change.key.clone()), change);
        }
    }
    changes.pop_last();
    Ok(changes.into_values().collect())
}

fn change(event: &Value, prefix: &str) -> Change {
    let kv = KeyValue::parse(&event["kv"]);
    let key = kv.key.strip_prefix(prefix).expect("it was asked for");
    let is_deleted = event["type"] == "DELETE";
    Change {
        revision: kv.mod_revision,
        key: key.into(),
        state: (!is_deleted).then_some(Put {
            value: kv.value,
            create_revision: kv.create_revision,
            version: kv.version,
        }),
    }
}

/// The answer to a watch: chunks with a line of JSON for each message.
struct Stream {
    from: BufReader<TcpStream>,
    line: Vec<u8>,
}

impl Stream {
    fn open(api: &Api, body: &str) -> io::Result<Self> {
        let mut from = api.send("/v3/watch", body)?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if from.read_line(&mut head)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Stream {
            from,
            line: Vec::new(),
        })
    }

    fn next(&mut self) -> io::Result<Value> {
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            let chunk = chunk(&mut self.from, &mut Vec::new())?;
            self.line.extend(chunk.ok_or(io::ErrorKind::UnexpectedEof)?);
        }
    }
}

/// A hold, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hold {
    requester: String,
    fence: u64,
    slots: u64,
}

/// The examiner's state of one lock.
#[derive(Default)]
struct Lock {
    slots: BTreeMap<String, Hold>,
    greatest: u64,
    /// Each fence that was ever put, with its requester.
    put: HashMap<u64, String>,
    /// The fences that were deleted or overwritten.
    ended: HashSet<u64>,
}

#[derive(Default)]
struct Examiner {
    found: Examined,
    /// The create revision of the present leader key.
    leader: Option<i64>,
    /// The greatest fence that the sequence key ever had.
    greatest: u64,
    locks: HashMap<String, Lock>,
}

/// Checks that a history can be that of one service, and that it agrees with the clients' grants, and with those whose
/// UNLOCK returned `1`.
pub fn examine(history: &[Change], told: &[Grant], unlocked: &[Grant]) -> Examined {
    let mut examiner = Examiner::default();
    for batch in history.chunk_by(|one, next| one.revision == next.revision) {
        examiner.batch(batch);
    }
    for grant in told {
        let whose = examiner
            .locks
            .get(&grant.lock)
            .and_then(|lock| lock.put.get(&grant.fence));
        if whose != Some(&grant.requester) {
            examiner.complain("answered, but never put", grant);
        }
    }
    for grant in unlocked {
        let lock = examiner.locks.get(&grant.lock);
        if !lock.is_some_and(|lock| lock.ended.contains(&grant.fence)) {
            examiner.complain("unlocked, but neither deleted nor overwritten", grant);
        }
    }
    examiner.found
}

impl Examiner {
    fn complain(&mut self, what: &str, about: impl Debug) {
        self.found.violations.push(format!("{what}: {about:?}"));
    }

    /// Examines the changes of one transaction.
    fn batch(&mut self, batch: &[Change]) {
        let of = |name: &str| batch.iter().find(|change| change.key == name);
        let mut holds: Vec<&Change> = batch
            .iter()
            .filter(|change| change.key.starts_with("h/"))
            .collect();
        // A batch belongs to the present leader, since a win writes nothing else.
        let is_won = of("leader").is_some_and(|leader| leader.state.is_some());
        if self.leader.is_none() && !is_won && (!holds.is_empty() || of("seq").is_some()) {
            self.complain("written while nobody leads", batch);
        }
        if let Some(seq) = of("seq") {
            self.sequence(seq);
        }
        if !holds.is_empty() {
            self.found.batches += 1;
            let puts = holds.iter().any(|hold| hold.state.is_some());
            if puts && of("seq").is_none() {
                self.complain("put without the greatest fence", batch);
            }
        }
        // The changes of a transaction are in the order of their keys. Ends come before new holds, and fences are given
        // out in order.
        holds.iter().for_each(|change| self.ends(change));
        holds.sort_by_key(|change| hold(change).map(|hold| hold.fence));
        holds.iter().for_each(|change| self.begins(change));
        let keys = holds.iter().filter_map(|change| key_and_slot(&change.key));
        let keys: BTreeSet<String> = keys.map(|(key, _)| key).collect();
        for key in keys {
            self.crowd(&key, batch[0].revision);
        }
        if let Some(leader) = of("leader") {
            self.leader(leader, batch.len());
        }
    }

    fn leader(&mut self, change: &Change, changes: usize) {
        let Some(put) = &change.state else {
            self.leader = None;
            return;
        };
        if put.version == 1 {
            if let Some(leader) = self.leader {
                self.complain("won while somebody led", (leader, change));
            }
            self.found.leaderships += 1;
        }
        if changes > 1 {
            self.complain("won together with something else", change);
        }
        self.leader = Some(put.create_revision);
    }

    fn sequence(&mut self, change: &Change) {
        let fields = change.state.as_ref().map(|put| {
            let value: Value = serde_json::from_str(&put.value).unwrap_or_default();
            (
                as_number(&value["n"]),
                as_number(&value["fence"]),
                put.version,
            )
        });
        let Some((Some(number), Some(fence), version)) = fields else {
            return self.complain("the sequence is no number or was deleted", change);
        };
        if i64::try_from(number) != Ok(version) {
            self.complain("a batch was written under another's number", change);
        }
        if fence < self.greatest {
            self.complain("the greatest fence fell", change);
        }
        self.greatest = self.greatest.max(fence);
    }

    /// Notes the end of the hold whose slot this change deletes or overwrites.
    fn ends(&mut self, change: &Change) {
        let Some((key, slot)) = key_and_slot(&change.key) else {
            return self.complain("no key and slot", change);
        };
        let next = hold(change).map(|hold| hold.fence);
        let lock = self.locks.entry(key).or_default();
        if let Some(held) = lock.slots.get(&slot)
            && next != Some(held.fence)
        {
            lock.ended.insert(held.fence);
            lock.slots.remove(&slot);
            self.found.ends += 1;
        }
    }

    fn begins(&mut self, change: &Change) {
        let Some(((key, slot), put)) = key_and_slot(&change.key).zip(change.state.as_ref()) else {
            return;
        };
        let Some(hold) = hold(change) else {
            return self.complain("no hold", put);
        };
        if hold.fence > self.greatest {
            self.complain("above the greatest fence", change);
        }
        let lock = self.locks.entry(key).or_default();
        let held = lock.slots.get(&slot);
        let wrong = match lock.put.get(&hold.fence) {
            Some(whose) if *whose != hold.requester => Some("two have one fence"),
            Some(_) if lock.ended.contains(&hold.fence) => Some("held again after its end"),
            Some(_) if held.is_none_or(|held| held.fence != hold.fence) => {
                Some("one fence in two slots")
            }
            None if hold.fence < lock.greatest => Some("its fence does not grow"),
            _ => None,
        };
        let is_new = lock
            .put
            .insert(hold.fence, hold.requester.clone())
            .is_none();
        self.found.grants += usize::from(is_new);
        lock.greatest = lock.greatest.max(hold.fence);
        lock.slots.insert(slot, hold);
        if let Some(wrong) = wrong {
            self.complain(wrong, change);
        }
    }

    /// Checks that the store never has more holders of a key than each of them allows.
    fn crowd(&mut self, key: &str, revision: i64) {
        let Some(lock) = self.locks.get(key) else {
            return;
        };
        let least = lock.slots.values().map(|hold| hold.slots).min();
        if least.is_some_and(|least| lock.slots.len() as u64 > least) {
            let holds: Vec<Hold> = lock.slots.values().cloned().collect();
            self.complain(
                "more holders than each of them allows",
                (key, revision, holds),
            );
        }
    }
}

/// The lock and the slot of a hold's key.
fn key_and_slot(key: &str) -> Option<(String, String)> {
    let (key, slot) = key.strip_prefix("h/")?.rsplit_once('/')?;
    let key = percent_encoding::percent_decode_str(key)
        .decode_utf8()
        .ok()?;
    Some((key.into(), slot.into()))
}

/// The hold in a change. `None` if the key was deleted, or put to something else.
fn hold(change: &Change) -> Option<Hold> {
    let value: Value = serde_json::from_str(&change.state.as_ref()?.value).ok()?;
    Some(Hold {
        requester: value["who"].as_str()?.into(),
        fence: as_number(&value["fence"])?,
        slots: as_number(&value["slots"]).unwrap_or(1),
    })
}

/// A number, which may be in a string.
fn as_number(value: &Value) -> Option<u64> {
    let text = value.as_str().and_then(|text| text.parse().ok());
    text.or_else(|| value.as_u64())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::Etcds;
    use super::*;

    /// A handwritten history: each line is a transaction, of words such as `leader`, `-leader`, `seq=7` (the greatest
    /// fence), `a/0=ann7` (put), `a/0=ann7of2` (with slots), `-a/0` (deleted).
    fn history(lines: &[&str]) -> Vec<Change> {
        let mut versions: HashMap<String, (i64, i64)> = HashMap::new();
        let mut changes = Vec::new();
        for (revision, line) in (1..).zip(lines) {
            for word in line.split(' ') {
                let (key, value) = word.split_once('=').unwrap_or((word, ""));
                let (key, is_deleted) = match key.strip_prefix('-') {
                    Some(key) => (key, true),
                    None => (key, false),
                };
                let key = match key {
                    "leader" | "seq" => key.to_string(),
                    hold => format!("h/{hold}"),
                };
                if is_deleted {
                    versions.remove(&key);
                    let state = None;
                    changes.push(Change {
                        revision,
                        key,
                        state,
                    });
                    continue;
                }
                let (create_revision, version) = *versions
                    .entry(key.clone())
                    .and_modify(|(_, version)| *version += 1)
                    .or_insert((revision, 1));
                let value = match key.as_str() {
                    "leader" => json!({ "v": 1, "id": "x", "addr": "x:1" }),
                    "seq" => {
                        let (fence, number) = value.split_once('#').unwrap_or((value, ""));
                        let number = number.parse().unwrap_or(version);
                        json!({ "v": 1, "n": number, "fence": fence, "store": "s" })
                    }
                    _ => {
                        let digits = value.find(|c: char| c.is_ascii_digit()).unwrap_or(0);
                        let (who, rest) = value.split_at(digits);
                        let (fence, slots) = rest.split_once("of").unwrap_or((rest, "1"));
                        let slots: u64 = slots.parse().expect("a number");
                        json!({ "v": 1, "who": who, "fence": fence, "ms": 3000, "slots": slots })
                    }
                };
                let put = Put {
                    value: value.to_string(),
                    create_revision,
                    version,
                };
                changes.push(Change {
                    revision,
                    key,
                    state: Some(put),
                });
            }
        }
        changes
    }

    fn grant(lock: &str, requester: &str, fence: u64) -> Grant {
        Grant {
            lock: lock.into(),
            requester: requester.into(),
            fence,
        }
    }

    const SOUND: [&str; 10] = [
        "leader",
        "seq=7 a/0=ann7",
        "seq=9 a/0=bob8 b%2Fc/0=ann9",
        "seq=9 a/0=bob8",
        "-a/0",
        "-leader",
        "leader",
        "seq=12 a/0=cat10 d/0=ann11of2 d/1=bob12of2",
        "-d/0 -a/0",
        "seq=13 d/0=cat13of2",
    ];

    #[test]
    fn a_sound_history_has_no_violation() {
        let history = history(&SOUND);
        let told = [("a", "ann", 7), ("b/c", "ann", 9), ("d", "cat", 13)];
        let told = told.map(|(lock, requester, fence)| grant(lock, requester, fence));
        let unlocked = [("a", "ann", 7), ("a", "bob", 8), ("d", "ann", 11)];
        let unlocked = unlocked.map(|(lock, requester, fence)| grant(lock, requester, fence));
        let found = examine(&history, &told, &unlocked);
        assert_eq!(found.violations, [""; 0]);
        assert_eq!((found.leaderships, found.grants, found.ends), (2, 7, 4));
    }

    #[test]
    fn the_examiner_reports_each_violation() {
        let rules: &[(&str, &[&str])] = &[
            ("while nobody leads", &["seq=7 a/0=ann7"]),
            ("while nobody leads", &["leader", "-leader", "-a/0"]),
            ("while nobody leads", &["leader", "-leader", "seq=7"]),
            ("together with something", &["leader seq=7 a/0=ann7"]),
            ("without the greatest fence", &["leader", "a/0=ann7"]),
            ("above the greatest fence", &["leader", "seq=6 a/0=ann7"]),
            (
                "greatest fence fell",
                &["leader", "seq=7 a/0=ann7", "seq=6"],
            ),
            ("another's number", &["leader", "seq=7", "seq=8#3"]),
            ("was deleted", &["leader", "seq=7", "-seq"]),
            (
                "does not grow",
                &["leader", "seq=8 a/0=ann8", "seq=8 a/0=bob7"],
            ),
            (
                "two have one fence",
                &["leader", "seq=7 a/0=ann7", "seq=7 a/0=bob7"],
            ),
            (
                "after its end",
                &["leader", "seq=7 a/0=ann7", "-a/0", "seq=7 a/0=ann7"],
            ),
            (
                "after its end",
                &[
                    "leader",
                    "seq=7 a/0=ann7",
                    "seq=8 a/0=bob8",
                    "seq=8 a/0=ann7",
                ],
            ),
            (
                "in two slots",
                &["leader", "seq=7 a/0=ann7of2", "seq=7 a/1=ann7of2"],
            ),
            (
                "more holders",
                &["leader", "seq=7 a/0=ann7of2", "seq=8 a/1=bob8"],
            ),
            ("no hold", &["leader", "seq=7 a/0="]),
            ("no key and slot", &["leader", "seq=7 a=ann7"]),
        ];
        for (rule, lines) in rules {
            let found = examine(&history(lines), &[], &[]);
            let mut violations = found.violations.iter();
            let is_found = violations.any(|violation| violation.contains(rule));
            assert!(is_found, "{rule}: {found:?}");
        }
    }

    #[test]
    fn the_examiner_compares_the_history_with_the_clients_grants() {
        let history = history(&SOUND);
        let told = |lock: &str, requester: &str, fence| {
            let grants = [grant(lock, requester, fence)];
            examine(&history, &grants, &[]).violations.len()
        };
        assert_eq!(told("a", "ann", 7), 0);
        assert_eq!(told("a", "bob", 7), 1);
        assert_eq!(told("a", "ann", 8), 1);
        assert_eq!(told("b", "ann", 9), 1);
        let unlocked = |lock: &str, fence| {
            let grants = [grant(lock, "", fence)];
            examine(&history, &[], &grants).violations.len()
        };
        assert_eq!(unlocked("a", 7), 0, "overwritten");
        assert_eq!(unlocked("a", 8), 0, "deleted");
        assert_eq!(unlocked("b/c", 9), 1, "it stands");
        assert_eq!(unlocked("x", 9), 1, "there is none");
    }

    #[test]
    fn a_long_history_is_read_completely() {
        let Some(etcd) = Etcds::one() else { return };
        let api = etcd.api();
        let before = api.revision();
        let revisions = std::env::var("LOCK_SERVER_TEST_REVISIONS");
        let revisions = revisions.map_or(8000, |revisions| revisions.parse().expect("a number"));
        let clients = 16;
        let each: usize = revisions / clients / 2;
        std::thread::scope(|scope| {
            for client in 0..clients {
                scope.spawn(move || {
                    for round in 0..each {
                        api.put(&format!("/p/h/{client}/0"), &round.to_string());
                        api.put("/q/other", "");
                    }
                });
            }
        });
        api.delete("/p/h/0/0");
        let begun = Instant::now();
        let changes = read(&api, "/p/").expect("it is read");
        println!(
            "{} of {} revisions in {:?}",
            changes.len(),
            api.revision() - before,
            begun.elapsed()
        );
        assert_eq!(changes.len(), clients * each + 1);
        let last = changes.last().expect("there are some");
        assert_eq!((last.key.as_str(), &last.state), ("h/0/0", &None));
        let grows = |pair: &[Change]| pair[0].revision < pair[1].revision;
        assert!(changes.windows(2).all(grows));
        for client in 0..clients {
            let key = format!("h/{client}/0");
            let puts = changes.iter().filter(|change| change.key == key);
            let values = puts.filter_map(|change| change.state.as_ref());
            let values: Vec<&str> = values.map(|put| put.value.as_str()).collect();
            let expected: Vec<String> = (0..each).map(|round| round.to_string()).collect();
            assert_eq!(values, expected);
        }
        assert_eq!(read(&api, "/none/").expect("it is read"), []);
    }
}
