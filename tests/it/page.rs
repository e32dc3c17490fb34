//! The status page, in a real browser.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use lock_server::{Options, Server, StoreAddress};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::access::{ADMIN, LOCK, READ, TOKENS, TokenFile};
use crate::common::browser::{Browser, ENTER, ESCAPE, TAB};
use crate::common::{Wire, ask, bound, ms, options, start, waiting_wire};

/// The rows of the table of keys, each as the list of its cells' texts.
const ROWS: &str = "[...document.querySelectorAll('#keys tbody tr')].map(row => [...row.cells].map(cell => cell.innerText.trim().replace(/\\s+/g, ' ')))";

/// A browser at the page of a server.
struct Visit {
    browser: Browser,
    server: Server,
}

impl Visit {
    /// `None` without a browser.
    fn to(server: Server) -> Option<Self> {
        let browser = Browser::start()?;
        let visit = Visit { browser, server };
        visit.browser.go(&visit.url(""));
        let is_live = "document.querySelector('#keys th button') && performance.getEntriesByType('resource').some(entry => entry.name.includes('/locks?'))";
        visit.browser.until(is_live);
        Some(visit)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.server.port())
    }

    fn lock(&self, key: &str, requester: &str, terms: &str) {
        let reply = ask(&self.server, &format!("/LOCK/{key}/{requester}?{terms}"));
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.result(), "", "{reply:?}");
    }

    fn rows(&self) -> Vec<Vec<String>> {
        serde_json::from_value(self.browser.script(&format!("return {ROWS};"))).unwrap()
    }

    fn keys(&self) -> Vec<String> {
        let rows = self.rows().into_iter();
        rows.filter(|row| row.len() == 6)
            .map(|mut row| row.swap_remove(0))
            .collect()
    }

    /// Waits until the page shows these keys, in this order.
    fn until_keys(&self, keys: &[&str]) -> Duration {
        let keys = json!(keys);
        let shown = format!("{ROWS}.filter(row => row.length === 6).map(row => row[0])");
        self.browser.until(&format!(
            "JSON.stringify({shown}) === JSON.stringify({keys})"
        ))
    }

    /// The checks of each visit: the console is empty, and all requests went to the server.
    fn end(self) {
        let said = self.browser.console();
        assert_eq!(said, [""; 0]);
        let requests = self.browser.requests();
        assert!(requests.iter().any(|url| url.contains("/locks?")));
        for url in requests {
            // The icon is embedded in the page.
            let is_own = url.starts_with(&self.url("")) || url.starts_with("data:image/svg");
            assert!(is_own, "{url}");
        }
    }
}

fn process_of(server: &Server) -> Pid {
    let reply = ask(server, "/PING");
    let pid = reply.header("Lock-Server-Pid").expect("a process");
    Pid::from_raw(pid.parse().expect("a number"))
}

fn long() -> Options {
    Options {
        lock_timeout: Duration::from_secs(3_600),
        lock_attempt_timeout: Duration::from_secs(3_600),
        ..options()
    }
}

fn breakable() -> Options {
    Options {
        allow_break: true,
        ..long()
    }
}

#[test]
fn the_page_shows_a_grant_a_wait_and_a_release_within_two_seconds() {
    let Some(visit) = Visit::to(start(long())) else {
        return;
    };
    let browser = &visit.browser;
    let within = bound(Duration::from_secs(2));
    visit.lock("KEYA", "CLIENT_A", "note=backup");
    assert!(visit.until_keys(&["KEYA"]) < within);
    let row = &visit.rows()[0];
    assert_eq!(row[1], "CLIENT_A");
    assert!(row[3].starts_with("59 min"), "{row:?}");
    assert_eq!((&*row[4], &*row[5]), ("0", "backup"));

    let waiter = waiting_wire(&visit.server, "KEYA", "CLIENT_B");
    assert!(browser.until(&format!("{ROWS}[0][4] === '1'")) < within);
    assert_eq!(browser.text("#waiting"), "1");
    waiter.hang_up();
    browser.until(&format!("{ROWS}[0][4] === '0'"));

    // The times go on between two answers.
    let held = |row: &[String]| row[2].trim_end_matches(" s").parse::<f64>().unwrap();
    let before = held(&visit.rows()[0]);
    browser.until(&format!("parseFloat({ROWS}[0][2]) > {before}"));

    assert_eq!(ask(&visit.server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    assert!(browser.until(&format!("{ROWS}[0][0] === 'No key is held.'")) < within);
    visit.end();
}

#[test]
fn the_bar_of_a_lease_shows_its_full_length_also_on_a_page_opened_later() {
    let Some(visit) = Visit::to(start(long())) else {
        return;
    };
    let browser = &visit.browser;
    let share = "parseFloat(document.querySelector('#keys rect').getAttribute('width'))";
    visit.lock("KEYA", "CLIENT_A", "lock_timeout=8");
    browser.until(&format!("{ROWS}[0].length === 6 && {share} < 70"));
    browser.go("about:blank");
    browser.go(&visit.url(""));
    browser.until(&format!("{ROWS}[0]?.length === 6"));
    assert!(browser.is(&format!("{share} < 70")));
    browser.until("document.querySelector('#keys .low')");
    // Also for a lease that was renewed for another time.
    visit.lock("KEYB", "CLIENT_A", "lock_timeout=1000");
    visit.until_keys(&["KEYB"]);
    ask(&visit.server, "/RENEW/KEYB/CLIENT_A?lock_timeout=3000");
    browser.until(&format!("{ROWS}[0][3].startsWith('49 min')"));
    assert!(browser.is(&format!("{share} > 95")));
    assert!(browser.is("!document.querySelector('#keys .low')"));
    visit.end();
}

#[test]
fn keys_are_filtered_sorted_and_looked_at_one_by_one() {
    let Some(visit) = Visit::to(start(long())) else {
        return;
    };
    let browser = &visit.browser;
    visit.lock("deploy%2Fweb", "ci", "lock_timeout=300");
    visit.lock("deploy%2Fapi", "ci", "lock_timeout=200");
    visit.lock("backup", "nightly", "lock_timeout=100&slots=2&note=first");
    visit.lock("backup", "second", "lock_timeout=100&slots=2");
    let waiter = waiting_wire(&visit.server, "deploy%2Fweb", "CLIENT_B");
    // Contended keys come first, then the others in the order of their ends.
    visit.until_keys(&["deploy/web", "backup", "deploy/api"]);
    assert_eq!(visit.rows()[1][1], "nightly and 1 other");

    browser.click("#keys th:nth-child(1) button");
    visit.until_keys(&["backup", "deploy/api", "deploy/web"]);
    assert!(browser.is("document.querySelector('#keys th').ariaSort === 'ascending'"));
    browser.click("#keys th:nth-child(1) button");
    visit.until_keys(&["deploy/web", "deploy/api", "backup"]);
    browser.click("#keys th:nth-child(1) button");
    visit.until_keys(&["deploy/web", "backup", "deploy/api"]);

    browser.enter("#prefix", "deploy/");
    visit.until_keys(&["deploy/web", "deploy/api"]);
    browser.enter("#prefix", "");
    browser.enter("#holder", "second");
    visit.until_keys(&["backup"]);
    // The row shows the hold of the holder in the filter.
    assert_eq!(visit.rows()[0][1], "second and 1 other");
    browser.enter("#holder", "nobody");
    browser.until(&format!(
        "{ROWS}[0][0] === 'No held key matches the filter.'"
    ));
    // The filter is part of the URL.
    browser.go("about:blank");
    browser.go(&visit.url("#prefix=deploy%2F&holder=ci"));
    visit.until_keys(&["deploy/web", "deploy/api"]);

    browser.click("#keys tbody tr:nth-child(1) a");
    browser.until("document.querySelectorAll('#queue tr').length === 1");
    assert!(browser.is("location.hash === '#key=deploy%2Fweb'"));
    assert!(browser.is("document.activeElement.id === 'detail-title'"));
    assert_eq!(browser.text("#detail-title"), "Key deploy/web");
    assert_eq!(browser.text("#summary"), "Held by 1. 1 waits.");
    assert_eq!(browser.text("#queue td:nth-child(1)"), "1");
    assert_eq!(browser.text("#queue th"), "CLIENT_B");
    assert!(browser.text("#holders tr").starts_with("ci"));
    // This server does not allow breaking a hold.
    assert!(browser.is("!document.querySelector('#holders button').checkVisibility()"));
    browser.back();
    visit.until_keys(&["deploy/web", "deploy/api"]);
    assert!(browser.is("document.activeElement.innerText === 'deploy/web'"));

    // The key is part of the URL, even if it is free.
    browser.go("about:blank");
    browser.go(&visit.url("#key=backup"));
    browser.until("document.querySelectorAll('#holders tr').length === 2");
    waiter.hang_up();
    browser.go(&visit.url("#key=free%20%3Cb%3E"));
    browser.until("document.querySelector('#summary').innerText === 'The key is free.'");
    assert_eq!(browser.text("#detail-title"), "Key free <b>");
    visit.end();
}

#[test]
fn a_hold_is_broken_after_a_confirmation_that_names_it() {
    let Some(visit) = Visit::to(start(breakable())) else {
        return;
    };
    let browser = &visit.browser;
    visit.lock("KEYA", "CLIENT_A", "");
    visit.lock("KEYB", "CLIENT_A", "");
    visit.until_keys(&["KEYA", "KEYB"]);
    browser.click("#keys tbody tr:nth-child(1) a");
    browser.until("document.querySelector('#holders button')?.checkVisibility()");

    // Cancelling the dialog breaks nothing.
    browser.click("#holders button");
    let text = browser.text("#break-text");
    assert!(text.starts_with("CLIENT_A holds the key KEYA."), "{text}");
    assert!(browser.is("document.activeElement.id === 'break-cancel'"));
    browser.press(ESCAPE);
    browser.until("!document.querySelector('#break').open");
    assert!(browser.is("document.activeElement === document.querySelector('#holders button')"));
    assert_eq!(ask(&visit.server, "/VERIFY/KEYA/CLIENT_A").status, 200);
    assert_eq!(ask(&visit.server, "/CHECK/KEYA").body, "1\n");

    browser.click("#holders button");
    browser.enter("#by", "Alice <b>");
    browser.click("#break-do");
    let result = "document.querySelector('#break-result').innerText";
    browser.until(&format!(
        "{result} === 'Broken. CLIENT_A no longer holds KEYA.'"
    ));
    browser.screenshot("broken");
    browser.press(ENTER);
    browser.until("!document.querySelector('#break').open");
    browser.until("document.querySelector('#summary').innerText === 'The key is free.'");
    browser.until("document.activeElement.id === 'detail-title'");
    let renewed = ask(&visit.server, "/RENEW/KEYA/CLIENT_A");
    assert_eq!(renewed.result(), "broken");
    assert_eq!(ask(&visit.server, "/CHECK/KEYB").body, "1\n");
    visit.end();
}

#[test]
fn a_hold_that_ended_while_it_was_confirmed_is_not_broken_and_nor_is_the_next_one() {
    let Some(visit) = Visit::to(start(breakable())) else {
        return;
    };
    let browser = &visit.browser;
    visit.lock("KEYA", "CLIENT_A", "");
    browser.go("about:blank");
    browser.go(&visit.url("#key=KEYA"));
    browser.until("document.querySelector('#holders button')?.checkVisibility()");
    browser.click("#holders button");
    assert_eq!(ask(&visit.server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    visit.lock("KEYA", "CLIENT_A", "");
    browser.click("#break-do");
    let result = "document.querySelector('#break-result').innerText";
    browser.until(&format!(
        "{result} === 'The hold had already ended; nothing was broken.'"
    ));
    assert_eq!(
        ask(&visit.server, "/VERIFY/KEYA/CLIENT_A")
            .body
            .lines()
            .next(),
        Some("1")
    );
    visit.end();
}

#[test]
fn the_page_shows_that_the_server_does_not_answer_and_that_its_numbers_are_old() {
    let folder = tempfile::tempdir().unwrap();
    let stored = Options {
        store: Some(StoreAddress::File(folder.path().join("locks.db"))),
        ..long()
    };
    let Some(visit) = Visit::to(start(stored)) else {
        return;
    };
    let browser = &visit.browser;
    visit.lock("KEYA", "CLIENT_A", "");
    visit.until_keys(&["KEYA"]);
    // The page requests `/status` every five seconds.
    let store = "document.querySelector('#store').innerText";
    browser.until(&format!(
        "/^Store: file, \\d.* of the commits within \\d/.test({store})"
    ));
    let has_store = "document.querySelector('#store').checkVisibility()";
    let pid = process_of(&visit.server);
    kill(pid, Signal::SIGSTOP).unwrap();
    browser.until("document.querySelector('#state').innerText === 'No answer'");
    browser.screenshot("away");
    assert!(
        browser
            .text("[role=status]")
            .contains("The last answer came at ")
    );
    assert!(!browser.is(has_store));
    let row = &visit.rows()[0];
    assert_eq!([&*row[2], &*row[3]], ["\u{2013}"; 2]);
    for id in ["keys-held", "uptime", "memory", "threads", "connections"] {
        assert_eq!(browser.text(&format!("#{id}")), "\u{2013}", "{id}");
    }
    assert!(browser.text("#keys caption").ends_with(", not up to date."));
    kill(pid, Signal::SIGCONT).unwrap();
    browser.until("document.querySelector('#state').innerText === 'Serving'");
    browser.until(&format!("{ROWS}[0][3].startsWith('59 min')"));
    browser.until("document.querySelector('#keys-held').innerText === '1'");
    browser.until(has_store);

    // The same on a paused page.
    browser.click("#pause");
    assert_eq!(browser.text("#state"), "Paused");
    assert!(browser.text("#keys caption").ends_with(", not up to date."));
    browser.click("#pause");
    browser.until("document.querySelector('#state').innerText === 'Serving'");
    // Drops the browser's messages about the failed requests.
    browser.console();
    visit.end();
}

#[test]
fn the_page_shows_that_the_server_ends() {
    let Some(mut visit) = Visit::to(start(long())) else {
        return;
    };
    visit.server.stop().unwrap();
    visit
        .browser
        .until("document.querySelector('#state').innerText === 'No answer'");
    assert!(visit.browser.is("document.title.startsWith('No answer')"));
}

#[test]
fn the_page_sends_the_token_that_its_browser_was_given() {
    let file = TokenFile::new(TOKENS);
    let Some(browser) = Browser::start() else {
        return;
    };
    let server = start(Options {
        lock_timeout: Duration::from_secs(3_600),
        ..file.options()
    });
    let port = server.port();
    let escaped = |token: &str| {
        token
            .replace('+', "%2B")
            .replace('/', "%2F")
            .replace('=', "%3D")
    };
    let open = |token: &str| {
        // The browser's cache may have the page.
        browser.devtools("Network.clearBrowserCache", json!({}));
        browser.go("about:blank");
        browser.go(&format!("http://:{}@127.0.0.1:{port}/", escaped(token)));
    };
    let locked = Wire::to_port(port)
        .send(format!(
            "GET /LOCK/KEYA/CLIENT_A HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {LOCK}\r\n\r\n"
        ))
        .reply();
    assert_eq!(locked.status, 200);

    open(READ);
    browser.until(&format!("{ROWS}[0][0] === 'KEYA'"));
    browser.click("#keys tbody a");
    browser.until("document.querySelectorAll('#holders tr').length === 1");
    assert!(browser.is("!document.querySelector('#holders button').checkVisibility()"));

    open(ADMIN);
    browser.until(&format!("{ROWS}[0][0] === 'KEYA'"));
    browser.click("#keys tbody a");
    browser.until("document.querySelector('#holders button')?.checkVisibility()");
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn without_javascript_the_page_is_a_table_of_the_keys() {
    let server = start(long());
    let Some(browser) = Browser::start() else {
        return;
    };
    for n in 0..120 {
        ask(&server, &format!("/LOCK/KEY-{n}/CLIENT_A?note=backup"));
    }
    browser.devtools(
        "Emulation.setScriptExecutionDisabled",
        json!({"value": true}),
    );
    browser.go(&format!("http://127.0.0.1:{}/", server.port()));
    let shown = browser.accessibility();
    let count = |role: &str| shown.iter().filter(|(of, _)| of == role).count();
    assert_eq!(count("rowheader"), 100, "{shown:?}");
    let has = |text: &str| shown.iter().any(|(_, name)| name.contains(text));
    for text in [
        "KEY-0",
        "CLIENT_A",
        "backup",
        "Serving",
        "With JavaScript it updates itself",
    ] {
        assert!(has(text), "{text}: {shown:?}");
    }
    assert!(has("120 keys are held. Here are 100"), "{shown:?}");
    // It has no controls that need JavaScript.
    assert_eq!(count("button") + count("searchbox"), 0, "{shown:?}");
    browser.screenshot("without-javascript");
}

#[test]
fn names_of_any_kind_are_shown_as_text_and_fit_the_screen() {
    let Some(visit) = Visit::to(start(breakable())) else {
        return;
    };
    let browser = &visit.browser;
    let long_name = "x".repeat(1024);
    for (key, requester, note) in [
        (
            "%3Cscript%3Ealert%281%29%3C%2Fscript%3E",
            "%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E",
            "%22%27%26",
        ),
        ("a%E2%80%AEb", "%D7%A9%D7%9C%D7%95%D7%9D", "%F0%9F%8E%89"),
        (&*long_name, &*long_name, &*"z".repeat(256)),
        ("a+b c%2Fd%3F%23%25".replace(' ', "%20").as_str(), "+", "+"),
    ] {
        visit.lock(key, requester, &format!("note={note}"));
    }
    let _waiter = waiting_wire(&visit.server, "a%E2%80%AEb", "CLIENT_B");
    browser.until(&format!(
        "{ROWS}.filter(row => row.length === 6).length === 4"
    ));
    let keys = visit.keys();
    for key in [
        "<script>alert(1)</script>",
        "a+b c/d?#%",
        "a\u{2066}\\u{202e}\u{2069}b",
    ] {
        assert!(keys.iter().any(|shown| shown == key), "{key}: {keys:?}");
    }
    let fits = "document.documentElement.scrollWidth <= innerWidth";
    for (width, scheme) in [(1200, "light"), (1200, "dark"), (390, "light")] {
        browser.resize(width, 900);
        browser.prefer(scheme);
        assert!(browser.is(fits), "{width}");
        browser.screenshot(&format!("{scheme}-{width}"));
    }
    // A click opens each of them.
    for row in 1..=4 {
        browser.click(&format!("#keys tbody tr:nth-child({row}) a"));
        browser.until("document.querySelectorAll('#holders tr').length === 1");
        assert!(browser.is(fits));
        browser.screenshot(&format!("detail-390-{row}"));
        browser.back();
        browser.until("document.querySelector('#detail').hidden");
    }
    visit.end();
}

/// Texts with too little contrast to their background (WCAG 2.2, 1.4.3), with their ratio.
const FAINT: &str = r"
const parts = (color) => color.match(/[\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
  .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const color = parts(getComputedStyle(node).backgroundColor);
    if (color.length < 4 || color[3] === 1) return color;
    if (color[3] !== 0) throw new Error('a background that can be seen through');
  }
  throw new Error('no background');
};
const faint = [];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let looked = 0;
while (texts.nextNode()) {
  const node = texts.currentNode.parentElement;
  if (!texts.currentNode.data.trim() || !node.checkVisibility() || ['SCRIPT', 'NOSCRIPT'].includes(node.tagName)) continue;
  const style = getComputedStyle(node);
  const [one, other] = [light(parts(style.color)), light(behind(node))].sort((a, b) => b - a);
  const ratio = (one + 0.05) / (other + 0.05);
  const size = parseFloat(style.fontSize);
  const is_large = size >= 24 || size >= 18.66 && Number(style.fontWeight) >= 700;
  looked += 1;
  if (ratio < (is_large ? 3 : 4.5)) faint.push([texts.currentNode.data, ratio]);
}
if (looked < 10) throw new Error('no text');
return faint;
";

/// Violations of the usual rules of accessibility checkers, as sentences.
const FAULTS: &str = r"
const faults = [];
const all = (selector) => [...document.querySelectorAll(selector)].filter(node => node.checkVisibility());
const expect = (is_right, words) => { if (!is_right) faults.push(words); };
expect(document.documentElement.lang === 'en', 'the language');
expect(document.title !== '', 'the title');
expect(!/user-scalable|maximum-scale/.test(document.querySelector('meta[name=viewport]').content), 'zoom');
expect(all('h1').length === 1, 'one h1');
for (const landmark of ['header', 'main', 'footer']) expect(all(landmark).length === 1, landmark);
let level = 1;
for (const heading of all('h1, h2, h3')) {
  const next = Number(heading.tagName[1]);
  expect(next <= level + 1, `a level is left out before ${heading.innerText}`);
  level = next;
}
for (const field of all('input')) expect(field.labels.length === 1 && field.labels[0].innerText, `label of ${field.id}`);
for (const table of all('table')) {
  expect(table.caption && table.caption.innerText, 'caption');
  for (const cell of table.querySelectorAll('th')) expect(cell.scope === 'col' || cell.scope === 'row', `scope of ${cell.innerText}`);
}
const ids = [...document.querySelectorAll('[id]')].map(node => node.id);
expect(new Set(ids).size === ids.length, 'an ID twice');
for (const name of ['aria-labelledby', 'aria-describedby'])
  for (const node of document.querySelectorAll(`[${name}]`))
    expect(document.getElementById(node.getAttribute(name)), `${name} of ${node.tagName}`);
for (const box of all('body *')) {
  const style = getComputedStyle(box);
  const scrolls = ['auto', 'scroll'].includes(style.overflowX) && box.scrollWidth > box.clientWidth;
  expect(!scrolls || box.tabIndex === 0, `${box.className} scrolls, and no key reaches it`);
}
for (const hidden of document.querySelectorAll('[aria-hidden=true]')) expect(!hidden.querySelector('a, button, input'), 'a hidden control');
for (const node of document.querySelectorAll('[style], [onclick], [onload], [onerror]')) expect(false, `${node.tagName} has what the policy forbids`);
for (const live of document.querySelectorAll('[role=status], [aria-live]')) expect(!live.closest('table') && !live.querySelector('table'), 'a table that is read aloud');
for (const button of all('button')) {
  const box = button.getBoundingClientRect();
  // WCAG 2.2, 2.5.8, except for buttons in a line of text.
  expect(button.closest('th') || box.height >= 24 && box.width >= 24, `${button.innerText} is small`);
}
return faults;
";

/// Checks what the page shows now, in both color schemes.
fn check_accessibility(browser: &Browser) {
    assert_eq!(browser.script(FAULTS), json!([]));
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        assert_eq!(browser.script(FAINT), json!([]), "{scheme}");
    }
    let controls = [
        "button",
        "link",
        "searchbox",
        "textbox",
        "table",
        "dialog",
        "region",
        "image",
        "search",
        "navigation",
        "figure",
        "heading",
        "rowheader",
        "columnheader",
    ];
    let shown = browser.accessibility();
    for (role, name) in &shown {
        // A figure has a caption, and the element inside it a name.
        let needs_name = controls.contains(&&**role) && role != "figure";
        assert!(
            !needs_name || !name.trim().is_empty(),
            "a {role} without a name"
        );
    }
    assert!(
        shown
            .iter()
            .filter(|(role, _)| controls.contains(&&**role))
            .count()
            > 3,
        "{shown:?}"
    );
}

/// Presses Tab, and checks that each control gets the focus once, in the order of the document, before the focus leaves
/// them.
fn check_tab_order(browser: &Browser, within: &str) {
    let controls = browser.script(&format!(
        "window.controls = [...document.querySelector('{within}').querySelectorAll('a[href], button, input, [tabindex=\"0\"]')]\
         .filter(node => node.checkVisibility()); document.activeElement.blur(); return window.controls.length;"
    ));
    let controls = controls.as_u64().expect("a number");
    assert!(controls >= 2, "{controls}");
    let focused = || browser.script("return window.controls.indexOf(document.activeElement);");
    let mut order = Vec::new();
    // One press more: then the focus is on the browser's own controls, or on the first control again.
    for _ in 0..=controls {
        browser.press(TAB);
        order.push(focused().as_i64().expect("a number"));
        let outline = browser.is(
            "document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle !== 'none'",
        );
        assert!(outline, "the focus can be seen: {order:?}");
    }
    let reached: Vec<i64> = order
        .iter()
        .copied()
        .filter(|at| *at >= 0)
        .take(controls as usize)
        .collect();
    let begin = reached[0];
    let count = controls as i64;
    let expected: Vec<i64> = (0..count).map(|at| (begin + at) % count).collect();
    assert_eq!(reached, expected, "of {order:?}");
}

#[test]
fn the_page_is_accessible_in_both_schemes_and_by_keyboard() {
    let Some(visit) = Visit::to(start(breakable())) else {
        return;
    };
    let browser = &visit.browser;
    visit.lock("KEYA", "CLIENT_A", "note=backup");
    visit.lock("KEYB", "CLIENT_C", "shared=1");
    let _waiter = waiting_wire(&visit.server, "KEYA", "CLIENT_B");
    browser.until(&format!("{ROWS}.length === 2"));
    check_accessibility(browser);
    check_tab_order(browser, "body");
    // On a narrow screen a row of the table looks like a card, and is still a row.
    browser.resize(390, 900);
    check_accessibility(browser);
    let shown = browser.accessibility();
    let headers = shown.iter().filter(|(role, _)| role == "rowheader");
    assert_eq!(headers.count(), 2, "{shown:?}");
    browser.resize(1200, 900);

    // With only the keyboard: to a key, and to its hold.
    browser.script("document.querySelector('#keys tbody a').focus();");
    browser.press(ENTER);
    browser.until("document.querySelectorAll('#holders tr').length === 1");
    browser.until("document.querySelector('#holders button')?.checkVisibility()");
    check_accessibility(browser);
    check_tab_order(browser, "body");
    browser.script("document.querySelector('#holders button').focus();");
    browser.press(ENTER);
    browser.until("document.querySelector('#break').open");
    check_accessibility(browser);
    browser.screenshot("break");
    // The focus stays in the dialog, and Escape closes it.
    check_tab_order(browser, "#break");
    browser.press(ESCAPE);
    browser.until("!document.querySelector('#break').open");

    let pid = process_of(&visit.server);
    kill(pid, Signal::SIGSTOP).unwrap();
    browser.until("document.querySelector('#state').innerText === 'No answer'");
    check_accessibility(browser);
    kill(pid, Signal::SIGCONT).unwrap();
}

#[test]
fn a_hundred_thousand_keys_are_shown_page_by_page() {
    const KEYS: usize = 100_000;
    // The number of pipelined requests: a connection may have some hundreds.
    const AHEAD: usize = 250;
    let Some(visit) = Visit::to(start(long())) else {
        return;
    };
    let browser = &visit.browser;
    let mut wire = Wire::to(&visit.server);
    for begin in (0..KEYS).step_by(AHEAD) {
        let asked: String = (begin..begin + AHEAD)
            .map(|n| format!("GET /LOCK/KEY-{n:06}/CLIENT_A HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .collect();
        wire.send(asked);
        (0..AHEAD).for_each(|_| drop(wire.reply()));
    }
    let took = browser.until("document.querySelector('#keys-held').innerText === '100,000'");
    assert!(took < bound(Duration::from_secs(2)), "{took:?}");
    let first = format!("{ROWS}.length === 100 && {ROWS}[0][0] === 'KEY-000000'");
    browser.until(&first);

    let begin = Instant::now();
    browser.click("#next");
    browser.until(&format!(
        "{ROWS}.length === 100 && {ROWS}[0][0] === 'KEY-000100'"
    ));
    let took = begin.elapsed();
    assert!(took < bound(Duration::from_secs(1)), "{took:?}");
    assert_eq!(browser.text("#page"), "Page 2");
    browser.click("#next");
    browser.until(&format!("{ROWS}[99][0] === 'KEY-000299'"));
    browser.click("#previous");
    browser.until(&format!("{ROWS}[99][0] === 'KEY-000199'"));
    browser.click("#first");
    browser.until(&first);
    browser.enter("#prefix", "KEY-09999");
    browser.until(&format!("{ROWS}.length === 10"));
    // The page updates each second without blocking the browser for long.
    browser.enter("#prefix", "");
    browser.until(&first);
    let busy = browser.script(
        "return new Promise(done => {
            let last = performance.now(), worst = 0, frames = 0;
            const frame = (now) => {
                worst = Math.max(worst, now - last);
                last = now;
                if (++frames < 180) requestAnimationFrame(frame); else done(worst);
            };
            requestAnimationFrame(frame);
        });",
    );
    let worst = ms(busy.as_f64().expect("milliseconds") as u64);
    assert!(worst < bound(ms(500)), "a frame of {worst:?}");
    visit.end();
}

/// Serves a page for every request on another port, until the test ends.
fn foreign_page() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let page = "<!doctype html><title>Elsewhere</title><body>";
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
                page.len()
            );
        }
    });
    port
}

#[test]
fn a_page_from_elsewhere_can_neither_read_nor_break_nor_frame() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let server = start(breakable());
    let granted = ask(&server, "/LOCK/KEYA/CLIENT_A");
    let fence = granted.header("Lock-Fence").expect("a fence").to_string();
    let at = format!("http://127.0.0.1:{}", server.port());
    browser.go(&format!("http://127.0.0.1:{}/", foreign_page()));
    let try_it = |path: &str, options: &str| -> Value {
        browser.script(&format!(
            "return fetch('{at}{path}', {options}).then(async answer => [answer.type, answer.status, await answer.text()], () => 'nothing');"
        ))
    };
    for path in ["/", "/locks", "/locks/KEYA", "/status"] {
        assert_eq!(try_it(path, "{}"), json!("nothing"), "{path}");
        let opaque = try_it(path, "{mode: 'no-cors'}");
        assert!(opaque == json!(["opaque", 0, ""]) || opaque == json!("nothing"));
    }
    let path = format!("/BREAK/KEYA?fence={fence}");
    assert_eq!(try_it(&path, "{method: 'POST'}"), json!("nothing"));
    try_it(&path, "{method: 'POST', mode: 'no-cors'}");
    // A browser sends a form to any server.
    browser.script(&format!(
        "const form = document.createElement('form'); form.method = 'post'; form.action = '{at}{path}'; document.body.append(form); form.submit();"
    ));
    browser.until(&format!("location.origin === '{at}'"));
    let verified = ask(&server, &format!("/VERIFY/KEYA/CLIENT_A?fence={fence}"));
    assert_eq!(verified.result(), "", "{verified:?}");

    browser.go(&format!("http://127.0.0.1:{}/", foreign_page()));
    browser.script(&format!(
        "window.frame = document.createElement('iframe'); frame.src = '{at}/'; document.body.append(frame);\
         return new Promise(done => {{ frame.onload = () => done(true); }});"
    ));
    assert!(browser.is("frame.contentDocument === null && frames.length === 1"));
}
