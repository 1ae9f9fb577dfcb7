//! The whole method in plain f64 loops: the oracle of every test, and the place to read what is computed.
//!
//! Nothing here is fast or shares code with the stages it checks. Arrays are nested the way the formulas index them.
//!
//! | file | |
//! |---|---|
//! | `reference/score.rs` | stages 1 to 5, statistics, attention |
//! | `reference/decide.rs` | entropy, budgets, selection |
//!
//! Source: arXiv 2509.09754; stage numbers as in `docs/method.md`.

mod decide;
mod score;

pub use decide::*;
pub use score::*;
