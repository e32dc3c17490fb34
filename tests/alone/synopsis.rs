//! The synopsis of the Perl original, with its real times.

use std::time::{Duration, Instant, SystemTime};

use crate::common::{alone, ms};
use lock_server::{Client, ClientOptions, Options, Server};

#[test]
fn client_b_gets_the_key_when_the_lease_of_client_a_runs_out() {
    let _alone = alone();
    let mut server = Server::new(Options {
        lock_timeout: Duration::from_secs(10),
        lock_attempt_timeout: Duration::from_secs(12),
        port: 0,
        host: "localhost".into(),
        ..Options::default()
    });
    let pid = server.start().unwrap();
    assert_ne!(pid, std::process::id());

    let optional_args = ClientOptions {
        reconnect_attempts: 3,
        time_between_attempts: Duration::from_secs(1),
        ..ClientOptions::default()
    };
    let a = server.client("CLIENT_A");
    let b = Client::with_options("CLIENT_B", "localhost", server.port(), optional_args);

    let before = SystemTime::now();
    let lease_a = a.lock("KEYA").unwrap().expect("nobody else holds KEYA");
    let after = SystemTime::now();
    let ten = Duration::from_secs(10);
    assert!(lease_a.expires >= before + ten - ms(1) && lease_a.expires <= after + ten);
    assert!(a.is_locked("KEYA").unwrap() && a.locked_by_me("KEYA").unwrap());
    assert!(b.is_locked("KEYA").unwrap() && !b.locked_by_me("KEYA").unwrap());

    let lease_b = b
        .lock("KEYA")
        .unwrap()
        .expect("the lease of A runs out before B times out");
    let late = SystemTime::now()
        .duration_since(lease_a.expires)
        .expect("not before the lease has run out");
    assert!(
        late <= ms(50),
        "B got its lock {late:?} after the lease of A had run out"
    );
    assert!(
        lease_b.expires >= lease_a.expires + ten,
        "the lease of B counts from its grant"
    );
    assert!(
        !a.unlock("KEYA").unwrap(),
        "A learns that it has lost its lease"
    );

    assert!(b.unlock("KEYA").unwrap());
    assert!(!a.is_locked("KEYA").unwrap());

    let began = Instant::now();
    assert!(server.stop().unwrap());
    assert!(began.elapsed() < Duration::from_secs(1));
    assert!(!server.ping());
}
