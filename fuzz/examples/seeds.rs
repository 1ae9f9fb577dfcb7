//! Works on the committed seeds, `seeds/TARGET.hex`:
//!
//!     seeds add TARGET FILE...    adds the contents of files, such as fuzz/artifacts/TARGET/crash-...
//!     seeds unpack FOLDER         writes each seed to a file, FOLDER/TARGET/LINE, for a fuzzer to start from

use lava_fuzz::{TARGETS, seeds};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["add", target, ref files @ ..] if !files.is_empty() && is_target(target) => add(target, files),
        ["unpack", folder] => unpack(Path::new(folder)),
        _ => Err(format!(
            "usage: seeds add TARGET FILE... | seeds unpack FOLDER\ntargets: {}",
            names().join(" ")
        )),
    };
    result.map_or_else(
        |why| {
            eprintln!("{why}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

fn names() -> Vec<&'static str> {
    TARGETS.iter().map(|target| target.0).collect()
}

fn is_target(name: &str) -> bool {
    names().contains(&name)
}

fn add(target: &str, files: &[&str]) -> Result<(), String> {
    for file in files {
        let seed = std::fs::read(file).map_err(|e| format!("{file}: {e}"))?;
        let added =
            seeds::add(target, &seed).map_err(|e| format!("{}: {e}", seeds::file(target).display()))?;
        println!("{file}: {}", if added { "added" } else { "already there" });
    }
    Ok(())
}

/// What an earlier call has left is removed: otherwise a deleted seed would come back through the folder.
fn unpack(folder: &Path) -> Result<(), String> {
    for target in names() {
        let folder = folder.join(target);
        let told = |e: std::io::Error| format!("{}: {e}", folder.display());
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(told)?;
        }
        std::fs::create_dir_all(&folder).map_err(told)?;
        for (i, seed) in seeds::read(target).iter().enumerate() {
            std::fs::write(folder.join(format!("{:03}", i + 1)), seed).map_err(told)?;
        }
    }
    Ok(())
}
