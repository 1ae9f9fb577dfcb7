#!/usr/bin/env bash
# On a machine with a GPU, where neither Rust nor a network is needed: runs what `make cuda-gpu` has put into target/cuda-gpu on another.
#
#     cuda/gpu.sh                    tests, checks and times: minutes
#     cuda/gpu.sh tests checks       these parts alone
#     cuda/gpu.sh sanitizer          the kernels' tests under compute-sanitizer: memcheck of all, racecheck of those with most barriers
#
# tests: the kernels' own, and the whole path from C. checks: every stage against float64. times: next to PyTorch.
#
# A failure stops nothing else, a program that hangs is killed, and both are named at the end; the status is then 1. All output is added
# to target/cuda-gpu/record.txt as it comes, and to $OUT/record.txt where OUT names a folder. Nothing runs on after WITHIN seconds (540).
# PYTHON names a Python that has PyTorch (python3). Under the sanitizer one case of SAMPLE (4) is run.
set -uo pipefail
cd "$(dirname "$0")/.."

built=target/cuda-gpu
within=${WITHIN:-540}
python=${PYTHON:-python3}
kernels=(wrappers shares select global compact score attend)
failed=()

# run SECONDS NAME COMMAND...: no longer than SECONDS, nor than the part has time.
run() {
    local limit=$(($1 < until - SECONDS ? $1 : until - SECONDS)) name=$2 begun=$SECONDS status=0 said=ok
    shift 2
    if ((limit > 0)); then
        # All of its processes at once: one that is left over keeps the reader of this pipe waiting.
        timeout -s KILL $limit "$@" || status=$?
        case $status in
        0) ;;
        137) said="FAILED: over $limit s" ;;
        *) said="FAILED: status $status" ;;
        esac
    else
        status=1 said="FAILED: not begun, $until s are over"
    fi
    [ "$said" = ok ] || failed+=("$name")
    echo "-- $name: $((SECONDS - begun)) s $said"
    return $status
}

# A test's rows come as it prints them, whatever becomes of it.
run_test() { run 60 "$1${LAVA_PINNED:+, LAVA_PINNED=1}" stdbuf -oL $built/"$1"; }
run_tests() {
    # The first shows whether the GPU runs anything, and with managed memory.
    if ! run_test wrappers; then
        export LAVA_PINNED=1
        run_test wrappers || unset LAVA_PINNED
    fi
    for name in "${kernels[@]:1}" path prefill; do run_test "$name"; done
}

# Each of its sections has its own process and limit.
run_checks() { run 300 checks "$python" cuda/gpu $built/liblava.so --check; }
run_times() { run 300 times "$python" cuda/gpu $built/liblava.so --times; }

# under TOOL TEST
under() {
    local log=$built/sanitizer.log
    local sanitizer=(compute-sanitizer --tool "$1" --print-limit 20 --error-exitcode 1 --log-file $log)
    : >$log
    if run 120 "$1 $2" env LAVA_QUICK=1 LAVA_SAMPLE="${SAMPLE:-4}" "${sanitizer[@]}" $built/"$2"; then tail -n 1 $log; else head -n 60 $log; fi
}
run_sanitizer() {
    for name in "${kernels[@]}"; do under memcheck "$name"; done
    for name in select score; do under racecheck "$name"; done
}

main() {
    echo "== $* == $(date -u '+%F %T') UTC"
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.memory --format=csv,noheader
    local left=$#
    for part in "$@"; do
        # Each leaves the others a fifth of the time, however many of its programs hang.
        until=$((within - within / 5 * --left))
        run_$part
    done
    ((${#failed[@]} == 0)) && echo "== all of it ran and is as it should be: $* == $SECONDS s" && return
    printf '== FAILED == %s s\n' $SECONDS
    printf '%s\n' "${failed[@]}"
    return 1
}

[ $# -gt 0 ] || set -- tests checks times
for part in "$@"; do
    case $part in
    tests | checks | times | sanitizer) ;;
    *) echo "cuda/gpu.sh: no part is called $part: tests, checks, times or sanitizer" >&2; exit 2 ;;
    esac
done
[ -f $built/liblava.so ] || { echo "no $built/liblava.so: run make cuda-gpu where there is Rust, and copy $built here" >&2; exit 2; }
[ -z "${OUT:-}" ] || mkdir -p "$OUT" || exit 2
main "$@" 2>&1 | tee -a $built/record.txt ${OUT:+"$OUT/record.txt"}
exit "${PIPESTATUS[0]}"
