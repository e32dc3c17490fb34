//! The wish that the server end, from whatever thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Asks the server to end. Readable, as a descriptor, once somebody has.
pub(crate) struct Shutdown(EventFd);

impl Shutdown {
    pub fn new() -> io::Result<Self> {
        Ok(Shutdown(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?))
    }

    pub fn request(&self, reason: &str) {
        log::info!("ending: {reason}");
        // It fails only when it has been asked for 2^64 - 2 times.
        let _ = self.0.write(1);
    }
}

impl AsFd for Shutdown {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
