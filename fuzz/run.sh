#!/usr/bin/env bash
# Runs each fuzz target in turn for SECONDS (60) with libFuzzer, or for RUNS executions if that is set, and prints a table.
# Stops with an error if there is a finding; what led to it is then in fuzz/artifacts/.
#
#     fuzz/run.sh [SECONDS [TARGET...]]
#     RUNS=10000000 fuzz/run.sh
#
# Needs the nightly compiler and cargo-fuzz 0.13. No sanitizer: the targets put all memory against guard pages, and debug
# assertions are on. Comparisons are not traced, which doubles the executions. A case of ten seconds is reported and kept, one of
# ten minutes ends the run: less may only mean that the machine was busy or paused.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
targets=("${@:2}")
limit=${RUNS:+-runs=$RUNS}
[ ${#targets[@]} -gt 0 ] || targets=(abi score select_compact cascade attend)

cargo +nightly fuzz --version >/dev/null 2>&1 || {
    echo "missing: nightly Rust or cargo-fuzz. Run: rustup toolchain install nightly && cargo install --locked cargo-fuzz@0.13.2"
    exit 1
}
options=(--fuzz-dir . --sanitizer none --features libfuzzer --release --debug-assertions --no-trace-compares)
cargo +nightly fuzz build "${options[@]}" --quiet 2>/dev/null || cargo +nightly fuzz build "${options[@]}"

# libFuzzer wants a file for each seed.
seeds=../target/fuzz-seeds
cargo run --quiet --example seeds -- unpack "$seeds"

# Of a libFuzzer log: the last number of executions, and of covered places.
executions() { grep -oE '^(#|Done )[0-9]+' "$1" | tail -1 | tr -dc '0-9'; }
covered() { grep -oE 'cov: [0-9]+' "$1" | tail -1 | tr -dc '0-9'; }

logs=$(mktemp -d)
trap 'rm -rf "$logs"; kill $(jobs -p) 2>/dev/null || true' EXIT
table='' failed=0
for target in "${targets[@]}"; do
    log=$logs/$target
    mkdir -p "corpus/$target" "artifacts/$target"
    cargo +nightly fuzz run "${options[@]}" "$target" "corpus/$target" "$seeds/$target" -- \
        "${limit:--max_total_time=$seconds}" -timeout=600 -max_len=256 >"$log" 2>&1 &
    while kill -0 $! 2>/dev/null; do
        [ ! -t 2 ] || printf '\r%-16s %12s executions' "$target" "$(executions "$log" || true)" >&2
        sleep 1
    done
    if wait $!; then
        finding=$(grep -oE 'Slowest unit: [0-9]+ s' "$log" | tail -1 || true)
    else
        finding=$(grep -m1 -oE 'panicked at .*|deadly signal|timeout after.*' "$log" || echo "see below")
        failed=1
        tail -40 "$log"
    fi
    row=$(printf '%-16s %12s %8s  %s' "$target" "$(executions "$log" || true)" "$(covered "$log" || true)" "${finding:-none}")
    table+=$row$'\n'
    printf '\r%s\n' "$row" >&2
done
printf '\n%-16s %12s %8s  %s\n%s' target executions coverage finding "$table"
exit $failed
