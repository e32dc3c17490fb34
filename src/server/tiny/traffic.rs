//! What the kernel knows of a connection: its state, its bytes and their times.

use std::os::fd::RawFd;
use std::time::Duration;

use nix::libc;

/// Linux: `TCP_ESTABLISHED`, `include/net/tcp_states.h`. A client that closes moves the connection to CLOSE_WAIT, a
/// reset to CLOSE.
const ESTABLISHED: u8 = 1;

/// The part of the kernel's `struct tcp_info` that is read: up to `tcpi_bytes_retrans`, of Linux 4.19.
type TcpInfo = [u8; 216];

/// Reads the first bytes of a connection's `tcp_info`. `None` if it is no connection any more.
fn tcp_info<const BYTES: usize>(fd: RawFd) -> Option<[u8; BYTES]> {
    let mut info = [0; BYTES];
    let mut length = BYTES as libc::socklen_t;
    // SAFETY: `info` and `length` outlive the call, and `length` is the size of `info`. On a descriptor that is no
    // connection any more the call only fails.
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

/// What an established connection has carried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    /// Bytes received since the connection began.
    pub received: u64,
    /// Bytes sent since the connection began, without retransmissions.
    pub answered: u64,
    /// How long ago the last byte was received, or the connection began.
    pub since_received: Duration,
    /// How long ago the last byte was sent, or the connection began.
    pub since_answered: Duration,
}

impl Traffic {
    /// `None` if the connection is over, or the kernel is older than 4.19.
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
