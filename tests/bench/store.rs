//! The cost of locks that outlive the server, beside the speed of the disk.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lock_server::{Options, Server, StoreAddress};

use crate::load::{self, Result};
use crate::systems::{self, System};
use crate::{Bench, Contestant, each};

const SYNCS: &str = "syncs of the disk, beside those with a store";

/// The columns, each with its clients, whether etcd's own lock and the disk's limit are measured beside ours, and
/// whether it is part of `--quick`.
const ROUNDS: [(usize, &str, bool, bool); 3] = [
    (1, "rounds with a store, 1 client", false, false),
    (16, "rounds with a store, 16 clients", true, true),
    (64, "rounds with a store, 64 clients", true, true),
];

/// The columns, each with its clients, and whether it is part of `--quick`.
const GRANTS: [(usize, &str, bool); 3] = [
    (4, "grants on one key with a store, 4 clients", false),
    (16, "grants on one key with a store, 16 clients", true),
    (64, "grants on one key with a store, 64 clients", false),
];

/// As large as a record of our store.
const RECORD: [u8; 128] = [b'x'; 128];

/// The columns of stores.
pub fn columns(bench: &mut Bench) -> Result<()> {
    let folder = Folder::new()?;
    rates(bench, &folder)?;
    memory_of_keys(bench, &folder)?;
    starts(bench, &folder)
}

/// A commit waits for the disk, so the disk's own rate is measured beside it.
fn rates(bench: &mut Bench, folder: &Folder) -> Result<()> {
    let columns = ROUNDS.iter().map(|(_, column, ..)| *column);
    let columns = columns.chain(GRANTS.iter().map(|(_, column, _)| *column));
    if !columns.chain([SYNCS]).any(|column| bench.wanted(column)) {
        return Ok(());
    }
    let (window, quick) = (bench.window, bench.quick);
    let disk = || Ok(vec![("", syncs(folder, 1, window.counting)?)]);
    bench.column(SYNCS, "1/s", vec![Contestant::new("fdatasync", disk)]);
    let systems = [
        systems::ours_with("none", systems::options(systems::HOUR))?,
        system("no syncs", &folder.store("off"), false)?,
        system("in a file", &folder.store("on"), true)?,
    ];
    let etcd = systems::etcd()?;
    if etcd.is_none() {
        bench.report.note("etcd is not on the path".into());
    }
    for (clients, column, beside_others, _) in ROUNDS.into_iter().filter(|row| !quick || row.3) {
        let turn = |system: &System| Ok(vec![("", load::rounds(system, clients, window)?)]);
        let others = etcd.iter().filter(|_| beside_others);
        let mut contestants = each(systems.iter().chain(others), turn);
        if beside_others {
            contestants.push(Contestant::new("full batches", move || {
                let batches = syncs(folder, clients, window.counting)?;
                // A round is two records, and the client waits for each.
                Ok(vec![("", batches * clients as f64 / 2.0)])
            }));
        }
        bench.column(column, "1/s", contestants);
    }
    for (clients, column, _) in GRANTS.into_iter().filter(|row| !quick || row.2) {
        let turn = |system: &System| Ok(vec![("", load::hand_overs(system, clients, window)?)]);
        bench.column(column, "1/s", each(&systems, turn));
    }
    Ok(())
}

/// A fresh server for each number of keys, only once, since filling one through its store takes long.
fn memory_of_keys(bench: &mut Bench, folder: &Folder) -> Result<()> {
    const COLUMN: &str = "memory of held keys";
    if !bench.wanted(COLUMN) {
        return Ok(());
    }
    let many = if bench.quick { 10_000 } else { 100_000 };
    bench.report.note(format!("{COLUMN}: of {many}"));
    for system in [
        systems::ours_with("none", systems::options(systems::HOUR))?,
        system("in a file", &folder.store("memory"), false)?,
    ] {
        let memory = memory(&system, many)?;
        bench.report.add(COLUMN, "kB", system.name, memory);
    }
    Ok(())
}

fn starts(bench: &mut Bench, folder: &Folder) -> Result<()> {
    const COLUMN: &str = "start with held keys";
    if !bench.wanted(COLUMN) {
        return Ok(());
    }
    let (some, many) = if bench.quick {
        (1_000, 10_000)
    } else {
        (100_000, 1_000_000)
    };
    bench.report.note(format!("{COLUMN}: {some} and {many}"));
    let (mut some, mut many) = (start(folder, some)?, start(folder, many)?);
    let contestants = vec![
        Contestant::new("some", || Ok(vec![("", some()?)])),
        Contestant::new("many", || Ok(vec![("", many()?)])),
    ];
    bench.column_of(bench.few_rounds(), COLUMN, "ms", contestants);
    Ok(())
}

/// A folder in the target folder. Dropping it removes it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        systems::folder("store").map(Folder)
    }

    fn store(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Our own server with a store in this file.
fn system(name: &'static str, path: &Path, sync: bool) -> Result<System> {
    systems::ours_with(
        name,
        Options {
            store: Some(StoreAddress::File(path.into())),
            store_sync: sync,
            ..systems::options(systems::HOUR)
        },
    )
}

/// How many batches of this many records the disk syncs per second.
fn syncs(folder: &Folder, records: usize, counting: Duration) -> Result<f64> {
    let path = folder.store("syncs");
    let mut file = File::create(&path)?;
    let batch = RECORD.repeat(records);
    let begun = Instant::now();
    let mut syncs = 0;
    while begun.elapsed() < counting {
        file.write_all(&batch)?;
        file.sync_data()?;
        syncs += 1;
    }
    let rate = f64::from(syncs) / begun.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}

/// The time from a server's start until it answers, with this many held keys in its store, in milliseconds.
fn start(folder: &Folder, many: usize) -> Result<impl FnMut() -> Result<f64>> {
    let path = folder.store(&format!("held-{many}"));
    let filled = system("filled", &path, false)?;
    load::preload(&filled, many)?;
    drop(filled);
    Ok(move || {
        let mut server = Server::new(Options {
            store: Some(StoreAddress::File(path.clone())),
            ..systems::options(systems::HOUR)
        });
        let begun = Instant::now();
        server.start()?;
        let taken = begun.elapsed();
        server.stop()?;
        Ok(taken.as_secs_f64() * 1e3)
    })
}

/// The additional memory of a server with this many held keys, in kB of 1024 bytes.
fn memory(system: &System, many: usize) -> Result<f64> {
    system.until_settled()?;
    let before = system.resident()?;
    load::preload(system, many)?;
    system.until_settled()?;
    Ok(system.resident()? - before)
}
