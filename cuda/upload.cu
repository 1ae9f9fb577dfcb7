// Copies a launch's own arguments into device memory.
#include "device.cuh"

LAVA_KERNEL(LAVA_CUDA_UPLOAD_THREADS) lava_upload(const __grid_constant__ lava_upload_args args) {
    if (threadIdx.x < args.n_words) args.to[threadIdx.x] = args.words[threadIdx.x];
}
