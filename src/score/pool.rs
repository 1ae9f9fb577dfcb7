//! Stages 3 and 5: pooling along the tokens, and the reduction over the query heads of a group.

use crate::backend::Kernels;
use crate::params::{GroupReduce, MAX_POOL_KERNEL, Pool};

/// Stage 5, without the mean's division, of a query head that counts `weight`.
pub(super) fn reduce(mode: GroupReduce, weight: f32, from: &[f32], into: &mut [f32]) {
    for (o, &x) in into.iter_mut().zip(from) {
        let x = x * weight;
        *o = match mode {
            GroupReduce::Max if x > *o => x,
            GroupReduce::Max => *o,
            GroupReduce::Mean => *o + x,
        };
    }
}

/// Stage 3, in place: block by block through the stack, each block with its neighbours on one side or both. What lies
/// outside is zero: the smallest score for a maximum, and what the field's average counts.
pub(super) fn pool(kernels: &Kernels, mode: Pool, kernel: usize, x: &mut [f32]) {
    const BLOCK: usize = 256;
    const MAX_RADIUS: usize = MAX_POOL_KERNEL / 2;
    let (left, right) = if mode == Pool::After { (kernel - 1, 0) } else { (kernel / 2, kernel / 2) };
    if left == 0 {
        return;
    }
    let mut around = [0.0f32; BLOCK + 2 * MAX_RADIUS];
    for first in (0..x.len()).step_by(BLOCK) {
        let n = BLOCK.min(x.len() - first);
        // The left neighbours have been overwritten in x; the last block's copy still has them.
        if first > 0 {
            around.copy_within(BLOCK..BLOCK + left, 0);
        }
        let end = (first + n + right).min(x.len());
        let filled = left + end - first;
        around[left..filled].copy_from_slice(&x[first..end]);
        around[filled..].fill(0.0);
        let out = &mut x[first..first + n];
        match mode {
            Pool::Max | Pool::After => (kernels.pool_max)(&around[..n + kernel - 1], kernel, out),
            Pool::Avg => {
                for (i, o) in out.iter_mut().enumerate() {
                    *o = around[i..i + kernel].iter().sum::<f32>() / kernel as f32;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;

    #[test]
    fn pooling_in_place_sees_what_was_there() {
        for n in [1, 2, 255, 256, 257, 511, 512, 513, 700] {
            for kernel in [1, 2, 3, 7, 8, 63, 127] {
                for mode in [Pool::Max, Pool::Avg, Pool::After] {
                    if kernel % 2 == 0 && mode != Pool::After {
                        continue;
                    }
                    // Falling and rising runs: a neighbour more or less shows.
                    let x: Vec<f32> =
                        (0..n).map(|i| ((i * 37) % 101) as f32 + (i as f32 - 300.0).abs()).collect();
                    let (before, after) =
                        if mode == Pool::After { (kernel - 1, 0) } else { (kernel / 2, kernel / 2) };
                    let want = |i: usize| {
                        let near = &x[i.saturating_sub(before)..(i + after + 1).min(n)];
                        match mode {
                            Pool::Max | Pool::After => near.iter().copied().fold(0.0, f32::max),
                            Pool::Avg => near.iter().sum::<f32>() / kernel as f32,
                        }
                    };
                    let mut got = x.clone();
                    pool(Backend::scalar().kernels, mode, kernel, &mut got);
                    for i in 0..n {
                        assert!(
                            (got[i] - want(i)).abs() <= 1e-5 * want(i),
                            "{i} of {n}, kernel {kernel}, {mode:?}"
                        );
                    }
                }
            }
        }
    }
}
