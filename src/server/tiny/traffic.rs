//! What the kernel counts of a connection, and the state that it has it in.

use std::os::fd::RawFd;
use std::time::Duration;

use nix::libc;

/// Linux: `TCP_ESTABLISHED`, `include/net/tcp_states.h`. A client that closes takes the connection
/// to CLOSE_WAIT, one that resets it to CLOSE.
const ESTABLISHED: u8 = 1;

/// As much of the kernel's `struct tcp_info` as is read: to `tcpi_bytes_retrans`, of Linux 4.19.
type TcpInfo = [u8; 216];

/// Reads the first bytes of what the kernel knows of a connection. `None` if it is none any more.
fn tcp_info<const BYTES: usize>(fd: RawFd) -> Option<[u8; BYTES]> {
    let mut info = [0; BYTES];
    let mut length = BYTES as libc::socklen_t;
    // SAFETY: `info` and `length` outlive the call, and `length` says how much room `info` has. A descriptor that is
    // no connection any more makes the call fail, nothing else.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    (result == 0 && length as usize == BYTES).then_some(info)
}

pub(super) fn is_established(fd: RawFd) -> bool {
    tcp_info(fd) == Some([ESTABLISHED])
}

/// What has gone over a connection that stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    /// In bytes, since the connection began.
    pub received: u64,
    /// What was sent back, in bytes, each counted once.
    pub answered: u64,
    /// How long ago the last byte of each came, or the connection began.
    pub since_received: Duration,
    pub since_answered: Duration,
}

impl Traffic {
    /// `None` if the connection is over, or the kernel older than 4.19.
    pub fn of(fd: RawFd) -> Option<Self> {
        let info: TcpInfo = tcp_info(fd)?;
        // The offsets are those of `include/uapi/linux/tcp.h`, which only grows at its end.
        let long = |at| Some(u64::from_ne_bytes(*info[at..].first_chunk()?));
        let short = |at| Some(u32::from_ne_bytes(*info[at..].first_chunk()?));
        let ms = |at| Some(Duration::from_millis(short(at)?.into()));
        let traffic = Traffic {
            received: long(128)?,
            answered: long(200)?.saturating_sub(long(208)?),
            since_received: ms(52)?,
            since_answered: ms(44)?,
        };
        (info[0] == ESTABLISHED).then_some(traffic)
    }
}
