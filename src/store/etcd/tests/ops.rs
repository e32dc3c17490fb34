//! How a batch is written: keys, values, slots, parts.

use super::*;
use crate::store::etcd::layout::{Layout, LeaderValue, Sequence, hold_value};
use crate::store::etcd::part::{Part, PartLimits};
use crate::store::etcd::slots::{Place, SlotMap};

const P: &str = "/lock-server/default/";

/// The operations of the parts of these records, as text.
fn parts(slots: &mut SlotMap, limits: PartLimits, records: &[Record]) -> Vec<Vec<String>> {
    let mut records = records;
    let mut parts = Vec::new();
    while !records.is_empty() {
        parts.push(shown(&Part::take(
            &mut records,
            slots,
            &Layout::new(P),
            limits,
        )));
    }
    parts
}

fn shown(part: &Part) -> Vec<String> {
    let op = |(key, value): &(Vec<u8>, Option<Vec<u8>>)| {
        let key = String::from_utf8_lossy(key).replace(P, "");
        match value {
            None => format!("delete {key}"),
            Some(value) => {
                let (hold, _) = Layout::new(P)
                    .parse_hold(format!("{P}h/K/0").as_bytes(), value)
                    .expect("it is written here");
                format!("put {key} {}", hold.fence)
            }
        }
    };
    part.ops.iter().map(op).collect()
}

fn part(slots: &mut SlotMap, records: &[Record]) -> Vec<String> {
    let mut parts = parts(slots, PartLimits::DEFAULT, records);
    assert_eq!(parts.len(), 1);
    parts.remove(0)
}

fn shared(fence: Fence, key: &str) -> Record {
    Record::Held(StoredHold {
        slots: 10,
        ..hold(fence, key)
    })
}

#[test]
fn keys_and_values_are_those_of_the_layout() {
    let layout = Layout::new(P);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    assert_eq!(text(layout.leader()), "/lock-server/default/leader");
    assert_eq!(text(layout.seq()), "/lock-server/default/seq");
    assert_eq!(
        text(layout.hold("a/b c.ü", 3)),
        "/lock-server/default/h/a%2Fb%20c.%C3%BC/3"
    );
    let bounds = layout.holds();
    assert_eq!(text(bounds.0), "/lock-server/default/h/");
    assert_eq!(text(bounds.1), "/lock-server/default/h0");
    assert_eq!(
        text(LeaderValue::new("6f1c", "10.0.0.7:8004", &Default::default()).bytes()),
        r#"{"v":1,"id":"6f1c","addr":"10.0.0.7:8004"}"#
    );
    let sequence = Sequence {
        number: 7,
        greatest_fence: 1_763_000_000_123_456,
        store: "ab12".into(),
    };
    assert_eq!(
        text(sequence.bytes()),
        r#"{"v":1,"n":7,"fence":"1763000000123456","store":"ab12"}"#
    );
    assert_eq!(Sequence::parse(&sequence.bytes()).unwrap(), sequence);
    let full = StoredHold {
        request_id: Some("01:2".into()),
        note: Some("nightly".into()),
        ..hold(9, "K")
    };
    assert_eq!(
        text(hold_value(&full)),
        r#"{"v":1,"who":"CLIENT_A","fence":"9","ms":3500,"request":"01:2","note":"nightly","slots":1}"#
    );
    let parsed = layout.parse_hold(&layout.hold("K", 4), &hold_value(&full));
    assert_eq!(parsed, Ok((full, 4)));
}

#[test]
fn rule_7_a_stored_lease_is_never_shorter_than_the_granted_one() {
    let odd = StoredHold {
        lock_timeout: Duration::from_nanos(1_000_001),
        ..hold(1, "K")
    };
    let layout = Layout::new(P);
    let (read, _) = layout
        .parse_hold(&layout.hold("K", 0), &hold_value(&odd))
        .unwrap();
    assert_eq!(read.lock_timeout, Duration::from_millis(2));
}

#[test]
fn rule_5_values_of_a_later_version_are_refused() {
    let layout = Layout::new(P);
    let key = layout.hold("K", 0);
    let later = br#"{"v":2,"who":"A","fence":"1","ms":1,"slots":1}"#;
    let error = layout.parse_hold(&key, later).unwrap_err();
    assert!(error.contains("version 2"), "{error}");
    assert!(Sequence::parse(br#"{"v":2,"n":1,"fence":"1","store":"a"}"#).is_err());
    for (key, value) in [
        (&key[..], &b"none"[..]),
        (b"/lock-server/default/h/K", br#"{"v":1}"#),
        (b"/lock-server/default/h/K/x", br#"{"v":1}"#),
        (b"/lock-server/default/h/%ff/0", br#"{"v":1}"#),
        (b"/lock-server/default/h/K/1000000", br#"{"v":1}"#),
    ] {
        assert!(layout.parse_hold(key, value).is_err());
    }
    // A value of the same version with an unknown field.
    let more = br#"{"v":1,"who":"A","fence":"1","ms":1,"slots":1,"new":[]}"#;
    assert!(layout.parse_hold(&key, more).is_ok());
}

#[test]
fn rule_9_a_hand_over_is_one_put_that_overwrites() {
    let mut slots = SlotMap::default();
    assert_eq!(part(&mut slots, &[held(1, "K")]), ["put h/K/0 1"]);
    let handed_over = [Record::Ended(1), held(2, "K")];
    assert_eq!(part(&mut slots, &handed_over), ["put h/K/0 2"]);
    // Also after an end that was stored separately.
    assert_eq!(part(&mut slots, &[Record::Ended(2)]), ["delete h/K/0"]);
    assert_eq!(part(&mut slots, &[held(3, "K")]), ["put h/K/0 3"]);
}

#[test]
fn rule_9_a_renewal_overwrites_in_place() {
    let mut slots = SlotMap::default();
    part(&mut slots, &[shared(1, "K"), shared(2, "K")]);
    assert_eq!(part(&mut slots, &[shared(2, "K")]), ["put h/K/1 2"]);
}

#[test]
fn a_new_hold_takes_the_smallest_free_slot_of_its_key() {
    let mut slots = SlotMap::default();
    let four = [1, 2, 3, 4].map(|fence| shared(fence, "K"));
    let puts = ["put h/K/0 1", "put h/K/1 2", "put h/K/2 3", "put h/K/3 4"];
    assert_eq!(part(&mut slots, &four), puts);
    let ends = [Record::Ended(2), Record::Ended(3)];
    assert_eq!(part(&mut slots, &ends), ["delete h/K/1", "delete h/K/2"]);
    let next = [shared(5, "K"), shared(6, "K"), shared(7, "K"), held(8, "L")];
    let puts = ["put h/K/1 5", "put h/K/2 6", "put h/K/4 7", "put h/L/0 8"];
    assert_eq!(part(&mut slots, &next), puts);
}

#[test]
fn rule_10_the_last_state_of_each_key_is_written_and_a_delete_stays_one() {
    let mut slots = SlotMap::default();
    part(&mut slots, &[held(1, "K")]);
    // Handed over twice, and free at the end.
    let records = [
        Record::Ended(1),
        held(2, "K"),
        Record::Ended(2),
        held(3, "K"),
        Record::Ended(3),
    ];
    assert_eq!(part(&mut slots, &records), ["delete h/K/0"]);
    assert_eq!(part(&mut slots, &[held(4, "K")]), ["put h/K/0 4"]);
}

#[test]
fn the_end_of_an_unstored_hold_writes_nothing() {
    let mut slots = SlotMap::default();
    let mut records = &[Record::Ended(9)][..];
    let part = Part::take(
        &mut records,
        &mut slots,
        &Layout::new(P),
        PartLimits::DEFAULT,
    );
    assert!(part.ops.is_empty());
    assert_eq!((part.greatest, part.has_puts()), (9, false));
}

#[test]
fn rule_13_a_batch_is_cut_by_the_number_of_operations_and_by_their_bytes() {
    let records: Vec<_> = (1..=300)
        .map(|fence| held(fence, &format!("K{fence}")))
        .collect();
    let mut slots = SlotMap::default();
    let lengths = |parts: Vec<Vec<String>>| parts.iter().map(Vec::len).collect::<Vec<_>>();
    let by_ops = parts(&mut slots, PartLimits::DEFAULT, &records);
    assert_eq!(lengths(by_ops), [127, 127, 46]);
    // A hand-over is one operation, of two records.
    let hand_over = |n: Fence| [Record::Ended(n), held(1000 + n, &format!("K{n}"))];
    let handed_over: Vec<_> = (1..=200).flat_map(hand_over).collect();
    let by_ops = parts(&mut slots, PartLimits::DEFAULT, &handed_over);
    // Except the hand-over that is split between two parts.
    assert_eq!(lengths(by_ops), [127, 74]);

    let long = "x".repeat(1000);
    let records: Vec<_> = (1..=100)
        .map(|fence| held(fence, &format!("{long}{fence}")))
        .collect();
    let limits = PartLimits {
        bytes: 20_000,
        ..PartLimits::DEFAULT
    };
    let by_bytes = lengths(parts(&mut SlotMap::default(), limits, &records));
    assert!(by_bytes.iter().all(|ops| *ops < 20), "{by_bytes:?}");
    assert_eq!(by_bytes.iter().sum::<usize>(), 100);
}

#[test]
fn a_part_without_room_leaves_the_slots_unchanged() {
    let mut slots = SlotMap::default();
    part(
        &mut slots,
        &[shared(1, "K"), shared(2, "K"), shared(3, "K")],
    );
    let records = [
        Record::Ended(2),
        shared(4, "K"),
        Record::Ended(3),
        shared(5, "L"),
    ];
    let mut rest = &records[..];
    let taken = Part::take(&mut rest, &mut slots, &Layout::new(P), PartLimits::DEFAULT);
    let ops = shown(&taken);
    assert_eq!(taken.new, [4, 5]);
    taken.undo(&mut slots);
    let place = |slot| Place {
        key: "K".into(),
        slot,
    };
    assert_eq!(slots.place(2), Some(&place(1)));
    assert_eq!(slots.place(3), Some(&place(2)));
    assert_eq!((slots.place(4), slots.place(5)), (None, None));
    assert_eq!(part(&mut slots, &records), ops);
}

#[test]
fn a_place_has_one_hold_and_a_hold_one_place() {
    let mut slots = SlotMap::default();
    let place = |slot| Place {
        key: "K".into(),
        slot,
    };
    assert!(slots.put(1, place(2)));
    assert!(!slots.put(2, place(2)), "another hold has the place");
    assert!(!slots.put(1, place(0)), "the hold has a place");
    assert_eq!(slots.add(2, &"K".into()), place(0));
    assert_eq!(slots.remove(1), Some(place(2)));
    assert_eq!(slots.remove(1), None);
    assert_eq!(slots.add(3, &"K".into()), place(1));
}
