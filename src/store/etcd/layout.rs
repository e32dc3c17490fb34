//! What is stored in etcd: keys and values under the prefix of one lock server. Knows no calls.
//!
//! | key | value |
//! |---|---|
//! | prefix `leader` | who leads, under etcd's lease |
//! | prefix `seq` | how many commits put something, the greatest fence, the store's name |
//! | prefix `h/KEY/SLOT` | one hold. KEY is percent-encoded |

use std::borrow::Cow;
use std::str;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::SharedOptions;
use crate::lease::{Fence, MAX_SLOTS, Slots};
use crate::store::StoredHold;

/// The version of each value's form.
const VERSION: u32 = 1;

/// What a key need not escape within one segment: RFC 3986, section 2.3.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Where the keys of one lock server are.
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

    /// From the first key of a hold to the one behind the last.
    pub fn holds(&self) -> (Vec<u8>, Vec<u8>) {
        // The character behind the slash is the zero.
        let bounds = ["h/", "h0"].map(|end| format!("{}{end}", self.prefix).into());
        let [first, behind] = bounds;
        (first, behind)
    }

    /// A hold and its slot, or why this is none.
    pub fn parse_hold(&self, key: &[u8], value: &[u8]) -> Result<(StoredHold, u32), String> {
        let parsed = self.parse_hold_key(key).ok_or("its name is no hold's")?;
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

/// Who leads.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct LeaderValue {
    v: u32,
    /// Random, of one campaign.
    pub id: String,
    /// Where clients reach the leader: host and port.
    pub addr: String,
    /// What it goes by, and the others should, too. Empty where it does not say so.
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

    /// How the options of another server differ, in words. `None` if they don't, as far as both are known.
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

/// What all commits have led to, beside the holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sequence {
    /// The number of the latest commit that put something.
    pub number: u64,
    /// 0 if no fence was ever given out.
    pub greatest_fence: Fence,
    /// What the store is called.
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

/// Fences are text: programs that read JSON round numbers of this size.
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

/// The value of a hold. Its key stands in the name.
pub(super) fn hold_value(hold: &StoredHold) -> Vec<u8> {
    // Rounded up: what is stored is never shorter than what was promised.
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
    fence.map_err(|_| format!("{text:?} is no fence"))
}

/// A value of this version.
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
