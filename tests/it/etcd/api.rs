//! A test's own calls to etcd, through its JSON gateway.

use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::framing::Message;

/// Bytes in base64, as in etcd's JSON.
pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// The text in a base64 field of etcd. An absent field is empty.
pub fn text(field: &Value) -> String {
    let field = field.as_str().unwrap_or_default();
    let bytes = BASE64_STANDARD.decode(field).expect("etcd writes base64");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The number in a field of etcd, where it is a string. An absent field is zero.
pub fn number(field: &Value) -> i64 {
    field
        .as_str()
        .map_or(0, |field| field.parse().expect("a number"))
}

/// The end of the range of all keys with this prefix.
pub fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix is not empty") += 1;
    end
}

/// A key in etcd, with its value and numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: String,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    pub lease: i64,
}

impl KeyValue {
    pub fn parse(kv: &Value) -> Self {
        KeyValue {
            key: text(&kv["key"]),
            value: text(&kv["value"]),
            create_revision: number(&kv["create_revision"]),
            mod_revision: number(&kv["mod_revision"]),
            version: number(&kv["version"]),
            lease: number(&kv["lease"]),
        }
    }
}

/// Calls to one member, or to a proxy in front of it. Each call has a connection of its own.
#[derive(Clone, Copy, Debug)]
pub struct Api {
    pub address: SocketAddr,
    pub timeout: Duration,
}

impl Api {
    pub fn at(address: SocketAddr) -> Self {
        Api {
            address,
            timeout: crate::common::PATIENCE,
        }
    }

    /// Sends a call, and returns the connection for its answer.
    pub fn send(&self, path: &str, body: &str) -> io::Result<BufReader<TcpStream>> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_nodelay(true)?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice())?;
        Ok(BufReader::new(stream))
    }

    /// Makes a call, and returns the status and the JSON of the answer.
    pub fn try_ask(&self, path: &str, body: &Value) -> io::Result<(u16, Value)> {
        let mut stream = self.send(path, &body.to_string())?;
        let ended = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let answer = Message::read(&mut stream)?.ok_or_else(ended)?;
        let status = answer.status().ok_or_else(ended)?;
        let body = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        Ok((status, body))
    }

    /// Makes a call that has to succeed, and returns the JSON of the answer.
    #[track_caller]
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        match self.try_ask(path, body) {
            Ok((200, answer)) => answer,
            other => panic!("{path} {body}: {other:?}"),
        }
    }

    /// Whether it answers calls that need a quorum.
    pub fn is_ready(&self) -> bool {
        let soon = Api {
            timeout: Duration::from_secs(2),
            ..*self
        };
        let answer = soon.try_ask("/v3/kv/range", &json!({ "key": b64("ready") }));
        matches!(answer, Ok((200, _)))
    }

    /// The version that etcd reports.
    #[track_caller]
    pub fn version(&self) -> String {
        let answer = self.ask("/v3/maintenance/status", &json!({}));
        answer["version"].as_str().expect("it has one").into()
    }

    /// Puts a key, and returns the revision of the put.
    #[track_caller]
    pub fn put(&self, key: &str, value: &str) -> i64 {
        let answer = self.ask(
            "/v3/kv/put",
            &json!({ "key": b64(key), "value": b64(value) }),
        );
        number(&answer["header"]["revision"])
    }

    #[track_caller]
    pub fn get(&self, key: &str) -> Option<KeyValue> {
        let answer = self.ask("/v3/kv/range", &json!({ "key": b64(key) }));
        answer["kvs"].get(0).map(KeyValue::parse)
    }

    /// All keys with this prefix.
    #[track_caller]
    pub fn all(&self, prefix: &str) -> Vec<KeyValue> {
        let range = json!({ "key": b64(prefix), "range_end": b64(range_end(prefix)) });
        let answer = self.ask("/v3/kv/range", &range);
        let kvs = answer["kvs"].as_array();
        kvs.map_or_else(Vec::new, |kvs| kvs.iter().map(KeyValue::parse).collect())
    }

    /// The present revision.
    #[track_caller]
    pub fn revision(&self) -> i64 {
        let answer = self.ask("/v3/kv/range", &json!({ "key": b64("none") }));
        number(&answer["header"]["revision"])
    }

    /// Deletes a key, and returns the number of deleted keys, 0 or 1.
    #[track_caller]
    pub fn delete(&self, key: &str) -> i64 {
        let answer = self.ask("/v3/kv/deleterange", &json!({ "key": b64(key) }));
        number(&answer["deleted"])
    }

    /// Makes a transaction. Returns whether it succeeded, and the whole answer.
    #[track_caller]
    pub fn txn(&self, txn: &Value) -> (bool, Value) {
        let answer = self.ask("/v3/kv/txn", txn);
        (answer["succeeded"] == true, answer)
    }

    /// Grants a lease. Returns its ID and its seconds, which may be more than requested.
    #[track_caller]
    pub fn grant(&self, seconds: i64) -> (i64, i64) {
        let answer = self.ask("/v3/lease/grant", &json!({ "TTL": seconds.to_string() }));
        (number(&answer["ID"]), number(&answer["TTL"]))
    }

    #[track_caller]
    pub fn revoke(&self, lease: i64) {
        self.ask("/v3/lease/revoke", &json!({ "ID": lease.to_string() }));
    }

    /// Compacts everything before a revision, and waits until that is done on the disk, too.
    #[track_caller]
    pub fn compact(&self, revision: i64) {
        let compaction = json!({ "revision": revision.to_string(), "physical": true });
        self.ask("/v3/kv/compaction", &compaction);
    }

    /// Frees the pages of what was compacted.
    #[track_caller]
    pub fn defragment(&self) {
        self.ask("/v3/maintenance/defragment", &json!({}));
    }

    /// Puts until there is no room left.
    #[track_caller]
    pub fn fill(&self) {
        let page = json!({ "key": b64("filling"), "value": b64("x".repeat(10_000)) });
        crate::common::until("etcd is full", || {
            let answer = self.try_ask("/v3/kv/put", &page);
            answer.expect("it answers").0 != 200
        });
    }

    /// The members with a NOSPACE alarm.
    #[track_caller]
    fn full_members(&self) -> Vec<Value> {
        let answer = self.ask("/v3/maintenance/alarm", &json!({ "action": "GET" }));
        let alarms = answer["alarms"].as_array().into_iter().flatten();
        let full = alarms.filter(|alarm| alarm["alarm"] == "NOSPACE");
        full.map(|alarm| alarm["memberID"].clone()).collect()
    }

    #[track_caller]
    pub fn is_full(&self) -> bool {
        !self.full_members().is_empty()
    }

    /// Ends the NOSPACE alarm, which does not end by itself.
    #[track_caller]
    pub fn disarm(&self) {
        for member in self.full_members() {
            let disarm = json!({ "action": "DEACTIVATE", "memberID": member, "alarm": "NOSPACE" });
            self.ask("/v3/maintenance/alarm", &disarm);
        }
    }
}
