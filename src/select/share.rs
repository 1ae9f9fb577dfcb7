//! The fewest entries whose loss stays below a bound: a caller asks for quality instead of a size.

use super::entries::order_key;
use super::plan::{BUCKETS, DIGIT_BITS};
use crate::entropy;
use crate::error::{ErrorKind, Result, ensure};
use crate::params::Shape;
use crate::workspace::{Carver, size_of_carve};

/// Bytes of workspace that [`entries_for_share`] needs.
pub fn entries_for_share_workspace_size() -> Result<usize> {
    size_of_carve(carve)
}

fn carve<'a>(c: &mut Carver<'a>) -> Result<(&'a mut [u32], &'a mut [f64])> {
    Ok((c.take(BUCKETS)?, c.take(BUCKETS)?))
}

/// The fewest prefix entries of a layer whose evicted share of score mass is at most `epsilon`, give or take 1e-12, without head
/// floors or protected entries.
///
/// `scores` are f32, head after head, each head's prefix rows; not negative. Only live entries count.
pub fn entries_for_share(shape: &Shape, scores: &[f32], epsilon: f64, workspace: &mut Carver) -> Result<u64> {
    shape.validate()?;
    ensure((0.0..=1.0).contains(&epsilon), ErrorKind::Argument, c"epsilon")?;
    ensure(scores.len() as u64 >= shape.n_scores(), ErrorKind::BufferSize, c"scores")?;
    let (counts, masses) = carve(workspace)?;
    let capacity = shape.capacity();
    if capacity == 0 {
        return Ok(0);
    }
    entropy::check_not_negative(shape, scores)?;
    let live = || (0..shape.n_kv_heads).flat_map(|h| entropy::live(shape, scores, h));
    let mass: f64 = live().map(|&s| s as f64).sum();
    // A tolerance below what f64 sums differ by in another order would ask for entries that add nothing.
    let wanted = mass * (1.0 - epsilon - 1e-12);
    // As in selection, but a digit is settled by the mass above it instead of the count.
    let (mut n_entries, mut kept) = (0u64, 0.0f64);
    let (mut prefix, mut fixed_bits) = (0u32, 0u32);
    while fixed_bits < 32 {
        let bits = DIGIT_BITS.min(32 - fixed_bits);
        let shift = 32 - fixed_bits - bits;
        let mask = (1u32 << bits) - 1;
        counts.fill(0);
        masses.fill(0.0);
        live().for_each(|&score| {
            let key = order_key(score);
            if fixed_bits == 0 || key >> (32 - fixed_bits) == prefix {
                let bucket = (key >> shift & mask) as usize;
                counts[bucket] += 1;
                masses[bucket] += score as f64;
            }
        });
        let mut bucket = mask as usize;
        while bucket > 0 && kept + masses[bucket] < wanted {
            kept += masses[bucket];
            n_entries += counts[bucket] as u64;
            bucket -= 1;
        }
        prefix = if fixed_bits == 0 { 0 } else { prefix << bits } | bucket as u32;
        fixed_bits += bits;
    }
    // What is left are equal scores.
    let score = f32::from_bits(prefix & 0x7FFF_FFFF) as f64;
    let missing = wanted - kept;
    if missing > 0.0 && score > 0.0 {
        n_entries += libm::ceil(missing / score) as u64;
    }
    Ok(n_entries.min(capacity))
}
