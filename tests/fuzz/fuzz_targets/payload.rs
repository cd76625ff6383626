#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| apisix_ext_plugin::fuzzing::payload(data));
