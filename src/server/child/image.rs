//! The program executed again, as a server: what runs before `main` and replaces it.
//!
//! The linker puts a function's address into `.init_array`, and libc calls that function when the program begins, in
//! each program that this crate is linked into. It returns at once unless the program was executed by
//! [`Child::start`](super::Child::start) of its own parent.

use std::env;
use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::{self, SigSet, SigmaskHow};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::unistd;

use super::orders::{Orders, Report};
use crate::error::{self, Error};
use crate::server::limits;
use crate::server::serve::{self, ProcessUse, ServerState};
use crate::server::stop::{StopSignals, StopSources};

/// The variable that marks a program executed as a server. Its value is the parent's process ID. A program may contain
/// several versions of this crate, each with its own hook.
pub(super) const PARENT_VARIABLE: &str =
    concat!("LOCK_SERVER_", env!("CARGO_PKG_VERSION"), "_STARTED_BY");

/// How long the server may take to end after it was asked to, before its watchdog ends the process. The server lets
/// answers be written for half a second.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The watchdog only waits.
const STACK: usize = 64 * 1024;

/// Runs before the start-up code of other crates in the program, and after std's, which stores the arguments. Shared
/// libraries are initialised by then.
#[used]
#[unsafe(link_section = ".init_array.00100")]
static AT_START: extern "C" fn() = serve_if_ordered;

extern "C" fn serve_if_ordered() {
    if env::var_os(PARENT_VARIABLE).is_some() && has_orders() {
        live()
    }
}

/// Whether standard input is a socket for orders. With the variable alone, the program runs `main`. With variable and
/// socket it serves or exits, because otherwise a second copy of the program would run.
fn has_orders() -> bool {
    getsockopt(&std::io::stdin(), sockopt::SockType) == Ok(SockType::SeqPacket)
}

/// Whether the orders come from the parent, which is still alive. A program with more rights than its caller takes no
/// orders.
fn are_from_the_parent() -> bool {
    let parent = unistd::getppid().as_raw();
    let said = env::var(PARENT_VARIABLE).is_ok_and(|pid| pid == parent.to_string());
    let peer = getsockopt(&std::io::stdin(), sockopt::PeerCredentials);
    !has_more_rights() && said && peer.is_ok_and(|peer| peer.pid() == parent)
}

fn has_more_rights() -> bool {
    // SAFETY: the call only reads the auxiliary vector of the process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Serves, and leaves by `_exit`, so that none of the program's exit handlers runs.
fn live() -> ! {
    let code = panic::catch_unwind(AssertUnwindSafe(|| {
        if !are_from_the_parent() {
            return 1;
        }
        match take_socket() {
            Ok(socket) => obey(&socket),
            Err(error) => {
                let stdin = std::io::stdin();
                Report::Failed(format!("cannot set up its descriptors: {error}"))
                    .send(stdin.as_fd());
                1
            }
        }
    }));
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(code.unwrap_or(101)) }
}

/// Closes the inherited descriptors except the standard streams, and moves the parent's socket away from those.
fn take_socket() -> std::io::Result<OwnedFd> {
    close_inherited()?;
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket)
}

fn obey(socket: &OwnedFd) -> i32 {
    reset_signals();
    let _ = prctl::set_name(c"lock-server");
    let served = Orders::receive(socket)
        .map_err(serve::start_failed("cannot receive the orders"))
        .and_then(|orders| serve(orders, socket));
    match served {
        Ok(()) => 0,
        Err(error) => {
            let why = error::why_not_started(&error);
            log::error!("{why}");
            Report::Failed(why).send(socket.as_fd());
            1
        }
    }
}

fn serve(orders: Orders, socket: &OwnedFd) -> Result<(), Error> {
    let Orders {
        options,
        listeners,
        parent,
    } = orders;
    if options.outlive_parent {
        // Out of reach of the terminal's Ctrl-C and hang-up. `setsid` fails only for a group's leader, which a process
        // just forked into its parent's group is not.
        let _ = unistd::setsid();
    }
    if options.log_to.is_some() {
        start_log();
    } else {
        // Standard error is `/dev/null`.
        panic::set_hook(Box::new(|_| {}));
    }
    let signals = StopSignals::install(options.token_file.is_some())
        .map_err(serve::start_failed("cannot handle signals"))?;
    let asks_for_parent = !options.outlive_parent && parent.is_none();
    let stop = StopSources::new(Some(&signals), parent);
    let stop = Arc::new(stop.map_err(serve::start_failed("no descriptor left"))?);
    // Before the first thread starts this takes 0.1 ms, later 40 ms.
    limits::grow_futex_hash();
    start_watchdog(stop.clone())
        .map_err(serve::start_failed("cannot start the watchdog's thread"))?;
    if asks_for_parent {
        ask_for_parent(stop.clone()).map_err(serve::start_failed(
            "cannot start the thread that watches the parent",
        ))?;
    }
    serve::serve(listeners, &options, &stop, ProcessUse::Own, &|state| {
        if state == ServerState::Serving {
            Report::Serves.send(socket.as_fd());
        }
    })
}

/// Ends the process if the server has not ended [`END_TIMEOUT`] after it was asked to, whatever its threads block on.
fn start_watchdog(stop: Arc<StopSources>) -> std::io::Result<()> {
    let watch = move || {
        stop.wait();
        thread::sleep(END_TIMEOUT);
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(1) }
    };
    let thread = thread::Builder::new()
        .name("lock-watchdog".into())
        .stack_size(STACK);
    thread.spawn(watch).map(drop)
}

/// How often the child checks its parent, if no descriptor reports the parent's end.
const ASK_FOR_PARENT: Duration = Duration::from_millis(100);

fn ask_for_parent(stop: Arc<StopSources>) -> std::io::Result<()> {
    let parent = unistd::getppid();
    let ask = move || {
        while unistd::getppid() == parent {
            thread::sleep(ASK_FOR_PARENT);
        }
        stop.request("the process that started it has ended");
    };
    let thread = thread::Builder::new()
        .name("lock-parent".into())
        .stack_size(STACK);
    thread.spawn(ask).map(drop)
}

/// Logs to standard error, which is the log file: as `RUST_LOG` says, by default from `info` on. tiny_http logs only if
/// `RUST_LOG` names it, because it logs each end of its accepting as an error, even a wanted one.
fn start_log() {
    let env = env_logger::Env::default().default_filter_or("info");
    let _ = env_logger::Builder::new()
        .filter_module("tiny_http", log::LevelFilter::Off)
        .parse_env(env)
        .try_init();
    panic::set_hook(Box::new(|panic| {
        let file = panic.location().map_or("", |place| place.file());
        // Its accepting thread panics when descriptors run out, and the server opens a new instance.
        let level = match file.contains("tiny_http") {
            true => log::Level::Debug,
            false => log::Level::Error,
        };
        log::log!(level, "{panic}");
    }));
}

/// Closes the descriptors that the parent did not mark to be closed on exec. Shared libraries should have marked those
/// that they have opened in this process, which then stay open.
fn close_inherited() -> std::io::Result<()> {
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|fd| fd.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // SAFETY: only reads its flags, which fails if it is not open.
        let flags = fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, FcntlArg::F_GETFD);
        if flags.is_ok_and(|flags| !FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC)) {
            // SAFETY: nothing in this process uses it: this runs before `main`, and descriptors opened in this process
            // are marked.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// Resets the signals that the parent ignored or blocked. SIGPIPE stays ignored, so that a write to a closed connection
/// is an error.
fn reset_signals() {
    for number in 1..=libc::SIGRTMAX() {
        let action = match number {
            libc::SIGPIPE => libc::SIG_IGN,
            _ => libc::SIG_DFL,
        };
        // SAFETY: neither action calls into the program. `signal` fails for signals that must not be changed.
        unsafe { libc::signal(number, action) };
    }
    let _ = signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Refuses if executing the program again would not start a server: with a plugin or a language's extension the program
/// is the host, which does not contain this crate until it loads it.
pub(super) fn expect_startable() -> Result<(), Error> {
    if has_more_rights() {
        return Err(Error::CannotStart {
            reason:
                "this program has more rights than its caller (set-user-ID, or capabilities of \
                     its file) and is not executed again; Server::spawn serves in this process"
                    .into(),
            source: None,
        });
    }
    let mut search = Search {
        address: std::hint::black_box(&raw const AT_START) as u64,
        is_in_program: false,
    };
    // SAFETY: `look` gets the pointer to `search`, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    if search.is_in_program {
        return Ok(());
    }
    Err(Error::CannotStart {
        reason: "this crate is in a library that the program loads, not in the program itself, \
                 which can't be executed again as a server; Server::spawn serves in this process"
            .into(),
        source: None,
    })
}

/// The search for an address: does it lie in the program, or in a library?
struct Search {
    address: u64,
    is_in_program: bool,
}

/// Looks at one loaded object. The loader calls it with the program first; the return value 1 ends the iteration.
unsafe extern "C" fn look(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    search: *mut c_void,
) -> libc::c_int {
    // SAFETY: the loader passes a valid object, and the pointer that `expect_startable` gave it.
    let (object, search) = unsafe { (&*object, &mut *search.cast::<Search>()) };
    let count = usize::from(object.dlpi_phnum);
    // SAFETY: the object has `dlpi_phnum` headers, at least while this runs.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, count) };
    search.is_in_program = headers.iter().any(|header| {
        let begin = object.dlpi_addr.wrapping_add(header.p_vaddr);
        header.p_type == libc::PT_LOAD
            && (begin..begin.wrapping_add(header.p_memsz)).contains(&search.address)
    });
    1
}
