#!/usr/bin/env bash
# On a machine with a GPU, where neither Rust nor a network is needed: the kernels' tests, the whole path from C, every stage against
# float64, and how long the stages take, beside PyTorch. Runs what `make cuda-gpu` has put into target/cuda-gpu on another machine.
#
#     cuda/gpu.sh                 everything; the table is also kept in target/cuda-gpu/record.txt
#     cuda/gpu.sh --quick         no compute-sanitizer, no times
#
# PYTHON names a Python that has PyTorch (python3).
set -euo pipefail
cd "$(dirname "$0")/.."

built=target/cuda-gpu
quick=${1:-}
python=${PYTHON:-python3}
[ -f $built/liblava.so ] || { echo "no $built/liblava.so: run make cuda-gpu where there is Rust, and bring $built"; exit 1; }

tests=(wrappers shares select global compact score attend)
for name in "${tests[@]}"; do $built/$name; done
$built/path
$built/prefill

if [ -n "$quick" ]; then
    :
elif command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        for name in "${tests[@]}"; do
            printf '%-10s %-10s ' $tool "$name"
            LAVA_QUICK=1 compute-sanitizer --tool $tool --error-exitcode 1 $built/$name >$built/sanitizer.log 2>&1 ||
                { cat $built/sanitizer.log; exit 1; }
            grep 'SUMMARY' $built/sanitizer.log
        done
    done
else
    echo "no compute-sanitizer: left out"
fi

"$python" -c 'import torch' 2>/dev/null || { echo "no PyTorch: float64 and times are left out; PYTHON names a Python that has it"; exit 1; }
{
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.memory --format=csv,noheader 2>/dev/null || true
    "$python" cuda/gpu.py $built/liblava.so ${quick:+--check}
} | tee $built/record.txt
