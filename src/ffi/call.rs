//! Crossing the boundary: slices and tensors come in, spans that must not overlap are checked, a status goes out.

use core::ffi::{CStr, c_void};
use core::mem::size_of;
use core::ops::Range;

use super::checked::dtype;
use super::types::*;
use super::versioned::{check_out_struct, check_pointer, read_struct, write_struct};
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{Layers, Shape};
use crate::view::{Rows, Strides, Tensor};
use crate::workspace::Carver;

/// Runs a call and reports its outcome. No panic gets out.
///
/// # Safety
/// `error` must be NULL or point to a `lava_error` with its `struct_size` set.
pub(crate) unsafe fn run(error: *mut lava_error, call: impl FnOnce() -> Result<()>) -> lava_status {
    if !error.is_null() {
        // SAFETY: the caller's promise.
        if let Err(e) = unsafe { check_out_struct(error, c"error") } {
            return e.kind as lava_status;
        }
    }
    #[cfg(feature = "std")]
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call))
        .unwrap_or(Err(Error::new(ErrorKind::Internal, c"")));
    #[cfg(not(feature = "std"))]
    let result = call();
    let status = result.map_or_else(|e| e.kind as lava_status, |()| LAVA_OK);
    if !error.is_null() {
        let report = lava_error {
            struct_size: 0,
            status,
            layer: result.err().and_then(|e| e.layer).unwrap_or(LAVA_NONE),
            head: result.err().and_then(|e| e.head).unwrap_or(LAVA_NONE),
            argument: result.err().map_or(c"", |e| e.argument).as_ptr(),
            message: status_message(status).as_ptr(),
        };
        // SAFETY: checked above.
        unsafe { write_struct(error, report) };
    }
    status
}

/// A status in words.
pub(crate) fn status_message(status: lava_status) -> &'static CStr {
    match status {
        LAVA_OK => c"ok",
        _ => ErrorKind::from_status(status).map_or(c"unknown status", ErrorKind::message),
    }
}

/// `n` elements to read.
///
/// # Safety
/// `p` must be NULL or readable over `n` elements for `'a`.
pub(crate) unsafe fn slice<'a, T>(p: *const T, n: usize, name: &'static CStr) -> Result<&'a [T]> {
    check_pointer(p, name)?;
    ensure(n <= isize::MAX as usize / size_of::<T>(), ErrorKind::Overflow, name)?;
    // SAFETY: not NULL, aligned, readable by the caller's promise, not too long.
    Ok(unsafe { core::slice::from_raw_parts(p, n) })
}

/// `n` elements to write.
///
/// # Safety
/// `p` must be NULL or writable over `n` elements for `'a`, by nobody else; initialised or of a type that is only written.
pub(crate) unsafe fn slice_mut<'a, T>(p: *mut T, n: usize, name: &'static CStr) -> Result<&'a mut [T]> {
    check_pointer(p, name)?;
    ensure(n <= isize::MAX as usize / size_of::<T>(), ErrorKind::Overflow, name)?;
    // SAFETY: not NULL, aligned, writable by the caller's promise, not too long.
    Ok(unsafe { core::slice::from_raw_parts_mut(p, n) })
}

/// A caller's tensor. Errors name it, not its field.
///
/// # Safety
/// `p` must be NULL or point to a `lava_tensor` that tells the truth about its memory for `'a`.
pub(crate) unsafe fn tensor<'a>(
    p: *const lava_tensor,
    rows: Rows<'a>,
    n_heads: usize,
    dim: usize,
    name: &'static CStr,
) -> Result<Tensor<'a>> {
    // SAFETY: the caller's promise about `p`.
    unsafe { tensor_fields(p, rows, n_heads, dim, name) }.map_err(|e| e.of(name))
}

/// # Safety
/// As for [`tensor`].
unsafe fn tensor_fields<'a>(
    p: *const lava_tensor,
    rows: Rows<'a>,
    n_heads: usize,
    dim: usize,
    name: &'static CStr,
) -> Result<Tensor<'a>> {
    // SAFETY: the caller's promise about `p`.
    let t = unsafe { read_struct(p, name)? };
    let row_start = match t.row_start.is_null() {
        true => None,
        // SAFETY: not NULL, so the caller promises one entry per head.
        false => Some(unsafe { slice(t.row_start, n_heads, c"row_start")? }),
    };
    let strides = Strides { token: t.stride_token, head: t.stride_head, dim: t.stride_dim, row_start };
    let dtype = dtype(t.dtype)?;
    // SAFETY: `size` bytes from `data` are the caller's to give.
    unsafe { Tensor::from_raw(t.data as *mut u8, t.size, dtype, strides, rows, n_heads, dim) }
}

/// A carver over a caller's workspace.
///
/// # Safety
/// `p` must be NULL or writable over `size` bytes for `'a`, by nobody else.
pub(crate) unsafe fn workspace<'a>(p: *mut c_void, size: usize) -> Result<Carver<'a>> {
    // SAFETY: the caller's promise.
    unsafe { Carver::over_raw(p as *mut u8, size) }
}

/// Memory that a call touches: what it writes must not be touched twice.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    spans: [(Range<usize>, bool, &'static CStr); 24],
    n: usize,
}

impl Memory {
    fn add(mut self, start: usize, bytes: usize, written: bool, name: &'static CStr) -> Self {
        self.spans[self.n] = (start..start.saturating_add(bytes), written, name);
        self.n += 1;
        self
    }

    pub fn reads<T>(self, p: *const T, n: usize, name: &'static CStr) -> Self {
        let n = if p.is_null() { 0 } else { n };
        self.add(p as usize, n.saturating_mul(size_of::<T>()), false, name)
    }

    pub fn writes<T>(self, p: *mut T, n: usize, name: &'static CStr) -> Self {
        let n = if p.is_null() { 0 } else { n };
        self.add(p as usize, n.saturating_mul(size_of::<T>()), true, name)
    }

    pub fn reads_tensor(self, t: &Tensor, name: &'static CStr) -> Self {
        self.tensor(t, false, name)
    }

    pub fn writes_tensor(self, t: &Tensor, name: &'static CStr) -> Self {
        self.tensor(t, true, name)
    }

    /// A ragged shape's rows and positions.
    pub fn reads_rows(self, shape: &Shape) -> Self {
        match shape.ragged {
            None => self,
            Some(rows) => self.reads(rows.cu_rows.as_ptr(), rows.cu_rows.len(), c"cu_rows").reads(
                rows.positions.as_ptr(),
                rows.positions.len(),
                c"positions",
            ),
        }
    }

    fn tensor(self, t: &Tensor, written: bool, name: &'static CStr) -> Self {
        let (span, row_start) = (t.span(), t.row_start());
        self.add(span.start, span.len(), written, name).reads(row_start.as_ptr(), row_start.len(), name)
    }

    /// The same with the rows of every layer, which are too many to be checked together.
    pub fn check_layers(self, layers: &impl Layers) -> Result<()> {
        self.clone().check()?;
        (0..layers.n_layers())
            .filter(|&l| layers.layer(l).ragged.is_some())
            .try_for_each(|l| self.clone().reads_rows(&layers.layer(l)).check())
    }

    /// An error naming what is written and shared.
    pub fn check(self) -> Result<()> {
        let spans = &self.spans[..self.n];
        for (i, (a, written, name)) in spans.iter().enumerate() {
            let shared = spans.iter().enumerate().any(|(j, (b, ..))| {
                i != j && !a.is_empty() && !b.is_empty() && a.start < b.end && b.start < a.end
            });
            ensure(!(*written && shared), ErrorKind::Overlap, name)?;
        }
        Ok(())
    }
}

impl Error {
    /// The same error, naming the tensor it was found in instead of the tensor's field.
    pub(crate) fn of(mut self, argument: &'static CStr) -> Self {
        self.argument = argument;
        self
    }
}

/// Runs what a call does for one layer, so that its errors name the layer.
pub(crate) fn in_layer<T>(shape: &Shape, body: impl FnOnce() -> Result<T>) -> Result<T> {
    body().map_err(|e| e.at_layer(shape.layer))
}

/// Writes the one number that a call returns.
///
/// # Safety
/// `p` must be NULL or writable.
pub(crate) unsafe fn put<T>(p: *mut T, name: &'static CStr, value: impl FnOnce() -> Result<T>) -> Result<()> {
    // SAFETY: the caller's promise.
    let out = unsafe { slice_mut(p, 1, name)? };
    out[0] = value()?;
    Ok(())
}
