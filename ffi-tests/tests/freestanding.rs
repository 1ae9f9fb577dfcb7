//! The library needs no operating system: it links into a program without libc, and asks for nothing but mem*.

use ffi_tests::library::{declared, freestanding, root, run, scratch};
use std::process::Command;

#[test]
fn nothing_but_memory_functions_is_undefined() {
    let whole = scratch("undefined").join("whole.o");
    let mut ld = Command::new("ld");
    ld.arg("-r");
    // Everything that a program can use is linked in.
    declared().iter().for_each(|function| {
        ld.args(["-u", function]);
    });
    run(ld.arg(freestanding()).arg("-o").arg(&whole));
    // Not nm: where LLVM's plugin is installed, it chokes on the bitcode that came with the precompiled core.
    let symbols = run(Command::new("readelf").arg("-sW").arg(&whole));
    assert!(declared().iter().all(|function| symbols.contains(function)));
    let known = ["memcpy", "memmove", "memset", "memcmp", "bcmp"];
    let undefined = symbols.lines().filter(|line| line.contains(" UND "));
    for name in undefined.filter_map(|line| line.split_whitespace().nth(7)) {
        assert!(known.contains(&name), "{name} is undefined");
    }
}

#[test]
fn a_program_without_libc_compresses_a_layer() {
    if !cfg!(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))) {
        println!("skipped: the program's entry and exit are written for x86-64 and aarch64 Linux");
        return;
    }
    let program = scratch("freestanding").join("program");
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-ffreestanding", "-nostdlib", "-static"]);
    // Otherwise gcc turns the loop in memcpy into a call of memcpy.
    gcc.args(["-fno-stack-protector", "-fno-tree-loop-distribute-patterns", "-I"])
        .arg(root().join("include"));
    gcc.arg(root().join("ffi-tests/c/freestanding.c")).arg(freestanding()).arg("-o").arg(&program);
    run(&mut gcc);
    // The exit code is the line that failed.
    run(&mut Command::new(&program));
}
