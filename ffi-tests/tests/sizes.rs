//! The libraries are as large as docs/linking.md says, or smaller.
//!
//! Up to 10% more is allowed: the standard library inside, and what the compiler makes of our code, changes by a few per cent
//! with the version of Rust. A new dependency, formatting or panic machinery, or another copy of the kernels shows as
//! more. Whoever makes the library larger on purpose says so in docs/linking.md.

use ffi_tests::library::{fixed, root, run, scratch, shared};
use std::path::Path;
use std::process::Command;

/// kB in the row of docs/linking.md that begins with this.
fn stated(row: &str) -> u64 {
    let page = std::fs::read_to_string(root().join("docs/linking.md")).unwrap();
    let line = page.lines().find(|line| line.starts_with(&format!("| {row}"))).expect(row);
    let number = line.trim_end_matches(" |").rsplit("| ").next().unwrap();
    number.strip_suffix(" kB").expect(line).replace(',', "").parse().expect(line)
}

fn check(row: &str, bytes: u64) {
    let (is, stated) = (bytes.div_ceil(1000), stated(row));
    println!("{row}: {is} kB, docs/linking.md says {stated}");
    assert!(is * 10 <= stated * 11, "{row}: {is} kB, docs/linking.md says {stated}: find out why it grew");
    assert!(is * 2 >= stated, "{row}: {is} kB, docs/linking.md says {stated}: write the new size there");
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// Size of a stripped program.
fn program(source: &Path, name: &str, libraries: &[&Path]) -> u64 {
    let program = scratch("sizes").with_file_name(name);
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=c11", "-O2", "-s", "-Wl,--gc-sections", "-I"]).arg(root().join("include"));
    run(gcc.arg(source).args(libraries).args(["-lm", "-lpthread", "-ldl", "-o"]).arg(&program));
    size(&program)
}

#[test]
fn libraries_are_as_large_as_the_page_says() {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        println!("skipped: docs/linking.md gives the sizes on x86-64 Linux");
        return;
    }
    check("`liblava.so`", size(shared()));
    check("`liblava.a`", size(fixed()));
    let empty = scratch("empty").join("empty.c");
    std::fs::write(&empty, "int main(void) { return 0; }\n").unwrap();
    let with = program(&root().join("ffi-tests/consumer/main.c"), "size-with", &[fixed()]);
    check("a C program", with - program(&empty, "size-without", &[]));
}
