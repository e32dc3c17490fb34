//! A reply, as a server writes it or as nobody should.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lock_server::fuzzing::reply(data));
