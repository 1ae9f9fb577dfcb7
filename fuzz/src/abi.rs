//! Any arguments to any function of the C ABI: a status that the function's comment names, an error report that agrees, and no
//! byte written that the header does not allow.
//!
//! A case is a valid call with a few of its arguments made strange: NULL, misaligned, on top of one another, structs of other
//! versions, any numbers in them. What the header asks of the caller stays true: pointers lead to as much memory as it says,
//! and not a byte more. Where that would be too much (a shape of billions), the pointer is NULL.

use crate::choices::Choices;
use crate::memory::Block;
use crate::tensors::{DTYPES, Layout, side};
use lava::ffi::*;
use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

/// Elements of an array that are provided at most.
const MOST: u64 = 1 << 12;
/// Bytes of a workspace that are provided at most.
const MOST_WORKSPACE: usize = 1 << 19;

/// What a call may do with an argument's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum May {
    Read,
    /// Written on success only.
    Write,
    /// Written on NONFINITE as well, partly.
    WritePartly,
    /// Written in any case.
    Scratch,
}

/// Memory that an argument leads to, inside one of the blocks.
struct Region {
    may: May,
    block: usize,
    at: usize,
    len: usize,
    /// Of a tensor: tells its elements' bytes from those between them.
    elements: Option<Elements>,
}

/// A tensor as a call sees it.
#[derive(Clone)]
struct Elements {
    tensor: lava_tensor,
    start: Vec<u32>,
    rows: Rows,
    heads: u32,
    dim: u32,
}

/// Rows of each head.
#[derive(Clone)]
enum Rows {
    Same(u32),
    Of(Vec<u32>),
}

impl Rows {
    fn of(&self, h: usize) -> u32 {
        match self {
            Rows::Same(n) => *n,
            Rows::Of(n) => n.get(h).copied().unwrap_or(0),
        }
    }

    /// Differences of a prefix sum; where it decreases, nothing.
    fn cu(cu: &[u32]) -> Self {
        Rows::Of(cu.windows(2).map(|w| w[1].saturating_sub(w[0])).collect())
    }
}

impl Elements {
    /// Offsets in bytes, by the formula of `lava.h`. Only for tensors that a call has accepted.
    fn offsets(&self) -> Vec<usize> {
        let (t, size) = (&self.tensor, element_size(self.tensor.dtype));
        let mut all = vec![];
        for h in 0..self.heads as usize {
            let start = self.start.get(h).copied().unwrap_or(0) as usize;
            for r in 0..self.rows.of(h) as usize {
                for c in 0..self.dim as usize {
                    // Unused strides may be anything: wrapping.
                    let of = |n: usize, stride: i64| n.wrapping_mul(stride as usize);
                    let element = of(start + r, t.stride_token)
                        .wrapping_add(of(h, t.stride_head))
                        .wrapping_add(of(c, t.stride_dim));
                    all.push(element.wrapping_mul(size));
                }
            }
        }
        all
    }
}

fn element_size(dtype: lava_dtype) -> usize {
    if dtype == LAVA_F32 { 4 } else { 2 }
}

/// The arguments of one call.
struct World<'a, 'b> {
    c: &'a mut Choices<'b>,
    blocks: Vec<Block>,
    regions: Vec<Region>,
    /// Anything but a call that must succeed.
    strange: bool,
    /// One argument in this many is strange; 0: none.
    rarity: usize,
}

impl World<'_, '_> {
    /// Whether to make the next argument strange.
    fn odd(&mut self) -> bool {
        let odd = self.rarity > 0 && self.c.once_in(self.rarity);
        self.strange |= odd;
        odd
    }

    /// Memory of an output; sometimes that of another argument.
    fn place(&mut self, bytes: usize, align: usize, may: May) -> *mut u8 {
        // An input would overwrite the other's contents, which are promised.
        if may != May::Read && !self.regions.is_empty() && self.odd() {
            let other = &self.regions[self.c.below(self.regions.len())];
            let (block, at) = (other.block, other.at / align * align + self.c.below(3) * align);
            if at + bytes <= self.blocks[block].len() {
                self.regions.push(Region { may, block, at, len: bytes, elements: None });
                return self.blocks[block].ptr::<u8>().wrapping_add(at);
            }
        }
        self.fresh(bytes, align, may)
    }

    /// Separate memory, sometimes misaligned.
    fn fresh(&mut self, bytes: usize, align: usize, may: May) -> *mut u8 {
        let at = if align > 1 && self.odd() { self.c.within(1..=align - 1) } else { 0 };
        self.blocks.push(Block::new((at + bytes).next_multiple_of(align), side(self.c)));
        let block = self.blocks.len() - 1;
        self.regions.push(Region { may, block, at, len: bytes, elements: None });
        self.blocks[block].ptr::<u8>().wrapping_add(at)
    }

    /// An array of `n` elements, or NULL where that is too much.
    fn array<T: Copy>(&mut self, n: u64, may: May, values: &[T]) -> *mut T {
        if n > MOST || self.odd() && self.c.coin() {
            self.strange = true;
            return null_mut();
        }
        let p = self.place(n as usize * size_of::<T>(), align_of::<T>(), may) as *mut T;
        for (i, &value) in values.iter().take(n as usize).enumerate() {
            // SAFETY: `place` gave n elements; maybe misaligned.
            unsafe { p.add(i).write_unaligned(value) };
        }
        p
    }

    /// An output of `n` elements.
    fn output<T: Copy>(&mut self, n: u64, may: May) -> *mut T {
        self.array::<T>(n, may, &[])
    }

    /// A struct of this library's version, of another, or of none. `value` has `struct_size` first.
    fn structure<T: Copy>(&mut self, value: T, may: May) -> *mut T {
        let known = size_of::<T>();
        let mut size = known as u32;
        if self.odd() {
            let any = self.c.bits() as u32;
            size = self.c.pick(&[0, 4, size - 1, size + 8, size + 64, 4096, 4097, u32::MAX, any]);
            if self.c.once_in(4) {
                return null_mut();
            }
        }
        // A size that no struct has is not believed, and nothing after it is read.
        let bytes = if size <= 4096 { (size as usize).max(4) } else { 4 };
        let mut image = vec![0u8; bytes.max(known)];
        // SAFETY: the image is at least as large as the value.
        unsafe { (image.as_mut_ptr() as *mut T).write_unaligned(value) };
        image[..4].copy_from_slice(&size.to_ne_bytes());
        image[known..].fill(self.c.once_in(4) as u8);
        let p = self.fresh(bytes, align_of::<T>(), may);
        // SAFETY: `fresh` gave that many bytes.
        unsafe { std::ptr::copy_nonoverlapping(image.as_ptr(), p, bytes) };
        if may == May::Write {
            // A report keeps its size, and what the library does not know.
            let region = self.regions.last_mut().expect("just placed");
            (region.at, region.len) = (region.at + 4, bytes.min(known) - 4);
        }
        p as *mut T
    }

    /// A number, mostly `valid`.
    fn number(&mut self, valid: u64) -> u64 {
        if !self.odd() {
            return valid;
        }
        let any = self.c.bits();
        let edges = [0, 1, 2, valid.wrapping_sub(1), valid.wrapping_add(1), 1 << 16, (1 << 31) - 1, 1 << 31];
        let large = [(1 << 32) - 1, 1 << 32, 1 << 62, i64::MAX as u64, u64::MAX, any, any % 64, any % 4096];
        if self.c.coin() { self.c.pick(&edges) } else { self.c.pick(&large) }
    }

    fn float(&mut self, valid: f64) -> f64 {
        if !self.odd() {
            return valid;
        }
        let any = f64::from_bits(self.c.bits());
        self.c.pick(&[0.0, -0.0, 1.0, -1.0, 1e-9, 1e38, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE, any])
    }

    fn shape(&mut self) -> lava_shape {
        let (heads, group, window) = (self.c.within(1..=3), self.c.within(1..=3), self.c.within(1..=4));
        let tokens = window + self.c.below(12);
        let (dk, dv) = (self.c.within(1..=6), self.c.within(1..=6));
        let valid = [7, tokens, heads * group, heads, dk, dv, window];
        let [layer, n_tokens, n_q_heads, n_kv_heads, head_dim_k, head_dim_v, window] =
            valid.map(|n| self.number(n as u64) as u32);
        let struct_size = size_of::<lava_shape>() as u32;
        let sliding_window = if self.c.once_in(4) { self.c.within(1..=9) } else { 0 };
        let (cu_rows, positions) = self.rows_of(n_tokens, n_kv_heads, window);
        lava_shape {
            struct_size,
            layer,
            n_tokens,
            n_q_heads,
            n_kv_heads,
            head_dim_k,
            head_dim_v,
            window,
            sliding_window: self.number(sliding_window as u64) as u32,
            reserved: self.number(0) as u32,
            cu_rows,
            positions,
        }
    }

    /// Rows and positions of a cache that has been compressed before, or none.
    fn rows_of(&mut self, n_tokens: u32, n_kv_heads: u32, window: u32) -> (*mut u32, *mut u32) {
        let prefix = n_tokens.saturating_sub(window);
        if !self.c.once_in(4) || n_kv_heads as u64 * n_tokens.max(1) as u64 > MOST {
            return (null_mut(), null_mut());
        }
        let (mut cu, mut positions) = (vec![0u32], vec![]);
        for _ in 0..n_kv_heads {
            let kept: Vec<u32> = (0..prefix).filter(|_| self.c.coin()).collect();
            positions.extend(kept.into_iter().chain(prefix..n_tokens));
            cu.push(positions.len() as u32);
        }
        if self.odd() {
            // Not in order, perhaps; but never more rows than there are.
            let at = self.c.below(cu.len());
            cu[at] = self.c.below(positions.len() + 1) as u32;
        }
        if !positions.is_empty() && self.odd() {
            let at = self.c.below(positions.len());
            positions[at] = self.number(positions[at] as u64) as u32;
        }
        let n = positions.len() as u64;
        (self.array(n_kv_heads as u64 + 1, May::Read, &cu), self.array(n, May::Read, &positions))
    }

    /// An array of `n_layers` shapes, one of which is `shape`, or that one for all.
    fn shapes(&mut self, shape: lava_shape, n_layers: u32) -> (*mut lava_shape, u32) {
        if self.c.coin() || n_layers > 8 {
            let n = self.number(1) as u32;
            // As many as there are layers would be read.
            return (self.structure(shape, May::Read), if n == n_layers { 1 } else { n });
        }
        let mut all = vec![shape; n_layers as usize];
        if let Some(last) = all.last_mut().filter(|_| self.c.coin()) {
            // One that takes no part, or differs.
            last.n_kv_heads = if self.c.coin() { 0 } else { last.n_kv_heads };
            last.sliding_window = self.number(3) as u32;
        }
        all.iter_mut().for_each(|shape| shape.struct_size = size_of::<lava_shape>() as u32);
        let n = self.number(n_layers as u64) as u32;
        // More than there are would be read.
        (self.array(n_layers as u64, May::Read, &all), n.min(n_layers))
    }

    fn score_params(&mut self, shape: &lava_shape) -> *mut lava_score_params {
        if self.c.once_in(4) {
            return null_mut();
        }
        let mut sink_logits = null_mut();
        if self.c.once_in(4) {
            let logits: Vec<f32> =
                (0..shape.n_q_heads.min(64)).map(|i| self.float(i as f64 / 8.0) as f32).collect();
            sink_logits = self.array(shape.n_q_heads as u64, May::Read, &logits);
        }
        let mut query_head_weights = null_mut();
        if self.c.once_in(4) {
            let weights: Vec<f32> =
                (0..shape.n_q_heads.min(64)).map(|i| self.float(i as f64 / 4.0) as f32).collect();
            query_head_weights = self.array(shape.n_q_heads as u64, May::Read, &weights);
        }
        let params = lava_score_params {
            struct_size: 0,
            pool: self.number(0) as i32,
            pool_kernel: self.number(7) as u32,
            group_reduce: self.number(1) as i32,
            value_span: self.number(0) as i32,
            lse_base: self.number(0) as i32,
            backend: self.number(0) as i32,
            reserved: self.number(0) as u32,
            sink_logits,
            query_head_weights,
            scale: self.float(0.0) as f32,
            softcap: self.float(0.0) as f32,
            attention: self.number(0) as i32,
            value_weight: self.number(0) as i32,
            gamma: self.float(0.0) as f32,
            decay: self.float(0.0) as f32,
            weight: self.float(0.0) as f32,
            smoothing: self.float(0.0) as f32,
        };
        self.structure(params, May::Read)
    }

    /// `heads` are those whose weights it may have.
    fn select_params(&mut self, prefix: u32, heads: u64) -> *mut lava_select_params {
        if self.c.once_in(4) {
            // The sinks may be more than the entries.
            self.strange = true;
            return null_mut();
        }
        let mut mask = null_mut();
        if prefix > 0 && self.c.once_in(3) {
            let bytes: Vec<u8> = (0..prefix.min(64)).map(|_| self.c.once_in(8) as u8).collect();
            mask = self.array(prefix as u64, May::Read, &bytes);
            // It may ask for more than the budget.
            self.strange = true;
        }
        let mut weights = null_mut();
        if self.c.once_in(3) {
            let of_heads: Vec<f64> = (0..heads.min(MOST)).map(|i| self.float(i as f64)).collect();
            weights = self.array(heads, May::Read, &of_heads);
        }
        let params = lava_select_params {
            struct_size: 0,
            head_floor: self.number(2) as i32,
            alpha: self.float(0.2),
            protected_mask: mask,
            n_sink: self.number(0) as u32,
            head_min: self.number(0) as u32,
            head_weights: weights,
        };
        self.structure(params, May::Read)
    }

    fn cascade_params(&mut self) -> *mut lava_cascade_params {
        if self.c.once_in(4) {
            return null_mut();
        }
        let (layers, evict_every) = (self.c.below(4) as u64, self.number(0) as u32);
        let (layers, reserved) = (self.number(layers) as i32, self.number(0) as u32);
        self.structure(lava_cascade_params { struct_size: 0, layers, evict_every, reserved }, May::Read)
    }

    /// A tensor whose elements lie within what `size` says, or which must be refused. `size` never says more than there is.
    fn tensor(&mut self, rows: &Rows, heads: u32, dim: u32, dtype: lava_dtype, may: May) -> *mut lava_tensor {
        let few: Vec<usize> = (0..heads.min(32) as usize).map(|h| rows.of(h).min(32) as usize).collect();
        let few_dims = dim.clamp(1, 32) as usize;
        let layout = Layout::any(self.c, &few, few_dims);
        // One that reaches over all heads is needed for each of them.
        let start = layout.row_start.clone().filter(|_| heads <= 32).unwrap_or_default();
        let elements = layout.extent(&few, few_dims);
        let data = self.place(elements * element_size(dtype), element_size(dtype), may);
        let region = self.regions.len() - 1;
        if may == May::Read {
            let (step, bytes) = (self.c.byte() as usize | 1, element_size(dtype));
            for i in 0..elements {
                let small = ((i * step) % 17) as f32 / 8.0 - 1.0;
                // The upper half of an f32 is the same number in bf16; in f16 it is some number.
                let bits = small.to_bits();
                // SAFETY: inside the region, byte by byte.
                unsafe {
                    let from = if bytes == 4 { bits.to_le_bytes() } else { (bits >> 16).to_le_bytes() };
                    std::ptr::copy_nonoverlapping(from.as_ptr(), data.add(i * bytes), bytes);
                }
            }
        }
        let row_start = match start.is_empty() {
            true => null_mut(),
            false => {
                let mut start = start.clone();
                start.iter_mut().for_each(|s| *s = self.number(*s as u64) as u32);
                self.array(heads as u64, May::Read, &start)
            }
        };
        let size = self.regions[region].len;
        let tensor = lava_tensor {
            struct_size: 0,
            dtype: self.number(dtype as u64) as i32,
            data: if self.odd() && self.c.coin() { null_mut() } else { data as *mut c_void },
            size: if self.odd() { self.c.below(size + 1) } else { size },
            stride_token: self.number(layout.token as u64) as i64,
            stride_head: self.number(layout.head as u64) as i64,
            stride_dim: self.number(layout.dim as u64) as i64,
            row_start,
        };
        self.described(tensor, rows, heads, dim, region)
    }

    /// The struct of a tensor, and what its elements are.
    fn described(
        &mut self,
        tensor: lava_tensor,
        rows: &Rows,
        heads: u32,
        dim: u32,
        region: usize,
    ) -> *mut lava_tensor {
        let start = match tensor.row_start.is_null() {
            true => vec![],
            // SAFETY: one entry per head, written by `tensor`; maybe misaligned.
            false => {
                (0..heads as usize).map(|h| unsafe { tensor.row_start.add(h).read_unaligned() }).collect()
            }
        };
        self.regions[region].elements = Some(Elements { tensor, start, rows: rows.clone(), heads, dim });
        let described = self.structure(tensor, May::Read);
        if described.is_null() {
            // K alone, where both of V's are not there.
            self.regions[region].may = May::Read;
        }
        described
    }

    /// A workspace or state of `size` bytes or another size, which is passed truthfully.
    fn workspace(&mut self, size: usize, may: May) -> (*mut c_void, usize) {
        let mut given = size;
        if self.odd() {
            given = self.c.pick(&[0, size / 2, size.saturating_sub(1), size + 1, size + 64, size]);
        }
        if given > MOST_WORKSPACE || self.odd() && self.c.coin() {
            self.strange = true;
            return (null_mut(), given);
        }
        (self.place(given, 16, may) as *mut c_void, given)
    }

    /// `(part, n_parts)`.
    fn split(&mut self) -> (u32, u32) {
        let n_parts = self.c.within(1..=4);
        let part = self.c.below(n_parts);
        (self.number(part as u64) as u32, self.number(n_parts as u64) as u32)
    }

    /// A prefix sum of `heads + 1` entries, of counts up to `most`.
    fn prefix_sum(&mut self, heads: u32, most: &dyn Fn(usize) -> u32) -> Vec<u32> {
        let mut cu = vec![0u32];
        for h in 0..heads.min(MOST as u32) as usize {
            let n = self.c.below(most(h).min(12) as usize + 1) as u32;
            cu.push(cu[h].saturating_add(n));
        }
        for i in 0..cu.len().min(8) {
            cu[i] = self.number(cu[i] as u64) as u32;
        }
        cu
    }

    /// Makes the call, and checks what it did. `error` comes last and has its own memory.
    fn call(mut self, name: &str, function: impl FnOnce(*mut lava_error) -> lava_status) {
        let report = lava_error {
            struct_size: size_of::<lava_error>() as u32,
            status: 99,
            layer: 99,
            head: 99,
            argument: c"untouched".as_ptr(),
            message: c"untouched".as_ptr(),
        };
        let (first_block, first_region) = (self.blocks.len(), self.regions.len());
        let regions = std::mem::take(&mut self.regions);
        let error = if self.odd() && self.c.coin() { null_mut() } else { self.structure(report, May::Write) };
        let own = std::mem::replace(&mut self.regions, regions);
        let trusted = own.first().is_some_and(|region| region.len + 4 == size_of::<lava_error>())
            && error.is_aligned()
            // SAFETY: not NULL, since it has a region.
            && unsafe { (error as *const u32).read() } <= 4096;
        let before: Vec<Vec<u8>> = self.blocks.iter().map(|b| b.bytes().to_vec()).collect();

        let status = function(error);

        let named = documented(name).contains(&status) || GENERAL.contains(&status);
        assert!(named, "{name}: status {status} is not in its comment");
        assert!(status == LAVA_OK || self.strange, "{name}: status {status} for a valid call");
        if trusted {
            // SAFETY: aligned and large enough.
            let report = unsafe { error.read() };
            assert_eq!(report.status, status, "{name}: the report's status");
            // SAFETY: static strings, as the header has it.
            let (argument, message, want) = unsafe {
                let text = |p| CStr::from_ptr(p);
                (text(report.argument), text(report.message), text(lava_status_string(status)))
            };
            assert_eq!(message, want);
            assert_eq!(argument.is_empty(), status == LAVA_OK, "{name}: {status} blames {argument:?}");
            if status == LAVA_OK {
                assert_eq!((report.layer, report.head), (LAVA_NONE, LAVA_NONE));
            }
        } else if !error.is_null() && !error.is_aligned() {
            assert_eq!(status, LAVA_ERR_ALIGNMENT);
        }

        let mut allowed: Vec<Vec<bool>> = self.blocks.iter().map(|b| vec![false; b.len()]).collect();
        for region in self.regions.iter().chain(own.iter().filter(|_| trusted)) {
            let may = match region.may {
                May::Read => false,
                May::Scratch => true,
                May::Write => status == LAVA_OK || region.block >= first_block,
                // Whether a log-sum-exp is the queries' own shows when all is done.
                May::WritePartly if name == "lava_score" && status == LAVA_ERR_ARGUMENT => true,
                May::WritePartly => status == LAVA_OK || status == LAVA_ERR_NONFINITE,
            };
            let bytes = &mut allowed[region.block][region.at..region.at + region.len];
            match &region.elements {
                _ if !may => {}
                None => bytes.fill(true),
                Some(elements) => {
                    let size = element_size(elements.tensor.dtype);
                    elements.offsets().into_iter().for_each(|at| bytes[at..at + size].fill(true));
                }
            }
        }
        for ((block, before), allowed) in self.blocks.iter().zip(&before).zip(&allowed) {
            let bytes = block.bytes().iter().zip(before).zip(allowed);
            let wrong = { bytes }.position(|((now, before), allowed)| now != before && !allowed);
            if let Some(at) = wrong {
                let what = self
                    .regions
                    .iter()
                    .take(first_region)
                    .position(|r| std::ptr::eq(&self.blocks[r.block], block));
                panic!("{name}: status {status}, but byte {at} of region {what:?} was written");
            }
        }
    }
}

/// Statuses that any call may return, by the header's rules for all functions: a pointer may be misaligned, and the size of the error
/// report unknown.
const GENERAL: [lava_status; 3] = [LAVA_OK, LAVA_ERR_ALIGNMENT, LAVA_ERR_STRUCT_SIZE];

/// The statuses that a function's comment names, from the header itself.
fn documented(name: &str) -> &'static [lava_status] {
    static ALL: OnceLock<HashMap<String, Vec<lava_status>>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let mut all: HashMap<String, Vec<lava_status>> = HashMap::new();
        let headers = [
            include_str!("../../include/lava.h"),
            include_str!("../../include/lava_methods.h"),
            include_str!("../../include/lava_ranks.h"),
        ];
        // Blocks of a comment and a declaration, with empty lines between them.
        for block in headers.iter().flat_map(|header| header.split("\n\n")) {
            let comment = |line: &&str| line.starts_with("///");
            let text: String =
                block.lines().take_while(comment).flat_map(|line| [&line[3..], "\n"]).collect();
            let declaration = block.lines().find(|line| !comment(line)).unwrap_or_default();
            let Some((_, errors)) = text.split_once("Errors:") else { continue };
            let declaration = declaration.split('(').next().unwrap_or_default();
            let name = declaration.trim().trim_start_matches("lava_status").trim();
            let mut statuses = vec![];
            for word in errors.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
                statuses.extend(all.get(word).into_iter().flatten());
                statuses.extend(STATUSES.iter().filter(|s| s.0 == word).map(|s| s.1));
            }
            all.insert(name.to_owned(), statuses);
        }
        all
    });
    all.get(name).unwrap_or_else(|| panic!("{name} has no comment with its errors"))
}

const STATUSES: [(&str, lava_status); 16] = [
    ("NULL", LAVA_ERR_NULL),
    ("STRUCT_SIZE", LAVA_ERR_STRUCT_SIZE),
    ("ARGUMENT", LAVA_ERR_ARGUMENT),
    ("SHAPE", LAVA_ERR_SHAPE),
    ("STRIDE", LAVA_ERR_STRIDE),
    ("ALIGNMENT", LAVA_ERR_ALIGNMENT),
    ("OVERLAP", LAVA_ERR_OVERLAP),
    ("BUFFER_SIZE", LAVA_ERR_BUFFER_SIZE),
    ("WORKSPACE", LAVA_ERR_WORKSPACE),
    ("OVERFLOW", LAVA_ERR_OVERFLOW),
    ("DTYPE", LAVA_ERR_DTYPE),
    ("BUDGET", LAVA_ERR_BUDGET),
    ("NONFINITE", LAVA_ERR_NONFINITE),
    ("INDICES", LAVA_ERR_INDICES),
    ("STATE", LAVA_ERR_STATE),
    ("UNSUPPORTED", LAVA_ERR_UNSUPPORTED),
];

/// A size function's answer, 0 if it refuses.
fn size_of_call(call: impl FnOnce(*mut usize) -> lava_status) -> usize {
    let mut size = 0;
    call(&mut size);
    size
}

/// A case: what to call, and with what.
pub fn run(data: &[u8]) {
    let c = &mut Choices::new(data);
    let function = c.below(34);
    let rarity = c.pick(&[0, 64, 24, 8]);
    let mut w = World { c, blocks: vec![], regions: vec![], strange: false, rarity };
    let shape = w.shape();
    let entries = n_scores(&shape);
    // SAFETY, here and below: pointers lead to as much memory as the header asks for, or the call must refuse them first.
    unsafe {
        match function {
            0 => {
                let n_layers = w.number(3) as u32;
                let (s, n_shapes) = w.shapes(shape, n_layers);
                let (budget, total) = (w.number(shape.n_tokens as u64) as u32, w.output(1, May::Write));
                w.call("lava_total_entries", |e| lava_total_entries(s, n_shapes, n_layers, budget, total, e));
            }
            1 => {
                let s = w.structure(shape, May::Read);
                let params = w.select_params(shape.n_tokens.saturating_sub(shape.window), 0);
                let (ratio, budget) = (w.float(1.0), w.output(1, May::Write));
                w.call("lava_budget_from_ratio", |e| lava_budget_from_ratio(s, params, ratio, budget, e));
            }
            2 => {
                let (s, params) = (w.structure(shape, May::Read), w.score_params(&shape));
                let size = w.output(1, May::Write);
                w.call("lava_score_workspace_size", |e| lava_score_workspace_size(s, params, size, e));
            }
            3 => score(w, shape, entries),
            4 => {
                let s = w.structure(shape, May::Read);
                let scores = scores(&mut w, entries);
                let (entropy, mass) = (w.output(1, May::Write), w.output(1, May::Write));
                w.call("lava_entropy", |e| lava_entropy(s, scores, entropy, mass, e));
            }
            5 => {
                let n = w.c.within(1..=5) as u64;
                let n = w.number(n);
                let weights: Vec<f64> = (0..n.min(8)).map(|i| w.float(0.1 * i as f64)).collect();
                let n_layers = n as u32;
                let (s, n_shapes) = w.shapes(shape, n_layers);
                let params = w.select_params(shape.n_tokens.saturating_sub(shape.window), 0);
                let weights = w.array(n, May::Read, &weights);
                let (total, out) = (w.number(30), w.output(n, May::Write));
                // What is cut off may be a smaller number, with all its arrays.
                w.call("lava_layer_entries", |e| {
                    lava_layer_entries(s, n_shapes, n_layers, params, weights, total, out, e)
                });
            }
            6 => {
                let s = w.structure(shape, May::Read);
                let (budget, n_kept) = (w.number(5), w.output(1, May::Write));
                w.call("lava_n_kept", |e| lava_n_kept(s, budget, n_kept, e));
            }
            7 => {
                let (s, size) = (w.structure(shape, May::Read), w.output(1, May::Write));
                w.call("lava_select_workspace_size", |e| lava_select_workspace_size(s, size, e));
            }
            8 => select(w, shape, entries),
            9 => {
                let size = w.output(1, May::Write);
                let name = "lava_entries_for_share_workspace_size";
                w.call(name, |e| lava_entries_for_share_workspace_size(size, e));
            }
            10 => {
                let s = w.structure(shape, May::Read);
                let (scores, epsilon) = (scores(&mut w, entries), w.float(0.1));
                let needed = size_of_call(|size| lava_entries_for_share_workspace_size(size, null_mut()));
                let (space, size) = w.workspace(needed, May::Scratch);
                let out = w.output(1, May::Write);
                w.call("lava_entries_for_share", |e| {
                    lava_entries_for_share(s, scores, epsilon, space, size, out, e)
                });
            }
            11 => compact(w, shape),
            12 | 13 => cascade(w, shape, entries),
            14 => {
                let (s, size) = (w.structure(shape, May::Read), w.output(1, May::Write));
                let n = w.number(3) as u32;
                w.call("lava_attend_workspace_size", |e| lava_attend_workspace_size(s, n, size, e));
            }
            15 => attend(w, shape),
            16 => {
                let s = w.structure(shape, May::Read);
                w.strange |= !shape.cu_rows.is_null();
                let scores = own_scores(&mut w, entries, May::Write);
                w.call("lava_mean_over_heads", |e| lava_mean_over_heads(s, scores, e));
            }
            17 => attention_stats(w, shape),
            18 => {
                let s = w.structure(shape, May::Read);
                let n = 2 * shape.n_kv_heads as u64;
                let stats: Vec<f64> = (0..n.min(MOST)).map(|i| w.float(i as f64)).collect();
                let stats = w.array(n, May::Read, &stats);
                let (tau1, tau2, weight) = (w.float(1.0), w.float(2.0), w.output(1, May::Write));
                w.call("lava_preference", |e| lava_preference(s, stats, tau1, tau2, weight, e));
            }
            19 => {
                let n = w.number(4);
                let (budget, all, beta) = (w.number(10), w.number(20), w.float(20.0));
                let weights = w.output(n, May::Write);
                let n = n as u32;
                w.call("lava_pyramid_weights", |e| lava_pyramid_weights(n, budget, all, beta, weights, e));
            }
            20 => {
                let layers = w.number(3) as u32;
                let ((s, n), size) = (w.shapes(shape, layers), w.output(1, May::Write));
                let name = "lava_global_entries_workspace_size";
                w.call(name, |e| lava_global_entries_workspace_size(s, n, layers, size, e));
            }
            21 => {
                let (s, params) = (w.structure(shape, May::Read), w.score_params(&shape));
                let (n, size) = (w.number(3) as u32, w.output(1, May::Write));
                let name = "lava_score_queries_workspace_size";
                w.call(name, |e| lava_score_queries_workspace_size(s, params, n, size, e));
            }
            22 => score_queries(w, shape, entries, false),
            32 => score_queries(w, shape, entries, true),
            23 => {
                let s = w.structure(shape, May::Read);
                let params = w.select_params(shape.n_tokens.saturating_sub(shape.window), 0);
                let smoothing = w.float(0.5) as f32;
                let scores = own_scores(&mut w, entries, May::Write);
                w.call("lava_smooth", |e| lava_smooth(s, params, smoothing, scores, e));
            }
            24 => rotate(w, shape),
            28 => score_keys(w, shape, entries),
            29 => value_norms(w, shape, entries),
            30 => query_statistics(w, shape),
            31 => score_expected(w, shape, entries),
            26 => {
                let s = w.structure(shape, May::Read);
                let params = w.select_params(shape.n_tokens.saturating_sub(shape.window), 0);
                let share = w.float(0.5) as f32;
                let scores = own_scores(&mut w, entries, May::Write);
                w.call("lava_clamp", |e| lava_clamp(s, params, share, scores, e));
            }
            27 => {
                let s = w.structure(shape, May::Read);
                let (by, share) = (scores(&mut w, entries), w.float(0.5));
                let heads = shape.n_kv_heads as u64;
                let most: Vec<u32> = (0..heads.min(MOST)).map(|i| i as u32).collect();
                let most = if w.c.once_in(3) { null_mut() } else { w.array(heads, May::Read, &most) };
                let scores = own_scores(&mut w, entries, May::Write);
                w.call("lava_raise", |e| lava_raise(s, by, share, most, scores, e));
            }
            25 => pick_queries(w, shape),
            _ => global_entries(w, shape, entries),
        }
        let status = lava_status_string(data.iter().fold(0, |n, &b| n << 8 | b as i32));
        assert!(!CStr::from_ptr(status).is_empty());
    }
}

/// Scores of a layer, by the header's rule.
fn n_scores(shape: &lava_shape) -> u64 {
    let window = shape.window.min(shape.n_tokens) as u64;
    let rows = match shape.cu_rows.is_null() {
        true => shape.n_kv_heads as u64 * shape.n_tokens as u64,
        // SAFETY: `rows_of` made as many entries; maybe misaligned.
        false => unsafe { shape.cu_rows.add(shape.n_kv_heads as usize).read_unaligned() as u64 },
    };
    rows.saturating_sub(shape.n_kv_heads as u64 * window)
}

/// Rows of each head of the cache that a shape describes.
fn cache_rows(shape: &lava_shape) -> Rows {
    match shape.cu_rows.is_null() {
        true => Rows::Same(shape.n_tokens),
        // SAFETY: as in `n_scores`.
        false => Rows::cu(
            &(0..=shape.n_kv_heads as usize)
                .map(|h| unsafe { shape.cu_rows.add(h).read_unaligned() })
                .collect::<Vec<_>>(),
        ),
    }
}

/// A layer's scores, one of them maybe not a score.
fn scores(w: &mut World, entries: u64) -> *mut f32 {
    let mut values: Vec<f32> = (0..entries.min(MOST)).map(|_| w.c.byte() as f32 / 16.0).collect();
    if !values.is_empty() && w.odd() {
        let at = w.c.below(values.len());
        values[at] = w.c.pick(&[f32::NAN, f32::INFINITY, -1.0, -0.0, f32::MAX]);
    }
    if entries == 0 && w.c.coin() {
        return null_mut();
    }
    w.array(entries, May::Read, &values)
}

/// Scores that are read and written: not another argument's memory, whose contents are promised.
fn own_scores(w: &mut World, entries: u64, may: May) -> *mut f32 {
    w.strange |= entries > MOST;
    let n = if entries > MOST { 0 } else { entries as usize };
    let scores = w.fresh(n * 4, 4, may) as *mut f32;
    for i in 0..n {
        // SAFETY: `fresh` gave so many; maybe misaligned.
        unsafe { scores.add(i).write_unaligned(w.float(i as f64) as f32) };
    }
    if entries > MOST { null_mut() } else { scores }
}

fn dtype(w: &mut World) -> lava_dtype {
    w.c.pick(&DTYPES) as i32
}

unsafe fn score(mut w: World, shape: lava_shape, entries: u64) {
    let (s, params) = (w.structure(shape, May::Read), w.score_params(&shape));
    // Where the window is longer, its queries are those of all tokens.
    let (rows, window) = (cache_rows(&shape), Rows::Same(shape.window.min(shape.n_tokens)));
    let types = [dtype(&mut w), dtype(&mut w), dtype(&mut w)];
    let q = w.tensor(&window, shape.n_q_heads, shape.head_dim_k, types[0], May::Read);
    let k = w.tensor(&rows, shape.n_kv_heads, shape.head_dim_k, types[1], May::Read);
    let v = w.tensor(&rows, shape.n_kv_heads, shape.head_dim_v, types[2], May::Read);
    let lse = match w.c.once_in(4) {
        true => {
            // Not that of the logits: it is refused, or scores overflow.
            w.strange = true;
            w.tensor(&window, shape.n_q_heads, 1, LAVA_F32, May::Read)
        }
        false => null_mut(),
    };
    // SAFETY: see `run`.
    let needed = unsafe { size_of_call(|size| lava_score_workspace_size(s, params, size, null_mut())) };
    let (space, size) = w.workspace(needed, May::Scratch);
    let (part, n_parts) = w.split();
    // Only the part's own are written: the target `score` checks which, this one does not.
    let to = w.output(entries, May::WritePartly);
    // SAFETY: see `run`.
    w.call("lava_score", |e| unsafe {
        lava_score(s, params, q, k, v, lse, part, n_parts, space, size, to, e)
    });
}

unsafe fn score_queries(mut w: World, shape: lava_shape, entries: u64, at_own: bool) {
    let (s, params) = (w.structure(shape, May::Read), w.score_params(&shape));
    let n = w.number(3) as u32;
    let (rows, queries) = (cache_rows(&shape), Rows::Same(n));
    let types = [dtype(&mut w), dtype(&mut w), dtype(&mut w)];
    let q = w.tensor(&queries, shape.n_q_heads, shape.head_dim_k, types[0], May::Read);
    let k = w.tensor(&rows, shape.n_kv_heads, shape.head_dim_k, types[1], May::Read);
    let v = w.tensor(&rows, shape.n_kv_heads, shape.head_dim_v, types[2], May::Read);
    // SAFETY: see `run`.
    let needed =
        unsafe { size_of_call(|size| lava_score_queries_workspace_size(s, params, n, size, null_mut())) };
    let (space, size) = w.workspace(needed, May::Scratch);
    let (part, n_parts) = w.split();
    let scores = own_scores(&mut w, entries, May::WritePartly);
    if !at_own {
        // SAFETY: see `run`.
        w.call("lava_score_queries", |e| unsafe {
            lava_score_queries(s, params, n, q, k, v, part, n_parts, space, size, scores, e)
        });
        return;
    }
    // They may see nothing of a cache that has lost rows.
    w.strange |= !shape.cu_rows.is_null();
    let at: Vec<u32> = (0..n.min(64)).map(|j| shape.n_tokens.saturating_sub(n.saturating_sub(j))).collect();
    let at = w.array(n as u64, May::Read, &at);
    // SAFETY: see `run`.
    w.call("lava_score_queries_at", |e| unsafe {
        lava_score_queries_at(s, params, n, at, q, k, v, part, n_parts, space, size, scores, e)
    });
}

unsafe fn pick_queries(mut w: World, shape: lava_shape) {
    let s = w.structure(shape, May::Read);
    let (n, n_picked) = (w.number(7) as u32, w.number(3) as u32);
    let of_q = dtype(&mut w);
    let q = w.tensor(&Rows::Same(n), shape.n_q_heads, shape.head_dim_k, of_q, May::Read);
    let (novelty, picked) = (w.output(n as u64, May::WritePartly), w.output(n_picked as u64, May::Write));
    // SAFETY: see `run`.
    w.call("lava_pick_queries", |e| unsafe { lava_pick_queries(s, n, q, n_picked, novelty, picked, e) });
}

unsafe fn rotate(mut w: World, shape: lava_shape) {
    let s = w.structure(shape, May::Read);
    let n_rot = w.number(shape.head_dim_k as u64 / 2 * 2) as u32;
    let frequencies: Vec<f32> =
        (0..n_rot.min(64) / 2).map(|i| w.float(1.0 / (1 + i) as f64) as f32).collect();
    let frequencies = w.array(n_rot as u64 / 2, May::Read, &frequencies);
    let (n, style, position) = (w.number(3) as u32, w.number(0) as i32, w.number(100) as u32);
    let magnitude = w.float(0.0) as f32;
    let (queries, of_q) = (Rows::Same(n), dtype(&mut w));
    let q = w.tensor(&queries, shape.n_q_heads, shape.head_dim_k, of_q, May::Read);
    let out = w.tensor(&queries, shape.n_q_heads, shape.head_dim_k, LAVA_F32, May::WritePartly);
    // SAFETY: see `run`.
    w.call("lava_rotate", |e| unsafe {
        lava_rotate(s, n, q, frequencies, n_rot, style, magnitude, position, out, e)
    });
}

unsafe fn score_keys(mut w: World, shape: lava_shape, entries: u64) {
    let s = w.structure(shape, May::Read);
    let of_k = dtype(&mut w);
    let k = w.tensor(&cache_rows(&shape), shape.n_kv_heads, shape.head_dim_k, of_k, May::Read);
    let ((part, n_parts), scores) = (w.split(), w.output(entries, May::WritePartly));
    // SAFETY: see `run`.
    w.call("lava_score_keys", |e| unsafe { lava_score_keys(s, k, part, n_parts, scores, e) });
}

/// Of each of so many heads so many numbers, or NULL.
fn of_heads<T: Copy>(w: &mut World, heads: u32, each: u64, number: fn(f64) -> T) -> *mut T {
    if w.c.once_in(4) {
        return null_mut();
    }
    let n = (heads as u64).saturating_mul(each);
    let values: Vec<T> = (0..n.min(MOST)).map(|i| number(w.float(i as f64 / 8.0))).collect();
    w.array(n, May::Read, &values)
}

unsafe fn value_norms(mut w: World, shape: lava_shape, entries: u64) {
    let s = w.structure(shape, May::Read);
    let (heads, d) = (shape.n_kv_heads, shape.head_dim_v as u64);
    let gram = of_heads(&mut w, heads, d.saturating_mul(d), |x| x as f32);
    let centre = of_heads(&mut w, heads, d, |x| x as f32);
    let of_v = dtype(&mut w);
    let v = w.tensor(&cache_rows(&shape), heads, shape.head_dim_v, of_v, May::Read);
    let ((part, n_parts), norms) = (w.split(), w.output(entries, May::WritePartly));
    // SAFETY: see `run`.
    w.call("lava_value_norms", |e| unsafe { lava_value_norms(s, gram, centre, v, part, n_parts, norms, e) });
}

unsafe fn query_statistics(mut w: World, shape: lava_shape) {
    let s = w.structure(shape, May::Read);
    let n_rot = w.number(shape.head_dim_k as u64 / 2 * 2) as u32;
    let frequencies: Vec<f32> =
        (0..n_rot.min(64) / 2).map(|i| w.float(1.0 / (1 + i) as f64) as f32).collect();
    let frequencies = w.array(n_rot as u64 / 2, May::Read, &frequencies);
    let (n, ahead, of_q) = (w.number(3) as u32, w.number(9).min(99) as u32, dtype(&mut w));
    let q = w.tensor(&Rows::Same(n), shape.n_q_heads, shape.head_dim_k, of_q, May::Read);
    let (heads, d) = (shape.n_q_heads as u64, shape.head_dim_k as u64);
    let mean = w.output::<f64>(heads.saturating_mul(d), May::WritePartly);
    let covariance = w.output::<f64>(heads.saturating_mul(d).saturating_mul(d), May::WritePartly);
    // SAFETY: see `run`.
    w.call("lava_query_statistics", |e| unsafe {
        lava_query_statistics(s, n, q, frequencies, n_rot, 0, 1.0, 7, ahead, mean, covariance, e)
    });
}

unsafe fn score_expected(mut w: World, shape: lava_shape, entries: u64) {
    let s = w.structure(shape, May::Read);
    let (heads, d) = (shape.n_q_heads, shape.head_dim_k as u64);
    let mean = of_heads(&mut w, heads, d, |x| x);
    w.strange |= mean.is_null();
    let covariance = of_heads(&mut w, heads, d.saturating_mul(d), |x| x);
    let (scale, of_k) = (w.float(0.0) as f32, dtype(&mut w));
    let k = w.tensor(&cache_rows(&shape), shape.n_kv_heads, shape.head_dim_k, of_k, May::Read);
    let (part, n_parts) = w.split();
    let logits = w.output::<f64>(shape.n_tokens as u64, May::Scratch);
    let scores = w.output(entries, May::WritePartly);
    // SAFETY: see `run`.
    w.call("lava_score_expected", |e| unsafe {
        lava_score_expected(s, scale, mean, covariance, k, part, n_parts, logits, scores, e)
    });
}

unsafe fn attention_stats(mut w: World, shape: lava_shape) {
    let (s, params) = (w.structure(shape, May::Read), w.score_params(&shape));
    let (rows, window) = (cache_rows(&shape), Rows::Same(shape.window.min(shape.n_tokens)));
    let types = [dtype(&mut w), dtype(&mut w)];
    let q = w.tensor(&window, shape.n_q_heads, shape.head_dim_k, types[0], May::Read);
    let k = w.tensor(&rows, shape.n_kv_heads, shape.head_dim_k, types[1], May::Read);
    // SAFETY: see `run`.
    let needed = unsafe { size_of_call(|size| lava_score_workspace_size(s, params, size, null_mut())) };
    let (space, size) = w.workspace(needed, May::Scratch);
    let (part, n_parts) = w.split();
    let stats = w.output(2 * shape.n_kv_heads as u64, May::WritePartly);
    // SAFETY: see `run`.
    w.call("lava_attention_stats", |e| unsafe {
        lava_attention_stats(s, params, q, k, null_mut(), part, n_parts, space, size, stats, e)
    });
}

unsafe fn global_entries(mut w: World, shape: lava_shape, entries: u64) {
    let layers = w.number(2) as u32;
    let heads = (shape.n_kv_heads as u64).saturating_mul(layers as u64);
    let (s, n) = w.shapes(shape, layers);
    let params = w.select_params(shape.n_tokens.saturating_sub(shape.window), 0);
    // Neither an affine floor nor head weights mean anything here.
    w.strange = true;
    let scores = scores(&mut w, entries.saturating_mul(layers as u64));
    let total = w.number(20);
    // SAFETY: see `run`.
    let needed =
        unsafe { size_of_call(|size| lava_global_entries_workspace_size(s, n, layers, size, null_mut())) };
    let (space, size) = w.workspace(needed, May::Scratch);
    let (out, weights) = (w.output(layers as u64, May::Write), w.output(heads, May::Write));
    // SAFETY: see `run`.
    w.call("lava_global_entries", |e| unsafe {
        lava_global_entries(s, n, layers, params, scores, total, space, size, out, weights, e)
    });
}

unsafe fn select(mut w: World, shape: lava_shape, entries: u64) {
    let s = w.structure(shape, May::Read);
    let params = w.select_params(shape.n_tokens.saturating_sub(shape.window), shape.n_kv_heads as u64);
    let scores = scores(&mut w, entries);
    let n_entries = w.c.below(40) as u64;
    let n_entries = w.number(n_entries);
    let window = shape.n_tokens.min(shape.window) as u64;
    let n_kept = n_entries.min(entries).saturating_add((shape.n_kv_heads as u64).saturating_mul(window));
    // SAFETY: see `run`.
    let needed = unsafe { size_of_call(|size| lava_select_workspace_size(s, size, null_mut())) };
    let (space, size) = w.workspace(needed, May::Scratch);
    let (indices, capacity) = (w.output(n_kept, May::Write), w.number(n_kept));
    let cu = w.output(shape.n_kv_heads as u64 + 1, May::Write);
    let rows = if w.c.coin() { null_mut() } else { w.output(n_kept, May::Write) };
    let selection = lava_selection {
        struct_size: 0,
        everything_kept: 9,
        n_kept: 9,
        n_entries: 9,
        mass: 9.0,
        evicted_share: 9.0,
    };
    let report = if w.c.coin() { null_mut() } else { w.structure(selection, May::Write) };
    // SAFETY: see `run`.
    w.call("lava_select", |e| unsafe {
        lava_select(s, params, scores, n_entries, space, size, indices, capacity, cu, rows, report, e)
    });
}

unsafe fn compact(mut w: World, shape: lava_shape) {
    let heads = shape.n_kv_heads;
    let s = w.structure(shape, May::Read);
    let own = cache_rows(&shape);
    let from_cu = w.c.coin().then(|| w.prefix_sum(heads, &|h| own.of(h)));
    let before = from_cu.as_ref().map_or(own.clone(), |cu| Rows::cu(cu));
    let cu = w.prefix_sum(heads, &|h| before.of(h));
    let after = Rows::cu(&cu);
    // Ascending, the first ones or the last.
    let mut kept = vec![];
    for h in 0..heads.min(MOST as u32) as usize {
        let n = after.of(h).min(64);
        let first = if w.c.coin() { 0 } else { before.of(h).saturating_sub(n) };
        kept.extend((0..n).map(|r| first.wrapping_add(r)));
    }
    if !kept.is_empty() {
        let at = w.c.below(kept.len());
        kept[at] = w.number(kept[at] as u64) as u32;
    }
    let last = if heads as u64 > MOST { u64::MAX } else { cu[heads as usize] as u64 };
    let cu_rows = match &from_cu {
        Some(cu) => w.array(heads as u64 + 1, May::Read, cu),
        None => null_mut(),
    };
    // Without a prefix sum the rows are those of the shape.
    let before = if cu_rows.is_null() { own } else { before };
    // `rows` may not be read at all where the prefix sum is not one.
    kept.resize((last.min(MOST)) as usize, 0);
    let rows = w.array(last, May::Read, &kept);
    let cu = w.array(heads as u64 + 1, May::Read, &cu);
    let of = |w: &mut World, dim: u32| {
        let dtype = dtype(w);
        let src = w.tensor(&before, heads, dim, dtype, May::Read);
        let region = w.regions.iter().rposition(|r| r.elements.is_some()).expect("a tensor");
        if !w.c.once_in(3) || src.is_null() {
            return (src, w.tensor(&after, heads, dim, dtype, May::Write));
        }
        // In place, or nearly. Where the source has no room for its strides, it is refused.
        let mut dst = w.regions[region].elements.as_ref().expect("a tensor").tensor;
        dst.stride_token = w.number(dst.stride_token as u64) as i64;
        dst.stride_head = w.number(dst.stride_head as u64) as i64;
        let Region { block, at, len, .. } = w.regions[region];
        w.regions.push(Region { may: May::Write, block, at, len, elements: None });
        let region = w.regions.len() - 1;
        // More rows than the source has do not fit.
        w.strange = true;
        (src, w.described(dst, &after, heads, dim, region))
    };
    let (k_src, k_dst) = of(&mut w, shape.head_dim_k);
    let (v_src, v_dst) = if w.c.once_in(4) { (null_mut(), null_mut()) } else { of(&mut w, shape.head_dim_v) };
    let (part, n_parts) = w.split();
    // SAFETY: see `run`.
    w.call("lava_compact", |e| unsafe {
        lava_compact(s, k_src, v_src, cu_rows, rows, cu, k_dst, v_dst, part, n_parts, e)
    });
}

unsafe fn cascade(mut w: World, shape: lava_shape, entries: u64) {
    let (n_layers, total) = (w.number(2) as u32, w.number(20));
    let heads = (shape.n_kv_heads as u64).saturating_mul(n_layers as u64);
    let (s, n) = w.shapes(shape, n_layers);
    let params = w.select_params(shape.n_tokens.saturating_sub(shape.window), heads);
    let how = w.cascade_params();
    // One sort takes no affine floor and no head weights.
    w.strange = true;
    // SAFETY: see `run`, here and below.
    let needed = unsafe {
        size_of_call(|size| lava_cascade_state_size(s, n, n_layers, total, params, how, size, null_mut()))
    };
    match w.c.below(4) {
        0 => {
            let size = w.output(1, May::Write);
            w.call("lava_cascade_state_size", |e| unsafe {
                lava_cascade_state_size(s, n, n_layers, total, params, how, size, e)
            });
        }
        1 => {
            let (state, size) = w.workspace(needed, May::Scratch);
            w.call("lava_cascade_init", |e| unsafe {
                lava_cascade_init(s, n, n_layers, total, params, how, state, size, e)
            });
        }
        which => {
            let (state, size) = w.workspace(needed, if which == 2 { May::Write } else { May::Read });
            // Initialised as far as it can be; a call on what is not a state must be refused.
            let ready = unsafe {
                lava_cascade_init(s, n, n_layers, total, params, how, state, size, null_mut()) == LAVA_OK
            };
            let pushes = w.c.below(3);
            if ready && entries <= MOST {
                let zeros = vec![0.5f32; entries as usize];
                let own = lava_shape { struct_size: size_of::<lava_shape>() as u32, ..shape };
                for _ in 0..pushes {
                    unsafe {
                        lava_cascade_push(state, size, &own, zeros.as_ptr(), std::ptr::null(), null_mut())
                    };
                }
            }
            if which == 2 {
                let own = w.structure(shape, May::Read);
                let scores = scores(&mut w, entries);
                let weight = [w.float(1.0)];
                let weight = if w.c.coin() { null_mut() } else { w.array(1, May::Read, &weight) };
                w.call("lava_cascade_push", |e| unsafe {
                    lava_cascade_push(state, size, own, scores, weight, e)
                });
            } else {
                let out = lava_cascade_layer {
                    struct_size: 0,
                    unchanged: 9,
                    kept_indices: c"".as_ptr() as *const u32,
                    cu_kept: c"".as_ptr() as *const u32,
                    rows: c"".as_ptr() as *const u32,
                    cu_rows: c"".as_ptr() as *const u32,
                    n_entries: 9,
                    entropy: 9.0,
                    mass: 9.0,
                    evicted_share: 9.0,
                };
                let (out, layer) = (w.structure(out, May::Write), w.number(0) as u32);
                w.call("lava_cascade_get", |e| unsafe { lava_cascade_get(state, size, layer, out, e) });
            }
        }
    }
}

unsafe fn attend(mut w: World, shape: lava_shape) {
    let heads = shape.n_kv_heads;
    let s = w.structure(shape, May::Read);
    let n_queries = w.c.within(1..=9) as u64;
    let n_queries = w.number(n_queries) as u32;
    let n_rows: Vec<u32> = (0..heads.min(MOST as u32))
        .map(|_| {
            let n = n_queries.min(64) as usize + w.c.below(9);
            w.number(n as u64) as u32
        })
        .collect();
    let rows = Rows::Of(n_rows.clone());
    let n_rows = w.array(heads as u64, May::Read, &n_rows);
    let positions = w.c.once_in(3);
    let (mut kept_indices, mut cu_kept) = (null_mut(), null_mut());
    if positions {
        let cu = w.prefix_sum(heads, &|h| rows.of(h));
        let n = if heads as u64 > MOST { u64::MAX } else { cu[heads as usize] as u64 };
        let kept: Vec<u32> = (0..n.min(MOST) as u32).map(|i| w.number(i as u64) as u32).collect();
        (kept_indices, cu_kept) = (w.array(n, May::Read, &kept), w.array(heads as u64 + 1, May::Read, &cu));
    }
    let mut sink_logits = null_mut();
    if w.c.once_in(4) {
        let logits: Vec<f32> = (0..shape.n_q_heads.min(64)).map(|i| w.float(i as f64 / 8.0) as f32).collect();
        sink_logits = w.array(shape.n_q_heads as u64, May::Read, &logits);
    }
    let params = lava_attend_params {
        struct_size: 0,
        causal: w.number(1) as u32,
        scale: w.float(0.0) as f32,
        softcap: w.float(0.0) as f32,
        n_base: w.number(20) as u32,
        lse_base: w.number(0) as i32,
        backend: w.number(0) as i32,
        reserved: w.number(0) as u32,
        kept_indices,
        cu_kept,
        sink_logits,
    };
    // A sliding window needs positions.
    w.strange |= shape.sliding_window > 0 && !positions;
    let params = w.structure(params, May::Read);
    let (new, types) = (Rows::Same(n_queries), [dtype(&mut w), dtype(&mut w), dtype(&mut w)]);
    let q = w.tensor(&new, shape.n_q_heads, shape.head_dim_k, types[0], May::Read);
    let k = w.tensor(&rows, heads, shape.head_dim_k, types[1], May::Read);
    let v = w.tensor(&rows, heads, shape.head_dim_v, types[2], May::Read);
    let out = w.tensor(&new, shape.n_q_heads, shape.head_dim_v, LAVA_F32, May::WritePartly);
    let lse = match w.c.coin() {
        true => null_mut(),
        false => w.tensor(&new, shape.n_q_heads, 1, LAVA_F32, May::WritePartly),
    };
    // SAFETY: see `run`.
    let needed = unsafe { size_of_call(|size| lava_attend_workspace_size(s, n_queries, size, null_mut())) };
    let (space, size) = w.workspace(needed, May::Scratch);
    let (part, n_parts) = w.split();
    // SAFETY: see `run`.
    w.call("lava_attend", |e| unsafe {
        lava_attend(s, params, n_queries, q, k, v, n_rows, out, lse, part, n_parts, space, size, e)
    });
}
