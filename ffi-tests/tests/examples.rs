//! Every program in examples-c/ compiles without a warning, runs, and prints something.

use ffi_tests::library::{fixed, root, run, scratch};
use std::path::Path;
use std::process::{Command, Output};

#[test]
fn examples_compile_and_run() {
    let folder = root().join("examples-c");
    let out = scratch("examples");
    let mut n = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let source = entry.unwrap().path();
        if source.is_dir() {
            continue; // llama.cpp/ is no C++ source
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

/// `ranks.c` by so many processes.
fn over_mpi(program: &Path, n: usize, fault: Option<&str>) -> Output {
    let mut mpirun = Command::new("timeout");
    // The processes may be more than processors, and root's in a container.
    mpirun.args(["300", "mpirun", "--allow-run-as-root", "--oversubscribe", "-n", &n.to_string()]);
    mpirun.arg(program).args(fault).current_dir(root()).output().unwrap()
}

/// 1, 2, 4 and 8 processes keep what one keeps, and what goes wrong on one is known on all.
#[test]
fn ranks_over_mpi() {
    let mut bring = Command::new("sh");
    bring.arg(root().join("ffi-tests/programs.sh"));
    run(bring.args(["mpicc=libopenmpi-dev", "mpirun=openmpi-bin"]));
    let program = scratch("ranks").join("ranks");
    let mut compile = Command::new("mpicc");
    compile.args(["-DWITH_MPI", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O2", "-I"]);
    compile.arg(root().join("include")).arg(root().join("examples-c/ranks.c")).arg(fixed());
    run(compile.arg("-o").arg(&program).args(["-lm", "-lpthread", "-ldl"]));
    let lines = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().filter(|line| line.starts_with("rank ")).map(str::to_owned).collect::<Vec<_>>()
    };
    for n in [1, 2, 4, 8] {
        let output = over_mpi(&program, n, None);
        let lines = lines(&output);
        assert!(output.status.success(), "{n} ranks: {}", String::from_utf8_lossy(&output.stderr));
        // Entries of all ranks are the total.
        let number = |line: &str, at: &str| -> u64 {
            let text = line.split(at).nth(1).unwrap().trim().split(' ').next().unwrap();
            text.parse().unwrap()
        };
        assert_eq!(lines.len(), n);
        assert!(lines.iter().all(|line| line.contains("as in one process")), "{lines:?}");
        let kept: u64 = lines.iter().map(|line| number(line, "keep")).sum();
        assert_eq!(kept, number(lines[0].split("keep").nth(1).unwrap(), " of "));
    }
    for (fault, status) in [("nan", "-13 of scores"), ("total", "-4 of rank"), ("memory", "-9 of rank")] {
        let output = over_mpi(&program, 4, Some(fault));
        let mut told = lines(&output);
        told.sort();
        assert_eq!(told.len(), 4, "{fault}: {told:?}");
        // The one without memory knows by itself.
        let hears = |line: &&String| line.contains(&format!("status {status}:"));
        let n_hear = told.iter().filter(hears).count();
        assert_eq!(n_hear, if fault == "memory" { 3 } else { 4 }, "{fault}: {told:?}");
        assert!(
            told.iter().all(|line| line.contains(status.split(' ').next().unwrap())),
            "{fault}: {told:?}"
        );
    }
    // One that leaves without a word: MPI ends all, and nothing hangs. 124: the time was over.
    let output = over_mpi(&program, 4, Some("gone"));
    assert!(!output.status.success() && output.status.code() != Some(124), "{:?}", output.status);
    assert_eq!(lines(&output), [""; 0]);
}
