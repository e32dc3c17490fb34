//! The read-only views. `model.rs` compares the list of keys, page by page, with all that is held.

use super::*;

impl Desk {
    /// The keys of all pages, of one key each.
    fn list(&self, filter: Filter) -> Vec<String> {
        let (mut keys, mut after) = (Vec::new(), None);
        loop {
            let page = self.table.look(self.now, filter, after, 1, 1);
            keys.extend(page.found.iter().map(|view| view.key.to_string()));
            after = page.next;
            if after.is_none() {
                return keys;
            }
        }
    }

    fn view(&self, key: Name) -> (KeyView, Vec<WaiterView>) {
        let found = self.table.look_at(self.now, key, usize::MAX);
        found.unwrap_or_else(|| panic!("{key} is held"))
    }
}

const ALL: Filter = Filter {
    prefix: "",
    holder: None,
};

#[test]
fn contended_keys_are_listed_first_and_each_kind_by_its_next_change() {
    let mut desk = Desk::new();
    desk.acquire_for("late", "ann", 9);
    desk.acquire_for("soon", "bob", 5);
    desk.acquire_for("wanted", "cat", 8);
    desk.acquire("wanted", "dan");
    assert_eq!(desk.list(ALL), ["wanted", "soon", "late"]);
    // An ended lease is not shown, even before the table has ended its hold.
    assert_eq!(desk.at(5).list(ALL), ["wanted", "late"]);
}

#[test]
fn a_holder_whose_lease_has_ended_is_neither_shown_nor_counted() {
    let mut desk = Desk::new();
    let short = |slots| Wish { lease: 5, ..slots };
    desk.ask("K", "ann", short(slots(3)));
    desk.ask("K", "bob", slots(3));
    desk.ask("K", "cat", short(slots(3)));
    for (time, holders) in [(4, 3), (5, 1)] {
        let (view, _) = desk.at(time).view("K");
        assert_eq!((view.holders, view.holds.len()), (holders, holders));
    }
}

#[test]
fn keys_are_filtered_by_prefix_and_by_any_of_their_holders() {
    let mut desk = Desk::new();
    desk.acquire("deploy/web", "ann");
    desk.ask("deploy/db", "ann", slots(2));
    desk.ask("deploy/db", "bob", slots(2));
    desk.acquire("backup", "bob");
    let deploy = Filter {
        prefix: "deploy/",
        ..ALL
    };
    assert_eq!(desk.list(deploy), ["deploy/web", "deploy/db"]);
    let of_bob = Filter {
        holder: Some("bob"),
        ..ALL
    };
    assert_eq!(desk.list(of_bob), ["deploy/db", "backup"]);
    let both = Filter {
        holder: Some("bob"),
        ..deploy
    };
    assert_eq!(desk.list(both), ["deploy/db"]);
}

#[test]
fn a_renewal_and_a_repeated_request_keep_the_time_at_which_hold_and_wait_began() {
    let mut desk = Desk::new();
    desk.at(1).acquire("K", "ann");
    desk.at(2).ask("K", "bob", request("1"));
    desk.at(3).acquire("K", "cat");
    desk.at(4).renew("K", "ann", None).expect("it is held");
    // A repeated request keeps the place and the time at which the wait began.
    desk.at(5).ask("K", "bob", request("1").via("bob-2"));
    let (view, queue) = desk.view("K");
    assert_eq!((view.holders, view.waiters), (1, 2));
    assert_eq!(desk.time(view.holds[0].since), 1);
    let waits: Vec<_> = queue
        .iter()
        .map(|waiter| (&*waiter.requester, desk.time(waiter.since)))
        .collect();
    assert_eq!(waits, [("bob", 2), ("cat", 3)]);
    desk.at(6).release("K", "ann").expect("it is held");
    let (view, queue) = desk.view("K");
    assert_eq!(desk.time(view.holds[0].since), 6);
    assert_eq!(queue.len(), 1);
}
