//! The record in a pid file: which process serves, on which addresses, and what it was started with. It is two lines:
//! the process ID and the address that the process serves on; in a third line the classic port, if there is one; a line
//! for each further address of its host; and a line with the options, as a JSON array of words. And where pid files
//! usually are.

use std::env;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use nix::fcntl::OFlag;
use nix::unistd::Uid;
use serde_json::Value;

use crate::cli::endpoint::Endpoint;

/// The largest size that is read: more than the lines take, of which one may have paths.
const MAX_SIZE: u64 = 65536;

/// The content of a pid file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PidRecord {
    /// The server's process.
    pub pid: u32,
    /// The addresses that it listens on.
    pub endpoint: Endpoint,
    /// The words that it was started with, after the verb. Their paths are absolute. `None` in the file of an earlier
    /// version.
    pub options: Option<Vec<String>>,
}

/// What the text of a file is.
#[derive(Debug, PartialEq, Eq)]
pub enum Text {
    Empty,
    Record(PidRecord),
    /// No pid file, and why not.
    Other(String),
}

/// The record of this process as text.
pub fn own_record(endpoint: &Endpoint, options: &[String]) -> String {
    let mut text = format!("{}\n{}\n", process::id(), endpoint.address);
    if let Some(port) = endpoint.classic_port {
        text += &format!("{port}\n");
    }
    for other in &endpoint.others {
        text += &format!("{other}\n");
    }
    text + &format!("{}\n", Value::from(options))
}

/// The record of a process, in the pid file that it has open. The file may have been removed, or be at a place that
/// nobody else knows.
pub fn record_of(pid: u32) -> Option<PidRecord> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let files = descriptors.flatten().filter_map(|descriptor| {
        // To open a device may do something, so its kind is looked at before.
        let path = descriptor.path();
        let is_file = fs::metadata(&path).is_ok_and(|about| about.is_file());
        is_file.then(|| open_record(&path, OFlag::empty()))?
    });
    files
        .map(|(record, _)| record)
        .find(|record| record.pid == pid)
}

/// The records of running servers whose pid files are at their usual places: the first of them.
pub fn running(most: usize) -> Vec<PidRecord> {
    let usual = usual_path(0);
    let (Some(folder), Some(name)) = (usual.parent(), usual.file_name()) else {
        return Vec::new();
    };
    let name = name.to_string_lossy();
    let begin = name.trim_end_matches("0.pid");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        is_file && name.starts_with(begin) && name.ends_with(".pid")
    });
    let records = files.filter_map(|entry| {
        let (record, file) = open_record(&entry.path(), OFlag::O_NOFOLLOW)?;
        let is_locked = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
        is_locked.then_some(record)
    });
    records.take(most).collect()
}

/// Whether the last server with this port has ended without removing its pid file, at the usual place.
pub fn has_crashed(port: u16) -> bool {
    let last = open_record(&usual_path(port), OFlag::O_NOFOLLOW);
    last.is_some_and(|(_, file)| file.try_lock_shared().is_ok())
}

/// A record that may be trusted, and its file. In a directory that others can write to, it may be a link or a pipe.
fn open_record(path: &Path, flags: OFlag) -> Option<(PidRecord, File)> {
    let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut open = File::options();
    let file = open.read(true).custom_flags(flags.bits()).open(path).ok()?;
    if why_foreign(&file).ok()?.is_some() || file.metadata().ok()?.len() > MAX_SIZE {
        return None;
    }
    match read(&file).ok()? {
        Text::Record(record) => Some((record, file)),
        _ => None,
    }
}

/// Why a file may not be trusted: others than this user and root may have written it.
pub fn why_foreign(file: &File) -> io::Result<Option<String>> {
    let about = file.metadata()?;
    Ok(match about.uid() {
        _ if !about.is_file() => Some("it is no regular file".into()),
        0 => None,
        owner if owner == Uid::effective().as_raw() => None,
        owner => Some(format!("it belongs to user {owner}")),
    })
}

/// The default path of a pid file. `--help` describes it.
pub fn usual_path(port: u16) -> PathBuf {
    // The XDG specification requires that a relative path is ignored.
    match env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(directory) if directory.is_absolute() => {
            directory.join(format!("lock-server-{port}.pid"))
        }
        _ => env::temp_dir().join(format!("lock-server-{}-{port}.pid", Uid::effective())),
    }
}

/// Reads a file.
pub fn read(mut file: &File) -> io::Result<Text> {
    let mut text = Vec::new();
    file.rewind()?;
    file.take(MAX_SIZE).read_to_end(&mut text)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn parse(text: &str) -> Text {
    let mut lines = text.lines().peekable();
    let Some(first) = lines.next() else {
        return Text::Empty;
    };
    let pid = first.trim().parse::<i32>().ok().filter(|pid| *pid > 0);
    let Some(pid) = pid.map(i32::unsigned_abs) else {
        return Text::Other("its first line is no process number".into());
    };
    let address = lines.next().and_then(|line| line.parse().ok());
    let classic_port = lines.peek().and_then(|line| line.parse().ok());
    let mut others: Vec<&str> = lines.skip(usize::from(classic_port.is_some())).collect();
    let options = others
        .last()
        .and_then(|line| serde_json::from_str(line).ok());
    let options: Option<Vec<String>> = options;
    if options.is_some() {
        others.pop();
    }
    let others = others.into_iter().map(str::parse).collect::<Result<_, _>>();
    match (address, others) {
        (Some(address), Ok(others)) => Text::Record(PidRecord {
            pid,
            endpoint: Endpoint {
                address,
                others,
                classic_port,
            },
            options,
        }),
        _ => Text::Other(format!(
            "it names process {pid}, but lock-server did not write it"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_two_lines_and_further_ones_for_a_classic_port_other_addresses_and_options() {
        let endpoint = Endpoint {
            address: "[::1]:8004".parse().expect("an address"),
            others: Vec::new(),
            classic_port: None,
        };
        let with_options = |endpoint, options| {
            Text::Record(PidRecord {
                pid: 7,
                endpoint,
                options,
            })
        };
        let record = |endpoint| with_options(endpoint, None);
        assert_eq!(parse("7\n[::1]:8004\n"), record(endpoint.clone()));
        let classic = Endpoint {
            classic_port: Some(8005),
            ..endpoint.clone()
        };
        assert_eq!(parse("7\n[::1]:8004\n8005\n"), record(classic.clone()));
        let others = vec!["127.0.0.1:8004".parse().expect("an address")];
        let both = Endpoint {
            others: others.clone(),
            ..endpoint
        };
        assert_eq!(parse("7\n[::1]:8004\n127.0.0.1:8004\n"), record(both));
        let all = Endpoint { others, ..classic };
        let text = "7\n[::1]:8004\n8005\n127.0.0.1:8004\n";
        assert_eq!(parse(text), record(all.clone()));
        let options = ["--store", "file:/a\n\"b\"", "--allow-break"].map(String::from);
        let me = process::id();
        let text = own_record(&all, &options).replacen(&me.to_string(), "7", 1);
        assert_eq!(text.lines().count(), 5, "{text}");
        assert_eq!(parse(&text), with_options(all, Some(options.to_vec())));
        assert_eq!(parse(""), Text::Empty);
    }

    #[test]
    fn a_text_of_another_program_is_no_record() {
        for text in [
            "\n",
            "-1\n",
            "0\n127.0.0.1:8004\n",
            "Dear diary\n",
            "99999999999\n",
            "7",
            "7\n8004\n127.0.0.1:8004\n",
            "7\n127.0.0.1:8004\nand more\n",
            "7\n127.0.0.1:8004\n8005\nand more\n",
        ] {
            assert!(matches!(parse(text), Text::Other(_)), "{text:?}");
        }
    }
}
