#![doc = include_str!("guide/front.md")]

mod client;
mod error;
pub mod guide;
mod host;
#[cfg_attr(
    not(feature = "server"),
    allow(dead_code, reason = "the server's half")
)]
mod lease;
#[cfg_attr(
    not(feature = "server"),
    allow(dead_code, reason = "the server's half")
)]
mod protocol;
mod refusal;

#[cfg(feature = "server")]
mod admission;
#[cfg(feature = "server")]
mod capacity;
#[cfg(feature = "server")]
mod child;
#[cfg(feature = "server")]
mod classic;
#[cfg(feature = "server")]
mod http;
#[cfg(feature = "server")]
mod listener;
#[cfg(feature = "server")]
mod manager;
#[cfg(feature = "server")]
mod options;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
mod service;
#[cfg(feature = "server")]
mod stop;
#[cfg(feature = "server")]
mod table;

#[cfg(all(feature = "server", not(target_os = "linux")))]
compile_error!(
    "the server needs Linux; for a client on other systems, depend on lock-server with \
     default-features = false"
);

pub use client::{CancelToken, Client, ClientOptions, Guard, Guards, LockOptions, RenewOptions};
pub use error::{Error, Unreached};
pub use lease::{Holder, Lease};
#[cfg(feature = "server")]
pub use options::Options;
pub use refusal::Refusal;
#[cfg(feature = "server")]
pub use server::Server;

/// README's examples compile and run, too.
#[cfg(all(doctest, feature = "server"))]
#[doc = include_str!("../README.md")]
struct Readme;
