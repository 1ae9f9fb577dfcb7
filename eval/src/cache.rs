//! One layer's cache as an engine would hold it after eviction: f16 rows, a different number for each head, with room after
//! them for the tokens to come.

use std::cell::RefCell;

use anyhow::Result;
use half::f16;
use lava::attend::{AttendInputs, AttendParams, Positions, attend};
use lava::compact::compact;
use lava::workspace::{Carver, WORKSPACE_ALIGN};
use lava::{Backend, Rows, Shape, Strides, Tensor, TensorMut};

use crate::model::{Config, LayerState};

pub struct Cache {
    k: Vec<f16>,
    v: Vec<f16>,
    /// First row of each head.
    row_start: Vec<u32>,
    /// Rows of each head that hold prompt tokens.
    n_kept: Vec<u32>,
    /// Tokens that there is room for after those.
    room: usize,
    /// Where the kept rows are in the text, and where the next one will be: a sliding window asks.
    kept: Kept,
    n_tokens: usize,
    sliding_window: Option<usize>,
    head_dim: usize,
}

/// Kept prompt positions of a layer, as [`lava::select::select`] returns them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    pub indices: Vec<u32>,
    pub cu: Vec<u32>,
}

impl Kept {
    pub fn everything(n_kv_heads: usize, n_tokens: usize) -> Self {
        Self {
            indices: (0..n_kv_heads).flat_map(|_| 0..n_tokens as u32).collect(),
            cu: (0..=n_kv_heads).map(|h| (h * n_tokens) as u32).collect(),
        }
    }

    pub fn head(&self, h: usize) -> &[u32] {
        &self.indices[self.cu[h] as usize..self.cu[h + 1] as usize]
    }
}

impl Cache {
    /// The kept rows of `layer`, gathered by the library.
    pub fn compact(cfg: &Config, layer: &LayerState, kept: &Kept, room: usize) -> Result<Self> {
        let (heads, d) = (cfg.n_kv_heads, cfg.head_dim);
        let n_tokens = layer.k.len() / cfg.kv_width();
        let row_start: Vec<u32> = (0..=heads).map(|h| kept.cu[h] + (h * room) as u32).collect();
        let n_kept: Vec<u32> = kept.cu.windows(2).map(|w| w[1] - w[0]).collect();
        let gather = |from: &[f16]| -> Result<Vec<f16>> {
            let mut to = vec![f16::ZERO; row_start[heads] as usize * d];
            let src =
                Tensor::from_slice(from, Strides::token_major(heads, d), Rows::Same(n_tokens), heads, d)?;
            let strides = Strides::ragged(&row_start, d);
            let mut dst = TensorMut::from_slice(&mut to, strides, Rows::PerHead(&n_kept), heads, d)?;
            compact(&src, &mut dst, &kept.indices, &kept.cu, 0..heads)?;
            Ok(to)
        };
        let (k, v) = (gather(&layer.k)?, gather(&layer.v)?);
        let (kept, sliding_window) = (kept.clone(), layer.sliding_window);
        Ok(Self { k, v, row_start, n_kept, room, kept, n_tokens, sliding_window, head_dim: d })
    }

    /// Bytes of the prompt's K and V that are left.
    pub fn bytes(&self) -> usize {
        self.n_kept.iter().sum::<u32>() as usize * 2 * self.head_dim * size_of::<f16>()
    }

    /// Puts new tokens' keys and values, `[n, n_kv_heads, head_dim]`, after the kept rows. All of the room is used.
    pub fn set_new(&mut self, k: &[f16], v: &[f16]) {
        let (heads, d) = (self.n_kept.len(), self.head_dim);
        assert_eq!(k.len(), self.room * heads * d, "the cache was made for another number of new tokens");
        for h in 0..heads {
            let first = (self.row_start[h] + self.n_kept[h]) as usize * d;
            for t in 0..self.room {
                let (from, to) = ((t * heads + h) * d, first + t * d);
                self.k[to..to + d].copy_from_slice(&k[from..from + d]);
                self.v[to..to + d].copy_from_slice(&v[from..from + d]);
            }
        }
    }

    /// Attention of the new tokens' queries `[n, n_q_heads, head_dim]` over the kept rows and, causally, their own.
    pub fn attend(&self, cfg: &Config, q: &[f32]) -> Result<Vec<f32>> {
        let (heads, d) = (cfg.n_kv_heads, cfg.head_dim);
        let shape = Shape { sliding_window: self.sliding_window, ..shape(cfg, 1, 1) };
        let rows: Vec<u32> = self.n_kept.iter().map(|n| n + self.room as u32).collect();
        let view =
            |x| Tensor::from_slice(x, Strides::ragged(&self.row_start, d), Rows::PerHead(&rows), heads, d);
        let per_query = Strides::token_major(cfg.n_q_heads, d);
        let inputs = AttendInputs {
            q: Tensor::from_slice(q, per_query, Rows::Same(self.room), cfg.n_q_heads, d)?,
            k: view(&self.k)?,
            v: view(&self.v)?,
        };
        let mut out = vec![0.0f32; q.len()];
        let mut to = TensorMut::from_slice(&mut out, per_query, Rows::Same(self.room), cfg.n_q_heads, d)?;
        let positions = self.sliding_window.map(|_| Positions {
            kept_indices: &self.kept.indices,
            cu_kept: &self.kept.cu,
            n_base: self.n_tokens as u32,
        });
        let params = AttendParams { causal: true, positions, ..AttendParams::default() };
        with_workspace(lava::attend::workspace_size(&shape, self.room)?, |w| {
            attend(Backend::detect(), &shape, &params, self.room, &inputs, &mut to, None, 0, 1, w)
        })?;
        Ok(out)
    }
}

/// A layer's shape for the library.
pub fn shape(cfg: &Config, n_tokens: usize, window: usize) -> Shape<'static> {
    Shape::dense(n_tokens, cfg.n_q_heads, cfg.n_kv_heads, cfg.head_dim, cfg.head_dim, window)
}

/// Scratch memory of the thread, aligned as the library needs it.
pub fn with_workspace<T>(size: usize, f: impl FnOnce(&mut Carver) -> lava::Result<T>) -> lava::Result<T> {
    thread_local!(static MEMORY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
    MEMORY.with_borrow_mut(|memory| {
        memory.resize(memory.len().max(size + WORKSPACE_ALIGN), 0);
        let start = memory.as_ptr().align_offset(WORKSPACE_ALIGN);
        f(&mut Carver::over(&mut memory[start..start + size])?)
    })
}
