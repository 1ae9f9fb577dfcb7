/*
 * lava.h - KV-cache compression for inference engines (LAVa, arXiv 2509.09754).
 *
 * Made by cbindgen from src/ffi; `UPDATE_HEADER=1 cargo test --test header` rewrites it. Edit the comments there.
 *
 * How the data flows, per layer:
 *
 *     Q, K, V      --lava_score-->          scores        one f32 per KV head and prefix token
 *     scores       --lava_select-->         kept_indices, cu_kept, rows
 *     K, V         --lava_compact-->        the smaller cache
 *     new queries  --lava_attend-->         attention over it, where the engine has none for heads of different lengths
 *
 * lava_budget_from_ratio and lava_total_entries say how many entries the model keeps. Then all heads of all layers compete
 * (lava_global_entries), or layers share by weights such as the entropies of their scores (lava_entropy, lava_layer_entries).
 * A cascade (lava_cascade_*) decides for all layers so far whenever another layer's scores arrive.
 *
 * The recommended preset is what NULL in the place of any params means, and what the functions lava_*_params_default give: the
 * window's largest attention, one sort over all layers of which a fifth is guaranteed to heads in equal parts, and the first
 * four tokens kept. LAVa as published is lava_*_params_lava. lava_methods.h has other papers' presets and statistics,
 * lava_ranks.h one decision over many ranks.
 *
 * Rules for all functions:
 *
 * - Memory is the caller's. Nothing is allocated, nothing is kept between calls except which kernels the machine can run,
 *   and there are no threads, I/O or callbacks. A function that needs scratch memory has a _workspace_size function.
 * - Structs are made by the inline functions at the end of this header, which set struct_size. A library that is newer
 *   than this header takes the smaller struct; one that is older takes a larger one if the part that it does not know is zero.
 * - Counts are uint32_t or uint64_t, strides int64_t in elements, sizes size_t in bytes, scores and outputs f32.
 * - "Budget" is what a person sets: average tokens per KV head per layer, window included (uint32_t). "Entries" are what a stage
 *   uses: prefix rows over all heads of a layer or model, windows not included (uint64_t).
 * - Every call that can fail returns LAVA_OK or a LAVA_ERR_ code, and writes a lava_error if it is given one. Nothing is
 *   written to a cache unless the call succeeds. Other outputs: as each comment says.
 * - NULL is allowed where a comment says so: always for params, error, and optional outputs. Elsewhere it is LAVA_ERR_NULL.
 * - A pointer must lead to as much memory as its comment says for as long as the call lasts. NULL and misaligned
 *   pointers and overlapping arrays are found and refused; a pointer that is simply wrong is not. Any call may return
 *   LAVA_ERR_ALIGNMENT, and LAVA_ERR_STRUCT_SIZE for its lava_error, even where its own comment does not say so.
 * - Calls with different outputs may run at the same time; inputs may be shared. Work that can be split takes (part, n_parts):
 *   each part is a separate call, on any thread and in any order, and the results are the same bits for every n_parts.
 *   A part that has not run leaves its heads' outputs as they were.
 * - What a workspace contains is neither needed before a call nor kept after it. What a cascade's state contains is
 *   trusted: only lava_cascade_init and lava_cascade_push may write it.
 * - Not promised: the bits of scores and attention outputs across machines, versions and layouts of the same numbers (they
 *   agree within rounding). Given the scores, everything after them is the same bits everywhere.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef LAVA_H
#define LAVA_H


#include <stddef.h>
#include <stdint.h>

/// Pooling: the largest of the neighbourhood, clipped at both ends of what competes.
#define LAVA_POOL_MAX 0
/// Pooling: the mean of the neighbourhood; positions outside of what competes count as zero.
#define LAVA_POOL_AVG 1
/// Pooling: the largest of the entry itself and the pool_kernel - 1 before it, 1 to 127, even or odd: what is looked at, and what
/// comes after it, for a model goes on where it has looked. The recommended preset.
#define LAVA_POOL_AFTER 2

/// Of the query heads of a KV head: the largest.
#define LAVA_GROUP_MAX 0
/// Of the query heads of a KV head: the mean.
#define LAVA_GROUP_MEAN 1

/// The value norm's maximum runs over the prefix, as in the authors' released code.
#define LAVA_VALUES_PREFIX 0
/// The value norm's maximum runs over the window too, as in the paper's text.
#define LAVA_VALUES_ALL 1

/// An entry's attention: the mean over the window's queries. LAVa.
#define LAVA_ATTENTION_MEAN 0
/// The largest of the queries' (DefensiveKV, arXiv 2510.13334; KVzip, arXiv 2505.23416). The recommended preset.
#define LAVA_ATTENTION_MAX 5

/// Attention is multiplied by the largest L1 norm among the head's values. LAVa.
#define LAVA_VALUE_HEAD_MAX 0
/// By nothing. v is not looked at, and may be NULL.
#define LAVA_VALUE_NONE 1
/// By the mean L2 norm of the head's values, over the rows that value_span says. The recommended preset.
#define LAVA_VALUE_HEAD_MEAN_L2 5

/// A log-sum-exp is ln(sum(exp(logit))): FlashAttention, PyTorch.
#define LAVA_LSE_NATURAL 0
/// A log-sum-exp is log2(sum(exp(logit))): FlashInfer.
#define LAVA_LSE_BASE2 1

/// Layers share the total in proportion to the entropies of their scores. LAVa.
#define LAVA_LAYERS_ENTROPY 0
/// In equal parts.
#define LAVA_LAYERS_EQUAL 1
/// In proportion to weights that lava_cascade_push takes.
#define LAVA_LAYERS_WEIGHTS 2
/// The heads of all layers compete for the total: one sort over the model. The recommended preset.
#define LAVA_LAYERS_GLOBAL 3

/// No head is promised anything: the layer's largest scores win. LAVa.
#define LAVA_FLOOR_NONE 0
/// Each head's top floor(alpha * n_entries / n_kv_heads) entries, or fewer where that does not fit, are kept first, the rest compete.
/// The recommended preset.
#define LAVA_FLOOR_GUARANTEED 1
/// Head counts are h * (1 - alpha) + alpha * n_entries / n_kv_heads, exactly, h being those of free competition. O(n_kv_heads^2).
#define LAVA_FLOOR_AFFINE 2

/// The best kernels that this machine can run.
#define LAVA_BACKEND_BEST 0
/// Plain code, on every machine.
#define LAVA_BACKEND_SCALAR 1
/// AVX2 with FMA and F16C.
#define LAVA_BACKEND_AVX2 2
/// AVX-512F beside these.
#define LAVA_BACKEND_AVX512 3
/// The same with products of pairs of bf16, where queries and keys are both bf16.
#define LAVA_BACKEND_AVX512_BF16 4
/// NEON, on aarch64.
#define LAVA_BACKEND_NEON 5

/// Alignment that workspaces and cascade states need, in bytes. Memory from malloc has it.
#define LAVA_WORKSPACE_ALIGN 16

/// Largest head_dim_k and head_dim_v.
#define LAVA_MAX_HEAD_DIM 576
/// Largest pool_kernel.
#define LAVA_MAX_POOL_KERNEL 127
/// Most layers that share a total.
#define LAVA_MAX_LAYERS 1024

/// In lava_error: no layer or head is to blame.
#define LAVA_NONE UINT32_MAX

/// Result of every call that can fail: LAVA_OK, or one of the negative LAVA_ERR_ codes.
typedef int32_t lava_status;

/// One attention layer: its sizes, its rows, and what its queries see. lava_shape_init makes one of which nothing has been
/// evicted, with attention to all earlier tokens; the fields after window may be set then.
///
/// The prefix is the rows before the window; they have scores and compete. A layer with a sliding window has rows that no later
/// query can see: position + sliding_window <= n_tokens. These are dead: they score 0, count nowhere and are always evicted.
typedef struct lava_shape {
    /// sizeof(lava_shape); lava_shape_init sets it.
    uint32_t struct_size;
    /// Index of the layer. Only used to name it in errors.
    uint32_t layer;
    /// N: tokens so far, window included. The next token's position.
    uint32_t n_tokens;
    /// Query heads, a multiple of n_kv_heads. Query head h reads KV head h / (n_q_heads / n_kv_heads).
    uint32_t n_q_heads;
    /// KV heads. n_kv_heads * n_tokens must be below 2^32. In an array of layers, 0 is a layer that takes no part.
    uint32_t n_kv_heads;
    /// Elements of a query and of a key, 1 to LAVA_MAX_HEAD_DIM.
    uint32_t head_dim_k;
    /// Elements of a value, 1 to LAVA_MAX_HEAD_DIM.
    uint32_t head_dim_v;
    /// w, at least 1: the last tokens, always kept, whose queries score the others. One of n_tokens or more leaves no prefix.
    uint32_t window;
    /// Each query sees this many keys, its own included. 0: all earlier ones.
    uint32_t sliding_window;
    /// 0.
    uint32_t reserved;
    /// NULL: each head has n_tokens rows, and row i is token i. Else n_kv_heads + 1 entries from 0, the prefix sum of the heads'
    /// rows: a cache that has been compressed before.
    const uint32_t *cu_rows;
    /// With cu_rows: the true position of each row, ascending in each head, whose last min(window, n_tokens) rows are the window's.
    const uint32_t *positions;
} lava_shape;

/// Options of selection. NULL in its place, and lava_select_params_default, are the recommended preset; lava_select_params_lava
/// is LAVa as published, lava_select_params_equal gives all heads equal budgets.
typedef struct lava_select_params {
    /// sizeof(lava_select_params).
    uint32_t struct_size;
    /// LAVA_FLOOR_NONE, LAVA_FLOOR_GUARANTEED or LAVA_FLOOR_AFFINE.
    int32_t head_floor;
    /// In [0, 1], taken in billionths: the floor's share. Not used by LAVA_FLOOR_NONE.
    double alpha;
    /// NULL, or one byte per token position, for the longest prefix (n_tokens - window): a token whose byte is not zero is kept in
    /// every head that still has it and can see it. Protected tokens count toward the entries to keep.
    const uint8_t *protected_mask;
    /// Tokens at positions below this are protected too.
    uint32_t n_sink;
    /// Each head's best so many entries, the protected ones among them, are kept before any compete. They count too.
    uint32_t head_min;
    /// NULL, or head budgets from outside: a weight per KV head, of all layers one after the other where a call takes layers;
    /// finite and not negative. Heads share the layer's entries in proportion, with the rules of lava_layer_entries, instead of
    /// competing; the floors do nothing then. Weights that sum to the entries are counts, taken exactly.
    const double *head_weights;
} lava_select_params;

/// Why a call was refused. Every call takes one, or NULL. Written on success too. Its overlap with other arguments is not checked.
typedef struct lava_error {
    /// sizeof(lava_error), set by the caller.
    uint32_t struct_size;
    /// What the call returned.
    lava_status status;
    /// The layer, or LAVA_NONE.
    uint32_t layer;
    /// The KV head, or LAVA_NONE.
    uint32_t head;
    /// Name of the argument or field at fault, static; "" on success.
    const char *argument;
    /// The status in words, static.
    const char *message;
} lava_error;

/// Options of lava_score. NULL in its place, and lava_score_params_default, are the recommended preset; lava_score_params_lava is
/// LAVa as published; lava_methods.h has other papers'.
typedef struct lava_score_params {
    /// sizeof(lava_score_params).
    uint32_t struct_size;
    /// One of LAVA_ATTENTION_: what becomes of the window's attention to an entry.
    int32_t attention;
    /// One of LAVA_VALUE_: what that is multiplied by.
    int32_t value_weight;
    /// LAVA_POOL_MAX, _AVG or _AFTER: how attention is pooled along the tokens.
    int32_t pool;
    /// Width of the pooling, 1 (none) to LAVA_MAX_POOL_KERNEL; odd, but for LAVA_POOL_AFTER.
    uint32_t pool_kernel;
    /// LAVA_GROUP_MAX or LAVA_GROUP_MEAN: how the query heads of a KV head become one score.
    int32_t group_reduce;
    /// LAVA_VALUES_PREFIX or LAVA_VALUES_ALL: the tokens whose values enter LAVA_VALUE_HEAD_MAX and _HEAD_MEAN_L2.
    int32_t value_span;
    /// LAVA_LSE_NATURAL or LAVA_LSE_BASE2: of the log-sum-exp that lava_score takes.
    int32_t lse_base;
    /// One of LAVA_BACKEND_: the kernels. One that this machine cannot run is LAVA_ERR_UNSUPPORTED.
    int32_t backend;
    /// Factor on q.k. 0: 1 / sqrt(head_dim_k).
    float scale;
    /// Logits become softcap * tanh(logit / softcap). 0: no cap.
    float softcap;
    /// Of LAVA_ATTENTION_MEAN_VARIANCE, not negative.
    float gamma;
    /// Of LAVA_ATTENTION_EXPONENTIAL, the newest query's weight, above 0 and at most 1. 0: 1.
    float decay;
    /// A factor on all scores of the layer: its weight where all layers compete. Not negative. 0: 1.
    float weight;
    /// This many times a head's mean score is added to all its scores. Not negative.
    float smoothing;
    /// 0.
    uint32_t reserved;
    /// NULL, or the model's learned attention sinks: one logit per query head, n_q_heads of them, neither scaled nor capped, that
    /// is part of each softmax's denominator. Not looked at where a log-sum-exp is given: that includes them.
    const float *sink_logits;
    /// NULL, or n_q_heads factors, finite and not negative, on the query heads' attention before the group becomes one score.
    const float *query_head_weights;
} lava_score_params;

/// Element type of a tensor: LAVA_F32, LAVA_F16 or LAVA_BF16.
typedef int32_t lava_dtype;

/// A caller's buffer, seen as [rows, heads, dim].
///
/// Element c of row r of head h is at
///     data + (row_start ? row_start[h] : 0) * stride_token + h * stride_head + r * stride_token + c * stride_dim,
/// strides in elements. Rows are tokens in a dense cache, kept tokens in a compressed one. So
///     token-major  [n_tokens, n_heads, dim]: stride_token = n_heads * dim, stride_head = dim, stride_dim = 1
///     head-major   [n_heads, n_tokens, dim]: stride_token = dim, stride_head = n_tokens * dim, stride_dim = 1
///     transposed   [n_heads, dim, n_tokens]: stride_token = 1, stride_head = dim * n_tokens, stride_dim = n_tokens
///     ragged       rows without gaps, head h from row row_start[h] on: stride_token = dim, stride_head = 0, stride_dim = 1
/// Strides are positive; one that is never used (over one element or none) may be anything. No two elements may share
/// memory. How many rows and heads there are, the call that takes the tensor says.
typedef struct lava_tensor {
    /// sizeof(lava_tensor); lava_tensor_init sets it.
    uint32_t struct_size;
    /// LAVA_F32, LAVA_F16 or LAVA_BF16.
    lava_dtype dtype;
    /// First element, aligned to the element's size. Tensors that a call only reads are never written.
    void *data;
    /// Bytes from data on. Every element must lie within them; without row_start as if all heads had the longest's rows.
    size_t size;
    /// Elements from one row of a head to the next.
    int64_t stride_token;
    /// Elements from one head to the next; 0 where row_start is given.
    int64_t stride_head;
    /// Elements from one element of a row to the next.
    int64_t stride_dim;
    /// NULL, or one first row per head, ascending, the heads' rows not overlapping (else LAVA_ERR_OVERLAP).
    const uint32_t *row_start;
} lava_tensor;

/// What lava_select did.
typedef struct lava_selection {
    /// sizeof(lava_selection), set by the caller.
    uint32_t struct_size;
    /// 1 if nothing that a later query can see was evicted, else 0.
    uint32_t everything_kept;
    /// Kept rows over all heads, windows included: cu_kept[n_kv_heads].
    uint64_t n_kept;
    /// Kept prefix entries: as many as asked for, or all that later queries can see.
    uint64_t n_entries;
    /// Sum of the layer's scores. Where there are negative ones all are counted from the smallest.
    double mass;
    /// Share of mass that was evicted, in [0, 1]. For LAVa's score, up to a constant, the paper's bound on the output's change.
    double evicted_share;
} lava_selection;

/// Options of a cascade. NULL in its place, and lava_cascade_params_default, are the recommended preset: one sort over all layers.
/// lava_cascade_params_lava is LAVa as published: layers share by entropy.
typedef struct lava_cascade_params {
    /// sizeof(lava_cascade_params).
    uint32_t struct_size;
    /// One of LAVA_LAYERS_: how the layers share the total.
    int32_t layers;
    /// Pushes from one eviction to the next: the caller compacts all layers so far after pushes evict_every, 2 * evict_every, ...
    /// and after the last one, and at no other time. 0 and 1: after each push; n_layers or more: only at the end. What is kept
    /// does not depend on it.
    uint32_t evict_every;
    /// 0.
    uint32_t reserved;
} lava_cascade_params;

/// What a layer of a cascade holds after a push. The pointers lead into the state and are good until the next push.
typedef struct lava_cascade_layer {
    /// sizeof(lava_cascade_layer), set by the caller.
    uint32_t struct_size;
    /// 1 if nothing of this layer has been evicted since the caller last compacted it: no row moves.
    uint32_t unchanged;
    /// True token positions kept by each head, ascending, window included.
    const uint32_t *kept_indices;
    /// Exclusive prefix sum of the kept counts, n_kv_heads + 1 entries.
    const uint32_t *cu_kept;
    /// For lava_compact: which rows are kept of those that the caller's cache holds, as the last eviction left it (see evict_every
    /// of lava_cascade_params).
    const uint32_t *rows;
    /// Exclusive prefix sum of the row counts of that cache, n_kv_heads + 1 entries.
    const uint32_t *cu_rows;
    /// Prefix entries kept. Before the last push at most one more than its share, plus what a head floor may still ask for.
    uint64_t n_entries;
    /// Normalised entropy of the layer's scores.
    double entropy;
    /// Sum of the layer's scores.
    double mass;
    /// Share of mass evicted so far.
    double evicted_share;
} lava_cascade_layer;

/// Options of lava_attend. NULL in its place, and lava_attend_params_default, are causal attention without cap or positions.
typedef struct lava_attend_params {
    /// sizeof(lava_attend_params).
    uint32_t struct_size;
    /// 1: each head's last rows are the new queries' own, so that query t sees all rows but the last n_queries - 1 - t.
    /// 0: every query sees every row.
    uint32_t causal;
    /// Factor on q.k. 0: 1 / sqrt(head_dim_k).
    float scale;
    /// Logits become softcap * tanh(logit / softcap). 0: no cap.
    float softcap;
    /// Position of each head's first row after its kept ones; later rows count on from there.
    uint32_t n_base;
    /// LAVA_LSE_NATURAL or LAVA_LSE_BASE2: of the log-sum-exp that lava_attend returns.
    int32_t lse_base;
    /// One of LAVA_BACKEND_: the kernels. One that this machine cannot run is LAVA_ERR_UNSUPPORTED.
    int32_t backend;
    /// 0.
    uint32_t reserved;
    /// NULL, or the positions of each head's first rows, ascending; needed where the shape has a sliding window. That they ascend
    /// is not checked: others give another mask, and nothing worse.
    const uint32_t *kept_indices;
    /// NULL, or their prefix sum, n_kv_heads + 1 entries.
    const uint32_t *cu_kept;
    /// NULL, or learned attention sinks, as in lava_score_params.
    const float *sink_logits;
} lava_attend_params;

/// The call did what it says.
#define LAVA_OK 0

/// A pointer that must not be NULL is NULL.
#define LAVA_ERR_NULL -1
/// A struct_size is smaller than the first version of its struct, or what this library does not know of it is not zero.
#define LAVA_ERR_STRUCT_SIZE -2
/// An option is out of range, or an input contradicts the others.
#define LAVA_ERR_ARGUMENT -3
/// Sizes do not fit together.
#define LAVA_ERR_SHAPE -4
/// A stride is zero, negative, or lets two elements share memory.
#define LAVA_ERR_STRIDE -5
/// A pointer is not aligned to its element, or a workspace or state not to LAVA_WORKSPACE_ALIGN.
#define LAVA_ERR_ALIGNMENT -6
/// An output shares memory with another argument.
#define LAVA_ERR_OVERLAP -7
/// A buffer is smaller than its shape and strides need.
#define LAVA_ERR_BUFFER_SIZE -8
/// The workspace or state is smaller than its size function says.
#define LAVA_ERR_WORKSPACE -9
/// A size does not fit its type; a layer's rows over all heads must be below 2^32.
#define LAVA_ERR_OVERFLOW -10
/// An element type that is unknown or not accepted here.
#define LAVA_ERR_DTYPE -11
/// The budget is smaller than what is always kept: the window, or the protected entries.
#define LAVA_ERR_BUDGET -12
/// NaN or infinity in the input, or a score that overflows. lava_error names the layer and the head.
#define LAVA_ERR_NONFINITE -13
/// Row indices or positions that do not ascend or lie outside the cache, or prefix sums that decrease.
#define LAVA_ERR_INDICES -14
/// A cascade that is not initialised, already complete, or has no such layer yet.
#define LAVA_ERR_STATE -15
/// A bug in the library. Please report it.
#define LAVA_ERR_INTERNAL -16
/// Of lava_cuda.h: no libcuda, or one that is too old, finds no device or does not take the kernels.
#define LAVA_ERR_DRIVER -17
/// Of lava_cuda.h: no CUDA context is current on the calling thread, or another than lava_cuda_init saw.
#define LAVA_ERR_CONTEXT -18
/// Of lava_cuda.h: the driver refused a launch.
#define LAVA_ERR_LAUNCH -19
/// This build or this machine cannot do what was asked for.
#define LAVA_ERR_UNSUPPORTED -20

/// IEEE 754 binary32.
#define LAVA_F32 0

/// IEEE 754 binary16.
#define LAVA_F16 1

/// bfloat16.
#define LAVA_BF16 2

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/// The version as a number: major * 10000 + minor * 100 + patch. Any thread.
uint32_t lava_version(void);

/// The version as text, static, such as "0.1.0". Any thread.
const char *lava_version_string(void);

/// A status in words, static, never NULL; "unknown status" for any other number. Any thread.
const char *lava_status_string(lava_status status);

/// Name of the kernels with this LAVA_BACKEND_ number, static, such as "avx2"; of LAVA_BACKEND_BEST, of those that are chosen. NULL
/// where this machine cannot run them, or none have this number. Any thread.
const char *lava_backend_name(int32_t number);

/// The budget that a ratio of the tokens means: floor(ratio * n_tokens), with the ratio in billionths, so that 0.29 of 100 is 29. Never
/// less than what every head keeps whatever is asked for (the window, protected entries, head_min), never more than n_tokens. So every
/// ratio works at every length.
///
/// shape: where layers differ, the one with the longest cache.
/// params: may be NULL.
/// ratio: in [0, 1].
/// budget: receives tokens per KV head per layer, window included; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ARGUMENT. Any thread.
lava_status lava_budget_from_ratio(const lava_shape *shape, const lava_select_params *params, double ratio,
    uint32_t *budget, lava_error *error);

/// Prefix entries that a budget means for a whole model: the sum over all heads of budget - window, or of the prefix positions that a
/// later query can see where those are fewer; at most all rows. Compressing again asks for the same total.
///
/// shapes: n_shapes of them: one for each layer, or 1 that stands for all n_layers. Layers may differ in everything; one without KV heads
///     takes no part.
/// budget: average tokens kept per KV head per layer, window included. At least each window (BUDGET), unless it covers all tokens.
/// total: receives the number; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, BUDGET. Any thread.
lava_status lava_total_entries(const lava_shape *shapes, uint32_t n_shapes, uint32_t n_layers, uint32_t budget,
    uint64_t *total, lava_error *error);

/// Normalised entropy of a layer's scores, the layer's weight when layers share a total as in LAVa.
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

/// Entries of layers and heads by one sort over the whole model: the `total` largest scores win, whichever layer and head they are in.
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
/// n_entries: prefix entries to keep in this layer, over all heads. If there are fewer, everything that a later query can see is kept.
/// workspace: lava_select_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
/// kept_indices: receives each head's true token positions, ascending, head after head.
/// kept_capacity: entries that kept_indices (and rows) have room for, at least what lava_n_kept says.
/// cu_kept: n_kv_heads + 1 entries, receives the exclusive prefix sum of the counts, from 0: head h keeps
///     kept_indices[cu_kept[h]] up to kept_indices[cu_kept[h + 1]].
/// rows: NULL, or receives for each kept entry which row of its head in the cache it is, for lava_compact. Without the shape's cu_rows
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
/// entries: for a caller who wants a bound on the loss instead of a size.
///
/// scores: f32, lava_n_scores(shape) of them, finite, not negative (ARGUMENT).
/// epsilon: in [0, 1].
/// workspace: lava_entries_for_share_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
/// n_entries: receives prefix entries, for lava_select; untouched on error. The share holds to within 1e-12.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, ARGUMENT, OVERLAP, WORKSPACE, NONFINITE. Any thread.
lava_status lava_entries_for_share(const lava_shape *shape, const float *scores, double epsilon, void *workspace,
    size_t workspace_size, uint64_t *n_entries, lava_error *error);

/// Evicts: gathers each head's kept rows of K and V, in position order, into another cache or in place.
///
/// Row rows[cu_kept[h] + r] of head h becomes row r of head h. Keys already include RoPE; nothing is re-rotated. True positions
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
///     heads stay where they are (no row_start, or the same): each head's rows move to its own front. Or both are
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
/// params: may be NULL. Floors, sinks, the protected mask, head weights. All are copied.
/// cascade: may be NULL. How the layers share the total, and how often the caller evicts.
/// state: lava_cascade_state_size bytes, aligned to LAVA_WORKSPACE_ALIGN. The caller owns it and may drop it, start it
///     again or copy it at any time: it holds no resources and no pointers.
/// Errors: as lava_cascade_state_size, and ALIGNMENT, OVERLAP, WORKSPACE. Any thread, but one call on a state at a time.
lava_status lava_cascade_init(const lava_shape *shapes, uint32_t n_shapes, uint32_t n_layers, uint64_t total,
    const lava_select_params *params, const lava_cascade_params *cascade, void *state, size_t state_size,
    lava_error *error);

/// Takes in the next layer's scores and decides again what every layer so far keeps.
///
/// After it, lava_cascade_get says for each layer 0 to l which rows the caller's cache must keep; lava_compact moves them, at once or
/// as often as evict_every of lava_cascade_params says. A layer without KV heads is skipped.
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
/// state: only read. Pointers that earlier calls returned stay valid until the next push.
/// out: receives pointers into the state; untouched on error. That it is outside the state is not checked. A layer without KV heads
///     has no rows.
/// Errors: NULL, STRUCT_SIZE, ALIGNMENT, WORKSPACE, STATE (not initialised, or that layer was not pushed yet). Any thread, several at a
///     time, but none during a push.
lava_status lava_cascade_get(const void *state, size_t state_size, uint32_t layer, lava_cascade_layer *out,
    lava_error *error);

/// Bytes of workspace that each part of lava_attend needs.
///
/// n_queries: as in lava_attend.
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW. Any thread.
lava_status lava_attend_workspace_size(const lava_shape *shape, uint32_t n_queries, size_t *size, lava_error *error);

/// Attention of new queries over a compressed cache: heads of different lengths, grouped queries.
///
/// shape: heads, head dimensions and sliding_window are used. With a sliding window, params must have positions: a query's own is that of
///     its row if causal, else query t is t after the position that follows the last row.
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

LAVA_STATIC_ASSERT(sizeof(void *) == 8, "lava.h is for 64-bit machines");
LAVA_STATIC_ASSERT(sizeof(lava_shape) == 56 && offsetof(lava_shape, positions) == 48, "lava_shape");
LAVA_STATIC_ASSERT(sizeof(lava_tensor) == 56 && offsetof(lava_tensor, row_start) == 48, "lava_tensor");
LAVA_STATIC_ASSERT(sizeof(lava_score_params) == 80 && offsetof(lava_score_params, query_head_weights) == 72, "lava_score_params");
LAVA_STATIC_ASSERT(sizeof(lava_select_params) == 40 && offsetof(lava_select_params, head_weights) == 32, "lava_select_params");
LAVA_STATIC_ASSERT(sizeof(lava_selection) == 40 && offsetof(lava_selection, evicted_share) == 32, "lava_selection");
LAVA_STATIC_ASSERT(sizeof(lava_cascade_params) == 16 && offsetof(lava_cascade_params, evict_every) == 8, "lava_cascade_params");
LAVA_STATIC_ASSERT(sizeof(lava_cascade_layer) == 72 && offsetof(lava_cascade_layer, evicted_share) == 64, "lava_cascade_layer");
LAVA_STATIC_ASSERT(sizeof(lava_attend_params) == 56 && offsetof(lava_attend_params, sink_logits) == 48, "lava_attend_params");
LAVA_STATIC_ASSERT(sizeof(lava_error) == 32 && offsetof(lava_error, message) == 24, "lava_error");

#ifdef __cplusplus
#define LAVA_ZERO {}
#else
#define LAVA_ZERO {0}
#endif

/// A layer of which nothing has been evicted, with attention to all earlier tokens; 0 for layer until it is set.
static inline lava_shape lava_shape_init(uint32_t n_tokens, uint32_t n_q_heads, uint32_t n_kv_heads,
                                         uint32_t head_dim_k, uint32_t head_dim_v, uint32_t window) {
    lava_shape shape = LAVA_ZERO;
    shape.struct_size = (uint32_t) sizeof(shape);
    shape.n_tokens = n_tokens;
    shape.n_q_heads = n_q_heads;
    shape.n_kv_heads = n_kv_heads;
    shape.head_dim_k = head_dim_k;
    shape.head_dim_v = head_dim_v;
    shape.window = window;
    return shape;
}

/// How many scores a layer has: one per prefix row, over all heads. The shape must be valid.
static inline uint64_t lava_n_scores(const lava_shape *shape) {
    uint64_t window = shape->window < shape->n_tokens ? shape->window : shape->n_tokens;
    uint64_t rows = shape->cu_rows ? shape->cu_rows[shape->n_kv_heads] : (uint64_t) shape->n_kv_heads * shape->n_tokens;
    return rows - shape->n_kv_heads * window;
}

/// A tensor of any strides, in elements, over `size` bytes. For an input, cast const away: it is not written.
static inline lava_tensor lava_tensor_init(lava_dtype dtype, void *data, size_t size, int64_t stride_token,
                                           int64_t stride_head, int64_t stride_dim) {
    lava_tensor tensor = LAVA_ZERO;
    tensor.struct_size = (uint32_t) sizeof(tensor);
    tensor.dtype = dtype;
    tensor.data = data;
    tensor.size = size;
    tensor.stride_token = stride_token;
    tensor.stride_head = stride_head;
    tensor.stride_dim = stride_dim;
    return tensor;
}

/// [n_tokens, n_heads, dim] without gaps.
static inline lava_tensor lava_tensor_token_major(lava_dtype dtype, void *data, size_t size, uint32_t n_heads,
                                                  uint32_t dim) {
    return lava_tensor_init(dtype, data, size, (int64_t) n_heads * dim, dim, 1);
}

/// [n_heads, n_tokens, dim] without gaps.
static inline lava_tensor lava_tensor_head_major(lava_dtype dtype, void *data, size_t size, uint32_t n_tokens,
                                                 uint32_t dim) {
    return lava_tensor_init(dtype, data, size, dim, (int64_t) n_tokens * dim, 1);
}

/// [n_heads, dim, n_tokens] without gaps: V as llama.cpp keeps it without flash attention.
static inline lava_tensor lava_tensor_transposed(lava_dtype dtype, void *data, size_t size, uint32_t n_tokens,
                                                 uint32_t dim) {
    return lava_tensor_init(dtype, data, size, 1, (int64_t) dim * n_tokens, n_tokens);
}

/// Rows of dim elements without gaps, head h from row row_start[h] on: a compressed cache.
static inline lava_tensor lava_tensor_ragged(lava_dtype dtype, void *data, size_t size, const uint32_t *row_start,
                                             uint32_t dim) {
    lava_tensor tensor = lava_tensor_init(dtype, data, size, dim, 0, 1);
    tensor.row_start = row_start;
    return tensor;
}

/// LAVa as published: the mean of attention, max-pooled over 7, the group's maximum, times the head's largest value norm.
static inline lava_score_params lava_score_params_lava(void) {
    lava_score_params params = LAVA_ZERO;
    params.struct_size = (uint32_t) sizeof(params);
    params.pool_kernel = 7;
    return params;
}

/// The recommended preset, the same as NULL: the largest attention, also for the five entries after the one that draws it; half a head's
/// mean is added. V is not read. lava_methods.h has the same with weights of the query heads.
static inline lava_score_params lava_score_params_default(void) {
    lava_score_params params = lava_score_params_lava();
    params.attention = LAVA_ATTENTION_MAX;
    params.value_weight = LAVA_VALUE_NONE;
    params.pool = LAVA_POOL_AFTER;
    params.pool_kernel = 6;
    params.smoothing = 0.5f;
    return params;
}

/// LAVa as published: no head floor, nothing protected.
static inline lava_select_params lava_select_params_lava(void) {
    lava_select_params params = LAVA_ZERO;
    params.struct_size = (uint32_t) sizeof(params);
    return params;
}

/// Equal head budgets, as most methods have them.
static inline lava_select_params lava_select_params_equal(void) {
    lava_select_params params = lava_select_params_lava();
    params.head_floor = LAVA_FLOOR_AFFINE;
    params.alpha = 1.0;
    return params;
}

/// The recommended preset, the same as NULL: each head is sure of a fifth of an equal part, and keeps the first four
/// tokens.
static inline lava_select_params lava_select_params_default(void) {
    lava_select_params params = lava_select_params_lava();
    params.head_floor = LAVA_FLOOR_GUARANTEED;
    params.alpha = 0.2;
    params.n_sink = 4;
    return params;
}

/// LAVa as published: layers share by entropy.
static inline lava_cascade_params lava_cascade_params_lava(void) {
    lava_cascade_params params = LAVA_ZERO;
    params.struct_size = (uint32_t) sizeof(params);
    params.layers = LAVA_LAYERS_ENTROPY;
    return params;
}

/// The recommended preset, the same as NULL: one sort over all layers, and an eviction after each push.
static inline lava_cascade_params lava_cascade_params_default(void) {
    lava_cascade_params params = lava_cascade_params_lava();
    params.layers = LAVA_LAYERS_GLOBAL;
    return params;
}

/// The same as NULL: causal attention, scale 1 / sqrt(head_dim_k).
static inline lava_attend_params lava_attend_params_default(void) {
    lava_attend_params params = LAVA_ZERO;
    params.struct_size = (uint32_t) sizeof(params);
    params.causal = 1;
    return params;
}

/// An empty report for lava_select.
static inline lava_selection lava_selection_init(void) {
    lava_selection selection = LAVA_ZERO;
    selection.struct_size = (uint32_t) sizeof(selection);
    return selection;
}

/// An empty report for lava_cascade_get.
static inline lava_cascade_layer lava_cascade_layer_init(void) {
    lava_cascade_layer layer = LAVA_ZERO;
    layer.struct_size = (uint32_t) sizeof(layer);
    return layer;
}

/// An empty report for any call.
static inline lava_error lava_error_init(void) {
    lava_error error = LAVA_ZERO;
    error.struct_size = (uint32_t) sizeof(error);
    error.layer = LAVA_NONE;
    error.head = LAVA_NONE;
    return error;
}

#undef LAVA_STATIC_ASSERT
#undef LAVA_ZERO

#endif /* LAVA_H */
