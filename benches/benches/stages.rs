//! Each stage by itself, with divan's statistics: `cargo bench --manifest-path benches/Cargo.toml`.

use benches::{Layer, Outputs, SHAPES};
use divan::Bencher;
use half::{bf16, f16};
use lava::Backend;

fn main() {
    divan::main();
}

const LENGTHS: [usize; 2] = [4096, 32768];

macro_rules! stages {
    ($module:ident, $element:ty) => {
        mod $module {
            use super::*;

            #[divan::bench(args = LENGTHS, sample_count = 7)]
            fn score(bencher: Bencher, n_tokens: usize) {
                let layer = Layer::<$element>::new(SHAPES[0], n_tokens, Backend::detect());
                let mut out = Outputs::new(&layer, 1024);
                bencher.bench_local(|| layer.score(&mut out, 1, false));
            }

            #[divan::bench(args = LENGTHS, sample_count = 7)]
            fn compact(bencher: Bencher, n_tokens: usize) {
                let layer = Layer::<$element>::new(SHAPES[0], n_tokens, Backend::detect());
                let mut out = Outputs::new(&layer, 1024);
                layer.score(&mut out, 1, false);
                layer.select(&mut out);
                bencher.bench_local(|| layer.compact(&mut out));
            }

            #[divan::bench(args = LENGTHS, sample_count = 20)]
            fn attend(bencher: Bencher, n_tokens: usize) {
                let layer = Layer::<$element>::new(SHAPES[0], n_tokens, Backend::detect());
                let mut out = Outputs::new(&layer, 1024);
                layer.score(&mut out, 1, false);
                layer.select(&mut out);
                layer.compact(&mut out);
                out.spread();
                bencher.bench_local(|| layer.attend(&mut out));
            }
        }
    };
}

stages!(f16_, f16);
stages!(bf16_, bf16);
stages!(f32_, f32);

#[divan::bench(args = LENGTHS, sample_count = 20)]
fn entropy_and_select(bencher: Bencher, n_tokens: usize) {
    let layer = Layer::<f32>::new(SHAPES[0], n_tokens, Backend::detect());
    let mut out = Outputs::new(&layer, 1024);
    layer.score(&mut out, 1, false);
    bencher.bench_local(|| layer.select(&mut out));
}
