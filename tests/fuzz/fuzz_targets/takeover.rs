#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| apisix_plugin_runner::fuzzing::takeover(data));
