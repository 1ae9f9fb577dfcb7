// Copies a launch's own arguments into device memory.
#include "device.cuh"
#include "kernels_upload.h"

extern "C" __global__ void __launch_bounds__(512) lava_upload(const __grid_constant__ lava_upload_args args) {
    if (threadIdx.x < args.n_words) args.to[threadIdx.x] = args.words[threadIdx.x];
}
