//! The whole method in plain f64 loops.
