//! The C libraries, built as a user builds them, and the compilers that use them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The project's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Runs a command that must succeed and returns what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let print = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        print(&output.stdout),
        print(&output.stderr)
    );
    print(&output.stdout)
}

/// Whether a program is installed.
pub fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success())
}

/// An empty folder for one test's files.
pub fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("OUT_DIR")).join("scratch").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn build(crate_type: &str, profile: &str, more: &[&str]) -> PathBuf {
    let target = root().join("target/capi");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.arg("rustc").arg("--manifest-path").arg(root().join("Cargo.toml"));
    cargo.args(["--package", "lava-kv", "--lib", "--profile", profile, "--crate-type", crate_type]);
    run(cargo.arg("--target-dir").arg(&target).args(more));
    target.join(profile).join(if crate_type == "cdylib" { "liblava.so" } else { "liblava.a" })
}

/// Names that the headers declare as functions of the library. Their inline functions are `static`.
pub fn declared() -> BTreeSet<String> {
    let read = |name| std::fs::read_to_string(root().join("include").join(name)).unwrap();
    let header = ["lava.h", "lava_methods.h", "lava_ranks.h"].map(read).concat();
    let starts = |line: &&str| line.contains('(') && !line.starts_with([' ', '/', '*', '#']);
    let declarations = header.lines().filter(starts).filter(|line| !line.starts_with("static"));
    let name = |line: &str| line.split('(').next().unwrap().rsplit([' ', '*']).next().unwrap().to_owned();
    declarations.map(name).filter(|name| name.starts_with("lava_")).collect()
}

/// The shared library, built as `make lib` does it.
pub fn shared() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    // SAFETY: takes nothing.
    let soname = format!("link-arg=-Wl,-soname,liblava.so.{}", unsafe { crate::lava_version() } / 10000);
    LIBRARY.get_or_init(|| build("cdylib", "capi", &["--", "-C", &soname]))
}

/// The static library.
pub fn fixed() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| build("staticlib", "capi", &[]))
}

/// The static library without `std`.
pub fn freestanding() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    let features = ["--no-default-features", "--features", "ffi-panic-handler"];
    LIBRARY.get_or_init(|| build("staticlib", "nostd", &features))
}
