//! The status page: its file, its security policy, and what it shows without JavaScript.
//!
//! Knows no lock manager: the caller passes what it shows. Names given by clients are escaped here.

use std::fmt::{self, Write};
use std::time::Duration;

use crate::protocol::json::StatusReport;
use crate::protocol::json::times::rfc3339::timestamp;

/// One file: text, styles and script. [`render`] fills the places `{{…}}`.
const FILE: &str = include_str!("page.html");

/// The media type of the page.
pub(crate) const CONTENT_TYPE: &str = "text/html; charset=utf-8";

/// The page runs only its own script, and connects only to this server. A test computes the two hashes. The icon is
/// part of the file: without one, browsers request /favicon.ico.
pub(crate) const CONTENT_SECURITY_POLICY: &str = concat!(
    "default-src 'none'; ",
    "script-src 'sha256-OCMFnmJ/j0ZJ2bJzKvakVoO65Y3kP7MpXpsVzLpcO7A='; ",
    "style-src 'sha256-rvhmp5upjO1grELT1/FQbYDswpA/pd6DtOnCQDegA0s='; ",
    "img-src data:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
);

/// How many keys the page shows without JavaScript.
pub(crate) const ROWS: usize = 100;

/// One key on the page.
pub(crate) struct PageRow<'a> {
    pub key: &'a str,
    /// The first of its holders.
    pub holder: &'a str,
    /// How many holders there are.
    pub holders: usize,
    pub held: Duration,
    pub left: Duration,
    pub waiters: usize,
    pub note: Option<&'a str>,
}

/// Returns the page with the first [`ROWS`] keys. The script replaces them with newer ones.
pub(crate) fn render(report: &StatusReport, rows: &[PageRow]) -> String {
    let mut page = String::with_capacity(FILE.len() + 4096 + rows.len() * 512);
    let mut rest = FILE;
    // Only the file is searched for places: a key may be named {{ROWS}}.
    while let Some((before, place)) = rest.split_once("{{") {
        let (place, after) = place.split_once("}}").expect("the file has whole places");
        page.push_str(before);
        fill(&mut page, place, report, rows).expect("writing to a String cannot fail");
        rest = after;
    }
    page + rest
}

fn fill(page: &mut String, place: &str, report: &StatusReport, rows: &[PageRow]) -> fmt::Result {
    match place {
        "STATE" if report.state == "stopping" => page.write_str("Stopping"),
        "STATE" => page.write_str("Serving"),
        "NOW" => write!(page, "{}", timestamp(report.now).strftime("%F %T UTC")),
        "FACTS" => write_facts(page, report),
        "STORE" => write_store(page, report),
        "CAPTION" => write_caption(page, report, rows.len()),
        "ROWS" => rows
            .iter()
            .take(ROWS)
            .try_for_each(|row| write_row(page, row)),
        _ => unreachable!("the file has no place {place}"),
    }
}

fn write_facts(page: &mut String, report: &StatusReport) -> fmt::Result {
    let rows: [(&str, &str, &dyn fmt::Display); 9] = [
        ("Up for", "uptime", &Span(report.uptime)),
        ("Keys held", "keys-held", &report.keys),
        ("Holds", "holds", &report.holds),
        ("Waiting", "waiting", &report.waiting),
        ("Connections", "connections", &report.connections),
        ("Threads", "threads", &report.threads),
        ("Memory", "memory", &Bytes(report.memory_bytes)),
        ("Role", "role", &report.role),
        ("Version", "version", &report.version),
    ];
    rows.iter().try_for_each(|(name, id, value)| {
        writeln!(
            page,
            "<div><dt>{name}</dt><dd id=\"{id}\">{value}</dd></div>"
        )
    })
}

/// Writes one line. It is empty and hidden without a store, because the server may have one after its next start.
fn write_store(page: &mut String, report: &StatusReport) -> fmt::Result {
    let Some(store) = &report.store else {
        return page.write_str("<p id=\"store\" class=\"hint\" hidden></p>");
    };
    let class = if store.is_full { "low" } else { "hint" };
    write!(
        page,
        "<p id=\"store\" class=\"{class}\">Store: {}",
        store.kind
    )?;
    if let Some(bytes) = store.bytes {
        write!(page, ", {}", Bytes(bytes))?;
    }
    if let (Some(p50), Some(p99)) = (store.commit_p50, store.commit_p99) {
        let (p50, p99) = (Short(p50), Short(p99));
        write!(
            page,
            ", half of the commits within {p50}, 99 % within {p99}"
        )?;
    }
    page.write_str(".")?;
    if store.is_full {
        page.write_str(" It is full: nothing is granted until it has room.")?;
    }
    if let Some(since) = report.leader_since {
        let leader = report.leader.as_deref().unwrap_or("An unknown server");
        let for_so_long = Span(report.now.duration_since(since).unwrap_or_default());
        write!(page, " {} leads, for {for_so_long}.", Escaped(leader))?;
    }
    page.write_str("</p>")
}

/// A number of bytes in kB, MB or GB, with two to four digits.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.0 as f64 / 1e6;
        match megabytes {
            ..1.0 => write!(f, "{:.0} kB", megabytes * 1000.0),
            ..100.0 => write!(f, "{megabytes:.1} MB"),
            ..1000.0 => write!(f, "{megabytes:.0} MB"),
            _ => write!(f, "{:.1} GB", megabytes / 1000.0),
        }
    }
}

fn write_caption(page: &mut String, report: &StatusReport, rows: usize) -> fmt::Result {
    match report.keys {
        0 => page.write_str("No key is held."),
        1 => page.write_str("1 key is held."),
        keys if keys > rows.min(ROWS) => write!(
            page,
            "{keys} keys are held. Here are {rows}: first keys with waiters, then the leases that end \
             first. More are at <a href=\"locks\">/locks</a>.",
            rows = rows.min(ROWS)
        ),
        keys => write!(
            page,
            "{keys} keys are held. Keys with waiters come first, then the leases that end first."
        ),
    }
}

fn write_row(page: &mut String, row: &PageRow) -> fmt::Result {
    write!(
        page,
        "<tr><th scope=\"row\"><bdi class=\"name\">{}</bdi></th>\
         <td data-label=\"Holder\"><bdi class=\"name\">{}</bdi>",
        Escaped(row.key),
        Escaped(row.holder)
    )?;
    match row.holders {
        0 | 1 => {}
        2 => page.write_str(" and 1 other")?,
        holders => write!(page, " and {} others", holders - 1)?,
    }
    write!(
        page,
        "</td><td class=\"time\" data-label=\"Held for\">{}</td>\
         <td class=\"time\" data-label=\"Lease left\">{}</td><td data-label=\"Waiting\">{}</td>",
        Span(row.held),
        Span(row.left),
        row.waiters
    )?;
    let empty = if row.note.is_some() { "" } else { " empty" };
    let note = Escaped(row.note.unwrap_or_default());
    writeln!(
        page,
        "<td class=\"wide{empty}\" data-label=\"Note\"><bdi class=\"name\">{note}</bdi></td></tr>"
    )
}

/// Text from clients, as HTML. Characters that can't be seen, or that change the direction of text, are written as
/// escapes between two isolates: otherwise the escapes would read backwards among right-to-left letters. The script
/// does the same.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            c if is_hidden(c) => write!(f, "\u{2066}{}\u{2069}", c.escape_unicode()),
            c => f.write_char(c),
        })
    }
}

/// Joiners are not hidden: emoji and Persian need them.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}'
                | '\u{feff}'
        )
}

/// A time with at most two units: `9.5 s`, `4 min 12 s`, `2 h 5 min`, `3 d 4 h`.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        if seconds < 9.95 {
            return write!(f, "{seconds:.1} s");
        }
        match seconds.round() as u64 {
            whole @ 0..60 => write!(f, "{whole} s"),
            whole @ 60..3_600 => write!(f, "{} min {} s", whole / 60, whole % 60),
            whole @ 3_600..86_400 => {
                write!(f, "{} h {} min", whole / 3_600, whole % 3_600 / 60)
            }
            whole => write!(f, "{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
        }
    }
}

/// A time that may be less than a second: `0.2 ms`, `41 ms`.
struct Short(Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_secs_f64() * 1000.0;
        match milliseconds {
            ..9.95 => write!(f, "{milliseconds:.1} ms"),
            ..999.5 => write!(f, "{milliseconds:.0} ms"),
            _ => Span(self.0).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use crate::protocol::json::StoreReport;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::protocol::json::Totals;

    fn report() -> StatusReport {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_153_611);
        StatusReport {
            server: "5f-1".into(),
            now,
            version: "0.2.0".into(),
            role: "single".into(),
            leader: None,
            leader_since: None,
            state: "serving".into(),
            started: now - Duration::from_secs(7_500),
            uptime: Duration::from_secs(7_500),
            keys: 1,
            holds: 1,
            waiting: 0,
            connections: 17,
            threads: 25,
            memory_bytes: 12_345_678,
            event_streams: 0,
            may_break: false,
            totals: Totals::default(),
            store: None,
            history: Vec::new(),
        }
    }

    fn row<'a>(key: &'a str, holder: &'a str, note: Option<&'a str>) -> PageRow<'a> {
        PageRow {
            key,
            holder,
            holders: 1,
            held: Duration::from_millis(12_345),
            left: Duration::from_millis(4_240),
            waiters: 3,
            note,
        }
    }

    #[test]
    fn the_security_policy_has_the_hashes_of_the_script_and_the_styles() {
        for (element, directive) in [("script", "script-src"), ("style", "style-src")] {
            let (begin, end) = (format!("<{element}>"), format!("</{element}>"));
            assert_eq!(FILE.matches(&begin).count(), 1, "one {element}");
            let (_, after) = FILE.split_once(&begin).unwrap();
            let (text, _) = after.split_once(&end).unwrap();
            let hash = STANDARD.encode(Sha256::digest(text));
            let right = format!("{directive} 'sha256-{hash}'; ");
            assert!(
                CONTENT_SECURITY_POLICY.contains(&right),
                "the right one is: {right}"
            );
        }
    }

    #[test]
    fn the_page_is_smaller_than_60_kb_and_names_no_other_address() {
        assert!(FILE.len() < 60_000, "{}", FILE.len());
        let addresses: Vec<&str> = FILE.split("http").skip(1).collect();
        // The name of a markup language, which is not requested.
        let is_a_name = |rest: &&str| rest.starts_with("://www.w3.org/2000/svg");
        assert!(addresses.iter().all(is_a_name));
    }

    #[test]
    fn without_javascript_the_page_has_a_table_of_the_keys() {
        let page = render(&report(), &[row("KEYA", "CLIENT_A", Some("backup"))]);
        for text in [
            ">Serving</span>",
            "at 2025-11-26 10:40:11 UTC",
            "<dt>Up for</dt><dd id=\"uptime\">2 h 5 min</dd>",
            "<dt>Keys held</dt><dd id=\"keys-held\">1</dd>",
            "<dt>Memory</dt><dd id=\"memory\">12.3 MB</dd>",
            "<caption>1 key is held.</caption>",
            "<th scope=\"row\"><bdi class=\"name\">KEYA</bdi></th>",
            ">CLIENT_A</bdi></td>",
            "data-label=\"Held for\">12 s</td>",
            "data-label=\"Lease left\">4.2 s</td>",
            "data-label=\"Waiting\">3</td>",
            ">backup</bdi>",
        ] {
            assert!(page.contains(text), "no {text}");
        }
        assert!(!page.contains("{{"));
    }

    #[test]
    fn a_store_has_one_line_and_a_server_without_one_has_none() {
        assert!(render(&report(), &[]).contains("<p id=\"store\" class=\"hint\" hidden></p>"));
        let mut store = StoreReport {
            kind: "file".into(),
            bytes: Some(28_672),
            ..StoreReport::default()
        };
        let page = |store: &StoreReport| {
            let store = Some(store.clone());
            render(&StatusReport { store, ..report() }, &[])
        };
        assert!(page(&store).contains("<p id=\"store\" class=\"hint\">Store: file, 29 kB.</p>"));
        store.bytes = Some(1_234_567);
        store.commit_p50 = Some(Duration::from_micros(230));
        store.commit_p99 = Some(Duration::from_millis(41));
        store.is_full = true;
        assert!(page(&store).contains(
            "<p id=\"store\" class=\"low\">Store: file, 1.2 MB, half of the commits within 0.2 ms, 99 % within 41 ms. \
             It is full: nothing is granted until it has room.</p>"
        ));
    }

    #[test]
    fn the_page_of_a_cluster_says_which_server_leads_and_for_how_long() {
        let page = |leader: Option<&str>| {
            let mut report = report();
            report.store = Some(StoreReport {
                kind: "etcd".into(),
                ..StoreReport::default()
            });
            report.leader = leader.map(Into::into);
            report.leader_since = Some(report.now - Duration::from_secs(12));
            render(&report, &[])
        };
        let led = "Store: etcd. 10.0.0.7:8004 leads, for 12 s.</p>";
        assert!(page(Some("10.0.0.7:8004")).contains(led));
        assert!(page(None).contains("Store: etcd. An unknown server leads, for 12 s.</p>"));
    }

    #[test]
    fn of_many_keys_the_page_has_the_first_hundred_and_links_to_the_others() {
        let keys: Vec<String> = (0..150).map(|n| format!("KEY-{n}-")).collect();
        let rows: Vec<PageRow> = keys.iter().map(|key| row(key, "CLIENT_A", None)).collect();
        let many = StatusReport {
            keys: 100_000,
            ..report()
        };
        let page = render(&many, &rows);
        assert!(page.contains("KEY-99-") && !page.contains("KEY-100-"));
        assert!(page.contains("100000 keys are held. Here are 100: "));
    }

    #[test]
    fn names_given_by_clients_are_escaped_and_show_invisible_characters() {
        let hostile = "<script>alert(1)</script>\"'&{{ROWS}}";
        let escaped = "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;{{ROWS}}";
        let page = render(&report(), &[row(hostile, hostile, Some(hostile))]);
        assert_eq!(page.matches(escaped).count(), 3);
        assert!(!page.contains("<script>alert"));

        let turned = "a\u{202e}b\nc\u{200d}\u{1f469}\u{5d0}";
        let page = render(&report(), &[row(turned, "b", None)]);
        let shown = "a\u{2066}\\u{202e}\u{2069}b\u{2066}\\u{a}\u{2069}c\u{200d}\u{1f469}\u{5d0}";
        assert!(page.contains(&format!(">{shown}</bdi>")));

        let long = "x".repeat(1024);
        assert!(render(&report(), &[row(&long, "b", None)]).contains(&long));
    }

    #[test]
    fn times_have_at_most_two_units() {
        for (seconds, text) in [
            (0.0, "0.0 s"),
            (9.94, "9.9 s"),
            (9.96, "10 s"),
            (59.6, "1 min 0 s"),
            (3_599.0, "59 min 59 s"),
            (3_600.0, "1 h 0 min"),
            (90_000.0, "1 d 1 h"),
        ] {
            assert_eq!(Span(Duration::from_secs_f64(seconds)).to_string(), text);
        }
    }
}
