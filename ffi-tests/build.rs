//! Bindings of `include/lava.h`, `lava_methods.h` and `lava_ranks.h`, inline functions included: tests see what a C program sees.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    // They include lava.h.
    let headers = ["lava_methods.h", "lava_ranks.h"].map(|name| root.join("../include").join(name));
    headers.iter().for_each(|header| println!("cargo:rerun-if-changed={}", header.display()));
    println!("cargo:rerun-if-changed={}", root.join("../include/lava.h").display());
    println!("cargo:rerun-if-changed=libclang.sh");
    println!("cargo:rerun-if-env-changed=LIBCLANG_PATH");
    if env::var_os("LIBCLANG_PATH").is_none() {
        let folder = first_line(Command::new("sh").arg(root.join("libclang.sh")));
        // SAFETY: a build script of one thread.
        unsafe { env::set_var("LIBCLANG_PATH", folder.expect("ffi-tests/libclang.sh found no libclang")) };
    }

    let shim = out.join("static_functions.c");
    let mut bindings = bindgen::Builder::default()
        .headers(headers.iter().map(|header| header.to_str().unwrap()))
        .allowlist_item("(lava|LAVA)_.*")
        .default_macro_constant_type(bindgen::MacroTypeVariation::Signed)
        .layout_tests(true)
        .generate_comments(false)
        .wrap_static_fns(true)
        .wrap_static_fns_path(&shim);
    // stddef.h, where libclang came without its own.
    if let Some(gcc) = first_line(Command::new("gcc").arg("-print-file-name=include")) {
        bindings = bindings.clang_arg(format!("-idirafter{gcc}"));
    }
    let bindings = bindings.generate().expect("the headers in include/");
    bindings.write_to_file(out.join("bindings.rs")).unwrap();
    cc::Build::new().file(shim).include(root.join("../include")).compile("lava_static_functions");
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    let line = String::from_utf8(output.stdout).ok()?.lines().next()?.to_owned();
    output.status.success().then_some(line)
}
