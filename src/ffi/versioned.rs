//! Structs of any version: fields that an older caller lacks are read as zero, and writing stops where the caller's version ends.

use core::ffi::CStr;
use core::mem::{MaybeUninit, align_of, size_of};

use crate::error::{ErrorKind, Result, ensure};

/// A struct whose first field is `struct_size: u32` and which grows at its end.
///
/// # Safety
/// `repr(C)`, `struct_size` first, and every bit pattern is a value.
pub(crate) unsafe trait Versioned: Copy {
    /// Size of its first version.
    const FIRST_SIZE: usize;
}

/// Larger than any struct will be: so an uninitialised `struct_size` is not taken for a newer caller's.
const MAX_STRUCT_SIZE: usize = 4096;

pub(crate) fn check_pointer<T>(p: *const T, name: &'static CStr) -> Result<()> {
    ensure(!p.is_null(), ErrorKind::Null, name)?;
    ensure((p as usize).is_multiple_of(align_of::<T>()), ErrorKind::Alignment, name)
}

/// The struct's size as the caller knows it.
///
/// # Safety
/// `p` must be NULL or point to a struct with its `struct_size` set.
pub(crate) unsafe fn struct_size<T: Versioned>(p: *const T, name: &'static CStr) -> Result<usize> {
    check_pointer(p, name)?;
    // SAFETY: not NULL, aligned; the caller promises the first field.
    let size = unsafe { (p as *const u32).read() } as usize;
    ensure((T::FIRST_SIZE..=MAX_STRUCT_SIZE).contains(&size), ErrorKind::StructSize, name)?;
    Ok(size)
}

/// Reads a struct of an older, the same or a newer version.
///
/// # Safety
/// `p` must be NULL or point to as many readable bytes as its `struct_size` says.
pub(crate) unsafe fn read_struct<T: Versioned>(p: *const T, name: &'static CStr) -> Result<T> {
    // SAFETY: the caller's promise.
    let size = unsafe { struct_size(p, name)? };
    let known = size.min(size_of::<T>());
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `size` bytes are readable, `known` of them fit into `value`; any bit pattern is a T.
    let (value, tail) = unsafe {
        core::ptr::copy_nonoverlapping(p as *const u8, value.as_mut_ptr() as *mut u8, known);
        (value.assume_init(), core::slice::from_raw_parts((p as *const u8).add(known), size - known))
    };
    ensure(tail.iter().all(|&b| b == 0), ErrorKind::StructSize, name)?;
    Ok(value)
}

/// The same, and `None` for NULL.
///
/// # Safety
/// As for [`read_struct`].
pub(crate) unsafe fn read_option<T: Versioned>(p: *const T, name: &'static CStr) -> Result<Option<T>> {
    // SAFETY: the caller's promise.
    if p.is_null() { Ok(None) } else { unsafe { read_struct(p, name).map(Some) } }
}

/// Checks an out-struct before any work is done.
///
/// # Safety
/// As for [`read_struct`].
pub(crate) unsafe fn check_out_struct<T: Versioned>(p: *mut T, name: &'static CStr) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { struct_size(p, name).map(|_| ()) }
}

/// Writes as much of `value` as the caller's version has, and keeps the caller's `struct_size`.
///
/// # Safety
/// `p` must have passed [`check_out_struct`] and be writable.
pub(crate) unsafe fn write_struct<T: Versioned>(p: *mut T, value: T) {
    // SAFETY: checked: aligned, `struct_size` bytes long; the first four bytes are the size itself.
    unsafe {
        let known = ((p as *const u32).read() as usize).min(size_of::<T>());
        let from = &raw const value as *const u8;
        core::ptr::copy_nonoverlapping(from.add(4), (p as *mut u8).add(4), known - 4);
    }
}
