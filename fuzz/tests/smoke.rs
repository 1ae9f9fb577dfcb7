//! The fuzz targets without a fuzzer: every committed seed, then a random stream, the same in every run, for LAVA_FUZZ_SECONDS
//! (10) seconds per target: `make fuzz-smoke`, a part of `make check-all`.

use lava_fuzz::TARGETS;
use lava_fuzz::choices::Random;
use lava_fuzz::seeds;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The current case: seed, or number in the stream. Printed when a signal ends the process.
static AT: AtomicU64 = AtomicU64::new(0);

/// A case of the random stream.
fn stream(target: &str, i: u64) -> Vec<u8> {
    let mut random = Random((target.len() as u64 * 0x1_0000_0001) ^ i);
    (0..random.below(120)).map(|_| random.bits() as u8).collect()
}

extern "C" fn on_signal(signal: i32) {
    // Not all of this may be done in a handler. The process is lost either way, and this says where to look.
    let text = format!("\nsignal {signal} in case {} of the stream, or a seed\n", AT.load(Ordering::Relaxed));
    // SAFETY: writes the text, and ends the process.
    unsafe {
        libc::write(2, text.as_ptr() as *const libc::c_void, text.len());
        libc::_exit(128 + signal)
    };
}

/// One target at a time, so that each has its seconds and a signal its case.
fn smoke(name: &str) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Miri reports such things itself.
    for signal in
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE].into_iter().filter(|_| !cfg!(miri))
    {
        // SAFETY: a handler of the right type.
        unsafe { libc::signal(signal, on_signal as extern "C" fn(i32) as usize) };
    }
    let run = TARGETS.iter().find(|target| target.0 == name).expect("a target").1;
    let seconds = std::env::var("LAVA_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(10);
    let mut n_seeds = 0;
    // Miri takes seconds for a case, up to half a minute.
    let step = if cfg!(miri) { 12 } else { 1 };
    for (i, seed) in seeds::read(name).iter().enumerate().step_by(step) {
        guarded(run, seed, || {
            eprintln!("{name}: the seed in line {} of {}", i + 1, seeds::file(name).display())
        });
        n_seeds += 1;
    }
    assert!(n_seeds > 0, "no seeds in {}", seeds::file(name).display());
    let (start, mut told, mut i) = (Instant::now(), Instant::now(), 0u64);
    while start.elapsed() < Duration::from_secs(seconds) {
        AT.store(i, Ordering::Relaxed);
        let data = stream(name, i);
        guarded(run, &data, || eprintln!("{name}: case {i} of the stream: {data:?}"));
        i += 1;
        if told.elapsed() > Duration::from_secs(2) {
            // Past the test's captured output: a line for people.
            let _ = write!(std::io::stderr(), "\r{name}: {i} cases");
            told = Instant::now();
        }
    }
    println!("{name:<16} {n_seeds:>4} seeds {i:>9} cases");
}

/// Runs a case; one that panics is printed first.
fn guarded(run: fn(&[u8]), data: &[u8], tell: impl FnOnce()) {
    if let Err(panic) = std::panic::catch_unwind(|| run(data)) {
        tell();
        std::panic::resume_unwind(panic);
    }
}

macro_rules! smoke {
    ($($target:ident)*) => { $(#[test] fn $target() { smoke(stringify!($target)); })* };
}
smoke! { abi score select_compact cascade attend }
