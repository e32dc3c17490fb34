//! A batch as operations on etcd's keys, split into parts that fit into one transaction.

use std::collections::HashMap;

use super::layout::{Layout, hold_value};
use super::slots::{Place, SlotMap};
use crate::lease::Fence;
use crate::store::Record;

/// The limits of one transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartLimits {
    pub ops: usize,
    /// Bytes of keys and values. The last record of a part may exceed it by some kilobytes.
    pub bytes: usize,
}

impl PartLimits {
    /// etcd's defaults are 128 operations, one of which is for the sequence number, and 1.5 MiB.
    pub const DEFAULT: PartLimits = PartLimits {
        ops: 127,
        bytes: 512 * 1024,
    };
}

/// Some records of a batch, merged to one operation for each of etcd's keys, since etcd refuses two on one key.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// Each key with its new value. `None` deletes it.
    pub ops: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The fences of holds that it stores for the first time.
    pub new: Vec<Fence>,
    /// The greatest fence of its records.
    pub greatest: Fence,
    changes: Vec<SlotChange>,
}

/// A change of the slots by a part.
#[derive(Debug)]
enum SlotChange {
    Added(Fence),
    Removed(Fence, Place),
}

impl Part {
    /// Takes as many records as fit into one transaction, at least one, and updates `slots`.
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

    /// Undoes its changes of the slots, since nothing of it is stored.
    pub fn undo(self, slots: &mut SlotMap) {
        for change in self.changes.into_iter().rev() {
            match change {
                SlotChange::Added(fence) => drop(slots.remove(fence)),
                SlotChange::Removed(fence, place) => drop(slots.put(fence, place)),
            }
        }
    }
}
