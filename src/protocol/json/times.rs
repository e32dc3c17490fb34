//! Times of day and lengths of time in JSON.

/// A time of day in UTC with microseconds, such as `2026-11-26T10:40:11.123456Z`.
pub(crate) mod some_rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserializer, Serializer};

    use super::rfc3339;

    /// `None` is left out by the field's `skip_serializing_if`, and not written as null.
    pub fn serialize<S: Serializer>(time: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => rfc3339::serialize(time, to),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SystemTime>, D::Error> {
        rfc3339::deserialize(from).map(Some)
    }
}

pub(crate) mod rfc3339 {
    use std::time::SystemTime;

    use jiff::Timestamp;
    use jiff::fmt::temporal::DateTimePrinter;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Written in one piece, and not in the many pieces of a format string: a page has thousands of times.
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

    const LENGTH: usize = "2026-11-26T10:40:11.123456Z".len();

    pub fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(LENGTH);
        let printed = PRINTER.print_timestamp(&timestamp(*time), &mut text);
        printed.expect("a string takes everything");
        to.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        let time: Timestamp = text.parse().map_err(Error::custom)?;
        Ok(time.into())
    }

    /// The time as jiff has it. A time beyond the year 9999 becomes the last one that can be written.
    pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
        Timestamp::try_from(time).unwrap_or(Timestamp::MAX)
    }
}

/// A length of time in seconds, to the millisecond, rounded down.
pub(crate) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(time.as_millis() as f64 / 1000.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(from)?;
        Duration::try_from_secs_f64(seconds).map_err(Error::custom)
    }
}

/// An optional length of time in seconds, to the microsecond, rounded down.
pub(crate) mod some_fine_seconds {
    use std::time::Duration;

    use serde::Serializer;

    pub use super::some_seconds::deserialize;

    pub fn serialize<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => to.serialize_f64(time.as_micros() as f64 / 1e6),
            None => to.serialize_none(),
        }
    }
}

/// As [`seconds`], for an optional length of time.
pub(crate) mod some_seconds {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    use super::seconds;

    pub fn serialize<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => seconds::serialize(time, to),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        seconds::deserialize(from).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::protocol::json::StoreReport;

    /// A commit takes 0.2 ms on a good disk.
    #[test]
    fn the_time_of_a_commit_has_six_decimals() {
        let report = StoreReport {
            commit_p50: Some(Duration::from_nanos(230_999)),
            ..StoreReport::default()
        };
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.contains("\"commit_p50_seconds\":0.00023"), "{json}");
        assert!(!json.contains("commit_p99_seconds"), "{json}");
        let read: StoreReport = serde_json::from_str(&json).unwrap();
        assert_eq!(read.commit_p50, Some(Duration::from_micros(230)));
    }
}
