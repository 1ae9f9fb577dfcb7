//! Which of the prompt's queries to ask again: in each stretch the one that is least like all others.
//!
//! ```text
//! novelty[j] = −Σ_h cos(q[j, h], m[h])        m[h] = 1/n Σ_j q[j, h]
//! ```
//!
//! Most queries of a head look for much the same thing, and what they find is kept because of any of them. A name, a number, a word that
//! stands nowhere else looks for something of its own, and what it finds, a later mention will look for too. One from each stretch of
//! the prompt, so that no part of it goes unasked.
//!
//! This project's own; it is derived, with what it brings, in `docs/methods.md`. Before RoPE, so that where a query stands says nothing.

use crate::error::{ErrorKind, Result, ensure};
use crate::params::{MAX_HEAD_DIM, Shape};
use crate::view::Tensor;

/// Rows of `q` to ask again with, ascending, as many as `picked` has room for: the rows are cut into that many stretches, equal but for
/// one row, and each gives its most novel one; of equals the first.
///
/// `q` is `[n_rows, n_q_heads, head_dim_k]` before RoPE, a layer's; of the shape query heads and `head_dim_k` are used. Leave out the
/// first tokens, on which attention sinks stand. `novelty` is `[n_rows]` and receives each row's. Everything is computed in f64 in one
/// order: the same rows on every machine. On an error `novelty` may be partly written, `picked` is not.
pub fn pick_queries(
    shape: &Shape,
    n_rows: usize,
    q: &Tensor,
    novelty: &mut [f32],
    picked: &mut [u32],
) -> Result<()> {
    shape.validate_heads()?;
    let at_layer = |e: crate::Error| e.at_layer(shape.layer);
    check(shape, n_rows, q, novelty, picked).map_err(at_layer)?;
    let novelty = &mut novelty[..n_rows];
    novelty.fill(0.0);
    for h in 0..shape.n_q_heads {
        add_novelty(shape.head_dim_k, q, h, novelty);
    }
    ensure(novelty.iter().all(|x| x.is_finite()), ErrorKind::NonFinite, c"q").map_err(at_layer)?;
    let n = picked.len() as u64;
    let cut = |i: u64| (i * n_rows as u64 / n) as usize;
    for (i, picked) in (0..n).zip(picked.iter_mut()) {
        let stretch = cut(i)..cut(i + 1);
        let most = stretch.clone().fold(stretch.start, |m, j| if novelty[j] > novelty[m] { j } else { m });
        *picked = most as u32;
    }
    Ok(())
}

fn check(shape: &Shape, n_rows: usize, q: &Tensor, novelty: &[f32], picked: &[u32]) -> Result<()> {
    ensure(n_rows > 0 && n_rows <= u32::MAX as usize, ErrorKind::Shape, c"n_rows")?;
    ensure(!picked.is_empty() && picked.len() <= n_rows, ErrorKind::Argument, c"n_picked")?;
    ensure(novelty.len() >= n_rows, ErrorKind::BufferSize, c"novelty")?;
    let heads = shape.n_q_heads;
    let fits = q.n_heads() == heads && q.dim() == shape.head_dim_k && (0..heads).all(|h| q.rows(h) >= n_rows);
    ensure(fits, ErrorKind::Shape, c"q")
}

/// Takes one head's part from each row's novelty. A query of zeros looks for nothing: it has none.
fn add_novelty(dim: usize, q: &Tensor, head: usize, novelty: &mut [f32]) {
    let (mut mean, mut row) = ([0.0f64; MAX_HEAD_DIM], [0.0f32; MAX_HEAD_DIM]);
    let (mean, row) = (&mut mean[..dim], &mut row[..dim]);
    for j in 0..novelty.len() {
        q.widen(head, j, row);
        mean.iter_mut().zip(row.iter()).for_each(|(m, &x)| *m += x as f64);
    }
    let of_mean = mean.iter().map(|m| m * m).sum::<f64>();
    for (j, novelty) in novelty.iter_mut().enumerate() {
        q.widen(head, j, row);
        let (mut dot, mut square) = (0.0, 0.0);
        for (&x, m) in row.iter().zip(mean.iter()) {
            dot += x as f64 * m;
            square += x as f64 * x as f64;
        }
        let length = libm::sqrt(square * of_mean);
        *novelty -= if length > 0.0 { (dot / length) as f32 } else { dot as f32 };
    }
}
