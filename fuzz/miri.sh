#!/usr/bin/env bash
# Some seeds of each fuzz target under Miri, which finds what no sanitizer does: a pointer used beyond what it was made from, two
# slices that may not overlap, a read through the wrong alignment. Prints a table; stops with an error if Miri reports anything.
#
# A case runs the scalar kernels or AVX2's, but not AVX-512's and NEON's, whose instructions Miri does not know.
set -euo pipefail
cd "$(dirname "$0")"
rustup component add --toolchain nightly miri rust-src >/dev/null 2>&1 || cargo +nightly miri --version >/dev/null 2>&1 || {
    printf '%-16s %s\n' miri "Miri is missing. Run: rustup toolchain install nightly --component miri --component rust-src" |
        tee -a "${LAVA_NOT_RUN:-/dev/null}"
    exit 0
}
# It asks the compiler for the machine's instructions, not the machine. Without f16c, which it does not know: `half` would use it.
[ "$(uname -m)" != x86_64 ] || export RUSTFLAGS="-Ctarget-feature=+avx2,+fma"
export CARGO_TARGET_DIR=../target/miri LAVA_FUZZ_SECONDS=0
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-strict-provenance -Zmiri-symbolic-alignment-check"

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
echo "building for Miri (a minute, the first time)"
cargo +nightly miri test --quiet --test smoke --no-run >"$logs/build" 2>&1 || { cat "$logs/build"; exit 1; }

# One target: its line of the table.
look() {
    local start=$SECONDS result=clean
    cargo +nightly miri test --quiet --test smoke "$1" -- --nocapture >"$2/$1" 2>&1 || result=FOUND
    printf '%-16s %3s seeds  %-5s %4d s\n' "$1" "$(sed -nE 's/.* ([0-9]+) seeds.*/\1/p' "$2/$1")" $result $((SECONDS - start))
    [ $result = clean ] || { cat "$2/$1"; return 1; }
}
export -f look
# A core each, the longest first.
printf '%s\n' score cascade attend select_compact abi | xargs -P "$(nproc)" -I{} bash -c 'look "$1" "$2"' look {} "$logs"
