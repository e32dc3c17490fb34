//! A proxy in front of etcd that can make single requests fail.
//!
//! It reads whole requests and whole answers, so that a fault affects only a request that a test has chosen. An endless
//! answer, like that of a watch, would never be passed on.

use std::io::{self, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use serde_json::Value;

use super::api::text;
use super::framing::Message;
use super::own_port;
use crate::common::PATIENCE;

/// A request, as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    message: Message,
    /// The server to which the proxy passes it on.
    pub server: SocketAddr,
}

impl Request {
    pub fn path(&self) -> &str {
        self.message.path()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.message.body).unwrap_or_default()
    }

    /// The keys that a transaction writes or deletes if its compares hold.
    fn written(&self) -> Vec<String> {
        let json = self.json();
        let operations = json["success"].as_array().cloned().unwrap_or_default();
        let writes = operations.iter().flat_map(|operation| {
            let kinds = ["request_put", "requestPut"];
            let deletes = ["request_delete_range", "requestDeleteRange"];
            kinds
                .into_iter()
                .chain(deletes)
                .filter_map(|kind| operation.get(kind))
        });
        writes.map(|write| text(&write["key"])).collect()
    }

    fn is_txn(&self) -> bool {
        self.path() == "/v3/kv/txn"
    }

    /// Whether it commits a batch: a transaction that writes, but not to the leader key.
    pub fn is_commit(&self) -> bool {
        let written = self.written();
        self.is_txn() && !written.is_empty() && !written.iter().any(|key| key.ends_with("/leader"))
    }

    /// Whether it commits a change of this lock.
    pub fn is_commit_of(&self, lock: &str) -> bool {
        let hold = format!("/h/{lock}/");
        self.is_txn() && self.written().iter().any(|key| key.contains(&hold))
    }

    /// Whether it is a transaction that only confirms the leadership.
    pub fn is_confirm(&self) -> bool {
        self.is_txn() && self.written().is_empty()
    }

    /// Whether it would make its sender the leader.
    pub fn is_campaign(&self) -> bool {
        self.is_txn() && self.written().iter().any(|key| key.ends_with("/leader"))
    }

    /// Whether it reads the holds.
    pub fn is_load(&self) -> bool {
        self.path() == "/v3/kv/range" && text(&self.json()["key"]).contains("/h/")
    }

    pub fn is_keepalive(&self) -> bool {
        self.path() == "/v3/lease/keepalive"
    }
}

/// A fault of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accident {
    /// No fault: it is only recorded.
    Seen,
    /// It is passed on once it is [let go](Trap::let_go), even if its sender has gone.
    Held,
    /// It is not passed on, and its connection ends.
    Dropped,
    /// It is passed on, and its connection ends instead of the answer.
    AnswerCut,
    /// It is passed on, and its answer is held back until it is let go.
    AnswerHeld,
    /// It is passed on twice, and the first answer is returned.
    Doubled,
    /// It is passed on after this time.
    Delayed(Duration),
}

type Choice = Box<dyn Fn(&Request) -> bool + Send>;

struct Rule {
    id: u64,
    choice: Choice,
    accident: Accident,
    /// How many further requests it affects.
    left: usize,
    /// Whether it was let go: then it holds nothing and affects no further requests.
    is_over: bool,
    caught: Vec<Request>,
    /// How many of its requests etcd has answered.
    answered: usize,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    next_id: u64,
    is_cut_off: bool,
    is_over: bool,
    /// The ends of the connections to clients and to etcd, each with the number of the client's connection.
    ends: Vec<(u64, TcpStream)>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A proxy in front of one or several etcds.
pub struct FaultProxy {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
}

impl FaultProxy {
    /// Starts it, with an address for each of the servers, in their order.
    pub fn to(servers: &[SocketAddr]) -> Self {
        let shared = Arc::new(Shared::default());
        let listen = |&server: &SocketAddr| {
            let listener = TcpListener::bind(own_port()).expect("it is free");
            let address = listener.local_addr().expect("it is bound");
            let shared = shared.clone();
            thread::spawn(move || accept(&listener, server, &shared));
            address
        };
        FaultProxy {
            addresses: servers.iter().map(listen).collect(),
            shared: shared.clone(),
        }
    }

    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Makes the fault happen to the next `many` chosen requests.
    pub fn trap(
        &self,
        times: usize,
        accident: Accident,
        choice: impl Fn(&Request) -> bool + Send + 'static,
    ) -> Trap {
        let mut state = self.shared.state.lock();
        state.next_id += 1;
        let id = state.next_id;
        state.rules.push(Rule {
            id,
            choice: Box::new(choice),
            accident,
            left: times,
            is_over: false,
            caught: Vec::new(),
            answered: 0,
        });
        Trap {
            shared: self.shared.clone(),
            id,
        }
    }

    /// Passes nothing on in either direction, and ends no connection, like an unplugged cable.
    pub fn cut_off(&self) {
        self.shared.change(|state| state.is_cut_off = true);
    }

    /// Passes on what arrives from now on. Earlier connections end, and what was on its way is lost.
    pub fn mend(&self) {
        self.shared.change(|state| {
            state.is_cut_off = false;
            state.end_all();
        });
    }

    /// Ends all connections. New ones are passed on.
    pub fn break_off(&self) {
        self.shared.change(State::end_all);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.is_over = true;
            state.end_all();
        });
        for address in &self.addresses {
            // Wakes the accepting threads. It fails if a thread has panicked.
            let _ = TcpStream::connect(address);
        }
    }
}

impl State {
    fn end_all(&mut self) {
        for (_, end) in self.ends.drain(..) {
            // It fails if the other side has closed it already.
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    fn rule(&mut self, id: u64) -> Option<&mut Rule> {
        self.rules.iter_mut().find(|rule| rule.id == id)
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.notify_all();
    }

    /// Blocks until the condition is true or the proxy is dropped.
    fn wait(&self, mut is_true: impl FnMut(&mut State) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        while !state.is_over && !is_true(&mut state) {
            self.changed.wait(&mut state);
        }
        state
    }

    /// Whether the connection is cut off. If so, blocks until it is mended, so that no connection ends before.
    fn is_lost(&self) -> bool {
        let is_cut_off = self.state.lock().is_cut_off;
        if is_cut_off {
            drop(self.wait(|state| !state.is_cut_off));
        }
        is_cut_off
    }

    /// The fault of this request, and the ID of its rule.
    fn accident(&self, request: &Request) -> Option<(u64, Accident)> {
        let mut state = self.state.lock();
        let mut rules = state.rules.iter_mut();
        let rule = rules.find(|rule| rule.left > 0 && !rule.is_over && (rule.choice)(request))?;
        rule.left -= 1;
        rule.caught.push(request.clone());
        let accident = (rule.id, rule.accident);
        self.changed.notify_all();
        Some(accident)
    }
}

/// The requests with a fault, past and future. Dropping it lets them go.
pub struct Trap {
    shared: Arc<Shared>,
    id: u64,
}

impl Trap {
    /// Waits until this many requests were caught in total.
    #[track_caller]
    pub fn until_caught(&self, many: usize) {
        self.until(&format!("{many} caught"), |rule| rule.caught.len() >= many);
    }

    /// Waits until etcd has answered this many of them.
    #[track_caller]
    pub fn until_answered(&self, many: usize) {
        self.until(&format!("{many} answered"), |rule| rule.answered >= many);
    }

    #[track_caller]
    fn until(&self, what: &str, is_true: impl Fn(&Rule) -> bool) {
        let deadline = std::time::Instant::now() + PATIENCE;
        let mut state = self.shared.state.lock();
        while !is_true(state.rule(self.id).expect("it lives as long as its trap")) {
            let timed_out = self.shared.changed.wait_until(&mut state, deadline);
            assert!(!timed_out.timed_out(), "waited for 30 s until {what}");
        }
    }

    pub fn caught(&self) -> Vec<Request> {
        let mut state = self.shared.state.lock();
        let rule = state.rule(self.id).expect("it lives as long as its trap");
        rule.caught.clone()
    }

    /// Releases the held requests and answers. Further requests are not affected.
    pub fn let_go(&self) {
        let over = |state: &mut State| state.rule(self.id).into_iter().for_each(Rule::end);
        self.shared.change(over);
    }

    /// Sends a caught request to etcd once more, and returns the answer.
    #[track_caller]
    pub fn send_again(&self, which: usize) -> Value {
        let request = self.caught().swap_remove(which);
        let mut upstream = connect(request.server).expect("etcd is there");
        let answer = pass(&mut upstream, &request).expect("etcd answers");
        serde_json::from_slice(&answer.body).expect("etcd writes JSON")
    }
}

impl Rule {
    fn end(&mut self) {
        self.is_over = true;
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        // Held requests wake and find no rule any more.
        self.shared
            .change(|state| state.rules.retain(|rule| rule.id != self.id));
    }
}

fn accept(listener: &TcpListener, server: SocketAddr, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        let Ok(client) = client else { continue };
        if shared.state.lock().is_over {
            return;
        }
        let shared = shared.clone();
        // An error is the end of one of the two connections, and then both end.
        thread::spawn(move || drop(serve(&client, server, &shared)));
    }
}

fn connect(server: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// Passes a request on, and returns the answer.
fn pass(upstream: &mut BufReader<TcpStream>, request: &Request) -> io::Result<Message> {
    upstream.get_mut().write_all(&request.message.raw)?;
    Message::read(upstream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Serves one connection.
fn serve(client: &TcpStream, server: SocketAddr, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    let id = {
        let mut state = shared.state.lock();
        state.next_id += 1;
        let id = state.next_id;
        state.ends.push((id, client.try_clone()?));
        id
    };
    let result = serve_all(client, server, shared, id);
    // Shut down, since the copies would keep the connections open.
    let mut state = shared.state.lock();
    for (_, end) in state.ends.extract_if(.., |(of, _)| *of == id) {
        let _ = end.shutdown(Shutdown::Both);
    }
    result
}

/// Serves requests in order, until one of the connections ends.
fn serve_all(client: &TcpStream, server: SocketAddr, shared: &Shared, id: u64) -> io::Result<()> {
    let mut upstream: Option<BufReader<TcpStream>> = None;
    let mut requests = BufReader::new(client);
    while let Some(message) = Message::read(&mut requests)? {
        let request = Request { message, server };
        if shared.is_lost() {
            break;
        }
        let accident = shared.accident(&request);
        let upstream = match &mut upstream {
            Some(upstream) => upstream,
            none => {
                let stream = connect(server)?;
                let end = stream.get_ref().try_clone()?;
                shared.state.lock().ends.push((id, end));
                none.insert(stream)
            }
        };
        let answer = meet(&request, accident, upstream, shared)?;
        let Some(answer) = answer.filter(|_| !shared.is_lost()) else {
            break;
        };
        { client }.write_all(&answer.raw)?;
    }
    Ok(())
}

/// Carries out a fault. Returns the answer for the client. `None` if there is none.
fn meet(
    request: &Request,
    accident: Option<(u64, Accident)>,
    upstream: &mut BufReader<TcpStream>,
    shared: &Shared,
) -> io::Result<Option<Message>> {
    let Some((id, accident)) = accident else {
        return pass(upstream, request).map(Some);
    };
    let until_let_go = || {
        let is_let_go = |state: &mut State| state.rule(id).is_none_or(|rule| rule.is_over);
        let is_over = shared.wait(is_let_go).is_over;
        (!is_over).then_some(())
    };
    match accident {
        Accident::Dropped => return Ok(None),
        Accident::Delayed(delay) => thread::sleep(delay),
        Accident::Held if until_let_go().is_none() => return Ok(None),
        Accident::Held => {}
        Accident::Seen | Accident::AnswerCut | Accident::AnswerHeld | Accident::Doubled => {}
    }
    // The connection to etcd may be too old after a wait.
    let held = matches!(accident, Accident::Held | Accident::Delayed(_));
    let answer = match held {
        true => pass(&mut connect(request.server)?, request)?,
        false => pass(upstream, request)?,
    };
    if accident == Accident::Doubled {
        pass(upstream, request)?;
    }
    shared.change(|state| {
        if let Some(rule) = state.rule(id) {
            rule.answered += 1;
        }
    });
    if accident == Accident::AnswerCut
        || (accident == Accident::AnswerHeld && until_let_go().is_none())
    {
        return Ok(None);
    }
    Ok(Some(answer))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Etcds;
    use super::super::api::{Api, b64};
    use super::*;

    struct Setting {
        etcd: Etcds,
        proxy: FaultProxy,
    }

    impl Setting {
        fn new() -> Option<Self> {
            let etcd = Etcds::one()?;
            let proxy = FaultProxy::to(&etcd.addresses());
            Some(Setting { etcd, proxy })
        }

        fn api(&self) -> Api {
            Api::at(self.proxy.addresses()[0])
        }

        /// Sends a transaction whose key's version counts how often it was carried out.
        fn send(&self, key: &str) -> thread::JoinHandle<io::Result<bool>> {
            let api = self.api();
            let put = json!({ "key": b64(key), "value": b64("1") });
            let txn = json!({ "success": [{ "request_put": put }] });
            thread::spawn(move || {
                let answer = api.try_ask("/v3/kv/txn", &txn);
                answer.map(|(_, answer)| answer["succeeded"] == true)
            })
        }

        fn version(&self, key: &str) -> i64 {
            self.etcd.api().get(key).map_or(0, |found| found.version)
        }
    }

    #[test]
    fn requests_that_are_not_chosen_are_passed_on_unchanged() {
        let Some(setting) = Setting::new() else {
            return;
        };
        let trap = setting
            .proxy
            .trap(9, Accident::Dropped, |request| request.is_commit_of("a"));
        setting.api().put("/p/h/a/0", "1");
        let long = "x".repeat(100_000);
        setting.api().put("long", &long);
        assert_eq!(setting.api().get("long").expect("it was put").value, long);
        assert!(setting.send("/p/h/b/0").join().unwrap().expect("answered"));
        assert!(trap.caught().is_empty());
        assert_eq!(
            setting.api().try_ask("/nowhere", &json!({})).unwrap().0,
            404
        );
        setting
            .send("/p/h/a/0")
            .join()
            .unwrap()
            .expect_err("dropped");
        assert_eq!(setting.version("/p/h/a/0"), 1);
    }

    #[test]
    fn a_held_request_is_carried_out_when_it_is_released() {
        let Some(setting) = Setting::new() else {
            return;
        };
        let trap = setting.proxy.trap(1, Accident::Held, Request::is_commit);
        let sent = setting.send("a");
        trap.until_caught(1);
        // The next request overtakes it.
        assert!(setting.send("b").join().unwrap().expect("answered"));
        assert_eq!(setting.version("a"), 0);
        trap.let_go();
        assert!(sent.join().unwrap().expect("answered"));
        assert_eq!(setting.version("a"), 1);
    }

    #[test]
    fn a_held_request_is_carried_out_even_if_its_sender_has_gone() {
        let Some(setting) = Setting::new() else {
            return;
        };
        let trap = setting.proxy.trap(1, Accident::Held, Request::is_commit);
        let impatient = Api {
            timeout: Duration::from_millis(100),
            ..setting.api()
        };
        let put = json!({ "key": b64("a"), "value": b64("1") });
        let txn = json!({ "success": [{ "request_put": put }] });
        impatient
            .try_ask("/v3/kv/txn", &txn)
            .expect_err("it is held");
        assert_eq!(setting.version("a"), 0);
        trap.let_go();
        trap.until_answered(1);
        assert_eq!(setting.version("a"), 1);
    }

    #[test]
    fn a_request_whose_answer_is_cut_is_carried_out_once() {
        let Some(setting) = Setting::new() else {
            return;
        };
        let _trap = setting
            .proxy
            .trap(1, Accident::AnswerCut, Request::is_commit);
        setting.send("a").join().unwrap().expect_err("it is cut");
        assert_eq!(setting.version("a"), 1);
        assert!(setting.send("a").join().unwrap().expect("answered"));
    }

    #[test]
    fn a_request_whose_answer_is_held_is_carried_out_before() {
        let Some(setting) = Setting::new() else {
            return;
        };
        let trap = setting
            .proxy
            .trap(1, Accident::AnswerHeld, Request::is_commit);
        let sent = setting.send("a");
        trap.until_answered(1);
        assert_eq!(setting.version("a"), 1);
        assert!(!sent.is_finished());
        drop(trap);
        assert!(sent.join().unwrap().expect("answered"));
    }

    #[test]
    fn a_request_is_carried_out_twice_now_or_later() {
        let Some(setting) = Setting::new() else {
            return;
        };
        let trap = setting.proxy.trap(1, Accident::Doubled, Request::is_commit);
        assert!(setting.send("a").join().unwrap().expect("answered"));
        assert_eq!(setting.version("a"), 2);
        assert_eq!(trap.send_again(0)["succeeded"], true);
        assert_eq!(setting.version("a"), 3);
        let delayed = Accident::Delayed(Duration::from_millis(50));
        let _later = setting.proxy.trap(1, delayed, Request::is_commit);
        assert!(setting.send("a").join().unwrap().expect("answered"));
        assert_eq!(setting.version("a"), 4);
    }

    #[test]
    fn requests_during_a_cut_are_lost_and_the_connection_can_be_restored() {
        let Some(setting) = Setting::new() else {
            return;
        };
        setting.api().put("a", "1");
        setting.proxy.cut_off();
        let lost = setting.send("a");
        let impatient = Api {
            timeout: Duration::from_millis(100),
            ..setting.api()
        };
        impatient
            .try_ask("/v3/kv/range", &json!({ "key": b64("a") }))
            .expect_err("nothing comes");
        assert!(!lost.is_finished());
        setting.proxy.mend();
        lost.join().unwrap().expect_err("its connection has ended");
        assert_eq!(setting.version("a"), 1);
        assert_eq!(setting.api().get("a").expect("it is there").version, 1);
    }

    #[test]
    fn each_kind_of_a_servers_requests_is_recognised() {
        let server = own_port();
        let is = |path: &str, body: Value| {
            let body = body.to_string();
            let raw = format!(
                "POST {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let message = Message::read(&mut raw.as_bytes()).expect("whole");
            let request = Request {
                message: message.expect("there"),
                server,
            };
            let kinds: [(&str, bool); 6] = [
                ("commit", request.is_commit()),
                ("of k", request.is_commit_of("k")),
                ("confirm", request.is_confirm()),
                ("campaign", request.is_campaign()),
                ("load", request.is_load()),
                ("keepalive", request.is_keepalive()),
            ];
            let kinds = kinds.into_iter().filter(|(_, is)| *is);
            kinds.map(|(kind, _)| kind).collect::<Vec<_>>().join(", ")
        };
        let put = |key: &str| json!({ "request_put": { "key": b64(key), "value": b64("1") } });
        let delete = json!({ "request_delete_range": { "key": b64("/p/h/k/0") } });
        let look = json!({ "request_range": { "key": b64("/p/leader"), "count_only": true } });
        let txn = |operations: &[&Value]| is("/v3/kv/txn", json!({ "success": operations }));
        assert_eq!(txn(&[&put("/p/leader")]), "campaign");
        assert_eq!(txn(&[&put("/p/seq"), &put("/p/h/k/0")]), "commit, of k");
        assert_eq!(txn(&[&delete]), "commit, of k");
        assert_eq!(txn(&[&look]), "confirm");
        assert_eq!(is("/v3/kv/range", json!({ "key": b64("/p/h/") })), "load");
        assert_eq!(is("/v3/kv/range", json!({ "key": b64("/p/leader") })), "");
        assert_eq!(is("/v3/lease/keepalive", json!({ "ID": "1" })), "keepalive");
    }
}
