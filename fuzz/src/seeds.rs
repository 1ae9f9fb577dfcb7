//! The committed seeds: `seeds/TARGET.hex` has one per line, its bytes in hexadecimal. Everything that needs them reads them here, and
//! `examples/seeds.rs` adds one or writes each to its own file.

use std::path::{Path, PathBuf};

/// Where the seeds of a target are.
pub fn file(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target).with_extension("hex")
}

/// The seeds of a target, the first line's first. Panics if the file is not there or a line is not hexadecimal.
pub fn read(target: &str) -> Vec<Vec<u8>> {
    let path = file(target);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let seeds = text.lines().enumerate().map(|(i, line)| {
        bytes(line).unwrap_or_else(|| panic!("{}, line {}: not hexadecimal", path.display(), i + 1))
    });
    seeds.collect()
}

/// Adds a seed as the last line. False if it is there already.
pub fn add(target: &str, seed: &[u8]) -> std::io::Result<bool> {
    let mut seeds = read(target);
    if seeds.iter().any(|known| known == seed) {
        return Ok(false);
    }
    seeds.push(seed.to_vec());
    std::fs::write(file(target), seeds.iter().map(|seed| line(seed) + "\n").collect::<String>())?;
    Ok(true)
}

fn line(seed: &[u8]) -> String {
    seed.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(line: &str) -> Option<Vec<u8>> {
    let pairs = line.as_bytes().chunks(2).map(|pair| match *pair {
        [high, low] => {
            let digit = |c: u8| (c as char).to_digit(16);
            Some((digit(high)? * 16 + digit(low)?) as u8)
        }
        _ => None,
    });
    pairs.collect()
}

#[test]
fn a_line_is_a_seed() {
    assert_eq!(bytes("00ff7A"), Some(vec![0, 255, 0x7a]));
    assert_eq!(bytes(""), Some(vec![]));
    assert_eq!((bytes("0"), bytes("0g"), bytes("é")), (None, None, None));
    for (target, _) in crate::TARGETS {
        let seeds = read(target);
        assert!(seeds.iter().all(|seed| bytes(&line(seed)).as_ref() == Some(seed)));
        assert!(
            seeds.iter().enumerate().all(|(i, seed)| !seeds[..i].contains(seed)),
            "{target}: a seed twice"
        );
    }
}
