//! The JSON of etcd's gateway: keys and values in base64, 64-bit numbers as text, and fields that are 0 or false left
//! out.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes, in base64 in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Base64(pub Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map(Base64).map_err(D::Error::custom)
    }
}

/// A number, as text in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub(super) struct NumberText(pub i64);

impl From<NumberText> for String {
    fn from(NumberText(number): NumberText) -> Self {
        number.to_string()
    }
}

/// A transaction: its compares, its operations if all of them hold, and those if not.
#[derive(Clone, Debug, Serialize)]
pub(super) struct EtcdTxn {
    pub compare: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
}

/// Compares a number of a key. All numbers of a missing key are 0.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "target", rename_all = "UPPERCASE")]
pub(super) enum Compare {
    Create {
        result: Equal,
        key: Base64,
        create_revision: NumberText,
    },
    Version {
        result: Equal,
        key: Base64,
        version: NumberText,
    },
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Equal {
    Equal,
}

#[derive(Clone, Debug, Serialize)]
pub(super) enum Op {
    #[serde(rename = "request_put")]
    Put {
        key: Base64,
        value: Base64,
        #[serde(skip_serializing_if = "Option::is_none")]
        lease: Option<NumberText>,
    },
    #[serde(rename = "request_delete_range")]
    Delete { key: Base64 },
    #[serde(rename = "request_range")]
    Range(KeyRange),
}

impl Op {
    pub fn put(key: Vec<u8>, value: Vec<u8>) -> Self {
        Op::Put {
            key: Base64(key),
            value: Base64(value),
            lease: None,
        }
    }

    pub fn get(key: Vec<u8>) -> Self {
        Op::Range(KeyRange::of(key))
    }
}

/// A read of keys. Never `serializable`: an isolated member would answer with outdated content.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct KeyRange {
    pub key: Base64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range_end: Option<Base64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<NumberText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<NumberText>,
    #[serde(skip_serializing_if = "is_false")]
    pub count_only: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl KeyRange {
    pub fn of(key: Vec<u8>) -> Self {
        KeyRange {
            key: Base64(key),
            ..KeyRange::default()
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct GrantRequest {
    #[serde(rename = "TTL")]
    pub ttl: NumberText,
}

/// The request for a keepalive and for a revocation.
#[derive(Debug, Serialize)]
pub(super) struct LeaseRequest {
    #[serde(rename = "ID")]
    pub id: NumberText,
}

#[derive(Serialize)]
pub(super) struct AuthRequest<'a> {
    pub name: &'a str,
    pub password: &'a str,
}

/// The header of every answer.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AnswerHeader {
    /// 0 if it is missing: then the answer is not etcd's.
    #[serde(deserialize_with = "number")]
    pub cluster_id: u64,
    #[serde(deserialize_with = "number")]
    pub revision: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyValue {
    pub key: Base64,
    pub value: Base64,
    #[serde(deserialize_with = "number")]
    pub create_revision: i64,
    #[serde(deserialize_with = "number")]
    pub version: i64,
    #[serde(deserialize_with = "number")]
    pub lease: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RangeAnswer {
    pub header: AnswerHeader,
    pub kvs: Vec<KeyValue>,
    pub more: bool,
    /// How many keys there are in the range, also those that are no longer in the page.
    #[serde(deserialize_with = "number")]
    pub count: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TxnAnswer {
    pub header: AnswerHeader,
    pub succeeded: bool,
    pub responses: Vec<OpAnswer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OpAnswer {
    pub response_range: RangeAnswer,
}

impl TxnAnswer {
    /// The key that the operation with this number has read. `None` if there is no such key.
    pub fn read(&self, number: usize) -> Option<&KeyValue> {
        self.responses.get(number)?.response_range.kvs.first()
    }
}

/// The answer to a grant, and to a keepalive.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LeaseAnswer {
    pub header: AnswerHeader,
    #[serde(rename = "ID", deserialize_with = "number")]
    pub id: i64,
    /// In seconds. 0 if the lease is lost.
    #[serde(rename = "TTL", deserialize_with = "number")]
    pub ttl: i64,
}

/// One answer of the stream of keepalives.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeepaliveAnswer {
    pub result: LeaseAnswer,
}

/// The answer to a call without further results.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PlainAnswer {
    pub header: AnswerHeader,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AuthAnswer {
    pub header: AnswerHeader,
    pub token: String,
}

/// An answer of etcd.
pub(super) trait Answer: for<'de> Deserialize<'de> {
    fn header(&self) -> AnswerHeader;

    /// The revision of the keys, if the answer has it.
    fn revision(&self) -> Option<i64> {
        None
    }
}

impl Answer for RangeAnswer {
    fn header(&self) -> AnswerHeader {
        self.header
    }

    fn revision(&self) -> Option<i64> {
        Some(self.header.revision)
    }
}

impl Answer for TxnAnswer {
    fn header(&self) -> AnswerHeader {
        self.header
    }

    fn revision(&self) -> Option<i64> {
        Some(self.header.revision)
    }
}

impl Answer for LeaseAnswer {
    fn header(&self) -> AnswerHeader {
        self.header
    }
}

impl Answer for KeepaliveAnswer {
    fn header(&self) -> AnswerHeader {
        self.result.header
    }
}

impl Answer for PlainAnswer {
    fn header(&self) -> AnswerHeader {
        self.header
    }
}

impl Answer for AuthAnswer {
    fn header(&self) -> AnswerHeader {
        self.header
    }
}

/// Parses a number, given as text or as a number.
fn number<'de, D: Deserializer<'de>, T>(from: D) -> Result<T, D::Error>
where
    T: FromStr + TryFrom<i128>,
{
    struct Number<T>(std::marker::PhantomData<T>);
    impl<T: FromStr + TryFrom<i128>> Visitor<'_> for Number<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a number")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(|_| E::custom("not a number"))
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
            T::try_from(number.into()).map_err(|_| E::custom("the number is too large"))
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
            T::try_from(number.into()).map_err(|_| E::custom("the number is too small"))
        }
    }
    from.deserialize_any(Number(std::marker::PhantomData))
}
