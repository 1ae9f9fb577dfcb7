//! `include/lava.h` is what cbindgen makes of `src/ffi` today. `UPDATE_HEADER=1` rewrites it.

use std::path::Path;

#[test]
fn header_is_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config =
        cbindgen::Config::from_file(root.join("include/cbindgen.toml")).expect("include/cbindgen.toml");
    let mut made = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_src(root.join("src/ffi/types.rs"))
        .with_src(root.join("src/ffi/functions.rs"))
        .generate()
        .expect("cbindgen reads src/ffi")
        .write(&mut made);
    let made = String::from_utf8(made).expect("a header is text");
    let path = root.join("include/lava.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("include/ is writable");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == made, "include/lava.h is stale: run `UPDATE_HEADER=1 cargo test --test header`");
}
