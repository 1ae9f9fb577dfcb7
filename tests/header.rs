//! The headers are what cbindgen makes of `src/ffi` today. `UPDATE_HEADER=1` rewrites them.

use std::path::Path;

#[track_caller]
fn is_fresh(header: &str, config: &str, sources: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("include").join(config)).expect(config);
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = sources.iter().fold(builder, |b, source| b.with_src(root.join("src/ffi").join(source)));
    let mut made = Vec::new();
    builder.generate().expect("cbindgen reads src/ffi").write(&mut made);
    let made = String::from_utf8(made).expect("a header is text");
    let path = root.join("include").join(header);
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("include/ is writable");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == made, "include/{header} is stale: run `UPDATE_HEADER=1 cargo test --test header`");
}

#[test]
fn lava_h() {
    is_fresh("lava.h", "cbindgen.toml", &["types.rs", "functions.rs"]);
}

#[test]
fn lava_cuda_h() {
    is_fresh(
        "lava_cuda.h",
        "cbindgen_cuda.toml",
        &[
            "cuda.rs",
            "cuda/score.rs",
            "cuda/stats.rs",
            "cuda/budgets.rs",
            "cuda/select.rs",
            "cuda/cascade.rs",
            "cuda/compact.rs",
            "cuda/attend.rs",
        ],
    );
}
