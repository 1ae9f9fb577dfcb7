//! `make install`, and programs that use only what was installed: by pkg-config and by CMake, in C and C++.

use ffi_tests::library::{root, run, scratch};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Once;

fn version() -> String {
    let text = unsafe { std::ffi::CStr::from_ptr(ffi_tests::lava_version_string()) };
    text.to_str().unwrap().to_owned()
}

fn make(target: &str, variables: &[String]) -> Command {
    let mut make = Command::new("make");
    // The jobs of a make above are not this one's.
    make.env_remove("MAKEFLAGS").env_remove("MFLAGS").arg("-C").arg(root()).arg(target);
    make.arg(format!("CARGO={}", env!("CARGO"))).args(variables);
    make
}

/// Files and links below a folder, as paths from it.
fn tree(folder: &Path) -> BTreeSet<String> {
    let listing = run(Command::new("find").current_dir(folder).args([".", "!", "-type", "d"]));
    listing.lines().map(|line| line.trim_start_matches("./").to_owned()).collect()
}

fn expected(libdir: &str) -> BTreeSet<String> {
    let version = version();
    let major = version.split('.').next().unwrap();
    let mut files: BTreeSet<_> = [
        "include/lava.h",
        "include/lava.hpp",
        "include/lava_methods.h",
        "include/lava_ranks.h",
        "share/doc/lava/LICENSE-APACHE",
        "share/doc/lava/LICENSE-MIT",
    ]
    .map(str::to_owned)
    .into();
    for name in [
        "liblava.a",
        "liblava.so",
        &format!("liblava.so.{major}"),
        &format!("liblava.so.{version}"),
        "pkgconfig/lava.pc",
        "cmake/lava/lava-config.cmake",
        "cmake/lava/lava-config-version.cmake",
    ] {
        files.insert(format!("{libdir}/{name}"));
    }
    files
}

/// The shared libraries that a program asks for.
fn needed(program: &Path) -> String {
    run(Command::new("readelf").arg("-d").arg(program))
        .lines()
        .filter(|line| line.contains("NEEDED"))
        .map(|line| line.rsplit(' ').next().unwrap().to_owned())
        .collect()
}

fn check_program(program: &Path, libdir: &Path, is_shared: bool) {
    let soname = format!("[liblava.so.{}]", version().split('.').next().unwrap());
    assert_eq!(needed(program).contains(&soname), is_shared, "{}: {}", program.display(), needed(program));
    let printed = run(Command::new(program).env("LD_LIBRARY_PATH", libdir));
    let backend =
        unsafe { std::ffi::CStr::from_ptr(ffi_tests::lava_backend_name(ffi_tests::LAVA_BACKEND_BEST)) };
    assert_eq!(printed.trim(), format!("{} {}", version(), backend.to_str().unwrap()));
}

fn by_pkg_config(libdir: &Path, out: &Path) {
    let query = |arguments: &[&str]| {
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", libdir.join("pkgconfig")).args(arguments).arg("lava");
        run(&mut command).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(query(&["--modversion"]), [version()]);
    for (compiler, standard, source) in [("gcc", "-std=c11", "main.c"), ("g++", "-std=c++17", "main.cpp")] {
        for (name, linking) in [("shared", [].as_slice()), ("static", &["--static"])] {
            let program = out.join(format!("{name}-{source}"));
            let mut compile = Command::new(compiler);
            compile.args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
            // With liblava.so next to liblava.a, only -static makes the linker take the latter.
            compile.args(linking.iter().map(|_| "-static"));
            compile.arg(root().join("ffi-tests/consumer").join(source)).arg("-o").arg(&program);
            run(compile.args(query(&[&["--cflags", "--libs"], linking].concat())));
            check_program(&program, libdir, name == "shared");
        }
    }
}

fn cmake(prefix: &Path, build: &Path, wanted: &str) -> Command {
    let mut cmake = Command::new("cmake");
    cmake.arg("-S").arg(root().join("ffi-tests/consumer")).arg("-B").arg(build);
    cmake.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display())).arg(format!("-DWANTED={wanted}"));
    cmake
}

fn by_cmake(prefix: &Path, libdir: &Path, build: &Path) {
    let configured = run(&mut cmake(prefix, build, &version()));
    assert!(configured.contains(&format!("found lava {}", version())), "{configured}");
    run(Command::new("cmake").arg("--build").arg(build));
    for program in ["c-lava", "cpp-lava", "c-static", "cpp-static"] {
        check_program(&build.join(program), libdir, program.ends_with("lava"));
    }
    // Another major version, or a later one, is refused, and CMake says what it found.
    for wanted in ["999.0", &format!("{}.999", version().split('.').next().unwrap())] {
        let refused = cmake(prefix, &build.join("refused"), wanted).output().unwrap();
        let why = String::from_utf8_lossy(&refused.stderr);
        let found = format!("version: {}", version());
        assert!(!refused.status.success() && why.contains(&found), "lava {wanted}: {why}");
    }
}

/// pkg-config and CMake name the libraries that rustc says a static library of its needs. Here, glibc may have them all in one,
/// and a program links without.
fn check_static_libraries(libdir: &Path, out: &Path) {
    let source = out.join("empty.rs");
    std::fs::write(&source, "").unwrap();
    let mut rustc = Command::new("rustc");
    rustc.args(["--crate-type", "staticlib", "--print", "native-static-libs", "-o"]);
    let output = rustc.arg(out.join("empty.a")).arg(&source).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let list = text.lines().find_map(|line| line.split("native-static-libs:").nth(1)).expect(&text);
    // cc adds these itself; the first has no static form.
    let theirs: BTreeSet<_> = list.split_whitespace().filter(|l| !["-lgcc_s", "-lc"].contains(l)).collect();
    let pc = std::fs::read_to_string(libdir.join("pkgconfig/lava.pc")).unwrap();
    let private = pc.lines().find_map(|line| line.strip_prefix("Libs.private:")).unwrap();
    assert!(private.split_whitespace().collect::<BTreeSet<_>>().is_superset(&theirs), "{private}: {list}");
    let cmake = std::fs::read_to_string(libdir.join("cmake/lava/lava-config.cmake")).unwrap();
    let linked = cmake.split("INTERFACE_LINK_LIBRARIES \"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(linked.split(';').map(|l| format!("-l{l}")).collect::<Vec<_>>().join(" "), private.trim());
}

/// Everything by both, after the installed tree was moved from where it was installed to.
fn check_installed(installed: &Path, libdir: &str, out: &Path) {
    assert_eq!(tree(installed), expected(libdir));
    let moved = out.join("moved");
    std::fs::rename(installed, &moved).unwrap();
    let (libdir, build) = (moved.join(libdir), out.join("build"));
    std::fs::create_dir(&build).unwrap();
    check_static_libraries(&libdir, &build);
    by_pkg_config(&libdir, &build);
    by_cmake(&moved, &libdir, &build.join("cmake"));
}

/// Once: two tests at a time would wait for apt's lock in vain.
fn bring_programs() {
    static BROUGHT: Once = Once::new();
    BROUGHT.call_once(|| {
        run(Command::new("sh").arg(root().join("ffi-tests/programs.sh")).args(["pkg-config", "cmake"]));
    });
}

#[test]
fn a_prefix_that_the_user_chooses() {
    bring_programs();
    let out = scratch("install-prefix");
    let prefix = out.join("prefix");
    run(&mut make("install", &[format!("PREFIX={}", prefix.display())]));
    check_installed(&prefix, "lib", &out);
}

#[test]
fn uninstall_removes_what_was_installed_and_nothing_else() {
    let prefix = scratch("uninstall").join("prefix");
    let variables = [format!("PREFIX={}", prefix.display()), format!("LIBDIR={}/lib64", prefix.display())];
    run(&mut make("install", &variables));
    assert_eq!(tree(&prefix), expected("lib64"));
    let others = ["include/other.h", "lib64/pkgconfig/other.pc", "lib64/liblava.so.999"].map(str::to_owned);
    others.iter().for_each(|file| std::fs::write(prefix.join(file), "").unwrap());

    // Another version is left alone.
    let pc = prefix.join("lib64/pkgconfig/lava.pc");
    let own = std::fs::read_to_string(&pc).unwrap();
    std::fs::write(&pc, own.replace(&version(), "999.0.0")).unwrap();
    let before = tree(&prefix);
    let refused = make("uninstall", &variables).output().unwrap();
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("999.0.0"), "{why}");
    assert_eq!(tree(&prefix), before);
    std::fs::write(&pc, own).unwrap();

    // Twice: it is no error if nothing is left to remove.
    for _ in 0..2 {
        run(&mut make("uninstall", &variables));
        assert_eq!(tree(&prefix), others.clone().into());
    }
    let folders = run(Command::new("find").current_dir(&prefix).args([".", "-type", "d", "-name", "lava"]));
    assert_eq!(folders, "", "folders of lava's own");
}

/// FEATURES=cuda adds two headers. The libraries here are built without it: the script only looks at the variable.
#[test]
fn headers_of_a_feature() {
    let prefix = scratch("install-feature").join("prefix");
    run(&mut make("lib", &[]));
    let script = |task: &str, features: &str| {
        let mut script = Command::new("sh");
        script.arg(root().join("include/install/install.sh")).arg(task);
        script.env("VERSION", version()).env("PREFIX", &prefix).env("FEATURES", features);
        run(script.env_remove("DESTDIR").env_remove("LIBDIR").env_remove("INCLUDEDIR"));
    };
    script("install", "cuda");
    let mut wanted = expected("lib");
    wanted.extend(["include/lava_cuda.h", "include/lava_cuda.hpp"].map(str::to_owned));
    assert_eq!(tree(&prefix), wanted);
    let source = prefix.with_file_name("engine.cpp");
    std::fs::write(
        &source,
        "#include <lava_cuda.hpp>\nint main() { lava::cuda::context gpu; gpu.destroy(); }\n",
    )
    .unwrap();
    for standard in ["-std=c++17", "-std=c++20"] {
        let mut compile = Command::new("g++");
        compile.args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I"]);
        run(compile.arg(prefix.join("include")).arg(&source));
    }
    // Whoever uninstalls need not know what was installed.
    script("uninstall", "");
    assert_eq!(tree(&prefix), BTreeSet::new());
}

/// As a distribution does it: staged, with libraries in a folder of their architecture.
#[test]
fn a_packagers_stage() {
    bring_programs();
    let out = scratch("install-stage");
    let stage = out.join("stage");
    let libdir = format!("lib/{}", run(Command::new("gcc").arg("-print-multiarch")).trim());
    let variables =
        [format!("DESTDIR={}", stage.display()), "PREFIX=/usr".into(), format!("LIBDIR=/usr/{libdir}")];
    run(&mut make("install", &variables));
    assert_eq!(std::fs::read_dir(&stage).unwrap().count(), 1, "all is below /usr");
    check_installed(&stage.join("usr"), libdir.trim_end_matches('/'), &out);
}
