//! What a freestanding program needs from us when there is no Rust runtime.

/// The core is written not to panic. If it does all the same, stopping at once is the only thing that cannot make it worse:
/// there is nothing to unwind to.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {
        // SAFETY: the instruction traps; it touches no memory.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            core::arch::asm!("ud2")
        };
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            core::arch::asm!("brk #1")
        };
    }
}

/// The precompiled `core` names this symbol; with `panic = "abort"` nothing calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
