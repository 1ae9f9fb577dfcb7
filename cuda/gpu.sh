#!/usr/bin/env bash
# On a machine with a GPU: the kernels' tests on it, and how long scoring takes. Needs nvcc (NVCC, PATH, or what `make cuda` fetched)
# and target/capi/capi/liblava.a, which `make lib` makes on any machine with Rust; nothing is fetched.
#
#     cuda/gpu.sh [architecture]        default: native
set -euo pipefail
cd "$(dirname "$0")/.."

kit=target/cuda-toolkit/nvidia/cu13
nvcc=${NVCC:-$(command -v nvcc || echo "$kit/bin/nvcc")}
arch=${1:-native}
out=target/cuda/gpu
[ -x "$nvcc" ] || { echo "no nvcc: set NVCC, or run make cuda where there is a network"; exit 1; }
[ -f target/capi/capi/liblava.a ] || { echo "no target/capi/capi/liblava.a: run make lib where there is Rust, and bring it"; exit 1; }
mkdir -p "$out"

for name in shares select cache score bench; do
    echo "building $name"
    # The entropy's bits are the CPU's only without fused operations; the other tests hold with and without.
    "$nvcc" -std=c++17 -O3 -fmad=$([ "$name" = shares ] || [ "$name" = select ] && echo false || echo true) -arch="$arch" \
        -L "$kit/lib" -x cu "cuda/tests/$name.cpp" -o "$out/$name" -Xlinker target/capi/capi/liblava.a -lm -lpthread -ldl
done
[ "${LAVA_BUILD_ONLY:-0}" = 1 ] && exit 0
for name in shares select cache score; do "$out/$name"; done
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck; do
        for name in shares select cache; do
            echo "compute-sanitizer $tool $name"
            compute-sanitizer --tool "$tool" --error-exitcode 1 "$out/$name"
        done
    done
else
    echo "no compute-sanitizer: left out"
fi
"$out/bench"
