//! A whole server with its store on a full disk: what is refused, what still works, and what is left after a kill.

use std::fs::{self, File};
use std::io::Write;

use crate::common::{Reply, Wire, until, with_disk};
use crate::store::Place;

fn fence(reply: &Reply) -> Option<u64> {
    let fence = reply.header("Lock-Fence")?;
    Some(fence.parse().expect("a number"))
}

fn is_refused(reply: &Reply) -> bool {
    (reply.status, reply.result()) == (503, "store-full")
}

/// Seen to fail while the server ended on a full disk, as it does on a failing one.
#[test]
fn on_a_full_disk_no_lock_is_granted_all_else_works_and_nothing_is_lost() {
    with_disk("1m", |disk| {
        let place = Place::within(disk);
        let other = place.directory.path().join("other");
        fs::write(&other, vec![1; 300_000]).expect("there is room");
        let mut server = place.run(&[]);
        let mut wire = Wire::to_port(place.port);
        let note = "n".repeat(200);
        let lock = |key: usize| format!("/LOCK/{key}/ann?lock_timeout=600&note={note}");
        let mut fences = Vec::new();
        let full = loop {
            let reply = wire.ask(&lock(fences.len()));
            match fence(&reply) {
                Some(fence) => fences.push(fence),
                None => break reply,
            }
        };
        assert!(is_refused(&full), "{full:?}");
        assert_eq!(full.header("Retry-After"), Some("1"));
        assert!(fences.len() > 100, "{}", fences.len());
        // Another program takes the rest of the disk. Seen to hang while room for ends was looked at, and not reserved.
        let rest = place.directory.path().join("rest");
        let mut filler = File::create(&rest).expect("the folder is writable");
        while filler.write_all(&[1; 512]).is_ok() {}

        // A waiter that is next is refused, too, and the unlocked key stays free.
        let mut waits = Wire::to_port(place.port);
        waits.get("/LOCK/0/bob?lock_attempt_timeout=30");
        until("bob waits", || {
            wire.ask("/CHECK/0").header("Lock-Waiters") == Some("1")
        });
        assert_eq!(wire.ask("/UNLOCK/0/ann").body, "1\n");
        let refused = waits.reply();
        assert!(is_refused(&refused), "{refused:?}");
        assert_eq!(wire.ask("/CHECK/0").result(), "free");

        assert_eq!(wire.ask("/VERIFY/1/ann").body, "1\n");
        assert_eq!(fence(&wire.ask("/RENEW/1/ann")), Some(fences[1]));
        // A longer lease would have to be stored.
        let longer = wire.ask("/RENEW/1/ann?lock_timeout=1200");
        assert!(is_refused(&longer), "{longer:?}");
        assert_eq!(wire.ask("/CHECK/1").body, "1\n");
        assert_eq!(wire.ask("/UNLOCK/2/ann").body, "1\n");
        assert_eq!(wire.ask("/PING").body, "1\n");
        assert!(is_refused(&wire.ask(&lock(10_000))));

        server.kill();
        while filler.write_all(&[1; 512]).is_ok() {}
        let _server = place.run(&[]);
        let mut wire = Wire::to_port(place.port);
        for (key, fence) in fences.iter().enumerate() {
            let held = wire.ask(&format!("/VERIFY/{key}/ann?fence={fence}"));
            let expected = if [0, 2].contains(&key) { "free" } else { "" };
            assert_eq!(held.result(), expected, "{key}");
        }
        let again = wire.ask(&lock(10_000));
        assert!(is_refused(&again), "{again:?}");
        while filler.write_all(&[1; 512]).is_ok() {}
        assert_eq!(wire.ask("/UNLOCK/3/ann").body, "1\n");

        // Once there is room, the server notices it by itself.
        fs::remove_file(other).expect("it is there");
        fs::remove_file(rest).expect("it is there");
        let mut new = None;
        until("a lock is granted", || {
            new = fence(&wire.ask(&lock(10_000)));
            new.is_some()
        });
        assert!(new > fences.last().copied());
        assert_eq!(wire.ask("/UNLOCK/10000/ann").body, "1\n");
    });
}
