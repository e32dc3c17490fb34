//! The metrics, in the format of Prometheus. Made in one pass over the copies for one answer: nothing is registered
//! elsewhere. No label has a key or a name.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, prometheus_text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::process::ProcessFigures;
use crate::manager::{Histogram, Statistics, StoreState, StoreStatistics};
use crate::table::{Limits, Size};

pub(super) use prometheus_text::CONTENT_TYPE;

/// The figures of one answer.
#[derive(Debug)]
pub(super) struct Scrape {
    pub started: SystemTime,
    pub size: Size,
    pub limits: Limits,
    pub statistics: Statistics,
    /// `None` without a store.
    pub store: Option<(StoreState, StoreStatistics)>,
    /// Whether this server decides, and does not stand by.
    pub leads: bool,
    pub connections: usize,
    pub event_streams: usize,
    pub answers: Vec<(&'static str, u16, u64)>,
    pub refusals: Vec<(&'static str, u64)>,
    /// `None` if the server runs in threads of a program.
    pub process: Option<ProcessFigures>,
}

impl Scrape {
    pub fn into_text(self) -> String {
        let mut registry = Registry::default();
        if let Some(process) = self.process {
            let of_process = registry.sub_registry_with_prefix("process");
            of_process.register_collector(Box::new(process));
        }
        let own = registry.sub_registry_with_prefix("lock_server");
        own.register_collector(Box::new(self));
        let mut text = String::new();
        // Encoding fails only if the target fails.
        prometheus_text::encode(&mut text, &registry).expect("writing to a String cannot fail");
        text
    }

    fn encode_state(&self, to: &mut Families) -> fmt::Result {
        let version = env!("CARGO_PKG_VERSION");
        to.info("build", "The version.", ("version", version))?;
        let started = unix_seconds(self.started);
        to.gauge(
            "start_time_seconds",
            "When the server began, in Unix time.",
            started,
        )?;
        let help = "1 while this server decides, 0 while it stands by.";
        to.gauge("leads", help, u32::from(self.leads))?;
        let (size, limits) = (self.size, self.limits);
        to.gauge("keys", "Keys that are held.", size.keys)?;
        to.gauge(
            "holds",
            "Holds of all keys: more than the keys if clients share one.",
            size.holds,
        )?;
        to.gauge(
            "max_holds",
            "The limit of holds: a LOCK beyond it is refused.",
            limits.holds,
        )?;
        to.gauge("waiters", "LOCKs that wait.", size.waiters)?;
        to.gauge(
            "max_waiters",
            "The limit of waiting LOCKs: a LOCK beyond it is refused.",
            limits.waiters,
        )?;
        to.gauge(
            "connections",
            "Open connections of clients.",
            self.connections,
        )?;
        to.gauge(
            "event_streams",
            "Clients that read the events.",
            self.event_streams,
        )
    }

    fn encode_locks(&self, to: &mut Families) -> fmt::Result {
        let of = &self.statistics;
        let grants = [
            ([("how", "at_once".into())], of.granted_at_once),
            ([("how", "handed_over".into())], of.handed_over),
            ([("how", "repeated".into())], of.repeated),
        ];
        to.counters("grants", "LOCKs that were granted.", grants)?;
        let left = [
            ([("why", "timed_out".into())], of.timed_out),
            ([("why", "gone".into())], of.abandoned),
        ];
        to.counters("waiters_left", "Waits that ended without the key.", left)?;
        let help = "Waiters whose client was gone when their turn came.";
        to.counter("waiters_passed_over", help, of.passed_over)?;
        to.counter("releases", "Holds that UNLOCK ended.", of.released)?;
        to.counter("expiries", "Holds whose lease ran out.", of.expired)?;
        to.counter("breaks", "Holds that BREAK ended.", of.broken)?;
        to.counter("renewals", "Leases that were renewed.", of.renewed)
    }

    fn encode_times(&self, to: &mut Families) -> fmt::Result {
        let of = &self.statistics;
        let help = "How long waits lasted that ended with a grant.";
        to.histogram("wait_seconds", help, &of.waits)?;
        to.histogram("hold_seconds", "How long ended holds lasted.", &of.holds)
    }

    fn encode_requests(&self, to: &mut Families) -> fmt::Result {
        let answers = self.answers.iter().map(|(verb, status, count)| {
            let labels = [("verb", verb.to_string()), ("status", status.to_string())];
            (labels, *count)
        });
        let help = "Answered requests. An unknown verb counts as other.";
        to.counters("requests", help, answers)?;
        let words = self.refusals.iter();
        let refusals = words.map(|(word, count)| ([("word", word.to_string())], *count));
        to.counters(
            "refusals",
            "Answers of 0, by the word of Lock-Result.",
            refusals,
        )
    }

    fn encode_store(&self, to: &mut Families) -> fmt::Result {
        let Some((store, of)) = &self.store else {
            return Ok(());
        };
        if let Some(bytes) = of.bytes {
            to.gauge("store_bytes", "Size of the store's files.", bytes)?;
        }
        let help = "How long the oldest unstored change has waited.";
        to.gauge("store_lag_seconds", help, store.lag.as_secs_f64())?;
        to.counter("store_commits", "Batches that were stored.", of.commits)?;
        let help = "Records that were stored, each the state of one grant.";
        to.counter("store_records", help, of.records)?;
        let help = "Failed tries to store a batch.";
        to.counter("store_failures", help, of.failures)?;
        let help = "How long storing a batch took.";
        to.histogram("store_commit_seconds", help, &of.commit_times)
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut families = Families(encoder);
        self.encode_state(&mut families)?;
        self.encode_locks(&mut families)?;
        self.encode_times(&mut families)?;
        self.encode_requests(&mut families)?;
        self.encode_store(&mut families)
    }
}

/// The names are those of Prometheus' own client libraries.
impl Collector for ProcessFigures {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut to = Families(encoder);
        let cpu = self.cpu.as_secs_f64();
        to.counter("cpu_seconds", "CPU time of the user and the system.", cpu)?;
        to.gauge(
            "resident_memory_bytes",
            "Resident memory.",
            self.resident_bytes,
        )?;
        to.gauge(
            "virtual_memory_bytes",
            "Virtual memory.",
            self.virtual_bytes,
        )?;
        to.gauge("open_fds", "Open descriptors.", self.open_descriptors)?;
        to.gauge(
            "max_fds",
            "The limit of open descriptors.",
            self.max_descriptors,
        )?;
        to.gauge("threads", "Threads.", self.threads)?;
        let started = unix_seconds(self.started);
        to.gauge(
            "start_time_seconds",
            "When the process began, in Unix time.",
            started,
        )
    }
}

/// Writes families of metrics.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn info(&mut self, name: &str, help: &str, label: (&str, &str)) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Info)?;
        family.encode_info(&[label])
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        family.encode_gauge(&value)
    }

    /// `_total` is appended to the name.
    fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    /// A counter for each set of labels.
    fn counters<const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        counters: impl IntoIterator<Item = ([(&'static str, String); LABELS], u64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, count) in counters {
            let mut counter = family.encode_family(&labels)?;
            counter.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, times: &Histogram) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        let bounds = times
            .bounds
            .iter()
            .map(Duration::as_secs_f64)
            .chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(times.counts).collect();
        family.encode_histogram::<NoLabelSet>(
            times.sum.as_secs_f64(),
            times.count(),
            &buckets,
            None,
        )
    }
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}
