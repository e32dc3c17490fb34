//! A batch as operations on etcd's keys, cut into parts that one transaction can take.

use std::collections::HashMap;

use super::layout::{Layout, hold_value};
use super::slots::{Place, SlotMap};
use crate::lease::Fence;
use crate::store::Record;

/// What one transaction takes at the most.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartLimits {
    pub ops: usize,
    /// Keys and values. The last record of a part may go beyond it, by some kilobytes.
    pub bytes: usize,
}

impl PartLimits {
    /// etcd takes 128 operations by default, and one is the sequence number's; and 1.5 MiB.
    pub const DEFAULT: PartLimits = PartLimits {
        ops: 127,
        bytes: 512 * 1024,
    };
}

/// Some records of a batch, as the last state of each of etcd's keys: etcd refuses two operations on one key.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// Each key with its new value. `None` deletes it.
    pub ops: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The holds that it stores and that were not stored before.
    pub new: Vec<Fence>,
    /// The greatest fence of its records.
    pub greatest: Fence,
    changes: Vec<SlotChange>,
}

/// What a part changed in the slots.
#[derive(Debug)]
enum SlotChange {
    Added(Fence),
    Removed(Fence, Place),
}

impl Part {
    /// Takes as many of the records as one transaction takes, at least one, and notes in `slots` what they lead to.
    pub fn take(
        records: &mut &[Record],
        slots: &mut SlotMap,
        layout: &Layout,
        limits: PartLimits,
    ) -> Self {
        let mut part = Part::default();
        let mut at = HashMap::new();
        let mut bytes = 0;
        while part.ops.len() < limits.ops && bytes < limits.bytes {
            let Some((record, rest)) = records.split_first() else {
                break;
            };
            *records = rest;
            let Some((place, value)) = part.apply(record, slots) else {
                continue;
            };
            let key = layout.hold(&place.key, place.slot);
            bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            let op = *at.entry(key.clone()).or_insert(part.ops.len());
            match part.ops.get_mut(op) {
                Some(op) => op.1 = value,
                None => part.ops.push((key, value)),
            }
        }
        part
    }

    fn apply(&mut self, record: &Record, slots: &mut SlotMap) -> Option<(Place, Option<Vec<u8>>)> {
        match record {
            Record::Ended(fence) => {
                self.greatest = self.greatest.max(*fence);
                let place = slots.remove(*fence)?;
                self.changes
                    .push(SlotChange::Removed(*fence, place.clone()));
                Some((place, None))
            }
            Record::Held(hold) => {
                self.greatest = self.greatest.max(hold.fence);
                let place = match slots.place(hold.fence) {
                    Some(place) => place.clone(),
                    None => {
                        self.new.push(hold.fence);
                        self.changes.push(SlotChange::Added(hold.fence));
                        slots.add(hold.fence, &hold.key)
                    }
                };
                Some((place, Some(hold_value(hold))))
            }
        }
    }

    pub fn has_puts(&self) -> bool {
        self.ops.iter().any(|(_, value)| value.is_some())
    }

    /// Takes back what it changed in the slots: nothing of it is stored.
    pub fn undo(self, slots: &mut SlotMap) {
        for change in self.changes.into_iter().rev() {
            match change {
                SlotChange::Added(fence) => drop(slots.remove(fence)),
                SlotChange::Removed(fence, place) => drop(slots.put(fence, place)),
            }
        }
    }
}
