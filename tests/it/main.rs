//! The tests that run side by side.

#[path = "../common.rs"]
mod common;

mod architecture;
mod classic;
mod client;
mod command;
mod contention;
mod exec;
mod guard;
mod harness;
mod leases;
mod wire;
mod working_safely;
