//! A server whose host is a name: on which of the name's addresses it listens, and which warnings it logs.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use crate::common::program::program;
use crate::common::{Wire, ms, options, run, start, until, with_hosts};
use lock_server::{Client, Error, Options, Server};

/// A name for both loopback addresses.
const BOTH: &str = "127.0.0.1 both.localhost\n::1 both.localhost\n";

fn v4(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn v6(port: u16) -> SocketAddr {
    (Ipv6Addr::LOCALHOST, port).into()
}

/// A server on any free port of both addresses, for each wire.
fn both() -> Options {
    Options {
        host: "both.localhost".into(),
        classic_port: Some(0),
        lock_timeout: ms(60_000),
        lock_attempt_timeout: ms(60_000),
        ..options()
    }
}

fn spawned(options: Options) -> Server {
    let mut server = Server::new(options);
    server.spawn().expect("it serves on a free port");
    server
}

/// Seen to fail with a server that listened only on the first address.
#[track_caller]
fn serves_on_both(mut server: Server) {
    let port = server.port();
    let mut addresses = server.addrs().to_vec();
    assert_eq!(server.addr(), Some(addresses[0]));
    addresses.sort();
    assert_eq!(addresses, [v4(port), v6(port)]);
    assert!(server.warnings().is_empty(), "{:?}", server.warnings());

    let (mut first, mut second) = (Wire::at(v4(port)), Wire::at(v6(port)));
    assert_eq!(first.ask("/LOCK/KEYA/A").status, 200);
    assert_eq!(second.ask("/VERIFY/KEYA/A").body, "1\n");
    second.get("/LOCK/KEYA/B");
    let client = server.client("A");
    until("it waits", || {
        let holder = client.holder("KEYA").expect("it is answered");
        holder.is_some_and(|holder| holder.waiters == 1)
    });
    assert_eq!(first.ask("/UNLOCK/KEYA/A").body, "1\n");
    assert_eq!(second.reply().result(), "");
    assert_eq!(first.ask("/VERIFY/KEYA/B").body, "1\n");

    let classic = server.classic_port().expect("it has one");
    for address in [v4(classic), v6(classic)] {
        let said = Wire::at(address).get("/VERIFY/KEYA/B").rest();
        assert_eq!(said, "1\n", "{address}");
    }

    assert!(server.stop().expect("it is ours"));
    for address in [v4(port), v6(port), v4(classic), v6(classic)] {
        TcpListener::bind(address).expect("it is free again");
    }
}

#[test]
fn a_started_server_listens_on_every_address_of_a_name_with_one_port_and_stop_frees_all() {
    with_hosts(BOTH, || serves_on_both(start(both())));
}

#[test]
fn a_spawned_server_listens_on_every_address_of_a_name() {
    with_hosts(BOTH, || serves_on_both(spawned(both())));
}

#[test]
fn a_port_that_is_busy_on_one_of_the_addresses_is_an_error() {
    with_hosts(BOTH, || {
        for address in [v4(0), v6(0)] {
            let busy = TcpListener::bind(address).unwrap();
            let port = busy.local_addr().unwrap().port();
            let mut server = Server::new(Options { port, ..both() });
            let error = server.bind().unwrap_err();
            let Error::CannotListen { source, .. } = &error else {
                panic!("{error:?}");
            };
            assert_eq!(source.kind(), ErrorKind::AddrInUse, "{address}");
        }
    });
}

/// RFC 6761: `invalid` has no names.
#[test]
fn a_host_that_is_unknown_or_elsewhere_is_an_error_of_the_option_host() {
    for host in ["no-such-host.invalid", "2001:db8::1"] {
        let mut server = Server::new(Options {
            host: host.into(),
            ..both()
        });
        let error = server.bind().unwrap_err();
        let is_of_host = matches!(error, Error::CannotListen { option: "host", .. });
        assert!(is_of_host, "{error:?}");
    }
}

/// 2001:db8::1 is reserved for documentation, so no machine has it.
#[test]
fn an_address_that_cannot_be_listened_on_is_left_out_with_a_warning() {
    let hosts = "127.0.0.1 mixed.localhost\n2001:db8::1 mixed.localhost\n";
    with_hosts(hosts, || {
        let host = || "mixed.localhost".to_string();
        let server = spawned(Options {
            host: host(),
            ..both()
        });
        assert_eq!(server.addrs(), [v4(server.port())]);
        let [warning] = server.warnings() else {
            panic!("{:?}", server.warnings());
        };
        assert!(
            warning.contains("mixed.localhost is also 2001:db8::1, which is left out: ")
                && warning.ends_with(&format!("listens on 127.0.0.1:{}", server.port())),
            "{warning}"
        );
        assert!(server.ping());
    });
}

/// Debian has the machine's own name at 127.0.1.1.
#[test]
fn a_name_that_looks_public_and_is_loopback_gets_one_warning() {
    with_hosts("127.0.1.1 vm.example\n127.0.0.1 localhost\n", || {
        let server = spawned(Options {
            host: "vm.example".into(),
            ..both()
        });
        let [warning] = server.warnings() else {
            panic!("{:?}", server.warnings());
        };
        assert!(
            warning.starts_with("vm.example is 127.0.1.1:") && warning.contains("0.0.0.0"),
            "{warning}"
        );
        for host in ["localhost", "127.0.1.1"] {
            let server = spawned(Options {
                host: host.into(),
                ..both()
            });
            assert!(server.warnings().is_empty(), "{host}");
        }

        let mut command = program(["run", "--port", "0", "--host", "vm.example"]);
        let (mut process, said, _stderr) = run(&mut command);
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(
            said.contains("vm.example is 127.0.1.1:") && said.contains("WARN"),
            "{said}"
        );
    });
}

#[test]
fn a_client_reaches_a_server_that_listens_on_only_one_address_of_a_name() {
    with_hosts(BOTH, || {
        for host in ["127.0.0.1", "::1"] {
            let server = spawned(Options {
                host: host.into(),
                ..options()
            });
            let client = Client::new("CLIENT_A", "both.localhost", server.port());
            client.try_ping().expect(host);
        }
    });
}
