/*
 * lava_cuda.h - lava.h on an NVIDIA GPU: the same calls with device pointers, in the engine's own context and stream.
 *
 * Experimental: it has not run on a GPU yet. Every kernel has run under emulation and, as nvcc compiles it, in an
 * interpreter of PTX, against the CPU's results.
 *
 * Made by cbindgen from src/ffi/cuda/; `UPDATE_HEADER=1 cargo test --test header` makes it anew. Edit the comments
 * there. The functions are in a library that was built with the feature `cuda` (`make lib FEATURES=cuda`) on a machine
 * with nvcc: $NVCC, or in $CUDA_HOME/bin, $PATH or target/cuda-toolkit. LAVA_REQUIRE_CUDA=1 makes a missing nvcc an
 * error of the build; otherwise lava_cuda_init returns LAVA_ERR_UNSUPPORTED. LAVA_CUDA_ARCHS names the architectures,
 * such as 80,90a; code for later ones is made from the first.
 *
 * In short, with the rules of lava.h:
 *
 *     context = aligned memory of lava_cuda_context_size() bytes
 *     lava_cuda_init(context, ...)                         once, with the engine's CUDA context current
 *     lava_cuda_score_workspace_size, then cudaMalloc      once, for the longest prompt
 *     cudaMemsetAsync(status, 0xff, 8, stream)             before each layer or prompt: what is to be checked together
 *     lava_cuda_score(..., status, stream, ...)            only asks for launches
 *     lava_cuda_cascade_push, or lava_cuda_global_entries (or _entropy and _layer_entries) and lava_cuda_select
 *     lava_cuda_compact, lava_cuda_attend
 *     the status word back to the host, lava_cuda_result   when the stream has run them
 *     lava_cuda_destroy(context, ...)
 *
 * What is not as on the CPU yet. "Refused" is LAVA_ERR_UNSUPPORTED, naming the field.
 *
 *     sliding_window of lava_shape   refused by entropy, entries, select and cascade calls: they do not know dead
 *                                    entries. Scores, statistics and lava_cuda_attend have it
 *     cu_rows of lava_shape          refused; ignored by lava_cuda_compact and lava_cuda_attend, which have their own
 *     layers of unlike shapes        lava_cuda_global_entries and cascades take one shape for all layers;
 *                                    lava_cuda_layer_entries takes any layers
 *     sink_logits                    refused
 *     query_head_weights             refused
 *     LAVA_ATTENTION_MAX, _NORM4     refused, as attention
 *     LAVA_POOL_AFTER                refused, as pool
 *     LAVA_VALUE_TOKEN_L2, _HEAD_MEAN_L2  refused, as value_weight
 *     lava_score_queries             not there, nor lava_smooth
 *     backend                        refused, but for LAVA_BACKEND_BEST
 *     a log-sum-exp for scoring      not checked: attention that does not sum to 1 is believed
 *     keys that no query sees        are looked at: NaN in them is a fault. So are dead values with LAVA_VALUE_OUTPUT
 *     LAVA_VALUE_OUTPUT              a value above 1e19 is a fault of the scores: its square overflows
 *     variances                      have the precision of attention in f32: about 1e-4 for a sink that draws 95% of
 *                                    it, from queries that differ by 1%
 *     rows of lava_select            not written: without cu_rows they are kept_indices
 *
 * Rules for all functions:
 *
 * - "Device memory" is a pointer that kernels of the context may follow, managed and mapped memory too. It is never
 *   followed on the host: the caller promises that a pointer leads to as much memory as its comment says, that
 *   row_start ascends and that rows do not overlap. NULL, misaligned pointers, shapes, strides and sizes are checked as
 *   strictly as lava.h does, and so are overlaps within a sequence and with the workspace and status word. All structs
 *   are host memory, read before the call returns.
 * - params may be NULL, which is the recommended preset, as in lava.h. Its scores are refused so far, as the table above has it:
 *   give lava_score_params_squares() or another.
 * - n_kv_heads and the number of sequences are at most LAVA_CUDA_MAX_SEQUENCES, n_tokens at most 2^32 - 4096.
 * - A lava_tensor has data and row_start in device memory here. With row_start, size is what all heads take together;
 *   only that the longest head would fit is checked.
 * - Calls only ask for launches on the given stream. They do not wait, allocate, copy from host memory, or change the
 *   current context, and may be captured into a graph, which holds everything but the device memory itself.
 *   lava_cuda_init and lava_cuda_destroy load and unload code and are not for a stream that is being captured.
 * - The CUDA context of lava_cuda_init must be current on the calling thread (LAVA_ERR_CONTEXT). The runtime API makes
 *   it so with cudaSetDevice. Calls with different outputs and workspaces may run at the same time, on any threads and
 *   streams.
 * - status is one uint64_t in device memory, aligned to 8, with all bits set before the first of the calls that share
 *   it. NaN, infinity and scores that overflow are found by the kernels, not by the call, which returns LAVA_OK: then
 *   the word says what and where, and the outputs of that sequence's head must not be used. lava_cuda_result makes a
 *   lava_status of it.
 * - On LAVA_ERR_DRIVER, _CONTEXT and _LAUNCH error.argument is the driver's name for what happened, where it has one.
 * - The kernels run on devices of compute capability 8.0 and later. Made by the nvcc of CUDA 13 they need a driver from
 *   R580 on: an older one is LAVA_ERR_DRIVER of lava_cuda_init, "CUDA_ERROR_NO_BINARY_FOR_GPU",
 *   "CUDA_ERROR_INVALID_IMAGE" or "CUDA_ERROR_UNSUPPORTED_PTX_VERSION". Build with the toolkit of the driver's major
 *   version then, 12.1 at the least.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef LAVA_CUDA_H
#define LAVA_CUDA_H


#include "lava.h"

/// Most sequences of a call, and most KV heads: a launch's grid has no more.
#define LAVA_CUDA_MAX_SEQUENCES 65535
/// Most KV heads of lava_cuda_select and of a cascade.
#define LAVA_CUDA_MAX_HEADS 1024
/// Most caches of a call of lava_cuda_compact: K and V are two in a launch.
#define LAVA_CUDA_MAX_COMPACT_SEQUENCES 32767

/// One sequence of lava_cuda_score. Zero what is not used.
typedef struct lava_cuda_score_sequence {
    /// sizeof(lava_cuda_score_sequence), the same for all of a call.
    uint32_t struct_size;
    /// N of this sequence, at most the shape's. With window tokens or fewer there is nothing to score.
    uint32_t n_tokens;
    /// [window, n_q_heads, head_dim_k], after RoPE.
    const lava_tensor *q;
    /// [n_tokens, n_kv_heads, head_dim_k], after RoPE.
    const lava_tensor *k;
    /// [n_tokens, n_kv_heads, head_dim_v]; may be NULL with LAVA_VALUE_NONE.
    const lava_tensor *v;
    /// NULL, or f32 [window, n_q_heads, 1] as in lava_score, in the base that lse_base says. Given for all sequences of
    /// a call or for none.
    const lava_tensor *lse;
    /// Device memory, f32 [n_kv_heads, n_tokens - window] without gaps; written. May be NULL where there is nothing to
    /// score.
    float *scores;
} lava_cuda_score_sequence;

/// One sequence of lava_cuda_attention_stats. Zero what is not used.
typedef struct lava_cuda_stats_sequence {
    /// sizeof(lava_cuda_stats_sequence), the same for all of a call.
    uint32_t struct_size;
    /// N of this sequence, at most the shape's. With window tokens or fewer its statistics are 0.
    uint32_t n_tokens;
    /// As in lava_cuda_score_sequence.
    const lava_tensor *q;
    /// As in lava_cuda_score_sequence.
    const lava_tensor *k;
    /// As in lava_cuda_score_sequence.
    const lava_tensor *lse;
    /// Device memory, [n_kv_heads, 2] doubles; receives entropy and variance of each head.
    double *stats;
} lava_cuda_stats_sequence;

/// One layer, of one sequence, of lava_cuda_preference.
typedef struct lava_cuda_preference_sequence {
    /// sizeof(lava_cuda_preference_sequence), the same for all of a call.
    uint32_t struct_size;
    /// For lava_cuda_result, below 65536.
    uint32_t layer;
    /// Device memory, [n_kv_heads, 2], from lava_cuda_attention_stats.
    const double *stats;
    /// Device memory; receives one number, for lava_cuda_layer_entries or lava_cuda_cascade_push.
    double *weight;
} lava_cuda_preference_sequence;

/// One layer, of one sequence, of lava_cuda_mean_over_heads. Zero what is not used.
typedef struct lava_cuda_mean_sequence {
    /// sizeof(lava_cuda_mean_sequence), the same for all of a call.
    uint32_t struct_size;
    /// N of this sequence, at most the shape's.
    uint32_t n_tokens;
    /// For lava_cuda_result, below 65536.
    uint32_t layer;
    /// 0.
    uint32_t reserved;
    /// Device memory, f32 [n_kv_heads, n_tokens - window], finite; read and written.
    float *scores;
} lava_cuda_mean_sequence;

/// One layer, of one sequence, of lava_cuda_entropy. Zero what is not used.
typedef struct lava_cuda_entropy_sequence {
    /// sizeof(lava_cuda_entropy_sequence), the same for all of a call.
    uint32_t struct_size;
    /// N of this sequence, at most the shape's.
    uint32_t n_tokens;
    /// For lava_cuda_result, below 65536.
    uint32_t layer;
    /// 0.
    uint32_t reserved;
    /// Device memory, f32 [n_kv_heads, n_tokens - window], not negative.
    const float *scores;
    /// Device memory; receives the normalised entropy.
    double *entropy;
    /// NULL, or device memory; receives the sum of the scores.
    double *mass;
} lava_cuda_entropy_sequence;

/// One sequence of lava_cuda_layer_entries.
typedef struct lava_cuda_entries_sequence {
    /// sizeof(lava_cuda_entries_sequence), the same for all of a call.
    uint32_t struct_size;
    /// Layers that share, at most LAVA_MAX_LAYERS.
    uint32_t n_layers;
    /// Prefix entries to keep over all layers, as in lava_layer_entries.
    uint64_t total;
    /// Device memory, n_layers numbers, finite and not negative.
    const double *weights;
    /// Device memory, n_layers numbers below 2^32: the most entries that each layer can keep. 0 for a layer that takes
    /// no part.
    const uint64_t *capacities;
    /// NULL, or device memory, n_layers numbers: the fewest entries that each layer keeps.
    const uint64_t *minimums;
    /// Device memory; receives n_layers numbers, as that of lava_layer_entries does.
    uint64_t *entries;
} lava_cuda_entries_sequence;

/// One sequence of lava_cuda_global_entries. Zero what is not used.
typedef struct lava_cuda_global_sequence {
    /// sizeof(lava_cuda_global_sequence), the same for all of a call.
    uint32_t struct_size;
    /// N of this sequence, at most the shape's.
    uint32_t n_tokens;
    /// Prefix entries to keep over all layers, as in lava_global_entries.
    uint64_t total;
    /// Device memory, n_layers pointers to device memory: each layer's f32 [n_kv_heads, n_tokens - window], finite.
    const float *const *scores;
    /// NULL, or device memory, as in lava_select_params.
    const uint8_t *protected_mask;
    /// Device memory; receives n_layers numbers, as that of lava_global_entries does. Where there is a fault, what
    /// lava_cuda_select refuses.
    uint64_t *entries;
    /// Device memory; receives n_layers * n_kv_heads numbers, as that of lava_global_entries does. Untouched where
    /// there is a fault.
    double *head_weights;
} lava_cuda_global_sequence;

/// One layer, of one sequence, of lava_cuda_select. Zero what is not used.
typedef struct lava_cuda_select_sequence {
    /// sizeof(lava_cuda_select_sequence), the same for all of a call.
    uint32_t struct_size;
    /// N of this sequence, at most the shape's.
    uint32_t n_tokens;
    /// For lava_cuda_result, below 65536.
    uint32_t layer;
    /// 0.
    uint32_t reserved;
    /// Device memory, f32 [n_kv_heads, n_tokens - window], finite.
    const float *scores;
    /// Device memory, one number: prefix entries to keep. Read when the kernels run, so nobody waits for
    /// lava_cuda_layer_entries.
    const uint64_t *n_entries;
    /// NULL, or device memory, as in lava_select_params.
    const uint8_t *protected_mask;
    /// NULL, or device memory, n_kv_heads numbers, as in lava_select_params.
    const double *head_weights;
    /// Device memory with room for min(*n_entries, all prefix entries) + n_kv_heads * min(window, n_tokens) positions;
    /// receives them, as that of lava_select does. For lava_cuda_compact they are the rows.
    uint32_t *kept_indices;
    /// Device memory; receives n_kv_heads + 1 entries.
    uint32_t *cu_kept;
    /// NULL, or device memory; receives the report, struct_size included. The evicted share is within 1e-12 of the
    /// CPU's.
    lava_selection *selection;
} lava_cuda_select_sequence;

/// The host's part of a cascade: in the caller's memory, filled by lava_cuda_cascade_init. It may be moved; of two
/// copies, only one may be pushed.
typedef struct lava_cuda_cascade {
    /// sizeof(lava_cuda_cascade), set by the caller.
    uint32_t struct_size;
    /// Layers pushed so far.
    uint32_t n_pushed;
    /// As given to lava_cuda_cascade_init.
    uint32_t n_layers;
    /// The shape's.
    uint32_t n_kv_heads;
    /// Prefix tokens of each head.
    uint32_t prefix_len;
    /// Window tokens of each head.
    uint32_t window_rows;
    /// As in lava_cascade_params.
    int32_t layers;
    /// As in lava_select_params.
    int32_t head_floor;
    /// alpha of lava_select_params, in billionths.
    uint32_t alpha_billionths;
    /// As in lava_select_params.
    uint32_t n_sink;
    /// As in lava_select_params.
    uint32_t head_min;
    /// As in lava_cascade_params, but at least 1.
    uint32_t evict_every;
    /// As given to lava_cuda_cascade_init.
    uint64_t total;
    /// As in lava_select_params, on the device.
    const uint8_t *protected_mask;
    /// As in lava_select_params, on the device.
    const double *head_weights;
    /// As given to lava_cuda_cascade_init.
    void *state;
} lava_cuda_cascade;

/// One sequence of lava_cuda_cascade_push. Zero what is not used.
typedef struct lava_cuda_push_sequence {
    /// sizeof(lava_cuda_push_sequence), the same for all of a call.
    uint32_t struct_size;
    /// 0.
    uint32_t reserved;
    /// From lava_cuda_cascade_init, a different one for each sequence; counts the push. Unchanged on error.
    struct lava_cuda_cascade *cascade;
    /// Device memory, f32 [n_kv_heads, n_tokens - window] of the cascade's next layer, not negative.
    const float *scores;
    /// With LAVA_LAYERS_WEIGHTS device memory, one number, finite and not negative: the layer's weight. Else NULL.
    const double *weight;
} lava_cuda_push_sequence;

/// Where a layer of a cascade lies on the device after the last push: inside the state, and valid until the next push
/// runs.
typedef struct lava_cuda_cascade_layer {
    /// sizeof(lava_cuda_cascade_layer), set by the caller.
    uint32_t struct_size;
    /// 0.
    uint32_t reserved;
    /// One number: kept_indices and rows of this layer begin so many entries after the pointers below. rows_offset of
    /// lava_cuda_compact, kept_offset of lava_cuda_attend.
    const uint64_t *offset;
    /// True token positions kept by each head, ascending, window included.
    const uint32_t *kept_indices;
    /// Exclusive prefix sum of the kept counts, n_kv_heads + 1 entries.
    const uint32_t *cu_kept;
    /// For lava_cuda_compact: which rows are kept of those that the caller's cache holds; see lava_cascade_layer.
    const uint32_t *rows;
    /// Exclusive prefix sum of the row counts of that cache, n_kv_heads + 1 entries.
    const uint32_t *cu_rows;
    /// One number, like the three below; see lava_cascade_layer.
    const uint64_t *n_entries;
    /// Normalised entropy of the layer's scores; 0 where layers do not share by it.
    const double *entropy;
    /// Sum of the layer's scores.
    const double *mass;
    /// Share of mass evicted so far, within 1e-12 of the CPU's.
    const double *evicted_share;
} lava_cuda_cascade_layer;

/// One layer of one sequence for lava_cuda_compact. Zero what is not used.
typedef struct lava_cuda_compact_sequence {
    /// sizeof(lava_cuda_compact_sequence), the same for all of a call.
    uint32_t struct_size;
    /// No head of the source has more rows than this when the kernels run.
    uint32_t max_rows;
    /// No head keeps more rows than this. 0: max_rows.
    uint32_t max_kept;
    /// 0.
    uint32_t reserved;
    /// The caches as they are, [rows, n_kv_heads, head_dim]. v_src and v_dst may both be NULL.
    const lava_tensor *k_src;
    /// See k_src.
    const lava_tensor *v_src;
    /// Where the kept rows go, as in lava_compact; in place too.
    const lava_tensor *k_dst;
    /// See k_dst.
    const lava_tensor *v_dst;
    /// Device memory: kept_indices of lava_cuda_select, or rows of lava_cuda_cascade_get; ascending per head.
    const uint32_t *rows;
    /// NULL, or device memory, one number: rows begins that many entries later. From lava_cuda_cascade_get.
    const uint64_t *rows_offset;
    /// Device memory, n_kv_heads + 1 entries.
    const uint32_t *cu_kept;
    /// NULL, or device memory, n_kv_heads entries; receives each head's rows, for lava_cuda_attend. Untouched where
    /// nothing moves: set to zeros before, they keep attention inside the cache after a fault.
    uint32_t *n_rows;
} lava_cuda_compact_sequence;

/// One sequence of lava_cuda_attend. Zero what is not used.
typedef struct lava_cuda_attend_sequence {
    /// sizeof(lava_cuda_attend_sequence), the same for all of a call.
    uint32_t struct_size;
    /// No head has more rows than this when the kernels run.
    uint32_t max_rows;
    /// All heads together have no more rows than this when the kernels run. 0: max_rows * n_kv_heads.
    uint64_t total_rows;
    /// [n_queries, n_q_heads, head_dim_k], after RoPE.
    const lava_tensor *q;
    /// [n_rows[h], n_kv_heads, head_dim_k], usually ragged.
    const lava_tensor *k;
    /// [n_rows[h], n_kv_heads, head_dim_v], usually ragged.
    const lava_tensor *v;
    /// f32 [n_queries, n_q_heads, head_dim_v]; written.
    const lava_tensor *out;
    /// NULL, or f32 [n_queries, n_q_heads, 1]; written.
    const lava_tensor *lse;
    /// Device memory, n_kv_heads counts: each head's rows, the new tokens' own included if causal.
    const uint32_t *n_rows;
    /// Device memory, as in lava_attend_params; needed with a sliding window only.
    const uint32_t *kept_indices;
    /// Device memory, n_kv_heads + 1 entries; needed with a sliding window only.
    const uint32_t *cu_kept;
    /// As in lava_attend_params.
    uint32_t n_base;
    /// 0.
    uint32_t reserved;
    /// NULL, or device memory, one number: kept_indices begins so many entries later. `offset` of
    /// lava_cuda_cascade_get.
    const uint64_t *kept_offset;
} lava_cuda_attend_sequence;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/// Bytes of host memory that a context needs, aligned to LAVA_WORKSPACE_ALIGN. The same for one library. Any thread.
size_t lava_cuda_context_size(void);

/// Loads the kernels into the CUDA context that is current on the calling thread.
///
/// The first call of a process loads libcuda, which stays loaded; that, and what the driver does to load code, are the
/// only allocations that a function of this header makes. Not to be called while a stream of the context is being
/// captured.
///
/// context: lava_cuda_context_size bytes of host memory, for as long as it is used; what it holds is overwritten. It
///     may be moved, and many threads may use it at a time. Each CUDA context needs one of its own.
/// Errors: NULL, ALIGNMENT, BUFFER_SIZE, UNSUPPORTED (a library built without nvcc), DRIVER (argument names a function
///     that libcuda lacks, or the driver's error), CONTEXT. On error nothing stays loaded, and the memory is as it was.
lava_status lava_cuda_init(void *context, size_t context_size, lava_error *error);

/// Unloads the kernels. Nothing that was launched with them may still be running, and no captured graph may be launched
/// any more.
///
/// context: from lava_cuda_init. Afterwards it holds no kernels (STATE), even where the driver reports an error.
/// Errors: NULL, ALIGNMENT, STATE, CONTEXT (then it is untouched), DRIVER.
lava_status lava_cuda_destroy(void *context, lava_error *error);

/// What a status word says, once the stream has run the calls that it was given to and the word is back on the host.
///
/// word: *status of those calls. All bits set: nothing went wrong.
/// sequence: NULL, or receives the sequence of the batch, LAVA_NONE without a fault.
/// error: NULL, or receives the layer, the KV head, and what was not finite: "lse", "q", "v", "scores", "stats" or
///     "weights"; "q" stands for q or k. With LAVA_ERR_BUDGET it is "total". Where no head is to blame, as with the
///     weights of layers, head is LAVA_NONE.
/// Returns LAVA_OK, LAVA_ERR_NONFINITE, LAVA_ERR_BUDGET, or LAVA_ERR_ARGUMENT for what is no status word. Any thread.
lava_status lava_cuda_result(uint64_t word, uint32_t *sequence, lava_error *error);

/// Bytes of device memory that lava_cuda_score needs as a workspace.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence.
/// params: may be NULL.
/// size: receives the bytes, enough for tensors of any type and layout, with and without lse; untouched on error.
/// Errors: as lava_cuda_score. Any thread.
lava_status lava_cuda_score_workspace_size(const void *context, const lava_shape *shape,
    const lava_score_params *params, uint32_t n_sequences, size_t *size, lava_error *error);

/// lava_score for one layer of a batch of sequences of different lengths.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence; layer is below 65536.
/// params: may be NULL.
/// sequences: host memory, n_sequences of them, read during the call, as are the tensors they point to. There are
///     faster kernels for f16 or bf16 rows of adjacent elements, aligned to 16 bytes; they are used if all sequences
///     have such rows. The scores of a sequence are the same bits in every run, in every batch of the same kind of
///     tensors, on devices of one architecture: CUDA does not say in which order tensor cores add. From the same scores
///     the same entries are kept everywhere.
/// workspace: device memory, lava_cuda_score_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN. No other call may
///     use it until the stream has run this one.
/// status: device memory; see the top.
/// stream: a CUstream or cudaStream_t of the context, NULL for its default stream.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, OVERFLOW, DTYPE,
///     UNSUPPORTED, STATE, CONTEXT: nothing was launched. LAUNCH: some launches may have been. Any thread on which the
///     context is current.
lava_status lava_cuda_score(const void *context, const lava_shape *shape, const lava_score_params *params,
    const lava_cuda_score_sequence *sequences, uint32_t n_sequences, void *workspace, size_t workspace_size,
    uint64_t *status, void *stream, lava_error *error);

/// Bytes of device memory that lava_cuda_attention_stats needs as a workspace.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence.
/// params: may be NULL.
/// size: receives the bytes, enough for tensors of any type and layout, with and without lse; untouched on error.
/// Errors: as lava_cuda_attention_stats. Any thread.
lava_status lava_cuda_attention_stats_workspace_size(const void *context, const lava_shape *shape,
    const lava_score_params *params, uint32_t n_sequences, size_t *size, lava_error *error);

/// lava_attention_stats (lava_methods.h) for one layer of a batch of sequences of unlike length. K is read twice, once
/// with lse.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence; layer is below 65536.
/// params: may be NULL; scale, softcap and lse_base are used.
/// sequences: host memory, n_sequences of them, read during the call, as are the tensors they point to; what
///     lava_cuda_score says of its own is true of them. The statistics of a sequence are the same bits where its scores
///     would be.
/// workspace: device memory, lava_cuda_attention_stats_workspace_size bytes, as for lava_cuda_score.
/// status, stream: as for lava_cuda_score.
/// Errors: as lava_cuda_score.
lava_status lava_cuda_attention_stats(const void *context, const lava_shape *shape, const lava_score_params *params,
    const lava_cuda_stats_sequence *sequences, uint32_t n_sequences, void *workspace, size_t workspace_size,
    uint64_t *status, void *stream, lava_error *error);

/// lava_preference (lava_methods.h) for layers or sequences side by side.
///
/// context: from lava_cuda_init.
/// shape: n_kv_heads is used.
/// tau1, tau2: as for lava_preference.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, 24 bytes for each sequence, aligned to LAVA_WORKSPACE_ALIGN; may be NULL for a single one.
/// status, stream: as for lava_cuda_score. A weight that is not finite is "stats", of no head. lava_cuda_layer_entries
///     then writes numbers that lava_cuda_select refuses, and a cascade's pushes do nothing.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, UNSUPPORTED, STATE, CONTEXT: nothing was
///     launched. LAUNCH. Any thread on which the context is current.
lava_status lava_cuda_preference(const void *context, const lava_shape *shape, double tau1, double tau2,
    const lava_cuda_preference_sequence *sequences, uint32_t n_sequences, void *workspace, size_t workspace_size,
    uint64_t *status, void *stream, lava_error *error);

/// lava_mean_over_heads (lava_methods.h) for layers or sequences side by side: the same bits as on the CPU.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence; n_kv_heads and window are used.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, 16 bytes for each sequence, aligned to LAVA_WORKSPACE_ALIGN; may be NULL for a single one.
/// status, stream: as for lava_cuda_score. Where scores are not finite ("scores"), the sequence's must not be used.
/// Errors: as lava_cuda_preference.
lava_status lava_cuda_mean_over_heads(const void *context, const lava_shape *shape,
    const lava_cuda_mean_sequence *sequences, uint32_t n_sequences, void *workspace, size_t workspace_size,
    uint64_t *status, void *stream, lava_error *error);

/// Bytes of device memory that lava_cuda_entropy needs as a workspace.
///
/// n_sequences: as for lava_cuda_entropy.
/// size: receives the bytes; untouched on error.
/// Errors: as lava_cuda_entropy. Any thread.
lava_status lava_cuda_entropy_workspace_size(const void *context, const lava_shape *shape, uint32_t n_sequences,
    size_t *size, lava_error *error);

/// lava_entropy for layers or sequences side by side: the same bits as on the CPU.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence; n_kv_heads and window are used.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, lava_cuda_entropy_workspace_size bytes, as for lava_cuda_score.
/// status, stream: as for lava_cuda_score. Where scores are negative or not finite ("scores"), the sequence's numbers
///     must not be used.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, OVERFLOW, UNSUPPORTED, STATE, CONTEXT:
///     nothing was launched. LAUNCH: some launches may have been. Any thread on which the context is current.
lava_status lava_cuda_entropy(const void *context, const lava_shape *shape, const lava_cuda_entropy_sequence *sequences,
    uint32_t n_sequences, void *workspace, size_t workspace_size, uint64_t *status, void *stream, lava_error *error);

/// lava_layer_entries for sequences side by side: the same numbers as on the CPU, without waiting for weights that are
/// on the device. The layers may be unlike: what counts is what they can keep.
///
/// context: from lava_cuda_init.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, 48 bytes for each sequence, aligned to LAVA_WORKSPACE_ALIGN; may be NULL for a single one.
/// status, stream: as for lava_cuda_score. Weights that are negative or not finite are "weights". A total below the
///     minimums' sum, minimums above a capacity, and capacities of 2^32 or more, are LAVA_ERR_BUDGET, "total". The
///     entries are then what lava_cuda_select refuses.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, STATE, CONTEXT: nothing was launched.
///     LAUNCH. Any thread on which the context is current.
lava_status lava_cuda_layer_entries(const void *context, const lava_cuda_entries_sequence *sequences,
    uint32_t n_sequences, void *workspace, size_t workspace_size, uint64_t *status, void *stream, lava_error *error);

/// Bytes of device memory that lava_cuda_global_entries needs as a workspace.
///
/// shape, n_layers, n_sequences: as for lava_cuda_global_entries.
/// size: receives the bytes; untouched on error.
/// Errors: as lava_cuda_global_entries. Any thread.
lava_status lava_cuda_global_entries_workspace_size(const void *context, const lava_shape *shape, uint32_t n_layers,
    uint32_t n_sequences, size_t *size, lava_error *error);

/// lava_global_entries for sequences side by side: the same numbers as on the CPU. With them lava_cuda_select keeps
/// exactly the largest scores of the whole model: a layer's n_entries is &entries[l], its head_weights head_weights + l
/// * n_kv_heads.
///
/// context: from lava_cuda_init.
/// shape: of every layer; n_tokens is that of the longest sequence. n_kv_heads is at most LAVA_CUDA_MAX_HEADS, n_layers
///     * n_kv_heads * n_tokens below 2^32.
/// n_layers: at most LAVA_MAX_LAYERS.
/// params: may be NULL. As for lava_global_entries, but protected_mask is NULL here: each sequence has its own.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, lava_cuda_global_entries_workspace_size bytes, as for lava_cuda_score.
/// status, stream: as for lava_cuda_score. Scores that are not finite are "scores"; a total below what the heads are
///     promised is LAVA_ERR_BUDGET, "total", of layer 0.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, OVERFLOW, UNSUPPORTED, STATE, CONTEXT:
///     nothing was launched. LAUNCH: some launches may have been. Any thread on which the context is current.
lava_status lava_cuda_global_entries(const void *context, const lava_shape *shape, uint32_t n_layers,
    const lava_select_params *params, const lava_cuda_global_sequence *sequences, uint32_t n_sequences, void *workspace,
    size_t workspace_size, uint64_t *status, void *stream, lava_error *error);

/// Bytes of device memory that lava_cuda_select needs as a workspace.
///
/// shape, n_sequences: as for lava_cuda_select.
/// size: receives the bytes; untouched on error.
/// Errors: as lava_cuda_select. Any thread.
lava_status lava_cuda_select_workspace_size(const void *context, const lava_shape *shape, uint32_t n_sequences,
    size_t *size, lava_error *error);

/// lava_select for layers or sequences side by side: the same kept sets as on the CPU, bit for bit.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence; n_kv_heads is at most LAVA_CUDA_MAX_HEADS, and n_kv_heads *
///     n_tokens below 2^32.
/// params: may be NULL. protected_mask and head_weights are NULL here: each sequence has its own.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, lava_cuda_select_workspace_size bytes, as for lava_cuda_score.
/// status, stream: as for lava_cuda_score. Nothing is written for a sequence with scores that are not finite
///     ("scores"), weights that are negative or not finite ("weights"), or fewer entries than are protected
///     (LAVA_ERR_BUDGET, "total").
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, OVERFLOW, UNSUPPORTED, STATE, CONTEXT:
///     nothing was launched. LAUNCH: some launches may have been. Any thread on which the context is current.
lava_status lava_cuda_select(const void *context, const lava_shape *shape, const lava_select_params *params,
    const lava_cuda_select_sequence *sequences, uint32_t n_sequences, void *workspace, size_t workspace_size,
    uint64_t *status, void *stream, lava_error *error);

/// Bytes of device memory that a cascade's state needs.
///
/// shape: of every layer; n_kv_heads, n_tokens and window are used.
/// n_layers, total, params, cascade_params: as for lava_cuda_cascade_init.
/// size: receives the bytes; untouched on error.
/// Errors: as lava_cuda_cascade_init. Any thread.
lava_status lava_cuda_cascade_state_size(const lava_shape *shape, uint32_t n_layers, uint64_t total,
    const lava_select_params *params, const lava_cascade_params *cascade_params, size_t *size, lava_error *error);

/// Bytes of device memory that lava_cuda_cascade_push needs as a workspace, enough for every layer.
///
/// context: from lava_cuda_init.
/// cascade: from lava_cuda_cascade_init. A call with cascades of several shapes needs the largest of their sizes.
/// n_sequences: as for lava_cuda_cascade_push.
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, STATE. Any thread.
lava_status lava_cuda_cascade_workspace_size(const void *context, const lava_cuda_cascade *cascade,
    uint32_t n_sequences, size_t *size, lava_error *error);

/// lava_cascade_init on the device.
///
/// context: from lava_cuda_init.
/// shape: of every layer; n_kv_heads, n_tokens and window are used. n_kv_heads is at most LAVA_CUDA_MAX_HEADS,
///     n_kv_heads * n_tokens below 2^32.
/// n_layers, total: as for lava_cascade_init.
/// params: may be NULL. As for lava_cascade_init, but protected_mask and head_weights are device memory. They are not
///     copied: they must stay until the last push has run.
/// cascade_params: may be NULL.
/// state: device memory, lava_cuda_cascade_state_size bytes, aligned to LAVA_WORKSPACE_ALIGN, the cascade's until
///     nobody looks at its layers any more.
/// cascade: receives the host's part; untouched on error.
/// status, stream: as for lava_cuda_score. A total below what the mask protects is LAVA_ERR_BUDGET, "total", of layer
///     0; pushes do nothing then.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE (state_size), OVERFLOW, BUDGET,
///     UNSUPPORTED, STATE, CONTEXT: nothing was launched. LAUNCH. Any thread on which the context is current, but one
///     call on a cascade at a time.
lava_status lava_cuda_cascade_init(const void *context, const lava_shape *shape, uint32_t n_layers, uint64_t total,
    const lava_select_params *params, const lava_cascade_params *cascade_params, void *state, size_t state_size,
    lava_cuda_cascade *cascade, uint64_t *status, void *stream, lava_error *error);

/// lava_cascade_push on the device, for sequences side by side: after it has run, every layer so far keeps what it
/// keeps on the CPU, bit for bit.
///
/// context: from lava_cuda_init.
/// sequences: host memory, n_sequences of them, read during the call. Their cascades may be of any shapes, each at a
///     layer of its own.
/// workspace: device memory, lava_cuda_cascade_workspace_size bytes, as for lava_cuda_score.
/// status, stream: as for lava_cuda_score; the stream of the calls before, or one that waits for it. A fault in a
///     layer's scores or weights ("scores", "weights"), or entries that cannot hold what is protected
///     (LAVA_ERR_BUDGET), makes this push and all later ones of the cascade do nothing.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, ALIGNMENT, OVERLAP, WORKSPACE, STATE (complete, or not from
///     lava_cuda_cascade_init), CONTEXT: nothing was launched. LAUNCH: some launches may have been, and the cascades
///     must not be used any more.
lava_status lava_cuda_cascade_push(const void *context, const lava_cuda_push_sequence *sequences, uint32_t n_sequences,
    void *workspace, size_t workspace_size, uint64_t *status, void *stream, lava_error *error);

/// Where a layer is after the last push.
///
/// cascade: from lava_cuda_cascade_init, with pushes.
/// layer: below n_pushed.
/// out: receives pointers to device memory; untouched on error. What they lead to is valid once the last push has run.
/// Errors: NULL, STRUCT_SIZE, STATE (not from lava_cuda_cascade_init, or no such layer yet). Any thread.
lava_status lava_cuda_cascade_get(const lava_cuda_cascade *cascade, uint32_t layer, lava_cuda_cascade_layer *out,
    lava_error *error);

/// Bytes of device memory that lava_cuda_compact needs as a workspace.
///
/// size: receives the bytes, enough for tensors of any type and layout; untouched on error.
/// Errors: as lava_cuda_compact. Any thread.
lava_status lava_cuda_compact_workspace_size(const void *context, uint32_t n_sequences, size_t *size,
    lava_error *error);

/// lava_compact for any layers of any sequences: gathers each head's kept rows of K and V, into another cache or in
/// place. Everything that rows and cu_kept say stays on the device, so it may follow lava_cuda_select or
/// lava_cuda_cascade_push at once.
///
/// context: from lava_cuda_init.
/// shape: n_kv_heads, head_dim_k and head_dim_v are used; layer is named in errors.
/// sequences: host memory, n_sequences of them, at most LAVA_CUDA_MAX_COMPACT_SEQUENCES, read during the call, as are
///     the tensors they point to. In place is the source's memory with the same data, dtype, stride_token and
///     stride_dim. Then either stride_head or row_start is the very same: each head's rows move to the front of its
///     own. Or both are ragged: rows of all heads close ranks. The caller promises that every row then moves to the
///     front or stays, and that row_start leaves room for what is kept. Otherwise a destination may not share memory
///     with a source or the other destination; K and V interleaved without row_start, with the same strides, are fine.
///     Caches of one call must not share memory that one of them writes.
/// workspace, stream: as for lava_cuda_score; the workspace is lava_cuda_compact_workspace_size bytes.
/// status: device memory, only read: where it has a fault when the kernels run, nothing moves and the caches stay as
///     they were. It must be the status of those calls on this stream which wrote rows and cu_kept, and not change
///     while this call runs.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, OVERFLOW, DTYPE,
///     STATE, CONTEXT: nothing was launched. LAUNCH: some launches may have been, and only part of the tensors moved.
///     Any thread on which the context is
///     current.
lava_status lava_cuda_compact(const void *context, const lava_shape *shape, const lava_cuda_compact_sequence *sequences,
    uint32_t n_sequences, void *workspace, size_t workspace_size, const uint64_t *status, void *stream,
    lava_error *error);

/// Bytes of device memory that lava_cuda_attend needs as a workspace.
///
/// shape: heads and head dimensions are used.
/// n_queries: as for lava_cuda_attend.
/// total_rows: sum over the sequences of their total_rows, or of max_rows * n_kv_heads where that is 0.
/// size: receives the bytes, enough for tensors of any type and layout; untouched on error.
/// Errors: as lava_cuda_attend. Any thread.
lava_status lava_cuda_attend_workspace_size(const void *context, const lava_shape *shape, uint32_t n_queries,
    uint32_t n_sequences, uint64_t total_rows, size_t *size, lava_error *error);

/// lava_attend for a batch of sequences, each with the same number of new queries and its own compressed cache.
///
/// The counts n_rows are read on the device, when the kernels run: a captured graph stays valid while caches grow, up
/// to max_rows and total_rows. A larger count is taken as max_rows. Where all together have more rows than that,
/// nothing is written after the workspace's end, but the outputs must not be used. With causal, a head of fewer than
/// n_queries rows has queries that see nothing: the first ones.
///
/// context: from lava_cuda_init.
/// shape: heads, head dimensions and sliding_window are used; layer is below 65536. With a sliding window each sequence
///     has its positions.
/// params: may be NULL: causal. kept_indices, cu_kept and n_base are 0 here: each sequence has its own.
/// n_queries: new queries of each sequence, at least 1.
/// sequences, workspace, status, stream: as for lava_cuda_score. The workspace is lava_cuda_attend_workspace_size
///     bytes. A sequence's outputs are the same bits where its scores would be: in every run, in every batch of the
///     same kinds of tensors.
/// Errors: as lava_cuda_score.
lava_status lava_cuda_attend(const void *context, const lava_shape *shape, const lava_attend_params *params,
    uint32_t n_queries, const lava_cuda_attend_sequence *sequences, uint32_t n_sequences, void *workspace,
    size_t workspace_size, uint64_t *status, void *stream, lava_error *error);

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

LAVA_STATIC_ASSERT(sizeof(lava_cuda_stats_sequence) == 40, "lava_cuda_stats_sequence");
LAVA_STATIC_ASSERT(offsetof(lava_cuda_stats_sequence, stats) == 32, "lava_cuda_stats_sequence");
LAVA_STATIC_ASSERT(sizeof(lava_cuda_preference_sequence) == 24, "lava_cuda_preference_sequence");
LAVA_STATIC_ASSERT(sizeof(lava_cuda_mean_sequence) == 24, "lava_cuda_mean_sequence");
LAVA_STATIC_ASSERT(sizeof(lava_cuda_entropy_sequence) == 40, "lava_cuda_entropy_sequence");
LAVA_STATIC_ASSERT(sizeof(lava_cuda_entries_sequence) == 48, "lava_cuda_entries_sequence");
LAVA_STATIC_ASSERT(sizeof(lava_cuda_global_sequence) == 48, "lava_cuda_global_sequence");
LAVA_STATIC_ASSERT(sizeof(lava_cuda_select_sequence) == 72, "lava_cuda_select_sequence");
LAVA_STATIC_ASSERT(sizeof(lava_cuda_compact_sequence) == 80, "lava_cuda_compact_sequence");
LAVA_STATIC_ASSERT(sizeof(lava_cuda_push_sequence) == 32, "lava_cuda_push_sequence");
LAVA_STATIC_ASSERT(sizeof(lava_cuda_cascade) == 80, "lava_cuda_cascade");
LAVA_STATIC_ASSERT(offsetof(lava_cuda_cascade, total) == 48, "lava_cuda_cascade");
LAVA_STATIC_ASSERT(sizeof(lava_cuda_cascade_layer) == 80, "lava_cuda_cascade_layer");
LAVA_STATIC_ASSERT(sizeof(lava_cuda_score_sequence) == 48, "lava_cuda_score_sequence");
LAVA_STATIC_ASSERT(offsetof(lava_cuda_score_sequence, scores) == 40, "lava_cuda_score_sequence");
LAVA_STATIC_ASSERT(sizeof(lava_cuda_attend_sequence) == 96, "lava_cuda_attend_sequence");
LAVA_STATIC_ASSERT(offsetof(lava_cuda_attend_sequence, n_rows) == 56, "lava_cuda_attend_sequence");
LAVA_STATIC_ASSERT(offsetof(lava_cuda_attend_sequence, n_base) == 80, "lava_cuda_attend_sequence");

#undef LAVA_STATIC_ASSERT

#endif /* LAVA_CUDA_H */
