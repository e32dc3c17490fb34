//! Parsers for the values of options: ports, times, counts. An error says what to give.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use lock_server::{LockOptions, StoreAddress};

/// The shortest lease of any server.
const SHORTEST_LEASE: Duration = Duration::from_millis(1);

/// The longest lease, and the longest wait, of any server: 365 days.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The longest note, in bytes.
pub const MAX_NOTE: usize = 256;

/// A port to serve on.
pub fn server_port(value: &str) -> Result<u16, String> {
    value
        .parse()
        .map_err(|_| "give a port, 0 to 65535 (0 takes any free one)".into())
}

/// The port of a server to ask.
pub fn client_port(value: &str) -> Result<u16, String> {
    match value.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("give a port, 1 to 65535".into()),
    }
}

/// A time in seconds.
pub fn seconds(value: &str) -> Result<Duration, String> {
    value
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "give a number of seconds, 0 or more, such as 2.5".into())
}

/// How long a lock lasts. A server may allow less.
pub fn lease(value: &str) -> Result<Duration, String> {
    seconds_within(value, SHORTEST_LEASE..=YEAR)
}

/// How long a LOCK waits. A server may allow less.
pub fn attempt(value: &str) -> Result<Duration, String> {
    seconds_within(value, Duration::ZERO..=YEAR)
}

fn seconds_within(value: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let [least, most] = [range.start(), range.end()].map(Duration::as_secs_f64);
    let seconds = seconds(value).ok().filter(|time| range.contains(time));
    seconds.ok_or_else(|| {
        format!("give a number of seconds, {least} to {most} (365 days), such as 2.5")
    })
}

/// A whole number.
pub fn count<N: FromStr>(value: &str) -> Result<N, String> {
    value
        .parse()
        .map_err(|_| "give a whole number, 0 or more".into())
}

/// How many may hold a key together.
pub fn slots(value: &str) -> Result<u32, String> {
    let most = LockOptions::shared().slots;
    let parsed = value
        .parse()
        .ok()
        .filter(|slots| (1..=most).contains(slots));
    parsed.ok_or_else(|| format!("give a whole number, 1 to {most}"))
}

/// The address of a store.
pub fn store(value: &str) -> Result<StoreAddress, String> {
    value.parse()
}

/// The file of a store, with or without the `file:` of its address.
pub fn store_file(value: &str) -> Result<PathBuf, String> {
    match value.parse() {
        Ok(StoreAddress::File(path)) => Ok(path),
        Ok(_) => Err("give the PATH of a store in a file".into()),
        Err(_) => Ok(value.into()),
    }
}

/// `on` or `off`.
pub fn on_or_off(value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("give on or off".into()),
    }
}

/// A note for those who wait.
pub fn note(value: &str) -> Result<String, String> {
    match value.len() {
        1..=MAX_NOTE => Ok(value.into()),
        _ => Err(format!("give 1 to {MAX_NOTE} bytes of text")),
    }
}

/// An exit code.
pub fn exit_code(value: &str) -> Result<u8, String> {
    value
        .parse()
        .map_err(|_| "give an exit code, 0 to 255".into())
}

#[cfg(test)]
mod tests {
    use lock_server::{Options, Server};

    use super::*;

    #[test]
    fn seconds_are_finite_and_not_negative() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        for value in ["-1", "NaN", "inf", "1e400", "1e30", "", "3s", "1,5"] {
            assert!(seconds(value).is_err(), "{value}");
        }
    }

    #[test]
    fn times_have_the_range_of_the_library() {
        let longer = YEAR + Duration::from_nanos(1);
        for (lock_timeout, lock_attempt_timeout, is_allowed) in [
            (SHORTEST_LEASE, Duration::ZERO, true),
            (YEAR, YEAR, true),
            (longer, YEAR, false),
            (YEAR, longer, false),
            (SHORTEST_LEASE - Duration::from_nanos(1), YEAR, false),
        ] {
            let options = Options {
                port: 0,
                lock_timeout,
                lock_attempt_timeout,
                ..Options::default()
            };
            let bound = Server::new(options).bind();
            assert_eq!(bound.is_ok(), is_allowed, "{bound:?}");
        }
    }
}
