//! The shared library exports the header's functions and nothing else.

use ffi_tests::library::{declared, run, shared};
use std::collections::BTreeSet;
use std::process::Command;

#[test]
fn exported_symbols_are_the_declared_functions() {
    let symbols = run(Command::new("nm").args(["-D", "--defined-only"]).arg(shared()));
    let exported: BTreeSet<_> = symbols.lines().map(|l| l.rsplit(' ').next().unwrap().to_owned()).collect();
    assert!(exported.len() > 10, "{symbols}");
    assert_eq!(exported, declared());
}
