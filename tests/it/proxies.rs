//! Behind real proxies: what they ask by themselves, and what they pass on.

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::common::program::program;
use crate::common::real_proxy::RealProxy;
use crate::common::{ask, options, ports, run, start, until};

/// `option httpchk HEAD /PING` got 405, and the server was DOWN.
#[test]
fn haproxy_finds_the_server_up_by_head_and_by_readyz() {
    let server = start(options());
    for check in ["HEAD /PING", "GET /readyz", "HEAD /livez HTTP/1.1"] {
        let backend = format!(
            " option httpchk {check}\n server one 127.0.0.1:{} check inter 50ms fall 1",
            server.port()
        );
        let Some(proxy) = RealProxy::haproxy(&backend) else {
            return;
        };
        until("the first check has ended", || {
            let report = proxy.ask("stats", "/;csv", "Host: localhost\r\n");
            let one = report.lines().find(|line| line.starts_with("locks,one,"));
            let one = one.unwrap_or_else(|| panic!("no line of it in {report}"));
            assert!(!one.contains(",DOWN"), "{check}: {one}");
            one.contains(",L7OK,")
        });
        let answer = proxy.ask("front", "/LOCK/KEYA/CLIENT_A", "Host: localhost\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    }
}

/// `proxy_set_header Host $host` under a public name got 421, and no option allowed it.
#[test]
fn nginx_passes_on_a_public_name_that_is_allowed() {
    const HOST: &str = "Host: locks.example.com\r\n";
    let through = |port: u16, headers: &str| {
        let proxy = RealProxy::nginx(port, None, " proxy_set_header Host $host;")?;
        Some(proxy.ask("front", "/LOCK/a%2Fb/CLIENT_A?lock_timeout=30", headers))
    };
    let guarded = start(options());
    let Some(refused) = through(guarded.port(), HOST) else {
        return;
    };
    assert!(refused.starts_with("HTTP/1.1 421 "), "{refused}");
    assert!(refused.contains("allowed_hosts"), "{refused}");

    let arguments = ["run", "--port", "0", "--allow-host", "locks.example.com"];
    let mut command = program(
        arguments
            .iter()
            .copied()
            .chain(["--allow-host", "other.example"]),
    );
    let (mut process, introduction, _log) = run(&mut command);
    let (port, _) = ports(&introduction);
    let granted = through(port, HOST).expect("nginx is there");
    assert!(granted.starts_with("HTTP/1.1 200 "), "{granted}");
    assert!(granted.contains("\r\nLock-Fence: "), "{granted}");
    // The guard against web pages stands.
    let page = through(port, &format!("{HOST}Origin: http://locks.example.com\r\n"));
    let page = page.expect("nginx is there");
    assert!(page.starts_with("HTTP/1.1 403 "), "{page}");
    signal::kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
    assert!(process.wait().unwrap().success());
}
