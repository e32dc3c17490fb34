//! Parsers for the values of options: ports, times, counts. An error says what to give.

use std::str::FromStr;
use std::time::Duration;

use lock_server::{LockOptions, StoreAddress};

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
    use super::*;

    #[test]
    fn seconds_are_finite_and_not_negative() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        for value in ["-1", "NaN", "inf", "1e400", "1e30", "", "3s", "1,5"] {
            assert!(seconds(value).is_err(), "{value}");
        }
    }
}
