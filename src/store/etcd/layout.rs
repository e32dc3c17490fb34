//! The keys and values of one lock server in etcd, below its prefix. Knows no calls.
//!
//! | key | value |
//! |---|---|
//! | prefix `leader` | the leader, attached to its lease in etcd |
//! | prefix `seq` | the number of commits that put something, the greatest fence, the store's ID |
//! | prefix `h/KEY/SLOT` | one hold. KEY is percent-encoded |

use std::borrow::Cow;
use std::str;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::SharedOptions;
use crate::lease::{Fence, MAX_SLOTS, Slots};
use crate::store::StoredHold;

/// The version of the values' format.
const VERSION: u32 = 1;

/// Everything but the unreserved characters of RFC 3986, section 2.3, is escaped.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The names of one lock server's keys.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Ends with a slash.
    prefix: String,
}

impl Layout {
    pub fn new(prefix: &str) -> Self {
        Layout {
            prefix: prefix.into(),
        }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn leader(&self) -> Vec<u8> {
        format!("{}leader", self.prefix).into()
    }

    pub fn seq(&self) -> Vec<u8> {
        format!("{}seq", self.prefix).into()
    }

    pub fn hold(&self, key: &str, slot: u32) -> Vec<u8> {
        let key = utf8_percent_encode(key, SEGMENT);
        format!("{}h/{key}/{slot}", self.prefix).into()
    }

    /// The range of the holds' keys: the first one, and the one after the last.
    pub fn holds(&self) -> (Vec<u8>, Vec<u8>) {
        // `0` is the character after the slash.
        let bounds = ["h/", "h0"].map(|end| format!("{}{end}", self.prefix).into());
        let [first, behind] = bounds;
        (first, behind)
    }

    /// Parses a hold and its slot. The error describes why it is not a hold.
    pub fn parse_hold(&self, key: &[u8], value: &[u8]) -> Result<(StoredHold, u32), String> {
        let parsed = self
            .parse_hold_key(key)
            .ok_or("its name is not that of a hold")?;
        let (key, slot) = parsed;
        let value: HoldValue = parse(value)?;
        let hold = StoredHold {
            key: key.as_str().into(),
            requester: value.who.as_ref().into(),
            fence: fence(&value.fence)?,
            lock_timeout: Duration::from_millis(value.ms),
            request_id: value.request.as_deref().map(Into::into),
            note: value.note.as_deref().map(Into::into),
            slots: value.slots,
        };
        Ok((hold, slot))
    }

    fn parse_hold_key(&self, key: &[u8]) -> Option<(String, u32)> {
        let rest = key.strip_prefix(self.prefix.as_bytes())?;
        let rest = str::from_utf8(rest.strip_prefix(b"h/")?).ok()?;
        let (key, slot) = rest.split_once('/')?;
        let key = percent_decode(key.as_bytes()).decode_utf8().ok()?;
        let slot = slot.parse().ok().filter(|slot| *slot < MAX_SLOTS)?;
        Some((key.into_owned(), slot))
    }
}

/// The value of the leader key.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct LeaderValue {
    v: u32,
    /// Random, for one campaign.
    pub id: String,
    /// Where clients reach the leader: host and port.
    pub addr: String,
    /// The leader's shared options. Empty if the value has none.
    #[serde(default, skip_serializing_if = "SharedOptions::is_empty")]
    pub options: SharedOptions,
}

impl LeaderValue {
    pub fn new(id: &str, address: &str, options: &SharedOptions) -> Self {
        LeaderValue {
            v: VERSION,
            id: id.into(),
            addr: address.into(),
            options: options.clone(),
        }
    }

    /// How another server's options differ, in words. `None` if they agree, as far as both have them.
    pub fn difference(&self, others: &SharedOptions) -> Option<String> {
        let differing = self.options.iter().filter_map(|(name, value)| {
            let other = others.get(name).filter(|other| *other != value)?;
            Some(format!("{name} is {value} there and {other} here"))
        });
        let differing: Vec<_> = differing.collect();
        (!differing.is_empty()).then(|| differing.join(", "))
    }

    pub fn bytes(&self) -> Vec<u8> {
        to_json(self)
    }

    pub fn parse(value: &[u8]) -> Result<Self, String> {
        parse(value)
    }
}

/// The value of the sequence key: what commits change beside the holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sequence {
    /// The number of the latest commit that put something.
    pub number: u64,
    /// 0 if no fence was ever given out.
    pub greatest_fence: Fence,
    /// The store's ID.
    pub store: String,
}

#[derive(Deserialize, Serialize)]
struct SequenceValue<'a> {
    v: u32,
    n: u64,
    #[serde(borrow)]
    fence: Cow<'a, str>,
    #[serde(borrow)]
    store: Cow<'a, str>,
}

impl Sequence {
    pub fn bytes(&self) -> Vec<u8> {
        to_json(&SequenceValue {
            v: VERSION,
            n: self.number,
            fence: self.greatest_fence.to_string().into(),
            store: self.store.as_str().into(),
        })
    }

    pub fn parse(value: &[u8]) -> Result<Self, String> {
        let value: SequenceValue = parse(value)?;
        Ok(Sequence {
            number: value.n,
            greatest_fence: fence(&value.fence)?,
            store: value.store.into_owned(),
        })
    }
}

/// Fences are text, since other JSON parsers round numbers of this size.
#[derive(Deserialize, Serialize)]
struct HoldValue<'a> {
    v: u32,
    #[serde(borrow)]
    who: Cow<'a, str>,
    #[serde(borrow)]
    fence: Cow<'a, str>,
    ms: u64,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    request: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    note: Option<Cow<'a, str>>,
    slots: Slots,
}

/// The value of a hold. The lock's key is in the name.
pub(super) fn hold_value(hold: &StoredHold) -> Vec<u8> {
    // Rounded up, so that the stored lease is never shorter than the granted one.
    let ms = hold.lock_timeout.as_nanos().div_ceil(1_000_000);
    to_json(&HoldValue {
        v: VERSION,
        who: hold.requester.as_ref().into(),
        fence: hold.fence.to_string().into(),
        ms: u64::try_from(ms).unwrap_or(u64::MAX),
        request: hold.request_id.as_deref().map(Into::into),
        note: hold.note.as_deref().map(Into::into),
        slots: hold.slots,
    })
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("it has no map with other keys than text")
}

fn fence(text: &str) -> Result<Fence, String> {
    let fence = text.parse();
    fence.map_err(|_| format!("{text:?} is not a fence"))
}

/// Parses a value of this version.
fn parse<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u32,
    }
    let versioned = serde_json::from_slice::<Versioned>(value);
    match versioned.map_err(|error| error.to_string())?.v {
        VERSION => serde_json::from_slice(value).map_err(|error| error.to_string()),
        other => Err(format!(
            "it has version {other}, which a later version of the lock server wrote"
        )),
    }
}
