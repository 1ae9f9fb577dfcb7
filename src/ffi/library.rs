//! What the library is: version, statuses in words, kernels.

use core::ffi::c_char;
use core::ptr::null;

use super::call::status_message;
use super::checked::backend;
use super::types::*;

/// The version as a number: major * 10000 + minor * 100 + patch. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lava_version() -> u32 {
    const PARTS: [&str; 3] =
        [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"), env!("CARGO_PKG_VERSION_PATCH")];
    let number = |digits: &str| digits.bytes().fold(0, |n, digit| n * 10 + (digit - b'0') as u32);
    PARTS.iter().fold(0, |n, part| n * 100 + number(part))
}

/// The version as text, static, such as "0.1.0". Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lava_version_string() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr() as *const c_char
}

/// A status in words, static, never NULL; "unknown status" for any other number. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lava_status_string(status: lava_status) -> *const c_char {
    status_message(status).as_ptr()
}

/// Name of the kernels with this LAVA_BACKEND_ number, static, such as "avx2"; of LAVA_BACKEND_BEST, of those that are chosen. NULL
/// where this machine cannot run them, or none have this number. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lava_backend_name(number: i32) -> *const c_char {
    backend(number).map_or(null(), |b| b.kernels.name.as_ptr())
}
