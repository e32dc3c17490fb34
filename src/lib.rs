#![doc = include_str!("guide/front.md")]
#![cfg_attr(
    not(feature = "server"),
    allow(
        rustdoc::broken_intra_doc_links,
        reason = "the pages also describe the server"
    )
)]

mod client;
mod connection;
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
    allow(dead_code, unused_imports, reason = "the server's half")
)]
mod protocol;
mod refusal;
#[cfg(feature = "tls")]
mod tls;
mod token;

#[cfg(fuzzing)]
#[doc(hidden)]
#[path = "../tests/fuzz/properties.rs"]
pub mod fuzzing;

#[cfg(all(feature = "server", target_os = "linux"))]
mod event;
#[cfg(all(feature = "server", target_os = "linux"))]
mod manager;
#[cfg(all(feature = "server", target_os = "linux"))]
mod memory;
#[cfg(all(feature = "server", target_os = "linux"))]
mod options;
#[cfg(all(feature = "server", target_os = "linux"))]
mod server;
#[cfg(all(feature = "server", target_os = "linux"))]
mod store;
#[cfg(all(feature = "server", target_os = "linux"))]
mod table;

#[cfg(all(feature = "server", not(target_os = "linux")))]
compile_error!(
    "the server needs Linux; for a client on other systems, depend on lock-server with \
     default-features = false"
);

pub use client::{
    CancelToken, Client, ClientOptions, Events, Guard, Guards, ListOptions, LockOptions, LockPages,
    RenewOptions, ServerAddress,
};
pub use error::{Error, OtherServer, TlsFailure, Unreached};
pub use lease::{Holder, Lease};
#[cfg(all(feature = "server", target_os = "linux"))]
pub use options::{ClusterOptions, Options, StoreAddress};
pub use protocol::json::{
    HeldBy, HeldKey, KeyDetail, LockEvent, LockEventKind, LockPage, Sample, StatusReport,
    StoreReport, Totals, WaitingBy,
};
pub use refusal::Refusal;
#[cfg(all(feature = "server", target_os = "linux"))]
pub use server::{Server, ServerState};
#[cfg(all(feature = "server", target_os = "linux"))]
pub use store::StoreError;
#[cfg(all(feature = "server", target_os = "linux"))]
pub use store::dump::{DumpedHold, StoreDump};
pub use token::Token;

/// README's examples compile and run, too.
#[cfg(all(doctest, feature = "server"))]
#[doc = include_str!("../README.md")]
struct Readme;
