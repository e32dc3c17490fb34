//! A disk that forgets what was not synced: a VFS that passes each call on to the system's, and keeps the state of each
//! file on the disk in memory. Chance decides which unsynced writes survive a power failure.
//!
//! A write changes only its own bytes, even if it is torn: SQLite assumes that, too. The name of a new file is on the
//! disk after the first sync of the file, since SQLite then syncs the folder.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::fs;
use std::mem::size_of;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once};
use std::{ptr, slice};

use rusqlite::ffi::{
    self, SQLITE_FULL, SQLITE_IOERR_FSYNC, SQLITE_OK, sqlite3_file, sqlite3_filename,
    sqlite3_int64, sqlite3_io_methods, sqlite3_vfs,
};

use super::chance::Chance;

/// The name of the VFS, once [`register`] has returned.
pub const VFS: &str = "forgetful";

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

/// A file on the disk.
#[derive(Clone, Default)]
struct OnDisk {
    /// Its bytes at the last sync. `None` before the first one.
    synced: Option<Vec<u8>>,
    /// The changes since, in order.
    unsynced: Vec<Change>,
}

impl OnDisk {
    fn sync(&mut self) {
        let mut bytes = self.synced.take().unwrap_or_default();
        for change in self.unsynced.drain(..) {
            apply(&mut bytes, &change);
        }
        self.synced = Some(bytes);
    }

    /// The file's bytes after a power failure.
    fn left(&self, chance: &mut Chance) -> Option<Vec<u8>> {
        let mut bytes = match &self.synced {
            Some(bytes) => bytes.clone(),
            None if chance.below(2) == 0 => return None,
            None => Vec::new(),
        };
        // Often nothing is written before a sync.
        let is_lazy = chance.below(3) == 0;
        for change in &self.unsynced {
            match (chance.below(3), change) {
                (0, _) => {}
                _ if is_lazy => {}
                (1, Change::Write(at, data)) => {
                    let torn = data[..chance.below(data.len() + 1)].to_vec();
                    apply(&mut bytes, &Change::Write(*at, torn));
                }
                _ => apply(&mut bytes, change),
            }
        }
        Some(bytes)
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, data) => {
            let end = at + data.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[*at..end].copy_from_slice(data);
        }
        Change::Truncate(length) => bytes.resize(*length, 0),
    }
}

/// The files of one folder at one moment.
#[derive(Clone)]
pub struct Moment {
    /// The last argument of [`committed`].
    pub committed: usize,
    on_disk: BTreeMap<PathBuf, OnDisk>,
    /// The contents that processes see, if the power does not fail.
    seen: BTreeMap<PathBuf, Vec<u8>>,
}

impl Moment {
    /// The process is killed. Copies the files into another folder, with the same state on the disk.
    pub fn continue_in(&self, folder: &Path) {
        let moved = |path: &PathBuf| folder.join(path.file_name().expect("a file has a name"));
        for (path, bytes) in &self.seen {
            fs::write(moved(path), bytes).expect("it is written");
        }
        let on_disk = self.on_disk.iter();
        let disk = Disk {
            on_disk: on_disk
                .map(|(path, file)| (moved(path), file.clone()))
                .collect(),
            ..Disk::default()
        };
        disks().insert(folder.into(), disk);
    }

    /// The power fails. Writes what is left into another folder.
    pub fn leave_in(&self, folder: &Path, chance: &mut Chance) {
        for (path, file) in &self.on_disk {
            if let Some(bytes) = file.left(chance) {
                let name = path.file_name().expect("a file has a name");
                fs::write(folder.join(name), bytes).expect("it is written");
            }
        }
    }
}

/// The state of a folder's files on the disk, and what fails there.
#[derive(Default)]
struct Disk {
    on_disk: BTreeMap<PathBuf, OnDisk>,
    committed: usize,
    /// Keeps the moment before one in this number of operations: writes, truncations, syncs and deletions.
    keeping: Option<(usize, Chance)>,
    kept: Vec<Moment>,
    /// How many more bytes can be written. `None`: any number.
    room: Option<usize>,
    /// How many more syncs succeed before one fails.
    syncs: Option<u64>,
}

static DISKS: Mutex<BTreeMap<PathBuf, Disk>> = Mutex::new(BTreeMap::new());

fn disks() -> MutexGuard<'static, BTreeMap<PathBuf, Disk>> {
    // A test that panicked with the lock held has left only its own folder in a bad state.
    DISKS
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn with_disk<T>(folder: &Path, act: impl FnOnce(&mut Disk) -> T) -> T {
    act(disks()
        .get_mut(folder)
        .expect("the folder is one of a disk"))
}

/// Puts the files of a folder on such a disk, with their present contents synced.
pub fn begin(folder: &Path) {
    let files = seen(folder).into_iter().map(|(path, bytes)| {
        let file = OnDisk {
            synced: Some(bytes),
            unsynced: Vec::new(),
        };
        (path, file)
    });
    let disk = Disk {
        on_disk: files.collect(),
        ..Disk::default()
    };
    disks().insert(folder.into(), disk);
}

pub fn end(folder: &Path) {
    disks().remove(folder);
}

/// From now on keeps the moment before one in `count` operations.
pub fn keep_one_in(folder: &Path, count: usize, seed: u64) {
    let chance = Chance::new(seed ^ 0x5bd1_e995);
    with_disk(folder, |disk| disk.keeping = Some((count, chance)));
}

pub fn kept(folder: &Path) -> Vec<Moment> {
    with_disk(folder, |disk| std::mem::take(&mut disk.kept))
}

/// Notes how many batches have been committed.
pub fn committed(folder: &Path, count: usize) {
    with_disk(folder, |disk| disk.committed = count);
}

/// The present moment.
pub fn now(folder: &Path) -> Moment {
    with_disk(folder, |disk| disk.moment(folder))
}

/// Sets how many more bytes can be written. `None`: any number.
pub fn has_room_for(folder: &Path, bytes: Option<usize>) {
    with_disk(folder, |disk| disk.room = bytes);
}

/// Lets one sync fail after `count` successful ones.
pub fn syncs(folder: &Path, count: u64) {
    with_disk(folder, |disk| disk.syncs = Some(count));
}

/// Notes a sync that was not made by SQLite.
pub fn was_synced(path: &Path) {
    let folder = path.parent().unwrap_or(Path::new(""));
    if let Some(file) = disks()
        .get_mut(folder)
        .and_then(|disk| disk.on_disk.get_mut(path))
    {
        file.sync();
    }
}

fn seen(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(folder).expect("a folder");
    let paths = files.map(|file| file.expect("an entry").path());
    paths
        .map(|path| (path.clone(), fs::read(path).expect("a file")))
        .collect()
}

impl Disk {
    fn moment(&self, folder: &Path) -> Moment {
        Moment {
            committed: self.committed,
            on_disk: self.on_disk.clone(),
            seen: seen(folder),
        }
    }
}

/// Runs an operation, unless it has to fail on this disk.
fn operate(path: &Path, act: impl FnOnce(&mut Disk) -> c_int) -> c_int {
    let folder = path.parent().expect("SQLite has whole paths");
    let mut disks = disks();
    let Some(disk) = disks.get_mut(folder) else {
        return SQLITE_OK;
    };
    if let Some((count, chance)) = &mut disk.keeping
        && chance.below(*count) == 0
    {
        let moment = disk.moment(folder);
        disk.kept.push(moment);
    }
    act(disk)
}

// --- the VFS ---

/// SQLite's object for each file. The object of the system's VFS follows it in memory.
#[repr(C)]
struct Forgetful {
    base: sqlite3_file,
    path: *mut PathBuf,
}

/// The object of the system's VFS.
///
/// # Safety
///
/// `open` has filled in the file.
unsafe fn system_s(file: *mut sqlite3_file) -> *mut sqlite3_file {
    // SAFETY: SQLite has allocated `szOsFile` bytes, which have room for both objects.
    unsafe { file.byte_add(size_of::<Forgetful>()) }
}

/// # Safety
///
/// `open` has filled in the file, and it is not closed.
unsafe fn path_of<'a>(file: *mut sqlite3_file) -> &'a Path {
    // SAFETY: `open` has put a path there, which lives until `close`.
    unsafe { &*(*file.cast::<Forgetful>()).path }
}

/// The methods of the system's VFS.
#[allow(non_snake_case, reason = "SQLite's names")]
mod system {
    use super::*;

    macro_rules! passed_on {
        ($($name:ident($($argument:ident: $type:ty),*);)*) => { $(
            pub unsafe extern "C" fn $name(file: *mut sqlite3_file, $($argument: $type),*) -> c_int {
                // SAFETY: SQLite calls it with a file that `open` has filled in, and the system's object has all
                // methods.
                unsafe {
                    let file = system_s(file);
                    ((*(*file).pMethods).$name.expect("it has it"))(file, $($argument),*)
                }
            }
        )* };
    }

    passed_on! {
        xClose();
        xRead(to: *mut c_void, length: c_int, at: sqlite3_int64);
        xWrite(from: *const c_void, length: c_int, at: sqlite3_int64);
        xTruncate(size: sqlite3_int64);
        xFileSize(size: *mut sqlite3_int64);
        xLock(level: c_int);
        xUnlock(level: c_int);
        xCheckReservedLock(is_taken: *mut c_int);
        xFileControl(what: c_int, argument: *mut c_void);
        xSectorSize();
        xDeviceCharacteristics();
    }
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    // Without shared memory, which a store does not use.
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(system::xRead),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(system::xFileSize),
    xLock: Some(system::xLock),
    xUnlock: Some(system::xUnlock),
    xCheckReservedLock: Some(system::xCheckReservedLock),
    xFileControl: Some(system::xFileControl),
    xSectorSize: Some(system::xSectorSize),
    xDeviceCharacteristics: Some(system::xDeviceCharacteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: `open` has made the path of a box, and nobody uses the file after this.
    unsafe {
        drop(Box::from_raw((*file.cast::<Forgetful>()).path));
        system::xClose(file)
    }
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    from: *const c_void,
    length: c_int,
    at: sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls it with an open file and as many bytes.
    let (path, data) = unsafe {
        let data = slice::from_raw_parts(from.cast::<u8>(), length as usize);
        (path_of(file), data)
    };
    let done = operate(path, |disk| {
        if let Some(room) = &mut disk.room {
            match room.checked_sub(data.len()) {
                Some(left) => *room = left,
                None => return SQLITE_FULL,
            }
        }
        let change = Change::Write(at as usize, data.to_vec());
        let file = disk.on_disk.entry(path.into()).or_default();
        file.unsynced.push(change);
        SQLITE_OK
    });
    match done {
        // SAFETY: the arguments are those of this call.
        SQLITE_OK => unsafe { system::xWrite(file, from, length, at) },
        failed => failed,
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, size: sqlite3_int64) -> c_int {
    // SAFETY: SQLite calls it with an open file.
    let path = unsafe { path_of(file) };
    operate(path, |disk| {
        let file = disk.on_disk.entry(path.into()).or_default();
        file.unsynced.push(Change::Truncate(size as usize));
        SQLITE_OK
    });
    // SAFETY: the arguments are those of this call.
    unsafe { system::xTruncate(file, size) }
}

/// Does not sync to the real disk, since the real power does not fail.
unsafe extern "C" fn sync(file: *mut sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: SQLite calls it with an open file.
    let path = unsafe { path_of(file) };
    operate(path, |disk| {
        if let Some(syncs) = &mut disk.syncs {
            match syncs.checked_sub(1) {
                Some(left) => *syncs = left,
                None => return SQLITE_IOERR_FSYNC,
            }
        }
        disk.on_disk.entry(path.into()).or_default().sync();
        SQLITE_OK
    })
}

static SYSTEM: Mutex<Option<SystemVfs>> = Mutex::new(None);

#[derive(Clone, Copy)]
struct SystemVfs(*mut sqlite3_vfs);

// SAFETY: SQLite's VFS is there for as long as the process, and is made to be used by all threads.
unsafe impl Send for SystemVfs {}

fn system_vfs() -> *mut sqlite3_vfs {
    let SystemVfs(vfs) = SYSTEM
        .lock()
        .expect("nobody panics with it")
        .expect("it is registered");
    vfs
}

unsafe extern "C" fn open(
    _vfs: *mut sqlite3_vfs,
    name: sqlite3_filename,
    file: *mut sqlite3_file,
    flags: c_int,
    given: *mut c_int,
) -> c_int {
    let vfs = system_vfs();
    // SAFETY: SQLite calls it with room for `szOsFile` bytes, and a name or none, which lives as long as the file.
    unsafe {
        (*file).pMethods = ptr::null();
        let opened = (*vfs).xOpen.expect("it has it")(vfs, name, system_s(file), flags, given);
        if opened == SQLITE_OK {
            let name = match name.is_null() {
                true => PathBuf::from("/without/a/name"),
                false => path(name),
            };
            (*file.cast::<Forgetful>()).path = Box::into_raw(Box::new(name));
            (*file).pMethods = &METHODS;
        }
        opened
    }
}

/// A deleted file may be back, with its contents, after a power failure.
unsafe extern "C" fn delete(_vfs: *mut sqlite3_vfs, name: *const c_char, folder: c_int) -> c_int {
    let vfs = system_vfs();
    // SAFETY: SQLite calls it with a name.
    let path = unsafe { path(name) };
    operate(&path, |disk| {
        let file = disk.on_disk.entry(path.clone()).or_default();
        file.unsynced.push(Change::Truncate(0));
        SQLITE_OK
    });
    // SAFETY: the arguments are those of this call.
    unsafe { (*vfs).xDelete.expect("it has it")(vfs, name, folder) }
}

/// # Safety
///
/// The name comes from SQLite.
unsafe fn path(name: *const c_char) -> PathBuf {
    // SAFETY: SQLite's names end with a zero.
    let name = unsafe { CStr::from_ptr(name) };
    OsStr::from_bytes(name.to_bytes()).into()
}

/// Registers the VFS with SQLite.
pub fn register() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // SAFETY: the system's VFS is never freed once SQLite is initialised, which the first call does. Ours is a copy
        // of it, with the same data of its own, and is never freed.
        let registered = unsafe {
            let system = ffi::sqlite3_vfs_find(ptr::null());
            *SYSTEM.lock().expect("nobody panics with it") = Some(SystemVfs(system));
            let mut vfs = *system;
            vfs.zName = c"forgetful".as_ptr();
            vfs.szOsFile += size_of::<Forgetful>() as c_int;
            vfs.pNext = ptr::null_mut();
            vfs.xOpen = Some(open);
            vfs.xDelete = Some(delete);
            ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0)
        };
        assert_eq!(registered, SQLITE_OK);
    });
}
