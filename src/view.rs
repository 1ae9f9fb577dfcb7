//! The only way a stage sees a caller's buffer: a pointer with its element type, shape and strides, checked once.
//!
//! A tensor is `[rows, heads, dim]`. Row `r` of head `h` starts at element
//! `row_start[h] · stride_token + h · stride_head + r · stride_token`, its elements `stride_dim` apart. So one
//! description covers token-major, head-major and transposed caches (no `row_start`) and the ragged cache that
//! compaction makes (`row_start` given, `stride_head` 0).
//!
//! Views never hand out references into a caller's memory: they copy elements in and out. Two views may therefore
//! describe the same memory, which is what compaction in place needs.

use core::marker::PhantomData;
use core::ops::Range;
use half::{bf16, f16};

use crate::error::{Error, ErrorKind, Result, ensure};

/// Element types of Q, K and V. Each tensor has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32 = 0,
    /// IEEE 754 binary16.
    F16 = 1,
    /// bfloat16.
    BF16 = 2,
}

impl Dtype {
    /// Bytes of one element, which is also its alignment.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// An element type that a view can be made over.
pub trait Element: Copy + sealed::Sealed + 'static {
    /// Its tag.
    const DTYPE: Dtype;
    /// The same value in f32, exactly.
    fn widen(self) -> f32;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::BF16;
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// Where the elements are, in elements from the first.
#[derive(Clone, Copy, Debug)]
pub struct Strides<'a> {
    /// From one row (token) of a head to the next.
    pub token: i64,
    /// From one head to the next; 0 where `row_start` is given.
    pub head: i64,
    /// From one element of a row to the next.
    pub dim: i64,
    /// The ragged cache: the first row of each head, ascending.
    pub row_start: Option<&'a [u32]>,
}

/// A stride. One that does not fit becomes negative, which every tensor refuses.
const fn product(a: usize, b: usize) -> i64 {
    match a.checked_mul(b) {
        Some(n) if n <= i64::MAX as usize => n as i64,
        _ => -1,
    }
}

impl Strides<'_> {
    /// `[n_tokens, n_heads, dim]` without gaps.
    pub const fn token_major(n_heads: usize, dim: usize) -> Self {
        Self { token: product(n_heads, dim), head: dim as i64, dim: 1, row_start: None }
    }

    /// `[n_heads, n_tokens, dim]` without gaps.
    pub const fn head_major(n_tokens: usize, dim: usize) -> Self {
        Self { token: dim as i64, head: product(n_tokens, dim), dim: 1, row_start: None }
    }
}

impl<'a> Strides<'a> {
    /// Rows of `dim` elements one after the other, head `h` from row `row_start[h]` on.
    pub const fn ragged(row_start: &'a [u32], dim: usize) -> Self {
        Self { token: dim as i64, head: 0, dim: 1, row_start: Some(row_start) }
    }
}

/// How many rows each head has.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// All heads the same.
    Same(usize),
    /// One number per head.
    PerHead(&'a [u32]),
    /// The differences of an exclusive prefix sum with one entry more than there are heads (`cu_kept`).
    Cu(&'a [u32]),
}

impl Rows<'_> {
    /// Rows of head `h`. None where the prefix sum decreases, which every tensor refuses.
    #[inline]
    pub fn of(&self, h: usize) -> usize {
        match self {
            Rows::Same(n) => *n,
            Rows::PerHead(n) => n[h] as usize,
            Rows::Cu(cu) => cu[h + 1].saturating_sub(cu[h]) as usize,
        }
    }

    /// Rows of the longest of `n_heads` heads. Heads that are alike are not visited one by one: a caller's mistake may ask for
    /// billions.
    fn most(&self, n_heads: usize) -> usize {
        match self {
            Rows::Same(n) => *n,
            _ => (0..n_heads).map(|h| self.of(h)).max().unwrap_or(0),
        }
    }
}

/// A tensor to read from.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    data: *mut u8,
    dtype: Dtype,
    n_heads: usize,
    dim: usize,
    rows: Rows<'a>,
    // In elements. The constructor has checked that every element's offset fits isize and lies in the buffer.
    stride_token: usize,
    stride_head: usize,
    stride_dim: usize,
    row_start: Option<&'a [u32]>,
    /// The strides as they were given, including those that are never used.
    declared: (i64, i64, i64),
    /// Bytes from `data` to the end of the last element.
    extent: usize,
    /// Bytes that the view was made over.
    size: usize,
    _memory: PhantomData<&'a [u8]>,
}

/// A tensor to write to. Only `&mut` writes, so readers that borrow from it cannot run at the same time as a writer.
#[derive(Debug)]
pub struct TensorMut<'a>(Tensor<'a>);

/// The same memory seen twice: rows as they are now, and where they will go. Compaction in place works on this.
#[derive(Debug)]
pub struct Within<'a> {
    before: Tensor<'a>,
    after: TensorMut<'a>,
}

impl<'a> Within<'a> {
    /// The rows as they are now.
    pub fn before(&self) -> &Tensor<'a> {
        &self.before
    }

    /// Where they go.
    pub fn after(&self) -> &Tensor<'a> {
        &self.after.0
    }

    /// As [`TensorMut::copy_rows`], from `before` to `after`.
    pub fn copy_rows(&mut self, h: usize, dst_row: usize, src_row: usize, n: usize) {
        self.after.copy_rows(h, dst_row, &self.before, src_row, n);
    }
}

// SAFETY: a Tensor only reads the memory it was made over, for a lifetime in which nobody else writes the rows it
// reads: promised by the borrow (`from_slice`) or by the caller of `from_raw`.
unsafe impl Send for Tensor<'_> {}
// SAFETY: as for Send; no interior mutability.
unsafe impl Sync for Tensor<'_> {}
// SAFETY: a TensorMut is the only writer of its rows: promised by the borrow or by the caller of `from_raw`.
unsafe impl Send for TensorMut<'_> {}

/// What is wrong with a tensor, and in which field of `lava_tensor`.
fn refuse<T>(kind: ErrorKind, field: &'static core::ffi::CStr) -> Result<T> {
    Err(Error::new(kind, field))
}

impl<'a> Tensor<'a> {
    /// A view of a slice.
    pub fn from_slice<T: Element>(
        data: &'a [T],
        strides: Strides<'a>,
        rows: Rows<'a>,
        n_heads: usize,
        dim: usize,
    ) -> Result<Self> {
        // SAFETY: the slice is readable for 'a over its whole length, and a Tensor never writes.
        unsafe {
            Self::from_raw(data.as_ptr() as *mut u8, size_of_val(data), T::DTYPE, strides, rows, n_heads, dim)
        }
    }

    /// A view of raw memory, checked against `size` bytes.
    ///
    /// # Safety
    /// `size` bytes from `data` must be readable for `'a`, and the rows that are read must not be written meanwhile by
    /// another thread. A [`TensorMut`] made from it must also be allowed to write them.
    pub unsafe fn from_raw(
        data: *mut u8,
        size: usize,
        dtype: Dtype,
        strides: Strides<'a>,
        rows: Rows<'a>,
        n_heads: usize,
        dim: usize,
    ) -> Result<Self> {
        ensure(!data.is_null(), ErrorKind::Null, c"data")?;
        ensure((data as usize).is_multiple_of(dtype.size()), ErrorKind::Alignment, c"data")?;
        ensure(n_heads > 0 && dim > 0, ErrorKind::Shape, c"dim")?;
        match rows {
            Rows::Same(_) => {}
            Rows::PerHead(n) => ensure(n.len() >= n_heads, ErrorKind::BufferSize, c"n_rows")?,
            Rows::Cu(cu) => {
                ensure(cu.len() > n_heads, ErrorKind::BufferSize, c"cu_kept")?;
                ensure(cu[..=n_heads].is_sorted(), ErrorKind::Indices, c"cu_kept")?;
            }
        }
        let max_rows = rows.most(n_heads);

        // A stride over one element or none is never used.
        let stride = |value: i64, extent: usize, field| match usize::try_from(value) {
            _ if extent <= 1 => Ok(0),
            Ok(0) | Err(_) => refuse(ErrorKind::Stride, field),
            Ok(value) => Ok(value),
        };
        let stride_dim = stride(strides.dim, dim, c"stride_dim")?;
        let (stride_token, stride_head, reach) = match strides.row_start {
            None => {
                let token = stride(strides.token, max_rows, c"stride_token")?;
                let head = stride(strides.head, n_heads, c"stride_head")?;
                let mut axes = [(stride_dim, dim), (token, max_rows), (head, n_heads)];
                (token, head, reach(&mut axes)?)
            }
            Some(start) => {
                ensure(start.len() >= n_heads, ErrorKind::BufferSize, c"row_start")?;
                ensure(strides.head == 0, ErrorKind::Stride, c"stride_head")?;
                let mut end = 0usize;
                for h in (0..n_heads).filter(|&h| rows.of(h) > 0) {
                    ensure(start[h] as usize >= end, ErrorKind::Overlap, c"row_start")?;
                    end = start[h] as usize + rows.of(h);
                }
                // Used to reach a head's first row, so it counts even where each head has one row only.
                let token = stride(strides.token, end, c"stride_token")?;
                (token, 0, reach(&mut [(stride_dim, dim), (token, end), (0, 1)])?)
            }
        };
        let extent =
            if max_rows == 0 { Some(0) } else { reach.and_then(|last| (last + 1).checked_mul(dtype.size())) };
        match extent {
            Some(extent) if extent <= size && extent <= isize::MAX as usize => Ok(Self {
                data,
                dtype,
                n_heads,
                dim,
                rows,
                stride_token,
                stride_head,
                stride_dim,
                row_start: strides.row_start,
                declared: (strides.token, strides.head, strides.dim),
                extent,
                size,
                _memory: PhantomData,
            }),
            // No buffer has elements at offsets that overflow.
            Some(_) | None => refuse(ErrorKind::BufferSize, c"size"),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Elements of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Heads.
    pub fn n_heads(&self) -> usize {
        self.n_heads
    }

    /// Rows of head `h`.
    pub fn rows(&self, h: usize) -> usize {
        self.rows.of(h)
    }

    /// Whether a row's elements are side by side.
    pub(crate) fn is_row_contiguous(&self) -> bool {
        self.stride_dim == 1 || self.dim == 1
    }

    /// Whether a token's heads are nearer to each other than a head's tokens.
    pub(crate) fn is_token_major(&self) -> bool {
        self.stride_head < self.stride_token
    }

    /// Whether one row of a head follows the other without a gap.
    fn is_head_contiguous(&self) -> bool {
        self.is_row_contiguous() && self.stride_token == self.dim
    }

    #[inline(always)]
    fn offset(&self, h: usize, r: usize) -> usize {
        assert!(h < self.n_heads && r < self.rows.of(h));
        let start = self.row_start.map_or(0, |s| s[h] as usize);
        (start + r) * self.stride_token + h * self.stride_head
    }

    /// Address of a row's first element.
    #[inline(always)]
    pub(crate) fn row_ptr(&self, h: usize, r: usize) -> *const u8 {
        self.data.wrapping_add(self.offset(h, r) * self.dtype.size())
    }

    /// Bytes from one row of a head to the next.
    #[inline(always)]
    pub(crate) fn row_step(&self) -> usize {
        self.stride_token * self.dtype.size()
    }

    /// Calls `f(i, value)` for each element of row `r` of head `h`, in order.
    #[inline(always)]
    pub fn for_each(&self, h: usize, r: usize, f: impl FnMut(usize, f32)) {
        match self.dtype {
            Dtype::F32 => self.for_each_as::<f32>(h, r, f),
            Dtype::F16 => self.for_each_as::<f16>(h, r, f),
            Dtype::BF16 => self.for_each_as::<bf16>(h, r, f),
        }
    }

    #[inline(always)]
    fn for_each_as<T: Element>(&self, h: usize, r: usize, mut f: impl FnMut(usize, f32)) {
        let row = self.row_ptr(h, r) as *const T;
        for i in 0..self.dim {
            // SAFETY: `offset` has checked h and r; the constructor has checked that every element of every such row
            // lies in the buffer and is aligned; T is the dtype's type.
            f(i, unsafe { row.add(i * self.stride_dim).read() }.widen());
        }
    }

    /// Row `r` of head `h` in f32. `out` has `dim` elements.
    #[inline]
    pub fn widen(&self, h: usize, r: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.dim);
        self.for_each(h, r, |i, x| out[i] = x);
    }

    /// The ragged cache's first rows, if it is one.
    pub(crate) fn row_start(&self) -> &'a [u32] {
        self.row_start.map_or(&[], |s| &s[..self.n_heads])
    }

    /// Addresses from the first element to the end of the last.
    pub(crate) fn span(&self) -> Range<usize> {
        self.data as usize..self.data as usize + self.extent
    }

    /// Whether no element of `self` shares memory with one of `other`: their address ranges are apart, or the two are
    /// interleaved with the same strides (K and V in one buffer) so that one's rows fall into the other's gaps.
    pub(crate) fn is_disjoint(&self, other: &Tensor) -> bool {
        let (a, b) = (self.span(), other.span());
        if a.is_empty() || b.is_empty() || a.end <= b.start || b.end <= a.start {
            return true;
        }
        let same = self.dtype.size() == other.dtype.size()
            && self.row_start.is_none()
            && other.row_start.is_none()
            && self.n_heads == other.n_heads
            && self.declared == other.declared;
        let (token, head, dim) = self.declared;
        let (Ok(token), Ok(head), Ok(dim), true) =
            (usize::try_from(token), usize::try_from(head), usize::try_from(dim), same)
        else {
            return false;
        };
        let (lo, hi) = if a.start <= b.start { (self, other) } else { (other, self) };
        let apart = (hi.data as usize - lo.data as usize) / self.dtype.size();
        let width = |t: &Tensor| (t.dim - 1).saturating_mul(dim).saturating_add(1);
        // Within one period, lo's elements come first, then hi's, then the next period begins.
        let fits = |period: usize, inner: usize| {
            period > 0 && {
                let delta = apart % period;
                delta >= inner.saturating_add(width(lo))
                    && delta.saturating_add(inner).saturating_add(width(hi)) <= period
            }
        };
        let rows = self.rows.most(self.n_heads).max(other.rows.most(other.n_heads));
        let heads_reach = (self.n_heads - 1).saturating_mul(head);
        let rows_reach = rows.saturating_sub(1).saturating_mul(token);
        // The longer of the two outer strides may be the period of all that is inside it; the shorter one too, if it
        // divides the longer.
        if token >= head {
            fits(token, heads_reach) || (head > 0 && token.is_multiple_of(head) && fits(head, 0))
        } else {
            fits(head, rows_reach) || (token > 0 && head.is_multiple_of(token) && fits(token, 0))
        }
    }

    /// Whether rows can move from `src` to `self` within one memory: nothing is overwritten before it is read.
    ///
    /// Either each head stays where it is, and its rows move to its own front; then heads are independent. Or, where
    /// `one_part` does all heads in order, both are ragged and no row moves backwards.
    pub(crate) fn is_in_place_of(&self, src: &Tensor, rows: &[u32], cu: &[u32], one_part: bool) -> bool {
        let used = |stride: usize, n: usize| if n > 1 { stride } else { 0 };
        let few = self.rows.most(self.n_heads).min(src.rows.most(src.n_heads));
        let same_rows = self.data == src.data
            && self.dtype == src.dtype
            && used(self.stride_token, few) == used(src.stride_token, few)
            && used(self.stride_dim, self.dim) == used(src.stride_dim, self.dim);
        let start = |t: &Tensor, h: usize| t.row_start.map_or(0, |s| s[h] as usize);
        // In elements: the stride places a head's first row too, also where no head has a second one.
        let origin = |t: &Tensor, h: usize| start(t, h) * t.stride_token + h * t.stride_head;
        let same_heads = (0..self.n_heads).all(|h| self.rows(h) == 0 || origin(self, h) == origin(src, h));
        let forwards = || {
            self.row_start.is_some()
                && src.row_start.is_some()
                // No stride: there is a single row, at the buffer's start, and no row can move back past it.
                && (self.stride_token == src.stride_token || self.stride_token == 0)
                && (0..self.n_heads).all(|h| {
                    let kept = &rows[cu[h] as usize..cu[h + 1] as usize];
                    // Kept rows ascend by at least one, so the first decides for all.
                    kept.first().is_none_or(|&first| start(self, h) <= start(src, h) + first as usize)
                })
        };
        same_rows && (same_heads || (one_part && forwards()))
    }
}

/// Offset of the last element, `None` where it overflows; an error where two elements would share memory.
fn reach(axes: &mut [(usize, usize); 3]) -> Result<Option<usize>> {
    axes.sort_unstable();
    let mut last = Some(0usize);
    for &(stride, extent) in axes.iter().filter(|axis| axis.1 > 1) {
        let Some(inner) = last else { break };
        ensure(stride > inner, ErrorKind::Stride, c"stride_token")?;
        last = stride.checked_mul(extent - 1).and_then(|n| n.checked_add(inner)).filter(|&n| n < usize::MAX);
    }
    Ok(last)
}

impl<'a> TensorMut<'a> {
    /// A view of a mutable slice.
    pub fn from_slice<T: Element>(
        data: &'a mut [T],
        strides: Strides<'a>,
        rows: Rows<'a>,
        n_heads: usize,
        dim: usize,
    ) -> Result<Self> {
        let (ptr, size) = (data.as_mut_ptr() as *mut u8, size_of_val(data));
        // SAFETY: the slice is borrowed mutably for 'a, so this view is its only user.
        unsafe { Ok(Self(Tensor::from_raw(ptr, size, T::DTYPE, strides, rows, n_heads, dim)?)) }
    }

    /// Makes a view writable.
    ///
    /// # Safety
    /// The memory that `tensor` was made over must be writable for `'a`, and the rows that are written must not be read
    /// or written meanwhile by another thread. Tensors that are read on this thread may be made over the same memory.
    pub unsafe fn from_tensor(tensor: Tensor<'a>) -> Self {
        Self(tensor)
    }

    /// A reader of the same memory.
    pub fn as_tensor(&self) -> Tensor<'_> {
        self.0
    }

    /// This view's memory, with the rows that it has now described by `row_start` (as this view's where `None`) and `rows`.
    pub fn within<'b>(&'b mut self, row_start: Option<&'b [u32]>, rows: Rows<'b>) -> Result<Within<'b>> {
        let t = &self.0;
        let (token, head, dim) = t.declared;
        let strides = Strides { token, head, dim, row_start: row_start.or(t.row_start) };
        // SAFETY: `size` bytes from `data` are this view's to use for as long as it is borrowed.
        let before = unsafe { Tensor::from_raw(t.data, t.size, t.dtype, strides, rows, t.n_heads, t.dim)? };
        Ok(Within { before, after: TensorMut(self.0) })
    }

    /// Copies `n` rows of `src`'s head `h`, from `src_row` on, to `dst_row` on of this tensor's head `h`. The two may
    /// be the same memory. Element types and row lengths must agree.
    pub fn copy_rows(&mut self, h: usize, dst_row: usize, src: &Tensor, src_row: usize, n: usize) {
        let dst = &self.0;
        assert!(n > 0 && dst.dtype == src.dtype && dst.dim == src.dim);
        // The last rows' offsets check the bounds of all.
        let _checked = (dst.row_ptr(h, dst_row + n - 1), src.row_ptr(h, src_row + n - 1));
        let (to, from) = (dst.row_ptr(h, dst_row) as *mut u8, src.row_ptr(h, src_row));
        let row_bytes = dst.dim * dst.dtype.size();
        if dst.is_head_contiguous() && src.is_head_contiguous() {
            // SAFETY: both runs of n rows lie in their buffers (checked above); `copy` allows them to overlap.
            unsafe { core::ptr::copy(from, to, n * row_bytes) };
        } else if dst.is_row_contiguous() && src.is_row_contiguous() {
            for i in 0..n {
                let (to, from) = (dst.row_ptr(h, dst_row + i) as *mut u8, src.row_ptr(h, src_row + i));
                // SAFETY: `row_ptr` checks the row; `copy` allows overlap.
                unsafe { core::ptr::copy(from, to, row_bytes) };
            }
        } else {
            match dst.dtype.size() {
                4 => self.copy_strided::<u32>(to, from, src, n),
                _ => self.copy_strided::<u16>(to, from, src, n),
            }
        }
    }

    /// Element by element, the axis with the shorter source stride innermost.
    fn copy_strided<W: Copy>(&mut self, to: *mut u8, from: *const u8, src: &Tensor, n: usize) {
        let (dst, to, from) = (&self.0, to as *mut W, from as *const W);
        let one = |r: usize, c: usize| {
            // SAFETY: `copy_rows` has checked the first and the last of the n rows in both tensors, c < dim, and W has
            // the size and alignment of both tensors' elements. Rows ascend, so in place no element is
            // overwritten before it is read: a destination row is never after its source row.
            unsafe {
                to.add(r * dst.stride_token + c * dst.stride_dim)
                    .write(from.add(r * src.stride_token + c * src.stride_dim).read())
            }
        };
        if src.stride_token < src.stride_dim {
            (0..dst.dim).for_each(|c| (0..n).for_each(|r| one(r, c)));
        } else {
            (0..n).for_each(|r| (0..dst.dim).for_each(|c| one(r, c)));
        }
    }

    /// Writes row `r` of head `h`. The tensor must be f32.
    pub fn write_row(&mut self, h: usize, r: usize, values: &[f32]) {
        let dst = &self.0;
        assert!(dst.dtype == Dtype::F32 && values.len() == dst.dim);
        let to = dst.row_ptr(h, r) as *mut f32;
        for (i, &x) in values.iter().enumerate() {
            // SAFETY: `row_ptr` checks the row, i < dim, and the dtype is f32.
            unsafe { to.add(i * dst.stride_dim).write(x) };
        }
    }
}
