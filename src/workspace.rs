//! One carver: the same code counts a stage's bytes and places its buffers in the caller's memory.
//!
//! A stage describes its buffers once, as calls of [`Carver::take`]. Over no memory the calls count; over the caller's
//! memory they return slices. So the size a caller is told and the size that is used cannot drift apart.

use core::marker::PhantomData;

use crate::error::{Error, ErrorKind, Result, ensure};

/// Workspaces and states must be aligned to this; `malloc` does so.
pub const WORKSPACE_ALIGN: usize = 16;

/// Each buffer begins on a cache line of its own, counted from the workspace's start.
const STEP: usize = 64;

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// Types for which every bit pattern is a value, all zeros in particular.
pub trait Plain: Copy + sealed::Sealed {}
impl Plain for u8 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for f32 {}
impl Plain for f64 {}

/// Counts bytes, or hands out pieces of one block of memory.
pub struct Carver<'a> {
    base: *mut u8,
    used: usize,
    size: usize,
    keep: bool,
    _memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Carver<'a> {
    /// Counts only: every `take` returns an empty slice.
    pub fn counting() -> Self {
        Self { base: core::ptr::null_mut(), used: 0, size: 0, keep: false, _memory: PhantomData }
    }

    /// Carves `memory`.
    pub fn over(memory: &'a mut [u8]) -> Result<Self> {
        // SAFETY: the slice is borrowed mutably for 'a.
        unsafe { Self::over_raw(memory.as_mut_ptr(), memory.len()) }
    }

    /// Carves `size` bytes from `base`.
    ///
    /// # Safety
    /// The bytes must be writable for `'a` and used by nobody else. They need not be initialised.
    pub unsafe fn over_raw(base: *mut u8, size: usize) -> Result<Self> {
        // Nothing is a workspace too, where nothing is needed.
        let base = if base.is_null() && size == 0 {
            core::ptr::without_provenance_mut(WORKSPACE_ALIGN)
        } else {
            base
        };
        ensure(!base.is_null(), ErrorKind::Null, c"workspace")?;
        ensure((base as usize).is_multiple_of(WORKSPACE_ALIGN), ErrorKind::Alignment, c"workspace")?;
        Ok(Self { base, used: 0, size, keep: false, _memory: PhantomData })
    }

    /// Carves again what an earlier carver over the same memory carved, and keeps its contents.
    ///
    /// # Safety
    /// As for `over_raw`; and the earlier carver's `take` calls must have covered what this one's will.
    pub unsafe fn reopen_raw(base: *mut u8, size: usize) -> Result<Self> {
        // SAFETY: the caller's promise.
        let carver = unsafe { Self::over_raw(base, size)? };
        Ok(Self { keep: true, ..carver })
    }

    /// The next `n` elements: zeroed, or as they were left where the memory was reopened.
    pub fn take<T: Plain>(&mut self, n: usize) -> Result<&'a mut [T]> {
        let Some(at) = self.place::<T>(n)? else { return Ok(&mut []) };
        // SAFETY: `place` gives n aligned elements inside the block to nobody else. All zeros is a value of every Plain
        // type, and so are the bytes that an earlier carver wrote; either way the memory is initialised before the
        // slice is made.
        unsafe {
            if !self.keep {
                at.write_bytes(0, n);
            }
            Ok(core::slice::from_raw_parts_mut(at, n))
        }
    }

    /// Address of the next `n` elements, `None` where only counting.
    fn place<T: Plain>(&mut self, n: usize) -> Result<Option<*mut T>> {
        let end = n
            .checked_mul(size_of::<T>())
            .and_then(|bytes| self.used.checked_add(bytes))
            .and_then(|end| end.checked_next_multiple_of(STEP))
            .filter(|&end| end <= isize::MAX as usize)
            .ok_or(Error::new(ErrorKind::Overflow, c"workspace"))?;
        let start = core::mem::replace(&mut self.used, end);
        if self.base.is_null() {
            return Ok(None);
        }
        ensure(end <= self.size, ErrorKind::Workspace, c"workspace")?;
        Ok(Some(self.base.wrapping_add(start) as *mut T))
    }

    /// Bytes taken so far.
    pub fn used(&self) -> usize {
        self.used
    }
}

/// Bytes that `carve` takes.
pub(crate) fn size_of_carve<T>(carve: impl FnOnce(&mut Carver<'static>) -> Result<T>) -> Result<usize> {
    let mut counter = Carver::counting();
    carve(&mut counter)?;
    Ok(counter.used())
}
