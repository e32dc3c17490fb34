//! The tests that have the machine to themselves.

#[path = "../common.rs"]
mod common;

mod front_door;
mod synopsis;
