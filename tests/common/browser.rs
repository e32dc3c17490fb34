//! A real browser: Chromium through chromedriver, as Debian packages them. `.ci/run` installs them.
//!
//! A small client of the WebDriver protocol (<https://www.w3.org/TR/webdriver2/>), and of the DevTools protocol for
//! what WebDriver lacks.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, geteuid};
use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::Agent;

use super::program::{clean, installed};
use super::{PATIENCE, ms, until};

/// Keys of a keyboard, as WebDriver encodes them (section 17.4.2).
pub const TAB: char = '\u{e004}';
pub const ENTER: char = '\u{e007}';
pub const ESCAPE: char = '\u{e00c}';

/// A browser with a profile of its own. It ends when it is dropped, and when the thread of its test ends.
pub struct Browser {
    agent: Agent,
    driver: Child,
    /// The address of the session at the driver.
    session: String,
    _profile: TempDir,
    /// One browser at a time, since each takes several processes and hundreds of megabytes.
    _alone: MutexGuard<'static, ()>,
}

impl Browser {
    /// `None`, with a printed reason, if it is not installed. In CI that is a failure.
    pub fn start() -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let (chromedriver, chromium) = (installed("chromedriver")?, installed("chromium")?);
        // The mutex guards no data, so a failed test leaves nothing wrong behind.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let profile = tempfile::tempdir().unwrap();
        let (driver, port) = start_driver(Command::new(chromedriver), &profile);
        let config = Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE * 2));
        let mut browser = Browser {
            agent: config.build().new_agent(),
            driver,
            session: format!("http://127.0.0.1:{port}/session"),
            _profile: profile,
            _alone: alone,
        };
        let folder = browser._profile.path().join("profile");
        let mut args = vec![
            "--headless=new".into(),
            format!("--user-data-dir={}", folder.display()),
            // The browser ends when its driver ends, in whatever way.
            "--remote-debugging-pipe".into(),
            "--disable-gpu".into(),
            // A container's /dev/shm is small.
            "--disable-dev-shm-usage".into(),
            "--no-first-run".into(),
            "--disable-background-networking".into(),
            "--disable-component-update".into(),
            "--window-size=1200,900".into(),
        ];
        if geteuid().is_root() {
            args.push("--no-sandbox".into());
        }
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": chromium, "args": args},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let session = browser.call("POST", "", wanted);
        let id = session["sessionId"].as_str().expect("a session");
        browser.session = format!("{}/{id}", browser.session);
        // The browser's start page sends requests of its own.
        browser.go("about:blank");
        browser.requests();
        Some(browser)
    }

    /// Sends a command, and returns its value.
    fn call(&self, method: &str, command: &str, body: Value) -> Value {
        self.try_call(method, command, body)
            .unwrap_or_else(|error| panic!("{method} {command}: {error}"))
    }

    fn try_call(&self, method: &str, command: &str, body: Value) -> Result<Value, String> {
        let url = format!("{}{command}", self.session);
        let answer = match method {
            "GET" => self.agent.get(&url).call(),
            "DELETE" => self.agent.delete(&url).call(),
            _ => {
                let post = self.agent.post(&url);
                let post = post.header("Content-Type", "application/json");
                post.send(body.to_string())
            }
        };
        let mut answer = answer.map_err(|error| error.to_string())?;
        let body = answer.body_mut().with_config().limit(256 << 20);
        let text = body.read_to_string().map_err(|error| error.to_string())?;
        let mut value: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let value = value["value"].take();
        match value["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", value["message"])),
            None => Ok(value),
        }
    }

    /// Opens an address, and waits until the page is loaded.
    pub fn go(&self, url: &str) {
        self.call("POST", "/url", json!({ "url": url }));
    }

    pub fn back(&self) {
        self.call("POST", "/back", json!({}));
    }

    /// Runs the body of a function in the page, and returns its value, or the value of its promise.
    pub fn script(&self, code: &str) -> Value {
        self.call("POST", "/execute/sync", json!({"script": code, "args": []}))
    }

    /// Whether an expression is true in the page.
    pub fn is(&self, expression: &str) -> bool {
        self.script(&format!("return Boolean({expression});")) == json!(true)
    }

    /// Waits until an expression is true in the page, and returns how long that took.
    pub fn until(&self, expression: &str) -> Duration {
        let begin = Instant::now();
        while !self.is(expression) {
            if begin.elapsed() > PATIENCE {
                let shown = self.script("return document.body.innerText;");
                panic!("waited for 30 s until {expression}:\n{shown}");
            }
            thread::sleep(ms(10));
        }
        begin.elapsed()
    }

    /// The visible text of an element.
    pub fn text(&self, selector: &str) -> String {
        let element = self.find(selector);
        let text = self.call("GET", &format!("/element/{element}/text"), Value::Null);
        text.as_str().expect("text").into()
    }

    /// Clicks on an element, which has to be visible.
    pub fn click(&self, selector: &str) {
        let element = self.find(selector);
        self.call("POST", &format!("/element/{element}/click"), json!({}));
    }

    /// Replaces the content of a field by typing.
    pub fn enter(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.call("POST", &format!("/element/{element}/clear"), json!({}));
        let keys = json!({ "text": text });
        self.call("POST", &format!("/element/{element}/value"), keys);
    }

    /// Presses a key, for the element that has the focus.
    pub fn press(&self, key: char) {
        let strokes = json!([{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]);
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": strokes});
        self.call("POST", "/actions", json!({ "actions": [keyboard] }));
    }

    fn find(&self, selector: &str) -> String {
        let how = json!({"using": "css selector", "value": selector});
        let found = self.call("POST", "/element", how);
        let reference = found.as_object().expect("a reference").values().next();
        reference.and_then(Value::as_str).expect("an ID").into()
    }

    /// Sends a command of the DevTools protocol.
    pub fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.call("POST", "/goog/cdp/execute", body)
    }

    pub fn resize(&self, width: u32, height: u32) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", size);
    }

    /// Sets the user's color scheme: `light` or `dark`.
    pub fn prefer(&self, scheme: &str) {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.devtools("Emulation.setEmulatedMedia", json!({"features": [feature]}));
    }

    /// The messages on the page's console since the last call.
    pub fn console(&self) -> Vec<String> {
        let log = self.call("POST", "/se/log", json!({"type": "browser"}));
        let lines = log.as_array().expect("a list").iter();
        lines.map(|line| line["message"].to_string()).collect()
    }

    /// The addresses that its pages have requested since the last call.
    pub fn requests(&self) -> Vec<String> {
        let log = self.call("POST", "/se/log", json!({"type": "performance"}));
        let lines = log.as_array().expect("a list").iter();
        let events = lines.map(|line| -> Value {
            serde_json::from_str(line["message"].as_str().expect("text")).expect("JSON")
        });
        let sent = events.filter(|event| event["message"]["method"] == "Network.requestWillBeSent");
        sent.map(|event| {
            let url = &event["message"]["params"]["request"]["url"];
            url.as_str().expect("an address").to_string()
        })
        .collect()
    }

    /// The accessibility tree, as a screen reader gets it: the role and the name of each element that is not ignored.
    pub fn accessibility(&self) -> Vec<(String, String)> {
        let tree = self.devtools("Accessibility.getFullAXTree", json!({}));
        let nodes = tree["nodes"].as_array().expect("a list").iter();
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_string();
        nodes
            .filter(|node| node["ignored"] == json!(false))
            .map(|node| (text(&node["role"]), text(&node["name"])))
            .collect()
    }

    /// Saves a picture of the page in the folder `LOCK_SERVER_TEST_SCREENSHOTS`, if that is set.
    pub fn screenshot(&self, name: &str) {
        use base64::Engine;
        let Some(folder) = std::env::var_os("LOCK_SERVER_TEST_SCREENSHOTS") else {
            return;
        };
        let picture = self.call("GET", "/screenshot", Value::Null);
        let picture = base64::engine::general_purpose::STANDARD
            .decode(picture.as_str().expect("base64"))
            .expect("base64");
        let folder = std::path::PathBuf::from(folder);
        fs::write(folder.join(format!("{name}.png")), picture).unwrap();
    }
}

/// Starts a driver, and returns it with its port. A driver takes a free port on IPv6, and ends if another program has
/// that port on IPv4; then the next driver is tried.
fn start_driver(mut command: Command, profile: &TempDir) -> (Child, u16) {
    prepare_driver(&mut command, profile);
    let started = (0..5).find_map(|_| try_driver(&mut command));
    started.expect("one of five drivers prints its port")
}

fn prepare_driver(command: &mut Command, profile: &TempDir) {
    clean(command)
        .arg("--port=0")
        // For the driver's session files, and what Chromium writes outside its profile.
        .env("TMPDIR", profile.path())
        .env("HOME", profile.path())
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_CACHE_HOME")
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    // SAFETY: it only makes system calls.
    unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)) };
}

/// `None` if the driver ends before it prints its port.
fn try_driver(command: &mut Command) -> Option<(Child, u16)> {
    let mut driver = command.spawn().unwrap();
    let stdout = driver.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(stdout).lines();
    let port = lines.by_ref().find_map(|line| {
        let line = line.expect("UTF-8");
        line.strip_suffix('.')?
            .rsplit_once(" on port ")?
            .1
            .parse()
            .ok()
    });
    let Some(port) = port else {
        driver.wait().expect("a child");
        return None;
    };
    // Drains its output, so that it never blocks on a full pipe.
    thread::spawn(move || lines.for_each(drop));
    Some((driver, port))
}

impl Drop for Browser {
    fn drop(&mut self) {
        // This ends the browser. If it fails, the end of the driver does.
        let _ = self.try_call("DELETE", "", Value::Null);
        let _ = signal::kill(Pid::from_raw(self.driver.id() as i32), Signal::SIGTERM);
        let _ = self.driver.wait();
        // A browser process that is about to end may still write into the profile.
        let profile = self._profile.path().to_owned();
        until("the profile is gone", || {
            fs::remove_dir_all(&profile).is_ok() || !profile.exists()
        });
    }
}
