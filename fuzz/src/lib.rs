//! The fuzz targets, each a function of bytes that panics on a finding. libFuzzer calls them (`make fuzz`), and so does plain
//! `cargo test` with the committed seeds and its own random stream (`tests/smoke.rs`).
//!
//! | target | what it asks |
//! |---|---|
//! | [`abi`] | any arguments to any function: a documented status, and no byte written that the header does not allow |
//! | [`score`] | every backend's scores against the f64 reference, and the C function's, in any split |
//! | [`select_compact`] | selection, entropy, budgets and compaction against sorting and exact integers |
//! | [`cascade`] | layer by layer the same bits as all at once, with states that are copied, dropped and started again; and by ranks ([`ranks`]) |
//! | [`attend`] | every backend's attention against the f64 reference, and the C function's, in any split |
//!
//! A case that has found something becomes a seed by `make fuzz-seed` ([`seeds`]).
//!
//! All memory that the library sees borders on a page that cannot be touched ([`memory`]).

pub mod abi;
pub mod attend;
pub mod cascade;
pub mod choices;
pub mod memory;
pub mod ranks;
pub mod score;
pub mod seeds;
pub mod select_compact;
pub mod tensors;

/// A target's name and entry point.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 5] = [
    ("abi", abi::run),
    ("score", score::run),
    ("select_compact", select_compact::run),
    ("cascade", cascade::run),
    ("attend", attend::run),
];
