/*
 * lava_cuda.h - lava.h on an NVIDIA GPU: the same calls with device pointers, in the engine's own CUDA context and stream.
 *
 * Made by cbindgen from src/ffi/cuda.rs; `UPDATE_HEADER=1 cargo test --test header` makes it anew. Edit the comments there. The
 * functions are in a library that was built with the feature `cuda` (`make lib FEATURES=cuda`) on a machine with nvcc: $NVCC, or in
 * $CUDA_HOME/bin, $PATH or target/cuda-toolkit. LAVA_REQUIRE_CUDA=1 makes a missing one an error of the build; else lava_cuda_init
 * says LAVA_ERR_UNSUPPORTED. LAVA_CUDA_ARCHS names the architectures, such as 80,90a; code for later ones is made from the first.
 *
 * In short, beside what lava.h says:
 *
 *     context = aligned memory of lava_cuda_context_size() bytes
 *     lava_cuda_init(context, ...)                         once, with the engine's CUDA context current
 *     lava_cuda_score_workspace_size, then cudaMalloc      once, for the longest prompt
 *     cudaMemsetAsync(status, 0xff, 8, stream)             before each layer, prompt, or whatever is to be looked at together
 *     lava_cuda_score(..., status, stream, ...)            only asks for launches
 *     the status word back to the host, lava_cuda_result   when the stream is past them
 *     lava_cuda_destroy(context, ...)
 *
 * Rules for all functions:
 *
 * - "Device memory" is a pointer that kernels of the context may follow, managed and mapped memory too. It is never followed on the
 *   host: that a pointer leads to as much memory as its comment says, row_start ascends and rows do not overlap, is the caller's
 *   word. NULL, misaligned pointers, shapes, strides and sizes are checked as strictly as lava.h does, overlaps within a sequence
 *   and with the workspace and status word as well. All structs are host memory, read before the call returns.
 * - A lava_tensor has data and row_start in device memory here. With row_start, size is what all heads take together; only
 *   that the longest head would fit is checked.
 * - Calls only ask for launches on the given stream. They do not wait, allocate, copy from host memory, or change the current context,
 *   and may be captured into a graph, which holds everything but the device memory itself. lava_cuda_init and lava_cuda_destroy
 *   load and unload code and are not for a stream that is being captured.
 * - The CUDA context of lava_cuda_init must be current on the calling thread (LAVA_ERR_CONTEXT). The runtime API makes it so with
 *   cudaSetDevice. Calls with different outputs and workspaces may run at the same time, on any threads and streams.
 * - status is one uint64_t in device memory, aligned to 8, with all bits set before the first of the calls that share it. NaN, infinity and
 *   scores that overflow are found by the kernels, not by the call, which returns LAVA_OK: then the word says what and where, and
 *   the outputs of that sequence's head are not to be used. lava_cuda_result makes a lava_status of it.
 * - On LAVA_ERR_DRIVER, _CONTEXT and _LAUNCH error.argument is the driver's name for what happened, where it has one.
 * - The kernels run on devices of compute capability 8.0 and later.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef LAVA_CUDA_H
#define LAVA_CUDA_H


#include "lava.h"

/**
 * Most sequences of a call, and most KV heads: a launch's grid has no more.
 */
#define LAVA_CUDA_MAX_SEQUENCES 65535

/**
 * One sequence of lava_cuda_score. Zero what is not used.
 */
typedef struct lava_cuda_score_sequence {
    /**
     * sizeof(lava_cuda_score_sequence), the same for all of a call.
     */
    uint32_t struct_size;
    /**
     * N of this sequence, at most the shape's. With window tokens or fewer there is nothing to score.
     */
    uint32_t n_tokens;
    /**
     * [window, n_q_heads, head_dim_k], after RoPE.
     */
    const lava_tensor *q;
    /**
     * [n_tokens, n_kv_heads, head_dim_k], after RoPE.
     */
    const lava_tensor *k;
    /**
     * [n_tokens, n_kv_heads, head_dim_v]; may be NULL with LAVA_VALUE_NONE.
     */
    const lava_tensor *v;
    /**
     * NULL, or f32 [window, n_q_heads, 1] as in lava_score. Given for all sequences of a call or for none.
     */
    const lava_tensor *lse;
    /**
     * Device memory, f32 [n_kv_heads, n_tokens - window] without gaps; written. May be NULL where there is nothing to score.
     */
    float *scores;
} lava_cuda_score_sequence;

/**
 * One sequence of lava_cuda_attend. Zero what is not used.
 */
typedef struct lava_cuda_attend_sequence {
    /**
     * sizeof(lava_cuda_attend_sequence), the same for all of a call.
     */
    uint32_t struct_size;
    /**
     * No head has more rows than this when the kernels run.
     */
    uint32_t max_rows;
    /**
     * All heads together have no more rows than this when the kernels run. 0: max_rows * n_kv_heads.
     */
    uint64_t total_rows;
    /**
     * [n_new, n_q_heads, head_dim_k], after RoPE.
     */
    const lava_tensor *q;
    /**
     * [n_rows[h], n_kv_heads, head_dim_k], usually ragged.
     */
    const lava_tensor *k;
    /**
     * [n_rows[h], n_kv_heads, head_dim_v], usually ragged.
     */
    const lava_tensor *v;
    /**
     * f32 [n_new, n_q_heads, head_dim_v]; written.
     */
    const lava_tensor *out;
    /**
     * NULL, or f32 [n_new, n_q_heads, 1]; written.
     */
    const lava_tensor *lse;
    /**
     * Device memory, n_kv_heads counts: each head's rows, the new tokens' own included if causal.
     */
    const uint32_t *n_rows;
    /**
     * Device memory, as in lava_attend_params; needed with a sliding window only.
     */
    const uint32_t *kept_indices;
    /**
     * Device memory, n_kv_heads + 1 entries; needed with a sliding window only.
     */
    const uint32_t *cu_kept;
    /**
     * As in lava_attend_params.
     */
    uint32_t n_base;
    /**
     * Must be 0.
     */
    uint32_t reserved;
} lava_cuda_attend_sequence;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Bytes of host memory that a context needs, aligned to LAVA_WORKSPACE_ALIGN. The same for one library. Any thread.
 */
size_t lava_cuda_context_size(void);

/**
 * Loads the kernels into the CUDA context that is current on the calling thread.
 *
 * The first call of a process loads libcuda, which stays; that, and what the driver does to load code, are the only allocations
 * behind this header. Not to be called while a stream of the context is being captured.
 *
 * context: lava_cuda_context_size bytes of host memory, for as long as it is used; what it holds is overwritten. It may be
 *     moved, and be used by many threads at a time. A CUDA context needs one of its own.
 * Errors: NULL, ALIGNMENT, BUFFER_SIZE, UNSUPPORTED (a library built without nvcc), DRIVER (argument names a function that
 *     libcuda lacks, or the driver's error), CONTEXT. On error nothing stays loaded, and the memory is as it was.
 */
lava_status lava_cuda_init(void *context,
                           size_t context_size,
                           lava_error *error);

/**
 * Unloads the kernels. Nothing that was launched with them may still be running, and no captured graph be launched any more.
 *
 * context: from lava_cuda_init. Afterwards it holds none (STATE), whether or not the driver had something to say.
 * Errors: NULL, ALIGNMENT, STATE, CONTEXT (then it is untouched), DRIVER.
 */
lava_status lava_cuda_destroy(void *context,
                              lava_error *error);

/**
 * What a status word says, once the stream is past the calls that were given it and the word is back on the host.
 *
 * word: *status of those calls. All bits set: nothing went wrong.
 * sequence: NULL, or receives the sequence of the batch, LAVA_NONE without a fault.
 * error: NULL, or the layer, the KV head, and what was not finite: "lse", "q", "v" or "scores"; "q" may be k as well.
 * Returns LAVA_OK, LAVA_ERR_NONFINITE, or LAVA_ERR_ARGUMENT for what is no status word. Any thread.
 */
lava_status lava_cuda_result(uint64_t word,
                             uint32_t *sequence,
                             lava_error *error);

/**
 * Bytes of device memory that lava_cuda_score needs as a workspace.
 *
 * context: from lava_cuda_init.
 * shape: n_tokens is that of the longest sequence.
 * size: receives the bytes, enough for tensors of any type and layout, with and without lse; untouched on error.
 * Errors: as lava_cuda_score. Any thread.
 */
lava_status lava_cuda_score_workspace_size(const void *context,
                                           const lava_shape *shape,
                                           const lava_score_params *params,
                                           uint32_t n_sequences,
                                           size_t *size,
                                           lava_error *error);

/**
 * lava_score for one layer of a batch of sequences of unlike length.
 *
 * context: from lava_cuda_init.
 * shape: n_tokens is that of the longest sequence; layer is below 65536.
 * params: as for lava_score. LAVA_VALUE_OUTPUT is the CPU's alone (LAVA_ERR_UNSUPPORTED).
 * sequences: host memory, n_sequences of them, read during the call, as are the tensors they point to. f16 or bf16 rows of
 *     elements side by side, 16-byte aligned, have faster kernels, if all sequences have them. The scores of a sequence are the
 *     same bits on every device and in every batch of the same kind of tensors.
 * workspace: device memory, lava_cuda_score_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN, of no other call until the stream
 *     is past this one.
 * status: device memory; see the top.
 * stream: a CUstream or cudaStream_t of the context, NULL for its default stream.
 * Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, OVERFLOW, DTYPE, UNSUPPORTED, STATE,
 *     CONTEXT: nothing was launched. LAUNCH: some launches may have been. Any thread that has the context.
 */
lava_status lava_cuda_score(const void *context,
                            const lava_shape *shape,
                            const lava_score_params *params,
                            const struct lava_cuda_score_sequence *sequences,
                            uint32_t n_sequences,
                            void *workspace,
                            size_t workspace_size,
                            uint64_t *status,
                            void *stream,
                            lava_error *error);

/**
 * Bytes of device memory that lava_cuda_attend needs as a workspace.
 *
 * shape: n_tokens is the number of new queries of each sequence; window is not used but must be at least 1.
 * total_rows: sum over the sequences of total_rows, or of what stands for it.
 * size: receives the bytes, enough for tensors of any type and layout; untouched on error.
 * Errors: as lava_cuda_attend. Any thread.
 */
lava_status lava_cuda_attend_workspace_size(const void *context,
                                            const lava_shape *shape,
                                            uint32_t n_sequences,
                                            uint64_t total_rows,
                                            size_t *size,
                                            lava_error *error);

/**
 * lava_attend for a batch of sequences, each with as many new queries and a compressed cache of its own.
 *
 * The counts n_rows are read on the device, when the kernels run: a captured graph stays good while caches grow, up to max_rows and
 * total_rows. More rows than those are undefined behaviour. With causal, a head of fewer than n_tokens rows has queries that see
 * nothing: the first ones.
 *
 * context: from lava_cuda_init.
 * shape: n_tokens is the number of new queries of each sequence; layer is below 65536.
 * params: kept_indices, cu_kept and n_base are 0 here: each sequence has its own.
 * sequences, workspace, status, stream: as for lava_cuda_score. The workspace is lava_cuda_attend_workspace_size bytes. A sequence's
 *     outputs are the same bits whatever other sequences there are, for the same kinds of tensors.
 * Errors: as lava_cuda_score.
 */
lava_status lava_cuda_attend(const void *context,
                             const lava_shape *shape,
                             const lava_attend_params *params,
                             const struct lava_cuda_attend_sequence *sequences,
                             uint32_t n_sequences,
                             void *workspace,
                             size_t workspace_size,
                             uint64_t *status,
                             void *stream,
                             lava_error *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#if defined(__cplusplus)
#define LAVA_STATIC_ASSERT(condition, text) static_assert(condition, text)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define LAVA_STATIC_ASSERT(condition, text) _Static_assert(condition, text)
#else
#define LAVA_STATIC_ASSERT(condition, text) struct lava_assert_unused
#endif

LAVA_STATIC_ASSERT(sizeof(lava_cuda_score_sequence) == 48, "lava_cuda_score_sequence");
LAVA_STATIC_ASSERT(offsetof(lava_cuda_score_sequence, scores) == 40, "lava_cuda_score_sequence");
LAVA_STATIC_ASSERT(sizeof(lava_cuda_attend_sequence) == 88, "lava_cuda_attend_sequence");
LAVA_STATIC_ASSERT(offsetof(lava_cuda_attend_sequence, n_rows) == 56, "lava_cuda_attend_sequence");
LAVA_STATIC_ASSERT(offsetof(lava_cuda_attend_sequence, n_base) == 80, "lava_cuda_attend_sequence");

#undef LAVA_STATIC_ASSERT

#endif /* LAVA_CUDA_H */
