// Copies a launch's own arguments into device memory.
#include "device.cuh"

namespace lava {

template <class Args> __device__ void upload(const Args &args) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < args.n_words) args.to[i] = args.words[i];
}

} // namespace lava

LAVA_KERNEL(LAVA_CUDA_UPLOAD_THREADS) lava_upload(const __grid_constant__ lava_upload_args args) { lava::upload(args); }
LAVA_KERNEL(LAVA_CUDA_UPLOAD_THREADS) lava_upload_many(const __grid_constant__ lava_upload_many_args args) { lava::upload(args); }
