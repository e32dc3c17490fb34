//! `events`: prints what happens to keys, as it happens, until nobody reads its output.

use std::error::Error as _;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::process::{self, ExitCode};
use std::thread;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use lock_server::{Client, Error, Events, LockEvent, LockEventKind};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cli::args::EventsArgs;
use crate::cli::exit::{Failure, SYSTEM};
use crate::cli::{say, write_out};

/// The first and the longest pause before it asks again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Why no more events are printed.
enum Unprinted {
    /// Standard output can't be written to.
    Unread(io::Error),
    /// No more events come.
    Broken(Error),
}

/// Prints events.
pub fn events(args: &EventsArgs) -> Result<ExitCode, Failure> {
    let client = args.target().client()?;
    let prefix = args.prefix.as_deref().unwrap_or_default();
    end_when_unread();
    let mut events = client.events(prefix)?;
    loop {
        match print_all(&mut events, args.json) {
            Unprinted::Unread(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(ExitCode::SUCCESS);
            }
            Unprinted::Unread(error) => {
                let message = format!("cannot write to standard output: {error}");
                return Err(Failure::new(SYSTEM, message));
            }
            Unprinted::Broken(error) => {
                let why = error
                    .source()
                    .map_or(error.to_string(), |why| why.to_string());
                say(&format!("no more events ({why}); trying again"));
            }
        }
        events = come_back(&client, prefix)?;
        say("reading events again; those in between are missing");
    }
}

/// Asks again until a server answers.
fn come_back(client: &Client, prefix: &str) -> Result<Events, Failure> {
    let mut pause = FIRST_PAUSE;
    loop {
        thread::sleep(pause);
        match client.events(prefix) {
            Err(error) if error.is_retryable() => pause = (2 * pause).min(LONGEST_PAUSE),
            answered => return Ok(answered?),
        }
    }
}

fn print_all(events: &mut Events, as_json: bool) -> Unprinted {
    let is_terminal = io::stdout().is_terminal();
    loop {
        let next = match as_json {
            true => events.next_json(),
            false => events
                .next()
                .map(|event| event.map(|event| line(&event, is_terminal))),
        };
        match next.expect("no token ends it, and after an error it is not asked") {
            Ok(line) => {
                if let Err(error) = write_out(&format!("{line}\n")) {
                    return Unprinted::Unread(error);
                }
            }
            Err(error) => return Unprinted::Broken(error),
        }
    }
}

/// Ends the program once nobody reads its output, even without an event, as in `lock-server events | head -1`.
fn end_when_unread() {
    let wait = || {
        let output = io::stdout();
        // poll reports a hang-up without being asked to.
        let mut asked = [PollFd::new(output.as_fd(), PollFlags::empty())];
        while poll(&mut asked, PollTimeout::NONE) == Err(Errno::EINTR) {}
        let ends = PollFlags::POLLERR | PollFlags::POLLHUP;
        if asked[0].revents().is_some_and(|seen| seen.intersects(ends)) {
            process::exit(0);
        }
    };
    // Without this thread, the next event notices the end.
    let _ = thread::Builder::new().name("unread".into()).spawn(wait);
}

fn line(event: &LockEvent, is_terminal: bool) -> String {
    let time = time(event.at, is_terminal);
    let kind = match &event.kind {
        LockEventKind::Other(kind) => word(kind),
        kind => format!("{kind:11}"),
    };
    let names = [&event.key, &event.name].into_iter();
    let names = names.filter(|name| !name.is_empty()).map(|name| word(name));
    let words: Vec<String> = [time, kind]
        .into_iter()
        .chain(names)
        .chain([details(event)])
        .collect();
    words.join(" ").trim_end().into()
}

/// The time of day on a terminal; otherwise RFC 3339, for programs.
fn time(at: SystemTime, is_terminal: bool) -> String {
    let at = Timestamp::try_from(at).unwrap_or(Timestamp::MAX);
    match is_terminal {
        true => at
            .to_zoned(TimeZone::system())
            .strftime("%H:%M:%S%.3f")
            .to_string(),
        false => format!("{at:.6}"),
    }
}

/// The other fields of an event, in words.
fn details(event: &LockEvent) -> String {
    let seconds = |before: &str, time: Option<Duration>| {
        time.map(|time| format!("{before} {:.3} s", time.as_secs_f64()))
    };
    let parts = [
        seconds("after", event.waited.or(event.held)),
        seconds("for", event.left),
        event
            .slots
            .filter(|slots| *slots != 1)
            .map(|slots| format!("{slots} slots")),
        event.by.as_deref().map(|by| format!("by {}", word(by))),
        event.fence.map(|fence| format!("fence {fence}")),
        event
            .events
            .map(|events| format!("{events} events came too fast")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// A name, quoted unless it is a plain word: it may be any text, and contain what a terminal would obey.
fn word(name: &str) -> String {
    let quoted = format!("{name:?}");
    let is_plain = quoted.len() == name.len() + 2 && !name.contains(char::is_whitespace);
    if is_plain { name.into() } else { quoted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_plain_word_is_quoted_and_cannot_control_the_terminal() {
        for (name, shown) in [
            ("deploy/prod", "deploy/prod"),
            ("größe", "größe"),
            ("two words", "\"two words\""),
            ("a\x1b[2J", "\"a\\u{1b}[2J\""),
            ("a\u{202e}b", "\"a\\u{202e}b\""),
            ("a\nb", "\"a\\nb\""),
        ] {
            assert_eq!(word(name), shown);
        }
    }
}
