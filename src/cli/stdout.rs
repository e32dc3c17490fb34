//! Whether this program was given a standard output. Rust opens /dev/null where it was not, before `main`, and an answer
//! that is written there is lost without an error.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::libc;

/// libc calls it before Rust's own start.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = look;

static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

extern "C" fn look() {
    // SAFETY: it only asks the system about a number, which need not be open.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    WAS_CLOSED.store(flags == -1, Relaxed);
}

/// Whether standard output was closed when the program began.
pub fn was_stdout_closed() -> bool {
    WAS_CLOSED.load(Relaxed)
}
