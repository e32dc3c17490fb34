//! A reply, as a server writes it, or any other bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lock_server::fuzzing::reply(data));
