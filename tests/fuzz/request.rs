//! A request target with its query.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lock_server::fuzzing::request(data));
