//! The columns of `list`: what it can show about a holder.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use lock_server::{HeldBy, HeldKey};

use crate::cli::grid::Fit;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    Key,
    Holder,
    Held,
    Left,
    Waiters,
    Note,
    Fence,
    Slots,
    Holders,
    Since,
    Expires,
}

/// The names of all columns.
const COLUMNS: [(&str, Column); 11] = [
    ("key", Column::Key),
    ("holder", Column::Holder),
    ("held", Column::Held),
    ("left", Column::Left),
    ("waiters", Column::Waiters),
    ("note", Column::Note),
    ("fence", Column::Fence),
    ("slots", Column::Slots),
    ("holders", Column::Holders),
    ("since", Column::Since),
    ("expires", Column::Expires),
];

/// The columns to show, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns(pub Vec<Column>);

impl Default for Columns {
    fn default() -> Self {
        Columns(COLUMNS[..6].iter().map(|(_, column)| *column).collect())
    }
}

impl FromStr for Columns {
    type Err = String;

    fn from_str(names: &str) -> Result<Self, String> {
        let named = |name: &str| {
            let known = COLUMNS
                .iter()
                .find(|(known, _)| name.eq_ignore_ascii_case(known));
            known.map(|(_, column)| *column).ok_or_else(|| {
                let all = COLUMNS.map(|(name, _)| name).join(", ");
                format!("no such column: {name:?}; there are {all}")
            })
        };
        names
            .split(',')
            .map(|name| named(name.trim()))
            .collect::<Result<_, _>>()
            .map(Columns)
    }
}

impl Column {
    pub fn heading(self) -> String {
        let (name, _) = COLUMNS[self as usize];
        name.to_uppercase()
    }

    pub fn fit(self) -> Fit {
        match self {
            Column::Key | Column::Holder => Fit::Middle,
            Column::Note => Fit::End,
            Column::Since | Column::Expires => Fit::Whole,
            _ => Fit::Number,
        }
    }

    pub fn cell(self, key: &HeldKey, hold: &HeldBy, is_for_people: bool) -> String {
        match self {
            Column::Key => key.key.clone(),
            Column::Holder => hold.name.clone(),
            Column::Held => length(hold.held, is_for_people),
            Column::Left => length(hold.left, is_for_people),
            Column::Waiters => key.waiters.to_string(),
            Column::Note => hold.note.clone().unwrap_or_default(),
            Column::Fence => hold.fence.to_string(),
            Column::Slots => hold.slots.to_string(),
            Column::Holders => key.holders.to_string(),
            Column::Since => time_of_day(hold.since),
            Column::Expires => time_of_day(hold.expires),
        }
    }
}

/// RFC 3339, in UTC, to the millisecond. A time beyond the year 9999 becomes the end of that year.
fn time_of_day(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::MAX);
    format!("{time:.3}")
}

/// A length of time: for people in its two greatest units, for programs in seconds to the millisecond.
pub fn length(time: Duration, is_for_people: bool) -> String {
    let seconds = time.as_secs();
    if !is_for_people {
        return format!("{seconds}.{:03}", time.subsec_millis());
    }
    match seconds {
        0..10 => format!("{seconds}.{}s", time.subsec_millis() / 100),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_in_the_order_of_the_columns() {
        for (at, (name, column)) in COLUMNS.iter().enumerate() {
            assert_eq!(*column as usize, at, "{name}");
        }
    }

    #[test]
    fn a_length_of_time_is_short_for_people_and_exact_for_programs() {
        for (millis, short, exact) in [
            (0, "0.0s", "0.000"),
            (9_999, "9.9s", "9.999"),
            (10_000, "10s", "10.000"),
            (192_500, "3m12s", "192.500"),
            (3_600_000, "1h00m", "3600.000"),
            (18_180_000, "5h03m", "18180.000"),
            (187_200_000, "2d04h", "187200.000"),
        ] {
            let time = Duration::from_millis(millis);
            assert_eq!(length(time, true), short);
            assert_eq!(length(time, false), exact);
        }
    }
}
