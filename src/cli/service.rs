//! The interface to a service manager such as systemd: the sockets that it hands to `run`, and what `run` reports to
//! it, which is when the server serves and when it ends.
//!
//! Both are protocols of systemd that other managers also speak: `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` of
//! sd_listen_fds(3), `NOTIFY_SOCKET` of sd_notify(3).

use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use lock_server::ServerState;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use sd_notify::NotifyState;

use crate::cli::endpoint::Endpoint;
use crate::cli::exit::{FAILED, Failure};

/// The `FileDescriptorName=` of the socket for clients of the Perl original.
const CLASSIC: &str = "classic";

/// Listeners from a service manager.
pub struct HandedDown {
    pub http: TcpListener,
    pub classic: Option<TcpListener>,
}

/// Takes the sockets that were passed to this process. `None` if there are none. Called once, before this program opens
/// anything.
pub fn sockets() -> Result<Option<HandedDown>, Failure> {
    let handed_down = sd_notify::listen_fds_with_names()
        .map_err(|error| Failure::system("cannot take the sockets of LISTEN_FDS", error))?;
    let (mut http, mut classic) = (Vec::new(), Vec::new());
    for (number, name) in handed_down {
        // SAFETY: it is open, and LISTEN_PID says that the caller of this program opened it for this process. Nothing
        // here has opened or taken a descriptor before, so nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        let kind = match name == CLASSIC {
            true => &mut classic,
            false => &mut http,
        };
        kind.push(listener(socket, &name)?);
    }
    let refused = |what| Err(Failure::new(FAILED, format!("LISTEN_FDS: {what}")));
    match (http.len(), classic.len()) {
        (0, 0) => Ok(None),
        (1, 0 | 1) => Ok(Some(HandedDown {
            http: http.remove(0),
            classic: classic.pop(),
        })),
        (0, _) => refused("there is a socket named classic, and none for HTTP"),
        (_, 0 | 1) => refused(
            "there are several sockets for HTTP; give one, and name that for clients of the Perl original: \
             FileDescriptorName=classic",
        ),
        _ => refused("there are several sockets named classic; give one"),
    }
}

/// A socket as a listener, if it is a listening TCP socket.
fn listener(socket: OwnedFd, name: &str) -> Result<TcpListener, Failure> {
    let number = socket.as_raw_fd();
    let wrong = match getsockopt(&socket, sockopt::SockType) {
        Err(_) => Some("is no socket"),
        Ok(SockType::Stream) => (!listens(&socket)).then_some("does not listen"),
        Ok(_) => Some("is a socket, but not of a stream"),
    };
    let listener = TcpListener::from(socket);
    // std returns no address for a socket in the file system.
    let wrong = wrong.or_else(|| {
        let is_tcp = listener.local_addr().is_ok();
        (!is_tcp).then_some("is no socket of TCP")
    });
    match wrong {
        None => Ok(listener),
        Some(wrong) => Err(Failure::new(
            FAILED,
            format!(
                "LISTEN_FDS: descriptor {number}, {name:?}, {wrong}; a lock server needs one of TCP that listens: \
                 ListenStream=ADDRESS:PORT and Accept=no"
            ),
        )),
    }
}

fn listens(socket: &impl AsFd) -> bool {
    getsockopt(socket, sockopt::AcceptConn).unwrap_or(false)
}

/// Reports a state to the service manager, if NOTIFY_SOCKET names one.
pub fn notify(state: ServerState, endpoint: &Endpoint) {
    let status = format!("serves on {endpoint}");
    let message = match state {
        ServerState::Serving => &[NotifyState::Ready, NotifyState::Status(&status)][..],
        ServerState::Stopping => &[NotifyState::Stopping],
        _ => return,
    };
    if let Err(error) = sd_notify::notify(message) {
        log::warn!("cannot notify the service manager at NOTIFY_SOCKET: {error}");
    }
}
