//! Whether this program was given a standard output. If not, Rust opens /dev/null in its place before `main`, and an
//! answer that is written there is lost without an error.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::libc;

/// libc calls this function before Rust's own start-up code.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = look;

static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

extern "C" fn look() {
    // SAFETY: it only asks the system about a descriptor's number, which need not be open.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    WAS_CLOSED.store(flags == -1, Relaxed);
}

/// Whether standard output was closed when the program began.
pub fn was_stdout_closed() -> bool {
    WAS_CLOSED.load(Relaxed)
}
