//! What it costs that locks outlive the server, beside how fast the disk itself is.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lock_server::{Options, Server, StoreAddress};

use crate::load::{self, Result};
use crate::systems::{self, System};

/// A folder on the disk that the target folder is on, removed when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Result<Self> {
        systems::folder("store").map(Folder)
    }

    pub fn store(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Our own server with a store in that file.
pub fn system(name: &'static str, path: &Path, sync: bool) -> Result<System> {
    systems::ours_with(
        name,
        Options {
            store: Some(StoreAddress::File(path.into())),
            store_sync: sync,
            ..systems::options(systems::HOUR)
        },
    )
}

/// How often in a second the disk takes as much as a record of ours.
pub fn syncs(folder: &Folder, counting: Duration) -> Result<f64> {
    let path = folder.store("syncs");
    let mut file = File::create(&path)?;
    let begun = Instant::now();
    let mut syncs = 0;
    while begun.elapsed() < counting {
        file.write_all(&[b'x'; 128])?;
        file.sync_data()?;
        syncs += 1;
    }
    let rate = f64::from(syncs) / begun.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}

/// How long a server takes from its start until it answers, with so many keys held in its store; in milliseconds.
pub fn start(folder: &Folder, many: usize) -> Result<impl FnMut() -> Result<f64>> {
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

/// How much more memory a server needs once it holds so many keys; in kB of 1024 bytes.
pub fn memory(system: &System, many: usize) -> Result<f64> {
    system.until_settled()?;
    let before = system.resident()?;
    load::preload(system, many)?;
    system.until_settled()?;
    Ok(system.resident()? - before)
}
