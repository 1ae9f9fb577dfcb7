/*
 * lava_cuda.h - lava.h on an NVIDIA GPU: the same calls with device pointers, in the engine's own CUDA context and stream.
 *
 * Experimental: it has not run on a GPU yet. Every kernel has run under emulation and in an interpreter of PTX, against the CPU.
 *
 * Made by cbindgen from src/ffi/cuda.rs and src/ffi/cuda/; `UPDATE_HEADER=1 cargo test --test header` makes it anew. Edit the comments
 * there. The functions are in a library that was built with the feature `cuda` (`make lib FEATURES=cuda`) on a machine with nvcc: $NVCC,
 * or in $CUDA_HOME/bin, $PATH or target/cuda-toolkit. LAVA_REQUIRE_CUDA=1 makes a missing nvcc an error of the build; otherwise
 * lava_cuda_init returns LAVA_ERR_UNSUPPORTED. LAVA_CUDA_ARCHS names the architectures, such as 80,90a; code for later ones is made from
 * the first.
 *
 * In short, with the rules of lava.h:
 *
 *     context = aligned memory of lava_cuda_context_size() bytes
 *     lava_cuda_init(context, ...)                         once, with the engine's CUDA context current
 *     lava_cuda_score_workspace_size, then cudaMalloc      once, for the longest prompt
 *     cudaMemsetAsync(status, 0xff, 8, stream)             before each layer, prompt, or whatever is to be checked together
 *     lava_cuda_score(..., status, stream, ...)            only asks for launches
 *     lava_cuda_cascade_push, or lava_cuda_global_entries (or _entropy and _layer_entries) and lava_cuda_select
 *     lava_cuda_compact, lava_cuda_attend
 *     the status word back to the host, lava_cuda_result   when the stream has run them
 *     lava_cuda_destroy(context, ...)
 *
 * What the CPU does and the GPU does not yet. Where nothing else is said, the call returns LAVA_ERR_UNSUPPORTED and names the field.
 *
 *     lava_shape.sliding_window        entropy, entries, select, cascade: sliding layers have entries that are dead, which they do not know.
 *                                      Scores, statistics and lava_cuda_attend have it
 *     lava_shape.cu_rows, positions    all but lava_cuda_compact and lava_cuda_attend, which do not look at them
 *     layers of unlike shapes          lava_cuda_global_entries and cascades take one shape for all layers (lava_cuda_layer_entries: any)
 *     params.sink_logits               everywhere
 *     params.query_head_weights        everywhere
 *     LAVA_ATTENTION_MAX               named as attention
 *     LAVA_VALUE_TOKEN_L2              named as value_weight
 *     lava_score_queries, lava_smooth  no such functions
 *     params.backend                   all but LAVA_BACKEND_BEST
 *     the check of a given lse         not made: an attention that does not sum to 1 is believed
 *     rows of lava_select              not written: without cu_rows they are kept_indices
 *
 * Rules for all functions:
 *
 * - "Device memory" is a pointer that kernels of the context may follow, managed and mapped memory too. It is never followed on the
 *   host: the caller promises that a pointer leads to as much memory as its comment says, that row_start ascends and that rows do not
 *   overlap. NULL, misaligned pointers, shapes, strides and sizes are checked as strictly as lava.h does, and so are overlaps within a
 *   sequence and with the workspace and status word. All structs are host memory, read before the call returns.
 * - params may be NULL, which is the recommended preset, as in lava.h.
 * - n_kv_heads and the number of sequences are at most LAVA_CUDA_MAX_SEQUENCES, n_tokens at most 2^32 - 4096.
 * - A lava_tensor has data and row_start in device memory here. With row_start, size is what all heads take together; only
 *   that the longest head would fit is checked.
 * - Calls only ask for launches on the given stream. They do not wait, allocate, copy from host memory, or change the current context,
 *   and may be captured into a graph, which holds everything but the device memory itself. lava_cuda_init and lava_cuda_destroy
 *   load and unload code and are not for a stream that is being captured.
 * - The CUDA context of lava_cuda_init must be current on the calling thread (LAVA_ERR_CONTEXT). The runtime API makes it so with
 *   cudaSetDevice. Calls with different outputs and workspaces may run at the same time, on any threads and streams.
 * - status is one uint64_t in device memory, aligned to 8, with all bits set before the first of the calls that share it. NaN, infinity and
 *   scores that overflow are found by the kernels, not by the call, which returns LAVA_OK: then the word says what and where, and
 *   the outputs of that sequence's head must not be used. lava_cuda_result makes a lava_status of it.
 * - On LAVA_ERR_DRIVER, _CONTEXT and _LAUNCH error.argument is the driver's name for what happened, where it has one.
 * - The kernels run on devices of compute capability 8.0 and later. Made by the nvcc of CUDA 13 they need a driver from R580 on: an older
 *   one is LAVA_ERR_DRIVER of lava_cuda_init, "CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_INVALID_IMAGE" or
 *   "CUDA_ERROR_UNSUPPORTED_PTX_VERSION". Build with the toolkit of the driver's major version then, 12.1 at the least.
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
    /// NULL, or f32 [window, n_q_heads, 1] as in lava_score, in the base that lse_base says. Given for all sequences of a call or for none.
    const lava_tensor *lse;
    /// Device memory, f32 [n_kv_heads, n_tokens - window] without gaps; written. May be NULL where there is nothing to score.
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
    /// Must be 0.
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
    /// Must be 0.
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
    /// Device memory, n_layers numbers below 2^32: the most entries that each layer can keep. 0 for a layer that takes no part.
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
    /// Device memory; receives n_layers numbers, as that of lava_global_entries does. Where there is a fault, what lava_cuda_select refuses.
    uint64_t *entries;
    /// Device memory; receives n_layers * n_kv_heads numbers, as that of lava_global_entries does. Untouched where there is a fault.
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
    /// Must be 0.
    uint32_t reserved;
    /// Device memory, f32 [n_kv_heads, n_tokens - window], finite.
    const float *scores;
    /// Device memory, one number: prefix entries to keep. Read when the kernels run, so nobody waits for lava_cuda_layer_entries.
    const uint64_t *n_entries;
    /// NULL, or device memory, as in lava_select_params.
    const uint8_t *protected_mask;
    /// NULL, or device memory, n_kv_heads numbers, as in lava_select_params.
    const double *head_weights;
    /// Device memory with room for min(*n_entries, all prefix entries) + n_kv_heads * min(window, n_tokens) positions; receives them, as
    /// that of lava_select does. For lava_cuda_compact they are the rows.
    uint32_t *kept_indices;
    /// Device memory; receives n_kv_heads + 1 entries.
    uint32_t *cu_kept;
    /// NULL, or device memory; receives the report, struct_size included. The evicted share is within 1e-12 of the CPU's.
    lava_selection *selection;
} lava_cuda_select_sequence;

/// The host's part of a cascade: in the caller's memory, filled by lava_cuda_cascade_init. It may be moved; of two copies, only one may be
/// pushed.
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
    /// Must be 0.
    uint32_t reserved;
    /// From lava_cuda_cascade_init, a different one for each sequence; counts the push. Unchanged on error.
    struct lava_cuda_cascade *cascade;
    /// Device memory, f32 [n_kv_heads, n_tokens - window] of the cascade's next layer, not negative.
    const float *scores;
    /// With LAVA_LAYERS_WEIGHTS device memory, one number, finite and not negative: the layer's weight. Else NULL.
    const double *weight;
} lava_cuda_push_sequence;

/// Where a layer of a cascade lies on the device after the last push: inside the state, and valid until the next push runs.
typedef struct lava_cuda_cascade_layer {
    /// sizeof(lava_cuda_cascade_layer), set by the caller.
    uint32_t struct_size;
    /// 0.
    uint32_t reserved;
    /// One number: kept_indices and rows of this layer begin so many entries after the pointers below. rows_offset of lava_cuda_compact,
    /// kept_offset of lava_cuda_attend.
    const uint64_t *offset;
    /// True token positions kept by each head, ascending, window included.
    const uint32_t *kept_indices;
    /// Exclusive prefix sum of the kept counts, n_kv_heads + 1 entries.
    const uint32_t *cu_kept;
    /// For lava_cuda_compact: which rows are kept of those that the caller's cache holds; see lava_cascade_layer.
    const uint32_t *rows;
    /// Exclusive prefix sum of the row counts of that cache, n_kv_heads + 1 entries.
    const uint32_t *cu_rows;
    /// One number, as the three below; see lava_cascade_layer.
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
    /// Must be 0.
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
    /// NULL, or device memory, one number: rows begins so many entries later. From lava_cuda_cascade_get.
    const uint64_t *rows_offset;
    /// Device memory, n_kv_heads + 1 entries.
    const uint32_t *cu_kept;
    /// NULL, or device memory, n_kv_heads entries; receives each head's rows, for lava_cuda_attend. Untouched where nothing moves:
    /// set to zeros before, they keep attention inside the cache after a fault.
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
    /// Must be 0.
    uint32_t reserved;
    /// NULL, or device memory, one number: kept_indices begins so many entries later. `offset` of lava_cuda_cascade_get.
    const uint64_t *kept_offset;
} lava_cuda_attend_sequence;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/// Bytes of host memory that a context needs, aligned to LAVA_WORKSPACE_ALIGN. The same for one library. Any thread.
size_t lava_cuda_context_size(void);

/// Loads the kernels into the CUDA context that is current on the calling thread.
///
/// The first call of a process loads libcuda, which stays loaded; that, and what the driver does to load code, are the only allocations
/// that a function of this header makes. Not to be called while a stream of the context is being captured.
///
/// context: lava_cuda_context_size bytes of host memory, for as long as it is used; what it holds is overwritten. It may be
///     moved, and many threads may use it at a time. Each CUDA context needs one of its own.
/// Errors: NULL, ALIGNMENT, BUFFER_SIZE, UNSUPPORTED (a library built without nvcc), DRIVER (argument names a function that
///     libcuda lacks, or the driver's error), CONTEXT. On error nothing stays loaded, and the memory is as it was.
lava_status lava_cuda_init(void *context, size_t context_size, lava_error *error);

/// Unloads the kernels. Nothing that was launched with them may still be running, and no captured graph may be launched any more.
///
/// context: from lava_cuda_init. Afterwards it holds no kernels (STATE), even where the driver reports an error.
/// Errors: NULL, ALIGNMENT, STATE, CONTEXT (then it is untouched), DRIVER.
lava_status lava_cuda_destroy(void *context, lava_error *error);

/// What a status word says, once the stream has run the calls that were given it and the word is back on the host.
///
/// word: *status of those calls. All bits set: nothing went wrong.
/// sequence: NULL, or receives the sequence of the batch, LAVA_NONE without a fault.
/// error: NULL, or receives the layer, the KV head, and what was not finite: "lse", "q", "v", "scores", "stats" or "weights"; "q" stands
///     for q or k. With LAVA_ERR_BUDGET it is "total". Where no head is to blame, as with the weights of layers, head is LAVA_NONE.
/// Returns LAVA_OK, LAVA_ERR_NONFINITE, LAVA_ERR_BUDGET, or LAVA_ERR_ARGUMENT for what is no status word. Any thread.
lava_status lava_cuda_result(uint64_t word, uint32_t *sequence, lava_error *error);

/// Bytes of workspace that each part of lava_attend needs.
///
/// n_queries: as in lava_attend.
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW. Any thread.
lava_status lava_attend_workspace_size(const lava_shape *shape, uint32_t n_queries, size_t *size, lava_error *error);

/// Attention of new queries over a compressed cache: heads of unlike length, grouped queries.
///
/// shape: heads, head dimensions and sliding_window are used. With a sliding window, params must have positions: a query's own is that of
///     its row if causal, else query t stands t after the position that follows the last row.
/// params: may be NULL: causal, without positions.
/// n_queries: new queries, at least 1.
/// q:   [n_queries, n_q_heads, head_dim_k], after RoPE.
/// k:   [n_rows[h], n_kv_heads, head_dim_k], usually ragged.
/// v:   [n_rows[h], n_kv_heads, head_dim_v], usually ragged.
/// n_rows: n_kv_heads entries, each head's rows, the new tokens' own included if causal: then at least n_queries.
/// out: f32 [n_queries, n_q_heads, head_dim_v]. A query that sees no row gets zeros.
/// lse: NULL, or f32 [n_queries, n_q_heads, 1]: log-sum-exp of each query's logits, its learned sink included, in the base that lse_base
///     says, for merging with attention over other rows. -inf where there is nothing to sum.
/// part, n_parts: a share of the KV heads with their query heads; the result is the same bits for every n_parts.
/// workspace: lava_attend_workspace_size bytes, one per part, aligned to LAVA_WORKSPACE_ALIGN.
/// Errors: NULL (kept_indices, with a sliding window), STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE,
///     WORKSPACE, OVERFLOW, DTYPE, INDICES, UNSUPPORTED, NONFINITE (in q, k or v, or a sum over values that overflows; rows that no query
///     sees may or may not be looked at). The cache is never written; out and lse may be partly written on NONFINITE and are
///     untouched otherwise. Any thread.
lava_status lava_attend(const lava_shape *shape, const lava_attend_params *params, uint32_t n_queries,
    const lava_tensor *q, const lava_tensor *k, const lava_tensor *v, const uint32_t *n_rows, const lava_tensor *out,
    const lava_tensor *lse, uint32_t part, uint32_t n_parts, void *workspace, size_t workspace_size, lava_error *error);

/// The budget that a ratio of the tokens means: floor(ratio * n_tokens), with the ratio in billionths, so that 0.29 of 100 is 29. Never
/// less than what every head keeps whatever is asked for (the window, protected entries, head_min), never more than n_tokens. So every
/// ratio works at every length.
///
/// shape: of a model of unlike layers, the one with the longest cache.
/// params: may be NULL.
/// ratio: in [0, 1].
/// budget: receives tokens per KV head per layer, window included; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ARGUMENT. Any thread.
lava_status lava_budget_from_ratio(const lava_shape *shape, const lava_select_params *params, double ratio,
    uint32_t *budget, lava_error *error);

/// Prefix entries that a budget means for a whole model: the sum over all heads of budget - window, or of the prefix positions that a
/// later query can see where those are fewer; at most all rows there are. Compressing again asks for the same total.
///
/// shapes: n_shapes of them: one for each layer, or 1 that stands for all n_layers. Layers may differ in everything; one without KV heads
///     takes no part.
/// budget: average tokens kept per KV head per layer, window included. At least each window (BUDGET), unless it covers all tokens.
/// total: receives the number; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, BUDGET. Any thread.
lava_status lava_total_entries(const lava_shape *shapes, uint32_t n_shapes, uint32_t n_layers, uint32_t budget,
    uint64_t *total, lava_error *error);

/// Normalised entropy of a layer's scores, the layer's weight when layers share a total as LAVa has it.
///
///     p = scores / sum(scores)        entropy = -sum(p ln p) / ln(number of scores)
///
/// scores: f32, lava_n_scores(shape) of them, not negative (ARGUMENT). Those of dead rows do not count.
/// entropy: receives a number in [0, 1]; 0 where there is nothing to spread. The same bits on every machine.
/// mass: NULL, or receives sum(scores).
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, OVERLAP, ARGUMENT, NONFINITE. Untouched on error. Any thread.
lava_status lava_entropy(const lava_shape *shape, const float *scores, double *entropy, double *mass,
    lava_error *error);

/// Shares a total among layers in proportion to their weights, as integers.
///
/// The entries sum to exactly min(total, all that later queries can see): largest remainder, ties to the lower layer. No layer gets
/// more than it can use or less than what params protect; what it cannot use goes to the others in proportion. Where all weights are
/// zero, layers share equally.
///
/// shapes, n_shapes, n_layers: as in lava_total_entries; n_layers at most LAVA_MAX_LAYERS.
/// params: may be NULL; sinks, the mask and head_min are used.
/// weights: [n_layers], finite, not negative (ARGUMENT), for LAVa the entropies; resolved to 2^-52.
/// total: prefix entries over all layers; see lava_total_entries.
/// entries: [n_layers], receives each layer's prefix entries; untouched on error.
/// Errors: NULL, STRUCT_SIZE, ALIGNMENT, SHAPE, OVERLAP, OVERFLOW, INDICES, ARGUMENT, NONFINITE (naming the layer), BUDGET (what is
///     protected exceeds the total). Any thread.
lava_status lava_layer_entries(const lava_shape *shapes, uint32_t n_shapes, uint32_t n_layers,
    const lava_select_params *params, const double *weights, uint64_t total, uint64_t *entries, lava_error *error);

/// Bytes of workspace that lava_global_entries needs.
///
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES. Any thread.
lava_status lava_global_entries_workspace_size(const lava_shape *shapes, uint32_t n_shapes, uint32_t n_layers,
    size_t *size, lava_error *error);

/// Entries of layers and heads by one sort over the whole model: the `total` largest scores win, in whatever layer and head they are.
/// Ties go to the lower layer, then the lower head, then the lower token.
///
/// For each layer, lava_select with its entries, and its part of head_weights in lava_select_params, keeps exactly those. Layer weights
/// go into the scores (lava_score_params.weight).
///
/// shapes, n_shapes, n_layers: as in lava_total_entries. All layers together must have fewer than 2^32 rows.
/// params: may be NULL; head_min, sinks, the mask and LAVA_FLOOR_GUARANTEED are as in one layer, with the total over all heads of the model
///     as a head's share. LAVA_FLOOR_AFFINE and head_weights are refused.
/// scores: f32, the layers' scores one layer after the other, each as lava_score leaves them; finite.
/// total: prefix entries to keep over all layers; see lava_total_entries.
/// workspace: lava_global_entries_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
/// entries: [n_layers], receives each layer's prefix entries, in all min(total, all that later queries can see); untouched on error.
/// head_weights: a double for each KV head of all layers, layer after layer; receives the head's prefix entries. Untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, ARGUMENT, OVERLAP, WORKSPACE, BUDGET (below what the heads are
///     promised), NONFINITE (naming layer and head). Any thread.
lava_status lava_global_entries(const lava_shape *shapes, uint32_t n_shapes, uint32_t n_layers,
    const lava_select_params *params, const float *scores, uint64_t total, void *workspace, size_t workspace_size,
    uint64_t *entries, double *head_weights, lava_error *error);

/// Bytes of state that a cascade needs: about 12 per prefix entry of the total, and its windows.
///
/// shapes, n_shapes, n_layers: as in lava_total_entries.
/// total: prefix entries to keep over all layers; see lava_total_entries.
/// params, cascade: may be NULL.
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ARGUMENT, NONFINITE, BUDGET (what is protected exceeds it). Any thread.
lava_status lava_cascade_state_size(const lava_shape *shapes, uint32_t n_shapes, uint32_t n_layers, uint64_t total,
    const lava_select_params *params, const lava_cascade_params *cascade, size_t *size, lava_error *error);

/// Starts a cascade: compress while prefilling, layer by layer, instead of at the end.
///
/// shapes, n_shapes, n_layers: as in lava_total_entries: layers in the order in which they will be pushed.
/// total: prefix entries to keep over all layers; see lava_total_entries.
/// params: may be NULL. Floors, sinks, the protected mask, head weights. All is copied.
/// cascade: may be NULL. How the layers share the total, and how often the caller evicts.
/// state: lava_cascade_state_size bytes, aligned to LAVA_WORKSPACE_ALIGN. The caller owns it and may drop it, start it
///     again or copy it at any time: it holds no resources and no pointers.
/// Errors: as lava_cascade_state_size, and ALIGNMENT, OVERLAP, WORKSPACE. Any thread, but one call on a state at a time.
lava_status lava_cascade_init(const lava_shape *shapes, uint32_t n_shapes, uint32_t n_layers, uint64_t total,
    const lava_select_params *params, const lava_cascade_params *cascade, void *state, size_t state_size,
    lava_error *error);

/// Takes in the next layer's scores and decides anew what every layer so far keeps.
///
/// After it, lava_cascade_get says for each layer 0 to l which rows the caller's cache is to keep; lava_compact moves them, at once or
/// as often as evict_every of lava_cascade_params says. A layer without KV heads is passed over.
/// After the last layer's push the kept sets are exactly, bit for bit, those of lava_layer_entries and lava_select
/// on all layers at once. Before it, a layer may hold one entry more than its share, and what a head
/// floor may still ask for (alpha of the total, and one entry per head and layer).
///
/// Under LAVA_LAYERS_GLOBAL the final kept sets are those of lava_global_entries, and before it all layers hold at most `total`
/// together, plus what a floor or head_min may still ask for.
///
/// shape: the layer's, as lava_cascade_init was given it.
/// scores: f32, lava_n_scores(shape) of them, not negative (ARGUMENT).
/// weight: NULL; under LAVA_LAYERS_WEIGHTS the layer's weight, finite and not negative.
/// Errors: NULL, STRUCT_SIZE, SHAPE (not the layer that the cascade expects), OVERFLOW, INDICES, ALIGNMENT, OVERLAP, WORKSPACE, STATE (not
///     initialised or complete), NONFINITE (naming layer and head), ARGUMENT (also a weight where none is used, or none where it is). The
///     cascade is unchanged on error. Any thread, but one call on a state at a time.
lava_status lava_cascade_push(void *state, size_t state_size, const lava_shape *shape, const float *scores,
    const double *weight, lava_error *error);

/// What layer `layer` keeps after the last push, and how to get there from what the caller's cache holds.
///
/// state: only read. Pointers that earlier calls returned stay good until the next push.
/// out: receives pointers into the state; untouched on error. That it lies outside the state is not checked. A layer without KV heads
///     has no rows.
/// Errors: NULL, STRUCT_SIZE, ALIGNMENT, WORKSPACE, STATE (not initialised, or that layer was not pushed yet). Any thread, several at a
///     time, but none beside a push.
lava_status lava_cascade_get(const void *state, size_t state_size, uint32_t layer, lava_cascade_layer *out,
    lava_error *error);

/// Evicts: gathers each head's kept rows of K and V, in position order, into another cache or in place.
///
/// Row rows[cu_kept[h] + r] of head h becomes row r of head h. Keys carry their RoPE; nothing is re-rotated. True positions
/// stay with the caller in kept_indices.
///
/// shape: n_kv_heads, head_dim_k and head_dim_v are used, and for the source n_tokens or cu_rows; its positions are not.
/// k_src, v_src: the caches as they are, [rows, n_kv_heads, head_dim]. v_src and v_dst may both be NULL (a cache of keys only).
/// cu_rows: NULL if each head has the rows that the shape says; else n_kv_heads + 1 entries, the prefix sum of each head's rows in
///     the source (from lava_cascade_get).
/// rows: rows of lava_select or lava_cascade_get; ascending per head. May be NULL where cu_kept ends in 0.
/// cu_kept: n_kv_heads + 1 entries.
/// k_dst, v_dst: where the kept rows go, of the source's element type; each head needs room for its kept rows. Any layout:
///     ragged with row_start = cu_kept is the smallest; ragged with room after each head lets it grow.
///     In place is the source's memory, with the same data, dtype, stride_token and stride_dim. Then either the
///     heads stay where they are (no row_start, or the same): each head's rows move to the front of its own. Or both are
///     ragged and every row moves to the front of the buffer or stays (the heads close ranks; row_start may lead anywhere
///     into a larger buffer, such as an arena that layers share): then n_parts must be 1.
///     Otherwise a destination may not share memory with a source or the other destination; K and V interleaved in one
///     buffer with the same strides are fine.
/// part, n_parts: as in lava_score: a share of the KV heads. In place each part runs once: a second run would move rows
///     again. What moves is what the cache holds now; the scores are not looked at.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, STRIDE, ALIGNMENT, ARGUMENT, OVERLAP, BUFFER_SIZE, DTYPE, INDICES. Neither
///     cache is touched on error. Any thread.
lava_status lava_compact(const lava_shape *shape, const lava_tensor *k_src, const lava_tensor *v_src,
    const uint32_t *cu_rows, const uint32_t *rows, const uint32_t *cu_kept, const lava_tensor *k_dst,
    const lava_tensor *v_dst, uint32_t part, uint32_t n_parts, lava_error *error);

/// Bytes of workspace that each part of lava_score needs: at most a tenth of the layer's K and V in f16, from about a
/// thousand tokens on (the queries of one head and one block of keys must fit).
///
/// params: may be NULL.
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ARGUMENT, NONFINITE, UNSUPPORTED. Any thread.
lava_status lava_score_workspace_size(const lava_shape *shape, const lava_score_params *params, size_t *size,
    lava_error *error);

/// Scores the prefix of one layer: window attention, pooled, reduced over each group, times what the values say. LAVa's score is
///
///     scores[g][i] = vmax[g] * max_{h in group g} maxpool(mean_j softmax_i(scale * q_j.k_i))
///
/// and params make it another.
///
/// params: may be NULL.
/// q:   [min(window, n_tokens), n_q_heads, head_dim_k], the last window queries of the prompt, after RoPE.
/// k:   [rows, n_kv_heads, head_dim_k], after RoPE; n_tokens rows a head, or as the shape's cu_rows says.
/// v:   [rows, n_kv_heads, head_dim_v]. May be NULL with LAVA_VALUE_NONE.
/// lse: NULL, or f32 [min(window, n_tokens), n_q_heads, 1]: log-sum-exp of each query's scaled, capped, masked logits over all
///      keys that it sees, learned sinks included, as flash attention returns it (lse_base says in which base). Saves a pass and
///      the memory for it. One by which a query's attention does not sum to 1, within 5%, is refused (ARGUMENT).
/// part, n_parts: this call does share `part` of `n_parts` of the KV heads: n_kv_heads * part / n_parts up to
///      n_kv_heads * (part + 1) / n_parts, of which there may be none. Each part needs a workspace of its own.
/// workspace: lava_score_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN; contents neither needed nor kept.
/// scores: f32, lava_n_scores(shape) of them for all heads, head after head, one per prefix row, of which the part writes its own.
///      Without cu_rows [n_kv_heads, n_tokens - window]. All are finite and not negative. On error the part's own may be partly
///      written. May be NULL where there is no prefix.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, OVERFLOW, DTYPE, INDICES,
///      UNSUPPORTED, NONFINITE (naming the layer and one of the heads at fault; rows that no query sees are not looked at). Inputs
///      may share memory with each other, outputs with nothing. Any thread.
lava_status lava_score(const lava_shape *shape, const lava_score_params *params, const lava_tensor *q,
    const lava_tensor *k, const lava_tensor *v, const lava_tensor *lse, uint32_t part, uint32_t n_parts,
    void *workspace, size_t workspace_size, float *scores, lava_error *error);

/// Rows that lava_select keeps: what kept_indices must have room for.
///
/// n_entries: prefix entries to keep.
/// n_kept: receives min(n_entries, all that later queries can see) + n_kv_heads * min(window, n_tokens); untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES. Any thread.
lava_status lava_n_kept(const lava_shape *shape, uint64_t n_entries, uint64_t *n_kept, lava_error *error);

/// Bytes of workspace that lava_select needs.
///
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES. Any thread.
lava_status lava_select_workspace_size(const lava_shape *shape, size_t *size, lava_error *error);

/// Keeps a layer's best entries: the `n_entries` largest scores over all heads, and every head's window.
///
/// Ties go to the lower head, then to the lower token, so the kept set is a function of the scores: the same on every
/// backend, in every run.
///
/// params: may be NULL.
/// scores: f32, lava_n_scores(shape) of them, finite; from lava_score or from anywhere else. May be NULL where there is no prefix.
/// n_entries: prefix entries to keep in this layer, over all heads. More than there are keeps everything that a later query can see.
/// workspace: lava_select_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
/// kept_indices: receives each head's true token positions, ascending, head after head.
/// kept_capacity: entries that kept_indices (and rows) have room for, at least what lava_n_kept says.
/// cu_kept: n_kv_heads + 1 entries, receives the exclusive prefix sum of the counts, from 0: head h keeps
///     kept_indices[cu_kept[h]] up to kept_indices[cu_kept[h + 1]].
/// rows: NULL, or receives for each kept one which row of its head in the cache it is, for lava_compact. Without the shape's cu_rows
///     the same numbers as kept_indices.
/// selection: NULL, or receives what was done, in particular whether nothing was evicted.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, ARGUMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, BUDGET (below the
///     protected entries or head_min), NONFINITE. Outputs untouched on error. Any thread.
lava_status lava_select(const lava_shape *shape, const lava_select_params *params, const float *scores,
    uint64_t n_entries, void *workspace, size_t workspace_size, uint32_t *kept_indices, uint64_t kept_capacity,
    uint32_t *cu_kept, uint32_t *rows, lava_selection *selection, lava_error *error);

/// Bytes of workspace that lava_entries_for_share needs.
///
/// size: receives the bytes; untouched on error.
/// Errors: NULL. Any thread.
lava_status lava_entries_for_share_workspace_size(size_t *size, lava_error *error);

/// The fewest entries of a layer whose evicted share of score mass is at most epsilon, without floors or protected
/// entries: ask for a bound on the loss instead of a size.
///
/// scores: f32, lava_n_scores(shape) of them, finite, not negative (ARGUMENT).
/// epsilon: in [0, 1].
/// workspace: lava_entries_for_share_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
/// n_entries: receives prefix entries, for lava_select; untouched on error. The share holds to within 1e-12.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, ARGUMENT, OVERLAP, WORKSPACE, NONFINITE. Any thread.
lava_status lava_entries_for_share(const lava_shape *shape, const float *scores, double epsilon, void *workspace,
    size_t workspace_size, uint64_t *n_entries, lava_error *error);

/// Bytes of device memory that lava_cuda_score needs as a workspace.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence.
/// params: may be NULL.
/// size: receives the bytes, enough for tensors of any type and layout, with and without lse; untouched on error.
/// Errors: as lava_cuda_score. Any thread.
lava_status lava_cuda_score_workspace_size(const void *context, const lava_shape *shape,
    const lava_score_params *params, uint32_t n_sequences, size_t *size, lava_error *error);

/// lava_score for one layer of a batch of sequences of unlike length.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence; layer is below 65536.
/// params: may be NULL.
/// sequences: host memory, n_sequences of them, read during the call, as are the tensors they point to. There are faster kernels for
///     f16 or bf16 rows of adjacent elements, aligned to 16 bytes; they are used if all sequences have such rows. The scores of a
///     sequence are the same bits in every run, in every batch of the same kind of tensors, on devices of one architecture: CUDA does
///     not say in which order tensor cores add. From the same scores the same entries are kept everywhere.
/// workspace: device memory, lava_cuda_score_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN. No other call may use it until the
///     stream has run this one.
/// status: device memory; see the top.
/// stream: a CUstream or cudaStream_t of the context, NULL for its default stream.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, OVERFLOW, DTYPE, UNSUPPORTED, STATE,
///     CONTEXT: nothing was launched. LAUNCH: some launches may have been. Any thread on which the context is current.
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

/// lava_attention_stats (lava_methods.h) for one layer of a batch of sequences of unlike length. K is read twice, once with lse.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence; layer is below 65536.
/// params: may be NULL; scale, softcap and lse_base are used.
/// sequences: host memory, n_sequences of them, read during the call, as are the tensors they point to; what lava_cuda_score says of its
///     own is true of them. The statistics of a sequence are the same bits where its scores would be.
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
/// status, stream: as for lava_cuda_score. A weight that is not finite is "stats", of no head. lava_cuda_layer_entries then writes numbers
///     that lava_cuda_select refuses, and a cascade's pushes do nothing.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, UNSUPPORTED, STATE, CONTEXT: nothing was launched. LAUNCH. Any
///     thread on which the context is current.
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
/// status, stream: as for lava_cuda_score. Where scores are negative or not finite ("scores"), the sequence's numbers must not be used.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, OVERFLOW, UNSUPPORTED, STATE, CONTEXT: nothing was launched.
///     LAUNCH: some launches may have been. Any thread on which the context is current.
lava_status lava_cuda_entropy(const void *context, const lava_shape *shape, const lava_cuda_entropy_sequence *sequences,
    uint32_t n_sequences, void *workspace, size_t workspace_size, uint64_t *status, void *stream, lava_error *error);

/// lava_layer_entries for sequences side by side: the same numbers as on the CPU, without waiting for weights that are on the device.
/// The layers may be unlike: what counts is what they can keep.
///
/// context: from lava_cuda_init.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, 48 bytes for each sequence, aligned to LAVA_WORKSPACE_ALIGN; may be NULL for a single one.
/// status, stream: as for lava_cuda_score. Weights that are negative or not finite are "weights". A total below the minimums' sum,
///     minimums above a capacity, and capacities of 2^32 or more, are LAVA_ERR_BUDGET, "total". The entries are then what lava_cuda_select
///     refuses.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, STATE, CONTEXT: nothing was launched. LAUNCH. Any thread on
///     which the context is current.
lava_status lava_cuda_layer_entries(const void *context, const lava_cuda_entries_sequence *sequences,
    uint32_t n_sequences, void *workspace, size_t workspace_size, uint64_t *status, void *stream, lava_error *error);

/// Bytes of device memory that lava_cuda_global_entries needs as a workspace.
///
/// shape, n_layers, n_sequences: as for lava_cuda_global_entries.
/// size: receives the bytes; untouched on error.
/// Errors: as lava_cuda_global_entries. Any thread.
lava_status lava_cuda_global_entries_workspace_size(const void *context, const lava_shape *shape, uint32_t n_layers,
    uint32_t n_sequences, size_t *size, lava_error *error);

/// lava_global_entries for sequences side by side: the same numbers as on the CPU. With them lava_cuda_select keeps exactly the largest
/// scores of the whole model: a layer's n_entries is &entries[l], its head_weights head_weights + l * n_kv_heads.
///
/// context: from lava_cuda_init.
/// shape: of every layer; n_tokens is that of the longest sequence. n_kv_heads is at most LAVA_CUDA_MAX_HEADS, n_layers * n_kv_heads *
///     n_tokens below 2^32.
/// n_layers: at most LAVA_MAX_LAYERS.
/// params: may be NULL. As for lava_global_entries, but protected_mask is NULL here: each sequence has its own.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, lava_cuda_global_entries_workspace_size bytes, as for lava_cuda_score.
/// status, stream: as for lava_cuda_score. Scores that are not finite are "scores"; a total below what the heads are promised is
///     LAVA_ERR_BUDGET, "total", of layer 0.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, OVERFLOW, UNSUPPORTED, STATE, CONTEXT: nothing was launched.
///     LAUNCH: some launches may have been. Any thread on which the context is current.
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
/// shape: n_tokens is that of the longest sequence; n_kv_heads is at most LAVA_CUDA_MAX_HEADS, and n_kv_heads * n_tokens below 2^32.
/// params: may be NULL. protected_mask and head_weights are NULL here: each sequence has its own.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, lava_cuda_select_workspace_size bytes, as for lava_cuda_score.
/// status, stream: as for lava_cuda_score. Nothing is written for a sequence with scores that are not finite ("scores"), weights that are
///     negative or not finite ("weights"), or fewer entries than are protected (LAVA_ERR_BUDGET, "total").
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, OVERFLOW, UNSUPPORTED, STATE, CONTEXT: nothing was launched.
///     LAUNCH: some launches may have been. Any thread on which the context is current.
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
/// shape: of every layer; n_kv_heads, n_tokens and window are used. n_kv_heads is at most LAVA_CUDA_MAX_HEADS, n_kv_heads * n_tokens
///     below 2^32.
/// n_layers, total: as for lava_cascade_init.
/// params: may be NULL. As for lava_cascade_init, but protected_mask and head_weights are device memory. They are not copied: they must
///     stay until the last push has run.
/// cascade_params: may be NULL.
/// state: device memory, lava_cuda_cascade_state_size bytes, aligned to LAVA_WORKSPACE_ALIGN, the cascade's until nobody looks at its
///     layers any more.
/// cascade: receives the host's part; untouched on error.
/// status, stream: as for lava_cuda_score. A total below what the mask protects is LAVA_ERR_BUDGET, "total", of layer 0; pushes do
///     nothing then.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE (state_size), OVERFLOW, BUDGET, UNSUPPORTED, STATE, CONTEXT:
///     nothing was launched. LAUNCH. Any thread on which the context is current, but one call on a cascade at a time.
lava_status lava_cuda_cascade_init(const void *context, const lava_shape *shape, uint32_t n_layers, uint64_t total,
    const lava_select_params *params, const lava_cascade_params *cascade_params, void *state, size_t state_size,
    lava_cuda_cascade *cascade, uint64_t *status, void *stream, lava_error *error);

/// lava_cascade_push on the device, for sequences side by side: after it has run, every layer so far keeps what it keeps on the CPU, bit
/// for bit.
///
/// context: from lava_cuda_init.
/// sequences: host memory, n_sequences of them, read during the call. Their cascades may be of any shapes, each at a layer of its own.
/// workspace: device memory, lava_cuda_cascade_workspace_size bytes, as for lava_cuda_score.
/// status, stream: as for lava_cuda_score; the stream of the calls before, or one that waits for it. A fault in a layer's scores or
///     weights ("scores", "weights"), or entries that cannot hold what is protected (LAVA_ERR_BUDGET), makes this push and all later ones
///     of the cascade do nothing.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, ALIGNMENT, OVERLAP, WORKSPACE, STATE (complete, or not from lava_cuda_cascade_init), CONTEXT: nothing
///     was launched. LAUNCH: some launches may have been, and the cascades must not be used any more.
lava_status lava_cuda_cascade_push(const void *context, const lava_cuda_push_sequence *sequences, uint32_t n_sequences,
    void *workspace, size_t workspace_size, uint64_t *status, void *stream, lava_error *error);

/// Where a layer lies after the last push.
///
/// cascade: from lava_cuda_cascade_init, with pushes.
/// layer: below n_pushed.
/// out: receives pointers to device memory; untouched on error. What they lead to is there when the last push has run.
/// Errors: NULL, STRUCT_SIZE, STATE (not from lava_cuda_cascade_init, or no such layer yet). Any thread.
lava_status lava_cuda_cascade_get(const lava_cuda_cascade *cascade, uint32_t layer, lava_cuda_cascade_layer *out,
    lava_error *error);

/// Bytes of device memory that lava_cuda_compact needs as a workspace.
///
/// size: receives the bytes, enough for tensors of any type and layout; untouched on error.
/// Errors: as lava_cuda_compact. Any thread.
lava_status lava_cuda_compact_workspace_size(const void *context, uint32_t n_sequences, size_t *size,
    lava_error *error);

/// lava_compact for any layers of any sequences: gathers each head's kept rows of K and V, into another cache or in place. Everything that
/// rows and cu_kept say stays on the device, so it may follow lava_cuda_select or lava_cuda_cascade_push at once.
///
/// context: from lava_cuda_init.
/// shape: n_kv_heads, head_dim_k and head_dim_v are used; layer is named in errors.
/// sequences: host memory, n_sequences of them, at most LAVA_CUDA_MAX_COMPACT_SEQUENCES, read during the call, as are the tensors they
///     point to. In place is the source's memory with the same data, dtype, stride_token and stride_dim. Then either stride_head or
///     row_start is the very same: each head's rows move to the front of its own. Or both are ragged: rows of all heads close ranks. The
///     caller promises that every row then moves to the front or stays, and that row_start leaves room for what is kept. Otherwise a
///     destination may not share memory with a source or the other destination; K and V interleaved without row_start, with the same
///     strides, are fine. Caches of one call must not share memory that one of them writes.
/// workspace, stream: as for lava_cuda_score; the workspace is lava_cuda_compact_workspace_size bytes.
/// status: device memory, only read: where it has a fault when the kernels run, nothing moves and the caches stay as they were. It must
///     be the status of those calls on this stream which wrote rows and cu_kept, and not change while this call runs.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, OVERFLOW, DTYPE, STATE, CONTEXT:
///     nothing was launched. LAUNCH: some launches may have been, and only part of the tensors moved. Any thread on which the context is
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

/// lava_attend for a batch of sequences, each with as many new queries and a compressed cache of its own.
///
/// The counts n_rows are read on the device, when the kernels run: a captured graph stays valid while caches grow, up to max_rows and
/// total_rows. A larger count is taken as max_rows. Where all together have more rows than that, nothing is written after the workspace's
/// end, but the outputs must not be used. With causal, a head of fewer than n_queries rows has queries that see nothing: the first ones.
///
/// context: from lava_cuda_init.
/// shape: heads, head dimensions and sliding_window are used; layer is below 65536. With a sliding window each sequence has its positions.
/// params: may be NULL: causal. kept_indices, cu_kept and n_base are 0 here: each sequence has its own.
/// n_queries: new queries of each sequence, at least 1.
/// sequences, workspace, status, stream: as for lava_cuda_score. The workspace is lava_cuda_attend_workspace_size bytes. A sequence's
///     outputs are the same bits where its scores would be: in every run, in every batch of the same kinds of tensors.
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
