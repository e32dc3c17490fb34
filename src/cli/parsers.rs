//! The values of options: ports, times, counts, hosts and addresses, and what to say of a bad one.

use std::net::Ipv6Addr;
use std::str::FromStr;
use std::time::Duration;

/// A port to serve on.
pub fn server_port(value: &str) -> Result<u16, String> {
    value
        .parse()
        .map_err(|_| "give a port, 0 to 65535 (0 takes any free one)".into())
}

/// A port to ask at.
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

/// An exit code.
pub fn exit_code(value: &str) -> Result<u8, String> {
    value
        .parse()
        .map_err(|_| "give an exit code, 0 to 255".into())
}

/// `host:port`, `host`, `[::1]:8004` or `::1`.
pub fn parse_address(address: &str) -> Result<(String, Option<u16>), String> {
    if client_port(address).is_ok() {
        return Err(format!("give a host, too, such as 127.0.0.1:{address}"));
    }
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if address.parse::<Ipv6Addr>().is_err() && !address.ends_with(']') => {
            (host, Some(client_port(port)?))
        }
        _ => (address, None),
    };
    Ok((client_host(host)?, port))
}

/// A host as it may stand in an address; an IPv6 host without its brackets.
pub fn client_host(host: &str) -> Result<String, String> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let is_v6 = bare.parse::<Ipv6Addr>().is_ok();
    // The system would take a number for an address.
    let is_name = !host.bytes().all(|byte| byte.is_ascii_digit())
        && host
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '-' | '.' | '_'));
    if is_v6 || is_name {
        Ok(bare.into())
    } else {
        Err("give a name or an address, such as localhost, 127.0.0.1 or ::1".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_with_or_without_a_port() {
        let parsed = |address| parse_address(address).expect("an address");
        assert_eq!(parsed("localhost"), ("localhost".into(), None));
        assert_eq!(parsed("localhost:9"), ("localhost".into(), Some(9)));
        assert_eq!(parsed("[::1]:9"), ("::1".into(), Some(9)));
        assert_eq!(parsed("[::1]"), ("::1".into(), None));
        assert_eq!(parsed("::1"), ("::1".into(), None));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for address in [
            "localhost:",
            ":9",
            "localhost:0",
            "localhost:65536",
            "a b",
            "http://localhost:9",
            "localhost:9/",
            "me@localhost",
            "[localhost]",
            "1::2::3:9",
            "8004",
        ] {
            assert!(parse_address(address).is_err(), "{address}");
        }
    }

    #[test]
    fn seconds_are_finite_and_not_negative() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        for value in ["-1", "NaN", "inf", "1e400", "1e30", "", "3s", "1,5"] {
            assert!(seconds(value).is_err(), "{value}");
        }
    }
}
