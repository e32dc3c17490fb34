//! The bytes of a classic request, and how they are cut.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lock_server::fuzzing::classic(data));
