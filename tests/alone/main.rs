//! A binary of its own, because its tests need the machine for themselves: they measure against bounds from issues, in
//! milliseconds, bytes and shares of a core, or have thousands of clients, for which they raise this process's limit of
//! descriptors. They run one at a time, and cargo runs no other binary meanwhile.

#[path = "../common.rs"]
mod common;

mod http;
mod synopsis;
