//! Every program in examples-c/ compiles without a warning, runs, and prints something.

use ffi_tests::library::{fixed, root, run, scratch};
use std::process::Command;

#[test]
fn examples_compile_and_run() {
    let folder = root().join("examples-c");
    let out = scratch("examples");
    let mut n = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let source = entry.unwrap().path();
        if !source.is_file() {
            continue; // llama.cpp is a folder
        }
        let (compiler, standard) = match source.extension().and_then(|e| e.to_str()) {
            Some("c") => ("gcc", "-std=c11"),
            Some("cpp") => ("g++", "-std=c++17"),
            _ => continue,
        };
        let program = out.join(source.file_name().unwrap());
        let mut compile = Command::new(compiler);
        compile.args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O2", "-I"]);
        compile.arg(root().join("include")).arg(&source).arg(fixed()).arg("-o").arg(&program);
        run(compile.args(["-lm", "-lpthread", "-ldl"]));
        let printed = run(Command::new(&program).current_dir(root()));
        assert!(!printed.trim().is_empty(), "{} prints nothing", source.display());
        n += 1;
    }
    assert!(n > 0, "no programs in {}", folder.display());
}
