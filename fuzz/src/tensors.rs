//! Tensors in any layout and element type, in memory that holds not a byte more than their elements need.

use crate::choices::{Choices, Random};
use crate::memory::{Block, Side};
use half::{bf16, f16};
use lava::ffi::lava_tensor;
use lava::{Dtype, Rows, Strides, Tensor};
use std::ffi::c_void;
use std::ptr::null;

pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

pub fn side(c: &mut Choices) -> Side {
    if c.coin() { Side::Front } else { Side::Back }
}

/// Where a tensor's elements are: the fields of `lava_tensor`, in elements.
#[derive(Clone, Debug)]
pub struct Layout {
    pub token: usize,
    pub head: usize,
    pub dim: usize,
    pub row_start: Option<Vec<u32>>,
}

impl Layout {
    /// One of those that `lava.h` names, or one with gaps on every axis. `rows` of each head, `dim` elements each.
    pub fn any(c: &mut Choices, rows: &[usize], dim: usize) -> Self {
        let (most, heads) = (rows.iter().copied().max().unwrap_or(0).max(1), rows.len());
        let strides = |token, head, dim| Self { token, head, dim, row_start: None };
        match c.below(5) {
            0 => strides(heads * dim, dim, 1),
            1 => strides(dim, most * dim, 1),
            2 => strides(1, dim * most, most),
            3 => {
                let (step, gap) = (c.within(1..=3), c.below(3));
                let row = dim * step + gap;
                match c.coin() {
                    true => strides(row * heads + c.below(3), row, step),
                    false => strides(row, row * most + c.below(3), step),
                }
            }
            _ => Self::ragged(c, rows, dim),
        }
    }

    /// Heads one after the other, with room here and there.
    pub fn ragged(c: &mut Choices, rows: &[usize], dim: usize) -> Self {
        let room = c.below(3);
        let mut at = c.below(2) as u32;
        let start = |n: &usize| {
            let start = at;
            at += (*n + room) as u32;
            start
        };
        let row_start = rows.iter().map(start).collect();
        Self { token: dim, head: 0, dim: 1, row_start: Some(row_start) }
    }

    /// By the formula of `lava.h`.
    pub fn index(&self, r: usize, h: usize, c: usize) -> usize {
        let start = self.row_start.as_ref().map_or(0, |s| s[h] as usize);
        (start + r) * self.token + h * self.head + c * self.dim
    }

    /// Elements that the library asks room for: up to and with the last, each head as long as the longest where the heads are
    /// in equal steps.
    pub fn extent(&self, rows: &[usize], dim: usize) -> usize {
        let most = rows.iter().copied().max().unwrap_or(0);
        let rows_of = |h: usize| if self.row_start.is_some() { rows[h] } else { most };
        let with_rows = (0..rows.len()).filter(|&h| rows_of(h) > 0);
        with_rows.map(|h| self.index(rows_of(h) - 1, h, dim - 1) + 1).max().unwrap_or(0)
    }
}

/// A tensor with its own memory.
pub struct Laid {
    pub layout: Layout,
    pub dtype: Dtype,
    pub block: Block,
    pub rows: Vec<usize>,
    pub dim: usize,
    /// `x[head][row][element]` as the element type has it, for the reference.
    pub values: lava::reference::Heads,
    row_start: Option<Block>,
}

impl Laid {
    /// Poison.
    pub fn empty(layout: Layout, dtype: Dtype, rows: &[usize], dim: usize, side: Side) -> Self {
        let block = Block::new(layout.extent(rows, dim) * dtype.size(), side);
        let row_start = layout.row_start.as_ref().map(|start| Block::of(start, side));
        Self { layout, dtype, block, rows: rows.to_vec(), dim, values: vec![], row_start }
    }

    /// Filled with `value(row, head, element)`.
    pub fn new(
        c: &mut Choices,
        dtype: Dtype,
        rows: &[usize],
        dim: usize,
        mut value: impl FnMut(usize, usize, usize) -> f32,
    ) -> Self {
        let (layout, side) = (Layout::any(c, rows, dim), side(c));
        let mut laid = Self::empty(layout, dtype, rows, dim, side);
        let mut values: Vec<_> = rows.iter().map(|&n| vec![vec![0.0; dim]; n]).collect();
        for (h, &n) in rows.iter().enumerate() {
            for (r, c) in (0..n).flat_map(|r| (0..dim).map(move |c| (r, c))) {
                laid.set(r, h, c, value(r, h, c));
                values[h][r][c] = laid.get(r, h, c) as f64;
            }
        }
        laid.values = values;
        laid
    }

    pub fn set(&self, r: usize, h: usize, c: usize, value: f32) {
        let i = self.layout.index(r, h, c);
        match self.dtype {
            Dtype::F32 => self.block.slice_mut::<f32>()[i] = value,
            Dtype::F16 => self.block.slice_mut::<u16>()[i] = f16::from_f32(value).to_bits(),
            Dtype::BF16 => self.block.slice_mut::<u16>()[i] = bf16::from_f32(value).to_bits(),
        }
    }

    pub fn get(&self, r: usize, h: usize, c: usize) -> f32 {
        let i = self.layout.index(r, h, c);
        match self.dtype {
            Dtype::F32 => self.block.slice_mut::<f32>()[i],
            Dtype::F16 => f16::from_bits(self.block.slice_mut::<u16>()[i]).to_f32(),
            Dtype::BF16 => bf16::from_bits(self.block.slice_mut::<u16>()[i]).to_f32(),
        }
    }

    pub fn c(&self) -> lava_tensor {
        lava_tensor {
            struct_size: size_of::<lava_tensor>() as u32,
            dtype: self.dtype as i32,
            data: self.block.ptr::<c_void>(),
            size: self.block.len(),
            stride_token: self.layout.token as i64,
            stride_head: self.layout.head as i64,
            stride_dim: self.layout.dim as i64,
            row_start: self.row_start.as_ref().map_or(null(), |s| s.ptr::<u32>()),
        }
    }

    pub fn view<'a>(&'a self, rows: Rows<'a>) -> Tensor<'a> {
        let strides = Strides {
            token: self.layout.token as i64,
            head: self.layout.head as i64,
            dim: self.layout.dim as i64,
            row_start: self.layout.row_start.as_deref(),
        };
        let (data, size, heads) = (self.block.ptr::<u8>(), self.block.len(), self.rows.len());
        // SAFETY: the block is that large; the targets write no tensor while it is read.
        unsafe { Tensor::from_raw(data, size, self.dtype, strides, rows, heads, self.dim) }
            .expect("our layouts are valid")
    }

    /// Which bytes are elements.
    pub fn element_bytes(&self) -> Vec<bool> {
        let mut own = vec![false; self.block.len()];
        for (h, &n) in self.rows.iter().enumerate() {
            for (r, c) in (0..n).flat_map(|r| (0..self.dim).map(move |c| (r, c))) {
                let at = self.layout.index(r, h, c) * self.dtype.size();
                own[at..at + self.dtype.size()].fill(true);
            }
        }
        own
    }
}

/// What tensors are filled with.
pub fn contents(c: &mut Choices) -> impl FnMut() -> f32 + use<> {
    let kind = c.below(6);
    let size = c.pick(&[0.05, 1.0, 2.0, 16.0]);
    let mut random: Random = c.random();
    move || match kind {
        0 => 0.0,
        1 => size,
        // Few different numbers: ties.
        2 => size * (random.below(3) as f32 - 1.0),
        // Mostly small, some far out.
        3 => size * if random.below(16) == 0 { 8.0 } else { 0.1 } * random.real(),
        _ => size * random.real(),
    }
}
