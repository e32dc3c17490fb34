//! The orders that a server's process receives when it begins, and its report: one message each way. Both ends are the
//! same program, so the format may change with any version.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::{self, Pid};

use crate::options::{ClusterOptions, Options};
use crate::server::listen::MOST_ADDRESSES;
use crate::server::serve::Listeners;

/// The buffer for a message, in bytes. Larger than any message: there are at most 33 hosts of 253 bytes and two paths
/// of 4,096 bytes; the rest are numbers.
const LONGEST: usize = 20 * 1024;

/// The most descriptors of a message: two listeners for each address, and the parent's pidfd.
const MOST_DESCRIPTORS: usize = 2 * MOST_ADDRESSES + 1;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// The options and the listeners to serve with.
pub(crate) struct Orders {
    pub options: Options,
    pub listeners: Listeners,
    /// A pidfd of the process with which the server has to end. `None` if the server may outlive it, or if the kernel
    /// gave no pidfd.
    pub parent: Option<OwnedFd>,
}

impl Orders {
    /// Sends orders. The server ends with the calling process, unless it may outlive it.
    pub fn send(to: &OwnedFd, options: &Options, listeners: &Listeners) -> io::Result<()> {
        let parent = match options.outlive_parent {
            true => None,
            // `None` for example before Linux 5.3, with a filter of system calls, or under valgrind. Then the child
            // polls its parent's process ID.
            false => pidfd(unistd::getpid()).ok(),
        };
        let Listeners { http, classic, .. } = listeners;
        let descriptors: Vec<RawFd> = http
            .iter()
            .chain(classic)
            .map(AsRawFd::as_raw_fd)
            .chain(parent.as_ref().map(AsRawFd::as_raw_fd))
            .collect();
        let text = format!("{}\n{}", http.len(), encode(options));
        sendmsg::<()>(
            to.as_raw_fd(),
            &[IoSlice::new(text.as_bytes())],
            &[ControlMessage::ScmRights(&descriptors)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    /// Receives orders.
    pub fn receive(from: &OwnedFd) -> io::Result<Self> {
        let mut text = vec![0; LONGEST];
        let mut space = cmsg_space!([RawFd; MOST_DESCRIPTORS]);
        let mut pieces = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(from.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
        let length = message.bytes;
        let mut descriptors = message
            .cmsgs()?
            .filter_map(|part| match part {
                ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            // SAFETY: the kernel has just made them for this process, and nothing else uses them.
            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
            .collect::<Vec<_>>()
            .into_iter();
        let text = str::from_utf8(&text[..length]).ok();
        let told = text.and_then(|text| {
            let (addresses, options) = text.split_once('\n')?;
            Some((addresses.parse::<usize>().ok()?, decode(options)?))
        });
        let (addresses, options) = told.ok_or(io::ErrorKind::InvalidData)?;
        let mut next = || descriptors.next().ok_or(io::ErrorKind::InvalidData);
        let mut listeners = |count: usize| {
            let listeners = (0..count).map(|_| next().map(TcpListener::from));
            listeners.collect::<Result<Vec<_>, _>>()
        };
        let classic = options.classic_port.map_or(0, |_| addresses);
        Ok(Orders {
            listeners: Listeners {
                http: listeners(addresses)?,
                classic: listeners(classic)?,
                are_lent: false,
            },
            parent: match options.outlive_parent {
                true => None,
                false => next().ok(),
            },
            options,
        })
    }
}

/// What the child reports.
pub(crate) enum Report {
    Serves,
    /// The reason.
    Failed(String),
}

impl Report {
    pub fn send(&self, to: BorrowedFd<'_>) {
        let text = match self {
            Report::Serves => "",
            Report::Failed(why) => why,
        };
        let kind = match self {
            Report::Serves => "+",
            Report::Failed(_) => "-",
        };
        // It fails if the parent has ended or has given up this child.
        let _ = unistd::write(to, format!("{kind}{text}").as_bytes());
    }

    /// `None` if the other end is closed.
    pub fn receive(from: &OwnedFd) -> io::Result<Option<Self>> {
        let mut text = vec![0; LONGEST];
        let length = match unistd::read(from.as_fd(), &mut text) {
            // It ended without reading its orders.
            Err(Errno::ECONNRESET) => 0,
            read => read?,
        };
        let text = String::from_utf8_lossy(&text[..length]);
        match (text.as_ref(), text.strip_prefix('-')) {
            ("+", _) => Ok(Some(Report::Serves)),
            (_, Some(why)) => Ok(Some(Report::Failed(why.into()))),
            ("", _) => Ok(None),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Returns a descriptor that becomes readable when the process ends.
pub(super) fn pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes only numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = Errno::result(fd)? as RawFd;
    // SAFETY: the kernel has just made it, and nothing else uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Encodes the options that a bound server still needs, one on each line. The host comes last.
fn encode(options: &Options) -> String {
    let Options {
        lock_timeout,
        lock_attempt_timeout,
        port,
        classic_port,
        classic_without_token,
        host,
        allowed_hosts,
        allow_shutdown,
        allow_break,
        token_file,
        reconnect_attempts: _,
        time_between_attempts: _,
        outlive_parent,
        max_lock_timeout,
        max_lock_attempt_timeout,
        max_waiters,
        max_keys,
        log_to,
        store,
        store_sync,
        cluster,
    } = options;
    let nanos = |time: Duration| time.as_nanos().to_string();
    let or_none = |text: Option<String>| text.unwrap_or_default();
    [
        nanos(*lock_timeout),
        nanos(*lock_attempt_timeout),
        port.to_string(),
        or_none(classic_port.map(|port| port.to_string())),
        classic_without_token.to_string(),
        allow_shutdown.to_string(),
        allow_break.to_string(),
        // The options were validated: it is one line of UTF-8.
        or_none(
            token_file
                .as_ref()
                .map(|path| path.to_string_lossy().into()),
        ),
        outlive_parent.to_string(),
        or_none(max_lock_timeout.map(nanos)),
        or_none(max_lock_attempt_timeout.map(nanos)),
        max_waiters.to_string(),
        max_keys.to_string(),
        log_to.is_some().to_string(),
        // One line of UTF-8, too.
        or_none(store.as_ref().map(ToString::to_string)),
        store_sync.to_string(),
        cluster.to_line(),
        // No host has a blank in it.
        allowed_hosts.join(" "),
        host.clone(),
    ]
    .join("\n")
}

fn decode(text: &str) -> Option<Options> {
    let mut lines = text.splitn(19, '\n');
    let mut next = || lines.next();
    let nanos = |line: &str| {
        let nanos: u128 = line.parse().ok()?;
        let seconds = u64::try_from(nanos / NANOS_PER_SECOND).ok()?;
        // The remainder of a division by a billion fits.
        Some(Duration::new(seconds, (nanos % NANOS_PER_SECOND) as u32))
    };
    let or_none = |line: &str| (!line.is_empty()).then(|| line.to_string());
    Some(Options {
        lock_timeout: nanos(next()?)?,
        lock_attempt_timeout: nanos(next()?)?,
        port: next()?.parse().ok()?,
        classic_port: or_none(next()?).and_then(|port| port.parse().ok()),
        classic_without_token: next()?.parse().ok()?,
        allow_shutdown: next()?.parse().ok()?,
        allow_break: next()?.parse().ok()?,
        token_file: or_none(next()?).map(Into::into),
        outlive_parent: next()?.parse().ok()?,
        max_lock_timeout: or_none(next()?).and_then(|line| nanos(&line)),
        max_lock_attempt_timeout: or_none(next()?).and_then(|line| nanos(&line)),
        max_waiters: next()?.parse().ok()?,
        max_keys: next()?.parse().ok()?,
        // The log file is already standard error.
        log_to: (next()? == "true").then(Default::default),
        store: or_none(next()?)
            .map(|store| store.parse())
            .transpose()
            .ok()?,
        store_sync: next()?.parse().ok()?,
        cluster: ClusterOptions::of_line(next()?)?,
        allowed_hosts: next()?.split_whitespace().map(String::from).collect(),
        host: next()?.into(),
        ..Options::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::StoreAddress;

    #[test]
    fn options_arrive_as_they_were_sent() {
        let plain = Options::default();
        let odd = Options {
            lock_timeout: Duration::new(3, 1),
            lock_attempt_timeout: Duration::ZERO,
            port: 1,
            classic_port: Some(2),
            host: "::1".into(),
            allowed_hosts: vec!["locks.example.com".into(), "*".into()],
            classic_without_token: true,
            allow_shutdown: true,
            allow_break: true,
            token_file: Some("/etc/lock server/tokens".into()),
            outlive_parent: true,
            max_lock_timeout: Some(Duration::from_millis(1)),
            max_lock_attempt_timeout: Some(Duration::from_secs(365 * 24 * 60 * 60)),
            max_waiters: 7,
            max_keys: usize::MAX,
            log_to: Some(Default::default()),
            store: Some(StoreAddress::File("/var/lib/lock server/locks.db".into())),
            store_sync: false,
            cluster: ClusterOptions {
                prefix: "/a \"b\"/".into(),
                user: Some("ann".into()),
                password_file: Some("/etc/lock server/password".into()),
                ttl: Duration::from_secs(600),
                advertise: Some("locks-1.example.com:8004".into()),
                ca_file: Some("ca".into()),
                cert_file: Some("cert".into()),
                key_file: Some("key".into()),
            },
            ..Options::default()
        };
        for options in [plain, odd] {
            assert_eq!(decode(&encode(&options)), Some(options));
        }
    }
}
