//! Hosts, as people write them: a name or an address, without a port.

#[cfg(feature = "server")]
use std::net::UdpSocket;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address at which this machine reaches a listener on `ip`: loopback if `ip` stands for every interface.
pub(crate) fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// An IPv6 address without its brackets; any other host unchanged.
pub(crate) fn bare_host(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .filter(|bare| is_v6(bare))
        .unwrap_or(host)
}

/// Why a host is neither a name nor an address. `None` if it is one of them, so that a resolver may know it.
pub(crate) fn bad_host(host: &str) -> Option<String> {
    const ADVICE: &str = "give a name or an address, such as localhost, 127.0.0.1 or ::1";
    let bare = bare_host(host);
    let is_name = |bare: &str| {
        bare.chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
    };
    if bare.is_empty() {
        Some(format!("the host is empty; {ADVICE}"))
    } else if is_number(bare) {
        // The system's resolver would take it for an address.
        Some(format!("{host:?} is a number; {ADVICE}"))
    } else if is_v6(bare) || is_name(bare) {
        None
    } else if !host.starts_with('[')
        && bare
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
    {
        Some(format!(
            "{host:?} has a port in it, which is given by itself; {ADVICE}"
        ))
    } else {
        Some(format!("{host:?} is no name and no address; {ADVICE}"))
    }
}

/// Whether an address is of this machine. Only such an address can be bound; nobody sends anything to this socket.
#[cfg(feature = "server")]
pub(crate) fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// Whether the host means "this machine" on each machine, in any form that a resolver takes.
pub(crate) fn is_of_one_machine(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let (bare, _zone) = name.split_once('%').unwrap_or((&name, ""));
    let ip = bare.parse().ok().or_else(|| short_v4(bare).map(IpAddr::V4));
    let is_own = |ip: IpAddr| {
        let ip = ip.to_canonical();
        ip.is_loopback() || ip.is_unspecified()
    };
    const NAMES: [&str; 4] = [
        "localhost",
        "localhost.localdomain",
        "ip6-localhost",
        "ip6-loopback",
    ];
    NAMES.contains(&&*name) || name.ends_with(".localhost") || ip.is_some_and(is_own)
}

/// An IPv4 address as inet_aton(3) reads it: 1 to 4 numbers, such as `127.1`; the last one fills the remaining bytes.
fn short_v4(host: &str) -> Option<Ipv4Addr> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None if text.len() > 1 && text.starts_with('0') => u32::from_str_radix(text, 8).ok(),
        None => text.parse().ok(),
    };
    let mut bytes: Vec<u32> = host.split('.').map(number).collect::<Option<_>>()?;
    let last = bytes.pop()?;
    let bits_of_last = 32_u32.checked_sub(8 * u32::try_from(bytes.len()).ok()?)?;
    let is_too_large = bytes.iter().any(|byte| *byte > 255)
        || u64::from(last) >= 1_u64.checked_shl(bits_of_last).unwrap_or(0);
    let first = bytes.iter().enumerate();
    let address = first.fold(last, |address, (at, byte)| address | byte << (24 - 8 * at));
    (!is_too_large).then(|| address.into())
}

/// Whether a host is a name by which other machines are likely to know this one.
#[cfg(all(feature = "server", target_os = "linux"))]
pub(crate) fn looks_public(host: &str) -> bool {
    let is_local = |label: &str| {
        let label = label.to_ascii_lowercase();
        // Beside `localhost` itself there are `ip6-localhost`, `localhost4` and others.
        label.contains("localhost") || label.contains("loopback")
    };
    !host.split('.').any(is_local) && !is_v6(host) && host.parse::<Ipv4Addr>().is_err()
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether it is an IPv6 address, with or without a zone as in `fe80::1%eth0`.
fn is_v6(host: &str) -> bool {
    let address = host.split_once('%').map_or(host, |(address, _)| address);
    address.parse::<Ipv6Addr>().is_ok()
}

/// `host:port`, an IPv6 host in brackets.
pub(crate) fn host_and_port(host: &str, port: u16) -> String {
    match is_v6(host) {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// `host:port`, or `host`, as people and `LOCK_SERVER` write it: an IPv6 address with a port is in brackets.
pub(crate) fn parse_address(address: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !is_v6(address) && !address.ends_with(']') => (host, Some(port)),
        _ => (address, None),
    };
    let port = match port.map(str::parse::<u16>) {
        None if is_number(address) => {
            return Err(format!("give a host, too, such as 127.0.0.1:{address}"));
        }
        None => None,
        Some(Ok(port @ 1..)) => Some(port),
        Some(_) => return Err("give a port from 1 to 65535".into()),
    };
    match bad_host(host) {
        None => Ok((bare_host(host).into(), port)),
        Some(reason) => Err(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_perhaps_a_port() {
        for (address, host, port) in [
            ("localhost", "localhost", None),
            ("localhost:9", "localhost", Some(9)),
            ("10.0.0.7:8004", "10.0.0.7", Some(8004)),
            ("[::1]:9", "::1", Some(9)),
            ("[::1]", "::1", None),
            ("::1", "::1", None),
            ("fe80::1%eth0", "fe80::1%eth0", None),
        ] {
            assert_eq!(parse_address(address), Ok((host.into(), port)), "{address}");
        }
    }

    #[test]
    fn an_address_of_one_machine_is_recognised_in_each_form() {
        for host in [
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "localhost.localdomain",
            "ip6-localhost",
            "127.0.0.1",
            "127.0.0.1.",
            "127.9.9.9",
            "127.1",
            "0x7f.1",
            "0177.0.1",
            "0",
            "0.0.0.0",
            "::",
            "::1",
            "::1%lo",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_of_one_machine(host), "{host}");
        }
        for host in [
            "",
            ".",
            "a",
            "localhost.example.com",
            "10.1",
            "127.16777216",
            "127.0.0.256",
            "127.0.0.0.1",
            "1.127.1",
            "127.example",
            "fe80::1%eth0",
        ] {
            assert!(!is_of_one_machine(host), "{host}");
        }
    }

    #[test]
    fn a_text_that_is_no_address_is_refused() {
        assert!(bad_host("8004").is_some());
        for address in [
            "",
            ":9",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            "a b",
            "https://localhost:9",
            "b\u{fc}cher.example:9",
            "localhost:9/",
            "me@localhost",
            "[localhost]",
            "1::2::3:9",
            "8004",
        ] {
            assert!(parse_address(address).is_err(), "{address}");
        }
    }

    #[cfg(all(feature = "server", target_os = "linux"))]
    #[test]
    fn a_name_looks_public_unless_it_says_that_it_is_local() {
        for host in ["vm", "build-7.example.com", "vm.local"] {
            assert!(looks_public(host), "{host}");
        }
        for host in [
            "localhost",
            "Localhost",
            "a.localhost",
            "localhost.localdomain",
            "ip6-localhost",
            "ip6-loopback",
            "127.0.1.1",
            "::1",
            "fe80::1%eth0",
        ] {
            assert!(!looks_public(host), "{host}");
        }
    }

    #[test]
    fn the_error_for_a_host_with_a_port_names_the_port() {
        let reason = bad_host("localhost:8004").expect("it is bad");
        assert!(reason.contains("has a port in it"), "{reason}");
        assert_eq!(bad_host("[::1]"), None);
    }
}
