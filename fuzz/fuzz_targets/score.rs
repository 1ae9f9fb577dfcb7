#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lava_fuzz::score::run(data));
