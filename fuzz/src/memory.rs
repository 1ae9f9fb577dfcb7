//! Memory between guard pages: a byte read or written beyond it is a signal.
//!
//! A block touches the page before it or the page after it; on its other side there is poison, which is checked when
//! the block is dropped. Under Miri, which sees every access, a block is an allocation of its size, aligned as it would be here.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr::null_mut;

/// What fresh memory holds.
pub const POISON: u8 = 0xA5;
/// Bytes between the guard pages.
pub const CAPACITY: usize = 4 << 20;
/// Poison that is checked.
const MARGIN: usize = 256;
const PAGE: usize = 4096;

thread_local! {
    /// Mapped once, used again and again.
    static FREE: RefCell<Vec<*mut u8>> = const { RefCell::new(Vec::new()) };
}

fn map() -> *mut u8 {
    // SAFETY: fresh anonymous memory, two pages larger than what is then opened in its middle.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let base = libc::mmap(null_mut(), CAPACITY + 2 * PAGE, libc::PROT_NONE, flags, -1, 0);
        assert!(base != libc::MAP_FAILED, "mmap of {CAPACITY} bytes");
        let open = (base as *mut u8).add(PAGE);
        assert_eq!(libc::mprotect(open as *mut c_void, CAPACITY, libc::PROT_READ | libc::PROT_WRITE), 0);
        open
    }
}

/// Miri's way.
fn allocation(len: usize, side: Side) -> Layout {
    let back = if len == 0 { PAGE } else { PAGE.min(1 << len.trailing_zeros()) };
    Layout::from_size_align(len.max(1), if side == Side::Front { PAGE } else { back }).expect("a layout")
}

/// Which guard page a block touches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Side {
    Front,
    Back,
}

/// Bytes against a guard page, poison at first. Aligned like the page where they touch the front; at the back their end is,
/// and `len` decides.
pub struct Block {
    map: *mut u8,
    at: *mut u8,
    len: usize,
    side: Side,
}

impl Block {
    pub fn new(len: usize, side: Side) -> Self {
        assert!(len <= CAPACITY, "{len} bytes are more than a block holds");
        let map = match cfg!(miri) {
            // SAFETY: not of size zero.
            true => unsafe { alloc(allocation(len, side)) },
            false => FREE.with_borrow_mut(Vec::pop).unwrap_or_else(map),
        };
        let at = if side == Side::Front || cfg!(miri) { map } else { map.wrapping_add(CAPACITY - len) };
        let block = Self { map, at, len, side };
        for (start, n) in [block.margin(), (at, len)] {
            // SAFETY: between the guard pages, and nobody else's.
            unsafe { start.write_bytes(POISON, n) };
        }
        block
    }

    /// With `values` in it.
    pub fn of<T: Copy>(values: &[T], side: Side) -> Self {
        let block = Self::new(size_of_val(values), side);
        block.fill(values);
        block
    }

    pub fn fill<T: Copy>(&self, values: &[T]) {
        assert!(size_of_val(values) <= self.len);
        // SAFETY: as long as the values (checked); bytes need no alignment.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr() as *const u8, self.at, size_of_val(values)) };
    }

    /// The poison on the side without a guard page.
    fn margin(&self) -> (*mut u8, usize) {
        let n = if cfg!(miri) { 0 } else { MARGIN.min(CAPACITY - self.len) };
        match self.side {
            Side::Front => (self.at.wrapping_add(self.len), n),
            Side::Back => (self.at.wrapping_sub(n), n),
        }
    }

    pub fn ptr<T>(&self) -> *mut T {
        self.at as *mut T
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped, initialised, and this thread writes it only between two uses of such slices.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    /// The block as elements.
    pub fn slice<T: Copy>(&self) -> &[T] {
        assert!((self.at as usize).is_multiple_of(align_of::<T>()));
        // SAFETY: as for `bytes`; aligned, just checked; of a plain number type.
        unsafe { std::slice::from_raw_parts(self.ptr::<T>(), self.len / size_of::<T>()) }
    }

    /// A copy as elements.
    pub fn to_vec<T: Copy>(&self) -> Vec<T> {
        let n = self.len / size_of::<T>();
        // SAFETY: n elements of a plain number type lie in the block; read without asking for alignment.
        (0..n).map(|i| unsafe { self.ptr::<T>().add(i).read_unaligned() }).collect()
    }

    /// The block as a slice to write, for the Rust functions.
    #[expect(clippy::mut_from_ref, reason = "the block is as shared as C's memory")]
    pub fn slice_mut<T: Copy>(&self) -> &mut [T] {
        assert!((self.at as usize).is_multiple_of(align_of::<T>()));
        // SAFETY: aligned (checked), mapped, initialised; the targets hold no two such slices at a time.
        unsafe { std::slice::from_raw_parts_mut(self.ptr::<T>(), self.len / size_of::<T>()) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let (start, n) = self.margin();
        // SAFETY: mapped and filled by `new`.
        let margin = unsafe { std::slice::from_raw_parts(start, n) };
        if !std::thread::panicking() {
            assert!(margin.iter().all(|&b| b == POISON), "written next to a block of {} bytes", self.len);
        }
        match cfg!(miri) {
            // SAFETY: allocated so by `new`.
            true => unsafe { dealloc(self.map, allocation(self.len, self.side)) },
            false => FREE.with_borrow_mut(|free| free.push(self.map)),
        }
    }
}
