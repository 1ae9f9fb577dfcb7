//! One carver: the same code counts a stage's bytes and places its buffers in the caller's memory.
//!
//! A stage describes its buffers once, as calls of [`Carver::take`]. Over no memory the calls count; over the caller's
//! memory they return slices. So the size a caller is told and the size that is used cannot drift apart. What a carver has
//! placed, a [`Reader`] finds again without writing.

use core::marker::PhantomData;
use core::ops::{Deref, Range};

use crate::error::{Error, ErrorKind, Result, ensure};

/// Workspaces and states must be aligned to this; `malloc` does so.
pub const WORKSPACE_ALIGN: usize = 16;

/// Each buffer begins on a new cache line, counted from the workspace's start.
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
pub trait Plain: Copy + sealed::Sealed + 'static {}
impl Plain for u8 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for f32 {}
impl Plain for f64 {}

/// A block of memory from which buffers are taken one after the other: to be written ([`Carver`]), or only read ([`Reader`]).
pub(crate) trait Block<'a> {
    /// A buffer of elements.
    type Buffer<T: Plain>: Deref<Target = [T]>;

    /// The next `n` elements.
    fn take<T: Plain>(&mut self, n: usize) -> Result<Self::Buffer<T>>;
}

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
        // NULL is a workspace too if nothing is needed.
        let base = if base.is_null() && size == 0 {
            core::ptr::without_provenance_mut(WORKSPACE_ALIGN)
        } else {
            base
        };
        check_base(base)?;
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
        let range = next::<T>(&mut self.used, n)?;
        if self.base.is_null() {
            return Ok(&mut []);
        }
        ensure(range.end <= self.size, ErrorKind::Workspace, c"workspace")?;
        let at = self.base.wrapping_add(range.start) as *mut T;
        // SAFETY: `next` gives n aligned elements to nobody else, and they end inside the block. All zeros is a value of every
        // Plain type, and so are the bytes that an earlier carver wrote; either way the memory is initialised before the
        // slice is made.
        unsafe {
            if !self.keep {
                at.write_bytes(0, n);
            }
            Ok(core::slice::from_raw_parts_mut(at, n))
        }
    }

    /// Bytes taken so far.
    pub fn used(&self) -> usize {
        self.used
    }
}

impl<'a> Block<'a> for Carver<'a> {
    type Buffer<T: Plain> = &'a mut [T];

    fn take<T: Plain>(&mut self, n: usize) -> Result<&'a mut [T]> {
        Carver::take(self, n)
    }
}

/// Reads what a [`Carver`] has carved and filled. It writes nothing and claims nothing for itself: several may read the same
/// memory at a time, and slices of an earlier one stay valid.
pub struct Reader<'a> {
    base: *const u8,
    used: usize,
    size: usize,
    _memory: PhantomData<&'a [u8]>,
}

impl<'a> Reader<'a> {
    /// Reads `memory`.
    pub fn over(memory: &'a [u8]) -> Result<Self> {
        // SAFETY: the slice is borrowed for 'a, and initialised as every slice is.
        unsafe { Self::over_raw(memory.as_ptr(), memory.len()) }
    }

    /// Reads `size` bytes from `base`.
    ///
    /// # Safety
    /// The bytes must be readable for `'a` and written by nobody meanwhile, and an earlier carver's `take` calls must have covered
    /// what this one's will.
    pub unsafe fn over_raw(base: *const u8, size: usize) -> Result<Self> {
        check_base(base)?;
        Ok(Self { base, used: 0, size, _memory: PhantomData })
    }

    /// Checks that there are `size` bytes in all.
    pub(crate) fn holds(&self, size: usize) -> Result<()> {
        ensure(size <= self.size, ErrorKind::Workspace, c"workspace")
    }

    /// The next `n` elements.
    pub fn take<T: Plain>(&mut self, n: usize) -> Result<&'a [T]> {
        let range = next::<T>(&mut self.used, n)?;
        ensure(range.end <= self.size, ErrorKind::Workspace, c"workspace")?;
        let at = self.base.wrapping_add(range.start) as *const T;
        // SAFETY: n aligned elements inside the block, which an earlier carver has initialised; every bit pattern is a T.
        Ok(unsafe { core::slice::from_raw_parts(at, n) })
    }
}

impl<'a> Block<'a> for Reader<'a> {
    type Buffer<T: Plain> = &'a [T];

    fn take<T: Plain>(&mut self, n: usize) -> Result<&'a [T]> {
        Reader::take(self, n)
    }
}

fn check_base(base: *const u8) -> Result<()> {
    ensure(!base.is_null(), ErrorKind::Null, c"workspace")?;
    ensure((base as usize).is_multiple_of(WORKSPACE_ALIGN), ErrorKind::Alignment, c"workspace")
}

/// Bytes of the next `n` elements after `used`, which moves to where the buffer after them begins. Where `used` begins on a step,
/// elements are aligned to it; the range ends on a step too.
fn next<T: Plain>(used: &mut usize, n: usize) -> Result<Range<usize>> {
    let end = n
        .checked_mul(size_of::<T>())
        .and_then(|bytes| used.checked_add(bytes))
        .and_then(|end| end.checked_next_multiple_of(STEP))
        .filter(|&end| end <= isize::MAX as usize)
        .ok_or(Error::new(ErrorKind::Overflow, c"workspace"))?;
    Ok(core::mem::replace(used, end)..end)
}

/// Bytes that `carve` takes.
pub(crate) fn size_of_carve<T>(carve: impl FnOnce(&mut Carver<'static>) -> Result<T>) -> Result<usize> {
    let mut counter = Carver::counting();
    carve(&mut counter)?;
    Ok(counter.used())
}
