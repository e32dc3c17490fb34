//! A scripted gateway in front of a fake etcd, a map in memory that can serve the calls of the store.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// The fate of one call.
#[derive(Clone)]
pub(super) enum Fate {
    /// It is not carried out, and this is the answer.
    Says(u16, Value),
    /// It is not carried out, and the answer is not JSON.
    SaysText(u16, &'static str),
    /// It is not carried out, and the connection ends.
    Lost,
    /// It is carried out, and the connection ends.
    AnswerLost,
    /// It is carried out, and this is the answer.
    AppliedButSays(u16, Value),
    /// It is carried out and answered.
    Passes,
}

/// Decides the fate of a call, or leaves it open.
pub(super) type Script = Box<dyn FnMut(&str, &Value) -> Option<Fate> + Send>;

/// A gateway on a port of its own. Its threads end with the process.
#[derive(Clone)]
pub(super) struct FakeGateway {
    pub endpoint: String,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    etcd: MapEtcd,
    /// The fates of the next calls of a path, in order.
    fates: BTreeMap<&'static str, VecDeque<Fate>>,
    script: Option<Script>,
    calls: Vec<(String, Value, String)>,
}

pub(super) const TXN: &str = "/v3/kv/txn";
pub(super) const RANGE: &str = "/v3/kv/range";
pub(super) const KEEPALIVE: &str = "/v3/lease/keepalive";
pub(super) const AUTHENTICATE: &str = "/v3/auth/authenticate";

impl FakeGateway {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gateway = FakeGateway {
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            shared: Arc::new(Mutex::new(Shared {
                etcd: MapEtcd::new(),
                fates: BTreeMap::new(),
                script: None,
                calls: Vec::new(),
            })),
        };
        let shared = gateway.shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = shared.clone();
                thread::spawn(move || serve(stream.unwrap(), &shared));
            }
        });
        gateway
    }

    pub fn endpoints(&self) -> Vec<String> {
        vec![self.endpoint.clone()]
    }

    /// Sets the fates of the next calls of this path.
    pub fn next(&self, path: &'static str, fates: impl IntoIterator<Item = Fate>) {
        let mut shared = self.shared.lock();
        shared.fates.entry(path).or_default().extend(fates);
    }

    /// Sets the script for calls from now on.
    pub fn script(&self, script: impl FnMut(&str, &Value) -> Option<Fate> + Send + 'static) {
        self.shared.lock().script = Some(Box::new(script));
    }

    pub fn etcd<T>(&self, act: impl FnOnce(&mut MapEtcd) -> T) -> T {
        act(&mut self.shared.lock().etcd)
    }

    /// Each call of this path so far, with its token.
    pub fn calls(&self, path: &str) -> Vec<(Value, String)> {
        let shared = self.shared.lock();
        let of_path = shared.calls.iter().filter(|call| call.0 == path);
        of_path
            .map(|call| (call.1.clone(), call.2.clone()))
            .collect()
    }
}

fn serve(stream: TcpStream, shared: &Mutex<Shared>) {
    let mut input = BufReader::new(stream.try_clone().unwrap());
    let mut output = stream;
    loop {
        let (mut path, mut token, mut length) = (String::new(), String::new(), 0);
        loop {
            let mut line = String::new();
            if input.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end();
            if path.is_empty() {
                path = line.split(' ').nth(1).unwrap_or_default().into();
            } else if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(": ") {
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.parse().unwrap(),
                    "authorization" => token = value.into(),
                    _ => {}
                }
            }
        }
        let mut body = vec![0; length];
        if input.read_exact(&mut body).is_err() {
            return;
        }
        let request = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let Some((status, answer)) = answer(shared, &path, request, token) else {
            return;
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        if output.write_all((head + &answer).as_bytes()).is_err() {
            return;
        }
    }
}

/// `None` if the connection is to end.
fn answer(
    shared: &Mutex<Shared>,
    path: &str,
    request: Value,
    token: String,
) -> Option<(u16, String)> {
    let mut shared = shared.lock();
    shared.calls.push((path.into(), request.clone(), token));
    let scripted = shared.script.as_mut().and_then(|it| it(path, &request));
    let fate = scripted.or_else(|| shared.fates.get_mut(path)?.pop_front());
    match fate.unwrap_or(Fate::Passes) {
        Fate::Says(status, answer) => Some((status, answer.to_string())),
        Fate::SaysText(status, answer) => Some((status, answer.into())),
        Fate::Lost => None,
        Fate::AnswerLost => {
            shared.etcd.call(path, &request);
            None
        }
        Fate::AppliedButSays(status, answer) => {
            shared.etcd.call(path, &request);
            Some((status, answer.to_string()))
        }
        Fate::Passes => {
            let (status, answer) = shared.etcd.call(path, &request);
            Some((status, answer.to_string()))
        }
    }
}

/// The keys of an etcd, and its leases.
pub(super) struct MapEtcd {
    pub cluster_id: u64,
    pub revision: i64,
    pub keys: BTreeMap<Vec<u8>, MapKey>,
    pub leases: Vec<i64>,
    next_lease: i64,
}

#[derive(Clone)]
pub(super) struct MapKey {
    pub value: Vec<u8>,
    create_revision: i64,
    version: i64,
    lease: i64,
}

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap_or_default()).unwrap()
}

fn number(value: &Value) -> i64 {
    value.as_str().map_or(0, |text| text.parse().unwrap())
}

impl MapEtcd {
    fn new() -> Self {
        MapEtcd {
            cluster_id: 1 << 63,
            revision: 1,
            keys: BTreeMap::new(),
            leases: Vec::new(),
            next_lease: 100,
        }
    }

    fn header(&self) -> Value {
        json!({"cluster_id": self.cluster_id.to_string(), "revision": self.revision.to_string()})
    }

    /// Ends a lease, and the keys that have it.
    pub fn end_lease(&mut self, id: i64) {
        self.leases.retain(|lease| *lease != id);
        self.keys.retain(|_, key| key.lease != id);
        self.revision += 1;
    }

    /// The keys with this prefix.
    pub fn under(&self, prefix: &str) -> Vec<String> {
        let keys = self.keys.keys();
        let keys = keys.map(|key| String::from_utf8_lossy(key).into_owned());
        keys.filter_map(|key| key.strip_prefix(prefix).map(Into::into))
            .collect()
    }

    pub fn put(&mut self, key: &str, value: &str, lease: i64) {
        self.revision += 1;
        let revision = self.revision;
        self.put_at(
            revision,
            key.as_bytes().into(),
            value.as_bytes().into(),
            lease,
        );
    }

    fn put_at(&mut self, revision: i64, key: Vec<u8>, value: Vec<u8>, lease: i64) {
        let before = self.keys.get(&key);
        let before = before.map_or((revision, 0), |key| (key.create_revision, key.version));
        let put = MapKey {
            value,
            create_revision: before.0,
            version: before.1 + 1,
            lease,
        };
        self.keys.insert(key, put);
    }

    fn call(&mut self, path: &str, request: &Value) -> (u16, Value) {
        let header = self.header();
        let answer = match path {
            RANGE => self.range(request),
            TXN => return self.txn(request),
            "/v3/lease/grant" => {
                self.next_lease += 1;
                self.leases.push(self.next_lease);
                let id = self.next_lease.to_string();
                json!({"header": header, "ID": id, "TTL": request["TTL"]})
            }
            KEEPALIVE => {
                let id = &request["ID"];
                match self.leases.contains(&number(id)) {
                    true => json!({"result": {"header": header, "ID": id, "TTL": "2"}}),
                    false => json!({"result": {"header": header, "ID": id}}),
                }
            }
            "/v3/lease/revoke" => {
                self.end_lease(number(&request["ID"]));
                json!({"header": header})
            }
            AUTHENTICATE => json!({"header": header, "token": "token.1"}),
            _ => return (404, json!({"error": "Not Found", "code": 5})),
        };
        (200, answer)
    }

    fn range(&self, request: &Value) -> Value {
        let first = bytes(&request["key"]);
        let end = match request["range_end"].is_null() {
            true => [&first[..], &[0]].concat(),
            false => bytes(&request["range_end"]),
        };
        let found: Vec<_> = self.keys.range(first..end).collect();
        let limit = match number(&request["limit"]) {
            0 => usize::MAX,
            limit => limit as usize,
        };
        let kv = |(key, found): &(&Vec<u8>, &MapKey)| {
            json!({
                "key": STANDARD.encode(key), "value": STANDARD.encode(&found.value),
                "create_revision": found.create_revision.to_string(),
                "version": found.version.to_string(), "lease": found.lease.to_string(),
            })
        };
        let kvs: Vec<_> = found.iter().take(limit).map(kv).collect();
        let count = found.len().to_string();
        json!({"header": self.header(), "kvs": kvs, "more": found.len() > limit, "count": count})
    }

    fn txn(&mut self, request: &Value) -> (u16, Value) {
        let none = Vec::new();
        let list = |name: &str| request[name].as_array().unwrap_or(&none).clone();
        let is_so = |compare: &Value| {
            let key = self.keys.get(&bytes(&compare["key"]));
            match compare["target"].as_str() {
                Some("CREATE") => {
                    key.map_or(0, |key| key.create_revision) == number(&compare["create_revision"])
                }
                _ => key.map_or(0, |key| key.version) == number(&compare["version"]),
            }
        };
        let succeeded = list("compare").iter().all(is_so);
        let ops = list(if succeeded { "success" } else { "failure" });
        let writes = |op: &Value| op.get("request_range").is_none();
        let revision = self.revision + i64::from(ops.iter().any(writes));
        let mut responses = Vec::new();
        for op in &ops {
            if let Some(put) = op.get("request_put") {
                let lease = number(&put["lease"]);
                if lease != 0 && !self.leases.contains(&lease) {
                    let message = "etcdserver: requested lease not found";
                    return (404, error(5, message));
                }
                self.put_at(revision, bytes(&put["key"]), bytes(&put["value"]), lease);
                responses.push(json!({"response_put": {}}));
            } else if let Some(delete) = op.get("request_delete_range") {
                self.keys.remove(&bytes(&delete["key"]));
                responses.push(json!({"response_delete_range": {}}));
            } else {
                let range = self.range(&op["request_range"]);
                responses.push(json!({"response_range": range}));
            }
        }
        self.revision = revision;
        let mut answer = json!({"header": self.header(), "responses": responses});
        if succeeded {
            answer["succeeded"] = true.into();
        }
        (200, answer)
    }
}

/// An error, as etcd answers it.
pub(super) fn error(code: i64, message: &str) -> Value {
    json!({"error": message, "code": code, "message": message})
}
