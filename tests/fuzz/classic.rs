//! A request of the classic wire, as bytes that arrive in pieces.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lock_server::fuzzing::classic(data));
