//! The program executed again, as a server: what runs before `main`, and instead of it.
//!
//! The linker puts a function's address into `.init_array`, and libc calls it when the program begins, in every
//! program that this crate is linked into. It returns at once unless the program was executed by
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

/// Who executes the program as a server. The value is that process's number. A program may have several versions of
/// this crate in it, each with a hook of its own.
pub(super) const PARENT_VARIABLE: &str =
    concat!("LOCK_SERVER_", env!("CARGO_PKG_VERSION"), "_STARTED_BY");

/// How long the server may take to end in order once it was asked to, before its watchdog ends the process. It
/// gives the answers that are being written half a second.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The watchdog only waits.
const STACK: usize = 64 * 1024;

/// Early, before the start-up code of other crates in the program; after std's, which keeps the arguments. Shared
/// libraries have begun by then.
#[used]
#[unsafe(link_section = ".init_array.00100")]
static AT_START: extern "C" fn() = serve_if_ordered;

extern "C" fn serve_if_ordered() {
    if env::var_os(PARENT_VARIABLE).is_some() && has_orders() {
        live()
    }
}

/// Whether standard input is what orders come by. With the variable alone the program runs `main`; with variable and
/// socket it serves or exits, or a second copy of the program would run.
fn has_orders() -> bool {
    getsockopt(&std::io::stdin(), sockopt::SockType) == Ok(SockType::SeqPacket)
}

/// Whether the orders are the parent's own, which is still there. A program with more rights than its caller obeys
/// nobody.
fn are_from_the_parent() -> bool {
    let parent = unistd::getppid().as_raw();
    let said = env::var(PARENT_VARIABLE).is_ok_and(|pid| pid == parent.to_string());
    let peer = getsockopt(&std::io::stdin(), sockopt::PeerCredentials);
    !has_more_rights() && said && peer.is_ok_and(|peer| peer.pid() == parent)
}

fn has_more_rights() -> bool {
    // SAFETY: the call only reads what the kernel told the process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Serves, and leaves by `_exit`: nothing of the program's is run at exit.
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

/// Closes the descriptors that were handed down, but for the standard streams, and moves the parent's socket away
/// from those.
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
        // Out of reach of the terminal's Ctrl-C and hang-up. It fails only for a group's leader, which a process
        // just forked into its parent's group is not.
        let _ = unistd::setsid();
    }
    if options.log_to.is_some() {
        start_log();
    } else {
        // Standard error leads nowhere.
        panic::set_hook(Box::new(|_| {}));
    }
    let signals = StopSignals::install(options.token_file.is_some())
        .map_err(serve::start_failed("cannot handle signals"))?;
    let asks_for_parent = !options.outlive_parent && parent.is_none();
    let stop = StopSources::new(Some(&signals), parent);
    let stop = Arc::new(stop.map_err(serve::start_failed("no descriptor left"))?);
    // Before the first thread it takes a tenth of a millisecond, and forty milliseconds after it.
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

/// Ends the process when the server has not ended long after it was asked to, whatever its threads hang in.
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

/// How often the child asks who its parent is, where no descriptor tells of its end.
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

/// Logs to standard error, which is the log file, as `RUST_LOG` says, or else from `info` on. tiny_http logs only
/// where `RUST_LOG` names it: each end of its accepting is an error to it, wanted or not.
fn start_log() {
    let env = env_logger::Env::default().default_filter_or("info");
    let _ = env_logger::Builder::new()
        .filter_module("tiny_http", log::LevelFilter::Off)
        .parse_env(env)
        .try_init();
    panic::set_hook(Box::new(|panic| {
        let file = panic.location().map_or("", |place| place.file());
        // Its accepting thread panics where the last descriptor is gone, and the server opens a new one.
        let level = match file.contains("tiny_http") {
            true => log::Level::Debug,
            false => log::Level::Error,
        };
        log::log!(level, "{panic}");
    }));
}

/// Closes what the parent had open and did not mark to be closed on exec. What shared libraries have opened in this
/// process is marked so, as libraries should.
fn close_inherited() -> std::io::Result<()> {
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|fd| fd.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // SAFETY: only asked; where it is not open, that is the answer.
        let flags = fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, FcntlArg::F_GETFD);
        if flags.is_ok_and(|flags| !FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC)) {
            // SAFETY: nothing in this process knows of it: this runs before `main`, and what is opened here is marked.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// Forgets which signals the parent ignored and blocked. A write to a closed connection stays an error.
fn reset_signals() {
    for number in 1..=libc::SIGRTMAX() {
        let action = match number {
            libc::SIGPIPE => libc::SIG_IGN,
            _ => libc::SIG_DFL,
        };
        // SAFETY: neither action calls into the program. What may not be changed refuses, as it should.
        unsafe { libc::signal(number, action) };
    }
    let _ = signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Refuses where executing the program again would lead to something else than a server: in a plugin or in a
/// language's extension the program is the host, which does not know this crate before it loads it.
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

/// Whether an address lies in the program, and not in a library.
struct Search {
    address: u64,
    is_in_program: bool,
}

/// The loader calls it with the program first; it asks for no other object.
unsafe extern "C" fn look(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    search: *mut c_void,
) -> libc::c_int {
    // SAFETY: the caller passes an object that it knows, and what `expect_startable` gave it.
    let (object, search) = unsafe { (&*object, &mut *search.cast::<Search>()) };
    let count = usize::from(object.dlpi_phnum);
    // SAFETY: the object has that many headers, for as long as this runs.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, count) };
    search.is_in_program = headers.iter().any(|header| {
        let begin = object.dlpi_addr.wrapping_add(header.p_vaddr);
        header.p_type == libc::PT_LOAD
            && (begin..begin.wrapping_add(header.p_memsz)).contains(&search.address)
    });
    1
}
