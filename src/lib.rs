#![doc = include_str!("../README.md")]

mod admission;
mod capacity;
mod child;
mod classic;
mod client;
mod error;
mod http;
mod lease;
mod listener;
mod manager;
mod options;
mod protocol;
mod server;
mod service;
mod shutdown;
mod table;

pub use client::{Client, ClientOptions, Guard, LockOptions, RenewOptions};
pub use error::Error;
pub use lease::{Holder, Lease};
pub use options::Options;
pub use server::Server;
